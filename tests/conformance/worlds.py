"""What tests of the conformance list share: children, and what a supervisor says of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from trees import PLAIN, child, look, make, of_kind

from penstock.runtime.supervision import (
    AutoShutdown,
    Body,
    Child,
    ChildCounts,
    ChildHandle,
    Ignore,
    Intensity,
    LifecycleEvent,
    Pool,
    Restart,
    Shutdown,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import Misbehaved, steady

__all__ = [
    "GROUPS",
    "HOUR",
    "KEPT",
    "LEAVING",
    "NO_BUDGET",
    "PLAIN",
    "child",
    "counts",
    "end",
    "events_of",
    "fails",
    "handles",
    "idle",
    "ignores",
    "in_turn",
    "look",
    "make",
    "of_kind",
    "states",
]

HOUR = 3600.0

NO_BUDGET = Intensity(0, HOUR)
"""The first restart would be the end."""

KEPT = [Restart.PERMANENT, Restart.TRANSIENT]
"""Whose specification stays when the child has ended."""

GROUPS = [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE]

LEAVING = [AutoShutdown.ANY_SIGNIFICANT, AutoShutdown.ALL_SIGNIFICANT]


# Bodies that take arguments, for pools too. --------------------------------------------------------------------------


idle: Body = steady()


async def ignores(child: Child, *args: object) -> None:
    """Has nothing to run."""
    raise Ignore("nothing to run")


async def fails(child: Child, *args: object) -> None:
    """Raises before it is ready."""
    raise Misbehaved("it does not start")


def in_turn(*bodies: Body) -> Body:
    """In each of its lives the next of `bodies`, and in all later ones the last. In a pool: each start, of whomever."""
    left = list(bodies)

    async def body(child: Child, *args: object) -> None:
        await (left.pop(0) if len(left) > 1 else left[0])(child, *args)

    return body


def end(way: str) -> None:
    """End in that way, as a body's last act; the way "return" is to do nothing."""
    match way:
        case "bow out":
            raise Shutdown
        case "bow out with a word":
            raise Shutdown("enough")
        case "crash":
            raise Misbehaved


# What a supervisor says. ---------------------------------------------------------------------------------------------


def states(root: Supervisor | Pool) -> dict[str, str]:
    """In start order."""
    return {entry.id: entry.state for entry in reversed(root.which_children())}


def handles(root: Supervisor | Pool) -> dict[str, ChildHandle | None]:
    """In start order."""
    return {entry.id: entry.handle for entry in reversed(root.which_children())}


def counts(root: Supervisor | Pool) -> tuple[int, int, int, int]:
    """Specifications, active, supervisors, workers: in the order of the list."""
    said: ChildCounts = root.count_children()
    return said.specs, said.active, said.supervisors, said.workers


@contextmanager
def events_of(tree: Tree) -> Iterator[list[LifecycleEvent]]:
    """A list that has, after the block, all events that came in it."""
    told: list[LifecycleEvent] = []
    with tree.subscribe() as events:
        yield told
        told.extend(events.drain())
