"""What a core keeps of each child, and its alarms."""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections.abc import Iterator
from typing import Any

from attrs import define, field

from .messages import Status
from .nested import Nested
from .outcome import ErrorInfo
from .policy import Tallies
from .spec import ChildSpec, Restart

__all__ = ["Alarm", "Alarms", "ChildState"]

_PRUNE_AT = 64


@define(eq=False)
class ChildState:
    """What the core knows of one child.

    Attributes:
        spec: its specification.
        order: its place among its siblings: they start by rising, and stop by falling numbers.
        args: what its body gets beside its `Child`, in a pool.
        status: what its task is doing.
        begun: its turn has come: it takes part in its group.
        goal: whether it should run at all (a transient child that returned should not).
        gone: its specification was deleted: what still comes of it concerns nobody.
        bounce: it must be stopped, and then started again with its group.
        recalled: the gate that was shut while it ran. It must leave, also if that gate opens before its turn comes:
            what it holds of the far side is dead.
        held_since: when its hold was reported, or None while there is none.
        kept_since: since when gates have kept it from running; an opening that is too short for a start ends it not.
        incarnation: how often it was started.
        was_ready: the last incarnation that was ready; 0 when none was.
        restarts: how often it was started again after it ended by itself.
        failing: it ended by itself and was not ready since.
        tallies: its crashes in a row, by the rule of its policy.
        not_before: the earliest time of its next start.
        waited: that time was in the future when it was set: it returns from a pause, and takes its turn.
        ready_at: when this incarnation became ready, or None.
        condemned: why it is being stopped although it did not end by itself (start limit, stall).
        cancelled: its cancel has gone out.
        stuck: it was cancelled and did not leave within its limit.
        last_error: what it last crashed with.
        start_cause: whose last event brings its next start about.
        starter: the ticket of the call that waits for it to be up.
        is_new: that call brought it: if it does not come up, its specification goes.
        leavers: the tickets of the calls that wait for it to leave.
    """

    spec: ChildSpec
    order: int
    args: tuple[Any, ...] = ()
    status: Status = Status.DOWN
    begun: bool = False
    goal: bool = True
    gone: bool = False
    bounce: bool = False
    recalled: str | None = None
    held_since: float | None = None
    kept_since: float | None = None
    incarnation: int = 0
    was_ready: int = 0
    restarts: int = 0
    failing: bool = False
    tallies: Tallies = field(factory=Tallies)
    not_before: float = -math.inf
    waited: bool = False
    started_at: float = -math.inf
    ready_at: float | None = None
    condemned: Exception | None = None
    cancelled: bool = False
    stuck: bool = False
    last_error: ErrorInfo | None = None
    start_cause: str | None = None
    starter: object | None = None
    is_new: bool = False
    leavers: list[object] = field(factory=list)

    @property
    def is_nested(self) -> bool:
        """Whether it is a supervisor."""
        return isinstance(self.spec.body, Nested)

    @property
    def is_up(self) -> bool:
        """Whether its task works, or is about to."""
        return self.status is Status.STARTING or self.status is Status.RUNNING

    @property
    def is_temporary(self) -> bool:
        """Whether its specification goes with its end."""
        return self.spec.restart is Restart.TEMPORARY


class Alarm(enum.Enum):
    """What a timer is for."""

    WAKE = "wake"
    START_LIMIT = "start_limit"
    CANCEL = "cancel"
    STUCK = "stuck"
    PROGRESS = "progress"
    HOLD_LIMIT = "hold_limit"
    TURN = "turn"


_RINGS_IN = {
    Alarm.START_LIMIT: Status.STARTING,
    Alarm.CANCEL: Status.STOPPING,
    Alarm.STUCK: Status.STOPPING,
    Alarm.PROGRESS: Status.RUNNING,
}
"""The status in which an alarm is set, and without which it says nothing any more. The others are for what comes later:
a child that is yet to be stopped may have the time of its next start set already, and the limit of its hold."""

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

    def next(self) -> tuple[float, int] | None:
        """When the next one rings, and its number, which no other one for the same time has; None if none will."""
        while self._heap and not _is_live(self._heap[0]):
            heapq.heappop(self._heap)
        return self._heap[0][:2] if self._heap else None

    def take(self, now: float) -> Iterator[tuple[Alarm, ChildState]]:
        """Those that ring at `now`, in order. One that is set meanwhile rings the next time."""
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap))
        for entry in due:
            if _is_live(entry):
                yield entry[2], entry[3]


def _is_live(entry: _Entry) -> bool:
    at, _, alarm, child, incarnation = entry
    if alarm is Alarm.TURN:
        return True  # it is for all who wait for their turn
    if child.gone or child.incarnation != incarnation or child.status is not _RINGS_IN.get(alarm, child.status):
        return False
    if alarm is Alarm.HOLD_LIMIT:
        return child.goal and child.kept_since is not None and at == child.kept_since + child.spec.hold_within
    return alarm is not Alarm.WAKE or at == child.not_before
