"""What commands print: tables and words for people, JSON for scripts."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import zip_longest
from typing import Any, Final

import attrs
import click

from .masking import mask_text
from .printable import printable, printable_json

__all__ = ["duration", "echo_json", "echo_table", "notice", "table", "width"]

_GAP = "  "
_NARROW: Final = 16
"""A column of this width is not folded."""
_PIECES: Final = re.compile(r"\s*[^\s,]*,|\s*[^\s,]+")
"""What a cell may be folded between: words, and the parts of a list without blanks."""


def table(rows: Iterable[Sequence[object]], headers: Sequence[str], within: int | None = None) -> str:
    """A plain text table: aligned columns, numbers to the right, no lines drawn; ends without a line break.

    None is shown as ``-``, truth values as ``yes`` and ``no``, and whatever does not print is spelt out. Wide (Korean,
    say) letters count two columns, as terminals show them. With `within`, a table that is wider has the cells of its
    widest columns folded, but never those of the first one.

    Raises:
        ValueError: a row has not as many cells as there are headers.
    """
    listed = [list(row) for row in rows]
    if any(len(row) != len(headers) for row in listed):
        raise ValueError(f"every row must have {len(headers)} cells")
    lines = [list(headers), *([_cell(value) for value in row] for row in listed)]
    if within is not None:
        lines = _fold_lines(lines, within)
    columns = [
        _column([line[index] for line in lines], to_the_right=_is_numeric([row[index] for row in listed]))
        for index in range(len(headers))
    ]
    return "\n".join(_GAP.join(line).rstrip() for line in zip(*columns, strict=True))


def echo_table(rows: Iterable[Sequence[object]], headers: Sequence[str]) -> None:
    """Print a `table`, as wide as the terminal at the most; nothing but the headers where there are no rows.

    What is not printed to a terminal keeps each row on one line, for `grep`.
    """
    # There is no standard output at all where it was closed.
    on_terminal = sys.stdout is not None and sys.stdout.isatty()
    click.echo(table(rows, headers, shutil.get_terminal_size().columns if on_terminal else None))


def echo_json(value: Any) -> None:
    """Print one JSON document on one line; attrs instances as objects, dates in ISO 8601."""
    click.echo(printable_json(json.dumps(value, ensure_ascii=False, default=_plain)))


def notice(text: str) -> None:
    """Print a line on standard error: without its secrets, and with whatever does not print spelt out."""
    click.echo(printable(mask_text(text)), err=True)


def duration(seconds: float) -> str:
    """A duration for people: ``0.25 s``, ``8.1 s``, ``42 s``, ``3 min 05 s``, ``2 h 04 min``."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = int(seconds)
    if whole < 100:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def width(text: str) -> int:
    """How many columns of a terminal the text takes."""
    return sum(
        0 if unicodedata.combining(each) else 2 if unicodedata.east_asian_width(each) in "WF" else 1 for each in text
    )


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(f"{value:.6g}" if isinstance(value, float) else str(value))


def _is_numeric(values: Sequence[object]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in present)


def _column(texts: Sequence[str], *, to_the_right: bool) -> list[str]:
    """The texts, blanks added to make them equally wide."""
    widest = max(width(text) for text in texts)
    blanks = [" " * (widest - width(text)) for text in texts]
    return [blank + text if to_the_right else text + blank for text, blank in zip(texts, blanks, strict=True)]


def _fold_lines(lines: Sequence[Sequence[str]], within: int) -> list[list[str]]:
    """The same lines, more of them, such that the table is no wider than `within`, as far as that can be."""
    widths = [max(width(cell) for cell in column) for column in zip(*lines, strict=True)]
    room = within - len(_GAP) * (len(widths) - 1)
    limit = max(widths)
    while limit > _NARROW and widths[0] + sum(min(each, limit) for each in widths[1:]) > room:
        limit -= 1
    limits = [widths[0], *(min(each, limit) for each in widths[1:])]
    folded: list[list[str]] = []
    for line in lines:
        cells = [_fold(cell, most) for cell, most in zip(line, limits, strict=True)]
        folded += [list(each) for each in zip_longest(*cells, fillvalue="")]
    return folded


def _fold(text: str, most: int) -> list[str]:
    if width(text) <= most:
        return [text]
    lines = [""]
    for piece in _PIECES.findall(text):
        if width(lines[-1] + piece) <= most:
            lines[-1] += piece
            continue
        lines.append("")
        for letter in piece.lstrip():
            if width(lines[-1] + letter) > most:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _plain(value: Any) -> Any:
    if attrs.has(type(value)):
        return attrs.asdict(value, recurse=False)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    return value.isoformat() if hasattr(value, "isoformat") else str(getattr(value, "value", value))
