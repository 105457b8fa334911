"""A shop with a dashboard of its own, which shows how many orders there are."""

from pathlib import Path
from typing import Any

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.http.pages import pages
from penstock.http.routes import RunningSystem
from penstock.http.topics import topic

HERE = Path(__file__).parent


@event("ORDER_PLACED")
@frozen
class OrderPlaced:
    order_id: str
    price: float


system = System("live-shop")
orders = system.stream("order-events", events=[OrderPlaced])


@orders.on(OrderPlaced, group="sales")
async def sell(order: OrderPlaced, context: Context) -> None:
    await context.connection.execute("insert into sale values (%s, %s)", (order.order_id, order.price))
    context.broadcast("dashboard:orders", "changed")


async def metrics(running: RunningSystem) -> dict[str, Any]:
    async with running.connection() as connection:
        cursor = await connection.execute("select count(*), coalesce(sum(price), 0)::float8 from sale")
        (row,) = await cursor.fetchall()
    return {"orders": row[0], "total": row[1]}


topic(system, "/topic/dashboard/orders", channel="dashboard:orders", first=metrics, at_most_every=0.2)
pages(system, "/dashboard", HERE / "page")
