"""The trimmer: lengths and ages between the daily runs on a real Valkey, and a full Redis in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
import trio
from attrs import frozen

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context
from penstock.actors.settings import ActorSettings, HealthSettings, RetentionSettings
from penstock.actors.system import Stream, System
from penstock.actors.trimming import trim
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import Redis
from penstock.runtime.testing.redis import EPOCH

KEY, GROUP = "orders", "payment"
NEVER = datetime.fromtimestamp(0, UTC)


@pytest.fixture
async def redis(redis: Redis) -> Redis:
    """One entry in each node, so that trimming is exact."""
    await redis.config_set("stream-node-max-entries", 1)
    return redis


async def _fill(redis: Redis, count: int, *, acknowledge: int, key: str = KEY) -> Stream:
    stream = Stream(KEY)
    stream.group(GROUP)
    await redis.xgroup_create(key, GROUP, id="0", mkstream=True)
    async with redis.pipeline(transaction=False) as pipeline:
        for number in range(1, count + 1):
            pipeline.xadd(key, {"n": number}, id=f"{number}-0")
        await pipeline.execute()
    if acknowledge:
        await redis.xreadgroup(GROUP, "c", {key: ">"}, count=acknowledge)
        await redis.xack(key, GROUP, *[f"{number}-0" for number in range(1, acknowledge + 1)])
    return stream


async def test_a_stream_is_kept_to_its_most(redis: Redis) -> None:
    stream = await _fill(redis, 5000, acknowledge=5000)
    report = await trim(redis, stream, NEVER, most=1200)
    assert report.trimmed == 3800
    assert await redis.xlen(KEY) == 1200


async def test_what_is_too_many_and_wanted_stays(redis: Redis) -> None:
    stream = await _fill(redis, 3000, acknowledge=700)
    report = await trim(redis, stream, NEVER, most=1000)
    assert (report.trimmed, report.first_id) == (700, "701-0")
    assert [held.group for held in report.held_back] == [GROUP]


async def test_a_stream_below_its_most_keeps_all(redis: Redis) -> None:
    stream = await _fill(redis, 100, acknowledge=100)
    assert (await trim(redis, stream, NEVER, most=100)).trimmed == 0


async def test_a_partition_is_trimmed_for_itself(redis: Redis) -> None:
    stream = await _fill(redis, 50, acknowledge=50, key="{orders:1}")
    report = await trim(redis, stream, NEVER, key="{orders:1}", most=20)
    assert (report.stream, report.trimmed) == ("{orders:1}", 30)


# The actor


@event("ORDER")
@frozen
class Order:
    number: int


def _system(**options: Any) -> System:
    system = System("shop")
    stream = system.stream(KEY, events=[Order], **options)

    @stream.on(Order, group=GROUP)
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])

    return system


@asynccontextmanager
async def _running(**retention: Any) -> AsyncIterator[VirtualDeployment[Any]]:
    # Real nodes hold 100 entries: fewer are never trimmed one by one.
    settings = ActorSettings(
        retention=RetentionSettings(**retention), health=HealthSettings(interval_up=10.0, observe_every=3600.0)
    )
    async with virtual(_system(), settings=settings) as app:
        yield app


async def _length(app: VirtualDeployment[Any]) -> int:
    return int(await app.deployment.client().xlen(KEY))


async def test_entries_go_when_they_are_old_and_done_with(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(keep_entries_for=60.0, trim_every=5.0) as app:
        await app.publish(KEY, *[Order(number) for number in range(250)])
        await app.settled()
        await trio.sleep(30)
        assert await _length(app) == 250
        await trio.sleep(50)
        assert await _length(app) <= 50


async def test_without_a_time_of_their_own_entries_wait_for_the_daily_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _running(trim_every=60.0) as app:
        client = app.deployment.client()
        old = int((EPOCH - 100 * 86_400) * 1000)
        declared = app.deployment.system.streams[KEY]
        for number in range(150):
            fields = declared.encode(Envelope(event_type="ORDER", data={"number": number}))
            await client.xadd(KEY, fields, id=f"{old}-{number + 1}")
        await app.settled()
        await trio.sleep(130)
        assert await _length(app) == 150


async def test_a_full_redis_is_cleared_of_what_everybody_is_done_with(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _running(trim_every=3600.0) as app:
        await app.publish(KEY, *[Order(number) for number in range(250)])
        await app.settled()
        app.redis.answer("out-of-memory")
        app.deployment.gates["redis-memory"].shut("full")
        await trio.sleep(1)
        assert await _length(app) <= 50
        app.redis.heal()
        with trio.fail_after(30):
            await app.deployment.gates["redis-memory"].wait_open()


async def test_what_a_group_has_not_read_stays_though_redis_is_full(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(trim_every=3600.0) as app:
        await app.publish(KEY, Order(0))
        await app.settled()
        app.lose_database("away")  # nobody reads
        await trio.sleep(5)
        for number in range(250):
            await app.deployment.client().xadd(KEY, {"n": number})
        app.deployment.gates["redis-memory"].shut("full")
        await trio.sleep(30)
        assert await _length(app) >= 250


async def test_a_dry_run_trims_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(keep_entries_for=1.0, trim_every=1.0, dry_run=True) as app:
        await app.publish(KEY, *[Order(number) for number in range(250)])
        await app.settled()
        await trio.sleep(60)
        assert await _length(app) == 250
