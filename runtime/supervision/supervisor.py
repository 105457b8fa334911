"""The supervisor: one manager task that performs what the `Core` decides.

Only the manager spawns, so no child inherits the context variables of a stranger. Every child runs in a shielded
cancel scope of its own, for a plain nursery stops its tasks in random order; here the order is exact, also when the
stop comes from outside. The manager never waits for a child: a child's end comes back to it as an event.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import trio
from attrs import define, evolve, field

from .child import Child
from .core import Core
from .errors import InvalidSpec
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
    StopOrdered,
    Stuck,
    Tick,
)
from .outcome import outcome_of
from .spec import Backoff, ChildSpec, Intensity, Kind, Restart, Strategy

if TYPE_CHECKING:
    from .events import Journal
    from .gates import Gate, Gates

__all__ = ["Supervisor"]


@define(eq=False)
class _Running:
    """One incarnation: its handle, its cancel scope, its task."""

    child: Child
    scope: trio.CancelScope
    task: trio.lowlevel.Task | None = None

    def order_off(self, reason: str, cut: bool) -> None:
        self.child.draining.set()
        if cut:
            self.child.cut.set()
        self.scope.cancel(reason=reason)


class Supervisor:
    """A supervisor: keeps its children as their specifications say.

    Args:
        id: its name among its siblings, or the root's name.
        children: the specifications, in start order; they are stopped in the reverse order.
        strategy: which siblings a restart takes along. Default ONE_FOR_ONE.
        intensity: the restart budget; see `Intensity`.

    Raises:
        InvalidSpec: two children have the same id.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the field's own name
        children: Iterable[ChildSpec],
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity | None = None,
    ) -> None:
        if not id or "/" in id:
            raise InvalidSpec(f"the id of a supervisor must be a non-empty string without '/', not {id!r}")
        self.id = id
        self.children = tuple(children)
        self.strategy = strategy
        self.intensity = intensity or Intensity()
        self.run: Run | None = None
        self._house: _House | None = None
        seen = set()
        for spec in self.children:
            if spec.id in seen:
                raise InvalidSpec(f"two children of {id!r} have the id {spec.id!r}")
            seen.add(spec.id)

    def spec(
        self,
        *,
        restart: Restart = Restart.PERMANENT,
        requires: Iterable[str] = (),
        backoff: Backoff | None = None,
    ) -> ChildSpec:
        """Its specification as a child of another supervisor.

        Its start has no limit but those of its own children; its stop likewise (OTP: ``infinity``).
        """
        return ChildSpec(
            id=self.id,
            body=Nested(self),
            restart=restart,
            requires=tuple(requires),
            start_within=math.inf,
            drain_within=math.inf,
            stop_within=math.inf,
            backoff=backoff or Backoff(),
            kind=Kind.SUPERVISOR,
        )

    def settle_in(self, house: _House) -> None:
        """Bind it, and the supervisors below it, to a tree's gates and journal; a `Tree` does it, once.

        Raises:
            InvalidSpec: it belongs to a tree already, or stands in this one twice.
            UnknownGate: a child requires a gate that was never added.
        """
        if self._house is not None:
            raise InvalidSpec(f"supervisor {self.id!r} is in a tree already, at {self._house.path}; build another one")
        self._house = house
        for spec in self.children:
            house.gates.check(f"{house.path}/{spec.id}", spec.requires)
            if isinstance(spec.body, Nested):
                spec.body.supervisor.settle_in(house.below(spec.id))

    async def serve(self, child: Child | None = None, *, seed: int | None = None) -> None:
        """Start the children and keep them, until the stop; see `Tree.run`, and `Nested` for sub-supervisors."""
        if self._house is None:
            raise RuntimeError(f"supervisor {self.id!r} belongs to no tree; build a Tree around its root")
        self.run = Run(self, self._house, child, seed)
        await self.run.serve()

    def __repr__(self) -> str:
        return f"<Supervisor {self.id} of {len(self.children)}>"


class Nested:
    """The body of a supervisor that is a child of another one."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.supervisor = supervisor

    async def __call__(self, child: Child) -> None:
        await self.supervisor.serve(child)


@define
class _House:
    """What all supervisors of a tree share, and the path of this one."""

    gates: Gates
    journal: Journal
    path: str

    def below(self, name: str) -> _House:
        return _House(self.gates, self.journal, f"{self.path}/{name}")


@define(eq=False)
class Run:
    """One life of a supervisor: from its start to its end.

    A supervisor that is restarted by its parent gets a new one; budgets and counts begin anew.
    """

    supervisor: Supervisor
    house: _House
    child: Child | None
    seed: int | None = None
    core: Core = field(init=False)
    running: dict[str, _Running] = field(factory=dict)
    _inbox: deque[Event] = field(factory=deque)
    _bell: trio.Event = field(factory=trio.Event)
    _error: BaseException | None = None
    _watched: list[Gate] = field(factory=list)

    def __attrs_post_init__(self) -> None:
        supervisor = self.supervisor
        chance = random.Random(self.seed).random  # noqa: S311 - jitter, no secret
        required = {name: None for spec in supervisor.children for name in spec.requires}
        self._watched = [self.house.gates[name] for name in required]
        shut = {gate.name: gate.cause for gate in self._watched if not gate.is_open}
        self.core = Core(supervisor.children, supervisor.strategy, supervisor.intensity, chance, shut)

    @property
    def is_over(self) -> bool:
        """Whether all children are gone for good."""
        return self.core.phase is Phase.DONE

    def stop(self, reason: str, grace: Grace = Grace.DRAIN) -> None:
        """Order the stop of all children, and the end; returns at once."""
        self._post(StopOrdered(reason, grace))

    async def serve(self) -> None:
        """Run until all children are gone.

        Raises:
            StartFailed: a child failed in its first start; those before it were stopped in reverse order.
            RestartLimitExceeded: the intensity was exceeded.
            BaseException: what a child raised that ends the process (`KeyboardInterrupt`, …).

        Cancellation is an order to stop without drains: it is passed on when all children have left, in order. An
        error outweighs it, as everywhere in trio.
        """
        for gate in self._watched:
            gate.listen(self._gate_turned)
        try:
            async with trio.open_nursery() as outside:
                outside.start_soon(self._watch_cancel)
                with trio.CancelScope(shield=True):
                    await self._manage_in_nursery()
                outside.cancel_scope.cancel(reason=f"{self.house.path} has ended")
        finally:
            for gate in self._watched:
                gate.unlisten(self._gate_turned)
            self._raise_error()

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
        self._post(Begin())
        while self.core.phase is not Phase.DONE:
            with trio.move_on_at(self.core.next_deadline()):
                while not self._inbox:
                    await self._bell.wait()
            if not self._inbox:
                self._inbox.append(Tick())
            while self._inbox:
                for action in self.core.handle(self._inbox.popleft(), trio.current_time()):
                    self._perform(action, nursery)
            self._bell = trio.Event()

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        self._bell.set()

    def _gate_turned(self, gate: Gate) -> None:
        self._post(GateTurned(gate.name, gate.is_open, gate.cause, gate.settle))

    # Actions --------------------------------------------------------------------------------------------------------

    def _perform(self, action: Action, nursery: trio.Nursery) -> None:
        match action:
            case Report():
                self._enter(action)
            case StartChild(id=name, incarnation=incarnation):
                self._spawn(name, incarnation, nursery)
            case DrainChild(id=name) if name in self.running:
                self.running[name].child.draining.set()
            case CancelChild(id=name, reason=reason, cut=cut) if name in self.running:
                self.running[name].order_off(reason, cut)
            case CheckProgress(id=name, incarnation=incarnation) if name in self.running:
                self._post(ProgressSeen(name, incarnation, self.running[name].child.last_progress))
            case DrainChild() | CancelChild() | CheckProgress():
                pass  # Its end is in the inbox already: it left by itself in this very tick.
            case Settled():
                if self.child is not None:
                    self.child.started()
                else:
                    self._enter(Report(kind=LifecycleKind.TREE_READY, subject=self.supervisor.id))
            case Stuck():
                if self.child is not None:
                    self.child._on_stuck()
            case Finish(error=error):
                self._error = error

    def _enter(self, report: Report) -> None:
        if report.kind is LifecycleKind.CHILD_STUCK and not report.reason:
            report = _with_frames(report, self.running[report.subject])
        own = report.kind in (LifecycleKind.TREE_READY, LifecycleKind.SUPERVISOR_GAVE_UP)
        path = self.house.path if own else f"{self.house.path}/{report.subject}"
        self.house.journal.enter(report, path, self.house.path)

    def _spawn(self, name: str, incarnation: int, nursery: trio.Nursery) -> None:
        path = f"{self.house.path}/{name}"
        child = Child(
            path,
            incarnation,
            on_ready=lambda: self._post(ChildReady(name, incarnation)),
            on_stuck=lambda: self._post(ChildStuck(name, incarnation)),
        )
        self.running[name] = running = _Running(child, trio.CancelScope(shield=True))
        nursery.start_soon(self._attend, running, self.core.children[name].spec, name=path)

    async def _attend(self, running: _Running, spec: ChildSpec) -> None:
        """The boundary of a child: nothing that it raises gets past this point, and nothing is lost."""
        running.task = trio.lowlevel.current_task()
        raised: BaseException | None = None
        try:
            with running.scope:
                try:
                    await spec.body(running.child)
                except BaseException as error:  # noqa: BLE001 - this is the boundary: it judges what came out
                    raised = error
        except BaseException as misnested:  # noqa: BLE001 - trio's word on a cancel scope that the body left open
            misnested.__context__ = raised
            raised = misnested
        outcome = evolve(outcome_of(raised), unasked=not running.child.draining.is_set())
        self.running.pop(spec.id, None)
        self._post(ChildEnded(spec.id, running.child.incarnation, outcome))
        del raised, outcome  # the traceback holds this frame: no cycle, whose garbage a storm would pile up


def _with_frames(report: Report, running: _Running) -> Report:
    """The stuck report, with the lines of code at which the child is waiting."""
    where = " < ".join(reversed(list(_frames(running.task)))) or "unknown"
    return evolve(report, reason=f"still running {report.seconds:g} s after the cancel; waiting at {where}")


def _frames(task: trio.lowlevel.Task | None) -> Iterator[str]:
    if task is None:
        return
    for frame, line in task.iter_await_frames():
        yield f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{line})"
