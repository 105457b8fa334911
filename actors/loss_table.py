"""The table of losses: entries that a group will never be given, as the loss detector found them."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from attrs import frozen

if TYPE_CHECKING:
    from ..runtime.postgres import Pool
    from .losses import Loss
    from .store import Transaction

__all__ = ["LossTable", "PostgresLosses", "RecordedLoss"]


@frozen(kw_only=True)
class RecordedLoss:
    """A loss as it was written down.

    Attributes:
        group: the consumer group.
        stream: the stream's key, or the partition's.
        after_id: the last entry that the group had been given.
        before_id: what is lost is older than this.
        entries: how many; None where Redis could not tell.
        detected_at: aware.
        deleted: how many of them were deleted by our command.
        deleted_by: by whom, with commas; None if none was.
    """

    group: str
    stream: str
    after_id: str
    before_id: str
    entries: int | None
    detected_at: datetime
    deleted: int = 0
    deleted_by: str | None = None


class LossTable(Protocol):
    """In PostgreSQL or in memory. Every method raises `PostgresUnavailable` when the database is away."""

    async def add(self, transaction: Transaction, loss: Loss) -> bool:
        """Write a loss down, or that a known one has grown; False if it was known as it is."""
        ...

    async def recent(self, limit: int) -> list[RecordedLoss]:
        """The last losses, newest first."""
        ...


_ADD: Final = """
insert into penstock_loss as known (consumer_group, stream, after_id, before_id, entries, counted_from)
values (%s, %s, %s, %s, %s, %s)
on conflict (consumer_group, stream, after_id, counted_from) do update
    set before_id = excluded.before_id, entries = excluded.entries, detected_at = now()
    where (known.before_id, coalesce(known.entries, -1)) <> (excluded.before_id, coalesce(excluded.entries, -1))
"""

_RECENT: Final = """
select loss.consumer_group, loss.stream, loss.after_id, loss.before_id, loss.entries, loss.detected_at, known.*
from (select * from penstock_loss order by detected_at desc, id desc limit %s) loss
cross join lateral (
    select count(*), string_agg(distinct deletion.deleted_by, ', ' order by deletion.deleted_by)
    from penstock_deletion deletion
    where deletion.stream = loss.stream and loss.consumer_group = any(deletion.unread_by)
        and penstock_entry_before(loss.after_id, deletion.entry_id)
        and penstock_entry_before(deletion.entry_id, loss.before_id)
) known
order by loss.detected_at desc, loss.id desc
"""


class PostgresLosses:
    """`LossTable` in PostgreSQL.

    Args:
        pool: for what needs no transaction of the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, transaction: Transaction, loss: Loss) -> bool:
        """See `LossTable.add`."""
        values = (loss.group, loss.stream, loss.after_id, loss.before_id, loss.entries, loss.counted_from)
        cursor = await transaction.connection.execute(_ADD, values)
        return bool(cursor.rowcount)

    async def recent(self, limit: int) -> list[RecordedLoss]:
        """See `LossTable.recent`."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_RECENT, (limit,))
            return [_recorded(*row) for row in await cursor.fetchall()]


def _recorded(
    group: str, stream: str, after: str, before: str, entries: int | None, at: Any, deleted: int, by: str | None
) -> RecordedLoss:
    return RecordedLoss(
        group=group,
        stream=stream,
        after_id=after,
        before_id=before,
        entries=entries,
        detected_at=at,
        deleted=deleted,
        deleted_by=by,
    )
