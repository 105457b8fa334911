"""Dead letters, their history and the orders to replay them, as the desk shows them. All times are aware."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from attrs import field, frozen
from psycopg import sql

__all__ = [
    "AUDIT_COLUMNS",
    "LETTER_COLUMNS",
    "ORDER_COLUMNS",
    "AuditEntry",
    "Letter",
    "LetterDetails",
    "LetterGroup",
    "LetterOrder",
    "LetterPage",
    "ReplayPreview",
    "read_audit",
    "read_group",
    "read_letter",
    "read_order",
]


@frozen(kw_only=True)
class Letter:
    """A row of ``penstock_dead_letter``, without what is long; see docs/reference/tables.md.

    Attributes:
        stream: the key of the partition.
        replays: how often it was tried again.
        order_id: the order that works on it, or did last.
        settled_by: who handled, discarded or published it.
    """

    id: int
    stream: str
    entry_id: str
    event_id: UUID | None
    event_type: str | None
    event_key: str | None
    consumer_group: str
    consumer: str
    reason: str
    status: str
    error_class: str | None
    error_message: str | None
    fingerprint: str | None
    deliveries: int
    replays: int
    published_at: datetime | None
    first_delivered_at: datetime | None
    dead_at: datetime
    traceparent: str | None
    host: str | None
    pid: int | None
    version: str | None
    mirror_id: str | None
    order_id: UUID | None
    settled_at: datetime | None
    settled_by: str | None
    note: str | None


@frozen(kw_only=True)
class AuditEntry:
    """What somebody did to a letter, or what happened to it.

    Attributes:
        action: ``ordered``, ``moved``, ``cancelled``, ``replayed``, ``died`` (again), ``discarded`` or ``noted``.
    """

    action: str
    at: datetime
    by: str
    order_id: UUID | None
    note: str | None


@frozen
class LetterDetails:
    """A letter and all that is known of it.

    Attributes:
        fields: the entry's, exactly: bytes that are no UTF-8 as surrogate escapes (PEP 383).
        audit: its history, oldest first.
    """

    letter: Letter
    traceback: str | None = field(repr=False)
    fields: Mapping[str, str] = field(repr=False)
    audit: tuple[AuditEntry, ...]


@frozen
class LetterPage:
    """Some letters.

    Attributes:
        next: what to go on with; None: these are the last.
    """

    letters: tuple[Letter, ...]
    next: int | None


@frozen(kw_only=True)
class LetterGroup:
    """Letters of one group that died in the same way.

    Attributes:
        example: the id of the last one, whose error this is.
        streams: the keys of the partitions that they came from.
        event_types: of all of them.
    """

    fingerprint: str | None
    reason: str
    consumer_group: str
    count: int
    first: datetime
    last: datetime
    example: int
    error_class: str | None
    error_message: str | None
    streams: tuple[str, ...] = field(converter=tuple)
    event_types: tuple[str, ...] = field(converter=tuple)


@frozen(kw_only=True)
class ReplayPreview:
    """What an order would do.

    Attributes:
        letters: how many it would replay.
        matching: how many there are.
        trimmed: of them, those of which nothing is left: their entries were trimmed.
        no_events: of them, those that cannot be published, being no events.
        undeclared: of them, those of groups that this system does not declare.
    """

    letters: int
    matching: int
    trimmed: int
    no_events: int
    undeclared: int

    @property
    def refusal(self) -> str | None:
        """Why nothing at all would be replayed; None if something would."""
        if self.letters:
            return None
        if self.trimmed:
            return "its entry was trimmed, and nothing is left of it"
        if self.no_events:
            return "it is no event, and cannot be published; replay it to its group"
        if self.undeclared:
            return "its stream and group are not declared here, and so nobody would handle it"
        return "there is no such letter that is dead"


@frozen(kw_only=True)
class LetterOrder:
    """An order to replay letters.

    Attributes:
        target: ``group`` or ``stream``.
        rate: letters a second.
        state: ``running``, ``done`` (all are moved to where they are tried again) or ``cancelled``.
        total: how many letters it took.
        moved: how many of them are moved.
        replayed: of those that no later order took: how many came to a good end.
        dead: likewise: how many are dead again, or as before if it was cancelled.
        waiting: likewise: how many are moved, and wait for their attempt.
    """

    id: UUID
    target: str
    rate: float
    state: str
    total: int
    moved: int
    filter: Mapping[str, Any]
    note: str | None
    ordered_by: str
    ordered_at: datetime
    finished_at: datetime | None
    replayed: int = 0
    dead: int = 0
    waiting: int = 0


_LETTER: Final = (
    "id", "stream", "entry_id", "event_id", "event_type", "event_key", "consumer_group", "consumer", "reason", "status",
    "error_class", "error_message", "fingerprint", "deliveries", "replays", "published_at", "first_delivered_at",
    "dead_at", "traceparent", "host", "pid", "version", "mirror_id", "order_id", "settled_at", "settled_by", "note",
)  # fmt: skip
_GROUP: Final = (
    "fingerprint", "reason", "consumer_group", "count", "first", "last", "example", "error_class", "error_message",
    "streams", "event_types",
)  # fmt: skip
_AUDIT: Final = ("action", "at", "by", "order_id", "note")
_ORDER: Final = (
    "id", "target", "rate", "state", "total", "moved", "filter", "note", "ordered_by", "ordered_at", "finished_at",
)  # fmt: skip


def _columns(table: str, names: Sequence[str]) -> sql.Composed:
    return sql.SQL(", ").join(sql.Identifier(table, name) for name in names)


LETTER_COLUMNS: Final = _columns("letter", _LETTER)
"""What `read_letter` reads, of ``penstock_dead_letter letter``."""

AUDIT_COLUMNS: Final = _columns("audit", _AUDIT)
"""What `read_audit` reads, of ``penstock_dead_letter_audit audit``."""

ORDER_COLUMNS: Final = _columns("letter_order", _ORDER)
"""What `read_order` reads first, of ``penstock_dead_letter_order letter_order``."""


def read_letter(row: Sequence[Any]) -> Letter:
    """The letter of a row of `LETTER_COLUMNS`."""
    return Letter(**dict(zip(_LETTER, row, strict=True)))


def read_group(row: Sequence[Any]) -> LetterGroup:
    """The group of a row whose columns are its attributes, in order."""
    return LetterGroup(**dict(zip(_GROUP, row, strict=True)))


def read_audit(row: Sequence[Any]) -> AuditEntry:
    """The entry of a row of `AUDIT_COLUMNS`."""
    return AuditEntry(**dict(zip(_AUDIT, row, strict=True)))


def read_order(row: Sequence[Any]) -> LetterOrder:
    """The order of a row of `ORDER_COLUMNS`, and behind them how many letters are replayed, dead, and waiting."""
    return LetterOrder(**dict(zip((*_ORDER, "replayed", "dead", "waiting"), row, strict=True)))
