"""The table of retries: events that a group will handle again later, and that are nowhere else.

Their entries are acknowledged: the row, with all fields, is what is left of them. So attempts and pauses outlive the
process and Redis itself, and can be seen and changed in SQL. Workers take due rows in the very transaction in which
they handle them; whatever happens to a worker, the row is due again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, cast
from uuid import UUID

from . import retry_statements as sql
from .retry_row import RetryFailure, RetryOrigin, RetryRow, unbroken
from .texts import storable

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from .store import Transaction

__all__ = ["PostgresRetries", "RetryFailure", "RetryOrigin", "RetryRow", "RetryTable", "unbroken"]


class RetryTable(Protocol):
    """What the pool, the desk and replays do with the rows. Errors are those of any statement of the transaction."""

    async def add(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """Store rows, in order; the number of those stored. One whose entry the group has here already is left out."""
        ...

    async def take(
        self,
        transaction: Transaction,
        group: str,
        stream: str,
        *,
        limit: int = 1,
        ordered: bool = False,
        without: Collection[str] = (),
    ) -> list[RetryRow]:
        """Up to `limit` rows that are due, longest due first, locked until the end of the transaction.

        Rows that another transaction has are passed over. With `ordered`, of each key only its first row is ever due,
        and no row of the keys `without` is.
        """
        ...

    async def following(self, transaction: Transaction, rows: Sequence[RetryRow], limit: int) -> list[RetryRow]:
        """Up to `limit` rows that stand right behind `rows`, each the first of its key, in order.

        Of each key only so far as they never failed and are due. They are not locked.
        """
        ...

    async def hold(
        self, transaction: Transaction, rows: Sequence[RetryRow], *, ordered: bool = False
    ) -> list[RetryRow]:
        """Lock the rows that still are as they were read (same attempts); those that somebody else has are left out.

        With `ordered`, also those before which another row of their key stands that is none of `rows`.
        """
        ...

    async def claim(self, transaction: Transaction, rows: Sequence[RetryRow], within: float) -> None:
        """Let nobody else take rows for `within` seconds: they are due then, if they are still here."""
        ...

    async def withdraw(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """Take events out of the group's inbox again that this transaction has entered."""
        ...

    async def next_due(self, transaction: Transaction, group: str, stream: str) -> float | None:
        """Seconds until the next row is due that is not due yet, or None; an early answer costs nothing."""
        ...

    async def keys(self, transaction: Transaction, group: str, stream: str, keys: Collection[str]) -> set[str]:
        """Which of these event keys have a row: what comes later under them must wait behind it."""
        ...

    async def enter(self, transaction: Transaction, row: RetryRow) -> bool:
        """Enter the row's event into the group's inbox; False if it is there already, and the row is not forced.

        Also False if it died as another entry, and nobody ordered the row.
        """
        ...

    async def replayed(
        self, transaction: Transaction, group: str, event_ids: Collection[UUID], since: datetime
    ) -> set[UUID]:
        """Which of these events the group has handled since then, or has a forced row of."""
        ...

    async def remaining(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> set[str]:
        """Which of these entries the group has neither here nor among its dead letters."""
        ...

    async def put_off(self, transaction: Transaction, row: RetryRow) -> bool:
        """Store the attempts, the failure and the time of a row that was read with one attempt less.

        False, and nothing happens, if it is not as it was read: somebody else has handled it meanwhile.
        """
        ...

    async def delete(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """Delete rows, by id; the number of those that were there."""
        ...

    async def count(self, transaction: Transaction, group: str, stream: str) -> int:
        """How many rows a group has of one partition."""
        ...


class PostgresRetries:
    """`RetryTable` on PostgreSQL."""

    async def add(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """See `RetryTable.add`."""
        if not rows:
            return 0
        columns = [list(column) for column in zip(*map(_given, rows), strict=True)]
        return (await _on(transaction).execute(sql.ADD, columns)).rowcount

    async def take(
        self,
        transaction: Transaction,
        group: str,
        stream: str,
        *,
        limit: int = 1,
        ordered: bool = False,
        without: Collection[str] = (),
    ) -> list[RetryRow]:
        """See `RetryTable.take`."""
        given = {"group": group, "stream": stream, "limit": limit, "without": [storable(key) for key in without]}
        cursor = await _on(transaction).execute(sql.TAKE_ORDERED if ordered else sql.TAKE, given)
        return [_read(row) for row in await cursor.fetchall()]

    async def following(self, transaction: Transaction, rows: Sequence[RetryRow], limit: int) -> list[RetryRow]:
        """See `RetryTable.following`."""
        keys = [row.event_key for row in rows if row.event_key is not None]
        if not keys or limit <= 0:
            return []
        first = rows[0]
        place = {"group": first.consumer_group, "stream": first.stream}
        given = {**place, "keys": list(dict.fromkeys(keys)), "ids": [row.id for row in rows], "limit": limit}
        cursor = await _on(transaction).execute(sql.FOLLOWING, given)
        return unbroken(_read(row) for row in await cursor.fetchall())

    async def hold(
        self, transaction: Transaction, rows: Sequence[RetryRow], *, ordered: bool = False
    ) -> list[RetryRow]:
        """See `RetryTable.hold`."""
        ids, attempts = [row.id for row in rows], [row.attempts for row in rows]
        if ordered:
            cursor = await _on(transaction).execute(sql.HOLD_ORDERED, {"ids": ids, "attempts": attempts})
        else:
            cursor = await _on(transaction).execute(sql.HOLD, (ids, attempts))
        return [_read(row) for row in await cursor.fetchall()]

    async def claim(self, transaction: Transaction, rows: Sequence[RetryRow], within: float) -> None:
        """See `RetryTable.claim`."""
        await _on(transaction).execute(sql.CLAIM, (within, [row.id for row in rows]))

    async def withdraw(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """See `RetryTable.withdraw`."""
        statement = "delete from penstock_inbox where consumer_group = %s and event_id = any(%s)"
        await _on(transaction).execute(statement, (group, list(event_ids)))

    async def next_due(self, transaction: Transaction, group: str, stream: str) -> float | None:
        """See `RetryTable.next_due`."""
        row = await (await _on(transaction).execute(sql.NEXT, (group, stream))).fetchone()
        return None if row is None or row[0] is None else float(row[0])

    async def keys(self, transaction: Transaction, group: str, stream: str, keys: Collection[str]) -> set[str]:
        """See `RetryTable.keys`."""
        written = {storable(key): key for key in keys}
        cursor = await _on(transaction).execute(sql.KEYS, (list(written), group, stream))
        found = {row[0] for row in await cursor.fetchall()}
        return {key for key in keys if storable(key) in found}

    async def enter(self, transaction: Transaction, row: RetryRow) -> bool:
        """See `RetryTable.enter`."""
        values = (row.consumer_group, row.event_id, row.stream, row.entry_id, row.forced)
        if await (await _on(transaction).execute(sql.ENTER, values)).fetchone() is None:
            return False
        if row.is_ordered or row.forced:
            return True
        # A statement of its own: it sees what was written by whoever the first one waited for.
        event = {"group": row.consumer_group, "event_id": row.event_id}
        return not (await _on(transaction).execute(sql.DIED_ELSEWHERE, event)).rowcount

    async def replayed(
        self, transaction: Transaction, group: str, event_ids: Collection[UUID], since: datetime
    ) -> set[UUID]:
        """See `RetryTable.replayed`."""
        given = {"group": group, "events": list(event_ids), "since": since}
        return {row[0] for row in await (await _on(transaction).execute(sql.REPLAYED, given)).fetchall()}

    async def remaining(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> set[str]:
        """See `RetryTable.remaining`."""
        values = {"group": group, "stream": stream, "ids": list(entry_ids)}
        return {row[0] for row in await (await _on(transaction).execute(sql.REMAINING, values)).fetchall()}

    async def put_off(self, transaction: Transaction, row: RetryRow) -> bool:
        """See `RetryTable.put_off`."""
        failure = row.failure
        cursor = await _on(transaction).execute(
            sql.PUT_OFF,
            (
                row.attempts,
                row.due_in,
                failure.error_class,
                failure.error_message,
                failure.traceback,
                failure.fingerprint,
                row.id,
                row.attempts - 1,
            ),
        )
        return cursor.rowcount > 0

    async def delete(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """See `RetryTable.delete`."""
        statement = "delete from penstock_retry where id = any(%s)"
        return (await _on(transaction).execute(statement, ([row.id for row in rows],))).rowcount

    async def count(self, transaction: Transaction, group: str, stream: str) -> int:
        """See `RetryTable.count`."""
        statement = "select count(*) from penstock_retry where consumer_group = %s and stream = %s"
        row = await (await _on(transaction).execute(statement, (group, stream))).fetchone()
        return int(row[0]) if row is not None else 0


def _on(transaction: Transaction) -> Connection[Any]:
    return cast("Connection[Any]", transaction.connection)


def _given(row: RetryRow) -> tuple[Any, ...]:
    failure = row.failure
    return (
        row.consumer_group,
        row.stream,
        row.entry_id,
        json.dumps(dict(row.fields)).encode("ascii"),
        row.origin.value,
        row.event_id,
        row.event_type,
        row.event_key,
        row.forced,
        row.letter_id,
        row.attempts,
        row.due_in,
        failure.error_class,
        failure.error_message,
        failure.traceback,
        failure.fingerprint,
    )


def _read(row: Sequence[Any]) -> RetryRow:
    (number, group, stream, entry_id, fields, origin, event_id, event_type, event_key, forced, letter_id, attempts,
     due_in, error_class, error_message, traceback, fingerprint, first_failed_at) = row  # fmt: skip
    return RetryRow(
        id=number,
        consumer_group=group,
        stream=stream,
        entry_id=entry_id,
        fields=json.loads(bytes(fields)),
        origin=origin,
        event_id=event_id,
        event_type=event_type,
        event_key=event_key,
        forced=forced,
        letter_id=letter_id,
        attempts=attempts,
        due_in=due_in,
        failure=RetryFailure(
            error_class=error_class, error_message=error_message, traceback=traceback, fingerprint=fingerprint
        ),
        first_failed_at=first_failed_at,
    )
