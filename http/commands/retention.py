"""``penstock retention``: what is kept, what the last runs deleted, and a run now."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import duration, echo_json, echo_table
from .remote import remote_of, url_option

__all__ = ["retention"]

LOOK = 0.3
"""Seconds between two looks at whether it is done."""


@click.group(short_help="Show what retention did, or have it run now.")
def retention() -> None:
    """What is kept for how long, what the last runs of retention deleted, and a run now."""


@retention.command(short_help="Show what is kept, and what the last runs deleted.")
@url_option
@json_option
def show(url: str | None, as_json: bool) -> None:
    """Show what is kept for how long, when the next run is due, and what the last ones deleted."""
    found = remote_of(url).get("/api/v1/retention")
    if as_json:
        echo_json(found)
        return
    kept = found["keepEntriesFor"]
    facts = [
        ["rows", f"{found['days']} days; the next run is at {found['nextRun']}"],
        ["entries", f"{duration(kept)}, looked at every {duration(found['trimEvery'])}" if kept else "as long as rows"],
        ["entries of a stream", f"{found['maxEntries']} at the most" if found["maxEntries"] else "any number"],
        ["dry run", "yes: nothing is deleted" if found["dryRun"] else "no"],
    ]
    echo_table(facts, ["what", "kept"])
    click.echo()
    rows = [[*_run_cells(each)] for each in found["runs"]]
    echo_table(rows, ["run at", "by", "why", "entries", "rows", "took"])


def _run_cells(run: dict[str, Any]) -> tuple[Any, ...]:
    why = "dry run" if run["dryRun"] else "due" if run["dueAt"] else "ordered"
    return run["startedAt"], run["instance"], why, run["entries"], sum(run["rows"].values()), duration(run["seconds"])


@retention.command(short_help="Delete now what may be deleted.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@url_option
@json_option
def run(dry_run: bool, url: str | None, as_json: bool) -> None:
    """Delete now what is old enough and wanted by nobody, and say what was deleted, and who holds back the rest."""
    remote = remote_of(url)
    answer = remote.request(
        "POST", "/api/v1/retention/run", json.dumps({"dryRun": dry_run}).encode(), "application/json"
    )
    order = answer.json()
    if answer.status != 202:
        raise CommandError(answer.complaint)
    while order["state"] in ("waiting", "running"):
        time.sleep(LOOK)
        order = remote.get(f"/api/v1/retention/orders/{order['id']}")
    if order["state"] != "done":
        raise CommandError(f"retention failed: {order['error']}")
    if as_json:
        echo_json(order)
        return
    _show_report(order["report"], dry_run=dry_run)


def _show_report(report: dict[str, Any], *, dry_run: bool) -> None:
    deleted = "to be deleted" if dry_run else "deleted"
    rows: list[list[Any]] = [[each["stream"], each["trimmed"], _held(each)] for each in report["streams"]]
    rows += [[table, count, ""] for table, count in report["rows"].items()]
    echo_table(rows, ["stream or table", deleted, "held back by"])


def _held(stream: dict[str, Any]) -> str:
    if stream["error"]:
        return str(stream["error"])
    return ", ".join(
        f"{held['group'] or 'nobody reads it'} ({held['why']} since {held['entryId']})" for held in stream["heldBack"]
    )
