"""The tables of what servers may answer and what is then done, as ``penstock check`` prints them."""

from __future__ import annotations

from typing import Any

from ...runtime.output import echo_json, echo_table
from ...runtime.postgres import ERRORS
from ...runtime.redis import REPLIES, UNCLASSIFIED

__all__ = ["faults", "print_rows", "replies"]


def replies() -> list[dict[str, Any]]:
    """A row for each reply of Redis."""
    return [
        {
            "reply": row.text,
            "meaning": row.meaning,
            "kind": row.kind.value,
            "gate": row.shuts_gate,
            "action": row.action,
        }
        for row in (*REPLIES, UNCLASSIFIED)
    ]


def faults() -> list[dict[str, Any]]:
    """A row for each kind of error of PostgreSQL."""
    return [
        {
            "sqlstate": " ".join(row.states),
            "error": row.text,
            "meaning": row.meaning,
            "fault": row.fault.value,
            "gate": row.shuts_gate,
            "action": row.action,
        }
        for row in ERRORS
    ]


def print_rows(rows: list[dict[str, Any]], *, as_json: bool) -> None:
    """Print *rows*, which have the same keys, for people or for scripts."""
    if as_json:
        echo_json(rows)
    else:
        echo_table([list(row.values()) for row in rows], list(rows[0]))
