"""What is to be sent to one stream, in order. Pure but for the events that waiters wait for."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Set
from typing import Any
from uuid import UUID

import anyio
from attrs import define, field

from ...actors.event import Envelope, InvalidEvent
from .answers import Accepted
from .errors import NotPublished

__all__ = ["Item", "Lane", "encode"]


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


@define(eq=False)
class Lane:
    """The events of one stream; at most one request of it is under way, so that their order is kept.

    Attributes:
        stream: its key.
        queue: what has not been sent.
        flying: what is being sent, or is to be sent again, before all of `queue`.
        sending: whether a request with `flying` is under way.
        full: set when it is not worth waiting for more.
        trouble: why its last request failed; empty if it did not.
    """

    stream: str
    queue: deque[Item] = field(factory=deque)
    flying: list[Item] = field(factory=list)
    sending: bool = False
    full: anyio.Event = field(factory=anyio.Event)
    trouble: str = ""

    def take(self, most: int, most_bytes: int) -> None:
        """Move the next batch from `queue` to `flying`: at least one, if there is any."""
        size = sum(len(item.line) + 1 for item in self.flying)
        while self.queue and len(self.flying) < most:
            size += len(self.queue[0].line) + 1
            if self.flying and size > most_bytes:
                return
            self.flying.append(self.queue.popleft())

    def withdraw(self, items: Set[Item]) -> list[Item]:
        """Take out those that certainly have not been accepted and are not under way, and return them."""
        out = [item for item in self.queue if item in items and not item.maybe]
        gone = set(out)
        self.queue = deque(item for item in self.queue if item not in gone)
        return out

    def items(self) -> list[Item]:
        """Everything that has no outcome, in order."""
        return [*self.flying, *self.queue]

    def drop(self, gone: Callable[[Item], bool]) -> list[Item]:
        """Take out whatever is `gone`, and return it."""
        out = [item for item in self.items() if gone(item)]
        if out:
            self.flying = [item for item in self.flying if not gone(item)]
            self.queue = deque(item for item in self.queue if not gone(item))
        return out
