"""The table of steps in memory; held to the same tests as the one on PostgreSQL."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast
from uuid import UUID

import trio

from ..step_table import Step, StepState
from ..store import Transaction
from .memory import MemoryTransactions, MemoryWork, Table

if TYPE_CHECKING:
    from .store import MemoryTransaction

__all__ = ["MemorySteps"]


class MemorySteps:
    """`StepTable` in memory.

    Attributes:
        table: how far each step has come, by group, event id and name.
    """

    def __init__(self, server: MemoryTransactions) -> None:
        self.table: Table[tuple[str, UUID, str], StepState] = Table("step")
        self._server = server

    async def begin(self, step: Step) -> StepState:
        """See `StepTable.begin`."""
        async with self._work() as work:
            if await work.insert(self.table, _key(step), StepState.BEGUN):
                return StepState.NEW
            return work.get(self.table, _key(step)) or StepState.BEGUN

    async def end(self, step: Step) -> None:
        """See `StepTable.end`."""
        async with self._work() as work:
            await work.lock(self.table, _key(step))
            if work.get(self.table, _key(step)) is not None:
                await work.put(self.table, _key(step), StepState.DONE)

    async def withdraw(self, step: Step) -> None:
        """See `StepTable.withdraw`."""
        async with self._work() as work:
            await work.lock(self.table, _key(step))
            if work.get(self.table, _key(step)) is StepState.BEGUN:
                await work.delete(self.table, _key(step))

    async def clear(self, transaction: Transaction, group: str, event_ids: Collection[UUID]) -> None:
        """See `StepTable.clear`."""
        await trio.lowlevel.checkpoint()
        work = cast("MemoryTransaction", transaction).work
        work.check()
        given = set(event_ids)
        for key in [key for key, _ in work.scan(self.table) if key[0] == group and key[1] in given]:
            await work.delete(self.table, key)

    @asynccontextmanager
    async def _work(self) -> AsyncIterator[MemoryWork]:
        async with self._server.work() as work:
            yield work


def _key(step: Step) -> tuple[str, UUID, str]:
    return step.group, step.event_id, step.name
