"""The order event streaming system through outages and restarts, in virtual time."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import order_streaming as shop
import pytest
import trio
from trio.testing import MockClock

from penstock.actors.event import new_event_id
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.testing import client_of
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    shop.simulation_begins(made)
    return made


def items(*products: tuple[int, int]) -> shop.Items:
    return tuple(shop.Item(product, quantity, Decimal("9.50")) for product, quantity in products)


def completed(order_id: int, *products: tuple[int, int]) -> shop.OrderCompleted:
    return shop.OrderCompleted(order_id, 123, items(*products), Decimal(50_000))


def cancelled(order_id: int, *products: tuple[int, int]) -> shop.OrderCancelled:
    return shop.OrderCancelled(order_id, 123, items(*products), Decimal(50_000))


async def ranking(app: VirtualDeployment[Any], path: str = "/ranking") -> dict[int, int]:
    answer = await (await client_of(app.deployment).get(path)).get_json()
    return {each["productId"]: each["quantity"] for each in answer["ranking"]}


async def mirror(app: VirtualDeployment[Any]) -> list[Any]:
    found: list[Any] = await app.deployment.client().xrange("order-events:dead-letter")
    return found


def sold(store: MemoryStore) -> dict[int, int]:
    """By the rows that order-processing has written."""
    found: Counter[int] = Counter()
    for effect in store.effects:
        if "into sale" in effect.statement:
            found[effect.values[2]] += effect.values[3]
    return {product: quantity for product, quantity in found.items() if quantity}


async def test_each_group_does_its_part_and_a_cancellation_takes_it_back(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with virtual(shop.system, store=store) as app:
        await app.publish(
            shop.ORDERS, completed(101, (1, 3), (2, 1)), completed(102, (1, 2)), cancelled(101, (1, 3), (2, 1))
        )
        await app.publish(shop.ORDERS, shop.PaymentCompleted(1, 102, 123, Decimal(19)))
        await app.settled()
        assert await ranking(app) == sold(store) == {1: 2}
    told = [effect.values[2] for effect in store.effects if "into notification" in effect.statement]
    assert [text for text in told if " 101 " in text] == [
        "Your order 101 is on its way: 50000 in all.",
        "Your order 101 is cancelled.",
    ]
    assert [effect.values[2] for effect in store.effects if "into income" in effect.statement] == [Decimal(19)]


async def test_the_ranking_is_exact_through_lost_commits_an_outage_and_a_restart(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with InProcessRedis() as redis:
        for life in range(2):
            async with virtual(shop.system, redis=redis, store=store) as app:
                for number in range(60):
                    if number % 4 == 0:
                        store.lose_commit(effect=number % 8 == 0)  # nobody knows whether it took effect
                    if number == 20:
                        app.lose_database("the disk is full")
                    if number == 40:
                        await trio.sleep(30)
                        app.restore_database()
                    await app.publish(shop.ORDERS, completed(1000 * life + number, (number % 3 + 1, number % 4 + 1)))
                    await trio.sleep(0.05)
                with trio.fail_after(600):
                    while sum(sold(store).values()) < 150 * (life + 1):  # noqa: ASYNC110 - rows do not call
                        await trio.sleep(0.5)
                await app.settled()
                assert await ranking(app) == sold(store)
    assert store.letters == []


async def test_on_a_cluster(autojump_clock: MockClock, store: MemoryStore) -> None:
    async with InProcessCluster() as cluster, virtual(shop.system, store=store, redis=cluster) as app:
        await app.publish(shop.ORDERS, *(completed(number, (number % 3, 1)) for number in range(30)))
        await app.settled()
        assert await ranking(app) == sold(store) == {0: 10, 1: 10, 2: 10}


async def test_what_fails_in_one_group_is_no_matter_of_the_others(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    """In the original one of three that fails fails them all, and its event is dead for all."""

    def unknown(values: tuple[Any, ...]) -> list[Any]:
        raise ValueError(f"there is no product {values[2]}")

    store.answer("insert into sale", unknown)
    async with virtual(shop.system, store=store) as app:
        await app.publish(shop.ORDERS, completed(101, (99, 1)))
        await app.settled()
        (letter,) = store.letters
        assert (letter.consumer_group, letter.error_message) == ("order-processing", "there is no product 99")
        assert await ranking(app) == {99: 1}
        assert sum("into notification" in effect.statement for effect in store.effects) == 1
        # As in the original: the fields, where it was, what it failed of, and when.
        with trio.fail_after(60):
            while not (mirrored := await mirror(app)):  # noqa: ASYNC110 - it is written soon after the row
                await trio.sleep(0.5)
        [(_, fields)] = mirrored
        assert fields[b"originalRecordId"].decode() == letter.entry_id
        assert fields[b"errorMessage"] == b"there is no product 99"
        assert {b"eventType", b"eventId", b"timestamp", b"data", b"failedAt"} <= fields.keys()


async def test_an_unknown_type_is_refused_at_the_door_and_kept_where_it_came_in_elsewhere(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with virtual(shop.system, store=store) as app:
        unknown = {"eventType": "ORDER_SHIPPED", "data": {"orderId": 101}}
        answer = await client_of(app.deployment).post("/api/v1/streams/order-events/events", json=unknown)
        assert answer.status_code == 422
        fields: Any = {"eventType": "ORDER_SHIPPED", "eventId": str(new_event_id()), "data": "{}"}
        await app.deployment.client().xadd(shop.ORDERS, {**fields, "timestamp": "2026-05-04T10:00:00Z"})
        await app.settled()
        assert {letter.reason.value for letter in store.letters} == {"permanent"}


async def test_many_at_once_have_their_ids_in_order_and_a_flash_sale_may_be_closed(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    order: dict[str, Any] = {
        "orderId": 7,
        "userId": 1,
        "items": [{"productId": 1, "quantity": 2}],
        "totalAmount": "19.00",
    }
    async with virtual(shop.system, store=store) as app:
        client = client_of(app.deployment)
        answer = await client.post("/orders/import", json={"orders": [order, {**order, "orderId": 8}]})
        results = (await answer.get_json())["results"]
        entries = await app.deployment.client().xrange(shop.ORDERS)
        assert (answer.status_code, [each["entryId"] for each in results]) == (
            202,
            [entry.decode() for entry, _ in entries],
        )
        again = await client.post("/orders/import", json={"orders": [order]})
        assert (await again.get_json())["results"][0]["eventId"] == results[0]["eventId"]
        order["orderId"] = 9
        assert (await client.post("/flash-sale", json=order)).status_code == 409
        assert (await client.put("/flash-sale/open")).status_code == 200
        assert (await client.post("/flash-sale", json=order)).status_code == 202
        assert (await client.put("/flash-sale/closed")).status_code == 200
        assert (await client.post("/flash-sale", json=order)).status_code == 409
        await app.settled()
        assert await ranking(app) == {1: 6}
        broken = {**order, "items": [{"productId": 1, "quantity": 0}]}
        answer = await client.post("/flash-sale", json=broken)
        assert answer.status_code == 422
        assert "quantity" in (await answer.get_data(as_text=True))


async def test_the_dashboard_is_told_after_the_commit(autojump_clock: MockClock, store: MemoryStore) -> None:
    async with virtual(shop.system, store=store) as app:
        client = client_of(app.deployment)
        async with client.websocket("/topic/dashboard/orders") as socket:
            assert await socket.receive_json() == {
                **dict.fromkeys(("version", "completed", "cancelled", "paid"), 0),
                **dict.fromkeys(("turnover", "income"), "0"),
            }
            store.lose_commit(effect=False)
            await app.publish(shop.ORDERS, completed(101, (1, 3)))
            told = await socket.receive_json()
            assert (told["completed"], told["turnover"]) == (1, "50000")
            await app.publish(shop.ORDERS, cancelled(101, (1, 3)))
            told = await socket.receive_json()
            assert (told["cancelled"], told["turnover"]) == (1, "0")
        answer = await client.get("/dashboard/")
        assert "dashboard.js" in await answer.get_data(as_text=True)
