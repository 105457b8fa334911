"""Upkeep: the children of a deployment that keep streams and tables in order, and what others may ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import psycopg
import redis.exceptions
import trio

from ..runtime.supervision import ChildSpec
from ..runtime.telemetry import get_logger
from .deletions import Deletions
from .entry_view import EntryRange, range_of
from .losses import LossDetector
from .pending_view import Pending, left_of, pending_of
from .replay import Replays
from .retention import Retention
from .stream_facts import StreamFacts, facts_of
from .stream_view import GroupView, StreamView, observe
from .trimmer import Trimmer

if TYPE_CHECKING:
    from datetime import datetime

    from ..runtime.supervision import Gates
    from .backends import Backends
    from .loss_table import RecordedLoss
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .system import Stream, System

__all__ = ["Upkeep"]

log = get_logger(__name__)


class Upkeep:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        backends: what the deployment stands on.
        gates: the deployment's.
        redis: its link, and who is told when a full one may take entries again.
        instance: who we are, for records.
        wall: where dates come from.

    Attributes:
        losses: finds what others trimmed unread.
        deletions: deletes entries, and tells who wants them.
        reclaim_idle: seconds after which what a consumer has left lying is taken over.
        replays: where replays are ordered and worked off.
        retention: the daily run; None where it is switched off, or there is no real database.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        backends: Backends,
        gates: Gates,
        redis: RedisSide,
        *,
        instance: str,
        wall: Callable[[], datetime],
    ) -> None:
        client = redis.client
        self._system, self._client, self._store, self._gates = system, client, backends.store, gates
        self._seen: dict[str, StreamView] = {}
        self._settings = settings.retention
        self.reclaim_idle = settings.delivery.reclaim_idle
        self.losses = LossDetector(client, backends.store)
        self.deletions = Deletions(client, backends.store, self.losses)
        self.replays = Replays(system, client, backends.store)
        self.retention: Retention | None = None
        self._trimmer = Trimmer(
            system, client, gates["redis-memory"], settings.retention, made_room=redis.watch.nudge, wall=wall
        )
        if settings.retention.enabled and backends.pool is not None:
            self.retention = Retention(
                system=system,
                client=client,
                pool=backends.pool,
                settings=settings.retention,
                zone=settings.zone_info,
                instance=instance,
            )

    def children(self) -> Iterable[ChildSpec]:
        """The children, in the order of their start."""
        yield ChildSpec(id="replays", body=self.replays, requires=("redis", "postgres", "schema"))
        if self._settings.enabled and not self._settings.dry_run:
            yield ChildSpec(id="trimmer", body=self._trimmer, requires=("redis",))
        if self.retention is not None:
            yield ChildSpec(id="retention", body=self.retention, requires=("redis", "postgres", "schema"))

    async def look(self, key: str) -> StreamView:
        """A stream as it is now, with an eye to what was lost, where that can be written down.

        Raises:
            redis.exceptions.RedisError, psycopg.Error: as the links say.
        """
        if self._gates["postgres"].is_open and self._gates["schema"].is_open:
            return await self.losses.look(key)
        return await observe(self._client(), key, trio.current_time())

    def seen(self) -> list[StreamView]:
        """The declared streams as they were last seen; see `Deployment.streams`."""
        return [self._seen[key] for key in self._partitions() if key in self._seen]

    async def look_at_all(self) -> list[StreamView]:
        """The declared streams as they are now; see `Deployment.look`."""
        for key in self._partitions():
            self._seen[key] = await self.look(key)
        return self.seen()

    async def observe(self) -> None:
        """Look at the declared streams, where Redis is there to be asked. Raises nothing for Redis and PostgreSQL."""
        if not self._gates["redis"].is_open:
            return
        for key in self._partitions():
            try:
                self._seen[key] = await self.look(key)
            except (redis.exceptions.RedisError, psycopg.Error) as error:
                log.debug("stream not observed", stream=key, error=str(error))

    def _partitions(self) -> list[str]:
        return [key for stream in self._system.streams.values() for key in stream.keys]

    async def pending(
        self, keys: Sequence[str], group: str, *, limit: int = 100, consumer: str | None = None, idle: float = 0.0
    ) -> Pending:
        """What is pending for a group of a stream, in these partitions; see `pending_of`.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        return await pending_of(self._client(), keys, group, limit=limit, consumer=consumer, idle=idle)

    async def left(self, key: str, group: GroupView) -> int | None:
        """How many of the entries that a group was seen to have nobody has touched for long; see `left_of`.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        return await left_of(self._client(), key, group.name, self.reclaim_idle, group.pending)

    async def entries(
        self,
        stream: Stream,
        keys: Sequence[str],
        *,
        first: str = "-",
        last: str = "+",
        limit: int = 100,
        reverse: bool = False,
        group: str | None = None,
    ) -> EntryRange:
        """A range of a stream's entries, in these partitions; see `range_of`.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        return await range_of(
            self._client(),
            stream,
            keys,
            first=first,
            last=last,
            limit=limit,
            reverse=reverse,
            group=group,
            reclaim_idle=self.reclaim_idle,
        )

    async def facts(self, key: str) -> StreamFacts:
        """All that Redis says of a stream or partition; see `facts_of`.

        Raises:
            redis.exceptions.RedisError, psycopg.Error: as the links say.
        """
        return await facts_of(self._client(), await self.look(key))

    async def recent_losses(self, limit: int = 100) -> list[RecordedLoss]:
        """The last entries that were lost to somebody's trimming, newest first; raises `PostgresUnavailable`."""
        return await self._store.losses.recent(limit)
