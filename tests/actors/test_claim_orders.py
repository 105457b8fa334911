"""Entries that somebody orders to be claimed: handled by the process that is asked, once, and only what may be."""

from __future__ import annotations

import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.claim_order import ClaimOutcome, ClaimResult, KeeperHeld
from penstock.actors.event import event, new_event_id
from penstock.actors.handling import Context
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
App = VirtualDeployment[InProcessRedis]
SLOW = ActorSettings(delivery=DeliverySettings(reclaim_idle=3600.0, reclaim_every=600.0))


@event("ORDER")
@frozen
class Order:
    number: int


def orders(takes: float = 0.0, *, workers: int = 4, batch: int = 100) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, workers=workers, batch=batch)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await trio.sleep(takes)
        await context.connection.execute("insert", [order.number])

    return system


async def left_by_a_dead_consumer(app: App, count: int) -> list[str]:
    """Have a consumer of a process that is gone hold entries; their ids."""
    app.lose_database("away")
    await trio.sleep(5)  # until the last blocked read of ours is over
    client = app.deployment.client()
    for number in range(count):
        known = {"eventType": "ORDER", "eventId": str(new_event_id()), "timestamp": "2026-03-01T00:00:00Z"}
        await client.xadd(STREAM, {**known, "data": f'{{"number": {number}}}'})
    await client.xreadgroup(GROUP, "theirs", {STREAM: ">"}, count=count)
    app.restore_database()
    await trio.sleep(10)
    return [each["message_id"].decode() for each in await client.xpending_range(STREAM, GROUP, "-", "+", 1000)]


async def claim(app: App, ids: list[str], idle: float = 1.0) -> list[ClaimResult]:
    return await app.deployment.claim([STREAM], GROUP, ids, idle=idle, by="the test")


def outcomes(found: list[ClaimResult]) -> dict[str, ClaimOutcome]:
    return {each.entry_id: each.outcome for each in found}


def handled(app: App) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


async def test_what_is_claimed_is_handled_here_at_once_and_the_rest_is_left(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=SLOW) as app:
        ids = await left_by_a_dead_consumer(app, 3)
        found = await claim(app, ids[:2])
        await trio.sleep(1)
        assert handled(app) == [0, 1]
        assert outcomes(found) == {ids[0]: ClaimOutcome.CLAIMED, ids[1]: ClaimOutcome.CLAIMED}
        assert {each.consumer for each in found} == {"theirs"}
        assert all(each.idle is not None and each.idle >= 10 for each in found)
        left = await app.deployment.client().xpending_range(STREAM, GROUP, "-", "+", 10)
        again = await claim(app, ids[:1])
    assert [each["message_id"].decode() for each in left] == ids[2:]
    assert outcomes(again) == {ids[0]: ClaimOutcome.NOT_PENDING}


async def test_what_was_touched_lately_is_left_alone_unless_nothing_is_asked(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=SLOW) as app:
        (entry_id,) = await left_by_a_dead_consumer(app, 1)
        assert outcomes(await claim(app, [entry_id], idle=60.0)) == {entry_id: ClaimOutcome.BUSY}
        await trio.sleep(1)
        assert handled(app) == []
        assert outcomes(await claim(app, [entry_id], idle=0.0)) == {entry_id: ClaimOutcome.CLAIMED}
        await trio.sleep(1)
        assert handled(app) == [0]


async def test_what_this_process_is_at_work_on_is_not_begun_twice(autojump_clock: MockClock) -> None:
    async with virtual(orders(takes=20.0), settings=SLOW) as app:
        await app.publish(STREAM, Order(0))
        await trio.sleep(5)
        (row,) = await app.deployment.client().xpending_range(STREAM, GROUP, "-", "+", 10)
        entry_id = row["message_id"].decode()
        assert outcomes(await claim(app, [entry_id], idle=0.0)) == {entry_id: ClaimOutcome.HERE}
        await app.settled()
        pool = app.deployment.pools[f"{GROUP}@{STREAM}"]
    assert (handled(app), pool.counts.duplicates) == ([0], 0)


async def test_two_processes_at_one_entry_have_one_effect(autojump_clock: MockClock) -> None:
    """By force, while its handler is at work elsewhere."""
    async with InProcessRedis() as redis, virtual(orders(takes=20.0), settings=SLOW, redis=redis) as slow:
        await slow.publish(STREAM, Order(0))
        await trio.sleep(5)
        async with virtual(orders(), settings=SLOW, redis=redis, store=slow.store, instance="b") as quick:
            (row,) = await quick.deployment.client().xpending_range(STREAM, GROUP, "-", "+", 10)
            entry_id = row["message_id"].decode()
            assert outcomes(await claim(quick, [entry_id], idle=0.0)) == {entry_id: ClaimOutcome.CLAIMED}
            await trio.sleep(60)
        await slow.settled()
    assert handled(slow) == [0]


async def test_an_entry_that_was_deleted_becomes_a_dead_letter(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=SLOW) as app:
        (entry_id,) = await left_by_a_dead_consumer(app, 1)
        await app.deployment.client().xdel(STREAM, entry_id)
        assert outcomes(await claim(app, [entry_id])) == {entry_id: ClaimOutcome.GONE}
        await trio.sleep(5)
        assert [(letter.entry_id, letter.reason) for letter in app.store.letters] == [(entry_id, "trimmed")]


async def test_no_more_is_claimed_than_there_is_room_for(autojump_clock: MockClock) -> None:
    async with virtual(orders(takes=20.0, workers=1, batch=1), settings=SLOW) as app:
        ids = await left_by_a_dead_consumer(app, 4)
        found = list(outcomes(await claim(app, ids)).values())
        assert found == [ClaimOutcome.CLAIMED] * 2 + [ClaimOutcome.NO_ROOM] * 2
        await trio.sleep(50)
        assert handled(app) == [0, 1]


async def test_a_keeper_that_is_held_is_told(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=SLOW) as app:
        ids = await left_by_a_dead_consumer(app, 1)
        app.lose_database("away")
        await trio.sleep(5)
        try:
            await claim(app, ids)
        except KeeperHeld as error:
            told = str(error)
        app.restore_database()
        await trio.sleep(30)
        assert "no answer from keeper.payments@orders" in told
        assert handled(app) == [], "an order that nobody waits for any more is not carried out"


async def test_an_order_outlives_a_moment_without_redis(autojump_clock: MockClock) -> None:
    async with virtual(orders(), settings=SLOW) as app:
        ids = await left_by_a_dead_consumer(app, 1)
        app.redis.refuse()
        app.redis.cut()
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(claim, app, ids)
            await trio.sleep(1)
            app.redis.restore()
        await trio.sleep(5)
        assert handled(app) == [0]
