"""WebSockets: who is let in, how many, what is recorded of them, and how they end."""

from __future__ import annotations

import contextlib
import json
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset
from quart import websocket
from quart.testing.connections import WebsocketDisconnectError, WebsocketResponseError
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, TextMessage

from penstock.http import connection as http_connection
from penstock.http import websockets
from penstock.http.app import HttpApp
from penstock.http.routes import Blueprint, Problem, RunningSystem, routes
from penstock.http.security import SECURITY_HEADERS
from penstock.runtime.postgres import PostgresUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from websocket_client import Closed, Refused, connect

EVIL = {"Origin": "https://evil.example"}


def sockets(deployment: Any) -> None:
    """Give the system WebSockets of its own."""

    @routes(deployment.system)
    def own(_: RunningSystem) -> Blueprint:
        made = Blueprint("own", __name__)

        @made.websocket("/echo")
        async def echo() -> None:
            await websocket.accept()
            while True:
                await websocket.send(await websocket.receive())

        @made.websocket("/fails/<of>")
        async def fails(of: str) -> None:
            await websocket.send("hello")
            raise {
                "ours": RuntimeError("password=hunter2"),
                "database": PostgresUnavailable("connection refused", address="db:5432"),
                "client": Problem(400, "odd", "Odd", "That was odd."),
            }[of]

        @made.websocket("/away")
        async def away() -> None:
            raise PostgresUnavailable("connection refused", address="127.0.0.1:5432")

        @made.websocket("/unwilling")
        async def unwilling() -> None:
            pass

        @made.websocket("/flood")
        async def flood() -> None:
            while True:
                await websocket.send("x" * 1_000_000)

        return made


@pytest.fixture
def make_open(deployment: Any, make_app: Callable[..., HttpApp]) -> Callable[..., Any]:
    """The test client of an application with WebSockets, with settings of one's own."""
    sockets(deployment)
    return lambda **settings: make_app(**settings).test_client()


async def refusal(client: Any, path: str, **given: Any) -> tuple[Any, dict[str, Any]]:
    with pytest.raises(WebsocketResponseError) as refused:
        async with client.websocket(path, **given) as connection:
            try:
                await connection.receive()
            except WebsocketResponseError as error:
                found = error
        raise found
    answer = refused.value.response
    assert answer.content_type == "application/problem+json"
    for name, value in SECURITY_HEADERS:
        assert answer.headers[name.decode()] == value.decode()
    return answer, json.loads(await answer.get_data())


async def test_a_route_of_ones_own_is_served(make_open: Any, deployment: Any) -> None:
    async with make_open().websocket("/echo?token=s3cret", headers={"Host": "a:1", "Origin": "http://a:1"}) as echo:
        await echo.send("hello")
        assert await echo.receive() == "hello"
        (event,) = deployment.captured  # at once: it may stay open for days
        found = {name: event.data[name] for name in ("endpoint", "methodName", "httpMethod", "responseStatus")}
        assert found == {"endpoint": "/echo", "methodName": "echo", "httpMethod": "GET", "responseStatus": 101}
        assert "s3cret" not in event.data["inputs"]
    assert len(deployment.captured) == 1


@pytest.mark.parametrize(
    ("path", "headers", "status", "name"),
    [
        ("/echo", EVIL, 403, "cross-site"),
        ("/echo", {"Origin": "null"}, 403, "cross-site"),
        ("/echo", {"Sec-Fetch-Site": "same-site", "Origin": "http://a:1", "Host": "a:1"}, 403, "cross-site"),
        ("/nope", {}, 404, "not-found"),
        ("/healthz", {}, 404, "not-found"),
        ("/away", {}, 503, "database-away"),
        ("/unwilling", {}, 403, "refused"),
    ],
)
async def test_a_refusal_is_a_problem_over_http(
    make_open: Any, deployment: Any, path: str, headers: dict[str, str], status: int, name: str
) -> None:
    answer, body = await refusal(make_open(), path, headers=headers)
    assert (answer.status_code, body["type"]) == (status, f"urn:penstock:problem:{name}")
    assert ("Retry-After" in answer.headers) is (status == 503)
    assert [event.data["responseStatus"] for event in deployment.captured] == [status]


async def test_a_server_that_cannot_answer_over_http_says_403(make_open: Any, deployment: Any) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/echo",
        "raw_path": b"/echo",
        "query_string": b"",
        "scheme": "ws",
        "headers": [(b"origin", b"https://evil.example")],
        "asgi": {"spec_version": "2.3"},
    }
    await make_open().app(scope, receive, send)
    assert sent == [{"type": "websocket.close", "code": 1008}]
    assert [event.data["responseStatus"] for event in deployment.captured] == [403]


async def test_plain_http_is_told_what_is_there(make_open: Any) -> None:
    answer = await make_open().get("/echo")
    assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")
    assert "There is a WebSocket at /echo" in await answer.get_data(as_text=True)


async def test_one_too_many_is_refused_until_another_leaves(make_open: Any, autojump_clock: MockClock) -> None:
    client = make_open(topic_clients=1)
    async with client.websocket("/echo") as first:
        await first.send("a")
        await first.receive()
        answer, body = await refusal(client, "/echo")
        assert (answer.status_code, body["type"]) == (503, "urn:penstock:problem:too-many-clients")
        assert "http.topic_clients" in body["detail"]
        assert "Retry-After" in answer.headers
    async with client.websocket("/echo") as next_one:
        await next_one.send("b")
        assert await next_one.receive() == "b"


@pytest.mark.parametrize(("of", "code"), [("ours", 1011), ("database", 1013), ("client", 1008)])
async def test_an_error_closes_with_a_code_that_says_whose_it_is(
    make_open: Any, autojump_clock: MockClock, of: str, code: int
) -> None:
    async with make_open().websocket(f"/fails/{of}") as connection:
        assert await connection.receive() == "hello"
        with pytest.raises(WebsocketDisconnectError) as closed:
            await connection.receive()
    assert closed.value.args == (code,)


async def test_the_drain_closes_and_refuses(make_open: Any, autojump_clock: MockClock) -> None:
    client = make_open()
    async with client.websocket("/echo") as connection:
        await connection.send("a")
        await connection.receive()
        client.app.draining.set()
        with pytest.raises(WebsocketDisconnectError) as closed:
            await connection.receive()
        assert closed.value.args == (1001,)
    answer, body = await refusal(client, "/echo")
    assert (answer.status_code, body["type"]) == (503, "urn:penstock:problem:leaving")


async def test_whoever_does_not_read_is_cut_off(make_open: Any, autojump_clock: MockClock) -> None:
    client = make_open(topic_clients=1)
    async with client.websocket("/flood") as connection:
        await connection.receive()
        await trio.sleep(websockets.SLOW + websockets.LINGER + 1)
        async with client.websocket("/echo") as other:  # its place is free
            await other.send("a")
            assert await other.receive() == "a"


# Over a real socket --------------------------------------------------------------------------------------------------


async def test_the_whole_life_over_a_real_socket(serving: Any) -> None:
    async with serving(sockets, graceful_timeout=30.0) as server:
        with pytest.raises(Refused) as refused:
            async with connect(server.port, "/echo", EVIL):
                pass
        assert (refused.value.status, refused.value.headers["x-frame-options"]) == (403, "DENY")
        assert json.loads(refused.value.body)["type"] == "urn:penstock:problem:cross-site"
        with pytest.raises(Refused) as missing:
            async with connect(server.port, "/nope"):
                pass
        assert missing.value.status == 404
        async with connect(server.port, "/echo") as large:
            await large.send("x" * 65_537)
            assert (await large.closed()).code == 1009
        async with connect(server.port, "/echo") as broken:
            await broken.stream.send_all(b"\x81\x05hello")  # a client must mask what it sends
            assert (await broken.closed()).code is None
        async with connect(server.port, "/fails/ours") as failing:
            closed = await failing.closed()
            assert closed.code == 1011
            assert "hunter2" not in (closed.reason or "")
        origin = {"Origin": f"http://127.0.0.1:{server.port}"}
        async with connect(server.port, "/echo", origin) as one, connect(server.port, "/echo") as other:
            for each in (one, other):
                await each.send("hello")
                assert await each.text() == "hello"
                assert each.pings
            began = trio.current_time()
            server.deployment.tree.stop("the test wants it")
            for each in (one, other):
                closed = await each.closed()
                assert (closed.code, closed.reason) == (1001, "The server is about to leave; come again in a moment.")
            await server.gone()
            assert trio.current_time() - began < 10  # far below graceful_timeout
        statuses = sorted(event["responseStatus"] for event in await server.captured(7))
        assert statuses == [101, 101, 101, 101, 101, 403, 404]


async def test_what_a_client_compressed_is_not_taken_apart(serving: Any) -> None:
    async with serving(sockets) as server:
        for offer in ("permessage-deflate", "permessage-deflate; client_max_window_bits=nonsense"):
            offered = {"Sec-WebSocket-Extensions": offer}
            async with connect(server.port, "/echo", offered) as plain:
                await plain.send("hello")
                assert await plain.text() == "hello"
            async with connect(server.port, "/echo", offered) as bomb:
                packed = zlib.compress(bytes(50_000_000), wbits=-15)
                head = b"\xc1\xfe" + len(packed).to_bytes(2, "big") + bytes(4)
                with contextlib.suppress(trio.BrokenResourceError):
                    await bomb.stream.send_all(head + packed)
                assert (await bomb.closed()).code is None


async def test_who_says_too_much_and_goes_on_costs_no_memory_and_is_cut_off(serving: Any) -> None:
    async with serving(sockets) as server, connect(server.port, "/echo") as endless:
        more = b"\x00\xfe\xff\xff" + bytes(4) + b"x" * 65_535
        await endless.stream.send_all(b"\x01\x80" + bytes(4) + more + more)
        tracemalloc.start()
        try:
            with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
                while tracemalloc.get_traced_memory()[1] < 10_000_000:
                    await endless.stream.send_all(more)
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("lacks", ["Sec-WebSocket-Version: 13\r\n", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"])
async def test_a_handshake_that_is_none_ends_the_connection(serving: Any, lacks: str) -> None:
    whole = (
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with serving(sockets) as server:
        stream = await server.raw(whole.replace(lacks, "").encode())
        with trio.fail_after(20):
            answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 400 ")
        await stream.aclose()


async def test_who_does_not_wait_for_the_answer_to_the_handshake_is_no_error_of_ours(
    serving: Any, caplog: pytest.LogCaptureFixture
) -> None:
    asked = (
        "GET /echo HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    async with serving(sockets) as server:
        stream = await server.raw(asked.encode() + b"\x81\x82" + bytes(4) + b"hi")
        with trio.fail_after(20):
            answer = b"".join([data async for data in stream])
        assert answer.startswith(b"HTTP/1.1 400 ")
        await stream.aclose()
        await server.captured(1)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_who_does_not_read_or_answer_does_not_hold_up_the_stop(serving: Any) -> None:
    async with serving(sockets, graceful_timeout=30.0) as server:
        async with connect(server.port, "/flood") as deaf, connect(server.port, "/echo") as silent:
            await deaf.text()
            await silent.send("a")
            await silent.text()
            began = trio.current_time()
            server.deployment.tree.stop("the test wants it")
            await server.gone()
            assert trio.current_time() - began < 10  # far below graceful_timeout
            with trio.fail_after(10), pytest.raises(Closed):
                while True:
                    await deaf.text()


async def test_whose_machine_has_vanished_is_given_up() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    client = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
    connection = http_connection.Connection(await listener.accept())
    connection.give_up_after(0.5)
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        while True:
            await connection.send_all(bytes(1_000_000))  # it acknowledges nothing more when its buffers are full
    for each in (client, connection, listener):
        await each.aclose()


def over_http2(path: str, headers: dict[str, str]) -> H2Connection:
    """An HTTP/2 client's connection that asks for a WebSocket in stream 1 (RFC 8441)."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    asked = {
        ":method": "CONNECT",
        ":protocol": "websocket",
        ":scheme": "http",
        ":path": path,
        ":authority": "localhost",
    }
    client.send_headers(1, [*asked.items(), ("sec-websocket-version", "13"), *headers.items()])
    return client


async def heard(stream: trio.SocketStream, client: H2Connection) -> tuple[str, bytes]:
    """Status and body of stream 1, as soon as it has ended."""
    status, body = "", b""
    with trio.fail_after(10):
        while True:
            for event in client.receive_data(await stream.receive_some()):
                if isinstance(event, ResponseReceived):
                    status = dict(event.headers)[":status"]
                elif isinstance(event, DataReceived):
                    body += event.data
                elif isinstance(event, (StreamEnded, StreamReset)):
                    return status, body
            await stream.send_all(client.data_to_send())


async def test_over_http2(serving: Any) -> None:
    async with serving(sockets, graceful_timeout=30.0) as server:
        refused = over_http2("/echo", {"origin": "https://evil.example"})
        stream = await server.raw(refused.data_to_send())
        status, body = await heard(stream, refused)
        assert (status, json.loads(body)["type"]) == ("403", "urn:penstock:problem:cross-site")
        await stream.aclose()
        taken = over_http2("/fails/client", {"origin": "http://localhost"})
        stream = await server.raw(taken.data_to_send())
        status, body = await heard(stream, taken)
        frames = Connection(ConnectionType.CLIENT)
        frames.receive_data(body)
        said = list(frames.events())
        assert (status, [event.data for event in said if isinstance(event, TextMessage)]) == ("200", ["hello"])
        assert [int(event.code) for event in said if isinstance(event, CloseConnection)] == [1008]
        await stream.aclose()
        open_one = over_http2("/echo", {})
        stream = await server.raw(open_one.data_to_send())
        await server.captured(3)
        began = trio.current_time()
        server.deployment.tree.stop("the test wants it")
        assert b"about to leave" in (await heard(stream, open_one))[1]
        await server.gone()
        assert trio.current_time() - began < 10
        await stream.aclose()
