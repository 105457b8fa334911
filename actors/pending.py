"""The pending list of a group: entries that were given to a consumer and are not acknowledged yet.

Whoever changes whose they are does it in a script, so that nothing comes between the look and the deed. Each touches
one key. They need Redis 6.2 or Valkey, and no memory: a full server takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

from ..runtime.redis.script import Script
from .group_making import text_of
from .handling import Entry

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis

__all__ = ["AT_ONCE", "PendingList", "Stale", "Taken", "fields_of"]

AT_ONCE: Final = 100
"""Entries that one call of a script looks at: a millisecond of the server's time."""


@frozen
class Stale:
    """Entries that their consumers have left alone for too long.

    Attributes:
        entries: what was taken over; those whose entry was trimmed meanwhile (``fields`` is None) are still with their
            consumer, until they are acknowledged.
        after: where to go on looking; None at the end of the list.
    """

    entries: tuple[Entry, ...]
    after: str | None


@frozen
class Taken:
    """What came of an entry that was to be taken over.

    Attributes:
        entry_id: its id.
        consumer: who had it; None if it was not pending.
        idle: seconds for which nobody had touched it.
        entry: what was taken over, as in `Stale.entries`; None where it was left to its consumer.
    """

    entry_id: str
    consumer: str | None
    idle: float
    entry: Entry | None


_LIB: Final = """
local function value(row, name)
    for i = 1, #row, 2 do
        if row[i] == name then return row[i + 1] end
    end
end
local function is_there(id)
    return #redis.call('XRANGE', KEYS[1], id, id) > 0
end
local function take_over(group, consumer, idle, id)
    -- Looked for first: claiming what was trimmed would take it off the list, and nobody would know.
    if is_there(id) then return redis.call('XCLAIM', KEYS[1], group, consumer, idle, id)[1] end
end
"""

_TAKE_OVER: Final = (
    _LIB
    + """
-- group, consumer, idle, after, count, prefix that is spared, consumers that are spared …
local spared = {}
for i = 7, #ARGV do spared[ARGV[i]] = true end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], ARGV[4], '+', ARGV[5])
local entries, gone = {}, {}
for _, row in ipairs(pending) do
    local id, consumer = row[1], row[2]
    local is_spared = spared[consumer] or (ARGV[6] ~= '' and string.sub(consumer, 1, #ARGV[6]) == ARGV[6])
    if not is_spared then
        local entry = take_over(ARGV[1], ARGV[2], ARGV[3], id)
        if entry then entries[#entries + 1] = entry else gone[#gone + 1] = id end
    end
end
local last = ''
if #pending == tonumber(ARGV[5]) then last = pending[#pending][1] end
return {entries, gone, last}
"""
)

_CLAIM: Final = (
    _LIB
    + """
-- group, consumer, idle, ids …: for each its consumer ('': it is not pending), its idle time, whether it was idle for
-- long enough, and its fields (none: it was trimmed)
local found = {}
for i = 4, #ARGV do
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
    if not row then
        found[#found + 1] = {'', 0, 0, {}}
    elseif row[3] < tonumber(ARGV[3]) then
        found[#found + 1] = {row[2], row[3], 0, {}}
    else
        local entry = take_over(ARGV[1], ARGV[2], ARGV[3], ARGV[i])
        found[#found + 1] = {row[2], row[3], 1, entry and entry[2] or {}}
    end
end
return found
"""
)

_RENEW: Final = (
    _LIB
    + """
-- group, consumer, ids …: those that are not the consumer's any more
local lost = {}
for i = 3, #ARGV do
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
    if not row or row[2] ~= ARGV[2] then
        lost[#lost + 1] = ARGV[i]
    elseif is_there(ARGV[i]) then
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'JUSTID')
    end
end
return lost
"""
)

_GIVE_BACK: Final = (
    _LIB
    + """
-- group, consumer, idle, ids …: how many
local given = 0
for i = 4, #ARGV do
    local row = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
    if row and row[2] == ARGV[2] and is_there(ARGV[i]) then
        local count = math.max(0, row[4] - 1)
        redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, ARGV[i], 'IDLE', ARGV[3], 'RETRYCOUNT', count, 'JUSTID')
        given = given + 1
    end
end
return given
"""
)

_REMOVE: Final = (
    _LIB
    + """
-- group, idle, consumers …: those that hold nothing and were idle for so long
local removed = {}
local asked = {}
for i = 3, #ARGV do asked[ARGV[i]] = true end
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local name = value(row, 'name')
    if asked[name] and value(row, 'pending') == 0 and value(row, 'idle') >= tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
        removed[#removed + 1] = name
    end
end
return removed
"""
)


class PendingList:
    """See the module. All methods raise what the link or the server says, and block for a round trip or a few.

    Args:
        client: the link.
        stream: the stream's key.
        group: the group's name.
    """

    def __init__(self, client: AnyRedis, stream: str, group: str) -> None:
        self._client = client
        self._stream = stream
        self._group = group

    async def take_over(
        self, consumer: str, idle: float, after: str, count: int, *, spared: Sequence[str], spared_prefix: str = ""
    ) -> Stale:
        """Give `consumer` up to `count` entries that nobody has touched for `idle` seconds.

        Args:
            after: ``-`` at first, then what the last call returned.
            spared: consumers that keep theirs.
            spared_prefix: those whose name begins like this keep theirs, too; empty: nobody.
        """
        count = min(count, AT_ONCE)
        start = after if after == "-" else f"({after}"
        entries, gone, last = await self._run(
            _TAKE_OVER, consumer, _milliseconds(idle), start, count, spared_prefix, *spared
        )
        found = [
            Entry(self._stream, text_of(entry_id), fields_of(fields), consumer=consumer, redelivered=True)
            for entry_id, fields in entries
        ]
        found += [Entry(self._stream, text_of(each), None, consumer=consumer, redelivered=True) for each in gone]
        return Stale(tuple(found), text_of(last) or None)

    async def claim(self, consumer: str, idle: float, ids: Sequence[str]) -> list[Taken]:
        """Give `consumer` those of up to `AT_ONCE` entries that nobody has touched for `idle` seconds; one result each.

        Raises:
            ValueError: there are more of them.
        """
        if len(ids) > AT_ONCE:
            raise ValueError(f"at most {AT_ONCE} entries at a time, not {len(ids)}")
        rows = await self._run(_CLAIM, consumer, _milliseconds(idle), *ids)
        return [self._taken(consumer, entry_id, *row) for entry_id, row in zip(ids, rows, strict=True)]

    def _taken(
        self, consumer: str, entry_id: str, owner: bytes, idle: int, taken: int, fields: Sequence[bytes]
    ) -> Taken:
        entry = None
        if taken:
            entry = Entry(self._stream, entry_id, fields_of(fields) or None, consumer=consumer, redelivered=True)
        return Taken(entry_id, text_of(owner) or None, int(idle) / 1000, entry)

    async def renew(self, consumer: str, ids: Sequence[str]) -> list[str]:
        """Let entries of `consumer` look as if they had just been given to it; those that are not its own any more."""
        lost: list[str] = []
        for start in range(0, len(ids), AT_ONCE):
            lost += map(text_of, await self._run(_RENEW, consumer, *ids[start : start + AT_ONCE]))
        return lost

    async def give_back(self, consumer: str, ids: Sequence[str], idle: float) -> int:
        """Let entries of `consumer` look as if untouched for `idle` seconds, and their last delivery not have been."""
        given = 0
        for start in range(0, len(ids), AT_ONCE):
            given += await self._run(_GIVE_BACK, consumer, _milliseconds(idle), *ids[start : start + AT_ONCE])
        return given

    async def consumers(self) -> Mapping[str, int]:
        """How many entries each consumer holds."""
        rows: Sequence[Mapping[str, Any]] = await self._client.xinfo_consumers(self._stream, self._group)
        return {text_of(row["name"]): int(row["pending"]) for row in rows}

    async def remove(self, consumers: Sequence[str], idle: float = 0.0) -> list[str]:
        """Remove those of `consumers` that hold nothing and were idle for `idle` seconds; their names.

        One that holds something must not be removed: its entries would be in no list any more, and never delivered.
        """
        if not consumers:
            return []
        return [text_of(name) for name in await self._run(_REMOVE, _milliseconds(idle), *consumers)]

    async def _run(self, script: str, *words: str | int) -> Any:
        return await Script(self._client, script)([self._stream], [self._group, *words])


def fields_of(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """The fields of an entry as a script returns them."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
