"""docs/examples/orders.py as its reader runs it: one process on embedded servers, and a real mail server."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import psycopg
import pytest
from aiosmtpd.controller import Controller
from attrs import define, field
from installation import Installation, free_port, until

from penstock.runtime.testing.servers import LocalCluster

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@define(eq=False)
class MailServer:
    """aiosmtpd on a port of its own, which can be switched off; it keeps what it takes."""

    port: int = field(factory=free_port)
    mails: list[Message] = field(factory=list)
    controller: Controller | None = None

    def start(self) -> None:
        self.controller = Controller(self, hostname="127.0.0.1", port=self.port)
        self.controller.start()

    def stop(self) -> None:
        if self.controller is not None:
            self.controller.stop()
        self.controller = None

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address.startswith("nobody"):
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        self.mails.append(message_from_bytes(envelope.content))
        return "250 taken"

    def subjects(self) -> list[str]:
        return sorted(f"{mail['To']}: {mail['Subject']}" for mail in self.mails)

    def twice(self) -> list[str]:
        counts = Counter(str(mail["Message-ID"]) for mail in self.mails)
        return [name for name, count in counts.items() if count > 1]


@pytest.fixture
def mail_server() -> Iterator[MailServer]:
    made = MailServer()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def shop(place: Path, mail_server: MailServer) -> Iterator[Installation]:
    environment = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": str(mail_server.port)}
    made = Installation(place, environment=environment, arguments=("run", f"{EXAMPLES / 'orders.py'}:system"))
    try:
        made.start()
        yield made
    finally:
        made.close()


def order(shop: Installation, user: str, key: str | None = None) -> None:
    headers = {} if key is None else {"Idempotency-Key": key}
    status, _, body = shop.request("GET", f"/order?userId={user}&productId=p-1&price=9.50", headers=headers)
    assert status == 202, body


def payments(shop: Installation) -> list[dict[str, str]]:
    found: list[dict[str, str]] = shop.look("/payments")["payments"]
    return found


def test_an_order_is_paid_and_both_are_told_once(shop: Installation, mail_server: MailServer) -> None:
    for _ in range(3):
        order(shop, "ann", key="order 1")
    order(shop, "nobody")
    until(lambda: len(payments(shop)) == 2, 30, "both are paid")
    until(lambda: len(mail_server.mails) == 2, 30, "ann has both mails")
    assert mail_server.subjects() == ["ann@localhost: Your order", "ann@localhost: Your payment"]
    assert {each["price"] for each in payments(shop)} == {"9.50"}
    assert len({each["paymentId"] for each in payments(shop)}) == 2
    until(lambda: len(shop.look("/api/v1/dead-letters")["letters"]) == 2, 30, "nobody's mails are dead letters")


def test_while_the_mail_server_is_away_the_shop_goes_on(shop: Installation, mail_server: MailServer) -> None:
    mail_server.stop()
    for number in range(20):
        order(shop, f"u-{number}")
    until(lambda: len(payments(shop)) == 20, 30, "all are paid")
    until(lambda: not shop.gate("mail")["open"], 30, "the gate is shut")
    status, ready = shop.get("/readyz")
    assert (status, [gate["name"] for gate in ready["gates"]]) == (200, ["mail"])
    mail_server.start()
    until(lambda: len(mail_server.mails) >= 40, 30, "all are told")
    assert mail_server.twice() == []
    assert shop.look("/api/v1/dead-letters")["letters"] == []


def test_killed_between_the_mail_and_the_acknowledgement(shop: Installation, mail_server: MailServer) -> None:
    """The mail is sent, the handler's transaction cannot end, and the process is killed: it is not sent again."""
    home = shop.directory / ".penstock" / "postgres"
    # The embedded server goes with the process, and the lock with the server.
    with (
        suppress(psycopg.OperationalError),
        psycopg.connect(f"host={home} dbname=penstock user=penstock") as connection,
    ):
        connection.execute("lock table mail in access exclusive mode")
        order(shop, "ann")
        until(lambda: len(mail_server.mails) == 2, 30, "both mails are there")
        until(lambda: len(_steps(shop)) == 2, 30, "both are noted")
        shop.kill()
    before = mail_server.subjects()
    shop.start()
    until(lambda: _rows(shop, "mail") == 2, 90, "both are handled")
    assert mail_server.subjects() == before == ["ann@localhost: Your order", "ann@localhost: Your payment"]
    assert _steps(shop) == []


def test_killed_under_load_every_mail_comes_and_payment_ids_differ(shop: Installation, mail_server: MailServer) -> None:
    """At any moment; also within the sending, where nobody can know: the id of the mail tells it is the same."""
    count = 0
    for _ in range(3):
        for _ in range(30):
            order(shop, f"u-{count}")
            count += 1
        time.sleep(0.2)
        shop.kill()
        shop.start()
    until(lambda: len(payments(shop)) == count, 90, "all are paid")
    until(lambda: _rows(shop, "mail") == 2 * count, 90, "all are told")
    assert len({each["paymentId"] for each in payments(shop)}) == count
    assert len({mail["Message-ID"] for mail in mail_server.mails}) == 2 * count
    # At most those that a kill met within the sending: four workers in each of the two groups.
    assert len(mail_server.twice()) <= 3 * 8


def test_on_a_cluster_that_loses_a_master_for_a_while(place: Path, mail_server: MailServer) -> None:
    """It has both streams: orders are accepted all the same, and paid and told when it is back."""
    with LocalCluster.make(masters=3) as cluster:
        environment = {
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(mail_server.port),
            "PENSTOCK_REDIS_URL": cluster.url,
        }
        shop = Installation(place, environment=environment, arguments=("run", f"{EXAMPLES / 'orders.py'}:system"))
        try:
            shop.start()
            owner = cluster.master_of("payment-events")
            assert owner is cluster.master_of("order-events")
            for number in range(30):
                if number == 10:
                    owner.kill()
                order(shop, f"u-{number}")
            until(lambda: not shop.gate("redis")["open"], 30, "the loss is noticed")
            owner.start()
            until(lambda: len(payments(shop)) == 30, 60, "all are paid")
            until(lambda: _rows(shop, "mail") == 60, 60, "all are told")
            assert len({each["paymentId"] for each in payments(shop)}) == 30
            assert mail_server.twice() == []
            assert shop.look("/api/v1/dead-letters")["letters"] == []
        finally:
            shop.close()


def _steps(shop: Installation) -> list[tuple[Any, ...]]:
    return shop.sql("select event_id from penstock_step where state = 'done'")


def _rows(shop: Installation, table: str) -> int:
    return int(shop.sql(f"select count(*) from {table}")[0][0])
