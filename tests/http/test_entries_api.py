"""Ranges of entries, how they stand in a group, and what Redis says of a stream, over HTTP, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
import trio
from attrs import frozen
from quart_trio import QuartTrio

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.entries import entries
from penstock.http.problems import install
from penstock.http.streams import streams

STREAM, GROUP = "orders", "payment"
ODD = "a/b c%?#ü"
"""A name with all that a path may trip over."""


@event("ORDER", key="number")
@frozen
class Order:
    number: int


def _system(**options: Any) -> System:
    system = System("shop")
    stream = system.stream(STREAM, events=[Order], **options)
    stream.group(ODD)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


@frozen
class Site:
    app: VirtualDeployment[Any]
    client: Any

    async def ask(self, path: str) -> tuple[int, Any]:
        answer = await self.client.get(path)
        return answer.status_code, await answer.get_json()

    async def entries(self, **query: Any) -> dict[str, Any]:
        text = "&".join(f"{name}={quote(str(value), safe='')}" for name, value in query.items())
        status, found = await self.ask(f"/api/v1/streams/{STREAM}/entries?{text}")
        assert status == 200, found
        return dict(found)


@asynccontextmanager
async def _site(**options: Any) -> AsyncIterator[Site]:
    async with virtual(_system(**options)) as app:
        pages = QuartTrio("pages")
        install(pages)
        for routes in (streams(app.deployment), entries(app.deployment)):
            pages.register_blueprint(routes)
        yield Site(app, pages.test_client())


async def _unread(site: Site, numbers: range) -> list[str]:
    """Publish while nobody of ours reads; the ids."""
    site.app.lose_database("away")
    await trio.sleep(5)  # until the last blocked read is over
    fields = [{"eventType": "ORDER", "data": f'{{"number": {number}}}', "key": str(number)} for number in numbers]
    client = site.app.deployment.client()
    ids = [await client.xadd(STREAM, each) for each in fields]
    return [each.decode() for each in ids]


async def test_a_range_has_what_was_published_in_its_order(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(5)])
        found = await site.entries()
        back = await site.entries(reverse="true", limit=2)
        ids = [each["entryId"] for each in found["entries"]]
        part = await site.entries(**{"from": ids[1], "to": ids[3]})
        behind = await site.entries(**{"from": f"({ids[1]}"})
        by_time = await site.entries(**{"from": found["entries"][0]["time"], "to": ids[0].partition("-")[0]})
        later = await site.entries(**{"from": "2199-01-01T00:00:00Z"})
    assert [each["data"]["number"] for each in found["entries"]] == [0, 1, 2, 3, 4]
    assert found["next"] is None
    first = found["entries"][0]
    assert (first["partition"], first["eventType"], first["key"], first["problem"]) == (STREAM, "ORDER", "0", None)
    assert "state" not in first
    assert [each["entryId"] for each in back["entries"]] == [ids[4], ids[3]]
    assert back["next"] == f"({ids[3]}"
    assert [each["entryId"] for each in part["entries"]] == ids[1:4]
    assert [each["entryId"] for each in behind["entries"]] == ids[2:]
    assert [each["entryId"] for each in by_time["entries"]][:1] == ids[:1]
    assert later["entries"] == []


async def test_each_entry_says_how_it_stands_in_the_group(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        await _unread(site, range(1, 5))
        client = site.app.deployment.client()
        await client.xreadgroup(GROUP, "dead", {STREAM: ">"}, count=1)
        await trio.sleep(100)
        await client.xreadgroup(GROUP, "alive", {STREAM: ">"}, count=1)
        found = await site.entries(group=GROUP)
        _, groups = await site.ask("/api/v1/groups")
    states = [(each["state"], each["consumer"]) for each in found["entries"]]
    assert states == [("ACK", None), ("PENDING", "dead"), ("DELIVERED", "alive"), ("NEW", None), ("NEW", None)]
    assert [each["deliveries"] for each in found["entries"]] == [None, 1, 1, None, None]
    assert found["entries"][1]["idle"] >= 100
    (group,) = [each for each in groups["groups"] if each["name"] == GROUP]
    assert (group["pending"], group["states"]) == (2, {"DELIVERED": 1, "PENDING": 1})


async def test_where_too_much_is_pending_nobody_counts_what_is_left_lying(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _site() as site:
        await _unread(site, range(1001))
        await site.app.deployment.client().xreadgroup(GROUP, "theirs", {STREAM: ">"}, count=1001)
        _, found = await site.ask("/api/v1/groups")
        await site.app.deployment.client().xack(STREAM, GROUP, (await site.entries(limit=1))["entries"][0]["entryId"])
        await trio.sleep(100)
        _, less = await site.ask("/api/v1/groups")
    groups = [next(each for each in page["groups"] if each["name"] == GROUP) for page in (found, less)]
    assert [each["pending"] for each in groups] == [1001, 1000]
    assert groups[0]["states"] == {"DELIVERED": None, "PENDING": None}
    assert groups[1]["states"] == {"DELIVERED": 0, "PENDING": 1000}


async def test_partitions_are_one_stream_and_each_by_its_key(autojump_clock: trio.testing.MockClock) -> None:
    async with _site(partitions=3) as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(30)])
        await trio.sleep(30)
        seen: list[dict[str, Any]] = []
        place: str | None = "-"
        while place is not None:
            page = await site.entries(limit=4, group=ODD, **{"from": place})
            seen += page["entries"]
            place = page["next"]
        key = seen[0]["partition"]
        status, one = await site.ask(f"/api/v1/streams/{quote(key, safe='')}/entries")
        pending = f"/api/v1/streams/{quote(key, safe='')}/groups/{quote(ODD, safe='')}/pending"
        status_pending, _ = await site.ask(pending)
    assert sorted(each["data"]["number"] for each in seen) == list(range(30)), "each of them once"
    assert len({each["partition"] for each in seen}) > 1
    assert {each["state"] for each in seen} == {"ACK"}
    assert (status, status_pending) == (200, 200)
    assert [each["entryId"] for each in one["entries"]] == [e["entryId"] for e in seen if e["partition"] == key]


async def test_a_group_that_nobody_declared_is_one_if_redis_has_it(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/entries?group=theirs")
        missing, _ = await site.ask(f"/api/v1/streams/{STREAM}/groups/theirs/pending")
        assert (status, missing) == (404, 404)
        assert GROUP in found["detail"]
        await site.app.deployment.client().xgroup_create(STREAM, "theirs", id="0")
        there = await site.entries(group="theirs")
        status, _ = await site.ask(f"/api/v1/streams/{STREAM}/groups/theirs/pending")
    assert [each["state"] for each in there["entries"]] == ["NEW"]
    assert status == 200


async def test_what_is_no_event_is_shown_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        client = site.app.deployment.client()
        await client.xadd(STREAM, {"n": b"\xff1"}, id="1-1")
        await client.xadd(STREAM, {"n": "2"}, id="18446744073709551615-1")
        found = await site.entries()
    first, last = found["entries"]
    assert (first["fields"], first["data"], first["eventType"]) == ({"n": "\ufffd1"}, None, None)
    assert "utf-8" in first["problem"]
    assert (last["time"], last["problem"]) == (None, "no eventType and no known flat form; fields: n")


async def test_what_makes_no_sense_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        for query, expected in {
            "from=yesterday": 400,
            "limit=0": 400,
            "reverse=maybe": 400,
            "form=1": 400,
            "from=": 400,
        }.items():
            assert (await site.ask(f"/api/v1/streams/{STREAM}/entries?{query}"))[0] == expected, query
        for path in ("entries", "info"):
            status, found = await site.ask(f"/api/v1/streams/nothing/{path}")
            assert (status, found["streams"]) == (404, [STREAM])


@pytest.mark.parametrize("reverse", ["false", "true"])
async def test_large_entries_come_in_parts_and_none_is_left_out(
    autojump_clock: trio.testing.MockClock, reverse: str
) -> None:
    async with _site(partitions=2) as site:
        for number in range(60):
            size = 300_000 if number % 3 else 3
            await site.app.deployment.client().xadd(
                f"{{{STREAM}:{number % 3 and 1}}}", {"x": "y" * size}, f"{number + 1}-0"
            )
        seen: list[str] = []
        bound: dict[str, str] = {}
        parts = 0
        while True:
            found = await site.entries(limit=50, reverse=reverse, **bound)
            seen += [each["entryId"] for each in found["entries"]]
            parts += 1
            if found["next"] is None:
                break
            bound = {"to" if reverse == "true" else "from": found["next"]}
    ids = [f"{number + 1}-0" for number in range(60)]
    assert seen == (ids[::-1] if reverse == "true" else ids)
    assert parts > 2


async def test_bounds_that_nothing_is_beyond_are_refused_and_their_neighbours_are_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    last = 2**64 - 1
    async with _site() as site:
        for query in (f"from=({last}-{last}", "to=(0-0", "to=(0000-00"):
            status, found = await site.ask(f"/api/v1/streams/{STREAM}/entries?{query}")
            assert (status, found["type"]) == (400, "urn:penstock:problem:invalid-parameter")
        for query in (f"from=({last}-{last - 1}", f"from={last}-{last}", "to=(0-1", "to=0-0", "from=9-0&to=3-0"):
            status, found = await site.ask(f"/api/v1/streams/{STREAM}/entries?{query}")
            assert (status, found["entries"]) == (200, [])


async def test_info_has_what_redis_says(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0), Order(1))
        await site.app.settled()
        client = site.app.deployment.client()
        await client.xgroup_create(STREAM, "theirs", id="$")
        site.app.redis.fail_next(
            "memory usage", "NOPERM this user has no permissions to run the 'memory|usage' command"
        )
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/info")
    assert status == 200
    (facts,) = found["partitions"]
    assert (facts["key"], facts["exists"], facts["length"], facts["entriesAdded"]) == (STREAM, True, 2, 2)
    assert facts["first"]["fields"]["eventType"] == "ORDER"
    assert facts["last"]["entryId"] == facts["lastGeneratedId"]
    assert (facts["missing"], facts["memory"]) == ([], None)
    groups = {group["name"]: group for group in facts["groups"]}
    assert {name: group["declared"] for name, group in groups.items()} == {GROUP: True, ODD: True, "theirs": False}
    assert (groups[GROUP]["lag"], groups[GROUP]["pending"]) == (0, 0)
    assert [each["pending"] for each in groups[GROUP]["consumers"]] == [0]


async def test_a_stream_that_is_not_there_yet_has_no_facts(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        site.app.lose_database("away")
        await trio.sleep(5)
        await site.app.deployment.client().delete(STREAM)
        _, found = await site.ask(f"/api/v1/streams/{STREAM}/info")
        empty = await site.entries(group=GROUP)
    (facts,) = found["partitions"]
    assert (facts["exists"], facts["first"], facts["missing"]) == (False, None, sorted([GROUP, ODD]))
    assert empty["entries"] == []


async def test_while_redis_is_away_its_cause_is_the_answer(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.ask("/api/v1/groups")  # so that something was seen
        site.app.redis.refuse()
        await trio.sleep(5)
        for path in ("entries", "info"):
            status, found = await site.ask(f"/api/v1/streams/{STREAM}/{path}")
            assert (status, found["type"]) == (503, "urn:penstock:problem:redis-away")
            assert found["detail"].startswith("Redis is away since ")
        _, groups = await site.ask("/api/v1/groups")
    assert {each["states"]["PENDING"] for each in groups["groups"]} == {None}
