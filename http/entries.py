"""Single entries over HTTP: ``/api/v1/streams/{stream}/entries`` and ``/info``: what is in a stream, and who has it."""

from __future__ import annotations

from typing import Any

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.entry_view import EntryView, GroupPlace
from ..actors.handling import entry_order
from ..actors.pending_view import ConsumerView
from ..actors.replay_range import id_at
from ..actors.stream_facts import EntryFacts, GroupFacts, StreamFacts
from .asking import Given, asking_redis, given_query, known_stream, unknown_group, wrong
from .replies import json_reply
from .running import RunningSystem
from .views import iso

__all__ = ["entries"]

ANSWER_WITHIN = 10.0
"""Seconds for an answer."""

_EDGES = {"from": (2**64 - 1, 2**64 - 1), "to": (0, 0)}
"""The ids that no other is behind, or before."""

PAGE_LIMIT = 1_000
"""Entries in one answer; it may be a few more, see `range_of`."""


def entries(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("entries", __name__, url_prefix="/api/v1/streams")

    @routes.get("/<path:stream>/entries")
    async def get_entries(stream: str) -> TrioResponse:
        declared, keys = known_stream(deployment.system, stream)
        given = given_query()
        first, last = _bound(deployment, given, "from", "-"), _bound(deployment, given, "to", "+")
        reverse = given.one_of("reverse", "true", "false") == "true"
        limit, group = given.number("limit", 1, PAGE_LIMIT) or 100, given.text("group")
        given.end()
        with asking_redis(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep:
            found = await upkeep.entries(
                declared, keys, first=first, last=last, limit=limit, reverse=reverse, group=group
            )
        if group is not None and group not in declared.groups and not found.partitions:
            unknown_group(declared, group)
        shown = [_entry_json(each) for each in found.entries]
        return json_reply({"stream": stream, "group": group, "entries": shown, "next": found.next})

    @routes.get("/<path:stream>/info")
    async def get_info(stream: str) -> TrioResponse:
        declared, keys = known_stream(deployment.system, stream)
        given_query().end()
        with asking_redis(deployment, deployment.upkeep, ANSWER_WITHIN) as upkeep:
            found = [await upkeep.facts(key) for key in keys]
        shown = [_facts_json(each, set(declared.groups)) for each in found]
        return json_reply({"stream": stream, "time": iso(deployment.tree.journal.wall()), "partitions": shown})

    return routes


def _bound(deployment: RunningSystem, given: Given, name: str, default: str) -> str:
    """One end of a range, as XRANGE takes it."""
    text = given.text(name)
    if text is None or text == default:
        return default
    excluded = "(" if text.startswith("(") else ""
    try:
        bound = id_at(text.removeprefix("("), deployment.settings.zone_info, last=name == "to")
    except ValueError as error:
        wrong(f"{name}: {error}.")
    if excluded and entry_order(bound) == _EDGES[name]:  # Redis takes it for a mistake, too
        wrong(f"{name}: there can be no entry {'behind' if name == 'from' else 'before'} {text.removeprefix('(')}.")
    return excluded + bound


# What is answered ----------------------------------------------------------------------------------------------------


def _entry_json(entry: EntryView) -> dict[str, Any]:
    event = entry.event
    return {
        "partition": entry.partition,
        "entryId": entry.entry_id,
        "time": None if entry.at is None else iso(entry.at),
        "eventId": None if event is None else str(event.event_id),
        "eventType": None if event is None else event.event_type,
        "timestamp": None if event is None else event.timestamp.isoformat(),
        "key": None if event is None else event.key,
        "data": None if event is None else event.data,
        "fields": dict(entry.fields) if event is None else None,
        "problem": entry.problem,
        **({} if entry.place is None else _place_json(entry.place)),
    }


def _place_json(place: GroupPlace) -> dict[str, Any]:
    return {
        "state": place.state,
        "consumer": place.consumer,
        "idle": place.idle,
        "deliveries": place.deliveries or None,
    }


def _facts_json(facts: StreamFacts, declared: set[str]) -> dict[str, Any]:
    return {
        "key": facts.key,
        "exists": facts.exists,
        "length": facts.length,
        "radixTreeKeys": facts.radix_tree_keys,
        "radixTreeNodes": facts.radix_tree_nodes,
        "lastGeneratedId": facts.last_generated_id,
        "maxDeletedId": facts.max_deleted_id,
        "entriesAdded": facts.entries_added,
        "memory": facts.memory,
        "first": _first_json(facts.first),
        "last": _first_json(facts.last),
        "groups": [_group_json(each, each.name in declared) for each in facts.groups],
        "missing": sorted(declared - {each.name for each in facts.groups}),
    }


def _first_json(entry: EntryFacts | None) -> dict[str, Any] | None:
    return None if entry is None else {"entryId": entry.entry_id, "fields": dict(entry.fields)}


def _group_json(group: GroupFacts, declared: bool) -> dict[str, Any]:
    return {
        "name": group.name,
        "declared": declared,
        "lastDeliveredId": group.last_delivered_id,
        "entriesRead": group.entries_read,
        "lag": group.lag,
        "pending": group.pending,
        "consumers": [_consumer_json(each) for each in group.consumers],
    }


def _consumer_json(consumer: ConsumerView) -> dict[str, Any]:
    return {
        "name": consumer.name,
        "pending": consumer.pending,
        "idle": consumer.idle,
        "inactive": consumer.inactive,
    }
