"""Texts of anybody, made fit for one line of a terminal or a log."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str) -> str:
    """The text with line breaks, terminal codes and whatever else does not print spelt out."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
