from __future__ import annotations

import socket
import time
from collections.abc import AsyncIterator

import psycopg
import pytest
import trio
import trio.testing
from psycopg import pq
from psycopg.rows import TupleRow, dict_row

from penstock.runtime.postgres import (
    Connection,
    Fault,
    PostgresOptions,
    PostgresRejected,
    PostgresUnavailable,
    classify,
)

IDLE = pq.TransactionStatus.IDLE


@pytest.fixture
async def connection(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(options)
    yield connection
    await connection.close()


@pytest.fixture
async def table(connection: Connection[TupleRow]) -> str:
    """An empty temporary table ``effect(id, note)`` with a key."""
    await connection.execute("create temp table effect (id int primary key, note text)")
    return "effect"


async def count(connection: Connection[TupleRow]) -> int:
    cursor = await connection.execute("select count(*) from effect")
    row = await cursor.fetchone()
    assert row is not None
    return int(row[0])


async def test_open_gives_a_named_autocommit_connection(connection: Connection[TupleRow]) -> None:
    cursor = await connection.execute("select current_setting('application_name')")
    assert await cursor.fetchone() == ("penstock",)
    assert connection.autocommit
    assert connection.pgconn.transaction_status == IDLE


async def test_connect_keeps_psycopgs_signature_and_defaults(server, options: PostgresOptions) -> None:
    connection = await Connection.connect(server.url, row_factory=dict_row)
    async with connection:
        assert not connection.autocommit
        cursor = await connection.execute("select %s::int as answer", [42])
        assert await cursor.fetchone() == {"answer": 42}
    assert connection.closed


async def test_open_says_unavailable_where_no_server_is(tmp_path) -> None:
    options = PostgresOptions.from_url(f"postgresql://u:secret@/db?host={tmp_path}")
    troubles: list[PostgresUnavailable] = []
    with pytest.raises(PostgresUnavailable, match="No such file") as caught:
        await Connection.open(options, on_trouble=troubles.append)
    assert troubles == [caught.value]
    assert str(tmp_path) in caught.value.address
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("change", [{"password": "wrong"}, {"password": None}])
async def test_open_says_rejected_for_a_wrong_password(server, change) -> None:
    options = server.options(**{"user": "penstock", **change})
    with pytest.raises(PostgresRejected, match="password"):
        await Connection.open(options)


async def test_open_says_rejected_for_a_database_that_is_not_there(server) -> None:
    with pytest.raises(PostgresRejected, match="nowhere"):
        await Connection.open(server.options(database="nowhere"))


async def test_a_password_with_reserved_characters_works_from_a_url(server) -> None:
    url = f"postgresql://penstock:s3cret%2F%25%40%3A@/postgres?host={server.directory}&port=54330"
    connection = await Connection.open(PostgresOptions.from_url(url))
    assert connection.info.user == "penstock"
    await connection.close()


async def test_open_gives_up_on_a_server_that_accepts_and_says_nothing(tmp_path) -> None:
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(tmp_path / ".s.PGSQL.5432"))
    listener.listen(1)
    options = PostgresOptions(host=str(tmp_path), connect_timeout=0.2)
    with pytest.raises(PostgresUnavailable, match=r"0\.2 s"):
        await Connection.open(options)
    listener.close()


async def test_hosts_are_tried_in_turn(server, tmp_path) -> None:
    options = PostgresOptions.from_url(f"postgresql://postgres@/postgres?host={tmp_path},{server.directory}&port=54330")
    connection = await Connection.open(options)
    assert await (await connection.execute("select 1")).fetchone() == (1,)
    await connection.close()
    nowhere = PostgresOptions.from_url(f"postgresql://postgres@/postgres?host={tmp_path},{tmp_path}/other&port=54330")
    with pytest.raises(PostgresUnavailable, match="/other"):
        await Connection.open(nowhere)


async def test_of_several_hosts_the_one_that_refuses_is_named(server, tmp_path) -> None:
    hosts = f"{tmp_path},{server.directory}"
    options = PostgresOptions.from_url(f"postgresql://penstock:wrong@/postgres?host={hosts}&port=54330")
    with pytest.raises(PostgresRejected, match="password authentication failed"):
        await Connection.open(options)


@pytest.mark.parametrize("host", ["localhost", "nowhere.invalid"])
async def test_a_name_that_leads_nowhere_is_unavailable(host: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(PostgresUnavailable, match=host):
            await Connection.open(PostgresOptions(host=host, port=str(port), connect_timeout=5))


async def test_statement_timeout_of_the_options_holds_on_the_server(server) -> None:
    connection = await Connection.open(server.options(statement_timeout=0.05))
    with pytest.raises(psycopg.errors.QueryCanceled):
        await connection.execute("select pg_sleep(10)")
    await connection.close()


async def test_executemany_and_returning(connection: Connection[TupleRow], table: str) -> None:
    cursor = connection.cursor()
    await cursor.executemany("insert into effect values (%s, %s)", [(n, str(n)) for n in range(1000)])
    assert cursor.rowcount == 1000
    await cursor.executemany("select %s::int", [(1,), (2,)], returning=True)
    assert [await result.fetchone() async for result in cursor.results()] == [(1,), (2,)]
    assert await count(connection) == 1000


async def test_copy_in_and_out(connection: Connection[TupleRow], table: str) -> None:
    cursor = connection.cursor()
    async with cursor.copy("copy effect from stdin") as copy:
        for number in range(5000):
            await copy.write_row((number, "x" * 100))
    assert cursor.rowcount == 5000
    async with cursor.copy("copy (select id from effect order by id) to stdout") as copy:
        rows = [int(row[0]) async for row in copy.rows()]
    assert rows == list(range(5000))


async def test_binary_copy(connection: Connection[TupleRow], table: str) -> None:
    async with connection.cursor().copy("copy effect from stdin (format binary)") as copy:
        copy.set_types(["int4", "text"])
        await copy.write_row((1, "one"))
    assert await count(connection) == 1


async def test_an_exception_in_a_copy_writes_nothing(connection: Connection[TupleRow], table: str) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connection.cursor().copy("copy effect from stdin") as copy:
            await copy.write_row((1, "one"))
            raise ZeroDivisionError
    assert await count(connection) == 0


async def test_leaving_a_copy_out_early_with_an_exception(connection: Connection[TupleRow]) -> None:
    with pytest.raises(ZeroDivisionError):
        async with connection.cursor().copy("copy (select generate_series(1, 1000000)) to stdout") as copy:
            await copy.read()
            raise ZeroDivisionError
    assert await (await connection.execute("select 1")).fetchone() == (1,)


async def test_pipeline(connection: Connection[TupleRow], table: str) -> None:
    async with connection.pipeline():
        cursors = [await connection.execute("insert into effect values (%s) returning id", [n]) for n in range(50)]
        assert [await cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]
    assert connection.pgconn.pipeline_status == pq.PipelineStatus.OFF
    assert await count(connection) == 50


async def test_transaction_in_a_pipeline_rolls_back_and_leaves_it_usable(
    connection: Connection[TupleRow], table: str
) -> None:
    async with connection.pipeline():
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction():
                await connection.execute("insert into effect values (1)")
                raise ZeroDivisionError
        async with connection.transaction():
            await connection.execute("insert into effect values (2)")
    assert await count(connection) == 1


async def test_stream_left_early(connection: Connection[TupleRow]) -> None:
    rows = connection.cursor().stream("select generate_series(1, 1000000)")
    async for (number,) in rows:
        if number == 3:
            break
    await rows.aclose()
    assert connection.pgconn.transaction_status == IDLE
    assert await (await connection.execute("select 1")).fetchone() == (1,)


async def test_server_cursor(connection: Connection[TupleRow]) -> None:
    async with connection.transaction(), connection.cursor("numbers") as cursor:
        await cursor.execute("select generate_series(1, 250)")
        assert [row[0] async for row in cursor] == list(range(1, 251))


async def test_savepoints(connection: Connection[TupleRow], table: str) -> None:
    async with connection.transaction():
        await connection.execute("insert into effect values (1)")
        with pytest.raises(psycopg.errors.UniqueViolation):
            async with connection.transaction():
                await connection.execute("insert into effect values (1)")
        async with connection.transaction() as inner:
            await connection.execute("insert into effect values (2)")
            raise psycopg.Rollback(inner)
        await connection.execute("insert into effect values (3)")
    cursor = await connection.execute("select id from effect order by id")
    assert await cursor.fetchall() == [(1,), (3,)]


async def test_listen_and_notify(options: PostgresOptions, connection: Connection[TupleRow]) -> None:
    """`notifies()` works as it is on a connection of its own; its time-out and early end leave it usable."""
    listener = await Connection.open(options)
    await listener.execute("listen mill")
    await connection.execute("notify mill, 'open'")
    assert [note.payload async for note in listener.notifies(stop_after=1, timeout=5)] == ["open"]
    assert [note async for note in listener.notifies(timeout=0)] == []
    with trio.move_on_after(0.05) as scope:
        async for _ in listener.notifies():
            pytest.fail("nothing was sent")
    assert scope.cancelled_caught
    await connection.execute("notify mill, 'shut'")
    assert [note.payload async for note in listener.notifies(stop_after=1, timeout=5)] == ["shut"]
    await listener.close()


async def test_statements_of_several_tasks_take_turns(connection: Connection[TupleRow]) -> None:
    async def ask(number: int) -> None:
        cursor = await connection.execute("select %s::int", [number])
        answers.append(await cursor.fetchone())

    answers: list[TupleRow | None] = []
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)
    assert sorted(answers) == [(n,) for n in range(20)]


async def test_a_task_waiting_is_told_when_another_closes(connection: Connection[TupleRow]) -> None:
    async with trio.open_nursery() as nursery:

        async def sleep_on_the_server() -> None:
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await connection.execute("select pg_sleep(60)")

        nursery.start_soon(sleep_on_the_server)
        await trio.testing.wait_all_tasks_blocked()
        await connection.close()


async def test_long_executemany_shares_the_loop(connection: Connection[TupleRow], table: str) -> None:
    """No other task waits for longer than a quarter of a second's work while thousands of rows are sent."""
    gaps: list[float] = []

    async def ticker() -> None:
        # This thread's own time: what others do on this machine says nothing about the loop.
        last = time.thread_time()
        while True:
            await trio.lowlevel.checkpoint()
            gaps.append(time.thread_time() - last)
            last = time.thread_time()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ticker)
        rows = [(n, "note") for n in range(20_000)]
        await connection.cursor().executemany("insert into effect values (%s, %s)", rows)
        async with connection.cursor().copy("copy effect from stdin") as copy:
            for number in range(20_000, 60_000):
                await copy.write_row((number, "note"))
        nursery.cancel_scope.cancel()
    assert max(gaps) < 0.25
    assert len(gaps) > 20


async def test_a_stream_left_open_does_not_cut_the_next_statement_short(connection: Connection[TupleRow]) -> None:
    """It is finalized by a task of trio's, while the next statement waits for its turn, or has it already."""
    for _ in range(10):
        async for _ in connection.cursor().stream("select generate_series(1, 100000)"):
            break
        with trio.fail_after(20):
            cursor = await connection.execute("select 1 from pg_sleep(0.01)")
            assert await cursor.fetchone() == (1,)


@pytest.mark.parametrize("prepare", [None, True])
async def test_a_prepared_statement_outlives_a_change_of_its_table(connection, options, prepare: bool | None) -> None:
    """It fails once, as nobody's fault, and is prepared anew; psycopg would execute it by its name for ever."""
    await connection.execute("create table widened (a int)")
    async with await Connection.open(options) as other:
        for column in ("b", "c"):
            for _ in range(8):
                await connection.execute("select * from widened", prepare=prepare)
            await other.execute(f"alter table widened add {column} int".encode())
            with pytest.raises(psycopg.errors.FeatureNotSupported) as caught:
                await connection.execute("select * from widened", prepare=prepare)
            assert classify(caught.value) is Fault.RETRY
        for _ in range(8):
            cursor = await connection.execute("select * from widened", prepare=prepare)
        assert len(cursor.description or ()) == 3
        await other.execute("drop table widened")


@pytest.mark.parametrize("prepare", [None, True])
async def test_a_prepared_statement_that_the_server_lost_is_prepared_anew(connection, prepare: bool | None) -> None:
    for _ in range(2):
        for _ in range(8):
            await connection.execute("select 1 + 1", prepare=prepare)
        await connection.execute("do $$ begin execute 'deallocate all'; end $$")
        with pytest.raises(psycopg.errors.InvalidSqlStatementName) as caught:
            await connection.execute("select 1 + 1", prepare=prepare)
        assert classify(caught.value) is Fault.RETRY
    for _ in range(8):
        await connection.execute("select 1 + 1", prepare=prepare)
