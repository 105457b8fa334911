"""The tutorial's system: orders come in, payments go into PostgreSQL. `penstock run docs/examples/shop.py:system`"""

from __future__ import annotations

from pathlib import Path

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context, Permanent
from penstock.actors.system import System


@event("ORDER_PLACED")
@frozen
class OrderPlaced:
    order_id: str
    price: float


system = System("shop", migrations=Path(__file__).parent / "shop_migrations")
orders = system.stream("order-events", events=[OrderPlaced])


@orders.on(OrderPlaced, group="payment")
async def pay(order: OrderPlaced, context: Context) -> None:
    if order.price < 0:
        raise Permanent(f"order {order.order_id} has a negative price")
    await context.connection.execute(
        "insert into payment (order_id, price) values (%s, %s)", (order.order_id, order.price)
    )
