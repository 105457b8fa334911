"""The three forms in virtual time. docs/tutorial-broker.md says how to run this."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import broker
import pytest
import trio
from trio.testing import MockClock

from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.http.testing import client_of
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

FLAT = [
    {"userId": "user123", "eventType": "login", "data": "successful", "timestamp": "1746327600123"},
    {"userId": "user456", "eventType": "purchase", "data": "product-abc", "timestamp": "1746327600456"},
    {"userId": "user123", "eventType": "logout", "data": "", "timestamp": "1746327601000"},
]


@pytest.fixture(autouse=True)
def _nothing_heard() -> Iterator[None]:
    broker.heard.clear()
    yield
    broker.heard.clear()


def counted(store: MemoryStore) -> list[tuple[object, ...]]:
    return [effect.values[:2] for effect in store.effects if "into activity" in effect.statement]


def reported(store: MemoryStore) -> list[object]:
    return [effect.values[1] for effect in store.effects if "into report" in effect.statement]


async def add_flat(redis: InProcessRedis) -> None:
    async with Redis(RedisOptions(), connect=redis.connect) as somebody:
        for fields in FLAT:
            await somebody.xadd(broker.EVENTS, dict(fields))


# The stream


async def test_what_was_there_before_the_group_is_read_in_the_order_of_each_user(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:
        await add_flat(redis)
        async with virtual(broker.system, redis=redis) as site:
            await site.settled()
            [group] = await site.deployment.client().xinfo_groups(broker.EVENTS)
            assert (group["name"], group["pending"], group["lag"]) == (b"analytics-group", 0, 0)
    events = counted(site.store)
    assert Counter(events) == {("user123", "login"): 1, ("user456", "purchase"): 1, ("user123", "logout"): 1}
    assert events.index(("user123", "login")) < events.index(("user123", "logout"))


async def test_what_is_published_here_looks_like_what_others_write(autojump_clock: MockClock) -> None:
    async with virtual(broker.system) as site:
        client = client_of(site.deployment)
        answer = await client.post("/events", json={"userId": "user123", "eventType": "login", "timestamp": 7})
        assert answer.status_code == 202
        [(_, entry)] = await site.deployment.client().xrange(broker.EVENTS)
        known = {name.decode(): value.decode() for name, value in entry.items() if name != b"eventId"}
        assert known == {"userId": "user123", "eventType": "login", "data": "", "timestamp": "7"}
        await site.settled()
    assert counted(site.store) == [("user123", "login")]


async def test_a_group_that_comes_later_reads_all_of_it(autojump_clock: MockClock) -> None:
    audit = System("audit")
    seen: list[str] = []

    @audit.stream(broker.EVENTS).on(broker.UserEvent, group="audit-group")
    async def note(happened: broker.UserEvent, context: Context) -> None:
        seen.append(happened.event_type)

    async with InProcessRedis() as redis:
        await add_flat(redis)
        async with virtual(broker.system, redis=redis) as site:
            await site.settled()
        async with virtual(audit, redis=redis) as later:
            await later.settled()
    assert sorted(seen) == ["login", "logout", "purchase"]


# The queue


async def test_each_job_is_done_once_by_one_of_two_processes_through_an_outage(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    async with (
        InProcessRedis() as redis,
        virtual(broker.system, redis=redis, store=store, instance="one") as one,
        virtual(broker.system, redis=redis, store=store, instance="two") as two,
    ):
        for number in range(40):
            await one.enqueue(broker.REPORTS, broker.ReportOrdered(f"user{number}", seconds=1.0))
        await trio.sleep(2.5)
        redis.refuse()
        redis.cut()
        await trio.sleep(60)
        assert len(reported(store)) < 40
        redis.restore()
        await one.settled()
        await two.settled()
    assert sorted(map(str, reported(store))) == sorted(f"user{number}" for number in range(40))
    assert store.letters == []


async def test_a_report_is_told_of_when_it_is_there(autojump_clock: MockClock) -> None:
    async with virtual(broker.system) as site:
        answer = await client_of(site.deployment).post("/reports", json={"userId": "user123"})
        assert answer.status_code == 202
        told = {"reportId": (await answer.get_json())["reportId"], "userId": "user123"}
        await site.settled()
        await trio.sleep(1)
    assert reported(site.store) == ["user123"]
    assert [each["data"] for each in broker.heard if each["kind"] == "message"] == [told]


# The channels


async def test_every_process_hears_it_by_name_or_by_pattern(autojump_clock: MockClock) -> None:
    async with (
        InProcessRedis() as redis,
        virtual(broker.system, redis=redis, instance="one") as one,
        virtual(broker.system, redis=redis, instance="two"),
    ):
        broker.heard.clear()
        client = client_of(one.deployment)
        for topic, listeners in (("weather", 2), ("reports", 4)):
            answer = await client.post(f"/news/{topic}", json={"text": topic})
            assert await answer.get_json() == {"told": listeners}
        assert await one.deployment.broadcast("olds:weather", {"text": "nobody listens"}) == 0
        await trio.sleep(1)
    assert Counter((each["kind"], each["channel"]) for each in broker.heard) == {
        ("pmessage", "news:weather"): 2,
        ("pmessage", "news:reports"): 2,
        ("message", "news:reports"): 2,
    }


async def test_what_is_told_while_the_link_is_away_is_lost_and_a_gap_says_so(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis, virtual(broker.system, redis=redis) as site:
        broker.heard.clear()
        redis.refuse()
        redis.cut()
        answer = await client_of(site.deployment).post("/news/weather", json={"text": "rain"})
        assert answer.status_code == 503
        await trio.sleep(60)
        redis.restore()
        await site.serving()
        await trio.sleep(60)
        await site.deployment.broadcast("news:weather", {"text": "sun"})
        await trio.sleep(1)
    assert [each["kind"] for each in broker.heard] == ["gap", "pmessage"]
