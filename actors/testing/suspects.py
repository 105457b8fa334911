"""The table of suspects in memory; held to the same tests as the one on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import trio

from ..store import Transaction
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from .store import MemoryTransaction

__all__ = ["MemorySuspects"]


class MemorySuspects:
    """`SuspectTable` in memory.

    Attributes:
        table: how often each entry was counted, by group, stream and entry id.
    """

    def __init__(self) -> None:
        self.table: Table[tuple[str, str, str], int] = Table("suspect")

    async def known(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """See `SuspectTable.known`."""
        work = await _statement(transaction)
        times = {entry_id: work.get(self.table, (group, stream, entry_id)) for entry_id in entry_ids}
        return {entry_id: count for entry_id, count in times.items() if count is not None}

    async def mark(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """See `SuspectTable.mark`."""
        work = await _statement(transaction)
        marked = {}
        for entry_id in sorted(entry_ids):
            await work.lock(self.table, (group, stream, entry_id))
            marked[entry_id] = (work.get(self.table, (group, stream, entry_id)) or 0) + 1
            await work.put(self.table, (group, stream, entry_id), marked[entry_id])
        return marked

    async def absolve(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """See `SuspectTable.absolve`."""
        work = await _statement(transaction)
        for entry_id in sorted(entry_ids):
            await work.lock(self.table, (group, stream, entry_id))
            times = work.get(self.table, (group, stream, entry_id))
            if times is not None and times > 1:
                await work.put(self.table, (group, stream, entry_id), times - 1)
            else:
                await work.delete(self.table, (group, stream, entry_id))

    async def clear(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """See `SuspectTable.clear`."""
        work = await _statement(transaction)
        for entry_id in sorted(entry_ids):
            await work.delete(self.table, (group, stream, entry_id))


async def _statement(transaction: Transaction) -> MemoryWork:
    await trio.lowlevel.checkpoint()
    work = cast("MemoryTransaction", transaction).work
    work.check()
    return work
