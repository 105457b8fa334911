"""Which rows retention may delete, table by table. Rows that somebody still waits for are in none of these rules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen
from psycopg import sql

if TYPE_CHECKING:
    from .system import System
    from .trimming import StreamReport

__all__ = ["ACCESS_ROWS", "OldRows", "Rule", "rules"]


@frozen
class OldRows:
    """A table whose rows are deleted by age.

    Attributes:
        table: its name, as in ``access_event`` or ``shop.order``.
        column: the time that counts; give it an index.
        key: the columns of its primary key.
    """

    table: str
    column: str = "created_at"
    key: tuple[str, ...] = ("id",)

    @property
    def name(self) -> sql.Identifier:
        """The table, quoted."""
        return sql.Identifier(*self.table.split("."))


ACCESS_ROWS: Final = OldRows("access_event")


@frozen
class Rule:
    """Rows of a table that may go.

    Attributes:
        rows: the table.
        condition: for which of its rows.
        values: of the condition.
    """

    rows: OldRows
    condition: sql.Composable
    values: Sequence[Any]


def rules(system: System, tables: Iterable[OldRows], cutoff: datetime, streams: Sequence[StreamReport]) -> list[Rule]:
    """What may go of `tables`, and of the runtime's own, as far as they are of this system.

    Args:
        system: whose streams, replays and runs are meant.
        tables: rows of these go by age alone.
        cutoff: aware.
        streams: what is left in each stream and partition.
    """
    keys = [*(stream.stream for stream in streams), *system.queues]
    # What is in a queue has no place in it: by age alone.
    places = [(stream.stream, stream.first_id) for stream in streams if stream.error is None]
    places += [(queue, None) for queue in system.queues]
    return [
        *[Rule(table, _by_age(table), [cutoff]) for table in tables],
        *[Rule(_INBOX, _GONE, [key, cutoff, first_id, first_id, cutoff]) for key, first_id in places],
        *[Rule(_LETTERS, _SETTLED, [key, cutoff, first_id, first_id]) for key, first_id in places],
        Rule(_LETTER_AUDIT, _OF_NO_LETTER + _by_age(_LETTER_AUDIT), [cutoff]),
        Rule(_LETTER_ORDERS, _OF_SYSTEM + _by_age(_LETTER_ORDERS), [system.name, cutoff]),
        Rule(_LOSSES, _OF_STREAMS + _by_age(_LOSSES), [keys, cutoff]),
        Rule(_DELETIONS, _OF_STREAMS + _by_age(_DELETIONS), [keys, cutoff]),
        Rule(_STEPS, _OF_NOTHING_OPEN + _OF_STREAMS + _by_age(_STEPS), [[*system.streams, *system.queues], cutoff]),
        Rule(_SUSPECTS, _OF_STREAMS + _by_age(_SUSPECTS), [keys, cutoff]),
        Rule(_REPLAYS, _OF_SYSTEM + _by_age(_REPLAYS), [system.name, cutoff]),
        Rule(_RUNS, _PAST, [system.name, cutoff, system.name]),
    ]


def _by_age(table: OldRows) -> sql.Composable:
    return sql.SQL("{} < %s").format(sql.Identifier(table.column))


_OF_STREAMS: Final = sql.SQL("stream = any(%s) and ")
_OF_SYSTEM: Final = sql.SQL("system = %s and ")

_INBOX: Final = OldRows("penstock_inbox", "handled_at", ("consumer_group", "event_id"))
# An inbox row outlives everything that can bring its event again: the entry in the stream (to a group that was lost and
# made again, say), the row in the outbox, the row that waits for another attempt, the dead letter of another group that
# may be replayed to all of them, or was: its new entry is far behind the one that the row knows.
_GONE: Final = sql.SQL(
    """
    stream = %s and handled_at < %s
    and (%s::text is null or string_to_array(entry_id, '-')::numeric[] < string_to_array(%s, '-')::numeric[])
    and not exists (select from penstock_outbox other where other.event_id = penstock_inbox.event_id)
    and not exists (select from penstock_retry other where other.event_id = penstock_inbox.event_id)
    and not exists (
        select from penstock_dead_letter other
        where other.event_id = penstock_inbox.event_id
            and (other.status in ('dead', 'replaying') or other.settled_at >= %s)
    )
    """
)

_LETTERS: Final = OldRows("penstock_dead_letter", "settled_at")
# Only settled ones, and like an inbox row not before the entry has left its stream: to a group that was lost and made
# again, a letter says that the entry is over.
_SETTLED: Final = sql.SQL(
    """
    stream = %s and settled_at < %s and status in ('replayed', 'discarded')
    and (%s::text is null or string_to_array(entry_id, '-')::numeric[] < string_to_array(%s, '-')::numeric[])
    """
)

_LETTER_AUDIT: Final = OldRows("penstock_dead_letter_audit", "at")
_OF_NO_LETTER: Final = sql.SQL(
    "not exists (select from penstock_dead_letter letter where letter.id = penstock_dead_letter_audit.letter_id) and "
)
_LETTER_ORDERS: Final = OldRows("penstock_dead_letter_order", "finished_at")

_LOSSES: Final = OldRows("penstock_loss", "detected_at")
_DELETIONS: Final = OldRows("penstock_deletion", "deleted_at", ("stream", "entry_id"))
_STEPS: Final = OldRows("penstock_step", "updated_at", ("consumer_group", "event_id", "name"))
# While its event may come again, from a row or a letter, a step says what was done for it.
_OF_NOTHING_OPEN: Final = sql.SQL(
    """
    not exists (select from penstock_retry other where other.event_id = penstock_step.event_id)
    and not exists (
        select from penstock_dead_letter other
        where other.event_id = penstock_step.event_id and other.status in ('dead', 'replaying')
    )
    and
    """
)
_SUSPECTS: Final = OldRows("penstock_suspect", "updated_at", ("consumer_group", "stream", "entry_id"))
_REPLAYS: Final = OldRows("penstock_replay", "finished_at")

_RUNS: Final = OldRows("penstock_retention_run", "started_at")
# The last scheduled one stays, however old: it says that nothing has to be made up for.
_PAST: Final = sql.SQL(
    "system = %s and started_at < %s and due_at is distinct from"
    " (select max(due_at) from penstock_retention_run where system = %s)"
)
