"""Supervision and mailboxes for any trio program; below it, the links to Redis, PostgreSQL and processes.

The names here are the public interface of supervision, which needs nothing else of Penstock::

    from penstock.runtime import ChildSpec, Supervisor, Tree

    tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=worker)]))
    trio.run(tree.run)

They are loaded when they are first asked for: a command that needs no trio does not wait for its import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .mailbox import (
        AskTimeout,
        Deadlock,
        Inbox,
        Mailbox,
        MailboxClosed,
        MailboxStatistics,
        Overflow,
        Overloaded,
        PeerDied,
        Reply,
    )
    from .supervision import (
        CUT,
        AlreadyPresent,
        AlreadyStarted,
        AutoShutdown,
        Backoff,
        Body,
        Builder,
        Changes,
        Child,
        ChildCounts,
        ChildEntry,
        ChildHandle,
        ChildIsStuck,
        ChildSpec,
        ChildView,
        Cut,
        Decay,
        Directive,
        Ending,
        ErrorInfo,
        Escalated,
        Finding,
        Gate,
        GateCycle,
        Gates,
        GateView,
        HeldTooLong,
        Ignore,
        Intensity,
        InvalidSpec,
        IsAPool,
        Journal,
        Kind,
        LifecycleEvent,
        LifecycleKind,
        Names,
        NotFound,
        NotRunning,
        Plan,
        Pool,
        PoolFull,
        Restart,
        RestartLimitExceeded,
        Rule,
        Shutdown,
        Snapshot,
        Stalled,
        StartFailed,
        StartTimeout,
        StillRestarting,
        StillRunning,
        Strategy,
        Subscription,
        SupervisionError,
        Supervisor,
        Tree,
        UnknownGate,
        check_specs,
        stop_on_signals,
    )

__all__ = [
    "CUT",
    "AlreadyPresent",
    "AlreadyStarted",
    "AskTimeout",
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
    "Deadlock",
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
    "Inbox",
    "Intensity",
    "InvalidSpec",
    "IsAPool",
    "Journal",
    "Kind",
    "LifecycleEvent",
    "LifecycleKind",
    "Mailbox",
    "MailboxClosed",
    "MailboxStatistics",
    "Names",
    "NotFound",
    "NotRunning",
    "Overflow",
    "Overloaded",
    "PeerDied",
    "Plan",
    "Pool",
    "PoolFull",
    "Reply",
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

_OF_MAILBOX = {
    "AskTimeout",
    "Deadlock",
    "Inbox",
    "Mailbox",
    "MailboxClosed",
    "MailboxStatistics",
    "Overflow",
    "Overloaded",
    "PeerDied",
    "Reply",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".mailbox" if name in _OF_MAILBOX else ".supervision", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
