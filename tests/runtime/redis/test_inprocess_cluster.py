"""`InProcessCluster`: redirections, migrations, failovers and outages, in virtual time and as Valkey 9 does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import hiredis
import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.redis import RedisOptions
from penstock.runtime.redis.cluster import ClusterOptions, RedisCluster
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.redis_cluster import InProcessCluster, InProcessClusterNode

SLOT = slot_of("s")


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    async with InProcessCluster(replicas=1) as cluster:
        yield cluster


@pytest.fixture
async def redis(cluster: InProcessCluster) -> AsyncIterator[RedisCluster]:
    options = ClusterOptions(nodes=cluster.addresses, node=RedisOptions())
    async with RedisCluster(options, connect=cluster.connect) as redis:
        yield redis


class Wire:
    """A connection to one node, without a driver: an error comes as its text."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._reader = hiredis.Reader()

    async def call(self, *words: Any) -> Any:
        await self._stream.send_all(hiredis.pack_command(words))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(bytes(await self._stream.receive_some()))
        return str(reply) if isinstance(reply, hiredis.ReplyError) else reply


async def dial(node: InProcessClusterNode) -> Wire:
    return Wire(await node.connect())


def others(cluster: InProcessCluster, node: InProcessClusterNode) -> list[InProcessClusterNode]:
    return [each for each in cluster.masters() if each is not node]


async def test_keys_of_others_are_moved(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    owner = cluster.master_of("s")
    stranger = await dial(others(cluster, owner)[0])
    assert await stranger.call("XLEN", "s") == f"MOVED {SLOT} {owner.host}:{owner.port}"
    assert await stranger.call("EVAL", "return 1", 1, "s") == f"MOVED {SLOT} {owner.host}:{owner.port}"
    assert await stranger.call("MGET", "a", "b") == "CROSSSLOT Keys in request don't hash to the same slot"
    assert await stranger.call("MULTI") == b"OK"
    assert await stranger.call("GET", "s") == f"MOVED {SLOT} {owner.host}:{owner.port}"
    assert await stranger.call("EXEC") == "EXECABORT Transaction discarded because of previous errors."
    assert await stranger.call("SELECT", 1) == "ERR DB index is out of range"
    assert await stranger.call("PING") == b"PONG"


async def test_a_replica_reads_when_it_is_told_to(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    master = cluster.master_of("s")
    [replica] = cluster.replicas_of(master)
    wire, moved = await dial(replica), f"MOVED {SLOT} {master.host}:{master.port}"
    await (await dial(master)).call("SET", "s", "v")
    assert await wire.call("GET", "s") == moved
    assert await wire.call("READONLY") == b"OK"
    assert await wire.call("GET", "s") == b"v"
    assert await wire.call("SET", "s", "w") == moved
    assert await wire.call("FLUSHALL") == "READONLY You can't write against a read only replica."
    assert await wire.call("READWRITE") == b"OK"
    assert await wire.call("GET", "s") == moved
    assert await wire.call("ROLE") == [b"slave", b"127.0.0.1", master.port, b"connected", 0]


async def test_the_steps_of_a_migration(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    """As measured on Valkey 9.1."""
    source = cluster.master_of("s")
    target = others(cluster, source)[0]
    here, there = await dial(source), await dial(target)
    await here.call("XADD", "s", "1-0", "n", 1)
    cluster.begin_migration(SLOT, target)
    ask, moved = f"ASK {SLOT} {target.host}:{target.port}", f"MOVED {SLOT} {source.host}:{source.port}"
    try_again = "TRYAGAIN Multiple keys request during rehashing of slot"
    assert await here.call("XLEN", "s") == 1
    assert await here.call("GET", "{s}absent") == ask
    assert await here.call("EXISTS", "s", "{s}absent") == try_again
    assert await here.call("EXISTS", "{s}a", "{s}b") == ask
    assert await there.call("GET", "{s}absent") == moved
    assert await there.call("ASKING") == b"OK"
    assert await there.call("GET", "{s}absent") is None
    assert await there.call("GET", "{s}absent") == moved
    await there.call("ASKING")
    assert await there.call("EXISTS", "{s}a", "{s}b") == try_again
    await here.call("MULTI")
    assert await here.call("GET", "{s}absent") == b"QUEUED"
    assert await here.call("EXEC") == ask
    cluster.move_keys(SLOT)
    assert await here.call("XLEN", "s") == ask
    cluster.finish_migration(SLOT)
    assert await here.call("XLEN", "s") == f"MOVED {SLOT} {target.host}:{target.port}"
    assert await there.call("XLEN", "s") == 1
    assert await there.call("CLUSTER", "COUNTKEYSINSLOT", SLOT) == 1


async def test_blocked_clients_hear_of_a_migration(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    """The group's reader when its stream has gone, the others when the slot has. (Valkey 9.1)"""
    source = cluster.master_of("s")
    target = others(cluster, source)[0]
    await (await dial(source)).call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    seen: list[tuple[str, float, Any]] = []

    async def read(*words: Any) -> None:
        reply = await (await dial(source)).call(*words)
        seen.append((words[0], trio.current_time(), reply))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "XREADGROUP", "GROUP", "g", "c", "BLOCK", 60_000, "STREAMS", "s", ">")
        nursery.start_soon(read, "BLPOP", "{s}l", 60)
        await trio.sleep(1)
        cluster.begin_migration(SLOT, target)
        await trio.sleep(1)
        cluster.move_keys(SLOT)
        await trio.sleep(1)
        cluster.finish_migration(SLOT)
    where = f"{SLOT} {target.host}:{target.port}"
    assert seen == [("XREADGROUP", 2.0, f"ASK {where}"), ("BLPOP", 3.0, f"MOVED {where}")]


async def test_blocked_clients_hear_of_a_failover(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    master = cluster.master_of("s")
    [replica] = cluster.replicas_of(master)
    wire = await dial(master)
    await wire.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    replies: list[Any] = []

    async def read() -> None:
        replies.append(await wire.call("XREADGROUP", "GROUP", "g", "c", "BLOCK", 60_000, "STREAMS", "s", ">"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.sleep(1)
        cluster.fail_over(replica)
    assert replies == [f"MOVED {SLOT} {replica.host}:{replica.port}"]
    assert cluster.master_of("s") is replica
    assert cluster.replicas_of(replica) == [master]
    assert await (await dial(replica)).call("XLEN", "s") == 0
    assert (await wire.call("SET", "s", "v")).startswith("MOVED")


async def test_without_a_master_the_cluster_is_down_until_it_is_back(autojump_clock: MockClock) -> None:
    async with InProcessCluster(node_timeout=5.0) as cluster:
        lost, kept = cluster.master_of("s"), others(cluster, cluster.master_of("s"))[0]
        key = next(key for key in map(str, range(1000)) if cluster.master_of(key) is kept)
        wire = await dial(kept)
        lost.refuse()
        assert (await wire.call("GET", "s")).startswith("MOVED")
        assert await wire.call("GET", key) is None
        await trio.sleep(5.1)
        assert await wire.call("GET", key) == "CLUSTERDOWN The cluster is down"
        assert await wire.call("PING") == b"PONG"
        assert await wire.call("PUBLISH", "c", "m") == 0
        assert await wire.call("EVAL", "return 1", 0) == 1
        assert b"cluster_state:fail" in await wire.call("CLUSTER", "INFO")
        lost.restore()
        assert await wire.call("GET", key) is None


async def test_slots_that_nobody_owns(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    owner = cluster.master_of("s")
    cluster.lose_slots([SLOT])
    assert await (await dial(owner)).call("GET", "s") == "CLUSTERDOWN Hash slot not served"
    cluster.give_slots([SLOT], owner)
    assert await (await dial(owner)).call("GET", "s") is None


async def test_what_is_published_is_heard_on_all_nodes(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    first, second = await dial(cluster.nodes[0]), await dial(cluster.nodes[1])
    assert await first.call("SUBSCRIBE", "c") == [b"subscribe", b"c", 1]
    assert await second.call("PUBLISH", "c", "m") == 0  # listeners of its own
    assert await first.call("PING") == [b"message", b"c", b"m"]


async def test_shard_channels_go_with_their_slot(autojump_clock: MockClock, cluster: InProcessCluster) -> None:
    owner = cluster.master_of("s")
    wire = await dial(owner)
    assert await wire.call("SSUBSCRIBE", "s") == [b"ssubscribe", b"s", 1]
    cluster.migrate_slot(SLOT, others(cluster, owner)[0])
    assert await wire.call("PING") == [b"sunsubscribe", b"s", 0]


async def test_the_topology_in_three_forms(autojump_clock: MockClock) -> None:
    async with InProcessCluster(masters=2, replicas=1, hosts=["a", "b", "c", "d"]) as cluster:
        wire = await dial(cluster.nodes[0])
        slots = await wire.call("CLUSTER", "SLOTS")
        assert [(row[0], row[1], row[2][:2], row[3][:2]) for row in slots] == [
            (0, 8191, [b"a", 7001], [b"c", 7003]),
            (8192, 16383, [b"b", 7002], [b"d", 7004]),
        ]
        lines = (await wire.call("CLUSTER", "NODES")).decode().splitlines()
        assert lines[0].split()[1:3] == ["a:7001@17001", "myself,master"]
        assert lines[2].split()[2:4] == ["slave", cluster.nodes[0].id]
        shards = await wire.call("CLUSTER", "SHARDS")
        assert [dict(zip(row[::2], row[1::2], strict=True))[b"slots"] for row in shards] == [[0, 8191], [8192, 16383]]
        assert await wire.call("CLUSTER", "MYID") == cluster.nodes[0].id.encode()
        assert await wire.call("CLUSTER", "KEYSLOT", "s") == SLOT


async def test_the_client_survives_the_loss_of_a_master(
    autojump_clock: MockClock, cluster: InProcessCluster, redis: RedisCluster
) -> None:
    for number in range(30):
        await redis.xadd(f"s{number}", {"n": number})
    lost = cluster.master_of("s1")
    lost.refuse()
    await trio.sleep(0.1)
    for number in range(30):
        await redis.xadd(f"s{number}", {"n": number})
    assert [await redis.xlen(f"s{number}") for number in range(30)] == [2] * 30
    assert lost.master is cluster.master_of("s1")


async def test_a_blocked_reader_follows_its_stream(
    autojump_clock: MockClock, cluster: InProcessCluster, redis: RedisCluster
) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)
    got: list[Any] = []
    async with redis.dedicated(key="s") as connection, trio.open_nursery() as nursery:

        async def read() -> None:
            got.append(await connection.xreadgroup("g", "c", {"s": ">"}, block=60_000))

        nursery.start_soon(read)
        await trio.sleep(1)
        cluster.migrate_slot(SLOT, others(cluster, cluster.master_of("s"))[0])
        await trio.sleep(1)
        await redis.xadd("s", {"n": 1}, id="1-0")
    assert got == [[[b"s", [(b"1-0", {b"n": b"1"})]]]]
