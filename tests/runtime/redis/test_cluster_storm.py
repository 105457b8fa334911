"""Minutes of failovers, migrations, silence and cancellations in virtual time: nothing is lost, nothing is mixed up."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import redis.exceptions
import trio
import trio.testing
from attrs import define, field
from trio.testing import MockClock

from penstock.runtime.redis import ClusterOptions, NotSent, OutcomeUnknown, RedisCluster, RedisOptions, RedisStalled
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.redis_cluster import InProcessCluster

GROUP = "readers"
STREAMS = [f"stream:{number}" for number in range(4)]
MINUTES = 1


@define
class Ledger:
    """What is known of one stream.

    Attributes:
        acknowledged: number -> entry id that the writer got.
        unknown: numbers whose fate the writer does not know.
        refused: numbers that were not written.
        taken: number -> how often a reader got it.
    """

    acknowledged: dict[int, bytes] = field(factory=dict)
    unknown: set[int] = field(factory=set)
    refused: set[int] = field(factory=set)
    taken: Counter[int] = field(factory=Counter)


async def write(cluster: RedisCluster, stream: str, ledger: Ledger, rng: random.Random, stop: trio.Event) -> None:
    """Gives up now and then: the fate of that one is unknown."""
    number = 0
    while not stop.is_set():
        number += 1
        await trio.sleep(rng.random() / 5)
        ledger.unknown.add(number)
        with trio.move_on_after(rng.choice([0.001, 0.01, 1, 60, 60, 60])):
            try:
                ledger.acknowledged[number] = await cluster.xadd(stream, {"number": number})
                ledger.unknown.discard(number)
            except NotSent:
                ledger.refused.add(number)
                ledger.unknown.discard(number)
            except OutcomeUnknown:
                continue


async def read(cluster: RedisCluster, stream: str, ledger: Ledger, rng: random.Random, stop: trio.Event) -> None:
    """Starts anew now and then, with what it had not acknowledged."""
    while not stop.is_set():
        with trio.move_on_after(rng.random() * 20):
            try:
                await read_for_a_while(cluster, stream, ledger, stop)
            except (NotSent, OutcomeUnknown, RedisStalled):
                await trio.sleep(0.1)


async def read_for_a_while(cluster: RedisCluster, stream: str, ledger: Ledger, stop: trio.Event) -> None:
    async with cluster.dedicated(key=stream) as connection:
        position = "0"
        while not stop.is_set():
            reply = await connection.xreadgroup(GROUP, "me", {stream: position}, count=10, block=2000)
            entries = reply[0][1] if reply else []
            if position == "0" and not entries:
                position = ">"
            for entry, fields in entries:
                ledger.taken[int(fields[b"number"])] += 1
                await cluster.xack(stream, GROUP, entry)


async def trouble(local: InProcessCluster, rng: random.Random, stop: trio.Event) -> None:
    """One thing after the other; every node comes back."""
    deadline = trio.current_time() + MINUTES * 60
    while trio.current_time() < deadline:
        await trio.sleep(rng.random() * 5)
        node = rng.choice(local.masters())
        slot = slot_of(rng.choice(STREAMS))
        dice = rng.randrange(5)
        if dice == 0:
            node.refuse()
            await trio.sleep(rng.random() * 4)
            node.restore()
        elif dice == 1:
            node.hang()
            await trio.sleep(rng.random() * 4)
            node.resume()
        elif dice == 2 and (replicas := [each for each in local.replicas_of(node) if not each.silent]):
            local.fail_over(replicas[0])
        elif local.master_of(slot) is node:
            continue  # a slot is not migrated to where it is
        elif dice == 3:
            local.begin_migration(slot, node)
            await trio.sleep(rng.random() * 2)
            local.move_keys(slot)
            await trio.sleep(rng.random() * 2)
            local.finish_migration(slot)
        else:
            local.migrate_slot(slot, node)
        await trio.sleep(2)
    stop.set()


@pytest.mark.parametrize("seed", [0, 3])
async def test_a_storm(seed: int, autojump_clock: MockClock) -> None:
    rng = random.Random(seed)
    ledgers = {stream: Ledger() for stream in STREAMS}
    tasks_before = trio.lowlevel.current_statistics().tasks_living
    async with InProcessCluster(masters=3, replicas=1) as local:
        options = ClusterOptions(nodes=local.addresses, node=RedisOptions(response_timeout=3.0))
        async with RedisCluster(options, connect=local.connect, rng=random.Random(seed)) as cluster:
            for stream in STREAMS:
                await cluster.xgroup_create(stream, GROUP, id="0", mkstream=True)
            stop = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trouble, local, rng, stop)
                for stream, ledger in ledgers.items():
                    nursery.start_soon(write, cluster, stream, ledger, random.Random(rng.random()), stop)
                    nursery.start_soon(read, cluster, stream, ledger, random.Random(rng.random()), stop)
            for stream, ledger in ledgers.items():
                calm = trio.Event()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read_for_a_while, cluster, stream, ledger, calm)
                    while (await cluster.xinfo_groups(stream))[0]["lag"] or (await cluster.xpending(stream, GROUP))[
                        "pending"
                    ]:
                        await trio.sleep(1)
                    calm.set()
                check(ledger, {entry: int(fields[b"number"]) for entry, fields in await cluster.xrange(stream)})
            statistics = cluster.statistics()
            assert statistics.pending == 0
            assert statistics.dedicated == 0
            assert min(statistics.moved, statistics.asked, statistics.repeated) > 0
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == tasks_before


def check(ledger: Ledger, stored: dict[bytes, int]) -> None:
    assert len(ledger.acknowledged) > 100 * MINUTES
    assert len(set(stored.values())) == len(stored), "an entry was written twice"
    assert all(stored.get(entry) == number for number, entry in ledger.acknowledged.items()), "lost, or mixed up"
    assert not set(stored.values()) & ledger.refused, "what was said not to be written was written"
    assert set(stored.values()) <= set(ledger.acknowledged) | ledger.unknown
    assert set(ledger.taken) == set(stored.values()), "read what is not there, or has not read what is"


async def test_cancelled_at_every_step_of_a_migration(autojump_clock: MockClock) -> None:
    """A reader that gives up anywhere between MOVED, ASK and the topology leaves nothing behind."""
    stream = STREAMS[0]
    async with InProcessCluster(masters=3) as local:
        options = ClusterOptions(nodes=local.addresses)
        async with RedisCluster(options, connect=local.connect, rng=random.Random(1)) as cluster:
            await cluster.xgroup_create(stream, GROUP, id="0", mkstream=True)
            await cluster.xadd(stream, {"number": 0})
            for limit in range(60):
                source = local.master_of(stream)
                target = next(node for node in local.masters() if node is not source)
                local.begin_migration(slot_of(stream), target)
                local.move_keys(slot_of(stream))
                await cancel_after(limit, cluster, stream)
                local.finish_migration(slot_of(stream))
                await cancel_after(limit, cluster, stream)
                assert len(await cluster.xrange(stream)) == 1
            await trio.testing.wait_all_tasks_blocked()
            assert cluster.statistics().pending == 0
            assert cluster.statistics().dedicated == 0


async def cancel_after(checkpoints: int, cluster: RedisCluster, stream: str) -> None:
    """Run a round of commands and cancel it after so many ticks of the scheduler."""

    async def work() -> None:
        async with cluster.dedicated(key=stream) as connection:
            await connection.xread({stream: "0"}, block=10)
            pipeline = cluster.pipeline(transaction=False)
            pipeline.xlen(stream).xrange(stream)
            length, entries = await pipeline.execute()
            assert length == len(entries) == 1
            assert await cluster.pipeline().xlen(stream).execute() == [1]
            with pytest.raises(redis.exceptions.ResponseError, match="BUSYGROUP"):
                await cluster.xgroup_create(stream, GROUP, id="0")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        for _ in range(checkpoints):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
