"""`MemberTable` in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from uuid import UUID

import trio
from attrs import frozen

from ..member_table import Member, MemberView
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryMembers"]


@frozen
class _Row:
    member: Member
    started_at: float
    seen_at: float


class MemoryMembers:
    """`MemberTable` in memory.

    Attributes:
        table: the rows, by process.
    """

    def __init__(self) -> None:
        self.table: Table[UUID, _Row] = Table("member")

    async def beat(self, transaction: Transaction, member: Member) -> None:
        """See `MemberTable.beat`."""
        work, now = _work_of(transaction), trio.current_time()
        await work.lock(self.table, member.process)
        known = work.get(self.table, member.process)
        await work.put(self.table, member.process, _Row(member, now if known is None else known.started_at, now))

    async def leave(self, transaction: Transaction, process: UUID) -> None:
        """See `MemberTable.leave`."""
        await _work_of(transaction).delete(self.table, process)

    async def all(self, transaction: Transaction) -> list[MemberView]:
        """See `MemberTable.all`."""
        await trio.lowlevel.checkpoint()
        now = trio.current_time()
        rows = sorted(_work_of(transaction).scan(self.table), key=lambda row: (row[1].started_at, row[0]))
        return [
            MemberView(member=row.member, started_ago=now - row.started_at, seen_ago=now - row.seen_at)
            for _, row in rows
        ]

    async def forget(self, transaction: Transaction, silent_for: float) -> int:
        """See `MemberTable.forget`."""
        work = _work_of(transaction)
        old = [process for process, row in work.scan(self.table) if trio.current_time() - row.seen_at > silent_for]
        for process in old:
            await work.delete(self.table, process)
        return len(old)


def _work_of(transaction: Transaction) -> MemoryWork:
    work = cast("MemoryTransaction", transaction).work
    work.check()
    return work
