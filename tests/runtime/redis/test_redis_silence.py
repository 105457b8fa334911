"""What is a silence of the server, and what is our own: in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.redis import Redis, RedisOptions, RedisStalled
from penstock.runtime.redis.silence import STEP, Silence
from penstock.runtime.redis.wire import Wire
from penstock.runtime.testing.redis import InProcessRedis

BUSY = 2.0
"""Seconds of a turn in which our event loop does something else."""


class Downlink(trio.abc.Stream):
    """What the server says comes while `door` is open, and no more than 1 kB each half second with `slow`."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.door = trio.Event()
        self.door.set()
        self.slow = False
        self._stream = stream
        self._next_at = trio.current_time()
        self._held: bytes | bytearray = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._held:
            self._held = await self._stream.receive_some(max_bytes)
        await self.door.wait()
        if not self.slow:
            data, self._held = self._held, b""
            return data
        await trio.sleep_until(self._next_at)
        self._next_at = trio.current_time() + 0.5
        data, self._held = self._held[:1000], self._held[1000:]
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


class Place:
    """A server, and the downlinks that lead from it."""

    def __init__(self, server: InProcessRedis) -> None:
        self.downlinks: list[Downlink] = []
        self.troubles: list[Exception] = []
        self._server = server

    async def connect(self) -> trio.abc.Stream:
        self.downlinks.append(Downlink(await self._server.connect()))
        return self.downlinks[-1]

    def client(self) -> Redis:
        return Redis(RedisOptions(retry_for=0), connect=self.connect, on_trouble=self.troubles.append)


Ask = Callable[[Any], Awaitable[Any]]


async def get(client: Any) -> Any:
    return await client.get("long")


async def read(client: Any) -> Any:
    """It blocks for less time than the turn takes that comes in between."""
    reply = await client.xread({"stream": "0"}, block=500)
    [[_, [[_, fields]]]] = reply.items() if isinstance(reply, dict) else reply
    return fields[b"data"]


@pytest.fixture
async def place(autojump_clock: MockClock) -> Any:
    async with InProcessRedis() as server:
        async with Redis(RedisOptions(), connect=server.connect) as redis:
            await redis.set("long", bytes(30_000))
            await redis.xadd("stream", {"data": bytes(30_000)})
        yield Place(server)


async def _asked(place: Place, kind: str, ask: Ask, meanwhile: Callable[[], Awaitable[None]]) -> Any:
    """The reply to one who asks over a connection that is there already."""
    replies = []

    async with place.client() as redis, redis.dedicated() as connection:
        client: Any = redis if kind == "shared" else connection
        await client.ping()

        async def one() -> None:
            replies.append(await ask(client))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await meanwhile()
    return replies[0]


KINDS = [("shared", get), ("dedicated", get), ("dedicated", read)]


@pytest.mark.parametrize(("kind", "ask"), KINDS)
async def test_a_reply_that_arrives_slowly_is_no_silence(
    place: Place, autojump_clock: MockClock, kind: str, ask: Ask
) -> None:
    start = trio.current_time()

    async def slow_down() -> None:
        await trio.lowlevel.checkpoint()
        place.downlinks[-1].slow = True

    reply = await _asked(place, kind, ask, slow_down)
    assert len(reply) == 30_000
    assert trio.current_time() - start > 2 * RedisOptions().response_timeout
    assert place.troubles == []


@pytest.mark.parametrize(("kind", "ask"), KINDS)
async def test_turns_of_our_own_loop_are_no_silence(
    place: Place, autojump_clock: MockClock, kind: str, ask: Ask
) -> None:
    async def be_busy() -> None:
        door = place.downlinks[-1].door = trio.Event()
        for _ in range(6):
            await trio.sleep(0.01)
            autojump_clock.jump(BUSY)
        await trio.sleep(0.01)
        assert place.troubles == []
        door.set()

    assert len(await _asked(place, kind, ask, be_busy)) == 30_000
    assert place.troubles == []


async def test_the_same_for_a_subscription(place: Place, autojump_clock: MockClock) -> None:
    async with place.client() as redis, redis.pubsub() as pubsub:
        await pubsub.subscribe("news")
        door = place.downlinks[-1].door = trio.Event()
        await trio.sleep(RedisOptions().response_timeout + 0.01)  # it asks for a sign of life now
        for _ in range(6):
            await trio.sleep(0.01)
            autojump_clock.jump(BUSY)
        door.set()
        await trio.sleep(1)
        assert place.troubles == []
        # Silent for good, that is found out all the same.
        place.downlinks[-1].door = trio.Event()
        with trio.fail_after(30 * BUSY):
            while not place.troubles:
                await trio.sleep(0.01)
                autojump_clock.jump(BUSY)
        assert isinstance(place.troubles[0], RedisStalled)


@pytest.mark.parametrize("kind", ["shared", "dedicated"])
async def test_a_silent_server_is_found_out_also_by_who_is_busy(
    place: Place, autojump_clock: MockClock, kind: str
) -> None:
    turns = 0

    async def be_busy() -> None:
        nonlocal turns
        place.downlinks[-1].door = trio.Event()
        while not place.troubles and turns < 50:
            await trio.sleep(0.01)
            autojump_clock.jump(BUSY)
            turns += 1

    with trio.CancelScope() as scope:

        async def until_told() -> None:
            await be_busy()
            scope.cancel()

        await _asked(place, kind, get, until_told)
    assert isinstance(place.troubles[0], RedisStalled)
    assert turns <= RedisOptions().stall_after / STEP + 2


async def test_a_step_counts_for_no_more_than_it_was_to_take(autojump_clock: MockClock) -> None:
    silence = Silence()
    for _ in range(7):
        autojump_clock.jump(BUSY)
        assert not silence.exceeds(0.75)
    assert silence.next_look(0.75) == pytest.approx(trio.current_time() + 0.05)
    await trio.sleep(0.05)
    assert silence.exceeds(0.75)
    turn = silence.turn
    silence.end(trio.current_time() + 5)
    assert silence.turn != turn
    await trio.sleep(5)
    assert not silence.exceeds(0.1)
    assert silence.next_look(0.75) == pytest.approx(trio.current_time() + STEP)


async def test_a_wire_that_somebody_has_closed_has_news_for_who_reads_it() -> None:
    ours, theirs = trio.socket.socketpair()
    wire = Wire(trio.SocketStream(ours), decode=False)
    assert not wire.has_news()
    await theirs.send(b"+")
    assert wire.has_news()
    assert await wire.read() == b"+"
    assert not wire.has_news()
    await wire.aclose()
    assert wire.has_news()
    with pytest.raises(trio.ClosedResourceError):
        await wire.receive()
    theirs.close()
