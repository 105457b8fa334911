"""What came of events, over HTTP: ``/api/v1/ledger``."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.fate import EventFate, LedgerLine
from ..actors.ledger import SCAN
from ..runtime.masking import mask_text
from .asking import asking, given_body, given_query, wrong
from .replies import json_reply
from .running import RunningSystem
from .views import iso

__all__ = ["ledger"]

ANSWER_WITHIN = 25.0
"""Seconds for an answer; reading a long stream for events that nobody has handled takes some."""

EVENT_LIMIT = 10_000
"""Events in one question at the most."""

SCAN_LIMIT = 10_000_000
"""Entries that may be read for one question at the most."""


def ledger(deployment: RunningSystem) -> Blueprint:
    """The routes of the ledger."""
    routes = Blueprint("ledger", __name__, url_prefix="/api/v1/ledger")

    @routes.get("")
    async def get_ledger() -> TrioResponse:
        with asking(deployment, deployment.ledger, ANSWER_WITHIN) as found:
            lines = await found.summary()
        return json_reply({"lines": [_line_json(line) for line in lines]})

    @routes.get("/<uuid:event_id>")
    async def get_fates(event_id: UUID) -> TrioResponse:
        given = given_query()
        scan = given.number("scan", 0, SCAN_LIMIT)
        given.end()
        with asking(deployment, deployment.ledger, ANSWER_WITHIN) as found:
            fates = await found.fates([event_id], scan=SCAN if scan is None else scan)
        return json_reply(_events_json([event_id], fates)[0])

    @routes.post("")
    async def find_fates() -> TrioResponse:
        given = await given_body()
        event_ids, scan = _event_ids(given.items("eventIds")), given.number("scan", 0, SCAN_LIMIT)
        given.end()
        with asking(deployment, deployment.ledger, ANSWER_WITHIN) as found:
            fates = await found.fates(event_ids, scan=SCAN if scan is None else scan)
        return json_reply({"events": _events_json(event_ids, fates)})

    return routes


def _event_ids(given: list[Any] | None) -> list[UUID]:
    if not given or len(given) > EVENT_LIMIT:
        wrong(f"eventIds: must be a list of 1 to {EVENT_LIMIT} UUIDs.")
    try:
        return list(dict.fromkeys(UUID(each) for each in given))
    except (ValueError, TypeError, AttributeError):
        wrong("eventIds: each must be a UUID.")


def _events_json(event_ids: list[UUID], fates: list[EventFate]) -> list[dict[str, Any]]:
    found: dict[UUID, list[dict[str, Any]]] = {event_id: [] for event_id in event_ids}
    for fate in fates:
        found[fate.event_id].append(_fate_json(fate))
    return [{"eventId": str(event_id), "fates": each} for event_id, each in found.items()]


def _fate_json(fate: EventFate) -> dict[str, Any]:
    return {
        "stream": fate.stream,
        "group": fate.consumer_group,
        "fate": fate.fate.value,
        "reason": mask_text(fate.reason),
        "partition": fate.partition,
        "entryId": fate.entry_id,
        "since": None if fate.since is None else iso(fate.since),
    }


def _line_json(line: LedgerLine) -> dict[str, Any]:
    return {
        "stream": line.stream,
        "group": line.consumer_group,
        "done": line.done,
        "retrying": line.retrying,
        "dead": line.dead,
        "expired": line.expired,
        "lost": line.lost,
        "outbox": line.outbox,
        "unread": line.unread,
        "inWork": line.in_work,
    }
