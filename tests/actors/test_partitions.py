"""Streams with partitions: read, followed and settled over all of them; never with another number than before."""

from __future__ import annotations

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.producer import Published
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster

STREAM, GROUP = "orders", "payments"


@event("ORDER", key="customer")
@frozen
class Order:
    customer: str
    number: int


def orders(partitions: int, *, ordered: bool = False) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order], partitions=partitions)
    stream.group(GROUP, ordered=ordered)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.customer, order.number])

    return system


def some(count: int) -> list[Order]:
    return [Order(f"c{number % 7}", number) for number in range(count)]


async def lengths(app: VirtualDeployment[InProcessRedis]) -> list[int]:
    return [await app.deployment.client().xlen(key) for key in app.deployment.system.streams[STREAM].keys]


async def test_a_shared_group_reads_all_partitions(autojump_clock: MockClock) -> None:
    async with virtual(orders(3)) as app:
        await app.publish(STREAM, *some(60))
        with trio.fail_after(60):
            await app.settled()
        assert sorted(effect.values[1] for effect in app.store.effects) == list(range(60))
        assert sum(await lengths(app)) == 60
        assert sum(length > 0 for length in await lengths(app)) > 1
        assert app.child("actors/payments@orders/partition-2/listener-1").state == "running"


async def test_the_partitions_of_a_group_share_its_workers(autojump_clock: MockClock) -> None:
    at_work, most = 0, 0
    system = System("app")
    stream = system.stream(STREAM, events=[Order], partitions=4)
    stream.group(GROUP, workers=2, batch=1)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        nonlocal at_work, most
        at_work, most = at_work + 1, max(most, at_work + 1)
        await trio.sleep(1)
        at_work -= 1

    async with virtual(system) as app:
        await app.publish(STREAM, *some(20))
        with trio.fail_after(60):
            await app.settled()
    assert most == 2


async def test_the_tail_shows_all_partitions_each_entry_once(autojump_clock: MockClock) -> None:
    async with virtual(orders(3)) as app:
        await app.publish(STREAM, *some(10))
        seen: list[int] = []

        async def follow(after: str) -> None:
            async for _, envelope in app.deployment.tail(STREAM, after):
                seen.append(envelope.data["number"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, "$")
            await trio.sleep(1)
            for order in some(30)[10:]:
                await app.publish(STREAM, order)
                await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        assert seen == list(range(10, 30))
        seen.clear()
        with trio.move_on_after(2):
            await follow("0")
        assert sorted(seen) == list(range(30))


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_partitions_are_on_all_nodes_of_a_cluster(autojump_clock: MockClock, ordered: bool) -> None:
    async with InProcessCluster() as cluster, virtual(orders(6, ordered=ordered), redis=cluster) as app:
        await app.publish(STREAM, *some(60))
        with trio.fail_after(120):
            await app.settled()
        by_key: dict[str, list[int]] = {}
        for effect in app.store.effects:
            by_key.setdefault(effect.values[0], []).append(effect.values[1])
        if not ordered:
            by_key = {key: sorted(numbers) for key, numbers in by_key.items()}
        assert by_key == {f"c{each}": list(range(each, 60, 7)) for each in range(7)}
        # Keepers, too, reach each partition where it is.
        await trio.sleep(60)
        group = app.child(f"actors/{GROUP}@{STREAM}")
        assert {view.path: view.restarts for view in group.walk() if view.restarts} == {}


async def test_another_number_of_partitions_is_refused_until_it_is_mended(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:
        store = MemoryStore()
        async with virtual(orders(2), redis=redis, store=store) as app:
            await app.publish(STREAM, *some(5))
            await app.settled()
        async with trio.open_nursery() as nursery:
            running = VirtualDeployment(orders(4), app.deployment.settings, redis, store, instance="test", seed=0)
            nursery.start_soon(running.deployment.run)
            gate = running.deployment.gates["redis"]
            await trio.sleep(60)
            assert not gate.is_open
            assert "was made with 2 partitions and is declared with 4" in gate.cause
            assert "declare partitions=2" in gate.cause
            results = await running.publish(STREAM, *some(6)[5:])
            assert [each.durable for each in results if isinstance(each, Published)] == ["outbox"]
            store.streams.table.rows.clear()  # an operator says: let it be made anew
            with trio.fail_after(60):
                await gate.wait_open()
                await running.settled()
            assert len(store.effects) == 6
            running.deployment.tree.stop("the test is over")
