"""One event on its way, from what the caller gives to the line that is sent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import anyio
import attrs
from attrs import define, field

from ...actors.event import Envelope, InvalidEvent, event_type_of
from ..answers import Accepted
from .errors import NotPublished

__all__ = ["Item", "encode", "envelope_of"]


@define(eq=False)
class Item:
    """One event on its way.

    Attributes:
        stream: where to.
        event_id: its id.
        line: the event as a line of NDJSON, without its end.
        since: when it came into the buffer, in the event loop's seconds.
        outcome: what became of it; None so far.
        done: set with `outcome`.
        awaited: whether somebody waits for it; what nobody waits for is told in the log.
        maybe: whether an attempt had an unknown outcome, so that it may have been accepted.
        bugs: how often the server has failed (500) over this event alone.
    """

    stream: str
    event_id: UUID
    line: bytes
    since: float = 0.0
    outcome: Accepted | NotPublished | None = None
    done: anyio.Event = field(factory=anyio.Event)
    awaited: bool = False
    maybe: bool = False
    bugs: int = 0

    @property
    def event(self) -> dict[str, Any]:
        """The event as JSON values."""
        value: dict[str, Any] = json.loads(self.line)
        return value


def encode(stream: str, envelope: Envelope) -> Item:
    """The item that carries `envelope`; what cannot be sent is found out here, before anything is kept of it.

    Raises:
        InvalidEvent: its data are no JSON, or no UTF-8; its time has no offset.
    """
    if envelope.timestamp.tzinfo is None:
        raise InvalidEvent([("timestamp", "must be aware: a time with its offset")])
    event: dict[str, Any] = {
        "eventId": str(envelope.event_id),
        "eventType": envelope.event_type,
        "timestamp": envelope.timestamp.isoformat(),
        "data": envelope.data,
    }
    if envelope.key is not None:
        event["key"] = envelope.key
    if envelope.traceparent is not None:
        event["traceparent"] = envelope.traceparent
    try:
        line = json.dumps(event, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        raise InvalidEvent([("data", f"cannot be sent as JSON: {error}")]) from error
    return Item(stream, envelope.event_id, line)


def envelope_of(event: object, event_type: str | None, given: Mapping[str, Any]) -> Envelope:
    """The envelope of what the caller gave: an object of an event class, a mapping, or an envelope already."""
    chosen = {name: value for name, value in given.items() if value is not None}
    if isinstance(event, Mapping):
        if event_type is None:
            raise TypeError("a mapping needs an event_type")
        return Envelope(event_type=event_type, data=dict(event), **chosen)
    if event_type is not None:
        raise TypeError(f"event_type is for mappings; {type(event).__name__} has its own")
    if isinstance(event, Envelope):
        return attrs.evolve(event, **chosen)
    return event_type_of(type(event)).envelope(event, **chosen)
