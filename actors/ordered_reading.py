"""Reading for an ordered group: the owner of a partition, and nobody else, reads it, and in the order of the stream.

The owner's consumer is named after its epoch, ``PREFIX@EPOCH``. Each read is one script, which

- refuses if there is a consumer of a greater epoch: we have been replaced, and do not know it yet;
- takes over what consumers of lesser epochs hold, and removes them: they are gone, or were frozen and have read behind
  our back, what they can do nothing with;
- reads nothing new as long as there is something before it that we have not seen: entries that were taken over, or
  that the server gave us in an answer which was lost. Then the whole history is read first.

So it needs no key of its own, and no memory: a full server takes it. It does not block; the wait for news is a plain
XREAD, which gives nothing to anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import trio
from attrs import frozen

from ..runtime.redis import RedisUnavailable
from ..runtime.redis.script import Script
from ..runtime.telemetry import get_logger
from .group_making import BREATH, text_of
from .handling import Entry, entry_order
from .lease_table import LeaseLost
from .pending import fields_of
from .read_size import ReadSize
from .reading_on import Patience, wait_room

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, ClusterConnection, DedicatedRedis
    from ..runtime.supervision import Child
    from .group_making import GroupMaking
    from .lease_table import Lease
    from .leasing import Tenure
    from .system import Group

    Connection = DedicatedRedis | ClusterConnection

__all__ = ["READ", "OrderedListener", "owner_prefix"]

log = get_logger(__name__)

READ: Final = """
-- group, prefix, epoch, count, after, seen
local function value(row, name)
    for i = 1, #row, 2 do
        if row[i] == name then return row[i + 1] end
    end
end
local key, group, prefix, epoch = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local own, after, last = prefix .. ARGV[3], ARGV[5], nil
if redis.call('EXISTS', key) == 1 then
    for _, row in ipairs(redis.call('XINFO', 'GROUPS', key)) do
        if value(row, 'name') == group then last = value(row, 'last-delivered-id') end
    end
end
if not last then
    return redis.error_reply("NOGROUP No such key '" .. key .. "' or consumer group '" .. group .. "'")
end
local earlier = {}
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', key, group)) do
    local name = value(row, 'name')
    local theirs = string.sub(name, 1, #prefix) == prefix and string.match(string.sub(name, #prefix + 1), '^%d+$')
    if theirs and tonumber(theirs) > epoch then return {'replaced', {}, {}, last, theirs} end
    if theirs and tonumber(theirs) < epoch then earlier[#earlier + 1] = name end
end
local taken, gone = 0, {}
local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
for _, name in ipairs(earlier) do
    -- What was trimmed off the head may be much, and takes none of the room of what stands behind it.
    local trimmed = redis.call('XPENDING', key, group, '-', first and '(' .. first[1] or '+', 1000, name)
    for _, row in ipairs(trimmed) do gone[#gone + 1] = row[1] end
    local from, pending = first and first[1], {}
    while from and taken < 1000 do
        pending = redis.call('XPENDING', key, group, from, '+', 1000, name)
        for _, row in ipairs(pending) do
            -- Looked for first: claiming what was deleted would take it off the list, and nobody would know.
            if #redis.call('XRANGE', key, row[1], row[1]) > 0 then
                redis.call('XCLAIM', key, group, own, 0, row[1], 'JUSTID')
                taken = taken + 1
            else
                gone[#gone + 1] = row[1]
            end
        end
        from = #pending == 1000 and '(' .. pending[1000][1]
    end
    if #redis.call('XPENDING', key, group, '-', '+', 1, name) == 0 then
        redis.call('XGROUP', 'DELCONSUMER', key, group, name)
    end
end
if taken > 0 or (after == '>' and ARGV[6] ~= last) then
    return {'behind', gone, {}, last}
end
local reply = redis.call('XREADGROUP', 'GROUP', group, own, 'COUNT', ARGV[4], 'STREAMS', key, after)
local entries = {}
if reply then entries = reply[1][2] end
if after == '>' and #entries > 0 then last = entries[#entries][1] end
return {'read', gone, entries, last}
"""


def owner_prefix(group: Group) -> str:
    """How the names of the owners' consumers begin."""
    return f"{group.consumer_prefix or group.name}@"


@frozen
class _Answer:
    """What the script said.

    Attributes:
        status: ``read``; ``replaced``: there is a later owner; ``behind``: the history comes first.
        gone: pending entries of earlier owners that were trimmed.
        entries: what was read.
        last: the last entry that the group was given.
    """

    status: str
    gone: tuple[Entry, ...]
    entries: tuple[Entry, ...]
    last: str


class OrderedListener:
    """The body of the listener of one partition.

    Args:
        client: the link, asked for at each start of the actor.
        group: what it reads for.
        stream: the partition's key.
        making: makes the group, and makes it again.
        tenure: our time as the owner; it has the backlog.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        patience: seconds for which a connection that breaks is no trouble yet.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        group: Group,
        stream: str,
        making: GroupMaking,
        tenure: Tenure,
        trouble: Callable[[Exception], None],
        *,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._group = group
        self._stream = stream
        self._making = making
        self._tenure = tenure
        self._backlog = tenure.backlog
        self._trouble = trouble
        self._patience = Patience(patience)
        self._size = ReadSize()

    async def __call__(self, child: Child) -> None:
        """Read until cancelled. What was read and is not acknowledged stays pending, for the next owner if not for us.

        Raises:
            redis.exceptions.RedisError: what the link or the server said; the gate has been told.
            LeaseLost: started without a lease.
        """
        lease = self._tenure.fence()
        if lease is None:
            raise LeaseLost(f"{self._stream} is not ours for {self._group.name}")
        child.note(f"{owner_prefix(self._group)}{lease.epoch}")
        try:
            async with self._client().dedicated(key=self._stream) as connection:
                await self._making.make(connection)
                child.started()
                await self._read_on(connection, lease, child)
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise

    async def _read_on(self, connection: Connection, lease: Lease, child: Child) -> None:
        while True:
            try:
                last = await self._read_history(connection, lease, child)
                while last is not None:
                    last = await self._read_news(connection, lease, last, child)
                self._patience.renew()
            except redis.exceptions.ResponseError as error:
                await self._making.repair(connection, error)
            except RedisUnavailable as error:
                await self._patience.bear(error)

    async def _read_history(self, connection: Connection, lease: Lease, child: Child) -> str | None:
        """What this owner and those before it were given, oldest first; the last entry that the group was given."""
        after, found = "0", 0
        while True:
            await self._wait_turn(child)
            known = self._backlog.known()
            answer = await self._read(connection, lease, after, "", child)
            if answer.status == "behind":
                after = "0"
                continue
            found += self._backlog.add(entry for entry in answer.entries if entry.id not in known)
            if not answer.entries:
                break
            after = max((entry.id for entry in answer.entries), key=entry_order)
        if found:
            log.info("took up its own history", stream=self._stream, group=self._group.name, entries=found)
        return answer.last

    async def _read_news(self, connection: Connection, lease: Lease, seen: str, child: Child) -> str | None:
        """Read on after `seen`; the last entry that was read, or None if something before it has to be read first."""
        await self._wait_turn(child)
        answer = await self._read(connection, lease, ">", seen, child)
        if answer.status == "behind":
            return None
        self._backlog.add(answer.entries)
        if not answer.entries:
            await connection.xread({self._stream: seen}, count=1, block=int(self._group.block * 1000))
        self._patience.renew()
        return answer.last

    async def _read(self, connection: Connection, lease: Lease, after: str, seen: str, child: Child) -> _Answer:
        """One call of the script; does not return if we have been replaced."""
        count = self._size.count(self._backlog.room)
        words = (self._group.name, owner_prefix(self._group), lease.epoch, count, after, seen)
        try:
            reply: Any = await Script(connection, READ)([self._stream], words)
        except BaseException:
            self._size.failed()
            raise
        child.progress()
        status, last = text_of(reply[0]), text_of(reply[3])
        if status == "replaced":
            log.warning("another process reads this partition", stream=self._stream, group=self._group.name)
            self._tenure.doubt(int(reply[4]))
            while True:
                # Until the lease is looked at, and the gate shut.
                child.progress()
                await trio.sleep(BREATH)
        consumer = f"{owner_prefix(self._group)}{lease.epoch}"
        gone = tuple(Entry(self._stream, text_of(each), None, consumer=consumer, redelivered=True) for each in reply[1])
        self._backlog.add(gone)
        entries = tuple(
            Entry(
                self._stream,
                text_of(entry_id),
                fields_of(fields) if fields else None,
                consumer=consumer,
                redelivered=after != ">",
            )
            for entry_id, fields in reply[2]
        )
        self._size.took(entries)
        return _Answer(status, gone, entries, last)

    async def _wait_turn(self, child: Child) -> None:
        """Block until there is room; for ever if the partition is being given away."""
        while self._tenure.is_leaving:
            child.progress()
            await trio.sleep(BREATH)
        await wait_room(self._backlog, child)
