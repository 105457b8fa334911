"""The listener: reads a stream for its group, no more than the handler pool has room for.

At every start it first reads its own history: what this consumer was given and has not acknowledged, for example
because the process was killed. So nothing that was delivered is left behind. How it goes on is told in `reading_on`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import redis.exceptions

from ..runtime.telemetry import get_logger
from .group_making import text_of
from .handling import Entry, entry_order
from .read_size import ReadSize
from .reading_on import Patience, read_on, wait_room

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis, ClusterConnection, DedicatedRedis
    from ..runtime.supervision import Child
    from .backlog import Backlog
    from .group_making import GroupMaking
    from .system import Group

    Connection = DedicatedRedis | ClusterConnection

__all__ = ["Listener"]

log = get_logger(__name__)


class Listener:
    """The body of one listener.

    Args:
        client: the link, asked for at each start of the actor.
        group: what it reads for.
        stream: the key of the partition that it reads.
        consumer: its name in the group; stable over restarts, or its history would be stranded.
        backlog: where the entries go, and whose room is its credit.
        making: makes the group, and makes it again.
        trouble: told of every error of Redis, so that the gate can be shut at once.
        patience: seconds for which a connection that breaks is no trouble yet: another node may be taking over.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        group: Group,
        stream: str,
        consumer: str,
        backlog: Backlog,
        making: GroupMaking,
        trouble: Callable[[Exception], None],
        *,
        patience: float = 0.0,
    ) -> None:
        self._client = client
        self._group = group
        self._stream = stream
        self._consumer = consumer
        self._backlog = backlog
        self._making = making
        self._trouble = trouble
        self._patience = Patience(patience)
        self._size = ReadSize()

    async def __call__(self, child: Child) -> None:
        """Read until cancelled. What was read and is not acknowledged stays pending, and is read again at the start.

        Raises:
            redis.exceptions.RedisError: what the link or the server said; the gate has been told.
        """
        child.note(self._consumer)
        try:
            async with self._client().dedicated(key=self._stream) as connection:
                await self._making.make(connection)
                child.started()
                await read_on(
                    child,
                    self._backlog,
                    self._patience,
                    read=partial(self._read_news, connection),
                    look_back=partial(self._read_history, connection, child),
                    bear=partial(self._making.repair, connection),
                )
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise

    async def _read_news(self, connection: Connection) -> None:
        self._backlog.add(await self._read(connection, ">", block=int(self._group.block * 1000)))

    async def _read_history(self, connection: Connection, child: Child) -> None:
        """What this consumer was given before and has not acknowledged, oldest first."""
        last, found = "0", 0
        while True:
            await wait_room(self._backlog, child)
            # What was here when we asked is none of it, also if it is acknowledged while the answer is on its way.
            known = self._backlog.known()
            entries = await self._read(connection, last, block=None)
            child.progress()
            if not entries:
                break
            last = max((entry.id for entry in entries), key=entry_order)
            found += self._backlog.add(entry for entry in entries if entry.id not in known)
        if found:
            log.info("took up its own history", stream=self._stream, consumer=self._consumer, entries=found)

    async def _read(self, connection: Connection, after: str, block: int | None) -> list[Entry]:
        try:
            reply = await connection.xreadgroup(
                self._group.name,
                self._consumer,
                {self._stream: after},
                count=self._size.count(self._backlog.room),
                block=block,
            )
        except BaseException:
            self._size.failed()
            raise
        entries = [
            Entry(self._stream, text_of(entry_id), fields, consumer=self._consumer, redelivered=after != ">")
            for entry_id, fields in _entries(reply)
        ]
        self._size.took(entries)
        return entries


def _entries(reply: Any) -> list[tuple[bytes, Mapping[bytes, bytes] | None]]:
    """The entries of an XREADGROUP reply for one stream; nil bodies (trimmed while pending) as None."""
    if not reply:
        return []
    _, entries = next(iter(reply.items())) if isinstance(reply, Mapping) else reply[0]
    if entries and isinstance(entries[0], list) and entries[0] and isinstance(entries[0][0], tuple):
        entries = entries[0]
    return [(entry_id, fields or None) for entry_id, fields in entries]
