"""The table of suspects: entries that were with a process when it died, and may be why.

An entry that comes again without an end is counted here, in a transaction of its own, before it is handled alone.
Whoever brings an attempt to an orderly end, a failure too, takes the count back. What is counted again and again kills
its workers.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from .store import Transaction

__all__ = ["PostgresSuspects", "SuspectTable"]


class SuspectTable(Protocol):
    """Counts of entries of a group's partition. Errors are those of any statement of the transaction."""

    async def known(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """How often those of the entries have been counted that have been."""
        ...

    async def mark(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """Count each entry once more; how often each one has been counted by now."""
        ...

    async def absolve(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """Take one count of each back: the worker lives, and something else kept it from its work."""
        ...

    async def clear(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """Forget these entries."""
        ...


# In one order, so that two transactions that share entries wait for each other and never deadlock.
_MARK = """
insert into penstock_suspect as known (consumer_group, stream, entry_id, times)
select %s, %s, given, 1 from unnest(%s::text[]) as given order by given
on conflict (consumer_group, stream, entry_id) do update set times = known.times + 1, updated_at = now()
returning entry_id, times
"""

_KNOWN = """
select entry_id, times from penstock_suspect where consumer_group = %s and stream = %s and entry_id = any(%s)
"""

_ABSOLVE = """
with innocent as (
    delete from penstock_suspect
    where consumer_group = %(group)s and stream = %(stream)s and entry_id = any(%(ids)s) and times <= 1
)
update penstock_suspect set times = times - 1, updated_at = now()
where consumer_group = %(group)s and stream = %(stream)s and entry_id = any(%(ids)s) and times > 1
"""

_CLEAR = "delete from penstock_suspect where consumer_group = %s and stream = %s and entry_id = any(%s)"


class PostgresSuspects:
    """`SuspectTable` on PostgreSQL."""

    async def known(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """See `SuspectTable.known`."""
        cursor = await _on(transaction).execute(_KNOWN, (group, stream, list(entry_ids)))
        return dict(await cursor.fetchall())

    async def mark(
        self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]
    ) -> dict[str, int]:
        """See `SuspectTable.mark`."""
        cursor = await _on(transaction).execute(_MARK, (group, stream, list(entry_ids)))
        return dict(await cursor.fetchall())

    async def absolve(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """See `SuspectTable.absolve`."""
        await _on(transaction).execute(_ABSOLVE, {"group": group, "stream": stream, "ids": list(entry_ids)})

    async def clear(self, transaction: Transaction, group: str, stream: str, entry_ids: Collection[str]) -> None:
        """See `SuspectTable.clear`."""
        await _on(transaction).execute(_CLEAR, (group, stream, list(entry_ids)))


def _on(transaction: Transaction) -> Connection[Any]:
    return cast("Connection[Any]", transaction.connection)
