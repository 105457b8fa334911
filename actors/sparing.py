"""Counts what happens, and says when to tell of it: what happens a thousand times is not as many lines of the log."""

from __future__ import annotations

import math
from typing import Final

import trio

__all__ = ["Sparing"]

TELL_EVERY: Final = 10.0
"""Seconds between two lines about the same, at least."""


class Sparing:
    """See the module.

    Attributes:
        total: how often it has happened.
    """

    def __init__(self) -> None:
        self.total = 0
        self._told = 0
        self._at = -math.inf

    def count(self, number: int = 1) -> int:
        """It has happened (so often). Returns how often since it was told last, or 0 if it is not to be told now."""
        self.total += number
        now = trio.current_time()
        if now < self._at + TELL_EVERY:
            return 0
        self._at, since = now, self.total - self._told
        self._told = self.total
        return since
