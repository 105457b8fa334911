"""Bringing a database's schema up to date: numbered SQL files, applied once, by one process at a time.

The files lie in one directory or package: ``0001.create_tables.sql``, optionally ``0001.create_tables.rollback.sql``.
The number gives the order. Each file is one transaction, unless it begins with the comment
``-- transactional: false``; such a file holds a single statement which can be run again.

yoyo keeps the record (`ledger`). It is synchronous, so that a run has a thread of its own, on a connection of its
own, which holds a PostgreSQL advisory lock: of several processes that start together, one migrates and the others
wait and find nothing left to do. Behind a connection pooler this needs session mode.
"""

from __future__ import annotations

import logging
import math
import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import psycopg
import trio
from attrs import define, field, frozen
from psycopg.conninfo import make_conninfo

from .connection import Connection
from .errors import Fault, PostgresUnavailable, classify, connect_failure, first_line
from .options import PostgresOptions

if TYPE_CHECKING:
    from .ledger import Ledger, MigrationFile

_NAME = re.compile(r"(?P<name>(?P<number>\d{4})\.[a-z0-9_]+)(?P<rollback>\.rollback)?\.sql")
_PREFIX = re.compile(r"[a-z_][a-z0-9_]{0,30}")

# How often a cancelled run's statement is cancelled on the server: a request between two statements hits nothing.
_CANCEL_EVERY = 0.2

_HOLDER = """
    select a.pid, coalesce(nullif(a.application_name, ''), 'unnamed')
    from pg_locks l join pg_stat_activity a using (pid)
    where l.locktype = 'advisory' and l.granted and l.objsubid = 1
      and l.classid::bigint = (hashtextextended(%(key)s, 0) >> 32) & 4294967295
      and l.objid::bigint = hashtextextended(%(key)s, 0) & 4294967295
"""

_log = logging.getLogger(__name__)
# yoyo says each step at info; what is applied is said here, once.
logging.getLogger("yoyo").setLevel(logging.WARNING)


class MigrationFailed(Exception):
    """The server refused a migration, which left nothing behind (if it is transactional); those before it stay.

    Attributes:
        migration: Its name, ``0001.create_tables``.
        reason: The server's message.
    """

    def __init__(self, migration: str, reason: str) -> None:
        super().__init__(f"migration {migration} failed: {reason}")
        self.migration = migration
        self.reason = reason


class MigrationLocked(Exception):
    """Another process held the migration lock for longer than the limit."""


@frozen(kw_only=True)
class MigrationLimits:
    """The bounds of a run, in seconds.

    Attributes:
        turn: Waiting for other processes that migrate.
        lock: Waiting for a table's lock. While a migration waits, everybody else queues behind it.
        statement: Any one statement.
        stop: A cancelled run whose server does not answer loses its connection after this.
    """

    turn: float = 60.0
    lock: float = 30.0
    statement: float = 600.0
    stop: float = 5.0


async def migrate(
    options: PostgresOptions,
    directory: Traversable | Path,
    *,
    table_prefix: str = "penstock",
    limits: MigrationLimits | None = None,
) -> list[str]:
    """Apply the migrations of *directory* which have not been applied yet, and return their names in order.

    Args:
        directory: A path, or a package's files: ``importlib.resources.files("my_system.migrations")``.
        table_prefix: Of the tables that keep the record; each set of migrations has its own, and its own lock.

    Cancellation: the statement at work is cancelled on the server and rolled back, the lock let go of, and the
    thread waited for, at most ``limits.stop`` (a server that does not answer loses its connection).

    Raises:
        MigrationFailed: with the migration's name and the server's message.
        MigrationLocked: another process kept migrating for longer than ``limits.turn``.
        PostgresUnavailable, PostgresRejected: as for `Connection.open`, also when the server goes away meanwhile.
        ValueError: a file's name is not ``NNNN.name.sql``, a number is used twice, or there are no files.
    """

    def apply(ledger: Ledger, files: list[MigrationFile]) -> list[_Step]:
        applied = ledger.applied()
        if unknown := sorted(set(applied) - {file.name for file in files}):
            _log.warning("%s has migrations that are not known here: %s", options.address, ", ".join(unknown))
        return [(file, partial(ledger.apply, file)) for file in files if file.name not in applied]

    return await _run(options, directory, table_prefix, limits, apply)


async def roll_back(
    options: PostgresOptions,
    directory: Traversable | Path,
    name: str,
    *,
    table_prefix: str = "penstock",
    limits: MigrationLimits | None = None,
) -> list[str]:
    """Undo the applied migrations from the newest back to *name*, itself included; return their names in order.

    Arguments, cancellation and errors are those of `migrate`.

    Raises:
        MigrationFailed: also, before anything is done, when one of them has no ``.rollback.sql``.
        ValueError: also when *name* is not applied.
    """

    def undo(ledger: Ledger, files: list[MigrationFile]) -> list[_Step]:
        applied = ledger.applied()
        if name not in applied:
            raise ValueError(f"migration {name!r} is not applied")
        by_name = {file.name: file for file in files}
        undone = [by_name.get(one) or _unknown(one) for one in reversed(applied[applied.index(name) :])]
        for file in undone:
            if file.rollback is None:
                raise MigrationFailed(file.name, f"there is no {file.name}.rollback.sql")
        return [(file, partial(ledger.roll_back, file)) for file in undone]

    return await _run(options, directory, table_prefix, limits, undo)


async def pending(
    options: PostgresOptions, directory: Traversable | Path, *, table_prefix: str = "penstock"
) -> list[str]:
    """The names of the migrations of *directory* that `migrate` would apply. Changes nothing, takes no lock.

    Raises:
        PostgresUnavailable, PostgresRejected, ValueError: as for `migrate`.
    """
    names = [file.name for file in _read(directory)]
    table = f"{_checked(table_prefix)}_migration"
    async with await Connection.open(options) as connection:
        row = await (await connection.execute("select to_regclass(%s)", [table])).fetchone()
        if row == (None,):
            return names
        cursor = await connection.execute(psycopg.sql.SQL("select migration_id from {}").format(_identifier(table)))
        applied = {name for (name,) in await cursor.fetchall()}
    return [name for name in names if name not in applied]


# The files


def _read(directory: Traversable | Path) -> list[MigrationFile]:
    from .ledger import MigrationFile  # yoyo takes a tenth of a second to import: only those who migrate pay

    texts: dict[str, str] = {}
    rollbacks: dict[str, str] = {}
    for entry in directory.iterdir():
        if entry.name.endswith(".sql"):
            match = _NAME.fullmatch(entry.name)
            if match is None:
                raise ValueError(f"{entry.name}: a migration is called NNNN.lower_case_name[.rollback].sql")
            (rollbacks if match["rollback"] else texts)[match["name"]] = entry.read_text(encoding="utf-8")
    _check(texts, rollbacks, str(directory))
    return [MigrationFile(name, texts[name], rollbacks.get(name)) for name in sorted(texts)]


def _check(texts: dict[str, str], rollbacks: dict[str, str], directory: str) -> None:
    if not texts:
        raise ValueError(f"no migrations (NNNN.name.sql) in {directory}")
    if orphans := sorted(set(rollbacks) - set(texts)):
        raise ValueError(f"a rollback without a migration: {', '.join(orphans)}")
    numbers = sorted(name[:4] for name in texts)
    if twice := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise ValueError(f"several migrations have the number {', '.join(twice)}")


def _unknown(name: str) -> MigrationFile:
    raise MigrationFailed(name, "it is applied, but there is no such file")


def _checked(prefix: str) -> str:
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(f"table_prefix must be a lower-case SQL name of at most 31 characters, not {prefix!r}")
    return prefix


def _identifier(name: str) -> psycopg.sql.Identifier:
    return psycopg.sql.Identifier(name)


# The run

_Step: TypeAlias = "tuple[MigrationFile, Callable[[], None]]"
_Plan: TypeAlias = "Callable[[Ledger, list[MigrationFile]], list[_Step]]"


async def _run(
    options: PostgresOptions,
    directory: Traversable | Path,
    prefix: str,
    limits: MigrationLimits | None,
    plan: _Plan,
) -> list[str]:
    run = _Run(options, _read(directory), _checked(prefix), limits or MigrationLimits(), plan)
    await trio.lowlevel.checkpoint_if_cancelled()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.stop_when_cancelled)
        await trio.to_thread.run_sync(run)
        run.ended = True
        nursery.cancel_scope.cancel()
    if run.error is not None:
        raise run.error
    return run.done


@define
class _Run:
    """One run in its thread, and how to stop it from outside."""

    options: PostgresOptions
    files: list[MigrationFile]
    prefix: str
    limits: MigrationLimits
    plan: _Plan
    ended: bool = False
    stopped: bool = False
    connection: psycopg.Connection[Any] | None = field(default=None, repr=False)
    done: list[str] = field(factory=list)
    error: Exception | None = None

    def __call__(self) -> None:
        """Never raises: the error is kept for the task, where a nursery would wrap it in a group."""
        try:
            with self._connect() as self.connection:
                self._take_turn(self.connection)
                self._work(self.connection)
        except psycopg.Error as error:
            self.error = error
            if classify(error) is Fault.OUTAGE and not isinstance(error, PostgresUnavailable):
                self.error = PostgresUnavailable(first_line(error), address=self.options.address)
                self.error.__cause__ = error
        except Exception as error:  # noqa: BLE001 - see above
            self.error = error

    def _connect(self) -> psycopg.Connection[Any]:
        conninfo = self.options.conninfo()
        # Whole seconds, at least 2, is all that libpq knows.
        conninfo["connect_timeout"] = max(2, math.ceil(self.options.connect_timeout))
        conninfo["application_name"] = f"{self.options.application_name} migrations"
        try:
            return psycopg.connect(make_conninfo("", **conninfo), autocommit=True)
        except psycopg.OperationalError as error:
            raise connect_failure(error, self.options.address) from error

    def _take_turn(self, connection: psycopg.Connection[Any]) -> None:
        self._set(connection, "lock_timeout", self.limits.turn)
        self._set(connection, "statement_timeout", 0)
        key = f"penstock migrations {self.prefix}"
        self._check_stopped()
        try:
            connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [key])
        except psycopg.errors.LockNotAvailable:
            holder = connection.execute(_HOLDER, {"key": key}).fetchone()
            who = f"process {holder[0]} of the server ({holder[1]})" if holder else "another process"
            raise MigrationLocked(
                f"{who} has been migrating {self.options.address} for more than {self.limits.turn:g} s"
            ) from None
        self._set(connection, "lock_timeout", self.limits.lock)
        self._set(connection, "statement_timeout", self.limits.statement)

    def _work(self, connection: psycopg.Connection[Any]) -> None:
        from .ledger import Ledger

        with self._named(f"record (table {self.prefix}_migration)", ""):
            steps = self.plan(Ledger(connection, self.prefix), self.files)
        for file, step in steps:
            self._check_stopped()
            with self._named(file.name, file.sql):
                step()
            _log.info("migration %s: done on %s", file.name, self.options.address)
            self.done.append(file.name)

    @contextmanager
    def _named(self, name: str, sql: str) -> Iterator[None]:
        """Say which migration failed, unless it is not the migration's doing."""
        try:
            yield
        except psycopg.Error as error:
            if self.stopped or classify(error) is Fault.OUTAGE:
                raise
            raise MigrationFailed(name, _reason(error, sql)) from error

    @staticmethod
    def _set(connection: psycopg.Connection[Any], setting: str, seconds: float) -> None:
        connection.execute("select set_config(%s, %s, false)", [setting, str(math.ceil(seconds * 1000))])

    def _check_stopped(self) -> None:
        if self.stopped:
            raise _Stopped

    # From here on: called by the other thread

    async def stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stopped = not self.ended
            with trio.move_on_after(self.limits.stop, shield=True):
                while not self.ended:
                    with suppress(psycopg.Error):
                        await trio.to_thread.run_sync(self._cancel_statement)
                    await trio.sleep(_CANCEL_EVERY)
            if not self.ended:
                self._cut_off()

    def _cancel_statement(self) -> None:
        if self.connection is not None:
            self.connection.cancel_safe(timeout=1.0)

    def _cut_off(self) -> None:
        """Shut the socket under libpq, which may be used by its own thread only: that thread then sees its end."""
        with suppress(psycopg.Error, OSError):
            if self.connection is not None:
                with socket.socket(fileno=os.dup(self.connection.fileno())) as line:
                    line.shutdown(socket.SHUT_RDWR)


class _Stopped(Exception):
    """The run was cancelled between two statements."""


def _reason(error: psycopg.Error, sql: str) -> str:
    """The server's message, with the line of the file where it knows it."""
    message = error.diag.message_primary or first_line(error)
    if position := error.diag.statement_position:
        message = f"line {sql.count(chr(10), 0, int(position) - 1) + 1}: {message}"
    if detail := error.diag.message_detail:
        message = f"{message} ({detail})"
    if isinstance(error, psycopg.errors.NoActiveSqlTransaction):
        message = f"{message} (a file is one transaction: has it a COMMIT or ROLLBACK? What it did before one stays)"
    return message
