"""The handler pool is cut at every single step of a failing attempt, a due row, a partial batch and a parked event."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import trio

from penstock.actors.backlog import Backlog
from penstock.actors.handling import Context, Delivery, Entry, Permanent
from penstock.actors.retry_table import RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.runtime.testing import Cut, cut_everywhere

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from pool_parts import GROUP, PLACE, STREAM, Child, Order, entry_of, pool_over


class Site:
    """A pool with everything around it in memory; it is started again whenever it was cut."""

    def __init__(self, system: System) -> None:
        self.store = MemoryStore()
        self.backlog = Backlog(100)
        self.stream = system.streams[STREAM]
        self.pool = pool_over(
            self.store,
            self.stream,
            self.stream.groups[GROUP],
            self.backlog,
            postgres_trouble=lambda _: None,
            chance=lambda: 0.5,
        )

    def entries(self, *orders: Order, redelivered: int = -1) -> list[Entry]:
        return [
            entry_of(self.stream, order, f"{n + 1}-0", event_id=order.number, redelivered=n == redelivered)
            for n, order in enumerate(orders)
        ]

    async def work_off(self, cut: Cut, *, by: str) -> None:
        """Run the pool until nothing is left, and let it be cancelled, or its database be lost, at the cut."""
        child: Any = Child()
        while self.backlog.known() or self.store.retries.rows:
            async with trio.open_nursery() as nursery:
                act = cut.cancelling(nursery.cancel_scope, PLACE) if by == "cancel" else cut.calling(self._lose, PLACE)
                with act if cut.point is None else trio.CancelScope():
                    nursery.start_soon(self.pool, child, name=PLACE)
                    while self.backlog.known() or self.store.retries.rows:
                        await trio.sleep(0.3)
                nursery.cancel_scope.cancel()
        assert not self.store.suspects.table.rows
        assert not self.backlog.busy_keys
        assert not self.store.server.open

    def _lose(self) -> None:
        self.store.refuse("cut")
        self.store.restore()

    @property
    def effects(self) -> list[int]:
        return [effect.values[0] for effect in self.store.effects]


async def failing(cut: Cut, by: str) -> None:
    """One that fails twice, one that is refused, one that is fine, one that comes again, and a replayed letter."""
    attempts: list[int] = []
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, workers=1)

    @stream.on(Order, group=GROUP, retry=RetryPolicy(deliveries=3, minimum=0.5, maximum=0.5))
    async def pay(order: Order, context: Context) -> None:
        assert context.delivery is not None
        await context.connection.execute("pay", [order.number])
        if order.number == 1:
            attempts.append(context.delivery.attempt)
            if context.delivery.attempt < 3:
                raise OSError("not yet")
        if order.number == 2:
            raise Permanent("never")

    site = Site(system)
    await _replay(site, 9)
    site.backlog.add(site.entries(*map(Order, range(4)), redelivered=3))
    await site.work_off(cut, by=by)
    assert sorted(site.effects) == [0, 1, 3, 9]
    assert [letter.event_id for letter in site.store.letters] == [UUID(int=2)]
    assert max(attempts) == 3
    assert {event_id.int for _, event_id in site.store.inbox} == {0, 1, 3, 9}


async def _replay(site: Site, number: int) -> None:
    (entry,) = site.entries(Order(number))
    row = RetryRow(
        consumer_group=GROUP,
        stream=STREAM,
        entry_id="0-7",
        event_id=UUID(int=number),
        fields=entry.fields or {},
        origin=RetryOrigin.LETTER,
    )
    async with site.store.transaction() as transaction:
        await site.store.retries.add(transaction, [row])


async def partial_batch(cut: Cut, by: str) -> None:
    """A batch handler of which one event fails, and one for good."""
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, workers=1)

    @stream.on(Order, group=GROUP, batch=True, retry=RetryPolicy(minimum=0.5, maximum=0.5))
    async def pay(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        for delivery in deliveries:
            if delivery.event.number == 1 and delivery.attempt == 1:
                context.fail(delivery, OSError("not yet"))
            elif delivery.event.number == 2:
                context.fail(delivery, Permanent("never"))
            else:
                await context.connection.execute("pay", [delivery.event.number])

    site = Site(system)
    site.backlog.add(site.entries(*map(Order, range(4))))
    await site.work_off(cut, by=by)
    assert sorted(site.effects) == [0, 1, 3]
    assert [letter.event_id for letter in site.store.letters] == [UUID(int=2)]


async def ordered(cut: Cut, by: str) -> None:
    """Two keys, of which one is halted by its first event, and what is parked behind it follows."""
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, workers=2, batch=2, ordered=True)

    @stream.on(Order, group=GROUP, retry=RetryPolicy(minimum=0.5, maximum=0.5))
    async def pay(order: Order, context: Context) -> None:
        assert context.delivery is not None
        await context.connection.execute("pay", [order.number])
        if order.number == 0 and context.delivery.attempt < 2:
            raise OSError("not yet")

    site = Site(system)
    site.backlog.add(site.entries(*(Order(number, "ab"[number % 2]) for number in range(4))))
    await site.work_off(cut, by=by)
    assert [number for number in site.effects if number % 2 == 0] == [0, 2]
    assert [number for number in site.effects if number % 2] == [1, 3]
    assert site.store.letters == []


@pytest.mark.parametrize("by", ["cancel", "lost database"])
@pytest.mark.parametrize("scenario", [failing, partial_batch, ordered], ids=lambda scenario: scenario.__name__)
def test_a_cut_at_every_step_of_a_pool_costs_nothing(
    scenario: Callable[..., Awaitable[None]], by: str, every: int
) -> None:
    points = cut_everywhere(partial(scenario, by=by), every=every, most=1500)
    assert len(points) > 50 / every
