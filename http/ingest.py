"""Publishing over HTTP: ``POST /api/v1/streams/{stream}/events``.

One event, a JSON array of them, or one a line (NDJSON). A single event is accepted or refused with its own status.
Of many, each has its own result, in order, and a bad one keeps none of the others back; only when an outage lets none
of them through is the request as a whole refused, so that a client may simply send it again: the ids that it needs for
that, so that nothing happens twice, are in the answer. While Redis is away events are accepted into the outbox; an
outage that refuses is one of Redis and PostgreSQL.

With ``?condition=NAME`` a single event is accepted only while that condition holds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import trio
from attrs import define, frozen
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from ..actors.event import Envelope
from ..actors.producer import Published, PublishFailed
from ..actors.system import Stream
from ..runtime.masking import mask_text
from .incoming import decode, parse, read_event, traceparent_of
from .problems import Problem
from .replies import json_reply, ndjson_reply
from .running import RunningSystem
from .settings import HttpSettings
from .views import gate_json

__all__ = ["ingest", "publish_one"]

_JSON_TYPES = ("application/json",)
_NDJSON_TYPES = ("application/x-ndjson", "application/ndjson")

_BREATH = 200
"""Items after which others get a turn: some milliseconds of work."""


@define
class _Item:
    """One event of a request: where it stands, and what became of it so far."""

    place: dict[str, int]
    envelope: Envelope | None = None
    problem: Problem | None = None


@frozen
class _Batch:
    items: list[_Item]
    by_line: bool


def ingest(deployment: RunningSystem, settings: HttpSettings) -> Blueprint:
    """The routes that take events."""
    routes = Blueprint("ingest", __name__)

    @routes.post("/api/v1/streams/<path:stream>/events")
    async def publish_events(stream: str) -> TrioResponse:
        declared = _stream(deployment, stream)
        media_type = _media_type()
        traceparent = traceparent_of(request.headers.get("traceparent"))
        body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
        if not body.strip():
            raise Problem(400, "empty-body", "Empty body", "The body is empty; it must hold at least one event.")
        if media_type in _NDJSON_TYPES and "condition" not in request.args:
            batch = await _read_lines(body, declared, traceparent, settings.max_items)
            return await _publish_many(deployment, declared, batch)
        value = parse(decode(body))
        if (condition := request.args.get("condition")) is not None:
            return await _publish_if(deployment, declared, _one(value, declared, traceparent), condition)
        if isinstance(value, list):
            batch = await _read_array(value, declared, traceparent, settings.max_items)
            return await _publish_many(deployment, declared, batch)
        return await publish_one(deployment, declared, read_event(value, declared, traceparent))

    return routes


def _stream(deployment: RunningSystem, key: str) -> Stream:
    streams = deployment.system.streams
    if key in streams:
        return streams[key]
    known = ", ".join(sorted(streams)) or "none"
    detail = f"There is no stream {key!r}; the streams are: {known}."
    raise Problem(404, "unknown-stream", "Unknown stream", detail, members={"streams": sorted(streams)})


def _media_type() -> str:
    media_type = request.mimetype
    accepted = ", ".join(_JSON_TYPES + _NDJSON_TYPES)
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    coding = request.headers.get("content-encoding", "identity").lower()
    if media_type not in _JSON_TYPES + _NDJSON_TYPES or charset not in ("utf-8", "utf8", "us-ascii"):
        came = request.content_type or "a body without a content type"
        detail = f"Events come as {accepted} in UTF-8, not as {came}."
    elif coding != "identity":
        detail = f"Events come without a content encoding, not with {coding}."
    else:
        return media_type
    headers = {"Accept-Post": accepted}
    raise Problem(415, "unsupported-media-type", "Unsupported media type", detail, headers=headers)


# Reading many --------------------------------------------------------------------------------------------------------


async def _read_array(value: list[Any], stream: Stream, traceparent: str | None, limit: int) -> _Batch:
    if not value:
        raise Problem(400, "empty-body", "Empty body", "The array is empty; it must hold at least one event.")
    _check_count(len(value), limit)
    items = []
    for index, each in enumerate(value):
        items.append(_read({"index": index}, each, stream, traceparent))
        await _breathe(index)
    return _Batch(items, by_line=False)


async def _read_lines(body: bytes, stream: Stream, traceparent: str | None, limit: int) -> _Batch:
    # As bytes: a line that is no UTF-8 keeps none of the others back.
    lines = [(number, line) for number, line in enumerate(body.split(b"\n"), 1) if line.strip()]
    _check_count(len(lines), limit)
    items = []
    for number, line in lines:
        items.append(_read_line(number, line, stream, traceparent))
        await _breathe(number)
    return _Batch(items, by_line=True)


def _check_count(count: int, limit: int) -> None:
    if count > limit:
        detail = f"The request holds {count} events; at most {limit} are taken at a time (setting http.max_items)."
        raise Problem(413, "too-many-events", "Too many events", detail, members={"limit": limit})


async def _breathe(number: int) -> None:
    if number % _BREATH == _BREATH - 1:
        await trio.lowlevel.checkpoint()


def _read_line(number: int, line: bytes, stream: Stream, traceparent: str | None) -> _Item:
    try:
        value = parse(decode(line))
    except Problem as problem:
        return _Item({"line": number}, problem=problem)
    return _read({"line": number}, value, stream, traceparent)


def _read(place: dict[str, int], value: Any, stream: Stream, traceparent: str | None) -> _Item:
    try:
        return _Item(place, envelope=read_event(value, stream, traceparent))
    except Problem as problem:
        return _Item(place, problem=problem)


# Publishing ----------------------------------------------------------------------------------------------------------


async def publish_one(deployment: RunningSystem, stream: Stream, envelope: Envelope) -> TrioResponse:
    """Publish one event, and say what came of it; raises 502 and 503 `Problem`."""
    (result,) = await deployment.publish(stream.key, [envelope])
    if isinstance(result, Published):
        return json_reply(_accepted(result), 202)
    raise _refused(deployment, result)


def _one(value: Any, stream: Stream, traceparent: str | None) -> Envelope:
    if isinstance(value, list):
        raise Problem(400, "one-event-only", "One event only", "With a condition a request holds a single event.")
    return read_event(value, stream, traceparent)


async def _publish_if(deployment: RunningSystem, stream: Stream, envelope: Envelope, condition: str) -> TrioResponse:
    if not condition:
        raise Problem(400, "invalid-condition", "Invalid condition", "The parameter 'condition' has no value.")
    result = await deployment.publish_if(stream.key, envelope, condition)
    if isinstance(result, Published):
        return json_reply(_accepted(result), 202)
    if isinstance(result, PublishFailed):
        raise _refused(deployment, result)
    detail = f"The event was not published, for the condition {condition!r} of the stream does not hold."
    members = {"eventId": str(envelope.event_id), "condition": condition}
    raise Problem(409, "condition-not-met", "Condition not met", detail, members=members)


async def _publish_many(deployment: RunningSystem, stream: Stream, batch: _Batch) -> TrioResponse:
    good = [item.envelope for item in batch.items if item.envelope is not None]
    outcomes = iter(await deployment.publish(stream.key, good) if good else [])
    results: list[dict[str, Any]] = []
    failures: list[PublishFailed] = []
    accepted = 0
    for item in batch.items:
        outcome = next(outcomes) if item.envelope is not None else None
        if isinstance(outcome, Published):
            accepted += 1
            results.append(_accepted(outcome))
            continue
        if isinstance(outcome, PublishFailed):
            failures.append(outcome)
            item.problem = _refused(deployment, outcome)
        results.append({"error": {**_problem(item).body(), **item.place}})
    if not accepted and any(not failure.permanent for failure in failures):
        raise _all_refused(deployment, batch, failures, results)
    return ndjson_reply(results, 202) if batch.by_line else json_reply(results, 202)


def _problem(item: _Item) -> Problem:
    if item.problem is None:
        raise RuntimeError("an event has neither been published nor refused")
    return item.problem


def _accepted(result: Published) -> dict[str, Any]:
    return {"eventId": str(result.event_id), "entryId": result.entry_id, "durable": result.durable}


# Refusing ------------------------------------------------------------------------------------------------------------


def _refused(deployment: RunningSystem, failure: PublishFailed) -> Problem:
    members: dict[str, Any] = {"eventId": str(failure.event_id)}
    if failure.permanent:
        detail = f"The event cannot be published before somebody mends this: {mask_text(failure.reason)}"
        return Problem(502, "refused-by-redis", "Refused by Redis", detail, members=members)
    members |= {"retryAfter": failure.retry_after, "outcomeUnknown": failure.outcome_unknown}
    unknown = " It may have been published all the same." if failure.outcome_unknown else ""
    detail = (
        f"{_whats_away(deployment, failure.reason)}{unknown} "
        "Send it again with the same eventId: however often, it is one effect."
    )
    return _unavailable(deployment, detail, failure.retry_after, members)


def _all_refused(
    deployment: RunningSystem, batch: _Batch, failures: Sequence[PublishFailed], results: list[dict[str, Any]]
) -> Problem:
    wait = max(failure.retry_after for failure in failures)
    ids = [str(item.envelope.event_id) if item.envelope is not None else None for item in batch.items]
    detail = (
        f"{_whats_away(deployment, failures[0].reason)} None of the {len(ids)} events was accepted. "
        "Send them again with the same eventIds: however often, each is one effect."
    )
    members = {
        "retryAfter": wait,
        "outcomeUnknown": any(failure.outcome_unknown for failure in failures),
        "eventIds": ids,
        "results": results,
    }
    return _unavailable(deployment, detail, wait, members)


def _unavailable(deployment: RunningSystem, detail: str, wait: float, members: dict[str, Any]) -> Problem:
    shut = [gate_json(view, deployment.tree.journal.wall()) for view in deployment.gates.view() if not view.open]
    headers = {"Retry-After": str(max(1, math.ceil(wait)))}
    return Problem(
        503, "unavailable", "Unavailable for now", detail, headers=headers, members={**members, "gates": shut}
    )


def _whats_away(deployment: RunningSystem, reason: str) -> str:
    shut = [view for view in deployment.gates.view() if not view.open]
    if not shut:
        return f"The event could not be published: {mask_text(reason)}."
    gates = "; ".join(
        f"{view.name} since {view.since.isoformat(timespec='seconds')} ({mask_text(view.cause)})" for view in shut
    )
    return f"Away: {gates}."
