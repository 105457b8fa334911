"""Lifecycle events: everything that happens to the tree, once, in order.

A `Journal` numbers and dates them and hands them to any number of subscribers. None of these can delay the
supervisor: each has a bounded buffer of its own, and what it is too slow for is counted, not waited for.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import trio
from attrs import frozen

from .brief import clipped, ends_of, one_line
from .outcome import ErrorInfo

__all__ = ["Journal", "LifecycleEvent", "LifecycleKind", "Report", "Subscription"]


_REASON_LIMIT = 4_000
_PATH_SHOWN = 200
_TEXT_SHOWN = 300


class LifecycleKind(enum.Enum):
    """What happened."""

    CHILD_STARTING = "child_starting"
    CHILD_READY = "child_ready"
    CHILD_RETURNED = "child_returned"
    CHILD_CRASHED = "child_crashed"
    CHILD_IGNORED = "child_ignored"
    CHILD_RESUMED = "child_resumed"
    CHILD_BACKOFF = "child_backoff"
    CHILD_HELD = "child_held"
    CHILD_STOPPING = "child_stopping"
    CHILD_STOPPED = "child_stopped"
    CHILD_STUCK = "child_stuck"
    CHILD_CALLED_OFF = "child_called_off"
    CHILD_REMOVED = "child_removed"
    MAIL_LOST = "mail_lost"
    SUPERVISOR_GAVE_UP = "supervisor_gave_up"
    SUPERVISOR_SHUT_DOWN = "supervisor_shut_down"
    PLAN_CHANGED = "plan_changed"
    GATE_SHUT = "gate_shut"
    GATE_OPENED = "gate_opened"
    TREE_READY = "tree_ready"
    TREE_STOPPING = "tree_stopping"
    TREE_STOPPED = "tree_stopped"


@frozen(kw_only=True)
class Report:
    """One fact, as the core decides it, before it is numbered and dated.

    Attributes:
        kind: what happened.
        subject: the child's id within its supervisor, or the gate's name.
        incarnation: of the child, from 1; 0 where there is none.
        reason: why, in words.
        error: what it raised, where it did.
        seconds: a duration that belongs to the fact: the wait of a backoff, the time to be ready, how
            long a gate was shut.
        cause: the subject whose last event brought this about (``gate:redis``, ``child:listener``).
    """

    kind: LifecycleKind
    subject: str
    incarnation: int = 0
    reason: str = ""
    error: ErrorInfo | None = None
    seconds: float | None = None
    cause: str | None = None


@frozen(kw_only=True)
class LifecycleEvent:
    """A `Report` with its number, its time and its place in the tree.

    As a string it is one line of at most 1,000 characters, whatever stands in it: ``7 child_crashed app/worker #2:
    ValueError: no such user (because of 4)``. Number, kind, both ends of the path, incarnation, seconds and cause are
    always there; of the path 200 characters, of the reason and of the error 300 each. What does not print is spelt out.

    Attributes:
        sequence: 1, 2, 3 … over the whole tree, without gaps.
        time: wall-clock time, aware, UTC.
        path: of the child (``penstock/redis-server``), or the gate's name.
        reason: as in the report, at most 4,000 characters.
        cause: the `sequence` of the event that brought this one about, where it is known.
    """

    sequence: int
    time: datetime
    kind: LifecycleKind
    path: str
    incarnation: int = 0
    reason: str = ""
    error: ErrorInfo | None = None
    seconds: float | None = None
    cause: int | None = None

    def __str__(self) -> str:
        who = f" #{self.incarnation}" if self.incarnation else ""
        error = "" if self.error is None else str(self.error)
        said = [one_line(text, _TEXT_SHOWN) for text in (self.reason, error) if text]
        if self.seconds is not None:
            said.append(f"{self.seconds:.3g} s")
        words = f": {'; '.join(said)}" if said else ""
        why = "" if self.cause is None else f" (because of {self.cause})"
        return f"{self.sequence} {self.kind.value} {ends_of(self.path, _PATH_SHOWN)}{who}{words}{why}"


class Subscription:
    """One subscriber's view of the journal: an async iterator over the events from its beginning on.

    It ends when the tree has ended and what was buffered is taken. Several tasks may share it; each event goes to one.

    Attributes:
        missed: how many events were dropped because the buffer was full; the newest are kept.
    """

    def __init__(self, buffer: int) -> None:
        self.missed = 0
        self._events: deque[LifecycleEvent] = deque(maxlen=buffer)
        self._news = trio.Event()
        self._ended = False

    def _take(self, event: LifecycleEvent) -> None:
        if len(self._events) == self._events.maxlen:
            self.missed += 1
        self._events.append(event)
        self._news.set()

    def _end(self) -> None:
        self._ended = True
        self._news.set()

    async def next(self) -> LifecycleEvent:
        """The next event; blocks until there is one. Cancelled, it loses none.

        Raises:
            trio.EndOfChannel: the tree has ended, and there is none left.
        """
        await trio.lowlevel.checkpoint()
        while not self._events:
            if self._ended:
                raise trio.EndOfChannel
            if self._news.is_set():
                self._news = trio.Event()
            await self._news.wait()
        return self._events.popleft()

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> LifecycleEvent:
        try:
            return await self.next()
        except trio.EndOfChannel:
            raise StopAsyncIteration from None

    def drain(self) -> Iterator[LifecycleEvent]:
        """What has come and was not yet taken, without waiting."""
        while self._events:
            yield self._events.popleft()


class Journal:
    """The one ordered stream of lifecycle events of a tree.

    Args:
        wall: where the dates come from; `datetime.now(UTC)` unless a test brings its own.
        keep: how many of the last events `recent` holds.

    Attributes:
        recent: the last events, oldest first.
        sequence: the number of the last event; 0 before the first.
        is_closed: the tree has ended: nobody is told of what is entered from now on.
    """

    def __init__(self, wall: Callable[[], datetime] | None = None, keep: int = 500) -> None:
        self.wall = wall or (lambda: datetime.now(UTC))
        self.recent: deque[LifecycleEvent] = deque(maxlen=keep)
        self.sequence = 0
        self.is_closed = False
        self._last: dict[str, dict[str, int]] = {}  # by scope, then by whom or what
        self._removed: deque[tuple[str, str]] = deque()
        self._subscriptions: list[Subscription] = []

    @contextmanager
    def subscribe(self, buffer: int = 10_000) -> Iterator[Subscription]:
        """A `Subscription` to everything from now on, ended with the block; on a closed journal it has ended already.

        Args:
            buffer: how many events wait for the subscriber before the oldest are dropped, and counted.
        """
        subscription = Subscription(buffer)
        if self.is_closed:
            subscription._end()
        self._subscriptions.append(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)

    def close(self) -> None:
        """End all subscriptions: the tree has ended. What comes later (gates may still turn) is only kept."""
        self.is_closed = True
        for subscription in self._subscriptions:
            subscription._end()

    def enter(self, report: Report, path: str, scope: str = "") -> LifecycleEvent:
        """Number, date and hand out one report; never blocks.

        `scope` is the path of the supervisor that reports, so that causes of the same name in other parts of the tree
        are not mixed up; gates have none.
        """
        self.sequence += 1
        event = LifecycleEvent(
            sequence=self.sequence,
            time=self.wall(),
            kind=report.kind,
            path=path,
            incarnation=report.incarnation,
            reason=clipped(report.reason, _REASON_LIMIT),
            error=report.error,
            seconds=report.seconds,
            cause=self._cause(report, scope),
        )
        self._last.setdefault(scope, {})[_key(report)] = event.sequence
        if report.kind is LifecycleKind.CHILD_REMOVED:
            self._forget_soon(scope, report.subject)
        self.recent.append(event)
        if not self.is_closed:
            for subscription in self._subscriptions:
                subscription._take(event)
        return event

    def _forget_soon(self, scope: str, name: str) -> None:
        """A child is gone, and those below it: children of a pool come by the thousand, each with a name of its own.

        Not at once: what it leaves behind, lost mail say, names it as its cause.
        """
        self._removed.append((scope, name))
        if len(self._removed) <= _REMEMBERED:
            return
        scope, name = self._removed.popleft()
        self._last.get(scope, {}).pop(f"child:{name}", None)
        path = f"{scope}/{name}"
        if path in self._last:
            for below in [each for each in self._last if each == path or each.startswith(f"{path}/")]:
                del self._last[below]

    def _cause(self, report: Report, scope: str) -> int | None:
        cause = report.cause
        if cause is None:
            return None
        if not cause.startswith("gate:"):
            return self._last.get(scope, {}).get(cause)
        # By now it may have turned again.
        turned = LifecycleKind.GATE_OPENED if report.kind in _AFTER_AN_OPENING else LifecycleKind.GATE_SHUT
        return self._last.get("", {}).get(f"{cause}|{turned.value}")


_REMEMBERED = 100
"""So many children that are gone may still be named as a cause."""

_AFTER_AN_OPENING = (LifecycleKind.CHILD_STARTING, LifecycleKind.GATE_OPENED)
"""What the opening of a gate brings about; all else comes of its shutting."""


def _key(report: Report) -> str:
    if report.kind in (LifecycleKind.GATE_SHUT, LifecycleKind.GATE_OPENED):
        return f"gate:{report.subject}|{report.kind.value}"
    return f"child:{report.subject}"
