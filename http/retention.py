"""Retention over HTTP: ``/api/v1/retention``: what it is set to, what it did, and a run by order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from attrs import asdict
from quart import Blueprint
from quart_trio.wrappers import TrioResponse

from ..actors.retention import Retention, RetentionOrder
from ..actors.sweep import RetentionReport
from ..runtime.masking import mask_text
from .asking import asking, given_body, given_query
from .problems import Problem
from .replies import json_reply
from .running import RunningSystem
from .views import iso

__all__ = ["retention"]

ANSWER_WITHIN = 10.0
"""Seconds for an answer; a run is not waited for."""

PAGE_LIMIT = 1_000


def retention(deployment: RunningSystem) -> Blueprint:
    """The routes."""
    routes = Blueprint("retention", __name__, url_prefix="/api/v1/retention")

    @routes.get("")
    async def get_retention() -> TrioResponse:
        given = given_query()
        limit = given.number("limit", 1, PAGE_LIMIT) or 10
        given.end()
        with _retention(deployment) as found:
            runs = await found.sweep.runs(limit)
        settings = {**asdict(found.settings), "next_run": iso(found.next_run)}
        return json_reply({**_camel(settings), "runs": [_run_json(run) for run in runs]})

    @routes.post("/run")
    async def run_retention() -> TrioResponse:
        given = await given_body()
        dry_run = given.truth("dryRun")
        given.end()
        with _retention(deployment) as found:
            order = found.order(dry_run=dry_run)
        location = f"/api/v1/retention/orders/{order.id}"
        return json_reply(_order_json(order), 202, headers={"Location": location})

    @routes.get("/orders/<uuid:number>")
    async def get_retention_order(number: UUID) -> TrioResponse:
        with _retention(deployment) as found:
            for order in found.orders:
                if order.id == number:
                    return json_reply(_order_json(order))
        detail = f"This process knows of no order {number}; what was done is among the runs of /api/v1/retention."
        raise Problem(404, "order-not-found", "Order not found", detail)

    return routes


@contextmanager
def _retention(deployment: RunningSystem) -> Iterator[Retention]:
    upkeep = deployment.upkeep
    if upkeep is not None and upkeep.retention is None:
        raise Problem(409, "retention-off", "Retention is switched off", "The setting retention.enabled is false.")
    with asking(deployment, None if upkeep is None else upkeep.retention, ANSWER_WITHIN) as found:
        yield found


def _order_json(order: RetentionOrder) -> dict[str, Any]:
    return {
        "id": str(order.id),
        "state": order.state,
        "dryRun": order.dry_run,
        "error": None if order.error is None or order.state == "running" else mask_text(order.error),
        "report": None if order.report is None else _report_json(order.report),
    }


def _report_json(report: RetentionReport) -> dict[str, Any]:
    return {
        "startedAt": iso(report.started_at),
        "seconds": round(report.seconds, 3),
        "cutoff": iso(report.cutoff),
        "entries": report.entries_trimmed,
        "rows": report.rows,
        "streams": [_camel(asdict(stream)) for stream in report.streams],
    }


def _run_json(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "instance": run["instance"],
        "dueAt": None if run["due_at"] is None else iso(run["due_at"]),
        "startedAt": iso(run["started_at"]),
        "seconds": round(run["seconds"], 3),
        "dryRun": run["dry_run"],
        "entries": run["entries_trimmed"],
        "rows": run["report"].get("rows", {}),
        "streams": [_camel(stream) for stream in run["report"].get("streams", [])],
    }


def _camel(value: Any) -> Any:
    if isinstance(value, dict):
        return {_camel_name(name): _camel(each) for name, each in value.items()}
    return [_camel(each) for each in value] if isinstance(value, list | tuple) else value


def _camel_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)
