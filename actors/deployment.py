"""A running event system: it runs the supervision tree (see `system_tree`), and answers what others ask of it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import trio

from ..runtime.supervision import ChildSpec, Tree
from .access_repository import AccessRepository
from .configuring import configured
from .delivery_view import DeliveryWatch
from .ledger import Ledger
from .system_tree import SystemTree
from .tailing import tail

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from ..runtime.redis import AnyRedis
    from .backends import Backends
    from .claim_order import ClaimResult
    from .cluster_view import ClusterView
    from .conditional import ConditionNotMet
    from .event import Envelope
    from .findings import Finding
    from .losses import Loss
    from .member_table import MemberView
    from .outgoing import Published, PublishFailed
    from .queue_lists import QueueView
    from .relay import OutboxView
    from .settings import ActorSettings
    from .stream_view import StreamView
    from .system import Probe, System

__all__ = ["Deployment"]


class Deployment:
    """One running event system.

    Args:
        system: what was declared.
        settings: what was set.
        backends: the servers, links and store that it stands on; see `Backends.of`.
        instance: the short stable id of this installation; it names the consumers, so it must outlive the process.
        front_ends: makes the children that bring work in (the HTTP front end): they start last and stop first.
        wall: where dates come from; a test brings its own.
        probes: instead of those that the system declares for its own gates, by gate; a test brings its own.
        seed: of all jitter; a test gives one, so that a run can be repeated.

    Attributes:
        system: as given, and as the settings have it; see `configured`.
        settings: as given.
        instance: the short stable id of this installation.
        process: of this process alone.
        membership: who else is there.
        gates: ``redis``, ``redis-memory`` (shut while Redis is full: nothing is published, all else goes on),
            ``postgres`` and ``schema``, and those of the system's own.
        watches: who probes what is behind ``redis``, ``postgres`` and those of the system's own, by gate.
        tree: the supervision tree.
        publishing: the producer, the outbox and its relay.
        broadcasting: who sends to broadcast channels, and listens to them.
        producer: the producer.
        queueing: the work queues.
        pools: the handler pools, by group and partition (``GROUP@KEY``), or ``queue NAME``.
        backlogs: their backlogs.
        checks: the start-up checks, and what they found.
        upkeep: what keeps streams and tables in order: retention, the loss detector.
        backends: as given.
        access: the access log; None without a real database.
        letters: the desk of dead letters; None without a real database.
        ledger: what came of events; None without a real database.
        delivery: how delivery stands; None without a real database.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        backends: Backends,
        *,
        instance: str,
        front_ends: Callable[[Deployment], Sequence[ChildSpec]] = lambda _: (),
        wall: Callable[[], datetime] | None = None,
        seed: int | None = None,
        probes: Mapping[str, Probe] | None = None,
    ) -> None:
        self.system = configured(system, settings)
        self.system.check()
        self.settings = settings
        self.backends = backends
        self.instance = instance
        self.process = uuid4() if seed is None else _repeatable_uuid(f"{instance}/{seed}")
        self._parts = parts = SystemTree(
            self.system,
            settings,
            backends,
            instance=instance,
            process=self.process,
            chance=random.Random(seed),  # noqa: S311 - jitter, no secret
            wall=wall,
            probes={**self.system.gates, **(probes or {})},
        )
        self.gates, self.watches, self.checks = parts.gates, parts.watches, parts.redis.checks
        self.publishing, self.producer = parts.publishing, parts.publishing.producer
        self.broadcasting, self.queueing = parts.broadcasting, parts.queueing
        self.membership, self.pools, self.backlogs = parts.membership, parts.consuming.pools, parts.consuming.backlogs
        self.upkeep, self.letters = parts.upkeep, parts.letters
        self.access: AccessRepository | None = None
        self.ledger: Ledger | None = None
        self.delivery: DeliveryWatch | None = None
        if backends.pool is not None and parts.letters is not None:
            self.access = AccessRepository(backends.pool, settings.zone_info)
            self.ledger = Ledger(backends.pool, self.system, self.client, self.gates["redis"])
            self.delivery = DeliveryWatch(self.system, backends.pool, backends.store, parts.letters, self.process)
        self.tree = Tree(parts.supervisor(front_ends(self)), gates=self.gates, seed=seed)

    # For those who bring and show work ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the system until `Tree.stop`; see `Tree.run` for errors and cancellation."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._parts.follow, self.tree)
            try:
                await self.tree.run()
            finally:
                nursery.cancel_scope.cancel(reason="the tree has ended")

    async def publish(self, stream: str, envelopes: Sequence[Envelope]) -> list[Published | PublishFailed]:
        """Publish events; one result for each, in order. See `Producer.publish`; what a codec refuses fails alone.

        Raises:
            KeyError: no stream of that key is declared.
        """
        return await self.publishing.publish(stream, envelopes)

    async def publish_many(
        self, stream: str, events: Iterable[object] | AsyncIterable[object]
    ) -> list[Published | PublishFailed]:
        """Publish any number of events, in order: objects of event classes, or envelopes; one result for each.

        A burst is taken from `events` when the one before it is accepted. When an event is refused because nothing is
        there to take it, those behind its burst are not sent, for they would overtake it. Cancelled: a part of them may
        have been published.

        Raises:
            KeyError: no stream of that key is declared.
            TypeError: an object is of no event class.
        """
        return await self.publishing.publish_many(stream, events)

    async def publish_if(
        self, stream: str, envelope: Envelope, condition: str
    ) -> Published | ConditionNotMet | PublishFailed:
        """Publish an event if ``{stream}:condition:NAME`` holds ``true`` at the moment at which it is added.

        While Redis is away, or events before it wait in the outbox, it is refused: whether a condition holds cannot be
        judged later. `self.publishing.conditions` sets and clears conditions.

        Raises:
            KeyError: no stream of that key is declared.
        """
        return await self.publishing.publish_if(stream, envelope, condition)

    async def broadcast(self, channel: str, data: Any) -> int:
        """Tell every process that listens to `channel` now; nothing is kept for those who do not.

        `Context.broadcast` sends with a handler's transaction.

        Args:
            channel: its name in Redis, declared or not.
            data: JSON.

        Returns:
            How many listeners Redis has counted: one for each process and declaration, and those of other programs. In
            a cluster, only those at the node that was asked; the others get it, too.

        Raises:
            redis.exceptions.RedisError: Redis is away, or refuses it; see `runtime.redis.errors`.
            RuntimeError: the link's actor is not running.
            TypeError, ValueError: the data are no JSON, or the name is empty.
        """
        return await self.broadcasting.sending.send(channel, data)

    async def enqueue(self, queue: str, job: object) -> UUID:
        """Put a job into a work queue; returns its event id once Redis has acknowledged it.

        A queue has no outbox: while Redis is away, or full, it refuses. Who needs the job accepted all the same
        publishes an event to a stream. Cancelled, the outcome is unknown.

        Args:
            queue: its name.
            job: an object of an event class, or an `Envelope`. One that is put in again with the same event id has no
                second effect.

        Raises:
            KeyError: no queue of that name is declared.
            InvalidEvent: the queue has no handler of it, or the data do not fit.
            TypeError: it is of no event class.
            RedisUnavailable: Redis is away; unless it is `NotSent`, the job may have been accepted all the same.
            redis.exceptions.RedisError: Redis refuses; `OutOfMemoryError`: it is full.
        """
        return await self.queueing.enqueue(queue, job)

    async def queues(self) -> list[QueueView]:
        """The work queues as they are now, in order of declaration; blocks for a round trip or two for each.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        return await self.queueing.look()

    def outbox(self) -> list[OutboxView]:
        """What waits in the outbox, by stream, as it was last seen."""
        return self.publishing.outbox()

    def losses(self) -> list[Loss]:
        """What this process has met with of what was trimmed unread; ``penstock_loss`` has all of it."""
        return self.upkeep.losses.found

    def capture(self, envelope: Envelope, stream: str = "EVENT_STREAM") -> bool:
        """Take along an event that is recorded beside somebody's request; see `Producer.capture`.

        False, too, where the system declares no such stream (then there is nothing to record into), or the codec
        refuses the event.
        """
        return self.publishing.capture(envelope, stream)

    async def tail(self, stream: str, last_id: str = "$") -> AsyncIterator[tuple[str, Envelope]]:
        """The events that come to a stream after `last_id` (``$``: from now on), for ever.

        Entries that are no events are left out.

        Raises:
            KeyError: no stream of that key is declared.
            redis.exceptions.RedisError: Redis is away.
        """
        async for entry in tail(self.client(), self.system.streams[stream], last_id):
            yield entry

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], *, idle: float, by: str
    ) -> list[ClaimResult]:
        """Have this process take pending entries over now, and handle them; see `ClaimDesk.claim`."""
        return await self._parts.consuming.claim_desk.claim(keys, group, ids, idle=idle, by=by)

    def streams(self) -> list[StreamView]:
        """The declared streams as they were last seen, in order of declaration; what was never seen is left out.

        A stream with several partitions has a view for each.
        """
        return self.upkeep.seen()

    async def look(self) -> list[StreamView]:
        """The declared streams as they are now, as `streams` gives them.

        Blocks for a round trip a partition. Cancellation: what was looked at until then is kept.

        Raises:
            RuntimeError: the link's actor is not running.
            redis.exceptions.RedisError, psycopg.Error: as the links say.
        """
        return await self.upkeep.look_at_all()

    def members(self) -> Sequence[MemberView]:
        """The processes, of this and other systems on the same database, as they were last seen. Never blocks."""
        return self.membership.members()

    def warnings(self) -> list[Finding]:
        """What the start-up checks found that somebody should mend."""
        return self.checks.warnings

    def cluster(self) -> ClusterView | None:
        """The Redis Cluster as it was last seen; None where there is none, or it was not seen yet."""
        probe = self._parts.redis.cluster
        return None if probe is None else probe.view

    def client(self) -> AnyRedis:
        """The link to Redis.

        Raises:
            RuntimeError: its actor is not running.
        """
        return self._parts.redis.client()

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        """A connection of the pool, in autocommit mode; ``connection.transaction()`` is for more than one statement.

        In memory its statements are answered by `MemoryStore.answer`.

        Raises:
            PostgresUnavailable: the database is away, or its tables are not made yet.
        """
        return self._parts.postgres.connection()


def _repeatable_uuid(of: str) -> UUID:
    return UUID(int=random.Random(of).getrandbits(128), version=4)  # noqa: S311 - a name, no secret
