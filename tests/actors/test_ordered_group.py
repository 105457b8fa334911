"""Ordered groups: each partition has one owner among all processes, and events of one key come in their order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.lease_table import Lease
from penstock.actors.leasing import LEASE_GATE
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"


@event("ORDER", key="customer")
@frozen
class Order:
    customer: str
    number: int


def orders(who: str, *, partitions: int = 4, takes: float = 0.0, workers: int = 4) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order], partitions=partitions)
    stream.group(GROUP, ordered=True, workers=workers, batch=10)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await trio.sleep(takes)
        await context.connection.execute("insert", [who, order.customer, order.number])

    return system


class Site:
    """Several processes over one Redis and one database."""

    def __init__(
        self,
        redis: InProcessRedis,
        store: MemoryStore,
        nursery: trio.Nursery,
        stack: AsyncExitStack,
        declared: dict[str, float],
    ) -> None:
        self.redis = redis
        self.nursery = nursery
        self.store = store
        self.declared = declared
        self._stack = stack

    async def start(self, who: str) -> VirtualDeployment[InProcessRedis]:
        system = orders(who, **self.declared)  # type: ignore[arg-type]
        running = virtual(system, redis=self.redis, store=self.store, instance=who)
        return await self._stack.enter_async_context(running)

    def handled(self) -> dict[str, list[int]]:
        """The numbers by customer, in the order of the commits."""
        found: dict[str, list[int]] = {}
        for effect in self.store.effects:
            _, customer, number = effect.values
            found.setdefault(customer, []).append(number)
        return found

    def handlers(self) -> set[str]:
        return {effect.values[0] for effect in self.store.effects}


@asynccontextmanager
async def site(**declared: float) -> AsyncIterator[Site]:
    async with InProcessRedis() as redis, trio.open_nursery() as nursery, AsyncExitStack() as stack:
        yield Site(redis, MemoryStore(), nursery, stack, declared)


def owned(process: VirtualDeployment[InProcessRedis]) -> set[str]:
    gates = process.deployment.gates.values()
    return {gate.name for gate in gates if gate.name.startswith(LEASE_GATE) and gate.is_open}


async def publish(process: VirtualDeployment[InProcessRedis], first: int, last: int, customers: int = 8) -> None:
    for number in range(first, last):
        await process.publish(STREAM, *(Order(f"c{customer}", number) for customer in range(customers)))


async def settle(process: VirtualDeployment[InProcessRedis]) -> None:
    with trio.fail_after(120):
        await process.settled()


def in_order(last: int, customers: int = 8) -> dict[str, list[int]]:
    return {f"c{customer}": list(range(last)) for customer in range(customers)}


async def test_one_process_has_all_partitions_and_handles_each_key_in_order(autojump_clock: MockClock) -> None:
    async with site(takes=0.01) as place:
        app = await place.start("a")
        assert len(owned(app)) == 4
        await publish(app, 0, 50)
        await settle(app)
        assert place.handled() == in_order(50)


async def test_the_tree_shows_partitions_and_the_gates_of_their_leases(autojump_clock: MockClock) -> None:
    async with site() as place:
        app = await place.start("a")
        assert app.child("actors/leases").note == "4 of 4 partitions"
        listener = app.child("actors/payments@orders/partition-2/listener-1")
        assert (listener.state, listener.note) == ("running", "payments@1")
        assert f"{LEASE_GATE}payments@{{orders:3}}" in app.deployment.gates


async def test_a_second_process_gets_its_share_in_good_order(autojump_clock: MockClock) -> None:
    """While events flow: no key leaves its order, and nothing is handled twice."""
    async with site(takes=0.02) as place:
        one = await place.start("a")
        done = trio.Event()

        async def publish_on() -> None:
            for number in range(200):
                await publish(one, number, number + 1)
                await trio.sleep(0.1)
            done.set()

        place.nursery.start_soon(publish_on)
        other = await place.start("b")
        with trio.fail_after(60):
            while not len(owned(one)) == len(owned(other)) == 2:
                await trio.sleep(0.1)
            assert not done.is_set(), "it happens while events flow"
            await done.wait()
        await settle(one)
        assert owned(one).isdisjoint(owned(other))
        assert place.handlers() == {"a", "b"}
        assert place.handled() == in_order(200)
        counts = [pool.counts for app in (one, other) for pool in app.deployment.pools.values()]
        assert sum(count.duplicates for count in counts) == 0, "what is handed over in order comes once"


async def test_who_stops_in_order_gives_its_partitions_back_at_once(autojump_clock: MockClock) -> None:
    async with site() as place:
        one = await place.start("a")
        async with virtual(orders("b"), redis=place.redis, store=place.store, instance="b") as other:
            with trio.fail_after(60):
                while len(owned(other)) != 2:
                    await trio.sleep(0.1)
        started = trio.current_time()
        with trio.fail_after(60):
            while len(owned(one)) != 4:
                await trio.sleep(0.1)
        assert trio.current_time() - started < 6, "the next look, and not the end of the lease"
        names = [consumer["name"] for key in one.deployment.system.streams[STREAM].keys
                 for consumer in await one.deployment.client().xinfo_consumers(key, GROUP)]  # fmt: skip
        assert all(name.startswith(b"payments@") for name in names)
        assert len(names) <= 4, "one for each partition, and none of who has left"


async def steal(store: MemoryStore, key: str) -> Lease:
    """What another process does when a lease has ended."""
    async with store.transaction() as transaction:
        (row,) = [row for row in await store.leases.all(transaction) if row.stream == key]
        assert row.owner is not None
        assert await store.leases.release(transaction, Lease(GROUP, key, row.owner, row.epoch))
        taken = await store.leases.take(transaction, GROUP, key, row.owner.__class__(int=7), 3600.0)
        assert taken is not None
        return taken


async def test_who_has_lost_a_partition_without_knowing_commits_nothing(autojump_clock: MockClock) -> None:
    async with site(partitions=1) as place:
        app = await place.start("a")
        await publish(app, 0, 1, customers=1)
        await settle(app)
        await steal(place.store, STREAM)
        await publish(app, 1, 2, customers=1)
        await trio.sleep(10)  # it has looked at its lease meanwhile
        assert place.handled() == {"c0": [0]}
        assert owned(app) == set()
        assert app.child("actors/payments@orders/handler-pool").state == "held"


async def test_who_has_lost_a_partition_without_knowing_reads_nothing(autojump_clock: MockClock) -> None:
    async with site(partitions=1) as place:
        app = await place.start("a")
        await publish(app, 0, 1, customers=1)
        await settle(app)
        client = app.deployment.client()
        # The next owner has begun to read.
        await client.xgroup_createconsumer(STREAM, GROUP, "payments@2")
        await publish(app, 1, 3, customers=1)
        await trio.sleep(3)
        assert (await client.xpending(STREAM, GROUP))["pending"] == 0


async def test_what_a_later_owner_cannot_have_read_is_taken_over_and_its_consumer_removed(
    autojump_clock: MockClock,
) -> None:
    """A process that was frozen and has read behind the next owner's back."""
    async with site(partitions=1, takes=0.01) as place:
        async with virtual(orders("b", partitions=1), redis=place.redis, store=place.store, instance="b"):
            pass  # so that there are a group, and an epoch to be behind
        app = await place.start("a")
        client = app.deployment.client()
        assert app.child("actors/payments@orders/listener-1").note == "payments@2"
        place.redis.refuse()
        place.redis.cut()
        await trio.sleep(1)
        place.redis.restore()
        await app.serving()
        stream = app.deployment.system.streams[STREAM]
        for number in range(20):
            envelope = event_type_of(Order).envelope(Order("c0", number))
            burst = client.pipeline(transaction=True)
            burst.xadd(STREAM, stream.encode(envelope))
            if number % 3 == 0:
                burst.xreadgroup(GROUP, "payments@1", {STREAM: ">"}, count=1)
            assert len(await burst.execute()) == 1 + (number % 3 == 0)
        await settle(app)
        await trio.sleep(3)
        assert place.handled() == in_order(20, customers=1)
        names = [consumer["name"] for consumer in await client.xinfo_consumers(STREAM, GROUP)]
        assert names == [b"payments@2"]


@pytest.mark.parametrize("away", ["redis", "postgres"])
async def test_an_outage_costs_no_partition_and_no_order(autojump_clock: MockClock, away: str) -> None:
    async with site(takes=0.01) as place:
        app = await place.start("a")
        await publish(app, 0, 20)
        if away == "redis":
            place.redis.refuse()
            place.redis.cut()
            await trio.sleep(300)
            place.redis.restore()
        else:
            app.lose_database("stopped")
            await trio.sleep(300)
            app.restore_database()
        await app.serving()
        with trio.fail_after(60):
            while len(owned(app)) != 4:
                await trio.sleep(0.1)
        await publish(app, 20, 40)
        await settle(app)
        assert place.handled() == in_order(40)


async def test_a_process_that_is_gone_is_replaced_when_its_leases_have_ended(autojump_clock: MockClock) -> None:
    settings = ActorSettings(delivery=DeliverySettings(lease_ttl=15.0, heartbeat_every=5.0))
    async with site(takes=0.01) as place, AsyncExitStack() as doomed:
        gone = orders("gone")
        process = await doomed.enter_async_context(
            virtual(gone, settings=settings, redis=place.redis, store=place.store, instance="gone")
        )
        await publish(process, 0, 10)
        await settle(process)
        rows = dict(place.store.leases.table.rows)
        await doomed.aclose()
        # As if it had been killed: its leases and its sign of life are still there.
        place.store.leases.table.rows.update(rows)
        app = await place.start("a")
        started = trio.current_time()
        with trio.fail_after(60):
            while len(owned(app)) != 4:
                await trio.sleep(0.1)
        assert trio.current_time() - started < 15 + 2
        await publish(app, 10, 20)
        await settle(app)
        assert place.handled() == in_order(20)


async def test_a_database_that_is_younger_than_redis_holds_up_no_partition(autojump_clock: MockClock) -> None:
    """It was restored from a backup, say: the epochs of owners begin below those that Redis remembers."""
    async with site() as place:
        app = await place.start("a")
        await app.serving()
        for key in app.deployment.system.streams[STREAM].keys:
            await app.deployment.client().xgroup_createconsumer(key, GROUP, f"{GROUP}@57")
        await publish(app, 0, 20)
        await settle(app)
        assert place.handled() == in_order(20)
        epochs = [row.epoch for row in place.store.leases.table.rows.values()]
        assert all(epoch > 57 for epoch in epochs), epochs
