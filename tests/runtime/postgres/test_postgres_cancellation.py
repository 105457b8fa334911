"""The cancellation rule on a real server: afterwards a connection is usable or closed, never stuck."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress

import psycopg
import pytest
import trio
import trio.testing
from psycopg import pq
from psycopg.rows import TupleRow

from penstock.runtime.postgres import Connection, Fault, PostgresOptions, PostgresUnavailable, classify

IDLE = pq.TransactionStatus.IDLE


@pytest.fixture
async def connection(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(options)
    await connection.execute("create temp table effect (id int primary key, note text)")
    yield connection
    await connection.close()


async def count(connection: Connection[TupleRow]) -> int:
    row = await (await connection.execute("select count(*) from effect")).fetchone()
    assert row is not None
    return int(row[0])


async def test_a_cancelled_statement_is_cancelled_on_the_server(connection, server) -> None:
    """It ends long before its own end, the backend is idle and the connection usable."""
    with trio.fail_after(5), trio.move_on_after(0.1) as scope:
        await connection.execute("select pg_sleep(60)")
    assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    pid = connection.info.backend_pid
    assert server.execute(f"select state from pg_stat_activity where pid = {pid}") == [("idle",)]
    assert await count(connection) == 0


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
    assert trio.current_time() - started < 1.5
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
    assert trio.current_time() - started < 1.5
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
        with trio.fail_after(5), trio.move_on_after(0.1) as scope:
            async with connection.cursor().copy("copy fought_over from stdin"):
                pytest.fail("the table is locked")
        assert scope.cancelled_caught
    assert connection.pgconn.transaction_status == IDLE
    await connection.execute("drop table fought_over")


async def test_a_cancelled_pipeline_leaves_pipeline_mode(connection) -> None:
    with trio.fail_after(5), trio.move_on_after(0.1) as scope:
        async with connection.pipeline():
            await connection.execute("select pg_sleep(60)")
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    assert await count(connection) == 0


async def test_a_cancelled_transaction_in_a_pipeline_rolls_back_at_once(connection) -> None:
    with trio.fail_after(5), trio.move_on_after(0.1):
        async with connection.pipeline(), connection.transaction():
            await connection.execute("insert into effect values (1)")
            await connection.execute("select pg_sleep(60)")
            await trio.sleep_forever()
    assert not connection.closed
    assert connection.pgconn.transaction_status == IDLE
    assert await count(connection) == 0


async def test_a_waiter_for_the_connection_is_cancelled_at_once(connection) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.execute, "select pg_sleep(0.5)")
        await trio.testing.wait_all_tasks_blocked()
        started = trio.current_time()
        with trio.move_on_after(0.05):
            await connection.execute("select 1")
        assert trio.current_time() - started < 0.4
    assert await count(connection) == 0


# Any operation, cut anywhere

Operation = Callable[[Connection[TupleRow], random.Random], Awaitable[None]]


async def _execute(connection: Connection[TupleRow], _: random.Random) -> None:
    await connection.execute("select pg_sleep(0.002)")


async def _executemany(connection: Connection[TupleRow], dice: random.Random) -> None:
    rows = [(dice.randrange(10**9), "note") for _ in range(dice.choice([1, 20, 400]))]
    await connection.cursor().executemany("insert into effect values (%s, %s) on conflict do nothing", rows)


async def _copy_in(connection: Connection[TupleRow], dice: random.Random) -> None:
    async with connection.cursor().copy("copy scratch from stdin") as copy:
        for number in range(dice.choice([0, 3, 3000])):
            await copy.write_row((number, "x" * 200))


async def _copy_out(connection: Connection[TupleRow], dice: random.Random) -> None:
    async with connection.cursor().copy("copy (select generate_series(1, 20000)) to stdout") as copy:
        for _ in range(dice.choice([0, 10, 30000])):
            if not await copy.read():
                break


async def _pipeline(connection: Connection[TupleRow], dice: random.Random) -> None:
    async with connection.pipeline():
        for _ in range(dice.randrange(1, 5)):
            cursor = await connection.execute("select pg_sleep(0.001)")
        if dice.random() < 0.5:
            await cursor.fetchone()


async def _transaction(connection: Connection[TupleRow], dice: random.Random) -> None:
    # A stream or a COPY left early cancels its query, and so fails the transaction it is in.
    with suppress(psycopg.errors.InFailedSqlTransaction):
        async with connection.transaction():
            await connection.execute("insert into scratch values (1)")
            async with connection.transaction():
                await _any(connection, dice)


async def _transaction_in_pipeline(connection: Connection[TupleRow], _: random.Random) -> None:
    async with connection.pipeline(), connection.transaction():
        await connection.execute("insert into scratch values (1)")
        await connection.execute("select pg_sleep(0.001)")


async def _stream(connection: Connection[TupleRow], dice: random.Random) -> None:
    left = dice.choice([1, 50, 10**6])
    async with aclosing(connection.cursor().stream("select generate_series(1, 3000)")) as rows:
        async for _ in rows:
            left -= 1
            if not left:
                break


async def _server_cursor(connection: Connection[TupleRow], _: random.Random) -> None:
    async with connection.transaction(), connection.cursor("numbers") as cursor:
        await cursor.execute("select generate_series(1, 300)")
        async for _row in cursor:
            pass


_OPERATIONS: list[Operation] = [
    _execute,
    _executemany,
    _copy_in,
    _copy_out,
    _pipeline,
    _transaction_in_pipeline,
    _stream,
    _server_cursor,
]


async def _any(connection: Connection[TupleRow], dice: random.Random) -> None:
    operation = dice.choice([one for one in _OPERATIONS if one not in (_server_cursor,)])
    await operation(connection, dice)


@pytest.mark.parametrize("operation", [*_OPERATIONS, _transaction], ids=lambda operation: operation.__name__)
async def test_a_backend_that_dies_in_the_middle_of_anything(options, server, operation: Operation) -> None:
    """The error is an outage, told at once; the connection is closed and nothing hangs."""
    troubles: list[PostgresUnavailable] = []
    connection = await Connection.open(options, on_trouble=troubles.append)
    await connection.execute("create temp table effect (id int primary key, note text)")
    await connection.execute("create temp table scratch (id int, note text)")
    pid = connection.info.backend_pid

    async def repeat() -> None:
        dice = random.Random(5)
        while True:
            await operation(connection, dice)

    async def terminate() -> None:
        await trio.to_thread.run_sync(server.execute, f"select pg_terminate_backend({pid}, 5000)")

    with trio.fail_after(20), pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(repeat)
            nursery.start_soon(terminate)
    assert classify(caught.value) is Fault.OUTAGE
    assert len(troubles) >= 1
    assert connection.closed


FUZZ_ROUNDS = int(os.environ.get("PENSTOCK_FUZZ_ROUNDS", "250"))


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_any_operation_cut_at_any_moment(options: PostgresOptions, seed: int) -> None:
    """A random operation under a random deadline: the connection is then usable or closed, and nearly always usable."""
    dice = random.Random(seed)
    closed = cut = 0
    connection = await _fresh(options)
    for number in range(FUZZ_ROUNDS):
        operation = dice.choice([*_OPERATIONS, _transaction])
        with trio.fail_after(10), trio.move_on_after(dice.choice([0, 0.0005, 0.004, 0.02]) * dice.random()) as scope:
            await operation(connection, dice)
        cut += scope.cancelled_caught
        if connection.closed:
            closed += 1
            connection = await _fresh(options)
            continue
        where = f"seed {seed}, round {number}: {operation.__name__}"
        assert connection.pgconn.transaction_status == IDLE, where
        assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF, where
        with trio.fail_after(5):
            assert await (await connection.execute("select %s::int", [number])).fetchone() == (number,), where
    await connection.close()
    assert cut > FUZZ_ROUNDS / 4
    assert closed <= FUZZ_ROUNDS / 100


async def _fresh(options: PostgresOptions) -> Connection[TupleRow]:
    connection = await Connection.open(options)
    await connection.execute("create temp table effect (id int primary key, note text)")
    await connection.execute("create temp table scratch (id int, note text)")
    return connection
