"""The tree's events over HTTP: each once, in order, without secrets; and whatever is missing is told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
import trio.testing
from attrs import define

from penstock.http import lifecycle
from penstock.http.lifecycle import FORGOTTEN, STARTED_ANEW, TOO_SLOW, lifecycle_events
from penstock.http.sse import Event
from penstock.runtime.supervision import ErrorInfo, Journal, LifecycleKind
from penstock.runtime.supervision.events import Report

START = datetime(2026, 11, 22, 3, 12, 7, 493_000, UTC)


def _journal(events: int = 0, *, keep: int = 500, begun: datetime = START) -> Journal:
    """A journal of a tree that has had so many events, one a second."""
    times = (begun + timedelta(seconds=number) for number in range(1_000_000))
    journal = Journal(wall=lambda: next(times), keep=keep)
    _happen(journal, events)
    return journal


def _happen(journal: Journal, events: int) -> None:
    for _ in range(events):
        report = Report(kind=LifecycleKind.CHILD_READY, subject="worker", incarnation=journal.sequence + 1, seconds=0.1)
        journal.enter(report, "app/worker", "app")


@asynccontextmanager
async def _client(journal: Journal, after: str) -> AsyncIterator[AsyncIterator[Event]]:
    async with aclosing(lifecycle_events(journal, after)) as events:
        with trio.fail_after(5):
            yield events


async def _take(events: AsyncIterator[Event], count: int) -> list[Any]:
    """The sequences of so many events; of a gap, how many it is, and why."""
    return [_short(await anext(events)) for _ in range(count)]


def _short(event: Event) -> Any:
    data = json.loads(event.data)
    return (data["missed"], data["reason"]) if event.name == "gap" else data["sequence"]


async def test_an_event_has_all_that_is_known_of_it(autojump_clock: object) -> None:
    journal = _journal()
    error = ErrorInfo("builtins.ConnectionError", "lost", "Traceback (most recent call last): …")
    journal.enter(Report(kind=LifecycleKind.GATE_SHUT, subject="redis", reason="gone", seconds=8.10042), "redis")
    crash = Report(
        kind=LifecycleKind.CHILD_CRASHED, subject="worker", incarnation=3, reason="why", error=error, cause="gate:redis"
    )
    journal.enter(crash, "app/worker", "app")
    async with _client(journal, "0") as events:
        first, second = await anext(events), await anext(events)
    assert (first.name, first.id) == ("lifecycle", "1-1795317127493")
    assert json.loads(first.data) == {
        "sequence": 1,
        "time": "2026-11-22T03:12:07.493Z",
        "kind": "gate_shut",
        "path": "redis",
        "incarnation": 0,
        "reason": "gone",
        "error": None,
        "seconds": 8.1,
        "cause": None,
    }
    assert json.loads(second.data) == {
        "sequence": 2,
        "time": "2026-11-22T03:12:08.493Z",
        "kind": "child_crashed",
        "path": "app/worker",
        "incarnation": 3,
        "reason": "why",
        "error": {"type": "builtins.ConnectionError", "message": "lost"},
        "seconds": None,
        "cause": 1,
    }


async def test_secrets_are_masked_wherever_they_stand() -> None:
    journal = _journal()
    error = ErrorInfo("OSError", "no answer from redis://root:hunter2@h", "Traceback … hunter2")
    report = Report(kind=LifecycleKind.CHILD_CRASHED, subject="x", reason="password=hunter2 is wrong", error=error)
    journal.enter(report, "app/x", "app")
    async with _client(journal, "0") as events:
        event = await anext(events)
    assert "hunter2" not in event.data
    assert "redis://root:***@h" in event.data
    assert "Traceback" not in event.data


async def test_by_default_a_client_is_told_what_happens_from_now_on() -> None:
    journal = _journal(3)
    async with _client(journal, "$") as events, trio.open_nursery() as nursery:
        nursery.start_soon(_later, journal, 2)
        assert await _take(events, 2) == [4, 5]


async def _later(journal: Journal, events: int) -> None:
    await trio.testing.wait_all_tasks_blocked()
    _happen(journal, events)


@pytest.mark.parametrize("after", ["2", "2-1795317128493"])
async def test_a_client_that_comes_back_goes_on_behind_the_last_event_that_it_saw(after: str) -> None:
    journal = _journal(4)
    async with _client(journal, after) as events:
        assert await _take(events, 2) == [3, 4]
        _happen(journal, 1)
        assert await _take(events, 1) == [5]


@pytest.mark.parametrize(("after", "missed"), [("0", 7), ("2-1795317128493", 5), ("6", 1)])
async def test_what_is_no_longer_kept_is_told_as_a_gap(after: str, missed: int) -> None:
    journal = _journal(10, keep=3)
    async with _client(journal, after) as events:
        assert await _take(events, 4) == [(missed, FORGOTTEN), 8, 9, 10]


async def test_between_the_last_seen_and_the_first_kept_there_need_be_no_gap() -> None:
    async with _client(_journal(10, keep=3), "7") as events:
        assert await _take(events, 3) == [8, 9, 10]


@pytest.mark.parametrize("after", ["4-1795317130493", "9"])
async def test_an_event_of_another_run_is_known_and_this_run_told_from_its_beginning(after: str) -> None:
    """The numbers begin anew with each run; taken for one of this run, it would hide all that came before."""
    journal = _journal(5, begun=START + timedelta(hours=1))
    async with _client(journal, after) as events:
        assert await _take(events, 6) == [(None, STARTED_ANEW), 1, 2, 3, 4, 5]


async def test_a_client_that_is_too_slow_is_told_how_many_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "BUFFER", 3)
    journal = _journal(1)
    async with _client(journal, "0") as events:
        assert await _take(events, 1) == [1]
        _happen(journal, 1)
        assert await _take(events, 1) == [2]
        _happen(journal, 10)
        assert await _take(events, 4) == [(7, TOO_SLOW), 10, 11, 12]
        _happen(journal, 1)
        assert await _take(events, 1) == [13]


async def test_the_stream_ends_with_the_tree_behind_its_last_event() -> None:
    journal = _journal(1)
    async with _client(journal, "0") as events:
        assert await _take(events, 1) == [1]
        _happen(journal, 2)
        journal.close()
        assert [_short(event) async for event in events] == [2, 3]


async def test_a_client_that_leaves_leaves_nothing_behind() -> None:
    journal = _journal(1)
    async with _client(journal, "0") as events:
        await anext(events)
        assert len(journal._subscriptions) == 1
    assert journal._subscriptions == []


# Over HTTP -----------------------------------------------------------------------------------------------------------


@define
class _Listener:
    """One connection to the endpoint."""

    stream: trio.SocketStream
    got: bytes = b""

    async def read(self) -> bool:
        """Take what comes next; False at the end."""
        data = await self.stream.receive_some(1 << 20)
        self.got += data
        return bool(data)

    @property
    def told(self) -> list[tuple[str, str, dict[str, Any]]]:
        """Name, id and data of each event so far."""
        return [_parsed(block) for block in _body(self.got).split(b"\n\n")[:-1] if b"data: " in block]

    async def until(self, kind: str) -> None:
        with trio.fail_after(10):
            while not any(event.get("kind") == kind for _, _, event in self.told):
                assert await self.read(), f"the stream ended after {self.told}"

    def kinds(self) -> list[str]:
        return [event.get("kind", name) for name, _, event in self.told]


def _body(got: bytes) -> bytes:
    """The chunks of the answer put together."""
    rest, body = got.partition(b"\r\n\r\n")[2], b""
    while b"\r\n" in rest:
        size, _, rest = rest.partition(b"\r\n")
        body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return body


def _parsed(block: bytes) -> tuple[str, str, dict[str, Any]]:
    fields = dict(line.split(": ", 1) for line in block.decode().splitlines())
    return fields.get("event", "message"), fields.get("id", ""), json.loads(fields["data"])


async def _listen(server: Any, *headers: str, query: str = "") -> _Listener:
    lines = [f"GET /api/v1/tree/events{query} HTTP/1.1", "Host: localhost", *headers, "", ""]
    listener = _Listener(await server.raw("\r\n".join(lines).encode()))
    with trio.fail_after(5):
        while b"retry: 1000\n\n" not in listener.got:
            assert await listener.read()
    return listener


async def test_what_happens_to_the_tree_comes_as_it_happens_in_order(serving: Any) -> None:
    async with serving() as server:
        listener = await _listen(server)
        assert b"content-type: text/event-stream; charset=utf-8" in listener.got
        server.deployment.crashes["producer"].set()
        await listener.until("child_backoff")
        server.deployment.shut_redis("a cause of its own")
        await listener.until("child_stopped")
        await listener.stream.aclose()
    names, ids, events = zip(*listener.told, strict=True)
    assert set(names) == {"lifecycle"}
    assert [event["kind"] for event in events[:4]] == ["child_crashed", "child_backoff", "gate_shut", "child_held"]
    numbers = [event["sequence"] for event in events]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [int(each.partition("-")[0]) for each in ids] == numbers
    assert "hunter2" not in listener.got.decode()
    assert events[0]["error"]["message"] == "producer lost redis://root:***@127.0.0.1:6379"
    assert events[3]["cause"] == events[2]["sequence"]


async def test_a_connection_that_is_made_again_goes_on_by_its_last_event_id(serving: Any) -> None:
    async with serving() as server:
        first = await _listen(server, query="?after=0")
        await first.until("tree_ready")
        await first.stream.aclose()
        server.deployment.shut_redis()
        _, last, event = first.told[-1]
        second = await _listen(server, f"Last-Event-ID: {last}", query="?after=0")
        await second.until("gate_shut")
        assert second.told[0][2]["sequence"] == event["sequence"] + 1
        await second.stream.aclose()


async def test_a_client_that_does_not_read_is_told_exactly_what_it_has_missed(
    serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system's buffers and its own place fill up; from then on it is counted."""
    monkeypatch.setattr(lifecycle, "BUFFER", 10)
    async with serving() as server:
        slow, journal = await _listen(server), server.deployment.tree.journal
        first = journal.sequence + 1
        for number in range(300):
            report = Report(kind=LifecycleKind.PLAN_CHANGED, subject="x", reason=f"{number:03}" * 20_000)
            journal.enter(report, "event-system", "event-system")
            await trio.lowlevel.checkpoint()
        last = journal.sequence
        with trio.fail_after(30):
            while f'"sequence":{last},'.encode() not in slow.got or not slow.got.endswith(b"\n\n\r\n"):
                assert await slow.read()
        await slow.stream.aclose()
    expected, missed = first, 0
    for name, _, event in slow.told:
        if name == "gap":
            assert event["reason"] == TOO_SLOW
            expected, missed = expected + event["missed"], missed + event["missed"]
        else:
            assert event["sequence"] == expected
            expected += 1
    assert expected == last + 1
    assert missed > 0


async def test_the_drain_ends_the_stream_and_what_led_to_it_is_told(serving: Any) -> None:
    async with serving(graceful_timeout=60.0) as server:
        listener = await _listen(server)
        server.deployment.tree.stop("SIGTERM")
        with trio.fail_after(20):
            while await listener.read():
                pass
    assert listener.kinds()[0] == "tree_stopping"
    assert listener.got.endswith(b"0\r\n\r\n")


async def test_a_place_is_free_again_when_its_client_has_left(serving: Any) -> None:
    async with serving(live_clients=1) as server:
        listener = await _listen(server)
        status, headers, body = await server.request("GET", "/api/v1/tree/events")
        assert (status, headers["Retry-After"]) == (503, "5")
        assert "1 clients that follow the tree" in json.loads(body)["detail"]
        await listener.stream.aclose()
        with trio.fail_after(5):
            while True:
                stream = await server.raw(b"GET /api/v1/tree/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
                if (await stream.receive_some(100)).startswith(b"HTTP/1.1 200"):
                    break
                await stream.aclose()
                await trio.sleep(0.01)
        await stream.aclose()
