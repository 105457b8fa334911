"""The lock that orders the statements of tasks sharing one connection."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from .interruption import Interruption


class StatementLock:
    """A fair lock, free of checkpoints while nobody holds it.

    `trio.Lock` belongs to the task that took it, but psycopg's asynchronous generators (``stream()``,
    ``notifies()``) may be finalized, and so let go of it, in another task; and it passes a checkpoint each time,
    which every statement would pay.

    Cancellation: a cancelled waiter leaves the queue, unless it is cleaning up (`Interruption`): then it has
    *grace* seconds to get its turn.

    Args:
        grace: See there.
        tidy: Called by who has got the turn, if *untidy* says that the one before left something under way. After a
            release it would be too late: somebody else may have been given the turn already.
        untidy: See there.
    """

    def __init__(self, grace: float, *, untidy: Callable[[], bool], tidy: Callable[[], Awaitable[None]]) -> None:
        self.grace = grace
        self._untidy = untidy
        self._tidy = tidy
        self._held = False
        self._waiters = trio.lowlevel.ParkingLot()

    def locked(self) -> bool:
        return self._held

    async def acquire(self) -> None:
        if self._held:
            await self._wait()
        self._held = True
        if self._untidy():
            try:
                await self._tidy()
            except BaseException:
                self.release()
                raise

    async def _wait(self) -> None:
        # A release hands the lock over to the first waiter without freeing it: nobody can overtake.
        try:
            await self._waiters.park()
        except trio.Cancelled:
            if not Interruption.current().starts_anyway:
                raise
            with trio.move_on_after(self.grace, shield=True):
                await self._waiters.park()
                return
            raise

    def release(self) -> None:
        if self._waiters:
            self._waiters.unpark()
        else:
            self._held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
