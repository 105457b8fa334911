"""A primary with a streaming standby: a promotion is survived without an operator on our side."""

from __future__ import annotations

import signal

import psycopg
import pytest
import trio

from penstock.runtime.postgres import (
    Fault,
    Gap,
    Notification,
    Pool,
    PostgresOptions,
    PostgresUnavailable,
    classify,
    listen,
    probe,
)


def both(primary, standby, **overrides) -> PostgresOptions:
    """Whichever of the two can write."""
    hosts = f"{primary.directory},{standby.directory}"
    return PostgresOptions.from_url(
        f"postgresql://postgres@/postgres?host={hosts}&port=54330&target_session_attrs=read-write", **overrides
    )


async def test_only_the_primary_is_taken(own_server, standby) -> None:
    async with Pool(both(standby, own_server)) as pool, pool.connection() as connection:
        await connection.execute("create table written ()")
        cursor = await connection.execute("select pg_is_in_recovery()")
        assert await cursor.fetchone() == (False,)


async def test_a_hot_standby_answers_readers_and_is_an_outage_for_writers(own_server, standby) -> None:
    troubles: list[PostgresUnavailable] = []
    async with Pool(standby.options(), on_trouble=troubles.append) as pool:
        async with pool.connection() as connection:
            assert await (await connection.execute("select 1")).fetchone() == (1,)
        with pytest.raises(PostgresUnavailable, match="read-only"):
            async with pool.connection() as connection:
                await connection.execute("create table refused ()")
        assert len(troubles) == 1
        assert pool.statistics().idle == 0, "it may be a demoted primary: no connection to it is trusted"
    with pytest.raises(PostgresUnavailable, match="standby"):
        await probe(standby.options())


async def test_a_promoted_standby_takes_over(own_server, standby) -> None:
    """The primary is killed in the middle of a stream of inserts; the same pool and listener go on at the standby.

    Replication is synchronous here, so that every acknowledged insert must be on the standby.
    """
    synchronous = {"options": "-c synchronous_commit=on", "target_session_attrs": "read-write"}
    options = both(own_server, standby, connect_timeout=2, max_size=3, parameters=synchronous)
    own_server.execute("alter system set synchronous_standby_names = '*'")
    own_server.execute("select pg_reload_conf()")
    while own_server.execute("show synchronous_standby_names") != [("*",)]:
        await trio.sleep(0.005)
    async with Pool(options) as pool, pool.connection() as connection:
        await connection.execute("create table effect (id int primary key)")
    troubles: list[PostgresUnavailable] = []
    acknowledged: set[int] = set()
    unknown: set[int] = set()
    faults: set[Fault] = set()

    async def insert(pool: Pool) -> None:
        for number in range(10**6):
            try:
                async with pool.connection() as connection:
                    await connection.execute("insert into effect values (%s)", [number])
                acknowledged.add(number)
            except psycopg.OperationalError as error:
                faults.add(classify(error))
                unknown.add(number)
                await trio.sleep(0.01)

    async def until(count: int) -> None:
        with trio.fail_after(30):
            while len(acknowledged) < count:
                await trio.sleep(0.005)

    async with (
        Pool(options, on_trouble=troubles.append) as pool,
        listen(options, "mill") as notifications,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(insert, pool)
        await until(20)
        own_server.send(signal.SIGKILL)
        with trio.fail_after(30):
            while not troubles:
                await trio.sleep(0.005)
        await trio.to_thread.run_sync(standby.execute, "select pg_promote()")
        await until(len(acknowledged) + 20)
        with trio.fail_after(30):
            assert isinstance(await anext(notifications), Gap)
        await trio.to_thread.run_sync(standby.execute, "notify mill, 'from the new primary'")
        with trio.fail_after(30):
            item = await anext(notifications)
        assert isinstance(item, Notification)
        assert item.payload == "from the new primary"
        nursery.cancel_scope.cancel()
    rows = {row[0] for row in standby.execute("select id from effect")}
    assert acknowledged <= rows
    assert rows <= acknowledged | unknown
    assert faults == {Fault.OUTAGE}
