"""What a real master acknowledges that was frozen, replaced, and goes on before it knows: it is never believed.

Nobody was waiting for an answer while it stood still, so that nothing in the link gives it away.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis.exceptions
import trio
from attrs import define, field

from penstock.actors.ownership import SILENT_FOR, Ownership
from penstock.actors.producer import Outgoing, Published, PublishFailed
from penstock.actors.sending import Refusal, Sender
from penstock.runtime.redis import ClusterOptions, RedisCluster
from penstock.runtime.redis.cluster import Address
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.supervision import Gates
from penstock.runtime.testing.servers import LocalCluster, LocalNode

STREAM = "EVENT_STREAM"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.make(masters=3, replicas=1, node_timeout=15.0) as made:
        yield made


@define(eq=False)
class Writer:
    """A producer's way of writing, without the actor around it."""

    cluster: LocalCluster
    client: RedisCluster
    sender: Sender = field(init=False)

    def __attrs_post_init__(self) -> None:
        gate = Gates().add("redis")
        ownership = Ownership(lambda: self.client)
        self.sender = Sender(lambda: self.client, (gate,), lambda error: None, believes_late=False, ownership=ownership)

    async def write(self) -> tuple[Outgoing, Published | PublishFailed]:
        entry = Outgoing(STREAM, uuid4(), {"eventId": uuid4().hex})
        (result,) = await self.sender.add([entry])
        if isinstance(result, Refusal):
            return entry, PublishFailed(entry.event_id, result.reason, outcome_unknown=result.unknown)
        return entry, Published(entry.event_id, result)

    def is_there(self, entry: Outgoing) -> bool:
        """Whether the owner that all nodes agree upon has it."""
        self.cluster.wait_ok()
        with self.cluster.admin(self.cluster.master_of(STREAM)) as admin:
            entries: list[Any] = admin.xrange(STREAM)
        return any(_texts(fields) == entry.fields for _, fields in entries)


def _texts(fields: dict[Any, Any]) -> dict[str, str]:
    def text(value: Any) -> str:
        return value.decode() if isinstance(value, bytes) else str(value)

    return {text(name): text(value) for name, value in fields.items()}


async def take_over(cluster: LocalCluster, owner: LocalNode) -> None:
    """Freeze the owner and wait until its replica, which is in step, has its place."""
    with trio.fail_after(30):
        while not await trio.to_thread.run_sync(_has_replica_in_step, cluster, owner):
            await trio.sleep(0.02)
    (replica,) = cluster.replicas_of(owner)
    owner.freeze()
    with trio.fail_after(30):
        while not await trio.to_thread.run_sync(_is_master, cluster, replica):
            await trio.sleep(0.02)


def _has_replica_in_step(cluster: LocalCluster, owner: LocalNode) -> bool:
    with cluster.admin(owner) as admin:
        return bool(dict(admin.info("replication").get("slave0", {})).get("state") == "online")


def _is_master(cluster: LocalCluster, node: LocalNode) -> bool:
    try:
        with cluster.admin(node) as admin:
            return bool(admin.role()[0] == "master")
    except redis.exceptions.RedisError:
        return False  # it is busy, which is no answer


async def write_to_the_replaced(cluster: LocalCluster, writer: Writer) -> tuple[Outgoing, Published | PublishFailed]:
    """Write to the owner, which does not know that it was replaced, and answers when it goes on."""
    owner = cluster.master_of(STREAM)
    results: list[tuple[Outgoing, Published | PublishFailed]] = []

    async def write() -> None:
        results.append(await writer.write())

    with cluster.giving_up_after(1.0):
        try:
            await take_over(cluster, owner)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                await trio.sleep(0.1)
                owner.thaw()
        finally:
            owner.thaw()
    return results[0]


async def test_a_replaced_master_that_goes_on_is_not_believed(cluster: LocalCluster) -> None:
    """Four times: mostly the master gets its event before it can hear of its successor."""
    disbelieved = 0
    for _ in range(4):
        cluster.wait_ok()
        async with RedisCluster(ClusterOptions.from_url(cluster.url, retry_for=1.0)) as client:
            writer = Writer(cluster, client)
            assert isinstance((await writer.write())[1], Published)
            entry, result = await write_to_the_replaced(cluster, writer)
            there = await trio.to_thread.run_sync(writer.is_there, entry)
            if isinstance(result, Published):
                assert there, "accepted, and lost"
            else:
                assert result.outcome_unknown
                disbelieved += not there
            # And then it goes on.
            with trio.fail_after(20):
                while not isinstance((await writer.write())[1], Published):
                    await trio.sleep(0.1)
    # Otherwise this has tested nothing.
    assert disbelieved > 0


def _calls_of_others(client: RedisCluster, owner: Address) -> int:
    return sum(node.sent for node in client.statistics().nodes if node.address != owner)


async def test_a_master_that_was_only_idle_is_believed_and_the_others_are_asked_once(cluster: LocalCluster) -> None:
    cluster.wait_ok()
    async with RedisCluster(ClusterOptions.from_url(cluster.url)) as client:
        writer = Writer(cluster, client)
        owner = await client.node_for_slot(slot_of(STREAM))
        for _ in range(3):
            last_begun, quick = -math.inf, 0
            while quick < 8:
                begun, calls = trio.current_time(), _calls_of_others(client, owner)
                assert isinstance((await writer.write())[1], Published)
                # After a pause of this machine they may be asked, too.
                if trio.current_time() - last_begun <= SILENT_FOR:
                    assert _calls_of_others(client, owner) == calls
                    quick += 1
                last_begun = begun
                await trio.sleep(0.01)
            await trio.sleep(SILENT_FOR * 1.2)


async def test_a_slot_that_went_elsewhere_in_the_silence_is_found_and_believed(cluster: LocalCluster) -> None:
    cluster.wait_ok()
    async with RedisCluster(ClusterOptions.from_url(cluster.url)) as client:
        writer = Writer(cluster, client)
        assert isinstance((await writer.write())[1], Published)
        source = cluster.master_of(STREAM)
        masters = {cluster.master_of(slot).port: cluster.master_of(slot) for slot in (0, 8000, 16000)}
        target = next(node for port, node in masters.items() if port != source.port)
        await trio.to_thread.run_sync(lambda: cluster.migrate_slot(slot_of(STREAM), target))
        entry, result = await writer.write()
        assert isinstance(result, Published)
        assert await trio.to_thread.run_sync(writer.is_there, entry)


async def test_a_master_that_nobody_else_vouches_for_is_not_believed(cluster: LocalCluster) -> None:
    cluster.wait_ok()
    owner = cluster.master_of(STREAM)
    masters = {cluster.master_of(slot).port: cluster.master_of(slot) for slot in (0, 8000, 16000)}
    others = [node for port, node in masters.items() if port != owner.port]
    async with RedisCluster(ClusterOptions.from_url(cluster.url)) as client:
        writer = Writer(cluster, client)
        assert isinstance((await writer.write())[1], Published)
        await trio.sleep(SILENT_FOR * 1.2)
        try:
            for node in others:
                node.freeze()
            result = (await writer.write())[1]
        finally:
            for node in others:
                node.thaw()
        assert isinstance(result, PublishFailed)
        assert result.outcome_unknown
        assert "other master" in result.reason
    cluster.wait_ok()
