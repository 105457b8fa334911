"""The rows of the reply table that need a cluster, on real ones: the raw reply that a client of one node gets.

What RedisCluster makes of them is told by its own tests.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis import exceptions

from penstock.runtime.redis import Redis, RedisOptions, classify
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

STREAM, ABSENT = "{orders}", "{orders}:absent"
SLOT = slot_of(STREAM)


@pytest.fixture(scope="module", params=["valkey", "redis-7.0"])
def shared_cluster(request: pytest.FixtureRequest, replicated: Callable[[str | None], LocalCluster]) -> LocalCluster:
    return replicated(request.getfixturevalue("redis_7_0") if request.param == "redis-7.0" else None)


@pytest.fixture
def cluster(shared_cluster: LocalCluster) -> Iterator[LocalCluster]:
    """The module's cluster with an empty stream and its group; in order again at the end."""
    shared_cluster.wait_ok()
    with shared_cluster.admin(shared_cluster.master_of(SLOT)) as admin:
        admin.delete(STREAM)
        admin.xgroup_create(STREAM, "g", "0", mkstream=True)
    yield shared_cluster
    shared_cluster.wait_ok()


@pytest.fixture
def is_valkey(cluster: LocalCluster) -> bool:
    return "valkey" in cluster.nodes[0].program


@pytest.mark.replies("moved")
async def test_a_node_that_does_not_own_the_slot_names_the_owner(cluster: LocalCluster) -> None:
    owner = cluster.master_of(SLOT)
    async with raw(other_master(cluster, owner)) as other:
        assert await row_of(other.xadd(STREAM, {"a": 1})) == "moved"
        with pytest.raises(exceptions.MovedError) as caught:
            await other.xadd(STREAM, {"a": 1})
    assert (caught.value.slot_id, caught.value.port) == (SLOT, owner.port)


@pytest.mark.replies("moved")
async def test_a_replica_reads_in_no_group(cluster: LocalCluster) -> None:
    """XREADGROUP writes. Also after READONLY, which lets a connection read."""
    replica = cluster.replicas_of(cluster.master_of(SLOT))[0]
    async with raw(replica) as client:
        assert await row_of(client.xreadgroup("g", "c", {STREAM: ">"})) == "moved"
    with replica.admin() as admin, pytest.raises(exceptions.MovedError):
        admin.execute_command("READONLY")
        assert admin.xlen(STREAM) == 0
        admin.xreadgroup("g", "c", {STREAM: ">"})


@pytest.mark.replies("cross-slot")
async def test_keys_of_two_slots(cluster: LocalCluster) -> None:
    elsewhere = next(key for key in map(str, range(1000)) if cluster.master_of(key) is not cluster.master_of(SLOT))
    async with raw(cluster.master_of(SLOT)) as owner:
        assert await row_of(owner.execute_command("DEL", STREAM, elsewhere)) == "cross-slot"
        script = f"return redis.call('GET', '{elsewhere}')"  # a key that it did not declare
        assert await row_of(owner.eval(script, 1, STREAM)) == "cross-slot"


@pytest.mark.replies("ask", "try-again")
async def test_a_slot_that_is_half_moved(cluster: LocalCluster) -> None:
    """An absent key may be over there already; a command needs all of its keys in one place."""
    owner = cluster.master_of(SLOT)
    with half_moved(cluster, owner, other_master(cluster, owner)):
        async with raw(owner) as client:
            assert await row_of(client.xadd(STREAM, {"a": 1})) == "fine"
            assert await row_of(client.xadd(ABSENT, {"a": 1})) == "ask"
            assert await row_of(client.execute_command("DEL", STREAM, ABSENT)) == "try-again"
            assert await row_of(client.eval("return 1", 2, STREAM, ABSENT)) == "try-again"


@pytest.mark.replies("unblocked-key-gone")
async def test_a_blocked_reader_whose_slot_goes_over(cluster: LocalCluster, is_valkey: bool) -> None:
    """Redis 7.0 says "the stream key no longer exists", which is misleading; Valkey says where it is (going)."""
    owner = cluster.master_of(SLOT)
    target = other_master(cluster, owner)
    row = await reply_of_a_blocked_read(owner, lambda: cluster.migrate_slot(SLOT, target, pause=0.3))
    assert row in ({"ask", "moved"} if is_valkey else {"unblocked-key-gone"})
    async with raw(target) as client:
        assert await row_of(client.xreadgroup("g", "c", {STREAM: ">"})) == "fine"


@pytest.mark.replies("moved", "unblocked-failover")
async def test_a_blocked_reader_at_a_failover(cluster: LocalCluster, is_valkey: bool) -> None:
    """Redis 7.0 lets it go as demoted; Valkey says where the slot is now. The group is there."""
    owner = cluster.master_of(SLOT)
    replica = cluster.replicas_of(owner)[0]
    row = await reply_of_a_blocked_read(owner, lambda: cluster.fail_over(replica))
    assert row == ("moved" if is_valkey else "unblocked-failover")
    async with raw(replica) as new_owner, raw(owner) as demoted:
        assert await row_of(new_owner.xreadgroup("g", "c", {STREAM: ">"})) == "fine"
        assert await row_of(demoted.xadd(STREAM, {"a": 1})) == "moved"


@pytest.mark.replies("disconnected", "moved")
async def test_a_master_that_is_lost(cluster: LocalCluster) -> None:
    """Its own client sees the end of the stream; its replica takes over; back again it sends us there."""
    owner = cluster.master_of(SLOT)
    replica = cluster.replicas_of(owner)[0]
    assert await reply_of_a_blocked_read(owner, owner.kill) == "disconnected"
    async with raw(replica) as client:
        rows = {"fine"}
        with trio.fail_after(30):
            while (row := await row_of(client.xadd(STREAM, {"a": 1}))) != "fine":
                rows.add(row)
                await trio.sleep(0.02)
    assert rows <= {"fine", "moved", "cluster-down"}  # to the dead master, until the others find it dead
    await trio.to_thread.run_sync(owner.start)
    await trio.to_thread.run_sync(cluster.wait_ok)
    async with raw(owner) as client:
        assert await row_of(client.xadd(STREAM, {"a": 1})) == "moved"


@pytest.mark.replies("cluster-down", "slot-not-served", "cluster-read-only")
async def test_a_slot_that_nobody_serves(cluster: LocalCluster) -> None:
    """It stops the whole cluster, or itself only, or all but reading: cluster-require-full-coverage and its kin."""
    owner = cluster.master_of(SLOT)
    elsewhere = next(key for key in map(str, range(1000)) if key != STREAM and owns(cluster, owner, key))
    async with raw(owner) as client:
        with nobody_serves(cluster, owner, SLOT):
            assert await row_of(client.set(elsewhere, "v")) == "cluster-down"
            assert await row_of(client.ping()) == "fine"  # so it proves nothing
            with setting(cluster, "cluster-allow-reads-when-down", "yes", "no"):
                assert await row_of(client.get(elsewhere)) == "fine"
                assert await row_of(client.set(elsewhere, "v")) == "cluster-read-only"
                assert await row_of(client.xreadgroup("g", "c", {elsewhere: ">"})) == "cluster-read-only"
            with setting(cluster, "cluster-require-full-coverage", "no", "yes"):
                await until(lambda: state_of(owner) == "ok")
                assert await row_of(client.set(elsewhere, "v")) == "fine"
                assert await row_of(client.xadd(STREAM, {"a": 1})) == "slot-not-served"


@pytest.mark.replies("no-database")
async def test_a_cluster_has_one_database(cluster: LocalCluster) -> None:
    async with Redis(RedisOptions(port=cluster.nodes[0].port, db=3)) as client:
        assert await row_of(client.ping()) == "no-database"


@asynccontextmanager
async def raw(node: LocalNode) -> AsyncIterator[Redis]:
    """A client of this one node, which repeats nothing."""
    async with Redis(RedisOptions(port=node.port, retry_for=0)) as client:
        yield client


async def row_of(command: Awaitable[Any]) -> str:
    """The row of the error that the command brings; "fine" without one."""
    try:
        await command
    except exceptions.RedisError as error:
        return classify(error).name
    return "fine"


async def reply_of_a_blocked_read(node: LocalNode, disturb: Callable[[], Any]) -> str:
    """The row of what a reader of the stream gets that blocks while the node is disturbed."""
    rows: list[str] = []
    async with raw(node) as client:

        async def read() -> None:
            rows.append(await row_of(client.xreadgroup("g", "c", {STREAM: ">"}, block=10_000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while not (await client.info("clients"))["blocked_clients"]:
                pass
            await trio.to_thread.run_sync(disturb)
    return rows[0]


def other_master(cluster: LocalCluster, owner: LocalNode) -> LocalNode:
    return next(node for slot in (0, 8000, 16000) if (node := cluster.master_of(slot)) is not owner)


def owns(cluster: LocalCluster, node: LocalNode, key: str) -> bool:
    return cluster.master_of(key) is node


@contextmanager
def half_moved(cluster: LocalCluster, owner: LocalNode, target: LocalNode) -> Iterator[None]:
    """The slot is on its way to the target; at the end it stays with its owner."""
    with owner.admin() as here, target.admin() as there:
        there.execute_command("CLUSTER", "SETSLOT", SLOT, "IMPORTING", cluster.id_of(owner))
        here.execute_command("CLUSTER", "SETSLOT", SLOT, "MIGRATING", cluster.id_of(target))
        try:
            yield
        finally:
            for admin in (here, there):
                admin.execute_command("CLUSTER", "SETSLOT", SLOT, "STABLE")


@contextmanager
def nobody_serves(cluster: LocalCluster, owner: LocalNode, slot: int) -> Iterator[None]:
    """No node knows an owner of the slot, and the cluster is down for it."""
    with owner.admin() as admin:
        admin.execute_command("CLUSTER", "DELSLOTS", slot)
        try:
            wait_for(lambda: state_of(owner) == "fail")
            yield
        finally:
            admin.execute_command("CLUSTER", "ADDSLOTS", slot)
    # The owner speaks of it only to those who ask for a new epoch of it.
    with owner.admin() as admin:
        admin.execute_command("CLUSTER", "BUMPEPOCH")
    for node in cluster.nodes:
        wait_for(lambda node=node: state_of(node) == "ok")


@contextmanager
def setting(cluster: LocalCluster, name: str, value: str, normal: str) -> Iterator[None]:
    """CONFIG SET on all nodes for a while."""
    configure(cluster, name, value)
    try:
        yield
    finally:
        configure(cluster, name, normal)


def configure(cluster: LocalCluster, name: str, value: str) -> None:
    for node in cluster.nodes:
        with node.admin() as admin:
            admin.config_set(name, value)


def state_of(node: LocalNode) -> str:
    with node.admin() as admin:
        return str(admin.execute_command("CLUSTER INFO")["cluster_state"])


async def until(condition: Callable[[], bool]) -> None:
    await trio.to_thread.run_sync(wait_for, condition)


def wait_for(condition: Callable[[], bool]) -> None:
    """Look again and again: another process has no event to wait for."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not come to that"
        time.sleep(0.02)
