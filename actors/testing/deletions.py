"""The deletions of `MemoryStore`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import trio

from ..deletion_table import Deletion, Explanation
from ..handling import entry_order
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from ..losses import Loss
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryDeletions", "explained"]


class MemoryDeletions:
    """`DeletionTable` in memory.

    Attributes:
        table: what is committed, by stream and entry.
    """

    def __init__(self) -> None:
        self.table: Table[tuple[str, str], Deletion] = Table("deletion")

    async def add(self, transaction: Transaction, deletions: Sequence[Deletion]) -> None:
        """See `DeletionTable.add`."""
        await trio.lowlevel.checkpoint()
        work: MemoryWork = cast("MemoryTransaction", transaction).work
        work.check()
        for each in deletions:
            await work.lock(self.table, (each.stream, each.entry_id))
            await work.put(self.table, (each.stream, each.entry_id), each)

    async def explain(self, transaction: Transaction, loss: Loss) -> Explanation:
        """See `DeletionTable.explain`."""
        await trio.lowlevel.checkpoint()
        work: MemoryWork = cast("MemoryTransaction", transaction).work
        work.check()
        return explained([each for _, each in work.scan(self.table)], loss)


def explained(deletions: Sequence[Deletion], loss: Loss) -> Explanation:
    """How much of a loss these deletions explain."""
    after, before = entry_order(loss.after_id), entry_order(loss.before_id)
    names = [
        each.deleted_by
        for each in deletions
        if each.stream == loss.stream and loss.group in each.unread_by and after < entry_order(each.entry_id) < before
    ]
    return Explanation(len(names), ", ".join(sorted(set(names))) or None)
