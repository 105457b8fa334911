"""Any operation, cut anywhere: afterwards a connection is usable or closed, and nothing is left behind.

Once at every point at which an operation gives way, one after the other; once at random moments, for as many rounds as
``PENSTOCK_FUZZ_ROUNDS`` says; once while the network or the server is frozen.
"""

from __future__ import annotations

import os
import random
import signal
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import psycopg
import pytest
import trio
import trio.testing
from attrs import evolve
from psycopg import pq
from psycopg.rows import TupleRow

from penstock.runtime.postgres import (
    Connection,
    Fault,
    Pool,
    PostgresOptions,
    PostgresUnavailable,
    RawCursor,
    classify,
    internals,
    listen,
)
from penstock.runtime.testing import Cut

IDLE = pq.TransactionStatus.IDLE

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


async def _scrolling(connection: Connection[TupleRow], dice: random.Random) -> None:
    async with connection.transaction(), connection.cursor("scrolled", scrollable=True) as cursor:
        await cursor.execute("select generate_series(1, 300)")
        await cursor.fetchmany(dice.randrange(1, 100))
        await cursor.scroll(-1)
        await cursor.fetchone()
        await cursor.fetchall()


async def _returning(connection: Connection[TupleRow], dice: random.Random) -> None:
    cursor = connection.cursor()
    rows = [(number,) for number in range(dice.choice([1, 30]))]
    await cursor.executemany("select %s::int, pg_sleep(0.0001)", rows, returning=True)
    async for result in cursor.results():
        await result.fetchone()


async def _raw(connection: Connection[TupleRow], dice: random.Random) -> None:
    async with RawCursor(connection) as cursor:
        await cursor.execute("select $1::int, pg_sleep(0.001)", [dice.randrange(9)], prepare=True)
        await cursor.fetchall()


async def _binary_copy(connection: Connection[TupleRow], dice: random.Random) -> None:
    cursor = connection.cursor()
    async with cursor.copy("copy (select generate_series(1, 500)) to stdout (format binary)") as copy:
        copy.set_types(["int4"])
        async for _ in copy.rows():
            if dice.random() < 0.001:
                break


async def _synchronized_pipeline(connection: Connection[TupleRow], _: random.Random) -> None:
    async with connection.pipeline() as pipeline:
        await connection.execute("select pg_sleep(0.001)")
        await pipeline.sync()
        cursor = await connection.execute("select 1")
        async with connection.pipeline():
            await cursor.fetchone()


async def _savepoints(connection: Connection[TupleRow], _: random.Random) -> None:
    async with connection.transaction():
        with suppress(psycopg.errors.DivisionByZero):
            async with connection.transaction():
                await connection.execute("select 1/0")
        async with connection.transaction("named"), connection.transaction(force_rollback=True):
            await connection.execute("insert into scratch values (1)")


async def _committing(connection: Connection[TupleRow], _: random.Random) -> None:
    """Without autocommit, as psycopg is used by default; whoever borrows it so puts it in order again."""
    try:
        await connection.set_autocommit(False)
        await connection.execute("insert into scratch values (1)")
        await connection.commit()
        await connection.execute("insert into scratch values (2)")
        await connection.rollback()
    finally:
        await _in_order(connection)


async def _two_phase(connection: Connection[TupleRow], dice: random.Random) -> None:
    try:
        await connection.set_autocommit(False)
        await connection.tpc_begin(f"fuzz-{uuid.UUID(int=dice.getrandbits(128))}")
        await connection.execute("select 1")
        await connection.tpc_prepare()
        await connection.tpc_commit()
    finally:
        if not connection.closed and internals.in_two_phase(connection):
            await connection.tpc_rollback()
        await _in_order(connection)


async def _in_order(connection: Connection[TupleRow]) -> None:
    with trio.CancelScope(shield=True):
        if not connection.closed:
            await connection.rollback()
        if not connection.closed:
            await connection.set_autocommit(True)


_OPERATIONS: list[Operation] = [
    _execute,
    _executemany,
    _copy_in,
    _copy_out,
    _pipeline,
    _transaction_in_pipeline,
    _stream,
    _server_cursor,
    _scrolling,
    _returning,
    _raw,
    _binary_copy,
    _synchronized_pipeline,
    _savepoints,
    _committing,
    _two_phase,
]


# Those that begin a transaction in a way that cannot be nested, or name a cursor that may be open already.
_OUTERMOST = (_server_cursor, _scrolling, _committing, _two_phase)


async def _any(connection: Connection[TupleRow], dice: random.Random) -> None:
    operation = dice.choice([one for one in _OPERATIONS if one not in _OUTERMOST])
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


async def _stream_break(connection: Connection[TupleRow], _: random.Random) -> None:
    async for _row in connection.cursor().stream("select generate_series(1, 20000)"):
        break


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_tasks_on_one_connection_are_not_hurt_by_what_others_leave_behind(
    options: PostgresOptions, seed: int
) -> None:
    """Two are cut at random moments, one is not and must not notice: what is left is tidied before the next turn."""
    dice = random.Random(seed)
    connection = await _fresh(options)
    rounds = FUZZ_ROUNDS // 5

    async def be_cut() -> None:
        for _ in range(rounds):
            with trio.move_on_after(0.02 * dice.random()):
                await dice.choice([_copy_in, _copy_out, _stream_break, _execute])(connection, dice)

    async def work() -> None:
        for number in range(rounds):
            assert await (await connection.execute("select %s::int", [number])).fetchone() == (number,)
            await trio.lowlevel.checkpoint()

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(be_cut)
            nursery.start_soon(be_cut)
            nursery.start_soon(work)
        assert await (await connection.execute("select 1")).fetchone() == (1,)
    assert connection.pgconn.transaction_status == IDLE
    await connection.close()


async def _fresh(options: PostgresOptions) -> Connection[TupleRow]:
    connection = await Connection.open(options)
    await connection.execute("create temp table effect (id int primary key, note text)")
    await connection.execute("create temp table scratch (id int, note text)")
    return connection


# Every point, one after the other

MOST_POINTS = 600


@pytest.mark.parametrize("operation", [*_OPERATIONS, _transaction], ids=lambda operation: operation.__name__)
async def test_cut_at_every_point(options: PostgresOptions, server, operation: Operation) -> None:
    """At each, before and after each step: usable or closed, what was cut off has had no effect, no socket is left."""
    connection = await _fresh(options)
    sockets = _open_sockets()
    for due in range(1, MOST_POINTS):
        cut = Cut(due)
        pid = connection.info.backend_pid
        with trio.fail_after(20), trio.CancelScope() as scope:
            with cut.cancelling(scope, at=trio.lowlevel.current_task()):
                await operation(connection, random.Random(7))
        if cut.point is None:
            break
        if connection.closed:
            await _gone(server, pid)
            connection = await _fresh(options)
            continue
        assert connection.pgconn.transaction_status == IDLE, cut.point
        assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF, cut.point
        with trio.fail_after(5):
            assert await (await connection.execute("select %s::int", [due])).fetchone() == (due,), cut.point
        assert server.execute(f"select state from pg_stat_activity where pid = {pid}") == [("idle",)], cut.point
    else:
        assert operation in (_executemany, _copy_in, _copy_out, _stream), "only the long ones may have more points"
    assert _open_sockets() == sockets
    await connection.close()


@pytest.mark.parametrize("operation", [*_OPERATIONS, _transaction], ids=lambda operation: operation.__name__)
async def test_control_c_at_every_wait(options: PostgresOptions, operation: Operation) -> None:
    """It comes out of the wait, and leaves the connection usable or closed, too."""
    connection = await _fresh(options)
    for due in range(1, MOST_POINTS):
        cut = Cut(due)
        with trio.fail_after(20), suppress(KeyboardInterrupt):
            with cut.raising(KeyboardInterrupt, at=trio.lowlevel.current_task()):
                await operation(connection, random.Random(7))
        if cut.point is None:
            break
        if connection.closed:
            connection = await _fresh(options)
            continue
        assert connection.pgconn.transaction_status == IDLE, cut.point
        assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF, cut.point
        assert await (await connection.execute("select %s::int", [due])).fetchone() == (due,), cut.point
    await connection.close()


async def test_a_transaction_cut_at_every_point_is_committed_or_not_as_it_ended(options: PostgresOptions) -> None:
    """`Cancelled` means that nothing was committed; a normal end, that everything was."""
    connection = await _fresh(evolve(options, cancel_grace=30))
    ends = set()
    for due in range(1, MOST_POINTS):
        cut = Cut(due)
        ended = False
        with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
            async with connection.transaction():
                await connection.execute("insert into effect values (%s)", [due])
                async with connection.transaction():
                    await connection.execute("insert into scratch values (%s)", [due])
            ended = True
        assert not connection.closed, cut.point
        for table in ("effect", "scratch"):
            cursor = await connection.execute(f"select count(*) from {table} where id = {due}".encode())
            assert await cursor.fetchone() == (int(ended),), cut.point
        ends.add(ended)
        if cut.point is None:
            break
    else:
        pytest.fail("there are not so many points")
    assert ends == {True, False}
    await connection.close()


COMMIT = b"Q\0\0\0\x0bCOMMIT\0"
COMMITTED = b"C\0\0\0\x0bCOMMIT\0Z\0\0\0\x05I"


class _Scissors:
    """A TCP address of the server that cuts a line after so many bytes of a COMMIT, or of the answer to it."""

    def __init__(self, directory: Path) -> None:
        self._target = str(directory / ".s.PGSQL.54330")
        self.sent = self.answered = 0

    async def handle(self, client: trio.SocketStream) -> None:
        with suppress(trio.BrokenResourceError):
            async with client, await trio.open_unix_socket(self._target) as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._answers, server, client, nursery.cancel_scope)
                async for chunk in client:
                    if chunk == COMMIT:
                        await server.send_all(chunk[: self.sent])
                        if self.sent < len(COMMIT):
                            break
                    else:
                        await server.send_all(chunk)
                nursery.cancel_scope.cancel()

    async def _answers(self, server: trio.SocketStream, client: trio.SocketStream, line: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError):
            async for chunk in server:
                if chunk == COMMITTED:
                    await client.send_all(chunk[: self.answered])
                    if self.answered < len(COMMITTED):
                        break
                else:
                    await client.send_all(chunk)
        line.cancel()


@pytest.mark.parametrize("side", ["sent", "answered"])
async def test_a_commit_whose_line_is_cut_after_any_byte_ends_as_it_should(server, side: str) -> None:
    """Ended well, it is committed; an error is an outage and closes the connection, for the outcome is unknown."""
    server.execute("create table outcome (id int)")
    scissors = _Scissors(server.directory)
    sent, answered = len(COMMIT), len(COMMITTED)
    cuts = [(n, 0) for n in range(sent)] if side == "sent" else [(sent, n) for n in range(answered + 1)]
    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, scissors.handle, [listener])
        port = listener.socket.getsockname()[1]
        options = PostgresOptions.from_url(f"postgresql://postgres@127.0.0.1:{port}/postgres?application_name=cut")
        for number, (scissors.sent, scissors.answered) in enumerate(cuts):
            connection = await Connection.open(options)
            error: psycopg.Error | None = None
            try:
                async with connection.transaction():
                    await connection.execute("insert into outcome values (%s)", [number])
            except psycopg.OperationalError as caught:
                error = caught
            assert connection.closed is (error is not None), cuts[number]
            assert error is None or classify(error) is Fault.OUTAGE
            assert (error is None) is (cuts[number] == (sent, answered)), cuts[number]
            await connection.close()
        nursery.cancel_scope.cancel()
    with trio.fail_after(20):
        while server.execute("select 1 from pg_stat_activity where application_name = 'cut'"):
            await trio.sleep(0.01)  # for a COMMIT that nobody waits for any more
    rows = server.execute("select id from outcome order by id")
    server.execute("drop table outcome")
    assert rows == ([] if side == "sent" else [(number,) for number in range(len(cuts))])


async def test_a_borrower_cut_at_every_point_loses_no_connection(server) -> None:
    """In the queue, while one is opened, checked, used and given back."""
    sockets = _open_sockets()
    async with Pool(server.options(max_size=1, application_name="cut-pool"), check_after=0) as pool:
        for fresh in (True, False):
            for due in range(1, MOST_POINTS):
                if fresh:
                    pool.drop_idle()
                cut = Cut(due)
                with trio.fail_after(20), trio.CancelScope() as scope:
                    with cut.cancelling(scope, at=trio.lowlevel.current_task()):
                        async with pool.connection() as connection, connection.transaction():
                            await connection.execute("select pg_sleep(0.001)")
                assert pool.statistics().in_use == 0, cut.point
                assert pool.loans() == (), cut.point
                if cut.point is None:
                    break
            else:
                pytest.fail("there are not so many points")
            async with pool.connection() as connection:
                assert await (await connection.execute("select 1")).fetchone() == (1,)
    await _none_named(server, "cut-pool")
    assert _open_sockets() == sockets


async def test_a_listener_cut_at_every_point_leaves_nothing_behind(server) -> None:
    """While it connects, hears, changes its channels and ends."""
    options = server.options(application_name="cut-listener")
    sockets = _open_sockets()
    async with await Connection.open(server.options()) as speaker:
        for due in range(1, MOST_POINTS):
            cut = Cut(due)
            with trio.fail_after(20), trio.CancelScope() as scope:
                with cut.cancelling(scope, at=trio.lowlevel.current_task()):
                    async with listen(options, "mill") as notifications:
                        await notifications.add("weir")
                        with trio.CancelScope(shield=True):
                            await speaker.execute("notify weir, 'heard'")
                        await anext(notifications)
                        await notifications.remove("mill")
            if cut.point is None:
                break
        else:
            pytest.fail("there are not so many points")
    await _none_named(server, "cut-listener")
    assert _open_sockets() == sockets


def _open_sockets() -> int:
    links = []
    for entry in os.scandir("/proc/self/fd"):
        with suppress(OSError):
            links.append(os.readlink(entry.path))
    return sum(link.startswith("socket:") for link in links)


async def _gone(server, pid: int) -> None:
    await _until_none(server, f"select 1 from pg_stat_activity where pid = {pid}")


async def _none_named(server, name: str) -> None:
    await _until_none(server, f"select 1 from pg_stat_activity where application_name = '{name}'")


async def _until_none(server, question: str) -> None:
    with trio.fail_after(20):
        while server.execute(question):
            await trio.sleep(0.01)


# Frozen

GRACE = 0.2


@pytest.mark.parametrize("operation", [*_OPERATIONS, _transaction], ids=lambda operation: operation.__name__)
async def test_a_black_hole_never_holds_up_who_is_cancelled(proxy, operation: Operation) -> None:
    """The network swallows everything, cancel requests included: every task is back within a few graces."""
    sockets = _open_sockets()
    dice = random.Random(3)
    for _ in range(4):
        connection = await _fresh(proxy.options(cancel_grace=GRACE))
        with trio.CancelScope() as scope, suppress(psycopg.OperationalError):
            async with _freezing(proxy, scope, dice.random() * 0.01):
                while True:
                    await operation(connection, dice)
        # A clean-up has a few waits (roll back a savepoint, then the transaction …), each with its grace.
        assert trio.current_time() - scope.deadline < 5 * GRACE + 20
        assert connection.closed or connection.pgconn.transaction_status == IDLE
        connection.abandon()
        proxy.thaw()
    await _until(lambda: proxy.connections == 0)
    assert _open_sockets() == sockets


@asynccontextmanager
async def _freezing(proxy, scope: trio.CancelScope, after: float) -> AsyncIterator[None]:
    """Cut the network *after* seconds, and cancel *scope* a little later. Errors of the block come out bare."""

    async def freeze() -> None:
        await trio.sleep(after)
        proxy.freeze()
        scope.deadline = trio.current_time() + 0.05

    async with trio.open_nursery() as nursery:
        nursery.start_soon(freeze)
        try:
            yield
        except psycopg.OperationalError:
            await trio.sleep_forever()  # the operation gave up before it was cancelled


@pytest.mark.parametrize(
    "operation", [_execute, _savepoints, _pipeline, _copy_in, _stream], ids=lambda one: one.__name__
)
async def test_a_frozen_backend_never_holds_up_who_is_cancelled(own_server, operation: Operation) -> None:
    """Only this session's process hangs: the server takes the cancel request, and nothing comes of it."""
    connection = await _fresh(own_server.options(cancel_grace=GRACE))
    pid = connection.info.backend_pid
    os.kill(pid, signal.SIGSTOP)
    with trio.move_on_after(0.05) as scope:
        await operation(connection, random.Random(1))
    assert trio.current_time() - scope.deadline < 5 * GRACE + 20
    assert connection.closed
    os.kill(pid, signal.SIGCONT)
    await _gone(own_server, pid)


async def _until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.005)
