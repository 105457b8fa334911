"""`LeaseTable` in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast
from uuid import UUID

import trio
from attrs import frozen

from ..lease_table import Lease, LeaseLost, LeaseView
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryLeases"]


@frozen
class _Row:
    owner: UUID | None
    epoch: int
    expires_at: float

    def is_of(self, lease: Lease) -> bool:
        return self.owner == lease.owner and self.epoch == lease.epoch


class MemoryLeases:
    """`LeaseTable` in memory.

    Attributes:
        table: the rows, by group and stream.
    """

    def __init__(self) -> None:
        self.table: Table[tuple[str, str], _Row] = Table("lease")
        # PostgreSQL's FOR KEY SHARE goes along with an update of the row, and not with FOR UPDATE.
        self._keys: Table[tuple[str, str], None] = Table("keys of leases")

    async def hold(self, transaction: Transaction, lease: Lease) -> None:
        """See `LeaseTable.hold`."""
        place, work = (lease.consumer_group, lease.stream), _work_of(transaction)
        await work.share(self._keys, place)
        row = work.get(self.table, place)
        if row is None or not row.is_of(lease) or row.expires_at <= trio.current_time():
            raise LeaseLost(f"{lease.stream} is not ours any more for {lease.consumer_group}, epoch {lease.epoch}")

    async def take(
        self,
        transaction: Transaction,
        consumer_group: str,
        stream: str,
        owner: UUID,
        within: float,
        above: int = 0,
    ) -> Lease | None:
        """See `LeaseTable.take`."""
        place, work = (consumer_group, stream), _work_of(transaction)
        if not await work.lock(self._keys, place, skip=True):
            return None
        row = work.get(self.table, place) or _Row(None, 0, 0.0)
        if row.owner not in (None, owner) and row.expires_at > trio.current_time():
            return None
        epoch = max(row.epoch, above) + 1
        await work.put(self.table, place, _Row(owner, epoch, trio.current_time() + within))
        return Lease(consumer_group, stream, owner, epoch)

    async def renew(self, transaction: Transaction, leases: Sequence[Lease], within: float) -> list[Lease]:
        """See `LeaseTable.renew`."""
        work, ours = _work_of(transaction), []
        for lease in leases:
            if await self._change(work, lease, lease.owner, within):
                ours.append(lease)
        return ours

    async def release(self, transaction: Transaction, lease: Lease) -> bool:
        """See `LeaseTable.release`."""
        return await self._change(_work_of(transaction), lease, None, 0.0)

    async def all(self, transaction: Transaction) -> list[LeaseView]:
        """See `LeaseTable.all`."""
        await trio.lowlevel.checkpoint()
        rows = sorted(_work_of(transaction).scan(self.table), key=lambda row: row[0])
        return [
            LeaseView(group, stream, row.owner, row.epoch, row.expires_at - trio.current_time())
            for (group, stream), row in rows
        ]

    async def _change(self, work: MemoryWork, lease: Lease, owner: UUID | None, within: float) -> bool:
        place = (lease.consumer_group, lease.stream)
        await work.lock(self.table, place)
        row = work.get(self.table, place)
        if row is None or not row.is_of(lease):
            return False
        await work.put(self.table, place, _Row(owner, row.epoch, trio.current_time() + within))
        return True


def _work_of(transaction: Transaction) -> MemoryWork:
    work = cast("MemoryTransaction", transaction).work
    work.check()
    return work
