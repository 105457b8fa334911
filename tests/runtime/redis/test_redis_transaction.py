"""Optimistic transactions: WATCH, read, decide, MULTI … EXEC, and again when somebody else was faster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis import exceptions

from penstock.runtime.redis import CommandRefused, OutcomeUnknown, Redis, RedisOptions
from penstock.runtime.redis.transaction import Transaction

if TYPE_CHECKING:
    from conftest import ValkeyServer


async def increment(transaction: Transaction) -> None:
    """Read and write back: wrong without the watch."""
    value = int(await transaction.get("n") or 0)
    transaction.multi()
    transaction.set("n", value + 1)


async def test_what_was_queued_runs_as_one_step_and_its_results_are_returned(redis: Redis) -> None:
    async def move(transaction: Transaction) -> str:
        assert await transaction.get("a") is None
        transaction.multi()
        transaction.incr("a")
        transaction.hset("h", mapping={"x": 1})
        transaction.hgetall("h")
        return "value"

    assert await redis.transaction(move, "a") == [1, 1, {b"x": b"1"}]
    await redis.delete("a")
    assert await redis.transaction(move, "a", value_from_callable=True) == "value"


async def test_twenty_tasks_lose_no_update(valkey: ValkeyServer) -> None:
    """Each of them reads, and writes what it read plus one."""
    async with Redis(RedisOptions.from_url(valkey.url, max_blocking=8)) as redis:

        async def ten_times() -> None:
            for _ in range(10):
                await redis.transaction(increment, "n", attempts=500)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(ten_times)
        assert await redis.get("n") == b"200"


async def test_who_is_always_outrun_gives_up(redis: Redis) -> None:
    calls = 0

    async def slow(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        await redis.incr("n")  # somebody else
        await increment(transaction)

    with pytest.raises(exceptions.WatchError) as caught:
        await redis.transaction(slow, "n", attempts=3)
    assert calls == 3
    assert "3 attempts" in caught.value.__notes__[-1]
    assert await redis.get("n") == b"3"


async def test_a_function_that_only_reads_leaves_no_watch(redis: Redis) -> None:
    """The connection is used again by others: a watch left on it would let their transactions fail."""

    async def look(transaction: Transaction) -> Any:
        return await transaction.get("n")

    await redis.set("n", 1)
    assert await redis.transaction(look, "n", value_from_callable=True) == b"1"
    await redis.incr("n")
    assert await redis.transaction(increment, "other") == [True]
    assert (await redis.info("clients"))["watching_clients"] == 0


async def test_a_function_that_raises_writes_nothing(redis: Redis) -> None:
    async def fail(transaction: Transaction) -> None:
        await increment(transaction)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await redis.transaction(fail, "n")
    assert await redis.get("n") is None
    while (await redis.info("clients"))["watching_clients"]:
        pass


async def test_an_error_among_the_results_is_raised_and_nothing_repeated(redis: Redis) -> None:
    calls = 0

    def write(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        transaction.multi()
        transaction.incr("n")
        transaction.lpush("n", 1)

    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE") as caught:
        await redis.transaction(write, "n")
    assert caught.value.__notes__ == ["command 2 of 2 in the pipeline: LPUSH"]
    assert calls == 1
    assert await redis.get("n") == b"1"


async def test_scripts_run_before_and_within_the_step(redis: Redis) -> None:
    add = redis.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    read = redis.register_script("return redis.call('GET', KEYS[1])")

    async def both(transaction: Transaction) -> None:
        assert await read(keys=["n"], client=transaction) is None
        with pytest.raises(exceptions.RedisError, match="before multi"):
            add.queue(transaction, keys=["n"], args=[1])
        transaction.multi()
        add.queue(transaction, keys=["n"], args=[1])
        add.queue(transaction, keys=["n"], args=[2])

    assert await redis.transaction(both, "n") == [1, 3]


async def test_a_lost_connection_before_exec_begins_anew(redis: Redis, valkey: ValkeyServer) -> None:
    """The watch is gone with it: going on over another connection would be wrong."""
    calls = 0

    async def interrupted(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        await transaction.get("n")
        if calls == 1:
            number = int(await transaction.client_id())
            await redis.client_kill_filter(_id=str(number))
        await increment(transaction)

    async with Redis(RedisOptions.from_url(valkey.url)) as patient:
        assert await patient.transaction(interrupted, "n") == [True]
    assert calls == 2
    assert await redis.get("n") == b"1"


async def test_what_the_function_did_elsewhere_is_not_repeated(valkey: ValkeyServer) -> None:
    """An unknown outcome of another connection is that of the caller, even if it is of a kind that would pass here."""
    calls = 0

    async def elsewhere(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        raise OutcomeUnknown("redis://elsewhere", "no reply")

    async with Redis(RedisOptions.from_url(valkey.url)) as redis:
        with pytest.raises(OutcomeUnknown, match="elsewhere"):
            await redis.transaction(elsewhere, "n")
    assert calls == 1


async def test_misuse_is_told(redis: Redis) -> None:
    with pytest.raises(exceptions.DataError, match="without keys to watch"):
        await redis.transaction(increment)

    async def block(transaction: Transaction) -> None:
        await transaction.blpop(["l"], timeout=1)

    async def select(transaction: Transaction) -> None:
        await transaction.select(1)

    async def twice(transaction: Transaction) -> None:
        transaction.multi()
        transaction.multi()

    for function, complaint in ((block, "keep the transaction open"), (select, "RedisOptions.db"), (twice, "already")):
        with pytest.raises((CommandRefused, exceptions.RedisError), match=complaint):
            await redis.transaction(function, "n")
