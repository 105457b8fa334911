"""What a supervisor decides: an event and the time in, actions out. No trio, no clock, no waiting.

Every child has a *want* (should it run now?) and a *status* (what is it doing?). Each event changes one of them for
some children; the core then hands out the stops and starts that bring status and want together, in the order that OTP
prescribes: stops one at a time from the last child to the first, starts from the first to the last.

A child is wanted when its `goal` is up, its group does not bounce it (stop, then start again together), and none of
the gates that it requires is shut. So an outage, a group restart and the final stop are one mechanism, and a restart
budget is touched in exactly one place: `_restart`.
"""

from __future__ import annotations

import enum
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define, field, frozen

from .budget import Budget
from .errors import InvalidSpec, RestartLimitExceeded, Stalled, StartFailed, StartTimeout
from .events import LifecycleKind, Report
from .outcome import ErrorInfo, Outcome
from .spec import ChildSpec, Intensity, Restart, Strategy

__all__ = [
    "Action",
    "Begin",
    "CancelChild",
    "CheckProgress",
    "ChildEnded",
    "ChildReady",
    "ChildState",
    "Core",
    "DrainChild",
    "Event",
    "Finish",
    "GateTurned",
    "Phase",
    "ProgressSeen",
    "Settled",
    "StartChild",
    "Status",
    "StopOrdered",
    "Tick",
]


class Phase(enum.Enum):
    """Where a supervisor is in its life."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    DONE = "done"


class Status(enum.Enum):
    """What a child's task is doing."""

    DOWN = "down"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


# Events: what the core is told. ------------------------------------------------------------------------------------


@frozen
class Begin:
    """Start the children, in order."""


@frozen
class ChildReady:
    """A child said that it is ready."""

    id: str
    incarnation: int


@frozen
class ChildEnded:
    """A child's task is gone."""

    id: str
    incarnation: int
    outcome: Outcome


@frozen
class GateTurned:
    """A gate was shut or opened; `settle` seconds must pass after the opening before anybody is started."""

    name: str
    is_open: bool
    cause: str = ""
    settle: float = 0.0


@frozen
class ProgressSeen:
    """The answer to `CheckProgress`: when the child last made progress."""

    id: str
    incarnation: int
    at: float


@frozen
class StopOrdered:
    """Stop all children and finish. `cut` leaves out the drains."""

    reason: str
    cut: bool = False


@frozen
class Tick:
    """A deadline may have passed."""


Event = Begin | ChildReady | ChildEnded | GateTurned | ProgressSeen | StopOrdered | Tick


# Actions: what the shell does. -------------------------------------------------------------------------------------


@frozen
class StartChild:
    """Start this incarnation of the child."""

    id: str
    incarnation: int


@frozen
class DrainChild:
    """Ask the child to finish what it has; the cancel comes later."""

    id: str
    incarnation: int


@frozen
class CancelChild:
    """Cancel the child."""

    id: str
    incarnation: int
    reason: str


@frozen
class CheckProgress:
    """Tell the core, by `ProgressSeen`, when the child last made progress."""

    id: str
    incarnation: int


@frozen
class Settled:
    """All children are up, or held: the supervisor itself is ready."""


@frozen
class Finish:
    """All children are gone; the supervisor ends, with `error` if there is one."""

    error: BaseException | None = None


Action = StartChild | DrainChild | CancelChild | CheckProgress | Settled | Finish | Report


class _Alarm(enum.Enum):
    """What a timer is for."""

    WAKE = "wake"
    START_LIMIT = "start_limit"
    CANCEL = "cancel"
    STUCK = "stuck"
    PROGRESS = "progress"


@define(eq=False)
class ChildState:
    """What the core knows of one child.

    Attributes:
        spec: its specification.
        order: its place among its siblings, from 0.
        status: what its task is doing.
        goal: whether it should run at all (a transient child that returned should not).
        bounce: it must be stopped, and then started again with its group.
        incarnation: how often it was started.
        restarts: how often it was started again after it ended by itself.
        crashes: how often in a row; forgotten after `Backoff.reset_after`.
        not_before: the earliest time of its next start.
        ready_at: when this incarnation became ready, or None.
        condemned: why it is being stopped although it did not end by itself (start limit, stall).
        stuck: it was cancelled and did not leave within its limit.
        last_error: what it last crashed with.
        start_cause: whose last event brings its next start about.
    """

    spec: ChildSpec
    order: int
    status: Status = Status.DOWN
    goal: bool = True
    bounce: bool = False
    incarnation: int = 0
    restarts: int = 0
    crashes: int = 0
    not_before: float = -math.inf
    started_at: float = -math.inf
    ready_at: float | None = None
    condemned: Exception | None = None
    stuck: bool = False
    last_error: ErrorInfo | None = None
    start_cause: str | None = None


@define(eq=False)
class Core:
    """The decisions of one supervisor.

    Args:
        specs: the children, in start order.
        strategy: which siblings a restart takes along.
        intensity: the restart budget.
        chance: random numbers in [0, 1) for the jitter; the caller owns the seed.
        shut: the gates that are shut at the beginning, with their causes.

    Raises:
        InvalidSpec: two children have the same id.
    """

    specs: Sequence[ChildSpec]
    strategy: Strategy
    intensity: Intensity
    chance: Callable[[], float]
    shut: dict[str, str] = field(factory=dict)
    phase: Phase = Phase.NEW
    children: dict[str, ChildState] = field(init=False)
    budget: Budget = field(init=False)
    _order: list[ChildState] = field(init=False)
    _cursor: int = 0
    _error: BaseException | None = None
    _stop_reason: str = ""
    _cut: bool = False
    _unsettled: set[str] = Factory(set)
    _alarms: list[tuple[float, int, _Alarm, str, int]] = Factory(list)
    _tick: itertools.count[int] = Factory(itertools.count)
    _out: list[Action] = Factory(list)

    def __attrs_post_init__(self) -> None:
        self.budget = Budget(self.intensity)
        self.children = {}
        for order, spec in enumerate(self.specs):
            if spec.id in self.children:
                raise InvalidSpec(f"two children have the id {spec.id!r}")
            self.children[spec.id] = ChildState(spec, order)
        self._order = list(self.children.values())

    # What the shell calls -------------------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event at `now` and return what is to be done, in order."""
        match event:
            case Begin():
                self.phase = Phase.STARTING
            case ChildReady(id=name, incarnation=incarnation):
                self._ready(name, incarnation, now)
            case ChildEnded(id=name, incarnation=incarnation, outcome=outcome):
                self._ended(name, incarnation, outcome, now)
            case GateTurned():
                self._turned(event, now)
            case ProgressSeen():
                self._progress(event, now)
            case StopOrdered():
                self._stop_all(event.reason, cut=event.cut)
            case Tick():
                self._ring(now)
        self._settle(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """When a `Tick` is due; `math.inf` if never."""
        return self._alarms[0][0] if self._alarms else math.inf

    def held_by(self, child: ChildState) -> str | None:
        """The first shut gate that `child` requires, or None."""
        return next((gate for gate in child.spec.requires if gate in self.shut), None)

    def wants(self, child: ChildState) -> bool:
        """Whether `child` should be running now."""
        return (
            child.goal
            and not child.bounce
            and self.phase not in (Phase.STOPPING, Phase.DONE)
            and self.held_by(child) is None
        )

    # Events ---------------------------------------------------------------------------------------------------------

    def _current(self, name: str, incarnation: int) -> ChildState | None:
        child = self.children.get(name)
        return child if child is not None and child.incarnation == incarnation else None

    def _ready(self, name: str, incarnation: int, now: float) -> None:
        child = self._current(name, incarnation)
        if child is None or child.status is not Status.STARTING:
            return
        child.status, child.ready_at = Status.RUNNING, now
        if child.spec.progress_within is not None:
            self._alarm(now + child.spec.progress_within, _Alarm.PROGRESS, child)
        self._report(LifecycleKind.CHILD_READY, child, seconds=now - child.started_at)
        self._touch(child)

    def _ended(self, name: str, incarnation: int, outcome: Outcome, now: float) -> None:
        child = self._current(name, incarnation)
        if child is None or child.status is Status.DOWN:
            return
        was, condemned, bounced = child.status, child.condemned, child.bounce
        child.status, child.condemned, child.stuck, child.bounce = Status.DOWN, None, False, False
        self._touch(child)
        if outcome.fatal:
            self._report_end(LifecycleKind.CHILD_CRASHED, child, outcome.error, reason="it ends the process")
            self._give_up(outcome.error)
        elif condemned is not None:
            self._crashed(child, condemned, was, now)
        elif was is Status.STOPPING:
            self._report_stop(child, outcome.error)
            if bounced and child.spec.restart is Restart.TEMPORARY:
                self._remove(child)
        elif outcome.error is not None:
            self._crashed(child, outcome.error, was, now)
        else:
            self._returned(child, now)

    def _returned(self, child: ChildState, now: float) -> None:
        self._report_end(LifecycleKind.CHILD_RETURNED, child, None)
        match child.spec.restart:
            case Restart.PERMANENT:
                self._restart(child, None, now)
            case Restart.TRANSIENT:
                child.goal = False
                self._touch(child)
            case Restart.TEMPORARY:
                self._remove(child)

    def _crashed(self, child: ChildState, error: BaseException, was: Status, now: float) -> None:
        if self.held_by(child) is not None:
            # The outage took it before its turn to be stopped had come: one cause, and no crash of its own.
            self._report_stop(child, error)
            return
        self._report_end(LifecycleKind.CHILD_CRASHED, child, error)
        child.last_error = ErrorInfo.of(error)
        if self.phase is Phase.STOPPING:
            return
        if child.spec.restart is Restart.TEMPORARY:
            self._remove(child)
        elif self.phase is Phase.STARTING and was is not Status.RUNNING and child.incarnation == 1:
            failed = StartFailed(f"{child.spec.id} could not be started: {error}")
            failed.__cause__ = error
            self._give_up(failed)
        else:
            self._restart(child, error, now)

    def _restart(self, child: ChildState, error: BaseException | None, now: float) -> None:
        """Enter one restart in the budget, and set the child, and its group, up for it."""
        backoff = child.spec.backoff
        if child.ready_at is not None and now - child.ready_at >= backoff.reset_after:
            child.crashes = 0
        child.crashes += 1
        child.restarts += 1
        child.ready_at = None
        if not self.budget.spend(now):
            limit = f"more than {self.intensity.restarts} restarts in {self.intensity.within:g} s"
            last = f"{child.spec.id}: {ErrorInfo.of(error) if error else 'returned'}"
            exceeded = RestartLimitExceeded(f"{limit}; the last was of {last}")
            exceeded.__cause__ = error
            blame = f"child:{child.spec.id}"
            self._report(LifecycleKind.SUPERVISOR_GAVE_UP, child, reason=str(exceeded), cause=blame)
            self._give_up(exceeded)
            return
        delay = backoff.delay(child.crashes, self.chance())
        group = self._group(child)
        for member in group:
            member.not_before = max(member.not_before, now + delay)
            member.start_cause = f"child:{child.spec.id}"
            if member is not child:
                member.goal = member.goal or member.spec.restart is not Restart.TEMPORARY
                member.bounce = member.status is not Status.DOWN
            self._touch(member)
        which = f"restart {child.restarts}, {self.strategy.value}"
        self._report(LifecycleKind.CHILD_BACKOFF, child, seconds=delay, cause=f"child:{child.spec.id}", reason=which)
        self._alarm(now + delay, _Alarm.WAKE, child)

    def _group(self, child: ChildState) -> list[ChildState]:
        """The children that a restart of `child` stops and starts, itself included, in start order."""
        match self.strategy:
            case Strategy.ONE_FOR_ONE:
                return [child]
            case Strategy.ONE_FOR_ALL:
                return [each for each in self._order if each.order < self._cursor or each is child]
            case Strategy.REST_FOR_ONE:
                return [each for each in self._order if child.order <= each.order < max(self._cursor, child.order + 1)]

    def _turned(self, event: GateTurned, now: float) -> None:
        if event.is_open:
            self.shut.pop(event.name, None)
            self._each_requiring(event.name, lambda child: self._release(child, event, now))
        elif event.name not in self.shut:
            free = [child for child in self._order if self.held_by(child) is None]
            self.shut[event.name] = event.cause
            for child in free:
                if event.name in child.spec.requires and child.goal and child.status is not Status.STOPPING:
                    self._hold(child, event.name)
            self._each_requiring(event.name, self._touch)

    def _each_requiring(self, gate: str, act: Callable[[ChildState], None]) -> None:
        for child in self._order:
            if gate in child.spec.requires:
                act(child)

    def _release(self, child: ChildState, event: GateTurned, now: float) -> None:
        # The cause is gone: whatever backoff had built up says nothing any more.
        child.crashes, child.not_before = 0, now + event.settle
        child.start_cause = f"gate:{event.name}"
        self._alarm(child.not_before, _Alarm.WAKE, child)
        self._touch(child)

    def _hold(self, child: ChildState, gate: str) -> None:
        if self.phase is Phase.STOPPING:
            return
        child.ready_at = None
        self._report(LifecycleKind.CHILD_HELD, child, reason=f"{gate}: {self.shut[gate]}", cause=f"gate:{gate}")
        self._touch(child)

    def _progress(self, event: ProgressSeen, now: float) -> None:
        child = self._current(event.id, event.incarnation)
        if child is None or child.status is not Status.RUNNING or child.spec.progress_within is None:
            return
        due = event.at + child.spec.progress_within
        if due > now:
            self._alarm(due, _Alarm.PROGRESS, child)
            return
        self._condemn(child, Stalled(f"no progress for {now - event.at:.3g} s"), now)

    def _condemn(self, child: ChildState, error: Exception, now: float) -> None:
        """Cancel a child that is at fault; when it is gone it counts as crashed with `error`."""
        child.condemned = error
        self._order_stop(child, str(error), now, drain=False)

    def _stop_all(self, reason: str, *, cut: bool) -> None:
        if self.phase is Phase.DONE:
            return
        if cut and not self._cut and self.phase is Phase.STOPPING:
            self._cut = True
            for child in self._order:
                if child.status is Status.STOPPING:
                    self._emit(CancelChild(child.spec.id, child.incarnation, reason))
        self._cut = self._cut or cut
        if self.phase is not Phase.STOPPING:
            self._stop_reason = reason
            self.phase = Phase.STOPPING
            self._cursor = len(self._order) - 1

    def _give_up(self, error: BaseException | None) -> None:
        if self._error is None:
            self._error = error
        self._stop_all(str(error), cut=False)

    # Timers ---------------------------------------------------------------------------------------------------------

    def _alarm(self, at: float, alarm: _Alarm, child: ChildState) -> None:
        if at < math.inf:
            heapq.heappush(self._alarms, (at, next(self._tick), alarm, child.spec.id, child.incarnation))

    def _ring(self, now: float) -> None:
        while self._alarms and self._alarms[0][0] <= now:
            _, _, alarm, name, incarnation = heapq.heappop(self._alarms)
            child = self._current(name, incarnation)
            if child is not None:
                self._rung(alarm, child, now)

    def _rung(self, alarm: _Alarm, child: ChildState, now: float) -> None:
        name, incarnation = child.spec.id, child.incarnation
        if alarm is _Alarm.START_LIMIT and child.status is Status.STARTING:
            self._condemn(child, StartTimeout(f"{name} was not ready within {child.spec.start_within:g} s"), now)
        elif alarm is _Alarm.CANCEL and child.status is Status.STOPPING:
            self._emit(CancelChild(name, incarnation, f"not finished after {child.spec.drain_within:g} s of drain"))
        elif alarm is _Alarm.STUCK and child.status is Status.STOPPING:
            child.stuck = True
            self._report(LifecycleKind.CHILD_STUCK, child, seconds=child.spec.stop_within)
        elif alarm is _Alarm.PROGRESS and child.status is Status.RUNNING:
            self._emit(CheckProgress(name, incarnation))

    # Reconciling: bring status and want together ---------------------------------------------------------------------

    def _touch(self, child: ChildState) -> None:
        wanted = self.wants(child)
        settled = child.status is (Status.RUNNING if wanted else Status.DOWN)
        (self._unsettled.discard if settled else self._unsettled.add)(child.spec.id)

    def _settle(self, now: float) -> None:
        if self.phase is Phase.STOPPING:
            self._advance_stop(now)
            return
        if self.phase is Phase.STARTING:
            self._advance_start(now)
        if self._unsettled:
            self._reconcile(now)

    def _advance_start(self, now: float) -> None:
        """The first start: one child after the other; the next when the one before is ready, or held."""
        while self._cursor < len(self._order):
            child = self._order[self._cursor]
            gate = self.held_by(child)
            if child.status is Status.STARTING or child.status is Status.STOPPING:
                return
            if child.status is Status.DOWN and child.goal and gate is None and child.incarnation == 0:
                if now >= child.not_before:
                    self._start(child, now)
                return
            if gate is not None and child.incarnation == 0:
                self._hold(child, gate)
            self._cursor += 1
        self.phase = Phase.RUNNING
        self._emit(Settled())

    def _advance_stop(self, now: float) -> None:
        """The last stop: one child after the other, from the last to the first; a stuck one is passed by."""
        while self._cursor >= 0:
            child = self._order[self._cursor]
            if child.status in (Status.STARTING, Status.RUNNING):
                self._order_stop(child, self._stop_reason, now, drain=not self._cut)
                return
            if child.status is Status.STOPPING and not child.stuck:
                return
            self._cursor -= 1
        if all(child.status is Status.DOWN for child in self._order):
            self.phase = Phase.DONE
            self._emit(Finish(self._error))

    def _reconcile(self, now: float) -> None:
        begun = self.phase is Phase.RUNNING
        restless = sorted((self.children[name] for name in self._unsettled), key=lambda child: child.order)
        leaving = any(child.status is Status.STOPPING and not child.stuck for child in restless)
        if not leaving:
            for child in reversed(restless):
                if child.status in (Status.STARTING, Status.RUNNING) and not self.wants(child):
                    self._order_stop(child, self._why_unwanted(child), now, drain=not self.held_by(child))
                    leaving = True
                    break
        for child in restless:
            if not begun and child.order >= self._cursor:
                break
            if self._may_start(child, leaving, now):
                self._start(child, now)

    def _may_start(self, child: ChildState, leaving: bool, now: float) -> bool:
        if child.status is not Status.DOWN or not self.wants(child) or now < child.not_before:
            return False
        if self.strategy is Strategy.ONE_FOR_ONE:
            return True
        # In a group the order holds: nobody leaves any more, and whoever stands before is up (or held, or over).
        return not leaving and all(
            before.status is Status.RUNNING or not self.wants(before) for before in self._order[: child.order]
        )

    def _why_unwanted(self, child: ChildState) -> str:
        gate = self.held_by(child)
        if gate is not None:
            return f"held: {gate}: {self.shut[gate]}"
        return f"{self.strategy.value}: stopped with its group"

    def _start(self, child: ChildState, now: float) -> None:
        child.incarnation += 1
        child.status, child.started_at, child.ready_at = Status.STARTING, now, None
        self._touch(child)
        self._alarm(now + child.spec.start_within, _Alarm.START_LIMIT, child)
        self._report(LifecycleKind.CHILD_STARTING, child, cause=child.start_cause)
        self._emit(StartChild(child.spec.id, child.incarnation))

    def _order_stop(self, child: ChildState, reason: str, now: float, *, drain: bool) -> None:
        name, incarnation = child.spec.id, child.incarnation
        grace = child.spec.drain_within if drain and child.status is Status.RUNNING else 0.0
        child.status = Status.STOPPING
        self._touch(child)
        self._report(LifecycleKind.CHILD_STOPPING, child, reason=reason, seconds=grace or None)
        if grace:
            self._emit(DrainChild(name, incarnation))
            self._alarm(now + grace, _Alarm.CANCEL, child)
        else:
            self._emit(CancelChild(name, incarnation, reason))
        self._alarm(now + grace + child.spec.stop_within, _Alarm.STUCK, child)

    def _remove(self, child: ChildState) -> None:
        """A temporary child is over: it keeps its place in the order, and is never started again."""
        child.goal = False
        self._touch(child)

    # Reports --------------------------------------------------------------------------------------------------------

    def _emit(self, action: Action) -> None:
        self._out.append(action)

    def _report(self, kind: LifecycleKind, child: ChildState, **facts: Any) -> None:
        self._emit(Report(kind=kind, subject=child.spec.id, incarnation=child.incarnation, **facts))

    def _report_end(self, kind: LifecycleKind, child: ChildState, error: BaseException | None, **facts: Any) -> None:
        self._report(kind, child, error=None if error is None else ErrorInfo.of(error), **facts)

    def _report_stop(self, child: ChildState, error: BaseException | None) -> None:
        gate = self.held_by(child)
        self._report_end(LifecycleKind.CHILD_STOPPED, child, error, cause=f"gate:{gate}" if gate else None)
