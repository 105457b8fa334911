"""`DedicatedRedis`: a connection of one's own, for a loop of blocking reads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final

import redis.exceptions
import trio

from . import _compat
from .backoff import Backoff
from .commands import Commands, shape
from .errors import NotSent, OutcomeUnknown, RedisClosed, RedisStalled, RedisUnavailable
from .link import OnTrouble
from .options import RedisOptions
from .retry import READS, SCRIPTS, Retry
from .routing import block_of, check_dedicated, command_name, reads_from_now
from .silence import Silence
from .wire import STREAM_ERRORS, Connect, Wire, describe, open_wire

__all__ = ["DedicatedRedis"]

_NOTHING: Final = object()
_FIRST: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()


class DedicatedRedis(Commands):
    """One connection, one command at a time. Made by `Redis.dedicated()`.

    Connects when a command needs it, and again after a failure (with backoff). A command that blocks has a deadline:
    its own BLOCK plus `options.block_margin`. Any other command has `options.response_timeout`, and is reported as
    stalled after `options.stall_after`. When a deadline passes or a command is cancelled, the connection is closed: the
    server drops a blocked command as soon as it notices. (It may have answered already: entries read by such an
    XREADGROUP are pending for this consumer.) What may safely be sent again is sent again for `options.retry_for`
    seconds, as on the shared client.
    """

    def __init__(self, options: RedisOptions, connect: Connect, on_trouble: OnTrouble, backoff: Backoff) -> None:
        super().__init__(options)
        self._connect = connect
        self._on_trouble = on_trouble
        self._backoff = backoff
        self._wire: Wire | None = None
        self._busy = False
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.options.address}>"

    @property
    def connected(self) -> bool:
        """Whether there is a connection (it may have gone stale since the last command)."""
        return self._wire is not None

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; what every command method ends in.

        Raises NotSent (no connection), OutcomeUnknown (it broke), RedisStalled (the deadline passed; the outcome is
        unknown), CommandRefused, redis.exceptions.ResponseError, and trio.BusyResourceError while another command is
        under way.
        """
        name = command_name(args)
        same_connection = check_dedicated(name, args)
        block = block_of(name, args)
        payload = _compat.pack_command(args)
        start = trio.current_time()
        attempt = partial(self._attempt, name, payload, block, options, same_connection)
        with self._alone():
            if same_connection:
                return await attempt()
            until = start + self.options.retry_for
            reads = name in READS and not reads_from_now(name, args)
            return await Retry(until, reads, self._backoff.random, name in SCRIPTS).run(attempt)

    async def _attempt(
        self, name: str, payload: bytes, block: float | None, options: dict[str, Any], same_connection: bool
    ) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()  # else it would be sent, and its reply not awaited
        wire = await self._connected(same_connection)
        raw = _FIRST if _compat.NEVER_DECODE in options else _NONE
        [reply] = await self._exchange(wire, payload, 1, raw, block)
        try:
            return shape(name, reply, options, self.options.protocol)
        except redis.exceptions.ReadOnlyError:
            await self._drop()  # the master may be elsewhere now
            raise

    async def burst(self, payload: bytes, count: int, raw: frozenset[int] = _NONE, *, follow: bool = True) -> list[Any]:
        """Send `payload` in one piece and bring its `count` replies, errors as objects; those in `raw` undecoded.

        With `follow` only on the connection that there is. There is one attempt. Raises as `execute_command`.
        """
        with self._alone():
            await trio.lowlevel.checkpoint_if_cancelled()
            wire = await self._connected(follow)
            return await self._exchange(wire, payload, count, raw, None)

    async def drop(self) -> None:
        """Close the connection, at once; the next command opens another one. Also under cancellation."""
        await self._drop()

    async def aclose(self) -> None:
        """Close at once and for good; a command under way in another task gets OutcomeUnknown."""
        self._closed = True
        await self._drop()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if self._busy:
            raise trio.BusyResourceError("a dedicated Redis connection runs one command at a time")
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    async def _connected(self, same_connection: bool) -> Wire:
        address = self.options.address
        if self._closed:
            await trio.lowlevel.checkpoint()  # whoever sends again on NotSent must stay cancellable
            raise RedisClosed(address, "the client is closed")
        if self._wire is not None and self._wire.is_stale():
            await self._drop()
        if self._wire is None and same_connection:
            raise NotSent(address, "the connection that this belongs to is gone")
        if self._wire is None:
            await self._backoff.wait()
            try:
                wire = await open_wire(self.options, self._connect)
            except RedisUnavailable as error:
                self._backoff.failed()
                self._on_trouble(error)
                raise NotSent(address, f"not sent: {error.reason}") from error
            if self._closed:  # in the meantime
                await wire.aclose()
                raise RedisClosed(address, "the client is closed")
            self._wire = wire
        return self._wire

    async def _exchange(
        self, wire: Wire, payload: bytes, count: int, raw: frozenset[int], block: float | None
    ) -> list[Any]:
        try:
            replies = await self._converse(wire, payload, count, raw, block)
        except RedisStalled as error:
            await self._give_up(error)
            raise
        except (EOFError, redis.exceptions.InvalidResponse, *STREAM_ERRORS) as error:
            trouble = RedisUnavailable(self.options.address, describe(error))
            trouble.__cause__ = error
            await self._give_up(trouble)
            raise OutcomeUnknown(trouble.address, f"sent, and no reply came: {trouble.reason}") from trouble
        except BaseException:  # cancelled above all
            await self._drop()  # the reply is still to come: nobody else may get it
            raise
        self._backoff.succeeded()
        return replies

    async def _converse(
        self, wire: Wire, payload: bytes, count: int, raw: frozenset[int], block: float | None
    ) -> list[Any]:
        """Send, and receive in time. Raises RedisStalled."""
        options, silence = self.options, Silence()
        limit = options.response_timeout if block is None else block + options.block_margin
        with trio.CancelScope(deadline=trio.current_time() + limit) as sending:

            def taken() -> None:
                silence.end()
                sending.deadline = trio.current_time() + limit

            await wire.send(payload, taken)
        if sending.cancelled_caught:
            raise RedisStalled(options.address, f"nothing of it taken for {limit:g} s")
        if block is not None:
            # So long it may well be silent, and nobody need look.
            silence.end(trio.current_time() + block)
        return [await self._next(wire, number in raw, silence, block) for number in range(count)]

    async def _next(self, wire: Wire, raw: bool, silence: Silence, block: float | None) -> Any:
        """The next reply. Raises RedisStalled; where it is no BLOCK that is silent, trouble is reported before."""
        options = self.options
        limit = options.response_timeout if block is None else options.block_margin
        reply = _NOTHING
        if block is None and options.stall_after < limit:
            reply = await _receive(wire, raw, silence, options.stall_after)
            if reply is _NOTHING:
                self._on_trouble(RedisStalled(options.address, f"no byte for {options.stall_after:g} s"))
        if reply is _NOTHING:
            reply = await _receive(wire, raw, silence, limit)
        if reply is _NOTHING:
            blocking = "" if block is None else f" (BLOCK {block:g} s)"
            raise RedisStalled(options.address, f"no byte for {limit + (block or 0.0):g} s{blocking}")
        return reply

    async def _give_up(self, trouble: RedisUnavailable) -> None:
        """Report, at once, and close: whatever the report does, nobody else may get the reply that is to come."""
        try:
            if not self._closed:
                self._on_trouble(trouble)
        finally:
            await self._drop()

    async def _drop(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.aclose()


async def _receive(wire: Wire, raw: bool, silence: Silence, limit: float) -> Any:
    """The next reply, or _NOTHING when no byte has come for `limit` seconds.

    However long it is, and however long our own event loop takes for something else: see `Silence`.
    """
    while True:
        with trio.CancelScope(deadline=silence.next_look(limit)):
            return await wire.receive(raw=raw, heard=silence.end)
        if wire.has_news():
            silence.end()
        if silence.exceeds(limit):
            return _NOTHING
