"""What a supervisor decides: an event and the time in, actions out. No trio, no clock, no waiting.

A child is wanted when its `goal` is up, its group does not bounce it (stop, then start again together), none of the
gates that it requires is shut, and none was shut since it was started. So an outage, a group restart, a call and the
final stop are one mechanism (see `reconciler`), and a restart budget is touched in exactly one place: `_restart`.

Whoever is to be stopped anyway and ends before its turn has come costs no restart: one cause, one count.
"""

from __future__ import annotations

import math

from attrs import define

from . import calls
from .errors import Escalated, HeldTooLong, Ignore, RestartLimitExceeded, Shutdown, Stalled, StartFailed, StartTimeout
from .events import LifecycleKind
from .messages import (
    Action,
    AddChild,
    Begin,
    CheckProgress,
    ChildEnded,
    ChildReady,
    ChildResumed,
    ChildStuck,
    DeleteChild,
    Event,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    Reload,
    RestartChild,
    Status,
    StopOrdered,
    TerminateChild,
    Tick,
)
from .outcome import ErrorInfo, Outcome, text_of, what_of
from .policy import directive_of, rule_for
from .reconciler import Reconciler
from .spec import AutoShutdown, ChildSpec, Directive, Restart, Rule, Strategy
from .state import Alarm, ChildState

__all__ = ["Core"]


@define(frozen=True)
class _End:
    """The end of an incarnation, and in which circumstances it came.

    Attributes:
        error: what it ended with; of a condemned child what it was condemned for.
        info: the same as text.
        bowed_out: what it said when it bowed out politely; None when it did not.
        ignored: it said that there is nothing to run.
        was_bounced: its group was about to stop it.
        gate: the shut gate that it would have been stopped for.
        name_taken: see `Outcome`.
    """

    error: BaseException | None
    info: ErrorInfo | None
    bowed_out: str | None
    ignored: str | None
    was_bounced: bool
    gate: str | None
    name_taken: bool


_STOOD_STILL = 0.25
"""Seconds that a look at a child's progress may be late, beside a tenth of what was promised; later than that, it is no
evidence against the child."""


@define(eq=False)
class Core(Reconciler):
    """The decisions of one supervisor; see `Reconciler` for its arguments."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take in one event at `now` and return what is to be done, in order."""
        self.now = now
        self._take(event)
        if not isinstance(event, GateTurned) or event.is_last:
            self.settle()
        out, self._out = self._out, []
        return out

    def next_deadline(self) -> float:
        """When a `Tick` is due; infinite if never."""
        alarm = self.next_alarm()
        return math.inf if alarm is None else alarm[0]

    def next_alarm(self) -> tuple[float, int] | None:
        """The same, and which of those for that time is the first; None if never."""
        return self._alarms.next()

    def _take(self, event: Event) -> None:
        match event:
            case Tick():
                for alarm, child in self._alarms.take(self.now):
                    self._rung(alarm, child)
            case ChildReady(id=name, incarnation=incarnation):
                self._ready(name, incarnation)
            case ChildEnded(id=name, incarnation=incarnation, outcome=outcome):
                self._ended(name, incarnation, outcome)
            case AddChild() | TerminateChild() | RestartChild() | DeleteChild() | Reload():
                calls.take(self, event)
            case GateTurned():
                self._turned(event)
            case ProgressSeen():
                self._progress(event)
            case ChildResumed():
                self._resumed(event)
            case ChildStuck(id=name, incarnation=incarnation):
                self._stuck(name, incarnation)
            case StopOrdered():
                self.stop_all(event.reason, event.grace)
            case Begin():
                if self.phase is Phase.NEW:
                    self.phase = Phase.STARTING

    def _current(self, name: str, incarnation: int) -> ChildState | None:
        child = self.children.get(name)
        return child if child is not None and child.incarnation == incarnation else None

    # A child's life -------------------------------------------------------------------------------------------------

    def _ready(self, name: str, incarnation: int) -> None:
        child = self._current(name, incarnation)
        if child is None or child.status is not Status.STARTING:
            return
        child.status, child.ready_at, child.was_ready, child.failing = Status.RUNNING, self.now, incarnation, False
        if child.spec.progress_within is not None:
            self._alarms.set(self.now + child.spec.progress_within, Alarm.PROGRESS, child)
        self.report(LifecycleKind.CHILD_READY, child, seconds=self.now - child.started_at)
        self.answer_start(child, is_up=True)
        self.touch(child)

    def _resumed(self, event: ChildResumed) -> None:
        child = self._current(event.id, event.incarnation)
        if child is not None and child.status is not Status.DOWN:
            child.last_error = ErrorInfo.of(event.error)
            self.report(LifecycleKind.CHILD_RESUMED, child, error=child.last_error)

    def _ended(self, name: str, incarnation: int, outcome: Outcome) -> None:
        child = self._current(name, incarnation)
        if child is None or child.status is Status.DOWN:
            return
        by_itself = child.status is not Status.STOPPING or outcome.unasked or child.condemned is not None
        was_ready = child.ready_at is not None
        end = self._end_of(child, outcome)
        child.status, child.condemned, child.cancelled, child.stuck = Status.DOWN, None, False, False
        child.bounce, child.recalled = False, None
        self.children.alive -= 1
        self.touch(child)
        if outcome.fatal and outcome.error is not None:
            self.report(LifecycleKind.CHILD_CRASHED, child, error=end.info, reason="it ends the process")
            self._give_up(outcome.error)
        elif not by_itself:
            self._left(child, end)
        elif end.ignored is not None and not was_ready:
            self._ignored(child, end.ignored)
        elif end.error is not None:
            self._crashed(child, end)
        else:
            self._returned(child, end)
        if not child.gone:
            self.answer_leave(child)
            self.tell_held(child)

    def _end_of(self, child: ChildState, outcome: Outcome) -> _End:
        error, bowed_out, ignored = outcome.error, None, None
        if child.condemned is not None:
            child.condemned.__cause__, error = error, child.condemned
        elif isinstance(error, Shutdown):
            bowed_out, error = text_of(error), None
        elif isinstance(error, Ignore) and child.ready_at is None:
            ignored, error = text_of(error), None
        if error is None:
            info = None
        else:
            info = outcome.info if error is outcome.error and outcome.info is not None else ErrorInfo.of(error)
        gate = child.recalled or self.held_by(child)
        return _End(error, info, bowed_out, ignored, child.bounce, gate, outcome.name_taken)

    def _left(self, child: ChildState, end: _End) -> None:
        """It was told to, and has."""
        self._report_stop(child, end)
        if not child.goal or (end.was_bounced and child.is_temporary):
            self._left_for_good(child, end)

    def _left_for_good(self, child: ChildState, end: _End) -> None:
        """A call has stopped it (or was about to, and it ended by itself), or its group has and it is temporary."""
        if child.starter is not None:
            self._start_failed(child, end.error, "it was stopped before it was ready")
        else:
            self._over(child, "it was stopped")

    def _ignored(self, child: ChildState, why: str) -> None:
        self.report(LifecycleKind.CHILD_IGNORED, child, reason=why)
        self.answer_start(child)
        self._over(child, "there is nothing to run")

    def _returned(self, child: ChildState, end: _End) -> None:
        if end.gate is not None and child.spec.restart is Restart.PERMANENT and child.goal:
            self._report_stop(child, end)
            return
        self.report(LifecycleKind.CHILD_RETURNED, child, reason=_word_of(end))
        if self.is_stopping:
            return
        if not child.goal:
            self._left_for_good(child, end)
        elif child.starter is not None:
            self._start_failed(child, None, "it returned before it was ready", is_over=True)
        elif end.was_bounced and not child.is_temporary:
            return  # its group starts it again
        elif child.spec.restart is not Restart.PERMANENT:
            self._end_for_good(child, is_bystander=end.was_bounced)
        elif self._is_first_start(child):
            self._fail_start(child, "it returned before it was ready", None)
        else:
            self._restart(child, None, None)

    def _crashed(self, child: ChildState, end: _End) -> None:
        if end.gate is not None and child.goal:
            # The outage took it before its turn to be stopped had come: one cause, and no crash of its own.
            self._report_stop(child, end)
            return
        assert end.error is not None  # noqa: S101 - what is called a crash has an error
        child.last_error = end.info
        self.report(LifecycleKind.CHILD_CRASHED, child, error=end.info)
        if self.is_stopping:
            return
        rule = rule_for(end.error, child.spec.policy)
        if not child.goal:
            self._left_for_good(child, end)
        elif child.starter is not None:
            self._start_failed(child, end.error, what_of(end.error), name_taken=end.name_taken)
        elif self._is_first_start(child) and not end.was_bounced:
            self._fail_start(child, what_of(end.error), end.error)
        elif directive_of(rule) is Directive.ESCALATE:
            self._escalate(child, end.error)
        elif child.is_temporary or directive_of(rule) is Directive.STOP:
            self._end_for_good(child, is_bystander=end.was_bounced)
        elif not end.was_bounced:
            self._restart(child, end.error, rule)

    def _report_stop(self, child: ChildState, end: _End) -> None:
        cause = None if end.gate is None else f"gate:{end.gate}"
        self.report(LifecycleKind.CHILD_STOPPED, child, reason=_word_of(end), error=end.info, cause=cause)

    # Ends that are ends ---------------------------------------------------------------------------------------------

    def _end_for_good(self, child: ChildState, *, is_bystander: bool) -> None:
        """It ended by itself and is not started again: over, and perhaps the end of its supervisor."""
        self._over(child, "it has ended")
        if child.spec.significant and not is_bystander:
            self._significant_end(child)

    def _over(self, child: ChildState, why: str) -> None:
        """It keeps its specification and its place, for a call or its group; unless it is temporary, or of a pool."""
        self.put_down(child)
        if child.is_temporary or self.is_pool:
            self.answer_leave(child)
            self.remove(child, why)

    def _significant_end(self, child: ChildState) -> None:
        mode = self.plan.auto_shutdown
        if mode is AutoShutdown.NEVER:
            return
        if mode is AutoShutdown.ALL_SIGNIFICANT and any(each.spec.significant and each.goal for each in self.children):
            return
        self._bowed_out = f"the significant child {child.spec.id} has ended"
        blame = f"child:{child.spec.id}"
        self.report(LifecycleKind.SUPERVISOR_SHUT_DOWN, child, reason=self._bowed_out, cause=blame)
        self.stop_all(self._bowed_out, Grace.DRAIN)

    # Starts that fail -----------------------------------------------------------------------------------------------

    def _is_first_start(self, child: ChildState) -> bool:
        """Whether the supervisor is starting and it is this child's turn: it was not ready yet."""
        return self.phase is Phase.STARTING and bool(self._ahead) and self._ahead[0] is child

    def _fail_start(self, child: ChildState, why: str, error: BaseException | None) -> None:
        failed = StartFailed(f"{self.label(child)} could not be started: {why}")
        failed.__cause__ = error
        self._give_up(failed)

    def _start_failed(self, child: ChildState, error: BaseException | None, why: str, **facts: bool) -> None:
        """The start that a call waits for has come to nothing."""
        calls.refuse_start(self, child, error, why, **{"is_over": False, **facts})

    # Restarts -------------------------------------------------------------------------------------------------------

    def _restart(self, child: ChildState, error: BaseException | None, rule: Rule | None) -> None:
        """Enter one restart in the budget, and set the child, and its group, up for it."""
        backoff = child.spec.backoff if rule is None or rule.backoff is None else rule.backoff
        tally = child.tallies.of(rule)
        if child.ready_at is not None and self.now - child.ready_at >= backoff.reset_after:
            tally.crashes = 0
        tally.crashes += 1
        child.restarts += 1
        child.ready_at, child.failing = None, True
        budget = self.budget if tally.budget is None else tally.budget
        if not budget.spend(self.now):
            limit = self.plan.intensity if tally.budget is None or rule is None else rule.limit
            self._exceeded(child, error, f"more than {limit}")
            return
        delay = backoff.delay(tally.crashes, self.chance())
        for member in self._group(child):
            self._set_up(member, child, delay)
        which = f"restart {child.restarts}, {self.strategy.value}"
        self.report(LifecycleKind.CHILD_BACKOFF, child, seconds=delay, cause=f"child:{child.spec.id}", reason=which)

    def _set_up(self, member: ChildState, child: ChildState, delay: float) -> None:
        member.not_before = max(member.not_before, self.now + delay)
        member.waited = member.waited or delay > 0
        member.start_cause = f"child:{child.spec.id}"
        if member is not child:
            member.goal = member.goal or not member.is_temporary
            member.bounce = member.status is not Status.DOWN
        self.wake(member)
        self.tell_held(member)

    def _group(self, child: ChildState) -> list[ChildState]:
        """The children that a restart of `child` stops and starts, itself included, in start order.

        While the supervisor is starting, those whose turn has not come are no part of it yet.
        """
        if self.strategy is Strategy.ONE_FOR_ONE:
            return [child]
        first = child.order if self.strategy is Strategy.REST_FOR_ONE else -1
        return [each for each in self.children if each is child or (each.begun and each.order >= first)]

    # Giving up ------------------------------------------------------------------------------------------------------

    def _exceeded(self, child: ChildState, error: BaseException | None, limit: str) -> None:
        last = "returned" if error is None else str(ErrorInfo.of(error))
        exceeded = RestartLimitExceeded(f"{limit}; the last was of {self.label(child)}: {last}")
        exceeded.__cause__ = error
        self._tell_and_give_up(child, exceeded)

    def _escalate(self, child: ChildState, error: BaseException) -> None:
        escalated = Escalated(f"{self.label(child)}: {ErrorInfo.of(error)}; its policy escalates this")
        escalated.__cause__ = error
        self._tell_and_give_up(child, escalated)

    def _tell_and_give_up(self, child: ChildState, error: BaseException) -> None:
        blame = f"child:{child.spec.id}"
        self.report(LifecycleKind.SUPERVISOR_GAVE_UP, child, reason=text_of(error), cause=blame)
        self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        # The last one counts: only what ends the process comes after another, and that is nobody's to hold back.
        self._error = error
        self.stop_all(text_of(error), Grace.DRAIN)

    def stop_all(self, reason: str, grace: Grace) -> None:
        """Begin the stop of all children, or tighten one that is under way."""
        if self.phase is Phase.DONE:
            return
        tightened, self._grace = grace > self._grace, max(grace, self._grace)
        # Whoever gives the order may not have listened yet when it was told who is stuck.
        self._told_stuck = False
        if self.phase is not Phase.STOPPING:
            self._stop_reason, self.phase = reason, Phase.STOPPING
            calls.refuse_all(self)
        if tightened:
            for child in reversed(self.children):
                if child.status is Status.STOPPING and (grace is Grace.CUT or not child.cancelled):
                    self.cancel(child, reason)

    # Gates ----------------------------------------------------------------------------------------------------------

    def _turned(self, event: GateTurned) -> None:
        known = event.name in self.shut
        if not event.is_open:
            self.shut[event.name] = event.cause
            self.roots[event.name] = event.root or event.name
            if not known:
                for child in self._requiring(event.name):
                    self._recall(child, event.name)
        elif known:
            del self.shut[event.name]
            self.roots.pop(event.name, None)
            self.settled[event.name] = self.now + event.settle
            for child in self._requiring(event.name):
                self._release(child, event)

    def _requiring(self, gate: str) -> list[ChildState]:
        return [child for child in self.children if gate in child.spec.requires]

    def _recall(self, child: ChildState, gate: str) -> None:
        if child.is_up:
            child.recalled = child.recalled or gate
        elif child.status is Status.STOPPING and not child.cancelled and not self.is_stopping:
            self.cancel(child, f"{self.name_of(gate)} is shut: there is nothing to finish any more")
        self.touch(child)
        if child.status is not Status.STOPPING and child.begun:
            self.tell_held(child)

    def _release(self, child: ChildState, event: GateTurned) -> None:
        # The cause is gone: whatever backoff had built up says nothing any more.
        child.tallies.forget()
        child.failing = False
        child.not_before, child.waited = self.settled_at(child), True
        child.start_cause = f"gate:{event.name}"
        if self.held_by(child) is None:
            child.held_since = None
        self.wake(child)

    # Time -----------------------------------------------------------------------------------------------------------

    def _stuck(self, name: str, incarnation: int) -> None:
        child = self._current(name, incarnation)
        if child is not None and child.status is Status.STOPPING and not child.stuck:
            self._mark_stuck(child, reason="somebody below it does not leave")

    def _mark_stuck(self, child: ChildState, **facts: object) -> None:
        child.stuck = True
        self.touch(child)
        self.report(LifecycleKind.CHILD_STUCK, child, **facts)
        calls.refuse_leavers(self, child)

    def _progress(self, event: ProgressSeen) -> None:
        child = self._current(event.id, event.incarnation)
        if child is None or child.status is not Status.RUNNING or child.spec.progress_within is None:
            return
        promised = child.spec.progress_within
        due = event.at + promised
        if due > self.now:
            self._alarms.set(due, Alarm.PROGRESS, child)
        elif self.now - due > _STOOD_STILL + promised / 10:
            # We looked so late that this process stood still (frozen, or starved), and the child with it.
            self._alarms.set(self.now + promised, Alarm.PROGRESS, child)
        else:
            self._condemn(child, Stalled(f"no progress for {self.now - event.at:.3g} s"))

    def _condemn(self, child: ChildState, error: Exception) -> None:
        """Cancel a child that is at fault; when it is gone it counts as crashed with `error`."""
        if self.wants(child):  # else it leaves anyway, when its turn comes
            child.condemned = error
            self.order_stop(child, str(error), drain=False)

    def _rung(self, alarm: Alarm, child: ChildState) -> None:
        name, spec = child.spec.id, child.spec
        match alarm:
            case Alarm.WAKE:
                self.touch(child)
            case Alarm.START_LIMIT:
                self._condemn(child, StartTimeout(_late(self.label(child), spec)))
            case Alarm.CANCEL if not child.cancelled:
                self.cancel(child, f"not finished after {spec.drain_within:g} s of drain")
            case Alarm.STUCK if not child.stuck:
                self._mark_stuck(child, seconds=spec.leaves_within)
            case Alarm.PROGRESS:
                self.emit(CheckProgress(name, child.incarnation))
            case Alarm.HOLD_LIMIT if not self.is_stopping and (gate := self.held_by(child)) is not None:
                what = f"{self.label(child)} was held for {spec.hold_within:g} s by the gate {self.name_of(gate)}"
                self._tell_and_give_up(child, HeldTooLong(f"{what}: {self.shut[gate]}"))


def _word_of(end: _End) -> str:
    """What it said on its way out, if it said something."""
    return "" if end.bowed_out is None else f"bowed out: {end.bowed_out}".removesuffix(": ")


def _late(label: str, spec: ChildSpec) -> str:
    return f"{label} was not ready within {spec.start_within:g} s: it has not called child.started()"
