"""One connection as Hypercorn's protocols see it: it knows when it has ended, and can be cut."""

from __future__ import annotations

import socket
from contextlib import suppress

import trio
from hypercorn.trio.worker_context import EventWrapper, WorkerContext

__all__ = ["CONNECTION", "Connection", "ConnectionContext"]

CONNECTION = "penstock.connection"
"""Where in the scope's state the connection stands."""

_LINGER = 2.0
"""Seconds for which what comes is read and thrown away after an answer that ends the connection."""

_UNREAD = 60.0
"""Seconds in which a client must take some of what is sent to it."""

_PIECE = 64 * 1024
"""Bytes that are sent at a time, so that a slow client is told from one that takes nothing."""

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
        self._is_refused = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = b""
        try:
            if self._is_refused:
                await self._throw_away()
            else:
                data = bytes(await self._stream.receive_some(max_bytes))
        finally:
            if not data:
                self.ended.set()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send it. A client that takes nothing for `_UNREAD` seconds is cut off: Hypercorn shields what it sends, so
        that nobody else could, and each would keep its answer, and its place, for as long as it likes.

        Raises:
            trio.BrokenResourceError: the client is gone, or was cut off.
        """
        whole = memoryview(data)
        for start in range(0, max(1, len(whole)), _PIECE):
            with trio.move_on_after(_UNREAD) as scope:
                await self._stream.send_all(whole[start : start + _PIECE])
            if scope.cancelled_caught:
                self.cut()
                raise trio.BrokenResourceError(f"the client has taken nothing for {_UNREAD:g} s")
        self._is_refused = self._is_refused or _is_refusal(data)

    async def _throw_away(self) -> None:
        """Hypercorn leaves a connection open after a handshake that it refuses by itself, and forgets it."""
        with trio.move_on_after(_LINGER):
            while await self._stream.receive_some():
                pass

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


def _is_refusal(data: bytes | bytearray | memoryview) -> bool:
    """Whether this is Hypercorn's own answer to what is no request, or no handshake: a bad request, without a word."""
    head = bytes(data[:200]) if bytes(data[:13]) == b"HTTP/1.1 400 " else b""
    return b"\r\ncontent-length: 0\r\n" in head and b"\r\nconnection: close\r\n" in head.lower()


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
