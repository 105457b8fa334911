"""Supervision: children, strategies, restart budgets, gates, an ordered stop, and a view of all of it.

Usable by itself in any trio program::

    tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=worker)]))
    trio.run(tree.run)
"""

from .child import Child
from .errors import (
    InvalidSpec,
    RestartLimitExceeded,
    Stalled,
    StartFailed,
    StartTimeout,
    SupervisionError,
    UnknownGate,
)
from .events import Journal, LifecycleEvent, LifecycleKind, Subscription
from .gates import Gate, Gates, GateView
from .outcome import ErrorInfo
from .spec import Backoff, Body, ChildSpec, Intensity, Kind, Restart, Strategy
from .supervisor import Supervisor
from .tree import ChildView, Snapshot, Tree

__all__ = [
    "Backoff",
    "Body",
    "Child",
    "ChildSpec",
    "ChildView",
    "ErrorInfo",
    "Gate",
    "GateView",
    "Gates",
    "Intensity",
    "InvalidSpec",
    "Journal",
    "Kind",
    "LifecycleEvent",
    "LifecycleKind",
    "Restart",
    "RestartLimitExceeded",
    "Snapshot",
    "Stalled",
    "StartFailed",
    "StartTimeout",
    "Strategy",
    "Subscription",
    "SupervisionError",
    "Supervisor",
    "Tree",
    "UnknownGate",
]
