"""What a supervisor decides: an event and the time in, actions out. No trio, no clock, no waiting.

Every child has a *want* (should it run now?) and a *status* (what is it doing?). Each event changes one of them for
some children; the core then hands out the stops and starts that bring status and want together, in the order that OTP
prescribes: stops one at a time from the last child to the first, starts from the first to the last.

A child is wanted when its `goal` is up, its group does not bounce it (stop, then start again together), none of the
gates that it requires is shut, and none was shut since it was started. So an outage, a group restart and the final
stop are one mechanism, and a restart budget is touched in exactly one place: `_restart`.

Whoever is to be stopped anyway and ends before its turn has come costs no restart: one cause, one count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from attrs import Factory, define, field

from .budget import Budget
from .errors import InvalidSpec, RestartLimitExceeded, Stalled, StartFailed, StartTimeout
from .events import LifecycleKind, Report
from .messages import (
    Action,
    Begin,
    CancelChild,
    CheckProgress,
    ChildEnded,
    ChildReady,
    ChildStuck,
    DrainChild,
    Event,
    Finish,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    Settled,
    StartChild,
    Status,
    StopOrdered,
    Stuck,
    Tick,
)
from .outcome import ErrorInfo, Outcome, text_of
from .spec import ChildSpec, Intensity, Restart, Strategy
from .state import Alarm, Alarms, ChildState

__all__ = ["Core"]


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
    _grace: Grace = Grace.DRAIN
    _told_stuck: bool = False
    _unsettled: set[str] = Factory(set)
    _alarms: Alarms = Factory(Alarms)
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
                if self.phase is Phase.NEW:
                    self.phase = Phase.STARTING
            case ChildReady(id=name, incarnation=incarnation):
                self._ready(name, incarnation, now)
            case ChildEnded(id=name, incarnation=incarnation, outcome=outcome):
                self._ended(name, incarnation, outcome, now)
            case ChildStuck(id=name, incarnation=incarnation):
                self._stuck(name, incarnation)
            case GateTurned():
                self._turned(event, now)
            case ProgressSeen():
                self._progress(event, now)
            case StopOrdered():
                self._stop_all(event.reason, event.grace, now)
            case Tick():
                for alarm, child in self._alarms.take(now):
                    self._rung(alarm, child, now)
        self._settle(now)
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """When a `Tick` is due; infinite if never."""
        return self._alarms.next_at()

    def held_by(self, child: ChildState) -> str | None:
        """The first shut gate that `child` requires, or None."""
        return next((gate for gate in child.spec.requires if gate in self.shut), None)

    def wants(self, child: ChildState) -> bool:
        """Whether `child` should be running now."""
        return (
            child.goal
            and not child.bounce
            and child.recalled is None
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
            self._alarms.set(now + child.spec.progress_within, Alarm.PROGRESS, child)
        self._report(LifecycleKind.CHILD_READY, child, seconds=now - child.started_at)
        self._touch(child)

    def _ended(self, name: str, incarnation: int, outcome: Outcome, now: float) -> None:
        child = self._current(name, incarnation)
        if child is None or child.status is Status.DOWN:
            return
        condemned, bounced, gate = child.condemned, child.bounce, child.recalled or self.held_by(child)
        by_itself = child.status is not Status.STOPPING or outcome.unasked
        child.status, child.condemned, child.cancelled, child.stuck = Status.DOWN, None, False, False
        child.bounce, child.recalled = False, None
        self._touch(child)
        error = outcome.error
        if condemned is not None:
            condemned.__cause__, error = error, condemned
        if outcome.fatal and outcome.error is not None:
            self._report_end(LifecycleKind.CHILD_CRASHED, child, outcome.error, reason="it ends the process")
            self._give_up(outcome.error, now)
        elif not by_itself and condemned is None:
            self._report_stop(child, error, gate)
            if bounced and child.spec.restart is Restart.TEMPORARY:
                self._remove(child)
        elif error is not None:
            self._crashed(child, error, now, bounced, gate)
        else:
            self._returned(child, now, bounced, gate)
        self._tell_held(child)

    def _returned(self, child: ChildState, now: float, bounced: bool, gate: str | None) -> None:
        if gate is not None and child.spec.restart is Restart.PERMANENT:
            self._report_stop(child, None, gate)
            return
        self._report_end(LifecycleKind.CHILD_RETURNED, child, None)
        if self.phase is Phase.STOPPING:
            return
        if child.spec.restart is Restart.TEMPORARY or (child.spec.restart is Restart.TRANSIENT and not bounced):
            self._remove(child)
        elif bounced:
            return  # its group starts it again
        elif self._is_first_start(child):
            self._fail_start(child, "it returned before it was ready", None, now)
        else:
            self._restart(child, None, now)

    def _crashed(self, child: ChildState, error: BaseException, now: float, bounced: bool, gate: str | None) -> None:
        if gate is not None:
            # The outage took it before its turn to be stopped had come: one cause, and no crash of its own.
            self._report_stop(child, error, gate)
            return
        self._report_end(LifecycleKind.CHILD_CRASHED, child, error)
        child.last_error = ErrorInfo.of(error)
        if self.phase is Phase.STOPPING:
            return
        if self._is_first_start(child) and not bounced:
            self._fail_start(child, text_of(error), error, now)
        elif child.spec.restart is Restart.TEMPORARY:
            self._remove(child)
        elif not bounced:
            self._restart(child, error, now)

    def _is_first_start(self, child: ChildState) -> bool:
        """Whether the supervisor is starting and it is this child's turn: it was not ready yet."""
        return self.phase is Phase.STARTING and child.order == self._cursor

    def _fail_start(self, child: ChildState, why: str, error: BaseException | None, now: float) -> None:
        failed = StartFailed(f"{child.spec.id} could not be started: {why}")
        failed.__cause__ = error
        self._give_up(failed, now)

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
            last = f"{child.spec.id}: {ErrorInfo.of(error) if error is not None else 'returned'}"
            exceeded = RestartLimitExceeded(f"{limit}; the last was of {last}")
            exceeded.__cause__ = error
            blame = f"child:{child.spec.id}"
            self._report(LifecycleKind.SUPERVISOR_GAVE_UP, child, reason=str(exceeded), cause=blame)
            self._give_up(exceeded, now)
            return
        delay = backoff.delay(child.crashes, self.chance())
        group = self._group(child)
        for member in group:
            member.not_before = max(member.not_before, now + delay)
            member.start_cause = f"child:{child.spec.id}"
            if member is not child:
                member.goal = member.goal or member.spec.restart is not Restart.TEMPORARY
                member.bounce = member.status is not Status.DOWN
            self._alarms.set(member.not_before, Alarm.WAKE, member)
            self._touch(member)
            self._tell_held(member)
        which = f"restart {child.restarts}, {self.strategy.value}"
        self._report(LifecycleKind.CHILD_BACKOFF, child, seconds=delay, cause=f"child:{child.spec.id}", reason=which)

    def _group(self, child: ChildState) -> list[ChildState]:
        """The children that a restart of `child` stops and starts, itself included, in start order."""
        if self.strategy is Strategy.ONE_FOR_ONE:
            return [child]
        # While the supervisor is starting, those whose turn has not come are no part of it yet.
        begun = [each for each in self._order if each.order < self._cursor or each.status is not Status.DOWN]
        first = child.order if self.strategy is Strategy.REST_FOR_ONE else 0
        return sorted({child, *(each for each in begun if each.order >= first)}, key=lambda each: each.order)

    def _turned(self, event: GateTurned, now: float) -> None:
        known = event.name in self.shut
        if not event.is_open:
            self.shut[event.name] = event.cause
            if not known:
                self._each_requiring(event.name, lambda child: self._recall(child, event.name))
        elif known:
            del self.shut[event.name]
            self._each_requiring(event.name, lambda child: self._release(child, event, now))

    def _each_requiring(self, gate: str, act: Callable[[ChildState], None]) -> None:
        for child in self._order:
            if gate in child.spec.requires:
                act(child)

    def _recall(self, child: ChildState, gate: str) -> None:
        if child.status in (Status.STARTING, Status.RUNNING):
            child.recalled = child.recalled or gate
        self._touch(child)
        if child.status is not Status.STOPPING and (child.incarnation or child.order < self._cursor):
            self._tell_held(child)

    def _release(self, child: ChildState, event: GateTurned, now: float) -> None:
        # The cause is gone: whatever backoff had built up says nothing any more.
        child.crashes, child.not_before = 0, now + event.settle
        child.start_cause = f"gate:{event.name}"
        child.told_held = child.told_held and self.held_by(child) is not None
        self._alarms.set(child.not_before, Alarm.WAKE, child)
        self._touch(child)

    def _tell_held(self, child: ChildState) -> None:
        """Report that it is held, once for each hold."""
        gate = self.held_by(child)
        if gate is None or child.told_held or not child.goal or self.phase in (Phase.STOPPING, Phase.DONE):
            return
        child.told_held = True
        self._report(LifecycleKind.CHILD_HELD, child, reason=f"{gate}: {self.shut[gate]}", cause=f"gate:{gate}")

    def _stuck(self, name: str, incarnation: int) -> None:
        child = self._current(name, incarnation)
        if child is not None and child.status is Status.STOPPING and not child.stuck:
            child.stuck = True
            self._report(LifecycleKind.CHILD_STUCK, child, reason="somebody below it does not leave")

    def _progress(self, event: ProgressSeen, now: float) -> None:
        child = self._current(event.id, event.incarnation)
        if child is None or child.status is not Status.RUNNING or child.spec.progress_within is None:
            return
        due = event.at + child.spec.progress_within
        if due > now:
            self._alarms.set(due, Alarm.PROGRESS, child)
        else:
            self._condemn(child, Stalled(f"no progress for {now - event.at:.3g} s"), now)

    def _condemn(self, child: ChildState, error: Exception, now: float) -> None:
        """Cancel a child that is at fault; when it is gone it counts as crashed with `error`."""
        if self.wants(child):  # else it leaves anyway, when its turn comes
            child.condemned = error
            self._order_stop(child, str(error), now, drain=False)

    def _stop_all(self, reason: str, grace: Grace, now: float) -> None:
        if self.phase is Phase.DONE:
            return
        tightened, self._grace = grace > self._grace, max(grace, self._grace)
        if self.phase is not Phase.STOPPING:
            self._stop_reason = reason
            self.phase = Phase.STOPPING
            self._cursor = len(self._order) - 1
        for child in reversed(self._order):
            if tightened and child.status is Status.STOPPING and (grace is Grace.CUT or not child.cancelled):
                self._cancel(child, reason, now)

    def _give_up(self, error: BaseException, now: float) -> None:
        # The last one counts: only what ends the process comes after another, and that is nobody's to hold back.
        self._error = error
        self._stop_all(text_of(error), Grace.DRAIN, now)

    def _rung(self, alarm: Alarm, child: ChildState, now: float) -> None:
        name, incarnation = child.spec.id, child.incarnation
        match alarm:
            case Alarm.START_LIMIT:
                self._condemn(child, StartTimeout(f"{name} was not ready within {child.spec.start_within:g} s"), now)
            case Alarm.CANCEL if not child.cancelled:
                self._cancel(child, f"not finished after {child.spec.drain_within:g} s of drain", now)
            case Alarm.STUCK if not child.stuck:
                child.stuck = True
                self._report(LifecycleKind.CHILD_STUCK, child, seconds=child.spec.stop_within)
            case Alarm.PROGRESS:
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
        """The first start: one child after the other; the next when the one before is ready, or held, or over."""
        while self._cursor < len(self._order):
            child = self._order[self._cursor]
            if self.wants(child):
                if child.status is not Status.RUNNING:
                    if self._may_start(child, self._is_anybody_leaving(), now):
                        self._start(child, now)
                    return
            elif child.status is not Status.DOWN and not child.stuck:
                return
            else:
                self._tell_held(child)
            self._cursor += 1
        self.phase = Phase.RUNNING
        self._emit(Settled())

    def _advance_stop(self, now: float) -> None:
        """The last stop: one child after the other, from the last to the first; a stuck one is passed by."""
        while self._cursor >= 0:
            child = self._order[self._cursor]
            if child.status in (Status.STARTING, Status.RUNNING):
                self._order_stop(child, self._stop_reason, now, drain=self._grace is Grace.DRAIN)
                return
            if child.status is Status.STOPPING and not child.stuck:
                return
            self._cursor -= 1
        if all(child.status is Status.DOWN for child in self._order):
            self.phase = Phase.DONE
            error, self._error = self._error, None
            self._emit(Finish(error))
        elif not self._told_stuck:
            self._told_stuck = True
            self._emit(Stuck())

    def _reconcile(self, now: float) -> None:
        begun = self.phase is Phase.RUNNING
        restless = sorted((self.children[name] for name in self._unsettled), key=lambda child: child.order)
        leaving = self._is_anybody_leaving()
        if not leaving:
            for child in reversed(restless):
                if child.status in (Status.STARTING, Status.RUNNING) and not self.wants(child):
                    self._stop_unwanted(child, now)
                    leaving = True
                    break
        for child in restless:
            if not begun and child.order >= self._cursor:
                break
            if self._may_start(child, leaving, now):
                self._start(child, now)

    def _is_anybody_leaving(self) -> bool:
        unsettled = (self.children[name] for name in self._unsettled)
        return any(child.status is Status.STOPPING and not child.stuck for child in unsettled)

    def _may_start(self, child: ChildState, leaving: bool, now: float) -> bool:
        if child.status is not Status.DOWN or not self.wants(child) or now < child.not_before:
            return False
        if self.strategy is Strategy.ONE_FOR_ONE:
            return True
        # In a group the order holds: nobody leaves any more, and whoever stands before is up (or held, or over).
        return not leaving and not any(self._is_awaited(before) for before in self._order[: child.order])

    def _is_awaited(self, child: ChildState) -> bool:
        """Whether it is not up, and will be: also a stuck one comes back, before those that stand behind it."""
        return child.status is not Status.RUNNING and child.goal and self.held_by(child) is None

    def _stop_unwanted(self, child: ChildState, now: float) -> None:
        if child.recalled is not None:
            cause = self.shut.get(child.recalled, "it was shut, and is open again")
            reason = f"held: {child.recalled}: {cause}"
            self._order_stop(child, reason, now, drain=False, cause=f"gate:{child.recalled}")
        else:
            reason = f"{self.strategy.value}: stopped with its group"
            self._order_stop(child, reason, now, drain=True, cause=child.start_cause)

    def _start(self, child: ChildState, now: float) -> None:
        child.incarnation += 1
        child.status, child.started_at, child.ready_at = Status.STARTING, now, None
        child.told_held = False
        self._touch(child)
        self._alarms.set(now + child.spec.start_within, Alarm.START_LIMIT, child)
        self._report(LifecycleKind.CHILD_STARTING, child, cause=child.start_cause)
        self._emit(StartChild(child.spec.id, child.incarnation))

    def _order_stop(self, child: ChildState, reason: str, now: float, *, drain: bool, cause: str | None = None) -> None:
        grace = child.spec.drain_within if drain and child.status is Status.RUNNING else 0.0
        child.status = Status.STOPPING
        self._touch(child)
        self._report(LifecycleKind.CHILD_STOPPING, child, reason=reason, seconds=grace or None, cause=cause)
        if grace:
            self._emit(DrainChild(child.spec.id, child.incarnation))
            self._alarms.set(now + grace, Alarm.CANCEL, child)
        else:
            self._cancel(child, reason, now)

    def _cancel(self, child: ChildState, reason: str, now: float) -> None:
        if not child.cancelled:
            child.cancelled = True
            self._alarms.set(now + child.spec.stop_within, Alarm.STUCK, child)
        self._emit(CancelChild(child.spec.id, child.incarnation, reason, cut=self._grace is Grace.CUT))

    def _remove(self, child: ChildState) -> None:
        """It is over: it keeps its place in the order, and only a group's restart may start it again."""
        child.goal = False
        self._touch(child)

    # Reports --------------------------------------------------------------------------------------------------------

    def _emit(self, action: Action) -> None:
        self._out.append(action)

    def _report(self, kind: LifecycleKind, child: ChildState, **facts: Any) -> None:
        self._emit(Report(kind=kind, subject=child.spec.id, incarnation=child.incarnation, **facts))

    def _report_end(self, kind: LifecycleKind, child: ChildState, error: BaseException | None, **facts: Any) -> None:
        self._report(kind, child, error=None if error is None else ErrorInfo.of(error), **facts)

    def _report_stop(self, child: ChildState, error: BaseException | None, gate: str | None) -> None:
        self._report_end(LifecycleKind.CHILD_STOPPED, child, error, cause=f"gate:{gate}" if gate else None)
