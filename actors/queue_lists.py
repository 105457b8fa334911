"""The lists that a work queue is made of, in Redis.

    {NAME}:waiting           jobs that nobody has; new ones come in on the left, and are taken from the right
    {NAME}:returned          jobs whose consumer is gone; they are taken first
    {NAME}:taken:CONSUMER    what a consumer has taken and not finished
    {NAME}:consumers         when each consumer gave its last sign of life (sorted set; the server's milliseconds)

A job is at every moment in exactly one of these lists, until it is finished: whoever moves it does so in one step. All
keys share a hash tag, so that a cluster has them on one node. Redis 6.2 or Valkey.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
from attrs import frozen

from ..runtime.redis.script import Script
from .group_making import text_of

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, ClusterConnection, DedicatedRedis

    Connection = DedicatedRedis | ClusterConnection

__all__ = ["QueueLists", "QueueView", "Taken", "TakenBy", "are_moving", "digest_of"]

FORGET_AFTER: Final = 24 * 3600.0
"""Seconds after which a consumer that is silent and holds nothing is forgotten: a server that has not noticed the end
of its connection may have given it a job after its last sign of life."""


@frozen
class Taken:
    """What a consumer was given, the oldest first.

    Attributes:
        returned: what somebody had before.
        fresh: what nobody had.
    """

    returned: tuple[bytes, ...]
    fresh: tuple[bytes, ...]


@frozen
class TakenBy:
    """What a consumer has.

    Attributes:
        consumer: its name.
        jobs: how many.
        idle: seconds since its last sign of life.
    """

    consumer: str
    jobs: int
    idle: float


@frozen(kw_only=True)
class QueueView:
    """A queue at one moment.

    Attributes:
        name: of the queue.
        waiting: jobs that nobody has yet.
        returned: jobs whose consumer is gone, and that nobody has taken again yet.
        taken: what consumers have; those that have nothing, and are gone, are left out.
        oldest: when the job was made that comes next; None if none waits, or it does not say.
    """

    name: str
    waiting: int
    returned: int
    taken: tuple[TakenBy, ...]
    oldest: datetime | None


FINISH_BYTES: Final = 4 * 1024 * 1024
"""Of jobs that are finished by one command, unless it is a single one: a server takes no command of any length
(``client-query-buffer-limit``), and one that it never takes would be sent for ever."""


# A full server refuses a script whose first write may need memory; after one that needs none it takes all others.
_LIB: Final = """
local function begin(consumers)
    redis.call('ZREM', consumers, '')
end
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function move_all(source, target)
    -- The one taken last goes first, so that the oldest comes to be the next.
    local moved = 0
    while redis.call('LMOVE', source, target, 'LEFT', 'RIGHT') do moved = moved + 1 end
    return moved
end
"""

_TAKE: Final = (
    _LIB
    + """
-- waiting, returned, taken, consumers; consumer, count
begin(KEYS[4])
redis.call('ZADD', KEYS[4], now(), ARGV[1])
local left = tonumber(ARGV[2])
local function take(source)
    local found = {}
    while left > 0 do
        local element = redis.call('LMOVE', source, KEYS[3], 'RIGHT', 'LEFT')
        if not element then break end
        found[#found + 1] = element
        left = left - 1
    end
    return found
end
local returned = take(KEYS[2])
return {returned, take(KEYS[1])}
"""
)

_FINISH: Final = """
-- taken; elements …: a job that was put in twice, byte for byte, is one job
for i = 1, #ARGV do redis.call('LREM', KEYS[1], 0, ARGV[i]) end
return #ARGV
"""

_BEAT: Final = (
    _LIB
    + """
-- consumers, taken; consumer: what it still has
begin(KEYS[1])
redis.call('ZADD', KEYS[1], now(), ARGV[1])
local digests = {}
for _, element in ipairs(redis.call('LRANGE', KEYS[2], 0, -1)) do
    digests[#digests + 1] = redis.sha1hex(element)
end
return digests
"""
)

_SILENT: Final = (
    _LIB
    + """
-- consumers; idle
begin(KEYS[1])
-- The server's clock was set back, or another node's is behind: a sign of life that is still to come was the last one.
for _, consumer in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. now(), '+inf')) do
    redis.call('ZADD', KEYS[1], now(), consumer)
end
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now() - ARGV[1])
"""
)

_GIVE_BACK: Final = (
    _LIB
    + """
-- consumers, taken, returned; consumer, idle, forget after: how many
local seen_at = redis.call('ZSCORE', KEYS[1], ARGV[1])
local silent = seen_at and now() - seen_at
if silent and silent < tonumber(ARGV[2]) then return 0 end
begin(KEYS[1])
local moved = move_all(KEYS[2], KEYS[3])
if moved == 0 and silent and silent > tonumber(ARGV[3]) then redis.call('ZREM', KEYS[1], ARGV[1]) end
return moved
"""
)

_LEAVE: Final = (
    _LIB
    + """
-- consumers, taken, waiting; consumer, idle: how many it gave back. What it is still given counts as left behind.
begin(KEYS[1])
redis.call('ZADD', KEYS[1], now() - ARGV[2], ARGV[1])
return move_all(KEYS[2], KEYS[3])
"""
)

_VIEW: Final = (
    _LIB
    + """
-- waiting, returned, consumers
local function last(key)
    return redis.call('LINDEX', key, -1) or ''
end
local consumers = redis.call('ZRANGE', KEYS[3], 0, -1, 'WITHSCORES')
for i = 2, #consumers, 2 do consumers[i] = math.floor(now() - consumers[i]) end
return {redis.call('LLEN', KEYS[1]), redis.call('LLEN', KEYS[2]), last(KEYS[2]), last(KEYS[1]), consumers}
"""
)


class QueueLists:
    """See the module. All methods raise what the link or the server says, and block for a round trip or two.

    Args:
        client: the link, or a connection of one's own to the queue's node.
        name: of the queue.
    """

    def __init__(self, client: AnyRedis | Connection, name: str) -> None:
        self._client: Any = client
        self._name = name
        self.waiting = f"{{{name}}}:waiting"
        self.returned = f"{{{name}}}:returned"
        self.consumers = f"{{{name}}}:consumers"

    def taken(self, consumer: str) -> str:
        """The key of what a consumer has."""
        return f"{{{self._name}}}:taken:{consumer}"

    async def add(self, element: bytes) -> int:
        """Put a job in, behind all others; how many wait now. A full server refuses it."""
        return int(await self._client.lpush(self.waiting, element))

    async def take(self, consumer: str, count: int) -> Taken:
        """Give `consumer` up to `count` jobs; at once, also if there are none. A full server takes that, too."""
        keys = [self.waiting, self.returned, self.taken(consumer), self.consumers]
        returned, fresh = await self._run(_TAKE, keys, consumer, count)
        return Taken(tuple(returned), tuple(fresh))

    async def wait(self, consumer: str, block: float) -> bytes | None:
        """Give `consumer` the next job that nobody had; blocks up to `block` seconds for one, on this very connection.

        Cancelled, or when the connection breaks, the server may have given it one: see `held`. A full server refuses.
        """
        found: bytes | None = await self._client.blmove(self.waiting, self.taken(consumer), block, "RIGHT", "LEFT")
        return found

    async def held(self, consumer: str) -> list[bytes]:
        """What a consumer has, the oldest first."""
        found: list[bytes] = await self._client.lrange(self.taken(consumer), 0, -1)
        return found[::-1]

    async def finish(self, consumer: str, elements: Sequence[bytes]) -> None:
        """Jobs of `consumer` are over; one that it has no longer is where somebody else will find it over."""
        for part in _parts(elements):
            await self._run(_FINISH, [self.taken(consumer)], *part)

    async def beat(self, consumer: str) -> set[str]:
        """A sign of life of `consumer`; the digests of what it has (`digest_of`)."""
        return set(map(text_of, await self._run(_BEAT, [self.consumers, self.taken(consumer)], consumer)))

    async def silent(self, idle: float) -> list[str]:
        """The consumers that have given no sign of life for `idle` seconds."""
        return [text_of(each) for each in await self._run(_SILENT, [self.consumers], _milliseconds(idle))]

    async def give_back(self, consumer: str, idle: float) -> int:
        """Return what a consumer has that is silent for `idle` seconds; how much. In their order, before all others.

        If it has nothing, and was silent for a day, it is forgotten.
        """
        keys = [self.consumers, self.taken(consumer), self.returned]
        words = consumer, _milliseconds(idle), _milliseconds(max(FORGET_AFTER, idle))
        return int(await self._run(_GIVE_BACK, keys, *words))

    async def leave(self, consumer: str, idle: float) -> int:
        """A consumer stops: what it has waits again, before all others, as if it had never been taken; how much."""
        keys = [self.consumers, self.taken(consumer), self.waiting]
        return int(await self._run(_LEAVE, keys, consumer, _milliseconds(idle)))

    async def view(self, idle: float) -> QueueView:
        """How it stands; consumers that have nothing are shown while they were seen within `idle` seconds."""
        keys = [self.waiting, self.returned, self.consumers]
        waiting, returned, first, second, flat = await self._run(_VIEW, keys)
        taken = []
        for name, silent in zip(map(text_of, flat[::2]), flat[1::2], strict=True):
            jobs = int(await self._client.llen(self.taken(name)))
            if jobs or silent < _milliseconds(idle):
                taken.append(TakenBy(name, jobs, max(0.0, silent / 1000)))
        return QueueView(
            name=self._name,
            waiting=waiting,
            returned=returned,
            taken=tuple(taken),
            oldest=_made_at(first) or _made_at(second),
        )

    async def known(self) -> list[str]:
        """The consumers that are not forgotten: nobody else has anything."""
        return [text_of(each) for each in await self._client.zrange(self.consumers, 0, -1)]

    async def page(self, key: str, first: int, count: int) -> list[bytes]:
        """Up to `count` jobs of one of the lists, from the left: those that came last; `first` as LRANGE takes it."""
        found: list[bytes] = await self._client.lrange(key, first, first + count - 1)
        return found

    async def count(self) -> int:
        """How many jobs there are, wherever they are."""
        keys = (self.waiting, self.returned, *map(self.taken, await self.known()))
        return sum([int(await self._client.llen(key)) for key in keys])

    async def _run(self, script: str, keys: Sequence[str], *words: bytes | str | int) -> Any:
        return await Script(self._client, script)(keys, words)


def digest_of(element: bytes) -> str:
    """By what `QueueLists.beat` names an element."""
    return hashlib.sha1(element, usedforsecurity=False).hexdigest()


def are_moving(error: Exception) -> bool:
    """Whether a cluster has the lists partly here and partly there, as their slot moves: that passes, and no outage."""
    return isinstance(error, redis.exceptions.TryAgainError)


def _parts(elements: Sequence[bytes]) -> Iterator[list[bytes]]:
    """The elements in order, in parts that one command can hold."""
    part: list[bytes] = []
    size = 0
    for element in elements:
        if part and size + len(element) > FINISH_BYTES:
            yield part
            part, size = [], 0
        part.append(element)
        size += len(element)
    if part:
        yield part


def _made_at(element: bytes | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(json.loads(element or b"")["timestamp"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return moment if moment.tzinfo is not None else None


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
