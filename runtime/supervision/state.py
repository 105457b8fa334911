"""What a core keeps of each child, and its alarms."""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections.abc import Iterator

from attrs import define

from .messages import Status
from .outcome import ErrorInfo
from .spec import ChildSpec

__all__ = ["Alarm", "Alarms", "ChildState"]

_PRUNE_AT = 64


@define(eq=False)
class ChildState:
    """What the core knows of one child.

    Attributes:
        spec: its specification.
        order: its place among its siblings, from 0.
        status: what its task is doing.
        goal: whether it should run at all (a transient child that returned should not).
        bounce: it must be stopped, and then started again with its group.
        recalled: the gate that was shut while it ran. It must leave, also if that gate opens before its turn comes:
            what it holds of the far side is dead.
        told_held: its hold was reported, and has not ended.
        incarnation: how often it was started.
        restarts: how often it was started again after it ended by itself.
        crashes: how often in a row; forgotten after `Backoff.reset_after`.
        not_before: the earliest time of its next start.
        ready_at: when this incarnation became ready, or None.
        condemned: why it is being stopped although it did not end by itself (start limit, stall).
        cancelled: its cancel has gone out.
        stuck: it was cancelled and did not leave within its limit.
        last_error: what it last crashed with.
        start_cause: whose last event brings its next start about.
    """

    spec: ChildSpec
    order: int
    status: Status = Status.DOWN
    goal: bool = True
    bounce: bool = False
    recalled: str | None = None
    told_held: bool = False
    incarnation: int = 0
    restarts: int = 0
    crashes: int = 0
    not_before: float = -math.inf
    started_at: float = -math.inf
    ready_at: float | None = None
    condemned: Exception | None = None
    cancelled: bool = False
    stuck: bool = False
    last_error: ErrorInfo | None = None
    start_cause: str | None = None


class Alarm(enum.Enum):
    """What a timer is for."""

    WAKE = "wake"
    START_LIMIT = "start_limit"
    CANCEL = "cancel"
    STUCK = "stuck"
    PROGRESS = "progress"


_RINGS_IN = {
    Alarm.START_LIMIT: {Status.STARTING},
    Alarm.CANCEL: {Status.STOPPING},
    Alarm.STUCK: {Status.STOPPING},
    Alarm.PROGRESS: {Status.RUNNING},
    Alarm.WAKE: {Status.DOWN, Status.STOPPING},
}
"""The status without which an alarm says nothing any more."""

_Entry = tuple[float, int, Alarm, ChildState, int]


class Alarms:
    """The timers of one core, each for one incarnation of one child."""

    def __init__(self) -> None:
        self._heap: list[_Entry] = []
        self._count = itertools.count()
        self._prune_at = _PRUNE_AT

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, alarm: Alarm, child: ChildState) -> None:
        """Ring for `child`, as it is now, at `at`; never, if that is `math.inf`."""
        if at == math.inf:
            return
        if len(self._heap) >= self._prune_at:
            # A storm of restarts leaves behind alarms whose incarnation is long gone.
            self._heap = [each for each in self._heap if _is_live(each)]
            heapq.heapify(self._heap)
            self._prune_at = max(_PRUNE_AT, 2 * len(self._heap))
        heapq.heappush(self._heap, (at, next(self._count), alarm, child, child.incarnation))

    def next_at(self) -> float:
        """When the next one may ring; `math.inf` if none will."""
        return self._heap[0][0] if self._heap else math.inf

    def take(self, now: float) -> Iterator[tuple[Alarm, ChildState]]:
        """Those that ring at `now`, in order."""
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            if _is_live(entry):
                yield entry[2], entry[3]


def _is_live(entry: _Entry) -> bool:
    at, _, alarm, child, incarnation = entry
    if child.incarnation != incarnation or child.status not in _RINGS_IN[alarm]:
        return False
    return alarm is not Alarm.WAKE or at == child.not_before
