"""The views of a tree: a snapshot of everything, as plain values. Taken without a wait, and so consistent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import trio
from attrs import evolve, frozen

from .listing import state_of
from .messages import Phase
from .nested import Nested

if TYPE_CHECKING:
    from ..mailbox import MailboxStatistics
    from .boundary import Incarnation
    from .declaration import Declaration
    from .gates import GateView
    from .outcome import ErrorInfo
    from .run import Run
    from .spec import ChildSpec
    from .state import ChildState

__all__ = ["ChildView", "Snapshot", "view_of_root"]


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
        strategy: of a supervisor; of a pool ``pool``.
        restarts_left: of a supervisor: what is left of its budget.
        children: of a supervisor, in start order.
        name: the registered name, if it has one.
        mailboxes: how full its mailboxes are.
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
    name: str | None = None
    mailboxes: tuple[MailboxStatistics, ...] = ()

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


_PHASES = {
    Phase.NEW: "waiting",
    Phase.STARTING: "starting",
    Phase.RUNNING: "running",
    Phase.STOPPING: "stopping",
    Phase.DONE: "ended",
}


def view_of_root(root: Declaration) -> ChildView:
    """The whole tree below `root`, itself included."""
    run = root.run
    state = _PHASES[run.core.phase if run is not None else Phase.NEW]
    view = ChildView(id=root.id, path=root.id, kind="supervisor", state=state, incarnation=1)
    return _with_children(view, root, run)


def _with_children(view: ChildView, declaration: Declaration, run: Run | None) -> ChildView:
    """A supervisor's view, with what it is as a supervisor; without a `run` as it was declared."""
    if run is None:
        specs = () if declaration.is_pool else declaration.own_specs
        state = "ended" if view.state in ("stopping", "stuck", "ended") else "waiting"
        children = tuple(_without_task(spec, view.path, state) for spec in specs)
        return evolve(view, strategy=_strategy(declaration, None), children=children)
    return evolve(
        view,
        strategy=_strategy(declaration, run),
        restarts_left=None if run.is_over else run.core.budget.left(trio.current_time()),
        children=tuple(_view(child, run) for child in run.core.children),
    )


def _strategy(declaration: Declaration, run: Run | None) -> str:
    if declaration.is_pool:
        return "pool"
    return (declaration.plan if run is None else run.core.plan).strategy.value


def _without_task(spec: ChildSpec, above: str, state: str) -> ChildView:
    view = ChildView(id=spec.id, path=f"{above}/{spec.id}", kind=spec.kind.value, state=state, name=spec.name)
    if isinstance(spec.body, Nested):
        return _with_children(view, spec.body.declaration, None)
    return view


def _view(child: ChildState, run: Run) -> ChildView:
    running = run.running.get(child.spec.id)
    state, gate = state_of(child, run.core), run.core.held_by(child)
    root = run.house.gates[gate].root if gate is not None and state == "held" else None
    wait = child.not_before - trio.current_time() if state == "backoff" else 0.0
    view = ChildView(
        id=child.spec.id,
        path=f"{run.path}/{child.spec.id}",
        kind=child.spec.kind.value,
        state=state,
        incarnation=child.incarnation,
        restarts=child.restarts,
        held_by=root[0] if root is not None else _told(child, run, state),
        # The gate knows the latest cause; it may just have been opened.
        cause=root[1] if root is not None else (run.core.shut[gate] if gate is not None and state == "held" else None),
        next_start_in=wait if wait > 0 else None,
        note=running.child.text if running is not None else "",
        last_error=child.last_error,
        name=child.spec.name,
        mailboxes=tuple(mailbox.statistics() for mailbox in child.spec.mailboxes),
    )
    declaration = _declaration(child, running)
    return view if declaration is None else _with_children(view, declaration, _alive(declaration, running))


def _told(child: ChildState, run: Run, state: str) -> str | None:
    gate = run.core.held_by(child)
    return run.core.name_of(gate) if gate is not None and state == "held" else None


def _declaration(child: ChildState, running: Incarnation | None) -> Declaration | None:
    """The supervisor that the child is: the one that runs, which a change of plan may have replaced already."""
    if running is not None:
        return running.nested
    return child.spec.body.declaration if isinstance(child.spec.body, Nested) else None


def _alive(declaration: Declaration, running: Incarnation | None) -> Run | None:
    """The life of the present incarnation: one that is over says nothing of a supervisor that is started again."""
    run = declaration.run
    return run if run is not None and running is not None and run.child is running.child else None
