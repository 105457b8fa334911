"""Blocking, waking, expiry, idle times: in virtual time inside, in real time outside."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis import exceptions

from penstock.runtime.redis import Redis, classify
from penstock.runtime.redis.replies import reply_text

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import Server
    from trio.testing import MockClock


async def blocked(redis: Redis) -> None:
    """Wait until a client is blocked."""
    while not (await redis.info("clients"))["blocked_clients"]:
        await trio.sleep(0.001)


async def line_of(command: Awaitable[Any]) -> str:
    """The error line that the command brings."""
    with pytest.raises(exceptions.ResponseError) as caught:
        await command
    return reply_text(caught.value)


async def woken_by(redis: Redis, read: Awaitable[Any], disturb: Callable[[], Awaitable[Any]]) -> Any:
    """What a blocked read gives when something happens."""
    replies: list[Any] = []

    async def wait() -> None:
        try:
            replies.append(await read)
        except exceptions.RedisError as error:
            replies.append(reply_text(error))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await blocked(redis)
        await disturb()
    return replies[0]


async def test_a_blocking_read_lasts_as_long_as_it_says(redis: Redis, clock: MockClock | None) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)
    start = trio.current_time()
    assert await redis.xreadgroup("g", "c", {"s": ">"}, count=10, block=100) == []
    assert await redis.xread({"s": "$"}, block=50) == []
    assert await redis.blpop(["l"], timeout=0.05) is None
    assert trio.current_time() - start >= 0.19


async def test_an_entry_wakes_the_readers_of_its_stream_only(redis: Redis, clock: MockClock | None) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)

    async def add() -> None:
        await redis.xadd("other", {"n": 0}, id="1-0")
        await redis.xadd("s", {"n": 1}, id="1-0")

    reply = await woken_by(redis, redis.xreadgroup("g", "c", {"s": ">"}, block=5000), add)
    assert reply == [[b"s", [(b"1-0", {b"n": b"1"})]]]
    assert await redis.xpending("s", "g") == {
        "pending": 1,
        "min": b"1-0",
        "max": b"1-0",
        "consumers": [{"name": b"c", "pending": 1}],
    }
    reply = await woken_by(redis, redis.xread({"s": "$"}, block=5000), lambda: redis.xadd("s", {"n": 2}, id="2-0"))
    assert reply == [[b"s", [(b"2-0", {b"n": b"2"})]]]


async def test_a_push_wakes_the_one_who_has_waited_longest(redis: Redis, clock: MockClock | None) -> None:
    got: list[tuple[str, Any]] = []

    async def pop(name: str) -> None:
        got.append((name, await redis.blpop(["l"], timeout=5)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pop, "first")
        await blocked(redis)
        nursery.start_soon(pop, "second")
        while (await redis.info("clients"))["blocked_clients"] < 2:
            await trio.sleep(0.001)
        await redis.rpush("l", "a")
        while not got:
            await trio.sleep(0.001)
        await redis.rpush("l", "b")
    assert got == [("first", (b"l", b"a")), ("second", (b"l", b"b"))]


async def test_a_list_moves_when_its_source_is_there(redis: Redis, clock: MockClock | None) -> None:
    assert await woken_by(redis, redis.blmove("a", "b", 5, "LEFT", "RIGHT"), lambda: redis.rpush("a", "x")) == b"x"
    assert await redis.lrange("b", 0, -1) == [b"x"]


@pytest.mark.parametrize("how", ["destroy", "delete", "flush", "overwrite"])
async def test_a_blocked_reader_learns_that_its_group_is_gone(
    how: str, redis: Redis, server: Server, clock: MockClock | None
) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)
    ends: dict[str, Callable[[], Awaitable[Any]]] = {
        "destroy": lambda: redis.xgroup_destroy("s", "g"),
        "delete": lambda: redis.delete("s"),
        "flush": redis.flushall,
        "overwrite": lambda: redis.set("s", "v"),
    }
    reply = await woken_by(redis, redis.xreadgroup("g", "c", {"s": ">"}, block=5000), ends[how])
    no_group = "NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option"
    if server.version >= (7, 2):
        assert reply == (
            "WRONGTYPE Operation against a key holding the wrong kind of value" if how == "overwrite" else no_group
        )
    elif how == "destroy":
        assert reply == "NOGROUP the consumer group this client was blocked on no longer exists"
    else:
        assert reply == "UNBLOCKED the stream key no longer exists"


async def test_client_unblock(redis: Redis, clock: MockClock | None) -> None:
    async with redis.dedicated() as connection:
        number = await connection.client_id()
        for error, expected in ((True, "UNBLOCKED client unblocked via CLIENT UNBLOCK"), (False, None)):
            read = connection.execute_command("BLPOP", "l", 5)
            assert (
                await woken_by(redis, read, lambda error=error: redis.client_unblock(number, error=error)) == expected
            )  # type: ignore[misc]
        assert not await redis.client_unblock(number)


async def test_block_does_not_block_a_script(redis: Redis, server: Server, clock: MockClock | None) -> None:
    """Valkey reads on without it, Redis refuses."""
    script = "return redis.call('XREAD', 'BLOCK', '1000', 'STREAMS', KEYS[1], '$')"
    if server.is_valkey:
        assert await redis.eval(script, 1, "s") is None
    else:
        assert "XREAD command is not allowed with BLOCK option from scripts" in await line_of(
            redis.eval(script, 1, "s")
        )


async def test_keys_end_with_their_time(redis: Redis, clock: MockClock | None) -> None:
    await redis.set("k", "v", px=60_000)
    assert 0 < await redis.pttl("k") <= 60_000
    assert await redis.set("k", "v", px=40)
    now = int((await redis.time())[0])
    await redis.set("at", "v")
    assert await redis.expireat("at", now + 100)
    assert await redis.expiretime("at") == now + 100
    assert 90 <= await redis.ttl("at") <= 100
    while await redis.exists("k"):
        await trio.sleep(0.005)
    assert await redis.get("k") is None
    assert await redis.pexpireat("at", 1)
    assert not await redis.exists("at")


async def test_idle_time_and_delivery_count(redis: Redis, server: Server, clock: MockClock | None) -> None:
    """History reads and XAUTOCLAIM raise the count, XCLAIM JUSTID does not; IDLE and TIME set the clock."""

    async def look() -> tuple[bytes, int, int]:
        [pending] = await redis.xpending_range("s", "g", "-", "+", 10)
        return pending["consumer"], pending["time_since_delivered"], pending["times_delivered"]

    await redis.xgroup_create("s", "g", mkstream=True)
    await redis.xadd("s", {"n": 1}, id="1-0")
    await redis.xreadgroup("g", "c", {"s": ">"})
    await trio.sleep(0.06)
    assert (await look())[0] == b"c"
    assert (await look())[1] >= 50
    assert await redis.xautoclaim("s", "g", "d", 1_000_000) == [b"0-0", [], []]
    assert len((await redis.xautoclaim("s", "g", "d", 50))[1]) == 1
    assert (await look())[::2] == (b"d", 2)
    await redis.xreadgroup("g", "d", {"s": "0"})
    assert (await look())[2] == 3
    assert await redis.xclaim("s", "g", "e", 0, ["1-0"], justid=True, idle=600_000) == [b"1-0"]
    consumer, idle, count = await look()
    assert (consumer, count) == (b"e", 3)
    assert idle >= 600_000
    await redis.xclaim("s", "g", "e", 0, ["1-0"], retrycount=9, justid=True)
    _, idle, count = await look()
    assert 0 <= idle < 60_000
    assert count == 9
    await redis.xclaim("s", "g", "e", 0, ["1-0"], idle=-600_000, justid=True)  # a time to come: now
    assert 0 <= (await look())[1] < 60_000
    now = await redis.time()
    await redis.xclaim("s", "g", "e", 0, ["1-0"], time=now[0] * 1000 - 300_000, justid=True)
    assert (await look())[1] >= 299_000


async def test_who_looked_when(redis: Redis, server: Server, clock: MockClock | None) -> None:
    """From 7.2 on an attempt without success counts for `idle`, not for `inactive`, and makes the consumer."""
    await redis.xgroup_create("s", "g", mkstream=True)
    await redis.xreadgroup("g", "looked", {"s": ">"})
    found = await redis.xinfo_consumers("s", "g")
    if server.version < (7, 2):
        assert found == []
        return
    [looked] = found
    assert (looked["name"], looked["pending"], looked["inactive"]) == (b"looked", 0, -1)
    await trio.sleep(0.03)
    await redis.xadd("s", {"n": 1}, id="1-0")
    read = trio.current_time()
    await redis.xreadgroup("g", "looked", {"s": ">"})
    [looked] = await redis.xinfo_consumers("s", "g")
    assert 0 <= looked["inactive"] <= (trio.current_time() - read) * 1000 + 5  # servers count whole milliseconds
    await trio.sleep(0.03)
    await redis.xreadgroup("g", "looked", {"s": ">"})
    [looked] = await redis.xinfo_consumers("s", "g")
    assert looked["idle"] < looked["inactive"]


async def test_lag_and_what_trimming_hides(redis: Redis, clock: MockClock | None) -> None:
    for number in range(1, 7):
        await redis.xadd("s", {"n": number}, id=f"{number}-0")
    await redis.xgroup_create("s", "g", "0")
    await redis.xreadgroup("g", "c", {"s": ">"}, count=2)
    [group] = await redis.xinfo_groups("s")
    assert (group["entries-read"], group["lag"], group["last-delivered-id"]) == (2, 4, b"2-0")
    await redis.xtrim("s", maxlen=1, approximate=False)
    info = await redis.xinfo_stream("s")
    assert (info["entries-added"], info["length"], info["max-deleted-entry-id"]) == (6, 1, b"0-0")
    assert info["recorded-first-entry-id"] == b"6-0"
    await redis.xadd("s", {"n": 7}, id="7-0")
    await redis.xdel("s", "6-0")
    assert (await redis.xinfo_stream("s"))["max-deleted-entry-id"] == b"6-0"


@pytest.mark.parametrize("how", ["kill", "restart"])
async def test_a_lost_connection_and_a_new_one(how: str, redis: Redis, server: Server, clock: MockClock | None) -> None:
    """CLIENT KILL cuts; a restart keeps the data and forgets scripts."""
    await redis.set("k", "v")
    digest = await redis.script_load("return 7")
    assert await redis.evalsha(digest, 0) == 7
    if how == "kill":
        async with server.client() as other:
            assert await other.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes") >= 1
    else:
        server.crash_and_restart()
    with trio.fail_after(10):
        while True:
            try:
                assert await redis.get("k") == b"v"
                break
            except exceptions.ConnectionError as error:
                assert classify(error).name == "disconnected"  # noqa: PT017
            except exceptions.BusyLoadingError:
                await trio.sleep(0.01)
    if how == "restart":
        assert (await line_of(redis.evalsha(digest, 0))).startswith("NOSCRIPT No matching script.")


async def test_a_pause_holds_commands_back(redis: Redis, server: Server, clock: MockClock | None) -> None:
    await redis.set("k", "v")
    start = trio.current_time()
    await redis.client_pause(150, all=False)
    assert await redis.get("k") == b"v"
    await redis.set("k", "w")
    assert trio.current_time() - start >= 0.14
    await redis.client_pause(60_000, all=False)
    assert await redis.client_unpause()
    await redis.set("k", "x")
    start = trio.current_time()
    await redis.client_pause(150)  # all: also CLIENT UNPAUSE waits
    async with server.client() as other:
        assert await other.client_unpause()
        assert await other.get("k") == b"x"
    assert trio.current_time() - start >= 0.14
