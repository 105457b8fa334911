"""The ordered stop of a process with many partitions and groups: as long as the slowest drain, and nothing is lost."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.stopping import DRAIN_WITHIN, Stopping
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, PARTITIONS = "orders", 12
GROUPS = {"billing": False, "stock": False, "shipping": True, "mails": True}


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str


class Shop:
    """A system of four groups, two of them ordered, whose handlers take so long for each event."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.begun = 0
        self.system = System("app")
        stream = self.system.stream(STREAM, events=[Order], partitions=PARTITIONS)
        for name, ordered in GROUPS.items():
            stream.group(name, ordered=ordered, workers=PARTITIONS, batch=1)
            stream.on(Order, group=name)(self.handler(name))

    def handler(self, group: str) -> Any:
        async def handle(order: Order, context: Context) -> None:
            self.begun += 1
            await context.connection.execute(group, [order.number])
            await trio.sleep(self.seconds)

        return handle


def orders(count: int) -> list[Order]:
    return [Order(number, str(number)) for number in range(count)]


def done(store: MemoryStore) -> list[tuple[str, int]]:
    return sorted((effect.statement, effect.values[0]) for effect in store.effects)


@pytest.mark.parametrize(("seconds", "within"), [(2.0, 4.0), (1000.0, DRAIN_WITHIN + 4.0)])
async def test_the_stop_takes_as_long_as_the_slowest_drain(
    autojump_clock: MockClock, seconds: float, within: float
) -> None:
    shop, store = Shop(seconds), MemoryStore()
    async with InProcessRedis() as redis:
        async with virtual(shop.system, redis=redis, store=store) as app:
            await app.publish(STREAM, *orders(48))
            while shop.begun < len(GROUPS) * PARTITIONS:
                await trio.sleep(0.01)
            began = trio.current_time()
            app.deployment.tree.stop("SIGTERM")
            begun = shop.begun
            with app.deployment.tree.subscribe() as events:
                async for _ in events:
                    pass
            assert trio.current_time() - began < within
            assert shop.begun == begun  # nothing new was taken up
            if seconds < DRAIN_WITHIN:
                assert len(store.effects) == begun  # what was in work was finished
        # What was not handled is handled by the next process, and nothing twice.
        shop.seconds = 0.0
        async with virtual(shop.system, redis=redis, store=store) as app:
            await app.settled()
    assert done(store) == sorted((group, number) for group in GROUPS for number in range(48))


async def test_a_block_ends_when_the_stop_begins(autojump_clock: MockClock) -> None:
    stopping, left = Stopping(), list[float]()

    async def wait() -> None:
        with stopping.until():
            await trio.sleep_forever()
        left.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(wait)
        await trio.sleep(3)
        assert not stopping.has_begun
        assert stopping.deadline(5.0) == float("inf")
        stopping.begin()
        await trio.sleep(2)
        stopping.begin()
        assert stopping.deadline(5.0) == pytest.approx(left[0] + 5.0)
        nursery.start_soon(wait)  # begun already: left at once
    assert len(left) == 3
