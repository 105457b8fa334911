"""`Redis`: the client of one server."""

from __future__ import annotations

import random
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, cast

import redis.exceptions
import trio

from . import _compat
from .backoff import Backoff
from .borrowing import BlockingLimit
from .commands import Commands, shape
from .dedicated import DedicatedRedis
from .errors import RedisClosed
from .link import Link, OnTrouble
from .messages import Owner
from .options import RedisOptions
from .pipeline import Pipeline
from .pubsub import BUFFER_BYTES, PubSub
from .retry import READS, SCRIPTS, Retry
from .routing import UNUSUAL, block_of, check_shared, command_name
from .statistics import RedisStatistics
from .subscriber import Subscriber
from .transaction import Transaction, run_transaction
from .wire import Connect, connector

__all__ = ["Redis", "RedisStatistics"]

_MAX_SPARE: Final = 4
"""Idle connections kept for blocking commands; a fifth is closed after use."""


class Redis(Commands):
    """redis-py's commands over one auto-pipelined connection that all tasks share.

    ::

        async with Redis(RedisOptions.from_url("redis://127.0.0.1")) as redis:
            entry_id = await redis.xadd("orders", {"data": "{}"})

    Connects when a command needs it; the commands that all tasks issue in one tick of the scheduler travel together.
    Cancel a command when you like: unsent, it is taken back; sent, its reply is dropped when it comes. Commands that
    block get a connection of their own. Every command is a checkpoint.

    A command that failed is sent again, for `options.retry_for` seconds, when that can do no harm: it was never sent,
    the server refused it for a reason that passes (it is loading, say), or it only reads. Anything else that was sent
    and not answered raises `OutcomeUnknown`: it may have run. A connection on which a server answers READONLY is
    replaced, since the master may be elsewhere now.

    The client owns its background tasks; leave it in the task that entered it. Leaving fails what is under way.

    Args:
        options: server, login and limits.
        on_trouble: called at once, in the scheduler tick, with RedisUnavailable or RedisStalled: connect refused, end
            of stream, reset, response time-out, silence. Must return quickly and must not raise.
        connect: opens the byte stream instead of `options` (tests, tunnels).
        rng: source of the jitter between connect attempts; give a seeded one for reproducible runs.

    Raises OSError or ssl.SSLError when a TLS file of the options cannot be read.
    """

    def __init__(
        self,
        options: RedisOptions,
        *,
        on_trouble: OnTrouble | None = None,
        connect: Connect | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not isinstance(options, RedisOptions):
            raise TypeError(f"Redis takes RedisOptions, not {type(options).__name__}: use open_client(read_url(url))")
        super().__init__(options)
        self._protocol = options.protocol
        self._listener = on_trouble
        self._connect = connect if connect is not None else connector(options)
        self._rng = rng if rng is not None else random.Random()  # noqa: S311  # jitter, no secret
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._link: Link | None = None
        self._limit = BlockingLimit(options.max_blocking)
        self._dedicated: set[DedicatedRedis] = set()
        self._spare: list[DedicatedRedis] = []
        self._pubsubs: weakref.WeakSet[PubSub] = weakref.WeakSet()
        self._last_error: Exception | None = None
        self._last_error_at: float | None = None

    def __repr__(self) -> str:
        state = "new" if self._link is None else "closed" if self._link.closed else "open"
        return f"<Redis {self.options.address} ({state})>"

    async def __aenter__(self) -> Self:
        if self._nurseries is not None:
            raise RuntimeError("this Redis client was entered before; make a new one")
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        self._link = Link(self.options, self._connect, self._trouble, self._backoff(), self._nursery)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None  # noqa: S101
        self._opened().close()
        for pubsub in self._pubsubs:
            pubsub.close()
        # The nursery does not get the body's exception: that one goes on as it is, not wrapped in a group. The wait is
        # bounded, for every background task ends at once when it is cancelled.
        self._nursery.cancel_scope.cancel()
        try:
            await self._nurseries.__aexit__(None, None, None)
        finally:  # also when an outer cancellation comes out of the nursery
            for connection in [*self._dedicated, *self._spare]:
                await connection.aclose()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; what every command method ends in.

        May take `options.retry_for` seconds longer than one attempt; the last attempt's error is raised.

        Raises NotSent, OutcomeUnknown, CommandRefused, redis.exceptions.DataError (a value that Redis has no type for),
        redis.exceptions.ResponseError (the server's answer).
        """
        name = command_name(args)
        if name in UNUSUAL or " " in name:
            check_shared(name, args)
            if block_of(name, args) is not None:
                return await self._run_blocking(args, options)
        raw = _FIRST if _compat.NEVER_DECODE in options else _NONE
        payload = _compat.pack_command(args)
        link, start = self._opened(), trio.current_time()
        try:
            # The first attempt stands here, and not in `_attempt`: one coroutine less on the way of each reply.
            mux = link.mux or await link.open()
            return shape(name, await mux.call(payload, 1, raw), options, self._protocol)
        except redis.exceptions.ReadOnlyError as error:
            link.retire(mux)
            failure: redis.exceptions.RedisError = error
        except redis.exceptions.RedisError as error:
            failure = error
        _explain(failure)
        retry = self._retry(start, name in READS)
        retry.scripted = name in SCRIPTS
        return await retry.run(partial(self._attempt, name, payload, raw, options), failure)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Many commands in one burst: see `Pipeline`. With `transaction` (redis-py's default), in MULTI and EXEC."""
        return Pipeline(self.options, self._burst, transaction=transaction, retry=self._retry)

    async def transaction(
        self,
        function: Callable[[Transaction], Any],
        *watches: Any,
        value_from_callable: bool = False,
        attempts: int = 50,
    ) -> Any:
        """Read, decide and write in one step, unless somebody else writes to the keys `watches` meanwhile: then again.

        ::

            async def take(transaction):
                stock = int(await transaction.get("stock") or 0)
                transaction.multi()
                transaction.set("stock", stock - 1)

            await redis.transaction(take, "stock")

        `function` may run several times, so it should do nothing but use its `Transaction`; it may be a plain function,
        too. It has a connection of its own, of those of `options.max_blocking`; when it is cancelled or raises, the
        connection is closed, and nothing is written unless EXEC was under way.

        Args:
            function: gets a `Transaction`.
            watches: keys.
            value_from_callable: whether to return the function's value; else what EXEC returned, in order.
            attempts: how often to be outrun before giving up.

        Raises redis.exceptions.WatchError (outrun in every attempt), and as `execute_command` and a pipeline do.
        """
        if not watches:
            raise redis.exceptions.DataError("a transaction without keys to watch: use pipeline(transaction=True)")
        async with self._lent() as connection:
            value, results = await run_transaction(connection, function, watches, attempts=attempts, retry=self._retry)
        return value if value_from_callable else results

    @asynccontextmanager
    async def dedicated(self, key: Any = None) -> AsyncIterator[DedicatedRedis]:
        """A connection of one's own, for a loop of blocking reads; opened by its first command, closed at the end.

        It reports trouble to the same `on_trouble`. It does not count against `options.max_blocking`. `key` is for
        programs that run on a cluster, too; there is one server here.
        """
        connection = await self._new_dedicated()
        self._dedicated.add(connection)
        try:
            yield connection
        finally:
            self._dedicated.discard(connection)
            await connection.aclose()

    def pubsub(self, *, buffer_bytes: int = BUFFER_BYTES) -> PubSub:
        """Subscriptions, on a connection of their own: `async with redis.pubsub() as pubsub:`. See `PubSub`.

        `buffer_bytes` is how much may wait here for a slow consumer. Raises RedisClosed after the client was left.
        """
        if self._opened().closed:
            raise RedisClosed(self.options.address, "the client is closed")

        def subscriber(owner: Owner) -> Subscriber:
            return Subscriber(self.options, self._connect, self._trouble, self._backoff(), owner)

        pubsub = PubSub(self.options, subscriber, buffer_bytes=buffer_bytes)
        self._pubsubs.add(pubsub)
        return pubsub

    def statistics(self) -> RedisStatistics:
        """A snapshot; does not block."""
        link = self._opened()
        return RedisStatistics(
            address=self.options.address,
            connected=link.connected,
            since=link.since,
            reconnects=max(0, link.connections - 1),
            sent=link.sent,
            pending=link.pending,
            waiting=link.waiting,
            queued_bytes=link.queued_bytes,
            dedicated=len(self._dedicated),
            last_error=self._last_error,
            last_error_at=self._last_error_at,
        )

    async def _attempt(self, name: str, payload: bytes, raw: frozenset[int], options: dict[str, Any]) -> Any:
        link = self._opened()
        mux = link.mux or await link.open()
        try:
            return shape(name, await mux.call(payload, 1, raw), options, self._protocol)
        except redis.exceptions.ReadOnlyError:
            link.retire(mux)
            raise

    async def _burst(self, payload: bytes, count: int, raw: frozenset[int]) -> list[Any]:
        link = self._opened()
        mux = link.mux or await link.open()
        replies = await mux.call(payload, count, raw)
        if count == 1:
            replies = [replies]
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if any(isinstance(error, redis.exceptions.ReadOnlyError) for error in errors):
            link.retire(mux)
        for error in errors:
            _explain(error)
        return cast("list[Any]", replies)

    def _retry(self, start: float, reads: bool) -> Retry:
        return Retry(start + self.options.retry_for, reads, self._rng.random)

    async def _run_blocking(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        async with self._lent() as connection:
            return await connection.execute_command(*args, **options)

    @asynccontextmanager
    async def _lent(self) -> AsyncIterator[DedicatedRedis]:
        """One of at most `max_blocking` connections, kept for the next one afterwards."""
        self._opened()
        async with self._limit.place():
            connection = self._spare.pop() if self._spare else await self._new_dedicated()
            self._dedicated.add(connection)
            try:
                yield connection
            finally:
                self._dedicated.discard(connection)
                if connection.connected and len(self._spare) < _MAX_SPARE:
                    self._spare.append(connection)
                else:
                    await connection.aclose()

    async def _new_dedicated(self) -> DedicatedRedis:
        if self._opened().closed:
            await trio.lowlevel.checkpoint()  # whoever sends again on NotSent must stay cancellable
            raise RedisClosed(self.options.address, "the client is closed")
        return DedicatedRedis(self.options, self._connect, self._trouble, self._backoff())

    def _backoff(self) -> Backoff:
        return Backoff(random=self._rng.random)

    def _trouble(self, error: Exception) -> None:
        self._last_error = error
        self._last_error_at = trio.current_time()
        if self._listener is not None:
            self._listener(error)

    def _opened(self) -> Link:
        if self._link is None:
            raise RuntimeError("the Redis client is not open: use `async with Redis(options) as redis:`")
        return self._link


def _explain(error: Exception) -> None:
    """Say with a redirection, which nobody follows here, what it means for a client of one server."""
    if isinstance(error, redis.exceptions.AskError) and not hasattr(error, "__notes__"):
        error.add_note("this server is a node of a cluster: open it with redis+cluster:// (rediss+cluster:// with TLS)")


_FIRST: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()
