"""The table of dead letters, as far as handlers need it: entries are buried, and settled if a replay of them succeeds.

Both belong to the transaction that decides so. What people do with letters is in `letters.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID

from psycopg.types.json import Jsonb

from .dead_letter import DEAD_LETTER_MIRROR, DeadLetter
from .outbox_table import OutboxRow, OutboxTable
from .texts import storable

if TYPE_CHECKING:
    from .store import Transaction

__all__ = ["LetterTable", "PostgresLetters", "mirror_row"]


class LetterTable(Protocol):
    """The table, in PostgreSQL or in memory. Every method raises `PostgresUnavailable` when the database is away."""

    async def bury(self, transaction: Transaction, letter: DeadLetter) -> None:
        """Store a dead letter, and put the entry that shows it in the outbox, where there is to be one.

        If the group has buried the entry before, nothing happens, unless it was tried `DeadLetter.again`: then the
        letter is dead again, tells how it was this time, and its history says so.
        """
        ...

    async def settle(
        self,
        transaction: Transaction,
        group: str,
        stream: str,
        entry_id: str,
        by: str,
        event_id: UUID | None = None,
    ) -> bool:
        """The entry was tried again, and came to a good end: its dead letter, if it has one, is settled as replayed.

        So are those of other entries of its event.

        Args:
            transaction: the handler's.
            group: the consumer group.
            stream: the key of the entry's partition.
            entry_id: the entry.
            by: who handled it, for people.
            event_id: its event, where it could be read.

        Returns:
            Whether there was a letter to settle.
        """
        ...


def mirror_row(letter: DeadLetter, letter_id: int) -> OutboxRow | None:
    """What the relay is to add to the stream that shows dead letters; None where there is none."""
    if letter.mirror is None:
        return None
    return OutboxRow(
        stream=letter.mirror,
        event_id=letter.event_id,
        fields=letter.mirror_fields,
        key=letter.event_key,
        kind="mirror",
        max_len=DEAD_LETTER_MIRROR,
        letter_id=letter_id,
        created_by=letter.consumer_group,
    )


_BURY: Final = """
insert into penstock_dead_letter (
    stream, entry_id, event_id, event_type, event_key, consumer_group, consumer, reason, fields, raw,
    error_class, error_message, traceback, fingerprint, deliveries, published_at, first_delivered_at, dead_at,
    traceparent, host, pid, version, mirror
) values (
    %(stream)s, %(entry_id)s, %(event_id)s, %(event_type)s, %(event_key)s, %(group)s, %(consumer)s, %(reason)s,
    %(fields)s, %(raw)s, %(error_class)s, %(error_message)s, %(traceback)s, %(fingerprint)s, %(deliveries)s,
    %(published_at)s, %(first_delivered_at)s, %(dead_at)s, %(traceparent)s, %(host)s, %(pid)s, %(version)s, %(mirror)s
)
on conflict (consumer_group, stream, entry_id) do nothing
returning id
"""

# The entry that shows it may still be there, or still be on its way: then that one goes on showing it.
_DIED_AGAIN: Final = """
update penstock_dead_letter letter set
    status = 'dead', settled_at = null, settled_by = null, moved_at = null, mirror = %(mirror)s,
    consumer = %(consumer)s, reason = %(reason)s, error_class = %(error_class)s, error_message = %(error_message)s,
    traceback = %(traceback)s, fingerprint = %(fingerprint)s, deliveries = %(deliveries)s, dead_at = %(dead_at)s,
    host = %(host)s, pid = %(pid)s, version = %(version)s
where consumer_group = %(group)s and stream = %(stream)s and entry_id = %(entry_id)s
returning id, order_id, letter.mirror_id is not null or exists (
    select from penstock_outbox row where row.letter_id = letter.id and row.kind = 'mirror'
)
"""

_TELL_DEATH: Final = (
    "insert into penstock_dead_letter_audit (letter_id, action, by, order_id, note) values (%s, 'died', %s, %s, %s)"
)

_SETTLE: Final = """
with settled as (
    update penstock_dead_letter set status = 'replayed', settled_at = now(), settled_by = %(by)s
    where consumer_group = %(group)s and status in ('dead', 'replaying')
        and (stream = %(stream)s and entry_id = %(entry_id)s or event_id = %(event_id)s::uuid)
    returning id, order_id
)
insert into penstock_dead_letter_audit (letter_id, action, by, order_id)
select id, 'replayed', %(by)s, order_id from settled
"""


class PostgresLetters:
    """`LetterTable` in PostgreSQL.

    Args:
        outbox: where the entries go that show letters.
    """

    def __init__(self, outbox: OutboxTable) -> None:
        self._outbox = outbox

    async def bury(self, transaction: Transaction, letter: DeadLetter) -> None:
        """See `LetterTable.bury`."""
        values = _values(letter)
        row = await (await transaction.connection.execute(_BURY, values)).fetchone()
        if row is None:
            if letter.again:
                await self._die_again(transaction, letter, values)
            return
        await self._show(transaction, letter, row[0])

    async def _die_again(self, transaction: Transaction, letter: DeadLetter, values: dict[str, Any]) -> None:
        row = await (await transaction.connection.execute(_DIED_AGAIN, values)).fetchone()
        if row is None:
            return  # it was deleted since, by somebody who did not want it
        letter_id, order_id, is_shown = row
        died = (letter_id, letter.consumer, order_id, letter.error_message)
        await transaction.connection.execute(_TELL_DEATH, died)
        if not is_shown:
            await self._show(transaction, letter, letter_id)

    async def _show(self, transaction: Transaction, letter: DeadLetter, letter_id: int) -> None:
        row = mirror_row(letter, letter_id)
        if row is not None:
            await self._outbox.add(transaction, [row])

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
        values = {"group": group, "stream": stream, "entry_id": entry_id, "by": by, "event_id": event_id}
        cursor = await transaction.connection.execute(_SETTLE, values)
        return bool(cursor.rowcount)


def _values(letter: DeadLetter) -> dict[str, Any]:
    return {
        "stream": letter.stream,
        "entry_id": letter.entry_id,
        "event_id": letter.event_id,
        "event_type": letter.event_type and storable(letter.event_type),
        "event_key": letter.event_key and storable(letter.event_key),
        "group": letter.consumer_group,
        "consumer": letter.consumer,
        "reason": letter.reason.value,
        "fields": Jsonb(letter.shown_fields),
        "raw": letter.raw,
        "error_class": letter.error_class,
        "error_message": letter.error_message,
        "traceback": letter.traceback,
        "fingerprint": letter.fingerprint,
        "deliveries": letter.deliveries,
        "published_at": letter.published_at,
        "first_delivered_at": letter.first_delivered_at,
        "dead_at": letter.dead_at,
        "traceparent": letter.traceparent and storable(letter.traceparent),
        "host": letter.host,
        "pid": letter.pid,
        "version": letter.version,
        "mirror": letter.mirror,
    }
