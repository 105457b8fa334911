"""Streams, groups, pending entries, losses, checks and replays over HTTP, of a whole deployment in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import trio
from attrs import frozen
from quart_trio import QuartTrio

from penstock.actors.event import event
from penstock.actors.findings import Finding, Severity
from penstock.actors.handling import Context
from penstock.actors.losses import Loss
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.problems import install
from penstock.http.replays import replays
from penstock.http.streams import streams

STREAM, GROUP = "orders", "payment"
SETTINGS = ActorSettings(health=HealthSettings(observe_every=5.0))


@event("ORDER", key="number")
@frozen
class Order:
    number: int


def _system(**options: Any) -> System:
    system = System("shop")
    stream = system.stream(STREAM, events=[Order], **options)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


@frozen
class Site:
    app: VirtualDeployment[Any]
    client: Any

    async def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        answer = await (self.client.get(path) if body is None else self.client.post(path, json=body))
        return answer.status_code, await answer.get_json()

    async def observed(self) -> None:
        """Let the health monitor look once more."""
        await trio.sleep(6)


@asynccontextmanager
async def _site(**options: Any) -> AsyncIterator[Site]:
    async with virtual(_system(**options), settings=SETTINGS) as app:
        pages = QuartTrio("pages")  # without those that need a real database
        install(pages)
        for routes in (streams(app.deployment), replays(app.deployment)):
            pages.register_blueprint(routes)
        yield Site(app, pages.test_client())


async def test_streams_say_what_they_hold(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(1), Order(2))
        await site.app.settled()
        status, found = await site.ask("/api/v1/streams")
    assert (status, found["stale"]) == (200, None)
    (stream,) = found["streams"]
    assert (stream["key"], stream["stream"], stream["length"], stream["entriesAdded"]) == (STREAM, STREAM, 2, 2)
    assert stream["firstId"] < stream["lastId"]


async def test_a_group_is_shown_over_all_its_partitions(autojump_clock: trio.testing.MockClock) -> None:
    async with _site(partitions=3) as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(20)])
        await trio.sleep(30)
        _, found = await site.ask("/api/v1/groups")
        _, streams = await site.ask("/api/v1/streams")
    (group,) = found["groups"]
    assert (group["stream"], group["name"], group["declared"], group["ordered"]) == (STREAM, GROUP, True, False)
    assert (group["partitions"], group["lag"], group["pending"]) == (3, 0, 0)
    assert [stream["stream"] for stream in streams["streams"]] == [STREAM] * 3


async def test_what_came_since_the_monitor_looked_is_seen(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.observed()
        for count in (1, 2, 3):
            await site.app.publish(STREAM, Order(count))
            _, found = await site.ask("/api/v1/streams")
            assert [stream["length"] for stream in found["streams"]] == [count]


async def test_while_redis_is_away_older_figures_say_so(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(1), Order(2))
        await site.app.settled()
        _, before = await site.ask("/api/v1/streams")
        site.app.redis.refuse()
        # The gate does not know of it yet, then it does:
        for pause in (0, 60):
            await trio.sleep(pause)
            status, found = await site.ask("/api/v1/streams")
            assert (status, found["streams"][0]["length"]) == (200, 2)
            assert found["stale"].startswith("Redis ")
            assert f"seen at {before['streams'][0]['observedAt']}" in found["stale"]
            status, groups = await site.ask("/api/v1/groups")
            assert (status, groups["groups"][0]["lag"], bool(groups["stale"])) == (200, 0, True)


async def test_before_anything_was_seen_there_is_a_reason(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        site.app.redis.refuse()
        site.app.deployment.upkeep._seen.clear()
        _, found = await site.ask("/api/v1/streams")
    assert (found["streams"], found["stale"].endswith("Nothing was seen before.")) == ([], True)


async def test_pending_entries_name_their_consumers(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        site.app.lose_database("away")  # nobody of ours reads
        await site.app.publish(STREAM, *[Order(number) for number in range(3)])
        await site.app.deployment.client().xreadgroup(GROUP, "somebody", {STREAM: ">"}, count=2)
        await trio.sleep(10)
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/groups/{GROUP}/pending?limit=1")
        _, idle = await site.ask(f"/api/v1/streams/{STREAM}/groups/{GROUP}/pending?idle=60")
        await trio.sleep(60)
        _, later = await site.ask(f"/api/v1/streams/{STREAM}/groups/{GROUP}/pending?consumer=somebody")
    assert status == 200
    (entry,) = found["entries"]
    assert found["total"] == 2
    assert (entry["consumer"], entry["deliveries"], entry["state"]) == ("somebody", 1, "DELIVERED")
    assert idle["entries"] == []
    assert [entry["state"] for entry in later["entries"]] == ["PENDING", "PENDING"]
    assert {"key": STREAM, "name": "somebody", "pending": 2}.items() <= later["consumers"][-1].items()


async def test_what_does_not_exist_is_said_and_what_does(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        status, found = await site.ask(f"/api/v1/streams/nothing/groups/{GROUP}/pending")
        assert (status, found["streams"]) == (404, [STREAM])
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/groups/nobody/pending")
        assert status == 404
        assert GROUP in found["detail"]
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/groups/{GROUP}/pending?limits=1")
        assert status == 400


async def test_pending_is_refused_while_redis_is_away(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        site.app.redis.refuse()
        await trio.sleep(5)
        status, found = await site.ask(f"/api/v1/streams/{STREAM}/groups/{GROUP}/pending")
        assert (status, found["type"]) == (503, "urn:penstock:problem:redis-away")
        status, _ = await site.ask("/api/v1/replays", {"stream": STREAM, "from": "0"})
        assert status == 503


async def test_losses_are_listed(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        loss = Loss(group=GROUP, stream=STREAM, after_id="1-0", before_id="9-0", entries=7, counted_from=3)
        async with site.app.store.transaction() as transaction:
            await site.app.store.losses.add(transaction, loss)
        _, found = await site.ask("/api/v1/losses")
    (shown,) = found["losses"]
    assert (shown["group"], shown["stream"], shown["afterId"], shown["beforeId"], shown["entries"]) == (
        GROUP,
        STREAM,
        "1-0",
        "9-0",
        7,
    )


async def test_what_was_trimmed_unread_becomes_a_loss_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        await site.observed()
        site.app.lose_database("away")
        await trio.sleep(5)  # until the last blocked read is over
        client = site.app.deployment.client()
        for number in range(1, 6):
            await client.xadd(STREAM, {"eventType": "ORDER", "n": number})
        await client.xtrim(STREAM, maxlen=2, approximate=False)
        site.app.restore_database()
        await site.observed()
        _, found = await site.ask("/api/v1/losses")
    assert [loss["entries"] for loss in found["losses"]] == [3]


async def test_warnings_stand_in_checks_and_in_readyz(client: Any, deployment: Any) -> None:
    deployment.findings.append(
        Finding(name="append-only", where="redis://u:hunter2@h:1", severity=Severity.WARN, found="off", mend="on")
    )
    found = await (await client.get("/api/v1/checks")).get_json()
    ready = await (await client.get("/readyz")).get_json()
    assert found["warnings"] == ready["warnings"]
    (warning,) = found["warnings"]
    assert (warning["check"], warning["severity"], warning["mend"]) == ("append-only", "warn", "on")
    assert "hunter2" not in warning["where"]


async def test_a_replay_is_ordered_worked_off_and_shown(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(5)])
        await site.app.settled()
        status, dry = await site.ask("/api/v1/replays", {"stream": STREAM, "from": "0", "dryRun": True})
        assert (status, dry["dryRun"], dry["total"]) == (200, True, 5)
        status, ordered = await site.ask("/api/v1/replays", {"stream": STREAM, "from": "1999-01-01"})
        assert (status, ordered["into"], ordered["total"]) == (202, f"{STREAM}:reprocess", 5)
        await trio.sleep(5)
        _, done = await site.ask(f"/api/v1/replays/{ordered['id']}")
        assert (done["state"], done["replayed"]) == ("done", 5)
        _, listed = await site.ask("/api/v1/replays")
        assert [replay["id"] for replay in listed["replays"]] == [ordered["id"]]
        copies = await site.app.deployment.client().xrange(f"{STREAM}:reprocess")
    assert len(copies) == 5
    assert copies[0][1][b"reprocessed"] == b"true"


async def test_a_replay_to_a_group_is_handled_again(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(5)])
        await site.app.settled()
        status, _ = await site.ask("/api/v1/replays", {"stream": STREAM, "from": "0", "group": GROUP})
        assert status == 202
        await trio.sleep(30)
        handled = [effect.values[0] for effect in site.app.store.effects]
    assert sorted(handled) == sorted([*range(5)] * 2)


async def test_a_replay_that_makes_no_sense_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        bodies: list[tuple[dict[str, Any], int]] = [
            ({"stream": STREAM}, 400),
            ({"stream": STREAM, "from": "yesterday"}, 400),
            ({"stream": "nothing", "from": "0"}, 404),
            ({"stream": STREAM, "from": "0", "group": "nobody"}, 422),
            ({"stream": STREAM, "from": "0", "into": STREAM}, 422),
            ({"stream": STREAM, "from": "0", "rate": 0}, 400),
            ({"stream": STREAM, "from": "0", "fast": True}, 400),
        ]
        for body, expected in bodies:
            status, _ = await site.ask("/api/v1/replays", body)
            assert status == expected, body
        assert site.app.store.replays.rows == []


async def test_a_replay_is_cancelled_once(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, *[Order(number) for number in range(50)])
        _, ordered = await site.ask("/api/v1/replays", {"stream": STREAM, "from": "0", "rate": 1})
        await trio.sleep(5)
        status, cancelled = await site.ask(f"/api/v1/replays/{ordered['id']}/cancel", {})
        assert (status, cancelled["state"]) == (200, "cancelled")
        status, _ = await site.ask(f"/api/v1/replays/{ordered['id']}/cancel", {})
        assert status == 409
        status, _ = await site.ask(f"/api/v1/replays/{uuid4()}/cancel", {})
        assert status == 404


async def test_retention_needs_a_database(client: Any) -> None:
    answer = await client.get("/api/v1/retention")
    assert answer.status_code == 503
