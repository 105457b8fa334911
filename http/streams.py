"""Streams, their groups, and what is pending in them: ``/api/v1/streams``, ``/groups``, ``/losses``, ``/checks``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import psycopg
import trio
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.findings import Finding
from ..actors.loss_table import RecordedLoss
from ..actors.pending_view import ConsumerView, EntryState, Pending, PendingEntry, state_of
from ..actors.stream_view import GroupView, StreamView
from ..actors.system import Stream, System
from ..runtime.masking import mask_text
from .asking import asking, asking_redis, given_query, known_stream, unknown_group
from .problems import Problem
from .replies import json_reply
from .running import RunningSystem
from .views import iso, stream_json

__all__ = ["streams", "warning_json"]

ANSWER_WITHIN = 10.0
"""Seconds for an answer."""

LOOK_WITHIN = 3.0
"""Seconds for a look at the streams, of which an older view is at hand."""

PAGE_LIMIT = 1_000
"""Entries in one answer at the most."""

_WEEK = 7 * 86_400.0

Left = Mapping[tuple[str, str], int | None]
"""By partition and group, how many pending entries nobody has touched for long; None: too many to look at."""


def streams(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("streams", __name__, url_prefix="/api/v1")

    @routes.get("/streams")
    async def get_streams() -> TrioResponse:
        views, stale = await _seen(deployment)
        now, clock = deployment.tree.journal.wall(), trio.current_time()
        found = [_stream_json(deployment.system, view, stream_json(view, now, clock)) for view in views]
        return json_reply({"time": iso(now), "stale": stale, "streams": found})

    @routes.get("/groups")
    async def get_groups() -> TrioResponse:
        views, stale = await _seen(deployment)
        left = {} if stale else await _left(deployment, views)
        found = list(_groups(deployment.system, views, left))
        return json_reply({"time": iso(deployment.tree.journal.wall()), "stale": stale, "groups": found})

    @routes.get("/streams/<path:stream>/groups/<path:group>/pending")
    async def get_pending(stream: str, group: str) -> TrioResponse:
        declared, keys = known_stream(deployment.system, stream)
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 100
        consumer, idle = given.text("consumer"), given.number("idle", 0, int(_WEEK)) or 0
        given.end()
        with asking_redis(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep:
            found = await upkeep.pending(keys, group, limit=limit, consumer=consumer, idle=idle)
        if group not in declared.groups and not found.partitions:
            unknown_group(declared, group)
        return json_reply({"stream": stream, "group": group, **_pending_json(found, upkeep.reclaim_idle)})

    @routes.get("/losses")
    async def get_losses() -> TrioResponse:
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 100
        given.end()
        with asking(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep:
            found = await upkeep.recent_losses(limit)
        return json_reply({"losses": [_loss_json(each) for each in found]})

    @routes.get("/checks")
    async def get_checks() -> TrioResponse:
        return json_reply({"warnings": [warning_json(each) for each in deployment.warnings()]})

    return routes


async def _seen(deployment: RunningSystem) -> tuple[Sequence[StreamView], str | None]:
    """The streams as they are now; where they cannot be looked at, as they were seen last, and why."""
    try:
        with asking_redis(deployment, deployment, LOOK_WITHIN):
            return await deployment.look(), None
    except Problem as problem:
        why = problem.detail
    except psycopg.Error as error:
        why = f"The database went away: {mask_text(str(error)).rstrip('.')}."
    views = deployment.streams()
    if not views:
        return views, f"{why} Nothing was seen before."
    oldest = min(view.observed_at for view in views)
    age = timedelta(seconds=max(0.0, trio.current_time() - oldest))
    return views, f"{why} This was seen at {iso(deployment.tree.journal.wall() - age)}."


async def _left(deployment: RunningSystem, views: Iterable[StreamView]) -> Left:
    left: dict[tuple[str, str], int | None] = {}
    with suppress(Problem), asking_redis(deployment, deployment.upkeep, LOOK_WITHIN) as upkeep:
        for view in views:
            for group in view.groups:
                left[view.key, group.name] = await upkeep.left(view.key, group)
    return left


# What is answered ----------------------------------------------------------------------------------------------------


def _stream_json(system: System, view: StreamView, shown: dict[str, Any]) -> dict[str, Any]:
    declared = system.stream_of(view.key)
    return {
        **shown,
        "stream": view.key if declared is None else declared.key,
        "firstId": view.first_id,
        "entriesAdded": view.entries_added,
    }


def _groups(system: System, views: Iterable[StreamView], left: Left) -> Iterator[dict[str, Any]]:
    """A group in all partitions of its stream together; one that nobody declared is shown, too."""
    by_key = {view.key: view for view in views}
    for stream in system.streams.values():
        partitions = [by_key[key] for key in stream.keys if key in by_key]
        names = dict.fromkeys([*stream.groups, *(group.name for view in partitions for group in view.groups)])
        for name in names:
            found = [group for view in partitions for group in view.groups if group.name == name]
            lying = [
                left.get((view.key, name)) for view in partitions if any(each.name == name for each in view.groups)
            ]
            yield {**_group_json(stream, name, found), **_states_json(sum(each.pending for each in found), lying)}


def _states_json(pending: int, left: Sequence[int | None]) -> dict[str, Any]:
    """Of what is pending, how much is in which state; null where nobody can tell."""
    if None in left:
        return {"states": {EntryState.DELIVERED: None, EntryState.PENDING: None}}
    lying = min(pending, sum(each or 0 for each in left))
    return {"states": {EntryState.DELIVERED: pending - lying, EntryState.PENDING: lying}}


def _group_json(stream: Stream, name: str, found: list[GroupView]) -> dict[str, Any]:
    declared = stream.groups.get(name)
    lags = [group.lag for group in found]
    return {
        "stream": stream.key,
        "name": name,
        "declared": declared is not None,
        "enabled": declared is not None and declared.enabled,
        "ordered": declared is not None and declared.ordered,
        "partitions": len(found),
        "lag": None if None in lags or not lags else sum(lag for lag in lags if lag is not None),
        "pending": sum(group.pending for group in found),
        "consumers": sum(group.consumers for group in found),
        "lastDeliveredId": found[0].last_delivered_id if len(found) == 1 else None,
    }


def _pending_json(pending: Pending, reclaim_idle: float) -> dict[str, Any]:
    return {
        "total": pending.total,
        "entries": [_entry_json(each, reclaim_idle) for each in pending.entries],
        "consumers": [_consumer_json(each) for each in pending.consumers],
    }


def _entry_json(entry: PendingEntry, reclaim_idle: float) -> dict[str, Any]:
    return {
        "key": entry.key,
        "entryId": entry.entry_id,
        "consumer": entry.consumer,
        "idle": entry.idle,
        "deliveries": entry.deliveries,
        "state": state_of(entry.idle, reclaim_idle),
    }


def _consumer_json(consumer: ConsumerView) -> dict[str, Any]:
    return {"key": consumer.key, "name": consumer.name, "pending": consumer.pending, "idle": consumer.idle}


def _loss_json(loss: RecordedLoss) -> dict[str, Any]:
    return {
        "stream": loss.stream,
        "group": loss.group,
        "afterId": loss.after_id,
        "beforeId": loss.before_id,
        "entries": loss.entries,
        "detectedAt": iso(loss.detected_at),
        "deleted": loss.deleted,
        "deletedBy": loss.deleted_by,
    }


def warning_json(finding: Finding) -> dict[str, Any]:
    """What a start-up check found."""
    return {
        "check": finding.name,
        "where": mask_text(finding.where),
        "severity": finding.severity.value,
        "found": mask_text(finding.found),
        "mend": finding.mend,
    }
