"""One simulated story: processes of one system on servers in memory, publishers, faults, and at the end the balance."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import psycopg
import trio
from attrs import define, evolve, field

from ...runtime.postgres import PostgresUnavailable
from ...runtime.redis import ClusterOptions, RedisOptions
from ...runtime.testing.redis import EPOCH, InProcessRedis
from ...runtime.testing.redis_cluster import InProcessCluster
from ...runtime.testing.simulation import SimulatedProcess, Simulation, current_process
from ..backends import HEALED_WITHIN, Backends
from ..configuring import configured
from ..deployment import Deployment
from ..probes import Unhealthy
from ..retry_row import RetryOrigin, RetryRow
from ..system import System
from ..testing import MemoryStore
from .ledger import Ledger
from .network import Line, lose_transactions
from .scenario import Scenario
from .stumbling import Stumbling

__all__ = ["Node", "World"]


@define(eq=False)
class Node:
    """One process of the system, through all of its lives.

    Attributes:
        name: of the installation: its consumers are named for it.
        line: its connections to Redis.
        process: its present life.
        deployment: what runs in it.
        life: which one it is, from 1.
        is_partitioned: whether its network to the database is cut.
        gone: whether it will not be started again.
    """

    name: str
    line: Line
    process: SimulatedProcess | None = None
    deployment: Deployment | None = None
    life: int = 0
    is_partitioned: bool = False
    gone: bool = False

    @property
    def is_running(self) -> bool:
        """Whether it can be asked for something."""
        return self.process is not None and self.process.is_running

    def tell_database(self, error: Exception) -> None:
        """What its pool would tell: the database is gone."""
        if self.deployment is not None and self.is_running:
            self.deployment.backends.on_postgres_trouble(error)


@define(eq=False)
class World:
    """See the module.

    Attributes:
        seed: of everything that is drawn.
        scenario: what is simulated.
        redis: the server, or the cluster.
        simulation: the processes' scheduler.
        chance: draws what happens.
        store: the database.
        nodes: the processes.
        ledger: what was promised, and what came of it.
        replays: how many orders to have dead letters tried again are under way.
        destroyed: when which groups were destroyed, by the stream's key in Redis and their name.
        outside: what is away behind gates of the system's own, by gate, and why.
    """

    seed: int
    scenario: Scenario
    redis: InProcessRedis | InProcessCluster
    simulation: Simulation
    chance: random.Random
    system: System
    ledger: Ledger
    store: MemoryStore = field(factory=MemoryStore)
    nodes: list[Node] = field(factory=list)
    replays: int = 0
    destroyed: dict[tuple[str, str], float] = field(factory=dict)
    outside: dict[str, str] = field(factory=dict)
    why_away: str = ""
    calm: bool = False

    @classmethod
    def of(
        cls, seed: int, scenario: Scenario, redis: InProcessRedis | InProcessCluster, simulation: Simulation
    ) -> World:
        """The world of a seed, with nobody in it yet."""
        chance = random.Random(f"world {seed}")  # noqa: S311 - no secret
        declared = configured(scenario.system(chance), scenario.settings)
        # The deployments get the copy, with what was set in it: put over it once more, it would lose its watch.
        scenario = evolve(scenario, settings=evolve(scenario.settings, streams={}))
        stumbling = Stumbling(seed, on=scenario.stumbling)
        system, store = stumbling.copy_of(declared), MemoryStore()
        scenario.begins(store)
        ledger = stumbling.ledger = Ledger(system, store)
        stumbling.freeze = lambda seconds: world.freeze_current(seconds)
        stumbling.time_limit = scenario.settings.delivery.handler_timeout
        world = cls(seed, scenario, redis, simulation, chance, system, ledger, store, outside=stumbling.away)
        for server in world.servers:
            ledger.watch(server._engine.data)
        ledger.who = world._who
        store.server.guard = world._let_in
        store.server.trouble = world._hear
        return world

    @property
    def servers(self) -> list[InProcessRedis]:
        """The Redis servers."""
        return list(self.redis.nodes) if isinstance(self.redis, InProcessCluster) else [self.redis]

    @property
    def running(self) -> list[Node]:
        """The nodes that can be asked for something."""
        return [node for node in self.nodes if node.is_running]

    @property
    def keys(self) -> list[str]:
        """The keys in Redis by which events and jobs come in."""
        streams = [key for stream in self.system.streams.values() for key in stream.keys]
        return [*streams, *(f"{{{name}}}:waiting" for name in self.system.queues)]

    def wall(self) -> datetime:
        """What time it is."""
        return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=trio.current_time())

    def tell(self, line: str) -> None:
        """Add to the story."""
        self.simulation.tell(line)

    # Processes ------------------------------------------------------------------------------------------------------

    def add_node(self) -> Node:
        """Another process of the system, started at once."""
        node = Node(f"node{len(self.nodes) + 1}", Line(self.redis.connect))
        self.nodes.append(node)
        self.ledger.one_reader = len(self.nodes) == 1
        self.start(node)
        return node

    def start(self, node: Node) -> None:
        """Begin another life of a node."""
        node.life += 1
        backends = Backends(
            redis_options=self._redis_options(),
            redis_connect=node.line.connect,
            store=self.store,
            probe_postgres=lambda: self._probe(node),
        )
        node.deployment = Deployment(
            self.system,
            self.scenario.settings,
            backends,
            instance=node.name,
            wall=self.wall,
            seed=self.chance.getrandbits(32),
            probes={gate: partial(self._probe_outside, gate) for gate in self.system.gates},
        )
        process = node.process = self.simulation.start(f"{node.name}/{node.life}", node.deployment.run)
        self.simulation.spawn(self._watch_over, node, process)
        process.at_kill(node.line.cut)
        process.at_kill(lambda: _nothing(lose_transactions(self.store, process)))

    async def _watch_over(self, node: Node, process: SimulatedProcess) -> None:
        """As a service manager does: start again what has ended by itself, as one that was frozen in its start may."""
        await process.ended.wait()
        if process.error is not None:
            self.tell(f"{node.name} has ended: {process.error!r}")
            await self.restart(node, 1.0)

    def freeze_current(self, seconds: float) -> None:
        """Freeze the process whose task calls this, as long as things go wrong at all."""
        process = current_process()
        if process is not None and not self.calm:
            self.tell(f"{process.name} is frozen in a handler for {seconds:g} s")
            process.freeze()
            self.ledger.standstills += 1
            self.simulation.later(seconds, process.thaw)

    async def restart(self, node: Node, pause: float) -> None:
        """Once its present life is over, and a pause later, begin another."""
        life = node.life
        assert node.process is not None  # noqa: S101 - it has begun
        await node.process.ended.wait()
        await trio.sleep(pause)
        if node.life == life and not node.gone:
            self.tell(f"{node.name} is started again")
            self.start(node)

    def _redis_options(self) -> RedisOptions | ClusterOptions:
        if isinstance(self.redis, InProcessCluster):
            return ClusterOptions(nodes=self.redis.addresses, retry_for=HEALED_WITHIN)
        return RedisOptions(retry_for=0.0)

    async def _probe(self, node: Node) -> None:
        await trio.lowlevel.checkpoint()
        if self.why_away:
            raise Unhealthy(self.why_away)
        if node.is_partitioned:
            raise Unhealthy("the network is cut")

    def restore_outside(self, gate: str) -> None:
        """What is behind a gate is back; the health monitors will find out."""
        self.outside.pop(gate, None)

    async def _probe_outside(self, gate: str) -> None:
        await trio.lowlevel.checkpoint()
        if why := self.outside.get(gate):
            raise Unhealthy(why)

    # The database ---------------------------------------------------------------------------------------------------

    def lose_database(self, why: str, *, told: bool) -> None:
        """The database goes away; the pools may notice it at once, or by what fails."""
        self.why_away = why
        for work in list(self.store.server.open):
            work.lose()
        for node in self.nodes if told else []:
            node.tell_database(Unhealthy(why))

    def restore_database(self) -> None:
        """It is back; the health monitors will find out."""
        self.why_away = ""

    def _who(self) -> UUID | None:
        """The id of the process whose task runs."""
        process = current_process()
        node = next((each for each in self.nodes if process is not None and each.process is process), None)
        return node.deployment.process if node is not None and node.deployment is not None else None

    def _hear(self, trouble: Exception) -> None:
        """A connection was lost, and the process that had it has noticed."""
        process = current_process()
        for node in self.nodes:
            if node.process is process:
                node.tell_database(trouble)

    def _let_in(self) -> None:
        """Whether the current task gets a connection to the database; if not, its pool tells, as a real one does."""
        process = current_process()
        if process is None:
            return
        node = next((each for each in self.nodes if each.process is process), None)
        partitioned = node is None or process.killed or node.is_partitioned
        why = self.why_away or ("the network is cut" if partitioned else "")
        if why:
            error = PostgresUnavailable(why, address="memory")
            self._hear(error)
            raise error

    def replay_letters(self) -> None:
        """What ``penstock dead-letters replay`` orders, and its actor does: each letter is a row of retries again."""
        self.replays += 1
        self.simulation.spawn(self._replay_letters)

    async def _replay_letters(self) -> None:
        letters = self.ledger.replayable()
        rows = [
            RetryRow(
                consumer_group=letter.consumer_group,
                stream=letter.stream,
                entry_id=letter.entry_id,
                fields=letter.fields,
                origin=RetryOrigin.LETTER,
                event_id=letter.event_id,
                event_type=letter.event_type,
                event_key=letter.event_key,
            )
            for letter in letters
        ]
        # Before it is committed: its answer may be lost.
        self.ledger.replayed.update((row.consumer_group, row.event_id) for row in rows if row.event_id is not None)
        try:
            async with self.store.transaction() as transaction:
                await self.store.retries.add(transaction, rows)
        except (PostgresUnavailable, psycopg.Error) as error:
            self.tell(f"the letters cannot be replayed: {error}")
        finally:
            self.replays -= 1


def _nothing(_: object) -> None:
    """Take a result that nobody needs."""
