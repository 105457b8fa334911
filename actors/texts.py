"""Text that PostgreSQL can hold: it refuses NUL characters, and half surrogate pairs are no UTF-8.

What arrives in events is not ours to choose, and an event must not die of its spelling.
"""

from __future__ import annotations

from typing import Final

__all__ = ["CUT", "cut_bytes", "storable", "well_formed"]

CUT: Final = "…"
"""What stands where something was cut away."""


def well_formed(text: str) -> str:
    """The text as UTF-8 can carry it: a half surrogate pair (JSON allows one) becomes ``?``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace").decode()
    return text


def storable(text: str, limit: int | None = None) -> str:
    """The text as a column of at most `limit` characters can hold it: no NUL, well formed, its end cut with `CUT`."""
    if "\0" in text:
        text = text.replace("\0", "")
    text = well_formed(text)
    if limit is not None and len(text) > limit:
        return text[: limit - len(CUT)] + CUT
    return text


def cut_bytes(text: str, limit: int, *, keep_end: bool = False) -> str:
    """The text, storable, in at most `limit` bytes of UTF-8; its end is cut away, or with `keep_end` its beginning."""
    data = storable(text).encode()
    if len(data) <= limit:
        return data.decode()
    room = limit - len(CUT.encode())
    # A character that was cut through is dropped.
    if keep_end:
        return CUT + data[len(data) - room :].decode(errors="ignore")
    return data[:room].decode(errors="ignore") + CUT
