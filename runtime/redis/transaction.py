"""`Transaction`: read under WATCH, decide, and write in one step if nobody else has written meanwhile."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Final

import redis.exceptions
import trio

from . import _compat
from .commands import Commands, shape
from .dedicated import DedicatedRedis
from .errors import CommandRefused
from .pipeline import Pipeline, raise_first_error
from .retry import READS, SCRIPTS, Retry
from .routing import block_of, check_shared, command_name

__all__ = ["Transaction", "run_transaction"]


class Transaction(Commands):
    """What the function of `Redis.transaction` gets. It belongs to the task that runs the function.

    Before `multi()`, commands are sent at once and must be awaited: read what the decision needs. After it they are
    queued, and sent as one step when the function returns.
    """

    def __init__(self, connection: DedicatedRedis) -> None:
        super().__init__(connection.options)
        self._connection = connection
        self._queue: Pipeline | None = None
        self.failure: Exception | None = None  # the last one for which nothing was written by EXEC
        self.wrote = False  # or tried to
        self.scripted = False

    def multi(self) -> None:
        """From now on, queue."""
        if self._queue is not None:
            raise redis.exceptions.RedisError("multi() was called already")
        self._queue = Pipeline(self.options, self._burst, transaction=True)

    def remember_script(self, sha: str, keys: Sequence[Any] = ()) -> bool:
        """As `Pipeline.remember_script`: for `Script.queue`, after `multi()`."""
        if self._queue is None:
            raise redis.exceptions.RedisError("before multi() nothing is queued: await script(client=transaction)")
        return self._queue.remember_script(sha, keys)

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """An awaitable before `multi()`, the transaction itself after it; what every command method ends in.

        Raises CommandRefused (commands that block or change the connection) and redis.exceptions.DataError.
        """
        if self._queue is not None:
            self._queue.execute_command(*args, **options)
            return self
        return self._run(args, options)

    async def begin(self, keys: Sequence[Any]) -> None:
        """WATCH, on a new connection if need be."""
        await self._send("WATCH", _compat.pack_command(("WATCH", *keys)), {}, follow=False)

    async def commit(self) -> list[Any]:
        """EXEC what was queued; UNWATCH if nothing was. Raises redis.exceptions.WatchError, and as a pipeline does."""
        if self._queue is None or not len(self._queue):
            await self._send("UNWATCH", _UNWATCH, {})
            return []
        names, self.wrote = self._queue.names, True
        try:
            results = await self._queue.execute(raise_on_error=False)
        except redis.exceptions.RedisError as error:
            self.failure = error
            raise
        raise_first_error(names, results)  # not a failure of the transaction: the other commands have run
        return results

    async def _run(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        name = command_name(args)
        check_shared(name, args)
        if block_of(name, args) is not None:
            raise CommandRefused(f"{name} blocks, and would keep the transaction open: call it by itself")
        self.wrote |= name not in READS
        self.scripted |= name in SCRIPTS
        return await self._send(name, _compat.pack_command(args), options)

    async def _send(self, name: str, payload: bytes, options: dict[str, Any], *, follow: bool = True) -> Any:
        raw = _FIRST if _compat.NEVER_DECODE in options else _NONE
        try:
            [reply] = await self._connection.burst(payload, 1, raw, follow=follow)
            return shape(name, reply, options, self.options.protocol)
        except redis.exceptions.RedisError as error:
            self.failure = error
            raise

    async def _burst(self, payload: bytes, count: int, raw: frozenset[int]) -> list[Any]:
        return await self._connection.burst(payload, count, raw)


async def run_transaction(
    connection: DedicatedRedis,
    function: Callable[[Transaction], Any],
    watches: Sequence[Any],
    *,
    attempts: int,
    retry: Callable[[float, bool], Retry],
) -> tuple[Any, list[Any]]:
    """Watch, call `function`, execute; again when somebody else has written. The function's value, and EXEC's.

    Leaves the connection without a watch, or closed: also when it is cancelled, and whatever the function raises.
    """
    start, conflicts = trio.current_time(), 0
    patience = retry(start, True)
    while True:
        transaction = Transaction(connection)
        try:
            await transaction.begin(watches)
            value = function(transaction)
            if inspect.isawaitable(value):
                value = await value
            return value, await transaction.commit()
        except BaseException as error:
            outrun = isinstance(error, redis.exceptions.WatchError) and error is transaction.failure
            if not outrun:  # else EXEC has taken the watch away
                await connection.drop()
            conflicts += outrun
            wait = _wait_after(error, transaction, patience, conflicts, attempts)
            if wait is None:
                raise
        await trio.sleep(wait)


def _wait_after(
    error: BaseException, transaction: Transaction, patience: Retry, conflicts: int, attempts: int
) -> float | None:
    """Seconds until the next attempt; None when this error is final.

    Only what came from the transaction's own connection counts: what the function did elsewhere is not ours to repeat.
    """
    if error is not transaction.failure:
        return None
    if not isinstance(error, redis.exceptions.WatchError):
        # Nothing is written before EXEC, unless the function did so by itself.
        patience.reads, patience.scripted = not transaction.wrote, transaction.scripted
        return patience.wait_after(error, trio.current_time())
    if conflicts >= attempts:
        error.add_note(f"others were faster in each of {attempts} attempts")
        return None
    return patience.random() * min(_LONGEST, _SHORTEST * 2.0 ** min(conflicts, 16))


_SHORTEST, _LONGEST = 0.001, 0.1
"""Seconds: ceilings of the waits between attempts in which somebody else was faster."""

_UNWATCH: Final = _compat.pack_command(("UNWATCH",))
_FIRST: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()
