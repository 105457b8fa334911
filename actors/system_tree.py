"""The supervision tree that a declaration stands for, and the parts of which it is made.

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

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import redis.exceptions

from ..runtime.supervision import (
    ChildSpec,
    Gates,
    Intensity,
    Journal,
    LifecycleKind,
    Restart,
    Strategy,
    Supervisor,
)
from .broadcast_side import BroadcastSide
from .consume_side import ConsumeSide
from .health_monitor import HealthMonitor, Watch
from .leasing import standings
from .letter_orders import LetterOrders
from .letters import LetterDesk
from .membership import Membership
from .migrating import MIGRATED_WITHIN, Migrating
from .postgres_side import PostgresSide
from .probes import ask_outside
from .publish_side import PublishSide
from .queue_side import QueueSide
from .redis_side import RedisSide
from .site import Site
from .stopping import Stopping
from .system import REDIS_GATES
from .upkeep import Upkeep

if TYPE_CHECKING:
    import random
    from uuid import UUID

    from ..runtime.supervision import Tree
    from .backends import Backends
    from .handling import Unavailable
    from .leasing import Standing
    from .settings import ActorSettings
    from .system import Probe, System

__all__ = ["SystemTree"]


class SystemTree:
    """See the module.

    Args:
        system: what was declared, as the settings have it.
        settings: what was set.
        backends: what it stands on.
        instance: the short stable id of the installation.
        process: of this process alone.
        chance: of all jitter.
        wall: where dates come from; None for the real clock.
        probes: of the system's own gates, by gate.

    Attributes:
        gates: those of the tree.
        redis: the link to Redis.
        postgres: the link to PostgreSQL.
        watches: who probes what is behind ``redis``, ``postgres`` and the system's own gates, by gate.
        publishing: the producer, the outbox and its relay.
        broadcasting: who sends to broadcast channels, and listens to them.
        queueing: the work queues.
        membership: who else is there.
        consuming: the groups and the workers of queues.
        upkeep: what keeps streams and tables in order.
        letters: the desk of dead letters; None without a real database.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        backends: Backends,
        *,
        instance: str,
        process: UUID,
        chance: random.Random,
        wall: Callable[[], datetime] | None,
        probes: Mapping[str, Probe],
    ) -> None:
        self._system, self._settings, self._backends, self._instance = system, settings, backends, instance
        wall = wall or (lambda: datetime.now(UTC))
        self._stopping = Stopping()
        self.gates = _gates(wall, system.gates)
        self.redis = RedisSide(system, settings, backends, self.gates, chance=chance, wall=wall)
        self.postgres = PostgresSide(settings, backends, self.gates)
        self.watches = {"redis": self.redis.watch, "postgres": self.postgres.watch, **self._own_watches(probes)}
        self.upkeep = Upkeep(system, settings, backends, self.gates, self.redis, instance=instance, wall=wall)
        self.letters = LetterDesk(backends.pool, system) if backends.pool else None
        self.publishing = PublishSide(system, settings, backends.store, self.gates, self.redis, instance=instance)
        self.broadcasting = BroadcastSide(system, settings, backends.store, self.gates, self.redis)
        self.queueing = QueueSide(system, settings, self.gates, self.redis)
        fit = standings(system, self.gates, settings.delivery)
        self.membership = self._membership(process, fit)
        self.consuming = ConsumeSide(system, self._site(chance, wall), self.membership, fit, process)

    def supervisor(self, front_ends: Sequence[ChildSpec]) -> Supervisor:
        """The root: the tree's own children, and behind them those that bring work in."""
        children: list[ChildSpec] = []
        if self._backends.servers:
            # A server that somebody keeps killing is not a bug of ours: a generous budget.
            children.append(Supervisor("servers", self._backends.servers, intensity=Intensity(30, 60.0)).spec())
        children.append(Supervisor("links", self._links()).spec())
        children.append(Supervisor("actors", self._actors()).spec())
        children.extend(front_ends)
        return Supervisor(self._system.name, children, strategy=Strategy.REST_FOR_ONE)

    async def follow(self, tree: Tree) -> None:
        """Probe at once when one of our own servers is back; let all groups drain together when the tree stops.

        Runs beside the tree, until it is cancelled.
        """
        watches = {"redis-server": self.redis.watch, "postgres-server": self.postgres.watch}
        with tree.subscribe() as events:
            async for event in events:
                name = event.path.rpartition("/")[2]
                if event.kind is LifecycleKind.CHILD_READY and name in watches:
                    watches[name].nudge()
                if event.kind is LifecycleKind.TREE_STOPPING:
                    self._stopping.begin()

    # The children, in the order of their start ------------------------------------------------------------------------

    def _links(self) -> Iterable[ChildSpec]:
        yield ChildSpec(id="redis", body=self.redis.hold)
        if self.postgres.has_link:
            yield ChildSpec(id="postgres", body=self.postgres.hold)

    def _actors(self) -> Iterable[ChildSpec]:
        monitor = HealthMonitor([*self.watches.values()], self._observe, self._settings.health.observe_every)
        yield ChildSpec(id="health-monitor", body=monitor, opens=tuple(self.watches))
        yield ChildSpec(
            id="migrations",
            body=Migrating(self._system, self._backends, self.gates["schema"], self.redis.misdeclared),
            restart=Restart.TRANSIENT,
            requires=("postgres",),
            opens=("schema",),
            start_within=MIGRATED_WITHIN,
        )
        yield from self.publishing.children()
        yield from self.broadcasting.children()
        yield from self.consuming.children()
        if self.letters is not None:
            yield ChildSpec(id="dead-letters", body=self._letter_orders(self.letters), requires=("postgres", "schema"))
        yield from self.upkeep.children()

    async def _observe(self) -> None:
        """Look into the outbox, at the database's clock, and at the streams, where they are there to be asked."""
        await self.publishing.observe()
        await self.postgres.observe(self.redis.checks)
        await self.upkeep.observe()

    # The parts --------------------------------------------------------------------------------------------------------

    def _own_watches(self, probes: Mapping[str, Probe]) -> dict[str, Watch]:
        return {
            name: Watch(self.gates[name], partial(ask_outside, name, probe), self._settings.health, name)
            for name, probe in probes.items()
        }

    def _membership(self, process: UUID, fit: Mapping[str, Standing]) -> Membership:
        return Membership(
            self._backends.store,
            self._settings.delivery,
            system=self._system.name,
            instance=self._instance,
            process=process,
            groups=fit,
            gate=self.gates["redis"],
        )

    def _site(self, chance: random.Random, wall: Callable[[], datetime]) -> Site:
        return Site(
            client=self.redis.client,
            store=self._backends.store,
            gates=self.gates,
            settings=self._settings.delivery,
            instance=self._instance,
            live_instances=self.membership.live_instances,
            redis_trouble=self.redis.trouble,
            reader_trouble=self.redis.reader_trouble,
            postgres_trouble=self.postgres.watch.trouble,
            outside_trouble=self._outside_trouble,
            publish=self.publishing.publish_within,
            broadcast=self.broadcasting.sending.send_noted,
            chance=chance.random,
            wall=wall,
            read_within=self.redis.read_within,
            patience=self.redis.patience,
            look=self.upkeep.losses.look,
            stopping=self._stopping,
        )

    def _outside_trouble(self, error: Unavailable) -> None:
        if error.gate not in REDIS_GATES:
            self.watches[error.gate].trouble(error)
        elif isinstance(error.__cause__, redis.exceptions.RedisError):
            # As of a link: a handler's keys may be on another node than our streams.
            self.redis.link_trouble(error.__cause__)

    def _letter_orders(self, letters: LetterDesk) -> LetterOrders:
        return LetterOrders(
            self._system,
            self._backends.store,
            letters,
            self.redis.client,
            redis_gate=self.gates["redis"],
            redis_trouble=self.redis.trouble,
        )


def _gates(wall: Callable[[], datetime], own: Iterable[str]) -> Gates:
    gates = Gates(Journal(wall))
    for name in ("redis", "postgres", *own):
        gates.add(name, shut="not probed yet")
    gates.add("redis-memory", settle=0.0)
    gates.add("schema", settle=0.0, shut="not migrated yet")
    return gates
