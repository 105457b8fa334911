"""The live feed: at once, at each change, at least every two seconds, for many, at the price of one."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from penstock.actors.event import Envelope
from penstock.actors.queue_lists import QueueView, TakenBy
from penstock.http.live import AT_LEAST_EVERY, AT_MOST_EVERY, LiveFeed
from penstock.http.looking import WITHIN
from penstock.http.sse import HEARTBEAT, Event, event_stream


@pytest.fixture
def clock(autojump_clock: MockClock) -> MockClock:
    """Virtual time: everything here is in memory."""
    return autojump_clock


@asynccontextmanager
async def _feeding(deployment: Any) -> AsyncIterator[LiveFeed]:
    feed = LiveFeed(deployment, 2, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed.run)
        yield feed
        nursery.cancel_scope.cancel()


def _state(event: Event) -> dict[str, Any]:
    assert event.name == "state"
    return dict(json.loads(event.data))


async def test_a_new_client_is_told_all_at_once(clock: MockClock, deployment: Any) -> None:
    deployment.access.add("GET", "/x", 200, 0.0125)
    async with _feeding(deployment) as feed:
        with feed.place():
            events = feed.events()
            began = trio.current_time()
            first = _state(await anext(events))
            assert trio.current_time() - began <= AT_MOST_EVERY
            assert first["ready"] is True
            assert first["system"] == "event-system"
            assert [gate["name"] for gate in first["gates"]] == ["redis", "postgres", "schema"]
            assert first["tree"]["children"][0]["id"] == "servers"
            assert first["streams"][0]["key"] == "EVENT_STREAM"
            state = first if first["access"]["events"] else _state(await anext(events))
            (event,) = state["access"]["events"]
            assert (event["method"], event["endpoint"], event["status"], event["ms"]) == ("GET", "/x", 200, 12)
            await events.aclose()


async def test_a_change_is_seen_soon_and_silence_is_broken_every_two_seconds(clock: MockClock, deployment: Any) -> None:
    async with _feeding(deployment) as feed:
        with feed.place():
            events = feed.events()
            for _ in range(3):
                await anext(events)
            before = trio.current_time()
            await anext(events)
            assert trio.current_time() - before <= AT_LEAST_EVERY + 0.01
            await trio.sleep(AT_MOST_EVERY + 0.01)
            deployment.shut_redis()
            before = trio.current_time()
            state = _state(await anext(events))
            assert trio.current_time() - before <= AT_MOST_EVERY
            assert state["ready"] is False
            assert state["gates"][0]["cause"] == "connection refused at 127.0.0.1:6379"
            await events.aclose()


async def test_a_storm_of_changes_is_at_most_five_states_a_second(clock: MockClock, deployment: Any) -> None:
    async with _feeding(deployment) as feed:
        with feed.place(), trio.move_on_after(2.0):
            count = 0
            async with trio.open_nursery() as nursery:

                async def flap() -> None:
                    while True:
                        deployment.gates["redis"].shut("flapping")
                        await trio.sleep(0.005)
                        deployment.gates["redis"].open()
                        await trio.sleep(0.005)

                nursery.start_soon(flap)
                async for _ in feed.events():
                    count += 1
    assert 8 <= count <= 11


@pytest.mark.parametrize("outage", ["known", "found out", "frozen", "broken"])
async def test_without_the_database_the_last_access_events_are_stale_and_the_rest_is_live(
    clock: MockClock, deployment: Any, outage: str
) -> None:
    deployment.access.add("GET", "/x", 200, 0.1)
    async with _feeding(deployment) as feed:
        with feed.place():
            events = feed.events()
            while not _state(await anext(events))["access"]["events"]:
                pass
            if outage == "known":
                deployment.gates["postgres"].shut("connection refused at postgresql://u:hunter2@h")
            elif outage == "found out":
                deployment.access.away = True
            elif outage == "frozen":
                deployment.access.recent = _frozen
            else:
                deployment.access.broken = True
            with trio.fail_after(WITHIN + 2 * AT_LEAST_EVERY):
                while not (state := _state(await anext(events)))["access"]["stale"]:
                    pass
            assert [event["endpoint"] for event in state["access"]["events"]] == ["/x"]
            assert "hunter2" not in json.dumps(state)
            await events.aclose()


async def test_the_queues_are_asked_of_redis_and_are_stale_while_it_is_away(clock: MockClock, deployment: Any) -> None:
    deployment.system.queue("reports", workers=3)
    taken = (TakenBy("w-1", 2, 0.5), TakenBy("w-2", 0, 90.0))
    made = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    deployment.queued = [QueueView(name="reports", waiting=7, returned=1, taken=taken, oldest=made)]
    async with _feeding(deployment) as feed:
        with feed.place():
            events = feed.events()
            while (state := _state(await anext(events)))["queues"]["observedAt"] is None:
                pass
            assert state["queues"]["stale"] is None
            assert state["queues"]["queues"] == [
                {
                    "name": "reports",
                    "workers": 3,
                    "waiting": 7,
                    "returned": 1,
                    "oldest": "2026-03-01T09:30:00.000Z",
                    "consumers": [
                        {"name": "w-1", "taken": 2, "idle": 0.5},
                        {"name": "w-2", "taken": 0, "idle": 90.0},
                    ],
                }
            ]
            deployment.shut_redis("refused at redis://u:hunter2@h")
            while (state := _state(await anext(events)))["queues"]["stale"] is None:
                pass
            assert state["queues"]["stale"].startswith("Redis is away: refused")
            assert "hunter2" not in json.dumps(state)
            assert state["queues"]["queues"][0]["waiting"] == 7
            await events.aclose()


async def test_a_system_without_queues_asks_redis_nothing(clock: MockClock, deployment: Any) -> None:
    asked: list[None] = []
    deployment.queues = partial(_asked, asked)
    async with _feeding(deployment) as feed:
        with feed.place():
            await trio.sleep(10)
            events = feed.events()
            assert _state(await anext(events))["queues"]["queues"] == []
            await events.aclose()
    assert asked == []


async def _asked(asked: list[None]) -> list[QueueView]:
    await trio.lowlevel.checkpoint()
    asked.append(None)
    return []


async def _frozen(limit: int) -> list[Any]:
    await trio.sleep_forever()
    return []


async def test_nothing_is_asked_while_nobody_looks(clock: MockClock, deployment: Any) -> None:
    asked = 0
    recent = deployment.access.recent

    async def count(limit: int) -> Any:
        nonlocal asked
        asked += 1
        return await recent(limit)

    deployment.access.recent = count
    async with _feeding(deployment) as feed:
        await trio.sleep(60)
        assert asked == 0
        with feed.place(), feed.place():
            await trio.sleep(10)
        once = asked
        assert 8 <= once <= 12  # for both together
        await trio.sleep(60)
        assert asked <= once + 1


async def test_there_is_a_limit_to_the_clients(deployment: Any) -> None:
    feed = LiveFeed(deployment, 1, trio.Event())
    assert not feed.is_full
    with feed.place():
        assert feed.is_full
    assert not feed.is_full


async def test_the_limit_holds_also_when_all_come_at_once(serving: Any) -> None:
    """As all do that were there before a restart."""
    async with serving(tail_clients=3) as server:

        async def come(heads: list[bytes]) -> None:
            stream = await server.raw(b"GET /api/v1/streams/anything/tail HTTP/1.1\r\nHost: localhost\r\n\r\n")
            heads.append(await _read(stream, b"\r\n\r\n"))
            await left.wait()
            await stream.aclose()

        left, heads = trio.Event(), list[bytes]()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(come, heads)
            with trio.fail_after(20):
                while len(heads) < 20:
                    await trio.sleep(0.01)
            assert sum(head.startswith(b"HTTP/1.1 200") for head in heads) == 3
            assert sum(head.startswith(b"HTTP/1.1 503") for head in heads) == 17
            left.set()
        with trio.fail_after(20):  # their places are free again
            while not await _is_free(server):
                await trio.sleep(0.05)


async def _is_free(server: Any) -> bool:
    stream = await server.raw(b"GET /api/v1/streams/anything/tail HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await _read(stream, b"\r\n\r\n")
    await stream.aclose()
    return head.startswith(b"HTTP/1.1 200")


async def _read(stream: Any, wanted: bytes) -> bytes:
    got = b""
    with trio.fail_after(10):
        while wanted not in got:
            data = await stream.receive_some(65_536)
            assert data, f"the stream ended after {got!r}"
            got += data
    return got


async def test_over_http_the_states_are_server_sent_events(serving: Any) -> None:
    async with serving() as server:
        stream = await server.raw(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = await _read(stream, b"\n\n\r\n")
        got += await _read(stream, b"event: state")
        assert b"content-type: text/event-stream; charset=utf-8" in got
        assert b"retry: 1000\n\n" in got
        server.deployment.shut_redis("a cause of its own")
        await _read(stream, b"a cause of its own")
        await stream.aclose()
        (event,) = await server.captured(1)
        assert (event["endpoint"], event["responseStatus"], event["outputs"]) == ("/api/v1/live", 200, None)


async def test_a_tail_shows_what_comes_and_goes_on_where_the_client_left(serving: Any) -> None:
    async with serving() as server:
        body = [{"eventType": "X", "data": {"n": n}} for n in range(3)]
        await server.request(
            "POST",
            "/api/v1/streams/anything/events",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        head = b"GET /api/v1/streams/anything/tail?after=0 HTTP/1.1\r\nHost: localhost\r\n"
        stream = await server.raw(head + b"Last-Event-ID: 1700000000000-2\r\n\r\n")
        got = await _read(stream, b'"n":2')
        assert b'"n":1' not in got
        assert b"event: entry\nid: 1700000000000-3\n" in got
        await stream.aclose()


async def test_a_number_that_json_does_not_know_ends_no_tail(serving: Any) -> None:
    """Other programs write NaN, or 1e400, into streams: both are shown as null, and the next entry comes, too."""
    async with serving() as server:
        for data in ({"n": [1.5, float("nan")], "o": {"p": float("-inf")}}, {"n": "next"}):
            server.deployment.published.append(("anything", Envelope(event_type="X", data=data)))
        stream = await server.raw(b"GET /api/v1/streams/anything/tail?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = await _read(stream, b'"n":"next"')
        assert b'"data":{"n":[1.5,null],"o":{"p":null}}' in got
        await stream.aclose()


async def test_silence_is_bridged_by_comments(clock: MockClock) -> None:
    async def silent() -> AsyncIterator[Event]:
        await trio.sleep(HEARTBEAT * 1.5)
        yield Event("late", name="x", id="7")

    began = trio.current_time()
    got = [data async for data in _opened(event_stream(silent, trio.Event()))]
    assert got == [b"retry: 1000\n\n", b": still here\n\n", b"event: x\nid: 7\ndata: late\n\n"]
    assert trio.current_time() - began == pytest.approx(HEARTBEAT * 1.5)


async def test_a_source_that_fails_ends_the_stream_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def failing() -> AsyncIterator[Event]:
        yield Event("one")
        raise RuntimeError("broken")

    got = [data async for data in _opened(event_stream(failing, trio.Event()))]
    assert got[-1] == b"data: one\n\n"
    assert "broke off" in caplog.text


async def _opened(response: Any) -> AsyncIterator[bytes]:
    async with response.response as body:
        async for data in body:
            yield data


def test_data_of_several_lines_stay_one_event() -> None:
    assert Event("a\nb").encode() == b"data: a\ndata: b\n\n"
