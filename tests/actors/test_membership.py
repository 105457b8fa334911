"""Membership: who is there, who was, and what those may have who cannot work right now."""

from __future__ import annotations

from uuid import UUID

import trio
from attrs import evolve, frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.runtime.testing.redis import InProcessRedis


@event("ORDER")
@frozen
class Order:
    number: int


def orders(name: str = "app") -> System:
    system = System(name)
    stream = system.stream("orders", events=[Order], partitions=2)
    stream.group("payments", ordered=True)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


async def test_each_process_sees_the_others_and_who_stops_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:
        store = MemoryStore()
        async with virtual(orders(), redis=redis, store=store, instance="a") as one:
            async with virtual(orders(), redis=redis, store=store, instance="b") as other:
                await trio.sleep(6)
                seen = [view.member.instance for view in one.deployment.members()]
                assert seen == ["a", "b"] == [view.member.instance for view in other.deployment.members()]
                assert len({view.member.process for view in one.deployment.members()}) == 2
                assert one.child("actors/membership").note == "2 processes"
            assert [row.member.instance for row in store.members.table.rows.values()] == ["a"]
        assert store.members.table.rows == {}


async def test_who_does_not_reach_redis_gets_no_partition(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        (view,) = app.deployment.members()
        assert view.member.groups == ("payments@orders",)
        app.redis.refuse()
        app.redis.cut()
        await trio.sleep(10)
        (view,) = app.deployment.members()
        assert view.member.groups == ()


async def test_processes_of_other_systems_count_for_nothing_here(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis, InProcessRedis() as another:
        store = MemoryStore()
        async with (
            virtual(orders(), redis=redis, store=store, instance="a") as one,
            virtual(orders("other"), redis=another, store=store, instance="b"),
        ):
            await trio.sleep(6)
            assert one.child("actors/membership").note == "1 process"
            assert one.deployment.membership.live_instances() == {"a", "b"}


async def test_who_is_silent_is_forgotten_after_a_day(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        rows = app.store.members.table.rows
        (own,) = rows
        rows[UUID(int=98)] = evolve(rows[own], seen_at=trio.current_time() - 23 * 3600)
        rows[UUID(int=99)] = evolve(rows[own], seen_at=trio.current_time() - 25 * 3600)
        await trio.sleep(600)
        assert set(rows) == {own, UUID(int=98)}
