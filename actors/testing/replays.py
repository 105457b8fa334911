"""The replays of `MemoryStore`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, cast
from uuid import UUID

import trio
from attrs import evolve, frozen

from ..replay_table import Replay, ReplayState
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .store import MemoryTransaction

__all__ = ["MemoryReplays", "moment"]

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


@frozen
class _Row:
    replay: Replay
    worker: UUID | None = None
    until: float = 0.0


class MemoryReplays:
    """`ReplayTable` in memory; its times are those of trio's clock, after 2000.

    Attributes:
        table: what is committed, by id.
    """

    def __init__(self) -> None:
        self.table: Table[UUID, _Row] = Table("replay")

    @property
    def rows(self) -> list[Replay]:
        """The orders, in the order of their commits."""
        return [row.replay for row in self.table.rows.values()]

    async def add(self, transaction: Transaction, replay: Replay) -> None:
        """See `ReplayTable.add`."""
        await _work(transaction).put(self.table, replay.id, _Row(evolve(replay, ordered_at=_now())))

    async def get(self, transaction: Transaction, replay_id: UUID) -> Replay | None:
        """See `ReplayTable.get`."""
        await trio.lowlevel.checkpoint()
        row = _work(transaction).get(self.table, replay_id)
        return None if row is None else row.replay

    async def recent(self, transaction: Transaction, system: str, limit: int) -> list[Replay]:
        """See `ReplayTable.recent`."""
        await trio.lowlevel.checkpoint()
        found = [row.replay for _, row in _work(transaction).scan(self.table) if row.replay.system == system]
        return sorted(found, key=_age, reverse=True)[:limit]

    async def claim(self, transaction: Transaction, system: str, worker: UUID, seconds: float) -> Replay | None:
        """See `ReplayTable.claim`."""
        await trio.lowlevel.checkpoint()
        work, now = _work(transaction), trio.current_time()
        for known in sorted((row.replay for _, row in work.scan(self.table)), key=_age):
            if known.system != system or not await work.lock(self.table, known.id, skip=True):
                continue
            row = work.get(self.table, known.id)
            if row is None or not row.replay.is_open or not (row.worker in (None, worker) or row.until < now):
                continue
            claimed = evolve(row.replay, state=ReplayState.RUNNING)
            await work.put(self.table, claimed.id, _Row(claimed, worker, now + seconds))
            return claimed
        return None

    async def advance(
        self, transaction: Transaction, replay: Replay, worker: UUID, cursors: Mapping[str, str], count: int
    ) -> bool:
        """See `ReplayTable.advance`."""
        work = _work(transaction)
        await work.lock(self.table, replay.id)
        row = work.get(self.table, replay.id)
        if row is None or row.worker != worker or row.replay.state is not ReplayState.RUNNING:
            return False
        moved = evolve(row.replay, cursors=dict(cursors), replayed=row.replay.replayed + count)
        await work.put(self.table, replay.id, evolve(row, replay=moved))
        return True

    async def finish(self, transaction: Transaction, replay_id: UUID, state: ReplayState, error: str | None) -> bool:
        """See `ReplayTable.finish`."""
        work = _work(transaction)
        await work.lock(self.table, replay_id)
        row = work.get(self.table, replay_id)
        if row is None or not row.replay.is_open:
            return False
        await work.put(self.table, replay_id, _Row(evolve(row.replay, state=state, error=error, finished_at=_now())))
        return True

    async def release(self, transaction: Transaction, replay_id: UUID, worker: UUID) -> None:
        """See `ReplayTable.release`."""
        work = _work(transaction)
        await work.lock(self.table, replay_id)
        row = work.get(self.table, replay_id)
        if row is not None and row.worker == worker:
            await work.put(self.table, replay_id, _Row(row.replay))


def _age(replay: Replay) -> tuple[datetime, UUID]:
    return replay.ordered_at or _EPOCH, replay.id


def moment(at: float) -> datetime:
    """What `trio.current_time()` is in these tables."""
    return _EPOCH + timedelta(seconds=at)


def _now() -> datetime:
    return moment(trio.current_time())


def _work(transaction: Transaction) -> MemoryWork:
    return cast("MemoryTransaction", transaction).work
