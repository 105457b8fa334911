"""The system that the simulation runs: a shop, with every kind of group and handler that there is."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid5

from attrs import frozen

from penstock.actors.event import Envelope, event, event_type_of
from penstock.actors.handling import Context, Delivery
from penstock.actors.simulation import Publication, Scenario
from penstock.actors.system import Stream, System

ORDERS, PARCELS = "orders", "parcels"


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str | None


@event("REFUND", max_age=timedelta(seconds=20))
@frozen
class Refund:
    number: int


@event("PARCEL", key="customer")
@frozen
class Parcel:
    order: int
    customer: str | None


def shop(chance: random.Random) -> System:
    """The declaration: which groups there are, and how many partitions, workers and events in a batch, is drawn."""
    system = System("shop")
    orders = system.stream(ORDERS, events=[Order, Refund], partitions=chance.choice([1, 1, 1, 2, 3]))
    chosen = chance.choice([[_payments], [_stock], [_ledger], [_stock, _ledger], [_payments, _stock]])
    for declare in chosen:
        declare(system, orders, chance)
    return system


def _payments(system: System, orders: Stream, chance: random.Random) -> None:
    """A shared group whose handler publishes within its transaction, and who reads that."""
    orders.group("payments", consumers=chance.choice([1, 2]), workers=3, batch=chance.choice([1, 4, 100]), block=5.0)
    parcels = system.stream(PARCELS, events=[Parcel])
    parcels.group("mail", workers=2, batch=4, ordered=chance.random() < 0.5, block=5.0)

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert into payment", [order.number])
        assert context.delivery is not None
        # The parcel's id is made of the order's: whoever publishes it twice has it sent once.
        parcel_id = uuid5(context.delivery.envelope.event_id, "parcel")
        parcel = event_type_of(Parcel).envelope(Parcel(order.number, order.customer), event_id=parcel_id)
        await context.publish(PARCELS, parcel)

    @parcels.on(Parcel, group="mail")
    async def send(parcel: Parcel, context: Context) -> None:
        await context.connection.execute("insert into letter", [parcel.order])


def _stock(system: System, orders: Stream, chance: random.Random) -> None:
    """An ordered group."""
    batch = chance.choice([1, 4, 100])
    orders.group("stock", workers=chance.choice([1, 3]), batch=batch, ordered=True, block=5.0)

    @orders.on(Order, group="stock")
    async def take(order: Order, context: Context) -> None:
        await context.connection.execute("update stock", [order.number])

    @orders.on(Refund, group="stock")
    async def put_back(refund: Refund, context: Context) -> None:
        await context.connection.execute("update stock", [-refund.number])


def _ledger(system: System, orders: Stream, chance: random.Random) -> None:
    """A group with a batch handler and a single one."""
    orders.group("ledger", workers=2, batch=4, block=5.0)

    @orders.on(Order, group="ledger", batch=True)
    async def book(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        for delivery in deliveries:
            await context.connection.execute("insert into ledger", [delivery.event.number])

    @orders.on(Refund, group="ledger")
    async def refund(value: Refund, context: Context) -> None:
        await context.connection.execute("insert into ledger", [-value.number])


def publications(chance: random.Random, system: System) -> list[Publication]:
    """10 to 40 events, most of them with one of a few keys."""
    made = []
    for number in range(chance.randint(10, 40)):
        customer = chance.choice(["ada", "bob", "cleo", None])
        kind, value = ("ORDER", {"number": number, "customer": customer})
        if chance.random() < 0.2:
            kind, value = ("REFUND", {"number": number})
        event_id = UUID(int=chance.getrandbits(128), version=4)
        made.append(Publication(ORDERS, Envelope(event_type=kind, data=value, event_id=event_id, key=customer)))
    return made


SHOP = Scenario(system=shop, publications=publications)
