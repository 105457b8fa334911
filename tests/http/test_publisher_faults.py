"""The publisher over real sockets: servers that break in every place, the real front end, and cuts at every step."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from anyio.abc import SocketAttribute, SocketStream
from attrs import define, field, frozen

from penstock.actors.event import event
from penstock.http.publisher import Accepted, Publisher, Rejected, Unsent
from penstock.runtime.testing import Cut, cut_everywhere

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from publisher_server import ScriptedServer, accepted, on_both, problem, until

STREAM = "orders"


@event("NUMBER", key="number")
@frozen
class Number:
    number: int


def wrong(number: int) -> bool:
    return number % 10 == 3


@define(eq=False)
class CrumblingServer:
    """An HTTP server whose faults are a list; after the last it is sound.

    Attributes:
        faults: what goes wrong with each request in turn.
        taken: the numbers of the events, in the order of their first acceptance.
        met: the faults that there were.
    """

    faults: list[str]
    taken: dict[int, None] = field(factory=dict)
    met: list[str] = field(factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        port = listener.extra(SocketAttribute.local_port)
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, self._serve)
            yield f"http://127.0.0.1:{port}"
            group.cancel_scope.cancel()
        await listener.aclose()

    async def _serve(self, stream: SocketStream) -> None:
        async with stream:
            try:
                while await self._answer(stream):
                    pass
            except (anyio.BrokenResourceError, anyio.EndOfStream):
                pass  # the client has left

    async def _answer(self, stream: SocketStream) -> bool:
        head = await _until_blank_line(stream)
        if head is None:
            return False
        fault = self.faults.pop(0) if self.faults else "none"
        self.met.append(fault)
        if fault == "cut before the body":
            return False
        length = int(head[0].lower().split(b"content-length:")[1].split(b"\r\n")[0])
        body = head[1]
        while len(body) < length:
            body += await stream.receive()
        answer = self._judged(fault, body)
        if fault == "cut before the answer":
            return False
        if fault == "silence":
            await anyio.sleep_forever()
        if fault == "no http":
            await stream.send(b"\0\0\0 what?\r\n\r\n")
            return False
        half = len(answer) // 2 if fault in ("cut in the answer", "half an answer, then silence") else len(answer)
        await stream.send(answer[:half])
        if fault == "half an answer, then silence":
            await anyio.sleep_forever()
        return fault not in ("cut in the answer", "cut after the answer")

    def _judged(self, fault: str, body: bytes) -> bytes:
        if fault in ("503", "429", "502"):
            return _http(int(fault), {"type": "urn:penstock:problem:unavailable", "detail": fault, "retryAfter": 0.01})
        results = []
        for line in body.splitlines():
            sent = json.loads(line)
            number = sent["data"]["number"]
            if wrong(number):
                results.append({"error": {"status": 422, "detail": "three", "eventId": sent["eventId"]}})
            elif fault == "some are not let through" and number % 4:
                results.append({"error": {"status": 503, "detail": "away", "outcomeUnknown": False}})
            else:
                self.taken.setdefault(number)
                results.append(accepted(sent))
        if fault == "a result too few":
            results.pop()
        return _http(202, *results)


async def _until_blank_line(stream: SocketStream) -> tuple[bytes, bytes] | None:
    read = b""
    while b"\r\n\r\n" not in read:
        try:
            read += await stream.receive()
        except anyio.EndOfStream:
            return None
    head, _, rest = read.partition(b"\r\n\r\n")
    return head, rest


def _http(status: int, *values: Any) -> bytes:
    body = b"".join(json.dumps(each).encode() + b"\n" for each in values)
    return b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


FAULTS = (
    "none",
    "cut before the body",
    "cut before the answer",
    "cut in the answer",
    "cut after the answer",
    "silence",
    "half an answer, then silence",
    "no http",
    "a result too few",
    "some are not let through",
    "503",
    "429",
    "502",
)


def some_faults(seed: int) -> list[str]:
    picked = random.Random(seed)
    return [*picked.sample(FAULTS, len(FAULTS)), *picked.choices(FAULTS, k=5)]


def test_the_faults_are_the_same_everywhere() -> None:
    assert some_faults(1) == some_faults(1)
    assert set(some_faults(1)) == set(FAULTS)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_through_all_faults_of_a_network_each_event_is_accepted_or_rejected_and_none_is_lost(
    seed: int, backend: str
) -> None:
    server = CrumblingServer(some_faults(seed))

    async def story() -> None:
        with anyio.fail_after(60):
            async with server.serving() as url, Publisher(url, batch_size=20, request_timeout=0.3) as publisher:
                # Pauses are ten times as short, so that the test is, too.
                object.__setattr__(publisher._sender.pace, "longest_pause", 0.2)
                results = await publisher.publish_many(STREAM, [Number(number) for number in range(200)])
        assert [number for number, each in enumerate(results) if not isinstance(each, Accepted)] == [
            number for number in range(200) if wrong(number)
        ]
        assert all(isinstance(each, Accepted | Rejected) for each in results)

    anyio.run(story, backend=backend)
    assert set(server.met) == set(FAULTS), "the events were too few to meet them all"
    # What is let through out of order by the server itself ("some …") is its own affair; all else is in order.
    assert sorted(server.taken) == [number for number in range(200) if not wrong(number)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_order_is_kept_through_cuts_and_silences(backend: str) -> None:
    faults = [each for each in some_faults(4) if not each.startswith("some")]
    server = CrumblingServer(faults)

    async def story() -> None:
        with anyio.fail_after(60):
            async with server.serving() as url, Publisher(url, batch_size=7, request_timeout=0.3) as publisher:
                object.__setattr__(publisher._sender.pace, "longest_pause", 0.2)
                for number in range(100):
                    await publisher.send(STREAM, Number(number))
                await publisher.flush()

    anyio.run(story, backend=backend)
    assert list(server.taken) == [number for number in range(100) if not wrong(number)]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_server_that_is_not_there_has_accepted_nothing(backend: str) -> None:
    async def story() -> None:
        async with Publisher(f"http://127.0.0.1:{port}", close_within=0.2) as publisher:
            publisher.send_nowait(STREAM, Number(1))
            with anyio.fail_after(30):
                await until(lambda: publisher.statistics().trouble)

    with socket.socket() as taken:  # bound and not listening: nobody else gets it, and it refuses
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(Unsent, match="cannot be reached") as caught:
            anyio.run(story, backend=backend)
    assert not caught.value.events[0].outcome_unknown


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_server_that_never_opened_the_connection_has_accepted_nothing(backend: str) -> None:
    async def story() -> None:
        async with Publisher(f"http://127.0.0.1:{port}", close_within=0.2) as publisher:
            publisher.send_nowait(STREAM, Number(1))
            with anyio.fail_after(30):
                await until(lambda: publisher.statistics().requests)

    with ExitStack() as opened:
        full = opened.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        for _ in range(2):  # whoever comes after these is neither let in nor refused
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        with pytest.raises(Unsent) as caught:
            anyio.run(story, backend=backend)
    assert not caught.value.events[0].outcome_unknown


# The real front end --------------------------------------------------------------------------------------------------


async def test_it_speaks_the_front_end_s_language(serving: Callable[..., Any]) -> None:
    async with serving() as server, Publisher(f"http://127.0.0.1:{server.port}") as publisher:
        results = await publisher.publish_many("anything", [Number(number) for number in range(1200)])
        assert all(isinstance(each, Accepted) for each in results)
        sent = [envelope.data["number"] for _, envelope in server.deployment.published]
        assert sent == list(range(1200))
        with pytest.raises(Rejected) as caught:
            await publisher.publish("order-events", {"orderId": 7}, event_type="ORDER_PLACED")
        assert caught.value.status == 422
        assert any(each["field"] == "data.orderId" for each in caught.value.problem["errors"])
        with pytest.raises(Rejected, match="There is no stream 'nope'"):
            await publisher.publish("nope", Number(1))


async def test_a_batch_beyond_the_front_end_s_limits_gets_through_in_parts(serving: Callable[..., Any]) -> None:
    async with serving(max_items=9, body_limit=10_000) as server:
        async with Publisher(f"http://127.0.0.1:{server.port}") as publisher:
            data: list[Any] = [{"text": "x" * 100} for _ in range(100)]
            data[50] = {"text": "x" * 20_000}
            results = await publisher.publish_many("anything", data, event_type="TEXT")
        assert [index for index, each in enumerate(results) if isinstance(each, Rejected)] == [50]
        assert len(server.deployment.published) == 99


async def test_a_unix_socket_is_an_address_too(serving: Callable[..., Any]) -> None:
    with tempfile.TemporaryDirectory(prefix="penstock-") as directory:
        path = f"{directory}/http.sock"
        async with serving(bind=(f"unix:{path}", "127.0.0.1:0")), Publisher(f"unix:{path}") as publisher:
            assert isinstance(await publisher.publish("anything", Number(1)), Accepted)


# Cuts ----------------------------------------------------------------------------------------------------------------


async def cut_scenario(cut: Cut) -> None:
    """A caller that is cancelled at some step; then the publisher is left. The script has all kinds of answers."""
    server = ScriptedServer()
    server.script = [
        server.accept,
        server.answer(problem(503, outcomeUnknown=False)),
        server.lose_the_answer,
        server.judge(lambda each: {"status": 422, "detail": "three"} if wrong(each["data"]["number"]) else None),
    ]
    results: dict[int, object] = {}

    async def caller(publisher: Publisher) -> None:
        results[0] = await publisher.publish(STREAM, Number(0))
        numbers = list(range(1, 5))
        outcomes = await publisher.publish_many(STREAM, [Number(number) for number in numbers])
        results.update(zip(numbers, outcomes, strict=True))
        await publisher.send(STREAM, Number(5))
        results[5] = "given"

    async with Publisher(client=server.client(), buffer_size=3) as publisher:
        with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
            await caller(publisher)
        await publisher.publish(STREAM, Number(6))
    taken = {each["data"]["number"] for each in server.accepted}
    assert publisher.statistics().waiting == 0
    assert publisher.unsent == ()
    for number, result in results.items():
        assert isinstance(result, Rejected) == wrong(number)
        assert wrong(number) or number in taken, "told as accepted, and not there"
    assert 6 in taken, "a cancelled caller stops the others"
    firsts = list(dict.fromkeys(each["data"]["number"] for each in server.accepted))
    assert firsts == sorted(firsts)


def test_a_caller_may_be_cancelled_at_every_step() -> None:
    assert len(cut_everywhere(cut_scenario)) > 10


@on_both
async def test_leaving_may_be_cancelled_and_nothing_is_said_to_be_sent_that_was_not() -> None:
    server = ScriptedServer()
    server.script = [server.say_nothing]
    publisher = Publisher(client=server.client(), close_within=0.1)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:

            async def use() -> None:
                with suppress(Unsent):  # the block itself was over before
                    async with publisher:
                        publisher.send_nowait(STREAM, Number(1))

            group.start_soon(use)
            await until(lambda: server.requests)
            scope.cancel()
    assert [each.event["data"] for each in publisher.unsent] == [{"number": 1}]
    assert publisher.unsent[0].outcome_unknown


def test_the_publisher_loads_nothing_of_the_server_s_side() -> None:
    program = (
        "import sys, penstock.http.publisher\n"
        "print(*sorted({'quart', 'hypercorn', 'redis', 'psycopg', 'yoyo'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
