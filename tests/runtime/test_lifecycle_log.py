from __future__ import annotations

import io
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio.testing

from penstock.runtime.settings import LogSettings
from penstock.runtime.supervision.events import Journal, LifecycleEvent, LifecycleKind, Report
from penstock.runtime.supervision.outcome import ErrorInfo
from penstock.runtime.telemetry import LifecycleLog, close_logging, configure_logging, flush_logging

START = datetime(2026, 11, 22, 7, 42, tzinfo=UTC)
REFUSED = "connection refused by 127.0.0.1:6379"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure_logging(LogSettings(level="debug", format="json"), stream)
    yield stream
    close_logging()


class Story:
    """Lifecycle events, one after the other."""

    def __init__(self) -> None:
        self.events: list[LifecycleEvent] = []

    def tell(self, kind: str, path: str, at: float = 0.0, **facts: Any) -> Story:
        time = START + timedelta(seconds=at)
        sequence = len(self.events) + 1
        self.events.append(LifecycleEvent(sequence=sequence, time=time, kind=LifecycleKind(kind), path=path, **facts))
        return self


def logged(stream: io.StringIO, story: Story) -> list[dict[str, Any]]:
    log = LifecycleLog()
    for event in story.events:
        log.record(event)
    assert flush_logging()
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def told(stream: io.StringIO, story: Story) -> list[tuple[str, str]]:
    return [(record["level"], record["event"]) for record in logged(stream, story)]


def test_an_outage_reads_as_a_story(stream: io.StringIO) -> None:
    """Gate shut, consumers held, gate open, consumers back: each once, no crash among them, the steps only in debug."""
    story = Story()
    story.tell("child_ready", "penstock/listener", incarnation=1, seconds=0.25).tell("tree_ready", "penstock")
    story.tell("gate_shut", "redis", at=60, reason=REFUSED)
    story.tell("child_held", "penstock/listener", at=60, incarnation=1, reason=f"redis: {REFUSED}", cause=3)
    story.tell("child_stopping", "penstock/listener", at=60, incarnation=1, reason=f"held: redis: {REFUSED}")
    story.tell("child_stopped", "penstock/listener", at=60.1, incarnation=1)
    story.tell("gate_opened", "redis", at=68.1, seconds=8.1)
    story.tell("child_starting", "penstock/listener", at=68.35, incarnation=2, cause=7)
    story.tell("child_ready", "penstock/listener", at=68.4, incarnation=2, seconds=0.05)
    records = logged(stream, story)
    assert [(record["level"], record["event"]) for record in records if record["level"] != "debug"] == [
        ("info", "penstock/listener is ready"),
        ("info", "penstock is up"),
        ("warning", "redis gate shut"),
        ("warning", "penstock/listener is held, waits for redis"),
        ("info", "redis gate open again"),
        ("info", "penstock/listener is back"),
    ]
    by_event = {record["event"]: record for record in records}
    assert by_event["redis gate shut"]["cause"] == REFUSED
    assert by_event["redis gate open again"]["shut_seconds"] == 8.1
    assert by_event["penstock/listener is back"]["away_seconds"] == 8.4
    held = by_event["penstock/listener is held, waits for redis"]
    assert (held["lifecycle"], held["child"], held["caused_by"]) == ("child_held", "penstock/listener", 3)
    assert (held["waits_for"], held["cause"]) == ("redis", REFUSED)


def test_while_the_tree_is_coming_up_waiting_for_a_gate_is_no_warning(stream: io.StringIO) -> None:
    story = Story().tell("child_held", "penstock/pool", reason="postgres: not checked yet")
    story.tell("gate_opened", "postgres", seconds=1.0).tell("child_ready", "penstock/pool", incarnation=1, at=2)
    assert told(stream, story) == [
        ("info", "penstock/pool is held, waits for postgres"),
        ("info", "postgres gate open"),
        ("info", "penstock/pool is ready"),
    ]


def test_a_crash_loop_shows_its_traceback_once_for_each_error(stream: io.StringIO) -> None:
    story = Story()
    for message in ("a", "a", "b", "a"):
        error = ErrorInfo("ValueError", message, f"Traceback …\nValueError: {message}\n")
        story.tell("child_crashed", "penstock/pool", incarnation=1, error=error)
    records = logged(stream, story)
    assert [record["level"] for record in records] == ["error"] * 4
    assert [record["error"] for record in records] == [f"ValueError: {message}" for message in "aaba"]
    assert ["exception" in record for record in records] == [True, False, True, True]


def test_a_restart_says_when_and_the_return_says_how_long_it_was_away(stream: io.StringIO) -> None:
    story = Story().tell("child_crashed", "penstock/pool", at=10, error=ErrorInfo("OSError", "", ""))
    story.tell("child_backoff", "penstock/pool", at=10, seconds=0.123456, reason="restart 1, one_for_one")
    story.tell("child_starting", "penstock/pool", at=10.1, incarnation=2)
    story.tell("child_ready", "penstock/pool", at=10.5, incarnation=2, seconds=0.4)
    _, backoff, _, back = logged(stream, story)
    assert (backoff["event"], backoff["wait_seconds"]) == ("penstock/pool restarts in 0.12 s", 0.123)
    assert (back["event"], back["away_seconds"]) == ("penstock/pool is back", 0.5)


def test_an_ordered_stop_shows_who_left_and_in_which_order(stream: io.StringIO) -> None:
    story = Story().tell("tree_ready", "penstock").tell("tree_stopping", "penstock", reason="SIGTERM")
    for child in ("http", "redis"):
        story.tell("child_stopping", f"penstock/{child}", reason="SIGTERM").tell("child_stopped", f"penstock/{child}")
    story.tell("tree_stopped", "penstock", reason="SIGTERM")
    assert [text for level, text in told(stream, story) if level == "info"] == [
        "penstock is up",
        "penstock stops, children in reverse order",
        "penstock/http has stopped",
        "penstock/redis has stopped",
        "penstock has stopped",
    ]


def test_what_somebody_must_look_at_is_an_error(stream: io.StringIO) -> None:
    story = Story().tell("child_stuck", "penstock/pool", seconds=5.0)
    story.tell("child_stopped", "penstock/pool", error=ErrorInfo("OSError", "disk", "Traceback …"))
    story.tell("supervisor_gave_up", "penstock/pool", reason="more than 5 restarts in 30 s")
    assert told(stream, story) == [
        ("error", "penstock/pool does not stop"),
        ("warning", "penstock/pool stopped with an error"),
        ("critical", "penstock/pool gave up"),
    ]


@pytest.mark.parametrize("kind", LifecycleKind)
def test_every_kind_of_event_has_a_line(stream: io.StringIO, kind: LifecycleKind) -> None:
    (record,) = logged(stream, Story().tell(kind.value, "penstock"))
    assert record["lifecycle"] == kind.value
    assert "penstock" in record["event"]


@pytest.mark.parametrize(
    ("kind", "facts", "level", "says", "given"),
    [
        ("child_ignored", {"reason": "no port"}, "info", "has nothing to run", {"reason": "no port"}),
        (
            "child_resumed",
            {"error": ErrorInfo("ValueError", "7", "Traceback …")},
            "warning",
            "went on after an error",
            {"error": "ValueError: 7", "exception": "Traceback …"},
        ),
        ("child_called_off", {"reason": "by a call"}, "info", "is not started again", {"reason": "by a call"}),
        ("child_removed", {"reason": "deleted"}, "debug", "is no longer in the tree", {"reason": "deleted"}),
        ("mail_lost", {"reason": "3 in the mailbox m"}, "warning", "lost messages", {"reason": "3 in the mailbox m"}),
        (
            "mail_lost",
            {"reason": "3 in the mailbox m", "error": ErrorInfo("OSError", "full", "Traceback …")},
            "error",
            "lost messages",
            {"reason": "3 in the mailbox m", "error": "OSError: full", "exception": "Traceback …"},
        ),
        ("supervisor_shut_down", {"reason": "a ended"}, "info", "shuts down by itself", {"reason": "a ended"}),
        ("plan_changed", {"reason": "added: b"}, "info", "has a new plan", {"reason": "added: b"}),
        ("child_returned", {"reason": "bowed out: done"}, "info", "has ended", {"reason": "bowed out: done"}),
    ],
)
def test_what_happens_to_a_tree_that_changes_while_it_runs_has_words(
    stream: io.StringIO, kind: str, facts: dict[str, Any], level: str, says: str, given: dict[str, str]
) -> None:
    (record,) = logged(stream, Story().tell(kind, "app/a", **facts))
    assert (record["level"], record["event"], record["child"]) == (level, f"app/a {says}", "app/a")
    assert {key: record[key] for key in given} == given


def test_an_error_that_is_swallowed_at_each_message_shows_its_traceback_once(stream: io.StringIO) -> None:
    story = Story()
    for _ in range(3):
        story.tell("child_resumed", "app/a", error=ErrorInfo("ValueError", "7", "Traceback …"))
    assert ["exception" in record for record in logged(stream, story)] == [True, False, False]


@pytest.mark.parametrize("farewell", ["child_removed", "child_ignored"])
def test_who_is_gone_is_not_back_when_another_comes_under_its_name(stream: io.StringIO, farewell: str) -> None:
    story = Story().tell("child_crashed", "app/a", error=ErrorInfo("OSError", "", "")).tell(farewell, "app/a", at=1)
    story.tell("child_ready", "app/a", at=60, incarnation=1, seconds=0.1)
    assert told(stream, story)[-1] == ("info", "app/a is ready")


def test_a_kind_that_nobody_has_found_words_for_has_its_own(stream: io.StringIO) -> None:
    class Newer:
        value = "child_sang"

    event = Story().tell("child_ready", "app/a", reason="it was happy").events[0]
    object.__setattr__(event, "kind", Newer)
    LifecycleLog().record(event)
    assert flush_logging()
    record = json.loads(stream.getvalue())
    assert (record["event"], record["reason"], record["lifecycle"]) == ("app/a sang", "it was happy", "child_sang")


def test_on_a_terminal_what_the_text_says_is_not_said_again() -> None:
    stream = io.StringIO()
    configure_logging(LogSettings(format="console"), stream)
    LifecycleLog().record(Story().tell("gate_shut", "redis", reason=REFUSED, cause=1).events[0])
    close_logging()
    assert stream.getvalue()[13:] == "warning  " + "redis gate shut".ljust(48) + f' cause="{REFUSED}"\n'


async def test_following_a_journal_logs_what_happened_up_to_the_cancellation(stream: io.StringIO) -> None:
    journal = Journal()

    def enter(kind: LifecycleKind) -> None:
        journal.enter(Report(kind=kind, subject="penstock"), "penstock")

    with journal.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(LifecycleLog().follow, events)
            enter(LifecycleKind.TREE_READY)
            await trio.testing.wait_all_tasks_blocked()
            enter(LifecycleKind.TREE_STOPPED)
            nursery.cancel_scope.cancel()
    assert flush_logging()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == [
        "penstock is up",
        "penstock has stopped",
    ]


async def test_what_the_log_was_too_slow_for_is_counted(stream: io.StringIO) -> None:
    journal = Journal()
    with journal.subscribe(buffer=2) as events:
        for _ in range(5):
            journal.enter(Report(kind=LifecycleKind.TREE_READY, subject="penstock"), "penstock")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(LifecycleLog().follow, events)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    assert flush_logging()
    records = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [record["count"] for record in records if "missed" in record["event"]] == [3]
