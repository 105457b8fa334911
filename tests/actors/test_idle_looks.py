"""What an idle handler pool costs: one of its workers looks for rows that are due, and the others sleep."""

from __future__ import annotations

from unittest.mock import patch

from attrs import frozen
from trio import Event, fail_after, sleep
from trio.testing import MockClock

from penstock.actors.backlog import Backlog
from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context
from penstock.actors.retry_row import RetryOrigin, RetryRow
from penstock.actors.system import System
from penstock.actors.virtual import virtual

WORKERS = 8


@event("ORDER")
@frozen
class Order:
    slow: bool


async def test_a_look_that_finds_nothing_wakes_nobody(autojump_clock: MockClock) -> None:
    system, looks = System("app"), 0
    orders = system.stream("orders", events=[Order])
    orders.group("payments", workers=WORKERS)

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None: ...

    real = Backlog._pick

    def pick(self: Backlog, limit: int) -> list[object]:
        nonlocal looks
        looks += 1
        return real(self, limit)  # type: ignore[return-value]

    async with virtual(system):
        await sleep(70)
        with patch.object(Backlog, "_pick", pick):
            looks = 0
            await sleep(600)
    # Each worker sees its entry to the wait once for each look that it makes itself.
    assert 60 <= looks <= 130


async def test_while_one_worker_is_busy_another_looks(autojump_clock: MockClock) -> None:
    """Also for a row that nobody told of: somebody has written it by hand."""
    system, busy, done = System("app"), Event(), Event()
    orders = system.stream("orders", events=[Order])
    orders.group("payments", workers=2)

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        if order.slow:
            busy.set()
            await sleep(20)
        else:
            done.set()

    async with virtual(system) as app:
        await sleep(5)
        await app.deployment.publish("orders", [Envelope(event_type="ORDER", data={"slow": True})])
        await busy.wait()
        fields = {"eventId": "0196f1f0-0000-7000-8000-000000000001", "eventType": "ORDER", "data": '{"slow":false}'}
        fields["timestamp"] = "2026-01-01T00:00:00+00:00"
        row = RetryRow(
            consumer_group="payments", stream="orders", entry_id="1-1", fields=fields, origin=RetryOrigin.REPLAY
        )
        async with app.store.transaction() as transaction:
            await app.store.retries.add(transaction, [row])
        with fail_after(11):
            await done.wait()
