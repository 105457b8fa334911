"""Values and texts of anybody, made fit for a message: short, on one line, and never an error of their own.

What a program hands to a supervisor (a body bound to a table, the last word of a child) may be huge, nested a thousand
deep, of many lines, or unable to be shown at all. None of it may get in the way of what the message has to say.
"""

from __future__ import annotations

import reprlib

from ..printable import printable

__all__ = ["brief", "clipped", "ends_of", "one_line"]

_VALUE_LIMIT = 500

_REPR = reprlib.Repr()
_REPR.maxlevel = 4
_REPR.maxstring = _REPR.maxother = 200


def brief(value: object) -> str:
    """``repr(value)``, at most 500 characters: of containers four levels and the first few items; of what cannot be
    shown its type."""
    try:
        text = _REPR.repr(value)
    except Exception:  # noqa: BLE001 - a broken __repr__ must not hide what is to be said
        text = f"<{type(value).__qualname__} that cannot be shown>"
    return clipped(text, _VALUE_LIMIT)


def clipped(text: str, limit: int) -> str:
    """The beginning of a text, an ellipsis for the rest; `limit` characters at most."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def one_line(text: str, limit: int) -> str:
    """A text on one line, clipped: line breaks, terminal codes and whatever else does not print are spelt out."""
    return clipped(printable(text[: limit + 1]), limit)


def ends_of(text: str, limit: int) -> str:
    """A text on one line, clipped in the middle: of a path the root and the child itself stay readable."""
    ends = text if len(text) <= 2 * limit else text[:limit] + text[-limit:]
    shown, half = printable(ends), (limit - 1) // 2
    return shown if len(shown) <= limit else f"{shown[:half]}…{shown[-half:]}"
