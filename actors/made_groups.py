"""Groups that this process makes and does not read: those of other programs, and those that are not enabled here.

It has to make them, or what is published before their readers come could be trimmed, or be passed over by a group that
starts at ``$``. A group that is lost is made again, as far back as is needed for nothing to be passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import trio

from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .group_making import GroupMaking, text_of
from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.supervision import Child
    from .site import Site
    from .system import Group, Stream

__all__ = ["LOOK_EVERY", "MadeGroup"]

log = get_logger(__name__)

LOOK_EVERY: Final = 10.0
"""Seconds between two looks whether the group is still there."""


class MadeGroup:
    """The body of the child that makes one group in all partitions of its stream.

    Args:
        site: what it stands on; its store knows how far a group of ours had come.
        stream: the declared stream.
        group: the group, one of `Stream.made_only`.
    """

    def __init__(self, site: Site, stream: Stream, group: Group) -> None:
        self._client, self._store, self._trouble = site.client, site.store, site.redis_trouble
        self._stream, self._group = stream, group
        self._seen: dict[str, str] = {}
        self._makings = {
            key: GroupMaking(key, group.name, group.start, lambda key=key: self._position(key))  # type: ignore[misc]
            for key in stream.keys
        }

    async def __call__(self, child: Child) -> None:
        """Look after the group until cancelled; nothing is half done then. What fails is tried at the next look."""
        is_external = self._group.name in self._stream.external
        told = "another program's: made, and left alone" if is_external else "made, and not read here: not enabled"
        log.info(f"group is {told}", stream=self._stream.key, group=self._group.name)
        child.note(told)
        await self._look_at_all()
        child.started()
        while True:
            await trio.sleep(LOOK_EVERY)
            await self._look_at_all()

    async def _look_at_all(self) -> None:
        for key in self._makings:
            await self._look(key)

    async def _look(self, key: str) -> None:
        try:
            await self._makings[key].make(self._client())
            if self._group.name in self._stream.external:
                await self._see(key)
        except redis.exceptions.RedisError as error:
            log.warning("group not made", stream=key, group=self._group.name, error=str(error))
            self._trouble(error)
        except PostgresUnavailable as error:  # whose gate the pool has shut
            log.debug("group not made", stream=key, group=self._group.name, error=str(error))

    async def _position(self, key: str) -> str | None:
        """How far it had come. No table tells that of another program's, but what was seen of it last."""
        return self._seen.get(key) or await self._store.stored_position(self._group.name, key)

    async def _see(self, key: str) -> None:
        client, name = self._client(), self._group.name
        groups: Sequence[Mapping[str, Any]] = await client.xinfo_groups(key)
        for group in groups:
            if text_of(group["name"]) != name:
                continue
            position = text_of(group["last-delivered-id"])
            if group["pending"] and (oldest := (await client.xpending(key, name))["min"]) is not None:
                position = min(position, _before(text_of(oldest)), key=entry_order)
            self._seen[key] = position


def _before(entry_id: str) -> str:
    """The greatest id below this one."""
    milliseconds, number = entry_order(entry_id)
    return f"{milliseconds}-{number - 1}" if number else f"{max(0, milliseconds - 1)}-{2**64 - 1}"
