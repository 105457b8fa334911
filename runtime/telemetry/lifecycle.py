"""Lifecycle events as log lines: the story of an outage, told to whoever is woken by it.

One line a fact. Levels are for the operator at three in the morning: *error* is what somebody must look at, *warning*
is an outage that mends itself when its cause is gone, *info* is what came and went, *debug* the steps in between.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog

from ..supervision.events import LifecycleEvent, LifecycleKind, Subscription
from .setup import get_logger

__all__ = ["LifecycleLog"]


class LifecycleLog:
    """Turns the lifecycle events of one tree into log lines.

    In JSON every line has ``lifecycle`` (the kind), ``child`` or ``gate``, ``sequence``, and ``caused_by`` (the
    sequence of the event that brought it about); on a terminal these are left out, for the text says them.

    Args:
        logger: where to. Default: ``penstock.lifecycle``.
    """

    def __init__(self, logger: structlog.stdlib.BoundLogger | None = None) -> None:
        self._log = logger if logger is not None else get_logger("penstock.lifecycle")
        self._up = False
        self._stopping = False
        self._held: set[str] = set()
        self._left: dict[str, datetime] = {}
        self._last_error: dict[str, tuple[str, str]] = {}

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
        getattr(self, f"_{event.kind.value}")(event)

    # Children -------------------------------------------------------------------------------------------------------

    def _child_starting(self, event: LifecycleEvent) -> None:
        self._say("debug", f"{event.path} starts", event, incarnation=event.incarnation)

    def _child_ready(self, event: LifecycleEvent) -> None:
        self._held.discard(event.path)
        left = self._left.pop(event.path, None)
        if left is None:
            self._say("info", f"{event.path} is ready", event, after_seconds=event.seconds)
        else:
            away = (event.time - left).total_seconds()
            self._say("info", f"{event.path} is back", event, away_seconds=away, incarnation=event.incarnation)

    def _child_returned(self, event: LifecycleEvent) -> None:
        self._left[event.path] = event.time
        self._say("info", f"{event.path} has ended", event)

    def _child_crashed(self, event: LifecycleEvent) -> None:
        """The traceback is shown once, not at each of a hundred restarts with the same error."""
        self._left.setdefault(event.path, event.time)
        error = event.error
        facts: dict[str, Any] = {"error": str(error) if error else event.reason}
        if error is not None:
            known = (error.type, error.message)
            if self._last_error.get(event.path) != known:
                facts["exception"] = error.traceback
            self._last_error[event.path] = known
        self._say("error", f"{event.path} crashed", event, incarnation=event.incarnation, **facts)

    def _child_backoff(self, event: LifecycleEvent) -> None:
        text = f"{event.path} restarts in {_short(event.seconds or 0)}"
        self._say("info", text, event, reason=event.reason, wait_seconds=event.seconds)

    def _child_held(self, event: LifecycleEvent) -> None:
        """A warning, unless the tree is still coming up: then everybody waits for something."""
        self._held.add(event.path)
        if event.incarnation:
            self._left.setdefault(event.path, event.time)
        level = "warning" if self._up else "info"
        gate, _, cause = event.reason.partition(": ")
        self._say(level, f"{event.path} is held, waits for {gate}", event, waits_for=gate, cause=cause)

    def _child_stopping(self, event: LifecycleEvent) -> None:
        self._say("debug", f"{event.path} is asked to stop", event, reason=event.reason, drain_seconds=event.seconds)

    def _child_stopped(self, event: LifecycleEvent) -> None:
        """That a held child has left is no news, nor is the outage's error that it left with; any other error is."""
        self._left.setdefault(event.path, event.time)
        if event.error is not None:
            level = "warning" if event.cause is None else "debug"
            error, trace = str(event.error), event.error.traceback
            self._say(level, f"{event.path} stopped with an error", event, error=error, exception=trace)
        else:
            level = "debug" if event.path in self._held and not self._stopping else "info"
            self._say(level, f"{event.path} has stopped", event)

    def _child_stuck(self, event: LifecycleEvent) -> None:
        self._say("error", f"{event.path} does not stop", event, after_seconds=event.seconds, reason=event.reason)

    def _supervisor_gave_up(self, event: LifecycleEvent) -> None:
        self._say("critical", f"{event.path} gave up", event, reason=event.reason)

    # Gates and the tree ---------------------------------------------------------------------------------------------

    def _gate_shut(self, event: LifecycleEvent) -> None:
        self._say("warning", f"{event.path} gate shut", event, cause=event.reason)

    def _gate_opened(self, event: LifecycleEvent) -> None:
        # The first opening ends no outage: the gate was shut because nobody had looked yet.
        if self._up and event.seconds is not None:
            self._say("info", f"{event.path} gate open again", event, shut_seconds=event.seconds)
        else:
            self._say("info", f"{event.path} gate open", event)

    def _tree_ready(self, event: LifecycleEvent) -> None:
        self._up = True
        self._say("info", f"{event.path} is up", event, after_seconds=event.seconds)

    def _tree_stopping(self, event: LifecycleEvent) -> None:
        self._stopping = True
        self._say("info", f"{event.path} stops, children in reverse order", event, reason=event.reason)

    def _tree_stopped(self, event: LifecycleEvent) -> None:
        self._say("info", f"{event.path} has stopped", event, reason=event.reason)

    def _say(self, level: str, text: str, event: LifecycleEvent, **facts: Any) -> None:
        subject = "gate" if event.kind in (LifecycleKind.GATE_SHUT, LifecycleKind.GATE_OPENED) else "child"
        given = {key: _rounded(value) for key, value in facts.items() if value not in (None, "")}
        given |= {"lifecycle": event.kind.value, subject: event.path, "sequence": event.sequence}
        if event.cause is not None:
            given["caused_by"] = event.cause
        said = ["lifecycle", subject, "sequence", "caused_by", "wait_seconds", "waits_for"]
        if event.kind is LifecycleKind.CHILD_HELD:
            said.append("cause")  # the gate's own line had it, once for all who wait
        getattr(self._log, level)(text, _said=said, **given)


def _rounded(value: Any) -> Any:
    """A duration to the millisecond: more digits are noise."""
    return round(value, 3) if isinstance(value, float) else value


def _short(seconds: float) -> str:
    """A short duration for people: ``0.25 s``, ``8.1 s``."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
