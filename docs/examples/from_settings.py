"""Handlers as plain functions, of which docs/examples/from_settings.toml makes a system.

penstock run --config docs/examples/from_settings.toml
PENSTOCK_PROFILE=prod penstock run --config docs/examples/from_settings.toml
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from attrs import frozen

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context


async def complete(order: dict[str, Any], context: Context) -> None:
    """It is given the event's data as they are."""
    await context.connection.execute(
        "insert into sale (order_id, price) values (%s, %s)"
        " on conflict (order_id) do update set price = excluded.price",
        (order["orderId"], order["price"]),
    )


@event("ORDER_CANCELLED")
@frozen
class OrderCancelled:
    order_id: str


async def cancel(order: OrderCancelled, context: Context) -> None:
    """It is given an object, for its parameter says so; data that do not fit are refused when they are published."""
    await context.connection.execute(
        "insert into sale (order_id, cancelled) values (%s, true)"
        " on conflict (order_id) do update set cancelled = true",
        (order.order_id,),
    )


# In memory: penstock simulate --config docs/examples/from_settings.toml


def simulation_events(chance: Random) -> Iterator[tuple[str, object]]:
    """Nobody else knows what data `complete` takes."""
    for _ in range(chance.randint(10, 30)):
        order = f"o-{chance.randrange(5)}"
        completed = Envelope(event_type="ORDER_COMPLETED", data={"orderId": order, "price": 9.5})
        yield "order-events", chance.choice([completed, OrderCancelled(order)])
