"""The cancellation rule on a real server: afterwards a connection is usable or closed, never stuck."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from typing import Any

import psycopg
import pytest
import trio
import trio.testing
from attrs import evolve
from psycopg import pq
from psycopg.rows import TupleRow
from psycopg.transaction import OutOfOrderTransactionNesting

from penstock.runtime.postgres import Connection, PostgresOptions, internals
from penstock.runtime.testing import Cut

IDLE = pq.TransactionStatus.IDLE


@pytest.fixture
async def connection(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    # The grace is long: a connection that a busy machine does not end in time is given up, and that is right.
    connection = await Connection.open(evolve(options, cancel_grace=20))
    await connection.execute("create temp table effect (id int primary key, note text)")
    yield connection
    await connection.close()


async def count(connection: Connection[TupleRow]) -> int:
    row = await (await connection.execute("select count(*) from effect")).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_cancelled_statement_is_cancelled_on_the_server(connection, server) -> None:
    """It ends long before its own end, the backend is idle and the connection usable."""
    with trio.fail_after(30), trio.move_on_after(0.1) as scope:
        await connection.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    pid = connection.info.backend_pid
    assert server.execute(f"select state from pg_stat_activity where pid = {pid}") == [("idle",)]
    assert await count(connection) == 0


@pytest.mark.parametrize("left", ["in a statement", "behind a statement"])
async def test_a_cancel_request_that_overtakes_its_statement_is_sent_again(connection, monkeypatch, left) -> None:
    """The server has two connections to look at, and may see the request first: it has nothing to cancel then."""
    asked = 0
    steps = internals.cancel_steps

    def overtaking(cancelled: Any) -> Any:
        nonlocal asked
        asked += 1
        return None if asked == 1 else steps(cancelled)

    monkeypatch.setattr(internals, "cancel_steps", overtaking)
    connection.cancel_grace = 4  # an eighth of which lies between two requests
    with trio.move_on_after(0.05):
        if left == "in a statement":
            await connection.execute("select pg_sleep(60)")
        connection.pgconn.send_query(b"select pg_sleep(60)")
    assert await count(connection) == 0
    assert asked >= 2


async def test_nothing_is_sent_in_a_cancelled_scope(connection) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await connection.execute("insert into effect values (1)")
    assert scope.cancelled_caught
    assert await count(connection) == 0


async def test_a_server_that_ignores_the_cancel_request_loses_the_connection(own_server) -> None:
    """A frozen server: the cancelled task is back within the grace, the connection is closed."""
    connection = await Connection.open(own_server.options(cancel_grace=0.3))
    own_server.send(signal.SIGSTOP)
    started = trio.current_time()
    with trio.move_on_after(0.1):
        await connection.execute("select 1")
    assert connection.closed
    assert trio.current_time() - started < 20
    own_server.send(signal.SIGCONT)


async def test_an_exception_in_a_transaction_rolls_back_within_the_grace(own_server) -> None:
    """Also when nobody cancels: a frozen server cannot hold up an exception."""
    connection = await Connection.open(own_server.options(cancel_grace=0.3))
    started = trio.current_time()
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            own_server.send(signal.SIGSTOP)
            raise ZeroDivisionError
    assert connection.closed
    assert trio.current_time() - started < 20
    own_server.send(signal.SIGCONT)


async def test_an_exception_rolls_back_and_leaves_the_connection_usable(connection) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction():
            await connection.execute("insert into effect values (1)")
            raise ZeroDivisionError
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_leaving_normally_in_a_cancelled_scope_never_commits(connection) -> None:
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await connection.execute("insert into effect values (1)")
            scope.cancel()
    assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_a_commit_that_was_sent_is_seen_through(connection) -> None:
    """The cancellation arrives while the server works on COMMIT: the block ends normally, and it is committed."""
    await connection.execute(
        """
        create or replace function pg_temp.dawdle() returns trigger language plpgsql as
        $$ begin perform pg_sleep(0.4); return null; end $$
        """
    )
    await connection.execute(
        "create constraint trigger slow after insert on effect deferrable initially deferred"
        " for each row execute function pg_temp.dawdle()"
    )
    left_normally = False
    with trio.CancelScope() as scope:
        async with connection.transaction():
            await connection.execute("insert into effect values (1)")
            scope.deadline = trio.current_time() + 0.15
        left_normally = True
        await trio.lowlevel.checkpoint()
    assert left_normally
    assert scope.cancelled_caught
    assert await count(connection) == 1


async def test_a_commit_after_a_caught_error_is_refused(connection) -> None:
    """PostgreSQL answers such a COMMIT with a rollback and no error: to pass for success would lose the effect."""
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing can be committed"):
        async with connection.transaction():
            await connection.execute("insert into effect values (1)")
            with suppress(psycopg.errors.UniqueViolation):
                await connection.execute("insert into effect values (1)")
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_a_transaction_whose_connection_was_lost_does_not_end_as_if_committed(connection, server) -> None:
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        async with connection.transaction():
            server.execute(f"select pg_terminate_backend({connection.info.backend_pid}, 5000)")
            with suppress(psycopg.OperationalError):
                await connection.execute("select 1")
    assert connection.closed


async def test_a_cancelled_copy_writes_nothing(connection) -> None:
    with trio.CancelScope() as scope:
        async with connection.cursor().copy("copy effect from stdin") as copy:
            await copy.write_row((1, "one"))
            scope.cancel()
    assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_a_copy_cancelled_while_it_waits_for_a_lock_starts_nothing(connection, options) -> None:
    await connection.execute("create table if not exists fought_over (id int)")
    async with await Connection.open(options) as other, other.transaction():
        await other.execute("lock table fought_over")
        with trio.fail_after(30), trio.move_on_after(0.1) as scope:
            async with connection.cursor().copy("copy fought_over from stdin"):
                pytest.fail("the table is locked")
        assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    await connection.execute("drop table fought_over")


async def test_a_cancelled_pipeline_leaves_pipeline_mode(connection) -> None:
    with trio.fail_after(30), trio.move_on_after(0.1) as scope:
        async with connection.pipeline():
            await connection.execute("select pg_sleep(60)")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    assert await count(connection) == 0


async def test_a_cancelled_transaction_in_a_pipeline_rolls_back_at_once(connection) -> None:
    with trio.fail_after(30), trio.move_on_after(0.1):
        async with connection.pipeline(), connection.transaction():
            await connection.execute("insert into effect values (1)")
            await connection.execute("select pg_sleep(60)")
            await trio.sleep_forever()
    assert not connection.closed
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_a_waiter_for_the_connection_is_cancelled_at_once(connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "select pg_sleep(60)")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        with trio.move_on_after(0.05):
            await connection.execute("select 1")
        assert trio.current_time() - started < 20
        nursery.cancel_scope.cancel()
    assert await count(connection) == 0


async def test_reading_a_copy_ends_with_the_cancellation_and_not_with_the_servers_answer_to_it(connection) -> None:
    """Rows still come while the server gives up; then its error, which nobody asked for."""
    wide = "select repeat('x', 9000), pg_sleep(0.0002) from generate_series(1, 100000)"
    for number in range(60):
        with trio.move_on_after(0.002 + 0.0002 * number) as scope:
            async with connection.cursor().copy(f"copy ({wide}) to stdout".encode()) as copy:
                while await copy.read():
                    pass
        assert scope.cancelled_caught
        assert connection.pgconn.transaction_status == IDLE


async def test_an_error_that_was_caught_in_a_pipeline_is_no_commit(connection) -> None:
    """The pipeline starts afresh after it, and says nothing of it when the COMMIT turns into a rollback."""
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing can be committed"):
        async with connection.pipeline(), connection.transaction():
            await connection.execute("insert into effect values (1)")
            cursor = await connection.execute("select 1/0")
            with suppress(psycopg.errors.DivisionByZero):
                await cursor.fetchall()
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


@pytest.mark.parametrize("pipelined", [False, True])
async def test_an_explicit_commit_after_a_caught_error_is_refused(connection, pipelined: bool) -> None:
    await connection.set_autocommit(False)

    async def work() -> None:
        await connection.execute("insert into effect values (1)")
        with suppress(psycopg.errors.DivisionByZero):
            await (await connection.execute("select 1/0")).fetchall()
        await connection.commit()

    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing can be committed"):
        if pipelined:
            async with connection.pipeline():
                await work()
        else:
            await work()
    await connection.rollback()
    assert await count(connection) == 0


@pytest.mark.parametrize("step", ["tpc_prepare", "tpc_commit"])
async def test_a_two_phase_transaction_after_a_caught_error_is_refused(connection, step: str) -> None:
    await connection.set_autocommit(False)
    await connection.tpc_begin("refused")
    with suppress(psycopg.errors.DivisionByZero):
        await connection.execute("select 1/0")
    with pytest.raises(psycopg.errors.InFailedSqlTransaction, match="nothing can be committed"):
        await getattr(connection, step)()
    await connection.tpc_rollback()
    assert connection.pgconn.transaction_status == IDLE


HELD_UP = 0.1
"""The grace, in seconds, of those who do not get their turn: somebody else has the connection as long as need be."""


@pytest.fixture
async def shared(options: PostgresOptions, server) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(evolve(options, cancel_grace=HELD_UP))
    await connection.execute("create temp table effect (id int primary key, note text)")
    pid = connection.info.backend_pid
    yield connection
    await connection.close()
    server.execute(f"select pg_terminate_backend({pid}, 5000)")  # it may sleep on


async def hold_up(connection: Connection[TupleRow]) -> None:
    """Another task's statement, which the loss of the connection ends."""
    with pytest.raises(psycopg.OperationalError):
        await connection.execute("select pg_sleep(60)")


def cancel_soon(nursery: trio.Nursery, scope: trio.CancelScope) -> None:
    """Cancel as soon as this task waits for its turn."""

    async def cancel() -> None:
        await trio.testing.wait_all_tasks_blocked()
        scope.cancel()

    nursery.start_soon(cancel)


async def test_a_rollback_that_does_not_get_its_turn_closes_the_connection(shared) -> None:
    """Left open, the transaction would swallow what comes next."""
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with shared.transaction():
                nursery.start_soon(hold_up, shared)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert shared.closed


async def test_a_commit_that_does_not_get_its_turn_closes_the_connection(shared, server) -> None:
    """Nothing was committed. Left open, the transaction would make savepoints of those to come."""
    pid = shared.info.backend_pid
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with shared.transaction():
                ((number,),) = await (await shared.execute("select pg_current_xact_id()::text")).fetchall()
                nursery.start_soon(hold_up, shared)
                await trio.testing.wait_all_tasks_blocked()
                cancel_soon(nursery, scope)
        assert scope.cancelled_caught
        assert shared.closed
    server.execute(f"select pg_terminate_backend({pid}, 5000)")
    assert server.execute(f"select pg_xact_status('{number}')") == [("aborted",)]


async def test_control_c_while_a_commit_waits_for_its_turn_closes_the_connection(shared) -> None:
    """There is nothing on its way that could be seen through, and the transaction must not go on."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(KeyboardInterrupt), ExitStack() as stack:
            async with shared.transaction():
                nursery.start_soon(hold_up, shared)
                await trio.testing.wait_all_tasks_blocked()
                stack.enter_context(Cut().raising(KeyboardInterrupt, at=trio.lowlevel.current_task()))
        assert shared.closed


async def test_a_savepoint_that_is_not_released_in_its_turn_loses_the_transaction_around_it(shared) -> None:
    """It was to have no effect, and would be committed with the rest."""
    async with trio.open_nursery() as nursery:
        with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
            async with shared.transaction():
                with trio.CancelScope() as scope:
                    async with shared.transaction():
                        await shared.execute("insert into effect values (1)")
                        nursery.start_soon(hold_up, shared)
                        await trio.testing.wait_all_tasks_blocked()
                        cancel_soon(nursery, scope)
                assert scope.cancelled_caught
                assert shared.closed


@pytest.mark.parametrize("step", ["rollback", "tpc_rollback"])
async def test_an_explicit_rollback_that_does_not_get_its_turn_closes_the_connection(shared, step: str) -> None:
    await shared.set_autocommit(False)
    if step == "tpc_rollback":
        await shared.tpc_begin("held up")
    await shared.execute("insert into effect values (1)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_up, shared)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            cancel_soon(nursery, scope)
            await getattr(shared, step)()
        assert scope.cancelled_caught
        assert shared.closed


async def test_an_explicit_commit_that_does_not_get_its_turn_has_had_no_effect(shared) -> None:
    """The pending transaction is the caller's still, as after any cancelled statement: it may be rolled back."""
    await shared.set_autocommit(False)
    await shared.execute("insert into effect values (1)")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.execute, "select pg_sleep(60)")
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            cancel_soon(nursery, scope)
            await shared.commit()
        assert scope.cancelled_caught
        shared.cancel_grace = 20
        nursery.cancel_scope.cancel()
    assert shared.pgconn.transaction_status == pq.TransactionStatus.INERROR
    await shared.rollback()
    assert shared.pgconn.transaction_status == IDLE


async def test_a_pipeline_that_cannot_be_left_in_its_turn_closes_the_connection(shared) -> None:
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with shared.pipeline():
                async with shared.transaction():
                    await shared.execute("insert into effect values (1)")
                nursery.start_soon(hold_up_pipeline, shared)
                await trio.testing.wait_all_tasks_blocked()
                cancel_soon(nursery, scope)
        assert scope.cancelled_caught
        assert shared.closed


async def test_a_pipeline_that_was_left_but_not_forgotten_in_its_turn_closes_the_connection(shared) -> None:
    """psycopg leaves one in two turns. Without the second, it would put what comes next in a pipeline that is over."""

    async def listen() -> None:
        with pytest.raises(psycopg.OperationalError):
            async for _ in shared.notifies():
                pass

    async def come_between(scope: trio.CancelScope) -> None:
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(listen)
        while shared.pgconn.pipeline_status:
            await trio.sleep(0.01)
        scope.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with shared.pipeline():
                await shared.execute("select pg_sleep(1)")
                nursery.start_soon(come_between, scope)
        assert scope.cancelled_caught
        assert shared.closed


async def hold_up_pipeline(connection: Connection[TupleRow]) -> None:
    with pytest.raises(psycopg.OperationalError):
        await (await connection.execute("select pg_sleep(60)")).fetchone()


@pytest.mark.parametrize("failing", [False, True])
async def test_transactions_of_two_tasks_that_overlap_close_the_connection(connection, failing: bool) -> None:
    """The second is a savepoint in the first, which can end no more: neither block ends as if it were committed."""
    begun, inside, ended = trio.Event(), trio.Event(), trio.Event()

    async def outer() -> None:
        with pytest.raises(OutOfOrderTransactionNesting):
            async with connection.transaction():
                await connection.execute("insert into effect values (1)")
                begun.set()
                await inside.wait()
                if failing:
                    raise ZeroDivisionError
        ended.set()

    async def inner() -> None:
        await begun.wait()
        with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
            async with connection.transaction():
                inside.set()
                await ended.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(outer)
        nursery.start_soon(inner)
    assert connection.closed
