"""The losses of `MemoryStore`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, cast

import trio

from ..loss_table import RecordedLoss
from .deletions import MemoryDeletions, explained
from .memory import MemoryTransactions, MemoryWork, Table

if TYPE_CHECKING:
    from ..losses import Loss
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryLosses"]

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class MemoryLosses:
    """`LossTable` in memory.

    Attributes:
        table: what is committed, by group, stream, last id and counter, with the time.

    Args:
        server: who knows whether the database is there.
        deletions: what was deleted on purpose.
    """

    def __init__(self, server: MemoryTransactions, deletions: MemoryDeletions) -> None:
        self._deletions = deletions
        self.table: Table[tuple[str, str, str, int], tuple[Loss, float]] = Table("loss")
        self._server = server

    async def add(self, transaction: Transaction, loss: Loss) -> bool:
        """See `LossTable.add`."""
        work: MemoryWork = cast("MemoryTransaction", transaction).work
        place = (loss.group, loss.stream, loss.after_id, loss.counted_from)
        await work.lock(self.table, place)
        known = work.get(self.table, place)
        if known is not None and known[0] == loss:
            return False
        await work.put(self.table, place, (loss, trio.current_time()))
        return True

    async def recent(self, limit: int) -> list[RecordedLoss]:
        """See `LossTable.recent`; the times are those of trio's clock, after 2000."""
        await trio.lowlevel.checkpoint()
        self._server.check()
        found = sorted(self.table.rows.values(), key=lambda row: -row[1])[:limit]
        deletions = list(self._deletions.table.rows.values())
        known = [explained(deletions, loss) for loss, _ in found]
        return [
            RecordedLoss(
                group=loss.group,
                stream=loss.stream,
                after_id=loss.after_id,
                before_id=loss.before_id,
                entries=loss.entries,
                detected_at=_EPOCH + timedelta(seconds=at),
                deleted=why.entries,
                deleted_by=why.by,
            )
            for (loss, at), why in zip(found, known, strict=True)
        ]
