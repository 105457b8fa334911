"""A supervision tree: its root, its gates, its journal, and the views of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime

import trio
from attrs import frozen

from .core import ChildState, Phase, Status
from .events import Journal, LifecycleKind, Report, Subscription
from .gates import Gates, GateView
from .outcome import ErrorInfo
from .supervisor import Nested, Run, Supervisor, _House

__all__ = ["ChildView", "Snapshot", "Tree"]


@frozen(kw_only=True)
class ChildView:
    """A child at one moment.

    Attributes:
        id: its name among its siblings.
        path: its place in the tree.
        kind: ``worker`` or ``supervisor``.
        state: ``waiting`` (its turn has not come), ``starting``, ``running``, ``draining or stopping`` as ``stopping``,
            ``stuck``, ``held``, ``backoff``, or ``ended`` (it ended by itself and is not started again).
        incarnation: how often it was started.
        restarts: how often it was started again because it ended by itself; holds do not count.
        held_by: the shut gate that holds it.
        cause: why that gate is shut.
        next_start_in: seconds until its next start, in backoff.
        note: what it says of itself.
        last_error: what it last crashed with.
        strategy: of a supervisor.
        restarts_left: of a supervisor: what is left of its budget.
        children: of a supervisor, in start order.
    """

    id: str
    path: str
    kind: str
    state: str
    incarnation: int = 0
    restarts: int = 0
    held_by: str | None = None
    cause: str | None = None
    next_start_in: float | None = None
    note: str = ""
    last_error: ErrorInfo | None = None
    strategy: str | None = None
    restarts_left: int | None = None
    children: tuple[ChildView, ...] = ()

    def walk(self) -> Iterator[ChildView]:
        """Itself and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


@frozen(kw_only=True)
class Snapshot:
    """The whole tree at one moment; consistent, because nothing is awaited while it is taken.

    Attributes:
        time: wall-clock time, aware, UTC.
        sequence: of the last lifecycle event it reflects.
        root: the root supervisor.
        gates: all gates.
    """

    time: datetime
    sequence: int
    root: ChildView
    gates: tuple[GateView, ...]

    def find(self, path: str) -> ChildView | None:
        """The child at `path`, or None."""
        return next((view for view in self.root.walk() if view.path == path), None)


class Tree:
    """A supervision tree.

    Args:
        root: its root supervisor.
        gates: the gates that its children require. Default: none.
        seed: of the jitter of backoffs; a random one unless a test brings its own.

    Raises:
        UnknownGate: a child requires a gate that is not among `gates`.
    """

    def __init__(self, root: Supervisor, *, gates: Gates | None = None, seed: int | None = None) -> None:
        self.root = root
        self.gates = gates if gates is not None else Gates()
        self.journal: Journal = self.gates.journal
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._stopping = ""
        root.settle_in(_House(self.gates, self.journal, root.id))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the tree and keep it until it is stopped.

        `task_status.started()` is called when the tree is being started, not when it is up: wait for `ready` for that.
        Blocks until all children are gone. Cancelled, it stops them in order, without drains, before it lets the
        cancellation through.

        Raises:
            StartFailed: a child failed in its first start.
            RestartLimitExceeded: the root gave up.
        """
        task_status.started()
        try:
            await self.root.serve(seed=self._seed)
        finally:
            self._report(LifecycleKind.TREE_STOPPED, self._stopping)

    def stop(self, reason: str, *, cut: bool = False) -> None:
        """Order the stop: the children leave in reverse order. Returns at once. `cut` leaves out all drains.

        A second call with `cut` hastens a stop that is under way. Without a running tree nothing happens.
        """
        run = self.root.run
        if run is None:
            return
        if not self._stopping:
            self._stopping = reason
            self._report(LifecycleKind.TREE_STOPPING, reason)
        run.stop(reason, cut=cut)
        if cut:
            _cut_below(run, reason)

    def subscribe(self, buffer: int = 10_000) -> AbstractContextManager[Subscription]:
        """``with tree.subscribe() as events: async for event in events: …``; see `Journal.subscribe`."""
        return self.journal.subscribe(buffer)

    async def ready(self) -> None:
        """Block until all children are up, or held."""
        with self.subscribe() as events:
            while self.root.run is None or self.root.run.core.phase is not Phase.RUNNING:
                await events.next()

    def snapshot(self) -> Snapshot:
        """The tree now. Never blocks; may be called at any time."""
        recent = self.journal.recent
        return Snapshot(
            time=self.journal.wall(),
            sequence=recent[-1].sequence if recent else 0,
            root=_view_supervisor(self.root, self.root.id, self.root.run, None),
            gates=self.gates.view(),
        )

    def _report(self, kind: LifecycleKind, reason: str) -> None:
        self.journal.enter(Report(kind=kind, subject=self.root.id, reason=reason), self.root.id, self.root.id)


def _cut_below(run: Run, reason: str) -> None:
    for spec in run.supervisor.children:
        if isinstance(spec.body, Nested) and spec.id in run.running:
            below = spec.body.supervisor.run
            if below is not None:
                below.stop(reason, cut=True)
                _cut_below(below, reason)


def _view_supervisor(supervisor: Supervisor, path: str, run: Run | None, as_child: ChildView | None) -> ChildView:
    children = tuple(_view(spec.id, path, supervisor, run) for spec in supervisor.children)
    state = as_child.state if as_child is not None else _PHASES[run.core.phase if run is not None else Phase.NEW]
    return ChildView(
        id=supervisor.id,
        path=path,
        kind="supervisor",
        state=state,
        incarnation=as_child.incarnation if as_child is not None else 1,
        restarts=as_child.restarts if as_child is not None else 0,
        held_by=as_child.held_by if as_child is not None else None,
        cause=as_child.cause if as_child is not None else None,
        next_start_in=as_child.next_start_in if as_child is not None else None,
        last_error=as_child.last_error if as_child is not None else None,
        strategy=supervisor.strategy.value,
        restarts_left=run.core.budget.left(trio.current_time()) if run is not None else None,
        children=children,
    )


_PHASES = {
    Phase.NEW: "waiting",
    Phase.STARTING: "starting",
    Phase.RUNNING: "running",
    Phase.STOPPING: "stopping",
    Phase.DONE: "ended",
}


def _view(name: str, above: str, supervisor: Supervisor, run: Run | None) -> ChildView:
    path = f"{above}/{name}"
    spec = next(spec for spec in supervisor.children if spec.id == name)
    state = run.core.children[name] if run is not None else None
    if state is None or run is None:
        view = ChildView(id=name, path=path, kind=spec.kind.value, state="waiting")
    else:
        view = _view_child(state, path, run)
    if isinstance(spec.body, Nested):
        below = spec.body.supervisor
        # A run that is over says nothing of a supervisor that has not been started again.
        alive = below.run if run is not None and name in run.running else None
        return _view_supervisor(below, path, alive, view)
    return view


def _view_child(child: ChildState, path: str, run: Run) -> ChildView:
    running = run.running.get(child.spec.id)
    gate = run.core.held_by(child) if child.status is Status.DOWN and child.goal else None
    wait = child.not_before - trio.current_time()
    return ChildView(
        id=child.spec.id,
        path=path,
        kind=child.spec.kind.value,
        state=_state(child, gate, run.core.phase),
        incarnation=child.incarnation,
        restarts=child.restarts,
        held_by=gate,
        cause=run.core.shut[gate] if gate else None,
        next_start_in=max(0.0, wait) if child.status is Status.DOWN and child.goal and wait > 0 else None,
        note=running.child.text if running is not None else "",
        last_error=child.last_error,
    )


def _state(child: ChildState, gate: str | None, phase: Phase) -> str:
    if child.status is not Status.DOWN:
        return "stuck" if child.stuck else child.status.value
    if gate is not None:
        return "held"
    if phase in (Phase.STOPPING, Phase.DONE) or not child.goal:
        return "ended"
    return "backoff" if child.incarnation else "waiting"
