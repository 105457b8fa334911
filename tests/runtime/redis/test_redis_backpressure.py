"""The limits of the shared connection: bounded in commands and in bytes, first come first served, nobody starves."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from penstock.runtime.redis import NotSent, Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

if TYPE_CHECKING:
    from conftest import ValkeyServer


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


class Stuck(trio.abc.Stream):
    """A stream whose peer stops reading when `stop` is called: sends wait until `go`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._free = trio.Event()
        self._free.set()
        self.sent: list[int] = []

    def stop(self) -> None:
        self._free = trio.Event()

    def go(self) -> None:
        self._free.set()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._free.wait()
        self.sent.append(len(data))
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._free.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


class Clogged:
    """A server behind `Stuck` streams."""

    def __init__(self, server: InProcessRedis) -> None:
        self._server = server
        self.streams: list[Stuck] = []

    async def connect(self) -> Stuck:
        self.streams.append(Stuck(await self._server.connect()))
        return self.streams[-1]


async def started(nursery: trio.Nursery, *commands: Awaitable[Any]) -> None:
    """Start each command when the one before it waits."""

    async def run(command: Awaitable[Any]) -> None:
        await command

    for command in commands:
        nursery.start_soon(run, command)
        await trio.testing.wait_all_tasks_blocked()


async def test_queued_bytes_stay_below_their_limit(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """While one burst is being sent, the queue fills up to the limit, and not one byte beyond it."""
    clogged = Clogged(server)
    options = RedisOptions(max_queued_bytes=1000, response_timeout=60, stall_after=50)
    async with Redis(options, connect=clogged.connect) as redis, trio.open_nursery() as nursery:
        await redis.ping()
        stream = clogged.streams[0]
        stream.stop()
        for number in range(20):
            await started(nursery, redis.rpush("l", f"{number:02}" + "x" * 350))
            assert redis.statistics().queued_bytes <= 1000
        assert redis.statistics().waiting == 17
        assert redis.statistics().pending == 1 + 2  # one being sent, two of 382 bytes queued
        stream.sent.clear()
        stream.go()
        await trio.testing.wait_all_tasks_blocked()
        assert max(stream.sent) <= 1000
        assert [int(item[:2]) for item in await redis.lrange("l", 0, -1)] == list(range(20))


async def test_a_pipeline_counts_with_all_its_commands(autojump_clock: MockClock, server: InProcessRedis) -> None:
    async with Redis(RedisOptions(max_pending=10), connect=server.connect) as redis:
        await redis.ping()
        server.hang()
        pipelines = [redis.pipeline(transaction=False) for _ in range(2)]
        for number, pipeline in enumerate(pipelines):
            for _ in range(6):
                pipeline.rpush("l", number)
        async with trio.open_nursery() as nursery:
            await started(nursery, *(pipeline.execute() for pipeline in pipelines))
            assert redis.statistics().pending == 1
            server.resume()
        assert await redis.llen("l") == 12


async def test_what_is_beyond_a_limit_by_itself_goes_alone(autojump_clock: MockClock, server: InProcessRedis) -> None:
    async with Redis(RedisOptions(max_pending=3, max_queued_bytes=50), connect=server.connect) as redis:
        await redis.set("k", "x" * 1000)
        pipeline = redis.pipeline()
        for _ in range(100):
            pipeline.strlen("k")
        assert await pipeline.execute() == [1000] * 100


async def test_nobody_overtakes_who_waits_for_room(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """A small command behind a large pipeline would fit, and waits; cancelled ones leave no gap."""
    async with Redis(RedisOptions(max_pending=4), connect=server.connect) as redis:
        await redis.ping()
        server.hang()
        large = redis.pipeline(transaction=False)
        for _ in range(3):
            large.rpush("l", "large")
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await redis.rpush("l", "cancelled")

        async with trio.open_nursery() as nursery:
            await started(nursery, redis.rpush("l", "first"), redis.rpush("l", "second"), large.execute())
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            await started(nursery, redis.rpush("l", "small"))
            assert redis.statistics().pending == 2
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            server.resume()
        assert await redis.lrange("l", 0, -1) == [b"first", b"second", b"large", b"large", b"large", b"small"]


async def test_a_large_waiter_that_leaves_lets_the_small_ones_in(
    autojump_clock: MockClock, server: InProcessRedis
) -> None:
    async with Redis(RedisOptions(max_pending=4), connect=server.connect) as redis:
        await redis.ping()
        server.hang()
        large = redis.pipeline(transaction=False)
        for _ in range(4):
            large.rpush("l", "large")
        scope = trio.CancelScope()

        async def give_up() -> None:
            with scope:
                await large.execute()

        async with trio.open_nursery() as nursery:
            await started(nursery, redis.rpush("l", "first"))
            nursery.start_soon(give_up)
            await trio.testing.wait_all_tasks_blocked()
            await started(nursery, redis.rpush("l", "small"), redis.rpush("l", "small"))
            assert redis.statistics().pending == 1
            scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert redis.statistics().pending == 3
            server.resume()
        assert await redis.lrange("l", 0, -1) == [b"first", b"small", b"small"]


async def test_who_waits_for_room_is_told_that_nothing_was_sent(
    autojump_clock: MockClock, server: InProcessRedis
) -> None:
    async with Redis(RedisOptions(max_pending=1, retry_for=0), connect=server.connect) as redis:
        await redis.ping()
        server.hang()
        async with trio.open_nursery() as nursery:

            async def expect(kind: type[Exception]) -> None:
                with pytest.raises(kind):
                    await redis.incr("n")

            nursery.start_soon(expect, Exception)
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(3):
                nursery.start_soon(expect, NotSent)
            await trio.testing.wait_all_tasks_blocked()
            server.cut()
        server.resume()


@pytest.mark.parametrize("max_pending", [50, 5000])
async def test_no_task_starves_beside_one_that_sends_huge_pipelines(valkey: ValkeyServer, max_pending: int) -> None:
    """On a real server: for each huge pipeline that is answered, every other task gets at least one answer."""
    turns: Counter[int] = Counter()
    options = RedisOptions.from_url(valkey.url, max_pending=max_pending, response_timeout=30, stall_after=30)

    async with Redis(options) as redis, trio.open_nursery() as nursery:

        async def small(number: int) -> None:
            while True:
                assert await redis.echo(str(number)) == str(number).encode()
                turns[number] += 1

        for number in range(20):
            nursery.start_soon(small, number)
        for _ in range(10):
            pipeline = redis.pipeline(transaction=False)
            for _ in range(2000):
                pipeline.echo("x")
            assert await pipeline.execute() == [b"x"] * 2000
        nursery.cancel_scope.cancel()
    assert min(turns[number] for number in range(20)) >= 9
