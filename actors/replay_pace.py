"""The pace of a replay: when its next entries are due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attrs import define

if TYPE_CHECKING:
    from .replay_range import RangeEntry
    from .replay_table import Replay

__all__ = ["Pace"]


@define
class Pace:
    """When the next entries are due.

    Attributes:
        rate: events a second; None: at once.
        original: with the pauses between the entries.
        not_before: `trio.current_time()` of the next event at `rate`.
        began: the first entry's time, and ours when it was due; None before.
    """

    rate: float | None
    original: bool
    not_before: float = -math.inf
    began: tuple[int, float] | None = None

    @classmethod
    def of(cls, replay: Replay) -> Pace:
        """That of an order, which is about to begin, or to go on."""
        return cls(replay.rate, replay.original_pace)

    def due(self, entries: Sequence[RangeEntry], now: float) -> Sequence[RangeEntry]:
        """Of the next entries, in order, those whose time has come."""
        if self.rate is not None:
            # What is due within a second goes together: a transaction for each event would be the limit.
            return entries[: max(1, int(self.rate))] if now >= self.not_before else []
        if self.original and entries:
            if self.began is None:
                self.began = (entries[0].milliseconds, now)
            return [entry for entry in entries if self._at(entry) <= now]
        return entries

    def passed(self, entries: Sequence[RangeEntry], now: float) -> None:
        """These were replayed."""
        if self.rate is not None:
            self.not_before = max(self.not_before, now) + len(entries) / self.rate

    def wait(self, left: Sequence[RangeEntry], now: float) -> float:
        """Seconds until the next entries are due, of which `left` are known."""
        if self.rate is not None:
            return max(0.0, self.not_before - now)
        if self.original and left:
            return max(0.0, self._at(left[0]) - now)
        return 0.0

    def _at(self, entry: RangeEntry) -> float:
        assert self.began is not None  # noqa: S101 - set with the first entries
        first, then = self.began
        return then + (entry.milliseconds - first) / 1000
