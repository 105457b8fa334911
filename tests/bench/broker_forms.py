"""The forms in which Redis carries messages from one process to another, for bench_broker_forms.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import trio
from attrs import define

from penstock.runtime.redis import Message, Redis

KEY, GROUP = "bench-forms", "workers"
COUNT = 10
"""Entries of one XREADGROUP, as in the tutorial."""
BLOCK = 0.1
"""Seconds after which a consumer that waits looks whether it is to end."""

Handle = Callable[[str], Awaitable[None]]


@define
class Run:
    """Tells the workers of one consumer whether to go on; what they have in their hands they finish in any case."""

    handle: Handle
    goes_on: bool = True


class Form(ABC):
    """A way to get messages from one process to another."""

    name: ClassVar[str]

    async def prepare(self, redis: Redis) -> None:
        """Begin with nothing."""
        await redis.flushdb()

    @abstractmethod
    async def send(self, redis: Redis, body: str) -> None:
        """Send one message, and wait for the server's answer."""

    @abstractmethod
    async def work(self, redis: Redis, worker: int, run: Run) -> None:
        """Take messages and handle them, one at a time, for as long as it goes on."""

    async def consume(self, redis: Redis, workers: int, run: Run, *, task_status: trio.TaskStatus[None]) -> None:
        """Have so many workers at work."""
        async with trio.open_nursery() as nursery:
            for worker in range(workers):
                nursery.start_soon(self.work, redis, worker, run)
            task_status.started()

    async def left(self, redis: Redis, workers: int) -> int:
        """How many messages the server still has."""
        return 0


class StreamGroup(Form):
    """XADD, XREADGROUP, XACK; who starts again begins with what it had not acknowledged."""

    name = "stream, group"

    async def prepare(self, redis: Redis) -> None:
        await super().prepare(redis)
        await redis.xgroup_create(KEY, GROUP, "0", mkstream=True)

    async def send(self, redis: Redis, body: str) -> None:
        await redis.xadd(KEY, {"body": body})

    async def work(self, redis: Redis, worker: int, run: Run) -> None:
        name, start = f"worker-{worker}", "0"
        async with redis.dedicated() as connection:
            while run.goes_on:
                reply = await connection.xreadgroup(GROUP, name, {KEY: start}, count=COUNT, block=int(BLOCK * 1000))
                entries = reply[0][1] if reply else []
                for _, fields in entries:
                    await run.handle(fields["body"])
                if entries:
                    await redis.xack(KEY, GROUP, *[entry_id for entry_id, _ in entries])
                else:
                    start = ">"

    async def left(self, redis: Redis, workers: int) -> int:
        [group] = await redis.xinfo_groups(KEY)
        return int(group["lag"]) + int(group["pending"])


class SafeQueue(Form):
    """LPUSH, BLMOVE into a list of the worker's own, LREM; who starts again puts back what it had not finished."""

    name = "list, BLMOVE"

    async def send(self, redis: Redis, body: str) -> None:
        await redis.lpush(KEY, body)

    async def work(self, redis: Redis, worker: int, run: Run) -> None:
        hands = self._hands(worker)
        async with redis.dedicated() as connection:
            while await connection.lmove(hands, KEY, "LEFT", "RIGHT"):
                pass
            while run.goes_on:
                body = await connection.blmove(KEY, hands, BLOCK, "RIGHT", "LEFT")  # type: ignore[arg-type] # fractions, too
                if body is not None:
                    await run.handle(str(body))
                    await redis.lrem(hands, 1, str(body))

    async def left(self, redis: Redis, workers: int) -> int:
        return sum([await redis.llen(key) for key in (KEY, *map(self._hands, range(workers)))])

    def _hands(self, worker: int) -> str:
        return f"{KEY}:worker-{worker}"


class PlainQueue(Form):
    """LPUSH, BRPOP: as it is usually shown."""

    name = "list, BRPOP"

    async def send(self, redis: Redis, body: str) -> None:
        await redis.lpush(KEY, body)

    async def work(self, redis: Redis, worker: int, run: Run) -> None:
        async with redis.dedicated() as connection:
            while run.goes_on:
                if (popped := await connection.brpop([KEY], BLOCK)) is not None:
                    await run.handle(str(popped[1]))

    async def left(self, redis: Redis, workers: int) -> int:
        return int(await redis.llen(KEY))


class Channel(Form):
    """PUBLISH, SUBSCRIBE; the workers share one subscription, or each would have every message."""

    name = "pub/sub"

    async def send(self, redis: Redis, body: str) -> None:
        await redis.publish(KEY, body)

    async def consume(self, redis: Redis, workers: int, run: Run, *, task_status: trio.TaskStatus[None]) -> None:
        async with redis.pubsub() as pubsub:
            await pubsub.subscribe(KEY)

            async def take() -> bool:
                item = await pubsub.get(BLOCK)
                if isinstance(item, Message):
                    await run.handle(str(item.data))
                return item is not None

            async def at_work() -> None:
                while run.goes_on:
                    await take()

            async with trio.open_nursery() as nursery:
                for _ in range(workers):
                    nursery.start_soon(at_work)
                task_status.started()
            await pubsub.unsubscribe()
            while await take():  # what came before that
                pass

    async def work(self, redis: Redis, worker: int, run: Run) -> None:
        raise NotImplementedError("the workers of a channel have no connections of their own")


FORMS: Sequence[Form] = (StreamGroup(), SafeQueue(), PlainQueue(), Channel())
