"""The ledger of a simulated system: what was promised, and what came of it, watched at every command and commit.

It looks at the servers from inside (the commands of the in-process Redis, the commits of the store in memory), so that
a promise that is broken for a moment is seen in that moment, and not only by what it leads to.
"""

from __future__ import annotations

import random
from bisect import bisect_right, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from attrs import define, field, frozen

from ..dead_letter import DeadLetter
from ..handling import Entry, entry_order
from ..letter_terms import Reason
from ..sorting import Ignore, Verdict, sort_entry
from .job_lists import JobLists

if TYPE_CHECKING:
    from ...runtime.testing.redis_engine import Data
    from ..queue import Job
    from ..system import Group, Stream, System
    from ..testing import MemoryStore

__all__ = ["EFFECT", "Accepted", "Ledger", "Violation", "event_id_of"]

EFFECT: Final = "simulated effect"
"""The statement by which the simulation records that a handler was called in a transaction."""


class Violation(AssertionError):
    """A promise was broken; the text says which, and for what event."""


@frozen
class Accepted:
    """An event whose publisher was told that it is safe.

    Attributes:
        stream: the declared stream's key.
        lineage: the publisher, and the life of the process that accepted; of these alone an order is promised.
        number: its place among what this lineage has got accepted.
    """

    stream: str
    lineage: str
    number: int


@define(eq=False)
class Ledger:
    """See the module.

    Attributes:
        system: the declaration that runs.
        store: the database.
        accepted: by event id; the first acceptance counts.
        refused: events that were refused in the end.
        doubtful: events of which some attempt to publish them had no answer, or an unknown outcome: whatever was said
            of the other attempts, they may be there.
        failures: how often a handler has failed by itself, by group and event id.
        standstills: how often a process was frozen: the time of whatever was in work may have been over then, what is
            found after the handler, and counts as an attempt.
        entries: the fields of every entry that was ever added, by the stream's key in Redis and entry id; and of every
            job, by the queue's name and the id that its element is known by.
        copies: how often each event was added.
        spooled: the declared stream's key of each event that was ever committed in the outbox.
        effects: how many each event has, by group and event id.
        trimmed: entries that a stranger has taken away.
        replayed: groups and events whose dead letters somebody has had tried again: they have lost their place.
        one_reader: whether each group has one process: where it has one listener, too, stored positions never pass what
            is unfinished. With several that read one stream, a position is that of the furthest.
        who: tells the id of the process whose task runs; None if it is nobody's.
        violations: what was broken, in order.
        lists: the queues that some process takes jobs from.
        streams: what is declared of every stream, and what stands for each of these queues, by name.
    """

    system: System
    store: MemoryStore
    accepted: dict[UUID, Accepted] = field(factory=dict)
    refused: set[UUID] = field(factory=set)
    doubtful: set[UUID] = field(factory=set)
    failures: Counter[tuple[str, UUID]] = field(factory=Counter)
    standstills: int = 0
    entries: dict[tuple[str, str], Mapping[bytes, bytes]] = field(factory=dict)
    trimmed: set[tuple[str, str]] = field(factory=set)
    replayed: set[tuple[str, UUID]] = field(factory=set)
    copies: Counter[UUID] = field(factory=Counter)
    spooled: dict[UUID, str] = field(factory=dict)
    effects: Counter[tuple[str, UUID]] = field(factory=Counter)
    one_reader: bool = True
    who: Callable[[], UUID | None] = field(default=lambda: None)
    violations: list[str] = field(factory=list)
    lists: JobLists = field(init=False)
    streams: Mapping[str, Stream] = field(init=False)
    _data: list[Data] = field(factory=list)
    _displaced: set[UUID] = field(factory=set)  # of what was published twice, the second entry counts then
    _order: dict[str, list[tuple[int, int]]] = field(factory=lambda: defaultdict(list))
    _proved: dict[tuple[str, str], tuple[int, int]] = field(factory=dict)
    _last_of: dict[tuple[str, str, str], tuple[int, UUID]] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        queues = {name: queue for name, queue in self.system.queues.items() if queue.workers}
        self.lists = JobLists(queues)
        self.streams = {**self.system.streams, **{name: queue.stream for name, queue in queues.items()}}

    def watch(self, data: Data) -> None:
        """See every command that runs on these data, and every commit in the store."""
        self._data.append(data)
        data.watch = partial(self._ran, data)
        self.store.server.committed = self._committed

    def broken(self, what: str) -> None:
        """Note a broken promise."""
        if what not in self.violations:
            self.violations.append(what)

    # What is seen in Redis ------------------------------------------------------------------------------------------

    def _ran(self, data: Data, name: str, words: Sequence[bytes], reply: Any) -> None:
        if name == "xadd" and isinstance(reply, bytes):
            self._added(data, words[0], reply)
        elif name == "xack" and isinstance(reply, int):
            self._acknowledged(words[0].decode(), words[1].decode(), [word.decode() for word in words[2:]])
        elif name == "lpush" and isinstance(reply, int):
            for job in self.lists.put_in(words[0], words[1:]):
                self._entered(job.stream, job.id, job.fields or {})
        elif name == "lrem" and isinstance(reply, int) and reply:
            self._taken_off(self.lists.taken_off(words[0], words[2]))

    def _added(self, data: Data, key: bytes, entry_id: bytes) -> None:
        stream = self.system.stream_of(key.decode())
        if stream is None:
            return  # a mirror, or somebody else's
        place = entry_order(entry_id.decode())
        values = data.databases[0][key].value._values_dict[place]
        insort(self._order[key.decode()], place)
        self._entered(key.decode(), entry_id.decode(), dict(zip(values[::2], values[1::2], strict=True)))

    def _entered(self, key: str, entry_id: str, fields: Mapping[bytes, bytes]) -> None:
        self.entries[key, entry_id] = fields
        event_id = event_id_of(fields)
        if event_id is not None:
            self.copies[event_id] += 1

    def _acknowledged(self, key: str, group: str, entry_ids: Sequence[str]) -> None:
        """Nothing is acknowledged before its effect is durable."""
        for entry_id in entry_ids:
            if (key, entry_id) in self.entries and not self.is_settled(key, group, entry_id):
                self.broken(f"{group} acknowledges {entry_id} of {key}, of which nothing durable tells")

    def _taken_off(self, job: Job | None) -> None:
        """No job leaves its list before its effect is durable."""
        if job is not None and not self.is_settled(job.stream, self.lists.queues[job.stream].group.name, job.id):
            known_as = event_id_of(job.fields or {}) or job.id
            self.broken(f"{known_as} is taken off the lists of {job.stream}, and nothing durable tells of it")

    # What is seen in the database -----------------------------------------------------------------------------------

    def _committed(self, rows: Mapping[tuple[Any, Any], Any]) -> None:
        store = self.store
        for (table, _), row in rows.items():
            if row is None:
                continue
            if table is store.effect_table and row.statement == EFFECT:
                self._took_effect(*row.values)
            elif table is store.outbox.table and row[0].event_id is not None and row[0].kind != "mirror":
                self.spooled[row[0].event_id] = row[0].stream
            elif table is store.retries._table and row.row.event_id is not None:
                self.check_fault(row.row.consumer_group, row.row.event_id, row.row.attempts, "to be retried")
        for (table, place), row in rows.items():
            if table is store.position_table and row is not None:
                self._moved_to(place[0], place[1], row)

    def _took_effect(self, stream: str, group: str, event_id: UUID, key: str | None) -> None:
        self.effects[group, event_id] += 1
        if self.effects[group, event_id] > 1:
            self.broken(f"{event_id} has a second effect in {group}")
        declared = self.streams[stream]
        if not declared.groups[group].ordered:
            return
        partition = declared.partition(key, event_id)
        lease, owner = self.store.leases.table.rows.get((group, partition)), self.who()
        if owner is not None and (lease is None or lease.owner != owner):
            self.broken(f"{event_id} takes effect in {group} by a process that has lost {partition}")
        accepted = self.accepted.get(event_id)
        if key is None or accepted is None or (group, event_id) in self.replayed or event_id in self._displaced:
            return
        line = (group, key, accepted.lineage)
        number, before = self._last_of.get(line, (-1, event_id))
        if accepted.number < number:
            self.broken(f"{group} handles {event_id} of key {key!r} after {before}, which was accepted later")
        else:
            self._last_of[line] = (accepted.number, event_id)

    def check_fault(self, group: str, event_id: UUID, attempts: int, fate: str) -> None:
        """Only the event's own fault costs it attempts."""
        failures = self.failures[group, event_id]
        if failures + self.standstills < attempts:
            self.broken(f"{event_id} is {fate} in {group} after {attempts} attempts, and failed {failures} times")

    def _moved_to(self, group: str, key: str, position: str) -> None:
        """A position never passes an unfinished entry."""
        stream = self.system.stream_of(key)
        if stream is None:
            return
        declared = stream.groups[group]
        if not declared.ordered and not (self.one_reader and declared.consumers == 1):
            return
        first, last = self._proved.get((group, key), (0, 0)), entry_order(position)
        order = self._order[key]
        for milliseconds, number in order[bisect_right(order, first) : bisect_right(order, last)]:
            entry_id = f"{milliseconds}-{number}"
            if not self.is_settled(key, group, entry_id) and (key, entry_id) not in self.trimmed:
                self.broken(f"the position of {group} in {key} is {position}, and {entry_id} is not finished")
                return
        self._proved[group, key] = max(first, last)

    # Questions ------------------------------------------------------------------------------------------------------

    def stream_of(self, key: str) -> Stream | None:
        """What is declared of a key in Redis, or stands for a queue of this name."""
        queue = self.lists.queues.get(key)
        return self.system.stream_of(key) if queue is None else queue.stream

    @property
    def progress(self) -> int:
        """Grows with whatever becomes of an event: an effect, a failure, a dead letter."""
        return self.effects.total() + self.failures.total() + len(self.store.letters)

    def verdict(self, key: str, group: str, entry_id: str) -> Verdict | None:
        """What a group is to do with an entry; None if it is none of ours."""
        stream = self.stream_of(key)
        if stream is None or group not in stream.groups:
            return None
        return sort_entry(Entry(key, entry_id, self.entries[key, entry_id], read_at=0.0), stream, stream.groups[group])

    def is_settled(self, key: str, group: str, entry_id: str) -> bool:
        """Whether the database tells what became of an entry in a group, or will become."""
        verdict = self.verdict(key, group, entry_id)
        if verdict is None or isinstance(verdict, Ignore):
            return True
        event_id = None if verdict.envelope is None else verdict.envelope.event_id
        if event_id is not None and (group, event_id) in self.store.inbox_table.rows:
            return True
        if self.is_buried(group, key, entry_id) or self._has_retry(group, (key, entry_id), event_id):
            return True
        return event_id is not None and self._is_dead(group, event_id)

    def is_buried(self, group: str, key: str, entry_id: str) -> bool:
        """Whether this very entry has a dead letter in the group."""
        return (group, key, entry_id) in self.store.letter_table.rows

    def _is_dead(self, group: str, event_id: UUID) -> bool:
        """Whether the event has died in the group, as whichever of its entries."""
        return any(letter.event_id == event_id and letter.consumer_group == group for letter in self.store.letters)

    def _has_retry(self, group: str, place: tuple[str, str], event_id: UUID | None) -> bool:
        """Whether the event waits for another attempt, by this entry or by another one of it."""
        return any(
            row.consumer_group == group and ((row.stream, row.entry_id) == place or row.event_id == event_id)
            for row in self.store.retries.rows
        )

    def unfinished(self, *, unread: bool = True) -> str | None:
        """Why it is not quiet yet; None if it is: nothing pending, in the outbox, to be retried, in a list, or
        `unread`."""
        outbox = self.store.outbox.table.rows
        if outbox:
            return f"{len(outbox)} rows in the outbox"
        if self.store.retries._table.rows:
            return f"{len(self.store.retries._table.rows)} rows to be retried"
        for key, group, found in self._groups():
            if found is None:
                return f"there is no group {group.name} of {key}"
            if found.pel:
                return f"{len(found.pel)} entries of {key} are pending in {group.name}: {sorted(found.pel)[0]}"
            if unread and found.stream._ids and found.stream._ids[-1] > found.last_delivered_key:
                return f"{group.name} has not read {key} to its end"
        return self.lists.left(self._data)

    def _groups(self) -> Iterator[tuple[str, Group, Any]]:
        for stream in self.system.streams.values():
            for key in stream.keys:
                data = self._holder(key)
                if data is None:
                    continue
                for group in stream.read_here:
                    yield key, group, data.databases[0][key.encode()].value.group_get(group.name.encode())

    def ends(self) -> dict[str, int]:
        """How many ends of each kind there are, over all groups."""
        found = Counter(letter.reason.value for letter in self.store.letters)
        return {"done": len(self.store.inbox_table.rows), **dict(sorted(found.items()))}

    def replayable(self) -> list[DeadLetter]:
        """The letters of events that could be tried again."""
        reasons = (Reason.MAX_DELIVERIES, Reason.PERMANENT, Reason.EXPIRED)
        return [letter for letter in self.store.letters if letter.reason in reasons and letter.fields]

    # For the faults -------------------------------------------------------------------------------------------------

    def some_group(self, chance: random.Random) -> tuple[str, str, Data | None]:
        """A stream, a group of it that is there, and the data that they are in."""
        found = [(key, group.name) for key, group, known in self._groups() if known is not None]
        if not found:
            return "", "", None
        key, name = chance.choice(found)
        return key, name, self._holder(key)

    def trim(self, chance: random.Random) -> str:
        """Take away the oldest entries of some stream, as somebody who does not care would."""
        keys = [key for stream in self.system.streams.values() for key in stream.keys if self._holder(key) is not None]
        if not keys:
            return ""
        key = chance.choice(keys)
        data = self._holder(key)
        assert data is not None  # noqa: S101 - chosen for it
        ids = list(data.databases[0][key.encode()].value._ids[: chance.randint(1, 4)])
        if not ids:
            return ""
        data.databases[0][key.encode()].value.delete([each.encode() for each in ids])
        places = [(key, each.encode().decode()) for each in ids]
        self.trimmed.update(places)
        self._displaced.update(found for place in places if (found := event_id_of(self.entries[place])) is not None)
        return f"somebody trims {len(ids)} entries of {key}"

    def _holder(self, key: str) -> Data | None:
        return next((each for each in self._data if key.encode() in each.databases[0]), None)


def event_id_of(fields: Mapping[bytes, bytes]) -> UUID | None:
    """The id that an entry, or a job, says it has; None if it says none."""
    try:
        return UUID(fields[b"eventId"].decode())
    except (KeyError, ValueError):
        return None
