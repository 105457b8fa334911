"""Supervision: children, strategies, restart budgets, gates, an ordered stop, and a view of all of it.

Usable by itself in any trio program::

    tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=worker)]))
    trio.run(tree.run)
"""

from .check import Finding
from .child import Child
from .errors import (
    AlreadyPresent,
    AlreadyStarted,
    ChildIsStuck,
    Escalated,
    GateCycle,
    HeldTooLong,
    Ignore,
    InvalidSpec,
    IsAPool,
    NotFound,
    NotRunning,
    PoolFull,
    RestartLimitExceeded,
    Shutdown,
    Stalled,
    StartFailed,
    StartTimeout,
    StillRestarting,
    StillRunning,
    SupervisionError,
    UnknownGate,
)
from .events import Journal, LifecycleEvent, LifecycleKind, Subscription
from .gates import Gate, Gates, GateView
from .handle import ChildHandle
from .listing import ChildCounts, ChildEntry
from .names import Names
from .outcome import ErrorInfo
from .plan import Builder, Changes, Plan
from .pool import Pool
from .signals import stop_on_signals
from .spec import (
    CUT,
    AutoShutdown,
    Backoff,
    Body,
    ChildSpec,
    Cut,
    Decay,
    Directive,
    Intensity,
    Kind,
    Restart,
    Rule,
    Strategy,
    check_specs,
)
from .supervisor import Supervisor
from .tree import Ending, Tree
from .view import ChildView, Snapshot

__all__ = [
    "CUT",
    "AlreadyPresent",
    "AlreadyStarted",
    "AutoShutdown",
    "Backoff",
    "Body",
    "Builder",
    "Changes",
    "Child",
    "ChildCounts",
    "ChildEntry",
    "ChildHandle",
    "ChildIsStuck",
    "ChildSpec",
    "ChildView",
    "Cut",
    "Decay",
    "Directive",
    "Ending",
    "ErrorInfo",
    "Escalated",
    "Finding",
    "Gate",
    "GateCycle",
    "GateView",
    "Gates",
    "HeldTooLong",
    "Ignore",
    "Intensity",
    "InvalidSpec",
    "IsAPool",
    "Journal",
    "Kind",
    "LifecycleEvent",
    "LifecycleKind",
    "Names",
    "NotFound",
    "NotRunning",
    "Plan",
    "Pool",
    "PoolFull",
    "Restart",
    "RestartLimitExceeded",
    "Rule",
    "Shutdown",
    "Snapshot",
    "Stalled",
    "StartFailed",
    "StartTimeout",
    "StillRestarting",
    "StillRunning",
    "Strategy",
    "Subscription",
    "SupervisionError",
    "Supervisor",
    "Tree",
    "UnknownGate",
    "check_specs",
    "stop_on_signals",
]
