"""Nothing overtakes what waits in the outbox: after a restart, in long requests, and among several processes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define, frozen
from trio.testing import MockClock

from penstock.actors import relay
from penstock.actors.event import Envelope, event, new_event_id
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.sending import Sender
from penstock.actors.spooling import SPOOLED_WITHIN
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

TRYAGAIN = "TRYAGAIN Multiple keys request during rehashing of slot"


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str | None = "c"


def shop(*, partitions: int = 1) -> System:
    system = System("app")
    system.stream("orders", events=[Order], partitions=partitions)
    return system


def row(number: int, customer: str = "c", *, stream: str = "orders", kind: str = "spool") -> OutboxRow:
    event_id = new_event_id()
    data = json.dumps({"number": number, "customer": customer})
    fields = {"eventId": str(event_id), "eventType": "ORDER", "timestamp": "2026-01-01T00:00:00+00:00", "data": data}
    return OutboxRow(stream=stream, event_id=event_id, fields=fields, key=customer, kind=kind)  # type: ignore[arg-type]


async def numbers(app: VirtualDeployment, key: str = "orders") -> list[int]:
    entries = await app.deployment.client().xrange(key)
    return [json.loads(fields[b"data"])["number"] for _, fields in entries]


async def emptied(app: VirtualDeployment) -> None:
    while app.store.outbox.rows:
        await trio.sleep(0.01)


async def test_what_was_spooled_in_an_earlier_life_is_not_overtaken(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was killed while events waited: what is published first after its restart goes behind them."""
    store = MemoryStore()
    async with store.transaction() as transaction:
        await store.outbox.add(transaction, [row(number) for number in range(3)])
    take = store.outbox.take

    async def slow(*args: Any) -> Any:
        await trio.sleep(0.5)
        return await take(*args)

    monkeypatch.setattr(store.outbox, "take", slow)
    async with InProcessRedis() as redis, virtual(shop(), redis=redis, store=store) as app:
        await app.publish("orders", Order(3))
        await emptied(app)
        assert await numbers(app) == [0, 1, 2, 3]


async def test_of_several_streams_none_is_published_to_before_it_is_known_what_waits(
    autojump_clock: MockClock,
) -> None:
    """One look is for all of them, and all wait for it."""
    system = shop()
    system.stream("other", events=[Order])
    async with virtual(system) as app:
        await trio.testing.wait_all_tasks_blocked()
        app.store.outbox._listeners.clear()  # we were deaf when it was written
        async with app.store.transaction() as transaction:
            await app.store.outbox.add(transaction, [row(0, stream="other")])
        app.deployment.publishing._detours.forget()
        _slow(app.store.outbox, "streams")
        async with trio.open_nursery() as nursery:
            for stream in ("orders", "other"):
                nursery.start_soon(app.publish, stream, Order(1))
                await trio.testing.wait_all_tasks_blocked()
        await emptied(app)
        assert await numbers(app, "other") == [0, 1]


async def test_an_outbox_into_which_nobody_can_look_delays_one_burst_and_not_each(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All connections are lent: what waits stays unknown, and everybody goes straight until the next look."""
    async with virtual(shop()) as app:
        await trio.testing.wait_all_tasks_blocked()
        streams, looks = app.store.outbox.streams, 0

        async def stuck() -> list[str]:
            nonlocal looks
            looks += 1
            await trio.sleep_forever()
            raise AssertionError

        relaying = app.deployment.publishing.relay
        monkeypatch.setattr(relaying, "_look", _nothing)
        monkeypatch.setattr(app.store.outbox, "streams", stuck)
        app.deployment.publishing._detours.forget()
        delays: list[float] = []
        for number in range(160):
            before = trio.current_time()
            (result,) = await app.publish("orders", Order(number))
            assert isinstance(result, Published)
            delays.append(trio.current_time() - before)
            await trio.sleep(0.1)
        assert [round(delay) for delay in delays if delay > 0.01] == [SPOOLED_WITHIN] * 2
        assert looks == 2
        monkeypatch.setattr(app.store.outbox, "streams", streams)
        await trio.sleep(10)
        await app.publish("orders", Order(160))
        assert app.deployment.publishing._detours.is_known


async def _nothing(_: object) -> bool:
    return False


async def test_what_is_behind_a_refused_burst_of_the_same_request_is_not_sent(autojump_clock: MockClock) -> None:
    """A request with more events than go in one burst: those of the second do not overtake those of the first."""
    async with virtual(shop()) as app:
        app.lose_database("away")
        app.redis.fail_next("XADD", TRYAGAIN)
        results = await app.publish("orders", *(Order(number) for number in range(1200)))
        assert all(isinstance(result, PublishFailed) for result in results)
        assert len(results) == 1200
        last = results[-1]
        assert isinstance(last, PublishFailed)
        assert "an event before it was refused" in last.reason
        assert (last.outcome_unknown, last.permanent) == (False, False)
        assert await numbers(app) == []


async def test_another_request_in_the_same_breath_is_not_refused_for_that(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.lose_database("away")
        app.redis.fail_next("XADD", TRYAGAIN)
        results: dict[int, list[Any]] = {}

        async def publish(start: int, count: int) -> None:
            results[start] = await app.publish("orders", *(Order(number) for number in range(start, start + count)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, 0, 500)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(publish, 1000, 2)
        assert all(isinstance(result, PublishFailed) for result in results[0])
        assert all(isinstance(result, Published) for result in results[1000])


async def test_processes_do_not_keep_each_other_in_the_outbox(autojump_clock: MockClock) -> None:
    """Under a steady load on both, after an outage: each goes straight again as soon as Redis takes everything."""
    store = MemoryStore()
    for name in ("add", "take", "streams", "remove"):
        _slow(store.outbox, name)
    ways: dict[str, list[str]] = {"one": [], "two": []}

    async def load(name: str, app: VirtualDeployment) -> None:
        async def publish(number: int) -> None:
            (result,) = await app.publish("orders", Order(number, f"{name} {number % 7}"))
            assert isinstance(result, Published)
            ways[name].append(result.durable)

        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(publish, number)
                await trio.sleep(0.002)

    async with (
        InProcessRedis() as redis,
        virtual(shop(), redis=redis, store=store, instance="one") as one,
        virtual(shop(), redis=redis, store=store, instance="two") as two,
    ):
        redis.fail_next("XADD", TRYAGAIN, times=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load, "one", one)
            nursery.start_soon(load, "two", two)
        for found in ways.values():
            assert "outbox" in found
            assert found[-100:] == ["redis"] * 100
        await one.settled()
        for name in ways:
            for customer in range(7):
                mine = await _of(one, f"{name} {customer}")
                assert mine == sorted(mine)
                assert len(set(mine)) == len([number for number in range(500) if number % 7 == customer])


async def _of(app: VirtualDeployment, customer: str) -> list[int]:
    """What came of a customer, each number where it stands first."""
    entries = await app.deployment.client().xrange("orders")
    data = [json.loads(fields[b"data"]) for _, fields in entries]
    return list(dict.fromkeys(each["number"] for each in data if each["customer"] == customer))


def _slow(table: Any, name: str) -> None:
    call = getattr(table, name)

    async def slow(*args: Any) -> Any:
        await trio.sleep(0.02)
        return await call(*args)

    setattr(table, name, slow)


async def test_a_redis_that_freezes_while_a_detour_ends_delays_nobody(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.redis.fail_next("XADD", TRYAGAIN)
        detours = app.deployment.publishing._detours
        end = app.deployment.publishing.relay._end_detour

        async def freeze(stream: str) -> None:
            app.redis.hang()
            async with app.store.transaction() as transaction:
                await app.store.outbox.add(transaction, [row(2)])
            await end(stream)

        app.deployment.publishing.relay._end_detour = freeze  # type: ignore[method-assign]
        await app.publish("orders", Order(1))
        while not detours.turn("orders").locked():
            await trio.sleep(0.001)
        before = trio.current_time()
        (result,) = await app.publish("orders", Order(3))
        assert isinstance(result, Published)
        assert result.durable == "outbox"
        assert trio.current_time() - before < 0.2
        app.deployment.publishing.relay._end_detour = end  # type: ignore[method-assign]
        app.redis.resume()
        await app.settled()
        assert list(dict.fromkeys(await numbers(app))) == [1, 2, 3]


@define
class Lent:
    """A store all of whose connections are lent for so many seconds when it is first asked for one."""

    store: MemoryStore
    seconds: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        seconds, self.seconds = self.seconds, 0.0
        await trio.sleep(seconds)
        async with self.store.transaction() as transaction:
            yield transaction


async def test_a_relay_that_waits_for_a_connection_to_end_a_detour_holds_up_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with virtual(shop()) as app:
        mine = app.deployment.publishing.relay
        end, is_ending = mine._end_detour, trio.Event()

        async def end_without_connections(stream: str) -> None:
            if not is_ending.is_set():
                is_ending.set()
                monkeypatch.setattr(mine, "_store", Lent(app.store, 10.0))
            await end(stream)

        monkeypatch.setattr(mine, "_end_detour", end_without_connections)
        app.redis.fail_next("XADD", TRYAGAIN)
        await app.publish("orders", Order(1))
        await is_ending.wait()
        for number in range(2, 40):
            before = trio.current_time()
            (result,) = await app.publish("orders", Order(number))
            assert isinstance(result, Published)
            assert trio.current_time() - before < 0.1
            await trio.sleep(0.2)
        assert result.durable == "outbox"
        await trio.sleep(5)
        (straight,) = await app.publish("orders", Order(40))
        assert isinstance(straight, Published)
        assert straight.durable == "redis"
        assert await numbers(app) == list(range(1, 41))


async def test_a_database_that_stops_to_answer_while_a_detour_ends_delays_nobody_for_long(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with virtual(shop()) as app:
        turn = app.deployment.publishing._detours.turn("orders")
        take, is_ending = app.store.outbox.take, trio.Event()

        async def slow_take(*args: Any) -> Any:
            if turn.locked() and not is_ending.is_set():
                is_ending.set()
                await trio.sleep(10)
            return await take(*args)

        monkeypatch.setattr(app.store.outbox, "take", slow_take)
        app.redis.fail_next("XADD", TRYAGAIN)
        await app.publish("orders", Order(1))
        await is_ending.wait()
        delays = []
        for number in range(2, 5):
            before = trio.current_time()
            (result,) = await app.publish("orders", Order(number))
            assert isinstance(result, Published)
            assert result.durable == "outbox"
            delays.append(trio.current_time() - before)
        assert delays[0] <= relay.HOLD_AT_MOST + 0.1
        assert max(delays[1:]) < 0.1
        await app.settled()
        (straight,) = await app.publish("orders", Order(5))
        assert isinstance(straight, Published)
        assert straight.durable == "redis"
        assert await numbers(app) == [1, 2, 3, 4, 5]


async def test_who_publishes_and_waits_for_the_connection_of_a_relay_that_ends_a_detour_is_not_refused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is only that one: the relay has it and waits for its turn, and who has the turn waits for it."""
    async with virtual(shop()) as app:
        mine, only, begin = app.deployment.publishing.relay, trio.CapacityLimiter(1), app.store.transaction
        end, is_ending = mine._end_detour, trio.Event()

        @asynccontextmanager
        async def transaction() -> AsyncIterator[Any]:
            async with only, begin() as begun:
                yield begun

        async def end_behind(stream: str) -> None:
            if is_ending.is_set():
                return await end(stream)
            async with trio.open_nursery() as nursery:
                async with app.store.transaction():
                    nursery.start_soon(end, stream)
                    await trio.testing.wait_all_tasks_blocked()
                    is_ending.set()
                    await trio.sleep(0.5)
            return None

        monkeypatch.setattr(app.store, "transaction", transaction)
        monkeypatch.setattr(mine, "_end_detour", end_behind)
        app.redis.fail_next("XADD", TRYAGAIN)
        results: dict[int, Any] = {}

        async def publish(number: int) -> None:
            (results[number],) = await app.publish("orders", Order(number))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, 0)
            await is_ending.wait()
            for number in range(1, 1000):
                nursery.start_soon(publish, number)
                await trio.sleep(0.01)
        assert all(isinstance(result, Published) for result in results.values())
        assert results[1].durable == "outbox"
        assert results[999].durable == "redis"
        await app.settled()
        assert await numbers(app) == list(range(1000))


@define
class Filling:
    """A way to Redis, which is full behind the first burst."""

    sender: Sender

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sender, name)

    async def add(self, entries: Any) -> Any:
        results = await self.sender.add(entries)
        self.sender.gates[1].shut("full")
        return results


async def test_what_is_left_when_redis_is_full_behind_a_full_burst_is_not_overtaken(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing more to do for the relay then, but the outbox is not empty."""
    monkeypatch.setattr(relay, "BURST", 2)
    async with virtual(shop()) as app:
        mine = app.deployment.publishing.relay
        end, sender, is_full = mine._end_detour, mine._sender, trio.Event()
        await trio.sleep(2)
        await app.publish("orders", Order(0))  # it listens by now, and looks: what comes later is heard
        _slow(app.store.outbox, "streams")

        async def end_and_fill(stream: str) -> None:
            monkeypatch.setattr(mine, "_end_detour", end)
            async with app.store.transaction() as transaction:
                await app.store.outbox.add(transaction, [row(number, kind="behind") for number in range(2, 6)])
            monkeypatch.setattr(mine, "_sender", Filling(sender))
            await end(stream)
            monkeypatch.setattr(mine, "_sender", sender)
            sender.gates[1].open()
            is_full.set()

        monkeypatch.setattr(mine, "_end_detour", end_and_fill)
        app.redis.fail_next("XADD", TRYAGAIN)
        await app.publish("orders", Order(1))
        await is_full.wait()
        assert app.deployment.publishing._detours.is_on("orders")
        await app.publish("orders", Order(6))
        await emptied(app)
        assert await numbers(app) == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("every", "published", "gap"),
    [(0.005, 0, 0.04), (0.005, 1, 0.12), (0.001, 1, 0.05), (0.0, 1, 0.04)],
    ids=["nobody publishes", "somebody does", "half of what is relayed comes", "more comes than is relayed"],
)
async def test_the_relay_lets_others_have_the_processor_where_it_can(
    autojump_clock: MockClock, every: float, published: int, gap: float
) -> None:
    """And gains on them all the same: it waited `every` so many seconds for the next of those that wait."""
    async with virtual(shop()) as app:
        sender = app.deployment.publishing.relay._sender
        bursts: list[float] = []

        class Slow:
            def __getattr__(self, name: str) -> Any:
                return getattr(sender, name)

            async def add(self, entries: Any) -> Any:
                bursts.append(trio.current_time())
                await trio.sleep(0.02)
                if published:
                    await app.publish("orders", Order(0))
                await trio.sleep(0.02)
                return await sender.add(entries)

        app.deployment.publishing.relay._sender = Slow()  # type: ignore[assignment]
        app.deployment.publishing._detours.enter("orders")
        app.redis.refuse()
        app.redis.cut()
        await app.deployment.gates["redis"].wait_shut()
        for number in range(8 * relay.BURST):
            async with app.store.transaction() as transaction:
                await app.store.outbox.add(transaction, [row(number)])
            await trio.sleep(every)
        app.redis.restore()
        while len(bursts) < 6:
            await trio.sleep(0.01)
    gaps = [after - before for before, after in pairwise(bursts)]
    assert [round(each, 2) for each in gaps[1:]] == [gap] * len(gaps[1:])


def customer_of(system: System, place: str) -> str:
    stream = system.streams["orders"]
    names = [f"customer {number}" for number in range(50)]
    return next(name for name in names if stream.partition(name, new_event_id()) == place)


async def test_a_partition_with_much_that_it_does_not_take_holds_up_no_other(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of it than the relay looks through at a time stands before what another partition would take."""
    monkeypatch.setattr(relay, "BURSTS", 1)
    system = shop(partitions=2)
    bad, good = system.streams["orders"].keys
    async with virtual(system) as app:
        await app.deployment.client().set(bad, "no stream")
        async with app.store.transaction() as transaction:
            await app.store.outbox.add(transaction, [row(number, customer_of(system, bad)) for number in range(350)])
            await app.store.outbox.add(transaction, [row(number, customer_of(system, good)) for number in range(10)])
        await trio.sleep(5)
        assert await numbers(app, good) == list(range(10))
        async with app.store.transaction() as transaction:
            await app.store.outbox.add(transaction, [row(10, customer_of(system, good))])
        await trio.sleep(0.5)  # not only when the other one has rested
        assert await numbers(app, good) == list(range(11))
        await app.deployment.client().delete(bad)
        with trio.fail_after(60):
            await emptied(app)
        assert await numbers(app, bad) == list(range(350))


@pytest.mark.parametrize("way", ["publish", "publish_many", "publish_if", "capture", "transaction"])
async def test_an_envelope_without_a_key_has_that_of_its_class(autojump_clock: MockClock, way: str) -> None:
    """On every way in: else its order would depend on who publishes it."""
    async with virtual(shop(partitions=4)) as app:
        envelope = Envelope(event_type="ORDER", data={"number": 1, "customer": "c"})
        publishing = app.deployment.publishing
        if way == "publish":
            await app.publish("orders", envelope)
        elif way == "publish_many":
            await app.deployment.publish_many("orders", [envelope])
        elif way == "publish_if":
            await publishing.conditions.set(app.deployment.system.streams["orders"], "open", True)
            await app.deployment.publish_if("orders", envelope, "open")
        elif way == "capture":
            app.deployment.capture(envelope, "orders")
        else:
            async with app.store.transaction() as transaction:
                await publishing.publish_within(transaction, "orders", [envelope])
        await trio.sleep(1)
        home = app.deployment.system.streams["orders"].partition("c", envelope.event_id)
        [(_, fields)] = await app.deployment.client().xrange(home)
        assert fields[b"key"] == b"c"


async def test_data_that_do_not_fit_their_class_have_no_key_and_are_for_the_handler_to_judge(
    autojump_clock: MockClock,
) -> None:
    async with virtual(shop()) as app:
        (result,) = await app.publish("orders", Envelope(event_type="ORDER", data={"customer": "c"}))
        assert isinstance(result, Published)


@pytest.mark.parametrize(("seconds", "lines"), [(10.0, 1), (0.3, 0)])
async def test_an_outage_is_told_by_the_outbox_once_and_a_moment_is_not(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, seconds: float, lines: int
) -> None:
    caplog.set_level("INFO")
    async with virtual(shop()) as app:
        app.redis.refuse()
        app.redis.cut()
        for number in range(3):
            await app.publish("orders", Order(number))
            await trio.sleep(seconds / 3)
        app.redis.restore()
        await emptied(app)
        await trio.sleep(2)
        assert await numbers(app) == [0, 1, 2]
    assert caplog.text.count("events go into the outbox") == lines
    assert caplog.text.count("the outbox is empty again") == lines
    assert not lines or "'events': 3" in caplog.text
