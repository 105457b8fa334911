"""What an error means, provoked on a real server where that is cheap."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator

import psycopg
import pytest
import trio
from psycopg.rows import TupleRow

from penstock.runtime.postgres import (
    FAULTS,
    Connection,
    Fault,
    Pool,
    PostgresOptions,
    PostgresRejected,
    PostgresUnavailable,
    classify,
    probe,
)
from penstock.runtime.postgres.errors import REJECTIONS


@pytest.fixture
async def connection(options: PostgresOptions) -> AsyncIterator[Connection[TupleRow]]:
    connection = await Connection.open(options)
    await connection.execute("create temp table effect (id int primary key check (id < 100), day date)")
    await connection.execute("insert into effect values (1)")
    yield connection
    await connection.close()


@pytest.mark.parametrize(
    ("statement", "state", "fault"),
    [
        ("insert into effect values (1)", "23505", Fault.EVENT),
        ("insert into effect values (100)", "23514", Fault.EVENT),
        ("insert into effect values (null)", "23502", Fault.EVENT),
        ("insert into effect values (2, '31 february')", "22007", Fault.EVENT),
        ("select 1/0", "22012", Fault.EVENT),
        ("select 3000000000::int", "22003", Fault.EVENT),
        ("set role nobody_of_that_name", "22023", Fault.EVENT),
        ("set local statement_timeout = 1; select pg_sleep(5)", "57014", Fault.RETRY),
        ("begin read only; create table t ()", "25006", Fault.RETRY),
        ("do $$ begin raise sqlstate '40001'; end $$", "40001", Fault.RETRY),
        ("do $$ begin raise sqlstate '53100'; end $$", "53100", Fault.OUTAGE),
        ("do $$ begin raise sqlstate '58030'; end $$", "58030", Fault.OUTAGE),
        ("do $$ begin raise sqlstate '08006'; end $$", "08006", Fault.OUTAGE),
        ("do $$ begin raise sqlstate '44000'; end $$", "44000", Fault.EVENT),
        ("do $$ begin raise sqlstate '72000'; end $$", "72000", Fault.RETRY),
        ("do $$ begin raise sqlstate 'F0000'; end $$", "F0000", Fault.CONFIG),
        ("do $$ begin raise exception 'no'; end $$", "P0001", Fault.BUG),
        ("set role pg_monitor; create table public.t ()", "42501", Fault.CONFIG),
        ("selec 1", "42601", Fault.BUG),
        ("select * from nowhere", "42P01", Fault.BUG),
    ],
)
async def test_faults_of_statements(connection, statement: str, state: str, fault: Fault) -> None:
    with pytest.raises(psycopg.Error) as caught:
        await connection.execute(statement)
    error = caught.value
    assert classify(error) is fault
    assert state in (error.sqlstate, getattr(error.__cause__, "sqlstate", None))


async def test_a_session_that_is_read_only_by_default_is_an_outage_for_writers(connection) -> None:
    """Unlike a transaction that was opened read-only, which is the program's own doing."""
    await connection.execute("set default_transaction_read_only = on")
    with pytest.raises(PostgresUnavailable, match="read-only") as caught:
        await connection.execute("create table t ()")
    assert isinstance(caught.value.__cause__, psycopg.errors.ReadOnlySqlTransaction)


async def test_a_deadlock_and_a_lock_timeout_are_to_be_retried(options, connection) -> None:
    await connection.execute("create table if not exists contested as select 1 as id union select 2")
    other = await Connection.open(options)
    try:
        async with connection.transaction(force_rollback=True):
            await connection.execute("update contested set id = id where id = 1")
            with pytest.raises(psycopg.errors.LockNotAvailable) as refused:
                await other.execute("set lock_timeout = 10; update contested set id = id where id = 1")
        assert classify(refused.value) is Fault.RETRY
        await other.execute("set lock_timeout = 0")
        assert classify(await _deadlock(connection, other)) is Fault.RETRY
    finally:
        await other.close()
        await connection.execute("drop table contested")


async def _deadlock(one: Connection[TupleRow], two: Connection[TupleRow]) -> BaseException:
    errors: list[BaseException] = []
    holding: set[int] = set()
    both_hold = trio.Event()

    async def cross(connection: Connection[TupleRow], first: int, second: int) -> None:
        try:
            async with connection.transaction():
                await connection.execute("set local deadlock_timeout = '20ms'")
                await connection.execute("update contested set id = id where id = %s", [first])
                holding.add(first)
                if holding == {1, 2}:
                    both_hold.set()
                await both_hold.wait()
                await connection.execute("update contested set id = id where id = %s", [second])
        except psycopg.errors.DeadlockDetected as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cross, one, 1, 2)
        nursery.start_soon(cross, two, 2, 1)
    (error,) = errors
    return error


async def test_a_value_that_cannot_be_sent_is_the_events_fault(connection) -> None:
    with pytest.raises(psycopg.DataError) as caught:
        await connection.execute("select %s::text", ["a NUL \x00"])
    assert caught.value.sqlstate is None
    assert classify(caught.value) is Fault.EVENT


async def test_a_terminated_backend_is_an_outage(server, connection) -> None:
    server.execute(f"select pg_terminate_backend({connection.info.backend_pid}, 5000)")
    with pytest.raises(psycopg.OperationalError) as caught:
        await connection.execute("select 1")
    assert classify(caught.value) is Fault.OUTAGE
    with pytest.raises(psycopg.OperationalError) as later:
        await connection.execute("select 1")
    assert classify(later.value) is Fault.OUTAGE


async def test_a_standby_is_an_outage_for_writers(own_server) -> None:
    """A write on a standby is unavailability, told at once, and the probe says why; reading goes on."""
    own_server.stop()
    (own_server.data / "standby.signal").touch()
    own_server.start()
    troubles: list[PostgresUnavailable] = []
    async with Pool(own_server.options(), on_trouble=troubles.append) as pool, pool.connection() as connection:
        assert await (await connection.execute("select 1")).fetchone() == (1,)
        with pytest.raises(PostgresUnavailable, match="read-only"):
            await connection.execute("create table t ()")
    assert len(troubles) == 1
    with pytest.raises(PostgresUnavailable, match="standby"):
        await probe(own_server.options())


async def test_probe_of_a_well_server(options) -> None:
    result = await probe(options)
    assert result.version.startswith("PostgreSQL")
    assert 0 < result.seconds < 60


async def test_probe_of_a_frozen_server_ends_in_time(own_server) -> None:
    own_server.send(signal.SIGSTOP)
    started = trio.current_time()
    with pytest.raises(PostgresUnavailable, match=r"no answer within 0\.3 s"):
        await probe(own_server.options(), 0.3)
    assert trio.current_time() - started < 20
    own_server.send(signal.SIGCONT)


async def test_probe_refuses_a_database_that_is_read_only_by_default(server) -> None:
    options = server.options(parameters={"options": "-c default_transaction_read_only=on"})
    with pytest.raises(PostgresUnavailable, match="default_transaction_read_only"):
        await probe(options)


async def test_probe_says_rejected_for_wrong_settings(server) -> None:
    with pytest.raises(PostgresRejected) as caught:
        await probe(server.options(user="penstock", password="wrong"))
    assert classify(caught.value) is Fault.CONFIG
    assert "wrong" not in str(caught.value)


def test_a_group_has_its_gravest_fault() -> None:
    group = ExceptionGroup("", [psycopg.errors.UniqueViolation(), ExceptionGroup("", [psycopg.OperationalError()])])
    assert classify(group) is Fault.OUTAGE


def test_the_explicit_cause_of_a_foreign_error_counts() -> None:
    error = LookupError()
    error.__cause__ = psycopg.errors.SerializationFailure()
    assert classify(error) is Fault.RETRY
    assert classify(LookupError()) is Fault.BUG


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (
            'FATAL:  no pg_hba.conf entry for host "10.0.0.1", user "mill", database "events", no encryption',
            Fault.CONFIG,
        ),
        ('FATAL:  role "mill" does not exist', Fault.CONFIG),
        ('FATAL:  role "mill" is not permitted to log in', Fault.CONFIG),
        ("server does not support SSL, but SSL was required", Fault.CONFIG),
        ("SSL error: certificate verify failed", Fault.CONFIG),
        ('root certificate file "/nowhere/ca.crt" does not exist', Fault.CONFIG),
        ('invalid sslmode value: "perhaps"', Fault.CONFIG),
        ("FATAL:  the database system is starting up", Fault.OUTAGE),
        ("FATAL:  sorry, too many clients already", Fault.OUTAGE),
        ("FATAL:  das Datenbanksystem startet", Fault.OUTAGE),
        ("Connection refused", Fault.OUTAGE),
        ("server closed the connection unexpectedly", Fault.OUTAGE),
        ("failed to resolve host 'db': Name or service not known", Fault.OUTAGE),
    ],
)
def test_faults_of_connecting_are_told_by_their_text(message: str, fault: Fault) -> None:
    """libpq gives no SQLSTATE for them."""
    assert classify(psycopg.OperationalError(f'connection to server at "db", port 5432 failed: {message}')) is fault


def test_every_key_of_the_table_is_a_state_or_a_class_of_states() -> None:
    known = {cls.sqlstate for cls in vars(psycopg.errors).values() if isinstance(cls, type) and _has_state(cls)}
    classes = {state[:2] for state in known}
    assert [key for key in FAULTS if key not in known and key not in classes] == []
    assert REJECTIONS.groups >= 0


def _has_state(cls: type) -> bool:
    return issubclass(cls, psycopg.Error) and cls.sqlstate is not None
