"""The in-process Redis in virtual time: its clock, its blocking reads, its faults on order."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from redis import exceptions
from trio.testing import MockClock

from penstock.runtime.redis import NotSent, OutcomeUnknown, Redis, RedisOptions
from penstock.runtime.testing.redis import EPOCH, InProcessRedis, UnsupportedCommand


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
async def redis(server: InProcessRedis) -> AsyncIterator[Redis]:
    async with Redis(RedisOptions(retry_for=0), connect=server.connect) as redis:
        yield redis


async def test_entry_ids_and_expiry_follow_the_virtual_clock(autojump_clock: MockClock, redis: Redis) -> None:
    first = await redis.xadd("s", {"n": 1})
    assert first == b"%d-0" % (EPOCH * 1000)
    await redis.set("k", "v", ex=10)
    await trio.sleep(9.9)
    assert await redis.get("k") == b"v"
    assert await redis.xadd("s", {"n": 2}) == b"%d-0" % (EPOCH * 1000 + 9900)
    await trio.sleep(0.2)
    assert await redis.get("k") is None


async def test_a_blocking_read_takes_its_block_and_no_longer(autojump_clock: MockClock, redis: Redis) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)
    start = trio.current_time()
    assert await redis.xreadgroup("g", "c", {"s": ">"}, count=10, block=5000) == []
    assert trio.current_time() - start == pytest.approx(5)


async def test_a_blocking_read_wakes_with_the_entry(autojump_clock: MockClock, redis: Redis) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)

    async def add_later() -> None:
        await trio.sleep(2)
        await redis.xadd("s", {"n": 1})

    async with trio.open_nursery() as nursery:
        nursery.start_soon(add_later)
        start = trio.current_time()
        [[_, entries]] = await redis.xreadgroup("g", "c", {"s": ">"}, count=10, block=5000)
        assert trio.current_time() - start == pytest.approx(2)
    assert [fields for _, fields in entries] == [{b"n": b"1"}]
    assert (await redis.xpending("s", "g"))["pending"] == 1


async def test_idle_entries_can_be_claimed_when_their_time_has_come(autojump_clock: MockClock, redis: Redis) -> None:
    await redis.xgroup_create("s", "g", mkstream=True)
    await redis.xadd("s", {"n": 1})
    await redis.xreadgroup("g", "dead", {"s": ">"})
    await trio.sleep(59)
    assert (await redis.xautoclaim("s", "g", "alive", 60_000))[1] == []
    await trio.sleep(2)
    assert len((await redis.xautoclaim("s", "g", "alive", 60_000))[1]) == 1
    [pending] = await redis.xpending_range("s", "g", "-", "+", 10)
    assert (pending["consumer"], pending["times_delivered"]) == (b"alive", 2)


@pytest.mark.parametrize("how", ["destroy", "delete"])
async def test_a_blocked_reader_learns_of_a_lost_group(autojump_clock: MockClock, redis: Redis, how: str) -> None:
    """As a real server does it (test_redis_replies)."""
    await redis.xgroup_create("s", "g", mkstream=True)

    async def end() -> None:
        await trio.sleep(1)
        await (redis.xgroup_destroy("s", "g") if how == "destroy" else redis.delete("s"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        with pytest.raises(exceptions.ResponseError, match="NOGROUP"):
            await redis.xreadgroup("g", "c", {"s": ">"}, block=5000)


async def test_a_cancelled_read_leaves_no_waiter(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    with trio.move_on_after(1):
        await redis.blpop(["l"], timeout=60)
    await redis.rpush("l", "x")
    assert await redis.lrange("l", 0, -1) == [b"x"]


async def test_cuts_before_and_after_the_effect(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    """The caller cannot tell them apart; the data can. Earlier commands of the burst have their replies."""
    server.cut_after(2, "before", command="XADD")
    await redis.xadd("s", {"n": 1})
    with pytest.raises(OutcomeUnknown):
        await redis.xadd("s", {"n": 2})
    assert await redis.xlen("s") == 1
    server.cut_after(2, "after")
    replies: list[object] = []

    async def note(number: int) -> None:
        try:
            replies.append(await redis.rpush("l", number))
        except OutcomeUnknown:
            replies.append("unknown")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(note, 1)
        nursery.start_soon(note, 2)
    assert replies.count("unknown") == 1
    assert await redis.llen("l") == 2


async def test_an_error_on_order_runs_nothing(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    server.fail_next("XADD", "OOM command not allowed when used memory > 'maxmemory'.", times=2)
    for _ in range(2):
        with pytest.raises(exceptions.OutOfMemoryError):
            await redis.xadd("s", {"n": 1})
    await redis.xadd("s", {"n": 1})
    assert await redis.xlen("s") == 1
    server.fail_next("*", "LOADING Redis is loading the dataset in memory")
    with pytest.raises(exceptions.BusyLoadingError):
        await redis.ping()
    assert server.commands["XADD"] == 1


async def test_refused_connections_then_none(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    await redis.set("k", "v")
    server.refuse()
    while redis.statistics().connected:
        await trio.lowlevel.checkpoint()
    with pytest.raises(NotSent, match="Connection refused"):
        await redis.get("k")
    server.restore()
    assert await redis.get("k") == b"v"


async def test_a_frozen_server_goes_on(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    await redis.ping()
    server.hang()
    with trio.move_on_after(0.5) as scope:
        await redis.xadd("s", {"n": 1})
    assert scope.cancelled_caught
    server.resume()
    assert await redis.xlen("s") == 1


@pytest.mark.parametrize("words", [("MEMORY", "USAGE", "k"), ("OBJECT", "ENCODING", "k"), ("OBJECT", "FREQ", "k")])
async def test_what_it_cannot_do_right_ends_the_test(words: tuple[str, ...], autojump_clock: MockClock) -> None:
    async def use() -> None:
        async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
            await redis.xadd("s", {"n": 1})
            await redis.execute_command(*words)

    with pytest.raises(UnsupportedCommand, match="use a real server"):
        await use()


async def test_what_a_script_calls_is_held_to_the_same_list(autojump_clock: MockClock) -> None:
    async def use() -> None:
        async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
            await redis.eval("return redis.call('OBJECT', 'ENCODING', KEYS[1])", 1, "k")

    with pytest.raises(UnsupportedCommand):
        await use()


async def test_what_newer_servers_have_is_an_unknown_command(autojump_clock: MockClock, redis: Redis) -> None:
    with pytest.raises(exceptions.ResponseError, match="unknown command"):
        await redis.execute_command("XACKDEL", "s", "g", "IDS", 1, "1-0")
    assert (await redis.info())["cluster_enabled"] == 0


async def test_a_cut_after_the_effect_still_serves_the_others(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    got: list[object] = []

    async def pop() -> None:
        got.append(await redis.blpop(["l"], timeout=60))

    async with Redis(RedisOptions(retry_for=0), connect=server.connect) as other, trio.open_nursery() as nursery:
        nursery.start_soon(pop)
        await trio.sleep(1)
        server.cut_after(1, "after", command="RPUSH")
        with pytest.raises(OutcomeUnknown):
            await other.rpush("l", "x")
    assert got == [(b"l", b"x")]
    assert trio.current_time() == pytest.approx(1)
