"""Dead letters over HTTP: ``/api/v1/dead-letters``. What may be a secret in an event is hidden, here and not in SQL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.letter_filter import LetterFilter
from ..actors.letter_terms import STATUSES, Reason
from ..actors.letter_view import AuditEntry, Letter, LetterDetails, LetterGroup, LetterOrder, ReplayPreview
from ..actors.letters import MOST, RATE, LetterDesk, LetterNotFound, LetterRefused, OrderNotFound
from ..actors.texts import CUT
from ..runtime.masking import MASK, mask_text
from .asking import Given, asker, asking, given_body, given_query, wrong
from .incoming import is_utf8
from .problems import Problem, sentence
from .redaction import is_secret, redact_text
from .replies import json_reply
from .running import RunningSystem
from .views import iso

__all__ = ["group_json", "letters", "order_json"]

ANSWER_WITHIN = 15.0
"""Seconds that the database has for an answer."""

PAGE_LIMIT = 1_000
"""Letters, or groups of them, in one answer at the most."""

ORDER_LIMIT = 1_000_000
"""Letters in one order at the most; without a word it takes `MOST`."""

SLOWEST, FASTEST = 0.1, 10_000.0
"""Letters a second."""

FIELDS_LIMIT = 256 * 1024
"""Characters of a letter's fields that are shown: hiding the secrets of many megabytes would take the loop seconds."""

_SLACK = 4096
"""Characters searched beyond the limit, so that a secret is still recognised where the cut goes through it."""

_INT8 = 2**63 - 1
_NOTE_LIMIT = 2_000


def letters(deployment: RunningSystem) -> Blueprint:
    """The routes of the desk."""
    routes = Blueprint("letters", __name__, url_prefix="/api/v1/dead-letters")
    _reading(routes, deployment)
    _deciding_one(routes, deployment)
    _deciding_many(routes, deployment)
    _following_orders(routes, deployment)
    return routes


# The routes ----------------------------------------------------------------------------------------------------------


def _reading(routes: Blueprint, deployment: RunningSystem) -> None:
    @routes.get("")
    async def list_dead_letters() -> TrioResponse:
        given = given_query()
        limit, before = given.number("limit", 1, PAGE_LIMIT) or 100, given.number("before", 1, _INT8)
        which = _filter(given)
        with _desk(deployment) as desk:
            page = await desk.letters(which, limit=limit, before=before)
        return json_reply({"letters": [_letter_json(each) for each in page.letters], "next": page.next})

    @routes.get("/groups")
    async def group_dead_letters() -> TrioResponse:
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 100
        which = _filter(given)
        with _desk(deployment) as desk:
            found = await desk.groups(which, limit=limit)
        return json_reply({"groups": [group_json(each) for each in found]})

    @routes.get("/<int:number>")
    async def get_dead_letter(number: int) -> TrioResponse:
        with _desk(deployment) as desk:
            found = await desk.letter(number)
        return json_reply(_details_json(found))


def _deciding_one(routes: Blueprint, deployment: RunningSystem) -> None:
    @routes.post("/<int:number>/note")
    async def note_dead_letter(number: int) -> TrioResponse:
        given = await given_body()
        text = given.text("note", limit=_NOTE_LIMIT)
        given.end()
        if text is None:
            wrong("note: is required.")
        with _desk(deployment) as desk:
            await desk.note(number, text, by=asker())
            found = await desk.letter(number)
        return json_reply(_details_json(found))

    @routes.post("/<int:number>/discard")
    async def discard_dead_letter(number: int) -> TrioResponse:
        given = await given_body()
        note = given.text("note", limit=_NOTE_LIMIT)
        given.end()
        with _desk(deployment) as desk:
            if not await desk.discard(LetterFilter(ids=(number,)), by=asker(), note=note):
                status = (await desk.letter(number)).letter.status
                raise LetterRefused(f"the dead letter {number} is {status} already")
            found = await desk.letter(number)
        return json_reply(_details_json(found))

    @routes.post("/<int:number>/replay")
    async def replay_dead_letter(number: int) -> TrioResponse:
        given = await given_body()
        target, note = _target(given), given.text("note", limit=_NOTE_LIMIT)
        given.end()
        with _desk(deployment) as desk:
            order = await desk.replay_one(number, by=asker(), target=target, note=note)
        return _ordered(order)


def _deciding_many(routes: Blueprint, deployment: RunningSystem) -> None:
    @routes.post("/discard")
    async def discard_dead_letters() -> TrioResponse:
        given = await given_body()
        which, limit = _required_filter(given), given.number("limit", 1, ORDER_LIMIT) or MOST
        note, dry_run = given.text("note", limit=_NOTE_LIMIT), given.truth("dryRun")
        given.end()
        with _desk(deployment) as desk:
            if dry_run:
                matching = (await desk.preview(which, limit=limit)).matching
                return json_reply({"dryRun": True, "letters": min(matching, limit), "matching": matching})
            discarded = await desk.discard(which, by=asker(), note=note, limit=limit)
        return json_reply({"dryRun": False, "letters": discarded})

    @routes.post("/replay")
    async def replay_dead_letters() -> TrioResponse:
        given = await given_body()
        which, limit = _required_filter(given), given.number("limit", 1, ORDER_LIMIT) or MOST
        rate, target = given.real("rate", SLOWEST, FASTEST) or RATE, _target(given)
        note, dry_run = given.text("note", limit=_NOTE_LIMIT), given.truth("dryRun")
        given.end()
        with _desk(deployment) as desk:
            if dry_run:
                return json_reply(_preview_json(await desk.preview(which, target=target, limit=limit)))
            order = await desk.replay(which, by=asker(), target=target, rate=rate, limit=limit, note=note)
        return _ordered(order)


def _following_orders(routes: Blueprint, deployment: RunningSystem) -> None:
    @routes.get("/orders")
    async def list_replay_orders() -> TrioResponse:
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 20
        given.end()
        with _desk(deployment) as desk:
            found = await desk.orders(limit=limit)
        return json_reply({"orders": [order_json(each) for each in found]})

    @routes.get("/orders/<uuid:number>")
    async def get_replay_order(number: UUID) -> TrioResponse:
        with _desk(deployment) as desk:
            return json_reply(order_json(await desk.order(number)))

    @routes.post("/orders/<uuid:number>/cancel")
    async def cancel_replay_order(number: UUID) -> TrioResponse:
        with _desk(deployment) as desk:
            return json_reply(order_json(await desk.cancel(number, by=asker())))


@contextmanager
def _desk(deployment: RunningSystem) -> Iterator[LetterDesk]:
    try:
        with asking(deployment, deployment.letters, ANSWER_WITHIN) as desk:
            yield desk
    except LetterNotFound as error:
        raise Problem(404, "letter-not-found", "Dead letter not found", sentence(error)) from None
    except OrderNotFound as error:
        raise Problem(404, "order-not-found", "Order not found", sentence(error)) from None
    except LetterRefused as error:
        raise Problem(409, "letter-refused", "Not possible with this dead letter", sentence(error)) from None


# What is asked -------------------------------------------------------------------------------------------------------


def _filter(given: Given) -> LetterFilter:
    status = given.one_of("status", *STATUSES, "any") or "dead"
    found = LetterFilter(
        stream=given.text("stream"),
        group=given.text("group"),
        reason=given.one_of("reason", *Reason),
        event_type=given.text("type"),
        fingerprint=given.text("fingerprint"),
        status=None if status == "any" else status,
        key=given.text("key"),
        event_id=given.uuid("eventId"),
        since=given.moment("since"),
        until=given.moment("until"),
        ids=_ids(given),
    )
    given.end()
    return found


def _ids(given: Given) -> tuple[int, ...] | None:
    one, many = given.number("id", 1, _INT8), given.items("ids")
    if one is not None and many is not None:
        wrong("id and ids: one of them.")
    if many is not None and not all(type(each) is int and 1 <= each <= _INT8 for each in many[:ORDER_LIMIT]):
        wrong("ids: must be a list of whole numbers from 1.")
    return tuple(many[:ORDER_LIMIT]) if many is not None else None if one is None else (one,)


def _required_filter(given: Given) -> LetterFilter:
    members = given.members("filter")
    if members is None:
        wrong('filter: is required; {"filter": {}} means all that are dead.')
    return _filter(members)


def _target(given: Given) -> Literal["group", "stream"]:
    return "stream" if given.one_of("to", "group", "stream") == "stream" else "group"


# What is answered ----------------------------------------------------------------------------------------------------


def _ordered(order: LetterOrder) -> TrioResponse:
    location = f"/api/v1/dead-letters/orders/{order.id}"
    return json_reply(order_json(order), 202, headers={"Location": location})


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else iso(moment)


def _masked(text: str | None) -> str | None:
    return None if text is None else mask_text(text)


def _letter_json(letter: Letter) -> dict[str, Any]:
    return {
        "id": letter.id,
        "status": letter.status,
        "stream": letter.stream,
        "entryId": letter.entry_id,
        "group": letter.consumer_group,
        "consumer": letter.consumer,
        "eventId": None if letter.event_id is None else str(letter.event_id),
        "eventType": letter.event_type,
        "key": letter.event_key,
        "reason": letter.reason,
        "errorClass": letter.error_class,
        "errorMessage": _masked(letter.error_message),
        "fingerprint": letter.fingerprint,
        "deliveries": letter.deliveries,
        "replays": letter.replays,
        "publishedAt": _time(letter.published_at),
        "firstDeliveredAt": _time(letter.first_delivered_at),
        "deadAt": iso(letter.dead_at),
        "traceparent": letter.traceparent,
        "host": letter.host,
        "pid": letter.pid,
        "version": letter.version,
        "mirrorId": letter.mirror_id,
        "orderId": None if letter.order_id is None else str(letter.order_id),
        "settledAt": _time(letter.settled_at),
        "settledBy": letter.settled_by,
        "note": letter.note,
    }


def _details_json(details: LetterDetails) -> dict[str, Any]:
    shown = _shown_fields(details.fields)
    return {
        **_letter_json(details.letter),
        "fields": shown,
        "fieldsExact": shown == dict(details.fields) and all(is_utf8(value) for value in details.fields.values()),
        "traceback": _masked(details.traceback),
        "audit": [_audit_json(each) for each in details.audit],
    }


def _shown_fields(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields with their secrets hidden, and no more of them than `FIELDS_LIMIT`."""
    shown, room = {}, FIELDS_LIMIT
    for name, value in fields.items():
        searched = value[: room + _SLACK] if room else ""
        shown[name] = MASK if is_secret(name) else redact_text(searched)
        if len(value) > room:
            shown[name] = shown[name][:room] + CUT
        room = max(0, room - len(value))
    return shown


def _audit_json(entry: AuditEntry) -> dict[str, Any]:
    return {
        "action": entry.action,
        "at": iso(entry.at),
        "by": entry.by,
        "orderId": None if entry.order_id is None else str(entry.order_id),
        "note": _masked(entry.note),
    }


def group_json(group: LetterGroup) -> dict[str, Any]:
    """Letters that died alike."""
    return {
        "fingerprint": group.fingerprint,
        "reason": group.reason,
        "group": group.consumer_group,
        "streams": list(group.streams),
        "eventTypes": list(group.event_types),
        "count": group.count,
        "first": iso(group.first),
        "last": iso(group.last),
        "example": group.example,
        "errorClass": group.error_class,
        "errorMessage": _masked(group.error_message),
    }


def _preview_json(preview: ReplayPreview) -> dict[str, Any]:
    return {
        "dryRun": True,
        "letters": preview.letters,
        "matching": preview.matching,
        "trimmed": preview.trimmed,
        "noEvents": preview.no_events,
        "undeclared": preview.undeclared,
    }


def order_json(order: LetterOrder) -> dict[str, Any]:
    """An order to replay letters."""
    return {
        "id": str(order.id),
        "state": order.state,
        "to": order.target,
        "rate": order.rate,
        "total": order.total,
        "moved": order.moved,
        "replayed": order.replayed,
        "dead": order.dead,
        "waiting": order.waiting,
        "filter": dict(order.filter),
        "note": order.note,
        "orderedBy": order.ordered_by,
        "orderedAt": iso(order.ordered_at),
        "finishedAt": _time(order.finished_at),
    }
