"""What ``penstock publish`` does about answers that say nothing of its events: a proxy's, half an answer, or none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest

from penstock.http.commands import publish as module
from penstock.http.commands.remote import Answer, NotConnected, Unreachable
from penstock.runtime.cli import CommandError

Events = list[dict[str, Any]]
Step = Callable[[Events], Answer]


class FakeRemote:
    """Answers requests with the steps of its script, one after the other, and then accepts everything."""

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.requests: list[Events] = []

    def request(self, method: str, path: str, body: bytes, content_type: str) -> Answer:
        events = [json.loads(line) for line in body.splitlines()]
        self.requests.append(events)
        return (self.script.pop(0) if self.script else accept)(events)

    @property
    def ids(self) -> list[list[str]]:
        return [[event["eventId"] for event in events] for events in self.requests]


def accept(events: Events) -> Answer:
    results = [{"eventId": event["eventId"], "entryId": "1-0", "durable": "redis"} for event in events]
    return Answer(202, "".join(json.dumps(result) + "\n" for result in results).encode())


def page(status: int, body: bytes = b"<html>", **headers: str) -> Step:
    """An answer as proxies give it."""
    return lambda _: Answer(status, body, headers)


def problem(status: int, name: str) -> Step:
    """An answer of Penstock's."""
    body = {"type": f"urn:penstock:problem:{name}", "status": status, "detail": f"{name} is why"}
    return page(status, json.dumps(body).encode())


def fails_with(error: BaseException) -> Step:
    def step(_: Events) -> Answer:
        raise error

    return step


class Command:
    """The command against a fake, with time that passes only by its pauses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
        self.pauses: list[float] = []
        self._patch, self._file, self._now = monkeypatch, file, 1_000.0
        clock = SimpleNamespace(monotonic=lambda: self._now, sleep=self._sleep)
        monkeypatch.setattr(module, "time", clock)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self._now += seconds

    def run(self, remote: FakeRemote, lines: str) -> None:
        self._file.write_text(lines)
        self._patch.setattr(module, "remote_of", lambda _: remote)
        module.publish.main(["s", str(self._file)], standalone_mode=False)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    return Command(monkeypatch, tmp_path / "events.ndjson")


TWO = '{"eventType":"A","data":{"n":1}}\n{"eventType":"A","data":{"n":2}}\n'


@pytest.mark.parametrize(
    "step",
    [
        *(page(status) for status in (404, 408, 425, 429, 500, 502, 503, 504)),
        page(200),
        page(202),
        page(202, b""),
        page(202, b'{"eventId": "another", "entryId": "1-0", "durable": "redis"}\n' * 2),
        page(202, b"[" * 100_000),
        page(503, b"[1]"),
        page(503, b"null"),
        page(503, b'{"type": "about:blank", "results": [1, 2]}'),
        fails_with(Unreachable("the connection broke off")),
    ],
)
def test_what_says_nothing_of_the_events_is_an_outage(command: Command, capsys: Any, step: Step) -> None:
    remote = FakeRemote(step)
    command.run(remote, TWO)
    first, second = remote.ids
    assert first == second
    said = capsys.readouterr()
    assert said.out == "".join(f"{each}  1-0\n" for each in first)
    (line,) = said.err.splitlines()
    assert line.startswith("penstock: waiting: ")


def test_a_pause_is_as_long_as_the_answer_asks(command: Command) -> None:
    command.run(FakeRemote(page(502, **{"retry-after": "3"}), page(429, **{"retry-after": "99"})), TWO)
    assert command.pauses == [3.0, 5.0]


def test_what_has_no_outcome_at_the_end_is_printed_with_its_id(command: Command, capsys: Any) -> None:
    """And the command reads it, so that each event is one, although the answers never came."""
    remote = FakeRemote(*[page(504)] * 100)
    first = '{"eventType":"A","data":{"n":1, "control":"\x9b2J\U000e0001"}}\n'
    with pytest.raises(CommandError, match=r"gave up after 60 s: .* answers with 504\. 3 of 3 events were not"):
        command.run(remote, first + "nonsense\n" + TWO.splitlines(keepends=True)[1])
    assert sum(command.pauses) == 60.0
    said = capsys.readouterr()
    assert said.out == ""
    assert "what is behind line 3 was not sent" in said.err
    assert "\x9b" not in said.err
    again = FakeRemote()
    command.run(again, "".join(line + "\n" for line in said.err.splitlines() if line.startswith("{")))
    assert again.requests[0] == remote.requests[0]
    assert again.requests[0][0]["data"]["control"] == "\x9b2J\U000e0001"


def test_an_interruption_leaves_the_ids_too(command: Command, capsys: Any) -> None:
    def half(events: Events) -> Answer:
        gone = {"error": {"status": 503, "detail": "Redis is away", "eventId": events[1]["eventId"], "retryAfter": 1}}
        return Answer(202, accept(events[:1]).body + json.dumps(gone).encode())

    remote = FakeRemote(half, fails_with(KeyboardInterrupt()))
    with pytest.raises(click.Abort):
        command.run(remote, TWO)
    said = capsys.readouterr()
    (first, second) = remote.ids[0]
    assert said.out == f"{first}  1-0\n"
    (line,) = [line for line in said.err.splitlines() if line.startswith("{")]
    assert json.loads(line)["eventId"] == second


def test_an_interruption_of_the_first_request_does_so_too(command: Command, capsys: Any) -> None:
    remote = FakeRemote(fails_with(KeyboardInterrupt()))
    with pytest.raises(click.Abort):
        command.run(remote, TWO)
    printed = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [event["eventId"] for event in printed] == remote.ids[0]


@pytest.mark.parametrize("step", [fails_with(NotConnected("nothing answers", 2)), problem(404, "unknown-stream")])
def test_where_nothing_can_have_been_published_there_is_nothing_to_hand_back(
    command: Command, capsys: Any, step: Step
) -> None:
    with pytest.raises(CommandError, match=r"nothing answers|unknown-stream is why"):
        command.run(FakeRemote(step), TWO)
    assert capsys.readouterr() == ("", "")
    assert command.pauses == []


def test_a_refusal_after_an_unknown_outcome_hands_the_events_back(command: Command, capsys: Any) -> None:
    remote = FakeRemote(page(504), problem(404, "unknown-stream"))
    with pytest.raises(CommandError, match="unknown-stream is why"):
        command.run(remote, TWO)
    printed = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [event["eventId"] for event in printed] == remote.ids[0]


def test_once_there_was_a_server_a_refused_connection_is_an_outage(command: Command, capsys: Any) -> None:
    remote = FakeRemote(page(503), *[fails_with(NotConnected("nothing answers at http://me:hunter2@host", 2))] * 2)
    command.run(remote, TWO)
    assert len(remote.requests) == 4
    said = capsys.readouterr().err
    assert "nothing answers at http://me:***@host" in said
    assert "hunter2" not in said


def test_what_is_too_much_at_a_time_is_sent_in_parts_and_what_is_too_large_is_named(
    command: Command, capsys: Any
) -> None:
    def two_at_most(events: Events) -> Answer:
        too_much = len(events) > 2 or any(event["data"]["n"] == 3 for event in events)
        return (problem(413, "too-large") if too_much else accept)(events)

    remote = FakeRemote(*[two_at_most] * 20)
    with pytest.raises(CommandError, match="1 of 5 events were not published"):
        command.run(remote, "".join(f'{{"eventType":"A","data":{{"n":{n}}}}}\n' for n in range(1, 6)))
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 4
    assert said.err == "line 3: too-large is why\n"
    assert command.pauses == []


def test_an_event_over_which_the_server_fails_keeps_none_of_those_before_it_back(command: Command, capsys: Any) -> None:
    def fails_over_2(events: Events) -> Answer:
        return (problem(500, "internal") if any(event["data"]["n"] == 2 for event in events) else accept)(events)

    remote = FakeRemote(*[fails_over_2] * 100)
    with pytest.raises(CommandError, match=r"gave up after 60 s: internal is why\. 1 of 2"):
        command.run(remote, TWO)
    said = capsys.readouterr()
    assert said.out == f"{remote.ids[0][0]}  1-0\n"
    assert json.loads(said.err.splitlines()[-1])["eventId"] == remote.ids[0][1]
    assert [len(ids) for ids in remote.ids[:3]] == [2, 1, 1]
