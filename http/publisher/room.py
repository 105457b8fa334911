"""The bound of the buffer: so many events, so many bytes, first come, first served."""

from __future__ import annotations

from collections import OrderedDict

import anyio
from attrs import define, field

__all__ = ["Room"]


@define(eq=False)
class _Waiter:
    size: int
    turn: anyio.Event = field(factory=anyio.Event)
    admitted: bool = False


@define(eq=False)
class Room:
    """Room for events.

    An event that is larger than the whole room is let in when the room is empty: it has to get through somehow.

    Attributes:
        most: events that fit in.
        most_bytes: their bytes.
        events: that are in.
        bytes: that they have.
    """

    most: int
    most_bytes: int
    events: int = 0
    bytes: int = 0
    _waiting: OrderedDict[_Waiter, None] = field(factory=OrderedDict)

    def try_take(self, size: int) -> bool:
        """Take room for an event of `size` bytes, if there is any and nobody has been waiting for it before."""
        if self._waiting or not self._fits(size):
            return False
        self._take(size)
        return True

    async def take(self, size: int) -> bool:
        """Block until there is room, and take it; False if the wait was ended by `shut`.

        If cancelled, nothing is taken.
        """
        await anyio.lowlevel.checkpoint()
        if self.try_take(size):
            return True
        waiter = _Waiter(size)
        self._waiting[waiter] = None
        try:
            await waiter.turn.wait()
        except BaseException:
            # It may have been let in at the same time as it was cancelled.
            if waiter.admitted:
                self.give_back(size)
            elif waiter in self._waiting:
                del self._waiting[waiter]
                self._admit()
            raise
        return waiter.admitted

    def give_back(self, size: int) -> None:
        """An event has left."""
        self.events -= 1
        self.bytes -= size
        self._admit()

    def shut(self) -> None:
        """Send away everybody who waits."""
        while self._waiting:
            self._first().turn.set()

    def _admit(self) -> None:
        while self._waiting and self._fits(next(iter(self._waiting)).size):
            waiter = self._first()
            waiter.admitted = True
            self._take(waiter.size)
            waiter.turn.set()

    def _first(self) -> _Waiter:
        return self._waiting.popitem(last=False)[0]

    def _fits(self, size: int) -> bool:
        return self.events == 0 or (self.events < self.most and self.bytes + size <= self.most_bytes)

    def _take(self, size: int) -> None:
        self.events += 1
        self.bytes += size
