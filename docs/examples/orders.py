"""Orders, payments and mail: three services over two streams. `penstock run docs/examples/orders.py:system`

    GET or POST /order ──> order-events ──> payment-service-group ──> payment-events
                                │                                          │
                                └──> notification-service-group <──────────┘ ──> mail

The mail server is at SMTP_HOST:SMTP_PORT (localhost:25), the sender MAIL_FROM.
"""

from __future__ import annotations

import os
import smtplib
from decimal import Decimal
from email.headerregistry import Address
from email.message import EmailMessage
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context, Permanent, Unavailable
from penstock.actors.system import System
from penstock.http.routes import Blueprint, RunningSystem, TrioResponse, accept, event_of, json_reply, routes

if TYPE_CHECKING:
    from penstock.actors.testing import MemoryStore

ORDERS, PAYMENTS = "order-events", "payment-events"
PAYMENT, NOTIFICATION = "payment-service-group", "notification-service-group"


@event("ORDER_PLACED", key="user_id")
@frozen
class OrderPlaced:
    user_id: str
    product_id: str
    price: Decimal


@event("PAYMENT_MADE", key="user_id")
@frozen
class PaymentMade:
    user_id: str
    product_id: str
    price: Decimal
    payment_id: int


system = System("order-service", migrations=Path(__file__).parent / "orders_migrations")
orders = system.stream(ORDERS, events=[OrderPlaced])
payments = system.stream(PAYMENTS, events=[PaymentMade])


# Order service


@routes(system)
def shop(running: RunningSystem) -> Blueprint:
    made = Blueprint("shop", __name__)

    @made.get("/order")
    @made.post("/order")
    async def order() -> TrioResponse:
        return await accept(running, ORDERS, await event_of(OrderPlaced))

    @made.get("/payments")
    async def paid() -> TrioResponse:
        async with running.connection() as connection:
            cursor = await connection.execute("select payment_id, user_id, product_id, price from payment order by 1")
            names = ("paymentId", "userId", "productId", "price")
            rows = [dict(zip(names, map(str, row), strict=True)) for row in await cursor.fetchall()]
        return json_reply({"payments": rows})

    return made


# Payment service


@orders.on(OrderPlaced, group=PAYMENT)
async def pay(order: OrderPlaced, context: Context) -> None:
    cursor = await context.connection.execute(
        "insert into payment (order_id, user_id, product_id, price) values (%s, %s, %s, %s) returning payment_id",
        (context.event_id, order.user_id, order.product_id, order.price),
    )
    [(payment_id,)] = await cursor.fetchall()
    await context.publish(PAYMENTS, PaymentMade(order.user_id, order.product_id, order.price, payment_id))


# Notification service


class MailServer:
    """Blocking, in a thread: the standard library's client."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port

    async def probe(self) -> None:
        await trio.to_thread.run_sync(self._ask, abandon_on_cancel=True)

    async def send(self, message: EmailMessage) -> None:
        try:
            # Not abandoned: a mail that is half sent would be neither sent nor not.
            await trio.to_thread.run_sync(partial(self._send, message))
        except smtplib.SMTPRecipientsRefused as error:
            [(code, why)] = error.recipients.values()
            raise self._judged(code, why, error) from error
        except (smtplib.SMTPSenderRefused, smtplib.SMTPDataError) as error:
            raise self._judged(error.smtp_code, error.smtp_error, error) from error
        except OSError as error:  # as all errors of smtplib are
            raise Unavailable("mail", f"{self.host}:{self.port}: {error}") from error

    def _judged(self, code: int, why: bytes | str, error: Exception) -> Exception:
        """A refusal of this mail: for good (5xx), or to be tried again (4xx); 421 is one of everything."""
        text = why.decode(errors="replace") if isinstance(why, bytes) else why
        if code == 421:
            return Unavailable("mail", f"{self.host}:{self.port}: 421 {text}")
        return Permanent(f"the mail server refuses the mail: {code} {text}") if code >= 500 else error

    def _ask(self) -> None:
        with smtplib.SMTP(self.host, self.port, timeout=5) as server:
            server.noop()

    def _send(self, message: EmailMessage) -> None:
        with smtplib.SMTP(self.host, self.port, timeout=10) as server:
            server.send_message(message)


mail_server = MailServer(os.environ.get("SMTP_HOST", "localhost"), int(os.environ.get("SMTP_PORT", "25")))
sender = os.environ.get("MAIL_FROM", "shop@localhost")
system.gate("mail", mail_server.probe)
for stream in (orders, payments):
    stream.group(NOTIFICATION, batch=1, requires=("mail",))


async def notify(context: Context, user_id: str, subject: str, text: str) -> None:
    """Mail once: what was sent is not sent again, whatever becomes of this transaction."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, Address(username=user_id, domain="localhost"), subject
    # The same whenever this event is handled: should a mail ever be sent twice, it can be told.
    message["Message-ID"] = f"<{context.event_id}@order-service>"
    message.set_content(text)
    await context.once("mail", partial(mail_server.send, message))
    await context.connection.execute(
        "insert into mail (message_id, recipient, subject) values (%s, %s, %s)",
        (message["Message-ID"], str(message["To"]), subject),
    )


@orders.on(OrderPlaced, group=NOTIFICATION)
async def confirm_order(order: OrderPlaced, context: Context) -> None:
    await notify(context, order.user_id, "Your order", f"You have ordered {order.product_id} for {order.price}.")


@payments.on(PaymentMade, group=NOTIFICATION)
async def confirm_payment(payment: PaymentMade, context: Context) -> None:
    text = f"You have paid {payment.price} for {payment.product_id}, payment {payment.payment_id}."
    await notify(context, payment.user_id, "Your payment", text)


# In memory: no SQL is run there, and no mail is sent. `penstock simulate docs/examples/orders.py:system`


def number_payments(store: MemoryStore) -> None:
    numbers = count(1)
    store.answer("insert into payment", lambda _: [(next(numbers),)])


def simulation_begins(store: MemoryStore) -> None:
    number_payments(store)

    async def send(_: EmailMessage) -> None:
        await trio.sleep(0.01)

    mail_server.send = send  # type: ignore[method-assign]
