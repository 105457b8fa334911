"""A supervision tree: its root, its gates, its journal, and the views of them."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from datetime import datetime

import trio
from attrs import frozen

from .errors import InvalidSpec
from .events import Journal, LifecycleKind, Report, Subscription
from .gates import Gates, GateView
from .messages import Grace, Phase, Status
from .outcome import ErrorInfo
from .state import ChildState
from .supervisor import Nested, Run, Supervisor, _House

__all__ = ["ChildView", "Snapshot", "Tree"]


@frozen(kw_only=True)
class ChildView:
    """A child at one moment.

    Attributes:
        id: its name among its siblings.
        path: its place in the tree.
        kind: ``worker`` or ``supervisor``.
        state: ``waiting`` (for its turn, or for its gate to settle), ``starting``, ``running``, ``stopping`` (draining
            included), ``stuck``, ``held``, ``backoff``, or ``ended`` (it ended by itself and is not started again).
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
    """A supervision tree. It runs once; to run another, build it anew, supervisors and gates included.

    Args:
        root: its root supervisor.
        gates: the gates that its children require. Default: none.
        seed: of the jitter of backoffs; a random one unless a test brings its own.

    Raises:
        UnknownGate: a child requires a gate that is not among `gates`.
        InvalidSpec: the gates, or one of the supervisors, belong to another tree.
    """

    def __init__(self, root: Supervisor, *, gates: Gates | None = None, seed: int | None = None) -> None:
        self.root = root
        self.gates = gates if gates is not None else Gates()
        self.journal: Journal = self.gates.journal
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._stopping: str | None = None
        self._begun = False
        if self.journal.is_closed:
            raise InvalidSpec(f"the gates of {root.id!r} belonged to a tree that has ended; make new ones")
        root.settle_in(_House(self.gates, self.journal, root.id))

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the tree and keep it until it is stopped.

        `task_status.started()` is called when the tree is being started, not when it is up: wait for `ready` for that.
        Blocks until all children are gone. Cancelled, it stops them in order, without drains, before it lets the
        cancellation through.

        Raises:
            StartFailed: a child failed in its first start.
            RestartLimitExceeded: the root gave up.
            RuntimeError: it was run before.
            BaseException: what a child raised that ends the process (`KeyboardInterrupt`, `SystemExit`, …).
        """
        if self._begun:
            raise RuntimeError(f"the tree {self.root.id!r} was run before; a tree runs once, build another one")
        self._begun = True
        task_status.started()
        try:
            if self._stopping is None:
                await self.root.serve(seed=self._seed)
            else:
                await trio.lowlevel.checkpoint()  # stopped before it began: nobody is started
        finally:
            self._report(LifecycleKind.TREE_STOPPED, self._stopping or "")
            self.journal.close()

    def stop(self, reason: str, *, cut: bool = False) -> None:
        """Order the stop: the children leave in reverse order. Returns at once. `cut` leaves out all drains.

        A second call with `cut` hastens a stop that is under way: drains end, and who is leaving sees `Child.cut`; the
        order is kept. Before `run` it makes `run` return without starting anybody; after the end nothing happens.
        """
        if self.journal.is_closed:
            return
        if self._stopping is None:
            self._stopping = reason
            self._report(LifecycleKind.TREE_STOPPING, reason)
        if self.root.run is not None:
            self.root.run.stop(reason, Grace.CUT if cut else Grace.DRAIN)

    def subscribe(self, buffer: int = 10_000) -> AbstractContextManager[Subscription]:
        """``with tree.subscribe() as events: async for event in events: …``; see `Journal.subscribe`.

        The iteration ends after ``TREE_STOPPED``, the last event of every tree.
        """
        return self.journal.subscribe(buffer)

    async def ready(self) -> bool:
        """Block until all children are up, or held. False if the tree ends without; why, `run` raises."""
        with self.subscribe() as events:
            if self.root.run is not None and self.root.run.core.phase is Phase.RUNNING:
                return True
            async for event in events:
                if event.kind is LifecycleKind.TREE_READY:
                    return True
        return False

    def snapshot(self) -> Snapshot:
        """The tree now. Never blocks; may be called at any time."""
        return Snapshot(
            time=self.journal.wall(),
            sequence=self.journal.sequence,
            root=_view_supervisor(self.root, self.root.id, self.root.run, None),
            gates=self.gates.view(),
        )

    def _report(self, kind: LifecycleKind, reason: str) -> None:
        self.journal.enter(Report(kind=kind, subject=self.root.id, reason=reason), self.root.id, self.root.id)


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
        restarts_left=run.core.budget.left(trio.current_time()) if run is not None and not run.is_over else None,
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
        return _view_supervisor(below, path, _alive(below, name, run), view)
    return view


def _alive(below: Supervisor, name: str, above: Run | None) -> Run | None:
    """The run of `below`'s present incarnation: one that is over says nothing of a supervisor that is started again."""
    running = above.running.get(name) if above is not None else None
    return below.run if running is not None and below.run is not None and below.run.child is running.child else None


def _view_child(child: ChildState, path: str, run: Run) -> ChildView:
    running = run.running.get(child.spec.id)
    state, gate = _state(child, run), run.core.held_by(child)
    held = gate is not None and state == "held"
    wait = child.not_before - trio.current_time() if state == "backoff" else 0.0
    return ChildView(
        id=child.spec.id,
        path=path,
        kind=child.spec.kind.value,
        state=state,
        incarnation=child.incarnation,
        restarts=child.restarts,
        held_by=gate if held else None,
        # The gate knows the latest cause; it may just have been opened.
        cause=(run.house.gates[gate].cause or run.core.shut[gate]) if gate is not None and held else None,
        next_start_in=wait if wait > 0 else None,
        note=running.child.text if running is not None else "",
        last_error=child.last_error,
    )


def _state(child: ChildState, run: Run) -> str:
    if child.status is not Status.DOWN:
        return "stuck" if child.stuck else child.status.value
    if run.core.phase in (Phase.STOPPING, Phase.DONE) or not child.goal:
        return "ended"
    if run.core.held_by(child) is not None:
        return "held"
    # A gate's opening wipes the crashes out: then it waits for the gate to settle, or for its group.
    return "backoff" if child.crashes else "waiting"
