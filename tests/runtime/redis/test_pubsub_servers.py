"""Subscriptions on real servers: killed, frozen, cutting slow readers, revoking rights; Valkey 9 and Debian's Redis."""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.exceptions
import trio

from penstock.runtime.redis import Gap, Message, PubSub, Redis, RedisOptions, RedisStalled
from penstock.runtime.testing import Cut

if TYPE_CHECKING:
    from conftest import ValkeyServer

DEBIAN = Path("/usr/bin/redis-server")


@pytest.fixture(params=[2, 3], ids=["RESP2", "RESP3"])
async def client(valkey: ValkeyServer, request: pytest.FixtureRequest) -> AsyncIterator[Redis]:
    options = RedisOptions.from_url(valkey.url, protocol=request.param, decode_responses=True, response_timeout=2)
    async with Redis(options) as client:
        yield client


@pytest.fixture
async def pubsub(client: Redis) -> AsyncIterator[PubSub]:
    async with client.pubsub() as pubsub:
        yield pubsub


def message(channel: str, data: str) -> Message:
    return Message(kind="message", channel=channel, data=data)


async def next_gap(pubsub: PubSub, limit: float = 20) -> Gap:
    """The next gap; what comes before it is passed over."""
    with trio.fail_after(limit):
        async for item in pubsub:
            if isinstance(item, Gap):
                return item
    raise AssertionError


async def until(condition: Callable[[], Any], limit: float = 10) -> None:
    """Another process has no event to wait for."""
    with trio.fail_after(limit):
        while not await condition():
            await trio.sleep(0.02)


async def test_all_kinds_of_subscriptions(client: Redis, pubsub: PubSub) -> None:
    await pubsub.subscribe("a", "b")
    await pubsub.psubscribe("x*")
    await pubsub.ssubscribe("s")
    await client.publish("a", "1")
    await client.publish("xy", "2")
    await client.spublish("s", "3")
    assert [await pubsub.get(5) for _ in range(3)] == [
        message("a", "1"),
        Message(kind="pmessage", channel="xy", pattern="x*", data="2"),
        Message(kind="smessage", channel="s", data="3"),
    ]
    await pubsub.unsubscribe("b")
    await pubsub.punsubscribe()
    await pubsub.sunsubscribe("s")
    assert await client.pubsub_channels() == ["a"]
    assert await client.pubsub_numpat() == 0
    assert await client.pubsub_shardchannels() == []


@pytest.mark.skipif(not DEBIAN.exists(), reason="Debian's redis-server is not installed")
@pytest.mark.parametrize("protocol", [2, 3])
async def test_the_same_on_redis_7(tmp_path: Path, protocol: int) -> None:
    from penstock.runtime.testing.servers import LocalNode, free_port

    node = LocalNode(str(DEBIAN), free_port(), tmp_path, ["--save", ""])
    node.start()
    try:
        options = RedisOptions.from_url(node.url, protocol=protocol, decode_responses=True)
        async with Redis(options) as client, client.pubsub() as pubsub:
            await test_all_kinds_of_subscriptions(client, pubsub)
            await trio.to_thread.run_sync(node.kill)
            await trio.to_thread.run_sync(node.start)
            assert (await next_gap(pubsub)).channels == ("a",)
            await client.publish("a", "back")
            assert await pubsub.get(5) == message("a", "back")
    finally:
        node.kill()


async def test_a_killed_server_is_a_gap(make_valkey: Callable[..., ValkeyServer]) -> None:
    server = make_valkey()
    async with Redis(server.options) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        await pubsub.ssubscribe("s")
        await client.publish("a", "before")

        async def arrived() -> bool:
            return pubsub._inbox._bytes > 0

        await until(arrived)
        killed = trio.current_time()
        await trio.to_thread.run_sync(server.kill)
        await trio.to_thread.run_sync(server.start)
        assert await pubsub.get(20) == Message(kind="message", channel=b"a", data=b"before")
        gap = await next_gap(pubsub)
        assert gap.lost_at <= killed < gap.back_at
        assert gap.channels == (b"a", b"s")
        assert await client.publish("a", "after") == 1
        assert await pubsub.get(5) == Message(kind="message", channel=b"a", data=b"after")


async def test_a_killed_connection_is_a_gap(client: Redis, pubsub: PubSub) -> None:
    await pubsub.subscribe("a")
    assert await client.client_kill_filter(_type="pubsub") == 1
    assert (await next_gap(pubsub)).channels == ("a",)
    await client.publish("a", "after")
    assert await pubsub.get(5) == message("a", "after")


async def test_a_frozen_server_is_a_gap_and_no_hang(valkey: ValkeyServer) -> None:
    troubles: list[Exception] = []
    options = RedisOptions.from_url(valkey.url, response_timeout=0.5, stall_after=0.2)
    async with Redis(options, on_trouble=troubles.append) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("a")
        troubles.clear()  # these limits are short for a server on a busy machine
        valkey.signal(signal.SIGSTOP)
        try:

            async def told() -> bool:
                return len(troubles) >= 2

            await until(told)
        finally:
            valkey.signal(signal.SIGCONT)
        assert [type(each) for each in troubles[:2]] == [RedisStalled, RedisStalled]
        assert (await next_gap(pubsub)).reason == "no byte for 0.5 s"

        async def heard() -> bool:
            await other.publish("a", "after")
            return await pubsub.get(0.1) == Message(kind="message", channel=b"a", data=b"after")

        async with Redis(valkey.options) as other:
            await until(heard)


async def test_a_slow_reader_that_the_server_cut_is_told(make_valkey: Callable[..., ValkeyServer]) -> None:
    """60 MB for a consumer that takes nothing: what it holds is bounded, the rest is a gap that names the limit."""
    server = make_valkey("--client-output-buffer-limit", "pubsub 4mb 2mb 5")
    async with Redis(server.options) as client, client.pubsub(buffer_bytes=200_000) as pubsub:
        await pubsub.subscribe("a")
        reached = 1
        for number in range(1000):
            pipeline = client.pipeline(transaction=False)
            for _ in range(6):
                pipeline.publish("a", b"%06d" % number + b"." * 10_000)
            reached = (await pipeline.execute())[-1]
            if not reached:
                break
        assert reached == 0, "the server did not cut the connection"
        cut = trio.current_time()
        assert pubsub._inbox._bytes < 500_000
        numbers: list[int] = []
        with trio.fail_after(20):
            async for item in pubsub:
                if isinstance(item, Gap):
                    break
                numbers.append(int(bytes(item.data)[:6]))
        assert numbers == sorted(numbers)
        assert numbers[0] == 0
        assert "client-output-buffer-limit" in item.reason
        assert item.lost_at < cut < item.back_at
        await client.publish("a", "after")
        assert await pubsub.get(5) == Message(kind="message", channel=b"a", data=b"after")


async def test_a_channel_that_the_acl_forbids(valkey: ValkeyServer) -> None:
    """Refused by subscribe(); the others stay. A right that is revoked later is told by the stream."""
    rules = ["on", "nopass", "+@all", "allkeys", "resetchannels", "&public:*", "&other:*"]
    async with Redis(valkey.options) as admin:
        await admin.execute_command("ACL", "SETUSER", "reader", *rules)
        options = RedisOptions.from_url(valkey.url, username="reader", password="any", decode_responses=True)
        async with Redis(options) as client, client.pubsub() as pubsub:
            await pubsub.subscribe("public:1", "other:1")
            with pytest.raises(redis.exceptions.NoPermissionError):
                await pubsub.subscribe("public:2", "secret")
            assert pubsub.channels == {"public:1", "other:1"}
            await admin.publish("public:1", "1")
            assert await pubsub.get(5) == message("public:1", "1")

            await admin.execute_command("ACL", "SETUSER", "reader", "resetchannels", "&public:*")
            assert (await next_gap(pubsub)).channels == ("public:1",)
            with pytest.raises(redis.exceptions.NoPermissionError) as caught:
                await pubsub.get(5)
            assert caught.value.__notes__ == ["channel other:1 is not subscribed to any more"]
            assert pubsub.channels == {"public:1"}
            await admin.publish("public:1", "2")
            assert await pubsub.get(5) == message("public:1", "2")


async def test_a_busy_server_is_waited_for(make_valkey: Callable[..., ValkeyServer]) -> None:
    """A script that ends when it is killed; SUBSCRIBE is refused with BUSY meanwhile."""
    server = make_valkey("--busy-reply-threshold", "50")
    async with Redis(server.options) as other, Redis(RedisOptions(path=str(server.path))) as client:
        async with client.pubsub() as pubsub, trio.open_nursery() as nursery:
            await pubsub.subscribe("a")

            async def work() -> None:
                with pytest.raises(redis.exceptions.ResponseError, match="killed"):
                    await other.eval("while true do end", 0)

            nursery.start_soon(work)

            async def busy() -> bool:
                async with Redis(server.options) as impatient:
                    try:
                        await impatient.ping()
                    except redis.exceptions.RedisError:
                        return True
                    return False

            await until(busy)
            subscribed = trio.Event()

            async def subscribe() -> None:
                await pubsub.subscribe("b")
                subscribed.set()

            nursery.start_soon(subscribe)
            await trio.sleep(0.5)  # for a refusal that is waited out there is no event
            assert not subscribed.is_set()
            async with Redis(server.options) as killer:
                await killer.script_kill()
            with trio.fail_after(20):
                await subscribed.wait()
            assert dict(await client.pubsub_numsub("a", "b")) == {b"a": 1, b"b": 1}
            assert await pubsub.get(0) is None


async def test_every_call_may_be_cancelled_anywhere_on_a_real_server(client: Redis) -> None:
    """At the n-th step, for every n: wishes and server agree, over the first connection."""
    points, was_cut = 0, True
    while was_cut:
        points += 1
        cut = Cut(points)
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("keep", "leave")
            with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                await pubsub.subscribe("new", "other")
                await pubsub.unsubscribe("leave")
                await pubsub.get(0.01)
            was_cut = cut.point is not None
            assert ("new" in pubsub.channels) == ("other" in pubsub.channels)

            async def agree(pubsub: PubSub = pubsub) -> bool:
                return {*await client.pubsub_channels()} == pubsub.channels

            await until(agree)
            await client.publish("keep", str(points))
            assert await pubsub.get(5) == message("keep", str(points))
        await until(lambda: _is_deserted(client))
    assert points > 5


async def _is_deserted(client: Redis) -> bool:
    return not await client.pubsub_channels()


async def test_many_messages_come_in_order(client: Redis, pubsub: PubSub) -> None:
    await pubsub.subscribe("a")

    async def publish() -> None:
        for first in range(0, 20_000, 500):
            pipeline = client.pipeline(transaction=False)
            for number in range(first, first + 500):
                pipeline.publish("a", number)
            await pipeline.execute()

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        for number in range(20_000):
            assert await pubsub.get() == message("a", str(number))
    print(f"{20_000 / (time.perf_counter() - start):.0f} messages/s")
