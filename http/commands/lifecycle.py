"""Lifecycle events, as the API sends them, as lines for people: when, who, what happened, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

import click

from ...runtime.output import duration, width
from ...runtime.printable import printable
from ...runtime.supervision import ErrorInfo, LifecycleEvent, LifecycleKind
from ...runtime.telemetry.lifecycle import Story, Told

__all__ = ["LifecycleLines"]

WIDEST = 28
"""Columns beyond which a long name pushes its own words to the right, and not those of all lines."""

REMEMBERED = 1_000
"""Events that can be named as the cause of a later one."""

_CLOCK_WIDTH = len("03:12:07.502")
_STYLES: dict[str, dict[str, Any]] = {
    "debug": {"dim": True},
    "info": {"fg": "green"},
    "warning": {"fg": "yellow"},
    "error": {"fg": "red"},
    "critical": {"fg": "red", "bold": True},
}


class LifecycleLines:
    """Turns the events of one system into lines, one after the other.

    A child is named by its id, as in the tree that stands above the lines; where several have the same, and where it is
    a mere number, by the name of its supervisor and its id.

    Args:
        children: the paths of the children that there are.
        gates: the names of the gates.
        up: whether the tree is up.
    """

    def __init__(self, children: Iterable[str], gates: Iterable[str], *, up: bool) -> None:
        children, gates = list(children), list(gates)
        self._ids = Counter([*(path.rpartition("/")[2] for path in children), *gates])
        self._column = min(WIDEST, max(width(name) for name in [*gates, *map(self._name, children)]))
        self._begin(up)

    def _begin(self, up: bool) -> None:
        self._story = Story(up=up)
        self._phrases: dict[int, str] = {}

    def line(self, event: dict[str, Any]) -> str:
        """The line of the next event; one of a kind that only a newer server knows has one, too.

        Raises:
            KeyError, TypeError, ValueError: it is no event.
        """
        told = _told(self._story, event)
        is_gate = event["kind"].startswith("gate_")
        name = printable(event["path"] if is_gate else self._name(event["path"]))
        words = printable(" ".join([told.words, *_measures(told.facts)]))
        clock = datetime.fromisoformat(event["time"]).astimezone()
        why, led_here = self._why(name, event, told)
        self._remember(event["sequence"], f"{name} {printable(told.words)}")
        step = {"dim": True} if told.level == "debug" else {}
        shown = [
            click.style(f"{clock:%H:%M:%S}.{clock.microsecond // 1000:03}", dim=True),
            click.style(name, **(step or {"bold": True})) + " " * (self._column - width(name)),
            click.style(words, **_STYLES[told.level]) + (click.style(why, **step) if step else why),
        ]
        if led_here:
            shown.append(click.style(f"← {led_here}", dim=True))
        return "  ".join(shown)

    def gap(self, gap: dict[str, Any]) -> str:
        """The line of events that are missing, or of a new beginning.

        Raises:
            KeyError: it is no gap.
        """
        missed, reason = gap["missed"], gap["reason"]
        if missed is None:
            self._begin(up=False)
            text = f"{reason}; its own story begins here"
        else:
            text = f"{missed} event{'s are' if missed != 1 else ' is'} missing here: {reason}"
        return click.style(f"{'':{_CLOCK_WIDTH}}  {'…':{self._column}}  {printable(text)}", **_STYLES["warning"])

    def _name(self, path: str) -> str:
        supervisor, _, name = path.rpartition("/")
        if not supervisor or (self._ids[name] == 1 and not name.isdigit()):
            return name
        return f"{self._name(supervisor)}/{name}"

    def _why(self, name: str, event: dict[str, Any], told: Told) -> tuple[str, str]:
        """The error or the reason, and what led there: each where neither the words nor the line before say it."""
        if event["kind"] == "child_held":
            return "", ""  # the words name the gate; its own line had the reason, once for all who wait
        led_here = self._phrases.get(event["cause"], "")
        if led_here.startswith(f"{name} "):
            led_here = ""
        if led_here and event["kind"] == "child_stopping":
            return "", led_here  # the reason is the same in other words
        why = next((told.facts[key] for key in ("error", "cause", "reason") if key in told.facts), "")
        return f": {printable(why)}" if why else "", led_here

    def _remember(self, sequence: int, phrase: str) -> None:
        self._phrases[sequence] = phrase
        if len(self._phrases) > REMEMBERED:
            del self._phrases[next(iter(self._phrases))]


def _told(story: Story, event: dict[str, Any]) -> Told:
    error = event["error"]
    # Of its type the last word: in which module it is defined is nothing to read at night.
    info = None if error is None else ErrorInfo(error["type"].rpartition(".")[2], error["message"], "")
    try:
        kind = LifecycleKind(event["kind"])
    except ValueError:
        facts = {"reason": str(info or event["reason"])}
        return Told(level="info", subject=event["path"], words=event["kind"].replace("_", " "), facts=facts)
    return story.tell(
        LifecycleEvent(
            sequence=event["sequence"],
            time=datetime.fromisoformat(event["time"]),
            kind=kind,
            path=event["path"],
            incarnation=event["incarnation"],
            reason=event["reason"],
            error=info,
            seconds=event["seconds"],
            cause=event["cause"],
        )
    )


def _measures(facts: dict[str, Any]) -> Iterator[str]:
    for key in ("after_seconds", "away_seconds", "shut_seconds"):
        if facts.get(key):
            yield f"after {duration(facts[key])}"
    if "drain_seconds" in facts:
        yield f"within {duration(facts['drain_seconds'])}"
    if facts.get("incarnation", 0) > 1:
        yield f"(incarnation {facts['incarnation']})"
