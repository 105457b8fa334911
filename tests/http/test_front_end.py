"""The whole front end over real sockets: Hypercorn's protocols, limits, broken clients, the drain."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from penstock.actors.event import Envelope
from penstock.http.front_end import CannotListen, front_end
from penstock.http.settings import HttpSettings
from penstock.runtime.supervision import ChildSpec, StartFailed, Supervisor, Tree

ANYTHING = "/api/v1/streams/anything/events"
JSON = {"Content-Type": "application/json"}
HOST = "Host: localhost\r\n"
EVENT = b'{"eventType":"X","data":{}}'


def _megabytes(count: int) -> Iterator[bytes]:
    for _ in range(count * 16):
        yield b"x" * 65_536


async def test_the_tree_shows_where_it_listens(serving: Any) -> None:
    async with serving() as server:
        note = server.deployment.tree.snapshot().find("event-system/http").note
        assert note == f"http://127.0.0.1:{server.port}"
        status, headers, body = await server.request("GET", "/healthz")
        assert (status, json.loads(body)) == (200, {"status": "alive"})
        assert headers["Server"] is None


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_of_20_mb_is_413_soon_and_the_client_can_read_that(serving: Any, chunked: bool) -> None:
    """Closing the connection while the client is still sending would destroy the answer on its way."""
    async with serving() as server:
        body: Any = _megabytes(20) if chunked else b"x" * (20 << 20)
        began = time.monotonic()
        status, headers, answer = await server.request("POST", ANYTHING, body, JSON)
        assert status == 413
        assert headers["Content-Type"] == "application/problem+json"
        assert json.loads(answer)["type"] == "urn:penstock:problem:request-entity-too-large"
        assert time.monotonic() - began < 20
        (event,) = await server.captured(1)
        assert event["responseStatus"] == 413
        assert len(event["inputs"]) <= 8192


async def test_the_413_is_sent_before_the_body_has_ended(serving: Any) -> None:
    async with serving(body_limit=1000, body_timeout=60.0) as server:
        head = f"POST {ANYTHING} HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
        stream = await server.raw(head.encode() + b"x" * 100)
        with trio.fail_after(20):
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 413 ")
        await stream.aclose()


async def test_a_body_that_does_not_come_is_408(serving: Any) -> None:
    async with serving(body_timeout=0.2) as server:
        head = f"POST {ANYTHING} HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        stream = await server.raw(head.encode() + b'{"eve')
        with trio.fail_after(20):
            assert (await stream.receive_some(4096)).startswith(b"HTTP/1.1 408 ")
        await stream.aclose()


@pytest.mark.parametrize("path", ["/healthz", "/", "/nope", "/api/v1/live"])
async def test_head_has_the_head_and_no_body_and_the_connection_goes_on(serving: Any, path: str) -> None:
    async with serving() as server:
        request = f"HEAD {path} HTTP/1.1\r\n{HOST}\r\nGET /healthz HTTP/1.1\r\n{HOST}Connection: close\r\n\r\n"
        stream = await server.raw(request.encode())
        got = b""
        with trio.fail_after(20):
            async for data in stream:
                got += data
        first, second, body = got.split(b"\r\n\r\n")
        assert first.startswith(b"HTTP/1.1 404" if path == "/nope" else b"HTTP/1.1 200")
        assert second.startswith(b"HTTP/1.1 200")
        assert body == b'{"status":"alive"}'


async def test_an_abandoned_request_is_cancelled_and_recorded(serving: Any) -> None:
    async with serving() as server:
        began, cancelled = trio.Event(), trio.Event()

        async def publish(stream: str, envelopes: Any) -> Any:
            began.set()
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        server.deployment.publish = publish
        head = f"POST {ANYTHING} HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nContent-Length: {len(EVENT)}"
        stream = await server.raw(f"{head}\r\n\r\n".encode() + EVENT)
        await began.wait()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closes with a reset
        await stream.aclose()
        with trio.fail_after(20):
            await cancelled.wait()
        (event,) = await server.captured(1)
        assert event["responseStatus"] is None


UPGRADE = (
    b"GET /x HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: YWJjZGVmZ2hpamtsbW5vcA==\r\n\r\n"
)
HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# SETTINGS, then HEADERS of stream 1: GET, http, a path with a byte that is no ASCII, :authority a.
NO_ASCII = b"\0\0\0\x04\0\0\0\0\0\0\0\x0a\x01\x05\0\0\0\x01\x82\x86\x04\x03/b\xc3\x41\x01a"


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\xff\x16\x03\x01 nothing\r\n\r\n",
        b"GET ?x HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"CONNECT h:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /%ff%00 HTTP/1.1\r\nHost: \xff\r\n\r\n",
        b"POST " + ANYTHING.encode() + b" HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000,
        UPGRADE + b"\xff\xff\xff",
        HTTP2 + b"\x00" * 100,
        HTTP2 + NO_ASCII,
        HTTP2[:20],
        b"GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: h2c\r\nConnection: upgrade\r\nHTTP2-Settings: !!\r\n\r\n",
    ],
)
async def test_a_broken_client_harms_nobody_but_itself(serving: Any, garbage: bytes) -> None:
    """Some of these end Hypercorn's own server, with all of its connections."""
    async with serving() as server:
        bystander = await server.raw(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await bystander.receive_some(100)).startswith(b"HTTP/1.1 200")
        stream = await server.raw(garbage)
        with trio.move_on_after(0.5):
            while await stream.receive_some(4096):
                pass
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        status, _, _ = await server.request("GET", "/healthz")
        assert status == 200
        assert server.deployment.tree.snapshot().find("event-system/http").incarnation == 1
        with trio.fail_after(20):
            seen = b""
            while b"event: state" not in seen:
                data = await bystander.receive_some(65_536)
                assert data, "the bystander was cut off"
                seen += data
        await bystander.aclose()


async def test_a_websocket_where_none_is_is_refused_and_recorded(serving: Any) -> None:
    async with serving() as server:
        stream = await server.raw(UPGRADE)
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 404")
        await stream.aclose()
        (event,) = await server.captured(1)
        assert (event["endpoint"], event["responseStatus"]) == ("/x", 404)


# The drain -----------------------------------------------------------------------------------------------------------


async def test_event_streams_end_at_once_when_the_front_end_drains(serving: Any) -> None:
    async with serving(graceful_timeout=60.0) as server:
        live = await server.raw(b"GET /api/v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
        tail = await server.raw(b"GET /api/v1/streams/anything/tail HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for stream in (live, tail):
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        server.deployment.tree.stop("the test wants it")
        with trio.fail_after(20):
            for stream in (live, tail):
                got = b"".join([data async for data in stream])
                assert got.endswith(b"0\r\n\r\n"), "an orderly end, no cut"


async def test_a_request_under_way_is_finished_while_new_ones_are_refused(serving: Any) -> None:
    async with serving(graceful_timeout=60.0) as server:
        publish = server.deployment.publish
        began, go = trio.Event(), trio.Event()

        async def slowly(stream: str, envelopes: Any) -> Any:
            began.set()
            await go.wait()
            return await publish(stream, envelopes)

        server.deployment.publish = slowly
        answers: list[int] = []

        async def ask() -> None:
            answers.append((await server.request("POST", ANYTHING, EVENT, JSON))[0])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await began.wait()
            server.deployment.tree.stop("the test wants it")
            with trio.fail_after(20):
                while True:
                    try:
                        await (await trio.open_tcp_stream("127.0.0.1", server.port)).aclose()
                    except OSError:
                        break
            go.set()
        assert answers == [202]


async def test_a_request_that_does_not_end_is_cut_after_its_time(serving: Any) -> None:
    async with serving(graceful_timeout=0.3) as server:
        began = trio.Event()

        async def never(stream: str, envelopes: Any) -> Any:
            began.set()
            await trio.sleep_forever()

        server.deployment.publish = never
        head = f"POST {ANYTHING} HTTP/1.1\r\n{HOST}Content-Type: application/json\r\nContent-Length: {len(EVENT)}"
        stream = await server.raw(f"{head}\r\n\r\n".encode() + EVENT)
        await began.wait()
        server.deployment.tree.stop("the test wants it")
        with trio.fail_after(4):  # by itself it has 5 seconds
            assert await stream.receive_some(100) == b""
        await stream.aclose()


async def test_a_client_that_does_not_read_does_not_hold_up_the_stop(serving: Any) -> None:
    """Hypercorn shields what it sends from cancellation."""
    async with serving(graceful_timeout=0.3) as server:
        stream = await server.raw(b"GET /api/v1/streams/anything/tail?after=0 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        large = Envelope(event_type="X", data={"text": "x" * 8_000_000})
        await server.deployment.publish("anything", [large, large])
        await trio.sleep(0.3)  # for a send that will never be done there is no event
        server.deployment.tree.stop("the test wants it")
        await server.gone()
        await stream.aclose()


async def test_connections_without_a_request_are_closed_at_once_by_the_drain(serving: Any) -> None:
    async with serving(graceful_timeout=60.0) as server:
        used = await server.raw(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await used.receive_some(4096)).startswith(b"HTTP/1.1 200")
        fresh = await server.raw(b"")
        server.deployment.tree.stop("the test wants it")
        await server.gone()
        await used.aclose()
        await fresh.aclose()


# Addresses -----------------------------------------------------------------------------------------------------------


async def _start(deployment: Any, *binds: str) -> None:
    spec = front_end(deployment, HttpSettings(bind=binds))
    await Tree(Supervisor("front", [spec])).run()


def _only(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        (group,) = group.exceptions
    return group


async def test_an_address_that_is_taken_is_named(deployment: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(StartFailed) as failed:
            await _start(deployment, "127.0.0.1:0", address)
    assert isinstance(failed.value.__cause__, CannotListen)
    assert f"cannot listen on {address}: Address already in use" in str(failed.value)
    assert "PENSTOCK_HTTP_BIND" in str(failed.value)


@pytest.mark.parametrize("bind", ["no-such-host.invalid:80", "unix:/nowhere/at/all.sock", "203.0.113.1:80"])
async def test_an_address_that_is_not_ours_is_named(deployment: Any, bind: str) -> None:
    with pytest.raises(StartFailed, match="cannot listen on"):
        await _start(deployment, bind)


async def test_several_addresses_and_a_unix_socket_that_goes_with_the_front_end(serving: Any, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    path.touch()
    path.unlink()
    async with serving(bind=(f"unix:{path}", "127.0.0.1:0")) as server:
        assert (await server.request("GET", "/healthz"))[0] == 200
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        await stream.aclose()
        first, _ = await server.captured(2)
        assert first["ipAddress"] == "127.0.0.1"
    assert not path.exists()


async def test_a_unix_socket_on_which_somebody_listens_is_not_taken_from_them(
    serving: Any, deployment: Any, tmp_path: Path
) -> None:
    path = tmp_path / "http.sock"
    async with serving(bind=(f"unix:{path}", "127.0.0.1:0")):
        with pytest.raises(StartFailed, match="Address already in use"):
            await _start(deployment, f"unix:{path}")
        await (await trio.open_unix_socket(path)).aclose()


async def test_a_socket_that_a_killed_process_left_behind_is_replaced(serving: Any, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with serving(bind=(f"unix:{path}", "127.0.0.1:0")):
        await (await trio.open_unix_socket(path)).aclose()


@pytest.mark.parametrize("bind", ["127.0.0.1", "127.0.0.1:http", ":80", "127.0.0.1:99999", "unix:", "fd://x", ""])
def test_a_bind_that_is_none_is_refused_when_settings_are_read(bind: str) -> None:
    with pytest.raises(ValueError, match="must be"):
        HttpSettings(bind=bind)


def test_a_front_end_has_time_to_drain() -> None:
    spec = front_end(None, HttpSettings(graceful_timeout=5.0))  # type: ignore[arg-type]
    assert isinstance(spec, ChildSpec)
    assert spec.drain_within > 5.0
