"""The table of retries in memory; held to the same tests as the one on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast
from uuid import UUID

import trio
from attrs import evolve, frozen

from ..retry_table import RetryRow, unbroken
from ..store import Transaction
from ..texts import storable
from .memory import MemoryWork, Table
from .replays import moment

if TYPE_CHECKING:
    from .store import MemoryStore, MemoryTransaction

__all__ = ["MemoryRetries"]


@frozen
class _Stored:
    """A row, and when it is due (`trio.current_time()`)."""

    row: RetryRow
    due_at: float

    def read(self) -> RetryRow:
        """The row as it is read now."""
        return evolve(self.row, due_in=self.due_at - trio.current_time())


class MemoryRetries:
    """`RetryTable` in memory, beside the tables of `store`."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self._table: Table[int, _Stored] = Table("retry")
        self._entries: Table[tuple[str, str, str], int] = Table("retry by entry")

    @property
    def rows(self) -> list[RetryRow]:
        """What is committed, in the order of ids."""
        return [stored.read() for _, stored in sorted(self._table.rows.items())]

    async def add(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """See `RetryTable.add`."""
        work, added = _work(transaction), 0
        await _statement(work)
        for row in rows:
            number = self._table.next_id()
            if await work.insert(self._entries, _entry(row), number):
                failed_at = datetime.now(UTC) if row.attempts else None
                stored = evolve(row, id=number, first_failed_at=failed_at)
                await work.insert(self._table, number, _Stored(stored, trio.current_time() + row.due_in))
                added += 1
        return added

    def has(self, work: MemoryWork, group: str, stream: str, entry_id: str) -> bool:
        """Whether a group has a row of an entry, as a transaction sees it."""
        return work.get(self._entries, (group, stream, entry_id)) is not None

    def has_event(self, work: MemoryWork, group: str, event_id: UUID) -> bool:
        """Whether a group has a row of an event, whatever its entry."""
        return any(
            stored.row.event_id == event_id and stored.row.consumer_group == group
            for _, stored in work.scan(self._table)
        )

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
        work, taken = _work(transaction), list[RetryRow]()
        await _statement(work)
        excluded = {storable(key) for key in without}
        for stored in sorted(self._of(work, group, stream), key=lambda stored: (stored.due_at, stored.row.id)):
            row = stored.row
            if len(taken) == limit or stored.due_at > trio.current_time():
                break
            if ordered and row.event_key is not None and (row.event_key in excluded or self._waits(work, row)):
                continue
            if await work.lock(self._table, row.id, skip=True):
                now = work.get(self._table, row.id)
                if now is not None and now.due_at <= trio.current_time():
                    taken.append(now.read())
        return taken

    async def following(self, transaction: Transaction, rows: Sequence[RetryRow], limit: int) -> list[RetryRow]:
        """See `RetryTable.following`."""
        work = _work(transaction)
        await _statement(work)
        keys, ids = {row.event_key for row in rows if row.event_key is not None}, {row.id for row in rows}
        stored = self._of(work, rows[0].consumer_group, rows[0].stream) if keys else []
        behind = [each.read() for each in stored if each.row.event_key in keys and each.row.id not in ids]
        return unbroken(sorted(behind, key=lambda row: row.id)[: max(0, limit)])

    async def hold(
        self, transaction: Transaction, rows: Sequence[RetryRow], *, ordered: bool = False
    ) -> list[RetryRow]:
        """See `RetryTable.hold`."""
        work, held = _work(transaction), []
        await _statement(work)
        if ordered:
            ids = {row.id for row in rows}
            rows = [row for row in rows if not self._waits(work, row, but=ids)]
        for row in sorted(rows, key=lambda row: row.id):
            # Looked at before it is locked, too: what does not fit is not locked.
            if self._as_read(work, row) and await work.lock(self._table, row.id, skip=True):
                stored = self._as_read(work, row)
                if stored is not None:
                    held.append(stored.read())
        return held

    async def claim(self, transaction: Transaction, rows: Sequence[RetryRow], within: float) -> None:
        """See `RetryTable.claim`."""
        work = _work(transaction)
        await _statement(work)
        for row in rows:
            await work.lock(self._table, row.id)
            stored = work.get(self._table, row.id)
            if stored is not None:
                await work.put(self._table, row.id, evolve(stored, due_at=trio.current_time() + within))

    async def withdraw(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """See `RetryTable.withdraw`."""
        work = _work(transaction)
        await _statement(work)
        for event_id in sorted(event_ids):
            await work.delete(self._store.inbox_table, (group, event_id))

    async def next_due(self, transaction: Transaction, group: str, stream: str) -> float | None:
        """See `RetryTable.next_due`."""
        work, now = _work(transaction), trio.current_time()
        await _statement(work)
        times = [stored.due_at for stored in self._of(work, group, stream) if stored.due_at > now]
        return min(times) - trio.current_time() if times else None

    async def keys(self, transaction: Transaction, group: str, stream: str, keys: Collection[str]) -> set[str]:
        """See `RetryTable.keys`."""
        work = _work(transaction)
        await _statement(work)
        there = {stored.row.event_key for stored in self._of(work, group, stream)}
        return {key for key in keys if storable(key) in there}

    async def enter(self, transaction: Transaction, row: RetryRow) -> bool:
        """See `RetryTable.enter`."""
        assert row.event_id is not None  # noqa: S101 - only what was decoded is handled
        work, table = _work(transaction), self._store.inbox_table
        await _statement(work)
        key, now = (row.consumer_group, row.event_id), trio.current_time()
        if row.forced:
            await work.put(table, key, now)
            return True
        await work.lock(table, key)  # ``on conflict do update`` holds what it does not update, too
        if not await work.insert(table, key, now):
            return False
        if row.is_ordered or not self._store.dead_letters.has_event(work, row.consumer_group, row.event_id):
            return True
        await work.delete(table, key)
        return False

    async def replayed(
        self, transaction: Transaction, group: str, event_ids: Collection[UUID], since: datetime
    ) -> set[UUID]:
        """See `RetryTable.replayed`."""
        work = _work(transaction)
        await _statement(work)
        times = {each: work.get(self._store.inbox_table, (group, each)) for each in event_ids}
        handled = {each for each, at in times.items() if at is not None and moment(at) > since}
        waiting = {
            stored.row.event_id
            for _, stored in work.scan(self._table)
            if stored.row.forced and stored.row.consumer_group == group and stored.row.event_id is not None
        }
        return handled | waiting.intersection(event_ids)

    async def remaining(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> set[str]:
        """See `RetryTable.remaining`."""
        work = _work(transaction)
        await _statement(work)
        return {
            entry_id
            for entry_id in entry_ids
            if not self.has(work, group, stream, entry_id)
            and work.get(self._store.letter_table, (group, stream, entry_id)) is None
        }

    async def put_off(self, transaction: Transaction, row: RetryRow) -> bool:
        """See `RetryTable.put_off`."""
        work = _work(transaction)
        await _statement(work)
        await work.lock(self._table, row.id)
        stored = work.get(self._table, row.id)
        if stored is None or stored.row.attempts != row.attempts - 1:
            return False
        changed = evolve(
            stored.row,
            attempts=row.attempts,
            failure=row.failure,
            first_failed_at=stored.row.first_failed_at or datetime.now(UTC),
        )
        await work.put(self._table, row.id, _Stored(changed, trio.current_time() + row.due_in))
        return True

    async def delete(self, transaction: Transaction, rows: Sequence[RetryRow]) -> int:
        """See `RetryTable.delete`."""
        work, deleted = _work(transaction), 0
        await _statement(work)
        for row in rows:
            if await work.delete(self._table, row.id):
                await work.delete(self._entries, _entry(row))
                deleted += 1
        return deleted

    async def count(self, transaction: Transaction, group: str, stream: str) -> int:
        """See `RetryTable.count`."""
        work = _work(transaction)
        await _statement(work)
        return len(self._of(work, group, stream))

    def _as_read(self, work: MemoryWork, row: RetryRow) -> _Stored | None:
        stored = work.get(self._table, row.id)
        return stored if stored is not None and stored.row.attempts == row.attempts else None

    def _of(self, work: MemoryWork, group: str, stream: str) -> list[_Stored]:
        return [
            stored
            for _, stored in work.scan(self._table)
            if stored.row.consumer_group == group and stored.row.stream == stream
        ]

    def _waits(self, work: MemoryWork, row: RetryRow, but: Collection[int] = ()) -> bool:
        """Whether a row of the same key goes before, other than those of `but`."""
        return row.event_key is not None and any(
            other.row.event_key == row.event_key and other.row.id < row.id and other.row.id not in but
            for other in self._of(work, row.consumer_group, row.stream)
        )


async def _statement(work: MemoryWork) -> None:
    """A round trip to the server, whose answer may be that nothing can be done."""
    await trio.lowlevel.checkpoint()
    work.check()


def _work(transaction: Transaction) -> MemoryWork:
    return cast("MemoryTransaction", transaction).work


def _entry(row: RetryRow) -> tuple[str, str, str]:
    return row.consumer_group, row.stream, row.entry_id
