"""What the tests of whole trees share: specifications, trees, and what to see of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from playing import PLAIN

from penstock.runtime.supervision import (
    Body,
    ChildSpec,
    ChildView,
    Gates,
    LifecycleEvent,
    LifecycleKind,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import steady

__all__ = ["PLAIN", "child", "look", "make", "of_kind"]


def child(name: str, body: Body | None = None, /, **options: Any) -> ChildSpec:
    """A specification with a backoff of whole seconds; without a body it works well."""
    return ChildSpec(id=name, body=body or steady(), **{"backoff": PLAIN, **options})


def make(*specs: ChildSpec, gates: Gates | None = None, **options: Any) -> Tree:
    """A tree of these, under a supervisor "app" with these options."""
    return Tree(Supervisor("app", specs, **options), gates=gates, seed=1)


def look(tree: Tree, path: str) -> ChildView:
    """What the snapshot shows of a child; it must be there."""
    view = tree.snapshot().find(path)
    assert view is not None
    return view


def of_kind(events: Iterable[LifecycleEvent], kind: LifecycleKind) -> list[LifecycleEvent]:
    return [event for event in events if event.kind is kind]
