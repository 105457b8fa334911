"""The publisher over a server in memory: what becomes of events, on asyncio and, in virtual time, on trio."""

from __future__ import annotations

import inspect
import re
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import anyio
import httpx
import pytest
from attrs import frozen

from penstock.actors.event import Envelope, InvalidEvent, event, new_event_id
from penstock.http.publisher import (
    Accepted,
    BufferFull,
    GaveUp,
    NotPublished,
    Publisher,
    PublisherClosed,
    Rejected,
    Unsent,
    envelopes_of,
)

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from publisher_server import ScriptedServer, accepted, lines, on_both, problem, until

ORDERS = "order-events"


@event("ORDER_PLACED", key="order_id")
@frozen
class OrderPlaced:
    order_id: str
    price: float = 9.5


def order(number: int = 1) -> OrderPlaced:
    return OrderPlaced(f"o-{number}")


def orders(number: int) -> list[OrderPlaced]:
    return [order(each) for each in range(number)]


def numbers(events: list[dict[str, Any]]) -> list[int]:
    return [int(each["data"]["orderId"].removeprefix("o-")) for each in events]


# What is sent --------------------------------------------------------------------------------------------------------


@on_both
async def test_an_event_of_a_class_is_accepted_with_its_id_and_its_entry() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client()) as publisher:
        result = await publisher.publish(ORDERS, order())
    ((sent,),) = server.requests
    assert result == Accepted(UUID(sent["eventId"]), "1-0", "redis")
    assert (sent["eventType"], sent["data"], sent["key"]) == ("ORDER_PLACED", {"orderId": "o-1", "price": 9.5}, "o-1")
    assert datetime.fromisoformat(sent["timestamp"]).tzinfo is not None
    assert server.streams == [ORDERS]


@on_both
async def test_a_mapping_and_an_envelope_are_events_too_and_may_be_given_all_members() -> None:
    server = ScriptedServer()
    event_id, moment = new_event_id(), datetime(2026, 3, 1, tzinfo=UTC)
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with Publisher(client=server.client()) as publisher:
        await publisher.publish("s", {"a": ["ü", None]}, event_type="A", key="k", event_id=event_id, timestamp=moment)
        await publisher.publish(
            "s", Envelope(event_type="B", data={}, event_id=event_id, traceparent=trace), key="other"
        )
    (first,), (second,) = server.requests
    assert first == {
        "eventId": str(event_id),
        "eventType": "A",
        "timestamp": "2026-03-01T00:00:00+00:00",
        "data": {"a": ["ü", None]},
        "key": "k",
    }
    assert (second["eventId"], second["key"], second["traceparent"]) == (str(event_id), "other", trace)


@on_both
async def test_what_cannot_be_sent_is_refused_before_anything_is_kept_of_it() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client()) as publisher:
        for wrong in ({"a": {1, 2}}, {"a": float("nan")}, {"a": "\ud800"}):
            with pytest.raises(InvalidEvent):
                await publisher.publish("s", wrong, event_type="A")
        with pytest.raises(InvalidEvent, match="offset"):
            publisher.send_nowait("s", {}, event_type="A", timestamp=datetime(2026, 3, 1))
        with pytest.raises(InvalidEvent):
            await publisher.publish_many("s", [{}, {"a": float("inf")}], event_type="A")
        with pytest.raises(TypeError, match="event_type"):
            await publisher.publish("s", {})
        with pytest.raises(TypeError, match="its own"):
            await publisher.publish("s", order(), event_type="A")
        with pytest.raises(TypeError, match="no event class"):
            await publisher.publish("s", "text")
        assert publisher.statistics().waiting == 0
    assert server.requests == []


# Batches and order ---------------------------------------------------------------------------------------------------


@on_both
async def test_many_events_go_in_batches_in_order_and_their_results_come_in_order() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client(), batch_size=100, buffer_size=150) as publisher:
        results = await publisher.publish_many(ORDERS, orders(1000))
    assert numbers(server.accepted) == list(range(1000))
    assert [str(each.event_id) for each in results] == server.accepted_ids
    assert max(map(len, server.requests)) <= 100
    assert len(server.requests) < 30


@on_both
async def test_events_of_many_tasks_share_requests() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client(), linger=0.05) as publisher, anyio.create_task_group() as group:
        for number in range(100):
            group.start_soon(publisher.publish, ORDERS, order(number))
    assert len(server.accepted) == 100
    assert len(server.requests) == 1


@on_both
async def test_a_full_batch_and_a_flush_do_not_linger() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client(), linger=1000, batch_size=10) as publisher:
        await publisher.publish_many(ORDERS, orders(10))
        publisher.send_nowait(ORDERS, order())
        await publisher.flush()
        assert len(server.accepted) == 11
        publisher.send_nowait(ORDERS, order())
    assert len(server.accepted) == 12


@on_both
async def test_a_batch_has_a_limit_of_bytes_and_an_event_beyond_it_goes_alone() -> None:
    server = ScriptedServer()
    async with Publisher(client=server.client(), batch_bytes=1000) as publisher:
        data = [{"text": "x" * size} for size in (10, 5000, 10, 500, 500)]
        await publisher.publish_many("s", data, event_type="A")
    assert [len(each) for each in server.requests] == [1, 1, 2, 1]


@on_both
async def test_a_stream_has_one_request_under_way_and_waits_for_no_other_stream() -> None:
    gate = anyio.Event()
    server = ScriptedServer()
    server.script = [server.when(gate)]
    async with Publisher(client=server.client(), linger=0) as publisher:
        publisher.send_nowait("slow", order(0))
        await until(lambda: server.requests)
        for number in range(1, 6):
            publisher.send_nowait("slow", order(number))
        await publisher.publish("fast", order(7))
        assert server.streams == ["slow", "fast"]
        gate.set()
    assert server.most_busy == 1
    assert numbers([each for each in server.accepted if each["data"]["orderId"] != "o-7"]) == [0, 1, 2, 3, 4, 5]


# Again, with the same id ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "response",
    [
        problem(503, outcomeUnknown=True),
        problem(503, outcomeUnknown=False, retryAfter=0.01),
        problem(429),
        problem(408),
        problem(504),
        httpx.Response(502, text="<html>Bad gateway"),
        httpx.Response(404, text="default backend - 404"),
        httpx.Response(503),
        httpx.Response(200, text="a portal of the hotel"),
        httpx.Response(202, text="no results"),
        lines([]),
        lines([{"eventId": str(UUID(int=0)), "entryId": "1-0", "durable": "redis"}]),
        lines([{"eventId": "…", "durable": "hope"}]),
        lines([{"error": 7}]),
    ],
    ids=lambda response: f"{response.status_code}-{len(response.content)}",
)
async def test_an_answer_that_decides_nothing_is_followed_by_the_same_event_again(
    response: httpx.Response, autojump_clock: Any
) -> None:
    server = ScriptedServer()
    server.script = [server.answer(response)]
    async with Publisher(client=server.client()) as publisher:
        result = await publisher.publish(ORDERS, order())
        assert publisher.statistics().sent_again == 1
    first, second = server.requests
    assert first == second
    assert server.accepted_ids == [str(result.event_id)]


@on_both
async def test_no_answer_and_a_lost_answer_are_followed_by_the_same_events_in_the_same_order() -> None:
    server = ScriptedServer()
    server.script = [server.refuse_connections, server.lose_the_answer, server.say_nothing]
    async with Publisher(client=server.client(), request_timeout=0.2) as publisher:
        await publisher.publish_many(ORDERS, orders(5))
        assert publisher.statistics().trouble == ""
    assert [numbers(each) for each in server.requests] == [[0, 1, 2, 3, 4]] * 4
    assert numbers(server.accepted) == [0, 1, 2, 3, 4] * 2
    assert len(server.accepted_ids) == 5


@pytest.mark.parametrize(
    ("response", "least"),
    [
        (problem(503, header=7), 7),
        (problem(429, header=7), 7),
        (problem(503, retryAfter=7.5), 7.5),
        (problem(503, header=100_000), 60),
        (httpx.Response(503, headers={"Retry-After": "Fri, 31 Dec 2100 23:59:59 GMT"}), 60),
        (httpx.Response(503, headers={"Retry-After": "soon"}), 0.05),
        (problem(503), 0.05),
    ],
)
async def test_the_server_is_left_alone_for_as_long_as_it_asks_within_reason(
    response: httpx.Response, least: float, autojump_clock: Any
) -> None:
    server = ScriptedServer()
    server.script = [server.answer(response)]
    async with Publisher(client=server.client()) as publisher:
        await publisher.publish(ORDERS, order())
    first, second = server.at
    assert least <= second - first <= max(0.1, 1.1 * least)


async def test_pauses_double_up_to_ten_seconds_and_begin_anew_when_the_server_is_back(autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.refuse_connections] * 12
    async with Publisher(client=server.client()) as publisher:
        await publisher.publish(ORDERS, order())
        server.script = [server.refuse_connections]
        await publisher.publish(ORDERS, order())
    pauses = [later - before for before, later in zip(server.at, server.at[1:], strict=False)]
    for number, pause in enumerate(pauses[:12]):
        whole = min(10.0, 0.1 * 2**number)
        assert whole / 2 <= pause <= whole
    assert pauses[13] <= 0.1


# Judged singly -------------------------------------------------------------------------------------------------------


@on_both
async def test_a_rejected_event_costs_its_neighbours_nothing() -> None:
    server = ScriptedServer()
    bad = {"type": "urn:penstock:problem:invalid-event", "status": 422, "detail": "data.price: expected float"}
    server.script = [server.judge(lambda each: bad if each["data"]["orderId"] == "o-2" else None)]
    async with Publisher(client=server.client()) as publisher:
        results = await publisher.publish_many(ORDERS, orders(5))
    assert [type(each) for each in results] == [Accepted, Accepted, Rejected, Accepted, Accepted]
    rejected = results[2]
    assert isinstance(rejected, Rejected)
    assert (rejected.status, rejected.stream, rejected.event["data"]["orderId"]) == (422, ORDERS, "o-2")
    assert "data.price: expected float" in str(rejected)
    assert len(server.requests) == 1


@on_both
async def test_of_a_batch_only_what_was_not_let_through_is_sent_again_before_all_else() -> None:
    server = ScriptedServer()
    away = {"status": 503, "detail": "away", "retryAfter": 0.01, "outcomeUnknown": False}
    late = {"o-1", "o-3"}
    server.script = [server.judge(lambda each: away if each["data"]["orderId"] in late else None)]
    async with Publisher(client=server.client(), batch_size=4) as publisher:
        results = await publisher.publish_many(ORDERS, orders(6))
    assert [numbers(each) for each in server.requests] == [[0, 1, 2, 3], [1, 3, 4, 5]]
    assert [str(each.event_id) for each in results] == [
        each["eventId"] for each in sorted(server.accepted, key=lambda each: str(each["data"]["orderId"]))
    ]


@on_both
async def test_an_outage_that_the_server_tells_event_by_event_is_read_event_by_event() -> None:
    server = ScriptedServer()
    bad = {"status": 422, "detail": "no", "type": "urn:penstock:problem:invalid-event"}
    away = {"status": 503, "detail": "away", "outcomeUnknown": True}
    server.script = [server.answer(problem(503, results=[{"error": bad}, {"error": away}]))]
    async with Publisher(client=server.client()) as publisher:
        results = await publisher.publish_many(ORDERS, orders(2))
    assert [type(each) for each in results] == [Rejected, Accepted]
    assert [numbers(each) for each in server.requests] == [[0, 1], [1]]


@pytest.mark.parametrize(
    "response",
    [
        problem(404, "unknown-stream"),
        problem(415, "unsupported-media-type"),
        problem(502, "refused-by-redis"),
        httpx.Response(401, text="who are you"),
        httpx.Response(308, headers={"Location": "https://elsewhere/"}),
    ],
    ids=lambda response: str(response.status_code),
)
async def test_what_waiting_does_not_mend_is_raised_at_once(response: httpx.Response, autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.answer(response)]
    async with Publisher(client=server.client()) as publisher:
        with pytest.raises(Rejected) as caught:
            await publisher.publish(ORDERS, order())
    assert caught.value.status == response.status_code
    assert len(server.requests) == 1


async def test_a_request_that_is_too_large_for_the_server_is_halved_until_it_is_not(autojump_clock: Any) -> None:
    server = ScriptedServer()

    async def small(events: list[dict[str, Any]]) -> httpx.Response:
        if len(events) > 3 or any("large" in each["data"] for each in events):
            return problem(413, "request-entity-too-large")
        return await server.accept(events)

    server.script = [small] * 100
    async with Publisher(client=server.client()) as publisher:
        data = [{"number": number} for number in range(40)]
        data[17] = {"large": 1}
        results = await publisher.publish_many("s", data, event_type="A")
    assert [index for index, each in enumerate(results) if isinstance(each, Rejected)] == [17]
    assert [each["data"] for each in server.accepted] == [each for each in data if "large" not in each]


async def test_an_event_over_which_the_server_fails_is_found_and_rejected_alone(autojump_clock: Any) -> None:
    server = ScriptedServer()

    async def buggy(events: list[dict[str, Any]]) -> httpx.Response:
        if any(each["data"]["orderId"] == "o-13" for each in events):
            return problem(500, "internal-error")
        return await server.accept(events)

    server.script = [buggy] * 100
    async with Publisher(client=server.client()) as publisher:
        results = await publisher.publish_many(ORDERS, orders(30))
    assert [index for index, each in enumerate(results) if isinstance(each, NotPublished)] == [13]
    assert numbers(server.accepted) == [each for each in range(30) if each != 13]
    assert sum(numbers(each) == [13] for each in server.requests) == 5


async def test_a_proxy_that_fails_rejects_nothing(autojump_clock: Any) -> None:
    """Its 500 says nothing of the events: whole they go again, until their server is there."""
    server = ScriptedServer()
    server.script = [server.answer(httpx.Response(500, text="<html>oops</html>"))] * 20
    async with Publisher(client=server.client()) as publisher:
        results = await publisher.publish_many(ORDERS, orders(5))
    assert all(isinstance(each, Accepted) for each in results)
    assert [len(each) for each in server.requests] == [5] * 21


# Giving up, the buffer, cancellation ---------------------------------------------------------------------------------


async def test_an_event_is_given_up_when_its_time_is_over_and_says_whether_it_may_be_there(
    autojump_clock: Any,
) -> None:
    server = ScriptedServer()
    server.script = [server.refuse_connections] * 1000
    async with Publisher(client=server.client(), give_up_after=30) as publisher:
        with pytest.raises(GaveUp, match="cannot be reached") as caught:
            await publisher.publish(ORDERS, order())
        assert not caught.value.outcome_unknown
        assert anyio.current_time() == pytest.approx(server.at[0] + 30, abs=0.1)
        server.script = [server.lose_the_answer] * 1000
        first, second = await publisher.publish_many(ORDERS, orders(2))
        assert isinstance(first, GaveUp)
        assert first.outcome_unknown
        assert isinstance(second, GaveUp)
        server.script = []
        assert isinstance(await publisher.publish(ORDERS, order()), Accepted)
        assert publisher.statistics().gave_up == 3


async def test_an_event_is_given_up_in_time_also_while_its_request_is_under_way(autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.say_nothing]
    async with Publisher(client=server.client(), give_up_after=2) as publisher:
        began = anyio.current_time()
        with pytest.raises(GaveUp, match="no answer within 2 s") as caught:
            await publisher.publish(ORDERS, order())
        assert caught.value.outcome_unknown
        assert isinstance(await publisher.publish(ORDERS, order()), Accepted), "nobody waits for that answer"
        assert anyio.current_time() - began < 3


async def test_a_request_goes_on_for_those_whose_time_is_not_over(autojump_clock: Any) -> None:
    gate = anyio.Event()
    server = ScriptedServer()
    server.script = [server.when(gate)]
    outcomes: dict[int, Any] = {}

    async def publish(number: int) -> None:
        (outcomes[number],) = await publisher.publish_many(ORDERS, [order(number)])

    async with Publisher(client=server.client(), give_up_after=2, linger=1) as publisher:
        async with anyio.create_task_group() as group:
            group.start_soon(publish, 1)
            await anyio.sleep(0.5)
            group.start_soon(publish, 2)
            await anyio.sleep(1.75)
            assert isinstance(outcomes[1], GaveUp)
            assert outcomes[1].outcome_unknown
            gate.set()
    assert isinstance(outcomes[2], Accepted)
    assert [numbers(each) for each in server.requests] == [[1, 2]]
    assert (publisher.statistics().accepted, publisher.statistics().gave_up) == (1, 1)


@on_both
async def test_a_full_buffer_refuses_or_has_one_wait_and_loses_nothing() -> None:
    gate = anyio.Event()
    server = ScriptedServer()
    server.script = [server.when(gate)]
    async with Publisher(client=server.client(), buffer_size=3, linger=0) as publisher:
        for number in range(3):
            publisher.send_nowait(ORDERS, order(number))
        with pytest.raises(BufferFull, match="3 events"):
            publisher.send_nowait(ORDERS, order(9))
        async with anyio.create_task_group() as group:
            group.start_soon(publisher.send, ORDERS, order(3))
            await until(lambda: server.requests)
            assert publisher.statistics().waiting == 3
            gate.set()
        await publisher.flush()
    assert numbers(server.accepted) == [0, 1, 2, 3]


@on_both
async def test_what_a_cancelled_caller_gave_is_withdrawn_if_it_was_not_sent_and_goes_on_if_it_was() -> None:
    gate = anyio.Event()
    server = ScriptedServer()
    server.script = [server.when(gate)]
    async with Publisher(client=server.client(), linger=0) as publisher:
        async with anyio.create_task_group() as group:
            group.start_soon(publisher.publish, ORDERS, order(1))
            await until(lambda: server.requests)
            group.start_soon(publisher.publish_many, ORDERS, orders(50))
            await until(lambda: publisher.statistics().waiting == 51)
            group.cancel_scope.cancel()
        assert publisher.statistics().withdrawn == 50
        assert publisher.statistics().waiting == 1
        gate.set()
    assert numbers(server.accepted) == [1]


@on_both
async def test_a_failure_that_nobody_waits_for_is_told() -> None:
    server = ScriptedServer()
    server.script = [server.answer(problem(404, "unknown-stream"))] * 2
    told: list[NotPublished] = []

    def tell(failed: NotPublished) -> None:
        told.append(failed)
        raise ZeroDivisionError

    async with Publisher(client=server.client(), on_failed=tell, linger=0) as publisher:
        event_id = await publisher.send("nope", order(1))
        await publisher.flush()
        with pytest.raises(Rejected):
            await publisher.publish("nope", order(2))
        await publisher.publish(ORDERS, order(3))
    assert [each.event_id for each in told] == [event_id]


# In and out ----------------------------------------------------------------------------------------------------------


@on_both
async def test_leaving_sends_what_is_in_the_buffer_also_when_the_block_raises_or_is_cancelled() -> None:
    raised = []
    for end in ("return", "raise", "cancel"):
        server = ScriptedServer()
        with anyio.CancelScope() as scope:
            try:
                async with Publisher(client=server.client(), linger=1000) as publisher:
                    for number in range(20):
                        publisher.send_nowait(ORDERS, order(number))
                    if end == "raise":
                        raise ZeroDivisionError
                    if end == "cancel":
                        scope.cancel()
                        await anyio.sleep_forever()
            except ZeroDivisionError:  # it comes as it is, in no group
                raised.append(end)
        assert scope.cancelled_caught == (end == "cancel")
        assert numbers(server.accepted) == list(range(20)), end
    assert raised == ["raise"]


@on_both
async def test_leaving_says_what_was_not_sent_and_it_can_be_published_later() -> None:
    server = ScriptedServer()
    server.script = [server.lose_the_answer] + [server.refuse_connections] * 1000
    server_later = ScriptedServer()
    outcome: list[object] = []

    async def wait(publisher: Publisher) -> None:
        try:
            outcome.append(await publisher.publish("s", order(2)))
        except GaveUp as error:
            outcome.append(error)

    async with anyio.create_task_group() as group:
        with pytest.raises(Unsent, match="2 events") as caught:
            async with Publisher(client=server.client(), close_within=0.05, linger=0) as publisher:
                publisher.send_nowait(ORDERS, order(1))
                await until(lambda: server.accepted)
                group.start_soon(wait, publisher)
                await until(lambda: publisher.statistics().waiting == 2)
    assert [each.stream for each in caught.value.events] == [ORDERS, "s"]
    assert caught.value.events[0].outcome_unknown
    assert caught.value.events == publisher.unsent
    assert isinstance(outcome[0], GaveUp)
    assert caught.value.lines(ORDERS).count("\n") == 1
    async with Publisher(client=server_later.client()) as again:
        await again.publish_many(ORDERS, [each.envelope for each in caught.value.events])
    assert server_later.accepted == [each.event for each in caught.value.events]
    assert envelopes_of(caught.value.lines("s")) == [caught.value.events[1].envelope]


@on_both
async def test_a_cancelled_block_stays_cancelled_and_the_publisher_has_what_was_not_sent() -> None:
    server = ScriptedServer()
    server.script = [server.say_nothing]
    with anyio.CancelScope() as scope:
        async with Publisher(client=server.client(), close_within=0.05) as publisher:
            publisher.send_nowait(ORDERS, order(1))
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert [each.event["data"]["orderId"] for each in publisher.unsent] == ["o-1"]


@on_both
async def test_before_and_after_it_takes_nothing_and_says_so() -> None:
    publisher = Publisher(client=ScriptedServer().client())
    for says in ("was not entered", "has been left"):
        for call in (publisher.publish, publisher.send, publisher.publish_many):
            with pytest.raises(PublisherClosed, match=says):
                await call(ORDERS, [order()] if call == publisher.publish_many else order())
        with pytest.raises(PublisherClosed, match=says):
            publisher.send_nowait(ORDERS, order())
        with pytest.raises(PublisherClosed, match=says):
            await publisher.flush()
        if says == "was not entered":
            async with publisher:
                pass
    with pytest.raises(PublisherClosed, match="once"):
        await publisher.__aenter__()


@on_both
async def test_who_waits_for_room_when_the_publisher_is_left_hears_that_it_is() -> None:
    server = ScriptedServer()
    server.script = [server.say_nothing]
    heard: list[str] = []

    async def wait(publisher: Publisher) -> None:
        try:
            await publisher.send(ORDERS, order(2))
        except PublisherClosed:
            heard.append("closed")

    async with anyio.create_task_group() as group:
        with pytest.raises(Unsent, match="1 events"):
            async with Publisher(client=server.client(), buffer_size=1, close_within=0.05) as publisher:
                publisher.send_nowait(ORDERS, order(1))
                group.start_soon(wait, publisher)
                await until(lambda: publisher._room._waiting)
    assert heard == ["closed"]


@on_both
async def test_statistics_tell_what_happened() -> None:
    server = ScriptedServer()
    server.script = [
        server.answer(problem(503, outcomeUnknown=False)),
        server.judge(lambda each: {"status": 422, "detail": "no"} if each["key"] == "o-0" else None),
    ]
    async with Publisher(client=server.client()) as publisher:
        await publisher.publish_many(ORDERS, orders(3))
        event = {"eventId": str(new_event_id())}
        server.script = [server.answer(lines([accepted(event, "outbox")]))]
        result = await publisher.publish(ORDERS, order(5), event_id=UUID(event["eventId"]))
        assert (result.durable, result.entry_id) == ("outbox", None)
    seen = publisher.statistics()
    assert (seen.accepted, seen.accepted_by_outbox, seen.rejected, seen.sent_again) == (3, 1, 1, 3)
    assert (seen.waiting, seen.waiting_bytes, seen.requests, seen.trouble) == (0, 0, 3, "")


def test_a_url_or_a_number_that_cannot_be_right_is_refused_before_anything_is_lost() -> None:
    for url in ("127.0.0.1:47170", "ftp://host", "http://", "unix:", "http://a:b", ""):
        with pytest.raises(ValueError, match="URL"):
            Publisher(url)
    with pytest.raises(ValueError, match="buffer_size"):
        Publisher(buffer_size=0)


def test_the_documented_numbers_are_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "publish-from-another-program.md").read_text()
    defaults = {name: each.default for name, each in inspect.signature(Publisher).parameters.items()}
    rows = re.findall(r"^\| (`.*?) \| (.*?) \| .*\|$", page.partition("## Numbers")[2], re.MULTILINE)
    told = {
        name: value.strip()
        for names, values in rows
        for name, value in zip(re.findall(r"`(\w+)`", names), re.split(r", (?!\d{3})", values), strict=True)
    }
    assert set(told) == set(defaults) - {"url", "on_failed"}
    assert told == {
        "linger": f"{defaults['linger']} s",
        "batch_size": str(defaults["batch_size"]),
        "batch_bytes": f"{defaults['batch_bytes'] // 1_000_000} MB",
        "buffer_size": f"{defaults['buffer_size']:,}",
        "buffer_bytes": f"{defaults['buffer_bytes'] // 1_000_000} MB",
        "request_timeout": f"{defaults['request_timeout']:g} s",
        "give_up_after": "none",
        "close_within": f"{defaults['close_within']:g} s",
        "client": "one of its own",
    }
