"""Publishing within a transaction: with it or not at all, from handlers, from psycopg, and from SQL."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import JSON_CODEC, Envelope, InvalidEvent, Origin, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.outbox_table import unpack
from penstock.actors.publishing import publish_in, publish_in_sync
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.postgres import Connection, Pool, PostgresOptions


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str = "c"


@event("PAYMENT", key="customer")
@frozen
class Payment:
    number: int
    customer: str = "c"


@event("UNRELATED")
@frozen
class Unrelated:
    pass


def shop(what: Any = None) -> System:
    """Orders are paid: each payment is published by the transaction that handles its order."""
    system = System("app")
    orders = system.stream("orders", events=[Order])
    payments = system.stream("payments", events=[Payment])

    @orders.on(Order, group="cashier")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("pay", [order.number])
        await context.publish("payments", Payment(order.number, order.customer))
        if what is not None:
            what(order)

    @payments.on(Payment, group="accounts")
    async def book(payment: Payment, context: Context) -> None:
        await context.connection.execute("book", [payment.number])

    return system


def done(app: VirtualDeployment, statement: str) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects if effect.statement == statement)


async def test_what_a_handler_publishes_is_handled(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        await app.publish("orders", *(Order(number) for number in range(250)))
        with trio.fail_after(5):  # NOTIFY wakes the relay, whose own look comes once a minute here
            await app.settled()
        assert done(app, "pay") == done(app, "book") == list(range(250))
        [[_, fields], *_] = await app.deployment.client().xrange("payments", count=1)
        assert fields[b"key"] == b"c"


async def test_what_a_handler_publishes_before_it_fails_is_not_published(autojump_clock: MockClock) -> None:
    def refuse_odd(order: Order) -> None:
        if order.number % 2:
            raise Permanent("odd")

    async with virtual(shop(refuse_odd)) as app:
        await app.publish("orders", *(Order(number) for number in range(10)))
        await app.settled()
        assert done(app, "book") == [0, 2, 4, 6, 8]
        assert await app.deployment.client().xlen("payments") == 5


async def test_it_is_published_once_when_the_answer_to_the_commit_is_lost(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.store.lose_commit(effect=True)
        await app.publish("orders", Order(1))
        await app.settled()
        assert done(app, "pay") == done(app, "book") == [1]


async def test_while_redis_is_away_what_was_published_waits(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.redis.delay(0.01, "XADD")
        await app.publish("orders", *(Order(number) for number in range(10)))
        app.redis.refuse()
        await trio.sleep(3600)
        app.redis.restore()
        app.redis.delay(0, "XADD")
        await app.settled()
        assert done(app, "book") == list(range(10))


@pytest.mark.parametrize(
    ("stream", "published", "told"),
    [
        ("payments", Unrelated(), "UNRELATED"),
        ("payments", Envelope(event_type="PAYMENT", data={"number": "one"}), "data.number"),
        ("payments", Envelope(event_type="PAYMENT", data={"number": 1, "customer": "\ud800"}), "surrogate"),
    ],
    ids=["of another stream", "that does not fit", "that cannot be written"],
)
async def test_what_does_not_fit_is_the_handlers_failure(
    autojump_clock: MockClock, stream: str, published: object, told: str
) -> None:
    system = System("app")
    system.stream("payments", events=[Payment])
    orders = system.stream("orders", events=[Order])
    errors: list[InvalidEvent] = []

    @orders.on(Order, group="cashier")
    async def pay(order: Order, context: Context) -> None:
        try:
            await context.publish(stream, published)
        except InvalidEvent as error:
            errors.append(error)
            raise Permanent("told") from error

    async with virtual(system) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        assert told in str(errors[0])
        assert app.store.outbox.rows == [] or all(each.kind == "mirror" for each in app.store.outbox.rows)
        assert not await app.deployment.client().exists("payments")


# From a program's own connection ------------------------------------------------------------------------------------


async def rows(pool: Pool) -> list[tuple[Any, ...]]:
    async with pool.connection() as connection:
        found = await connection.execute(
            "select stream, event_id, event_key, fields, kind, created_by from penstock_outbox order by id"
        )
        return await found.fetchall()


async def test_a_transaction_of_ones_own_publishes_with_its_commit(database: PostgresOptions, pool: Pool) -> None:
    stream = shop().streams["orders"]
    connection = await Connection.open(database)
    async with connection:
        with pytest.raises(RuntimeError, match="no"):
            async with connection.transaction():
                await publish_in(connection, stream, Order(1))
                raise RuntimeError("no")
        assert await rows(pool) == []
        async with connection.transaction():
            given = Envelope(event_type="ORDER", data={"number": 3, "customer": "c"})
            ids = await publish_in(connection, stream, Order(1, "ü"), Order(2, "\0"), given)
            assert await publish_in(connection, stream) == []
    found = await rows(pool)
    assert [row[1] for row in found] == ids
    assert ids[2] == given.event_id
    assert [row[2] for row in found] == ["ü", "", "c"]
    assert {(row[0], row[4]) for row in found} == {("orders", "transaction")}
    assert [json.loads(unpack(row[3])["data"])["number"] for row in found] == [1, 2, 3]


def test_it_works_under_asyncio_and_without(database: PostgresOptions) -> None:
    stream = shop().streams["orders"]
    conninfo = psycopg.conninfo.make_conninfo(**database.conninfo())

    async def publish() -> list[UUID]:
        async with await psycopg.AsyncConnection.connect(conninfo) as connection:
            return await publish_in(connection, stream, Order(1))

    ids = asyncio.run(publish())
    with psycopg.connect(conninfo) as connection:
        ids += publish_in_sync(connection, stream, Order(2))
        found = connection.execute("select event_id from penstock_outbox order by id").fetchall()
    assert [row[0] for row in found] == ids


# From SQL -----------------------------------------------------------------------------------------------------------


def read(fields: bytes) -> Envelope:
    return JSON_CODEC.decode(unpack(fields), Origin("orders", "1-0"))


async def test_sql_publishes_an_event_as_python_would(pool: Pool) -> None:
    event_id, at = uuid4(), datetime(2026, 3, 1, 9, 30, 0, 123456, UTC)
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(
            "select penstock_publish('orders', 'ORDER', %s, 'kéy', %s, %s, '00-abc-def-01')",
            ['{"number": 1, "note": "\\"ü\\" \\\\ \\u2028"}', event_id, at],
        )
    [(stream, stored_id, key, fields, kind, created_by)] = await rows(pool)
    assert (stream, stored_id, key, kind, created_by) == ("orders", event_id, "kéy", "transaction", "penstock_publish")
    assert read(fields) == Envelope(
        event_type="ORDER",
        data={"number": 1, "note": '"ü" \\ \u2028'},
        event_id=event_id,
        timestamp=at,
        key="kéy",
        traceparent="00-abc-def-01",
    )


async def test_sql_makes_what_is_not_given(pool: Pool) -> None:
    async with pool.connection() as connection:
        cursor = await connection.execute(
            "select penstock_publish('orders', 'ORDER', jsonb_build_object('number', n)) from generate_series(1, 3) n"
        )
        ids = [row[0] for row in await cursor.fetchall()]
    envelopes = [read(row[3]) for row in await rows(pool)]
    assert [each.event_id for each in envelopes] == ids
    assert len(set(ids)) == 3
    for each in envelopes:
        assert (each.event_id.version, each.event_id.variant) == (7, "specified in RFC 4122")
        born = datetime.fromtimestamp((each.event_id.int >> 80) / 1000, UTC)
        assert abs(born - each.timestamp) < timedelta(seconds=1)
        assert (each.key, each.traceparent) == (None, None)


@pytest.mark.parametrize(
    "call", ["('orders', 'ORDER', '[]')", "('', 'ORDER', '{}')", "('orders', null, '{}')", "('orders', 'ORDER', null)"]
)
async def test_sql_refuses_what_is_no_event(pool: Pool, call: str) -> None:
    async with pool.connection() as connection:
        with pytest.raises(psycopg.errors.InvalidParameterValue):
            await connection.execute(f"select penstock_publish{call}".encode())
    assert await rows(pool) == []
