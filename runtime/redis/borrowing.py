"""`BlockingLimit`: how many connections of their own blocking commands and transactions may use at one time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["BlockingLimit"]


class BlockingLimit:
    """At most `most` tasks are inside of `place()`; the others wait, in order.

    A task that is inside may go in again, as the function of a transaction does when it blocks: it would wait for
    itself, if it counted twice.
    """

    def __init__(self, most: int) -> None:
        self._limit = trio.CapacityLimiter(most)
        self._inside: set[trio.lowlevel.Task] = set()

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it. Can be cancelled."""
        task = trio.lowlevel.current_task()
        if task in self._inside:
            await trio.lowlevel.checkpoint()
            yield
            return
        async with self._limit:
            self._inside.add(task)
            try:
                yield
            finally:
                self._inside.discard(task)
