"""What the nodes of a cluster say while a slot moves and a replica takes over: in-process, and on real Valkeys."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.redis_cluster import InProcessCluster
from penstock.runtime.testing.servers import LocalCluster, LocalNode

if TYPE_CHECKING:
    from conftest import RawClient

    Open = Callable[[trio.abc.Stream], RawClient]

SLOT = slot_of("s")


class Cluster(Protocol):
    """Three masters with a replica each. Nodes are known by their ports."""

    def master(self) -> int: ...
    def replica(self) -> int: ...
    def other(self) -> int: ...
    def begin(self, target: int) -> None: ...
    def move(self) -> None: ...
    def finish(self) -> None: ...
    def fail_over(self) -> None: ...
    def dial(self, port: int) -> Awaitable[RawClient]: ...


class Inside:
    def __init__(self, cluster: InProcessCluster, open_raw: Open) -> None:
        self._cluster = cluster
        self._open = open_raw

    def master(self) -> int:
        return self._cluster.master_of(SLOT).port

    def replica(self) -> int:
        return self._cluster.replicas_of(self._cluster.master_of(SLOT))[0].port

    def other(self) -> int:
        return next(node.port for node in self._cluster.masters() if node.port != self.master())

    def begin(self, target: int) -> None:
        self._cluster.begin_migration(SLOT, next(node for node in self._cluster.nodes if node.port == target))

    def move(self) -> None:
        self._cluster.move_keys(SLOT)

    def finish(self) -> None:
        self._cluster.finish_migration(SLOT)

    def fail_over(self) -> None:
        self._cluster.fail_over(self._cluster.replicas_of(self._cluster.master_of(SLOT))[0])

    async def dial(self, port: int) -> RawClient:
        return self._open(await self._cluster.connect("127.0.0.1", port))


class Outside:
    def __init__(self, cluster: LocalCluster, open_raw: Open) -> None:
        self._cluster = cluster
        self._open = open_raw
        self._source = self._target = cluster.nodes[0]

    def master(self) -> int:
        return self._cluster.master_of(SLOT).port

    def replica(self) -> int:
        return self._cluster.replicas_of(self._cluster.master_of(SLOT))[0].port

    def other(self) -> int:
        masters = {self._cluster.master_of(slot).port for slot in (0, 8000, 16383)}
        return min(masters - {self.master()})

    def begin(self, target: int) -> None:
        self._source, self._target = self._cluster.master_of(SLOT), self._node(target)
        self._set(self._target, "IMPORTING", self._cluster.id_of(self._source))
        self._set(self._source, "MIGRATING", self._cluster.id_of(self._target))

    def move(self) -> None:
        with self._cluster.admin(self._source) as admin:
            keys = admin.execute_command("CLUSTER", "GETKEYSINSLOT", SLOT, 100)
            admin.execute_command("MIGRATE", "127.0.0.1", self._target.port, "", 0, 5000, "KEYS", *keys)

    def finish(self) -> None:
        for node in (self._target, *(each for each in self._cluster.nodes if each is not self._target)):
            with self._cluster.admin(node) as admin:
                if admin.execute_command("ROLE")[0] == "master":
                    self._set(node, "NODE", self._cluster.id_of(self._target))

    def fail_over(self) -> None:
        self._cluster.fail_over(self._node(self.replica()))

    async def dial(self, port: int) -> RawClient:
        return self._open(await trio.open_tcp_stream("127.0.0.1", port))

    def _node(self, port: int) -> LocalNode:
        return next(node for node in self._cluster.nodes if node.port == port)

    def _set(self, node: LocalNode, state: str, other: str) -> None:
        with self._cluster.admin(node) as admin:
            admin.execute_command("CLUSTER", "SETSLOT", SLOT, state, other)


@pytest.fixture(scope="module")
def local_cluster() -> Iterator[Callable[[], LocalCluster]]:
    made: list[LocalCluster] = []

    def get() -> LocalCluster:
        if not made:
            made.append(LocalCluster.make(replicas=1, arguments=["--appendfsync", "no"]))
        return made[0]

    yield get
    for cluster in made:
        cluster.remove()


@pytest.fixture(params=["in-process", "valkey"])
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def clock(place: str) -> MockClock | None:
    return MockClock(autojump_threshold=0) if place == "in-process" else None


@pytest.fixture
async def cluster(
    place: str, open_raw: Open, local_cluster: Callable[[], LocalCluster], clock: MockClock | None
) -> AsyncIterator[Cluster]:
    if place == "in-process":
        async with InProcessCluster(replicas=1) as inside:
            yield Inside(inside, open_raw)
        return
    outside = Outside(local_cluster(), open_raw)
    wire = await outside.dial(outside.master())
    await wire.call("FLUSHALL")
    await wire.aclose()
    yield outside


def at(word: str, port: int) -> str:
    return f"{word} {SLOT} 127.0.0.1:{port}"


async def test_a_slot_on_its_way(cluster: Cluster, clock: MockClock | None) -> None:
    source, target = cluster.master(), cluster.other()
    here, there = await cluster.dial(source), await cluster.dial(target)
    try_again = "TRYAGAIN Multiple keys request during rehashing of slot"
    assert await there.call("XLEN", "s") == at("MOVED", source)
    await here.call("XADD", "s", "1-0", "n", 1)
    cluster.begin(target)
    assert await here.call("XLEN", "s") == 1
    assert await here.call("GET", "{s}absent") == at("ASK", target)
    assert await here.call("EXISTS", "s", "{s}absent") == try_again
    assert await here.call("EXISTS", "{s}a", "{s}b") == at("ASK", target)
    assert await here.call("EVAL", "return 1", 2, "s", "{s}a") == try_again
    assert await here.call("SSUBSCRIBE", "{s}c") == [b"ssubscribe", b"{s}c", 1]
    assert await here.call("SUNSUBSCRIBE", "{s}c") == [b"sunsubscribe", b"{s}c", 0]
    assert await there.call("GET", "{s}absent") == at("MOVED", source)
    for words, reply in (
        (("GET", "{s}absent"), None),
        (("EXISTS", "{s}a", "{s}b"), try_again),
        (("MSET", "{s}a", "1", "{s}b", "2"), try_again),
        (("SET", "{s}new", "v"), b"OK"),
    ):
        assert await there.call("ASKING") == b"OK"
        assert await there.call(*words) == reply
    assert await there.call("GET", "{s}new") == at("MOVED", source)
    await there.call("ASKING")
    await there.call("MULTI")
    assert await there.call("GET", "{s}new") == b"QUEUED"
    assert await there.call("EXEC") == [b"v"]
    await here.call("MULTI")
    assert await here.call("GET", "{s}absent") == b"QUEUED"
    assert await here.call("EXEC") == at("ASK", target)
    cluster.move()
    assert await here.call("XLEN", "s") == at("ASK", target)
    cluster.finish()
    assert await here.call("XLEN", "s") == at("MOVED", target)
    assert await there.call("XLEN", "s") == 1
    for wire in (here, there):
        await wire.aclose()


async def test_what_blocked_clients_hear(cluster: Cluster, clock: MockClock | None) -> None:
    source, target = cluster.master(), cluster.other()
    wire = await cluster.dial(source)
    await wire.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    replies: dict[str, Any] = {}

    async def read(*words: Any) -> None:
        connection = await cluster.dial(source)
        replies[words[0]] = await connection.call(*words)
        await connection.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "XREADGROUP", "GROUP", "g", "c", "BLOCK", 30_000, "STREAMS", "s", ">")
        nursery.start_soon(read, "BLPOP", "{s}l", 30)
        nursery.start_soon(read, "XREAD", "BLOCK", 30_000, "STREAMS", "{s}other", "$")
        while (await wire.call("INFO", "clients")).count(b"blocked_clients:3") == 0:
            await trio.sleep(0.01)
        cluster.begin(target)
        cluster.move()
        while not replies:
            await trio.sleep(0.01)
        assert replies == {"XREADGROUP": at("ASK", target)}
        cluster.finish()
    assert replies == {"XREADGROUP": at("ASK", target), "BLPOP": at("MOVED", target), "XREAD": at("MOVED", target)}
    await wire.aclose()


async def test_a_replica_and_a_failover(cluster: Cluster, clock: MockClock | None) -> None:
    master, replica = cluster.master(), cluster.replica()
    here, there = await cluster.dial(master), await cluster.dial(replica)
    await here.call("SET", "{s}k", "v")
    assert await there.call("GET", "{s}k") == at("MOVED", master)
    assert await there.call("READONLY") == b"OK"
    deadline = time.monotonic() + 10
    while await there.call("GET", "{s}k") != b"v":
        assert time.monotonic() < deadline
        await trio.sleep(0.01)
    assert await there.call("SET", "{s}k", "w") == at("MOVED", master)
    assert await there.call("FLUSHALL") == "READONLY You can't write against a read only replica."
    assert (await there.call("ROLE"))[:3] == [b"slave", b"127.0.0.1", master]
    await here.call("XGROUP", "CREATE", "s", "g", "0", "MKSTREAM")
    replies: list[Any] = []

    async def read() -> None:
        connection = await cluster.dial(master)
        replies.append(await connection.call("XREADGROUP", "GROUP", "g", "c", "BLOCK", 30_000, "STREAMS", "s", ">"))
        await connection.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while (await here.call("INFO", "clients")).count(b"blocked_clients:1") == 0:
            await trio.sleep(0.01)
        cluster.fail_over()
    assert replies == [at("MOVED", replica)]
    assert await there.call("XLEN", "s") == 0
    assert await here.call("SET", "{s}k", "w") == at("MOVED", replica)
    for wire in (here, there):
        await wire.aclose()
