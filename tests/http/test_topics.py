"""Topics: what a broadcast channel says, to every client of every process, and what is sent again after a loss."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, field, frozen
from quart.testing.connections import WebsocketDisconnectError, WebsocketResponseError
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.http import topics
from penstock.http.routes import Problem, RunningSystem
from penstock.http.testing import client_of
from penstock.http.topics import topic
from penstock.runtime.postgres import PostgresUnavailable
from penstock.runtime.testing.redis import InProcessRedis

PATH, CHANNEL = "/topic/dashboard/orders", "dashboard:orders"


@event("ORDER_PLACED")
@frozen
class OrderPlaced:
    price: int


@define(eq=False)
class Shop:
    """One process of a shop whose dashboard shows the sum of all orders.

    Attributes:
        asked: how often `first` was called.
        error: what it raises.
        takes: seconds that it takes.
        at_most_every: of its topic.
    """

    total: list[int]
    asked: int = 0
    error: Exception | None = None
    takes: float = 0.0
    at_most_every: float | None = None
    system: System = field(factory=lambda: System("shop"))

    def __attrs_post_init__(self) -> None:
        orders = self.system.stream("orders", events=[OrderPlaced])
        topic(self.system, PATH, channel=CHANNEL, first=self.first, at_most_every=self.at_most_every)

        @orders.on(OrderPlaced, group="dashboard")
        async def add(order: OrderPlaced, context: Context) -> None:
            self.total.append(order.price)
            context.broadcast(CHANNEL, self.shown())

    def shown(self) -> dict[str, Any]:
        return {"orders": len(self.total), "total": sum(self.total)}

    async def first(self, _: RunningSystem) -> dict[str, Any]:
        self.asked += 1
        await trio.sleep(self.takes)
        if self.error is not None:
            raise self.error
        return self.shown()


@asynccontextmanager
async def page(app: Any) -> AsyncIterator[Any]:
    """A page that shows the dashboard."""
    async with client_of(app.deployment).websocket(PATH) as connection:
        yield connection


async def refused(app: Any) -> Any:
    with pytest.raises(WebsocketResponseError) as told:
        async with client_of(app.deployment).websocket(PATH) as connection:
            try:
                await connection.receive()
            except WebsocketResponseError as error:
                found = error
        raise found
    return told.value.response


async def test_every_page_of_every_process_is_told(autojump_clock: MockClock) -> None:
    total: list[int] = []
    one, other = Shop(total), Shop(total)
    store = MemoryStore()
    async with (
        InProcessRedis() as place,
        virtual(one.system, redis=place, store=store, instance="one") as here,
        virtual(other.system, redis=place, store=store, instance="other") as there,
        page(here) as first,
        page(here) as second,
        page(there) as third,
    ):
        for each in (first, second, third):
            assert await each.receive_json() == {"orders": 0, "total": 0}
        for price in range(1, 6):
            await here.publish("orders", OrderPlaced(price))
        for each in (first, second, third):
            with trio.fail_after(60):
                while (await each.receive_json())["total"] < 15:
                    pass


async def test_after_an_outage_of_redis_it_is_told_anew(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "AT_LEAST_EVERY", math.inf)
    shop = Shop([])
    async with virtual(shop.system) as app, page(app) as shown:
        assert (await shown.receive_json())["total"] == 0
        app.redis.refuse()
        app.redis.cut()
        await trio.sleep(60)
        shop.total.append(7)  # by another process, whose message nobody here got
        app.redis.restore()
        with trio.fail_after(60):
            assert (await shown.receive_json())["total"] == 7


async def test_what_nobody_has_said_is_told_after_a_while(autojump_clock: MockClock) -> None:
    shop = Shop([])
    async with virtual(shop.system) as app, page(app) as shown:
        assert (await shown.receive_json())["total"] == 0
        shop.total.append(7)  # and the process that was to say so has died
        with trio.fail_after(topics.AT_LEAST_EVERY + 1):
            assert (await shown.receive_json())["total"] == 7


async def test_what_many_handlers_count_is_read_again_after_them_and_seldom(autojump_clock: MockClock) -> None:
    shop = Shop([], at_most_every=0.5)
    async with virtual(shop.system) as app:
        client = client_of(app.deployment)
        await _watch_many_orders(app, shop, client)


async def _watch_many_orders(app: Any, shop: Shop, client: Any) -> None:
    async with client.websocket(PATH) as one, client.websocket(PATH) as other:
        for each in (one, other):
            assert (await each.receive_json())["orders"] == 0
        began, asked = trio.current_time(), shop.asked
        for _ in range(200):
            await app.publish("orders", OrderPlaced(1))
            await trio.sleep(0.01)
        seconds = trio.current_time() - began
        for each in (one, other):
            told = 0
            with trio.fail_after(20):
                while (await each.receive_json())["orders"] < 200:
                    told += 1
            assert 0 < told < seconds / 0.5 + 2
        assert shop.asked - asked < seconds / 0.5 + 4


async def test_pages_that_come_at_once_share_one_question(autojump_clock: MockClock) -> None:
    shop = Shop([])
    shop.takes = 1.0
    async with virtual(shop.system) as app:
        client = client_of(app.deployment)

        async def look() -> None:
            async with client.websocket(PATH) as shown:
                await shown.receive_json()

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(look)
    assert shop.asked == 1


async def test_what_it_tells_is_never_older_than_the_page(autojump_clock: MockClock) -> None:
    shop = Shop([])
    shop.takes = 1.0
    async with virtual(shop.system) as app:
        client = client_of(app.deployment)
        async with client.websocket(PATH) as early:
            await trio.sleep(0.5)
            async with client.websocket(PATH) as late:
                await trio.sleep(0.25)
                shop.total.append(7)
                await early.receive_json()
                assert (await late.receive_json())["total"] == 7
    assert shop.asked == 2


async def test_who_reads_too_slowly_is_told_anew_in_the_end(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "WAITING", 5)
    shop = Shop([])
    async with virtual(shop.system) as app, page(app) as slow, page(app) as fast:
        await slow.receive_json()
        seen = []

        async def read() -> None:
            while not seen or seen[-1]["orders"] < 100:
                seen.append(await fast.receive_json())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            for _ in range(100):
                await app.publish("orders", OrderPlaced(1))
                await trio.sleep(0.2)
        assert len(seen) >= 100  # a slow page holds up nobody
        assert shop.asked == 2
        told = 0
        with trio.fail_after(60):
            while (await slow.receive_json())["orders"] < 100:
                told += 1
        assert told < 30
        assert shop.asked == 3


def test_what_waits_is_bounded_by_its_size_too() -> None:
    client = topics._Client()
    client.put("x" * (topics.WAITING_SIZE + 1))  # alone, it may be larger
    assert not client.lost
    client.put("y")
    assert client.lost
    assert not client._texts


@pytest.mark.parametrize(
    ("error", "status", "name", "code"),
    [
        (PostgresUnavailable("refused", address="db:5432"), 503, "database-away", 1013),
        (RuntimeError("hunter2"), 500, "internal-error", 1011),
        (Problem(403, "not-yours", "Not yours", "No."), 403, "not-yours", 1008),
    ],
)
async def test_without_anything_to_tell_pages_are_sent_away(
    autojump_clock: MockClock, error: Exception, status: int, name: str, code: int
) -> None:
    shop = Shop([])
    async with virtual(shop.system) as app, page(app) as old:
        await old.receive_json()
        shop.error = error
        answer = await refused(app)
        assert answer.status_code == status
        assert f"urn:penstock:problem:{name}" in await answer.get_data(as_text=True)
        app.redis.cut()  # messages may be missing
        with pytest.raises(WebsocketDisconnectError) as closed, trio.fail_after(60):
            await old.receive()
        assert closed.value.args == (code,)


async def test_first_has_its_time(autojump_clock: MockClock) -> None:
    shop = Shop([])
    async with virtual(shop.system) as app:
        shop.takes = topics.WITHIN + 1
        answer = await refused(app)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)
        assert "topic-not-ready" in await answer.get_data(as_text=True)


async def test_pages_have_nothing_to_say(autojump_clock: MockClock) -> None:
    shop = Shop([])
    async with virtual(shop.system) as app, page(app) as talks:
        await talks.receive_json()
        await talks.send("CONNECT\naccept-version:1.2\n\n\0")
        with pytest.raises(WebsocketDisconnectError) as closed, trio.fail_after(60):
            await talks.receive()
        assert closed.value.args == (1008,)


async def test_two_topics_may_tell_of_one_channel(autojump_clock: MockClock) -> None:
    shop = Shop([])

    async def count(_: RunningSystem) -> int:
        return len(shop.total)

    topic(shop.system, "/topic/v1.2", channel=shop.system.channels[CHANNEL], first=count)
    async with virtual(shop.system) as app, client_of(app.deployment).websocket("/topic/v1.2") as other:
        assert await other.receive_json() == 0
        await app.publish("orders", OrderPlaced(4))
        assert await other.receive_json() == {"orders": 1, "total": 4}


@pytest.mark.parametrize("path", ["topic/orders", "/topic/<name>", ""])
def test_a_topic_has_a_path(path: str) -> None:
    with pytest.raises(ValueError, match="a topic has a path"):
        topic(System("shop"), path, channel=CHANNEL, first=Shop([]).first)
