"""Faults of the network and of the process of the in-process Redis."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
from redis import exceptions
from trio.testing import MockClock

from penstock.runtime.redis import NotSent, OutcomeUnknown, Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
async def redis(server: InProcessRedis) -> AsyncIterator[Redis]:
    async with Redis(RedisOptions(retry_for=0), connect=server.connect) as redis:
        yield redis


async def until_disconnected(redis: Redis) -> None:
    while redis.statistics().connected:
        await trio.lowlevel.checkpoint()


async def test_a_slow_command_holds_up_its_connection_only(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    server.delay(2.0, "INCRBY")
    async with Redis(RedisOptions(), connect=server.connect) as other:
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(redis.incr, "n")
            await trio.sleep(0.1)
            await other.get("n")
            assert trio.current_time() - start == pytest.approx(0.1)
            await redis.get("n")
            assert trio.current_time() - start == pytest.approx(2.0)
    server.delay(0, "INCRBY")
    start = trio.current_time()
    await redis.incr("n")
    assert trio.current_time() == start


async def test_lost_replies_are_lost_on_old_connections(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    await redis.ping()
    server.drop_replies()
    with pytest.raises(OutcomeUnknown):
        await redis.incr("n")
    assert await redis.get("n") == b"1"


async def test_a_black_hole_runs_nothing(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    await redis.ping()
    server.black_hole()
    with pytest.raises(OutcomeUnknown):
        await redis.incr("n")
    assert await redis.get("n") is None


async def test_one_client_alone_can_be_hit(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    async with Redis(RedisOptions(retry_for=0), connect=server.connect) as other:
        number = await other.client_id()
        await redis.ping()
        server.black_hole(number)
        with pytest.raises(OutcomeUnknown):
            await other.incr("n")
        assert await redis.incr("n") == 1
    assert redis.statistics().reconnects == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("protocol", [2, 3])
async def test_replies_in_crumbs_find_their_callers(
    seed: int, protocol: int, autojump_clock: MockClock, server: InProcessRedis
) -> None:
    server.trickle(seed=seed, most=20)
    async with Redis(RedisOptions(protocol=protocol), connect=server.connect) as redis:
        seen: dict[int, bytes] = {}

        async def echo(number: int) -> None:
            seen[number] = await redis.echo("x" * number)

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(echo, number)
        assert seen == {number: b"x" * number for number in range(40)}


async def test_a_restart_forgets_scripts_and_keeps_data(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    await redis.set("k", "v")
    digest = await redis.script_load("return 1")
    server.restart(loading=0.5)
    await until_disconnected(redis)
    with pytest.raises(exceptions.BusyLoadingError):
        await redis.get("k")
    await trio.sleep(0.5)
    assert await redis.get("k") == b"v"
    with pytest.raises(exceptions.NoScriptError):
        await redis.evalsha(digest, 0)


async def test_lost_data_are_lost(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    await redis.set("k", "v")
    server.refuse()
    await until_disconnected(redis)
    with pytest.raises(NotSent):
        await redis.get("k")
    server.lose_data()
    assert await redis.dbsize() == 0


async def test_a_blocked_reader_is_cut_by_a_restart(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    async def cut() -> None:
        await trio.sleep(1)
        server.restart()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cut)
        with pytest.raises(OutcomeUnknown):
            await redis.blpop(["l"], timeout=60)
    assert trio.current_time() == pytest.approx(1)
    await redis.rpush("l", "x")
    assert await redis.llen("l") == 1


async def test_healing_takes_back_everything(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    await redis.ping()
    server.hang()
    server.delay(5.0)
    server.trickle()
    server.answer("loading")
    server.fail_next("*", "ERR no", times=9)
    server.cut_after(1)
    server.heal()
    start = trio.current_time()
    assert await redis.incr("n") == 1
    assert trio.current_time() == start
