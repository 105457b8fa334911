"""Trimming by proof: only what every group of a stream has read and acknowledged is ever trimmed.

Proof and trim are one script, so that no reader, and no new group, can slip in between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import evolve, frozen

from .entry_functions import ENTRY_FUNCTIONS

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .system import Stream

__all__ = ["HeldBack", "StreamReport", "count_trimmable", "entry_id_of", "trim"]

_STEP: Final = 10_000
"""Entries that one call may trim: a few milliseconds of the server's time, for it does nothing else meanwhile."""

_EXCESS_STEP: Final = 1_000
"""Entries by which one call may bring a stream nearer to its most; they are read to find the id behind them."""

_COUNT_STEP: Final = 1_000
"""Entries that one call may count; counting reads them whole."""


_NOTHING: Final = "0-0"
"""No entry is below it."""


@frozen(kw_only=True)
class HeldBack:
    """A group for which entries older than the cut-off must be kept.

    Attributes:
        group: its name; empty where the stream has no group at all.
        entry_id: the oldest entry that it has not acknowledged.
        why: ``unread``, ``pending``, ``missing`` (declared, and not in Redis) or ``no group``.
    """

    group: str
    entry_id: str
    why: str


@frozen(kw_only=True)
class StreamReport:
    """What was done to one stream.

    Attributes:
        stream: its key; of one with several partitions, the partition's.
        trimmed: entries trimmed; in a dry run, entries that may be.
        safe_id: every entry below this id was old enough, or one too many, and acknowledged by every group.
        first_id: the oldest entry that is left; None in an empty stream.
        held_back: the groups that kept old entries from being trimmed.
        error: why nothing could be done; None if it could.
    """

    stream: str
    trimmed: int = 0
    safe_id: str = _NOTHING
    first_id: str | None = None
    held_back: tuple[HeldBack, ...] = ()
    error: str | None = None


def entry_id_of(moment: datetime) -> str:
    """The least id of an entry that was added at `moment`."""
    return f"{max(0, int(moment.timestamp() * 1000))}-0"


async def trim(
    redis: AnyRedis, stream: Stream, cutoff: datetime, *, key: str | None = None, most: int = 0
) -> StreamReport:
    """Trim what is older than `cutoff` and acknowledged by every group, in steps; whole nodes of the stream only.

    An entry is kept that any group has not read, or has read and not acknowledged; a declared group that does not exist
    has read nothing; a group that is not declared counts like the others; without any group nothing is trimmed, unless
    `Stream.trim_without_groups` says otherwise. Redis frees entries in nodes of 100 by default: fewer are left.

    Args:
        redis: the link.
        stream: whose groups count.
        cutoff: aware; what was added before may go.
        key: of one of its partitions; by default the stream's own.
        most: entries that are kept at the most, as far as the groups are done with the others; 0: any number.

    Cancellation: between two steps, or during one that is done or not done; nothing is half done.

    Raises:
        redis.exceptions.RedisError: as the link or the server says; ``WRONGTYPE`` if the key is no stream.
    """
    place = key or stream.key
    report = await _look(redis, stream, place, cutoff, most, step=_STEP)
    trimmed = gone = report.trimmed
    while gone:
        report = await _look(redis, stream, place, cutoff, most, step=_STEP)
        gone = report.trimmed
        trimmed += gone
    return evolve(report, trimmed=trimmed)


async def count_trimmable(redis: AnyRedis, stream: Stream, cutoff: datetime, *, key: str | None = None) -> StreamReport:
    """What `trim` would do now by age, at the most; trims nothing. Reads every old entry, so it takes its time."""
    place = key or stream.key
    report = await _look(redis, stream, place, cutoff, 0, step=0)
    count = redis.register_script(_COUNT)
    total, start = 0, "-" if report.safe_id != _NOTHING else ""
    while start:
        found, last = await count([place], [start, f"({report.safe_id}", _COUNT_STEP])
        total += int(found)
        start = f"({_text(last)}" if last else ""
    return evolve(report, trimmed=total)


async def _look(redis: AnyRedis, stream: Stream, key: str, cutoff: datetime, most: int, *, step: int) -> StreamReport:
    words = [entry_id_of(cutoff), step, int(stream.trim_without_groups), most, _EXCESS_STEP]
    words += [*stream.groups, *stream.external]
    reply = await redis.register_script(_TRIM)([key], words)
    if not reply:
        return StreamReport(stream=key)
    safe_id, trimmed, first_id, *held = reply
    return StreamReport(
        stream=key,
        trimmed=int(trimmed),
        safe_id=_text(safe_id),
        first_id=_text(first_id) or None,
        held_back=tuple(HeldBack(group=group, entry_id=oldest, why=why) for group, oldest, why in _triples(held)),
    )


def _triples(values: Sequence[Any]) -> list[tuple[str, str, str]]:
    texts = [_text(value) for value in values]
    return list(zip(texts[::3], texts[1::3], texts[2::3], strict=True))


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


# KEYS[1]: the stream. ARGV: the cut-off id, the entries to trim at the most (0: none), whether a stream without groups
# may be trimmed, the entries to keep at the most (0: all) and how many to look at in one call for that, the declared
# groups. Returns nothing for a stream that does not exist.
_TRIM: Final = (
    ENTRY_FUNCTIONS
    + """
local function after(id)
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    -- Beyond 15 digits a double is not exact: then the last entry that was read is kept, which does no harm.
    if #seq > 15 then return id end
    return ms .. '-' .. string.format('%.0f', tonumber(seq) + 1)
end

local key, cutoff, step = KEYS[1], ARGV[1], tonumber(ARGV[2])
if redis.call('EXISTS', key) == 0 then return {} end

local most = tonumber(ARGV[4])
local excess = most > 0 and redis.call('XLEN', key) - most or 0
if excess > 0 then
    local found = redis.call('XRANGE', key, '-', '+', 'COUNT', math.min(excess, tonumber(ARGV[5])))
    local enough = after(found[#found][1])
    if before(cutoff, enough) then cutoff = enough end
end

local needs = {}
local exists = {}
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local group = {}
    for i = 1, #reply, 2 do group[reply[i]] = reply[i + 1] end
    exists[group['name']] = true
    local needed, why = after(group['last-delivered-id']), 'unread'
    local pending = redis.call('XPENDING', key, group['name'])
    if pending[1] > 0 and before(pending[2], needed) then needed, why = pending[2], 'pending' end
    needs[#needs + 1] = {group['name'], needed, why}
end
for i = 6, #ARGV do
    if not exists[ARGV[i]] then needs[#needs + 1] = {ARGV[i], '0-0', 'missing'} end
end
if #needs == 0 and ARGV[3] ~= '1' then needs[1] = {'', '0-0', 'no group'} end

local safe = cutoff
local held = {}
for _, need in ipairs(needs) do
    if before(need[2], cutoff) then
        local oldest = first(need[2], '(' .. cutoff)
        if oldest ~= '' then
            held[#held + 1] = need[1]
            held[#held + 1] = oldest
            held[#held + 1] = need[3]
        end
        if before(need[2], safe) then safe = need[2] end
    end
end

local trimmed = 0
if step > 0 then trimmed = redis.call('XTRIM', key, 'MINID', '~', safe, 'LIMIT', step) end
return {safe, trimmed, first('-', '+'), unpack(held)}
"""
)

# KEYS[1]: the stream. ARGV: from, to, how many at the most. Returns how many there are, and the last one's id while
# there may be more.
_COUNT: Final = """
local found = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', ARGV[3])
if #found < tonumber(ARGV[3]) then return {#found, ''} end
return {#found, found[#found][1]}
"""
