"""Publish and subscribe, alone: a cache that listens for changes, and reads everything again after a gap.

REDIS_URL=redis://… python docs/examples/redis_pubsub.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os
from typing import Any

import trio

from penstock.runtime.redis import Gap, Message, PubSub, Redis, RedisOptions

PRICES, CHANGES = "example:prices", "example:changes"


async def main() -> None:
    options = RedisOptions.from_url(os.environ["REDIS_URL"], decode_responses=True)
    async with Redis(options) as redis, trio.open_nursery() as nursery:
        await redis.delete(PRICES)
        cache = Cache(redis)
        await nursery.start(cache.follow)
        await change(redis, "rye", "12")
        await cache.until(rye="12")

        # Somebody ends the subscriber's connection (an operator; a restart; the server, when it is read too slowly) …
        await redis.client_kill_filter(_type="pubsub")
        await change(redis, "oats", "9")  # … and this change may be missed.
        await cache.until(rye="12", oats="9")
        nursery.cancel_scope.cancel()


async def change(redis: Redis, name: str, price: str) -> None:
    """First the data, then the news of it: who hears the news finds the data."""
    await redis.hset(PRICES, name, price)
    await redis.publish(CHANGES, name)


class Cache:
    """The prices, kept up to date by the channel of changes."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._prices: dict[Any, Any] = {}
        self._changed = trio.Event()

    async def follow(self, task_status: trio.TaskStatus[None]) -> None:
        async with self._redis.pubsub() as pubsub:
            # Subscribe first, read then: what changes in between is heard.
            await pubsub.subscribe(CHANGES)
            self._prices = await self._redis.hgetall(PRICES)
            task_status.started()
            await self._listen(pubsub)

    async def _listen(self, pubsub: PubSub) -> None:
        async for item in pubsub:
            match item:
                case Message(data=str(name)):
                    self._prices[name] = await self._redis.hget(PRICES, name)
                    print("changed:", name)
                case Gap(reason=reason, channels=channels):
                    print(f"gap in {', '.join(map(str, channels))}: {reason}; reading everything again")
                    self._prices = await self._redis.hgetall(PRICES)
            self._changed.set()

    async def until(self, **prices: str) -> None:
        """Wait until the cache holds exactly these."""
        with trio.fail_after(30):
            while self._prices != prices:
                self._changed = trio.Event()
                await self._changed.wait()
        print("prices:", self._prices)


if __name__ == "__main__":
    trio.run(main)
