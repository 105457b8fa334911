"""The cluster client in virtual time, over scripted nodes that say what real ones say only in bad moments."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions
import trio
import trio.testing
from scripted_cluster import HALF, HIGH, LOW, PORTS, ScriptedCluster, ScriptedNode, a_cluster, client, error, on, resp
from trio.testing import MockClock

from penstock.runtime.redis import (
    CommandRefused,
    Kind,
    NotSent,
    OutcomeUnknown,
    RedisClosed,
    RedisOptions,
    RedisStalled,
    classify,
)
from penstock.runtime.redis.slots import SLOTS, slot_of


def test_the_keys_are_where_the_tests_think() -> None:
    assert slot_of(LOW) < HALF <= slot_of(HIGH)


# MOVED ---------------------------------------------------------------------------------------------------------------


async def test_moved_is_followed_at_once_and_the_topology_is_read_later(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        assert await redis_cluster.get(LOW) == f"a:{LOW}".encode()
        cluster.a.answer = lambda _, words: error(f"MOVED {slot_of(words[1])} seed:7003")
        cluster.own(cluster.c, cluster.b)
        start = trio.current_time()
        assert await redis_cluster.get(LOW) == f"c:{LOW}".encode()
        assert trio.current_time() == start
        assert redis_cluster.statistics().readings == 1
        assert await redis_cluster.get(LOW) == f"c:{LOW}".encode()
        assert cluster.a.times("GET") == 2, "the slot is known by now"
        assert redis_cluster.topology is not None
        assert len(redis_cluster.topology.masters) == 3
        await trio.sleep(1.5)
        assert redis_cluster.statistics().readings == 2
        assert [port for _, port in redis_cluster.topology.masters] == [7003, 7002]


async def test_a_storm_of_moved_is_one_reading_a_second(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.ping()
        cluster.a.answer = lambda _, words: error(f"MOVED {slot_of(words[1])} seed:7003")

        async def get(key: str) -> None:
            assert await redis_cluster.get(key) == f"c:{key}".encode()

        keys = [key for key in map(str, range(2000)) if slot_of(key) < HALF]
        async with trio.open_nursery() as nursery:
            for key in keys:
                nursery.start_soon(get, key)
        assert redis_cluster.statistics().moved == len(keys)
        assert redis_cluster.statistics().readings <= 2
        for key in keys[:100]:
            redis_cluster.moved(slot_of(key), (await redis_cluster.masters())[0])
            await trio.sleep(0.1)
        assert redis_cluster.statistics().readings <= 13


async def test_what_moved_taught_during_a_reading_is_not_forgotten(autojump_clock: MockClock) -> None:
    """The reading brings an old picture: the node that was asked has not heard of the change yet."""
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.ping()
        for node in cluster.nodes.values():
            node.delay = 0.1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(redis_cluster.refresh)
            await trio.sleep(0.15)
            redis_cluster.moved(slot_of(LOW), (await redis_cluster.masters())[1])
        assert (await redis_cluster.node_for_slot(slot_of(LOW))).port == 7002


async def test_nodes_that_send_each_other_the_client_are_left_after_the_time(autojump_clock: MockClock) -> None:
    """At most `max_redirects` hops, then the topology, a pause, and again; the last MOVED is the error."""
    async with a_cluster() as cluster, client(cluster, retry_for=3.0, max_redirects=4) as redis_cluster:
        cluster.a.answer = lambda _, words: error(f"MOVED {slot_of(words[1])} seed:7002")
        cluster.b.answer = lambda _, words: error(f"MOVED {slot_of(words[1])} seed:7001")
        start = trio.current_time()
        with pytest.raises(redis.exceptions.MovedError):
            await redis_cluster.get(LOW)
        assert 2.5 < trio.current_time() - start < 3.5
        rounds = redis_cluster.statistics().repeated + 1
        assert cluster.a.times("GET") + cluster.b.times("GET") == rounds * 5
        assert redis_cluster.statistics().readings > 3


@pytest.mark.parametrize("place", ["?:7003", "seed:9999"])
async def test_a_redirection_to_nowhere_calls_for_the_topology(place: str, autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.ping()
        cluster.a.answer = on("SET", error(f"MOVED {slot_of(LOW)} {place}"))
        cluster.own(cluster.c, cluster.b)
        assert await redis_cluster.set(LOW, "x") is True
        assert cluster.c.times("SET") == 1


# ASK -----------------------------------------------------------------------------------------------------------------


async def test_asking_and_its_command_are_never_parted(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:

        def answer(node: ScriptedNode, words: list[str]) -> bytes | None:
            asked, node.asking = node.asking, words[0] == "ASKING"
            if words[0] == "SET" and words[1] == LOW:
                return None if asked else error("MOVED 1 seed:7001")
            return None

        cluster.a.answer = lambda _, words: error(f"ASK {slot_of(words[1])} seed:7002")
        cluster.b.answer = answer

        async def set_key(key: str) -> None:
            for _ in range(20):
                assert await redis_cluster.set(key, "x") is True

        async with trio.open_nursery() as nursery:
            for key in [LOW, HIGH] * 10:
                nursery.start_soon(set_key, key)
        statistics = redis_cluster.statistics()
        assert statistics.asked == 200
        assert statistics.moved == 0
        assert (await redis_cluster.node_for_slot(slot_of(LOW))).port == 7001


async def test_after_try_again_the_owner_is_asked_first(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        cluster.a.answer = on("SET", error(f"ASK {slot_of(LOW)} seed:7003"))
        cluster.c.answer = on("SET", error("TRYAGAIN Multiple keys request during rehashing of slot"))
        start = trio.current_time()
        assert await redis_cluster.set(LOW, "x") is True
        assert 0.05 <= trio.current_time() - start <= 0.5
        assert [node.times("SET") for node in (cluster.a, cluster.c)] == [2, 1]


# Lost and silent nodes -----------------------------------------------------------------------------------------------


async def test_a_write_whose_reply_is_lost_is_not_repeated_and_a_read_is(autojump_clock: MockClock) -> None:
    troubles: list[Exception] = []
    async with a_cluster() as cluster, client(cluster, on_trouble=troubles.append) as redis_cluster:

        def die(node: ScriptedNode, words: list[str]) -> bytes | None:
            if words[0] in ("SET", "GET"):
                node.kill()
                cluster.own(cluster.c, cluster.b)
            return None

        await redis_cluster.get(LOW)
        cluster.a.answer = die
        with pytest.raises(OutcomeUnknown):
            await redis_cluster.set(LOW, "x")
        assert len(troubles) == 1
        assert cluster.c.times("SET") == 0
        assert await redis_cluster.get(LOW) == f"c:{LOW}".encode()
        await redis_cluster.get(HIGH)
        cluster.b.answer = lambda node, words: None if words[0] != "GET" else lose(cluster, node)
        assert await redis_cluster.get(HIGH) == f"c:{HIGH}".encode()


def lose(cluster: ScriptedCluster, node: ScriptedNode) -> bytes:
    """The connection breaks with the command under way, and c takes over everything."""
    node.kill()
    cluster.own(cluster.c, cluster.c)
    return b""


async def test_a_write_that_was_not_sent_goes_to_the_successor(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.set(LOW, "x")
        cluster.a.kill()
        trio.lowlevel.spawn_system_task(_later, 4.0, lambda: cluster.own(cluster.c, cluster.b))
        await trio.testing.wait_all_tasks_blocked()
        start = trio.current_time()
        assert await redis_cluster.set(LOW, "y") is True
        assert 3.5 < trio.current_time() - start < 5.5
        assert cluster.c.times("SET") == 1


async def _later(delay: float, do: Callable[[], None]) -> None:
    await trio.sleep(delay)
    do()


async def test_when_the_time_is_over_the_last_error_is_raised_as_it_is(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, retry_for=2.0) as redis_cluster:
        cluster.a.answer = lambda _, __: error("CLUSTERDOWN The cluster is down")
        start = trio.current_time()
        with pytest.raises(redis.exceptions.ClusterDownError, match="cluster is down"):
            await redis_cluster.set(LOW, "x")
        assert 1.5 < trio.current_time() - start < 2.5
        assert await redis_cluster.set(HIGH, "x") is True


async def test_a_slot_that_nobody_serves_is_waited_for_and_then_an_error(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, retry_for=2.0) as redis_cluster:
        for node in cluster.nodes.values():
            node.slots = [[HALF, SLOTS - 1, ["", 7002, "b"]]]
        with pytest.raises(NotSent, match=f"no node serves slot {slot_of(LOW)}"):
            await redis_cluster.set(LOW, "x")
        assert await redis_cluster.set(HIGH, "x") is True
        trio.lowlevel.spawn_system_task(_later, 1.0, lambda: cluster.own(cluster.a, cluster.b))
        assert await redis_cluster.set(LOW, "x") is True


async def test_a_frozen_node_does_not_hold_a_reading(autojump_clock: MockClock) -> None:
    """The next node is asked a quarter of a second later; after that the silent one is asked last."""
    async with a_cluster() as cluster:
        cluster.a.frozen = True
        for seed in range(8):
            async with client(cluster, rng=random.Random(seed)) as redis_cluster:
                times = []
                for _ in range(8):
                    start = trio.current_time()
                    await redis_cluster.refresh()
                    times.append(round(trio.current_time() - start, 3))
                assert times.count(0.35) + times.count(0.25) == 1, "once is enough to know"
                assert set(times) <= {0.0, 0.1, 0.25, 0.35}


async def test_what_waits_to_be_connected_is_freed_by_a_failover(autojump_clock: MockClock) -> None:
    """The node takes connections and does not greet: without the news it would be `connect_timeout`."""
    node = RedisOptions(connect_timeout=60.0)
    async with a_cluster() as cluster, client(cluster, node=node, seeds=(7002,)) as redis_cluster:
        await redis_cluster.masters()
        cluster.a.frozen = True
        trio.lowlevel.spawn_system_task(_later, 3.0, lambda: cluster.own(cluster.c, cluster.b))
        trio.lowlevel.spawn_system_task(_later, 4.0, redis_cluster.refresh_soon)
        start = trio.current_time()
        assert await redis_cluster.set(LOW, "x") is True
        assert trio.current_time() - start < 6
        assert cluster.c.times("SET") == 1


async def test_what_waits_for_a_frozen_node_is_freed_by_its_failover(autojump_clock: MockClock) -> None:
    """Sent to the frozen master: unknown, but at once, not after `response_timeout`. Waiting to be sent: sent again."""
    troubles: list[Exception] = []
    node = RedisOptions(response_timeout=60.0, max_pending=1)
    async with a_cluster() as cluster, client(cluster, node=node, on_trouble=troubles.append) as redis_cluster:
        await redis_cluster.set(LOW, "x")
        cluster.a.frozen = True
        trio.lowlevel.spawn_system_task(_later, 5.0, lambda: cluster.own(cluster.c, cluster.b))
        ended: dict[str, float] = {}
        start = trio.current_time()

        async def write(name: str) -> None:
            try:
                await redis_cluster.set(LOW, name)
            except OutcomeUnknown:
                name += " unknown"
            ended[name] = trio.current_time() - start

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write, "sent")
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(write, "waiting")
        assert ended.keys() == {"sent unknown", "waiting"}
        assert max(ended.values()) < 7
        assert isinstance(troubles[0], RedisStalled)


async def test_a_login_that_is_turned_away_is_an_error_at_once(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        for node in cluster.nodes.values():
            node.greeting = error("WRONGPASS invalid username-password pair")
        with pytest.raises(NotSent, match=r"2 nodes \(seed:700\d, seed:700\d\): cannot connect: WRONGPASS") as caught:
            await redis_cluster.get(LOW)
        assert classify(caught.value).kind is Kind.CONFIG
        assert trio.current_time() < 1


async def test_a_single_server_is_told_to_be_none_of_a_cluster(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, retry_for=0) as redis_cluster:
        for node in cluster.nodes.values():
            node.is_clustered = False
        with pytest.raises(NotSent, match=r"cluster support disabled .*begin the URL with redis://") as caught:
            await redis_cluster.get(LOW)
        assert classify(caught.value).kind is Kind.CONFIG


async def test_a_client_shows_where_it_leads_and_what_is_no_slot(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        assert repr(redis_cluster) == f"<RedisCluster {redis_cluster.options.address} (open)>"
        for wrong in (-1, 16384):
            with pytest.raises(ValueError, match=f"{wrong} is no slot"):
                await redis_cluster.node_for_slot(wrong)
    assert repr(redis_cluster).endswith("(closed)>")


# Nodes come and go ---------------------------------------------------------------------------------------------------


async def test_seeds_may_be_replaced_once_others_are_known(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, seeds=(7001,)) as redis_cluster:
        await redis_cluster.ping()
        cluster.own(cluster.b, cluster.c)
        await redis_cluster.refresh()
        cluster.a.kill()
        cluster.b.kill()
        cluster.own(cluster.c, cluster.c)
        assert await redis_cluster.get(LOW) == f"c:{LOW}".encode()


async def test_a_node_that_has_left_the_cluster_knows_nothing_of_it(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, seeds=(7001, 7002)) as redis_cluster:
        cluster.a.slots = []
        for _ in range(5):
            await redis_cluster.refresh()
        assert [port for _, port in await redis_cluster.masters()] == [7001, 7002]


async def test_the_connection_to_a_node_that_left_closes_when_its_calls_are_answered(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.get(LOW)
        cluster.a.delay = 3.0
        answers = []

        async def get() -> None:
            answers.append(await redis_cluster.get(LOW))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get)
            await trio.sleep(0.1)
            cluster.own(cluster.c, cluster.b)
            await redis_cluster.refresh()
            assert {node.address.port for node in redis_cluster.statistics().nodes} == set()
            assert len(cluster.a.open) == 1
            sent = redis_cluster.statistics().sent
        assert answers == [f"a:{LOW}".encode()]
        await trio.testing.wait_all_tasks_blocked()
        assert not cluster.a.open
        assert redis_cluster.statistics().sent == sent, "what has been sent stays counted"


async def test_a_master_that_was_demoted_in_order_answers_what_it_has_taken(autojump_clock: MockClock) -> None:
    """READONLY is no silence: the replies to what was sent before still come."""
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.get(LOW)
        cluster.a.delay = 0.5
        cluster.own(cluster.c, cluster.b)
        cluster.a.answer = on("SET", b"+OK\r\n", error("READONLY You can't write against a read only replica."))
        answers: dict[str, Any] = {}

        async def set_to(value: str) -> None:
            answers[value] = await redis_cluster.set(LOW, value)

        async def get() -> None:
            answers["get"] = await redis_cluster.get(LOW)

        async with trio.open_nursery() as nursery:
            for value in ("first", "refused"):
                nursery.start_soon(set_to, value)
                await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(get)
        assert answers == {"first": True, "refused": True, "get": f"a:{LOW}".encode()}
        assert cluster.c.log == [["SET", LOW, "refused"]]


async def test_an_idle_connection_of_ones_own_is_not_left_at_a_node_that_left(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        async with redis_cluster.dedicated(key=LOW) as connection:
            assert await connection.get(LOW) == f"a:{LOW}".encode()
            cluster.own(cluster.c, cluster.b)
            await redis_cluster.refresh()
            await trio.testing.wait_all_tasks_blocked()
            assert not cluster.a.open
            assert not connection.connected
            assert await connection.get(LOW) == f"c:{LOW}".encode()


async def test_a_node_that_is_asked_by_name_stays_for_a_while(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.node("seed", 7003).ping()
        await redis_cluster.refresh()
        assert len(cluster.c.open) == 1
        await trio.sleep(6)
        await redis_cluster.refresh()
        await trio.testing.wait_all_tasks_blocked()
        assert not cluster.c.open


async def test_the_topology_is_read_again_after_a_while(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, refresh_every=10.0) as redis_cluster:
        await redis_cluster.ping()
        cluster.own(cluster.c, cluster.b)
        await trio.sleep(10.5)
        assert redis_cluster.statistics().readings == 2
        assert await redis_cluster.get(LOW) == f"c:{LOW}".encode()


async def test_trouble_is_told_of_masters_in_use_only(autojump_clock: MockClock) -> None:
    """Nobody has asked for a key of `a`; and a reading that fails in the background hurts nobody."""
    troubles: list[Exception] = []
    async with a_cluster() as cluster, client(cluster, refresh_every=5, on_trouble=troubles.append) as redis_cluster:
        await redis_cluster.get(HIGH)
        await redis_cluster.info(target="masters")
        cluster.a.kill()
        await trio.sleep(20)
        assert troubles == []
        cluster.b.kill()
        await trio.sleep(20)
        assert len(troubles) == 1
        assert "7002" in str(troubles[0])
        assert redis_cluster.statistics().last_error is troubles[0]


async def test_no_node_at_all_is_trouble_for_those_who_ask(autojump_clock: MockClock) -> None:
    troubles: list[Exception] = []
    async with a_cluster() as cluster, client(cluster, retry_for=1, on_trouble=troubles.append) as redis_cluster:
        for node in cluster.nodes.values():
            node.up = False
        with pytest.raises(NotSent, match=r"no node of the cluster answers: .*refused"):
            await redis_cluster.get(LOW)
        assert troubles
        cluster.a.up = cluster.b.up = True
        assert await redis_cluster.get(LOW) == f"a:{LOW}".encode()


# Cancellation, and the end -------------------------------------------------------------------------------------------


async def test_a_cancelled_caller_does_not_take_the_reading_from_the_others(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        for node in cluster.nodes.values():
            node.delay = 0.05
        answers = []

        async def get() -> None:
            answers.append(await redis_cluster.get(LOW))

        async with trio.open_nursery() as nursery:
            with trio.move_on_after(0.02) as scope:
                nursery.start_soon(get)
                await redis_cluster.get(LOW)
            assert scope.cancelled_caught
        assert answers == [f"a:{LOW}".encode()]


@pytest.mark.parametrize("seed", range(5))
async def test_cancelled_anywhere_replies_still_go_to_those_who_asked(seed: int, autojump_clock: MockClock) -> None:
    """Redirections, lost nodes and silence at random, and callers that give up at random."""
    rng = random.Random(seed)
    async with a_cluster() as cluster, client(cluster, node=RedisOptions(response_timeout=2.0)) as redis_cluster:

        def answer(node: ScriptedNode, words: list[str]) -> bytes | None:
            node.delay = rng.choice([0, 0, 0.001, 0.01])
            asked, node.asking = node.asking, words[0] == "ASKING"
            if words[0] != "GET" or asked:
                return None
            dice = rng.random()
            if dice < 0.1:
                return error(f"MOVED {slot_of(words[1])} seed:{rng.choice([7001, 7002, 7003])}")
            if dice < 0.2:
                return error(f"ASK {slot_of(words[1])} seed:{rng.choice([7001, 7002, 7003])}")
            if dice < 0.25:
                return error(rng.choice(["TRYAGAIN x", "CLUSTERDOWN The cluster is down", "LOADING x"]))
            return None

        for node in cluster.nodes.values():
            node.answer = answer
        answered = 0

        async def get(number: int) -> None:
            nonlocal answered
            with trio.move_on_after(rng.choice([0.0005, 0.005, 0.05, 10])):
                key = f"key-{number}"
                if number % 5:
                    reply = await redis_cluster.get(key)
                    assert reply.decode().partition(":")[2] == key
                else:
                    pipeline = redis_cluster.pipeline(transaction=False)
                    pipeline.get(key).get(key + "-other").get(key)
                    replies = [reply.decode().partition(":")[2] for reply in await pipeline.execute()]
                    assert replies == [key, key + "-other", key]
                answered += 1

        async def cut() -> None:
            for _ in range(20):
                await trio.sleep(rng.random() / 10)
                node = rng.choice(list(cluster.nodes.values()))
                node.kill()
                node.up = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut)
            for number in range(400):
                nursery.start_soon(get, number)
                await trio.sleep(rng.random() / 200)
        assert answered > 100
        for node in cluster.nodes.values():
            node.answer = None
        assert await redis_cluster.get("end") in (b"a:end", b"b:end", b"c:end")
        await trio.testing.wait_all_tasks_blocked()
        assert redis_cluster.statistics().pending == 0


async def test_leaving_fails_what_is_under_way_and_refuses_the_rest(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        cluster.a.frozen = True
        failures: list[Exception] = []

        async with trio.open_nursery() as nursery:
            async with client(cluster) as redis_cluster:

                async def get() -> None:
                    try:
                        await redis_cluster.get(LOW)
                    except NotSent as failure:
                        failures.append(failure)

                async def read() -> None:
                    async with redis_cluster.dedicated(key=LOW) as connection:
                        try:
                            await connection.xread({LOW: "$"}, block=60_000)
                        except (NotSent, OutcomeUnknown) as failure:
                            failures.append(failure)

                await redis_cluster.get(HIGH)
                nursery.start_soon(get)
                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
        assert len(failures) == 2
        with pytest.raises(RedisClosed):
            await redis_cluster.get(LOW)
        with pytest.raises(RedisClosed):
            await redis_cluster.refresh()


async def test_it_must_be_entered_and_only_once(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster:
        redis_cluster = client(cluster)
        with pytest.raises(RuntimeError, match="async with"):
            await redis_cluster.get(LOW)
        async with redis_cluster:
            pass
        with pytest.raises(RuntimeError, match="make a new one"):
            async with redis_cluster:
                pass


# Pipelines -----------------------------------------------------------------------------------------------------------


async def test_a_pipeline_is_one_burst_for_each_node_and_its_results_are_in_order(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        pipeline = redis_cluster.pipeline(transaction=False)
        keys = [f"key-{number}" for number in range(50)]
        for key in keys:
            pipeline.get(key)
        replies = [reply.decode() for reply in await pipeline.execute()]
        assert replies == [f"{'a' if slot_of(key) < HALF else 'b'}:{key}" for key in keys]
        assert cluster.a.connects <= 2


async def test_what_a_burst_could_not_do_is_done_again_in_order(autojump_clock: MockClock) -> None:
    """The slot goes away before the burst; meanwhile it has a key on the other side only."""
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.ping()
        cluster.a.answer = lambda _, words: error(f"MOVED {slot_of(words[1])} seed:7003")
        cluster.own(cluster.c, cluster.b)
        pipeline = redis_cluster.pipeline(transaction=False)
        pipeline.set(LOW, 1).set(HIGH, 1).set(LOW, 2).get(LOW).set(LOW, 3)
        assert await pipeline.execute() == [True, True, True, f"c:{LOW}".encode(), True]
        assert [words[-1] for words in cluster.c.log] == ["1", "2", LOW, "3"]


async def test_one_key_of_a_slot_may_be_elsewhere_already(autojump_clock: MockClock) -> None:
    """During a migration: what runs here meanwhile is about other keys, and overtakes nobody."""
    gone, here = LOW + "gone", LOW + "here"
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        cluster.a.answer = lambda _, words: error(f"ASK {slot_of(LOW)} seed:7003") if words[1] == gone else None
        pipeline = redis_cluster.pipeline(transaction=False)
        pipeline.set(gone, 1).set(here, 1).get(gone).set(here, 2)
        assert await pipeline.execute() == [True, True, f"c:{gone}".encode(), True]
        assert [words[0] for words in cluster.c.log] == ["ASKING", "SET", "ASKING", "GET"]


async def test_what_was_overtaken_on_its_key_is_not_sent_again(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        down = error("CLUSTERDOWN The cluster is down")
        cluster.a.answer = on("SET", down)
        pipeline = redis_cluster.pipeline(transaction=False)
        pipeline.set(LOW, 1).set(LOW, 2).set(LOW + "other", 1)
        refused, *rest = await pipeline.execute(raise_on_error=False)
        assert isinstance(refused, NotSent)
        assert "behind it on the same key" in str(refused)
        assert rest == [True, True]
        cluster.a.answer = on("GET", down)
        assert await pipeline.get(LOW).get(LOW).execute() == [f"a:{LOW}".encode()] * 2


async def test_behind_a_command_that_failed_nothing_of_its_slot_is_sent(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster, retry_for=1.0) as redis_cluster:
        cluster.a.answer = lambda _, words: error("CLUSTERDOWN The cluster is down")
        pipeline = redis_cluster.pipeline(transaction=False)
        pipeline.set(LOW, 1).set(HIGH, 1).set(LOW, 2).set(LOW, 3)
        start = trio.current_time()
        first, high, *rest = await pipeline.execute(raise_on_error=False)
        assert isinstance(first, redis.exceptions.ClusterDownError)
        assert high is True
        assert [type(each) for each in rest] == [NotSent, NotSent]
        assert "before it" in str(rest[0])
        assert trio.current_time() - start < 2
        assert max(int(words[-1]) for words in cluster.a.log[3:]) == 1


async def test_a_burst_whose_replies_are_lost_is_unknown_but_for_what_reads(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.get(LOW)

        def die(node: ScriptedNode, _: list[str]) -> bytes:
            node.kill()
            cluster.own(cluster.c, cluster.b)
            return b""

        cluster.a.answer = die
        pipeline = redis_cluster.pipeline(transaction=False)
        pipeline.set(LOW, 1).get(LOW).set(HIGH, 1)
        results = await pipeline.execute(raise_on_error=False)
        assert isinstance(results[0], OutcomeUnknown)
        assert results[1:] == [f"c:{LOW}".encode(), True]
        with pytest.raises(OutcomeUnknown):
            cluster.c.answer = lambda node, _: (node.kill(), b"")[1]
            await redis_cluster.pipeline(transaction=False).set(LOW, 1).execute()


async def test_a_transaction_is_for_one_slot_and_goes_as_a_whole(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        with pytest.raises(CommandRefused, match="several slots"):
            redis_cluster.pipeline().set(LOW, 1).set(HIGH, 1)

        def moved(_: ScriptedNode, words: list[str]) -> bytes | None:
            if words[0] == "EXEC":
                return error("EXECABORT Transaction discarded because of previous errors.")
            return None if words[0] == "MULTI" else error(f"MOVED {slot_of(LOW)} seed:7003")

        cluster.a.answer = moved
        cluster.c.answer = on("EXEC", error("TRYAGAIN x"), resp(["OK", 2]))
        pipeline = redis_cluster.pipeline()
        pipeline.set(LOW, 1).incr(LOW)
        assert await pipeline.execute() == [True, 2]
        assert [words[0] for words in cluster.c.log] == ["MULTI", "SET", "INCRBY", "EXEC"] * 2


# Commands without keys, and of unknown kinds --------------------------------------------------------------------------


async def test_commands_for_all_masters_have_one_result(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        sizes = {7001: 3, 7002: 4}
        for node in cluster.nodes.values():
            node.answer = lambda node, words: resp(sizes[node.port]) if words[0] == "DBSIZE" else None
        assert await redis_cluster.dbsize() == 7
        assert await redis_cluster.flushall() is True
        assert cluster.a.times("FLUSHALL") == cluster.b.times("FLUSHALL") == 1
        with pytest.raises(CommandRefused, match="all masters"):
            redis_cluster.pipeline(transaction=False).dbsize()


async def test_a_failover_in_between_is_no_error_for_all_masters(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        await redis_cluster.flushall()
        cluster.a.kill()
        trio.lowlevel.spawn_system_task(_later, 2.0, lambda: cluster.own(cluster.c, cluster.b))
        assert await redis_cluster.flushall() is True
        assert cluster.c.times("FLUSHALL") == 1


async def test_targets_are_nodes_by_name_or_by_kind(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:
        for node in cluster.nodes.values():
            node.slots[0].append(["", 7003, "c"])
        assert await redis_cluster.execute_command("ECHO", target=("seed", 7003)) == b"OK"
        assert cluster.c.times("ECHO") == 1
        assert {address.port for address in await redis_cluster.execute_command("ECHO", target="all")} == set(
            PORTS.values()
        )
        assert {address.port for address in await redis_cluster.ping(target_nodes="masters")} == {7001, 7002}
        assert {address.port for address in await redis_cluster.ping(target="replicas")} == {7003}
        with pytest.raises(CommandRefused, match="blocks"):
            await redis_cluster.execute_command("BLPOP", LOW, 1, target="masters")
        with pytest.raises(redis.exceptions.DataError, match="target"):
            await redis_cluster.ping(target="everybody")


async def test_a_command_of_a_module_is_asked_about_once(autojump_clock: MockClock) -> None:
    async with a_cluster() as cluster, client(cluster) as redis_cluster:

        def answer(_: ScriptedNode, words: list[str]) -> bytes | None:
            if words[:2] == ["COMMAND", "INFO"]:
                return resp([["mod.set", -2, ["write"], 2, 2, 1, [], [], [], []]])
            return None

        for node in cluster.nodes.values():
            node.answer = answer
        for _ in range(3):
            await redis_cluster.execute_command("MOD.SET", "x", HIGH)
        assert cluster.b.times("MOD.SET") == 3
        assert cluster.a.times("COMMAND", "INFO") + cluster.b.times("COMMAND", "INFO") == 1
        with pytest.raises(CommandRefused, match="several slots"):
            await redis_cluster.pipeline().set(LOW, 1).execute_command("MOD.SET", "x", HIGH).execute()
