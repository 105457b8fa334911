"""The wall clock of virtual time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import trio
from trio.testing import MockClock

__all__ = ["VirtualWall"]


class VirtualWall:
    """A wall clock that moves with trio's `MockClock`; called, it gives the date.

    For whatever takes a wall clock: ``Gates(Journal(VirtualWall()))`` dates the events of a tree so.

    Args:
        epoch: the date at which the clock of the run begins; aware. Default: the beginning of 2026, UTC, as the
            in-process Redis has it.

    Raises:
        ValueError: `epoch` has no time zone.
    """

    def __init__(self, epoch: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        if epoch.tzinfo is None:
            raise ValueError(f"the epoch of a virtual wall clock must have a time zone; {epoch!r} has none")
        self.epoch = epoch.astimezone(UTC)

    def __call__(self) -> datetime:
        """The date now, aware, UTC; `epoch` outside of a run, where gates and trees are often built.

        Raises:
            RuntimeError: the run has another clock than a MockClock.
        """
        try:
            clock = trio.lowlevel.current_clock()
        except RuntimeError:
            return self.epoch
        if not isinstance(clock, MockClock):
            raise RuntimeError(f"a virtual wall clock needs trio's MockClock; this run has {clock!r}")
        return self.epoch + timedelta(seconds=clock.current_time())
