"""``penstock tree``: the supervision tree of a running system."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from ...runtime.cli import json_option
from ...runtime.output import echo_json, echo_table
from .remote import remote_of, url_option

__all__ = ["tree"]


@click.command(short_help="Show the supervision tree and the gates of a running system.")
@url_option
@json_option
def tree(url: str | None, as_json: bool) -> None:
    """Show the supervision tree and the gates of a running system.

    Each child with its state, how often it was started, how often it was started again because it had ended by itself,
    and what it says of itself or last crashed with.
    """
    state = remote_of(url).get("/api/v1/tree")
    if as_json:
        echo_json(state)
        return
    rows = [[lead + child["id"], *_cells(child)] for lead, child in _walk(state["tree"])]
    echo_table(rows, ["child", "state", "starts", "restarts", "note"])
    click.echo()
    gates = [
        [gate["name"], "open" if gate["open"] else "SHUT", _duration(gate["seconds"]), gate["cause"] or ""]
        for gate in state["gates"]
    ]
    echo_table(gates, ["gate", "state", "for", "cause"])


def _walk(child: dict[str, Any], lead: str = "", tail: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every child with the branches before its name."""
    yield lead + tail, child
    below = lead + {"": "", "├─ ": "│  ", "╰─ ": "   "}[tail]
    for number, each in enumerate(child["children"], 1):
        yield from _walk(each, below, "╰─ " if number == len(child["children"]) else "├─ ")


def _cells(child: dict[str, Any]) -> tuple[str, int, int, str]:
    return child["state"], child["incarnation"], child["restarts"], _note(child)


def _note(child: dict[str, Any]) -> str:
    error = child["lastError"]
    crash = "" if error is None else f"{error['type']}: {error['message']}"
    if child["heldBy"]:
        return f"held by the gate {child['heldBy']}: {child['cause']}"
    if child["state"] == "running":
        parts = [child["note"] or (child["strategy"] or "").replace("_", " "), crash and f"(last crash: {crash})"]
        return " ".join(part for part in parts if part)
    wait = "" if child["nextStartIn"] is None else f"again in {child['nextStartIn']:.0f} s"
    return "; ".join(part for part in (wait, crash or child["note"]) if part)


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"
