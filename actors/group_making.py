"""Making a consumer group, and making it again when it was lost: some time before the position that the database knows,
never at ``$``, for what was published before would not be read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

import redis.exceptions
import trio

from ..runtime.redis import Kind, classify
from ..runtime.telemetry import get_logger
from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, ClusterConnection, DedicatedRedis

    Connection = DedicatedRedis | ClusterConnection | AnyRedis

__all__ = ["GroupMaking", "look_away", "text_of"]

log = get_logger(__name__)

REPAIR_PAUSE = 10.0
"""Seconds that must lie between two repairs of a lost group; a second loss sooner than that is a crash."""

REREAD = 600.0
"""Seconds before the stored position at which a lost group begins again. That is the position of the process that has
come furthest: what another one had in hand below it, and has died with, is in no list any more. Entries are handled
within seconds, or become rows; ten minutes are as long as a process may hold one (`reclaim_idle`, slow handlers, a
freeze) with room to spare. What is read again and was handled already is known by the inbox, and costs a look each."""

BREATH = 0.1
"""Seconds before a read is tried again that failed for a reason which should be gone by now."""


async def look_away(stream: str) -> None:
    """Look for no losses."""
    await trio.lowlevel.checkpoint()


class GroupMaking:
    """The group of one stream, as far as its existence is concerned.

    Args:
        stream: the key in Redis.
        group: the group's name.
        start: where a new group starts.
        position: the last position of the group that the database knows, or None.
        look: called with the stream before anybody reads on after a pause: what was lost can be seen only until then.
    """

    def __init__(
        self,
        stream: str,
        group: str,
        start: str,
        position: Callable[[], Awaitable[str | None]],
        look: Callable[[str], Awaitable[object]] = look_away,
    ) -> None:
        self._stream = stream
        self._group = group
        self._declared_start = start
        self._position = position
        self._look = look
        self._repaired_at = -REPAIR_PAUSE
        self._repairing = trio.Lock()

    async def make(self, connection: Connection) -> None:
        """Make the group unless it is there, and look for what it has lost.

        Raises:
            redis.exceptions.RedisError: what the link or the server said.
            PostgresUnavailable: the position cannot be read, or a loss not be written down.
        """
        await self._make(connection)
        await self._look(self._stream)

    async def _make(self, connection: Connection) -> None:
        if await self._is_there(connection):
            return  # and no attempt to make it, which a full server would refuse
        start = await self._start(connection)
        try:
            await connection.xgroup_create(self._stream, self._group, id=start, mkstream=True)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        else:
            log.info("group made", stream=self._stream, group=self._group, start=start)

    async def repair(self, connection: Connection, error: redis.exceptions.ResponseError) -> None:
        """Make a lost group again, or raise `error` if that is not what it says, or is said too often."""
        kind, now = classify(error).kind, trio.current_time()
        if kind is Kind.NORMAL:
            return  # woken by CLIENT UNBLOCK: read on
        if kind is not Kind.REPAIR:
            raise error
        async with self._repairing:  # another listener of ours may be at it
            # Asked of whoever has the slot now: one that moves is no loss, and another process may have been faster.
            if not await self._is_there(connection):
                if now - self._repaired_at < REPAIR_PAUSE:
                    raise error
                self._repaired_at = now
                log.warning("group is lost, making it again", stream=self._stream, group=self._group, error=str(error))
                await self.make(connection)
                return
        log.debug("group is there", stream=self._stream, group=self._group, error=str(error))
        await trio.sleep(BREATH)

    async def _is_there(self, connection: Connection) -> bool:
        try:
            groups = await connection.xinfo_groups(self._stream)
        except redis.exceptions.ResponseError as error:
            if "no such key" in str(error).lower():
                return False
            raise
        return any(text_of(group["name"]) == self._group for group in groups)

    async def _start(self, connection: Connection) -> str:
        known = await self._position()
        if known is None:
            return self._declared_start
        last = await _last_id(connection, self._stream)
        if last is None or entry_order(last) < entry_order(known):
            # The data are younger than our memory (flushed, or a lost volume): the inbox knows what comes again.
            return "0"
        return _again_from(known, self._declared_start)


def _again_from(known: str, declared_start: str) -> str:
    """Where a lost group begins that is known to have come to `known`, or further."""
    if declared_start == "$":
        return known  # nobody knows where that was; what is older must not be read
    milliseconds, _ = entry_order(known)
    earlier = f"{max(0, milliseconds - int(REREAD * 1000))}-0"
    return min(known, max(earlier, declared_start, key=entry_order), key=entry_order)


async def _last_id(connection: Connection, stream: str) -> str | None:
    """The last id that the stream has given out, or None if there is no such stream."""
    try:
        info: Mapping[str, Any] = await connection.xinfo_stream(stream)
    except redis.exceptions.ResponseError as error:
        if "no such key" in str(error).lower():
            return None
        raise
    return text_of(info["last-generated-id"])


def text_of(value: bytes | str) -> str:
    """A word of a reply as text."""
    return value.decode() if isinstance(value, bytes) else value
