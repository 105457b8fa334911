"""`StreamTable` in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from .memory import Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryStreams"]


class MemoryStreams:
    """`StreamTable` in memory.

    Attributes:
        table: the numbers of partitions, by stream.
    """

    def __init__(self) -> None:
        self.table: Table[str, int] = Table("stream")

    async def declare(self, transaction: Transaction, stream: str, partitions: int) -> int:
        """See `StreamTable.declare`."""
        work = cast("MemoryTransaction", transaction).work
        await work.insert(self.table, stream, partitions)
        return work.get(self.table, stream) or partitions
