"""Redis as a message broker: a stream, a queue, and channels. `penstock run docs/examples/broker.py:system`"""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from attrs import field, frozen

from penstock.actors.event import Envelope, Fields, Origin, UndecodableEntry, event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.http.routes import Blueprint, RunningSystem, TrioResponse, accept, event_of, json_reply, routes

EVENTS, ANALYTICS = "user-events", "analytics-group"

system = System("broker", migrations=Path(__file__).parent / "broker_migrations")


# The event stream: what happened, kept, for any number of groups


class FlatEntry:
    """The entry that other programs write and read: userId, eventType, data, timestamp (ms since 1970), all text.

    Ours have an eventId, too. An entry that has none is known by its place in the stream.
    """

    def encode(self, envelope: Envelope) -> Fields:
        data = {"timestamp": int(envelope.timestamp.timestamp() * 1000), **envelope.data}
        happened: UserEvent = event_type_of(UserEvent).structure(data)
        return {
            "userId": happened.user_id,
            "eventType": happened.event_type,
            "data": happened.data,
            "timestamp": str(happened.timestamp),
            "eventId": str(envelope.event_id),
        }

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        try:
            milliseconds = int(fields["timestamp"])
            return Envelope(
                event_type="USER_EVENT",
                event_id=UUID(fields["eventId"]) if "eventId" in fields else origin.event_id,
                timestamp=datetime.fromtimestamp(milliseconds / 1000, UTC),
                key=fields["userId"],
                data={**fields, "timestamp": milliseconds},
            )
        except (KeyError, ValueError, OverflowError, OSError) as error:
            raise UndecodableEntry(f"no user event: {error!r}") from error

    def recognises(self, fields: Mapping[str, str]) -> bool:
        return "userId" in fields


@event("USER_EVENT", codec=FlatEntry(), key="user_id")
@frozen
class UserEvent:
    user_id: str
    event_type: str
    data: str = ""
    timestamp: int = field(factory=lambda: time.time_ns() // 1_000_000)


user_events = system.stream(EVENTS, events=[UserEvent])
user_events.group(ANALYTICS, consumer_prefix="consumer", batch=10, block=1.0, ordered=True)


@user_events.on(UserEvent, group=ANALYTICS)
async def count(happened: UserEvent, context: Context) -> None:
    await context.connection.execute(
        "insert into activity values (%s, 1, %s, to_timestamp(%s / 1000.0)) on conflict (user_id) do update "
        "set events = activity.events + 1, last_event = excluded.last_event, last_at = excluded.last_at",
        (happened.user_id, happened.event_type, happened.timestamp),
    )


@routes(system)
def site(running: RunningSystem) -> Blueprint:
    made = Blueprint("site", __name__)

    @made.post("/events")
    async def publish() -> TrioResponse:
        return await accept(running, EVENTS, await event_of(UserEvent))

    @made.get("/activity")
    async def activity() -> TrioResponse:
        async with running.connection() as connection:
            cursor = await connection.execute("select user_id, events, last_event from activity order by 1")
            rows = await cursor.fetchall()
        return json_reply({user: {"events": events, "lastEvent": last} for user, events, last in rows})

    return made
