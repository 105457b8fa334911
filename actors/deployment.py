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
    │   ├── membership              requires postgres, schema
    │   ├── leases                  only with ordered groups; requires redis, postgres, schema
    │   ├── EVENT_GROUP@EVENT_STREAM (rest_for_one), one for each group; see `group_tree`
    │   │   ├── keeper              requires postgres, schema
    │   │   ├── handler-pool        requires postgres, schema
    │   │   └── listener-1, …       requires redis, postgres, schema
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
import re
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import psycopg
import redis.exceptions
import trio

from ..runtime.redis import (
    AnyRedis,
    ClusterOptions,
    Kind,
    RedisCluster,
    RedisOptions,
    RedisUnavailable,
    classify,
    open_client,
)
from ..runtime.redis.replies import reply_text
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
from . import migrations
from .access_repository import AccessRepository
from .checking import Checks
from .cluster_probe import ClusterProbe, probe_of
from .conditional import ConditionNotMet
from .declaring import declare_groups
from .delivery_view import DeliveryWatch
from .event import Envelope
from .group_tree import GroupTree, Site
from .health_monitor import HealthMonitor, Watch
from .leasing import Leasing
from .ledger import Ledger
from .letter_orders import LetterOrders
from .letters import LetterDesk
from .membership import LEAVE_WITHIN, Membership
from .ownership import Ownership
from .probes import StreamView, Unhealthy, observe
from .producer import Published, PublishFailed
from .publish_side import PublishSide
from .relay import OutboxView
from .stream_table import misdeclared
from .tailing import tail
from .upkeep import Upkeep

if TYPE_CHECKING:
    from .backends import Backends
    from .backlog import Backlog
    from .checks import Finding
    from .cluster_view import ClusterView
    from .handler_pool import HandlerPool
    from .losses import Loss
    from .member_table import MemberView
    from .settings import ActorSettings
    from .system import System

__all__ = ["Deployment", "migrate_all"]

log = get_logger(__name__)

REST_AT_MOST = 1.0
"""Seconds between two probes of a Redis that may come back on another node: a failover takes one or two, and nobody
tells us of its end."""

PATIENCE = 1.0
"""Seconds for which a listener makes a connection to a cluster again before it calls that trouble."""

ANSWER_WITHIN = 0.6
"""Seconds that PostgreSQL has for a probe while a statement takes suspiciously long: a healthy one took 0.24 s at the
most on a machine that was six times overloaded, and a frozen one is noticed within a second."""


LOOK_AGAIN = 5.0
"""Seconds between two looks whether somebody has mended a declaration that does not fit the streams."""


class Deployment:
    """One running event system.

    Args:
        system: what was declared.
        settings: what was set.
        backends: the servers, links and store that it stands on; see `Backends.of`.
        instance: the short stable id of this installation; it names the consumers, so it must outlive the process.
        front_ends: makes the children that bring work in (the HTTP front end): they start last and stop first.
        wall: where dates come from; a test brings its own.
        seed: of all jitter; a test gives one, so that a run can be repeated.

    Attributes:
        system: as given.
        settings: as given.
        instance: the short stable id of this installation.
        process: of this process alone.
        membership: who else is there.
        gates: ``redis``, ``redis-memory`` (shut while Redis is full: nothing is published, all else goes on),
            ``postgres`` and ``schema``.
        tree: the supervision tree.
        publishing: the producer, the outbox and its relay.
        producer: the producer.
        pools: the handler pools, by group and partition (``GROUP@KEY``).
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
    ) -> None:
        self.system = system
        self.settings = settings
        self.backends = backends
        self.instance = instance
        self.process = uuid4() if seed is None else _repeatable_uuid(f"{instance}/{seed}")
        self._random = random.Random(seed)  # noqa: S311 - jitter, no secret
        self._wall = wall
        self.gates = Gates(Journal(wall))
        for name in ("redis", "postgres"):
            self.gates.add(name, shut="not probed yet")
        self.gates.add("redis-memory", settle=0.0)
        self.gates.add("schema", settle=0.0, shut="not migrated yet")
        self._access = AccessRepository(backends.pool, settings.zone_info) if backends.pool else None
        pool = backends.pool
        self.letters = LetterDesk(pool, system) if pool else None
        self.ledger = Ledger(pool, system, self.client, self.gates["redis"]) if pool else None
        self.delivery = (
            DeliveryWatch(system, pool, backends.store, self.letters, self.process) if pool and self.letters else None
        )
        self.pools: dict[str, HandlerPool] = {}
        self.backlogs: dict[str, Backlog] = {}
        self._client: AnyRedis | None = None
        self._misdeclared = ""
        self._streams: dict[str, StreamView] = {}
        self.upkeep = Upkeep(
            system,
            settings,
            backends,
            self.client,
            self.gates,
            instance=instance,
            made_room=lambda: self._redis_watch.nudge(),
            wall=wall,
        )
        self._cluster_probe: ClusterProbe | None = None
        self._redis_watch = self._watch_redis()
        self._postgres_watch = Watch(
            self.gates["postgres"], backends.probe_postgres, settings.health, backends.postgres_address
        )
        backends.on_postgres_trouble = self._postgres_watch.trouble
        backends.on_postgres_slow = lambda _: self._postgres_watch.doubt(ANSWER_WITHIN)
        self.publishing = PublishSide(
            system,
            settings,
            backends.store,
            self.client,
            self.gates,
            self._redis_trouble,
            instance=instance,
            believes_late=not self._may_move,
            ownership=Ownership(self._cluster_client) if self._cluster_probe is not None else None,
        )
        self.producer = self.publishing.producer
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
    def access(self) -> AccessRepository:
        """The access log.

        Raises:
            RuntimeError: the system runs without a real database.
        """
        if self._access is None:
            raise RuntimeError("there is no database behind this system, and so no access log")
        return self._access

    def streams(self) -> list[StreamView]:
        """The declared streams as they were last seen, in order of declaration; what was never seen is left out.

        A stream with several partitions has a view for each.
        """
        return [self._streams[key] for key in self._partitions() if key in self._streams]

    def members(self) -> Sequence[MemberView]:
        """The processes, of this and other systems on the same database, as they were last seen. Never blocks."""
        return self.membership.members()

    def warnings(self) -> list[Finding]:
        """What the start-up checks found that somebody should mend."""
        return self.checks.warnings

    def cluster(self) -> ClusterView | None:
        """The Redis Cluster as it was last seen; None where there is none, or it was not seen yet."""
        return None if self._cluster_probe is None else self._cluster_probe.view

    def client(self) -> AnyRedis:
        """The link to Redis.

        Raises:
            RuntimeError: its actor is not running.
        """
        if self._client is None:
            raise RuntimeError("the link to Redis is not up; the actor links/redis holds it")
        return self._client

    def _cluster_client(self) -> RedisCluster:
        client = self.client()
        assert isinstance(client, RedisCluster)  # noqa: S101 - asked only where the options are a cluster's
        return client

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
        yield ChildSpec(id="redis", body=self._hold_redis)
        if self.backends.pool is not None:
            yield ChildSpec(id="postgres", body=self._hold_postgres)

    async def _hold_redis(self, child: Child) -> None:
        options, connect = self.backends.redis_options, self.backends.redis_connect
        async with open_client(options, on_trouble=self._link_trouble, connect=connect, rng=self._random) as client:
            self._client = client
            child.note(options.address)
            child.started()
            try:
                await trio.sleep_forever()
            finally:
                self._client = None

    async def _hold_postgres(self, child: Child) -> None:
        assert self.backends.pool is not None  # noqa: S101 - only then is this child declared
        async with self.backends.pool:
            child.note(self.backends.postgres_address)
            child.started()
            await trio.sleep_forever()

    def _actors(self) -> Iterable[ChildSpec]:
        monitor = HealthMonitor(
            [self._redis_watch, self._postgres_watch], self._observe, self.settings.health.observe_every
        )
        yield ChildSpec(id="health-monitor", body=monitor, opens=("redis", "postgres"))
        yield ChildSpec(
            id="migrations",
            body=self._migrate,
            restart=Restart.TRANSIENT,
            requires=("postgres",),
            opens=("schema",),
        )
        yield from self.publishing.children()
        yield from self._groups()
        if self.letters is not None:
            orders = LetterOrders(
                self.system,
                self.backends.store,
                self.letters,
                self.client,
                redis_gate=self.gates["redis"],
                redis_trouble=self._redis_trouble,
            )
            yield ChildSpec(id="dead-letters", body=orders, requires=("postgres", "schema"))
        yield from self.upkeep.children()

    def _group_trees(self) -> list[GroupTree]:
        site = Site(
            client=self.client,
            store=self.backends.store,
            gates=self.gates,
            settings=self.settings.delivery,
            instance=self.instance,
            live_instances=lambda: self.membership.live_instances(),
            redis_trouble=self._redis_trouble,
            reader_trouble=self._reader_trouble,
            postgres_trouble=self._postgres_watch.trouble,
            publish=self.publishing.publish_within,
            chance=self._random.random,
            wall=self._wall,
            read_within=self._read_within,
            patience=PATIENCE if self._cluster_probe else 0.0,
            look=self.upkeep.losses.look,
        )
        return [
            GroupTree(site, stream, group)
            for stream in self.system.streams.values()
            for group in stream.groups.values()
        ]

    def _groups(self) -> Iterable[ChildSpec]:
        """Who is there, who has which partition, and the groups."""
        trees = self._group_trees()
        for partition in [each for tree in trees for each in tree.partitions]:
            self.pools[partition.name], self.backlogs[partition.name] = partition.pool, partition.backlog
        tenures = {tree.name: tree.tenures for tree in trees if tree.tenures}
        store, settings = self.backends.store, self.settings.delivery
        self.membership = Membership(
            store,
            settings,
            system=self.system.name,
            instance=self.instance,
            process=self.process,
            groups=list(tenures),
            gate=self.gates["redis"],
        )
        yield ChildSpec(
            id="membership", body=self.membership, requires=("postgres", "schema"), drain_within=LEAVE_WITHIN + 1.0
        )
        if tenures:
            yield ChildSpec(
                id="leases",
                body=Leasing(store, self.process, tenures, settings),
                requires=("redis", "postgres", "schema"),
                opens=tuple(tenure.gate.name for each in tenures.values() for tenure in each),
                drain_within=LEAVE_WITHIN + 1.0,
            )
        for tree in trees:
            yield tree.supervisor().spec()

    async def _migrate(self, child: Child) -> None:
        applied = await migrate_all(self.system, self.backends)
        if self.backends.pool is not None:
            await declare_groups(self.backends.pool, self.system)
        if applied:
            log.info("migrations applied", count=len(applied), last=applied[-1])
        child.note(f"{len(applied)} applied" if applied else "up to date")
        await self._check_partitions()
        child.started()
        self.gates["schema"].open()
        while self._misdeclared:
            await trio.sleep(LOOK_AGAIN)
            await self._check_partitions()

    async def _check_partitions(self) -> None:
        """Hold what needs Redis while a stream is declared with other partitions than it was made with."""
        before, self._misdeclared = self._misdeclared, await misdeclared(self.backends.store, self.system)
        if self._misdeclared and self._misdeclared != before:
            log.error("a stream is declared otherwise than it was made", mend=self._misdeclared)
            self._redis_watch.trouble(Unhealthy(self._misdeclared))

    async def _probe_redis(self) -> None:
        if self._misdeclared:
            raise Unhealthy(self._misdeclared)
        await self.checks()

    # Redis ----------------------------------------------------------------------------------------------------------

    @property
    def _may_move(self) -> bool:
        """Whether another node may become what the present master is."""
        return not isinstance(self.backends.redis_options, RedisOptions)

    def _read_within(self, block: float) -> float:
        """Seconds within which a blocking read has an end, whatever happens."""
        options = self.backends.redis_options
        server = options if isinstance(options, RedisOptions) else options.node
        limit = block + server.block_margin
        if isinstance(options, ClusterOptions):
            # When its slot moves it is made again on another node, with its whole BLOCK, which may be there or not.
            limit += block + options.retry_for + server.connect_timeout
        return limit

    def _watch_redis(self) -> Watch:
        options, health = self.backends.redis_options, self.settings.health
        probe = probe_of(
            options,
            tuple(self._partitions()),
            connect=self.backends.redis_connect,
            memory=self.gates["redis-memory"],
            within=health.timeout,
        )
        if isinstance(probe, ClusterProbe):
            self._cluster_probe = probe
            probe.on_change = _tell_nodes
        rest = REST_AT_MOST if self._may_move else None
        self.checks = Checks(
            self.system, probe, self.gates["redis"], allow=self.settings.checks.allow, wall=self._wall
        )
        return Watch(self.gates["redis"], self._probe_redis, health, options.address, rest_at_most=rest)

    # News -----------------------------------------------------------------------------------------------------------

    def _link_trouble(self, error: Exception) -> None:
        """What the link itself says, before any caller has an error.

        In a cluster a connection that breaks proves nothing: a master that hands over closes some. That it cannot be
        made again, or that a node is silent, does.
        """
        probe = self._cluster_probe
        if probe is not None and (_has_broken(error) or not probe.concerns(error)):
            self._redis_watch.doubt()
        else:
            self._redis_trouble(error)

    def _redis_trouble(self, error: Exception) -> None:
        """Shut the gate for what an error of Redis says about Redis; never for what it says about a command."""
        row = classify(error)
        if row.shuts_gate or row.kind in _OF_THE_SERVER:
            self._redis_watch.trouble(error)
        elif row.kind is Kind.DEGRADE:
            self.gates["redis-memory"].shut(reply_text(error))

    def _reader_trouble(self, error: Exception) -> None:
        """The same for a listener: a full Redis lets it read, but not make a group, and without one it must wait."""
        if classify(error).kind is Kind.DEGRADE:
            self._redis_watch.trouble(error)
        else:
            self._redis_trouble(error)

    async def _observe(self) -> None:
        """Look at the streams, where Redis is there to be asked, and into the outbox."""
        await self.publishing.observe()
        if not self.gates["redis"].is_open:
            return
        for key in self._partitions():
            try:
                self._streams[key] = await self._look(key)
            except (redis.exceptions.RedisError, psycopg.Error) as error:
                log.debug("stream not observed", stream=key, error=str(error))

    async def _look(self, key: str) -> StreamView:
        """With an eye to what was lost, where that can be written down."""
        if self.gates["postgres"].is_open and self.gates["schema"].is_open:
            return await self.upkeep.losses.look(key)
        return await observe(self.client(), key, trio.current_time())

    def _partitions(self) -> list[str]:
        return [key for stream in self.system.streams.values() for key in stream.keys]

    async def _follow(self) -> None:
        """Probe at once when one of our own servers is back."""
        watches = {"redis-server": self._redis_watch, "postgres-server": self._postgres_watch}
        with self.tree.subscribe() as events:
            async for event in events:
                name = event.path.rpartition("/")[2]
                if event.kind is LifecycleKind.CHILD_READY and name in watches:
                    watches[name].nudge()


def _repeatable_uuid(of: str) -> UUID:
    return UUID(int=random.Random(of).getrandbits(128), version=4)  # noqa: S311 - a name, no secret


async def migrate_all(system: System, backends: Backends) -> list[str]:
    """Bring the runtime's tables and the system's own up to date; the names of what was applied, in order.

    Raises:
        MigrationFailed: the database refused one; the text names it, and what the server said.
        PostgresUnavailable, PostgresRejected: as the link says.
    """
    applied = await backends.migrate(resources.files(migrations), "penstock")
    if system.migrations is not None:
        # An account of its own: the numbers of two sets of migrations mean nothing to each other.
        prefix = re.sub(r"\W", "_", system.name.lower(), flags=re.ASCII)
        applied += await backends.migrate(system.migrations, f"penstock_{prefix}")
    return applied


_OF_THE_SERVER = (Kind.WAIT, Kind.REROUTE, Kind.REDIRECT, Kind.CONFIG)
"""Kinds of replies that no other command would fare better with; on the one server that there is."""


def _tell_nodes(gone: list[str], back: list[str]) -> None:
    if gone:
        log.warning("nodes of the cluster have failed; our streams work without them", nodes=gone)
    if back:
        log.info("nodes of the cluster are no longer called failed", nodes=back)


def _has_broken(error: Exception) -> bool:
    """Whether it tells of a connection that was there, and is no more."""
    ends = (EOFError, trio.BrokenResourceError, trio.ClosedResourceError, ConnectionResetError, BrokenPipeError)
    return isinstance(error, RedisUnavailable) and isinstance(error.__cause__, ends)
