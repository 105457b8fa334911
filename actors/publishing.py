"""Publishing within a transaction of one's own, in any program that has psycopg and the declaration.

    async with connection.transaction():
        await connection.execute("insert into orders …")
        await publish_in(connection, system.streams["order-events"], OrderPlaced("o-1", 9.5))

The events are rows of the outbox, and so committed with everything else, or not at all. A running Penstock process adds
them to their streams right after the commit. In SQL the same is done by ``penstock_publish(…)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from .event import Envelope, event_type_of
from .outbox_table import INSERT, insert_values
from .outgoing import rows_of

if TYPE_CHECKING:
    import psycopg

    from .system import Stream

__all__ = ["envelopes_of", "publish_in", "publish_in_sync"]


async def publish_in(connection: psycopg.AsyncConnection[Any], stream: Stream, *events: object) -> list[UUID]:
    """Publish events if and only if the connection's transaction is committed.

    Works with psycopg under asyncio and trio alike. Events of one call stay in order, and so do those of transactions
    that follow each other.

    Args:
        connection: within a transaction; in autocommit mode the events are published at once.
        stream: the declared stream.
        events: objects of event classes, or `Envelope`.

    Returns:
        Their event ids, in order.

    Raises:
        InvalidEvent: an envelope's data do not fit, or its type is not the stream's.
        TypeError: an object is of no event class.
        psycopg.Error: as for any statement.
    """
    envelopes = envelopes_of(events)
    if rows := rows_of(stream, envelopes):
        await connection.execute(INSERT, insert_values(rows))
    return [envelope.event_id for envelope in envelopes]


def publish_in_sync(connection: psycopg.Connection[Any], stream: Stream, *events: object) -> list[UUID]:
    """`publish_in` for a synchronous connection."""
    envelopes = envelopes_of(events)
    if rows := rows_of(stream, envelopes):
        connection.execute(INSERT, insert_values(rows))
    return [envelope.event_id for envelope in envelopes]


def envelopes_of(events: Sequence[object]) -> list[Envelope]:
    """The envelopes of objects of event classes; envelopes stay as they are."""
    return [each if isinstance(each, Envelope) else event_type_of(type(each)).envelope(each) for each in events]
