"""What is set of groups takes effect, and groups that are only made are made, kept and left alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context, Delivery
from penstock.actors.made_groups import LOOK_EVERY
from penstock.actors.settings import ActorSettings, HealthSettings, PublishSettings
from penstock.actors.stream_settings import GroupSettings, StreamSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.trimming import trim
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import EPOCH, InProcessRedis

STREAM, GROUP, OTHER = "orders", "payment", "ranking"
LATER = datetime.fromtimestamp(EPOCH, UTC) + timedelta(days=9)


@event("ORDER")
@frozen
class Order:
    number: int


class Shop:
    """A system that notes how large the batches of its group are."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.system = System("app")
        stream = self.system.stream(STREAM, events=[Order])

        @stream.on(Order, group=GROUP, batch=True)
        async def pay(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
            self.sizes.append(len(deliveries))
            for delivery in deliveries:
                await context.connection.execute("insert", [delivery.event.number])


def set_to(**groups: GroupSettings) -> ActorSettings:
    return ActorSettings(
        streams={STREAM: StreamSettings(groups=groups)},
        health=HealthSettings(interval_up=600.0, observe_every=3600.0),
        publish=PublishSettings(look_every=60.0),
    )


def paid(store: MemoryStore) -> list[int]:
    return sorted(effect.values[0] for effect in store.effects)


async def groups_of(app: VirtualDeployment[InProcessRedis]) -> dict[str, str]:
    """The groups in Redis, and how far each was given the stream."""
    found = await app.deployment.client().xinfo_groups(STREAM)
    return {each["name"].decode(): each["last-delivered-id"].decode() for each in found}


async def test_batch_and_consumers_are_as_set(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with virtual(shop.system, settings=set_to(payment=GroupSettings(batch=2, consumers=3, workers=1))) as app:
        await app.publish(STREAM, *map(Order, range(9)))
        await app.settled()
        assert paid(app.store) == list(range(9))
        children = [child.id for child in app.child(f"actors/{GROUP}@{STREAM}").children]
    assert max(shop.sizes) == 2
    assert children == ["keeper", "handler-pool", "listener-1", "listener-2", "listener-3"]


async def test_without_settings_the_same_events_are_one_batch(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with virtual(shop.system) as app:
        await app.publish(STREAM, *map(Order, range(9)))
        await app.settled()
    assert shop.sizes == [9]


async def test_a_group_that_is_not_enabled_waits_for_a_process_that_reads_it(autojump_clock: MockClock) -> None:
    shop, store = Shop(), MemoryStore()
    off = set_to(payment=GroupSettings(enabled=False))
    async with InProcessRedis() as redis:
        async with virtual(shop.system, settings=off, redis=redis, store=store) as app:
            await app.publish(STREAM, *map(Order, range(3)))
            await app.settled()
            await trio.sleep(60)
            assert await groups_of(app) == {GROUP: "0-0"}
            assert app.child(f"actors/{GROUP}@{STREAM}").children == ()
            assert paid(store) == []
            async with virtual(shop.system, redis=redis, store=store, instance="other") as other:
                await other.settled()
            assert paid(store) == [0, 1, 2]


async def test_what_a_group_that_is_not_enabled_has_not_read_is_not_trimmed(autojump_clock: MockClock) -> None:
    async with virtual(Shop().system, settings=set_to(payment=GroupSettings(enabled=False))) as app:
        await app.publish(STREAM, *map(Order, range(300)))
        client, stream = app.deployment.client(), app.deployment.system.streams[STREAM]
        report = await trim(client, stream, LATER)
        assert [(held.group, held.why) for held in report.held_back] == [(GROUP, "unread")]
        await client.xgroup_destroy(STREAM, GROUP)
        report = await trim(client, stream, LATER)
        assert [(held.group, held.why) for held in report.held_back] == [(GROUP, "missing")]
        assert await client.xlen(STREAM) == 300


@pytest.mark.parametrize("name", [GROUP, OTHER])
async def test_a_group_that_starts_at_the_end_has_what_came_since_it_was_first_set(
    autojump_clock: MockClock, name: str
) -> None:
    """Were it made by its reader alone, what is published before that comes would be passed over."""
    enabled = False if name == GROUP else None
    async with virtual(Shop().system, settings=set_to(**{name: GroupSettings(start="$", enabled=enabled)})) as app:
        await app.publish(STREAM, Order(1))
        [[_, entries]] = await app.deployment.client().xreadgroup(name, "reader", {STREAM: ">"})
        assert len(entries) == 1


async def test_another_programs_group_is_made_and_left_alone(autojump_clock: MockClock) -> None:
    async with virtual(Shop().system, settings=set_to(ranking=GroupSettings())) as app:
        await app.publish(STREAM, *map(Order, range(300)))
        await app.settled()
        await trio.sleep(60)
        client, system = app.deployment.client(), app.deployment.system
        assert (await groups_of(app))[OTHER] == "0-0"
        assert await client.xinfo_consumers(STREAM, OTHER) == []
        assert f"{OTHER}@{STREAM}" not in app.deployment.pools
        assert app.child(f"actors/{OTHER}@{STREAM}").restarts == 0
        report = await trim(client, system.streams[STREAM], LATER)
        assert [(held.group, held.why) for held in report.held_back] == [(OTHER, "unread")]
        await client.xgroup_destroy(STREAM, OTHER)
        report = await trim(client, system.streams[STREAM], LATER)
        assert [(held.group, held.why) for held in report.held_back] == [(OTHER, "missing")]
        assert await client.xlen(STREAM) == 300


async def test_another_programs_group_that_is_lost_begins_again_before_what_it_had_in_hand(
    autojump_clock: MockClock,
) -> None:
    async with virtual(Shop().system, settings=set_to(ranking=GroupSettings(start="$"))) as app:
        client = app.deployment.client()
        await app.publish(STREAM, *map(Order, range(5)))
        [[_, entries]] = await client.xreadgroup(OTHER, "reader", {STREAM: ">"})
        ids = [entry_id for entry_id, _ in entries]
        await client.xack(STREAM, OTHER, ids[0], ids[1], ids[3])
        await trio.sleep(LOOK_EVERY + 1)
        await client.xgroup_destroy(STREAM, OTHER)
        await trio.sleep(LOOK_EVERY + 1)
        [[_, entries]] = await client.xreadgroup(OTHER, "reader", {STREAM: ">"})
        assert [entry_id for entry_id, _ in entries] == ids[2:]


async def test_another_programs_group_is_made_in_every_partition_also_after_an_outage(
    autojump_clock: MockClock,
) -> None:
    settings = ActorSettings(streams={STREAM: StreamSettings(partitions=3, groups={OTHER: GroupSettings()})})
    async with virtual(Shop().system, settings=settings) as app:
        app.redis.refuse()
        app.redis.cut()
        await trio.sleep(60)
        assert app.child(f"actors/{OTHER}@{STREAM}").state == "held"
        app.redis.restore()
        await app.serving()
        client = app.deployment.client()
        for key in app.deployment.system.streams[STREAM].keys:
            assert {each["name"] for each in await client.xinfo_groups(key)} >= {OTHER.encode()}
        assert app.child(f"actors/{OTHER}@{STREAM}").note == "another program's: made, and left alone"


async def test_the_length_that_is_set_holds(autojump_clock: MockClock) -> None:
    settings = ActorSettings(streams={STREAM: StreamSettings(max_len=100)})
    async with virtual(Shop().system, settings=settings) as app:
        for _ in range(10):
            await app.publish(STREAM, *map(Order, range(100)))
        await app.settled()
        assert 100 <= await app.deployment.client().xlen(STREAM) < 300
