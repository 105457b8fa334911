"""The table of errors: complete for every SQLSTATE there is, and true on a real server made to refuse."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest
import trio
from psycopg.rows import TupleRow

from penstock.runtime.embedded.binaries import postgres_installation
from penstock.runtime.postgres import (
    ERRORS,
    FAULTS,
    Connection,
    Cursor,
    Fault,
    Pool,
    PostgresOptions,
    PostgresRejected,
    PostgresUnavailable,
    RawCursor,
    classify,
)

DOCS = Path(__file__).parents[3] / "docs"


def every_state() -> dict[str, str]:
    """SQLSTATEs and names: all that are errors, of the server's own list and of psycopg's."""
    listed = (postgres_installation() / "share" / "errcodes.txt").read_text().splitlines()
    rows = [line.split() for line in listed if line[:1].isalnum() and not line.startswith("Section")]
    servers = {row[0]: row[2] for row in rows if row[1] == "E"}
    psycopgs = {state: name for name, cls in vars(psycopg.errors).items() if (state := _state(cls)) is not None}
    return {**psycopgs, **servers}


def _state(value: object) -> str | None:
    state = getattr(value, "sqlstate", None)
    return state if isinstance(value, type) and isinstance(state, str) else None


# What every class comes to, and the errors in it that differ: another look at the same table, from the other side.
CLASSES = {
    "02": (Fault.BUG, {}),
    "03": (Fault.BUG, {}),
    "08": (Fault.OUTAGE, {}),
    "09": (Fault.BUG, {}),
    "0A": (Fault.BUG, {}),
    "0B": (Fault.BUG, {}),
    "0F": (Fault.BUG, {}),
    "0L": (Fault.BUG, {}),
    "0P": (Fault.BUG, {}),
    "0Z": (Fault.BUG, {}),
    "10": (Fault.BUG, {}),
    "20": (Fault.BUG, {}),
    "21": (Fault.BUG, {}),
    "22": (Fault.EVENT, {}),
    "23": (Fault.EVENT, {}),
    "24": (Fault.BUG, {}),
    "25": (Fault.BUG, {"25006": Fault.RETRY, "25P03": Fault.RETRY, "25P04": Fault.RETRY}),
    "26": (Fault.BUG, {}),
    "27": (Fault.BUG, {}),
    "28": (Fault.CONFIG, {}),
    "2B": (Fault.BUG, {}),
    "2D": (Fault.BUG, {}),
    "2F": (Fault.BUG, {}),
    "34": (Fault.BUG, {}),
    "38": (Fault.BUG, {}),
    "39": (Fault.BUG, {}),
    "3B": (Fault.BUG, {}),
    "3D": (Fault.CONFIG, {}),
    "3F": (Fault.BUG, {}),
    "40": (Fault.RETRY, {}),
    "42": (Fault.BUG, {"42501": Fault.CONFIG}),
    "44": (Fault.EVENT, {}),
    "53": (Fault.OUTAGE, {"53400": Fault.CONFIG}),
    "54": (Fault.BUG, {"54000": Fault.EVENT}),
    "55": (Fault.BUG, {"55006": Fault.RETRY, "55P03": Fault.RETRY}),
    "57": (
        Fault.RETRY,
        {"57P01": Fault.OUTAGE, "57P02": Fault.OUTAGE, "57P03": Fault.OUTAGE, "57P04": Fault.CONFIG},
    ),
    "58": (Fault.BUG, {"58030": Fault.OUTAGE}),
    "72": (Fault.RETRY, {}),
    "F0": (Fault.CONFIG, {}),
    "HV": (Fault.BUG, {}),
    "P0": (Fault.BUG, {}),
    "XX": (Fault.BUG, {}),
}


def test_every_sqlstate_has_the_fault_of_its_class() -> None:
    """A class that a new PostgreSQL or psycopg brings fails here until somebody has thought about it."""
    states = every_state()
    assert len(states) > 240
    for state, name in states.items():
        fault, others = CLASSES[state[:2]]
        kind = psycopg.errors.lookup(state) if state in psycopg.errors._sqlcodes else _unknown_to_psycopg(state)
        assert classify(kind()) is others.get(state, fault), f"{state} {name}"
    assert {state[:2] for state in states} >= CLASSES.keys() - {"10"}


def _unknown_to_psycopg(state: str) -> type[psycopg.Error]:
    return type("Unknown", (psycopg.DatabaseError,), {"sqlstate": state})


def test_a_state_of_an_extension_is_a_bug() -> None:
    assert classify(_unknown_to_psycopg("ZZ123")()) is Fault.BUG


def test_every_row_is_about_errors_that_there_are() -> None:
    known = every_state()
    states = [state for row in ERRORS for state in row.states]
    assert [state for state in states if state not in known and state not in {key[:2] for key in known}] == []
    assert [state for state in states if states.count(state) > 1] == ["25006", "25006"]
    assert FAULTS.keys() == set(states)
    assert {row.fault for row in ERRORS} == set(Fault)


def test_the_reference_is_the_table() -> None:
    lines = (DOCS / "reference" / "postgres-errors.md").read_text().splitlines()
    expected = [
        f"| {' '.join(row.states)} | {row.text} | {row.meaning} | {row.fault.value}"
        f" | {'yes' if row.shuts_gate else ''} | {row.action} |"
        for row in ERRORS
    ]
    assert [line for line in lines if line.startswith("|")][2:] == expected


# On a real server


@pytest.fixture
async def connection(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(options)
    yield connection
    if not connection.closed:
        await connection.close()


async def fails(connection: Connection[TupleRow], statement: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(statement.encode())
    return caught.value


async def test_connection_refused() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(PostgresUnavailable, match="refused") as caught:
            await Connection.open(PostgresOptions(host="127.0.0.1", port=str(closed.getsockname()[1])))
    assert classify(caught.value) is Fault.OUTAGE


async def test_57p01_admin_shutdown(own_server) -> None:
    """What a running statement is told when the server is stopped."""
    connection = await Connection.open(own_server.options())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, own_server.stop)
        error = await fails(connection, "select pg_sleep(60)")
    assert error.sqlstate == "57P01"
    assert classify(error) is Fault.OUTAGE


async def test_57p03_cannot_connect_now(own_server) -> None:
    """A server in recovery that is no hot standby lets nobody in."""
    own_server.stop()
    (own_server.data / "standby.signal").touch()
    own_server.start(wait=False, hot_standby="off")
    troubles: list[PostgresUnavailable] = []
    with trio.fail_after(30):
        while not any("not accepting" in str(trouble) for trouble in troubles):
            with pytest.raises(PostgresUnavailable):
                await Connection.open(own_server.options(), on_trouble=troubles.append)
            await trio.sleep(0.02)


async def test_53300_too_many_connections_of_a_role(own_server) -> None:
    own_server.execute("create role penstock login password 'x' connection limit 0")
    with pytest.raises(PostgresUnavailable, match="too many connections for role"):
        await Connection.open(own_server.options(user="penstock", password="x"))


async def test_28000_no_line_in_pg_hba(server) -> None:
    server.execute("create role stranger login")
    try:
        with pytest.raises(PostgresRejected, match=r"pg_hba\.conf"):
            await Connection.open(server.options(user="stranger"))
    finally:
        server.execute("drop role stranger")


async def test_28_no_such_role(server) -> None:
    with pytest.raises(PostgresRejected):
        await Connection.open(server.options(user="nobody-of-that-name"))


async def test_3d000_no_such_database(server) -> None:
    with pytest.raises(PostgresRejected, match="nowhere"):
        await Connection.open(server.options(database="nowhere"))


async def test_57p04_or_57p01_a_dropped_database(server) -> None:
    """Dropped by force while somebody is connected; then nobody gets in any more."""
    server.execute("create database doomed")
    connection = await Connection.open(server.options(database="doomed"))
    server.execute("drop database doomed with (force)")
    assert classify(await fails(connection, "select 1")) in (Fault.OUTAGE, Fault.CONFIG)
    with pytest.raises(PostgresRejected, match="doomed"):
        await Connection.open(server.options(database="doomed"))


async def test_55006_object_in_use(server, connection) -> None:
    server.execute("create database busy")
    inside = await Connection.open(server.options(database="busy"))
    error = await fails(connection, "drop database busy")
    assert error.sqlstate == "55006"
    assert classify(error) is Fault.RETRY
    await inside.close()
    server.execute("drop database busy with (force)")


async def test_40001_serialization_failure(options, connection) -> None:
    """Write skew between two serializable transactions."""
    other = await Connection.open(options)
    await connection.execute("create table skewed as select n as id, 0 as value from generate_series(1, 2) n")
    try:
        for one in (connection, other):
            await one.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        with pytest.raises(psycopg.errors.SerializationFailure) as caught:
            async with connection.transaction():
                await connection.execute("select sum(value) from skewed")
                async with other.transaction():
                    await other.execute("select sum(value) from skewed")
                    await other.execute("update skewed set value = 1 where id = 1")
                await connection.execute("update skewed set value = 1 where id = 2")
        assert classify(caught.value) is Fault.RETRY
    finally:
        await other.close()
        await connection.set_isolation_level(None)
        await connection.execute("drop table skewed")


@pytest.mark.parametrize(
    ("setting", "state"),
    [
        ("idle_in_transaction_session_timeout", "25P03"),
        ("transaction_timeout", "25P04"),
        ("idle_session_timeout", "57P05"),
    ],
)
async def test_sessions_that_the_server_ends_for_their_slowness(server, setting: str, state: str) -> None:
    """Nobody's outage: the server is well, and on_trouble would have shut the gate."""
    troubles: list[PostgresUnavailable] = []
    connection = await Connection.open(server.options(), on_trouble=troubles.append)
    pid = connection.info.backend_pid
    await connection.execute(f"set {setting} = 20".encode())
    if state != "57P05":
        await connection.execute("begin")
    with trio.fail_after(20):
        while server.execute(f"select 1 from pg_stat_activity where pid = {pid}"):
            await trio.sleep(0.01)
    error = await fails(connection, "select 1")
    assert connection.closed
    assert (error.sqlstate, classify(error), troubles) == (state, Fault.RETRY, [])


@pytest.mark.parametrize(
    ("statement", "state", "fault"),
    [
        ("insert into child values (99)", "23503", Fault.EVENT),
        ("delete from parent where id = 1", "23503", Fault.EVENT),
        ("insert into parent values (1)", "23505", Fault.EVENT),
        ("insert into parent values (null)", "23502", Fault.EVENT),
        ("insert into parent values (1000)", "23514", Fault.EVENT),
        ("insert into booking values ('[2,3]')", "23P01", Fault.EVENT),
        ("insert into few values (2)", "44000", Fault.EVENT),
        ("insert into note values (repeat('x', 100))", "22001", Fault.EVENT),
        ("select 'no json'::json", "22P02", Fault.EVENT),
        ("select '2025-02-31'::date", "22008", Fault.EVENT),
        ("select convert_from('\\xff', 'UTF8')", "22021", Fault.EVENT),
        ("insert into wide select string_agg(md5(n::text), '') from generate_series(1, 2000) n", "54000", Fault.EVENT),
        ("set temp_file_limit = 0; select * from generate_series(1, 3000000) order by 1 desc", "53400", Fault.CONFIG),
        ("alter system set shared_buffers = 'no'", "22023", Fault.EVENT),
        ("set local lock_timeout = 5; select pg_advisory_lock(1)", "55P03", Fault.RETRY),
        ("insert into parent values (5), (5) on conflict (id) do update set id = 5", "21000", Fault.BUG),
        ("commit prepared 'nothing'", "42704", Fault.BUG),
        ("create temp table parent ()", "42P07", Fault.BUG),
        ("select no_such_column from parent", "42703", Fault.BUG),
        ("select no_such_function()", "42883", Fault.BUG),
        ("release savepoint nothing", "25P01", Fault.BUG),
        ("begin; rollback to savepoint nothing", "3B001", Fault.BUG),
        ("fetch from nothing", "34000", Fault.BUG),
        ("execute nothing", "26000", Fault.BUG),
        ("drop table parent", "2BP01", Fault.BUG),
        ("vacuum; select 1", "25001", Fault.BUG),
        ("do $$ begin assert false; end $$", "P0004", Fault.BUG),
        ("copy parent from '/nowhere/at/all'", "58P01", Fault.BUG),
    ],
)
async def test_faults_of_statements_that_a_server_really_refuses(
    options, connection, statement: str, state: str, fault: Fault
) -> None:
    await connection.execute(
        """
        create temp table parent (id int primary key check (id < 1000));
        insert into parent values (1);
        create temp table child (parent int references parent);
        insert into child values (1);
        create temp table booking (days int4range, exclude using gist (days with &&));
        insert into booking values ('[1,5]');
        create temp table numbers (id int);
        create temp view few as select * from numbers where id < 2 with check option;
        create temp table note (text varchar(10));
        create temp table wide (text text unique)
        """
    )
    async with await Connection.open(options) as holder:
        await holder.execute("select pg_advisory_lock(1)")
        error = await fails(connection, statement)
    assert error.sqlstate == state, error
    assert classify(error) is fault


async def test_an_outage_reaches_on_trouble_and_nothing_else_does(options) -> None:
    troubles: list[PostgresUnavailable] = []
    async with Pool(options, on_trouble=troubles.append) as pool, pool.connection() as connection:
        for state in ("23505", "40001", "42601", "55P03", "57014", "28000"):
            await fails(connection, f"do $$ begin raise sqlstate '{state}'; end $$")
        assert troubles == []
        await fails(connection, "do $$ begin raise sqlstate '57P03'; end $$")
        assert len(troubles) == 1


@pytest.mark.parametrize(
    ("statement", "parameters"),
    [
        ("select 1 where 1 in (" + ", ".join(["%s"] * 65536) + ")", list(range(65536))),
        ("select $1::int, $2::int", [1]),
    ],
)
async def test_what_libpq_refuses_to_do_is_a_bug_and_costs_no_connection(options, statement, parameters) -> None:
    """An outage is waited for: these would be waited for until somebody mends the program, with the gate shut."""
    troubles: list[PostgresUnavailable] = []
    async with Pool(options, on_trouble=troubles.append) as pool:
        async with pool.connection() as connection:
            kind = RawCursor if "$" in statement else Cursor
            with pytest.raises(psycopg.OperationalError) as caught:
                await kind(connection).execute(statement.encode(), parameters)
            assert classify(caught.value) is Fault.BUG
            assert not connection.closed
        assert troubles == []
        assert pool.statistics().idle == 1


async def test_a_failed_block_in_a_transaction_that_was_too_slow_is_no_trouble(server) -> None:
    """The ROLLBACK finds the end of the connection, of whose reason psycopg tells nobody but libpq's text."""
    troubles: list[PostgresUnavailable] = []
    connection = await Connection.open(server.options(), on_trouble=troubles.append)
    pid = connection.info.backend_pid
    with pytest.raises(KeyError):
        async with connection.transaction():
            await connection.execute("set local idle_in_transaction_session_timeout = 20")
            with trio.fail_after(20):
                while server.execute(f"select 1 from pg_stat_activity where pid = {pid}"):
                    await trio.sleep(0.01)
            raise KeyError
    assert connection.closed
    assert troubles == []
