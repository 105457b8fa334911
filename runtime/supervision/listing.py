"""What a running supervisor answers when it is asked about its children: lists and counts.

Source: ``which_children``, ``which_child`` and ``count_children`` of OTP's ``supervisor``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from .errors import NotFound
from .messages import Phase, Status
from .spec import Kind

if TYPE_CHECKING:
    from .core import Core
    from .handle import ChildHandle
    from .run import Run
    from .state import ChildState

__all__ = ["ChildCounts", "ChildEntry", "counts_of", "entries_of", "entry_of", "state_of"]


@frozen(kw_only=True)
class ChildEntry:
    """A child in a list.

    Attributes:
        id: its name among its siblings.
        handle: its living incarnation; None while there is none. In a pool, whose children have no other name, that
            of the last one, or of the one to come where a gate has held it from the start; not alive then.
        state: as `ChildView.state`.
        kind: worker or supervisor.
    """

    id: str
    handle: ChildHandle | None
    state: str
    kind: Kind


@frozen(kw_only=True)
class ChildCounts:
    """How many children a supervisor has.

    Attributes:
        specs: specifications, of stopped children too; of a pool 1.
        active: children that are there: with a task, and not in a restart that has not come up yet.
        supervisors: children that are supervisors, active or not.
        workers: children that are not, active or not.
    """

    specs: int
    active: int
    supervisors: int
    workers: int


def state_of(child: ChildState, core: Core) -> str:
    """The word for what a child is doing; see `ChildView.state`."""
    if child.status is not Status.DOWN:
        return "stuck" if child.stuck else child.status.value
    if core.phase in (Phase.STOPPING, Phase.DONE) or not child.goal:
        return "ended"
    if core.held_by(child) is not None:
        return "held"
    # A gate's opening wipes the crashes out: then it waits for the gate to settle, or for its group.
    return "backoff" if child.failing else "waiting"


def entries_of(run: Run) -> list[ChildEntry]:
    """All children, the newest first."""
    return [_entry(child, run) for child in reversed(run.core.children)]


def entry_of(run: Run, name: str) -> ChildEntry:
    """One child; raises `NotFound`."""
    child = run.core.children.get(name)
    if child is None:
        raise NotFound(f"there is no child {name!r} of {run.path}")
    return _entry(child, run)


def counts_of(run: Run) -> ChildCounts:
    """How many there are."""
    children = list(run.core.children)
    supervisors = sum(1 for child in children if child.spec.kind is Kind.SUPERVISOR)
    return ChildCounts(
        specs=1 if run.is_pool else len(children),
        active=sum(1 for child in children if _is_active(child)),
        supervisors=supervisors,
        workers=len(children) - supervisors,
    )


def _entry(child: ChildState, run: Run) -> ChildEntry:
    name = child.spec.id
    handle = run.handle_of(name)
    if handle is not None and not handle.is_alive:
        handle = None  # its end is known, and not yet taken in
    if handle is None and run.is_pool:
        handle = run.stand_in(name, max(child.incarnation, 1))
    return ChildEntry(id=name, handle=handle, state=state_of(child, run.core), kind=child.spec.kind)


def _is_active(child: ChildState) -> bool:
    return child.status is not Status.DOWN and not (child.status is Status.STARTING and child.failing)
