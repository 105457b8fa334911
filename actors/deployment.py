"""A running event system: the supervision tree that a declaration stands for, and what others may ask of it.

    event-system (rest_for_one)
    ├── servers (one_for_one)       only with embedded servers
    │   ├── redis-server
    │   └── postgres-server
    ├── links (one_for_one)
    │   ├── redis
    │   └── postgres
    ├── actors (one_for_one)
    │   ├── health-monitor          opens and shuts the gates redis and postgres
    │   ├── migrations              requires postgres; opens the gate schema
    │   ├── producer
    │   ├── outbox-relay            requires redis, postgres, schema
    │   ├── channels                only with broadcast channels; requires redis; see `listening`
    │   ├── membership              requires postgres, schema
    │   ├── leases                  only with ordered groups; requires redis, postgres, schema
    │   ├── EVENT_GROUP@EVENT_STREAM (rest_for_one), one for each group; see `group_tree`
    │   │   ├── keeper              requires postgres, schema
    │   │   ├── handler-pool        requires postgres, schema
    │   │   └── listener-1, …       requires redis, postgres, schema
    │   ├── GROUP@STREAM            one for each group that is only made here; requires redis, postgres, schema
    │   ├── queue NAME (rest_for_one), one for each work queue; see `queue_tree`
    │   │   ├── keeper              requires postgres, schema
    │   │   ├── handler-pool        requires postgres, schema
    │   │   └── taker               requires redis, postgres, schema
    │   ├── replays                 requires redis, postgres, schema
    │   ├── trimmer                 requires redis
    │   ├── dead-letters            requires postgres, schema; works off the orders to replay them
    │   └── retention               requires redis, postgres, schema
    └── http                        last in, first out

Whatever stands later in it needs what stands before it, so that the reverse order of the stop takes first those who
bring work, and last those who carry it away.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import psycopg
import redis.exceptions
import trio

from ..runtime.postgres import PostgresUnavailable
from ..runtime.redis import AnyRedis
from ..runtime.supervision import (
    Child,
    ChildSpec,
    Gates,
    Intensity,
    Journal,
    LifecycleKind,
    Restart,
    Strategy,
    Supervisor,
    Tree,
)
from ..runtime.telemetry import get_logger
from .access_repository import AccessRepository
from .broadcast_side import BroadcastSide
from .checking import database_clock
from .claim_order import ClaimResult
from .conditional import ConditionNotMet
from .configuring import configured
from .consume_side import ConsumeSide
from .delivery_view import DeliveryWatch
from .event import Envelope
from .health_monitor import HealthMonitor, Watch
from .leasing import standings
from .ledger import Ledger
from .letter_orders import LetterOrders
from .letters import LetterDesk
from .membership import Membership
from .migrating import MIGRATED_WITHIN, Migrating, migrate_all
from .ownership import Ownership
from .probes import StreamView, ask_outside
from .producer import Published, PublishFailed
from .publish_side import PublishSide
from .queue_side import QueueSide
from .redis_side import RedisSide
from .relay import OutboxView
from .site import Site
from .stopping import Stopping
from .system import REDIS_GATES
from .tailing import tail
from .upkeep import Upkeep

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from .backends import Backends
    from .cluster_view import ClusterView
    from .findings import Finding
    from .handling import Unavailable
    from .losses import Loss
    from .member_table import MemberView
    from .queue_lists import QueueView
    from .settings import ActorSettings
    from .system import Probe, System

__all__ = ["Deployment", "migrate_all"]

log = get_logger(__name__)

ANSWER_WITHIN = 0.6
"""Seconds that PostgreSQL has for a probe while a statement takes suspiciously long: a healthy one took 0.24 s at the
most on a machine that was six times overloaded, and a frozen one is noticed within a second."""


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
        self.system = system = configured(system, settings)
        system.check()
        self.settings = settings
        self.backends = backends
        self.instance = instance
        self.process = uuid4() if seed is None else _repeatable_uuid(f"{instance}/{seed}")
        self._random = random.Random(seed)  # noqa: S311 - jitter, no secret
        self.gates = _gates(wall, system.gates)
        pool = backends.pool
        self._access = AccessRepository(pool, settings.zone_info) if pool else None
        self.letters = LetterDesk(pool, system) if pool else None
        self.ledger = Ledger(pool, system, self.client, self.gates["redis"]) if pool else None
        self.delivery = self._delivery_watch()
        self._streams: dict[str, StreamView] = {}
        self.upkeep = self._upkeep(wall)
        self._redis = RedisSide(system, settings, backends, self.gates, chance=self._random, wall=wall)
        self._redis_watch, self.checks = self._redis.watch, self._redis.checks
        self._postgres_watch = self._watch_on_postgres()
        self._own_watches = self._watches_on_own({**system.gates, **(probes or {})})
        self.publishing = self._publish_side()
        self.producer = self.publishing.producer
        self.broadcasting = BroadcastSide(system, settings, backends.store, self.gates, self._redis)
        self.queueing = self._queue_side()
        self._standings = standings(system, self.gates, settings.delivery)
        self.membership = self._membership()
        self._stopping = Stopping()
        self._consuming = self._consume_side(wall)
        self.pools, self.backlogs = self._consuming.pools, self._consuming.backlogs
        self.tree = Tree(self._root(front_ends), gates=self.gates, seed=seed)

    # For those who bring and show work ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the system until `Tree.stop`; see `Tree.run` for errors and cancellation."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow)
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
            RuntimeError: the link's actor is not running.
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

    @property
    def access(self) -> AccessRepository | None:
        """The access log; None without a real database."""
        return self._access

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], *, idle: float, by: str
    ) -> list[ClaimResult]:
        """Have this process take pending entries over now, and handle them; see `ClaimDesk.claim`."""
        return await self._consuming.claims.claim(keys, group, ids, idle=idle, by=by)

    def streams(self) -> list[StreamView]:
        """The declared streams as they were last seen, in order of declaration; what was never seen is left out.

        A stream with several partitions has a view for each.
        """
        return [self._streams[key] for key in self._partitions() if key in self._streams]

    async def look(self) -> list[StreamView]:
        """The declared streams as they are now, as `streams` gives them.

        Blocks for a round trip a partition. Cancellation: what was looked at until then is kept.

        Raises:
            RuntimeError: the link's actor is not running.
            redis.exceptions.RedisError, psycopg.Error: as the links say.
        """
        for key in self._partitions():
            self._streams[key] = await self.upkeep.look(key)
        return self.streams()

    def members(self) -> Sequence[MemberView]:
        """The processes, of this and other systems on the same database, as they were last seen. Never blocks."""
        return self.membership.members()

    def warnings(self) -> list[Finding]:
        """What the start-up checks found that somebody should mend."""
        return self.checks.warnings

    def cluster(self) -> ClusterView | None:
        """The Redis Cluster as it was last seen; None where there is none, or it was not seen yet."""
        return None if self._redis.cluster is None else self._redis.cluster.view

    def client(self) -> AnyRedis:
        """The link to Redis.

        Raises:
            RuntimeError: its actor is not running.
        """
        return self._redis.client()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[Any]]:
        """A connection of the pool, in autocommit mode; ``connection.transaction()`` is for more than one statement.

        In memory its statements are answered by `MemoryStore.answer`.

        Raises:
            PostgresUnavailable: the database is away, or its tables are not made yet.
        """
        schema = self.gates["schema"]
        if not schema.is_open:
            why = f"its tables are not ready: {schema.cause}"
            raise PostgresUnavailable(why, address=self.backends.postgres_address)
        async with self.backends.store.connection() as connection:
            yield connection

    # The parts, in the order in which they need each other ----------------------------------------------------------

    def _delivery_watch(self) -> DeliveryWatch | None:
        pool = self.backends.pool
        if pool is None or self.letters is None:
            return None
        return DeliveryWatch(self.system, pool, self.backends.store, self.letters, self.process)

    def _upkeep(self, wall: Callable[[], datetime] | None) -> Upkeep:
        return Upkeep(
            self.system,
            self.settings,
            self.backends,
            self.client,
            self.gates,
            instance=self.instance,
            made_room=lambda: self._redis_watch.nudge(),
            wall=wall,
        )

    def _watch_on_postgres(self) -> Watch:
        backends = self.backends
        watch = Watch(self.gates["postgres"], backends.probe_postgres, self.settings.health, backends.postgres_address)
        backends.on_postgres_trouble = watch.trouble
        backends.on_postgres_slow = lambda _: watch.doubt(ANSWER_WITHIN)
        return watch

    def _watches_on_own(self, probes: Mapping[str, Probe]) -> dict[str, Watch]:
        return {
            name: Watch(self.gates[name], partial(ask_outside, name, probe), self.settings.health, name)
            for name, probe in probes.items()
        }

    def _outside_trouble(self, error: Unavailable) -> None:
        if error.gate not in REDIS_GATES:
            self._own_watches[error.gate].trouble(error)
        elif isinstance(error.__cause__, redis.exceptions.RedisError):
            # As of a link: a handler's keys may be on another node than our streams.
            self._redis.link_trouble(error.__cause__)

    def _publish_side(self) -> PublishSide:
        return PublishSide(
            self.system,
            self.settings,
            self.backends.store,
            self.client,
            self.gates,
            self._redis.trouble,
            instance=self.instance,
            believes_late=not self._redis.may_move,
            ownership=Ownership(self._redis.cluster_client) if self._redis.cluster is not None else None,
        )

    def _queue_side(self) -> QueueSide:
        return QueueSide(
            self.system,
            self.client,
            self.gates["redis"],
            self._redis.trouble,
            self.settings.delivery,
            address=self.backends.redis_options.address,
            ownership=Ownership(self._redis.cluster_client) if self._redis.cluster is not None else None,
        )

    def _membership(self) -> Membership:
        return Membership(
            self.backends.store,
            self.settings.delivery,
            system=self.system.name,
            instance=self.instance,
            process=self.process,
            groups=self._standings,
            gate=self.gates["redis"],
        )

    def _consume_side(self, wall: Callable[[], datetime] | None) -> ConsumeSide:
        return ConsumeSide(self.system, self._site(wall), self.membership, self._standings, self.process)

    def _site(self, wall: Callable[[], datetime] | None) -> Site:
        return Site(
            client=self.client,
            store=self.backends.store,
            gates=self.gates,
            settings=self.settings.delivery,
            instance=self.instance,
            live_instances=self.membership.live_instances,
            redis_trouble=self._redis.trouble,
            reader_trouble=self._redis.reader_trouble,
            postgres_trouble=self._postgres_watch.trouble,
            outside_trouble=self._outside_trouble,
            publish=self.publishing.publish_within,
            broadcast=self.broadcasting.sending.send_noted,
            chance=self._random.random,
            wall=wall or (lambda: datetime.now(UTC)),
            read_within=self._redis.read_within,
            patience=self._redis.patience,
            look=self.upkeep.losses.look,
            stopping=self._stopping,
        )

    # The tree -------------------------------------------------------------------------------------------------------

    def _root(self, front_ends: Callable[[Deployment], Sequence[ChildSpec]]) -> Supervisor:
        children: list[ChildSpec] = []
        if self.backends.servers:
            # A server that somebody keeps killing is not a bug of ours: a generous budget.
            children.append(Supervisor("servers", self.backends.servers, intensity=Intensity(30, 60.0)).spec())
        children.append(Supervisor("links", self._links()).spec())
        children.append(Supervisor("actors", self._actors()).spec())
        children.extend(front_ends(self))
        return Supervisor(self.system.name, children, strategy=Strategy.REST_FOR_ONE)

    def _links(self) -> Iterable[ChildSpec]:
        yield ChildSpec(id="redis", body=self._redis.hold)
        if self.backends.pool is not None:
            yield ChildSpec(id="postgres", body=self._hold_postgres)

    async def _hold_postgres(self, child: Child) -> None:
        assert self.backends.pool is not None  # noqa: S101 - only then is this child declared
        async with self.backends.pool, self.backends.notes or nullcontext():
            child.note(self.backends.postgres_address)
            child.started()
            await trio.sleep_forever()

    def _actors(self) -> Iterable[ChildSpec]:
        watches = [self._redis_watch, self._postgres_watch, *self._own_watches.values()]
        monitor = HealthMonitor(watches, self._observe, self.settings.health.observe_every)
        yield ChildSpec(id="health-monitor", body=monitor, opens=tuple(watch.gate.name for watch in watches))
        yield ChildSpec(
            id="migrations",
            body=Migrating(self.system, self.backends, self.gates["schema"], self._redis.misdeclared),
            restart=Restart.TRANSIENT,
            requires=("postgres",),
            opens=("schema",),
            start_within=MIGRATED_WITHIN,
        )
        yield from self.publishing.children()
        yield from self.broadcasting.children()
        yield from self._consuming.children()
        if self.letters is not None:
            orders = LetterOrders(
                self.system,
                self.backends.store,
                self.letters,
                self.client,
                redis_gate=self.gates["redis"],
                redis_trouble=self._redis.trouble,
            )
            yield ChildSpec(id="dead-letters", body=orders, requires=("postgres", "schema"))
        yield from self.upkeep.children()

    # What is seen ---------------------------------------------------------------------------------------------------

    async def _observe(self) -> None:
        """Look at the streams, where Redis is there to be asked, into the outbox, and at the database's clock."""
        await self.publishing.observe()
        if self.backends.pool is not None and self.gates["postgres"].is_open:
            clock = partial(database_clock, self.backends.pool)
            await self.checks.look_at_database(self.backends.postgres_address, clock)
        if not self.gates["redis"].is_open:
            return
        for key in self._partitions():
            try:
                self._streams[key] = await self.upkeep.look(key)
            except (redis.exceptions.RedisError, psycopg.Error) as error:
                log.debug("stream not observed", stream=key, error=str(error))

    def _partitions(self) -> list[str]:
        return [key for stream in self.system.streams.values() for key in stream.keys]

    async def _follow(self) -> None:
        """Probe at once when one of our own servers is back; let all groups drain together when the tree stops."""
        watches = {"redis-server": self._redis_watch, "postgres-server": self._postgres_watch}
        with self.tree.subscribe() as events:
            async for event in events:
                name = event.path.rpartition("/")[2]
                if event.kind is LifecycleKind.CHILD_READY and name in watches:
                    watches[name].nudge()
                if event.kind is LifecycleKind.TREE_STOPPING:
                    self._stopping.begin()


def _gates(wall: Callable[[], datetime] | None, own: Iterable[str]) -> Gates:
    gates = Gates(Journal(wall))
    for name in ("redis", "postgres", *own):
        gates.add(name, shut="not probed yet")
    gates.add("redis-memory", settle=0.0)
    gates.add("schema", settle=0.0, shut="not migrated yet")
    return gates


def _repeatable_uuid(of: str) -> UUID:
    return UUID(int=random.Random(of).getrandbits(128), version=4)  # noqa: S311 - a name, no secret
