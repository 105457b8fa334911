"""The whole deployment in virtual time, over an in-process Redis and a store in memory: outages, what comes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.actors.event import Envelope, event, new_event_id
from penstock.actors.handling import Context, Permanent
from penstock.actors.probes import Unhealthy
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.settings import ActorSettings, CaptureSettings, DeliverySettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.runtime.redis import RedisOptions
from penstock.runtime.supervision import LifecycleEvent, LifecycleKind
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
PLACE = f"app/actors/{GROUP}@{STREAM}"


@event("ORDER")
@frozen
class Order:
    number: int


class World:
    """One deployment with everything around it in memory, and what its handler was called with."""

    def __init__(self, settings: ActorSettings | None = None, **group: Any) -> None:
        self.store = MemoryStore()
        self.redis = InProcessRedis()
        self.database_away = ""
        self.calls: list[int] = []
        self.behave: Callable[[Order], None] = lambda order: None
        system = System("app")
        stream = system.stream(STREAM, events=[Order])
        stream.group(GROUP, **group)

        @stream.on(Order, group=GROUP)
        async def pay(order: Order, context: Context) -> None:
            self.calls.append(order.number)
            self.behave(order)
            await context.connection.execute("insert", [order.number])

        self.backends = Backends(
            redis_options=RedisOptions(),
            redis_connect=self.redis.connect,
            store=self.store,
            probe_postgres=self._probe,
        )
        self.deployment = Deployment(system, settings or ActorSettings(), self.backends, instance="i1")

    async def _probe(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.database_away:
            raise Unhealthy(self.database_away)

    def lose_database(self, why: str) -> None:
        self.database_away = why
        self.store.refuse(why)

    def restore_database(self) -> None:
        self.database_away = ""
        self.store.restore()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[World]:
        async with self.redis, trio.open_nursery() as nursery:
            nursery.start_soon(self.deployment.run)
            await self.deployment.tree.ready()
            await self.state("listener-1", "running")
            yield self
            self.deployment.tree.stop("the test is over")

    async def state(self, child: str, *states: str) -> None:
        """Wait until the child is in one of the states."""
        while self.view(child).state not in states:
            await trio.sleep(0.01)

    def view(self, child: str) -> Any:
        view = self.deployment.tree.snapshot().find(f"{PLACE}/{child}")
        assert view is not None
        return view

    async def publish(self, *numbers: int, ids: list[UUID] | None = None) -> list[Published | PublishFailed]:
        envelopes = [
            Envelope(event_type="ORDER", data={"number": number}, event_id=ids[place] if ids else new_event_id())
            for place, number in enumerate(numbers)
        ]
        return await self.deployment.publish(STREAM, envelopes)

    @property
    def effects(self) -> list[int]:
        return [effect.values[0] for effect in self.store.effects]

    async def settled(self) -> None:
        """Wait until nothing is pending in the group."""
        while True:
            streams = await self.deployment.client().xinfo_groups(STREAM)
            group = next(each for each in streams if each["name"] == GROUP.encode())
            if group["pending"] == 0 and group["lag"] in (0, None) and not self.store.retries.rows:
                return
            await trio.sleep(0.05)


async def test_an_event_is_published_handled_once_and_acknowledged(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:
        results = await world.publish(*range(250))
        assert all(isinstance(result, Published) and result.entry_id for result in results)
        await world.settled()
        assert sorted(world.effects) == list(range(250))
        pool = world.deployment.pools[f"{GROUP}@{STREAM}"]
        assert pool.counts.handled == 250


async def test_entry_ids_come_back_in_the_order_of_the_events(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:
        results = await world.publish(1, 2, 3)
        ids = [result.entry_id for result in results if isinstance(result, Published)]
        entries = await world.deployment.client().xrange(STREAM)
        assert [entry_id.decode() for entry_id, _ in entries] == ids


async def test_the_same_event_id_twice_is_one_effect(autojump_clock: trio.testing.MockClock) -> None:
    one, two = new_event_id(), new_event_id()
    async with World().running() as world:
        await world.publish(1, 1, 2, ids=[one, one, two])
        await world.publish(1, ids=[one])
        await world.settled()
        assert sorted(world.effects) == [1, 2]
        assert world.deployment.pools[f"{GROUP}@{STREAM}"].counts.duplicates == 2


async def test_an_outage_of_redis_holds_the_listener_and_its_return_respawns_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The demonstration of the source: stop the node, watch the monitor, start it, watch the listener come back."""
    seen: list[LifecycleEvent] = []
    async with World().running() as world:
        await world.publish(1)
        await world.settled()
        with world.deployment.tree.subscribe() as events:
            world.redis.refuse()
            world.redis.cut()
            cut_at = trio.current_time()
            await world.state("listener-1", "held")
            assert trio.current_time() - cut_at < 1
            (accepted,) = await world.publish(2)
            assert isinstance(accepted, Published)
            assert (accepted.entry_id, accepted.durable) == (None, "outbox")
            gate = world.deployment.gates["redis"]
            assert not gate.is_open
            assert gate.cause
            await trio.sleep(3600)
            assert world.view("listener-1").state == "held"
            world.redis.restore()
            back_at = trio.current_time()
            await world.state("listener-1", "running")
            assert trio.current_time() - back_at < 10.5  # the longest pause between probes, and the settle time
            seen.extend(events.drain())
        await world.publish(3)
        await world.settled()
        assert world.effects == [1, 2, 3]
        assert world.view("listener-1").restarts == 0
        assert world.view("handler-pool").incarnation == 1
    held = next(each for each in seen if each.kind is LifecycleKind.CHILD_HELD and each.path.endswith("listener-1"))
    shut = next(each for each in seen if each.kind is LifecycleKind.GATE_SHUT)
    assert held.cause == shut.sequence


async def test_a_nudge_brings_the_listener_back_within_two_seconds(autojump_clock: trio.testing.MockClock) -> None:
    """An embedded server that is ready again is probed at once, however long it was away."""
    async with World().running() as world:
        world.redis.refuse()
        world.redis.cut()
        await trio.sleep(600)
        world.redis.restore()
        back_at = trio.current_time()
        world.deployment.watches["redis"].nudge()
        await world.state("listener-1", "running")
        assert trio.current_time() - back_at < 2


async def test_a_frozen_redis_shuts_the_gate_and_going_on_opens_it(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:
        await world.publish(1)
        await world.settled()
        world.redis.hang()
        frozen_at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.publish, 2)  # under load, silence is noticed by the link
            await world.state("listener-1", "held")
            assert trio.current_time() - frozen_at < 1
            await trio.sleep(20)
            world.redis.resume()
            resumed_at = trio.current_time()
            await world.state("listener-1", "running")
            assert trio.current_time() - resumed_at < 2
        await world.settled()
        assert world.view("listener-1").restarts == 0


async def test_an_outage_of_the_database_costs_no_attempt_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    settings = ActorSettings(delivery=DeliverySettings(max_deliveries=1))
    async with World(settings).running() as world:
        world.lose_database("connection refused")
        world.backends.on_postgres_trouble(Unhealthy("connection refused"))
        await world.state("listener-1", "held")
        await world.publish(*range(50))
        await trio.sleep(3600)
        assert world.effects == []
        world.restore_database()
        await world.settled()
        assert sorted(world.effects) == list(range(50))
        assert world.store.letters == []


async def test_an_outage_in_the_middle_of_a_transaction_gives_its_events_back(
    autojump_clock: trio.testing.MockClock,
) -> None:
    settings = ActorSettings(delivery=DeliverySettings(max_deliveries=1))
    async with World(settings).running() as world:
        failures = iter([True, True, True])

        def behave(order: Order) -> None:
            if next(failures, False):
                world.lose_database("server closed the connection")
                world.backends.on_postgres_trouble(Unhealthy("server closed the connection"))

        world.behave = behave
        await world.publish(1, 2, 3)
        await trio.sleep(5)
        world.restore_database()
        await trio.sleep(30)
        world.restore_database()
        await trio.sleep(30)
        world.restore_database()
        await world.settled()
        assert sorted(world.effects) == [1, 2, 3]
        assert world.store.letters == []


@pytest.mark.parametrize("effect", [False, True])
async def test_a_commit_whose_answer_is_lost_is_one_effect(
    autojump_clock: trio.testing.MockClock, effect: bool
) -> None:
    async with World().running() as world:
        world.store.lose_commit(effect=effect)
        await world.publish(1, 2)
        await world.settled()
        assert sorted(world.effects) == [1, 2]


async def test_an_acknowledgement_that_is_lost_is_made_up_for(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:
        world.redis.cut_after(1, effect="before", command="XACK")
        await world.publish(1, 2, 3)
        await world.settled()
        assert sorted(world.effects) == [1, 2, 3]
        assert sorted(world.calls) == [1, 2, 3]


async def test_one_bad_event_in_a_batch_costs_the_others_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:

        def behave(order: Order) -> None:
            if order.number == 13:
                raise Permanent("unlucky")

        world.behave = behave
        await world.publish(*range(20))
        await world.settled()
        assert sorted(world.effects) == [number for number in range(20) if number != 13]
        (letter,) = world.store.letters
        assert letter.event_type == "ORDER"
        assert letter.reason.value == "permanent"
        assert letter.error_message == "unlucky"


async def test_a_failing_event_is_tried_five_times_with_growing_pauses_and_then_dead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with World().running() as world:

        def behave(order: Order) -> None:
            raise RuntimeError("a bug in the handler")

        world.behave = behave
        await world.publish(1)
        await world.settled()
        assert world.calls == [1] * 5
        (letter,) = world.store.letters
        assert (letter.reason.value, letter.deliveries) == ("max_deliveries", 5)
        assert letter.traceback is not None
        assert "behave" in letter.traceback


async def test_a_handler_that_takes_too_long_is_rolled_back_and_tried_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with World(ActorSettings(delivery=DeliverySettings(handler_timeout=5.0))).running() as world:
        slow = iter([True])
        system = world.deployment.system
        handler = system.streams[STREAM].groups[GROUP].handlers["ORDER"]
        quick = handler.call

        async def sometimes_slow(order: Order, context: Context) -> None:
            await quick(order, context)
            if next(slow, False):
                await trio.sleep(60)

        object.__setattr__(handler, "call", sometimes_slow)
        await world.publish(1)
        await world.settled()
        assert world.calls == [1, 1]
        assert world.effects == [1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"garbage": "x"}, "undecodable"),
        (
            {"eventType": "ORDER", "eventId": "no uuid", "timestamp": "2026-01-01T00:00:00+00:00", "data": "{}"},
            "undecodable",
        ),
        (
            {"eventType": "ORDER", "eventId": str(new_event_id()), "timestamp": "2026-01-01", "data": "[1]"},
            "undecodable",
        ),
        ({"eventType": "ORDER", "eventId": str(new_event_id()), "timestamp": "2026-01-01", "data": "{}"}, "permanent"),
        ({"eventType": "LOST", "eventId": str(new_event_id()), "timestamp": "2026-01-01", "data": "{}"}, "permanent"),
        ({"eventType": b"\xff\xfe"}, "undecodable"),
    ],
)
async def test_what_is_no_event_becomes_a_dead_letter_and_does_not_stay_pending(
    autojump_clock: trio.testing.MockClock, fields: dict[Any, Any], reason: str
) -> None:
    async with World().running() as world:
        await world.deployment.client().xadd(STREAM, fields)
        await world.publish(1)
        await world.settled()
        assert world.effects == [1]
        assert [letter.reason.value for letter in world.store.letters] == [reason]


async def test_what_was_published_before_the_group_existed_is_read(autojump_clock: trio.testing.MockClock) -> None:
    world = World()
    async with world.redis, trio.open_nursery() as nursery:
        stream = world.deployment.system.streams[STREAM]
        from penstock.runtime.redis import Redis

        async with Redis(RedisOptions(), connect=world.redis.connect) as early:
            envelope = Envelope(event_type="ORDER", data={"number": 1})
            await early.xadd(STREAM, stream.encode(envelope))  # type: ignore[arg-type]
        nursery.start_soon(world.deployment.run)
        await world.state("listener-1", "running")
        await world.settled()
        assert world.effects == [1]
        world.deployment.tree.stop("the test is over")


async def test_a_lost_group_is_made_again_where_it_was_and_nothing_is_handled_twice(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with World().running() as world:
        await world.publish(1, 2)
        await world.settled()
        await world.deployment.client().xgroup_destroy(STREAM, GROUP)
        await trio.sleep(2)
        await world.publish(3)
        await world.settled()
        assert world.calls == [1, 2, 3]


async def test_a_stream_that_lost_its_data_is_read_from_its_start(autojump_clock: trio.testing.MockClock) -> None:
    async with World().running() as world:
        await world.publish(1, 2)
        await world.settled()
        await world.deployment.client().flushall()
        await trio.sleep(2)
        await world.publish(3)
        await world.settled()
        assert world.calls == [1, 2, 3]


async def test_a_stop_finishes_what_is_in_work_and_a_new_start_takes_up_the_rest(
    autojump_clock: trio.testing.MockClock,
) -> None:
    world = World()
    async with world.redis:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.deployment.run)
            await world.state("listener-1", "running")
            await world.publish(*range(1000))
            world.deployment.tree.stop("SIGTERM")
        again = World()
        again.redis, again.store, again.calls = world.redis, world.store, world.calls
        again.backends.redis_connect, again.backends.store = world.redis.connect, world.store
        again.deployment = Deployment(again.deployment.system, ActorSettings(), again.backends, instance="i1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(again.deployment.run)
            await again.state("listener-1", "running")
            await again.settled()
            again.deployment.tree.stop("the test is over")
        assert sorted(again.effects) == list(range(1000))


async def test_captured_events_outlive_an_outage_and_never_wait(autojump_clock: trio.testing.MockClock) -> None:
    settings = ActorSettings(capture=CaptureSettings(buffer=100))
    async with World(settings).running() as world:
        world.redis.refuse()
        world.redis.cut()
        await world.state("listener-1", "held")
        taken = [
            world.deployment.capture(Envelope(event_type="ORDER", data={"number": number}), STREAM)
            for number in range(150)
        ]
        # One more than the buffer holds: the actor itself was waiting for the first.
        assert taken == [True] * 101 + [False] * 49
        await trio.sleep(600)
        world.redis.restore()
        await world.state("listener-1", "running")
        await trio.sleep(5)
        await world.settled()
        assert sorted(world.effects) == list(range(101))
        assert world.deployment.producer.statistics()[1].dropped == 49


async def test_a_listener_takes_no_more_than_the_pool_has_room_for(autojump_clock: trio.testing.MockClock) -> None:
    async with World(workers=1, batch=5).running() as world:
        handler = world.deployment.system.streams[STREAM].groups[GROUP].handlers["ORDER"]
        release = trio.Event()

        async def blocks(order: Order, context: Context) -> None:
            await release.wait()
            world.calls.append(order.number)

        object.__setattr__(handler, "call", blocks)
        await world.publish(*range(100))
        await trio.sleep(10)
        backlog = world.deployment.backlogs[f"{GROUP}@{STREAM}"]
        assert backlog.capacity == 10
        assert backlog.room == 0
        groups = await world.deployment.client().xinfo_groups(STREAM)
        assert groups[0]["pending"] == 10
        assert world.view("listener-1").restarts == 0  # waiting for room is no stall
        release.set()
        await world.settled()
        assert world.calls == list(range(100))
