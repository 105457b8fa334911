"""What is sent again, how soon, and for how long: the rule as a table, then the client in virtual time."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.exceptions
import trio
import trio.testing
from redis.commands import READ_COMMANDS
from trio.testing import MockClock

from penstock.runtime.redis import (
    REPLIES,
    NotSent,
    OutcomeUnknown,
    Redis,
    RedisClosed,
    RedisOptions,
    RedisStalled,
    _compat,
)
from penstock.runtime.redis.retry import _PASSING, READS, Retry, may_resend
from penstock.runtime.testing.redis import InProcessRedis

NOWHERE = "redis://nowhere:6379/0"


def not_sent(cause: BaseException | None = None) -> NotSent:
    error = NotSent(NOWHERE, "not sent: x")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "any_command", "read"),
    [
        pytest.param(not_sent(), True, True, id="never sent"),
        pytest.param(not_sent(ConnectionRefusedError()), True, True, id="refused"),
        pytest.param(not_sent(_compat.reply_error("LOADING x")), True, True, id="turned away, for a while"),
        pytest.param(not_sent(_compat.reply_error("ERR max number of clients reached")), True, True, id="full"),
        pytest.param(not_sent(_compat.reply_error("WRONGPASS x")), False, False, id="wrong password"),
        pytest.param(not_sent(_compat.reply_error("NOAUTH x")), False, False, id="no password"),
        pytest.param(not_sent(_compat.reply_error("NOPERM x")), False, False, id="no right to the database"),
        pytest.param(not_sent(ssl.SSLCertVerificationError()), False, False, id="wrong certificate"),
        pytest.param(RedisClosed(NOWHERE, "closed"), False, False, id="closed"),
        pytest.param(OutcomeUnknown(NOWHERE, "x"), False, True, id="no reply"),
        pytest.param(RedisStalled(NOWHERE, "x"), False, True, id="no reply in time"),
        pytest.param(_compat.reply_error("LOADING x"), True, True, id="loading"),
        pytest.param(_compat.reply_error("BUSY Redis is busy running a script"), True, True, id="busy"),
        pytest.param(_compat.reply_error("CLUSTERDOWN The cluster is down"), True, True, id="cluster down"),
        pytest.param(_compat.reply_error("CLUSTERDOWN Hash slot not served"), True, True, id="slot not served"),
        pytest.param(_compat.reply_error("TRYAGAIN x"), True, True, id="try again"),
        pytest.param(_compat.reply_error("MASTERDOWN x"), True, True, id="master down"),
        pytest.param(_compat.reply_error("READONLY x"), True, True, id="demoted"),
        pytest.param(_compat.reply_error("UNBLOCKED force unblock from x"), True, True, id="demoted while blocked"),
        pytest.param(_compat.reply_error("UNBLOCKED client unblocked via"), False, False, id="woken on purpose"),
        pytest.param(_compat.reply_error("BUSYGROUP x"), False, False, id="group exists"),
        pytest.param(_compat.reply_error("OOM x"), False, False, id="full memory"),
        pytest.param(_compat.reply_error("MISCONF x"), False, False, id="disk error"),
        pytest.param(_compat.reply_error("WRONGTYPE x"), False, False, id="wrong type"),
        pytest.param(_compat.reply_error("NOSCRIPT x"), False, False, id="unknown script"),
        pytest.param(_compat.reply_error("ERR x"), False, False, id="any other reply"),
        pytest.param(redis.exceptions.DataError("x"), False, False, id="our own mistake"),
        pytest.param(ZeroDivisionError(), False, False, id="no error of Redis"),
    ],
)
def test_what_may_be_sent_again(error: Exception, any_command: bool, read: bool) -> None:
    assert may_resend(error, reads=False) is any_command
    assert may_resend(error, reads=True) is read


@pytest.mark.parametrize(
    ("line", "servers"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("LOADING Valkey is loading the dataset in memory", True),
        ("BUSY Valkey is busy running a script. You can only call SCRIPT KILL", True),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("BUSY the lock is held", False),
        ("TRYAGAIN later", False),
        ("LOADING the mill", False),
    ],
)
def test_a_scripts_own_errors_are_not_taken_for_the_servers(line: str, servers: bool) -> None:
    """It may have written before it answered so."""
    assert may_resend(_compat.reply_error(line), reads=False, scripted=True) is servers
    assert may_resend(_compat.reply_error(line), reads=False)


async def test_a_script_that_answers_with_an_error_of_its_own_runs_once(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    text = "redis.call('INCR', KEYS[1]); return redis.error_reply('BUSY the lock is held')"
    with pytest.raises(redis.exceptions.ResponseError, match="the lock is held"):
        await redis_.eval(text, 1, "n")
    with pytest.raises(redis.exceptions.ResponseError, match="the lock is held"):
        await redis_.pipeline(transaction=False).eval(text, 1, "n").execute()  # type: ignore[attr-defined]
    async with redis_.dedicated() as connection:
        with pytest.raises(redis.exceptions.ResponseError, match="the lock is held"):
            await connection.eval(text, 1, "n")
    assert await redis_.get("n") == b"3"


def test_the_passing_replies_are_rows_of_the_table() -> None:
    assert {row.name for row in REPLIES} >= _PASSING
    assert {"loading", "busy-script", "cluster-down", "try-again", "too-many-clients"} <= _PASSING


def test_what_only_reads() -> None:
    """redis-py's list and a few of our own; nothing that books, locks, moves or runs code."""
    assert READS >= READ_COMMANDS
    assert {"GET", "XREAD", "XRANGE", "XINFO STREAM", "PING"} <= READS
    writing = {"XREADGROUP", "XAUTOCLAIM", "XCLAIM", "XADD", "XACK", "EVAL", "EVALSHA", "FCALL", "INCRBY", "SET", "DEL"}
    assert not READS & (writing | {"GETDEL", "GETEX", "GETSET", "SPOP", "BLPOP", "SORT", "PUBLISH", "BITFIELD"})


def test_waits_double_up_to_a_cap_and_end_with_the_time() -> None:
    retry = Retry(3.0, True, lambda: 1.0)
    now, waits = 0.0, []
    while (wait := retry.wait_after(not_sent(), now)) is not None:
        waits.append(wait)
        now += wait
    assert waits[:6] == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5]
    assert max(waits) == 0.5
    assert now == pytest.approx(3.0)  # the last attempt begins when the time is over, and not later


def test_without_time_nothing_is_tried_again() -> None:
    assert Retry(5.0, True, lambda: 0.5).wait_after(not_sent(), 5.0) is None


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
async def redis_(server: InProcessRedis) -> AsyncIterator[Redis]:
    async with Redis(RedisOptions(), connect=server.connect) as client:
        yield client


async def while_refused(server: InProcessRedis, seconds: float, command: Awaitable[Any]) -> Any:
    """Run a command that is called while nobody listens; the server comes back meanwhile."""
    server.refuse()
    await trio.testing.wait_all_tasks_blocked()  # the client has seen it: what it is given now is certainly not sent

    async def come_back() -> None:
        await trio.sleep(seconds)
        server.restore()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        return await command


async def test_a_write_that_was_never_sent_outlives_a_restart(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    await redis_.ping()
    start = trio.current_time()
    assert await while_refused(server, 1.0, redis_.incr("n")) == 1
    assert 1.0 <= trio.current_time() - start < 3.5
    pipeline = redis_.pipeline()
    pipeline.incr("n")
    pipeline.xadd("s", {"a": 1})
    assert (await while_refused(server, 1.0, pipeline.execute()))[0] == 2
    async with redis_.dedicated() as connection:
        assert await while_refused(server, 1.0, connection.incr("n")) == 3


async def test_when_the_time_is_over_the_last_error_is_raised_as_it_is(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    server.refuse()
    start = trio.current_time()
    with pytest.raises(NotSent, match="Connection refused"):
        await redis_.incr("n")
    assert 2.0 < trio.current_time() - start < 5.1  # 3 s, and the backoff of an attempt that had begun
    with pytest.raises(NotSent, match="Connection refused"):
        await redis_.pipeline().ping().execute()  # type: ignore[attr-defined]


async def test_a_read_whose_reply_was_lost_is_sent_again_and_a_write_is_not(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    await redis_.set("n", 1)
    server.cut_after(1, command="GET")
    assert await redis_.get("n") == b"1"
    assert server.commands["GET"] == 2
    server.cut_after(1, command="INCRBY")
    with pytest.raises(OutcomeUnknown):
        await redis_.incr("n")
    assert await redis_.get("n") == b"2"  # once


async def test_a_burst_of_reads_is_sent_again_as_a_whole_and_one_with_a_write_is_not(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    for transaction in (False, True):
        await redis_.set("n", 1)
        reads = redis_.pipeline(transaction=transaction)
        reads.get("n")
        reads.strlen("n")
        server.cut_after(1, command="STRLEN")
        assert await reads.execute() == [b"1", 1]
        writes = redis_.pipeline(transaction=transaction)
        writes.incr("n")
        writes.get("n")
        server.cut_after(1, command="INCRBY")
        with pytest.raises(OutcomeUnknown):
            await writes.execute()


@pytest.mark.parametrize("line", ["LOADING Redis is loading", "BUSY Redis is busy", "MASTERDOWN x", "TRYAGAIN x"])
async def test_any_command_waits_for_a_server_that_refuses_for_a_while(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis, line: str
) -> None:
    server.fail_next("XADD", line, times=3)
    await redis_.xadd("s", {"a": 1})
    assert server.commands["XADD"] == 1
    server.fail_next("RPUSH", line, times=2)
    burst = redis_.pipeline(transaction=False)
    burst.rpush("l", 1)
    burst.rpush("l", 2)
    assert await burst.execute() == [1, 2]
    async with redis_.dedicated() as connection:
        server.fail_next("XADD", line)
        await connection.xadd("s", {"a": 1})
    assert await redis_.xlen("s") == 2


async def test_a_burst_of_which_a_part_ran_is_not_sent_again(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    server.fail_next("RPUSH", "LOADING x")
    burst = redis_.pipeline(transaction=False)
    burst.incr("n")
    burst.rpush("l", 1)
    one, refused = await burst.execute(raise_on_error=False)
    assert one == 1
    assert isinstance(refused, redis.exceptions.BusyLoadingError)
    assert await redis_.get("n") == b"1"


async def test_a_burst_that_stays_refused_gives_its_errors_in_their_places(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    server.fail_next("INCRBY", "LOADING x", times=1000)
    burst = redis_.pipeline(transaction=False)
    burst.incr("n")
    burst.incr("n")
    results = await burst.execute(raise_on_error=False)
    assert [type(result) for result in results] == [redis.exceptions.BusyLoadingError] * 2


async def test_blocking_reads_are_sent_again_and_group_reads_are_not(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    entry = await redis_.xadd("s", {"a": 1})
    await redis_.xgroup_create("s", "g", "0")
    server.cut_after(1, command="XREAD")
    assert await redis_.xread({"s": "0"}, block=1000) == [[b"s", [(entry, {b"a": b"1"})]]]
    server.cut_after(1, command="XREADGROUP")
    with pytest.raises(OutcomeUnknown):
        await redis_.xreadgroup("g", "c", {"s": ">"}, block=1000)
    assert (await redis_.xpending("s", "g"))["pending"] == 1  # booked: that is why


async def test_a_demoted_master_is_left_for_another_connection(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    """READONLY: the shared connection is replaced when its other callers have their replies; a dedicated one, too."""
    await redis_.ping()
    server.fail_next("SET", "READONLY You can't write against a read only replica.")
    results: list[object] = []

    async def run(command: Callable[..., Awaitable[Any]], *args: object) -> None:
        results.append(await command(*args))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, redis_.set, "k", "v")
        nursery.start_soon(run, redis_.echo, "x")
    assert sorted(map(str, results)) == ["True", "b'x'"]
    assert redis_.statistics().reconnects == 1
    assert server.commands["HELLO"] == 2
    server.fail_next("SET", "READONLY x")
    burst = redis_.pipeline(transaction=False)
    burst.set("k", "w")
    assert await burst.execute() == [True]
    assert redis_.statistics().reconnects == 2
    async with redis_.dedicated() as connection:
        await connection.ping()
        server.fail_next("SET", "READONLY x")
        assert await connection.set("k", "v")
    assert server.commands["HELLO"] == 5


async def test_a_caller_may_leave_between_two_attempts(
    autojump_clock: MockClock, server: InProcessRedis, redis_: Redis
) -> None:
    server.refuse()
    start = trio.current_time()
    with trio.move_on_after(0.7) as scope:
        await redis_.ping()
    assert scope.cancelled_caught
    assert trio.current_time() - start == pytest.approx(0.7)
    server.restore()
    assert await redis_.echo("x") == b"x"


async def test_who_is_still_trying_when_the_client_closes_is_told_so(
    autojump_clock: MockClock, server: InProcessRedis
) -> None:
    server.refuse()
    async with trio.open_nursery() as nursery:
        async with Redis(RedisOptions(retry_for=1e9), connect=server.connect) as client:

            async def wait() -> None:
                with pytest.raises(RedisClosed):
                    await client.incr("n")

            nursery.start_soon(wait)
            await trio.sleep(10)
