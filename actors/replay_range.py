"""Ranges of a stream: how people name them, how long they are, and their entries in the order of their ids."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import trio
from attrs import frozen

from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis

__all__ = ["RangeEntry", "count_range", "id_at", "in_order", "read_range"]

_ID: Final = re.compile(r"[0-9]{1,20}(-[0-9]{1,20})?")
_LARGEST: Final = 2**64 - 1
_COUNT_STEP: Final = 1_000


@frozen
class RangeEntry:
    """An entry of a range.

    Attributes:
        key: the stream's key in Redis, or the partition's.
        id: the entry's id.
        fields: as they are.
    """

    key: str
    id: str
    fields: Mapping[bytes, bytes]

    @property
    def milliseconds(self) -> int:
        """When Redis took it, by its id."""
        return entry_order(self.id)[0]


def id_at(text: str, zone: ZoneInfo, *, last: bool) -> str:
    """The entry id that `text` stands for: an id, its first half, or a time in ISO 8601.

    Args:
        text: a time without an offset is meant in `zone`.
        zone: of such times.
        last: the end of a range: the last id of that millisecond, and not the first.

    Raises:
        ValueError: it is neither an id nor a time.
    """
    if _ID.fullmatch(text):
        milliseconds, dash, sequence = text.partition("-")
        if int(milliseconds) > _LARGEST or int(sequence or 0) > _LARGEST:
            raise ValueError(f"{text} is larger than an entry id can be")
        return text if dash else _of(int(milliseconds), last=last)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is neither an entry id (1700000000000-0) nor a time (2026-05-04T10:00, with an offset or in"
            f" {zone.key})"
        ) from None
    aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=zone)
    return _of(max(0, int(aware.timestamp() * 1000)), last=last)


def _of(milliseconds: int, *, last: bool) -> str:
    return f"{milliseconds}-{_LARGEST if last else 0}"


async def count_range(client: AnyRedis, keys: Iterable[str], from_id: str, to_id: str, within: float) -> int | None:
    """How many entries the range has in all these streams; None if counting took longer than `within` seconds.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    count, total = client.register_script(_COUNT), 0
    with trio.move_on_after(within) as limit:
        for key in keys:
            start = from_id
            while start:
                found, last = await count([key], [start, to_id, _COUNT_STEP])
                total += int(found)
                start = f"({_text(last)}" if last else ""
    return None if limit.cancelled_caught else total


async def read_range(
    client: AnyRedis, keys: Iterable[str], cursors: Mapping[str, str], from_id: str, to_id: str, count: int
) -> list[RangeEntry]:
    """The next entries of a range, of all streams together in the order of their ids; none at its end.

    Args:
        client: the link.
        keys: of the streams.
        cursors: by key, the entry after which to go on.
        from_id: where to begin in a stream that has no cursor.
        to_id: the last id of the range.
        count: how many are read of each stream; at least so many are returned, as far as there are.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    read: list[list[RangeEntry]] = []
    for key in keys:
        start = f"({cursors[key]}" if key in cursors else from_id
        reply: Any = await client.xrange(key, start, to_id, count)
        read.append([RangeEntry(key, _text(entry_id), fields) for entry_id, fields in reply])
    return in_order(read, count)


def in_order(read: Sequence[Sequence[RangeEntry]], count: int) -> list[RangeEntry]:
    """What can be said to come next, of several streams of which up to `count` entries each were read.

    Of a stream that gave all `count` there may be more, right behind its last one: what is younger has to wait.
    """
    horizon = min((entry_order(entries[-1].id) for entries in read if len(entries) >= count), default=None)
    known = [entry for entries in read for entry in entries]
    within = [entry for entry in known if horizon is None or entry_order(entry.id) <= horizon]
    return sorted(within, key=lambda entry: entry_order(entry.id))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# KEYS[1]: the stream. ARGV: from, to, how many at the most. Returns how many there are, and the last one's id while
# there may be more.
_COUNT: Final = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
if #found < tonumber(ARGV[3]) then return {#found, ''} end
return {#found, found[#found][1]}
"""
