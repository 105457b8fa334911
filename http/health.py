"""What a running system says of itself: alive, ready, its tree and what happens to it, its streams, all of it live."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator
from typing import Any

import redis.exceptions
import trio
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from ..runtime.masking import mask_text
from ..runtime.telemetry import get_logger
from .delivery import losses_json, outbox_json
from .lifecycle import lifecycle_events
from .live import LiveFeed
from .problems import Problem
from .replies import dump, json_reply
from .running import RunningSystem
from .settings import HttpSettings
from .sse import Event, Places, event_stream
from .streams import warning_json
from .views import cluster_json, iso, readiness, shut_gate, tree_json

__all__ = ["health", "live", "tail", "tree_events"]

log = get_logger(__name__)

_POSITION = re.compile(r"\$|[0-9]{1,20}(-[0-9]{1,20})?")
_LARGEST = 2**64 - 1


def health(deployment: RunningSystem) -> Blueprint:
    """The routes that answer at once from memory, during every outage too."""
    routes = Blueprint("health", __name__)

    @routes.get("/healthz")
    async def healthz() -> TrioResponse:
        return json_reply({"status": "alive"})

    @routes.get("/readyz")
    async def readyz() -> TrioResponse:
        snapshot, cluster = deployment.tree.snapshot(), deployment.cluster()
        ready, state = readiness(snapshot, deployment.streams(), deployment.system.gates)
        state["warnings"] = [warning_json(each) for each in deployment.warnings()]
        state["outbox"] = outbox_json(deployment.outbox())
        state["losses"] = losses_json(deployment.losses())
        if cluster is not None:
            state["cluster"] = cluster_json(cluster, snapshot.time, trio.current_time())
        if ready:
            return json_reply({"status": "ready", **state})
        headers = {"Retry-After": "1"}
        # The body's `status` is the number of RFC 9457; `state` and the members after it say what is the matter.
        raise Problem(503, "not-ready", "Not ready", _why_not_ready(state), headers=headers, members=state)

    @routes.get("/api/v1/tree")
    async def get_tree() -> TrioResponse:
        return json_reply(tree_json(deployment.tree.snapshot()))

    return routes


def _why_not_ready(state: dict[str, Any]) -> str:
    reasons = [f"{gate['name']} is away for {gate['seconds']:.0f} s: {gate['cause']}" for gate in state["gates"]]
    if state["held"]:
        reasons.append(f"children held: {', '.join(child['path'] for child in state['held'])}")
    if state["starting"]:
        reasons.append(f"children not up yet: {', '.join(state['starting'])}")
    return "; ".join(reasons) or f"the tree is {state['state']}"


def live(feed: LiveFeed) -> Blueprint:
    """``/api/v1/live``: a ``state`` event at once, at each change, and every two seconds."""
    routes = Blueprint("live", __name__)

    @routes.get("/api/v1/live")
    async def get_live() -> TrioResponse:
        if request.method == "HEAD":
            return _no_events()
        if feed.is_full:
            raise _full("pages that follow the live state", feed.limit, "http.live_clients")
        return event_stream(feed.events, feed.draining, feed.place())

    return routes


def tree_events(deployment: RunningSystem, settings: HttpSettings, draining: trio.Event) -> Blueprint:
    """``/api/v1/tree/events``: what happens to the tree, as it happens."""
    routes = Blueprint("tree_events", __name__)
    places = Places(settings.live_clients)

    @routes.get("/api/v1/tree/events")
    async def get_tree_events() -> TrioResponse:
        after = _position("the id of an event, as 57-1700000000000, or its sequence alone")
        if request.method == "HEAD":
            return _no_events()
        if places.is_full:
            raise _full("clients that follow the tree", places.limit, "http.live_clients")
        return event_stream(lambda: lifecycle_events(deployment.tree.journal, after), draining, places.take())

    return routes


def tail(deployment: RunningSystem, settings: HttpSettings, draining: trio.Event) -> Blueprint:
    """``/api/v1/streams/{stream}/tail``: a stream's entries as they come."""
    routes = Blueprint("tail", __name__)
    places = Places(settings.tail_clients)

    @routes.get("/api/v1/streams/<path:stream>/tail")
    async def get_tail(stream: str) -> TrioResponse:
        if stream not in deployment.system.streams:
            known = sorted(deployment.system.streams)
            detail = f"There is no stream {stream!r}; the streams are: {', '.join(known) or 'none'}."
            raise Problem(404, "unknown-stream", "Unknown stream", detail, members={"streams": known})
        after = _position("an entry id, as 1700000000000-0")
        if request.method == "HEAD":
            return _no_events()
        gate = shut_gate(deployment.gates, "redis")
        if gate is not None:
            detail = f"Redis is away since {iso(gate.since)}: {mask_text(gate.cause)}."
            raise Problem(503, "unavailable", "Unavailable for now", detail, headers={"Retry-After": "1"})
        if places.is_full:
            raise _full("clients that follow a stream", places.limit, "http.tail_clients")
        return event_stream(lambda: _entries(deployment, stream, after), draining, places.take())

    return routes


async def _entries(deployment: RunningSystem, stream: str, after: str) -> AsyncGenerator[Event, None]:
    try:
        async for entry_id, envelope in deployment.tail(stream, after):
            shown = {
                "entryId": entry_id,
                "eventId": str(envelope.event_id),
                "eventType": envelope.event_type,
                "timestamp": envelope.timestamp.isoformat(),
                "key": envelope.key,
                "data": envelope.data,
            }
            yield Event(dump(shown), name="entry", id=entry_id)
    except redis.exceptions.RedisError as error:
        # An outage is no news here. The client comes back with the last id that it saw, and goes on from there.
        log.info("a tail broke off", stream=stream, reason=mask_text(str(error)))


def _position(form: str) -> str:
    """Behind which event the client wants to begin; a connection that is made again comes with the last one's id."""
    after = request.headers.get("Last-Event-ID") or request.args.get("after") or "$"
    if not _POSITION.fullmatch(after) or any(int(each) > _LARGEST for each in after.split("-") if each != "$"):
        detail = f'A position is {form}, or "0" for the beginning, or "$" for the end.'
        raise Problem(400, "invalid-position", "Invalid position", detail)
    return after


def _no_events() -> TrioResponse:
    """The answer to HEAD: nobody would ever read the events."""
    return TrioResponse(b"", content_type="text/event-stream; charset=utf-8")


def _full(who: str, limit: int, setting: str) -> Problem:
    detail = f"There are {limit} {who} already (setting {setting})."
    return Problem(503, "too-many-clients", "Too many clients", detail, headers={"Retry-After": "5"})
