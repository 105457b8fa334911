from __future__ import annotations

import random
import signal
from contextlib import AsyncExitStack
from functools import partial

import psycopg
import pytest
import trio
import trio.testing
from psycopg import pq
from psycopg.rows import dict_row

from penstock.runtime.postgres import (
    ClientCursor,
    Connection,
    Cursor,
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
            slow.clear()  # a busy machine may have been slow before
            count = pool.statistics().slow
            own_server.send(signal.SIGSTOP)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.execute, "select 1")
                with trio.fail_after(20):
                    while not slow:
                        await trio.sleep(0.005)
                await trio.sleep(0.35)
                nursery.cancel_scope.cancel()
            assert slow == [0.1]
        own_server.send(signal.SIGCONT)
        assert pool.statistics().slow == count + 1


async def test_several_slow_statements_are_each_told_once_with_their_own_limit(server) -> None:
    told: list[tuple[str, float]] = []
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        for name, slow_after in (("patient", 0.3), ("impatient", 0.05), ("content", 1000)):
            tell = partial(_tell, told, name)
            connection = await Connection.open(server.options(), on_slow=tell, slow_after=slow_after)
            await stack.enter_async_context(connection)
            nursery.start_soon(connection.execute, "select pg_sleep(60)")
        with trio.fail_after(20):
            while len(told) < 2:
                await trio.sleep(0.01)
        await trio.sleep(0.35)  # long enough for either to be told again
        assert sorted(told) == [("impatient", 0.05), ("patient", 0.3)]
        nursery.cancel_scope.cancel()


def _tell(told: list[tuple[str, float]], name: str, seconds: float) -> None:
    told.append((name, seconds))


async def test_a_short_limit_is_kept_while_the_watch_naps_for_a_long_one(server) -> None:
    told = trio.Event()
    content = await Connection.open(server.options(), on_slow=lambda _: None, slow_after=1000)
    impatient = await Connection.open(server.options(), on_slow=lambda _: told.set(), slow_after=0.05)
    async with content, impatient, trio.open_nursery() as nursery:
        nursery.start_soon(content.execute, "select pg_sleep(60)")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(impatient.execute, "select pg_sleep(60)")
        with trio.fail_after(20):
            await told.wait()
        nursery.cancel_scope.cancel()


async def test_the_watch_for_slow_statements_ends_by_itself(server) -> None:
    """It is no task of ours: nothing may be left of it where nothing waits."""
    connection = await Connection.open(server.options(), on_slow=lambda _: None, slow_after=0.04)
    for _ in range(2):
        await connection.execute("select pg_sleep(0.001)")
        assert _watches() == 1
        with trio.fail_after(20):
            while _watches():
                await trio.sleep(0.005)
    await connection.close()


def _watches() -> int:
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    inner = [task for one in tasks for nursery in one.child_nurseries for task in nursery.child_tasks]
    return sum("slow PostgreSQL" in task.name for task in tasks + inner)


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

    # The grace is long: a connection that a busy machine does not end in time is given up, and that is right.
    async with Pool(server.options(max_size=5, cancel_grace=30)) as pool:
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(worker)
        statistics = pool.statistics()
        assert statistics.in_use == 0
        assert statistics.broken == 0
        assert 1 <= statistics.idle <= 5
    assert cut > 50


# Order and bounds


async def test_who_waits_is_served_in_order(server) -> None:
    served: list[int] = []

    async def borrow(number: int) -> None:
        async with pool.connection():
            served.append(number)

    async with Pool(server.options(max_size=1)) as pool, trio.open_nursery() as nursery:
        async with pool.connection():
            for number in range(10):
                nursery.start_soon(borrow, number)
                await trio.testing.wait_all_tasks_blocked()
            assert pool.statistics().waiting == 10
        # Who comes now has to go to the end, although a connection is free at this very moment.
        nursery.start_soon(borrow, 10)
    assert served == list(range(11))
    statistics = pool.statistics()
    assert statistics.waited == 11
    assert 0 < statistics.longest_wait <= statistics.wait_seconds


@pytest.mark.parametrize("release_first", [True, False])
async def test_a_waiter_cancelled_in_the_moment_of_the_hand_over_loses_no_connection(server, release_first) -> None:
    """The token goes to the cancelled one, who gives it on, or past him; in both cases the next one gets it."""
    got = trio.Event()
    scope = trio.CancelScope()

    async def first() -> None:
        with scope:
            async with pool.connection() as connection:
                await connection.execute("select 1")

    async def second() -> None:
        async with pool.connection():
            got.set()

    async with Pool(server.options(max_size=1)) as pool, trio.open_nursery() as nursery:
        held = pool.connection()
        await held.__aenter__()
        nursery.start_soon(first)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        if release_first:
            await held.__aexit__(None, None, None)
            scope.cancel()
        else:
            scope.cancel()
            await held.__aexit__(None, None, None)
        with trio.fail_after(20):
            await got.wait()
    assert pool.statistics().in_use == 0
    assert pool.statistics().waiting == 0
    assert pool.loans() == ()


async def test_a_connection_that_is_never_given_back_shows_with_its_borrower(server) -> None:
    async def hold(task_status: trio.TaskStatus[int]) -> None:
        async with pool.connection() as connection:
            task_status.started(connection.info.backend_pid)
            await trio.sleep_forever()

    async with Pool(server.options(max_size=1), acquire_timeout=0.05) as pool, trio.open_nursery() as nursery:
        pid = await nursery.start(hold, name="the one who holds")
        (loan,) = pool.loans()
        assert loan.task == "the one who holds"
        assert loan.backend_pid == pid
        assert loan.seconds >= 0
        with pytest.raises(PoolTimeout, match=r"'the one who holds' holds one for \d+\.\d s"):
            async with pool.connection():
                pytest.fail("there is only one")
        nursery.cancel_scope.cancel()
    assert pool.loans() == ()
    assert pool.statistics().longest_wait >= 0.05


async def test_warm_up_opens_min_size(server) -> None:
    async with Pool(server.options(min_size=3, max_size=5)) as pool:
        async with pool.connection():
            pass
        assert await pool.warm_up() == 2
        assert pool.statistics().idle == 3
        assert await pool.warm_up() == 0


async def test_warm_up_waits_for_nobody(server) -> None:
    async with Pool(server.options(min_size=2, max_size=2), acquire_timeout=0.01) as pool, pool.connection():
        assert await pool.warm_up() == 1


# Health


async def test_a_long_idle_connection_is_asked_before_it_is_lent(options) -> None:
    async with Pool(options, check_after=0) as pool:
        for _ in range(3):
            async with pool.connection() as connection:
                pid = connection.info.backend_pid
        assert connection.info.backend_pid == pid
        statistics = pool.statistics()
        assert (statistics.checked, statistics.opened, statistics.broken) == (2, 1, 0)


async def test_connections_into_a_black_hole_are_replaced_after_one_check(proxy) -> None:
    """The peer vanished without a word: one check finds out, and the other idle connections are not asked in turn."""
    slow: list[float] = []
    async with Pool(proxy.options(), check_after=0, check_timeout=0.2, on_slow=slow.append, slow_after=30) as pool:
        async with pool.connection(), pool.connection(), pool.connection():
            pass
        proxy.freeze()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_thaw_when, proxy, lambda: pool.statistics().idle == 0 and bool(slow))
            with trio.fail_after(20):
                async with pool.connection() as connection:
                    assert await (await connection.execute("select 1")).fetchone() == (1,)
        statistics = pool.statistics()
        assert (statistics.checked, statistics.opened, statistics.broken) == (1, 4, 1)
        assert slow == [0.2]


async def _thaw_when(proxy, condition) -> None:
    while not condition():
        await trio.sleep(0.005)
    proxy.thaw()


async def test_a_check_cut_short_loses_no_connection(proxy) -> None:
    async with Pool(proxy.options(max_size=1, cancel_grace=60), check_after=0, check_timeout=60) as pool:
        async with pool.connection():
            pass
        proxy.freeze()
        started = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            async with pool.connection():
                pytest.fail("the check cannot end")
        assert scope.cancelled_caught
        assert trio.current_time() - started < 20, "a cancelled check waits for no grace"
        assert pool.statistics().in_use == 0
        proxy.thaw()
        async with pool.connection() as connection:
            await connection.execute("select 1")


async def test_at_the_first_sign_no_connection_is_trusted_any_more(server) -> None:
    """One broken statement: idle ones are closed at once, those lent out when they come back."""
    troubles: list[PostgresUnavailable] = []
    async with Pool(server.options(), on_trouble=troubles.append) as pool:
        async with pool.connection() as lent:
            async with pool.connection(), pool.connection():
                pass
            assert pool.statistics().idle == 2
            with pytest.raises(psycopg.OperationalError):
                async with pool.connection() as broken:
                    server.execute(f"select pg_terminate_backend({broken.info.backend_pid}, 5000)")
                    await broken.execute("select 1")
            assert len(troubles) == 1
            assert pool.statistics().idle == 0
            assert await (await lent.execute("select 1")).fetchone() == (1,), "it may end what it does"
        assert lent.closed
        assert pool.statistics().idle == 0
        async with pool.connection() as fresh:
            await fresh.execute("select 1")
        assert pool.statistics().idle == 1


@pytest.mark.parametrize("state", ["53100", "53200", "58030"])
async def test_a_server_that_is_full_is_trouble_and_costs_no_connection(server, state: str) -> None:
    troubles: list[PostgresUnavailable] = []
    async with Pool(server.options(), on_trouble=troubles.append) as pool:
        async with pool.connection(), pool.connection():
            pass
        with pytest.raises(psycopg.Error):
            async with pool.connection() as connection:
                await connection.execute(f"do $$ begin raise sqlstate '{state}'; end $$".encode())
        assert len(troubles) == 1
        assert pool.statistics().idle == 2


# What a borrower leaves behind


async def test_factories_and_handlers_are_restored_on_return(options) -> None:
    heard: list[object] = []
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            connection.cursor_factory = ClientCursor
            connection.add_notice_handler(heard.append)
            connection.add_notify_handler(heard.append)
        async with pool.connection() as connection:
            assert connection.cursor_factory is Cursor
            await connection.execute("do $$ begin raise notice 'heard'; end $$")
        assert pool.statistics().opened == 1
    assert heard == []


async def test_an_open_two_phase_transaction_is_not_lent_on(options) -> None:
    async with Pool(options) as pool:
        async with pool.connection() as connection:
            await connection.set_autocommit(False)
            await connection.tpc_begin("left behind")
            await connection.execute("select 1")
        assert connection.closed
        assert pool.statistics().idle == 0


async def test_each_new_connection_is_configured_once(options) -> None:
    async def configure(connection: Connection[psycopg.rows.TupleRow]) -> None:
        await connection.execute("set application_name = 'configured'")

    async with Pool(options, configure=configure) as pool:
        for _ in range(2):
            async with pool.connection() as connection:
                cursor = await connection.execute("show application_name")
                assert await cursor.fetchone() == ("configured",)
                await connection.execute("set application_name = 'configured'")
        assert pool.statistics().opened == 1


async def test_a_configuration_that_fails_leaks_nothing(server) -> None:
    async def configure(connection: Connection[psycopg.rows.TupleRow]) -> None:
        made.append(connection)
        await connection.execute("select 1/0")

    made: list[Connection[psycopg.rows.TupleRow]] = []
    async with Pool(server.options(max_size=1), configure=configure) as pool:
        for _ in range(2):
            with pytest.raises(psycopg.errors.DivisionByZero):
                async with pool.connection():
                    pytest.fail("it was not configured")
        assert [connection.closed for connection in made] == [True, True]
        assert pool.statistics().in_use == 0


async def test_what_configure_sets_is_what_every_borrower_finds(options) -> None:
    async def configure(connection: Connection[psycopg.rows.TupleRow]) -> None:
        connection.row_factory = dict_row  # type: ignore[assignment]
        connection.prepare_threshold = None
        connection.add_notice_handler(heard.append)

    heard: list[object] = []
    async with Pool(options, configure=configure) as pool:
        for number in (1, 2):
            async with pool.connection() as connection:
                assert await (await connection.execute("select 1 as one")).fetchone() == {"one": 1}
                assert connection.prepare_threshold is None
                await connection.execute("do $$ begin raise notice 'heard'; end $$")
                assert len(heard) == number
                connection.prepare_threshold = 1
        assert pool.statistics().opened == 1


async def test_a_connection_still_in_use_is_not_waited_for_without_end(server) -> None:
    """An open stream() has the connection's turn, and would have kept it as long as somebody keeps the stream."""
    async with Pool(server.options(max_size=1, cancel_grace=0.1)) as pool:
        async with pool.connection() as connection:
            rows = connection.cursor().stream("select generate_series(1, 100000)")
            await anext(rows)
        with trio.fail_after(20):
            async with pool.connection() as another:
                assert await (await another.execute("select 1")).fetchone() == (1,)
        assert connection.closed
        with pytest.raises(psycopg.OperationalError):
            await anext(rows)
        assert pool.statistics().in_use == 0


async def test_a_stream_left_to_the_garbage_collector_costs_the_pool_nothing(server) -> None:
    async with Pool(server.options(max_size=1)) as pool:
        for _ in range(5):
            async with pool.connection() as connection:
                async for _ in connection.cursor().stream("select generate_series(1, 100000)"):
                    break
            with trio.fail_after(20):
                async with pool.connection() as connection:
                    assert await (await connection.execute("select 1")).fetchone() == (1,)
        assert pool.statistics().in_use == 0


async def test_who_waits_for_a_pool_that_closes_is_told(server) -> None:
    pool = Pool(server.options(max_size=1))

    async def wait() -> None:
        with pytest.raises(RuntimeError, match="the pool is closed"):
            async with pool.connection():
                pytest.fail("it was lent by a closed pool")

    async with trio.open_nursery() as nursery, AsyncExitStack() as borrowed:
        async with pool:
            await borrowed.enter_async_context(pool.connection())
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
    assert pool.statistics().in_use == 0
    assert pool.statistics().opened == 1


async def test_a_time_limit_that_passes_in_the_moment_of_the_hand_over_is_a_time_limit(server) -> None:
    """Nobody holds the connection just then: it is on its way to another waiter."""
    outcomes: list[str] = []

    async def want(pool: Pool) -> None:
        try:
            async with pool.connection():
                outcomes.append("lent")
        except PoolTimeout:
            outcomes.append("timeout")

    async def hold(pool: Pool, task_status: trio.TaskStatus[None]) -> None:
        async with pool.connection():
            task_status.started()
            await limit_passed.wait()

    for _ in range(20):
        limit_passed = trio.Event()
        async with Pool(server.options(max_size=1)) as pool, trio.open_nursery() as nursery:
            await nursery.start(hold, pool)
            nursery.start_soon(want, pool)
            await trio.testing.wait_all_tasks_blocked()
            pool._acquire_timeout = 0.0
            nursery.start_soon(want, pool)
            limit_passed.set()
    assert sorted(outcomes) == ["lent"] * 20 + ["timeout"] * 20
