"""The relay: adds what is in the outbox to its streams, in order, and deletes it.

One process at a time relays a stream (an advisory lock says which), in bursts. A burst's rows are deleted in the
transaction in which they were taken, after Redis has acknowledged them: a crash in between adds them again, which is
one effect. It works when rows are told (NOTIFY), when Redis is there again, and in any case every few seconds.

What a stream refuses keeps its rows, is told, and holds up nothing but that stream, or the one of its partitions.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg
import trio
from attrs import define, field, frozen

from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .detours import Hold
from .sending import Refusal

if TYPE_CHECKING:
    from ..runtime.supervision import Child
    from .detours import Detours
    from .event import Fields
    from .outbox_table import StoredRow
    from .sending import Sender
    from .store import Store, Transaction
    from .system import System

__all__ = ["OutboxView", "Relay"]

log = get_logger(__name__)

BURST: Final = 100
"""Rows in one burst at the most: the measured knee, and few enough that a request need not wait long behind them."""

BURSTS: Final = 20
"""Bursts of one stream before the others have their turn."""

REST: Final = 2.0
REST_AT_MOST: Final = 0.25
"""How long a relay with more to do rests after a burst, by the time that this took, and how many seconds at the most.
After an outage there is much in the outbox, and who publishes meanwhile wants the same processor. Where nobody does, it
does not rest; and it always relays at least `GAIN` times as much as comes."""

GAIN: Final = 2.0

COMPANY_FOR: Final = 0.5
"""Seconds after an event has come into the outbox for which somebody publishes."""

RETRY_AT_LEAST, RETRY_AT_MOST = 1.0, 10.0
"""Seconds before a stream that has refused is tried again; each further pause is twice as long."""

TELL_EVERY: Final = 60.0
"""Seconds between two alarms about the same stream."""

SCAN_EVERY: Final = 60.0
"""Seconds after which what was passed over for a partition that refuses is looked through again: it may be much, and
somewhere in it may be what a third partition, mended meanwhile, would take."""

ELSEWHERE: Final = 0.05
"""Seconds until the next look at what another process relays: it does not tell us when it is done."""

TURN_WITHIN: Final = 3.0
"""Seconds that the relay, with a connection in its hand, waits for its turn to end a detour: who has the turn may wait
for a connection, and gives up after `SPOOLED_WITHIN`."""

HOLD_AT_MOST: Final = 1.0
"""Seconds that publishing waits for PostgreSQL while a detour is ended: one that is frozen is known by then."""

_NOBODY: Final = UUID(int=0)


@frozen(kw_only=True)
class OutboxView:
    """What waits in the outbox for one stream.

    Attributes:
        stream: its key.
        waiting: how many events.
        oldest: seconds that the oldest of them had waited when it was looked at.
        blocked: why the stream does not take them; empty if it does, or was not asked.
    """

    stream: str
    waiting: int
    oldest: float
    blocked: str = ""


@frozen
class _Add:
    """A row, ready to be added."""

    place: str
    event_id: UUID | None
    fields: Fields
    max_len: int | None


@frozen
class _Burst:
    """What came of one.

    Attributes:
        added: how many entries were added.
        last: the last row that was looked at.
        is_end: whether there are no more.
        span: seconds over which its rows had come into the outbox.
    """

    added: int
    last: int
    is_end: bool
    span: float = 0.0

    def rest(self, work: float) -> float:
        """Seconds to rest after it, if it took `work` seconds."""
        return max(0.0, min(work * REST, REST_AT_MOST, self.span / GAIN - work))


_Adder = Callable[[Sequence[_Add]], Awaitable[list[str | Refusal]]]


@define(eq=False)
class _Line:
    """One stream's, as long as something of it is refused.

    Attributes:
        refused: why, by the key in Redis.
        passed: the row up to which everything that waits is for those keys, as far as we have looked.
        scan_at: `trio.current_time()` at which all of it is looked through again.
        retry_at: before which those keys are not tried again.
        pause: seconds that they then rest.
        told_at: when it was last told.
    """

    refused: dict[str, str] = field(factory=dict)
    passed: int = 0
    scan_at: float = -math.inf
    retry_at: float = -math.inf
    pause: float = RETRY_AT_LEAST
    told_at: float = -math.inf

    @property
    def reason(self) -> str:
        return next(iter(self.refused.values()), "")


class Relay:
    """See the module. Its `__call__` is the body of the actor ``outbox-relay``, which requires Redis and PostgreSQL.

    Attributes:
        relayed: entries that it has added.

    Args:
        system: the declared streams, for their partitions.
        store: whose outbox it is.
        sender: the way to Redis.
        detours: is told what is empty, and tells what was spooled here.
        hold: seconds that publishing may wait for Redis while a detour is ended. Default 0.05.
        look_every: seconds between two looks while nothing is told. Default 1.
    """

    def __init__(
        self,
        system: System,
        store: Store,
        sender: Sender,
        detours: Detours,
        *,
        hold: float = 0.05,
        look_every: float = 1.0,
    ) -> None:
        self.relayed = 0
        self._system = system
        self._store = store
        self._sender = sender
        self._detours = detours
        self._hold = hold
        self._look_every = look_every
        self._lines: dict[str, _Line] = {}
        self._due = trio.Event()
        # Whether another process was at the stream that we have looked at last: then we do not know what is left.
        self._is_elsewhere = False

    def blocked(self, stream: str) -> str:
        """Why the stream does not take what waits for it; empty if it does, or was not asked."""
        line = self._lines.get(stream)
        return "" if line is None else line.reason

    async def __call__(self, child: Child) -> None:
        """Relay until cancelled. Rows in work stay where they are, and may be added again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear)
            nursery.start_soon(self._follow)
            child.started()
            while True:
                self._due = trio.Event()
                if not await self._look(child):
                    with trio.move_on_after(self._pause()):
                        await self._due.wait()

    async def _hear(self) -> None:
        """Listen to what others, and we ourselves, write."""
        while True:
            try:
                async with self._store.outbox.news() as news:
                    # What came before we listened:
                    self._detours.forget()
                    self._due.set()
                    while True:
                        for stream in await news.wait():
                            self._detours.enter(stream)
                        self._due.set()
            except (PostgresUnavailable, psycopg.Error) as error:
                # The looks go on without; whether the database is away, others tell.
                log.debug("the outbox is not heard", error=str(error))
            await trio.sleep(RETRY_AT_LEAST)

    async def _follow(self) -> None:
        """Look at once when a burst's fate is known: its rows waited for that."""
        while True:
            await self._detours.news()
            self._due.set()

    def _pause(self) -> float:
        """Seconds until the next look."""
        now = trio.current_time()
        every = min(self._look_every, ELSEWHERE) if self._is_elsewhere else self._look_every
        # What Redis owes an answer for is not looked at before that, and the answer wakes us.
        lines = [line for stream, line in self._lines.items() if not self._detours.is_unresolved(stream)]
        return min([every, *(max(0.0, line.retry_at - now) for line in lines)])

    # One look -------------------------------------------------------------------------------------------------------

    async def _look(self, child: Child) -> bool:
        """Relay what can be relayed; whether there was anything, so that it is worth to look again at once."""
        await self._sender.wait()
        self._is_elsewhere = False  # what was there at the last look may be relayed by now
        try:
            versions = self._detours.versions()
            streams = await self._store.outbox.streams()
            self._detours.leave(versions, streams)
            for stream in [stream for stream in self._lines if stream not in streams]:
                del self._lines[stream]
            child.note(self._note(streams))
            moved = [await self._drain(stream) for stream in streams if self._is_due(stream)]
        except (PostgresUnavailable, psycopg.Error) as error:
            log.warning("the outbox cannot be relayed", error=str(error))
            await trio.sleep(RETRY_AT_LEAST)
            return False
        return any(moved)

    def _note(self, streams: Sequence[str]) -> str:
        waits = f"; waiting: {', '.join(streams)}" if streams else ""
        return f"{self.relayed} relayed{waits}"

    def _is_due(self, stream: str) -> bool:
        if self._detours.is_unresolved(stream):
            return False
        return self._has_partitions(stream) or not self._rests(stream)

    def _has_partitions(self, stream: str) -> bool:
        declared = self._system.streams.get(stream)
        return declared is not None and declared.partitions > 1

    def _rests(self, stream: str) -> bool:
        line = self._lines.get(stream)
        return line is not None and trio.current_time() < line.retry_at

    async def _drain(self, stream: str) -> bool:
        """Add what waits for a stream, up to `BURSTS`; whether it is worth to go on at once."""
        rests = self._rests(stream)
        refused, after, moved = await self._begin(stream)
        is_end, came_at = False, -math.inf
        for _ in range(BURSTS):
            started, counted = trio.current_time(), self._detours.counted(stream)
            burst = await self._burst(stream, after, refused)
            moved, is_end = moved or burst.added > 0, burst.is_end
            if refused:
                after = burst.last  # what was refused stays; behind it may be what is for another partition
            if is_end or self._sender.why_not() or (refused and not self._has_partitions(stream)):
                break
            now = trio.current_time()
            if self._detours.counted(stream) > counted:
                came_at = now
            if now - came_at < COMPANY_FOR:
                await trio.sleep(burst.rest(now - started))
        self._judge(stream, refused, after, tried=not rests)
        if is_end and not refused and not self._is_elsewhere and self._detours.is_on(stream):
            await self._end_detour(stream)
        return moved or not is_end

    async def _begin(self, stream: str) -> tuple[dict[str, str], int, bool]:
        """Which keys are passed over, from which row on we look, and whether anything was added.

        Behind a partition that refuses may wait any number of rows: they are not looked through at each try.
        """
        line = self._lines.get(stream)
        if line is None:
            return {}, 0, False
        if self._rests(stream):
            return dict(line.refused), line.passed, False
        refused: dict[str, str] = {}
        burst = await self._burst(stream, 0, refused)
        if refused and trio.current_time() < line.scan_at:
            return {**line.refused, **refused}, max(line.passed, burst.last), burst.added > 0
        line.scan_at = trio.current_time() + SCAN_EVERY
        return refused, burst.last if refused else 0, burst.added > 0

    async def _end_detour(self, stream: str) -> None:
        """We have caught up: let nobody publish for the moment that it takes to add the rest, and then go straight.

        Else what comes while a burst is relayed would wait for the next one, and so on for as long as there is a load.
        Nobody waits for our connection, of which all may be lent, nor for a server that does not answer soon: then they
        go behind the burst.
        """
        refused: dict[str, str] = {}
        hold = Hold(self._detours, stream, HOLD_AT_MOST)

        async def add(entries: Sequence[_Add]) -> list[str | Refusal]:
            with hold.for_only(self._hold):
                return await self._sender.add(entries)

        async with trio.open_nursery() as nursery:
            try:
                async with self._store.transaction() as transaction:
                    with trio.move_on_after(TURN_WITHIN):
                        await nursery.start(hold, name=f"holds the turn of {stream}")
                    if not hold.is_held or self._sender.why_not() or self._detours.is_unresolved(stream):
                        return
                    burst = await self._add_burst(transaction, stream, 0, refused, add)
                self.relayed += burst.added
                hold.release(is_empty=burst.is_end and not refused and not self._is_elsewhere)
            except (PostgresUnavailable, psycopg.Error) as error:
                log.debug("the rest cannot be relayed", stream=stream, error=str(error))
            finally:
                hold.release()
        self._judge(stream, refused, 0)

    async def _burst(self, stream: str, after: int, refused: dict[str, str]) -> _Burst:
        """Relay one burst in a transaction of its own; see `_add_burst`."""
        async with self._store.transaction() as transaction:
            burst = await self._add_burst(transaction, stream, after, refused, self._sender.add)
        self.relayed += burst.added
        return burst

    async def _add_burst(
        self, transaction: Transaction, stream: str, after: int, refused: dict[str, str], add: _Adder
    ) -> _Burst:
        """Add one burst of what is behind the row `after`, and delete it.

        What is refused is entered in `refused`, and what is for the same key goes nowhere before it.
        """
        stored = await self._store.outbox.take(transaction, stream, BURST, after)
        self._is_elsewhere = stored is None
        if not stored:
            return _Burst(0, after, is_end=True)
        adds = [(each, self._add_of(each)) for each in stored]
        ready = [(each, made) for each, made in adds if made.place not in refused]
        results = await add([made for _, made in ready]) if ready else []
        done: list[tuple[StoredRow, str]] = []
        for (each, sent), result in zip(ready, results, strict=True):
            if isinstance(result, Refusal):
                refused.setdefault(sent.place, result.reason)
            else:
                done.append((each, result))
        await self._forget(transaction, done)
        return _Burst(len(done), stored[-1].id, len(stored) < BURST, span=stored[0].age - stored[-1].age)

    async def _forget(self, transaction: Transaction, done: Sequence[tuple[StoredRow, str]]) -> None:
        if not done:
            return
        outbox = self._store.outbox
        await outbox.remove(transaction, [each.id for each, _ in done])
        letters = {each.row.letter_id: entry_id for each, entry_id in done if each.row.letter_id is not None}
        await outbox.tell_letters(transaction, letters)

    def _add_of(self, stored: StoredRow) -> _Add:
        row = stored.row
        declared = self._system.streams.get(row.stream)
        if declared is None:
            return _Add(row.stream, row.event_id, row.fields, row.max_len)
        place = declared.partition(row.key, row.event_id or _NOBODY)
        # Who wrote the row may have known the stream as it is declared in code, and not what the settings say of it.
        most = row.max_len if row.kind == "mirror" else declared.lossy_cap
        return _Add(place, row.event_id, row.fields, most)

    def _judge(self, stream: str, refused: dict[str, str], passed: int, *, tried: bool = True) -> None:
        """Let the keys of a stream rest that have refused something, and tell it.

        Args:
            stream: its key.
            refused: why, by the key in Redis.
            passed: the row up to which everything is theirs.
            tried: whether they were asked again.
        """
        if refused:
            self._detours.enter(stream)
        if not refused or self._sender.why_not():
            # While Redis is away as a whole, its gate tells that, and when it is over there is nothing to wait for.
            self._lines.pop(stream, None)
            return
        now = trio.current_time()
        line = self._lines.get(stream)
        if line is None:
            line = self._lines[stream] = _Line(scan_at=now + SCAN_EVERY)
        is_new = line.refused != refused
        line.refused, line.passed = refused, passed
        if tried:
            line.retry_at = now + line.pause
            line.pause = min(line.pause * 2, RETRY_AT_MOST)
        if is_new or now - line.told_at >= TELL_EVERY:
            line.told_at = now
            log.error("the stream does not take what waits in the outbox", stream=stream, why=line.reason)
