from __future__ import annotations

import random
import signal

import psycopg
import pytest
import trio
import trio.testing
from psycopg import pq
from psycopg.rows import dict_row

from penstock.runtime.postgres import (
    Connection,
    Fault,
    Pool,
    PoolTimeout,
    PostgresOptions,
    PostgresUnavailable,
    classify,
)


async def test_a_connection_is_in_autocommit_mode_and_reused(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            assert connection.autocommit
            first = connection.info.backend_pid
        async with pool.connection() as connection:
            assert connection.info.backend_pid == first
        statistics = pool.statistics()
        assert (statistics.idle, statistics.in_use, statistics.opened, statistics.lent) == (1, 0, 1, 2)


async def test_the_one_used_last_is_lent_first(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection(), pool.connection() as second:
            last = second.info.backend_pid  # given back first, so used last is the outer one
        async with pool.connection() as connection:
            assert connection.info.backend_pid != last


async def test_no_more_than_max_size_are_lent_and_a_waiter_gets_the_next(server) -> None:
    async with Pool(server.options(max_size=2)) as pool:
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with pool.connection() as connection:
                inside += 1
                most = max(most, inside)
                await connection.execute("select pg_sleep(0.005)")
                inside -= 1

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(work)
        assert most == 2
        assert pool.statistics().opened == 2


async def test_acquire_timeout_names_the_setting(server) -> None:
    async with Pool(server.options(max_size=1), acquire_timeout=0.05) as pool, pool.connection():
        with pytest.raises(PoolTimeout, match=r"max_size.*acquire_timeout") as caught:
            async with pool.connection():
                pytest.fail("there is only one")
        assert classify(caught.value) is Fault.RETRY
        assert pool.statistics().timeouts == 1


async def test_a_closed_pool_lends_nothing_and_closes_what_comes_back(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        lent = pool.connection()
        connection = await lent.__aenter__()
    await lent.__aexit__(None, None, None)
    assert connection.closed
    with pytest.raises(RuntimeError, match="closed"):
        async with pool.connection():
            pass


async def test_an_open_transaction_is_rolled_back_on_return(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
            await connection.execute("begin")
            await connection.execute("create table never_committed ()")
        async with pool.connection() as connection:
            assert connection.info.backend_pid == pid
            assert connection.pgconn.transaction_status == pq.TransactionStatus.IDLE
            cursor = await connection.execute("select to_regclass('never_committed')")
            assert await cursor.fetchone() == (None,)


async def test_psycopgs_settings_are_restored_on_return(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            connection.row_factory = dict_row  # type: ignore[assignment]
            await connection.set_autocommit(False)
            await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            await connection.set_read_only(True)
        async with pool.connection() as connection:
            assert await (await connection.execute("select 1")).fetchone() == (1,)
            assert connection.autocommit
            assert connection.isolation_level is None
            assert connection.read_only is None


async def test_a_terminated_idle_connection_is_replaced_without_an_error(server) -> None:
    troubles: list[PostgresUnavailable] = []
    async with Pool(server.options(), on_trouble=troubles.append) as pool:
        async with pool.connection() as connection:
            pid = connection.info.backend_pid
        assert server.execute(f"select pg_terminate_backend({pid}, 5000)") == [(True,)]
        async with pool.connection() as connection:
            assert connection.info.backend_pid != pid
        assert pool.statistics().broken == 1
    assert troubles == []


async def test_a_connection_left_in_pipeline_mode_is_not_lent_again(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            connection.pgconn.enter_pipeline_mode()
        assert pool.statistics().idle == 0
        assert connection.closed


async def test_age_and_idleness_close_connections(server, monkeypatch) -> None:
    async with Pool(server.options(max_lifetime=100, max_idle=10, min_size=1)) as pool:
        async with pool.connection(), pool.connection(), pool.connection():
            pass
        assert pool.statistics().idle == 3
        now = trio.current_time()
        monkeypatch.setattr(trio, "current_time", lambda: now + 20)
        async with pool.connection():
            assert pool.statistics().expired == 2  # one is kept: min_size
            assert pool.statistics().opened == 3
        monkeypatch.setattr(trio, "current_time", lambda: now + 120)
        async with pool.connection():
            assert pool.statistics().opened == 4


async def test_drop_idle(options: PostgresOptions) -> None:
    async with Pool(options) as pool:
        async with pool.connection(), pool.connection():
            pass
        assert pool.drop_idle() == 2
        assert pool.statistics().idle == 0


async def test_a_stopped_server_is_trouble_at_once_and_the_pool_recovers(own_server) -> None:
    """Every way to notice calls `on_trouble` before the caller sees its error; then the same pool works again."""
    troubles: list[PostgresUnavailable] = []
    async with Pool(own_server.options(), on_trouble=troubles.append) as pool:
        async with trio.open_nursery() as nursery, pool.connection() as connection:
            nursery.start_soon(trio.to_thread.run_sync, own_server.stop)
            with pytest.raises(psycopg.OperationalError) as caught:
                await connection.execute("select pg_sleep(60)")
            assert len(troubles) == 1
        assert classify(caught.value) is Fault.OUTAGE
        with pytest.raises(PostgresUnavailable):
            async with pool.connection():
                pytest.fail("there is no server")
        assert len(troubles) == 2
        assert own_server.directory.name in troubles[0].address
        pool.drop_idle()
        await trio.to_thread.run_sync(own_server.start)
        async with pool.connection() as connection:
            assert await (await connection.execute("select 1")).fetchone() == (1,)
        assert pool.statistics().troubles == len(troubles) == 2


async def test_a_killed_backend_is_trouble(own_server) -> None:
    """`kill -9` of a backend makes the server drop all connections: "the server closed the connection"."""
    troubles: list[PostgresUnavailable] = []
    async with Pool(own_server.options(), on_trouble=troubles.append) as pool, pool.connection() as connection:
        async with trio.open_nursery() as nursery:

            async def asleep() -> None:
                with pytest.raises(psycopg.OperationalError):
                    await connection.execute("select pg_sleep(60)")

            nursery.start_soon(asleep)
            await trio.testing.wait_all_tasks_blocked()
            own_server.kill_backend(connection.info.backend_pid)
        assert len(troubles) == 1


async def test_a_full_server_is_trouble(own_server) -> None:
    troubles: list[PostgresUnavailable] = []
    own_server.stop()
    own_server.start(max_connections="6", superuser_reserved_connections="0", reserved_connections="0")
    async with Pool(own_server.options(max_size=20), on_trouble=troubles.append) as pool:
        with pytest.raises(PostgresUnavailable, match="too many clients"):
            async with pool.connection(), pool.connection(), pool.connection(), pool.connection():
                async with pool.connection(), pool.connection(), pool.connection():
                    pytest.fail("that is one too many")
        assert len(troubles) == 1


async def test_a_frozen_server_is_told_as_slow_once_for_each_statement(own_server) -> None:
    slow: list[float] = []
    async with Pool(own_server.options(cancel_grace=0.2), on_slow=slow.append, slow_after=0.1) as pool:
        async with pool.connection() as connection:
            await connection.execute("select 1")
            assert slow == []
            own_server.send(signal.SIGSTOP)
            with trio.move_on_after(0.5):
                await connection.execute("select 1")
            assert slow == [0.1]
        own_server.send(signal.SIGCONT)
        assert pool.statistics().slow == 1


async def test_waiting_for_notifications_is_neither_slow_nor_trouble(server) -> None:
    slow: list[object] = []
    connection = await Connection.open(server.options(), on_trouble=slow.append, on_slow=slow.append, slow_after=0.05)
    async for _ in connection.notifies(timeout=0.2):
        pytest.fail("nobody notifies")
    assert slow == []
    await connection.close()


async def test_a_listener_that_raises_does_not_change_the_statements_error(server) -> None:
    def angry(_: object) -> None:
        raise ValueError

    async with Pool(server.options(), on_trouble=angry) as pool, pool.connection() as connection:
        server.execute(f"select pg_terminate_backend({connection.info.backend_pid}, 5000)")
        with pytest.raises(psycopg.OperationalError):
            await connection.execute("select 1")


async def test_cancelled_borrowers_lose_no_connection(server) -> None:
    """Twenty tasks cut at random moments over five connections: none is lost, none comes back broken."""
    dice = random.Random(7)
    cut = 0

    async def worker() -> None:
        nonlocal cut
        for _ in range(20):
            with trio.move_on_after(dice.random() * 0.02) as scope:
                async with pool.connection() as connection, connection.transaction():
                    await connection.execute("select pg_sleep(0.005)")
            cut += scope.cancelled_caught

    async with Pool(server.options(max_size=5)) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(worker)
        statistics = pool.statistics()
        assert statistics.in_use == 0
        assert statistics.broken == 0
        assert 1 <= statistics.idle <= 5
    assert cut > 50
