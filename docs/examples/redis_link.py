"""The Redis link used alone: many writers on one connection, a group's reader on its own, an outage seen at once.

REDIS_URL=redis://… python docs/examples/redis_link.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os

import trio

from penstock.runtime.redis import NotSent, OutcomeUnknown, Redis, RedisOptions, classify

STREAM, GROUP = "example:sacks", "example:millers"


async def main() -> None:
    options = RedisOptions.from_url(os.environ["REDIS_URL"], client_name="redis-link-example", retry_for=30)

    def trouble(error: Exception) -> None:
        print("shut the gate:", error)

    async with Redis(options, on_trouble=trouble) as redis:
        await redis.delete(STREAM)
        await redis.xgroup_create(STREAM, GROUP, "0", mkstream=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, redis, 1000)
            for first in range(0, 1000, 10):
                nursery.start_soon(write, redis, range(first, first + 10))

        # Every error has a row in the table of replies: what it means and what to do.
        try:
            await redis.xgroup_create(STREAM, GROUP, "0")
        except Exception as error:  # noqa: BLE001 - the example shows that any error may be classified
            row = classify(error)
            print(f"{error} -> {row.kind.value}: {row.action}")

        # A deadline of the caller's own. The reply that comes too late is dropped; the connection goes on.
        with trio.move_on_after(0):
            await redis.ping()
        print("still on the first connection:", redis.statistics().reconnects == 0)
        await redis.delete(STREAM)


async def write(redis: Redis, numbers: range) -> None:
    """Add some entries; the commands of all tasks share a connection and travel together."""
    for number in numbers:
        await add(redis, number)


async def add(redis: Redis, number: int) -> None:
    """Add one entry, over an outage of up to `retry_for`. Without its own id an XADD must not be sent twice."""
    try:
        await redis.xadd(STREAM, {"number": number})
    except NotSent:
        print("entry", number, "is not there")
    except OutcomeUnknown:
        print("entry", number, "may be there or not")


async def read(redis: Redis, count: int) -> None:
    """Read and acknowledge in batches, on a connection that only this loop uses."""
    async with redis.dedicated() as connection:
        while count:
            # BLOCK 2 s. If the server says nothing for 3.5 s it is frozen, and RedisStalled is raised.
            for _, entries in await connection.xreadgroup(GROUP, "miller-1", {STREAM: ">"}, count=100, block=2000):
                await redis.xack(STREAM, GROUP, *(entry_id for entry_id, _ in entries))
                count -= len(entries)
    print("read and acknowledged everything; pending:", (await redis.xpending(STREAM, GROUP))["pending"])


if __name__ == "__main__":
    trio.run(main)
