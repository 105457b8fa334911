"""The order service through outages and restarts, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from email.message import EmailMessage

import orders
import pytest
import trio
from trio.testing import MockClock

from penstock.actors.handling import Permanent, Unavailable
from penstock.actors.step_table import Step
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.http.testing import client_of
from penstock.runtime.testing.redis import InProcessRedis


class Mailbox:
    """A mail server that one can switch off."""

    def __init__(self) -> None:
        self.away = ""
        self.mails: list[EmailMessage] = []

    async def send(self, message: EmailMessage) -> None:
        await trio.sleep(0.05)
        if self.away:
            raise Unavailable("mail", self.away)
        if message["To"] == "nobody@localhost":
            raise Permanent("the mail server refuses the mail: 550 no such user")
        self.mails.append(message)

    def subjects(self) -> list[str]:
        return sorted(f"{mail['To']}: {mail['Subject']}" for mail in self.mails)


@pytest.fixture
def mailbox(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mailbox]:
    box = Mailbox()
    monkeypatch.setattr(orders.mail_server, "send", box.send)
    return box


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    orders.number_payments(store)
    return store


async def test_an_order_is_paid_and_both_are_told(
    autojump_clock: MockClock, mailbox: Mailbox, store: MemoryStore
) -> None:
    async with virtual(orders.system, store=store) as shop:
        client = client_of(shop.deployment)
        assert (await client.get("/order?userId=ann&productId=p-1&price=9.50")).status_code == 202
        assert (await client.post("/order", json={"userId": "bob", "productId": "p-2", "price": 3})).status_code == 202
        await shop.settled()
        entries = await shop.deployment.client().xrange("payment-events")
    assert len(entries) == 2
    assert mailbox.subjects() == [
        "ann@localhost: Your order",
        "ann@localhost: Your payment",
        "bob@localhost: Your order",
        "bob@localhost: Your payment",
    ]


async def test_payment_ids_differ_across_instances_and_restarts(
    autojump_clock: MockClock, mailbox: Mailbox, store: MemoryStore
) -> None:
    async with InProcessRedis() as redis:
        for life in ("first", "second"):
            async with (
                virtual(orders.system, redis=redis, store=store, instance="one") as one,
                virtual(orders.system, redis=redis, store=store, instance="two") as two,
            ):
                for number in range(10):
                    await one.publish("order-events", orders.OrderPlaced(f"{life}-{number}", "p", Decimal(1)))
                await one.settled()
                await two.settled()
    paid = [effect.values[1] for effect in store.effects if "into payment" in effect.statement]
    assert len(paid) == len(set(paid)) == 20
    told = [mail.get_content().rpartition("payment ")[2] for mail in mailbox.mails if mail["Subject"] == "Your payment"]
    assert len(told) == len(set(told)) == 20


async def test_while_the_mail_server_is_away_payments_go_on_and_no_mail_is_lost(
    autojump_clock: MockClock, mailbox: Mailbox, store: MemoryStore
) -> None:
    async with virtual(orders.system, store=store) as shop:
        mailbox.away = "421 closing"
        shop.lose("mail", "connection refused")
        for number in range(20):
            await shop.publish("order-events", orders.OrderPlaced(f"u-{number}", "p", Decimal(1)))
        await trio.sleep(1800)
        assert sum("into payment" in effect.statement for effect in store.effects) == 20
        assert mailbox.mails == []
        mailbox.away = ""
        shop.restore("mail")
        await shop.settled()
    assert len(mailbox.mails) == len({mail["Message-ID"] for mail in mailbox.mails}) == 40
    assert store.letters == []


async def test_a_mail_that_was_sent_is_not_sent_again_when_the_database_goes_away_before_the_commit(
    autojump_clock: MockClock, mailbox: Mailbox, store: MemoryStore
) -> None:
    async with virtual(orders.system, store=store) as shop:
        end = store.steps.end

        async def note_and_lose(step: Step) -> None:
            await end(step)
            if step.stream == "order-events":
                store.steps.end = end  # type: ignore[method-assign]
                shop.lose_database("the disk is full")

        store.steps.end = note_and_lose  # type: ignore[method-assign]
        await shop.publish("order-events", orders.OrderPlaced("ann", "p", Decimal(1)))
        await trio.sleep(60)
        assert "ann@localhost: Your order" in mailbox.subjects()
        assert not any("into mail" in effect.statement for effect in store.effects)
        shop.restore_database()
        await shop.settled()
    assert mailbox.subjects().count("ann@localhost: Your order") == 1
    assert sum("into mail" in effect.statement for effect in store.effects) == 2


async def test_a_recipient_who_does_not_exist_is_a_dead_letter_and_holds_up_nobody(
    autojump_clock: MockClock, mailbox: Mailbox, store: MemoryStore
) -> None:
    async with virtual(orders.system, store=store) as shop:
        for user in ("nobody", "ann"):
            await shop.publish("order-events", orders.OrderPlaced(user, "p", Decimal(1)))
        await shop.settled()
        assert [letter.error_message for letter in store.letters] == [
            "the mail server refuses the mail: 550 no such user"
        ] * 2
    assert mailbox.subjects() == ["ann@localhost: Your order", "ann@localhost: Your payment"]
