"""A trio program that publishes to the tutorial's shop, and waits until each order is accepted.

penstock run docs/examples/shop.py:system
python docs/examples/publisher_trio.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os

import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.http.publisher import Publisher, Rejected

URL = os.environ.get("SHOP_URL", "http://127.0.0.1:47170")


@event("ORDER_PLACED", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    price: float


async def main() -> None:
    async with Publisher(URL) as publisher:
        # One: returns when it is accepted, however long that takes.
        accepted = await publisher.publish("order-events", OrderPlaced("trio-0", 9.5))
        print("accepted:", accepted.durable)

        # Many tasks share the requests.
        async with trio.open_nursery() as nursery:
            for number in range(1, 100):
                nursery.start_soon(publisher.publish, "order-events", OrderPlaced(f"trio-{number}", 9.5))

        # Many at a time: each has its own outcome, in order.
        orders = [{"orderId": f"trio-{number}", "price": 9.5} for number in range(100, 1000)]
        orders[7]["price"] = "free"
        outcomes = await publisher.publish_many("order-events", orders, event_type="ORDER_PLACED")
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, Rejected):
                print(f"order {number}: {outcome.problem['detail']}")

        # Without waiting for the outcome; leaving the block does.
        await publisher.send("order-events", OrderPlaced("trio-1000", 9.5))
    statistics = publisher.statistics()
    print(f"{statistics.accepted} accepted, {statistics.rejected} rejected")


if __name__ == "__main__":
    trio.run(main)
