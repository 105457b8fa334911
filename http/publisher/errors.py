"""What may become of an event besides being accepted: each a type, each with the event, so that it can be kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from attrs import frozen

from ...actors.event import Envelope

__all__ = [
    "BufferFull",
    "GaveUp",
    "NotPublished",
    "PublisherClosed",
    "PublisherError",
    "Rejected",
    "Unsent",
    "UnsentEvent",
    "envelopes_of",
]


class PublisherError(Exception):
    """The base of all that a publisher raises of its own."""


class PublisherClosed(PublisherError):
    """The publisher was not entered yet, or has been left: nobody is there to send what it is given."""


class BufferFull(PublisherError):
    """There is no room for the event now, and `Publisher.send_nowait` does not wait; nothing was kept of it."""


class NotPublished(PublisherError):
    """One event was not accepted.

    Attributes:
        stream: the stream that it was for.
        event_id: its id.
        event: the event as it is sent: ``eventId``, ``eventType``, ``data`` …
    """

    def __init__(self, message: str, stream: str, event_id: UUID, event: Mapping[str, Any]) -> None:
        super().__init__(message)
        self.stream = stream
        self.event_id = event_id
        self.event = dict(event)

    @property
    def envelope(self) -> Envelope:
        """The event as `Publisher.publish` and `Publisher.publish_many` take it, with its id and its time."""
        return _envelope(self.event)


class Rejected(NotPublished):
    """The server has looked at the event and does not take it; sending it again as it is would not help.

    Attributes:
        status: the HTTP status of the event, 422 for example.
        problem: the server's problem details (RFC 9457): ``type``, ``title``, ``detail``, ``errors`` …
    """

    def __init__(self, stream: str, event_id: UUID, event: Mapping[str, Any], problem: Mapping[str, Any]) -> None:
        self.status = int(problem.get("status", 0))
        self.problem = dict(problem)
        detail = problem.get("detail") or problem.get("title") or f"status {self.status}"
        super().__init__(f"{stream} does not take event {event_id}: {detail}", stream, event_id, event)


class GaveUp(NotPublished):
    """The event was not accepted within `give_up_after`, or before the publisher was left.

    Attributes:
        reason: why the last attempt failed; empty if there was none.
        outcome_unknown: whether it may have been accepted all the same. Publishing it again with the same id is right
            either way: it is one effect.
    """

    def __init__(
        self, stream: str, event_id: UUID, event: Mapping[str, Any], reason: str, *, outcome_unknown: bool
    ) -> None:
        self.reason = reason
        self.outcome_unknown = outcome_unknown
        unknown = "; it may have been accepted all the same" if outcome_unknown else ""
        super().__init__(
            f"event {event_id} was not accepted by {stream}: {reason or 'it was not sent'}{unknown}",
            stream,
            event_id,
            event,
        )


@frozen
class UnsentEvent:
    """An event that was still in the buffer when the publisher was left.

    Attributes:
        stream: the stream that it is for.
        event: the event as it is sent.
        outcome_unknown: whether it may have been accepted all the same.
    """

    stream: str
    event: dict[str, Any]
    outcome_unknown: bool

    @property
    def envelope(self) -> Envelope:
        """The event as `Publisher.publish` and `Publisher.publish_many` take it, with its id and its time."""
        return _envelope(self.event)


class Unsent(PublisherError):
    """The publisher was left, and these events were not accepted within `close_within`: keep them.

    They have their ids: published again, their envelopes by `Publisher.publish_many` or their `lines` by
    ``penstock publish STREAM FILE``, each is one effect, also if it had been accepted.

    Attributes:
        events: in the order in which they were given, stream by stream.
    """

    def __init__(self, events: Iterable[UnsentEvent], reason: str) -> None:
        self.events = tuple(events)
        why = f"; the last attempt failed: {reason}" if reason else ""
        super().__init__(f"{len(self.events)} events were not accepted before the publisher was left{why}")

    def lines(self, stream: str) -> str:
        """The events of one stream as NDJSON, as ``penstock publish STREAM FILE`` reads it."""
        return "".join(json.dumps(each.event) + "\n" for each in self.events if each.stream == stream)


def envelopes_of(lines: str) -> list[Envelope]:
    """The events that `Unsent.lines` has written, as `Publisher.publish_many` takes them."""
    return [_envelope(json.loads(line)) for line in lines.split("\n") if line.strip()]


def _envelope(event: Mapping[str, Any]) -> Envelope:
    return Envelope(
        event_id=UUID(event["eventId"]),
        event_type=event["eventType"],
        timestamp=datetime.fromisoformat(event["timestamp"]),
        data=event["data"],
        key=event.get("key"),
        traceparent=event.get("traceparent"),
    )
