"""The system that the simulation runs: a shop, with every kind of group and handler that there is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from uuid import UUID

from attrs import frozen

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Delivery
from penstock.actors.simulation import Publication, Scenario
from penstock.actors.system import System

STREAM = "orders"


@event("ORDER")
@frozen
class Order:
    number: int


@event("REFUND")
@frozen
class Refund:
    number: int


def shop(chance: random.Random) -> System:
    """The declaration; some of it is drawn."""
    system = System("shop")
    orders = system.stream(STREAM, events=[Order, Refund])
    orders.group("payments", consumers=2, workers=3, batch=chance.choice([1, 4, 100]), block=5.0)
    orders.group("ledger", workers=2, batch=4, block=1.0)

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert into payment", [order.number])

    @orders.on(Order, group="ledger", batch=True)
    async def book(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        for delivery in deliveries:
            await context.connection.execute("insert into ledger", [delivery.event.number])

    @orders.on(Refund, group="ledger")
    async def refund(value: Refund, context: Context) -> None:
        await context.connection.execute("insert into ledger", [-value.number])

    return system


def publications(chance: random.Random, system: System) -> list[Publication]:
    """10 to 40 events, most of them with one of a few keys."""
    made = []
    for number in range(chance.randint(10, 40)):
        envelope = Envelope(
            event_type="ORDER" if chance.random() < 0.8 else "REFUND",
            data={"number": number},
            event_id=UUID(int=chance.getrandbits(128), version=4),
            key=chance.choice(["a", "b", "c", None]),
        )
        made.append(Publication(STREAM, envelope))
    return made


SHOP = Scenario(system=shop, publications=publications)
