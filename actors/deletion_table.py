"""The table of deletions: entries that somebody deleted by our command, and which groups lost them by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

from attrs import frozen

if TYPE_CHECKING:
    from .losses import Loss
    from .store import Transaction

__all__ = ["Deletion", "DeletionTable", "Explanation", "PostgresDeletions"]


@frozen(kw_only=True)
class Deletion:
    """An entry that somebody deleted.

    Attributes:
        stream: the stream's key, or the partition's.
        entry_id: the entry.
        event_id: of the event that it carried; None if it carried none.
        event_type: of that event.
        unread_by: the groups that had not been given it.
        pending_by: those that had it and had not acknowledged it.
        deleted_by: who did it.
    """

    stream: str
    entry_id: str
    event_id: UUID | None
    event_type: str | None
    unread_by: tuple[str, ...]
    pending_by: tuple[str, ...]
    deleted_by: str


@frozen
class Explanation:
    """What deletions explain of a loss.

    Attributes:
        entries: how many of its entries were deleted by our command before the group was given them.
        by: by whom, with commas; None if none was.
    """

    entries: int
    by: str | None


class DeletionTable(Protocol):
    """In PostgreSQL or in memory. Every method raises `PostgresUnavailable` when the database is away."""

    async def add(self, transaction: Transaction, deletions: Sequence[Deletion]) -> None:
        """Write deletions down; what is known of an entry already is written anew."""
        ...

    async def explain(self, transaction: Transaction, loss: Loss) -> Explanation:
        """How much of a loss was deleted on purpose."""
        ...


_ADD: Final = """
insert into penstock_deletion (stream, entry_id, event_id, event_type, unread_by, pending_by, deleted_by)
values (%s, %s, %s, %s, %s, %s, %s)
on conflict (stream, entry_id) do update set event_id = excluded.event_id, event_type = excluded.event_type,
    unread_by = excluded.unread_by, pending_by = excluded.pending_by, deleted_by = excluded.deleted_by,
    deleted_at = now()
"""

_EXPLAIN: Final = """
select count(*), string_agg(distinct deleted_by, ', ' order by deleted_by) from penstock_deletion
where stream = %(stream)s and %(group)s = any(unread_by)
    and penstock_entry_before(%(after)s, entry_id) and penstock_entry_before(entry_id, %(before)s)
"""


class PostgresDeletions:
    """`DeletionTable` in PostgreSQL."""

    async def add(self, transaction: Transaction, deletions: Sequence[Deletion]) -> None:
        """See `DeletionTable.add`."""
        for each in deletions:
            values = (
                each.stream,
                each.entry_id,
                each.event_id,
                each.event_type,
                list(each.unread_by),
                list(each.pending_by),
                each.deleted_by,
            )
            await transaction.connection.execute(_ADD, values)

    async def explain(self, transaction: Transaction, loss: Loss) -> Explanation:
        """See `DeletionTable.explain`."""
        place = {"stream": loss.stream, "group": loss.group, "after": loss.after_id, "before": loss.before_id}
        cursor = await transaction.connection.execute(_EXPLAIN, place)
        return Explanation(*await cursor.fetchone())
