"""Lifecycle events in words: the story of an outage, told to whoever is woken by it.

One line a fact. Levels are for the operator at three in the morning: *error* is what somebody must look at, *warning*
is an outage that mends itself when its cause is gone, *info* is what came and went, *debug* the steps in between.

The words are found once, by `Story`; the log (`LifecycleLog`) and ``penstock tree --follow`` show them each in its way.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import structlog
import trio
from attrs import frozen

from ..output import duration
from ..supervision.events import LifecycleEvent, LifecycleKind, Subscription
from .setup import get_logger

if TYPE_CHECKING:
    from ..supervision.tree import Tree

__all__ = ["LifecycleLog", "Story", "Told", "log_lifecycle"]


@frozen(kw_only=True)
class Told:
    """One event in words.

    Attributes:
        level: ``debug``, ``info``, ``warning``, ``error`` or ``critical``.
        subject: the path of the child, or the gate's name.
        words: what happened to it: ``is back``.
        facts: what else is known, by the name that it has in the log; durations, in seconds, end in ``_seconds``.
        said: the names of facts that the words, or those of the event before, have said already.
    """

    level: str
    subject: str
    words: str
    facts: dict[str, Any]
    said: tuple[str, ...] = ()


async def log_lifecycle(tree: Tree, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Log everything that happens to `tree`, to the very end: see `LifecycleLog`.

    ``await nursery.start(log_lifecycle, tree)`` before the tree is run, and nothing is missed. Returns when the tree
    has ended. Call `configure_logging` first, or set up the standard library's logging in any other way.
    """
    with tree.subscribe() as events:
        task_status.started()
        await LifecycleLog().follow(events)


class LifecycleLog:
    """Turns the lifecycle events of one tree into log lines.

    In JSON every line has ``lifecycle`` (the kind), ``child`` or ``gate``, ``sequence``, and ``caused_by`` (the
    sequence of the event that brought it about); on a terminal these are left out, for the text says them.

    Args:
        logger: where to. Default: ``penstock.lifecycle``.
    """

    def __init__(self, logger: structlog.stdlib.BoundLogger | None = None) -> None:
        self._log = logger if logger is not None else get_logger("penstock.lifecycle")
        self._story = Story()

    async def follow(self, events: Subscription) -> None:
        """Log every event from now on. Runs until it is cancelled; what has happened by then is logged, too."""
        told = 0
        try:
            async for event in events:
                self.record(event)
                if events.missed > told:
                    self._log.warning("lifecycle events missed by the log", count=events.missed - told)
                    told = events.missed
        finally:
            for event in events.drain():
                self.record(event)

    def record(self, event: LifecycleEvent) -> None:
        """Log one event. Never blocks and never raises."""
        told = self._story.tell(event)
        subject = "gate" if event.kind in (LifecycleKind.GATE_SHUT, LifecycleKind.GATE_OPENED) else "child"
        given = {**told.facts, "lifecycle": event.kind.value, subject: event.path, "sequence": event.sequence}
        if event.cause is not None:
            given["caused_by"] = event.cause
        said = ["lifecycle", subject, "sequence", "caused_by", *told.said]
        getattr(self._log, told.level)(f"{told.subject} {told.words}", _said=said, **given)


class Story:
    """The lifecycle events of one tree, told one after the other: what a line says depends on those before it.

    Args:
        up: whether the tree was up before the first event that is told.
    """

    def __init__(self, *, up: bool = False) -> None:
        self._up = up
        self._stopping = False
        self._held: set[str] = set()
        self._left: dict[str, datetime] = {}
        self._last_error: dict[str, tuple[str, str]] = {}

    def tell(self, event: LifecycleEvent) -> Told:
        """The next event in words; one of a kind that nobody has found words for has the kind's own."""
        found: Told = getattr(self, f"_{event.kind.value}", _plainly)(event)
        return found

    # Children -------------------------------------------------------------------------------------------------------

    def _child_starting(self, event: LifecycleEvent) -> Told:
        return _told("debug", "starts", event, incarnation=event.incarnation)

    def _child_ready(self, event: LifecycleEvent) -> Told:
        self._held.discard(event.path)
        left = self._left.pop(event.path, None)
        if left is None:
            return _told("info", "is ready", event, after_seconds=event.seconds)
        away = (event.time - left).total_seconds()
        return _told("info", "is back", event, away_seconds=away, incarnation=event.incarnation)

    def _child_returned(self, event: LifecycleEvent) -> Told:
        self._left[event.path] = event.time
        return _told("info", "has ended", event, reason=event.reason)

    def _child_crashed(self, event: LifecycleEvent) -> Told:
        self._left.setdefault(event.path, event.time)
        return _told("error", "crashed", event, incarnation=event.incarnation, **self._error_of(event))

    def _child_ignored(self, event: LifecycleEvent) -> Told:
        """It is not away, and nobody waits for it."""
        self._forget(event.path)
        return _told("info", "has nothing to run", event, reason=event.reason)

    def _child_resumed(self, event: LifecycleEvent) -> Told:
        """One message is lost to an error, the child is not: nobody need come, and somebody should know."""
        return _told("warning", "went on after an error", event, **self._error_of(event))

    def _child_called_off(self, event: LifecycleEvent) -> Told:
        self._held.discard(event.path)
        return _told("info", "is not started again", event, reason=event.reason)

    def _child_removed(self, event: LifecycleEvent) -> Told:
        self._forget(event.path)
        return _told("debug", "is no longer in the tree", event, reason=event.reason)

    def _mail_lost(self, event: LifecycleEvent) -> Told:
        """Somebody must look where a hook should have saved the messages, and failed."""
        if event.error is None:
            return _told("warning", "lost messages", event, reason=event.reason)
        error, trace = str(event.error), event.error.traceback
        return _told("error", "lost messages", event, reason=event.reason, error=error, exception=trace)

    def _child_backoff(self, event: LifecycleEvent) -> Told:
        words, wait = f"restarts in {duration(event.seconds or 0)}", event.seconds
        return _told("info", words, event, said=("wait_seconds",), reason=event.reason, wait_seconds=wait)

    def _child_held(self, event: LifecycleEvent) -> Told:
        """A warning, unless the tree is still coming up: then everybody waits for something."""
        self._held.add(event.path)
        if event.incarnation:
            self._left.setdefault(event.path, event.time)
        level = "warning" if self._up else "info"
        gate, _, cause = event.reason.partition(": ")
        # The gate's own line had the cause, once for all who wait.
        words, said = f"is held, waits for {gate}", ("waits_for", "cause")
        return _told(level, words, event, said=said, waits_for=gate, cause=cause)

    def _child_stopping(self, event: LifecycleEvent) -> Told:
        return _told("debug", "is asked to stop", event, reason=event.reason, drain_seconds=event.seconds)

    def _child_stopped(self, event: LifecycleEvent) -> Told:
        """That a held child has left is no news, nor is the outage's error that it left with; any other error is."""
        self._left.setdefault(event.path, event.time)
        if event.error is not None:
            level = "warning" if event.cause is None else "debug"
            error, trace = str(event.error), event.error.traceback
            return _told(level, "stopped with an error", event, error=error, exception=trace)
        level = "debug" if event.path in self._held and not self._stopping else "info"
        return _told(level, "has stopped", event)

    def _child_stuck(self, event: LifecycleEvent) -> Told:
        return _told("error", "does not stop", event, after_seconds=event.seconds, reason=event.reason)

    def _supervisor_gave_up(self, event: LifecycleEvent) -> Told:
        return _told("critical", "gave up", event, reason=event.reason)

    def _supervisor_shut_down(self, event: LifecycleEvent) -> Told:
        return _told("info", "shuts down by itself", event, reason=event.reason)

    def _plan_changed(self, event: LifecycleEvent) -> Told:
        return _told("info", "has a new plan", event, reason=event.reason)

    def _error_of(self, event: LifecycleEvent) -> dict[str, Any]:
        """The error, with its traceback once, not at each of a hundred restarts with the same one."""
        error = event.error
        if error is None:
            return {"error": event.reason}
        known = (error.type, error.message)
        is_news = self._last_error.get(event.path) != known
        self._last_error[event.path] = known
        return {"error": str(error), "exception": error.traceback if is_news else ""}

    def _forget(self, path: str) -> None:
        self._held.discard(path)
        self._left.pop(path, None)
        self._last_error.pop(path, None)

    # Gates and the tree ---------------------------------------------------------------------------------------------

    def _gate_shut(self, event: LifecycleEvent) -> Told:
        return _told("warning", "gate shut", event, cause=event.reason)

    def _gate_opened(self, event: LifecycleEvent) -> Told:
        # The first opening ends no outage: the gate was shut because nobody had looked yet.
        if self._up and event.seconds is not None:
            return _told("info", "gate open again", event, shut_seconds=event.seconds)
        return _told("info", "gate open", event)

    def _tree_ready(self, event: LifecycleEvent) -> Told:
        self._up = True
        return _told("info", "is up", event, after_seconds=event.seconds)

    def _tree_stopping(self, event: LifecycleEvent) -> Told:
        self._stopping = True
        return _told("info", "stops, children in reverse order", event, reason=event.reason)

    def _tree_stopped(self, event: LifecycleEvent) -> Told:
        return _told("info", "has stopped", event, reason=event.reason)


def _told(level: str, words: str, event: LifecycleEvent, *, said: tuple[str, ...] = (), **facts: Any) -> Told:
    given = {key: _rounded(value) for key, value in facts.items() if value not in (None, "")}
    return Told(level=level, subject=event.path, words=words, facts=given, said=said)


def _plainly(event: LifecycleEvent) -> Told:
    error = str(event.error) if event.error is not None else ""
    words = event.kind.value.partition("_")[2].replace("_", " ")
    return _told("info", words, event, error=error, reason=event.reason, after_seconds=event.seconds)


def _rounded(value: Any) -> Any:
    """A duration to the millisecond: more digits are noise."""
    return round(value, 3) if isinstance(value, float) else value
