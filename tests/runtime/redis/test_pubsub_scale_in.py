"""Plain channels and patterns in a cluster that gives up the node where they are, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.redis import Gap, Message, PubSub, RedisOptions
from penstock.runtime.redis.cluster import ClusterOptions, RedisCluster
from penstock.runtime.redis.slots import SLOTS
from penstock.runtime.testing.redis_cluster import InProcessCluster, InProcessClusterNode

REFRESH_EVERY = 5.0
A_WHILE = 300.0


@pytest.fixture
async def cluster() -> AsyncIterator[InProcessCluster]:
    async with InProcessCluster() as cluster:
        yield cluster


@pytest.fixture
async def client(cluster: InProcessCluster) -> AsyncIterator[RedisCluster]:
    options = ClusterOptions(
        nodes=cluster.addresses,
        node=RedisOptions(decode_responses=True, response_timeout=1),
        refresh_every=REFRESH_EVERY,
    )
    async with RedisCluster(options, connect=cluster.connect, rng=random.Random(1)) as client:
        yield client


@pytest.fixture
async def pubsub(client: RedisCluster) -> AsyncIterator[PubSub]:
    async with client.pubsub() as pubsub:
        yield pubsub


async def homes(cluster: InProcessCluster, client: RedisCluster, channel: str) -> list[InProcessClusterNode]:
    """The nodes where the channel is subscribed to."""
    counts = await client.execute_command("PUBSUB", "NUMSUB", channel, target=cluster.addresses)
    return [node for node in cluster.nodes if counts[node.address][1]]


def take_slots(cluster: InProcessCluster, node: InProcessClusterNode) -> list[int]:
    """All its slots go to another node; returns which."""
    slots = [slot for slot in range(SLOTS) if cluster.owner(slot) is node]
    cluster.give_slots(slots, next(each for each in cluster.nodes if each is not node))
    return slots


def forget(cluster: InProcessCluster, node: InProcessClusterNode) -> None:
    """It goes on alone: what is published at the others is not heard there any more."""
    rest = [each for each in cluster.nodes if each is not node]
    node.meet([])
    for each in rest:
        each.meet(rest)


async def test_a_node_that_leaves_the_cluster_and_lives_on_is_left(
    autojump_clock: MockClock, cluster: InProcessCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    """It answers every PING, so nothing but the topology tells. One gap does, and then all is heard again."""
    await pubsub.subscribe("news", "more")
    await pubsub.psubscribe("odd*")
    await trio.sleep(A_WHILE)
    [gone] = await homes(cluster, client, "news")
    left_at = trio.current_time()
    take_slots(cluster, gone)
    forget(cluster, gone)
    with trio.fail_after(2 * REFRESH_EVERY):
        gap = await pubsub.get()
    assert isinstance(gap, Gap)
    assert sorted(gap.channels) == ["more", "news", "odd*"]
    assert gap.reason == "its node has left the cluster"
    assert left_at - 100 < gap.lost_at <= left_at <= gap.back_at
    for channel in ("news", "oddity"):
        await client.publish(channel, "later")
    assert await pubsub.get(1) == Message(kind="message", channel="news", data="later")
    assert await pubsub.get(1) == Message(kind="pmessage", pattern="odd*", channel="oddity", data="later")
    [home] = await homes(cluster, client, "news")
    assert await pubsub.get(A_WHILE) is None
    assert await homes(cluster, client, "news") == [home] != [gone]


async def test_the_gap_covers_the_time_in_which_the_others_had_not_noticed(
    autojump_clock: MockClock, cluster: InProcessCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    """A node that is cut off is listed as before for its cluster-node-timeout and an election."""
    await pubsub.subscribe("news")
    [gone] = await homes(cluster, client, "news")
    await trio.sleep(A_WHILE)
    forget(cluster, gone)
    cut_off_at = trio.current_time()
    await trio.sleep(30)
    take_slots(cluster, gone)
    gap = await pubsub.get(2 * REFRESH_EVERY)
    assert isinstance(gap, Gap)
    assert cut_off_at - 100 < gap.lost_at <= cut_off_at


async def test_the_gap_covers_what_was_missed_before_the_node_that_had_left_was_shut_down(
    autojump_clock: MockClock, cluster: InProcessCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    """Nobody has read the topology between the two."""
    await pubsub.subscribe("news", "more")
    [gone] = await homes(cluster, client, "news")
    await trio.sleep(A_WHILE)
    await client.refresh()
    left_at = trio.current_time()
    forget(cluster, gone)
    take_slots(cluster, gone)
    await trio.sleep(REFRESH_EVERY - 1)
    gone.cut()
    gone.refuse()
    gap = await pubsub.get(30)
    assert isinstance(gap, Gap)
    assert gap.channels == ("news", "more")
    assert left_at - 100 < gap.lost_at <= left_at
    assert await pubsub.get(A_WHILE) is None


async def test_a_single_reading_without_the_node_moves_nothing(
    autojump_clock: MockClock, cluster: InProcessCluster, client: RedisCluster, pubsub: PubSub
) -> None:
    await pubsub.subscribe("news")
    [home] = before = await homes(cluster, client, "news")
    for _ in range(10):
        slots = take_slots(cluster, home)
        await client.refresh()
        cluster.give_slots(slots, home)
        await client.refresh()
    assert await pubsub.get(A_WHILE) is None
    assert await homes(cluster, client, "news") == before


async def test_a_channel_stays_where_its_node_is_a_replica_now(autojump_clock: MockClock) -> None:
    """Messages reach the replicas, too."""
    async with InProcessCluster(replicas=1) as cluster:
        options = ClusterOptions(nodes=cluster.addresses, node=RedisOptions(), refresh_every=REFRESH_EVERY)
        async with (
            RedisCluster(options, connect=cluster.connect, rng=random.Random(1)) as client,
            client.pubsub() as pubsub,
        ):
            await pubsub.subscribe("news")
            [home] = before = await homes(cluster, client, "news")
            [replica] = cluster.replicas_of(home)
            cluster.fail_over(replica)
            assert await pubsub.get(A_WHILE) is None
            assert await homes(cluster, client, "news") == before
            await client.publish("news", "on")
            assert await pubsub.get(1) == Message(kind="message", channel=b"news", data=b"on")
