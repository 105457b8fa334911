"""What is to be done with an entry, before any handler sees it: handle, acknowledge without effect, or bury."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attrs import frozen

from .dead_letter import Reason
from .event import Envelope, InvalidEvent, Origin, SkippedEntry, UndecodableEntry

if TYPE_CHECKING:
    from .handling import Entry
    from .system import Group, Handler, Stream

__all__ = ["Handle", "Ignore", "Refuse", "Verdict", "sort_entry"]


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
            return Ignore(entry, f"{group.name} has no handler of {envelope.event_type}")
        known = ", ".join(sorted(stream.types)) or "none"
        unknown = UndecodableEntry(f"event type {envelope.event_type!r} is not declared; declared: {known}")
        return Refuse(entry, Reason.PERMANENT, unknown, envelope)
    try:
        event = handler.event_type.structure(envelope.data)
    except InvalidEvent as error:
        return Refuse(entry, Reason.PERMANENT, error, envelope)
    return Handle(entry, envelope, event, handler)


def _text(fields: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in fields.items()}
