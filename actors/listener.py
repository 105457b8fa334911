"""The listener: reads a stream for its group, no more than the handler pool has room for.

At every start it first reads its own history: what this consumer was given and has not acknowledged, for example
because the process was killed. So nothing that was delivered is left behind. Now and then it looks again: a server may
have given entries to a connection of ours that was gone already, and that it did not know of.

Where another node may take over, a connection that breaks is made again at once; only if that does not help, it is
trouble.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import redis.exceptions
import trio

from ..runtime.redis import Kind, RedisStalled, RedisUnavailable, classify
from ..runtime.telemetry import get_logger
from .handling import Entry, entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, ClusterConnection, DedicatedRedis
    from ..runtime.supervision import Child
    from .backlog import Backlog
    from .system import Group

    Connection = DedicatedRedis | ClusterConnection

__all__ = ["Listener"]

log = get_logger(__name__)

COUNT = 100
"""Entries a read at the most: the knee of the measured curve."""

LOOK_BACK = 30.0
"""Seconds between two looks at its own history: a stranded entry is late by so much, and a look costs one read."""

LOOK_AGAIN = 3.0
"""The same after a start or a connection that broke: it takes a moment until a server has noticed, and that is when
entries strand."""

REPAIR_PAUSE = 10.0
"""Seconds that must lie between two repairs of a lost group; a second loss sooner than that is a crash."""

BREATH = 0.1
"""Seconds before a read is tried again that failed for a reason which should be gone by now."""


class Listener:
    """The body of one listener.

    Args:
        client: the link, asked for at each start of the actor.
        group: what it reads for.
        consumer: its name in the group; stable over restarts, or its history would be stranded.
        backlog: where the entries go, and whose room is its credit.
        position: the last position of the group that the database knows, or None.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        patience: seconds for which a connection that breaks is no trouble yet: another node may be taking over.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        group: Group,
        consumer: str,
        backlog: Backlog,
        position: Callable[[], Awaitable[str | None]],
        trouble: Callable[[Exception], None],
        *,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._group = group
        self._consumer = consumer
        self._backlog = backlog
        self._position = position
        self._trouble = trouble
        self._patience = patience
        self._bearable_until: float | None = None
        self._repaired_at = -REPAIR_PAUSE

    async def __call__(self, child: Child) -> None:
        """Read until cancelled. What was read and is not acknowledged stays pending, and is read again at the start.

        Raises:
            redis.exceptions.RedisError: what the link or the server said; the gate has been told.
        """
        child.note(self._consumer)
        try:
            async with self._client().dedicated(key=self._group.stream) as connection:
                await self._make_group(connection)
                child.started()
                await self._read_on(connection, child)
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise

    async def _read_on(self, connection: Connection, child: Child) -> None:
        look_back_at, look_again = trio.current_time(), LOOK_AGAIN
        while True:
            await self._wait_room(child)
            try:
                if trio.current_time() >= look_back_at:
                    await self._read_history(connection, child)
                    look_back_at, look_again = trio.current_time() + look_again, LOOK_BACK
                else:
                    await self._read_news(connection, child)
            except redis.exceptions.ResponseError as error:
                await self._repair(connection, error)
            except RedisUnavailable as error:
                await self._bear(error)
                # What was given to the connection that broke is in the history, or will be soon.
                look_back_at, look_again = trio.current_time(), LOOK_AGAIN
            else:
                self._bearable_until = None

    async def _bear(self, error: RedisUnavailable) -> None:
        """Wait a little, or raise `error` if reads have been failing for longer than our patience."""
        now = trio.current_time()
        if self._bearable_until is None:
            self._bearable_until = now + self._patience
        # A server that has gone silent has had its time.
        if now >= self._bearable_until or isinstance(error, RedisStalled):
            self._bearable_until = None
            raise error
        log.debug("reading again", stream=self._group.stream, consumer=self._consumer, error=str(error))
        await trio.sleep(BREATH)

    async def _wait_room(self, child: Child) -> None:
        """Block until the pool can take an entry; waiting for it is no stall of the listener."""
        while not self._backlog.room:
            child.progress()
            with trio.move_on_after(1.0):
                await self._backlog.wait_room()
        child.progress()

    async def _read_news(self, connection: Connection, child: Child) -> None:
        entries = await self._read(connection, ">", block=int(self._group.block * 1000))
        child.progress()
        self._backlog.add(entries)

    async def _read_history(self, connection: Connection, child: Child) -> None:
        """What this consumer was given before and has not acknowledged, oldest first."""
        last, found = "0", 0
        while True:
            await self._wait_room(child)
            # What was here when we asked is none of it, also if it is acknowledged while the answer is on its way.
            known = self._backlog.known()
            entries = await self._read(connection, last, block=None)
            child.progress()
            if not entries:
                break
            last = max((entry.id for entry in entries), key=entry_order)
            found += self._backlog.add(entry for entry in entries if entry.id not in known)
        if found:
            log.info("took up its own history", stream=self._group.stream, consumer=self._consumer, entries=found)

    async def _read(self, connection: Connection, after: str, block: int | None) -> list[Entry]:
        reply = await connection.xreadgroup(
            self._group.name,
            self._consumer,
            {self._group.stream: after},
            count=max(1, min(COUNT, self._backlog.room)),
            block=block,
        )
        return [Entry(self._group.stream, _text(entry_id), fields) for entry_id, fields in _entries(reply)]

    # The group ------------------------------------------------------------------------------------------------------

    async def _repair(self, connection: Connection, error: redis.exceptions.ResponseError) -> None:
        """Make a lost group again, or raise `error` if that is not what it says, or is said too often."""
        kind, now = classify(error).kind, trio.current_time()
        if kind is Kind.NORMAL:
            return  # woken by CLIENT UNBLOCK: read on
        if kind is not Kind.REPAIR:
            raise error
        # Asked of whoever has the slot now: one that moves is no loss, and another listener may have been faster.
        if await self._has_group(connection):
            log.debug("group is there", stream=self._group.stream, group=self._group.name, error=str(error))
            await trio.sleep(BREATH)
            return
        if now - self._repaired_at < REPAIR_PAUSE:
            raise error
        self._repaired_at = now
        log.warning(
            "group is lost, making it again", stream=self._group.stream, group=self._group.name, error=str(error)
        )
        await self._make_group(connection)

    async def _make_group(self, connection: Connection) -> None:
        """Make the group unless it is there: at the position that the database knows, else where it is declared.

        Never at ``$``: what was published before would not be read.
        """
        if await self._has_group(connection):
            return  # and no attempt to make it, which a full server would refuse
        start = await self._start(connection)
        try:
            await connection.xgroup_create(self._group.stream, self._group.name, id=start, mkstream=True)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        else:
            log.info("group made", stream=self._group.stream, group=self._group.name, start=start)

    async def _has_group(self, connection: Connection) -> bool:
        try:
            groups = await connection.xinfo_groups(self._group.stream)
        except redis.exceptions.ResponseError as error:
            if "no such key" in str(error).lower():
                return False
            raise
        return any(_text(group["name"]) == self._group.name for group in groups)

    async def _start(self, connection: Connection) -> str:
        known = await self._position()
        if known is None:
            return self._group.start
        last = await _last_id(connection, self._group.stream)
        if last is None or entry_order(last) < entry_order(known):
            # The data are younger than our memory (flushed, or a lost volume): the inbox knows what comes again.
            return "0"
        return known


async def _last_id(connection: Connection, stream: str) -> str | None:
    """The last id that the stream has given out, or None if there is no such stream."""
    try:
        info: Mapping[str, Any] = await connection.xinfo_stream(stream)
    except redis.exceptions.ResponseError as error:
        if "no such key" in str(error).lower():
            return None
        raise
    return _text(info["last-generated-id"])


def _entries(reply: Any) -> list[tuple[bytes, Mapping[bytes, bytes] | None]]:
    """The entries of an XREADGROUP reply for one stream; nil bodies (trimmed while pending) as None."""
    if not reply:
        return []
    _, entries = next(iter(reply.items())) if isinstance(reply, Mapping) else reply[0]
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], tuple):
        entries = entries[0]
    return [(entry_id, fields or None) for entry_id, fields in entries]


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
