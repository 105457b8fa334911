"""What is published: an entry on its way to a stream, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from attrs import evolve, frozen

from .event import Envelope, Fields, InvalidEvent
from .outbox_table import Kind, OutboxRow
from .system import Stream
from .texts import storable, well_formed

__all__ = [
    "Outgoing",
    "PublishFailed",
    "Published",
    "Result",
    "defect_of",
    "outgoing",
    "partition_key",
    "refused",
    "row_of",
    "rows_of",
    "unsent",
]


@frozen
class Outgoing:
    """One entry to be added.

    Attributes:
        stream: the key of the declared stream.
        event_id: of the event in it, for the answer.
        fields: the entry's fields.
        key: the event's key, as it decides the partition.
        target: the key in Redis that it is added to: the stream's, or that of one of its partitions.
        max_len: about how many entries `target` may have, at the cost of the oldest; None: any number.
    """

    stream: str
    event_id: UUID
    fields: Fields
    key: str | None = None
    target: str = ""
    max_len: int | None = None

    @property
    def place(self) -> str:
        """The key in Redis."""
        return self.target or self.stream


@frozen
class Published:
    """The event is durable.

    Attributes:
        event_id: of the event.
        entry_id: its id in the stream; None while it is only in the outbox.
        durable: where it is safe now.
    """

    event_id: UUID
    entry_id: str | None
    durable: Literal["redis", "outbox"] = "redis"


@frozen
class PublishFailed:
    """The event was not accepted.

    Attributes:
        event_id: of the event; publish again with the same id, and it is one effect however often.
        reason: what happened, for people.
        retry_after: seconds after which it makes sense to try again.
        outcome_unknown: it may have been accepted all the same.
        permanent: trying again will not help before somebody mends something.
    """

    event_id: UUID
    reason: str
    retry_after: float = 1.0
    outcome_unknown: bool = False
    permanent: bool = False


Result = Published | PublishFailed


def outgoing(stream: Stream, envelope: Envelope) -> Outgoing | PublishFailed:
    """The entry of an envelope; what a codec refuses, or Redis cannot be given, has failed for good.

    An envelope without a key is given that of its class: who publishes need not know by what events are kept in order.
    """
    try:
        envelope = _keyed(stream, envelope)
        fields = stream.encode(envelope)
        made = Outgoing(
            stream.key,
            envelope.event_id,
            fields,
            envelope.key,
            stream.partition(partition_key(envelope.key), envelope.event_id),
            stream.lossy_cap,
        )
        defect = defect_of(made)
    except Exception as error:  # noqa: BLE001 - a codec may be the user's, and data may be anything
        defect = f"the event cannot be encoded: {type(error).__name__}: {error}"
    return PublishFailed(envelope.event_id, defect, permanent=True) if defect else made


def _keyed(stream: Stream, envelope: Envelope) -> Envelope:
    declared = stream.types.get(envelope.event_type)
    if envelope.key is not None or declared is None or declared.key is None:
        return envelope
    try:
        return evolve(envelope, key=declared.key_of(envelope.data))
    except InvalidEvent:
        return envelope  # whoever handles it will say what is wrong with it


def defect_of(entry: Outgoing) -> str:
    """Why Redis cannot be given the entry at all; empty if it can. One such would take its whole burst along."""
    try:
        "".join((*entry.fields, *entry.fields.values())).encode()
    except (TypeError, UnicodeEncodeError):
        pass
    else:
        return "" if entry.fields else "the entry has no fields"
    for name, text in entry.fields.items():
        if not isinstance(name, str) or not isinstance(text, str):
            return f"the field {name!r} is no text"
        if name != well_formed(name) or text != well_formed(text):
            return f"the field {name!r} holds half of a surrogate pair, which is no UTF-8"
    return "a field is no text"


def refused(
    entries: Sequence[Outgoing], reason: str, *, unknown: bool = False, permanent: bool = False
) -> list[Result]:
    """The same failure for each."""
    return [PublishFailed(entry.event_id, reason, outcome_unknown=unknown, permanent=permanent) for entry in entries]


def unsent(event_id: UUID, before: PublishFailed) -> PublishFailed:
    """The failure of what would overtake `before`."""
    return PublishFailed(event_id, f"not sent, for an event before it was refused: {before.reason}", before.retry_after)


def row_of(entry: Outgoing, kind: Kind, created_by: str = "") -> OutboxRow:
    """The outbox's row of an entry."""
    return OutboxRow(
        stream=entry.stream,
        event_id=entry.event_id,
        fields=entry.fields,
        key=entry.key,
        kind=kind,
        max_len=entry.max_len,
        created_by=created_by,
    )


def rows_of(
    stream: Stream, envelopes: Sequence[Envelope], kind: Kind = "transaction", created_by: str = ""
) -> list[OutboxRow]:
    """The outbox's rows of events that are published within a transaction, in order.

    Raises:
        InvalidEvent: an envelope's data do not fit its class, its type is none of the stream's, or it cannot be written
            as an entry; the text names the fields at fault.
    """
    rows = []
    for envelope in envelopes:
        declared = stream.types.get(envelope.event_type)
        if declared is not None:
            declared.structure(envelope.data)
        elif stream.types:
            names = ", ".join(sorted(stream.types))
            problem = f"{envelope.event_type!r} is none of the types of the stream {stream.key!r}: {names}"
            raise InvalidEvent([("eventType", problem)])
        made = outgoing(stream, envelope)
        if isinstance(made, PublishFailed):
            raise InvalidEvent([("data", made.reason)])
        rows.append(row_of(made, kind, created_by))
    return rows


def partition_key(key: str | None) -> str | None:
    """A key as the outbox keeps it, so that an event meets the same partition on either way."""
    return None if key is None else storable(key)
