"""Entries of a stream as somebody looks at them: a range of them, and how each stands in one group.

An entry's range and its states come from one script, so that they belong together: what the group was given last, and
for each entry whether it is pending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from .event import Envelope, Origin, SkippedEntry, UndecodableEntry
from .group_making import text_of
from .handling import entry_order
from .pending import fields_of
from .pending_view import EntryState, state_of
from .stream_view import asked

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .system import Stream

__all__ = ["EntryRange", "EntryView", "GroupPlace", "decoded", "range_of"]


@frozen(kw_only=True)
class GroupPlace:
    """How an entry stands in a group.

    Attributes:
        state: see `EntryState`.
        consumer: who has it; None where nobody does.
        idle: seconds for which that consumer has not touched it.
        deliveries: how often it was given to anybody; 0 where that is not known any more.
    """

    state: EntryState
    consumer: str | None = None
    idle: float | None = None
    deliveries: int = 0


@frozen(kw_only=True)
class EntryView:
    """An entry.

    Attributes:
        partition: the key of its stream in Redis.
        entry_id: its id.
        at: when Redis took it, by its id; None for an id that is no time.
        event: what it carries; None if it is no event.
        fields: as they are, with what is not UTF-8 replaced.
        problem: why it is no event; None if it is one.
        place: how it stands in the group that was asked for; None if none was.
    """

    partition: str
    entry_id: str
    at: datetime | None
    event: Envelope | None
    fields: Mapping[str, str]
    problem: str | None
    place: GroupPlace | None


@frozen(kw_only=True)
class EntryRange:
    """A part of a stream.

    Attributes:
        entries: in the order that was asked for.
        next: where to go on, in the place of the beginning (or, in reverse, of the end); None if that was all.
        partitions: the keys in which Redis has the group that was asked for.
    """

    entries: tuple[EntryView, ...]
    next: str | None
    partitions: tuple[str, ...]


async def range_of(
    client: AnyRedis,
    stream: Stream,
    keys: Sequence[str],
    *,
    first: str,
    last: str,
    limit: int,
    reverse: bool = False,
    group: str | None = None,
    reclaim_idle: float,
) -> EntryRange:
    """The entries of a range, of all partitions together in the order of their ids.

    Args:
        client: the link.
        stream: the declared stream; it says what is an event.
        keys: of the partitions.
        first: the least id, ``-`` or, without it itself, ``(ID``.
        last: the greatest, likewise.
        limit: how many; those of one and the same id in several partitions are never parted, so it may be a few more;
            and fewer where they are large, a few MiB in all.
        reverse: the greatest first.
        group: say how each stands in it; a group that is not there was given nothing yet.
        reclaim_idle: seconds after which an entry that nobody touches is taken over.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    found: list[EntryView] = []
    partitions: list[str] = []
    ends: list[tuple[int, int]] = []
    look = client.register_script(_RANGE)
    words: list[str | int] = [first, last, limit, int(reverse), *([] if group is None else [group])]
    for key in keys:
        entries, delivered, pending, more = await asked(look, key, words)
        held = {text_of(row[0]): row for row in pending}
        if more:
            ends.append(entry_order(text_of(entries[-1][0])))
        if delivered:
            partitions.append(key)
        for raw_id, flat in entries:
            entry_id = text_of(raw_id)
            place = None if group is None else _place(entry_id, text_of(delivered), held.get(entry_id), reclaim_idle)
            found.append(_entry(stream, key, entry_id, fields_of(flat), place))
    found.sort(key=lambda entry: entry_order(entry.entry_id), reverse=reverse)
    if ends:  # what lies beyond would come before others that the partition which was cut still has
        end = max(ends) if reverse else min(ends)
        beyond = -1 if reverse else 1
        found = [each for each in found if _compared(entry_order(each.entry_id), end) != beyond]
    taken = found[:limit]
    while taken and len(taken) < len(found) and found[len(taken)].entry_id == taken[-1].entry_id:
        taken.append(found[len(taken)])
    is_cut = bool(ends) or len(taken) < len(found)
    following = f"({taken[-1].entry_id}" if is_cut and taken else None
    return EntryRange(entries=tuple(taken), next=following, partitions=tuple(partitions))


def decoded(
    stream: Stream, key: str, entry_id: str, fields: Mapping[bytes, bytes]
) -> tuple[Envelope | None, str | None]:
    """The event that an entry carries, or why it is none."""
    try:
        exact = {name.decode(): value.decode() for name, value in fields.items()}
        return stream.decode(exact, Origin(key, entry_id)), None
    except (UndecodableEntry, SkippedEntry, UnicodeDecodeError) as error:
        return None, str(error)


def _entry(
    stream: Stream, key: str, entry_id: str, fields: Mapping[bytes, bytes], place: GroupPlace | None
) -> EntryView:
    event, problem = decoded(stream, key, entry_id, fields)
    return EntryView(
        partition=key,
        entry_id=entry_id,
        at=_time_of(entry_id),
        event=event,
        fields={name.decode(errors="replace"): value.decode(errors="replace") for name, value in fields.items()},
        problem=problem,
        place=place,
    )


def _place(entry_id: str, delivered: str, row: Sequence[Any] | None, reclaim_idle: float) -> GroupPlace:
    if row is not None:
        idle = int(row[2]) / 1000
        state = state_of(idle, reclaim_idle)
        return GroupPlace(state=state, consumer=text_of(row[1]), idle=idle, deliveries=int(row[3]))
    if not delivered or entry_order(delivered) < entry_order(entry_id):
        return GroupPlace(state=EntryState.NEW)
    return GroupPlace(state=EntryState.ACK)


def _compared(one: tuple[int, int], other: tuple[int, int]) -> int:
    return (one > other) - (one < other)


def _time_of(entry_id: str) -> datetime | None:
    try:
        return datetime.fromtimestamp(entry_order(entry_id)[0] / 1000, UTC)
    except (ValueError, OverflowError, OSError):  # an id of the publisher's own
        return None


# KEYS[1]: the stream. ARGV: from, to, how many at the most, whether backwards, and, if one is asked for, a group.
# Reads a few at a time, and ends behind 4 MiB: a thousand of the largest that somebody may publish would be too much
# for Redis. Returns the entries, the last id that the group was given ('' if there is no such group), the rows of
# XPENDING of those of the entries that are pending in it, and whether there may be more. One question an entry: a range
# might be full of what is deleted.
_RANGE: Final = """
local key, group, reverse = KEYS[1], ARGV[5], ARGV[4] == '1'
local first, last, left, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), 4194304
local entries, size, is_cut = {}, 0, 0
while true do
    local step = math.min(left, 10)
    local found
    if reverse then
        found = redis.call('XREVRANGE', key, last, first, 'COUNT', step)
    else
        found = redis.call('XRANGE', key, first, last, 'COUNT', step)
    end
    for _, entry in ipairs(found) do
        entries[#entries + 1] = entry
        for _, word in ipairs(entry[2]) do size = size + #word end
    end
    left = left - #found
    if #found < step then break end
    local behind = entries[#entries][1]
    if left == 0 or size >= most then
        is_cut = 1
        break
    end
    if behind == '18446744073709551615-18446744073709551615' then break end
    if reverse then last = '(' .. behind else first = '(' .. behind end
    if last == '(0-0' then break end
end
local delivered, pending = '', {}
if group and redis.call('EXISTS', key) == 1 then
    for _, row in ipairs(redis.call('XINFO', 'GROUPS', key)) do
        local facts = {}
        for i = 1, #row, 2 do facts[row[i]] = row[i + 1] end
        if facts['name'] == group then delivered = facts['last-delivered-id'] end
    end
end
if delivered ~= '' then
    for _, entry in ipairs(entries) do
        pending[#pending + 1] = redis.call('XPENDING', key, group, entry[1], entry[1], 1)[1]
    end
end
return {entries, delivered, pending, is_cut}
"""
