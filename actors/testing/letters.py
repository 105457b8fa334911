"""The dead letters of `MemoryStore`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast
from uuid import UUID

from attrs import evolve, frozen

from ..dead_letter import DeadLetter
from ..letter_table import mirror_row
from .memory import MemoryWork, Table

if TYPE_CHECKING:
    from ..store import Transaction
    from .outbox import MemoryOutbox
    from .store import MemoryTransaction

__all__ = ["MemoryLetters", "StoredLetter"]


@frozen
class StoredLetter:
    """A row.

    Attributes:
        id: given once; a letter that is dead again keeps it.
        letter: what was told of it last.
        status: ``replayed`` once it was tried again, and came to a good end.
        deaths: how often it was buried.
    """

    id: int
    letter: DeadLetter
    status: Literal["dead", "replayed"] = "dead"
    deaths: int = 1


class MemoryLetters:
    """`LetterTable` in memory.

    Args:
        outbox: where the entries go that show letters.

    Attributes:
        table: the rows that are committed, by group, stream and entry.
    """

    def __init__(self, outbox: MemoryOutbox) -> None:
        self.table: Table[tuple[str, str, str], StoredLetter] = Table("dead letter")
        self._outbox = outbox

    async def bury(self, transaction: Transaction, letter: DeadLetter) -> None:
        """See `LetterTable.bury`."""
        work = _work(transaction)
        key = (letter.consumer_group, letter.stream, letter.entry_id)
        made = StoredLetter(self.table.next_id(), letter)
        if await work.insert(self.table, key, made):
            await self._show(transaction, made)
            return
        if not letter.again:
            return
        await work.lock(self.table, key)
        before = work.get(self.table, key)
        if before is None:
            return
        # The place and the fields are the same; what does not change is kept, as in PostgreSQL.
        told = evolve(
            letter,
            fields=before.letter.fields,
            event_id=before.letter.event_id,
            event_type=before.letter.event_type,
            event_key=before.letter.event_key,
            published_at=before.letter.published_at,
            first_delivered_at=before.letter.first_delivered_at,
            traceparent=before.letter.traceparent,
        )
        again = evolve(before, letter=told, status="dead", deaths=before.deaths + 1)
        await work.put(self.table, key, again)
        if not self._is_shown(work, before.id):
            await self._show(transaction, again)

    async def settle(
        self,
        transaction: Transaction,
        group: str,
        stream: str,
        entry_id: str,
        by: str,
        event_id: UUID | None = None,
    ) -> bool:
        """See `LetterTable.settle`."""
        work, settled = _work(transaction), False
        keys = [key for key, stored in work.scan(self.table) if event_id and _is_of(stored, group, event_id)]
        for key in dict.fromkeys([(group, stream, entry_id), *keys]):
            if work.get(self.table, key) is None:
                continue
            await work.lock(self.table, key)
            before = work.get(self.table, key)
            if before is not None and before.status == "dead":
                await work.put(self.table, key, evolve(before, status="replayed"))
                settled = True
        return settled

    def has_event(self, work: MemoryWork, group: str, event_id: UUID) -> bool:
        """Whether a group has a letter of an event that was not replayed, whatever its entry."""
        return any(_is_of(stored, group, event_id) and stored.status == "dead" for _, stored in work.scan(self.table))

    def _is_shown(self, work: MemoryWork, letter_id: int) -> bool:
        if work.get(self._outbox.mirrors, letter_id) is not None:
            return True
        return any(row.letter_id == letter_id and row.kind == "mirror" for _, (row, _) in work.scan(self._outbox.table))

    async def _show(self, transaction: Transaction, stored: StoredLetter) -> None:
        row = mirror_row(stored.letter, stored.id)
        if row is not None:
            await self._outbox.add(transaction, [row])


def _is_of(stored: StoredLetter, group: str, event_id: UUID) -> bool:
    return stored.letter.event_id == event_id and stored.letter.consumer_group == group


def _work(transaction: Transaction) -> MemoryWork:
    return cast("MemoryTransaction", transaction).work
