"""The lock that orders the statements of tasks sharing one connection."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType

import trio

from .interruption import Interruption


class StatementLock:
    """A fair lock, free of checkpoints while nobody holds it.

    `trio.Lock` belongs to the task that took it, but psycopg's asynchronous generators (``stream()``,
    ``notifies()``) may be finalized, and so let go of it, in another task; and it passes a checkpoint each time,
    which every statement would pay.

    Cancellation: a cancelled waiter leaves the queue, unless it is cleaning up (`Interruption`): then it keeps its
    place, and has *grace* seconds to get its turn.

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
        self._waiters: deque[trio.Event] = deque()

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
        # A release hands the lock over to the first waiter without freeing it: nobody can overtake. It may do so
        # between a cancellation and the waiter's next step, so a place in the queue is kept until the waiter goes.
        turn = trio.Event()
        self._waiters.append(turn)
        try:
            await self._wait_for(turn)
        except BaseException:
            if turn.is_set():
                self.release()
            else:
                self._waiters.remove(turn)
            raise

    async def _wait_for(self, turn: trio.Event) -> None:
        try:
            await turn.wait()
        except trio.Cancelled:
            if not Interruption.current().starts_anyway:
                raise
            with trio.move_on_after(self.grace, shield=True):
                await turn.wait()
            if not turn.is_set():
                raise

    def release(self) -> None:
        if self._waiters:
            self._waiters.popleft().set()
        else:
            self._held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
