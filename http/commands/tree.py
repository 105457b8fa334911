"""``penstock tree``: the supervision tree of a running system, and what happens to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import click

from ...runtime.cli import CommandError, json_option
from ...runtime.output import duration, echo_json, echo_table
from ...runtime.printable import printable_json
from .follow import follow as follow_events
from .follow import until_interrupted
from .lifecycle import LifecycleLines
from .remote import Remote, Sent, remote_of, url_option

__all__ = ["tree"]


@click.command(short_help="Show the supervision tree and the gates of a running system.")
@click.option("--follow", is_flag=True, help="Then show what happens to it, as it happens, until Ctrl-C.")
@url_option
@json_option
def tree(follow: bool, url: str | None, as_json: bool) -> None:
    """Show the supervision tree and the gates of a running system.

    Each child with its state, how often it was started, how often it was started again because it had ended by itself,
    and what it says of itself or last crashed with.

    With --follow a line for each lifecycle event comes after it. A connection that is lost is made again, and goes on
    behind the last event that was shown; what is missing is said. With --json the tree and each event are a line each.
    """
    remote = remote_of(url)
    state = remote.get("/api/v1/tree")
    if as_json:
        echo_json(state)
    else:
        _show(state)
    if follow:
        with until_interrupted():
            _follow(remote, state, as_json)


def _show(state: dict[str, Any]) -> None:
    rows = [[lead + child["id"], *_cells(child)] for lead, child in _walk(state["tree"])]
    echo_table(rows, ["child", "state", "starts", "restarts", "note"])
    click.echo()
    gates = [
        [gate["name"], "open" if gate["open"] else "SHUT", duration(gate["seconds"]), gate["cause"] or ""]
        for gate in state["gates"]
    ]
    echo_table(gates, ["gate", "state", "for", "cause"])


def _follow(remote: Remote, state: dict[str, Any], as_json: bool) -> None:
    children = [child["path"] for _, child in _walk(state["tree"])]
    gates = [gate["name"] for gate in state["gates"]]
    lines = LifecycleLines(children, gates, up=state["tree"]["state"] == "running")
    colour = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    if not as_json:
        click.echo(click.style("\nWhat happens from now on (Ctrl-C ends):", dim=True), color=colour)
    stops = False

    def ended() -> str:
        # The front end is the first to leave: of the rest of the stop nothing is heard here.
        return "the system stops, and says no more" if stops else "the stream of events has ended"

    for sent in follow_events(remote, "/api/v1/tree/events", str(state["sequence"]), ended):
        stops = '"tree_stopping"' in sent.data or (stops and '"child_starting"' not in sent.data)
        click.echo(printable_json(sent.data) if as_json else _line(lines, sent), color=colour)


def _line(lines: LifecycleLines, sent: Sent) -> str:
    try:
        told = json.loads(sent.data)
        return lines.gap(told) if sent.name == "gap" else lines.line(told)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CommandError(f"the server sent an event that cannot be read: {error}") from error


def _walk(child: dict[str, Any], lead: str = "", tail: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every child with the branches before its name."""
    yield lead + tail, child
    below = lead + {"": "", "├─ ": "│  ", "╰─ ": "   "}[tail]
    for number, each in enumerate(child["children"], 1):
        yield from _walk(each, below, "╰─ " if number == len(child["children"]) else "├─ ")


def _cells(child: dict[str, Any]) -> tuple[str, int, int, str]:
    return child["state"], child["incarnation"], child["restarts"], _note(child)


def _queued(child: dict[str, Any]) -> str:
    """Which of its mailboxes hold something; empty if none does."""
    full = [f"{each['depth']} of {each['capacity']} in {each['name']}" for each in child["mailboxes"] if each["depth"]]
    return f"(queued: {', '.join(full)})" if full else ""


def _note(child: dict[str, Any]) -> str:
    error = child["lastError"]
    crash = "" if error is None else f"{error['type']}: {error['message']}"
    if child["heldBy"]:
        return f"held by the gate {child['heldBy']}: {child['cause']}"
    if child["state"] == "running":
        said = child["note"] or (child["strategy"] or "").replace("_", " ")
        parts = [said, _queued(child), crash and f"(last crash: {crash})"]
        return " ".join(part for part in parts if part)
    wait = "" if child["nextStartIn"] is None else f"again in {child['nextStartIn']:.0f} s"
    return "; ".join(part for part in (wait, crash or child["note"]) if part)
