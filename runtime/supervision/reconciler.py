"""What is to be done, given what should be: the half of the core that orders starts and stops.

Every child has a *want* (should it run now?) and a *status* (what is it doing?). Here the two are brought together in
the order that OTP prescribes: stops one at a time from the last child to the first, starts from the first to the last.
Who should run, and why, is decided in `core`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attrs import Factory, define, field

from .budget import Budget, budget_of
from .events import LifecycleKind, Report
from .messages import (
    Action,
    Answer,
    CancelChild,
    DrainChild,
    Finish,
    ForgetChild,
    Grace,
    Phase,
    Refuse,
    Settled,
    StartChild,
    Status,
    Stuck,
)
from .plan import Plan
from .roster import Roster
from .spec import CUT, Strategy
from .state import Alarm, Alarms, ChildState

if TYPE_CHECKING:
    from .child import Child

__all__ = ["CALLED_OFF", "Reconciler"]

CALLED_OFF = "terminated by a call"
"""The reason of a stop."""


async def _forgotten(child: Child, *args: Any) -> None:
    """The body of a child that is not started again."""
    raise AssertionError(f"{child.path} was to be forgotten, and was started again")


@define(eq=False)
class Reconciler:
    """The children of one supervisor, and the orders that bring them to where they should be.

    Args:
        plan: the children and the flags.
        chance: random numbers in [0, 1) for the jitter; the caller owns the seed.
        shut: the gates that are shut at the beginning, with their causes.
        roots: for gates that are shut because of another one: which.
        is_pool: its children have no order, and all stop at once; the plan's children are none, and come by calls.
        max_children: how many it may have, stopped ones included; None: any number.
        path: of a pool, whose children have nothing but numbers for names.
        settled: from when on gates that were opened again count as open for whoever is to be started.
    """

    plan: Plan
    chance: Callable[[], float]
    shut: dict[str, str] = field(factory=dict)
    roots: dict[str, str] = field(factory=dict)
    is_pool: bool = False
    max_children: int | None = None
    path: str = ""
    settled: dict[str, float] = field(factory=dict)
    phase: Phase = Phase.NEW
    children: Roster = Factory(Roster)
    budget: Budget = field(init=False)
    now: float = 0.0
    _ahead: deque[ChildState] = Factory(deque)
    _next_turn: float = -math.inf
    _turn_set: float = -math.inf
    _error: BaseException | None = None
    _bowed_out: str | None = None
    _stop_reason: str = ""
    _grace: Grace = Grace.DRAIN
    _told_stuck: bool = False
    _alarms: Alarms = Factory(Alarms)
    _out: list[Action] = Factory(list)

    def __attrs_post_init__(self) -> None:
        self.budget = budget_of(self.plan.intensity)
        for spec in self.plan.children:
            child = self.children.append(spec)
            self._ahead.append(child)
            settled = self.settled_at(child)
            if settled > -math.inf:
                child.not_before, child.waited = settled, True
                self._alarms.set(settled, Alarm.WAKE, child)

    @property
    def strategy(self) -> Strategy:
        """Which siblings a restart takes along."""
        return self.plan.strategy

    @property
    def is_stopping(self) -> bool:
        """Whether nobody is started any more."""
        return self.phase is Phase.STOPPING or self.phase is Phase.DONE

    def held_by(self, child: ChildState) -> str | None:
        """The first shut gate that `child` requires, or None."""
        shut = self.shut
        return next((gate for gate in child.spec.requires if gate in shut), None) if shut else None

    def settled_at(self, child: ChildState) -> float:
        """When the last of the gates that `child` requires counts as open, if none turns until then."""
        return max((self.settled.get(gate, -math.inf) for gate in child.spec.requires), default=-math.inf)

    def wants(self, child: ChildState) -> bool:
        """Whether `child` should be running now.

        One that is up is recalled by a gate that turns; a gate that was shut when a change of plan made the child
        require it, concerns its next start.
        """
        return (
            child.goal
            and not child.bounce
            and child.recalled is None
            and not self.is_stopping
            and (self.held_by(child) is None or child.is_up)
        )

    def label(self, child: ChildState) -> str:
        """The name of a child in an error."""
        return f"{self.path}/{child.spec.id}" if self.path else child.spec.id

    def touch(self, child: ChildState) -> None:
        """Note that something about `child` has changed."""
        self.children.place(child, wanted=self.wants(child), held=self.held_by(child) is not None, now=self.now)

    # Bringing status and want together ------------------------------------------------------------------------------

    def settle(self) -> None:
        """Order what is to be done now."""
        match self.phase:
            case Phase.STOPPING:
                self._advance_stop()
            case Phase.STARTING:
                self._advance_start()
                self._reconcile()
            case Phase.RUNNING:
                self._reconcile()

    def _reconcile(self) -> None:
        self._stop_unwanted()
        if self.strategy is Strategy.ONE_FOR_ONE:
            self._start_due()
        else:
            self._start_next_of_group()

    def _advance_start(self) -> None:
        """The first start: one child after the other; the next when the one before is ready, or held, or over."""
        while self._ahead:
            child = self._ahead[0]
            if not child.begun:
                child.begun = True
                self.touch(child)
            if self.wants(child):
                if child.status is not Status.RUNNING:
                    return
            elif child.status is not Status.DOWN and not child.stuck:
                return
            else:
                self.tell_held(child)
            self._ahead.popleft()
        self.phase = Phase.RUNNING
        self.emit(Settled())

    def _advance_stop(self) -> None:
        """The last stop: one child after the other, from the last to the first; a stuck one is passed by."""
        drain = self._grace is Grace.DRAIN
        up, leaving = self.children.up, self.children.leaving
        while (child := up.first()) is not None:
            last = leaving.first()
            if last is not None and last.order > child.order and not self.is_pool:
                break
            self.order_stop(child, self._stop_reason, drain=drain)
        if self.children.alive == 0:
            self.phase = Phase.DONE
            error, self._error = self._error, None
            self.emit(Finish(error, self._bowed_out))
        elif not up and not leaving and not self._told_stuck:
            self._told_stuck = True
            self.emit(Stuck())

    def _stop_unwanted(self) -> None:
        recalled, withdrawing = self.children.recalled, self.children.withdrawing
        # They go before all others: behind a shut gate nobody waits for somebody's drain.
        while (self.is_pool or not withdrawing) and (child := recalled.first()) is not None:
            gate = child.recalled or ""
            cause = self.shut.get(gate, "it was shut, and is open again")
            self.order_stop(child, f"held: {self.name_of(gate)}: {cause}", drain=False, cause=f"gate:{gate}")
        unwanted, leaving = self.children.unwanted, self.children.leaving
        while (self.is_pool or not leaving) and (child := unwanted.first()) is not None:
            if not child.goal:
                self.order_stop(child, CALLED_OFF, drain=True)
            else:
                reason = f"{self.strategy.value}: stopped with its group"
                self.order_stop(child, reason, drain=True, cause=child.start_cause)

    def _start_due(self) -> None:
        """Start whoever may start: each for itself, and those who come back from a pause in turn."""
        while (child := self.children.due.first()) is not None:
            self._start(child)
        while (child := self.children.returning.first()) is not None:
            if self.now < self._next_turn:
                if self._turn_set != self._next_turn:
                    self._turn_set = self._next_turn
                    self._alarms.set(self._next_turn, Alarm.TURN, child)
                return
            self._next_turn = self.now + self.plan.stagger
            self._start(child)

    def wake(self, child: ChildState) -> None:
        """Have it looked at when its time has come."""
        if child.not_before > self.now:
            self._alarms.set(child.not_before, Alarm.WAKE, child)
        self.touch(child)

    def _start_next_of_group(self) -> None:
        """In a group the order holds: nobody leaves any more, and whoever stands before is up (or held, or over)."""
        if self.children.leaving or self.children.unwanted:
            return
        child = self.children.awaited.first()  # also a stuck one, which comes back before those that stand behind it
        if child is not None and (child in self.children.due or child in self.children.returning):
            self._start(child)

    # Orders ---------------------------------------------------------------------------------------------------------

    def _start(self, child: ChildState) -> None:
        child.incarnation += 1
        self.children.alive += 1
        child.status, child.started_at, child.ready_at = Status.STARTING, self.now, None
        child.held_since, child.kept_since, child.waited = None, None, False
        self.touch(child)
        self._alarms.set(self.now + child.spec.start_within, Alarm.START_LIMIT, child)
        self.report(LifecycleKind.CHILD_STARTING, child, cause=child.start_cause)
        self.emit(StartChild(child.spec.id, child.incarnation, child.spec, child.args))
        if child.is_new and child.is_temporary and not child.spec.requires:
            # It is never started again, so nothing of what it was given is kept: that may be large. But a supervisor
            # is known by its body, and with it what belongs to those below.
            child.args = ()
            if not self.is_pool and not child.is_nested:
                child.spec = child.spec.over(_forgotten)

    def order_stop(self, child: ChildState, reason: str, *, drain: bool, cause: str | None = None) -> None:
        """Begin the stop of a child that is up: its drain, or at once its cancel."""
        # A supervisor that is still starting has children that may be up, and have something to finish.
        works = child.status is Status.RUNNING or child.is_nested
        drain = drain and works and child.spec.stop_within is not CUT
        grace = child.spec.drain_within if drain else 0.0
        child.status = Status.STOPPING
        self.touch(child)
        self.report(LifecycleKind.CHILD_STOPPING, child, reason=reason, seconds=grace or None, cause=cause)
        if grace:
            self.emit(DrainChild(child.spec.id, child.incarnation))
            self._alarms.set(self.now + grace, Alarm.CANCEL, child)
        else:
            self.cancel(child, reason)

    def cancel(self, child: ChildState, reason: str) -> None:
        """Cancel a child that is stopping; one that is cancelled already is told to hurry, if that is the order."""
        if not child.cancelled:
            child.cancelled = True
            self._alarms.set(self.now + child.spec.leaves_within, Alarm.STUCK, child)
        cut = self._grace is Grace.CUT or child.spec.stop_within is CUT
        self.emit(CancelChild(child.spec.id, child.incarnation, reason, cut=cut))

    def remove(self, child: ChildState, reason: str) -> None:
        """Delete the specification of a child that is down."""
        self.report(LifecycleKind.CHILD_REMOVED, child, reason=reason)
        self.children.remove(child)
        self.emit(ForgetChild(child.spec))
        # Alarms and queues drop it when they come to it; what it was given may be large, and must not wait for that.
        child.args, child.spec = (), child.spec.over(_forgotten)

    # Answers and reports --------------------------------------------------------------------------------------------

    def tell_held(self, child: ChildState) -> None:
        """Report that it is held, once for each hold."""
        gate = self.held_by(child)
        if gate is None or child.held_since is not None or not child.goal or self.is_stopping:
            return
        child.held_since = self.now
        child.kept_since = self.now if child.kept_since is None else child.kept_since
        self.watch_hold(child)
        reason = f"{self.name_of(gate)}: {self.shut[gate]}"
        self.report(LifecycleKind.CHILD_HELD, child, reason=reason, cause=f"gate:{gate}")
        self.answer_start(child)

    def watch_hold(self, child: ChildState) -> None:
        """Set the alarm for the limit of a hold that is under way."""
        if child.kept_since is not None:
            self._alarms.set(child.kept_since + child.spec.hold_within, Alarm.HOLD_LIMIT, child)

    def put_down(self, child: ChildState) -> None:
        """It is not to run any more, until a call or its group says so."""
        child.goal, child.failing, child.held_since, child.kept_since = False, False, None, None
        self.touch(child)

    def answer_start(self, child: ChildState, *, is_up: bool = False) -> None:
        """Tell the call that waits for it that `child` is up; or that there is no task, and nothing wrong."""
        ticket, child.starter, child.is_new = child.starter, None, False
        if ticket is not None:
            self.emit(Answer(ticket, id=child.spec.id if is_up else None))

    def answer_leave(self, child: ChildState, error: Any = None) -> None:
        """Tell the calls that wait for it that `child` has left, or what is wrong."""
        tickets, child.leavers = child.leavers, []
        for ticket in tickets:
            self.emit(Answer(ticket) if error is None else Refuse(ticket, error))

    def name_of(self, gate: str) -> str:
        """The gate that is to be shown for a shut one: the one where the cause lies."""
        return self.roots.get(gate, gate)

    def emit(self, action: Action) -> None:
        """Add to what is to be done."""
        self._out.append(action)

    def report(self, kind: LifecycleKind, child: ChildState, **facts: Any) -> None:
        """Report something that happened to `child`."""
        self.emit(Report(kind=kind, subject=child.spec.id, incarnation=child.incarnation, **facts))
