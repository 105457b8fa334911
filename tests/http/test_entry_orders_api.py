"""Claims and deletions of single entries over HTTP, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import trio
from attrs import frozen
from quart_trio import QuartTrio

from penstock.actors.event import event, new_event_id
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.entry_orders import entry_orders
from penstock.http.headers import ACTOR
from penstock.http.problems import install

STREAM, GROUP = "orders", "pay/ment 100%?#ü"
KEYS = [f"{{{STREAM}:{number}}}" for number in range(2)]


@event("ORDER", key="number")
@frozen
class Order:
    number: int


async def _reachable() -> None:
    pass


def _system(*, partitions: int = 1, ordered: bool = False, enabled: bool = True) -> System:
    system = System("shop")
    system.gate("bank", _reachable)
    stream = system.stream(STREAM, events=[Order], partitions=partitions)
    stream.group(GROUP, requires=["bank"], ordered=ordered, enabled=enabled)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


@frozen
class Site:
    app: VirtualDeployment[Any]
    client: Any

    async def order(self, path: str, stream: str = STREAM, **body: Any) -> tuple[int, Any]:
        whole = f"/api/v1/streams/{quote(stream, safe='')}/{path}"
        answer = await self.client.post(whole, json=body, headers={ACTOR: "ann"})
        return answer.status_code, await answer.get_json()

    async def claim(self, *ids: Any, stream: str = STREAM, **body: Any) -> tuple[int, Any]:
        return await self.order(f"groups/{quote(GROUP, safe='')}/claim", stream, ids=ids, **body)

    async def held_by_another(self, key: str = STREAM, *ids: str, count: int = 1) -> list[str]:
        """Publish while nobody of ours reads, and give it to a consumer of another program; the ids."""
        self.app.lose_database("away")
        await trio.sleep(5)
        found = await self.unread(key, *(ids or ["*"] * count))
        await self.app.deployment.client().xreadgroup(GROUP, "theirs", {key: ">"}, count=len(found))
        self.app.restore_database()
        await trio.sleep(10)
        return found

    async def unread(self, key: str = STREAM, *ids: str) -> list[str]:
        client = self.app.deployment.client()
        known = {"eventType": "ORDER", "timestamp": "2026-03-01T00:00:00Z", "data": '{"number": 7}', "key": "7"}
        return [(await client.xadd(key, {**known, "eventId": str(new_event_id())}, id=each)).decode() for each in ids]


@asynccontextmanager
async def _site(**options: Any) -> AsyncIterator[Site]:
    async with virtual(_system(**options)) as app:
        pages = QuartTrio("pages")
        install(pages)
        pages.register_blueprint(entry_orders(app.deployment))
        yield Site(app, pages.test_client())


async def test_a_claim_is_handled_and_says_from_whom(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        (entry_id,) = await site.held_by_another()
        status, found = await site.claim(entry_id)
        assert (status, found["claimed"], found["minIdle"]) == (200, 0, 60.0)
        assert [each["outcome"] for each in found["results"]] == ["busy"]
        status, found = await site.claim(entry_id, entry_id, minIdle=5)
        await trio.sleep(1)
        assert len(site.app.store.effects) == 1
    assert (status, found["claimed"]) == (200, 1)
    (result,) = found["results"]
    assert (result["partition"], result["entryId"], result["consumer"]) == (STREAM, entry_id, "theirs")


async def test_a_claim_finds_the_partition(autojump_clock: trio.testing.MockClock) -> None:
    async with _site(partitions=2) as site:
        (entry_id,) = await site.held_by_another(KEYS[1])
        status, elsewhere = await site.claim(entry_id, stream=KEYS[0], force=True)
        assert (status, [each["outcome"] for each in elsewhere["results"]]) == (200, ["not-pending"])
        status, found = await site.claim(entry_id, "1-1", force=True)
        await trio.sleep(1)
        assert len(site.app.store.effects) == 1
    outcomes = {each["entryId"]: (each["partition"], each["outcome"]) for each in found["results"]}
    assert outcomes[entry_id] == (KEYS[1], "claimed")
    assert outcomes["1-1"][1] == "not-pending"


async def test_nothing_is_claimed_in_an_ordered_group(autojump_clock: trio.testing.MockClock) -> None:
    async with _site(ordered=True) as site:
        status, found = await site.claim("1-1")
    assert (status, found["type"]) == (409, "urn:penstock:problem:claim-refused")
    assert "the owner of each partition handles its entries" in found["detail"]


async def test_nothing_is_claimed_by_a_process_that_does_not_read_the_group(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _site(enabled=False) as site:
        status, found = await site.claim("1-1")
    assert (status, found["type"]) == (409, "urn:penstock:problem:claim-refused")
    assert "is not read by this process" in found["detail"]


async def test_a_claim_that_makes_no_sense_is_refused(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        bodies: list[dict[str, Any]] = [
            {},
            {"ids": []},
            {"ids": ["17"]},
            {"ids": [17]},
            {"ids": ["18446744073709551616-0"]},
            {"ids": ["1-1"] * 101},
            {"ids": ["1-1"], "minIdle": 0},
            {"ids": ["1-1"], "minIdle": 5, "force": True},
            {"ids": ["1-1"], "idle": 5},
        ]
        for body in bodies:
            status, found = await site.order(f"groups/{quote(GROUP, safe='')}/claim", **body)
            assert (status, found["type"]) == (400, "urn:penstock:problem:invalid-parameter"), body
        status, found = await site.order("groups/nobody/claim", ids=["1-1"])
        assert (status, GROUP in found["detail"]) == (404, True)
        status, _ = await site.claim("1-1", stream="nothing")
        assert status == 404


async def test_a_claim_is_refused_while_something_is_away_and_says_what(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        site.app.deployment.gates["bank"].shut("no answer from the bank")
        status, found = await site.claim("1-1")
        assert (status, found["type"]) == (503, "urn:penstock:problem:group-held")
        assert "no answer from the bank" in found["detail"]
        site.app.deployment.gates["bank"].open()
        await trio.sleep(5)
        site.app.lose_database("away for tea")
        await trio.sleep(1)
        status, found = await site.claim("1-1")
        assert (status, found["type"]) == (503, "urn:penstock:problem:database-away")
        site.app.restore_database()
        site.app.redis.refuse()
        await trio.sleep(5)
        status, found = await site.claim("1-1")
        assert (status, found["type"]) == (503, "urn:penstock:problem:redis-away")
        assert "Redis is away since" in found["detail"]


# Deletions -----------------------------------------------------------------------------------------------------------


async def delete(site: Site, *ids: str, stream: str = STREAM, **body: Any) -> tuple[int, Any]:
    return await site.order("entries/delete", stream, ids=ids, **body)


async def _there(site: Site, key: str = STREAM) -> list[str]:
    return [entry_id.decode() for entry_id, _ in await site.app.deployment.client().xrange(key)]


async def test_what_everybody_has_acknowledged_is_deleted_and_written_down(
    autojump_clock: trio.testing.MockClock, caplog: Any
) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0), Order(1))
        await site.app.settled()
        first, second = await _there(site)
        status, dry = await delete(site, first, dryRun=True)
        assert (status, dry["deleted"], dry["refusal"], dry["entries"][0]["found"]) == (200, 0, None, True)
        status, found = await delete(site, first, "1-1")
        assert (status, found["deleted"]) == (200, 1)
        assert await _there(site) == [second]
        (record,) = site.app.store.deletions.table.rows.values()
        losses = await site.app.store.losses.recent(10)
    assert [(each["found"], each["deleted"]) for each in found["entries"]] == [(True, True), (False, False)]
    assert (record.entry_id, record.event_type, record.deleted_by) == (first, "ORDER", "ann")
    assert (record.unread_by, record.pending_by) == ((), ())
    assert losses == []
    assert any("entry deleted" in str(line.msg) and "ann" in str(line.msg) for line in caplog.records)


async def test_what_a_group_was_not_given_is_only_deleted_on_purpose(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        site.app.lose_database("away")
        await trio.sleep(5)
        unread = await site.unread(STREAM, "*", "*", "*")
        await site.app.deployment.client().xgroup_create(STREAM, "theirs", id="$")
        site.app.store.restore()  # for us, and before the listeners read on
        site.app.deployment.gates["postgres"].open()
        site.app.deployment.gates["schema"].open()
        status, found = await delete(site, unread[1])
        assert (status, found["type"], found["deleted"]) == (409, "urn:penstock:problem:entry-wanted", 0)
        assert f"{unread[1]}: {GROUP} was not given it yet" in found["detail"]
        assert found["entries"][0]["wantedBy"] == [{"group": GROUP, "consumer": None}]
        status, dry = await delete(site, unread[1], dryRun=True)
        assert (status, dry["refusal"]) == (200, found["detail"])
        assert len(await _there(site)) == 4
        status, found = await delete(site, unread[1], unread=True)
        assert (status, found["deleted"]) == (200, 1)
        (loss,) = await site.app.store.losses.recent(10)
        (record,) = site.app.store.deletions.table.rows.values()
    assert (loss.group, loss.entries, loss.deleted, loss.deleted_by) == (GROUP, 1, 1, "ann")
    assert (record.unread_by, record.pending_by) == ((GROUP,), ())


async def test_what_a_consumer_has_not_acknowledged_is_wanted_too(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        ids = await site.held_by_another(count=2)
        status, found = await delete(site, *ids)
        assert (status, found["deleted"]) == (409, 0)
        assert f"{GROUP} has not acknowledged it (theirs has it)" in found["detail"]
        assert await _there(site) == ids
        status, found = await delete(site, ids[0], unread=True)
        assert (status, found["deleted"]) == (200, 1)
        (record,) = site.app.store.deletions.table.rows.values()
    assert (record.unread_by, record.pending_by) == ((), (GROUP,))


async def test_a_group_that_is_not_made_yet_wants_what_it_will_be_given(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        client = site.app.deployment.client()
        site.app.redis.delay(3600, "xgroup create")  # its listeners do not make it again meanwhile
        await client.xgroup_destroy(STREAM, GROUP)
        status, found = await delete(site, *await _there(site))
        site.app.redis.heal()
    assert (status, found["entries"][0]["wantedBy"]) == (409, [{"group": GROUP, "consumer": None}])


async def test_an_id_in_two_partitions_must_be_said_where(autojump_clock: trio.testing.MockClock) -> None:
    async with _site(partitions=2) as site:
        for key in KEYS:
            await site.unread(key, "5-5")
        await site.unread(KEYS[1], "6-6")
        await trio.sleep(10)
        status, found = await delete(site, "5-5")
        assert (status, found["type"]) == (409, "urn:penstock:problem:entry-ambiguous")
        assert KEYS[0] in found["detail"]
        status, found = await delete(site, "5-5", stream=KEYS[1])
        assert (status, found["deleted"], await _there(site)) == (200, 1, [])
        status, found = await delete(site, "5-5", "6-6")
        assert (status, found["deleted"]) == (200, 2)
        assert [await _there(site, key) for key in KEYS] == [[], []]


async def test_a_deletion_is_refused_while_it_could_not_be_written_down(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        ids = await _there(site)
        site.app.lose_database("away for tea")
        await trio.sleep(1)
        status, found = await delete(site, *ids)
        assert (status, found["type"], await _there(site)) == (503, "urn:penstock:problem:database-away", ids)
        site.app.restore_database()
        await trio.sleep(5)
        site.app.redis.refuse()
        await trio.sleep(5)
        status, found = await delete(site, *ids)
        assert (status, found["type"]) == (503, "urn:penstock:problem:redis-away")
    assert site.app.store.deletions.table.rows == {}


async def test_a_deletion_whose_answer_is_lost_is_done_and_written_down(autojump_clock: trio.testing.MockClock) -> None:
    async with _site() as site:
        await site.app.publish(STREAM, Order(0))
        await site.app.settled()
        ids = await _there(site)
        await delete(site, *ids, dryRun=True)  # so that the script is known
        site.app.redis.cut_after(2, effect="after", command="evalsha")
        status, found = await delete(site, *ids)
        assert (status, found["deleted"]) == (200, 1), found
        assert len(site.app.store.deletions.table.rows) == 1
