"""Routes of a system's own, beside Penstock's."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock
from werkzeug.datastructures import Headers

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.http.routes import Blueprint, RunningSystem, TrioResponse, accept, event_of, json_reply, routes
from penstock.http.testing import client_of
from penstock.runtime.postgres import PoolTimeout


@event("ORDER_PLACED", key="user_id")
@frozen
class OrderPlaced:
    user_id: str
    price: Decimal


def shop(*more: Callable[[RunningSystem], Blueprint]) -> System:
    system = System("shop")
    orders = system.stream("orders", events=[OrderPlaced])

    @orders.on(OrderPlaced, group="payments")
    async def pay(order: OrderPlaced, context: Context) -> None:
        await context.connection.execute("insert payment", [order.user_id, order.price])

    @routes(system)
    def pages(running: RunningSystem) -> Blueprint:
        made = Blueprint("shop", __name__)

        @made.get("/order")
        @made.post("/order")
        async def order() -> TrioResponse:
            return await accept(running, "orders", await event_of(OrderPlaced))

        @made.get("/length")
        async def length() -> TrioResponse:
            return json_reply({"length": await running.client().xlen("orders")})

        @made.get("/rows")
        async def rows() -> TrioResponse:
            async with running.connection() as connection:
                await connection.execute("select 1")
            return json_reply({})

        return made

    for make in more:
        routes(system)(make)
    return system


async def test_an_order_comes_by_query_and_by_body(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        client = client_of(app.deployment)
        asked = await client.get("/order?userId=u-1&price=9.50")
        assert (asked.status_code, (await asked.get_json())["durable"]) == (202, "redis")
        posted = await client.post("/order", json={"userId": "u-2", "price": "12.30"})
        assert posted.status_code == 202
        number = await client.post("/order", json={"userId": "u-3", "price": 7})
        assert number.status_code == 202
        assert await (await client.get("/length")).get_json() == {"length": 3}
        await app.settled()
        paid = sorted(effect.values for effect in app.store.effects)
    assert paid == [("u-1", Decimal("9.50")), ("u-2", Decimal("12.30")), ("u-3", Decimal(7))]
    assert str(paid[0][1]) == "9.50"


async def test_the_same_request_sent_again_is_the_same_order(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        client, order = client_of(app.deployment), {"userId": "u", "price": "1"}
        ids = []
        for key in ("a-1", '"a-1"', "a-2", "0197a6c1-0000-7000-8000-000000000001"):
            answer = await client.post("/order", json=order, headers={"Idempotency-Key": key})
            ids.append((await answer.get_json())["eventId"])
        await app.settled()
        assert len(app.store.effects) == 3
    assert ids[0] == ids[1] != ids[2]
    assert UUID(ids[3]) == UUID("0197a6c1-0000-7000-8000-000000000001")


KEYED = "/order?userId=u&price=1"


async def test_two_requests_of_one_key_are_refused_and_not_taken_for_one(autojump_clock: MockClock) -> None:
    """The inbox would drop the second one, and its client would believe that it was accepted."""
    async with virtual(shop()) as app:
        client, key = client_of(app.deployment), {"Idempotency-Key": "k-1"}
        assert (await client.post("/order", json={"userId": "u", "price": "1"}, headers=key)).status_code == 202
        other = await client.post("/order", json={"userId": "u", "price": "2"}, headers=key)
        assert (other.status_code, (await other.get_json())["type"]) == (
            422,
            "urn:penstock:problem:idempotency-key-reused",
        )
        same = await client.post("/order", json={"price": "1", "userId": "u"}, headers=key)
        assert same.status_code == 202
        await app.settled()
        assert len(app.store.effects) == 1
        mark = f"orders:idempotency:{(await same.get_json())['eventId']}"
        assert 86_000 < await app.deployment.client().ttl(mark) <= 86_400


async def test_while_redis_is_away_a_key_is_taken_at_its_word(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        client = client_of(app.deployment)
        app.redis.hang()
        with trio.fail_after(30):
            answer = await client.get(KEYED, headers={"Idempotency-Key": "k-1"})
        assert (answer.status_code, (await answer.get_json())["durable"]) == (202, "outbox")
        app.redis.resume()


@pytest.mark.parametrize("key", ["d41d8cd98f00b204e9800998ecf8427e", "urn:uuid:0197a6c1-0000-7000-8000-000000000001"])
async def test_only_a_uuid_as_it_is_written_is_the_events_id(autojump_clock: MockClock, key: str) -> None:
    async with virtual(shop()) as app:
        answer = await client_of(app.deployment).get(KEYED, headers={"Idempotency-Key": key})
        assert UUID((await answer.get_json())["eventId"]).version == 5


async def test_two_keys_are_none(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        headers = Headers([("Idempotency-Key", "a"), ("Idempotency-Key", "b")])
        answer = await client_of(app.deployment).get(KEYED, headers=headers)
        assert answer.status_code == 400
        assert "given once" in (await answer.get_json())["detail"]


async def test_a_decimal_that_a_float_cannot_hold_is_refused(autojump_clock: MockClock) -> None:
    """It would be another price in the database, and nobody would know."""
    async with virtual(shop()) as app:
        client, head = client_of(app.deployment), {"Content-Type": "application/json"}
        for price in ("12345678901234567.89", "1e-400"):
            data = f'{{"userId": "u", "price": {price}}}'
            answer = await client.post("/order", data=data, headers=head)
            assert (answer.status_code, (await answer.get_json())["detail"]) == (
                422,
                "price: has more digits than a JSON number keeps; give it as a string",
            )
            event = f'{{"eventType": "ORDER_PLACED", "data": {data}}}'
            answer = await client.post("/api/v1/streams/orders/events", data=event, headers=head)
            assert answer.status_code == 422
        answer = await client.post("/order", data='{"userId": "u", "price": 1234567890.5e2}', headers=head)
        assert answer.status_code == 202
        await app.settled()
        assert [effect.values for effect in app.store.effects] == [("u", Decimal("123456789050"))]


@pytest.mark.parametrize(
    ("raised", "status", "kind"),
    [
        (SystemExit(3), 500, "internal-error"),
        (BaseExceptionGroup("two", [SystemExit(3), OSError("secret")]), 500, "internal-error"),
        (GeneratorExit(), 500, "internal-error"),
        (PoolTimeout("secret"), 503, "database-busy"),
        (psycopg.OperationalError("the connection is lost"), 503, "database-away"),
        (psycopg.errors.CrashShutdown("terminating connection"), 503, "database-away"),
        (psycopg.errors.UndefinedTable("secret"), 500, "internal-error"),
    ],
)
async def test_whatever_a_route_raises_is_a_problem(
    autojump_clock: MockClock, raised: BaseException, status: int, kind: str
) -> None:
    def broken(_: RunningSystem) -> Blueprint:
        made = Blueprint("broken", __name__)

        @made.get("/broken")
        async def answer() -> TrioResponse:
            raise raised

        return made

    async with virtual(shop(broken)) as app:
        answer = await client_of(app.deployment).get("/broken")
        found = await answer.get_json()
        assert (answer.status_code, found["type"]) == (status, f"urn:penstock:problem:{kind}")
        assert "secret" not in str(found)
        assert ("instance" in found, "Retry-After" in answer.headers) == (status == 500, status == 503)


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        ({"path": "/order?userId=u"}, 422, "price: is missing"),
        ({"path": "/order?userId=u&price=cheap"}, 422, "price: is no decimal number"),
        ({"path": "/order?userId=u&price=1&price=2"}, 400, "price: is given more than once"),
        ({"path": "/order?userId=%00&price=1"}, 422, "NUL"),
        ({"path": "/order", "method": "POST", "json": ["u", 1]}, 400, "must be a JSON object"),
        ({"path": "/order", "method": "POST", "json": {"userId": 7, "price": 1}}, 422, "userId: expected str"),
        ({"path": "/order", "method": "POST", "data": b"userId=u"}, 415, "application/json"),
        (
            {"path": "/order", "method": "POST", "json": {"userId": "u", "price": True}},
            422,
            "price: expected Decimal",
        ),
        ({"path": "/order?userId=u&price=1", "headers": {"Idempotency-Key": "k" * 513}}, 400, "1 to 512 characters"),
        ({"path": "/order?userId=u&price=1", "headers": {"Sec-Fetch-Site": "cross-site"}}, 403, "another origin"),
        ({"path": "/order?userId=u&price=1", "method": "HEAD"}, 405, ""),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_published(
    autojump_clock: MockClock, request_: dict[str, Any], status: int, told: str
) -> None:
    async with virtual(shop()) as app:
        answer = await client_of(app.deployment).open(**{"method": "GET", **request_})
        assert answer.status_code == status
        assert told in (await answer.get_data(as_text=True))
        assert await app.deployment.client().xlen("orders") == 0


async def test_while_nothing_takes_the_order_it_is_refused(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        app.redis.refuse()
        app.redis.cut()
        app.lose_database("away")
        answer = await client_of(app.deployment).get("/order?userId=u&price=1")
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


async def test_without_the_database_a_route_that_asks_it_says_so(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        client = client_of(app.deployment)
        assert (await client.get("/rows")).status_code == 200
        app.lose_database("away")
        answer = await client.get("/rows")
        assert (answer.status_code, "database-away" in await answer.get_data(as_text=True)) == (503, True)
        assert (await client.get("/healthz")).status_code == 200


async def test_before_the_tables_are_made_a_route_that_asks_the_database_says_so(autojump_clock: MockClock) -> None:
    """As somebody finds it who is there before the first start has come to its end."""
    async with virtual(shop()) as app:
        app.deployment.gates["schema"].shut("not migrated yet")
        answer = await client_of(app.deployment).get("/rows")
        told = await answer.get_data(as_text=True)
        assert (answer.status_code, "database-away" in told, "not migrated yet" in told) == (503, True, True)
        assert "Retry-After" in answer.headers


async def test_without_redis_a_route_that_asks_it_says_so(autojump_clock: MockClock) -> None:
    async with virtual(shop()) as app:
        client = client_of(app.deployment)
        app.redis.refuse()
        app.redis.cut()
        answer = await client.get("/length")
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        assert (await answer.get_json())["type"] == "urn:penstock:problem:redis-away"
        app.redis.restore()
        await app.serving()
        assert (await client.get("/length")).status_code == 200


@pytest.mark.parametrize(("path", "by"), [("/healthz", "health.healthz"), ("/order", "shop.order")])
async def test_no_route_hides_another(autojump_clock: MockClock, path: str, by: str) -> None:
    def rival(_: RunningSystem) -> Blueprint:
        made = Blueprint("rival", __name__)

        @made.get(path)
        async def answer() -> TrioResponse:
            return json_reply({})

        return made

    async with virtual(shop(rival)) as app:
        with pytest.raises(ValueError, match=f"the route {path} of 'rival' is taken, by {by}"):
            client_of(app.deployment)


async def test_a_gate_of_the_systems_own_is_shown_and_does_not_make_the_process_unready(
    autojump_clock: MockClock,
) -> None:
    system = shop()

    async def well() -> None:
        pass

    system.gate("mail", well)
    mails = system.streams["orders"].group("mails", requires=("mail",))
    assert mails.requires == ("mail",)
    async with virtual(system) as app:
        client = client_of(app.deployment)
        assert (await client.get("/readyz")).status_code == 200
        app.lose("mail", "connection refused")
        app.deployment.watches["mail"].nudge()
        await app.deployment.gates["mail"].wait_shut()
        await trio.sleep(0.1)
        answer = await client.get("/readyz")
        found = await answer.get_json()
        assert (answer.status_code, [gate["name"] for gate in found["gates"]]) == (200, ["mail"])
        assert {held["heldBy"] for held in found["held"]} == {"mail"}
        app.lose_database("away")
        assert (await client.get("/readyz")).status_code == 503
