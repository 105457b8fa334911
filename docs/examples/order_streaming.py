"""Order event streaming: one stream, and each service that follows it in a group of its own.

POST /orders/101/complete ─> order-events ─┬─> order-processing    ─> rows: what was sold, and paid
POST /orders/101/pay                       ├─> ranking-update      ─> a sorted set: what is sold most
POST /orders/101/cancel                    ├─> order-notifications ─> a message for the customer
POST /orders/import                        └─> dashboard-updates   ─> rows ─> /topic/dashboard/orders ─> browsers
POST /flash-sale

penstock run --config docs/examples/order_streaming.toml
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from attrs import field as attribute
from attrs import frozen, validators

from penstock.actors.conditional import ConditionNotMet, condition_key
from penstock.actors.event import Envelope, event, event_type_of
from penstock.actors.handling import Context, Delivery
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.publishing import publish_in
from penstock.actors.system import System
from penstock.http.pages import pages
from penstock.http.routes import Blueprint, Problem, RunningSystem, TrioResponse, event_of, json_reply, routes
from penstock.http.topics import topic

if TYPE_CHECKING:
    from penstock.actors.testing import MemoryStore
    from penstock.runtime.postgres import Connection

ORDERS, REPROCESSED = "order-events", "order-events:reprocess"
PROCESSING, RANKING, NOTIFICATIONS = "order-processing", "ranking-update", "order-notifications"
DASHBOARD, RANGE = "dashboard-updates", "ranking-of-a-range"
CHANNEL = "dashboard:orders"
FLASH_SALE = condition_key(ORDERS, "flash-sale")

# The hash tag keeps them, and what notes that an event was counted, in one slot of a cluster.
PRODUCTS, PRODUCTS_OF_RANGE = "{ranking}:products", "{ranking}:products-of-a-range"

ELSEWHERE = uuid5(NAMESPACE_URL, "urn:order-streaming:completed-elsewhere")
HERE = Path(__file__).parent


# Events


@frozen
class Item:
    product_id: int
    quantity: int = attribute(validator=validators.ge(1))
    price: Decimal = Decimal(0)


Items = tuple[Item, ...]


@event("ORDER_COMPLETED", key="order_id")
@frozen
class OrderCompleted:
    order_id: int
    user_id: int
    items: Items
    total_amount: Decimal


@event("ORDER_CANCELLED", key="order_id")
@frozen
class OrderCancelled:
    order_id: int
    user_id: int
    items: Items
    total_amount: Decimal


@event("PAYMENT_COMPLETED", key="order_id")
@frozen
class PaymentCompleted:
    payment_id: int
    order_id: int
    user_id: int
    amount: Decimal


system = System("order-streaming", migrations=HERE / "order_streaming_migrations")
orders = system.stream(ORDERS, events=[OrderCompleted, OrderCancelled, PaymentCompleted])
reprocessed = system.stream(REPROCESSED, events=[OrderCompleted, OrderCancelled, PaymentCompleted])


# Order service: the row and the event, both or neither


@event("ORDER_PLACED")
@frozen
class OrderPlaced:
    """Never published: what POST /orders takes."""

    user_id: int
    items: Items = attribute(validator=validators.min_len(1))


@routes(system)
def order_service(running: RunningSystem) -> Blueprint:
    made = Blueprint("orders", __name__)

    @made.post("/orders")
    async def place() -> TrioResponse:
        order = await event_of(OrderPlaced)
        total = sum((item.price * item.quantity for item in order.items), Decimal(0))
        async with running.connection() as connection, connection.transaction():
            order_id = await _one(
                connection,
                "insert into customer_order (user_id, total_amount) values (%s, %s) returning order_id",
                (order.user_id, total),
            )
            for item in order.items:
                await connection.execute(
                    "insert into order_item (order_id, product_id, quantity, price) values (%s, %s, %s, %s)",
                    (order_id, item.product_id, item.quantity, item.price),
                )
        return json_reply({"orderId": order_id, "totalAmount": str(total)}, 201)

    @made.post("/orders/<int:order_id>/complete")
    async def complete(order_id: int) -> TrioResponse:
        async with running.connection() as connection, connection.transaction():
            user_id, items, total = await _change(connection, order_id, "open", "completed")
            # Committed with the row; the relay puts it into the stream right after.
            [event_id] = await publish_in(connection, orders, OrderCompleted(order_id, user_id, items, total))
        return json_reply({"orderId": order_id, "eventId": str(event_id)})

    @made.post("/orders/<int:order_id>/cancel")
    async def cancel(order_id: int) -> TrioResponse:
        async with running.connection() as connection, connection.transaction():
            user_id, items, total = await _change(connection, order_id, "completed", "cancelled")
            [event_id] = await publish_in(connection, orders, OrderCancelled(order_id, user_id, items, total))
        return json_reply({"orderId": order_id, "eventId": str(event_id)})

    @made.post("/orders/<int:order_id>/pay")
    async def pay(order_id: int) -> TrioResponse:
        async with running.connection() as connection, connection.transaction():
            user_id, _, total = await _change(connection, order_id, "completed", "completed")
            payment_id = await _one(
                connection,
                "insert into payment (order_id, amount) values (%s, %s) on conflict do nothing returning payment_id",
                (order_id, total),
            )
            if payment_id is None:
                raise Problem(409, "order-paid", "Order is paid", f"Order {order_id} is paid already.")
            payment = PaymentCompleted(payment_id, order_id, user_id, total)
            [event_id] = await publish_in(connection, orders, payment)
        return json_reply({"orderId": order_id, "paymentId": payment_id, "eventId": str(event_id)})

    return made


async def _one(connection: Connection[Any], statement: str, values: tuple[Any, ...]) -> Any:
    row = await (await connection.execute(statement, values)).fetchone()
    return None if row is None else row[0]


async def _change(connection: Connection[Any], order_id: int, before: str, after: str) -> tuple[int, Items, Decimal]:
    cursor = await connection.execute(
        "update customer_order set status = %s where order_id = %s and status = %s returning user_id, total_amount",
        (after, order_id, before),
    )
    row = await cursor.fetchone()
    if row is None:
        raise Problem(409, f"order-not-{before}", "Wrong order", f"There is no order {order_id} that is {before}.")
    cursor = await connection.execute(
        "select product_id, quantity, price from order_item where order_id = %s", (order_id,)
    )
    return row[0], tuple(Item(*item) for item in await cursor.fetchall()), row[1]


# Publishing without a transaction: many at once, and on a condition


@event("ORDERS_IMPORTED")
@frozen
class OrdersImported:
    """Never published: what POST /orders/import takes."""

    orders: tuple[OrderCompleted, ...]


@routes(system)
def publisher(running: RunningSystem) -> Blueprint:
    made = Blueprint("publisher", __name__)

    @made.post("/orders/import")
    async def import_orders() -> TrioResponse:
        """Orders that were completed elsewhere; the ids of their entries, in order."""
        given = await event_of(OrdersImported)
        results = await running.publish(ORDERS, [_from_elsewhere(each) for each in given.orders])
        refused = sum(isinstance(each, PublishFailed) for each in results)
        return json_reply({"results": [_told(each) for each in results]}, 503 if refused else 202)

    @made.put("/flash-sale/<any(open,closed):state>")
    async def switch_flash_sale(state: str) -> TrioResponse:
        await (running.client().set(FLASH_SALE, "true") if state == "open" else running.client().delete(FLASH_SALE))
        return json_reply({"flashSale": state})

    @made.post("/flash-sale")
    async def sell() -> TrioResponse:
        """An order that counts only if the sale is open in the very moment in which its event is added."""
        order = await event_of(OrderCompleted)
        result = await running.publish_if(ORDERS, _from_elsewhere(order), "flash-sale")
        if isinstance(result, ConditionNotMet):
            raise Problem(409, "flash-sale-closed", "The flash sale is closed", "It counts only while it is open.")
        return json_reply(_told(result), 503 if isinstance(result, PublishFailed) else 202)

    return made


def _from_elsewhere(order: OrderCompleted) -> Envelope:
    """The same event, and so one effect in each group, however often the order is sent."""
    return event_type_of(OrderCompleted).envelope(order, event_id=uuid5(ELSEWHERE, str(order.order_id)))


def _told(result: Published | PublishFailed) -> dict[str, Any]:
    if isinstance(result, Published):
        return {"eventId": str(result.event_id), "entryId": result.entry_id, "durable": result.durable}
    return {"eventId": str(result.event_id), "refused": result.reason}


# order-processing: what was sold and paid, in rows


@orders.on(OrderCompleted, group=PROCESSING)
async def record_order(order: OrderCompleted, context: Context) -> None:
    await _record(context, order.order_id, order.items, 1)


@orders.on(OrderCancelled, group=PROCESSING)
async def record_cancellation(order: OrderCancelled, context: Context) -> None:
    await _record(context, order.order_id, order.items, -1)


async def _record(context: Context, order_id: int, items: Items, sign: int) -> None:
    for item in items:
        await context.connection.execute(
            "insert into sale (event_id, order_id, product_id, quantity, amount) values (%s, %s, %s, %s, %s)",
            (context.event_id, order_id, item.product_id, sign * item.quantity, sign * item.quantity * item.price),
        )


@orders.on(PaymentCompleted, group=PROCESSING)
async def record_payment(payment: PaymentCompleted, context: Context) -> None:
    await context.connection.execute(
        "insert into income (event_id, order_id, amount) values (%s, %s, %s)",
        (context.event_id, payment.order_id, payment.amount),
    )


@routes(system)
def catalogue(running: RunningSystem) -> Blueprint:
    made = Blueprint("catalogue", __name__)

    @made.put("/products/<int:product_id>/<name>")
    async def add(product_id: int, name: str) -> TrioResponse:
        async with running.connection() as connection:
            await connection.execute(
                "insert into product (product_id, name) values (%s, %s)"
                " on conflict (product_id) do update set name = excluded.name",
                (product_id, name),
            )
        return json_reply({"productId": product_id, "name": name})

    return made


# ranking-update: what is sold most, in Redis


@orders.on(OrderCompleted, group=RANKING)
async def rank_order(order: OrderCompleted, context: Context) -> None:
    await _rank(context, PRODUCTS, order.items, 1)


@orders.on(OrderCancelled, group=RANKING)
async def rank_cancellation(order: OrderCancelled, context: Context) -> None:
    await _rank(context, PRODUCTS, order.items, -1)


async def _rank(context: Context, key: str, items: Items, sign: int) -> None:
    added = [("ZINCRBY", key, sign * item.quantity, str(item.product_id)) for item in items]
    await context.once_in_redis("ranking", [*added, ("ZREMRANGEBYSCORE", key, 0, 0)])


# The same of a range of time that is read again: penstock replay order-events --from … --to …


@reprocessed.on(OrderCompleted, group=RANGE)
async def rank_again(order: OrderCompleted, context: Context) -> None:
    await _rank(context, PRODUCTS_OF_RANGE, order.items, 1)


@reprocessed.on(OrderCancelled, group=RANGE)
async def rank_cancellation_again(order: OrderCancelled, context: Context) -> None:
    await _rank(context, PRODUCTS_OF_RANGE, order.items, -1)


@routes(system)
def ranking(running: RunningSystem) -> Blueprint:
    made = Blueprint("ranking", __name__)

    @made.get("/ranking")
    async def real_time() -> TrioResponse:
        return json_reply({"ranking": await _ranking(running, PRODUCTS)})

    @made.get("/ranking/range")
    async def of_range() -> TrioResponse:
        return json_reply({"ranking": await _ranking(running, PRODUCTS_OF_RANGE)})

    @made.get("/ranking/rows")
    async def of_rows() -> TrioResponse:
        """The same by what order-processing has written: to compare."""
        async with running.connection() as connection:
            cursor = await connection.execute(
                "select product_id, sum(quantity) from sale group by product_id having sum(quantity) <> 0"
            )
            rows = [(str(product), int(quantity)) for product, quantity in await cursor.fetchall()]
        return json_reply({"ranking": _listed(rows)})

    return made


async def _ranking(running: RunningSystem, key: str) -> list[dict[str, Any]]:
    found: Any = await running.client().zrange(key, 0, -1, withscores=True)
    return _listed([(product.decode(), round(score)) for product, score in found])


def _listed(sold: list[tuple[str, int]]) -> list[dict[str, Any]]:
    """The most first."""
    chosen = sorted(sold, key=lambda each: (-each[1], int(each[0])))
    return [{"productId": int(product), "quantity": quantity} for product, quantity in chosen]


# order-notifications: in the order of what happened to each order

orders.group(NOTIFICATIONS, ordered=True)


@orders.on(OrderCompleted, group=NOTIFICATIONS)
async def notify_of_order(order: OrderCompleted, context: Context) -> None:
    await _notify(context, order.user_id, f"Your order {order.order_id} is on its way: {order.total_amount} in all.")


@orders.on(OrderCancelled, group=NOTIFICATIONS)
async def notify_of_cancellation(order: OrderCancelled, context: Context) -> None:
    await _notify(context, order.user_id, f"Your order {order.order_id} is cancelled.")


async def _notify(context: Context, user_id: int, text: str) -> None:
    """A row, from which phones are told; how a mail is sent once, docs/examples/orders.py shows."""
    await context.connection.execute(
        "insert into notification (event_id, user_id, text) values (%s, %s, %s)", (context.event_id, user_id, text)
    )


# dashboard-updates: counted in the transaction, told after its commit


@orders.on(OrderCompleted, group=DASHBOARD, batch=True)
async def show_orders(deliveries: Sequence[Delivery[OrderCompleted]], context: Context) -> None:
    turnover = sum((each.event.total_amount for each in deliveries), Decimal(0))
    await _show(context, completed=len(deliveries), turnover=turnover)


@orders.on(OrderCancelled, group=DASHBOARD, batch=True)
async def show_cancellations(deliveries: Sequence[Delivery[OrderCancelled]], context: Context) -> None:
    turnover = sum((each.event.total_amount for each in deliveries), Decimal(0))
    await _show(context, cancelled=len(deliveries), turnover=-turnover)


@orders.on(PaymentCompleted, group=DASHBOARD, batch=True)
async def show_payments(deliveries: Sequence[Delivery[PaymentCompleted]], context: Context) -> None:
    income = sum((each.event.amount for each in deliveries), Decimal(0))
    await _show(context, paid=len(deliveries), income=income)


NUMBERS = ("version", "completed", "cancelled", "paid", "turnover", "income")


async def _show(
    context: Context,
    *,
    completed: int = 0,
    cancelled: int = 0,
    paid: int = 0,
    turnover: Decimal = Decimal(0),
    income: Decimal = Decimal(0),
) -> None:
    cursor = await context.connection.execute(
        "update dashboard set version = version + 1, completed = completed + %s, cancelled = cancelled + %s,"
        " paid = paid + %s, turnover = turnover + %s, income = income + %s"
        " returning version, completed, cancelled, paid, turnover, income",
        (completed, cancelled, paid, turnover, income),
    )
    [row] = await cursor.fetchall()
    context.broadcast(CHANNEL, _metrics(row))


async def metrics(running: RunningSystem) -> dict[str, Any]:
    async with running.connection() as connection:
        cursor = await connection.execute("select version, completed, cancelled, paid, turnover, income from dashboard")
        [row] = await cursor.fetchall()
    return _metrics(row)


def _metrics(row: tuple[Any, ...]) -> dict[str, Any]:
    """As JSON. A page drops what has a lower version than what it shows: messages may overtake each other."""
    return {name: str(value) if isinstance(value, Decimal) else value for name, value in zip(NUMBERS, row, strict=True)}


topic(system, "/topic/dashboard/orders", channel=CHANNEL, first=metrics)
pages(system, "/dashboard", HERE / "order_streaming_dashboard")


# In memory: no SQL is run there. penstock simulate docs/examples/order_streaming.py:system


def simulation_begins(store: MemoryStore) -> None:
    shown: list[Any] = [0, 0, 0, 0, Decimal(0), Decimal(0)]

    def show(values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        shown[:] = [old + new for old, new in zip(shown, (1, *values), strict=True)]
        return [tuple(shown)]

    store.answer("update dashboard", show)
    store.answer("select version", lambda _: [tuple(shown)])
