"""The keeper: what a process leaves behind is handled by others, once; what it works on is left to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"


@event("ORDER")
@frozen
class Order:
    number: int


def orders(who: str, *, takes: float = 0.0, workers: int = 4, batch: int = 100, consumers: int = 1) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, workers=workers, batch=batch, consumers=consumers)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await trio.sleep(takes)
        await context.connection.execute("insert", [who, order.number])

    return system


def handled(store: MemoryStore) -> list[int]:
    return sorted(effect.values[1] for effect in store.effects)


@asynccontextmanager
async def client_of(redis: InProcessRedis) -> AsyncIterator[Redis]:
    async with Redis(RedisOptions(), connect=redis.connect) as client:
        yield client


async def consumers(app: VirtualDeployment[InProcessRedis]) -> dict[str, int]:
    rows = await app.deployment.client().xinfo_consumers(STREAM, GROUP)
    return {row["name"].decode(): row["pending"] for row in rows}


async def test_what_a_dead_process_held_is_handled_elsewhere_and_its_consumer_removed(
    autojump_clock: MockClock,
) -> None:
    async with InProcessRedis() as redis, client_of(redis) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        async with virtual(orders("a"), redis=redis) as app:
            dead = f"{GROUP}-1:dead"
            for number in range(150):
                await client.xgroup_createconsumer(STREAM, GROUP, dead)
                await app.publish(STREAM, Order(number))
            await app.settled()
        assert handled(app.store) == list(range(150))
        # Another 150 go to a consumer whose process is killed right then.
        store = app.store
        async with virtual(orders("b"), redis=redis, store=store, instance="b") as other:
            app.store.effect_table.rows.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_take_and_die, client, dead, 150)
                await trio.testing.wait_all_tasks_blocked(0.01)
                await other.publish(STREAM, *(Order(number) for number in range(150)))
            taken = (await consumers(other)).get(dead, 0)
            assert taken > 0
            started = trio.current_time()
            with trio.fail_after(300):
                await other.settled()
            assert 60 - 1 < trio.current_time() - started < 60 + 20
            assert handled(store) == list(range(150))
            with trio.fail_after(300):
                while dead in await consumers(other):
                    await trio.sleep(1)


async def _take_and_die(client: Redis, consumer: str, count: int) -> None:
    with trio.move_on_after(1.0):
        await client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=count, block=900)


async def test_what_waits_in_a_backlog_for_long_is_not_taken_away(autojump_clock: MockClock) -> None:
    """One of two processes has more to do than it can do in the idle time; the other looks on."""
    settings = ActorSettings(delivery=DeliverySettings(handler_timeout=30.0))
    async with (
        InProcessRedis() as redis,
        virtual(orders("slow", takes=20.0, workers=1, batch=1), settings=settings, redis=redis) as slow,
    ):
        await slow.publish(STREAM, *(Order(number) for number in range(8)))
        await trio.sleep(1)
        held = (await consumers(slow))[f"{GROUP}-1:test"]
        assert held == 2, "one in work, one waiting"
        async with virtual(orders("quick"), settings=settings, redis=redis, store=slow.store, instance="b") as quick:
            await trio.sleep(300)
            with trio.fail_after(300):
                await quick.settled()
            pools = [app.deployment.pools[f"{GROUP}@{STREAM}"] for app in (slow, quick)]
        assert handled(slow.store) == list(range(8))
        assert sum(pool.counts.duplicates for pool in pools) == 0
        assert [effect.values[0] for effect in slow.store.effects].count("slow") >= 2


async def test_who_stops_gives_back_what_it_has_not_handled_and_leaves_no_consumer(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:
        store = MemoryStore()
        async with virtual(orders("b", takes=1.0, workers=1, batch=1), redis=redis, store=store, instance="b") as other:
            async with virtual(
                orders("a", takes=4.0, workers=1, batch=1, consumers=2), redis=redis, store=store, instance="a"
            ) as app:
                await app.publish(STREAM, *(Order(number) for number in range(12)))
                await trio.sleep(1)
                assert sum(pending for name, pending in (await consumers(app)).items() if name.endswith(":a")) > 1
            started = trio.current_time()
            with trio.fail_after(300):
                await other.settled()
            assert handled(store) == list(range(12))
            assert trio.current_time() - started < 40, "taken at the next look, not after the idle time"
            assert set(await consumers(other)) <= {f"{GROUP}-1:b", f"{GROUP}-1:a", f"{GROUP}-2:a"}
            with trio.fail_after(300):
                while set(await consumers(other)) != {f"{GROUP}-1:b"}:
                    await trio.sleep(1)


async def test_a_consumer_of_somebody_else_is_never_removed_but_what_it_left_is_taken_over(
    autojump_clock: MockClock,
) -> None:
    async with InProcessRedis() as redis, client_of(redis) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        await client.xgroup_createconsumer(STREAM, GROUP, "EVENT_CONSUMER-1")
        async with virtual(orders("a"), redis=redis) as app:
            await app.publish(STREAM, Order(1))
            await app.settled()
            entry_id = (await client.xadd(STREAM, (await client.xrange(STREAM))[0][1])).decode()
            await client.xclaim(STREAM, GROUP, "EVENT_CONSUMER-1", 0, [entry_id], force=True, justid=True)
            with trio.fail_after(300):
                await app.settled()
            await trio.sleep(600)
            assert await consumers(app) == {"EVENT_CONSUMER-1": 0, f"{GROUP}-1:test": 0}


async def test_what_somebody_else_has_taken_over_leaves_the_backlog(autojump_clock: MockClock) -> None:
    """A process that was frozen for longer than the idle time."""
    async with (
        InProcessRedis() as redis,
        client_of(redis) as client,
        virtual(orders("a", takes=25.0, workers=1, batch=1), redis=redis) as app,
    ):
        await app.publish(STREAM, Order(1), Order(2))
        await trio.sleep(1)
        working, waiting = (row["message_id"] for row in await client.xpending_range(STREAM, GROUP, "-", "+", 10))
        await client.xclaim(STREAM, GROUP, "thief", 0, [working, waiting], justid=True)
        await trio.sleep(22)
        backlog = app.deployment.backlogs[f"{GROUP}@{STREAM}"]
        assert backlog.known() == {working.decode()}, "what is in work is finished"
        await client.xack(STREAM, GROUP, waiting)  # the thief has handled it
        with trio.fail_after(300):
            await app.settled()
        assert handled(app.store) == [1]


async def test_entries_that_were_trimmed_while_pending_are_buried_and_acknowledged(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis, client_of(redis) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        entry_id = await client.xadd(STREAM, {"eventType": "ORDER"})
        await client.xreadgroup(GROUP, f"{GROUP}-1:dead", {STREAM: ">"})
        await client.xdel(STREAM, entry_id)
        async with virtual(orders("a"), redis=redis) as app:
            with trio.fail_after(300):
                while not app.store.letters or (await client.xpending(STREAM, GROUP))["pending"]:
                    await trio.sleep(1)
            (letter,) = app.store.letters
            assert (letter.entry_id, letter.reason.value) == (entry_id.decode(), "trimmed")


@pytest.mark.parametrize("ordered", [True, False], ids=["that-became-ordered", "that-was-ordered"])
async def test_nothing_is_stranded_in_a_group(autojump_clock: MockClock, ordered: bool) -> None:
    """Under the names that the same installation had when the group was declared the other way."""
    async with InProcessRedis() as redis, client_of(redis) as client:
        await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        system = orders("a")
        system.streams[STREAM].groups[GROUP].ordered = ordered
        encoded = system.streams[STREAM].encode(event_type_of(Order).envelope(Order(1)))
        await client.xadd(STREAM, encoded)
        before = f"{GROUP}-1:test" if ordered else f"{GROUP}@7"
        await client.xreadgroup(GROUP, before, {STREAM: ">"})
        async with virtual(system, redis=redis) as app:
            with trio.fail_after(300):
                await app.settled()
                assert handled(app.store) == [1]
                while before in await consumers(app):
                    await trio.sleep(1)


async def test_no_error_of_the_keepers_commands_costs_a_restart(autojump_clock: MockClock) -> None:
    async with virtual(orders("a")) as app:
        for reply in ("BUSY Redis is busy running a script.", "LOADING Redis is loading the dataset in memory"):
            app.redis.fail_next("EVALSHA", reply, times=5)
            await trio.sleep(200)
        await app.deployment.client().delete(STREAM)
        await trio.sleep(100)
        await app.publish(STREAM, Order(1))
        with trio.fail_after(300):
            await app.settled()
        group = app.child(f"actors/{GROUP}@{STREAM}")
        assert {view.path: view.restarts for view in group.walk() if view.restarts} == {}
