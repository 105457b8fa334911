"""One end for each event in each group, by its id: what stands in the stream twice is not done and dead at once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import trio
from attrs import evolve, frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event, event_type_of
from penstock.actors.handling import Context, Delivery, Permanent
from penstock.actors.retry_table import RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
POOL = f"{GROUP}@{STREAM}"
EVENT = UUID(int=7)


@event("ORDER", key="key", max_age=timedelta(hours=1))
@frozen
class Order:
    number: int
    key: str = "k"


Then = Callable[[int], Awaitable[None]]


class Shop:
    """A system whose handler does as it is told, after its effect."""

    def __init__(self, then: Then, **group: Any) -> None:
        self.calls: list[int] = []
        self.then = then
        self.system = System("app")
        self.stream = self.system.stream(STREAM, events=[Order])
        self.stream.group(GROUP, **{"retry": RetryPolicy(deliveries=3, minimum=1, maximum=1), **group})
        self.stream.on(Order, group=GROUP)(self.pay)

    async def pay(self, order: Order, context: Context) -> None:
        self.calls.append(order.number)
        await context.connection.execute("insert", [order.number])
        await self.then(len(self.calls))

    def envelope(self, number: int = 1, event_id: UUID = EVENT, **facts: Any) -> Envelope:
        return evolve(event_type_of(Order).envelope(Order(number)), event_id=event_id, **facts)


async def fine(call: int) -> None:
    """All is well."""


async def never(call: int) -> None:
    raise Permanent("never")


async def not_yet(call: int) -> None:
    raise OSError("not yet")


def only(number: int, then: Then) -> Then:
    """Do that in one call."""

    async def once(call: int) -> None:
        if call == number:
            await then(call)

    return once


def effects(app: VirtualDeployment[Any]) -> list[int]:
    return [effect.values[0] for effect in app.store.effects]


def ends(store: MemoryStore) -> tuple[int, int, int]:
    """How many events are done, dead and waiting."""
    return len(store.inbox), len(store.letters), len(store.retries.rows)


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
@pytest.mark.parametrize("together", [False, True], ids=["one after the other", "together"])
async def test_a_duplicate_of_an_event_that_died_is_over(
    autojump_clock: MockClock, ordered: bool, together: bool
) -> None:
    shop = Shop(only(1, never), ordered=ordered, workers=1)
    async with virtual(shop.system) as app:
        if together:
            await app.publish(STREAM, shop.envelope(), shop.envelope())
        else:
            await app.publish(STREAM, shop.envelope())
            await app.settled()
            await app.publish(STREAM, shop.envelope())
        await app.settled()
        # Tried together with its duplicate, and then once alone.
        assert ends(app.store) == (0, 1, 0) or (together and len(shop.calls) == 2 and ends(app.store) == (1, 0, 0))
        assert len(effects(app)) + len(app.store.letters) == 1


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_an_event_that_fails_for_good_has_one_letter_however_often_it_is_published(
    autojump_clock: MockClock, ordered: bool, workers: int
) -> None:
    shop = Shop(not_yet, ordered=ordered, workers=workers, batch=1)
    async with virtual(shop.system) as app:
        for _ in range(3):
            await app.publish(STREAM, *[shop.envelope()] * 4, shop.envelope(2, UUID(int=8)))
            await trio.sleep(0.7)
        await app.settled()
        await app.publish(STREAM, shop.envelope(), shop.envelope(2, UUID(int=8)))
        await app.settled()
        assert ends(app.store) == (0, 2, 0)
        assert effects(app) == []
        if workers == 1:  # else duplicates may be tried beside each other, and are rolled back
            assert sorted(shop.calls) == [1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_a_duplicate_of_an_event_that_waits_for_a_retry_is_over(autojump_clock: MockClock, ordered: bool) -> None:
    shop = Shop(only(1, not_yet), ordered=ordered, retry=RetryPolicy(minimum=30, maximum=30))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, shop.envelope())
        while not app.store.retries.rows:
            await trio.sleep(0.01)
        await app.publish(STREAM, shop.envelope())
        while not app.deployment.pools[POOL].counts.duplicates:
            await trio.sleep(0.01)
        assert ends(app.store) == (0, 0, 1)
        await app.settled()
        assert ends(app.store) == (1, 0, 0)
        assert effects(app) == [1]


async def test_of_a_batch_with_duplicates_one_fails_and_the_others_are_over(autojump_clock: MockClock) -> None:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, batch=10, retry=RetryPolicy(deliveries=2, minimum=1, maximum=1))
    given: list[int] = []

    @stream.on(Order, group=GROUP, batch=True)
    async def pay(orders: list[Delivery[Order]], context: Context) -> None:
        given.append(len(orders))
        for each in orders:
            context.fail(each, OSError("not this time"))

    shop = Shop(fine)
    async with virtual(system) as app:
        await app.publish(STREAM, *[shop.envelope()] * 5)
        await app.settled()
        assert ends(app.store) == (0, 1, 0)
        assert given[-1] == 1
        assert len(given) <= 4


def parked(shop: Shop, entry: str, origin: RetryOrigin = RetryOrigin.PARKED, **facts: Any) -> RetryRow:
    given: dict[str, Any] = {
        "consumer_group": GROUP,
        "stream": STREAM,
        "entry_id": entry,
        "event_id": EVENT,
        "event_type": "ORDER",
        "event_key": "k",
        "fields": shop.stream.encode(shop.envelope()),
        "origin": origin,
    }
    return RetryRow(**{**given, **facts})


@pytest.mark.parametrize("dies", [True, False])
@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_two_rows_of_one_event_have_one_end(autojump_clock: MockClock, ordered: bool, dies: bool) -> None:
    shop = Shop(never if dies else fine, ordered=ordered, batch=1)
    store = MemoryStore()
    async with store.transaction() as transaction:
        await store.retries.add(transaction, [parked(shop, "1-0"), parked(shop, "2-0")])
    async with InProcessRedis() as redis, virtual(shop.system, redis=redis, store=store) as app:
        await app.settled()
        assert ends(store) == ((0, 1, 0) if dies else (1, 0, 0))
        assert len(shop.calls) == 1


async def test_a_row_that_fails_while_its_event_is_done_elsewhere_leaves_no_letter(autojump_clock: MockClock) -> None:
    """Two rows of one event are in work at once; the one that waits for the other one's end is done."""

    async def then(call: int) -> None:
        if call == 1:
            await trio.sleep(1)
            raise Permanent("never")

    shop = Shop(then, workers=2, batch=1)
    store = MemoryStore()
    async with store.transaction() as transaction:
        await store.retries.add(transaction, [parked(shop, "1-0"), parked(shop, "2-0")])
    async with InProcessRedis() as redis, virtual(shop.system, redis=redis, store=store) as app:
        await app.settled()
        assert sum(ends(store)) == 1, ends(store)
        assert len(effects(app)) == len(store.inbox)


async def test_an_event_that_is_done_does_not_expire_when_it_comes_again(autojump_clock: MockClock) -> None:
    shop = Shop(fine)
    now = datetime(2030, 1, 1, tzinfo=UTC)
    async with virtual(shop.system) as app:
        fresh = shop.envelope(timestamp=datetime.now(UTC))
        await app.publish(STREAM, fresh)
        await app.settled()
        assert ends(app.store) == (1, 0, 0)
        await app.publish(STREAM, evolve(fresh, timestamp=now - timedelta(days=3650)))
        await app.settled()
        assert ends(app.store) == (1, 0, 0)
        assert app.deployment.pools[POOL].counts.duplicates == 1


async def test_a_row_expires_not_if_its_event_is_done_elsewhere(autojump_clock: MockClock) -> None:
    shop = Shop(fine)
    store = MemoryStore()
    async with InProcessRedis() as redis, virtual(shop.system, redis=redis, store=store) as app:
        await app.publish(STREAM, shop.envelope())
        await app.settled()
        old = shop.stream.encode(shop.envelope(timestamp=datetime(2020, 1, 1, tzinfo=UTC)))
        async with store.transaction() as transaction:
            await store.retries.add(transaction, [parked(shop, "1-0", RetryOrigin.ATTEMPT, fields=old, attempts=1)])
        await app.settled()
        assert ends(store) == (1, 0, 0)


async def test_a_replay_of_one_entry_settles_the_letter_of_the_other(autojump_clock: MockClock) -> None:
    shop = Shop(only(1, never))
    store = MemoryStore()
    async with InProcessRedis() as redis, virtual(shop.system, redis=redis, store=store) as app:
        await app.publish(STREAM, shop.envelope())
        await app.settled()
        async with store.transaction() as transaction:
            await store.retries.add(transaction, [parked(shop, "9-9", RetryOrigin.REPLAY, forced=True)])
        await app.settled()
        assert ends(store) == (1, 0, 0)
