"""The relay: adds what is in the outbox to its streams, in order, and deletes it.

One process at a time relays a stream (an advisory lock says which), in bursts. A burst's rows are deleted in the
transaction in which they were taken, after Redis has acknowledged them: a crash in between adds them again, which is
one effect. It works when rows are told (NOTIFY), when Redis is there again, and in any case every few seconds.

What a stream refuses keeps its rows, is told, and holds up nothing but that stream, or the one of its partitions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

import psycopg
import trio
from attrs import define, field, frozen

from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .lane import BURST
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

BURSTS: Final = 20
"""Bursts of one stream before the others have their turn."""

REST_AT_LEAST, REST_AT_MOST = 1.0, 10.0
"""Seconds before a stream that has refused is tried again; each further pause is twice as long."""

TELL_EVERY: Final = 60.0
"""Seconds between two alarms about the same stream."""

ELSEWHERE: Final = 0.05
"""Seconds until the next look at what another process relays: it does not tell us when it is done."""

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


@define(eq=False)
class _Line:
    """One stream's, as long as something of it is refused.

    Attributes:
        refused: why, by the key in Redis.
        retry_at: `trio.current_time()` before which it is not tried again.
        pause: seconds that it then rests.
        told_at: when it was last told.
    """

    refused: dict[str, str] = field(factory=dict)
    retry_at: float = -math.inf
    pause: float = REST_AT_LEAST
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
        look_every: seconds between two looks while nothing is told. Default 1.
    """

    def __init__(
        self, system: System, store: Store, sender: Sender, detours: Detours, *, look_every: float = 1.0
    ) -> None:
        self.relayed = 0
        self._system = system
        self._store = store
        self._sender = sender
        self._detours = detours
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
                    self._due.set()  # what came before we listened
                    while True:
                        for stream in await news.wait():
                            self._detours.enter(stream)
                        self._due.set()
            except (PostgresUnavailable, psycopg.Error) as error:
                # The looks go on without; whether the database is away, others tell.
                log.debug("the outbox is not heard", error=str(error))
            await trio.sleep(REST_AT_LEAST)

    async def _follow(self) -> None:
        """Look at once when a burst's fate is known: its rows waited for that."""
        while True:
            await self._detours.news()
            self._due.set()

    def _pause(self) -> float:
        """Seconds until the next look."""
        now = trio.current_time()
        every = min(self._look_every, ELSEWHERE) if self._is_elsewhere else self._look_every
        return min([every, *(max(0.0, line.retry_at - now) for line in self._lines.values())])

    # One look -------------------------------------------------------------------------------------------------------

    async def _look(self, child: Child) -> bool:
        """Relay what can be relayed; whether there was anything, so that it is worth to look again at once."""
        await self._sender.wait()
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
            await trio.sleep(REST_AT_LEAST)
            return False
        return any(moved)

    def _note(self, streams: Sequence[str]) -> str:
        waits = f"; waiting: {', '.join(streams)}" if streams else ""
        return f"{self.relayed} relayed{waits}"

    def _is_due(self, stream: str) -> bool:
        line = self._lines.get(stream)
        rests = line is not None and trio.current_time() < line.retry_at
        return not rests and not self._detours.is_unresolved(stream)

    async def _drain(self, stream: str) -> bool:
        """Add what waits for a stream, up to `BURSTS`; whether anything was moved."""
        refused: dict[str, str] = {}
        moved, after = False, 0
        for _ in range(BURSTS):
            taken, last = await self._burst(stream, after, refused)
            moved = moved or taken > 0
            if last is None:
                break
            if refused:
                after = last  # what was refused stays; behind it may be what is for another partition
        else:
            last = 0
        self._judge(stream, refused)
        if last is None and not refused and self._detours.is_on(stream):
            await self._end_detour(stream)
        return moved

    async def _end_detour(self, stream: str) -> None:
        """We have caught up: let nobody publish for the moment that it takes to add the rest, and then go straight.

        Else what comes while a burst is relayed would wait for the next one, and so on for as long as there is a load.
        """
        refused: dict[str, str] = {}
        async with self._detours.turn(stream):
            if self._sender.why_not() or self._detours.is_unresolved(stream):
                return
            _, last = await self._burst(stream, 0, refused)
            if last is None and not refused and not self._is_elsewhere:
                self._detours.end(stream)
        self._judge(stream, refused)

    async def _burst(self, stream: str, after: int, refused: dict[str, str]) -> tuple[int, int | None]:
        """Add one burst: how many entries were added, and the last row that was looked at; None if there are no more.

        What is refused is entered in `refused`, and what is for the same key goes nowhere before it.
        """
        async with self._store.transaction() as transaction:
            stored = await self._store.outbox.take(transaction, stream, BURST, after)
            self._is_elsewhere = stored is None
            if not stored:
                return 0, None
            adds = [(each, self._add_of(each)) for each in stored]
            ready = [(each, add) for each, add in adds if add.place not in refused]
            results = await self._sender.add([add for _, add in ready]) if ready else []
            done: list[tuple[StoredRow, str]] = []
            for (each, add), result in zip(ready, results, strict=True):
                if isinstance(result, Refusal):
                    refused.setdefault(add.place, result.reason)
                else:
                    done.append((each, result))
            await self._forget(transaction, done)
        self.relayed += len(done)
        is_last = len(stored) < BURST or self._sender.why_not() != ""
        return len(done), None if is_last else stored[-1].id

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
        return _Add(place, row.event_id, row.fields, row.max_len or declared.lossy_cap)

    def _judge(self, stream: str, refused: dict[str, str]) -> None:
        """Let a stream rest that has refused something, and tell it."""
        if refused:
            self._detours.enter(stream)
        if not refused or self._sender.why_not():
            # While Redis is away as a whole, its gate tells that, and when it is over there is nothing to wait for.
            self._lines.pop(stream, None)
            return
        now = trio.current_time()
        line = self._lines.setdefault(stream, _Line())
        is_new = line.refused != refused
        line.refused, line.retry_at = refused, now + line.pause
        line.pause = min(line.pause * 2, REST_AT_MOST)
        if is_new or now - line.told_at >= TELL_EVERY:
            line.told_at = now
            log.error("the stream does not take what waits in the outbox", stream=stream, why=line.reason)
