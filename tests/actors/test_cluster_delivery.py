"""A whole deployment on a cluster in virtual time: what is an outage there, what is not, and nothing lost in either."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import hiredis
import pytest
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.trimming import count_trimmable, trim
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import ClusterStatistics, RedisUnavailable
from penstock.runtime.redis.cluster.keys import full_name, keys_of
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.supervision import LifecycleKind
from penstock.runtime.testing.redis import EPOCH
from penstock.runtime.testing.redis_cluster import InProcessCluster, InProcessClusterNode

STREAM = "orders"
PLACE = "actors/payments@orders"
# As in a real system: the default of `virtual` looks at what is well once in ten minutes.
SETTINGS = ActorSettings(health=HealthSettings(observe_every=30.0))


@event("ORDER")
@frozen
class Order:
    number: int


def orders(*, workers: int = 4) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group("payments", consumers=2, workers=workers)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


def unread() -> System:
    system = System("app")
    system.stream(STREAM, events=[Order])
    return system


@define(eq=False)
class Site:
    """A deployment on a cluster, and what was published there.

    Attributes:
        accepted: the numbers of the events that were accepted, in order.
        refused: how many were not.
    """

    app: VirtualDeployment[InProcessCluster]
    accepted: list[int] = field(factory=list)
    refused: int = 0
    _numbers: itertools.count[int] = field(factory=itertools.count)

    @property
    def cluster(self) -> InProcessCluster:
        return self.app.redis

    @property
    def owner(self) -> InProcessClusterNode:
        return self.cluster.master_of(STREAM)

    @property
    def other(self) -> InProcessClusterNode:
        """A master that has not the stream."""
        return next(node for node in self.cluster.masters() if node is not self.owner)

    async def publish(self, count: int = 5) -> None:
        numbers = [next(self._numbers) for _ in range(count)]
        results = await self.app.publish(STREAM, *(Order(number) for number in numbers))
        for number, result in zip(numbers, results, strict=True):
            if isinstance(result, Published):
                self.accepted.append(number)
            else:
                self.refused += 1

    async def load(self) -> None:
        """Publish until cancelled."""
        while True:
            await self.publish()
            await trio.sleep(0.1)

    @asynccontextmanager
    async def under_load(self) -> AsyncIterator[None]:
        """Something happens under load; it goes on for two seconds, and then all must have come to its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.load)
            await trio.sleep(1.0)
            yield
            await trio.sleep(2.0)
            nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            await self.app.settled()
        done = [effect.values[0] for effect in self.app.store.effects]
        assert len(done) == len(set(done)), "more than one effect"
        assert set(self.accepted) <= set(done), "lost"
        assert self.app.store.letters == []
        views = self.app.deployment.tree.snapshot().root.walk()
        assert {view.path: view.restarts for view in views if view.restarts} == {}

    def turns(self) -> list[str]:
        """The causes for which the gate was shut, since the system is up."""
        events = self.app.deployment.tree.journal.recent
        return [each.reason for each in events if each.kind is LifecycleKind.GATE_SHUT and each.path == "redis"]

    def incarnations(self) -> set[int]:
        return {self.app.child(f"{PLACE}/listener-{number}").incarnation for number in (1, 2)}

    async def stored(self) -> list[int]:
        """The numbers of the events that are in the stream, in its order."""
        entries = await self.app.deployment.client().xrange(STREAM)
        return [json.loads(fields[b"data"])["number"] for _, fields in entries]

    def commands(self, name: str) -> int:
        """How often a command has run, on all nodes."""
        return sum(node.commands[name] for node in self.cluster.nodes)


@asynccontextmanager
async def deployed(system: System | None = None, *, replicas: int = 0) -> AsyncIterator[Site]:
    async with (
        InProcessCluster(replicas=replicas) as cluster,
        virtual(system or orders(), redis=cluster, settings=SETTINGS) as app,
    ):
        await trio.sleep(1)  # the link has its second look at the topology behind it
        yield Site(app)


# No outage ------------------------------------------------------------------------------------------------------------


async def test_a_planned_failover_is_not_felt(autojump_clock: MockClock) -> None:
    async with deployed(replicas=1) as site:
        async with site.under_load():
            (replica,) = site.cluster.replicas_of(site.owner)
            site.cluster.fail_over(replica)
        assert site.turns() == []
        assert site.refused == 0
        assert site.incarnations() == {1}
        assert site.owner is replica


async def test_a_slot_that_moves_step_by_step_is_not_felt(autojump_clock: MockClock) -> None:
    async with deployed() as site:
        slot = slot_of(STREAM)
        for _ in range(2):
            async with site.under_load():
                target = site.other
                site.cluster.begin_migration(slot, target)
                await trio.sleep(1.5)
                site.cluster.move_keys(slot)
                await trio.sleep(1.5)
                site.cluster.finish_migration(slot)
            assert site.owner is target
        assert site.turns() == []
        assert site.refused == 0
        assert site.incarnations() == {1}


async def test_a_slot_that_moves_costs_no_group(autojump_clock: MockClock) -> None:
    """What a blocked reader is told of a key that went to another node sounds like a deletion."""
    async with deployed() as site:
        slot = slot_of(STREAM)
        made = site.commands("XGROUP CREATE")  # the start-up checks ask once, too
        for row in ("unblocked-key-gone", "group-destroyed"):
            async with site.under_load():
                source, target = site.owner, site.other
                site.cluster.begin_migration(slot, target)
                site.cluster.move_keys(slot)
                source.answer(row)
                site.cluster.finish_migration(slot)
                await trio.sleep(1)
        assert site.commands("XGROUP CREATE") == made
        assert site.turns() == []


async def test_a_connection_that_breaks_is_made_again_and_no_outage(autojump_clock: MockClock) -> None:
    """While nothing is under way on it; what is, has an outcome that nobody knows, and is told."""
    async with deployed() as site:
        for _ in range(5):
            await trio.sleep(5)
            site.owner.cut()
            await trio.sleep(1)
            await site.publish()
        assert site.turns() == []
        assert site.refused == 0
        assert site.incarnations() == {1}


@pytest.mark.parametrize(
    ("cause", "is_outage"),
    [
        (EOFError(), False),
        (ConnectionResetError(104, "Connection reset by peer"), False),
        (trio.BrokenResourceError("broken"), False),
        (ConnectionRefusedError(111, "Connection refused"), True),
        (trio.TooSlowError(), True),
        (None, True),
    ],
    ids=repr,
)
async def test_what_the_link_says_is_an_outage_unless_a_connection_broke(
    autojump_clock: MockClock, cause: Exception | None, is_outage: bool
) -> None:
    async with deployed() as site:
        await trio.sleep(30)
        trouble = RedisUnavailable(f"redis://{site.owner.host}:{site.owner.port}/0", "it broke")
        trouble.__cause__ = cause
        site.app.deployment._parts.redis.link_trouble(trouble)
        assert site.app.deployment.gates["redis"].is_open is not is_outage
        elsewhere = RedisUnavailable(f"redis://{site.other.host}:{site.other.port}/0", "refused")
        await trio.sleep(1)
        site.app.deployment._parts.redis.link_trouble(elsewhere)
        assert site.app.deployment.gates["redis"].is_open


async def test_a_node_without_our_streams_may_go_where_a_replica_takes_over(autojump_clock: MockClock) -> None:
    async with deployed(replicas=1) as site:
        async with site.under_load():
            site.other.refuse()
            await trio.sleep(0.9)
        # In between the cluster is down for all: from the end of its patience until the replica is there, which here is
        # no time.
        assert site.turns() == []
        assert site.refused == 0


# Outages --------------------------------------------------------------------------------------------------------------


async def test_the_gate_shuts_at_once_when_the_owner_is_gone_and_opens_soon_after_it_is_back(
    autojump_clock: MockClock,
) -> None:
    async with deployed() as site:
        gate = site.app.deployment.gates["redis"]
        for away in (0.5, 20.0):
            async with site.under_load():
                owner = site.owner
                owner.refuse()
                lost = trio.current_time()
                await gate.wait_shut()
                assert trio.current_time() - lost < 0.1
                await trio.sleep_until(lost + away)
                assert not gate.is_open
                assert f"{owner.host}:{owner.port}" in gate.cause
                owner.restore()
                with trio.fail_after(2):
                    await gate.wait_open()
                with trio.fail_after(1):
                    await site.app.serving()
        assert site.refused == 0


async def test_in_a_long_outage_the_node_and_its_streams_are_named(autojump_clock: MockClock) -> None:
    async with deployed() as site:
        site.owner.refuse()
        await trio.sleep(10)
        where = f"{site.owner.host}:{site.owner.port}"
        told = f"node {where} (slots of {STREAM}) refuses connections; cluster_state is fail"
        assert site.app.deployment.gates["redis"].cause == told
        view = site.app.deployment.cluster()
        assert view is not None
        assert [node.address for node in view.nodes if node.failed] == [where]


async def test_a_replica_that_takes_over_ends_the_outage(autojump_clock: MockClock) -> None:
    async with deployed(replicas=1) as site:
        async with site.under_load():
            site.owner.refuse()
            # A second until the others give it up, one until the next probe.
            with trio.fail_after(2.1):
                await site.app.deployment.gates["redis"].wait_shut()
                await site.app.deployment.gates["redis"].wait_open()
        assert len(site.turns()) == 1


@pytest.mark.parametrize("replicas", [0, 1])
async def test_a_frozen_owner_is_noticed_within_a_second_and_what_it_says_later_is_not_believed(
    autojump_clock: MockClock, replicas: int
) -> None:
    async with deployed(replicas=replicas) as site:
        gate = site.app.deployment.gates["redis"]
        async with site.under_load():
            owner = site.owner
            owner.hang()
            with trio.fail_after(1):
                await gate.wait_shut()
            accepted = list(site.accepted)
            await trio.sleep(4)
            assert len(site.accepted) > len(accepted)  # into the outbox, or by the replica
            owner.resume()
            with trio.fail_after(2):
                await gate.wait_open()
        assert site.refused == 0


async def test_what_is_under_way_when_the_owner_freezes_is_accepted_at_once(autojump_clock: MockClock) -> None:
    async with deployed(unread()) as site:
        await site.publish()
        site.owner.hang()
        started = trio.current_time()
        await site.publish()
        await site.publish()
        assert trio.current_time() - started < 0.1
        await trio.sleep(5)
        site.owner.resume()
        await site.app.deployment.gates["redis"].wait_open()
        await site.publish()
        await site.app.settled()
        assert site.refused == 0
        assert list(dict.fromkeys(await site.stored())) == site.accepted


async def test_what_is_under_way_when_the_owner_freezes_has_an_unknown_outcome_where_nothing_else_is_there(
    autojump_clock: MockClock,
) -> None:
    """On one server it would wait for the answer. Here whoever answers later may have been replaced meanwhile."""
    async with deployed(unread()) as site:
        await site.publish()
        site.app.lose_database("away")
        site.owner.hang()
        started = trio.current_time()
        (result,) = await site.app.publish(STREAM, Order(1))
        assert trio.current_time() - started < 1
        assert isinstance(result, PublishFailed)
        assert result.outcome_unknown
        assert not result.permanent
        (refused,) = await site.app.publish(STREAM, Order(2))
        assert isinstance(refused, PublishFailed)
        assert not refused.outcome_unknown
        site.owner.resume()
        await site.app.deployment.gates["redis"].wait_open()
        (again,) = await site.app.publish(STREAM, Order(3))
        assert isinstance(again, Published)


async def test_what_was_captured_meanwhile_is_put_on_the_stream_afterwards(autojump_clock: MockClock) -> None:
    async with deployed() as site:
        site.owner.hang()
        for number in range(1000, 1010):
            assert site.app.deployment.capture(Envelope(event_type="ORDER", data={"number": number}), STREAM)
            await trio.sleep(0.3)
        site.owner.resume()
        with trio.fail_after(10):
            await site.app.deployment.gates["redis"].wait_open()
            while site.app.deployment.producer.waiting:
                await trio.sleep(0.1)
            await site.app.settled()
        # The first was sent before it froze, and perhaps again: then the inbox knows it.
        assert sorted(effect.values[0] for effect in site.app.store.effects) == list(range(1000, 1010))


async def test_a_group_that_is_lost_in_a_cluster_is_made_again(autojump_clock: MockClock) -> None:
    async with deployed() as site:
        async with site.under_load():
            await site.app.deployment.client().xgroup_destroy(STREAM, "payments")
        assert site.commands("XGROUP CREATE") > 1
        assert site.turns() == []


# Order ----------------------------------------------------------------------------------------------------------------


async def test_what_one_call_publishes_stays_in_order_while_its_slot_moves(autojump_clock: MockClock) -> None:
    """A burst that is redirected in its middle must not be overtaken by its own end."""
    async with deployed(unread()) as site:
        slot = slot_of(STREAM)

        async def move() -> None:
            # Each step takes longer than a redirected command: an ASK that comes a migration late is another story.
            while True:
                for step in (
                    lambda: site.cluster.begin_migration(slot, site.other),
                    lambda: site.cluster.move_keys(slot),
                    lambda: site.cluster.finish_migration(slot),
                ):
                    await trio.sleep(0.0151)
                    step()

        for node in site.cluster.nodes:
            node.delay(0.0001, "XADD")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(move)
            for _ in range(20):
                await site.publish(100)
                await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        statistics = site.app.deployment.client().statistics()
        assert isinstance(statistics, ClusterStatistics)
        assert statistics.asked > 1
        assert statistics.moved > 1
        await site.app.settled()
        # What took too long went by way of the outbox, too.
        assert list(dict.fromkeys(await site.stored())) == site.accepted
        assert site.refused == 0


async def test_what_is_refused_at_the_head_of_a_burst_is_not_put_behind_its_tail(autojump_clock: MockClock) -> None:
    """The cluster is in order again in the middle of a burst: what was refused before must not come after the rest."""
    async with deployed(unread()) as site:
        await site.publish()
        site.owner.delay(0.001, "XADD")
        site.owner.answer("cluster-down", until=trio.current_time() + 0.0505)
        await site.publish(100)
        await site.app.serving()
        site.owner.delay(0, "XADD")
        await site.publish()
        await site.app.settled()
        assert await site.stored() == site.accepted
        assert site.refused == 0


# Slots ----------------------------------------------------------------------------------------------------------------


class Overheard(trio.abc.HalfCloseableStream):
    """A stream whose commands are noted on their way to the server."""

    def __init__(self, stream: trio.abc.Stream, note: Callable[[list[bytes]], None]) -> None:
        self._stream = stream
        self._note = note
        self._reader = hiredis.Reader(notEnoughData=self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        self._reader.feed(bytes(data))
        while (command := self._reader.gets()) is not self:
            self._note(command)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_every_command_of_the_actors_is_for_one_slot(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, set[int]] = {}

    def note(words: list[bytes]) -> None:
        name = full_name(words[0].decode().upper(), words)
        keys = keys_of(name, words)
        assert keys is not None, f"{name}: where its keys are is not known"
        slots = {slot_of(bytes(key)) for key in keys}
        assert len(slots) <= 1, f"{words} has keys of several slots"
        seen.setdefault(name, set()).update(slots)

    system = orders()
    for key in ("order-events", "EVENT_STREAM"):
        stream = system.stream(key, events=[Order])
        stream.on(Order, group="audit")(system.streams[STREAM].groups["payments"].handlers["ORDER"].call)
    async with InProcessCluster() as cluster:
        plain = cluster.connect

        async def connect(host: str, port: int) -> trio.abc.Stream:
            return Overheard(await plain(host, port), note)

        monkeypatch.setattr(cluster, "connect", connect)
        async with virtual(system, redis=cluster, settings=SETTINGS) as app:
            tail = app.deployment.tail(STREAM)
            for key in system.streams:
                await app.publish(key, Order(1), Order(2))
            await app.settled()
            await app.deployment.client().xgroup_destroy(STREAM, "payments")
            cluster.master_of(STREAM).cut()
            with trio.move_on_after(60):
                await anext(tail)
            await app.publish(STREAM, Order(3))
            await app.settled()
            app.lose_database("away")  # so that something is pending, and retention has more to ask
            await trio.sleep(1)
            cutoff = datetime.fromtimestamp(EPOCH + trio.current_time(), UTC)
            for stream in system.streams.values():
                await app.publish(stream.key, Order(4))
                for group in stream.groups:
                    await app.deployment.client().xreadgroup(group, "somebody", {stream.key: ">"}, count=1)
                await trim(app.deployment.client(), stream, cutoff)
                await count_trimmable(app.deployment.client(), stream, cutoff)
    wanted = {
        "XADD",
        "XREADGROUP",
        "XACK",
        "XINFO GROUPS",
        "XINFO STREAM",
        "XGROUP CREATE",
        "XREAD",
        "XRANGE",
        "EVALSHA",
    }
    assert wanted <= set(seen)
    ours = {slot_of(key) for key in system.streams}
    assert len(ours) == 3
    # The start-up checks ask whether the streams that show dead letters may be written to.
    mirrors = {slot_of(stream.mirror_key) for stream in system.streams.values()}
    for name in wanted:
        assert seen[name] <= ours | (mirrors if name == "XADD" else set()), f"{name} went to a slot of somebody else"
