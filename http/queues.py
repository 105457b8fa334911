"""Work queues: how they stand, and jobs for them: ``/api/v1/queues``."""

from __future__ import annotations

from typing import Any

import redis.exceptions
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from ..actors.queue_lists import QueueView
from ..actors.system import System
from ..runtime.masking import mask_text
from ..runtime.redis import Kind, NotSent, RedisUnavailable, classify
from .asking import asking_redis, json_object
from .incoming import read_event, traceparent_of
from .problems import Problem
from .replies import json_reply
from .running import RunningSystem
from .views import iso

__all__ = ["queue_json", "queues"]

ANSWER_WITHIN = 10.0
"""Seconds for an answer."""


def queues(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("queues", __name__, url_prefix="/api/v1/queues")

    @routes.get("")
    async def get_queues() -> TrioResponse:
        with asking_redis(deployment, deployment, ANSWER_WITHIN) as asked:
            found = await asked.queues()
        now = deployment.tree.journal.wall()
        return json_reply({"time": iso(now), "queues": [queue_json(deployment.system, each) for each in found]})

    @routes.post("/<path:queue>/jobs")
    async def put_job(queue: str) -> TrioResponse:
        declared = deployment.system.queues.get(queue)
        if declared is None:
            known = sorted(deployment.system.queues)
            detail = f"There is no queue {queue!r}; the queues are: {', '.join(known) or 'none'}."
            raise Problem(404, "unknown-queue", "Unknown queue", detail, members={"queues": known})
        traceparent = traceparent_of(request.headers.get("traceparent"))
        envelope = read_event(await json_object(), declared.stream, traceparent)
        try:
            await deployment.enqueue(queue, envelope)
        except redis.exceptions.RedisError as error:
            raise _refused(error, str(envelope.event_id)) from error
        return json_reply({"eventId": str(envelope.event_id)}, 202)

    return routes


def queue_json(system: System, view: QueueView) -> dict[str, Any]:
    """A queue as JSON values; `idle` in seconds."""
    return {
        "name": view.name,
        "workers": system.queues[view.name].workers,
        "waiting": view.waiting,
        "returned": view.returned,
        "oldest": None if view.oldest is None else iso(view.oldest),
        "consumers": [{"name": each.consumer, "taken": each.jobs, "idle": each.idle} for each in view.taken],
    }


def _refused(error: redis.exceptions.RedisError, event_id: str) -> Problem:
    """A queue has no outbox: what Redis does not take is not accepted."""
    told = mask_text(str(error))
    if classify(error).kind in (Kind.BUG, Kind.CONFIG):
        detail = f"The job cannot be accepted before somebody mends this: {told}"
        return Problem(502, "refused-by-redis", "Refused by Redis", detail, members={"eventId": event_id})
    unknown = isinstance(error, RedisUnavailable) and not isinstance(error, NotSent)
    detail = (
        f"Redis is away, or takes nothing: {told}. Send it again with the same eventId: however often, it is one job."
    )
    members = {"eventId": event_id, "outcomeUnknown": unknown}
    return Problem(503, "redis-away", "Redis is away", detail, headers={"Retry-After": "1"}, members=members)
