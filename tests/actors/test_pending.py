"""The scripts on the pending list, held against the Redis in memory, Valkey and Redis 7.0 alike."""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.actors.handling import Entry
from penstock.actors.pending import PendingList
from penstock.actors.settings import DeliverySettings
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
LONG = 3600.0


@contextmanager
def _running(command: list[str], path: Path) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10.0
            while True:
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(str(path)) == 0:
                        break
                assert process.poll() is None, "redis-server did not start"
                assert time.monotonic() < deadline, "redis-server does not listen"
                time.sleep(0.01)  # another process: there is no event to wait for
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def old_server(redis_7_0: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pr-") as directory:
        path = Path(directory) / "s"
        command = [redis_7_0, "--port", "0", "--unixsocket", str(path), "--dir", directory, "--save", ""]
        with _running(command, path):
            yield path


@pytest.fixture(params=["in-process", "valkey", "redis-7.0"])
def kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "valkey":
        return request.getfixturevalue("shared_valkey").options
    if request.param == "redis-7.0":
        return RedisOptions(path=str(request.getfixturevalue("old_server")), retry_for=0)
    return None


@pytest.fixture
async def client(kind: RedisOptions | None) -> AsyncIterator[Redis]:
    if kind is not None:
        async with Redis(kind) as made:
            await made.flushall()
            yield made
        return
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as made:
        yield made


@pytest.fixture
async def pending(client: Redis) -> PendingList:
    await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    return PendingList(client, STREAM, GROUP)


async def give(client: Redis, consumer: str, *names: str) -> list[str]:
    """Add entries and give them to `consumer`."""
    ids = [(await client.xadd(STREAM, {"name": name})).decode() for name in names]
    await client.xreadgroup(GROUP, consumer, {STREAM: ">"}, count=len(names))
    return ids


async def age(client: Redis, consumer: str, *ids: str) -> None:
    """Let them look as if nobody had touched them for an hour."""
    await client.xclaim(STREAM, GROUP, consumer, 0, ids, idle=int(LONG * 1000), justid=True)


async def owners(client: Redis) -> dict[str, tuple[str, int]]:
    rows = await client.xpending_range(STREAM, GROUP, "-", "+", 1000)
    return {row["message_id"].decode(): (row["consumer"].decode(), row["times_delivered"]) for row in rows}


def names(entries: tuple[Entry, ...]) -> list[bytes | None]:
    return [None if entry.fields is None else entry.fields[b"name"] for entry in entries]


async def test_only_what_is_idle_for_long_enough_is_taken_over(client: Redis, pending: PendingList) -> None:
    old, new = await give(client, "dead", "old", "new")
    await age(client, "dead", old)
    stale = await pending.take_over("mine", LONG / 2, "-", 100, spared=["mine"])
    assert names(stale.entries) == [b"old"]
    assert (stale.entries[0].redelivered, stale.entries[0].consumer, stale.after) == (True, "mine", None)
    held = await owners(client)
    assert (held[old], held[new][0]) == (("mine", 2), "dead")
    assert (await pending.take_over("mine", LONG / 2, "-", 100, spared=["mine"])).entries == ()


async def test_own_consumers_and_owners_of_partitions_are_spared(client: Redis, pending: PendingList) -> None:
    for consumer in ("mine-1", "mine-2", "owner@7", "foreign"):
        await age(client, consumer, *await give(client, consumer, consumer))
    stale = await pending.take_over("mine-1", 1.0, "-", 100, spared=["mine-1", "mine-2"], spared_prefix="owner@")
    assert names(stale.entries) == [b"foreign"]


async def test_what_was_trimmed_is_told_and_stays_pending_until_it_is_acknowledged(
    client: Redis, pending: PendingList
) -> None:
    """XCLAIM and XAUTOCLAIM take it off the list, and then nobody knows of it any more."""
    ids = await give(client, "dead", "a", "b", "c")
    await age(client, "dead", *ids)
    await client.xdel(STREAM, ids[1])
    stale = await pending.take_over("mine", 1.0, "-", 100, spared=["mine"])
    assert sorted(zip([entry.id for entry in stale.entries], names(stale.entries), strict=True)) == [
        (ids[0], b"a"), (ids[1], None), (ids[2], b"c"),
    ]  # fmt: skip
    assert {owner for owner, _ in (await owners(client)).values()} == {"dead", "mine"}


async def test_a_long_list_is_looked_through_in_pages(client: Redis, pending: PendingList) -> None:
    ids = await give(client, "dead", *(f"e{number}" for number in range(25)))
    await age(client, "dead", *ids)
    await age(client, "spared", *ids[3:18])
    found: list[str] = []
    after: str | None = "-"
    while after is not None:
        stale = await pending.take_over("mine", 1.0, after, 4, spared=["mine", "spared"])
        found += [entry.id for entry in stale.entries]
        after = stale.after
    assert found == ids[:3] + ids[18:]


async def test_renewing_tells_what_is_somebody_elses(client: Redis, pending: PendingList) -> None:
    ids = await give(client, "mine", *(f"e{number}" for number in range(230)))
    await age(client, "mine", *ids)
    await client.xclaim(STREAM, GROUP, "other", 0, ids[5:7])
    await client.xack(STREAM, GROUP, ids[9])
    await client.xdel(STREAM, ids[11])
    assert await pending.renew("mine", ids) == [ids[5], ids[6], ids[9]]
    rows = await client.xpending_range(STREAM, GROUP, "-", "+", 1000, consumername="mine")
    still_idle = [row["message_id"].decode() for row in rows if row["time_since_delivered"] > 1000 * LONG / 2]
    assert still_idle == [ids[11]], "what was trimmed is left to be found"
    assert {row["times_delivered"] for row in rows} == {1}, "renewing is no delivery"


async def test_what_is_given_back_can_be_taken_over_at_once_and_was_never_delivered(
    client: Redis, pending: PendingList
) -> None:
    ids = await give(client, "mine", "a", "b", "c")
    await client.xclaim(STREAM, GROUP, "other", 0, ids[2:])
    assert await pending.give_back("mine", ids, 60.0) == 2
    assert [count for _, count in (await owners(client)).values()] == [0, 0, 2]
    stale = await pending.take_over("next", 60.0, "-", 100, spared=["next"])
    assert names(stale.entries) == [b"a", b"b"]
    assert [count for _, count in (await owners(client)).values()] == [1, 1, 2]


async def test_only_a_consumer_that_holds_nothing_is_removed(client: Redis, pending: PendingList) -> None:
    await give(client, "full", "a")
    (done,) = await give(client, "empty", "b")
    await client.xack(STREAM, GROUP, done)
    await client.xgroup_createconsumer(STREAM, GROUP, "unasked")
    assert await pending.remove(["full", "empty", "unknown"], idle=LONG) == [], "not while it was there just now"
    assert await pending.remove(["full", "empty", "unknown"]) == ["empty"]
    assert await pending.consumers() == {"full": 1, "unasked": 0}
    assert await pending.remove([]) == []


async def test_a_full_server_takes_them_all(client: Redis, pending: PendingList, kind: RedisOptions | None) -> None:
    ids = await give(client, "dead", "a", "b")
    await age(client, "dead", *ids)
    if kind is None:
        pytest.skip("the one in memory is full when it is told to, and then says so to what it is told to")
    await client.config_set("maxmemory", "1")
    try:
        assert len((await pending.take_over("mine", 1.0, "-", 100, spared=[])).entries) == 2
        assert await pending.renew("mine", ids) == []
        assert await pending.give_back("mine", ids, 1.0) == 2
        assert await pending.remove(["dead"]) == ["dead"]
    finally:
        await client.config_set("maxmemory", "0")


def test_a_handler_is_over_before_anybody_takes_its_entry_over() -> None:
    settings = DeliverySettings()
    assert settings.reclaim_idle == 60.0
    assert settings.handler_timeout < settings.reclaim_idle
