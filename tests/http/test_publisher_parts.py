"""The parts of the publisher where runs of the whole would not tell a mistake: room, withdrawal, and leaving."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
import pytest
import trio
from attrs import frozen
from trio.testing import wait_all_tasks_blocked

from penstock.actors.event import event
from penstock.http.answers import Again, read_answer
from penstock.http.publisher import Publisher, PublisherClosed, Unsent
from penstock.http.publisher.item import Item
from penstock.http.publisher.lane import Lane
from penstock.http.publisher.room import Room, _Waiter

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from publisher_server import ScriptedServer, problem


@event("NUMBER")
@frozen
class Number:
    number: int


# Room ----------------------------------------------------------------------------------------------------------------


async def test_who_comes_first_gets_room_first_however_large() -> None:
    room = Room(most=10, most_bytes=10)
    entered: list[str] = []

    async def enter(name: str, size: int) -> None:
        await room.take(size)
        entered.append(name)

    assert room.try_take(8)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter, "large", 9)
        await wait_all_tasks_blocked()
        nursery.start_soon(enter, "small", 1)
        await wait_all_tasks_blocked()
        assert not room.try_take(1), "nobody overtakes who waits"
        assert entered == []
        room.give_back(8)
    assert entered == ["large", "small"]
    assert (room.events, room.bytes) == (2, 10)


async def test_an_event_that_is_larger_than_all_room_is_let_in_alone() -> None:
    room = Room(most=10, most_bytes=10)
    assert room.try_take(99)
    assert not room.try_take(1)
    room.give_back(99)
    assert room.try_take(1)


async def test_who_is_cancelled_takes_nothing_and_lets_the_next_one_in() -> None:
    room = Room(most=10, most_bytes=10)
    assert room.try_take(5)
    async with trio.open_nursery() as nursery:
        first = trio.CancelScope()

        async def wait() -> None:
            with first:
                await room.take(9)

        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        nursery.start_soon(room.take, 5)
        await wait_all_tasks_blocked()
        first.cancel()
    assert (room.events, room.bytes) == (2, 10)


async def test_who_is_cancelled_as_it_is_let_in_leaves_no_hole() -> None:
    """In one tick it is let in, and cancelled: whichever of the two it meets with, its room is not lost."""
    room = Room(most=1, most_bytes=10)
    for cancel_first in (True, False):
        assert room.try_take(10)
        took: list[bool] = []
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:

                async def enter(took: list[bool] = took) -> None:
                    took.append(await room.take(4))

                nursery.start_soon(enter)
                await wait_all_tasks_blocked()
                for step in (scope.cancel, lambda: room.give_back(10))[:: 1 if cancel_first else -1]:
                    step()
        assert (room.events, room.bytes) == ((1, 4) if took else (0, 0))
        if took:
            room.give_back(4)


async def test_who_waits_for_room_and_is_cancelled_looks_at_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand of them at once would hold the event loop, as with what is withdrawn."""
    compared: list[object] = []

    class Compared(_Waiter):
        def __eq__(self, other: object) -> bool:
            compared.append(other)
            return self is other

        __hash__ = object.__hash__

    monkeypatch.setattr("penstock.http.publisher.room._Waiter", Compared)
    room = Room(most=1, most_bytes=10)
    assert room.try_take(1)
    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(room.take, 1)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert len(compared) <= 100
    room.give_back(1)
    assert room.try_take(1), "nobody waits any more"


# Answers -------------------------------------------------------------------------------------------------------------

DEEP = b"[" * 100_000


@pytest.mark.parametrize(
    ("status", "retry_after", "body"),
    [
        (503, "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", b""),
        (503, "Mon, 01 Jan 2026 00:00:00 +99999999999999", b""),
        (503, "soon", b""),
        (503, None, b'{"type": "x", "retryAfter": ' + b"9" * 400 + b"}"),
        (502, None, DEEP),
        (202, None, DEEP),
        (202, None, b'{"error": {"status": 503, "type": null}}'),
    ],
)
def test_an_answer_that_nobody_can_read_means_to_send_again(status: int, retry_after: str | None, body: bytes) -> None:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    (verdict,) = read_answer(status, headers, body, [uuid4()])
    assert isinstance(verdict, Again)
    assert (verdict.after, verdict.unknown) == (0.0, True)


async def test_a_header_that_is_no_time_ends_no_publisher(autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.answer(problem(503, header="Mon, 01 Jan 99999999999999999999 00:00:00 GMT"))]
    async with Publisher(client=server.client()) as publisher:
        await publisher.publish("s", Number(1))
    assert publisher.statistics().accepted == 1


# Withdrawal ----------------------------------------------------------------------------------------------------------


async def test_what_may_have_been_accepted_is_not_withdrawn(autojump_clock: Any) -> None:
    server = ScriptedServer()
    first, again = trio.Event(), trio.Event()

    async def fail(events: Any) -> Any:
        server.accepted += events  # it fails after it has passed them on
        return problem(500, "internal-error")

    async def wait(events: Any) -> Any:
        first.set()
        await again.wait()
        return await server.accept(events)

    server.script = [fail, wait]
    async with Publisher(client=server.client()) as publisher:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publisher.publish_many, "s", [Number(number) for number in range(8)])
                await first.wait()  # half of them is under way, the other half is back in the queue
                scope.cancel()
        assert publisher.statistics().withdrawn == 0
        assert publisher.statistics().waiting == 8
        again.set()
    assert publisher.statistics().accepted == 8


class CountedItem(Item):
    """Counts how often it is looked up, in whatever it stands in.

    Attributes:
        looks: of all items.
    """

    looks = 0

    def __hash__(self) -> int:
        CountedItem.looks += 1
        return id(self)


async def test_who_withdraws_looks_at_nobody_elses_events() -> None:
    """Else a thousand callers who are cancelled at once would hold the event loop for a thousand times a thousand."""
    lane = Lane("s")
    items = [CountedItem("s", uuid4(), b"{}") for _ in range(1000)]
    for item in items:
        lane.add(item)
    CountedItem.looks = 0
    for item in items[250:750]:
        assert lane.withdraw([item]) == [item]
    assert CountedItem.looks <= 5 * 500
    assert lane.items() == items[:250] + items[750:]
    assert lane.withdraw(items[249:251]) == [items[249]], "the other has been withdrawn before"


async def test_what_a_server_finds_too_much_goes_back_in_order() -> None:
    lane = Lane("s")
    items = [Item("s", uuid4(), b"{}") for _ in range(9)]
    for item in items:
        lane.add(item)
    lane.take(6, 1000)
    lane.put_back(2)
    assert lane.flying == items[:2]
    assert lane.items() == items


# Leaving -------------------------------------------------------------------------------------------------------------


async def test_leaving_waits_for_no_long_pause(autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.answer(problem(503, header=50)), server.answer(problem(503, header=50))]
    async with Publisher(client=server.client(), close_within=5) as publisher:
        publisher.send_nowait("s", Number(1))
        while not publisher.statistics().trouble:
            await anyio.sleep(0.01)
        left = anyio.current_time()
    assert publisher.statistics().accepted == 1
    assert anyio.current_time() - left < 5


async def test_who_waits_for_room_hears_of_the_end_at_once(autojump_clock: Any) -> None:
    server = ScriptedServer()
    server.script = [server.say_nothing] * 10
    heard: list[float] = []

    async def send(publisher: Publisher) -> None:
        try:
            await publisher.send("s", Number(2))
        except PublisherClosed:
            heard.append(anyio.current_time())

    began = anyio.current_time()
    try:
        async with trio.open_nursery() as nursery:
            async with Publisher(client=server.client(), buffer_size=1, close_within=100) as publisher:
                publisher.send_nowait("s", Number(1))
                nursery.start_soon(send, publisher)
                await wait_all_tasks_blocked(0.001)
    except* Unsent:
        pass
    assert anyio.current_time() - began >= 100
    assert heard[0] - began < 1
