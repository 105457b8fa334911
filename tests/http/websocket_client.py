"""A WebSocket client in a few lines: wsproto over a stream of trio's."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

import trio
from attrs import define, field
from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)


class Refused(Exception):
    """The handshake was answered over HTTP: status, headers, body."""

    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        super().__init__(status, body)
        self.status, self.headers, self.body = status, headers, body


class Closed(Exception):
    """The server has closed, with this code and reason; None: it was cut off."""

    def __init__(self, code: int | None, reason: str | None = None) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


@define
class Client:
    """An open WebSocket. It answers pings and the server's close only while it is asked for what has come."""

    stream: trio.abc.Stream
    protocol: WSConnection = field(factory=lambda: WSConnection(ConnectionType.CLIENT))
    pings: int = 0
    _events: list[Event] = field(factory=list)
    _text: str = ""

    async def say(self, event: Event) -> None:
        await self.stream.send_all(self.protocol.send(event))

    async def send(self, data: str | bytes) -> None:
        await self.say(TextMessage(data) if isinstance(data, str) else BytesMessage(data))

    async def json(self) -> Any:
        """The next message, read as JSON. Raises `Closed`."""
        return json.loads(await self.text())

    async def text(self, within: float = 10.0) -> str:
        """The next message. Raises `Closed`."""
        with trio.fail_after(within):
            while True:
                event = await self.event()
                if isinstance(event, TextMessage):
                    self._text += event.data
                    if event.message_finished:
                        text, self._text = self._text, ""
                        return text
                elif isinstance(event, CloseConnection):
                    with suppress(trio.BrokenResourceError):
                        await self.say(event.response())
                    raise Closed(int(event.code), event.reason)
                elif isinstance(event, Ping):
                    self.pings += 1
                    with suppress(trio.BrokenResourceError):  # what has come before it is still to be read
                        await self.say(event.response())

    async def closed(self) -> Closed:
        """What the server closes with, whatever it has said before."""
        while True:
            try:
                await self.text()
            except Closed as closed:
                return closed

    async def event(self) -> Event:
        while not self._events:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                raise Closed(None)
            self.protocol.receive_data(data)
            self._events += self.protocol.events()
        return self._events.pop(0)

    async def shake_hands(self, path: str, host: str, headers: Mapping[str, str]) -> None:
        listed = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self.say(Request(host=host, target=path, extra_headers=listed))
        answer = await self.event()
        if isinstance(answer, RejectConnection):
            shown = {name.decode().lower(): value.decode() for name, value in answer.headers}
            raise Refused(answer.status_code, shown, await self._rest())
        assert isinstance(answer, AcceptConnection), answer

    async def _rest(self) -> bytes:
        body = b""
        while True:
            event = await self.event()
            assert isinstance(event, RejectData)
            body += event.data
            if event.body_finished:
                return body


@asynccontextmanager
async def connect(port: int, path: str, headers: Mapping[str, str] | None = None) -> AsyncIterator[Client]:
    """A WebSocket to a server on loopback. Raises `Refused`; at the block's end the connection is closed."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        client = Client(stream)
        with trio.fail_after(15):
            await client.shake_hands(path, f"127.0.0.1:{port}", headers or {})
        yield client
