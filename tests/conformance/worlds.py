"""What tests of the conformance list share: children, and what a supervisor says of them."""

from __future__ import annotations

from typing import Any

import trio

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildCounts,
    ChildHandle,
    ChildSpec,
    Ignore,
    Pool,
    Supervisor,
)
from penstock.runtime.testing import Misbehaved, steady

__all__ = ["PLAIN", "child", "counts", "fails", "handles", "idle", "ignores", "in_turn", "states"]

PLAIN = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)


def child(name: str, body: Body | None = None, /, **options: Any) -> ChildSpec:
    """A specification with a backoff of whole seconds; without a body it works well."""
    return ChildSpec(id=name, body=body or steady(), **{"backoff": PLAIN, **options})


# Bodies that take arguments, for pools too. --------------------------------------------------------------------------


async def idle(child: Child, *args: object) -> None:
    """Works well."""
    child.started()
    await trio.sleep_forever()


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
