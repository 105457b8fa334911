"""One connection as Hypercorn's protocols see it: it knows when it has ended, and can be cut."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

__all__ = ["CONNECTION", "Connection", "ConnectionContext"]

CONNECTION = "penstock.connection"
"""Where in the scope's state the connection stands."""

_SETTLE = 0.1
"""Seconds in which Hypercorn notices that a connection has ended."""


class Connection(trio.abc.HalfCloseableStream):
    """A socket's stream.

    Attributes:
        socket: the socket.
        ended: set when nothing more comes from the client, or we have closed.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.socket = stream.socket
        self.ended = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        finally:
            if not data:
                self.ended.set()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        self.ended.set()
        await self._stream.aclose()

    def give_up_after(self, seconds: float) -> None:
        """Lose the connection when what was sent has not been acknowledged for so long: the client's machine has
        vanished. Else the kernel tries for a quarter of an hour. Only Linux can do that."""
        if self.socket.family in (socket.AF_INET, socket.AF_INET6) and hasattr(socket, "TCP_USER_TIMEOUT"):
            with suppress(OSError):  # it is gone already
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(seconds * 1000))

    def cut(self) -> None:
        """Close under its feet what Hypercorn sends: it shields that, and would wait for ever for a client that does
        not read."""
        self.ended.set()
        self.socket.close()


class ConnectionContext(WorkerContext):
    """Hypercorn's context for one connection: what sleeps between two pings awakes when the connection has ended.

    Else the task of the connection would outlive it by that time, and hold up the stop.
    """

    def __init__(self, connection: Connection, terminated: EventWrapper) -> None:
        super().__init__(None)
        self.terminated = terminated
        self._ended = connection.ended

    async def sleep(self, wait: float) -> None:  # type: ignore[override]
        with trio.move_on_after(wait):
            await self._ended.wait()
            await trio.sleep(_SETTLE)
