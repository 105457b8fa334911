"""The backlog of a group's partition: every entry that this process has read and not yet acknowledged.

It stands between listeners and handler pool, and outlives both: when one of them is held or restarted, nothing that
was read is lost or handled twice at a time. Its capacity is the credit that listeners read by.

In an ordered group two batches never have entries of one key at a time: what comes later under a key that is in work
waits here, and the other keys go on.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Sequence

import trio
from attrs import frozen

from .handling import Entry, entry_order

__all__ = ["Backlog", "BacklogStatistics"]

KeyOf = Callable[[Entry], str | None]
"""The key that an entry is in order by; None: by none."""


@frozen(kw_only=True)
class BacklogStatistics:
    """A backlog at one moment, and its counts since the start of the process.

    Attributes:
        capacity: entries it holds at the most.
        ready: waiting for a worker.
        delayed: waiting for a database that does not take what became of them.
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
        capacity: entries it holds at the most; the credit of all listeners of the partition together.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._known: dict[str, Entry] = {}
        self._ready: deque[Entry] = deque()
        self._delayed: list[tuple[float, int, Entry]] = []
        self._done: deque[str] = deque()
        self._in_acknowledgement: set[str] = set()
        self._acknowledged = 0
        self._last: str | None = None
        self._order = itertools.count()
        self._key_of: KeyOf | None = None
        self._key_held: dict[str, str] = {}  # by entry
        self._busy: Counter[str] = Counter()
        self._work_news = trio.Event()
        self._done_news = trio.Event()
        self._room_news = trio.Event()

    def order_by(self, key_of: KeyOf) -> None:
        """From now on, entries of one key are in one batch at a time, and in the order of their ids."""
        self._key_of = key_of

    # Coming in ------------------------------------------------------------------------------------------------------

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
        if fresh:
            is_late = self._ready and entry_order(fresh[0].id) < entry_order(self._ready[-1].id)
            self._ready.extend(fresh)
            if is_late and self._key_of is not None:
                self._sort()
            self._wake_workers()
        return len(fresh)

    # Work -----------------------------------------------------------------------------------------------------------

    async def take(
        self, limit: int, stopping: Callable[[], bool], until: Callable[[], float] = lambda: math.inf
    ) -> list[Entry]:
        """Up to `limit` entries, oldest first; blocks until there is one. None is new where another is redelivered.

        Returns an empty list once `stopping()` is true, or `trio.current_time()` has come to `until()` (call `wake` to
        have both asked again). Cancelled, it takes none. What is taken must come back by exactly one of `done`,
        `postpone` and `give_back`.
        """
        await trio.lowlevel.checkpoint()
        while not stopping():
            self._promote()
            picked = self._pick(limit)
            if picked or trio.current_time() >= until():
                return picked
            with trio.move_on_at(min(until(), self._delayed[0][0] if self._delayed else math.inf)):
                await self._work_news.wait()
        return []

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Entries that were taken and not worked on: to the front again, in their order."""
        self._free(entries)
        self._ready.extendleft(reversed(entries))
        if entries:
            if self._key_of is not None:
                self._sort()
            self._wake_workers()

    def postpone(self, entry: Entry, at: float) -> None:
        """The database does not take what became of an entry: try again at `at` (`trio.current_time()`).

        Its key waits so long.
        """
        heapq.heappush(self._delayed, (at, next(self._order), entry))
        self._wake_workers()

    def done(self, entries: Sequence[Entry]) -> None:
        """Entries that have their end in the database, or a row there: to be acknowledged."""
        self._free(entries)
        self._done.extend(entry.id for entry in entries)
        self._done_news.set()
        if self._key_of is not None:
            self._wake_workers()

    def occupy(self, keys: Collection[str]) -> set[str]:
        """Those of the keys that nobody works on; from now on somebody does, until `release`."""
        free = {key for key in keys if not self._busy[key]}
        self._busy.update(free)
        return free

    def release(self, keys: Collection[str]) -> None:
        """Nobody works on these keys any more."""
        for key in keys:
            self._leave(key)
        if keys:
            self._wake_workers()

    @property
    def busy_keys(self) -> frozenset[str]:
        """The keys that somebody works on."""
        return frozenset(self._busy)

    def clear(self) -> None:
        """Forget everything; only while no worker has any of it."""
        self._known.clear()
        self._ready.clear()
        self._delayed.clear()
        self._done.clear()
        self._in_acknowledgement.clear()
        self._key_held.clear()
        self._busy.clear()
        self._last = None
        self._make_room()

    async def wait_empty(self) -> None:
        """Block until everything that was read is acknowledged."""
        await trio.lowlevel.checkpoint()
        while self._known:
            await self._room_news.wait()

    def wake(self) -> None:
        """Let all waiting takes look again whether they should stop."""
        self._wake_workers()

    # Acknowledgements -----------------------------------------------------------------------------------------------

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
        self._in_acknowledgement.update(taken)
        return taken

    def acknowledged(self, ids: Sequence[str]) -> None:
        """Redis has them acknowledged: they leave, and make room."""
        self._in_acknowledgement.difference_update(ids)
        self._acknowledged += len(ids)
        for each in ids:
            self._known.pop(each, None)
        self._make_room()

    def acknowledge_again(self, ids: Sequence[str]) -> None:
        """Redis could not be told: they stay to be acknowledged."""
        self._in_acknowledgement.difference_update(ids)
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

    # Looking at it --------------------------------------------------------------------------------------------------

    def entries(self) -> list[Entry]:
        """All entries that are here, in whatever state."""
        return list(self._known.values())

    def rest(self) -> dict[str, list[Entry]]:
        """What is not done, by consumer: what a stop leaves over."""
        done = self._in_acknowledgement.union(self._done)
        left: dict[str, list[Entry]] = {}
        for entry in self._known.values():
            if entry.id not in done:
                left.setdefault(entry.consumer, []).append(entry)
        return left

    def forget(self, ids: Collection[str]) -> list[str]:
        """Drop those of the entries that wait for a worker: somebody else has them. Those dropped."""
        gone = {entry.id for entry in self._ready if entry.id in ids}
        if gone:
            self._ready = deque(entry for entry in self._ready if entry.id not in gone)
            for each in gone:
                del self._known[each]
            self._make_room()
        return sorted(gone, key=entry_order)

    def position(self, finishing: Iterable[Entry]) -> str | None:
        """The id up to which everything that this process read is done, once `finishing` is.

        A group that has to be made again is made at it: what lies behind it is read again, and known by the inbox. None
        if nothing is done yet.
        """
        settled = {entry.id for entry in finishing}
        settled.update(self._done, self._in_acknowledgement)
        unsettled = [each for each in self._known if each not in settled]
        if not unsettled:
            return self._last
        return _before(min(unsettled, key=entry_order))

    def statistics(self) -> BacklogStatistics:
        """How full it is. Never blocks."""
        unacknowledged = len(self._done) + len(self._in_acknowledgement)
        return BacklogStatistics(
            capacity=self.capacity,
            ready=len(self._ready),
            delayed=len(self._delayed),
            in_work=len(self._known) - len(self._ready) - len(self._delayed) - unacknowledged,
            unacknowledged=unacknowledged,
            acknowledged=self._acknowledged,
        )

    # Inside ---------------------------------------------------------------------------------------------------------

    def _pick(self, limit: int) -> list[Entry]:
        """What a worker may have now: oldest first, no key that is in work elsewhere, no redelivery beside others."""
        picked: list[Entry] = []
        passed: list[Entry] = []
        waiting: set[str] = set()
        while self._ready and len(picked) < limit:
            entry = self._ready[0]
            key = None if self._key_of is None else self._key_of(entry)
            if key is not None and (key in waiting or key in self._busy):
                waiting.add(key)
                passed.append(self._ready.popleft())
                continue
            if picked and entry.redelivered is not picked[0].redelivered:
                break
            picked.append(self._ready.popleft())
            if key is not None:
                self._key_held[entry.id] = key
        self._ready.extendleft(reversed(passed))
        self._busy.update(self._key_held[entry.id] for entry in picked if entry.id in self._key_held)
        return picked

    def _free(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            key = self._key_held.pop(entry.id, None)
            if key is not None:
                self._leave(key)

    def _leave(self, key: str) -> None:
        self._busy[key] -= 1
        if self._busy[key] <= 0:
            del self._busy[key]

    def _promote(self) -> None:
        now, due = trio.current_time(), list[Entry]()
        while self._delayed and self._delayed[0][0] <= now:
            due.append(heapq.heappop(self._delayed)[2])
        if due:
            self._free(due)
            self._ready.extendleft(due)
            self._sort()

    def _sort(self) -> None:
        self._ready = deque(sorted(self._ready, key=lambda entry: entry_order(entry.id)))

    def _make_room(self) -> None:
        self._room_news.set()
        self._room_news = trio.Event()

    def _wake_workers(self) -> None:
        self._work_news.set()
        self._work_news = trio.Event()


def _before(entry_id: str) -> str:
    """The id just before `entry_id`."""
    milliseconds, sequence = entry_order(entry_id)
    if sequence:
        return f"{milliseconds}-{sequence - 1}"
    return f"{max(0, milliseconds - 1)}-{2**64 - 1}" if milliseconds else "0-0"
