"""One event that a group will handle again later, with all that is left of it; a row of `retry_table`."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from attrs import field, frozen

from .texts import storable

__all__ = ["RetryFailure", "RetryOrigin", "RetryRow", "unbroken"]


class RetryOrigin(enum.StrEnum):
    """Why an event is in the table."""

    ATTEMPT = "attempt"
    """Its handler failed."""

    PARKED = "parked"
    """In an ordered group: an earlier event of its key is in the table, and goes first."""

    LETTER = "letter"
    """Somebody replayed its dead letter."""

    REPLAY = "replay"
    """Somebody replayed a range of its stream to this group."""


def _exact(fields: Mapping[bytes, bytes] | Mapping[str, str]) -> dict[str, str]:
    return {_as_text(name): _as_text(value) for name, value in fields.items()}


def _as_text(value: bytes | str) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


def _storable(text: str | None) -> str | None:
    return None if text is None else storable(text)


@frozen(kw_only=True)
class RetryFailure:
    """What the last attempt failed of; all None where there was none.

    Attributes:
        error_class: module and name of the error's class.
        error_message: at most 2 kB of UTF-8; passwords masked.
        traceback: at most 16 kB, the end of it; passwords masked.
        fingerprint: the same for attempts that failed in the same way.
    """

    error_class: str | None = None
    error_message: str | None = None
    traceback: str | None = field(default=None, repr=False)
    fingerprint: str | None = None


@frozen(kw_only=True)
class RetryRow:
    """One event that waits in the table.

    Attributes:
        consumer_group: the group that will handle it; the others are not concerned.
        stream: the key of the partition that it came from.
        entry_id: its id there; with group and stream it names the row.
        fields: all fields of the entry, exactly; bytes that are no UTF-8 as surrogate escapes (PEP 383). Given as bytes
            or text.
        origin: why it is here.
        event_id: None where it could not be read.
        event_type: likewise.
        event_key: what it is in order by; None: by nothing.
        forced: handle it although the inbox knows the event.
        letter_id: the dead letter that it was.
        attempts: how many have failed.
        due_in: seconds until it is due, from the moment of writing or reading; zero or below: it is.
        failure: what the last attempt failed of.
        first_failed_at: when its first attempt failed; aware. The table sets it.
        id: given by the table; rows of one key are handled in this order.
    """

    consumer_group: str
    stream: str
    entry_id: str
    fields: Mapping[str, str] = field(converter=_exact, repr=False)
    origin: RetryOrigin = field(converter=RetryOrigin)
    event_id: UUID | None = None
    event_type: str | None = field(default=None, converter=_storable)
    event_key: str | None = field(default=None, converter=_storable)
    forced: bool = False
    letter_id: int | None = None
    attempts: int = 0
    due_in: float = field(default=0.0, converter=float)
    failure: RetryFailure = RetryFailure()
    first_failed_at: datetime | None = None
    id: int = 0

    @property
    def is_ordered(self) -> bool:
        """Whether somebody ordered that it be handled again."""
        return self.origin in (RetryOrigin.LETTER, RetryOrigin.REPLAY)

    @property
    def entry_fields(self) -> dict[bytes, bytes]:
        """The fields as the stream had them."""
        return {_as_bytes(name): _as_bytes(value) for name, value in self.fields.items()}


def _as_bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def unbroken(rows: Iterable[RetryRow]) -> list[RetryRow]:
    """The rows, in order, of each key up to the first that has failed or is not due."""
    chosen: list[RetryRow] = []
    broken: set[str | None] = set()
    for row in rows:
        if row.attempts or row.due_in > 0:
            broken.add(row.event_key)
        elif row.event_key not in broken:
            chosen.append(row)
    return chosen
