"""The ledger: what came of an event, for each group that is declared to read its stream.

PostgreSQL knows everything that was handled, failed, died or waits there (`penstock_fate` and `penstock_ledger` in the
migrations answer in plain SQL). Of an event that stands in its stream, unread or in work, and of a job in the lists of
its queue only Redis knows; that is looked up here, and put beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from attrs import evolve

from .fate import EventFate, Fate, LedgerLine
from .handling import entry_order
from .job_search import JobPlace, JobSearch
from .ledger_search import GroupState, Place, Search
from .outages import outages
from .queue_lists import QueueLists

if TYPE_CHECKING:
    from ..runtime.postgres import Pool
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Gate
    from .system import Group, Stream, System

__all__ = ["SCAN", "Ledger"]

CHUNK: Final = 1_000
"""Events that are asked for in one statement."""

SCAN: Final = 200_000
"""Entries that are read, of all streams together, to find events that PostgreSQL has no trace of."""

_AWAY: Final = "Redis is away, and cannot be asked"
_IN_STREAM: Final = "in the stream"
_PUBLISHED_AGAIN: Final = "its dead letter was published again"
_UNTRACED: Final = (_IN_STREAM, _PUBLISHED_AGAIN)
"""Reasons of `penstock_fate` that say: ask Redis."""


_FATES: Final = "select * from penstock_fate(variadic %s::uuid[])"

_COUNTS: Final = """
select declared.stream, declared.consumer_group, ledger.fate, sum(ledger.count)::bigint
from penstock_group declared join (
    select consumer_group, partition, fate, count(*) from penstock_ledger group by 1, 2, 3
) ledger on ledger.consumer_group = declared.consumer_group
    and (ledger.partition = any(declared.partitions) or ledger.partition = declared.stream)
where declared.system = %(system)s group by 1, 2, 3
union all
select declared.stream, declared.consumer_group, 'lost', sum(greatest(0, coalesce(loss.entries, 1)
    - penstock_deleted_unread(loss.consumer_group, loss.stream, loss.after_id, loss.before_id)))::bigint
from penstock_group declared join penstock_loss loss on loss.consumer_group = declared.consumer_group
    and loss.stream = any(declared.partitions)
where declared.system = %(system)s group by 1, 2
union all
select declared.stream, declared.consumer_group, 'lost', count(*)
from penstock_group declared join penstock_deletion deletion on declared.consumer_group = any(deletion.unread_by)
    and deletion.stream = any(declared.partitions)
where declared.system = %(system)s group by 1, 2
"""


class Ledger:
    """Answers what came of events.

    Args:
        pool: where connections to PostgreSQL come from.
        system: what is declared.
        client: the link to Redis.
        redis_gate: while it is shut, Redis is not asked.

    Every method raises `PostgresUnavailable` while the database is away, and `redis.exceptions.RedisError` where Redis
    goes away or refuses while it is asked.
    """

    def __init__(self, pool: Pool, system: System, client: Callable[[], AnyRedis], redis_gate: Gate) -> None:
        self._pool = pool
        self._system = system
        self._client = client
        self._redis_gate = redis_gate

    async def fates(self, event_ids: Iterable[UUID], *, scan: int = SCAN) -> list[EventFate]:
        """What came of events: for each of them a fate for each declared group, or one `UNKNOWN`.

        Args:
            event_ids: any number; each is answered once, in this order.
            scan: entries that are read at the most to find what PostgreSQL has no trace of, and as many jobs.
        """
        asked = list(dict.fromkeys(event_ids))
        found = await self._stored(asked)
        if self._redis_gate.is_open:
            found = await self._look_up(asked, found, scan)
            found |= await self._in_queues([event_id for event_id in asked if not found.get(event_id)], scan)
        else:
            found = {event_id: [_away(fate) for fate in found.get(event_id, ())] for event_id in asked}
        return [fate for event_id in asked for fate in found.get(event_id) or [self._no_trace(event_id)]]

    async def _in_queues(self, event_ids: Sequence[UUID], scan: int) -> dict[UUID, list[EventFate]]:
        """The fates of those that are jobs which nobody has finished."""
        if not event_ids or not self._system.queues:
            return {}
        places = await JobSearch(self._client(), self._system).scan(event_ids, scan)
        # What was in work when PostgreSQL was asked first may be over by now, whether it still stands in a list or not.
        stored = await self._stored(event_ids)
        return {**{event_id: [_waiting(event_id, place)] for event_id, place in places.items()}, **stored}

    def _no_trace(self, event_id: UUID) -> EventFate:
        reason = "no trace of it" if self._redis_gate.is_open else f"no trace of it in PostgreSQL; {_AWAY}"
        return EventFate(event_id=event_id, fate=Fate.UNKNOWN, reason=reason)

    async def _stored(self, event_ids: Sequence[UUID]) -> dict[UUID, list[EventFate]]:
        """What PostgreSQL knows."""
        found: dict[UUID, list[EventFate]] = {}
        with outages(self._pool.options.address):
            async with self._pool.connection() as connection:
                for start in range(0, len(event_ids), CHUNK):
                    cursor = await connection.execute(_FATES, (list(event_ids[start : start + CHUNK]),))
                    for row in await cursor.fetchall():
                        found.setdefault(row[0], []).append(_fate(row))
        return found

    async def _look_up(
        self, asked: Sequence[UUID], found: dict[UUID, list[EventFate]], scan: int
    ) -> dict[UUID, list[EventFate]]:
        """Put beside what PostgreSQL knows what only Redis does."""
        open_ones = [event_id for event_id in asked if _is_open(found.get(event_id))]
        if not open_ones:
            return found
        search = Search(self._client(), self._system)
        places = await self._places(search, open_ones, found, scan)
        told = {event_id: await self._judge(search, event_id, found.get(event_id), places) for event_id in open_ones}
        # What was in work when PostgreSQL was asked may be handled, and acknowledged, by now.
        again = await self._stored([event_id for event_id in open_ones if _is_settled_unseen(told[event_id])])
        for event_id, fates in again.items():
            if not _is_open(fates):
                told[event_id] = fates
            else:
                told[event_id] = await self._judge(search, event_id, fates, places)
        return {**found, **{event_id: fates for event_id, fates in told.items() if fates}}

    async def _places(
        self, search: Search, event_ids: Sequence[UUID], found: dict[UUID, list[EventFate]], scan: int
    ) -> dict[UUID, list[Place]]:
        """Where the entries of these events are, or were."""
        places: dict[UUID, list[Place]] = {}
        missing: list[UUID] = []
        wanted: list[tuple[UUID, str, str]] = []
        for event_id in event_ids:
            fates = found.get(event_id, ())
            known = {(fate.partition or "", fate.entry_id or "") for fate in fates if fate.reason == _IN_STREAM}
            wanted += [(event_id, *each) for each in sorted(known)]
            if not known or any(fate.reason == _PUBLISHED_AGAIN for fate in fates):
                missing.append(event_id)
        at = await search.at([(partition, entry_id) for _, partition, entry_id in wanted])
        for (event_id, _, _), place in zip(wanted, at, strict=True):
            places.setdefault(event_id, []).append(place)
        for event_id, place in await search.scan(missing, scan):
            places.setdefault(event_id, []).append(place)
        return places

    async def _judge(
        self,
        search: Search,
        event_id: UUID,
        stored: Sequence[EventFate] | None,
        places: dict[UUID, list[Place]],
    ) -> list[EventFate]:
        """The fates of one event, by where its entries stand in each group."""
        known = {(fate.stream, fate.consumer_group): fate for fate in stored or ()}
        for place in places.get(event_id, ()):
            stream = self._system.stream_of(place.partition)
            for group in stream.groups.values() if stream is not None else ():
                assert stream is not None  # noqa: S101 - only then is there a group
                before = known.get((stream.key, group.name))
                if before is not None and before.reason not in _UNTRACED:
                    continue
                if before is not None and before.reason == _PUBLISHED_AGAIN and not place.exists:
                    continue  # that is where it died
                fate, reason = _told(await search.state(place, group.name), place, group)
                known[stream.key, group.name] = EventFate(
                    event_id=event_id,
                    stream=stream.key,
                    consumer_group=group.name,
                    fate=fate,
                    reason=reason,
                    partition=place.partition,
                    entry_id=place.entry_id,
                )
        return list(known.values())

    async def summary(self) -> list[LedgerLine]:
        """How many events came to what, for each declared group, and jobs, for each queue."""
        with outages(self._pool.options.address):
            async with self._pool.connection() as connection:
                cursor = await connection.execute(_COUNTS.encode(), {"system": self._system.name})
                rows = await cursor.fetchall()
        counts: dict[tuple[str, str], dict[str, int]] = {}
        for stream, group, fate, count in rows:
            line = counts.setdefault((stream, group), {})
            name = "outbox" if fate == "waiting" else fate
            line[name] = line.get(name, 0) + count
        lines = []
        for declared in self._system.streams.values():
            for name in declared.groups:
                unread, in_work = await self._in_redis(declared, name)
                known = counts.get((declared.key, name), {})
                lines.append(
                    LedgerLine(stream=declared.key, consumer_group=name, unread=unread, in_work=in_work, **known)
                )
        for queue in self._system.queues.values():
            waiting, taken = await self._in_lists(queue.name)
            known = counts.get((queue.name, queue.group.name), {})
            group = queue.group.name
            lines.append(LedgerLine(stream=queue.name, consumer_group=group, unread=waiting, in_work=taken, **known))
        return lines

    async def _in_lists(self, queue: str) -> tuple[int | None, int | None]:
        if not self._redis_gate.is_open:
            return None, None
        view = await QueueLists(self._client(), queue).view(0.0)
        return view.waiting + view.returned, sum(each.jobs for each in view.taken)

    async def _in_redis(self, stream: Stream, group: str) -> tuple[int | None, int | None]:
        if not self._redis_gate.is_open:
            return None, None
        search = Search(self._client(), self._system)
        counts = [await search.counts(key, group) for key in stream.keys]
        unread = [each[0] for each in counts]
        return None if None in unread else sum(each or 0 for each in unread), sum(each[1] for each in counts)


def _fate(row: Sequence[Any]) -> EventFate:
    event_id, stream, group, fate, reason, partition, entry_id, since = row
    return EventFate(
        event_id=event_id,
        stream=stream,
        consumer_group=group,
        fate=fate,
        reason=reason or fate,
        partition=partition,
        entry_id=entry_id,
        since=since,
    )


def _waiting(event_id: UUID, place: JobPlace) -> EventFate:
    return EventFate(
        event_id=event_id,
        stream=place.queue.name,
        consumer_group=place.queue.group.name,
        fate=Fate.WAITING,
        reason=place.where,
        partition=place.queue.name,
        entry_id=place.job.id,
    )


def _is_open(fates: Sequence[EventFate] | None) -> bool:
    """Whether only Redis can tell."""
    return not fates or any(fate.reason in _UNTRACED for fate in fates)


def _is_settled_unseen(fates: Sequence[EventFate]) -> bool:
    """Whether Redis says that it is acknowledged, and PostgreSQL did not say why."""
    return any(fate.fate in (Fate.DONE, Fate.LOST) and fate.since is None for fate in fates)


def _away(fate: EventFate) -> EventFate:
    return evolve(fate, reason=f"{fate.reason}; {_AWAY}") if fate.reason in _UNTRACED else fate


def _told(state: GroupState, place: Place, group: Group) -> tuple[Fate, str]:
    """The fate of an entry that PostgreSQL knows nothing about in this group."""
    if state is GroupState.UNREAD:
        if place.exists:
            return Fate.WAITING, "in the stream, unread"
        return Fate.LOST, "trimmed or deleted before the group was given it"
    if state is GroupState.PENDING:
        return Fate.WAITING, "given to the group, and in work or pending"
    if state is GroupState.NO_GROUP and place.exists:
        return Fate.WAITING, "in the stream; the group is not made yet"
    if state is GroupState.NO_GROUP:
        return Fate.LOST, "trimmed or deleted before the group was made"
    if place.event_type is not None and place.event_type not in group.handlers:
        return Fate.DONE, f"the group has no handler of {place.event_type}"
    if not place.exists:
        return Fate.DONE, "passed without an effect"
    if group.start == "$":
        return Fate.UNKNOWN, "passed without a trace; the group was declared to begin at the end of the stream"
    if entry_order(place.entry_id) <= entry_order(group.start):
        return Fate.DONE, "it stands before the place where the group was declared to begin"
    return Fate.LOST, "acknowledged or passed over by somebody else"
