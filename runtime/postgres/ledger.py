"""yoyo's record of applied migrations, on one connection and with a migration and its record in one transaction.

Everything here is synchronous and runs in the thread of `migrations`. What differs from yoyo's own backend, and why:

- A migration and the note that it was applied are one transaction. yoyo applies on one connection and notes on
  another: a crash in between leaves a migration that fails for ever ("already exists").
- The lock is an advisory lock of the session, taken by `migrations`, which ends with the connection; yoyo's is a
  row that a killed process leaves behind.
- A file is one text, not cut into statements by a parser of another dialect, and what it selects is not printed.
- The connection is given, so that yoyo never sees a password (it builds URLs and keeps them as cache keys).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import psycopg
from attrs import frozen
from yoyo.backends.core.postgresql import PostgresqlPsycopgBackend  # type: ignore[import-untyped]
from yoyo.connections import DatabaseURI  # type: ignore[import-untyped]
from yoyo.migrations import (  # type: ignore[import-untyped]
    Migration,
    StepCollector,
    parse_metadata_from_sql_comments,
)


@frozen
class MigrationFile:
    """The text of one migration: ``0001.name.sql`` and, if there is one, ``0001.name.rollback.sql``."""

    name: str
    sql: str
    rollback: str | None

    @property
    def transactional(self) -> bool:
        """False with a leading comment ``-- transactional: false`` (``CREATE INDEX CONCURRENTLY``)."""
        directives, _, _ = parse_metadata_from_sql_comments(self.sql)
        return str(directives.get("transactional", "true")).strip().lower() != "false"


class SqlMigration(Migration):  # type: ignore[misc]
    """A `MigrationFile` as yoyo wants it."""

    def __init__(self, file: MigrationFile) -> None:
        super().__init__(file.name, f"{file.name}.sql", "")
        self.file = file

    def load(self) -> None:
        if self.loaded:
            return
        self.source = self.file.sql
        self.use_transactions = self.file.transactional
        self._depends: set[Migration] = set()  # the numbers are the order
        collector = StepCollector(self)
        collector.add_step(_execute(self.file.sql), _execute(self.file.rollback))
        self.steps = collector.create_steps(self.use_transactions)


def _execute(sql: str | None) -> Callable[[psycopg.Connection[Any]], None] | None:
    if sql is None:
        return None
    text = sql.encode()  # bytes, and no parameters: sent as it is, with all of its statements and per cent signs

    def step(connection: psycopg.Connection[Any]) -> None:
        connection.execute(text)

    return step


class Ledger(PostgresqlPsycopgBackend):  # type: ignore[misc]
    """What has been applied to a database, in the tables ``<prefix>_migration…``.

    Args:
        connection: In autocommit mode; it holds the advisory lock.
        prefix: Of the three tables.
    """

    def __init__(self, connection: psycopg.Connection[Any], prefix: str) -> None:
        self._given = connection
        self.log_table = f"{prefix}_migration_log"
        self.version_table = f"{prefix}_migration_version"
        nowhere = DatabaseURI("postgresql+psycopg", None, None, None, None, None, {})
        super().__init__(nowhere, f"{prefix}_migration")

    def connect(self, dburi: object) -> psycopg.Connection[Any]:
        return self._given

    @contextmanager
    def lock(self, timeout: float = 10) -> Iterator[None]:
        yield  # the advisory lock is held already

    def get_log_data(self, migration: Migration | None = None, operation: str = "apply") -> dict[str, Any]:
        # yoyo asks for the name of a user that a container need not have, and DNS for the host's.
        return {
            "id": str(uuid4()),
            "migration_id": migration.id if migration else None,
            "migration_hash": migration.hash if migration else None,
            "username": self._given.info.user,
            "hostname": socket.gethostname(),
            "created_at_utc": datetime.now(UTC).replace(tzinfo=None),
            "operation": operation,
        }

    def applied(self) -> list[str]:
        """The names of the applied migrations, in order; makes the tables when they are not there."""
        self.ensure_internal_schema_updated()
        cursor = self.execute(f"SELECT migration_id FROM {self.migration_table_quoted} ORDER BY migration_id")  # noqa: S608
        return [name for (name,) in cursor.fetchall()]

    def apply(self, file: MigrationFile) -> None:
        """Apply a migration and note it, together unless it is not transactional."""
        migration = SqlMigration(file)
        if file.transactional:
            with self.transaction():
                migration.process_steps(self, "apply")
                self._note(migration, "apply")
        else:
            migration.load()
            migration.process_steps(self, "apply")
            with self.transaction():
                self._note(migration, "apply")

    def roll_back(self, file: MigrationFile) -> None:
        """Undo an applied migration by its rollback and forget it."""
        migration = SqlMigration(file)
        with self.transaction():
            migration.process_steps(self, "rollback")
            self._note(migration, "rollback")

    def _note(self, migration: Migration, operation: str) -> None:
        if operation == "apply":
            self.mark_one(migration, log=False)
        else:
            self.unmark_one(migration, log=False)
        self.log_migration(migration, operation)
