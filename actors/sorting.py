"""What is to be done with an entry, before any handler sees it: handle, acknowledge without effect, or bury."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .event import Envelope, InvalidEvent, Origin, SkippedEntry, UndecodableEntry
from .letter_terms import Reason
from .texts import storable

if TYPE_CHECKING:
    from .handling import Entry
    from .system import Group, Handler, Stream

__all__ = ["Handle", "Ignore", "Refuse", "Verdict", "expired", "key_of", "sort_entry", "verdict_of"]


@frozen
class Handle:
    """The entry carries `event`, and `handler` is for it."""

    entry: Entry
    envelope: Envelope
    event: Any
    handler: Handler


@frozen
class Ignore:
    """The entry is not for this group: acknowledge it."""

    entry: Entry
    why: str
    envelope: Envelope | None = None


@frozen
class Refuse:
    """The entry can never be handled: it becomes a dead letter.

    Attributes:
        reason: why.
        error: what was wrong with it.
        envelope: as far as it could be decoded.
    """

    entry: Entry
    reason: Reason
    error: Exception
    envelope: Envelope | None = None


Verdict = Handle | Ignore | Refuse


def sort_entry(entry: Entry, stream: Stream, group: Group) -> Verdict:
    """The verdict on one entry. Pure; raises nothing."""
    if entry.fields is None:
        return Refuse(entry, Reason.TRIMMED, UndecodableEntry("the entry was trimmed or deleted while it was pending"))
    try:
        envelope = stream.decode(_text(entry.fields), Origin(entry.stream, entry.id))
    except SkippedEntry as skipped:
        return Ignore(entry, str(skipped))
    except (UndecodableEntry, UnicodeDecodeError) as error:
        return Refuse(entry, Reason.UNDECODABLE, error)
    handler = group.handlers.get(envelope.event_type)
    if handler is None:
        if envelope.event_type in stream.types:
            return Ignore(entry, f"{group.name} has no handler of {envelope.event_type}", envelope)
        known = ", ".join(sorted(stream.types)) or "none"
        unknown = UndecodableEntry(f"event type {envelope.event_type!r} is not declared; declared: {known}")
        return Refuse(entry, Reason.PERMANENT, unknown, envelope)
    try:
        event = handler.event_type.structure(envelope.data)
    except InvalidEvent as error:
        return Refuse(entry, Reason.PERMANENT, error, envelope)
    return Handle(entry, envelope, event, handler)


def verdict_of(entry: Entry, stream: Stream, group: Group) -> Verdict:
    """The same, worked out once for each entry."""
    if entry.verdict is None:
        entry.verdict = sort_entry(entry, stream, group)
    return entry.verdict


def key_of(verdict: Verdict) -> str | None:
    """The key that an entry is in order by, as the database can hold it; None: by none."""
    key = verdict.envelope.key if isinstance(verdict, Handle) else None
    return None if key is None else storable(key)


class EventExpired(Exception):
    """The event was older than its type allows when its turn came."""


def expired(verdict: Verdict, now: datetime) -> Refuse | None:
    """The refusal of an event that has become too old to be handled; None if it has not."""
    if not isinstance(verdict, Handle) or verdict.handler.event_type.max_age is None:
        return None
    happened = verdict.envelope.timestamp
    age = now - (happened if happened.tzinfo else happened.replace(tzinfo=UTC))
    limit = verdict.handler.event_type.max_age
    if age <= limit:
        return None
    error = EventExpired(f"it is {age} old; a {verdict.envelope.event_type} is handled within {limit}")
    return Refuse(verdict.entry, Reason.EXPIRED, error, verdict.envelope)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
