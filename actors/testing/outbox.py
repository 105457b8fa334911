"""The outbox of `MemoryStore`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import trio

from ...runtime.postgres import PostgresUnavailable
from ..outbox_table import OutboxNews, OutboxRow, StoredRow, WaitingRows
from .memory import ADDRESS, MemoryTransactions, MemoryWork, Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryOutbox"]


class MemoryOutbox:
    """`OutboxTable` in memory.

    Attributes:
        table: the rows that are committed, by id, with the time at which they were written.
        mirrors: under which entry ids dead letters are shown, by the letters' ids.

    Args:
        server: who knows whether the database is there.
    """

    def __init__(self, server: MemoryTransactions) -> None:
        self.table: Table[int, tuple[OutboxRow, float]] = Table("outbox")
        self.mirrors: Table[int, str] = Table("mirror")
        self._server = server
        self._locks: Table[str, None] = Table("outbox lock")
        self._listeners: dict[_News, None] = {}

    @property
    def rows(self) -> list[OutboxRow]:
        """What waits, in order."""
        return [self.table.rows[number][0] for number in sorted(self.table.rows)]

    async def add(self, transaction: Transaction, rows: Sequence[OutboxRow]) -> list[int]:
        """See `OutboxTable.add`."""
        work = _work(transaction)
        ids = []
        for row in rows:
            number = self.table.next_id()
            await work.put(self.table, number, (row, trio.current_time()))
            ids.append(number)
        if ids:
            spooled = frozenset(row.stream for row in rows if row.kind == "spool")
            work.on_commit(lambda: self.tell(spooled))
        return ids

    async def take(self, transaction: Transaction, stream: str, limit: int, after: int = 0) -> list[StoredRow] | None:
        """See `OutboxTable.take`."""
        work = _work(transaction)
        if not await work.lock(self._locks, stream, skip=True):
            return None
        found = sorted(
            (number, row, at) for number, (row, at) in work.scan(self.table) if row.stream == stream and number > after
        )
        return [StoredRow(number, row, trio.current_time() - at) for number, row, at in found[:limit]]

    async def remove(self, transaction: Transaction, ids: Sequence[int]) -> int:
        """See `OutboxTable.remove`."""
        work = _work(transaction)
        return sum([await work.delete(self.table, number) for number in sorted(ids)])

    async def tell_letters(self, transaction: Transaction, entries: Mapping[int, str]) -> None:
        """See `OutboxTable.tell_letters`."""
        for letter_id, entry_id in entries.items():
            await _work(transaction).put(self.mirrors, letter_id, entry_id)

    async def streams(self) -> list[str]:
        """See `OutboxTable.streams`."""
        await trio.lowlevel.checkpoint()
        self._server.check()
        return sorted({row.stream for row, _ in self.table.rows.values()})

    async def waiting(self) -> list[WaitingRows]:
        """See `OutboxTable.waiting`."""
        await trio.lowlevel.checkpoint()
        self._server.check()
        now = trio.current_time()
        found: dict[str, list[float]] = {}
        for row, at in self.table.rows.values():
            found.setdefault(row.stream, []).append(now - at)
        return [WaitingRows(stream, len(ages), max(ages)) for stream, ages in sorted(found.items())]

    @asynccontextmanager
    async def news(self) -> AsyncIterator[OutboxNews]:
        """See `OutboxTable.news`."""
        await trio.lowlevel.checkpoint()
        self._server.check()
        news = _News(self._server)
        self._listeners[news] = None
        try:
            yield news
        finally:
            del self._listeners[news]

    def tell(self, spooled: frozenset[str] = frozenset()) -> None:
        """Wake those who wait for news: rows are committed, or the database has gone."""
        for news in self._listeners:
            news.hear(spooled)


class _News:
    def __init__(self, server: MemoryTransactions) -> None:
        self._server = server
        self._heard = trio.Event()
        self._spooled: frozenset[str] = frozenset()

    def hear(self, spooled: frozenset[str]) -> None:
        self._spooled |= spooled
        self._heard.set()

    async def wait(self) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        await self._heard.wait()
        spooled, self._spooled, self._heard = self._spooled, frozenset(), trio.Event()
        if (why := self._server.refusal) is not None:
            raise PostgresUnavailable(why, address=ADDRESS)
        return spooled


def _work(transaction: Transaction) -> MemoryWork:
    return cast("MemoryTransaction", transaction).work
