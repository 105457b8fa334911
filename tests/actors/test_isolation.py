"""What was at work at a death is at work with no other suspect; whoever waits for that, or gives up, blocks nobody."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock, wait_all_tasks_blocked

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.isolation import Isolation
from penstock.actors.retrying import RetryPolicy
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.runtime.testing.redis import InProcessRedis


async def test_who_wants_to_be_alone_waits_for_those_at_work_and_goes_before_those_who_come_later() -> None:
    isolation, steps, leave = Isolation(), list[str](), trio.Event()

    async def beside(name: str) -> None:
        async with isolation.beside():
            steps.append(name)
            await leave.wait()

    async def alone(name: str) -> None:
        async with isolation.alone():
            steps.append(f"{name} in")
            await wait_all_tasks_blocked()
            steps.append(f"{name} out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beside, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(alone, "second")
        await wait_all_tasks_blocked()
        assert not isolation.is_open
        nursery.start_soon(beside, "third")
        await wait_all_tasks_blocked()
        assert steps == ["first"]
        leave.set()
    assert steps == ["first", "second in", "second out", "third"]
    assert isolation.is_open


async def test_who_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    isolation, entered, given_up = Isolation(), list[str](), trio.CancelScope()

    async def wait_in_vain() -> None:
        with given_up:
            async with isolation.alone():
                entered.append("alone")

    async def come_later() -> None:
        async with isolation.beside():
            entered.append("later")

    async with isolation.beside(), trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_vain)
        await wait_all_tasks_blocked()
        nursery.start_soon(come_later)
        await wait_all_tasks_blocked()
        assert entered == []
        given_up.cancel()
    assert entered == ["later"]
    assert isolation.is_open


# Outages --------------------------------------------------------------------------------------------------------------

STREAM = "orders"


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str | None = None


class Shop:
    """A group that needs Redis, and one that does not; what is in `failing` fails once more, and so becomes a row."""

    def __init__(self) -> None:
        self.failing: set[tuple[str, int]] = set()
        self.blocks = False
        self.system = System("app")
        stream = self.system.stream(STREAM, events=[Order])
        for name in ("ranking", "payments"):
            stream.group(name, retry=RetryPolicy(minimum=1, maximum=2))
            stream.on(Order, group=name)(self.handler(name))

    def handler(self, group: str) -> Any:
        async def handle(order: Order, context: Context) -> None:
            if self.blocks:
                await trio.sleep_forever()
            if (group, order.number) in self.failing:
                self.failing.remove((group, order.number))
                raise OSError("so that it becomes a row")
            if group == "ranking":
                await context.once_in_redis("count", [("INCR", "{ranking}:orders")])
            await context.connection.execute(group, [order.number])

        return handle


def done(store: MemoryStore, statement: str) -> list[int]:
    return sorted(effect.values[0] for effect in store.effects if effect.statement == statement)


@pytest.mark.parametrize("origin", ["stream", "rows"])
@pytest.mark.parametrize("known", [False, True], ids=["nothing known", "suspects"])
async def test_who_waits_for_redis_keeps_no_other_group_waiting(
    autojump_clock: MockClock, origin: str, known: bool
) -> None:
    """Though what waits, and what does not, was at work when a process was killed; and it counts for no death."""
    shop, store = Shop(), MemoryStore()
    async with InProcessRedis() as redis:
        shop.blocks = origin == "stream"
        shop.failing = {("ranking", 1), ("payments", 1)} if origin == "rows" else set()
        async with virtual(shop.system, redis=redis, store=store) as app:
            (result,) = await app.publish(STREAM, Order(1))
            while origin == "rows" and len(store.retries.rows) < 2:
                await trio.sleep(0.01)
            if origin == "stream":
                await trio.sleep(1)
        if known:
            async with store.transaction() as transaction:
                for group in ("ranking", "payments"):
                    await store.suspects.mark(transaction, group, STREAM, [result.entry_id])  # type: ignore[union-attr]
        before = dict(store.suspects.table.rows)
        redis.answer("out-of-memory")
        async with virtual(Shop().system, redis=redis, store=store) as app:
            with trio.fail_after(60):
                while done(store, "payments") != [1]:
                    await trio.sleep(0.1)
            await trio.sleep(60)
            assert done(store, "ranking") == []
            assert store.suspects.table.rows == {key: times for key, times in before.items() if key[0] == "ranking"}
            redis.heal()
            await app.settled()
    assert (done(store, "ranking"), store.letters, store.suspects.table.rows) == ([1], [], {})


async def test_who_waits_for_redis_keeps_no_turn_of_its_group(autojump_clock: MockClock) -> None:
    """The partitions share the workers of their group: what does not need Redis goes on in the other ones."""
    called, full = trio.Event(), trio.Event()
    system, store = System("app"), MemoryStore()
    stream = system.stream(STREAM, events=[Order], partitions=2)
    stream.group("ranking", workers=1)

    @stream.on(Order, group="ranking")
    async def count(order: Order, context: Context) -> None:
        if order.number == 1:
            called.set()
            await full.wait()
            await context.once_in_redis("count", [("INCR", "{ranking}:orders")])
        await context.connection.execute("count", [order.number])

    places = {stream.partition(key, UUID(int=0)): key for key in "abcdefgh"}
    assert len(places) == 2
    async with InProcessRedis() as redis, virtual(system, redis=redis, store=store) as app:
        one, other = places.values()
        await app.publish(STREAM, Order(1, one))
        await called.wait()
        await app.publish(STREAM, Order(2, other))
        await trio.sleep(1)
        redis.answer("out-of-memory")
        full.set()
        with trio.fail_after(60):
            while done(store, "count") != [2]:
                await trio.sleep(0.1)
        redis.heal()
        await app.settled()
    assert (done(store, "count"), store.letters) == ([1, 2], [])
