"""The backlog of a group: every entry that this process has read and not yet acknowledged.

It stands between listeners and handler pool, and outlives both: when one of them is held or restarted, nothing that
was read is lost or handled twice at a time. Its capacity is the credit that listeners read by.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import trio
from attrs import frozen

from .handling import Entry, entry_order

__all__ = ["Backlog", "BacklogStatistics"]


@frozen(kw_only=True)
class BacklogStatistics:
    """A backlog at one moment, and its counts since the start of the process.

    Attributes:
        capacity: entries it holds at the most.
        ready: waiting for a worker.
        delayed: waiting out the pause before their next attempt.
        in_work: with a worker.
        unacknowledged: done, and not yet acknowledged to Redis.
        acknowledged: how many were acknowledged so far.
    """

    capacity: int
    ready: int
    delayed: int
    in_work: int
    unacknowledged: int
    acknowledged: int


class Backlog:
    """See the module.

    Args:
        capacity: entries it holds at the most; the credit of all listeners of the group together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._known: dict[str, Entry] = {}
        self._ready: deque[Entry] = deque()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._done: deque[str] = deque()
        self._in_acknowledgement = 0
        self._acknowledged = 0
        self._last: str | None = None
        self._order = itertools.count()
        self._work_news = trio.Event()
        self._done_news = trio.Event()
        self._room_news = trio.Event()

    @property
    def room(self) -> int:
        """Entries that a listener may read now."""
        return max(0, self.capacity - len(self._known))

    async def wait_room(self) -> None:
        """Block until there is room for an entry."""
        await trio.lowlevel.checkpoint()
        while not self.room:
            await self._room_news.wait()

    def known(self) -> frozenset[str]:
        """The ids of all entries that are here now."""
        return frozenset(self._known)

    def add(self, entries: Iterable[Entry]) -> int:
        """Take in what a listener read, leaving out what is here already; the number taken in. Never blocks."""
        fresh = [entry for entry in entries if entry.id not in self._known]
        for entry in fresh:
            self._known[entry.id] = entry
            if self._last is None or entry_order(entry.id) > entry_order(self._last):
                self._last = entry.id
        self._ready.extend(fresh)
        if fresh:
            self._wake_workers()
        return len(fresh)

    async def take(self, limit: int, stopping: Callable[[], bool]) -> list[Entry]:
        """Up to `limit` entries that are due, oldest first; blocks until there is one.

        Returns an empty list once `stopping()` is true (call `wake` to have it asked). Cancelled, it takes none. What
        is taken must come back by exactly one of `done`, `retry` and `give_back`.
        """
        await trio.lowlevel.checkpoint()
        while not stopping():
            self._promote()
            if self._ready:
                return [self._ready.popleft() for _ in range(min(limit, len(self._ready)))]
            with trio.move_on_at(self._delayed[0][0] if self._delayed else math.inf):
                await self._work_news.wait()
        return []

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Entries that were taken and not worked on: to the front again, in their order."""
        self._ready.extendleft(reversed(entries))
        if entries:
            self._wake_workers()

    def retry(self, entry: Entry, at: float) -> None:
        """An entry whose attempt failed: it is due again at `at` (`trio.current_time()`)."""
        heapq.heappush(self._delayed, (at, next(self._order), entry))
        self._wake_workers()

    def done(self, entries: Iterable[Entry]) -> None:
        """Entries whose effect is committed: to be acknowledged."""
        self._done.extend(entry.id for entry in entries)
        self._done_news.set()

    async def take_done(self, limit: int, linger: float) -> list[str]:
        """Up to `limit` ids to acknowledge; blocks until there is one, then `linger` seconds for more.

        Must come back by `acknowledged` or `acknowledge_again`. Cancelled, it takes none.
        """
        while not self._done:
            self._done_news = trio.Event()
            await self._done_news.wait()
        if len(self._done) < limit and linger:
            await trio.sleep(linger)
        taken = [self._done.popleft() for _ in range(min(limit, len(self._done)))]
        self._in_acknowledgement += len(taken)
        return taken

    def acknowledged(self, ids: Sequence[str]) -> None:
        """Redis has them acknowledged: they leave, and make room."""
        self._in_acknowledgement -= len(ids)
        self._acknowledged += len(ids)
        for each in ids:
            self._known.pop(each, None)
        self._room_news.set()
        self._room_news = trio.Event()

    def acknowledge_again(self, ids: Sequence[str]) -> None:
        """Redis could not be told: they stay to be acknowledged."""
        self._in_acknowledgement -= len(ids)
        self._done.extendleft(reversed(ids))
        self._done_news.set()

    @property
    def is_acknowledged(self) -> bool:
        """Whether nothing waits for its acknowledgement."""
        return not self._done and not self._in_acknowledgement

    async def wait_acknowledged(self) -> None:
        """Block until nothing waits for its acknowledgement."""
        await trio.lowlevel.checkpoint()
        while not self.is_acknowledged:
            await self._room_news.wait()

    def wake(self) -> None:
        """Let all waiting takers look again whether they should stop."""
        self._wake_workers()

    def position(self, finishing: Iterable[Entry]) -> str | None:
        """The id up to which everything that this process read is done, once `finishing` is.

        A group that has to be made again is made at it: what lies behind it is read again, and known by the inbox. None
        if nothing is done yet.
        """
        settled = {entry.id for entry in finishing}
        settled.update(self._done)
        unsettled = [each for each in self._known if each not in settled]
        if not unsettled:
            return self._last
        return _before(min(unsettled, key=entry_order))

    def statistics(self) -> BacklogStatistics:
        """How full it is. Never blocks."""
        unacknowledged = len(self._done) + self._in_acknowledgement
        return BacklogStatistics(
            capacity=self.capacity,
            ready=len(self._ready),
            delayed=len(self._delayed),
            in_work=len(self._known) - len(self._ready) - len(self._delayed) - unacknowledged,
            unacknowledged=unacknowledged,
            acknowledged=self._acknowledged,
        )

    def _promote(self) -> None:
        now = trio.current_time()
        while self._delayed and self._delayed[0][0] <= now:
            self._ready.append(heapq.heappop(self._delayed)[2])

    def _wake_workers(self) -> None:
        self._work_news.set()
        self._work_news = trio.Event()


def _before(entry_id: str) -> str:
    """The id just before `entry_id`."""
    milliseconds, sequence = entry_order(entry_id)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{max(0, milliseconds - 1)}-{2**64 - 1}" if milliseconds else "0-0"
