"""The cluster client at its edges, in virtual time: after its end, half-way through a migration, with stale nodes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from scripted_cluster import HIGH, LOW, ScriptedNode, a_cluster, client, error, on, resp
from trio.testing import MockClock

from penstock.runtime.redis import NotSent, OutcomeUnknown, RedisClosed, RedisCluster, RedisOptions
from penstock.runtime.redis.slots import slot_of

# After the end -------------------------------------------------------------------------------------------------------


async def _ask_a_pipeline(cluster: RedisCluster, *, transaction: bool) -> None:
    pipeline = cluster.pipeline(transaction=transaction)
    pipeline.get(LOW)
    await pipeline.execute()


async def _ask_a_connection(cluster: RedisCluster) -> None:
    async with cluster.dedicated(LOW) as connection:
        await connection.get(LOW)


WAYS: dict[str, Callable[[RedisCluster], Awaitable[Any]]] = {
    "a key": lambda cluster: cluster.get(LOW),
    "no key": lambda cluster: cluster.ping(),
    "a node": lambda cluster: cluster.node("seed", 7001).get(LOW),
    "pipeline": lambda cluster: _ask_a_pipeline(cluster, transaction=False),
    "transaction": lambda cluster: _ask_a_pipeline(cluster, transaction=True),
    "blocking": lambda cluster: cluster.blpop(LOW, 1),
    "dedicated": _ask_a_connection,
    "all masters": lambda cluster: cluster.dbsize(),
}


@pytest.mark.parametrize("way", WAYS)
async def test_whoever_tries_for_ever_at_a_closed_client_can_be_cancelled(way: str, autojump_clock: MockClock) -> None:
    async with a_cluster() as nodes:
        async with client(nodes) as cluster:
            await cluster.get(LOW)
        with trio.move_on_after(1) as scope:
            scope.cancel()
            for _ in range(10):
                with pytest.raises(RedisClosed):
                    await WAYS[way](cluster)
        assert scope.cancelled_caught


async def test_whoever_tries_for_ever_at_a_slot_without_owner_can_be_cancelled(autojump_clock: MockClock) -> None:
    """And lets others run meanwhile: without that, the topology would never be read again."""
    async with a_cluster() as nodes:
        for node in nodes.nodes.values():
            node.slots = node.slots[:1]
        async with client(nodes, retry_for=0) as cluster:
            await cluster.get(LOW)
            with trio.CancelScope() as scope:
                scope.cancel()
                for _ in range(10):
                    with pytest.raises(NotSent):
                        await cluster.get(HIGH)
            assert scope.cancelled_caught


async def test_a_pipeline_at_a_closed_client_is_told_so(autojump_clock: MockClock) -> None:
    async with a_cluster() as nodes:
        async with client(nodes) as cluster:
            await cluster.get(LOW)
        pipeline = cluster.pipeline(transaction=False)
        pipeline.set(LOW, 1)
        pipeline.set(HIGH, 1)
        with pytest.raises(RedisClosed):
            await pipeline.execute()


async def test_there_are_no_subscriptions_at_a_closed_client(autojump_clock: MockClock) -> None:
    async with a_cluster() as nodes:
        async with client(nodes) as cluster:
            await cluster.get(LOW)
        with pytest.raises(RedisClosed):
            cluster.pubsub()


async def test_a_cancelled_exit_leaves_no_connection_open(autojump_clock: MockClock) -> None:
    """`a_cluster` counts them."""
    async with a_cluster() as nodes:
        with trio.CancelScope() as scope:
            async with client(nodes) as cluster:
                await cluster.blpop(LOW, 1)
                scope.cancel()
        assert scope.cancelled_caught


# What may run twice --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("id_", "attempts"), [("$", 1), ("1-1", 2)])
async def test_a_read_from_now_on_is_not_made_again(id_: str, attempts: int, autojump_clock: MockClock) -> None:
    """It would step over what was added in between."""
    seen = []

    def cut(node: ScriptedNode, words: list[str]) -> bytes | None:
        if words[0] != "XREAD":
            return None
        seen.append(words)
        if len(seen) > 1:
            return resp(None)
        for stream in list(node.open):
            stream.send_stream.close()
            stream.receive_stream.close()
        return b""

    async with a_cluster() as nodes:
        nodes.a.answer = cut
        async with client(nodes) as cluster:
            if attempts == 1:
                with pytest.raises(OutcomeUnknown):
                    await cluster.xread({LOW: id_}, block=1000)
            else:
                await cluster.xread({LOW: id_}, block=1000)
    assert len(seen) == attempts


@pytest.mark.parametrize("verb", ["ASK", "MOVED"])
@pytest.mark.parametrize("moved", [1, 2])
async def test_a_script_in_a_burst_is_known_wherever_its_calls_are_brought(
    moved: int, verb: str, autojump_clock: MockClock
) -> None:
    """One of two keys is at c already: that of the call with the text, or that of the call with the digest."""
    knows: set[str] = set()

    def scripted(node: ScriptedNode, words: list[str]) -> bytes | None:
        if words[0] not in ("EVAL", "EVALSHA"):
            return None
        if node.name == "a" and words[3] == keys[moved - 1]:
            return error(f"{verb} {slot_of(LOW)} seed:7003")
        if words[0] == "EVAL":
            knows.add(node.name)
        if node.name not in knows:
            return error("NOSCRIPT No matching script. Please use EVAL.")
        return resp(words[3])

    keys = [f"{LOW}1", f"{LOW}2"]
    async with a_cluster() as nodes:
        nodes.a.answer = nodes.c.answer = scripted
        async with client(nodes) as cluster:
            script = cluster.register_script("return KEYS[1]")
            pipeline = cluster.pipeline(transaction=False)
            for key in keys:
                script.queue(pipeline, [key])
            assert await pipeline.execute() == [key.encode() for key in keys]
    assert "c" in knows


async def test_an_ask_that_is_old_is_not_followed(autojump_clock: MockClock) -> None:
    """The burst for b takes its time, and meanwhile the key is at a for good: written at c, it would be there twice."""
    async with a_cluster() as nodes:
        nodes.a.answer = on("SET", error(f"ASK {slot_of(LOW)} seed:7003"))
        nodes.b.delay = 1
        async with client(nodes) as cluster:
            pipeline = cluster.pipeline(transaction=False)
            pipeline.set(LOW, 1)
            pipeline.get(HIGH)
            assert await pipeline.execute() == [True, f"b:{HIGH}".encode()]
        assert (nodes.a.times("SET"), nodes.c.times("SET")) == (2, 0)


async def test_a_refusal_to_tell_the_keys_is_not_kept(autojump_clock: MockClock) -> None:
    """The right to COMMAND is missing, until somebody grants it."""
    about = resp([["json.set", -4, [], 1, 1, 1]])
    async with a_cluster() as nodes:
        nodes.a.answer = nodes.b.answer = on("COMMAND", error("NOPERM no right to run 'command|info'"), about)
        async with client(nodes) as cluster:
            await cluster.execute_command("JSON.SET", HIGH, "$", "1")
            before = nodes.b.times("JSON.SET")
            for _ in range(8):
                await cluster.execute_command("JSON.SET", HIGH, "$", "1")
        assert nodes.b.times("JSON.SET") == before + 8
        assert nodes.a.times("COMMAND", "INFO") + nodes.b.times("COMMAND", "INFO") == 2


async def test_what_all_masters_do_is_made_again_where_it_failed_only(autojump_clock: MockClock) -> None:
    """FUNCTION LOAD says that the library exists when it comes twice."""
    async with a_cluster() as nodes:
        nodes.a.answer = on("FUNCTION", resp("lib"), error("ERR Library 'lib' already exists"))
        nodes.b.answer = on("FUNCTION", error("LOADING Redis is loading the dataset in memory"), resp("lib"))
        async with client(nodes) as cluster:
            assert await cluster.function_load("#!lua name=lib") == b"lib"
        assert nodes.b.times("FUNCTION") == 2


async def test_what_would_be_refused_the_second_time_is_unknown(autojump_clock: MockClock) -> None:
    def lose(node: ScriptedNode, words: list[str]) -> bytes | None:
        if words[0] != "FUNCTION":
            return None
        for stream in list(node.open):
            stream.send_stream.close()
            stream.receive_stream.close()
        return b""

    async with a_cluster() as nodes:
        nodes.b.answer = lose
        async with client(nodes) as cluster:
            with pytest.raises(OutcomeUnknown):
                await cluster.function_load("#!lua name=lib")
        assert nodes.b.times("FUNCTION") == 1


async def test_the_function_of_a_transaction_may_block(autojump_clock: MockClock) -> None:
    """Though there is one connection for all who block, and the transaction has it."""
    async with a_cluster() as nodes:
        nodes.a.answer = on("EXEC", resp(["OK"]))

        async def wait_and_write(transaction: Any) -> None:
            await cluster.blpop(HIGH, 1)
            transaction.multi()
            transaction.set(LOW, 1)

        async with client(nodes, node=RedisOptions(max_blocking=1)) as cluster:
            await cluster.transaction(wait_and_write, LOW)
        assert nodes.b.times("BLPOP") == 1


# The topology --------------------------------------------------------------------------------------------------------


async def test_a_node_that_is_cut_off_is_not_believed_over_the_others(autojump_clock: MockClock) -> None:
    """b takes clients, and has not heard that c has taken over what was a's."""
    async with a_cluster() as nodes, client(nodes) as cluster:
        await cluster.get(LOW)
        old = nodes.b.slots
        nodes.own(nodes.c, nodes.b)
        nodes.c.epoch = 2
        nodes.b.slots = old
        while (await cluster.node_for_slot(slot_of(LOW))).port != 7003:
            cluster.moved(slot_of(LOW), (await cluster.masters())[0]._replace(port=7003))
            await cluster.refresh()
        asked = nodes.b.readings
        for _ in range(30):
            await cluster.refresh()
            assert (await cluster.node_for_slot(slot_of(LOW))).port == 7003
        assert nodes.b.readings > asked, "it was not asked: this shows nothing"


async def test_a_cluster_that_was_made_anew_is_believed(autojump_clock: MockClock) -> None:
    """Its epochs begin again, and nobody remembers the old ones."""
    async with a_cluster() as nodes:
        for node in nodes.nodes.values():
            node.epoch = 9
        async with client(nodes) as cluster:
            await cluster.get(LOW)
            nodes.own(nodes.b, nodes.c)
            for node in nodes.nodes.values():
                node.epoch = 1
            await cluster.refresh()
            assert (await cluster.node_for_slot(slot_of(LOW))).port == 7002


async def test_a_shard_channel_that_nobody_hears_makes_the_topology_doubtful(autojump_clock: MockClock) -> None:
    """A master that was demoted in order takes SPUBLISH on, and says 0; but nobody may be listening for hours, too."""
    async with a_cluster() as nodes:
        nodes.a.answer = on("SPUBLISH", *[resp(0)] * 1000)
        nodes.c.answer = on("SPUBLISH", *[resp(2)] * 1000)
        async with client(nodes, refresh_every=3600) as cluster:
            assert await cluster.spublish(LOW, "before") == 0
            nodes.own(nodes.c, nodes.b)
            with trio.fail_after(15):
                while await cluster.spublish(LOW, "message") == 0:
                    await trio.sleep(0.1)
            nodes.own(nodes.a, nodes.b)
            await cluster.refresh()
            before = cluster.statistics().readings
            for _ in range(300):
                await cluster.spublish(LOW, "message")
                await trio.sleep(0.1)
            assert cluster.statistics().readings - before <= 4


async def test_a_storm_of_failures_is_few_readings(autojump_clock: MockClock) -> None:
    """500 tasks fail at the same time, and wait for the successor."""
    async with a_cluster() as nodes, client(nodes) as cluster:
        await cluster.get(LOW)
        await cluster.get(HIGH)
        before = sum(node.readings for node in nodes.nodes.values())

        async def read(number: int) -> None:
            assert await cluster.get(f"{LOW}{number}") == f"c:{LOW}{number}".encode()

        nodes.a.kill()
        async with trio.open_nursery() as nursery:
            for number in range(500):
                nursery.start_soon(read, number)
            await trio.sleep(3)
            nodes.own(nodes.c, nodes.b)
        assert sum(node.readings for node in nodes.nodes.values()) - before <= 40


async def test_reconnects_of_nodes_that_have_left_still_count(autojump_clock: MockClock) -> None:
    async with a_cluster() as nodes, client(nodes) as cluster:
        await cluster.get(LOW)
        for stream in list(nodes.a.open):
            stream.send_stream.close()
        await trio.testing.wait_all_tasks_blocked()
        await cluster.get(LOW)
        assert cluster.statistics().reconnects == 1
        nodes.own(nodes.c, nodes.b)
        await cluster.refresh()
        assert (
            7001 in {node.address.port for node in cluster.statistics().nodes},
            cluster.statistics().reconnects,
        ) == (
            False,
            1,
        )
