"""The relay: what waits in the outbox comes to its stream, in order, and what a stream refuses holds up no other."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import uuid4

import pytest
import trio
import trio.testing
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event, new_event_id
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.settings import ActorSettings, HealthSettings, PublishSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

SETTINGS = ActorSettings(health=HealthSettings(observe_every=1.0))


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str = "c"


def shop(*, partitions: int = 1, lossy_cap: int | None = None) -> System:
    system = System("app")
    system.stream("orders", events=[Order], partitions=partitions, lossy_cap=lossy_cap)
    system.stream("other", events=[Order])
    return system


def row(stream: str, number: int, **members: object) -> OutboxRow:
    fields = {"eventId": str(new_event_id()), "eventType": "ORDER", "timestamp": "2026-01-01T00:00:00+00:00"}
    fields["data"] = json.dumps({"number": number, "customer": "c"})
    return OutboxRow(**{"stream": stream, "event_id": uuid4(), "fields": fields, "kind": "replay", **members})  # type: ignore[arg-type]


async def put(app: VirtualDeployment, *rows: OutboxRow) -> None:
    async with app.store.transaction() as transaction:
        await app.store.outbox.add(transaction, rows)


def slowly(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def slow(*args: Any) -> Any:
        await trio.sleep(0.02)
        return await call(*args)

    return slow


async def numbers(app: VirtualDeployment, key: str = "orders") -> list[int]:
    entries = await app.deployment.client().xrange(key)
    return [json.loads(fields[b"data"])["number"] for _, fields in entries]


async def emptied(app: VirtualDeployment) -> None:
    while app.store.outbox.rows:
        await trio.sleep(0.01)


async def test_what_is_committed_is_on_its_stream_at_once(autojump_clock: MockClock) -> None:
    """NOTIFY wakes the relay: it does not wait for its next look, a minute later."""
    async with virtual(shop()) as app:
        await put(app, *(row("orders", number) for number in range(1200)), row("other", 7))
        with trio.fail_after(0.5):
            await emptied(app)
        assert await numbers(app) == list(range(1200))
        assert await numbers(app, "other") == [7]
        assert app.deployment.publishing.relay.relayed == 1201


async def test_what_was_there_before_the_start_is_relayed(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with store.transaction() as transaction:
        await store.outbox.add(transaction, [row("orders", 1)])
    async with InProcessRedis() as redis, virtual(shop(), redis=redis, store=store) as app:
        with trio.fail_after(1):
            await emptied(app)
        assert await numbers(app) == [1]


async def test_news_that_nobody_heard_are_found(autojump_clock: MockClock) -> None:
    settings = ActorSettings(publish=PublishSettings(look_every=1.0))
    async with virtual(shop(), settings=settings) as app:
        app.store.outbox._listeners.clear()  # a pooler in between that swallows NOTIFY
        await put(app, row("orders", 1))
        with trio.fail_after(2):
            await emptied(app)


async def test_a_stream_that_takes_nothing_holds_up_no_other(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The rows stay, in order, and the stream is tried again with growing pauses; Redis as a whole is not away."""
    async with virtual(shop(), settings=SETTINGS) as app:
        client = app.deployment.client()
        await client.set("orders:dead-letter", "no stream")
        await put(app, *(row("orders:dead-letter", number, kind="mirror") for number in range(3)), row("other", 7))
        await trio.sleep(100)
        assert await numbers(app, "other") == [7]
        assert app.deployment.gates["redis"].is_open
        (view,) = app.deployment.outbox()
        assert (view.stream, view.waiting) == ("orders:dead-letter", 3)
        assert "WRONGTYPE" in view.blocked
        assert view.oldest > 90
        assert app.redis.commands["XADD"] < 100  # probes among them: no hot loop
        assert 1 <= caplog.text.count("does not take what waits") <= 3
        await client.delete("orders:dead-letter")
        with trio.fail_after(11):
            await emptied(app)
        assert await numbers(app, "orders:dead-letter") == [0, 1, 2]
        await trio.sleep(2)
        assert app.deployment.outbox() == []


async def test_a_partition_that_takes_nothing_holds_up_no_other(autojump_clock: MockClock) -> None:
    async with virtual(shop(partitions=3)) as app:
        stream = app.deployment.system.streams["orders"]
        client = app.deployment.client()
        events = [Order(number, f"customer {number % 20}") for number in range(1300)]
        homes = [stream.partition(event.customer, uuid4()) for event in events]
        assert set(homes) == set(stream.keys)
        blocked = stream.keys[0]
        await client.set(blocked, "no stream")
        await put(
            app,
            *(row("orders", each.number, key=each.customer) for each in events),
        )
        await trio.sleep(5)
        for key in stream.keys[1:]:
            assert await numbers(app, key) == [
                each.number for each, home in zip(events, homes, strict=True) if home == key
            ]
        assert len(app.store.outbox.rows) == homes.count(blocked)
        await client.delete(blocked)
        with trio.fail_after(11):
            await emptied(app)
        assert await numbers(app, blocked) == [
            each.number for each, home in zip(events, homes, strict=True) if home == blocked
        ]


async def test_both_ways_lead_to_the_same_partition(autojump_clock: MockClock) -> None:
    """An event with the same key, also an odd one, straight and through the outbox."""
    async with virtual(shop(partitions=5)) as app:
        for customer in ("c-1", "\0 nul", "ü", ""):
            envelope = Envelope(event_type="ORDER", data={"number": 1, "customer": customer}, key=customer)
            (straight,) = await app.publish("orders", envelope)
            assert isinstance(straight, Published)
            app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot")
            (spooled,) = await app.publish("orders", envelope)
            assert isinstance(spooled, Published)
            assert spooled.durable == "outbox"
            await emptied(app)
            keys = app.deployment.system.streams["orders"].keys
            lengths = [await app.deployment.client().xlen(key) for key in keys]
            assert sorted(lengths) == [0, 0, 0, 0, 2]
            await app.deployment.client().flushall()
            await trio.sleep(1)


async def test_a_lossy_cap_holds_on_both_ways(autojump_clock: MockClock) -> None:
    async with virtual(shop(lossy_cap=100)) as app:
        for _ in range(5):
            await app.publish("orders", *(Order(number) for number in range(300)))
        assert await app.deployment.client().xlen("orders") < 500
        await put(app, *(row("orders", number) for number in range(1000)))
        await emptied(app)
        assert await app.deployment.client().xlen("orders") < 500


async def test_without_a_cap_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        for _ in range(5):
            await app.publish("orders", *(Order(number) for number in range(300)))
        assert await app.deployment.client().xlen("orders") == 1500


async def test_a_mirror_tells_its_letter_where_it_is(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        fields = {"originalRecordId": "1-0", "odd": "\udcff"}
        await put(
            app,
            OutboxRow(
                stream="orders:dead-letter", event_id=None, fields=fields, kind="mirror", max_len=10_000, letter_id=7
            ),
        )
        await emptied(app)
        [(entry_id, found)] = await app.deployment.client().xrange("orders:dead-letter")
        assert found == {b"originalRecordId": b"1-0", b"odd": b"\xff"}
        assert app.store.outbox.mirrors.rows == {7: entry_id.decode()}


async def test_a_crash_between_redis_and_the_commit_adds_again(autojump_clock: MockClock) -> None:
    """The duplicate has the same event id: one effect. Nothing is lost."""
    async with virtual(shop()) as app:
        app.store.lose_commit(effect=True)  # the commit of `put` below is the first, the relay's the second
        app.store.lose_commit(effect=False)
        with pytest.raises(Exception, match="lost"):
            await put(app, row("orders", 1))
        await trio.sleep(5)
        await emptied(app)
        assert await numbers(app) == [1, 1]


async def test_two_processes_relay_together_and_add_nothing_twice(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with (
        InProcessRedis() as redis,
        virtual(shop(), redis=redis, store=store, instance="one") as one,
        virtual(shop(), redis=redis, store=store, instance="two") as two,
    ):
        for start in range(0, 2000, 100):
            await put(one, *(row("orders", number) for number in range(start, start + 100)))
        await emptied(two)
        assert await numbers(one) == list(range(2000))


async def test_what_another_process_has_spooled_is_not_overtaken(autojump_clock: MockClock) -> None:
    """It is told by name: from then on this process, too, goes behind it."""
    store = MemoryStore()
    async with (
        InProcessRedis() as redis,
        virtual(shop(), redis=redis, store=store, instance="one") as one,
        virtual(shop(), redis=redis, store=store, instance="two") as two,
    ):
        redis.fail_next("XADD", "OOM command not allowed when used memory > 'maxmemory'.", times=1)
        (spooled,) = await one.publish("orders", Order(1))
        assert isinstance(spooled, Published)
        assert spooled.durable == "outbox"
        assert one.deployment.gates["redis-memory"].is_open is False
        await trio.testing.wait_all_tasks_blocked()
        await two.publish("orders", Order(2))
        await trio.sleep(700)
        await emptied(one)
        assert (await numbers(one))[0] == 1
        (straight,) = await two.publish("orders", Order(3))
        assert isinstance(straight, Published)
        assert straight.durable == "redis"


# Many ---------------------------------------------------------------------------------------------------------------


async def test_many_are_published_in_order_and_taken_as_they_are_accepted(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        taken = 0

        async def events() -> object:  # an async generator, as a database cursor is one
            nonlocal taken
            for number in range(1234):
                taken += 1
                yield Order(number)

        results = await app.deployment.publish_many("orders", events())  # type: ignore[arg-type]
        assert taken == 1234
        ids = [result.entry_id for result in results if isinstance(result, Published)]
        assert [entry_id.decode() for entry_id, _ in await app.deployment.client().xrange("orders")] == ids
        assert await numbers(app) == list(range(1234))


async def test_behind_a_refusal_nothing_is_sent(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.lose_database("away")
        app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot")
        results = await app.deployment.publish_many("orders", (Order(number) for number in range(700)))
        assert all(isinstance(result, PublishFailed) for result in results)
        assert len(results) == 700
        last = results[-1]
        assert isinstance(last, PublishFailed)
        assert "an event before it was refused" in last.reason
        assert await numbers(app) == []


async def test_a_detour_ends_under_load(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while a burst is relayed must not wait for the next one for ever: soon it goes straight again."""
    async with virtual(shop()) as app:
        outbox = app.store.outbox
        for name in ("add", "take", "streams"):
            monkeypatch.setattr(outbox, name, slowly(getattr(outbox, name)))
        app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot")
        ways: list[str] = []

        async def publish(number: int) -> None:
            (result,) = await app.publish("orders", Order(number))
            assert isinstance(result, Published)
            ways.append(result.durable)

        async with trio.open_nursery() as nursery:
            for number in range(1000):
                nursery.start_soon(publish, number)
                await trio.sleep(0.002)
        assert ways[0] == "outbox"
        assert ways.count("outbox") < 500
        await app.settled()
        assert sorted(await numbers(app)) == list(range(1000))
