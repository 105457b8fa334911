"""What handlers see: the delivery, the context, and the error that says "never try this again"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import trio
from attrs import define, field, frozen

from .event import Envelope

if TYPE_CHECKING:
    from ..runtime.postgres import Connection

__all__ = ["Context", "Delivery", "Entry", "Permanent", "entry_order"]

E = TypeVar("E")


class Permanent(Exception):
    """Raised by a handler: the event itself is at fault, no further delivery will help. It becomes a dead letter."""


def entry_order(entry_id: str) -> tuple[int, int]:
    """The order of stream entry ids: by milliseconds, then by sequence. As text they sort wrongly."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@define(eq=False)
class Entry:
    """An entry of a stream that this process has read and not yet acknowledged.

    Attributes:
        stream: the stream's key.
        id: the entry's id.
        fields: as they came; None when the entry was trimmed while it was pending.
        attempts: how often its handler has failed in this process.
        read_at: `trio.current_time()` when it was read.
    """

    stream: str
    id: str
    fields: Mapping[bytes, bytes] | None
    attempts: int = 0
    read_at: float = field(factory=trio.current_time)


@frozen(kw_only=True)
class Delivery(Generic[E]):
    """One event as a batch handler gets it.

    Attributes:
        event: an object of the event's class.
        envelope: what travelled: ids, type, time, key.
        entry_id: its id in the stream.
        attempt: 1 for the first delivery in this process.
    """

    event: E
    envelope: Envelope
    entry_id: str
    attempt: int


@frozen(kw_only=True)
class Context:
    """What a handler may use beside the event.

    Attributes:
        connection: a connection inside the transaction that also records the event as handled. What is written on it
            takes effect exactly once; do not commit or roll back yourself (savepoints are welcome).
        stream: the stream's key.
        group: the consumer group.
        delivery: the delivery of a single handler; None in a batch handler, which has one for each event.
    """

    connection: Connection[Any]
    stream: str
    group: str
    delivery: Delivery[Any] | None = None
