"""Lag repair: Redis loses count of what a group has left to read; we count, and tell it.

After an entry was deleted that a group had not read, Redis cannot tell the group's lag (nil); after entries were
trimmed that it had not read, it tells too much, for ever (redis#13337, #13338). What is left can be counted, and
``XGROUP SETID`` takes a corrected counter together with the *same* last id. From then on the lag is right for everybody
who asks Redis, exporters and autoscalers too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio
from attrs import evolve, frozen

from ..runtime.redis import Kind, classify
from ..runtime.telemetry import get_logger

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .stream_view import GroupView, StreamView

__all__ = ["LagRepair"]

log = get_logger(__name__)

BOUND: Final = 10_000
"""Entries that are counted at the most: 8 ms of the server's time, which does nothing else meanwhile."""

PAUSE: Final = 10.0
"""Seconds between two counts for the same group."""

_REFUSALS: Final = (Kind.CONFIG, Kind.DOWNGRADE, Kind.BUG)


@frozen
class _Count:
    left: int | None
    at: float


class LagRepair:
    """Counts what is left for groups, and corrects the counters of Redis. One for each link; it remembers counts."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], _Count] = {}

    def forget(self, stream: str) -> None:
        """Count anew in this stream: entries were taken from it."""
        self._counts = {place: count for place, count in self._counts.items() if place[0] != stream}

    async def count(self, client: AnyRedis, view: StreamView, group: GroupView) -> int | None:
        """How many entries are left for a group whose lag nobody can tell; None where it can, or there are too many.

        Not counted more often than every `PAUSE` seconds; in between it is the count of before.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        place = (view.key, group.name)
        if group.lag is not None or view.entries_added is None:
            self._counts.pop(place, None)
            return None
        known = self._counts.get(place, _Count(None, -math.inf))
        if trio.current_time() - known.at < PAUSE:
            return known.left
        left = await client.register_script(_COUNT)([view.key], [group.last_delivered_id, BOUND])
        self._counts[place] = _Count(None if int(left) < 0 else int(left), trio.current_time())
        return self._counts[place].left

    async def mend(self, client: AnyRedis, view: StreamView, group: GroupView, left: int | None) -> GroupView:
        """The group with the right lag, as far as it is known; Redis is told if it has it wrong.

        Redis takes the correction only while nothing has changed since `view`. That it refuses one is logged, and no
        error.

        Raises:
            RedisUnavailable: the link is lost.
        """
        lag = group.lag if left is None else left
        added = view.entries_added
        if added is None or lag is None or group.entries_read == added - lag:
            return evolve(group, lag=lag)
        before = "" if group.entries_read is None else group.entries_read
        arguments = [group.name, group.last_delivered_id, before, added, view.length, added - lag]
        try:
            done = await client.register_script(_SET)([view.key], arguments)
        except redis.exceptions.ResponseError as error:
            if classify(error).kind not in _REFUSALS:
                raise
            log.debug("lag not mended", stream=view.key, group=group.name, error=str(error))
        else:
            if int(done) and group.lag_reported != lag:
                log.info("lag mended", stream=view.key, group=group.name, was=group.lag_reported, now=lag)
        return evolve(group, lag=lag)


# KEYS[1]: the stream. ARGV: the last id of the group, how many entries to look at. Returns how many entries are left
# for the group, counted from whichever end is nearer; -1 if both are too far.
_COUNT: Final = """
local key, delivered, bound = KEYS[1], ARGV[1], tonumber(ARGV[2])
local ahead = #redis.call('XRANGE', key, '(' .. delivered, '+', 'COUNT', bound + 1)
if ahead <= bound then return ahead end
local behind = #redis.call('XRANGE', key, '-', delivered, 'COUNT', bound + 1)
if behind <= bound then return redis.call('XLEN', key) - behind end
return -1
"""

# KEYS[1]: the stream. ARGV: the group; its last id, its counter ('' for nil), and the stream's counter and length as
# they were; the counter that it is to have. Returns whether it was set: not if anything is different by now.
_SET: Final = """
local function facts_of(reply)
    local facts = {}
    for i = 1, #reply, 2 do facts[reply[i]] = reply[i + 1] end
    return facts
end

local key, group, delivered, read = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
if redis.call('EXISTS', key) == 0 then return 0 end
local stream = facts_of(redis.call('XINFO', 'STREAM', key))
if stream['entries-added'] ~= tonumber(ARGV[4]) or stream['length'] ~= tonumber(ARGV[5]) then return 0 end
for _, reply in ipairs(redis.call('XINFO', 'GROUPS', key)) do
    local facts = facts_of(reply)
    if facts['name'] == group then
        local now = facts['entries-read']
        if facts['last-delivered-id'] ~= delivered or (now and string.format('%.0f', now) or '') ~= read then
            return 0
        end
        redis.call('XGROUP', 'SETID', key, group, delivered, 'ENTRIESREAD', ARGV[6])
        return 1
    end
end
return 0
"""
