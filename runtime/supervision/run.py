"""One life of a supervisor: the manager task that performs what the `Core` decides.

Only the manager spawns, so no child inherits the context variables of a stranger. The manager never waits for a
child: a child's end comes back to it as an event.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import trio
from attrs import Factory, define, evolve, field

from .boundary import Incarnation, sound
from .caller import check_caller
from .child import Child
from .core import Core
from .errors import AlreadyStarted, NotRunning, Shutdown
from .events import LifecycleKind, Report
from .handle import ChildHandle
from .messages import (
    Action,
    AdoptChild,
    Answer,
    Begin,
    Call,
    CancelChild,
    CheckProgress,
    ChildEnded,
    ChildReady,
    ChildResumed,
    ChildStuck,
    DrainChild,
    Event,
    Finish,
    ForgetChild,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    Refuse,
    Settled,
    StartChild,
    StopOrdered,
    Stuck,
    TakeOver,
    Tick,
)
from .nested import Nested
from .outcome import ErrorInfo, Outcome

if TYPE_CHECKING:
    from .gates import Gate
    from .house import House
    from .plan import Plan
    from .spec import ChildSpec

__all__ = ["Run"]

_ITS_OWN = {
    LifecycleKind.TREE_READY,
    LifecycleKind.SUPERVISOR_GAVE_UP,
    LifecycleKind.SUPERVISOR_SHUT_DOWN,
    LifecycleKind.PLAN_CHANGED,
}
"""What is reported of the supervisor itself, and not of a child."""


_STEPS = 10
"""So many turns of trio's loop are "at once": a child with nurseries of its own needs some of them to leave."""


class _Ticket:
    """Where a call waits for its answer."""

    __slots__ = ("done", "error", "value")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.value: Any = None
        self.error: Exception | None = None

    def settle(self, value: Any, error: Exception | None = None) -> None:
        if not self.done.is_set():
            self.value, self.error = value, error
            self.done.set()

    def taken(self) -> Any:
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            return self.value
        finally:
            del error  # its traceback holds this frame: no cycle


@define(eq=False)
class Run:
    """One life of a supervisor: from its start to its end.

    A supervisor that is restarted by its parent gets a new one; budgets and counts begin anew.

    Args:
        plan: its children and flags.
        house: what it shares with the tree.
        child: its own `Child`, where it is a child itself; None for the root.
        is_pool: see `Reconciler`.
        max_children: see `Reconciler`.
        on_plan: told of the plan, and the template, that a call brought, once it is taken over.
    """

    plan: Plan
    house: House
    child: Child | None
    is_pool: bool = False
    max_children: int | None = None
    on_plan: Callable[[Plan, ChildSpec | None], None] = lambda plan, template: None
    core: Core = field(init=False)
    running: dict[str, Incarnation] = Factory(dict)
    bowed_out: str | None = None
    _inbox: deque[Event] = Factory(deque)
    _bell: trio.Event = Factory(trio.Event)
    _error: BaseException | None = None
    _watched: dict[str, Gate] = Factory(dict)
    _tickets: set[_Ticket] = Factory(set)
    _booked: dict[_Ticket, tuple[ChildSpec, ...]] = Factory(dict)
    _ended: bool = False
    _due: tuple[float, int] | None = None
    _waited: int = 0

    def __attrs_post_init__(self) -> None:
        chance = self.house.chance(self.child.incarnation if self.child is not None else 1)
        required = {name: None for spec in self.plan.children for name in spec.requires}
        self._watched = {name: self.house.gates[name] for name in required}
        turned = [_turned(gate) for gate in self._watched.values() if not gate.is_open]
        shut = {event.name: event.cause for event in turned}
        roots = {event.name: event.root or event.name for event in turned}
        settled = {name: gate.settled_at for name, gate in self._watched.items()}
        pool = self.path if self.is_pool else ""
        self.core = Core(self.plan, chance, shut, roots, self.is_pool, self.max_children, settled=settled, path=pool)

    @property
    def is_over(self) -> bool:
        """Whether all children are gone for good."""
        return self.core.phase is Phase.DONE

    @property
    def has_ended(self) -> bool:
        """Whether it takes no calls any more."""
        return self._ended or self.is_over

    @property
    def path(self) -> str:
        """Where the supervisor stands."""
        return self.house.path

    def stop(self, reason: str, grace: Grace = Grace.DRAIN) -> None:
        """Order the stop of all children, and the end; returns at once."""
        self._post(StopOrdered(reason, grace))

    async def call(self, make: Callable[[object], Call], specs: Iterable[ChildSpec] = ()) -> Any:
        """Have the manager take a call that brings `specs`, and block until it is answered.

        Cancelled, the call is carried out all the same, and its answer dropped.

        Raises:
            NotRunning: the supervisor ended, or is stopping.
            UnknownGate, InvalidSpec: what `specs` are refused for; see `House.admit`.
            SupervisionError: what the core refuses it with.
        """
        check_caller(f"a call of {self.path}")
        if self.has_ended:
            raise NotRunning(f"the supervisor {self.path} has ended: it takes no calls")
        ticket, brought = _Ticket(), tuple(specs)
        self.house.book(brought)
        self._booked[ticket] = brought
        for name in [name for spec in brought for name in spec.requires]:
            self._watch_gate(name)
        self._tickets.add(ticket)
        self._post(make(ticket))
        try:
            await ticket.done.wait()
        finally:
            self._tickets.discard(ticket)
        return ticket.taken()

    def hold_children(self) -> None:
        """Have the mailboxes of the children that it begins with."""
        for spec in self.plan.children:
            self.house.hold(self, spec)

    def _watch_gate(self, name: str) -> None:
        """Hear of a gate that no child has required so far."""
        if name not in self._watched:
            self._watched[name] = gate = self.house.gates[name]
            gate.listen(self._gate_turned)
            if not gate.is_open:
                self._gate_turned(gate)

    async def serve(self) -> None:
        """Run until all children are gone.

        Raises:
            StartFailed: a child failed in its first start; those before it were stopped in reverse order.
            RestartLimitExceeded: the intensity was exceeded.
            Escalated: a child's policy escalates what it crashed with.
            HeldTooLong: a gate held a child beyond its limit.
            Shutdown: significant children have ended; for a supervisor above, a normal end.
            BaseException: what a child raised that ends the process (`KeyboardInterrupt`, …).

        Cancellation is an order to stop without drains: it is passed on when all children have left, in order. An
        error outweighs it, as everywhere in trio.
        """
        for gate in self._watched.values():
            gate.listen(self._gate_turned)
        try:
            async with trio.open_nursery() as outside:
                outside.start_soon(self._watch_cancel)
                with trio.CancelScope(shield=True):
                    await self._manage_in_nursery()
                outside.cancel_scope.cancel(reason=f"{self.path} has ended")
        finally:
            self._close()
            self._raise_error()

    def _close(self) -> None:
        self._ended = True
        for gate in self._watched.values():
            gate.unlisten(self._gate_turned)
        for running in self.running.values():
            self.house.let_go(running.handle, running.child.id, f"{self.path} has ended")
        for child in self.core.children:
            # What calls have added is gone with this life; the plan's children come back, or go with the whole tree.
            if self.child is not None or not self.plan.has(child.spec.id):
                self.house.let_go(self, child.spec.id, f"{self.path} has ended")
        for ticket in tuple(self._tickets):
            ticket.settle(None, NotRunning(f"the supervisor {self.path} has ended: it takes no calls"))
        while self._booked:
            self.house.unbook(self._booked.popitem()[1])

    def _raise_error(self) -> None:
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
        finally:
            del error  # its traceback holds this frame: no cycle

    async def _watch_cancel(self) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            self.stop("cancelled from outside", Grace.CANCEL)
            raise

    async def _watch(self, order: trio.Event, grace: Grace) -> None:
        await order.wait()
        self.stop("ordered by its supervisor", grace)

    async def _manage_in_nursery(self) -> None:
        async with trio.open_nursery() as nursery:
            if self.child is not None:
                # Within the shield, for the cut comes after the cancel.
                nursery.start_soon(self._watch, self.child.draining, Grace.DRAIN)
                nursery.start_soon(self._watch, self.child.cut, Grace.CUT)
            try:
                await self._manage(nursery)
            except BaseException:
                # A bug of the supervisor itself: its children are shielded and would never hear of it.
                for running in reversed(tuple(self.running.values())):
                    running.scope.cancel(reason="its supervisor crashed")
                raise
            nursery.cancel_scope.cancel(reason="all children have left")

    async def _manage(self, nursery: trio.Nursery) -> None:
        core, inbox = self.core, self._inbox
        if not any(isinstance(event, StopOrdered) for event in inbox):
            self._put_first(Begin())
        while core.phase is not Phase.DONE:
            if not inbox:
                await self._wait()
            while inbox:
                self._step(self._next(), nursery)
            self._bell = trio.Event()

    def _next(self) -> Event:
        event = self._inbox.popleft()
        if isinstance(event, GateTurned) and self._inbox and isinstance(self._inbox[0], GateTurned):
            return evolve(event, is_last=False)
        return event

    async def _wait(self) -> None:
        """Block until there is an event: one that comes, or the `Tick` of an alarm."""
        alarm = self.core.next_alarm()
        if alarm is None or alarm[0] > trio.current_time():
            with trio.move_on_at(math.inf if alarm is None else alarm[0]):
                await self._bell.wait()
            if not self._inbox:
                self._inbox.append(Tick())
            return
        # A limit of 0 s: whoever leaves, or is ready, in its next few steps is not late. What else comes meanwhile puts
        # nothing off: under a full load something always does.
        if alarm != self._due:
            self._due, self._waited = alarm, 0
        while self._waited < _STEPS:
            self._waited += 1
            await trio.lowlevel.checkpoint()
            if self._inbox:
                return
        self._inbox.append(Tick())

    def _step(self, event: Event, nursery: trio.Nursery) -> None:
        # A frame of its own: events and actions hold what a child was given, and the manager's next wait may be long.
        actions = self.core.handle(event, trio.current_time())
        if isinstance(event, ChildEnded):
            running = self.running.get(event.id)
            if running is not None and running.handle.incarnation == event.incarnation:
                del self.running[event.id]  # not before: whoever waits for its start is still to get its handle
                self.house.let_go(running.handle, event.id, f"{self.path}/{event.id} was replaced")
        for action in actions:
            self._perform(action, nursery)

    def _post(self, event: Event) -> None:
        check_caller(f"what goes to {self.path}")
        self._inbox.append(event)
        self._bell.set()

    def _gate_turned(self, gate: Gate) -> None:
        self._put_first(_turned(gate))
        self._bell.set()

    def _put_first(self, event: Event) -> None:
        """Gates that turned come before all else: nobody is to be started whose gate is shut already."""
        turns = sum(1 for _ in itertools.takewhile(lambda other: isinstance(other, GateTurned), self._inbox))
        self._inbox.insert(turns, event)

    # Actions --------------------------------------------------------------------------------------------------------

    def _perform(self, action: Action, nursery: trio.Nursery) -> None:
        match action:
            case Report():
                self._enter(action)
            case StartChild():
                self._spawn(action, nursery)
            case DrainChild(id=name) if name in self.running:
                self.running[name].child.draining.set()
            case CancelChild(id=name, reason=reason, cut=cut) if name in self.running:
                self.running[name].order_off(reason, cut=cut)
            case CheckProgress(id=name, incarnation=incarnation) if name in self.running:
                self._post(ProgressSeen(name, incarnation, self.running[name].child.last_progress))
            case DrainChild() | CancelChild() | CheckProgress():
                pass  # Its end is in the inbox already: it left by itself in this very tick.
            case Answer(ticket=ticket, value=value, id=name):
                self._settle(ticket, value if name is None else self.handle_of(name))
            case Refuse(ticket=ticket, error=error, id=name):
                if isinstance(error, AlreadyStarted) and name is not None:
                    error.handle = self.handle_of(name)
                self._settle(ticket, None, error)
            case TakeOver(plan=plan, template=template):
                self.plan = plan
                self.on_plan(plan, template)
                self.hold_children()
            case AdoptChild(spec=spec):
                self.house.hold(self, spec)
            case ForgetChild(spec=spec):
                self.house.let_go(self, spec.id, f"{self.path}/{spec.id} is gone")
            case Settled():
                if self.child is not None:
                    self.child.started()
                else:
                    self._enter(Report(kind=LifecycleKind.TREE_READY, subject=""))
            case Stuck():
                if self.child is not None:
                    self.child._on_stuck()
            case Finish(error=error, bowed_out=bowed_out):
                self.bowed_out = bowed_out
                self._error = Shutdown(bowed_out) if error is None and bowed_out is not None else error

    def handle_of(self, name: str) -> ChildHandle | None:
        """The handle of the living incarnation of that child, or None."""
        running = self.running.get(name)
        return None if running is None else running.handle

    def stand_in(self, name: str, incarnation: int) -> ChildHandle:
        """A handle of a child of a pool that has no task now."""
        handle = ChildHandle(Child(f"{self.path}/{name}", incarnation, on_ready=lambda: None), self)
        handle._end(None)
        return handle

    def owns(self, handle: ChildHandle) -> bool:
        """Whether that is an incarnation of a child of this life."""
        return handle._owner is self

    def _settle(self, ticket: object, value: Any, error: Exception | None = None) -> None:
        assert isinstance(ticket, _Ticket)  # noqa: S101 - the core hands back what it was given
        ticket.settle(value, error)
        self.house.unbook(self._booked.pop(ticket, ()))

    def _enter(self, report: Report) -> None:
        if report.kind is LifecycleKind.CHILD_STUCK and not report.reason:
            report = evolve(report, reason=self.running[report.subject].stuck_report(report.seconds))
        path = self.path if report.kind in _ITS_OWN else f"{self.path}/{report.subject}"
        self.house.journal.enter(report, path, self.path)

    def _spawn(self, order: StartChild, nursery: trio.Nursery) -> None:
        name, incarnation, spec = order.id, order.incarnation, order.spec
        path = f"{self.path}/{name}"
        child = Child(
            path,
            incarnation,
            on_ready=lambda: self._post(ChildReady(name, incarnation)),
            on_stuck=lambda: self._post(ChildStuck(name, incarnation)),
            on_resume=lambda error: self._post(ChildResumed(name, incarnation, sound(error))),
            policy=spec.policy,
        )
        handle = ChildHandle(child, self)
        nested = spec.body.declaration if isinstance(spec.body, Nested) else None
        running = Incarnation(child, handle, spec.body, order.args, trio.CancelScope(shield=True), nested)
        if spec.name is not None:
            try:
                self.house.names.register(spec.name, handle)
            except AlreadyStarted as held:
                handle._end(ErrorInfo.of(held))
                clash = ChildEnded(name, incarnation, Outcome(held, unasked=True, name_taken=True))
                nursery.start_soon(self._tell_clash, clash, name=path)
                return
        self.running[name] = running
        self.house.hold(handle, spec)
        registered = spec.name

        def ended(outcome: Outcome) -> None:
            if registered is not None:
                self.house.names.release(registered, handle)
            self._post(ChildEnded(name, incarnation, outcome))

        nursery.start_soon(running.attend, ended, name=path)

    async def _tell_clash(self, clash: ChildEnded) -> None:
        # In a task: restarts without a pause would follow upon each other, and nobody else would have his turn.
        self._post(clash)


def _turned(gate: Gate) -> GateTurned:
    root = gate.root
    if root is None:
        return GateTurned(gate.name, True, settle=gate.settle)
    name, cause = root
    return GateTurned(gate.name, False, cause, gate.settle, "" if name == gate.name else name)
