"""Publishing on a condition: judged in the moment in which the event is added, and never later."""

from __future__ import annotations

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.conditional import ConditionNotMet, condition_key, condition_keys
from penstock.actors.event import Envelope, event
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.redis_cluster import InProcessCluster


@event("ORDER")
@frozen
class Order:
    number: int


def shop(partitions: int = 1) -> System:
    system = System("app")
    system.stream("orders", events=[Order], partitions=partitions, lossy_cap=1000)
    return system


def order(key: str | None = None) -> Envelope:
    return Envelope(event_type="ORDER", data={"number": 1}, key=key)


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ("orders", "{orders}:condition:open"),
        ("{orders:0}", "{orders:0}:condition:open"),
        ("shop:{a}:orders", "shop:{a}:orders:condition:open"),
        ("odd{}name", "{odd{}name}:condition:open"),
    ],
)
def test_a_condition_is_in_the_slot_of_its_stream(place: str, key: str) -> None:
    assert condition_key(place, "open") == key
    if "{}" not in place:
        assert slot_of(key) == slot_of(place)


async def test_an_event_is_published_only_while_its_condition_holds(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        deployment = app.deployment
        conditions, stream = deployment.publishing.conditions, deployment.system.streams["orders"]
        first, second, third = order(), order(), order()
        assert await deployment.publish_if("orders", first, "open") == ConditionNotMet(first.event_id, "open")
        await conditions.set(stream, "open", True)
        assert await conditions.holds(stream, "open")
        published = await deployment.publish_if("orders", second, "open")
        assert isinstance(published, Published)
        assert (published.event_id, published.durable) == (second.event_id, "redis")
        await deployment.client().set(condition_key("orders", "open"), "True")  # only the exact word counts
        assert isinstance(await deployment.publish_if("orders", third, "open"), ConditionNotMet)
        await conditions.set(stream, "open", False)
        assert not await conditions.holds(stream, "open")
        entries = await deployment.client().xrange("orders")
        assert [entry_id.decode() for entry_id, _ in entries] == [published.entry_id]
        assert entries[0][1][b"eventId"].decode() == str(second.event_id)


async def test_each_partition_has_its_own(autojump_clock: MockClock) -> None:
    async with InProcessCluster() as cluster, virtual(shop(partitions=4), redis=cluster) as app:
        deployment = app.deployment
        stream = deployment.system.streams["orders"]
        assert len(condition_keys(stream, "open")) == 4
        await deployment.publishing.conditions.set(stream, "open", True)
        for number in range(20):
            result = await deployment.publish_if("orders", order(f"key {number}"), "open")
            assert isinstance(result, Published), result
        lengths = [await deployment.client().xlen(key) for key in stream.keys]
        assert sum(lengths) == 20
        assert all(lengths)


async def test_a_condition_is_not_judged_later(autojump_clock: MockClock) -> None:
    """While Redis is away, and as long as events wait in the outbox, it is refused and not spooled."""
    async with virtual(shop()) as app:
        deployment = app.deployment
        await deployment.publishing.conditions.set(deployment.system.streams["orders"], "open", True)
        app.redis.refuse()
        refused = await deployment.publish_if("orders", order(), "open")
        assert isinstance(refused, PublishFailed)
        assert app.store.outbox.rows == []
        await app.publish("orders", Order(1))
        assert len(app.store.outbox.rows) == 1
        app.redis.restore()
        await deployment.gates["redis"].wait_open()
        behind = await deployment.publish_if("orders", order(), "open")
        assert isinstance(behind, PublishFailed)
        assert "outbox" in behind.reason
        await app.settled()
        await trio.sleep(0.1)
        assert isinstance(await deployment.publish_if("orders", order(), "open"), Published)


async def test_what_cannot_be_written_is_refused_for_good(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        failed = await app.deployment.publish_if("orders", order("\ud800"), "open")
        assert isinstance(failed, PublishFailed)
        assert failed.permanent
