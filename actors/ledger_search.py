"""Finds events in streams, and how their entries stand in the groups, for the ledger. Reads only."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import redis.exceptions
import trio
from attrs import frozen

from .event import Origin, SkippedEntry, UndecodableEntry
from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .system import Stream, System

__all__ = ["GroupState", "Place", "Search"]

PAGE: Final = 1_000
"""Entries, or pending ones, in one reply."""

SKEW: Final = 300_000
"""Milliseconds by which the clock of a publisher may be ahead of that of Redis."""


class GroupState(enum.Enum):
    """How an entry stands in a group."""

    NO_GROUP = "no group"
    UNREAD = "unread"
    PENDING = "pending"
    PASSED = "passed"  # given to it, and acknowledged, or the group was made behind it


@frozen
class Place:
    """An entry.

    Attributes:
        partition: the key of its stream.
        entry_id: its id.
        exists: whether it is (still) there.
        event_type: of the event that it carries; None where that is not known.
    """

    partition: str
    entry_id: str
    exists: bool
    event_type: str | None


@frozen
class _Group:
    """What Redis says of a group, and which entries it has not acknowledged."""

    last_delivered: str
    lag: int | None
    pending_count: int


class Search:
    """One look at Redis; what was read once is not read again.

    Args:
        client: the link.
        system: what is declared.

    Every method raises `redis.exceptions.RedisError`.
    """

    def __init__(self, client: AnyRedis, system: System) -> None:
        self._client = client
        self._system = system
        self._groups: dict[str, dict[str, _Group]] = {}
        self._pending: dict[tuple[str, str], set[str]] = {}

    async def at(self, places: Sequence[tuple[str, str]]) -> list[Place]:
        """The entries with these partitions and ids, which may be gone; in order."""
        found: list[Place] = []
        for start in range(0, len(places), PAGE):
            # Side by side: the link sends them together.
            some = places[start : start + PAGE]
            read: dict[tuple[str, str], Place] = {}
            failed: list[redis.exceptions.RedisError] = []
            async with trio.open_nursery() as nursery:
                for partition, entry_id in dict.fromkeys(some):
                    nursery.start_soon(self._at, partition, entry_id, read, failed)
            if failed:
                raise failed[0]  # as it is, and not in a group
            found += [read[each] for each in some]
        return found

    async def _at(
        self,
        partition: str,
        entry_id: str,
        read: dict[tuple[str, str], Place],
        failed: list[redis.exceptions.RedisError],
    ) -> None:
        try:
            found: list[Any] = await self._client.xrange(partition, entry_id, entry_id) or []
        except redis.exceptions.RedisError as error:
            failed.append(error)
            return
        known = self._read(partition, entry_id, found[0][1]) if found else None
        event_type = None if known is None else known[1]
        read[partition, entry_id] = Place(partition, entry_id, exists=bool(found), event_type=event_type)

    async def scan(self, event_ids: Sequence[UUID], limit: int) -> list[tuple[UUID, Place]]:
        """The entries of these events, oldest first, looked for from the end of all streams that have groups.

        Args:
            event_ids: what to look for. If all of them are of version 7 (they hold a time), nothing that is older than
                the first of them is read.
            limit: entries to read at the most, of all streams together.
        """
        wanted = set(event_ids)
        found: list[tuple[UUID, Place]] = []
        oldest = _oldest(wanted)
        for stream in self._system.streams.values():
            for key in stream.keys if stream.groups else ():
                if wanted and limit > 0:
                    limit -= await self._scan_one(key, wanted, found, oldest, limit)
        return sorted(found, key=lambda each: entry_order(each[1].entry_id))

    async def _scan_one(
        self, key: str, wanted: set[UUID], found: list[tuple[UUID, Place]], oldest: str, limit: int
    ) -> int:
        """Add what is found in one partition; how many entries were read."""
        read, last = 0, "+"
        while read < limit:
            count = min(PAGE, limit - read)
            page: list[Any] = await self._client.xrevrange(key, max=last, min=oldest, count=count) or []
            for raw_id, fields in page:
                entry_id = raw_id.decode()
                known = self._read(key, entry_id, fields)
                if known is not None and known[0] in wanted:
                    # Not taken from those wanted: it may have been published twice, and its first entry counts.
                    found.append((known[0], Place(key, entry_id, exists=True, event_type=known[1])))
            read += len(page)
            if len(page) < count:
                break
            last = f"({page[-1][0].decode()}"
        return read

    def _read(self, key: str, entry_id: str, fields: Mapping[bytes, bytes]) -> tuple[UUID, str] | None:
        """The event's id and type; None if the entry is no event."""
        stream = self._system.stream_of(key)
        try:
            return _identity(stream, fields, Origin(key, entry_id)) if stream is not None else None
        except (UndecodableEntry, SkippedEntry, ValueError):
            return None

    async def state(self, place: Place, group: str) -> GroupState:
        """How the entry stands in the group."""
        known = (await self._groups_of(place.partition)).get(group)
        if known is None:
            return GroupState.NO_GROUP
        if entry_order(known.last_delivered) < entry_order(place.entry_id):
            return GroupState.UNREAD
        if place.entry_id in await self._pending_of(place.partition, group, known.pending_count):
            return GroupState.PENDING
        return GroupState.PASSED

    async def counts(self, key: str, group: str) -> tuple[int | None, int]:
        """How many entries of a partition a group was not given yet (None: Redis cannot tell), and has not finished."""
        known = (await self._groups_of(key)).get(group)
        if known is None:
            return int(await self._client.xlen(key)), 0
        return known.lag, known.pending_count

    async def _groups_of(self, key: str) -> dict[str, _Group]:
        if key not in self._groups:
            try:
                told: Iterable[Mapping[str, Any]] = await self._client.xinfo_groups(key)
            except redis.exceptions.ResponseError as error:
                if "no such key" not in str(error).lower():
                    raise
                told = ()
            self._groups[key] = {
                _text(each["name"]): _Group(_text(each["last-delivered-id"]), each.get("lag"), int(each["pending"]))
                for each in told
            }
        return self._groups[key]

    async def _pending_of(self, key: str, group: str, count: int) -> set[str]:
        if (key, group) not in self._pending:
            pending: set[str] = set()
            first = "-"
            while count and first:
                page: list[Any] = await self._client.xpending_range(key, group, min=first, max="+", count=PAGE)
                ids = [_text(each["message_id"]) for each in page]
                pending.update(ids)
                first = f"({ids[-1]}" if len(ids) == PAGE else ""
            self._pending[key, group] = pending
        return self._pending[key, group]


def _identity(stream: Stream, fields: Mapping[bytes, bytes], origin: Origin) -> tuple[UUID, str]:
    if b"eventId" in fields and b"eventType" in fields:  # the common case, without reading the data
        return UUID(fields[b"eventId"].decode()), fields[b"eventType"].decode()
    envelope = stream.decode({name.decode(): value.decode() for name, value in fields.items()}, origin)
    return envelope.event_id, envelope.event_type


def _oldest(event_ids: Iterable[UUID]) -> str:
    """The id before which no entry can be of these events."""
    ids = list(event_ids)
    if not ids or any(each.version != 7 for each in ids):
        return "-"
    return str(max(0, min(each.int >> 80 for each in ids) - SKEW))


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
