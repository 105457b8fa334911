"""The contract: psycopg's whole asynchronous surface does on trio what it does on asyncio.

Each scenario is run twice against the same server, by psycopg's own `AsyncConnection` on asyncio (in a thread) and by
ours on trio, and has to come to the same results, errors included. Which of psycopg's methods the scenarios really run
is measured: what a new version of psycopg brings, or what nobody runs, fails the last test.
"""

from __future__ import annotations

import asyncio
import inspect
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import date
from decimal import Decimal
from types import CodeType, FrameType
from typing import Any

import psycopg
import psycopg.copy
import pytest
import trio
from psycopg import pq, sql
from psycopg.rows import args_row, class_row, dict_row, kwargs_row, namedtuple_row, scalar_row
from psycopg.types import TypeInfo
from psycopg.types.json import Jsonb

from penstock.runtime.postgres import (
    ClientCursor,
    Connection,
    Cursor,
    RawCursor,
    RawServerCursor,
    ServerCursor,
)

AnyConnection = psycopg.AsyncConnection[Any]
Scenario = Callable[["Side"], Awaitable[object]]

SCENARIOS: list[Scenario] = []


class Side:
    """One of the two: opens connections, and keeps them to be closed."""

    def __init__(self, kind: type[AnyConnection], url: str) -> None:
        self._kind = kind
        self._url = url
        self._opened: list[AnyConnection] = []

    async def connect(self, **arguments: Any) -> AnyConnection:
        connection = await self._kind.connect(self._url, **arguments)
        self._opened.append(connection)
        return connection

    async def table(self, **arguments: Any) -> AnyConnection:
        """A connection with a temporary table ``effect (id int primary key, note text)`` of three rows."""
        connection = await self.connect(autocommit=True, **arguments)
        cursor = psycopg.AsyncCursor(connection)
        await cursor.execute("create temp table effect (id int primary key, note text)")
        await cursor.execute("insert into effect values (1, 'one'), (2, 'two'), (3, null)")
        return connection

    async def close(self) -> None:
        for connection in self._opened:
            await connection.close()


def scenario(function: Scenario) -> Scenario:
    SCENARIOS.append(function)
    return function


async def outcome(awaitable: Awaitable[object]) -> object:
    """What came of it: a value, or an error's class and SQLSTATE."""
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - to be compared
        return type(error).__name__, getattr(error, "sqlstate", None)


async def collect(rows: Any) -> list[Any]:
    return [row async for row in rows]


# Connections


@scenario
async def connect_with_every_argument(side: Side) -> object:
    context = psycopg.adapt.AdaptersMap(psycopg.adapters)
    context.register_loader("int4", psycopg.types.string.TextLoader)
    connection = await side.connect(
        autocommit=True,
        prepare_threshold=2,
        context=_Context(context),
        row_factory=dict_row,
        cursor_factory=psycopg.AsyncClientCursor,
        application_name="by keyword",
    )
    cursor = await connection.execute("select 1 as n, current_setting('application_name') as name")
    return (
        connection.autocommit,
        connection.prepare_threshold,
        type(connection.cursor()).__name__,
        await cursor.fetchall(),
    )


class _Context:
    def __init__(self, adapters: psycopg.adapt.AdaptersMap) -> None:
        self.adapters = adapters
        self.connection = None


@scenario
async def connections_as_context_managers(side: Side) -> object:
    """Left normally it commits, left with an error it rolls back; both close."""
    seen: list[object] = []
    name = f"managed_{uuid.uuid4().hex}"
    async with await side.connect() as connection:
        await connection.execute(f"create table {name} ()".encode())
    seen.append(connection.closed)
    try:
        async with await side.connect() as connection:
            await connection.execute(f"drop table {name}".encode())
            raise ZeroDivisionError
    except ZeroDivisionError:
        seen.append(connection.closed)
    async with await side.connect() as connection:
        seen.append(await outcome(connection.execute(f"drop table {name}".encode())) is not None)
        await connection.close()
    async with await side.connect(autocommit=True) as connection:
        cursor = await connection.execute(f"drop table {name}; select 1".encode())
        seen.append(cursor.statusmessage)
    return seen


@scenario
async def what_a_connection_tells_of_itself(side: Side) -> object:
    connection = await side.connect(autocommit=True)
    info = connection.info
    seen = [
        info.dbname, info.user, info.password, info.port, info.encoding, info.status, info.transaction_status,
        info.pipeline_status, info.server_version > 0, info.backend_pid > 0, info.error_message, info.timezone.key,
        info.parameter_status("server_encoding"), connection.closed, connection.broken, connection.autocommit,
        connection.isolation_level, connection.read_only, connection.deferrable, connection.prepared_max,
        connection.connection is connection, connection.fileno() == connection.pgconn.socket,
        connection.adapters is connection.adapters, len(info.get_parameters()) > 0, "host" in info.dsn,
    ]  # fmt: skip
    connection.prepared_max = 7
    seen.append(connection.prepared_max)
    connection.prepared_max = None
    seen.append(connection.prepared_max)
    await connection.close()
    await connection.close()
    seen += [connection.closed, connection.broken, await outcome(connection.execute("select 1"))]
    return seen


@scenario
async def a_broken_connection(side: Side) -> object:
    connection = await side.connect(autocommit=True)
    other = await side.connect(autocommit=True)
    await other.execute("select pg_terminate_backend(%s, 5000)", [connection.info.backend_pid])
    error = await outcome(connection.execute("select 1"))
    return error, connection.closed, connection.broken, await outcome(connection.execute("select 1"))


@scenario
async def session_characteristics(side: Side) -> object:
    seen: list[object] = []
    connection = await side.connect()
    await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    await connection.set_read_only(True)
    await connection.set_deferrable(True)
    seen += [connection.isolation_level, connection.read_only, connection.deferrable]
    for setting in ("transaction_isolation", "transaction_read_only", "transaction_deferrable"):
        cursor = await connection.execute(sql.SQL("show {}").format(sql.Identifier(setting)))
        seen.append(await cursor.fetchone())
    for change in (
        connection.set_autocommit(True),
        connection.set_isolation_level(None),
        connection.set_read_only(None),
    ):
        seen.append(await outcome(change))
    await connection.rollback()
    await connection.set_isolation_level(None)
    await connection.set_read_only(None)
    await connection.set_deferrable(None)
    await connection.set_autocommit(True)
    seen += [connection.autocommit, connection.isolation_level]
    for name in ("autocommit", "isolation_level", "read_only", "deferrable"):
        try:
            setattr(connection, name, None)
        except AttributeError as error:
            seen.append(str(error))
    return seen


@scenario
async def commit_and_rollback(side: Side) -> object:
    connection = await side.table()
    await connection.set_autocommit(False)
    seen: list[object] = []
    await connection.execute("insert into effect values (4)")
    seen.append(connection.info.transaction_status)
    await connection.rollback()
    await connection.execute("insert into effect values (5)")
    await connection.commit()
    seen += [connection.info.transaction_status, await outcome(connection.execute("select 1/0"))]
    seen += [connection.info.transaction_status, await outcome(connection.execute("select 1"))]
    await connection.rollback()
    seen.append(await (await connection.execute("select id from effect order by id")).fetchall())
    return seen


@scenario
async def notices(side: Side) -> object:
    connection = await side.connect(autocommit=True)
    heard: list[tuple[object, ...]] = []

    def hear(notice: psycopg.errors.Diagnostic) -> None:
        heard.append((notice.severity, notice.message_primary, notice.sqlstate))

    connection.add_notice_handler(hear)
    await connection.execute("do $$ begin raise notice 'first'; raise warning 'second'; end $$")
    connection.remove_notice_handler(hear)
    await connection.execute("do $$ begin raise notice 'unheard'; end $$")
    return heard


@scenario
async def notifications(side: Side) -> object:
    listener, speaker = await side.connect(autocommit=True), await side.connect(autocommit=True)
    channel = f"channel_{uuid.uuid4().hex}"
    await listener.execute(f"listen {channel}".encode())
    seen: list[object] = []
    for payload in ("a", "b", "c"):
        await speaker.execute("select pg_notify(%s, %s)", [channel, payload])
    async with aclosing(listener.notifies(timeout=10, stop_after=3)) as notes:
        seen += [note.payload async for note in notes]
    seen.append([note.payload async for note in listener.notifies(timeout=0)])
    seen.append([note.payload async for note in listener.notifies(timeout=0.01)])
    # What comes while another statement runs is kept for the next notifies().
    await speaker.execute("select pg_notify(%s, 'kept')", [channel])
    await listener.execute("select 1")
    seen.append([note.payload async for note in listener.notifies(timeout=10, stop_after=1)])
    heard: list[str] = []

    def hear(note: psycopg.Notify) -> None:
        heard.append(note.payload)

    listener.add_notify_handler(hear)
    await speaker.execute("select pg_notify(%s, 'handled')", [channel])
    await listener.execute("select 1")
    listener.remove_notify_handler(hear)
    return seen, heard


@scenario
async def cancelling_from_elsewhere(side: Side) -> object:
    """Both ways, on a connection with nothing to cancel, and on one that was closed."""
    connection = await side.connect(autocommit=True)
    await connection.cancel_safe()
    await connection.cancel_safe(timeout=5)
    connection.cancel()
    seen = [await outcome(_one(connection, "select 1"))]
    await connection.close()
    await connection.cancel_safe()
    connection.cancel()
    return seen


async def _one(connection: AnyConnection, statement: str) -> object:
    return await (await connection.execute(statement.encode())).fetchone()


# Statements and results


@scenario
async def execute_and_fetch(side: Side) -> object:
    connection = await side.table()
    cursor = connection.cursor()
    seen: list[object] = [await outcome(cursor.fetchone())]
    returned = await cursor.execute("select * from effect order by id")
    seen += [returned is cursor, cursor.rowcount, cursor.rownumber, cursor.statusmessage, cursor.closed]
    seen += [[(column.name, column.type_code, column.type_display) for column in cursor.description or ()]]
    seen += [await cursor.fetchone(), await cursor.fetchmany(1), cursor.rownumber]
    await cursor.scroll(-2)
    seen += [await cursor.fetchmany(), await cursor.fetchall(), await cursor.fetchone()]
    await cursor.scroll(1, mode="absolute")
    seen += [await collect(cursor), await outcome(cursor.scroll(100)), cursor.arraysize]
    await cursor.execute("delete from effect")
    seen += [cursor.rowcount, cursor.description, await outcome(cursor.fetchone())]
    seen += [await outcome(cursor.execute("selec")), await outcome(cursor.execute("select %s", [1, 2]))]
    cursor.setinputsizes([])
    cursor.setoutputsize(1, 1)
    await cursor.close()
    seen += [cursor.closed, await outcome(cursor.execute("select 1"))]
    async with connection.cursor() as managed:
        await managed.execute("select 1")
        seen += [managed.connection is connection, managed.adapters is connection.adapters, managed.pgresult is None]
    seen.append(managed.closed)
    return seen


@scenario
async def parameters_and_types(side: Side) -> object:
    connection = await side.connect(autocommit=True)
    values = [
        1,
        2**40,
        1.5,
        "text",
        b"bytes",
        True,
        None,
        date(2025, 11, 22),
        Decimal("1.10"),
        [1, 2],
        Jsonb({"a": [1]}),
    ]
    values += [uuid.UUID(int=7)]
    seen: list[object] = []
    for binary in (False, True):
        cursor = await connection.execute(
            "select %s::int, %s::bigint, %s::float8, %s::text, %s::bytea, %s::bool, %s::int, %s::date, %s::numeric,"
            " %s::int[], %s::jsonb, %s::uuid",
            values,
            binary=binary,
        )
        seen.append(await cursor.fetchone())
        cursor = connection.cursor(binary=binary)
        seen.append(cursor.format)
        await cursor.execute("select %(a)s::int + %(b)s::int", {"a": 1, "b": 2})
        seen.append(await cursor.fetchall())
    info = await TypeInfo.fetch(connection, "hstore")
    seen += [info is None, (await TypeInfo.fetch(connection, "int4")).name]
    return seen


@scenario
async def row_factories(side: Side) -> object:
    connection = await side.table()
    seen: list[object] = []
    for factory in (dict_row, namedtuple_row, scalar_row, class_row(dict), args_row(_joined), kwargs_row(dict)):
        cursor = connection.cursor(row_factory=factory)
        await cursor.execute("select id, note from effect order by id")
        seen.append(
            await cursor.fetchall() if factory is not namedtuple_row else [r.note for r in await cursor.fetchall()]
        )
        seen.append(cursor.row_factory is factory)
    cursor = await connection.execute("select 1 as n")
    cursor.row_factory = dict_row
    seen.append(await cursor.fetchone())
    connection.row_factory = dict_row
    seen.append(await (await connection.execute("select 2 as n")).fetchone())
    return seen


def _joined(*values: object) -> str:
    return "-".join(map(str, values))


@scenario
async def several_results(side: Side) -> object:
    connection = await side.table()
    cursor = await connection.execute("select 1; select 2 where false; select 3")
    seen: list[object] = [await cursor.fetchall(), cursor.nextset(), await cursor.fetchall(), cursor.nextset()]
    seen += [await cursor.fetchall(), cursor.nextset()]
    await cursor.set_result(0)
    seen += [
        await cursor.fetchone(),
        await (await cursor.set_result(-1)).fetchone(),
        await outcome(cursor.set_result(3)),
    ]
    await cursor.execute("select 1; select 2")
    seen.append([await result.fetchall() async for result in cursor.results()])
    seen.append(await outcome(connection.execute("select 1; select 1/0; select 2")))
    return seen


@scenario
async def executemany(side: Side) -> object:
    connection = await side.table()
    cursor = connection.cursor()
    await cursor.executemany("insert into effect values (%s, %s)", [(n, str(n)) for n in range(10, 15)])
    seen: list[object] = [cursor.rowcount, await outcome(cursor.fetchone())]
    await cursor.executemany("insert into effect values (%s) returning id", [(20,), (21,)], returning=True)
    seen += [cursor.rowcount, [await result.fetchall() async for result in cursor.results()]]
    await cursor.executemany("insert into effect values (%s)", [])
    seen.append(cursor.rowcount)
    seen.append(await outcome(cursor.executemany("insert into effect values (%s)", [(30,), (1,), (31,)])))
    seen.append(await (await connection.execute("select count(*) from effect where id >= 30")).fetchone())
    seen.append(await outcome(cursor.executemany("insert into effect values (%s, %s)", [(40,)])))
    async with connection.pipeline():
        await cursor.executemany("select %s::int", [(1,), (2,)], returning=True)
        seen.append([await result.fetchone() async for result in cursor.results()])
    return seen


@scenario
async def prepared_statements(side: Side) -> object:
    connection = await side.connect(autocommit=True)
    count = "select count(*) from pg_prepared_statements where statement like '%%:%%prepared me%%'"
    seen: list[object] = []

    async def prepared() -> object:
        return await (await connection.execute(count, prepare=False)).fetchone()

    for _ in range(3):
        await connection.execute("select %s::int /*:prepared me*/", [1])
    seen.append(await prepared())
    await connection.execute("select %s::int /*:prepared me*/", [1], prepare=True)
    seen.append(await prepared())
    await connection.execute("select %s::text /*:prepared me*/", ["a"], prepare=False)
    seen.append(await prepared())
    connection.prepare_threshold = 0
    await connection.execute("select %s::text /*:prepared me*/", ["a"])
    seen.append(await prepared())
    connection.prepared_max = 1
    await connection.execute("select %s::date /*:prepared me*/", [date(2025, 1, 1)])
    seen.append(await prepared())
    connection.prepare_threshold = None
    await connection.execute("deallocate all")
    await connection.execute("select %s::int /*:prepared me*/", [1])
    seen.append(await prepared())
    return seen


@scenario
async def changes_of_a_prepared_statements_table(side: Side) -> object:
    """DDL under a prepared statement: the same error on both sides, and the same recovery."""
    connection = await side.table()
    await connection.execute("select * from effect", prepare=True)
    await connection.execute("alter table effect add column more int")
    seen = [await outcome(_all_rows(connection, "select * from effect where id = 1"))]
    seen.append(await outcome(connection.execute("select * from effect", prepare=True)) is None)
    await connection.execute("discard all")
    seen.append(await outcome(_one(connection, "select 1")))
    return seen


async def _all_rows(connection: AnyConnection, statement: str) -> object:
    return await (await connection.execute(statement.encode(), prepare=True)).fetchall()


@scenario
async def streaming(side: Side) -> object:
    connection = await side.table()
    seen: list[object] = []
    for size in (1, 2, 100):
        seen.append(await collect(connection.cursor().stream("select * from effect order by id", size=size)))
    seen.append(await collect(connection.cursor().stream("select %s::int", [5], binary=True)))
    async with aclosing(connection.cursor().stream("select generate_series(1, 100000)")) as rows:
        async for row in rows:
            seen.append(row)
            break
    seen.append(connection.info.transaction_status)
    seen.append(await outcome(collect(connection.cursor().stream("select 1/(3 - id) from effect order by id"))))
    seen.append(await outcome(collect(connection.cursor().stream("create temp table streamed ()"))))
    async with connection.pipeline():
        seen.append(await outcome(collect(connection.cursor().stream("select 1"))))
    seen.append(await outcome(_one(connection, "select 1")))
    return seen


# Other cursors


@scenario
async def raw_cursors(side: Side) -> object:
    connection = await side.table(cursor_factory=psycopg.AsyncRawCursor)
    cursor = connection.cursor()
    await cursor.execute("select note, '%s' from effect where id = $1", [1])
    seen: list[object] = [type(cursor).__name__, await cursor.fetchall()]
    await cursor.executemany("insert into effect values ($1, $2)", [(7, "seven"), (8, "eight")])
    seen.append(cursor.rowcount)
    async with cursor.copy("copy (select id from effect order by id) to stdout") as copy:
        seen.append([row async for row in copy.rows()])
    connection.server_cursor_factory = psycopg.AsyncRawServerCursor
    async with connection.transaction(), connection.cursor("raw") as named:
        await named.execute("select id from effect where id > $1 order by id", [2])
        seen += [type(named).__name__, await named.fetchall()]
    return seen


@scenario
async def client_cursors(side: Side) -> object:
    connection = await side.table(cursor_factory=psycopg.AsyncClientCursor)
    cursor = connection.cursor()
    seen: list[object] = [type(cursor).__name__, cursor.mogrify("select %s, %s", ["it's", date(2025, 1, 1)])]
    await cursor.execute("select %s; select %s", ["one", "two"])
    seen.append([await result.fetchall() async for result in cursor.results()])
    await cursor.executemany("insert into effect values (%s)", [(7,), (8,)])
    seen += [cursor.rowcount, await outcome(cursor.execute("select 1", binary=True))]
    return seen


@scenario
async def server_cursors(side: Side) -> object:
    connection = await side.connect()
    seen: list[object] = []
    async with connection.cursor("numbers", scrollable=True) as cursor:
        seen += [cursor.name, cursor.scrollable, cursor.withhold, cursor.rownumber, cursor.itersize]
        await cursor.execute("select generate_series(1, %s)", [250])
        seen += [await cursor.fetchone(), await cursor.fetchmany(2), await cursor.fetchmany(), cursor.rownumber]
        await cursor.scroll(-2)
        seen += [await cursor.fetchone(), cursor.rownumber]
        await cursor.scroll(100, mode="absolute")
        cursor.itersize = 7
        seen += [len(await collect(cursor)), await cursor.fetchall()]
        seen.append([(column.name, column.type_code) for column in cursor.description or ()])
        seen.append(await outcome(cursor.executemany("select %s", [(1,)])))
        seen.append(await outcome(cursor.execute("select 1", prepare=True)))
    seen.append(cursor.closed)
    async with connection.cursor("held", withhold=True, binary=True, row_factory=scalar_row) as cursor:
        await cursor.execute("select generate_series(1, 5)")
        await connection.commit()
        seen += [await cursor.fetchall(), cursor.withhold]
    seen.append(await outcome(connection.cursor("never executed").fetchone()))
    await connection.rollback()
    await connection.set_autocommit(True)
    seen.append(await outcome(connection.cursor("outside").execute("select 1")))
    return seen


# COPY


@scenario
async def copy_in(side: Side) -> object:
    connection = await side.table()
    cursor = connection.cursor()
    seen: list[object] = []
    async with cursor.copy("copy effect from stdin") as copy:
        await copy.write("10\tten\n")
        await copy.write(b"11\televen\n")
        await copy.write_row((12, None))
        await copy.write_row((13, "tab\tnew\nline\\"))
    seen.append(cursor.rowcount)
    async with cursor.copy("copy effect from stdin (format binary)") as copy:
        copy.set_types(["int4", "text"])
        await copy.write_row((20, "twenty"))
    async with cursor.copy("copy effect (id) from stdin where id < %s", [31]) as copy:
        for number in range(30, 33):
            await copy.write_row([number])
    seen += [cursor.rowcount, await (await connection.execute("select * from effect order by id")).fetchall()]
    seen.append(await outcome(_copy(cursor, "copy effect from stdin", [(40, "a"), (1, "b")])))
    seen.append(await outcome(_copy(cursor, "copy effect from stdin", [("no number", "a")])))
    seen.append(await outcome(_copy(cursor, "copy nowhere from stdin", [])))
    seen.append(await outcome(_copy(cursor, "select 1", [])))
    seen.append(await outcome(_copy(cursor, "copy effect from stdin", [(50, "x" * 100_000)] * 2)))
    seen.append(connection.info.transaction_status)
    return seen


async def _copy(cursor: Any, statement: str, rows: list[tuple[Any, ...]]) -> None:
    async with cursor.copy(statement) as copy:
        for row in rows:
            await copy.write_row(row)


@scenario
async def copy_out(side: Side) -> object:
    connection = await side.table()
    cursor = connection.cursor()
    seen: list[object] = []
    async with cursor.copy("copy effect to stdout") as copy:
        seen.append([bytes(block) async for block in copy])
    async with cursor.copy("copy effect to stdout") as copy:
        seen += [bytes(await copy.read()), await copy.read_row(), await copy.read_row(), await copy.read_row()]
    for form in ("text", "binary"):
        async with cursor.copy(f"copy (select * from effect order by id) to stdout (format {form})".encode()) as copy:
            copy.set_types(["int4", "text"])
            seen.append([row async for row in copy.rows()])
    seen.append(cursor.rowcount)
    try:
        async with cursor.copy("copy (select generate_series(1, 100000)) to stdout") as copy:
            await copy.read()
            raise ZeroDivisionError
    except ZeroDivisionError:
        seen.append(connection.info.transaction_status)
    seen.append(await outcome(_one(connection, "select 1")))
    return seen


@scenario
async def copies_that_fail_inside(side: Side) -> object:
    connection = await side.table()
    seen: list[object] = []
    try:
        async with connection.cursor().copy("copy effect from stdin") as copy:
            await copy.write_row((60, "gone"))
            raise ZeroDivisionError
    except ZeroDivisionError:
        seen.append(await (await connection.execute("select count(*) from effect")).fetchone())
    seen.append(await outcome(_one(connection, "select 1")))
    return seen


@scenario
async def copies_outside_a_block(side: Side) -> object:
    """`finish` is there for who does not use the block of the copy object."""
    connection = await side.table()
    cursor = connection.cursor()
    async with cursor.copy("copy effect to stdout") as copy:
        first = await copy.read_row()
        await copy.finish(ZeroDivisionError())
    return first, connection.info.transaction_status, await outcome(_one(connection, "select 1"))


class _Collecting(psycopg.copy.AsyncWriter):
    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.finished: object = "not yet"

    async def write(self, data: Any) -> None:
        self.data.append(bytes(data))

    async def finish(self, exc: BaseException | None = None) -> None:
        await super().finish(exc)
        self.finished = type(exc).__name__


@scenario
async def copies_with_writers(side: Side) -> object:
    connection = await side.table()
    writer = _Collecting()
    copy = psycopg.AsyncCopy(connection.cursor(), binary=False, writer=writer)
    async with copy:
        await copy.write_row((1, "one"))
        await copy.write("2\ttwo\n")
    cursor = connection.cursor()
    libpq = psycopg.copy.AsyncLibpqWriter(cursor, flush_threshold=0)
    async with cursor.copy("copy effect from stdin", writer=libpq) as copy:
        await copy.write_row((70, "x"))
    return b"".join(writer.data), writer.finished, cursor.rowcount


# Transactions


@scenario
async def transactions(side: Side) -> object:
    connection = await side.table()
    seen: list[object] = []
    async with connection.transaction() as outer:
        seen += [outer.status, outer.savepoint_name, outer.connection is connection]
        await connection.execute("insert into effect values (10)")
        async with connection.transaction("named") as inner:
            seen += [inner.savepoint_name, connection.info.transaction_status]
            await connection.execute("insert into effect values (11)")
            raise psycopg.Rollback(inner)
        seen.append(inner.status)
        async with connection.transaction():
            await connection.execute("insert into effect values (12)")
        async with connection.transaction(force_rollback=True):
            await connection.execute("insert into effect values (13)")
        try:
            async with connection.transaction():
                await connection.execute("insert into effect values (1)")
        except psycopg.errors.UniqueViolation as error:
            seen.append(error.sqlstate)
    seen += [outer.status, connection.info.transaction_status]
    async with connection.transaction() as outer:
        await connection.execute("insert into effect values (14)")
        async with connection.transaction():
            raise psycopg.Rollback(outer)
    async with connection.transaction():
        raise psycopg.Rollback
    seen.append(await (await connection.execute("select id from effect order by id")).fetchall())
    async with connection.transaction():
        seen += [await outcome(connection.commit()), await outcome(connection.rollback())]
        seen.append(await outcome(connection.set_autocommit(False)))
    try:
        async with connection.transaction():
            raise ZeroDivisionError
    except ZeroDivisionError:
        seen.append(connection.info.transaction_status)
    return seen


@scenario
async def transactions_without_autocommit(side: Side) -> object:
    """A block within a transaction that is open already is a savepoint of it."""
    connection = await side.table()
    await connection.set_autocommit(False)
    seen: list[object] = []
    async with connection.transaction():
        await connection.execute("insert into effect values (10)")
    seen.append(connection.info.transaction_status)
    await connection.execute("insert into effect values (11)")
    async with connection.transaction() as inner:
        seen.append(inner.savepoint_name)
        await connection.execute("insert into effect values (12)")
    seen.append(connection.info.transaction_status)
    await connection.rollback()
    seen.append(await (await connection.execute("select max(id) from effect")).fetchone())
    return seen


@scenario
async def transaction_objects(side: Side) -> object:
    """The class itself, used without `connection.transaction()`."""
    connection = await side.table()
    transaction = psycopg.AsyncTransaction(connection)
    async with transaction:
        await connection.execute("insert into effect values (10)")
    seen: list[object] = [transaction.status, await outcome(transaction.__aenter__())]
    return seen


@scenario
async def two_phase(side: Side) -> object:
    connection = await side.connect()
    other = await side.connect()
    name = f"xid-{uuid.uuid4().hex}"
    xid = connection.xid(7, name, "branch")
    seen: list[object] = [str(xid) == f"7_{_b64(name)}_{_b64('branch')}", connection.info.transaction_status]
    await connection.tpc_begin(xid)
    seen += [await outcome(connection.commit()), await outcome(connection.rollback())]
    await connection.execute("create temp table if not exists nothing_prepared ()")
    seen.append(await outcome(connection.tpc_prepare()))
    seen.append(await outcome(connection.tpc_rollback()))
    for end in ("tpc_commit", "tpc_rollback"):
        await connection.tpc_begin(xid)
        await connection.execute("select 1")
        await connection.tpc_prepare()
        seen += [
            connection.info.transaction_status,
            await _prepared(other, name),
        ]
        seen.append(await outcome(connection.cancel_safe()))
        await getattr(connection, end)()
        seen.append(await _prepared(other, name))
    await connection.tpc_begin(name)
    await connection.tpc_prepare()
    await connection.close()
    await other.tpc_commit(name)
    await other.tpc_begin("one phase")
    await other.execute("select 1")
    await other.tpc_commit()
    seen += [
        await outcome(other.tpc_prepare()),
        await outcome(other.tpc_commit()),
        await outcome(other.tpc_rollback("no")),
    ]
    return seen


async def _prepared(connection: AnyConnection, name: str) -> int:
    """How many transactions of that name wait for the second phase."""
    return sum(xid.gtrid == name for xid in await connection.tpc_recover())


def _b64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode()).decode()


# Pipelines


@scenario
async def pipelines(side: Side) -> object:
    connection = await side.table()
    seen: list[object] = []
    async with connection.pipeline() as pipeline:
        seen += [connection.pgconn.pipeline_status, pipeline.status, pipeline.level, pipeline.is_supported()]
        cursors = [await connection.execute("select %s::int", [n]) for n in range(5)]
        seen += [await cursor.fetchone() for cursor in cursors]
        await pipeline.sync()
        async with connection.pipeline() as inner:
            seen += [inner is pipeline, inner.level]
            await connection.execute("insert into effect values (10)")
        failing = await connection.execute("select 1/0")
        seen.append(await outcome(failing.fetchone()))
        seen.append(await outcome(_one(connection, "select 1")))
        await pipeline.sync()
        seen.append(await outcome(_one(connection, "select 5")))
        async with connection.transaction():
            await connection.execute("insert into effect values (11)")
        seen.append(await outcome(connection.cursor("named").execute("select 1")))
        seen.append(await outcome(_copy(connection.cursor(), "copy effect from stdin", [])))
    seen.append(connection.pgconn.pipeline_status)
    try:
        async with connection.pipeline():
            await connection.execute("insert into effect values (12)")
            await connection.execute("select 1/0")
            await connection.execute("insert into effect values (13)")
    except psycopg.Error as error:
        seen.append(error.sqlstate)
    seen.append(await (await connection.execute("select id from effect order by id")).fetchall())
    return seen


@scenario
async def statements_driven_by_hand(side: Side) -> object:
    """`wait` with steps of one's own, as extensions of psycopg do."""
    connection = await side.connect(autocommit=True)
    connection.pgconn.send_query(b"select 1; select 2")
    results = await connection.wait(psycopg.generators.execute(connection.pgconn))
    seen: list[object] = [[result.get_value(0, 0) for result in results]]
    seen.append(await outcome(connection.wait(psycopg.generators.notifies(connection.pgconn), timeout=0.01)))
    return seen


# Both sides


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
async def test_the_same_comes_of_it_on_both(server, scenario: Scenario) -> None:
    async def on_asyncio() -> object:
        side = Side(psycopg.AsyncConnection, server.url)
        try:
            return await scenario(side)
        finally:
            await side.close()

    theirs = await trio.to_thread.run_sync(asyncio.run, on_asyncio())
    ours = await on_trio(scenario, server.url)
    assert _comparable(ours) == _comparable(theirs)


async def on_trio(scenario: Scenario, url: str) -> object:
    side = Side(Connection, url)
    try:
        return await scenario(side)
    finally:
        await side.close()


def _comparable(value: object) -> object:
    """Names of psycopg's cursors come with their prefix, ours without."""
    if isinstance(value, list | tuple):
        return [_comparable(member) for member in value]
    if isinstance(value, str) and value.startswith("Async") and value.endswith("Cursor"):
        return value.removeprefix("Async")
    return value


# The surface

_CLASSES: dict[type[Any], type[Any] | None] = {
    psycopg.AsyncConnection: Connection,
    psycopg.AsyncCursor: Cursor,
    psycopg.AsyncServerCursor: ServerCursor,
    psycopg.AsyncRawCursor: RawCursor,
    psycopg.AsyncRawServerCursor: RawServerCursor,
    psycopg.AsyncClientCursor: ClientCursor,
    psycopg.AsyncCopy: None,
    psycopg.AsyncTransaction: None,
    psycopg.AsyncPipeline: None,
    psycopg.copy.AsyncWriter: None,
    psycopg.copy.AsyncLibpqWriter: None,
    psycopg.copy.AsyncQueuedLibpqWriter: None,
}

_PROTOCOL = {"__aenter__", "__aexit__", "__aiter__", "__anext__"}

_EXCLUDED = {
    "AsyncQueuedLibpqWriter.write": "runs a task of asyncio: refused by Cursor.copy()",
    "AsyncQueuedLibpqWriter.finish": "runs a task of asyncio: refused by Cursor.copy()",
    "AsyncQueuedLibpqWriter.worker": "runs a task of asyncio: refused by Cursor.copy()",
    "AsyncWriter.write": "abstract",
}


def surface() -> dict[str, set[CodeType]]:
    """psycopg's public methods and properties where they are defined, and the code that runs them, ours or theirs."""
    found: dict[str, set[CodeType]] = {}
    for cls, ours in _CLASSES.items():
        for name in dir(cls):
            if name.startswith("_") and name not in _PROTOCOL:
                continue
            home = next(base for base in cls.__mro__ if name in vars(base))
            if not home.__module__.startswith("psycopg"):
                continue
            codes = set(_codes(vars(home)[name]))
            if not codes:
                continue
            if ours is not None:
                codes |= set(_codes(inspect.getattr_static(ours, name)))
            found.setdefault(f"{home.__name__}.{name}", set()).update(codes)
    return found


def _codes(member: object) -> Iterator[CodeType]:
    parts = [member.fget, member.fset] if isinstance(member, property) else [member]
    for part in parts:
        function = inspect.unwrap(getattr(part, "__func__", part)) if part is not None else None
        if isinstance(code := getattr(function, "__code__", None), CodeType):
            yield code


@contextmanager
def recorded() -> Iterator[set[CodeType]]:
    """The code that runs in this thread meanwhile."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        yield seen
    finally:
        sys.setprofile(None)


async def test_every_public_method_is_run_by_a_scenario_or_excluded_for_a_reason(server) -> None:
    """An upgrade of psycopg that brings something new, or takes something away, is noticed here."""
    with recorded() as seen:
        for one in SCENARIOS:
            await on_trio(one, server.url)
    methods = surface()
    assert len(methods) > 80
    never_run = {name for name, codes in methods.items() if not codes & seen}
    assert never_run - _EXCLUDED.keys() == set()
    assert _EXCLUDED.keys() - never_run == set(), "these are run after all, or are gone"


def test_every_asynchronous_class_of_psycopg_is_looked_at() -> None:
    public = [getattr(psycopg, name) for name in psycopg.__all__] + list(vars(psycopg.copy).values())
    asynchronous = {one for one in public if isinstance(one, type) and one.__name__.startswith("Async")}
    assert asynchronous == _CLASSES.keys()


# Where ours differ on purpose


async def test_psycopgs_own_cursor_classes_are_replaced(server) -> None:
    async with await Connection.connect(server.url) as connection:
        connection.cursor_factory = psycopg.AsyncRawCursor
        connection.server_cursor_factory = psycopg.AsyncRawServerCursor
        assert type(connection.cursor()) is RawCursor
        assert type(connection.cursor("named")) is RawServerCursor


async def test_a_cursor_class_made_from_psycopgs_is_refused(server) -> None:
    """Its clean-up would not hold under trio's cancellation."""

    class Foreign(psycopg.AsyncCursor[Any]):
        pass

    class Own(Cursor[Any]):
        pass

    with pytest.raises(TypeError, match=r"Foreign cannot be used on trio.*penstock\.runtime\.postgres\.Cursor"):
        await Connection.connect(server.url, cursor_factory=Foreign)
    async with await Connection.connect(server.url, cursor_factory=Own) as connection:
        assert type(connection.cursor()) is Own


async def test_the_writer_that_needs_asyncio_is_refused(server) -> None:
    async with await Connection.connect(server.url) as connection:
        cursor = connection.cursor()
        await cursor.execute("create temp table effect (id int)")
        writer = psycopg.copy.AsyncQueuedLibpqWriter(cursor)
        with pytest.raises(TypeError, match="leave `writer` out"):
            async with cursor.copy("copy effect from stdin", writer=writer):
                pytest.fail("it has not started")
        assert connection.info.transaction_status == pq.TransactionStatus.INTRANS
        await cursor.execute("select 1")
