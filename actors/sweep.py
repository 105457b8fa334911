"""One run of retention: old entries are trimmed where that is proven safe, old rows deleted in bounded batches."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs
import psycopg
import redis.exceptions
import trio
from attrs import frozen
from psycopg import sql
from psycopg.rows import TupleRow, dict_row
from psycopg.types.json import Jsonb

from ..runtime.redis import Kind, classify
from .old_rows import ACCESS_ROWS, OldRows, Rule, rules
from .trimming import StreamReport, count_trimmable, trim

if TYPE_CHECKING:
    from ..runtime.postgres import Connection, Pool
    from ..runtime.redis import AnyRedis
    from .settings import RetentionSettings
    from .system import Stream, System

__all__ = ["ACCESS_ROWS", "OldRows", "RetentionBusy", "RetentionReport", "Sweep"]

_UNLOCK_LIMIT: Final = 2.0

# Of a stream that cannot be trimmed at all; everything else passes, or is the same for all streams.
_STREAMS_OWN: Final = (Kind.CONFIG, Kind.DOWNGRADE, Kind.BUG)


class RetentionBusy(Exception):
    """Another instance is at it."""


@frozen(kw_only=True)
class RetentionReport:
    """What a run did; in a dry run, what it would have done.

    Attributes:
        system: whose streams were trimmed.
        instance: who did it.
        due_at: the scheduled time that it stands for; None if somebody ordered it.
        started_at: aware.
        seconds: how long it took.
        dry_run: nothing was deleted.
        cutoff: rows older than this may go.
        streams: one report for each stream, or each of its partitions.
        rows: rows deleted, by table.
    """

    system: str
    instance: str
    due_at: datetime | None
    started_at: datetime
    seconds: float
    dry_run: bool
    cutoff: datetime
    streams: tuple[StreamReport, ...]
    rows: dict[str, int]

    @property
    def entries_trimmed(self) -> int:
        """Entries trimmed, of all streams."""
        return sum(stream.trimmed for stream in self.streams)

    @property
    def rows_deleted(self) -> int:
        """Rows deleted, of all tables."""
        return sum(self.rows.values())


class Sweep:
    """Runs retention, one instance at a time.

    Args:
        system: whose streams are trimmed.
        client: gives the link to Redis.
        pool: where connections to PostgreSQL come from; a run keeps one.
        settings: how old is old, and how much at a time.
        instance: who we are, for the record.
        tables: whose rows are deleted, beside the runtime's own. Default: the access log's.
        wall: the wall clock, aware.
    """

    def __init__(
        self,
        system: System,
        client: Callable[[], AnyRedis],
        pool: Pool,
        settings: RetentionSettings,
        *,
        instance: str = "",
        tables: Sequence[OldRows] = (ACCESS_ROWS,),
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._system = system
        self._client = client
        self._pool = pool
        self._settings = settings
        self._instance = instance
        self._tables = tuple(tables)
        self._wall = wall

    async def run_due(self, due: datetime) -> RetentionReport | None:
        """The run that was due at `due`; None if it is done already, here or elsewhere, before or after a restart.

        Raises what `run` raises.
        """
        async with self._locked() as connection:
            if await self._is_done(connection, due):
                return None
            return await self._sweep(connection, due, dry_run=self._settings.dry_run)

    async def run(self, *, dry_run: bool | None = None) -> RetentionReport:
        """A run now, by order; `dry_run` overrules the settings. It does not stand for a scheduled one.

        Cancellation: what was trimmed and deleted so far stays so; the rest is left to the next run.

        Raises:
            RetentionBusy: another instance is at it.
            redis.exceptions.RedisError: Redis is away, or refuses; what is wrong with one stream alone is reported
                with it, and the others are trimmed.
            psycopg.Error: PostgreSQL is away, or refuses.
        """
        async with self._locked() as connection:
            return await self._sweep(connection, None, dry_run=self._settings.dry_run if dry_run is None else dry_run)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[Connection[TupleRow]]:
        """A connection that holds the lock of this system's retention, and lets go of it whatever happens."""
        key = _lock_key(self._system.name)
        async with self._pool.connection() as connection:
            cursor = await connection.execute("select pg_try_advisory_lock(%s)", (key,))
            if await cursor.fetchone() != (True,):
                raise RetentionBusy(f"another instance runs the retention of {self._system.name}")
            try:
                yield connection
            finally:
                await _unlock(connection, key)

    async def runs(self, limit: int) -> list[dict[str, Any]]:
        """The last runs as they were recorded, newest first: the columns of ``penstock_retention_run``.

        Raises:
            PostgresUnavailable: the database is away.
        """
        async with self._pool.connection() as connection:
            cursor = connection.cursor(row_factory=dict_row)
            await cursor.execute(
                "select instance, due_at, started_at, seconds, dry_run, entries_trimmed, rows_deleted, report"
                " from penstock_retention_run where system = %s order by started_at desc, id desc limit %s",
                (self._system.name, limit),
            )
            return await cursor.fetchall()

    async def _is_done(self, connection: Connection[TupleRow], due: datetime) -> bool:
        cursor = await connection.execute(
            "select from penstock_retention_run where system = %s and due_at >= %s limit 1", (self._system.name, due)
        )
        return await cursor.fetchone() is not None

    async def _sweep(self, connection: Connection[TupleRow], due: datetime | None, *, dry_run: bool) -> RetentionReport:
        started, began = self._wall(), trio.current_time()
        cutoff = started - timedelta(days=self._settings.days)
        oldest = started - timedelta(seconds=self._settings.keep_seconds)
        streams = [
            await self._trim(stream, key, oldest, dry_run=dry_run)
            for stream in self._system.streams.values()
            for key in stream.keys
        ]
        rows: dict[str, int] = {}
        for rule in rules(self._system, self._tables, cutoff, streams):
            deleted = await self._delete(connection, rule, dry_run=dry_run)
            rows[rule.rows.table] = rows.get(rule.rows.table, 0) + deleted
        report = RetentionReport(
            system=self._system.name,
            instance=self._instance,
            due_at=due,
            started_at=started,
            seconds=trio.current_time() - began,
            dry_run=dry_run,
            cutoff=cutoff,
            streams=tuple(streams),
            rows=rows,
        )
        await _record(connection, report)
        return report

    async def _trim(self, stream: Stream, key: str, oldest: datetime, *, dry_run: bool) -> StreamReport:
        try:
            if dry_run:
                return await count_trimmable(self._client(), stream, oldest, key=key)
            return await trim(self._client(), stream, oldest, key=key, most=self._settings.max_entries)
        except redis.exceptions.ResponseError as error:
            if classify(error).kind not in _STREAMS_OWN:
                raise
            return StreamReport(stream=key, error=str(error))

    async def _delete(self, connection: Connection[TupleRow], rule: Rule, *, dry_run: bool) -> int:
        table = rule.rows
        if dry_run:
            statement = _COUNT_ROWS.format(table=table.name, condition=rule.condition)
            row = await (await connection.execute(statement, rule.values)).fetchone()
            return 0 if row is None else int(row[0])
        statement = _DELETE_ROWS.format(
            table=table.name,
            key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
            condition=rule.condition,
            column=sql.Identifier(table.column),
        )
        total, batch = 0, self._settings.batch
        while True:
            # Autocommit: each batch is a transaction of its own, and no lock is held for long.
            deleted = (await connection.execute(statement, [*rule.values, batch])).rowcount
            total += deleted
            if deleted < batch:
                return total


_COUNT_ROWS: Final = sql.SQL("select count(*) from {table} where {condition}")

_DELETE_ROWS: Final = sql.SQL(
    "delete from {table} where ({key}) in (select {key} from {table} where {condition} order by {column} limit %s)"
)


async def _unlock(connection: Connection[TupleRow], key: int) -> None:
    """Give the lock back; a connection that cannot is closed, for the lock would go back to the pool with it."""
    with trio.move_on_after(_UNLOCK_LIMIT, shield=True):
        try:
            await connection.execute("select pg_advisory_unlock(%s)", (key,))
        except psycopg.Error:
            connection.abandon()
        return
    connection.abandon()


async def _record(connection: Connection[TupleRow], report: RetentionReport) -> None:
    details = {
        "cutoff": report.cutoff.isoformat(),
        "streams": [attrs.asdict(stream) for stream in report.streams],
        "rows": report.rows,
    }
    await connection.execute(
        "insert into penstock_retention_run (system, instance, due_at, started_at, seconds, dry_run, entries_trimmed,"
        " rows_deleted, report) values (%s, %s, %s, %s, %s, %s, %s, %s, %s)",
        (
            report.system,
            report.instance,
            report.due_at,
            report.started_at,
            report.seconds,
            report.dry_run,
            report.entries_trimmed,
            report.rows_deleted,
            Jsonb(details),
        ),
    )


def _lock_key(system: str) -> int:
    digest = hashlib.sha256(f"penstock retention of {system}".encode()).digest()
    return int.from_bytes(digest[:8], "big", signed=True)
