"""The probe of a cluster: content only where our streams are, and clear about which node is at fault."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from penstock.actors.cluster_probe import ClusterProbe, probe_of
from penstock.actors.probes import RedisProbe, Unhealthy, probe_key
from penstock.runtime.redis import ClusterOptions, NotSent, RedisOptions
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.supervision import Gate, Gates
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster, InProcessClusterNode

STREAM = "EVENT_STREAM"  # slot 8340, in the middle
OTHER = "order-events"  # slot 2609
LIMIT = 1.5


@define(eq=False)
class Site:
    """A cluster and a probe of it.

    Attributes:
        lost: what it was told of nodes that went, and came back.
    """

    cluster: InProcessCluster
    probe: ClusterProbe
    memory: Gate
    lost: list[tuple[list[str], list[str]]] = field(factory=list)

    @property
    def owner(self) -> InProcessClusterNode:
        return self.cluster.master_of(STREAM)

    @property
    def bystander(self) -> InProcessClusterNode:
        """A master that has no stream of ours."""
        return self.cluster.master_of(16_000)

    async def complaint(self) -> str:
        """What the probe says; empty if it is content. It must say it in time."""
        started = trio.current_time()
        try:
            await self.probe()
        except Unhealthy as error:
            return str(error)
        finally:
            assert trio.current_time() - started <= LIMIT
        return ""


@asynccontextmanager
async def probing(
    streams: Sequence[str] = (STREAM, OTHER), *, replicas: int = 0, seeds: int = 3
) -> AsyncIterator[Site]:
    memory = Gates().add("redis-memory")
    async with InProcessCluster(replicas=replicas) as cluster:
        options = ClusterOptions(nodes=cluster.addresses[:seeds])
        probe = probe_of(options, streams, connect=cluster.connect, memory=memory, within=2.0)
        assert isinstance(probe, ClusterProbe)
        site = Site(cluster, probe, memory)
        probe.on_change = lambda gone, back: site.lost.append((gone, back))
        yield site


def name(node: InProcessClusterNode) -> str:
    return f"{node.host}:{node.port}"


@pytest.mark.parametrize("stream", ["orders", "{a}b", "{a{b}c", "{}x", "{}}x", "a}b", "a{}{b}", "{", "}", "x{y"])
def test_the_probe_writes_where_the_stream_is(stream: str) -> None:
    assert slot_of(probe_key(stream)) == slot_of(stream)
    assert probe_key(stream) != stream


async def test_a_cluster_in_order_is_seen_with_its_streams(autojump_clock: MockClock) -> None:
    async with probing(replicas=1) as site:
        assert await site.complaint() == ""
        view = site.probe.view
        assert view is not None
        assert (view.state, view.covered, len(view.nodes)) == ("ok", 16384, 6)
        assert {node.address: node.streams for node in view.nodes if node.streams} == {
            name(site.owner): (STREAM,),
            name(site.cluster.master_of(OTHER)): (OTHER,),
        }
        for node in site.cluster.nodes:
            assert not node.data.databases[0]  # nothing was stored


async def test_an_owner_that_is_gone_is_named_with_its_streams(autojump_clock: MockClock) -> None:
    async with probing() as site:
        await site.complaint()
        site.owner.refuse()
        assert await site.complaint() == f"node {name(site.owner)} (slots of {STREAM}) refuses connections"
        await trio.sleep(2)
        assert await site.complaint() == (
            f"node {name(site.owner)} (slots of {STREAM}) refuses connections; cluster_state is fail"
        )
        site.owner.restore()
        assert await site.complaint() == ""


async def test_an_owner_that_is_frozen_is_named_within_the_limit(autojump_clock: MockClock) -> None:
    async with probing() as site:
        site.owner.hang()
        told = await site.complaint()
        assert told.startswith(f"node {name(site.owner)} (slots of {STREAM}) does not answer within 1.5 s")


async def test_a_replica_that_has_taken_over_is_enough(autojump_clock: MockClock) -> None:
    async with probing(replicas=1) as site:
        await site.complaint()
        before = site.owner
        before.refuse()
        assert name(before) in await site.complaint()
        await trio.sleep(1.1)
        assert await site.complaint() == ""
        assert site.lost == [([name(before)], [])]
        view = site.probe.view
        assert view is not None
        owner = view.owner(STREAM)
        assert owner is not None
        assert owner.address == name(site.owner) != name(before)


async def test_another_node_that_fails_is_told_of_once_and_is_no_fault(autojump_clock: MockClock) -> None:
    async with probing([STREAM], replicas=1) as site:
        await site.complaint()
        lost = site.bystander
        lost.refuse()
        for _ in range(5):
            await trio.sleep(1)
            assert await site.complaint() == ""
        assert site.lost == [([name(lost)], [])]
        lost.restore()
        assert await site.complaint() == ""
        assert site.lost == [([name(lost)], []), ([], [name(lost)])]


async def test_a_cluster_that_is_down_for_another_nodes_sake_is_named_with_that(autojump_clock: MockClock) -> None:
    async with probing([STREAM]) as site:
        lost = site.bystander
        lost.refuse()
        await trio.sleep(2)
        told = await site.complaint()
        where = f"node {name(site.owner)} (slots of {STREAM})"
        assert told == f"{where}: cluster_state is fail; failed nodes: {name(lost)}"


async def test_slots_that_nobody_owns_are_named_by_the_stream(autojump_clock: MockClock) -> None:
    async with probing() as site:
        site.cluster.lose_slots([slot_of(STREAM)])
        assert f"no node owns the slots of {STREAM}" in await site.complaint()


async def test_a_stream_on_its_way_to_another_node_is_well_at_every_step(autojump_clock: MockClock) -> None:
    async with probing() as site:
        cluster, slot, source = site.cluster, slot_of(STREAM), site.owner
        await site.complaint()
        cluster.begin_migration(slot, site.bystander)
        assert await site.complaint() == ""
        cluster.move_keys(slot)
        assert await site.complaint() == ""
        cluster.finish_migration(slot)
        assert await site.complaint() == ""
        view = site.probe.view
        assert view is not None
        owner = view.owner(STREAM)
        assert owner is not None
        assert owner.address == name(site.owner) != name(source)


async def test_a_full_owner_shuts_the_gate_of_memory_and_is_no_outage(autojump_clock: MockClock) -> None:
    async with probing() as site:
        site.owner.answer("out-of-memory")
        assert await site.complaint() == ""
        assert not site.memory.is_open
        assert name(site.owner) in site.memory.cause
        assert "OOM" in site.memory.cause
        site.owner.heal()
        assert await site.complaint() == ""
        assert site.memory.is_open


@pytest.mark.parametrize(
    ("row", "told"), [("disk-error", "MISCONF"), ("no-replicas", "NOREPLICAS"), ("busy-script", "BUSY")]
)
async def test_a_refusal_is_told_as_it_is_with_the_node(autojump_clock: MockClock, row: str, told: str) -> None:
    async with probing() as site:
        site.owner.answer(row)
        complaint = await site.complaint()
        assert name(site.owner) in complaint
        assert told in complaint
        assert STREAM in complaint


async def test_a_right_that_is_missing_is_told(autojump_clock: MockClock) -> None:
    async with probing() as site:
        for node in site.cluster.nodes:
            node.fail_next("CLUSTER NODES", "NOPERM this user has no permissions to run the 'cluster|nodes' command")
        assert "NOPERM" in await site.complaint()


async def test_where_nobody_answers_each_is_named_with_its_reason(autojump_clock: MockClock) -> None:
    async with probing() as site:
        first, second, third = site.cluster.nodes
        first.refuse()
        second.refuse()
        third.hang()
        told = await site.complaint()
        assert "no node can be asked" in told
        assert f"2 nodes ({name(first)}, {name(second)}): each refuses connections; " in told
        assert f"{name(third)} does not answer within 1.5 s" in told


async def test_a_wrong_password_is_no_outage_and_told_once(autojump_clock: MockClock) -> None:
    async with InProcessCluster(users={"default": "right"}) as cluster:
        options = ClusterOptions(nodes=cluster.addresses, node=RedisOptions(password="wrong"))
        nodes = ", ".join(name(node) for node in cluster.nodes)
        told = f"no node can be asked: 3 nodes ({nodes}): each refuses the login: WRONGPASS"
        with pytest.raises(Unhealthy, match=re.escape(told)):
            await ClusterProbe(options, [STREAM], cluster.connect)()


async def test_nodes_that_were_named_may_go_once_the_others_are_known(autojump_clock: MockClock) -> None:
    async with probing(replicas=1, seeds=1) as site:
        assert await site.complaint() == ""
        site.cluster.nodes[0].refuse()
        await trio.sleep(2)
        assert await site.complaint() == ""


async def test_a_named_node_that_is_silent_delays_nobody(autojump_clock: MockClock) -> None:
    async with probing([STREAM], replicas=1) as site:
        site.bystander.hang()
        await trio.sleep(2)
        started = trio.current_time()
        assert await site.complaint() == ""
        assert trio.current_time() - started < 0.5


async def test_without_streams_somebody_must_find_the_cluster_in_order(autojump_clock: MockClock) -> None:
    async with probing([]) as site:
        assert await site.complaint() == ""
        site.owner.refuse()
        await trio.sleep(2)
        assert "cluster_state is fail" in await site.complaint()


async def test_a_server_that_is_no_cluster_says_so(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis:

        async def connect(host: str, port: int) -> trio.abc.Stream:
            return await redis.connect()

        probe = ClusterProbe(ClusterOptions(nodes=[("127.0.0.1", 6379)]), [STREAM], connect)
        with pytest.raises(Unhealthy, match=r"127\.0\.0\.1:6379 is a single server, .* begin the URL with redis://"):
            await probe()


async def test_one_node_of_a_cluster_taken_for_a_server_is_told(autojump_clock: MockClock) -> None:
    async with InProcessCluster() as cluster:
        wrong = cluster.master_of(16_000)
        probe = RedisProbe(RedisOptions(port=wrong.port), [STREAM], wrong.connect)
        with pytest.raises(Unhealthy, match=r"MOVED 8340 .*begin the URL with redis\+cluster://"):
            await probe()


async def test_trouble_with_nodes_that_have_no_stream_of_ours_does_not_concern_us(autojump_clock: MockClock) -> None:
    async with probing([STREAM]) as site:

        def trouble(node: InProcessClusterNode) -> Exception:
            return NotSent(site.probe.node_options(name(node)).address, "refused")

        assert site.probe.concerns(trouble(site.bystander))  # nobody knows yet
        await site.complaint()
        assert not site.probe.concerns(trouble(site.bystander))
        assert site.probe.concerns(trouble(site.owner))
        assert site.probe.concerns(NotSent("redis://new-node:7009/0", "refused"))
