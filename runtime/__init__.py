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
    from .mailbox import AskTimeout, Inbox, Mailbox, MailboxStatistics, PeerDied, Reply
    from .supervision import (
        Backoff,
        Body,
        Child,
        ChildSpec,
        ChildView,
        ErrorInfo,
        Gate,
        Gates,
        GateView,
        Intensity,
        InvalidSpec,
        Journal,
        Kind,
        LifecycleEvent,
        LifecycleKind,
        Restart,
        RestartLimitExceeded,
        Snapshot,
        Stalled,
        StartFailed,
        StartTimeout,
        Strategy,
        Subscription,
        SupervisionError,
        Supervisor,
        Tree,
        UnknownGate,
    )

__all__ = [
    "AskTimeout",
    "Backoff",
    "Body",
    "Child",
    "ChildSpec",
    "ChildView",
    "ErrorInfo",
    "Gate",
    "GateView",
    "Gates",
    "Inbox",
    "Intensity",
    "InvalidSpec",
    "Journal",
    "Kind",
    "LifecycleEvent",
    "LifecycleKind",
    "Mailbox",
    "MailboxStatistics",
    "PeerDied",
    "Reply",
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

_OF_MAILBOX = {"AskTimeout", "Inbox", "Mailbox", "MailboxStatistics", "PeerDied", "Reply"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(".mailbox" if name in _OF_MAILBOX else ".supervision", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
