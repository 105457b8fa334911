"""The scripts on the pending list, held against the Redis in memory, Valkey and Redis 7.0 alike."""

from __future__ import annotations

import pytest

from penstock.actors.handling import Entry
from penstock.actors.pending import PendingList
from penstock.actors.settings import DeliverySettings
from penstock.runtime.redis import Redis, RedisOptions

STREAM, GROUP = "orders", "payments"
LONG = 3600.0


@pytest.fixture
async def pending(any_redis: Redis) -> PendingList:
    await any_redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    return PendingList(any_redis, STREAM, GROUP)


async def give(any_redis: Redis, consumer: str, *names: str) -> list[str]:
    """Add entries and give them to `consumer`."""
    ids = [(await any_redis.xadd(STREAM, {"name": name})).decode() for name in names]
    await any_redis.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=len(names))
    return ids


async def age(any_redis: Redis, consumer: str, *ids: str) -> None:
    """Let them look as if nobody had touched them for an hour."""
    await any_redis.xclaim(STREAM, GROUP, consumer, 0, ids, idle=int(LONG * 1000), justid=True)


async def owners(any_redis: Redis) -> dict[str, tuple[str, int]]:
    rows = await any_redis.xpending_range(STREAM, GROUP, "-", "+", 1000)
    return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


def names(entries: tuple[Entry, ...]) -> list[bytes | None]:
    return [None if entry.fields is None else entry.fields[b"name"] for entry in entries]


async def test_only_what_is_idle_for_long_enough_is_taken_over(any_redis: Redis, pending: PendingList) -> None:
    old, new = await give(any_redis, "dead", "old", "new")
    await age(any_redis, "dead", old)
    stale = await pending.take_over("mine", LONG / 2, "-", 100, spared=["mine"])
    assert names(stale.entries) == [b"old"]
    assert (stale.entries[0].redelivered, stale.entries[0].consumer, stale.after) == (True, "mine", None)
    held = await owners(any_redis)
    assert (held[old], held[new][0]) == (("mine", 2), "dead")
    assert (await pending.take_over("mine", LONG / 2, "-", 100, spared=["mine"])).entries == ()


async def test_own_consumers_and_owners_of_partitions_are_spared(any_redis: Redis, pending: PendingList) -> None:
    for consumer in ("mine-1", "mine-2", "owner@7", "foreign"):
        await age(any_redis, consumer, *await give(any_redis, consumer, consumer))
    stale = await pending.take_over("mine-1", 1.0, "-", 100, spared=["mine-1", "mine-2"], spared_prefix="owner@")
    assert names(stale.entries) == [b"foreign"]


async def test_what_was_trimmed_is_told_and_stays_pending_until_it_is_acknowledged(
    any_redis: Redis, pending: PendingList
) -> None:
    """XCLAIM and XAUTOCLAIM take it off the list, and then nobody knows of it any more."""
    ids = await give(any_redis, "dead", "a", "b", "c")
    await age(any_redis, "dead", *ids)
    await any_redis.xdel(STREAM, ids[1])
    stale = await pending.take_over("mine", 1.0, "-", 100, spared=["mine"])
    assert sorted(zip([entry.id for entry in stale.entries], names(stale.entries), strict=True)) == [
        (ids[0], b"a"), (ids[1], None), (ids[2], b"c"),
    ]  # fmt: skip
    assert {owner for owner, _ in (await owners(any_redis)).values()} == {"dead", "mine"}


async def test_a_long_list_is_looked_through_in_pages(any_redis: Redis, pending: PendingList) -> None:
    ids = await give(any_redis, "dead", *(f"e{number}" for number in range(25)))
    await age(any_redis, "dead", *ids)
    await age(any_redis, "spared", *ids[3:18])
    found: list[str] = []
    after: str | None = "-"
    while after is not None:
        stale = await pending.take_over("mine", 1.0, after, 4, spared=["mine", "spared"])
        found += [entry.id for entry in stale.entries]
        after = stale.after
    assert found == ids[:3] + ids[18:]


async def test_renewing_tells_what_is_somebody_elses(any_redis: Redis, pending: PendingList) -> None:
    ids = await give(any_redis, "mine", *(f"e{number}" for number in range(230)))
    await age(any_redis, "mine", *ids)
    await any_redis.xclaim(STREAM, GROUP, "other", 0, ids[5:7])
    await any_redis.xack(STREAM, GROUP, ids[9])
    await any_redis.xdel(STREAM, ids[11])
    assert await pending.renew("mine", ids) == [ids[5], ids[6], ids[9]]
    rows = await any_redis.xpending_range(STREAM, GROUP, "-", "+", 1000, consumername="mine")
    still_idle = [row["message_id"].decode() for row in rows if row["time_since_delivered"] > 1000 * LONG / 2]
    assert still_idle == [ids[11]], "what was trimmed is left to be found"
    assert {row["times_delivered"] for row in rows} == {1}, "renewing is no delivery"


async def test_what_is_given_back_can_be_taken_over_at_once_and_was_never_delivered(
    any_redis: Redis, pending: PendingList
) -> None:
    ids = await give(any_redis, "mine", "a", "b", "c")
    await any_redis.xclaim(STREAM, GROUP, "other", 0, ids[2:])
    assert await pending.give_back("mine", ids, 60.0) == 2
    assert [count for _, count in (await owners(any_redis)).values()] == [0, 0, 2]
    stale = await pending.take_over("next", 60.0, "-", 100, spared=["next"])
    assert names(stale.entries) == [b"a", b"b"]
    assert [count for _, count in (await owners(any_redis)).values()] == [1, 1, 2]


async def test_only_a_consumer_that_holds_nothing_is_removed(any_redis: Redis, pending: PendingList) -> None:
    await give(any_redis, "full", "a")
    (done,) = await give(any_redis, "empty", "b")
    await any_redis.xack(STREAM, GROUP, done)
    await any_redis.xgroup_createconsumer(STREAM, GROUP, "unasked")
    assert await pending.remove(["full", "empty", "unknown"], idle=LONG) == [], "not while it was there just now"
    assert await pending.remove(["full", "empty", "unknown"]) == ["empty"]
    assert await pending.consumers() == {"full": 1, "unasked": 0}
    assert await pending.remove([]) == []


async def test_a_full_server_takes_them_all(
    any_redis: Redis, pending: PendingList, redis_kind: RedisOptions | None
) -> None:
    ids = await give(any_redis, "dead", "a", "b")
    await age(any_redis, "dead", *ids)
    if redis_kind is None:
        pytest.skip("the one in memory is full when it is told to, and then says so to what it is told to")
    await any_redis.config_set("maxmemory", "1")
    try:
        assert len((await pending.take_over("mine", 1.0, "-", 100, spared=[])).entries) == 2
        assert await pending.renew("mine", ids) == []
        assert await pending.give_back("mine", ids, 1.0) == 2
        assert await pending.remove(["dead"]) == ["dead"]
    finally:
        await any_redis.config_set("maxmemory", "0")


def test_a_handler_is_over_before_anybody_takes_its_entry_over() -> None:
    settings = DeliverySettings()
    assert settings.reclaim_idle == 60.0
    assert settings.handler_timeout < settings.reclaim_idle
