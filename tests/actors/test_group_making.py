"""A group that was lost begins again where no process can have left anything behind."""

from __future__ import annotations

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.group_making import REREAD, GroupMaking
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"


@event("ORDER")
@frozen
class Order:
    number: int


class Shop:
    """A system whose handler hangs with some orders."""

    def __init__(self, hangs: set[int]) -> None:
        self.calls: list[int] = []
        self.system = System("app")
        stream = self.system.stream(STREAM, events=[Order])
        stream.group(GROUP, batch=1)

        @stream.on(Order, group=GROUP)
        async def pay(order: Order, context: Context) -> None:
            self.calls.append(order.number)
            if order.number in hangs:
                await trio.sleep_forever()
            await context.connection.execute("insert", [order.number])


async def test_what_a_dead_process_had_in_hand_is_read_again_by_the_others(autojump_clock: MockClock) -> None:
    store, dies, lives = MemoryStore(), Shop({1}), Shop(set())
    async with InProcessRedis() as redis:
        with trio.CancelScope() as life:
            async with virtual(dies.system, redis=redis, store=store, instance="one") as app:
                await app.publish(STREAM, Order(1))
                while not dies.calls:
                    await trio.sleep(0.01)
                life.cancel()
                await trio.sleep_forever()
        async with virtual(lives.system, redis=redis, store=store, instance="two") as app:
            await app.publish(STREAM, *map(Order, range(2, 6)))
            while len(store.effects) < 4:
                await trio.sleep(0.01)
            await app.deployment.client().xgroup_destroy(STREAM, GROUP)
            await app.publish(STREAM, Order(6))
            await trio.sleep(5)
            await app.settled()
        assert sorted(effect.values[0] for effect in store.effects) == [1, 2, 3, 4, 5, 6]
        assert sorted(lives.calls) == [1, 2, 3, 4, 5, 6]


KNOWN = 1_767_225_600_000
EARLIER = KNOWN - int(REREAD * 1000)


@pytest.mark.parametrize(
    ("declared", "known", "expected"),
    [
        ("0", None, "0"),
        ("$", None, "$"),
        ("5-1", None, "5-1"),
        ("0", f"{KNOWN}-7", f"{EARLIER}-0"),
        ("0", "5-3", "0-0"),
        ("$", f"{KNOWN}-7", f"{KNOWN}-7"),
        (f"{EARLIER}-1", f"{KNOWN}-7", f"{EARLIER}-1"),
        (f"{KNOWN}-3", f"{KNOWN}-7", f"{KNOWN}-3"),
        (f"{KNOWN}", f"{KNOWN}-7", f"{KNOWN}"),
        (f"{KNOWN + 5}-0", f"{KNOWN}-7", f"{KNOWN}-7"),
    ],
)
async def test_it_begins_some_time_before_its_position_and_never_before_its_declared_start(
    declared: str, known: str | None, expected: str
) -> None:
    async def position() -> str | None:
        return known

    made: list[str] = []

    class Connection:
        async def xinfo_groups(self, stream: str) -> list[dict[str, str]]:
            return []

        async def xinfo_stream(self, stream: str) -> dict[str, str]:
            return {"last-generated-id": f"{KNOWN}-9"}

        async def xgroup_create(self, stream: str, group: str, *, id: str, mkstream: bool) -> None:  # noqa: A002
            made.append(id)

    await GroupMaking(STREAM, GROUP, declared, position).make(Connection())  # type: ignore[arg-type]
    assert made == [expected]
