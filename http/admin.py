"""S1's endpoints: categories of access events, and the summary of a day, below ``/admin/api/v1/event/access``.

Members are in camelCase, times in the configured zone with microseconds and offset, as the original has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import trio
from quart import Blueprint, request
from quart_trio.wrappers import TrioResponse

from ..actors.access import (
    AccessCategory,
    AccessRecord,
    AccessSummary,
    CategoryChange,
    CategoryExists,
    CategoryNotFound,
)
from ..runtime.masking import mask_text
from .incoming import decode, parse
from .problems import Problem, sentence
from .replies import json_reply
from .running import AccessStore, RunningSystem
from .views import shut_gate

__all__ = ["admin"]

ANSWER_WITHIN = 10.0
"""Seconds that the database has for an answer; the summary of a busy day takes one or two."""

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,49}")
_MEMBERS = {"id": int, "name": str, "description": str, "isDeleted": bool}
_NAMES = {int: "a whole number", str: "a string", bool: "true or false"}


def admin(deployment: RunningSystem) -> Blueprint:
    """The routes of S1."""
    routes = Blueprint("admin", __name__, url_prefix="/admin/api/v1/event/access")
    zone = deployment.settings.zone_info

    @routes.get("/categories")
    async def get_categories() -> TrioResponse:
        with _database(deployment) as store:
            found = await store.categories()
        return json_reply([_category_json(each, zone) for each in found])

    @routes.get("/category/<value>")
    async def get_category(value: str) -> TrioResponse:
        with _database(deployment) as store:
            if value.isascii() and value.isdigit():
                found = await store.category_by_id(_number(value))
            elif _CODE.fullmatch(value):
                found = await store.category_by_code(value)
            else:
                raise _bad_parameter("A category is asked for by its number or its code, as API_ADMIN.")
        return json_reply(_category_json(found, zone))

    @routes.put("/category")
    async def change_category() -> TrioResponse:
        change = _change(await _json_body())
        with _database(deployment) as store:
            changed = await store.change_category(change)
        return json_reply(_category_json(changed, zone))

    @routes.get("/summary/<day>")
    async def get_access_summary(day: str) -> TrioResponse:
        asked = _day(day)
        with _database(deployment) as store:
            found = await store.summary(asked)
        return json_reply(_summary_json(found, zone))

    return routes


# What is asked -------------------------------------------------------------------------------------------------------


def _number(digits: str) -> int:
    if len(digits) > 19:  # more than a bigint has, and perhaps more than int() takes
        raise CategoryNotFound(f"there is no category with the id {digits[:40]}")
    return int(digits)


def _day(text: str) -> date:
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise _bad_parameter("A day is written as YYYY-MM-DD.")


async def _json_body() -> dict[str, Any]:
    if request.mimetype != "application/json":
        came = request.content_type or "a body without a content type"
        detail = f"A change comes as application/json, not as {came}."
        raise Problem(415, "unsupported-media-type", "Unsupported media type", detail, error_type="INVALID_DATA")
    value = parse(decode(await request.get_data(cache=False, as_text=False, parse_form_data=False)))
    if not isinstance(value, dict):
        raise _bad_data("A change is a JSON object.")
    return value


def _change(body: dict[str, Any]) -> CategoryChange:
    """Members that are missing or null leave a value as it is."""
    for name, value in body.items():
        kind = _MEMBERS.get(name)
        if kind is None:
            raise _bad_data(f"{name[:40]}: there is no such member; there are {', '.join(_MEMBERS)}.")
        if value is not None and type(value) is not kind:
            raise _bad_data(f"{name}: must be {_NAMES[kind]}.")
    if body.get("id") is None:
        raise _bad_data("id: is required.")
    try:
        return CategoryChange(
            id=body["id"],
            name=body.get("name"),
            description=body.get("description"),
            is_deleted=body.get("isDeleted"),
        )
    except ValueError as error:
        raise _bad_data(f"{error}.") from None


# What is answered ----------------------------------------------------------------------------------------------------


def _time(moment: datetime | None, zone: ZoneInfo) -> str | None:
    return None if moment is None else moment.astimezone(zone).isoformat(timespec="microseconds")


def _category_json(category: AccessCategory, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": category.id,
        "categoryCode": category.category_code,
        "name": category.name,
        "description": category.description,
        "isDeleted": category.is_deleted,
        "createdAt": _time(category.created_at, zone),
        "updatedAt": _time(category.updated_at, zone),
    }


def _summary_json(summary: AccessSummary, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "accessDate": summary.access_date.isoformat(),
        "totalAccessCount": summary.total_access_count,
        "accessEventSummaries": [
            {
                "categoryCode": each.category_code,
                "accessEvents": [_event_json(event, zone) for event in each.access_events],
            }
            for each in summary.access_event_summaries
        ],
    }


def _event_json(event: AccessRecord, zone: ZoneInfo) -> dict[str, Any]:
    return {
        "id": event.id,
        "categoryCode": event.category_code,
        "userId": event.user_id,
        "endpoint": event.endpoint,
        "httpMethod": event.http_method,
        "responseStatus": event.response_status,
        "responseTime": event.response_time,
        "ipAddress": event.ip_address,
        "userAgent": event.user_agent,
        # Null in a summary, there as here: it would hold the summaries that were asked for before.
        "inputs": event.inputs,
        "outputs": event.outputs,
        "createdAt": _time(event.created_at, zone),
    }


# Problems ------------------------------------------------------------------------------------------------------------


@contextmanager
def _database(deployment: RunningSystem) -> Iterator[AccessStore]:
    """Answer for the database: at once while it is known to be away, in any case within `ANSWER_WITHIN`."""
    if deployment.access is None:
        raise _away("This system runs without a database.")
    gate = shut_gate(deployment.gates, "postgres")
    if gate is not None:
        since = gate.since.isoformat(timespec="seconds")
        raise _away(f"The database is away since {since}: {mask_text(gate.cause)}.")
    try:
        with trio.fail_after(ANSWER_WITHIN):
            yield deployment.access
    except trio.TooSlowError:
        raise _away(f"The database did not answer within {ANSWER_WITHIN:g} s.") from None
    except CategoryNotFound as error:
        raise Problem(
            404, "category-not-found", "Category not found", sentence(error), error_type="DATA_NOT_FOUND"
        ) from None
    except CategoryExists as error:
        raise Problem(
            409, "category-exists", "Category exists", sentence(error), error_type="DATA_ALREADY_EXISTS"
        ) from None


def _away(detail: str) -> Problem:
    return Problem(503, "database-away", "The database is away", detail, headers={"Retry-After": "1"})


def _bad_data(detail: str) -> Problem:
    return Problem(400, "invalid-data", "Invalid data", detail, error_type="INVALID_DATA")


def _bad_parameter(detail: str) -> Problem:
    return Problem(400, "invalid-parameter", "Invalid parameter", detail, error_type="INVALID_PARAMETER")
