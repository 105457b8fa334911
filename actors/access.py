"""S1's access log, ready made: the event, the handler that stores it, the declared system, and what can be asked.

penstock run            # runs `event_system`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from .access_event import AccessEvent, category_of
from .access_repository import (
    AccessCategory,
    AccessRecord,
    AccessRepository,
    AccessSummary,
    CategoryChange,
    CategoryExists,
    CategoryNotFound,
    CategorySummary,
)
from .system import System
from .texts import storable

if TYPE_CHECKING:
    from .handling import Context, Delivery

__all__ = [
    "ACCESS_GROUP",
    "ACCESS_STREAM",
    "AccessCategory",
    "AccessEvent",
    "AccessEventHandler",
    "AccessRecord",
    "AccessRepository",
    "AccessSummary",
    "CategoryChange",
    "CategoryExists",
    "CategoryNotFound",
    "CategorySummary",
    "category_of",
    "event_system",
]

ACCESS_STREAM: Final = "EVENT_STREAM"
ACCESS_GROUP: Final = "EVENT_GROUP"

# A category that is unknown or deleted costs no event: it is counted as UNKNOWN and keeps the code that it came with.
# The inbox has let every event pass once already; the conflict is for those whose inbox row was purged.
# Arrays go over in binary (%b): as text, every element would be searched for what must be escaped.
_INSERT: Final = """
insert into access_event (
    category_id, event_id, entry_id, category_code, user_id, endpoint, http_method, response_status, response_time,
    ip_address, user_agent, inputs, outputs, created_at
)
select coalesce(living.id, unknown.id), given.*
from unnest(
    %b::uuid[], %b::text[], %b::text[], %b::text[], %b::text[], %b::text[], %b::integer[], %b::double precision[],
    %b::text[], %b::text[], %b::text[], %b::text[], %b::timestamptz[]
) as given (event_id, entry_id, category_code, user_id, endpoint, http_method, response_status, response_time,
            ip_address, user_agent, inputs, outputs, created_at)
left join access_category living on living.category_code = given.category_code and not living.is_deleted
left join access_category unknown on unknown.category_code = 'UNKNOWN'
order by given.created_at
on conflict (event_id) do nothing
"""


class AccessEventHandler:
    """Stores access events: one statement for all events of a transaction."""

    async def __call__(self, deliveries: Sequence[Delivery[AccessEvent]], context: Context) -> None:
        rows = [_row(delivery) for delivery in deliveries]
        if rows:
            await context.connection.execute(_INSERT, [list(column) for column in zip(*rows, strict=True)])


def _row(delivery: Delivery[AccessEvent]) -> tuple[Any, ...]:
    """The columns of one event, in the order of the statement, cut to the limits of the table."""
    event = delivery.event
    return (
        delivery.envelope.event_id,
        delivery.entry_id,
        storable(event.category_code, 50),
        storable(event.user_id, 255),
        storable(event.endpoint, 2048),
        storable(event.http_method, 32),
        event.response_status,
        event.response_time,
        _storable(event.ip_address, 64),
        _storable(event.user_agent),
        _storable(event.inputs),
        _storable(event.outputs),
        event.created_at,
    )


def _storable(text: str | None, limit: int | None = None) -> str | None:
    return None if text is None else storable(text, limit)


def _declare() -> System:
    system = System("event-system")
    events = system.stream(ACCESS_STREAM, events=[AccessEvent])
    events.group(ACCESS_GROUP, consumers=2, consumer_prefix="EVENT_CONSUMER", block=1.0)
    events.on(AccessEvent, group=ACCESS_GROUP, batch=True)(AccessEventHandler())
    return system


event_system: Final = _declare()
"""The event system of S1: the stream EVENT_STREAM, read by EVENT_GROUP through EVENT_CONSUMER-1 and -2."""
