"""Redis as a message broker: a stream, a queue, and channels. `penstock run docs/examples/broker.py:system`

user-events (stream) ──> analytics-group ──> activity         every group has every event, from the first one on
reports (queue)      ──> one worker      ──> report           every job is done once, by one of many
news:* (channels)    ──> every process                        whoever listens at that moment
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import trio
from attrs import field, frozen

from penstock.actors.channels import Broadcast, Gap
from penstock.actors.event import Envelope, Fields, Origin, UndecodableEntry, event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.http.routes import Blueprint, RunningSystem, TrioResponse, accept, event_of, json_reply, routes

EVENTS, ANALYTICS = "user-events", "analytics-group"
REPORTS, REPORT_NEWS = "reports", "news:reports"

system = System("broker", migrations=Path(__file__).parent / "broker_migrations")


# The stream: what has happened


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


# The queue: what is to be done


@event("REPORT_ORDERED")
@frozen
class ReportOrdered:
    """`seconds` stand for work that takes long."""

    user_id: str
    seconds: float = 0.0


reports = system.queue(REPORTS, workers=2)


@reports.on(ReportOrdered)
async def write_report(ordered: ReportOrdered, context: Context) -> None:
    await trio.sleep(ordered.seconds)
    await context.connection.execute(
        "insert into report (report_id, user_id, events) "
        "values (%s, %s, coalesce((select events from activity where user_id = %s), 0))",
        (context.event_id, ordered.user_id, ordered.user_id),
    )
    # Only told: whoever was not there when it was sent reads the table.
    context.broadcast(REPORT_NEWS, {"reportId": str(context.event_id), "userId": ordered.user_id})


# The channels: look, there is something


@event("NEWS")
@frozen
class News:
    text: str


heard: deque[dict[str, Any]] = deque(maxlen=100)
report_news = system.channel(REPORT_NEWS)
all_news = system.channel("news:*", pattern=True)


@report_news.on
async def hear_of_report(message: Broadcast) -> None:
    heard.append({"kind": "message", "channel": message.channel, "data": message.data})


@all_news.on
async def hear(message: Broadcast) -> None:
    heard.append({"kind": "pmessage", "pattern": message.pattern, "channel": message.channel, "data": message.data})


@all_news.on_gap
async def miss(gap: Gap) -> None:
    heard.append({"kind": "gap", "reason": gap.reason})


# HTTP


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

    @made.post("/reports")
    async def order() -> TrioResponse:
        job = await running.enqueue(REPORTS, await event_of(ReportOrdered))
        return json_reply({"reportId": str(job)}, 202)

    @made.get("/reports")
    async def written() -> TrioResponse:
        async with running.connection() as connection:
            cursor = await connection.execute("select report_id, user_id, events from report order by written_at")
            rows = await cursor.fetchall()
        return json_reply({str(report): {"userId": user, "events": events} for report, user, events in rows})

    @made.post("/news/<topic>")
    async def tell(topic: str) -> TrioResponse:
        news = await event_of(News)
        return json_reply({"told": await running.broadcast(f"news:{topic}", {"text": news.text})})

    @made.get("/news")
    async def listen() -> TrioResponse:
        return json_reply({"heard": list(heard)})

    return made
