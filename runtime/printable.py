"""Texts of anybody, made fit for one line of a terminal or a log."""

from __future__ import annotations

__all__ = ["printable", "printable_json"]


def printable(text: str) -> str:
    """The text with line breaks, terminal codes and whatever else does not print spelt out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def printable_json(text: str) -> str:
    """JSON without blanks around its tokens but the space, fit for a terminal and meaning the same.

    What does not print stands within its strings only, and is escaped there.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(letter: str) -> str:
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[at : at + 4]}" for at in range(0, len(units), 4))
