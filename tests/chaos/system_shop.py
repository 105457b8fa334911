"""The system under faults: an ordered group with partitions, a shared group, and a batch handler behind both.

Each event carries its plan, so that whoever sent it knows how it must end. `penstock run system_shop.py:system`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context, Delivery, Permanent
from penstock.actors.retrying import RetryPolicy
from penstock.actors.system import System

__all__ = ["BOOKING", "LEDGER", "SHIPPING", "OrderPlaced", "PaymentDue", "system"]

LEDGER, SHIPPING, BOOKING = "ledger", "shipping", "booking"
PARTITIONS = 4
RETRY = RetryPolicy(deliveries=4, minimum=0.1, maximum=1.0)
TIMEOUT = 2.0
"""Seconds that a handler may take; one whose plan is `slow` takes longer at its first attempt."""

_PROCESS = os.environ.get("CHAOS_PROCESS", "?")


class PlannedFailure(Exception):
    """An attempt that the event's plan lets fail."""


@event("ORDER_PLACED", key="account")
@frozen
class OrderPlaced:
    """`number` counts the events of an account; see `system_plan` for `plan`."""

    account: str | None
    number: int
    plan: str


@event("PAYMENT_DUE")
@frozen
class PaymentDue:
    """Published by the handler of an order, whose event id is `origin`."""

    origin: str
    number: int
    plan: str


system = System("chaos", migrations=Path(__file__).parent / "system_shop_migrations")
orders = system.stream("orders", events=[OrderPlaced], partitions=PARTITIONS)
payments = system.stream("payments", events=[PaymentDue])
orders.group(LEDGER, ordered=True, retry=RETRY)
orders.group(SHIPPING, consumers=2, retry=RETRY)
payments.group(BOOKING, retry=RETRY)


@orders.on(OrderPlaced, group=LEDGER, timeout=TIMEOUT)
async def write_down(order: OrderPlaced, context: Context) -> None:
    """In order of the account."""
    assert context.delivery is not None
    await _follow(order.plan, context.delivery.attempt)
    await _write(context, context.delivery, order.number)


@orders.on(OrderPlaced, group=SHIPPING, timeout=TIMEOUT)
async def ship(order: OrderPlaced, context: Context) -> None:
    """In any order; publishes what the plan says behind ``chain:``."""
    assert context.delivery is not None
    await _follow(order.plan, context.delivery.attempt)
    await _write(context, context.delivery, order.number)
    if order.plan.startswith("chain:"):
        origin = str(context.delivery.envelope.event_id)
        await context.publish("payments", PaymentDue(origin, order.number, order.plan.removeprefix("chain:")))


@payments.on(PaymentDue, group=BOOKING, batch=True)
async def book(deliveries: Sequence[Delivery[PaymentDue]], context: Context) -> None:
    """Many at a time, of which some fail alone."""
    for delivery in deliveries:
        try:
            await _follow(delivery.event.plan, delivery.attempt)
        except (PlannedFailure, Permanent) as error:
            context.fail(delivery, error)
        else:
            await _write(context, delivery, delivery.event.number, delivery.event.origin)


async def _follow(plan: str, attempt: int) -> None:
    if plan == "permanent":
        raise Permanent("planned")
    if plan == "fatal" or (plan.startswith("retry-") and attempt <= int(plan.removeprefix("retry-"))):
        raise PlannedFailure(f"attempt {attempt} of {plan}")
    if plan == "slow" and attempt == 1:
        await trio.sleep(10 * TIMEOUT)


async def _write(context: Context, delivery: Delivery[Any], number: int, origin: str | None = None) -> None:
    envelope = delivery.envelope
    await context.connection.execute(
        "insert into effect (consumer_group, event_id, event_key, number, origin, process, attempt)"
        " values (%s, %s, %s, %s, %s, %s, %s)",
        (context.group, envelope.event_id, envelope.key, number, origin, _PROCESS, delivery.attempt),
    )
