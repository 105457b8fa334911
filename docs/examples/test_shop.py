"""The tutorial's tests: the shop through a day of outage, in virtual time. docs/tutorial.md says how to run them."""

from __future__ import annotations

import trio
from shop import OrderPlaced, system
from trio.testing import MockClock

from penstock.actors.virtual import virtual


async def test_an_order_is_paid_once(autojump_clock: MockClock) -> None:
    async with virtual(system) as shop:
        await shop.publish("order-events", OrderPlaced("o-1", 9.5))
        await shop.settled()
        assert [effect.values for effect in shop.store.effects] == [("o-1", 9.5)]


async def test_orders_are_paid_after_a_day_without_the_database(autojump_clock: MockClock) -> None:
    async with virtual(system) as shop:
        shop.lose_database("the disk is full")
        await shop.publish("order-events", *(OrderPlaced(f"o-{number}", 1.0) for number in range(100)))
        await trio.sleep(24 * 3600)
        assert shop.child("actors/payment@order-events/listener-1").state == "held"
        shop.restore_database()
        await shop.settled()
        assert len(shop.store.effects) == 100
        assert shop.store.letters == []


async def test_an_hour_without_redis_costs_no_restart(autojump_clock: MockClock) -> None:
    async with virtual(system) as shop:
        shop.redis.refuse()
        shop.redis.cut()
        await trio.sleep(3600)
        shop.redis.restore()
        await shop.serving()
        assert shop.child("actors/payment@order-events/listener-1").restarts == 0
        await shop.publish("order-events", OrderPlaced("o-2", 2.0))
        await shop.settled()
        assert len(shop.store.effects) == 1


async def test_a_negative_price_is_a_dead_letter_and_harms_no_other(autojump_clock: MockClock) -> None:
    async with virtual(system) as shop:
        await shop.publish("order-events", OrderPlaced("o-3", 3.0), OrderPlaced("bad", -1.0), OrderPlaced("o-4", 4.0))
        await shop.settled()
        assert sorted(effect.values[0] for effect in shop.store.effects) == ["o-3", "o-4"]
        (letter,) = shop.store.letters
        assert letter.error_message == "order bad has a negative price"
