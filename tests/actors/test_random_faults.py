"""Random faults in virtual time: whatever happens, every accepted event ends once, and by its own doing.

Each seed is one story of a few hundred seconds: publishing, outages of every kind, refusals of every class of reply,
handlers that fail in every way, stops and restarts; on one server, or on a cluster whose masters fall and hand over and
whose slots move. The seed is the test's id: run one story again with ``-k``, more of them with ``FAULT_SEEDS=1000``.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable
from uuid import UUID

import psycopg
import pytest
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.producer import Published
from penstock.actors.settings import ActorSettings, DeliverySettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.postgres import PoolTimeout, PostgresUnavailable
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster

STREAM = "orders"

SETTINGS = ActorSettings(
    delivery=DeliverySettings(retry_minimum=0.1, retry_maximum=2.0, handler_timeout=10.0),
    health=HealthSettings(observe_every=60.0),
)

REFUSALS = (
    "LOADING Redis is loading the dataset in memory",
    "CLUSTERDOWN The cluster is down",
    "CLUSTERDOWN Hash slot not served",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "READONLY You can't write against a read only replica.",
    "MOVED 866 127.0.0.1:7002",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "NOAUTH Authentication required.",
    "NOPERM User default has no permissions to run the command",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "ERR max number of clients reached",
)

COMMANDS = ("XADD", "XREADGROUP", "XACK", "XINFO GROUPS", "XGROUP CREATE", "*")

PASSING: tuple[Callable[[], Exception], ...] = (
    lambda: RuntimeError("a bug"),
    lambda: ConnectionError("the payment service is away"),
    lambda: trio.TooSlowError("the payment service is slow"),
    lambda: psycopg.OperationalError("connection to another database failed"),
    lambda: PostgresUnavailable("another database is away", address="elsewhere"),
    lambda: PoolTimeout("all connections are taken"),
    lambda: psycopg.errors.DeadlockDetected("deadlock detected"),
    lambda: ExceptionGroup("two tasks failed", [OSError("a"), psycopg.OperationalError("b")]),
)
LASTING: tuple[Callable[[], Exception], ...] = (
    lambda: Permanent("never"),
    lambda: ExceptionGroup("tasks failed", [Permanent("never"), RuntimeError("and more")]),
    lambda: psycopg.errors.UniqueViolation("there is one"),
)


@event("ORDER")
@frozen
class Order:
    number: int


@define
class Story:
    """What one seed makes happen, and what was seen of it."""

    seed: int
    chance: random.Random
    redis: InProcessRedis | InProcessCluster
    store: MemoryStore = field(factory=MemoryStore)
    accepted: dict[UUID, int] = field(factory=dict)
    failures: dict[int, list[Callable[[], Exception]]] = field(factory=dict)
    doomed: set[int] = field(factory=set)
    frail: set[int] = field(factory=set)
    slow: set[int] = field(factory=set)
    published: Counter[UUID] = field(factory=Counter)
    count: int = 0
    steps: list[str] = field(factory=list)

    # The system under test

    def system(self) -> System:
        system = System("app")
        orders = system.stream(STREAM, events=[Order])
        orders.group("payments", consumers=2, workers=3, batch=4, block=5.0)

        @orders.on(Order, group="payments")
        async def pay(order: Order, context: Context) -> None:
            await context.connection.execute("insert", [order.number])
            await self.stumble(order.number)

        return system

    async def stumble(self, number: int) -> None:
        if number in self.slow:
            self.slow.discard(number)
            await trio.sleep(self.chance.choice([0.5, 3.0, 60.0]))
        if number in self.doomed:
            errors = PASSING if number % 2 else LASTING
            raise errors[number // 2 % len(errors)]()
        if self.failures.get(number):
            raise self.failures[number].pop()()

    def order(self) -> Envelope:
        """The next event, with a fate of its own."""
        self.count += 1
        fate = self.chance.random()
        if fate < 0.05:
            self.doomed.add(self.count)
        elif fate < 0.1:
            # As many failures as it may have, or nearly: it may die, and would then succeed in a later attempt.
            self.frail.add(self.count)
            self.failures[self.count] = self.chance.choices(PASSING, k=5)
        elif fate < 0.2:
            self.failures[self.count] = self.chance.choices(PASSING, k=self.chance.randint(1, 4))
        elif fate < 0.25:
            self.slow.add(self.count)
        event_id = UUID(int=self.chance.getrandbits(128), version=4)
        return Envelope(event_type="ORDER", data={"number": self.count}, event_id=event_id)

    # What happens

    async def publish(self, app: VirtualDeployment, envelopes: list[Envelope]) -> None:
        self.published.update(envelope.event_id for envelope in envelopes)
        results = await app.publish(STREAM, *envelopes)
        assert [result.event_id for result in results] == [envelope.event_id for envelope in envelopes]
        for envelope, result in zip(envelopes, results, strict=True):
            if isinstance(result, Published):
                self.accepted[envelope.event_id] = envelope.data["number"]
        refused = [
            envelope for envelope, result in zip(envelopes, results, strict=True) if not isinstance(result, Published)
        ]
        if refused and self.chance.random() < 0.5:
            await trio.sleep(1.0)
            await self.publish(app, refused)  # as a client does it: again, with the same id

    def victim(self) -> InProcessRedis:
        """The server that something happens to."""
        if isinstance(self.redis, InProcessRedis):
            return self.redis
        # Mostly the one that matters.
        return self.redis.master_of(STREAM) if self.chance.random() < 0.7 else self.chance.choice(self.redis.nodes)

    async def step(self, app: VirtualDeployment, nursery: trio.Nursery) -> None:
        chance, redis = self.chance, self.victim()
        of_a_cluster = ["failover", "migrate"] if isinstance(self.redis, InProcessCluster) else []
        what = chance.choice(
            ["publish"] * 6
            + ["again", "cut", "refuse", "hang", "error", "error", "cut after", "database", "commit"]
            + of_a_cluster
        )
        self.steps.append(f"{trio.current_time():.3f} {what}")
        match what:
            case "publish":
                nursery.start_soon(self.publish, app, [self.order() for _ in range(chance.choice([1, 3, 20]))])
            case "again":
                known = chance.sample(sorted(self.accepted), min(5, len(self.accepted)))
                again = [Envelope(event_type="ORDER", data={"number": self.accepted[i]}, event_id=i) for i in known]
                nursery.start_soon(self.publish, app, again)
            case "cut":
                redis.cut()
            case "refuse":
                redis.refuse()
                await trio.sleep(chance.choice([0.1, 2.0, 30.0]))
                redis.restore()
            case "hang":
                redis.hang()
                await trio.sleep(chance.choice([0.1, 1.0, 4.0, 30.0]))
                redis.resume()
            case "error":
                command, refusal = chance.choice(COMMANDS), chance.choice(REFUSALS)
                # Only a blocking read can be told that it is unblocked.
                command = "XREADGROUP" if refusal.startswith("UNBLOCKED") else command
                redis.fail_next(command, refusal, times=chance.choice([1, 1, 3, 20]))
            case "cut after":
                effect, command = chance.choice(["before", "after"]), chance.choice(["XADD", "XREADGROUP", "XACK"])
                redis.cut_after(chance.randint(1, 5), effect, command=command)
            case "database":
                app.lose_database("server closed the connection unexpectedly")
                await trio.sleep(chance.choice([0.0, 0.1, 5.0, 60.0]))
                app.restore_database()
            case "commit":
                self.store.lose_commit(effect=chance.random() < 0.5)
            case "failover":
                self.fail_over()
            case "migrate":
                await self.migrate()
        await trio.sleep(chance.choice([0.0, 0.001, 0.03, 0.3, 2.0, 12.0]))

    def fail_over(self) -> None:
        assert isinstance(self.redis, InProcessCluster)
        for replica in self.redis.replicas_of(self.redis.master_of(STREAM))[:1]:
            self.redis.fail_over(replica)

    async def migrate(self) -> None:
        cluster, slot = self.redis, slot_of(STREAM)
        assert isinstance(cluster, InProcessCluster)
        target = self.chance.choice([node for node in cluster.masters() if node is not cluster.master_of(slot)])
        cluster.begin_migration(slot, target)
        await trio.sleep(self.chance.choice([0.0, 0.5, 5.0]))
        cluster.move_keys(slot)
        await trio.sleep(self.chance.choice([0.0, 0.5, 5.0]))
        cluster.finish_migration(slot)

    async def chapter(self, steps: int, *, to_the_end: bool) -> None:
        """One life of the deployment: stopped in the middle of things, or when all has come to its end."""
        async with virtual(self.system(), settings=SETTINGS, redis=self.redis, store=self.store, seed=self.seed) as app:
            async with trio.open_nursery() as nursery:
                for _ in range(steps):
                    await self.step(app, nursery)
            if to_the_end:
                self.calm()
                await app.settled()
            views = app.deployment.tree.snapshot().root.walk()
            crashed = {view.path: str(view.last_error) for view in views if view.restarts}
            assert crashed == {}, "an outage took a restart"

    def calm(self) -> None:
        """No fault that was ordered and did not happen yet will happen."""
        for server in self.redis.nodes if isinstance(self.redis, InProcessCluster) else [self.redis]:
            server.heal()
        self.store.server.commit_losses.clear()

    def check(self) -> None:
        done = Counter(effect.values[0] for effect in self.store.effects)
        assert [number for number, times in done.items() if times > 1] == [], "more than one effect"
        dead = {letter.event_id for letter in self.store.letters if letter.event_id}
        ends = {event_id: (done[number] > 0, event_id in dead) for event_id, number in self.accepted.items()}
        assert [event_id for event_id, end in ends.items() if not any(end)] == [], "lost"
        both = [event_id for event_id, end in ends.items() if all(end) and self.published[event_id] == 1]
        assert both == [], "an effect and a dead letter"
        assert self.doomed & set(done) == set(), "an effect of what has failed"
        died = {self.accepted[each] for each in dead & set(self.accepted)}
        assert died - self.doomed - self.frail == set(), "dead without fault of its own"


SEEDS = os.environ.get("FAULT_SEEDS")


@pytest.mark.parametrize("seed", range(int(SEEDS or "40")))
async def test_every_accepted_event_ends_once_and_by_its_own_doing(seed: int, autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:
        await tell(Story(seed, random.Random(seed), redis))


@pytest.mark.parametrize("seed", range(int(SEEDS or "10")))
async def test_on_a_cluster_too(seed: int, autojump_clock: MockClock) -> None:
    async with InProcessCluster(replicas=1) as redis:
        await tell(Story(seed, random.Random(seed), redis))


async def tell(story: Story) -> None:
    try:
        with trio.fail_after(24 * 3600):
            for _ in range(2):
                await story.chapter(15, to_the_end=False)
            await story.chapter(30, to_the_end=True)
        story.check()
    except BaseException:
        print(f"seed {story.seed}:", *story.steps, sep="\n  ")
        raise
