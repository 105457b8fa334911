"""A Redis Cluster used alone: a stream in partitions, a reader for each that follows its slot, a count beside it.

REDIS_URL=redis+cluster://host:port,host:port python docs/examples/redis_cluster.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os

import trio

from penstock.runtime.redis import ClusterOptions, CommandRefused, OutcomeUnknown, RedisCluster

PARTITIONS = [f"{{example:{number}}}" for number in range(4)]  # what is in braces decides the slot, and so the node
GROUP = "example:millers"


async def main() -> None:
    options = ClusterOptions.from_url(os.environ["REDIS_URL"], client_name="redis-cluster-example")

    def trouble(error: Exception) -> None:
        print("a master in use is away:", error)

    async with RedisCluster(options, on_trouble=trouble) as cluster:
        print("masters:", len(await cluster.masters()))
        for tag in PARTITIONS:
            await cluster.delete(f"{tag}:sacks", f"{tag}:count")
            await cluster.xgroup_create(f"{tag}:sacks", GROUP, "0", mkstream=True)

        async with trio.open_nursery() as nursery:
            for tag in PARTITIONS:
                nursery.start_soon(read, cluster, tag, 100)
                nursery.start_soon(write, cluster, tag, 100)

        # Keys of several partitions: MGET is one step, and a step is on one node.
        counters = [f"{tag}:count" for tag in PARTITIONS]
        try:
            await cluster.mget(counters)
        except CommandRefused as error:
            print("refused:", str(error).partition(":")[0])
        print("milled:", sum(int(count) for count in await cluster.mget_nonatomic(counters)))
        await cluster.delete(*counters, *(f"{tag}:sacks" for tag in PARTITIONS))


async def write(cluster: RedisCluster, tag: str, count: int) -> None:
    """Add entries. A failover in between costs time; only what was under way when a master died is unknown."""
    for number in range(count):
        try:
            await cluster.xadd(f"{tag}:sacks", {"number": number})
        except OutcomeUnknown:
            print("entry", number, "may be there or not")


async def read(cluster: RedisCluster, tag: str, count: int) -> None:
    """Read, and acknowledge and count in one step, which the tag makes possible."""
    stream = f"{tag}:sacks"
    async with cluster.dedicated(key=stream) as connection:
        while count:
            for _, entries in await connection.xreadgroup(GROUP, "miller-1", {stream: ">"}, count=100, block=2000):
                pipeline = cluster.pipeline()  # MULTI … EXEC on the owner of the slot
                pipeline.xack(stream, GROUP, *(entry_id for entry_id, _ in entries))
                pipeline.incrby(f"{tag}:count", len(entries))
                await pipeline.execute()
                count -= len(entries)


if __name__ == "__main__":
    trio.run(main)
