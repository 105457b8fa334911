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
from psycopg.rows import TupleRow
from psycopg.types.json import Jsonb

from ..runtime.redis import Kind, classify
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


@frozen
class OldRows:
    """A table whose rows are deleted by age.

    Attributes:
        table: its name, as in ``access_event`` or ``shop.order``.
        column: the time that counts; give it an index.
        key: the columns of its primary key.
    """

    table: str
    column: str = "created_at"
    key: tuple[str, ...] = ("id",)


ACCESS_ROWS: Final = OldRows("access_event")


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
        cutoff: what is older than this may go.
        streams: one report for each stream.
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

    async def _is_done(self, connection: Connection[TupleRow], due: datetime) -> bool:
        cursor = await connection.execute(
            "select from penstock_retention_run where system = %s and due_at >= %s limit 1", (self._system.name, due)
        )
        return await cursor.fetchone() is not None

    async def _sweep(self, connection: Connection[TupleRow], due: datetime | None, *, dry_run: bool) -> RetentionReport:
        started, began = self._wall(), trio.current_time()
        cutoff = started - timedelta(days=self._settings.days)
        streams = [await self._trim(stream, cutoff, dry_run=dry_run) for stream in self._system.streams.values()]
        rows: dict[str, int] = {}
        for table, condition, values in self._old(cutoff, streams):
            rows[table.table] = rows.get(table.table, 0) + await self._delete(
                connection, table, condition, values, dry_run=dry_run
            )
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

    async def _trim(self, stream: Stream, cutoff: datetime, *, dry_run: bool) -> StreamReport:
        try:
            if dry_run:
                return await count_trimmable(self._client(), stream, cutoff)
            return await trim(self._client(), stream, cutoff)
        except redis.exceptions.ResponseError as error:
            if classify(error).kind not in _STREAMS_OWN:
                raise
            return StreamReport(stream=stream.key, error=str(error))

    def _old(
        self, cutoff: datetime, streams: Sequence[StreamReport]
    ) -> list[tuple[OldRows, sql.Composable, list[Any]]]:
        """The tables, and for each the condition under which its rows may go, with the condition's values."""
        old: list[tuple[OldRows, sql.Composable, list[Any]]] = []
        for table in self._tables:
            old.append((table, sql.SQL("{} < %s").format(sql.Identifier(table.column)), [cutoff]))
        for stream in streams:
            # While its entry is in the stream, an event may be delivered again (to a group that was lost and made
            # again, say), and only its inbox row keeps it from having a second effect.
            if stream.error is None:
                old.append((_INBOX, _GONE, [stream.stream, cutoff, stream.first_id, stream.first_id]))
        old.append((_RUNS, _PAST, [self._system.name, cutoff, self._system.name]))
        return old

    async def _delete(
        self,
        connection: Connection[TupleRow],
        table: OldRows,
        condition: sql.Composable,
        values: Sequence[Any],
        *,
        dry_run: bool,
    ) -> int:
        name = sql.Identifier(*table.table.split("."))
        if dry_run:
            cursor = await connection.execute(_COUNT_ROWS.format(table=name, condition=condition), values)
            row = await cursor.fetchone()
            return 0 if row is None else int(row[0])
        statement = _DELETE_ROWS.format(
            table=name,
            key=sql.SQL(", ").join(map(sql.Identifier, table.key)),
            condition=condition,
            column=sql.Identifier(table.column),
        )
        total, batch = 0, self._settings.batch
        while True:
            # Autocommit: each batch is a transaction of its own, and no lock is held for long.
            deleted = (await connection.execute(statement, [*values, batch])).rowcount
            total += deleted
            if deleted < batch:
                return total


_COUNT_ROWS: Final = sql.SQL("select count(*) from {table} where {condition}")

_DELETE_ROWS: Final = sql.SQL(
    "delete from {table} where ({key}) in (select {key} from {table} where {condition} order by {column} limit %s)"
)

_INBOX: Final = OldRows("penstock_inbox", "handled_at", ("consumer_group", "event_id"))
_GONE: Final = sql.SQL(
    "stream = %s and handled_at < %s and"
    " (%s::text is null or string_to_array(entry_id, '-')::numeric[] < string_to_array(%s, '-')::numeric[])"
)

_RUNS: Final = OldRows("penstock_retention_run", "started_at")
# The last scheduled one stays, however old: it says that nothing has to be made up for.
_PAST: Final = sql.SQL(
    "system = %s and started_at < %s and due_at is distinct from"
    " (select max(due_at) from penstock_retention_run where system = %s)"
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
