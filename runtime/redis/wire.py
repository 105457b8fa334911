"""`Wire`: one connected and greeted stream that speaks RESP; `open_wire` makes it.

A wire is never repaired. Whatever goes wrong on it, it is closed and another one is opened.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from typing import Any, Final

import hiredis
import redis.exceptions
import trio

from . import _compat
from .errors import RedisUnavailable
from .options import RedisOptions

__all__ = ["READ_SIZE", "STREAM_ERRORS", "Connect", "Wire", "connector", "describe", "open_wire"]

Connect = Callable[[], Awaitable[trio.abc.Stream]]
"""Opens the byte stream to the server: the seam for tests, tunnels and, later, cluster nodes.

Its `receive_some` must lose nothing when it is cancelled, as those of trio do not.
"""

READ_SIZE = 65536
STREAM_ERRORS = (trio.BrokenResourceError, trio.ClosedResourceError, OSError)
_CLOSE_TIMEOUT = 1.0
_PIECE = 256 * 1024
"""Bytes that go at a time when there are many, so that a slow but living server is told from a frozen one."""


class Wire:
    """A stream with a RESP decoder, for one task at a time.

    Attributes:
        stream: the bytes.
        reader: the decoder; it may hold a part of a reply.
    """

    def __init__(self, stream: trio.abc.Stream, *, decode: bool) -> None:
        self.stream = stream
        self.reader = _compat.reply_reader(decode=decode)
        self._plain = stream.socket if isinstance(stream, trio.SocketStream) else None

    async def send(self, data: bytes, taken: Callable[[], None] | None = None) -> None:
        """Send. Cancelled or failed in the middle, the wire must be closed.

        No checkpoint when the kernel takes everything at once: trio's own send makes one of each, which costs a turn of
        the scheduler for every burst.

        Args:
            data: what is sent.
            taken: called after each piece of long data. Past what the buffers on the way hold, it means that the other
                side lives.
        """
        done = 0
        if self._plain is not None:
            with suppress(BlockingIOError):
                done = os.write(self._plain.fileno(), data)
            if done == len(data):
                return
        rest = memoryview(data)[done:]
        while len(rest) > _PIECE:
            await self.stream.send_all(rest[:_PIECE])
            rest = rest[_PIECE:]
            if taken is not None:
                taken()
        await self.stream.send_all(rest)

    async def read(self) -> bytes | bytearray:
        """The next bytes, as many as there are; none at the end of the stream. Raises STREAM_ERRORS."""
        if self._plain is None:
            return await self.stream.receive_some(READ_SIZE)
        while True:
            if self._plain.fileno() < 0:
                raise trio.ClosedResourceError
            # trio's own receive tries before it waits; here there is hardly ever anything yet.
            await trio.lowlevel.wait_readable(self._plain)
            with suppress(BlockingIOError):
                return os.read(self._plain.fileno(), READ_SIZE)

    async def receive(self, *, raw: bool = False, heard: Callable[[], None] | None = None) -> Any:
        """The next reply; an error reply comes as an exception *object*, and so does one that is no UTF-8.

        Args:
            raw: leave its strings as bytes.
            heard: called each time when bytes have come.

        May be cancelled and called again: bytes that have come are kept. Raises EOFError at the end of the stream,
        redis.exceptions.InvalidResponse for what is no RESP, and STREAM_ERRORS.
        """
        while True:
            try:
                reply = self.reader.gets(not raw)
            except UnicodeDecodeError as error:
                return error.with_traceback(None)
            except Exception as error:
                raise _compat.unreadable(error) from error
            if reply is _compat.NOT_ENOUGH_DATA:
                data = await self.read()
                if not data:
                    raise EOFError
                if heard is not None:
                    heard()
                self.reader.feed(data)  # type: ignore[arg-type]  # the stub forgets bytearray
            elif not isinstance(reply, hiredis.PushNotification):
                return reply

    def is_stale(self) -> bool:
        """Whether the peer closed, or said something nobody asked for, while the wire was idle. Does not block."""
        return bool(self.reader.has_data()) or self.has_news()

    def has_news(self) -> bool:
        """Whether bytes, or the end, wait in the socket for somebody to read them. Does not block."""
        raw = _socket_of(self.stream)
        if raw is None:
            return False
        if raw.fileno() < 0:
            return True  # somebody has closed it: whoever reads learns of it
        poll = select.poll()
        poll.register(raw.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    async def aclose(self) -> None:
        """Close at once, without goodbye. Also under cancellation; takes at most a second."""
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await trio.aclose_forcefully(self.stream)


def connector(options: RedisOptions) -> Connect:
    """The function that opens the options' byte stream: a unix socket, TCP, or TLS over TCP, before its handshake.

    Reads the PEM files now, so that a wrong path is an error at the start and not an outage: OSError, ssl.SSLError.
    """
    if options.path is not None:
        return partial(trio.open_unix_socket, options.path)
    if options.tls:
        return partial(_open_tls, options, options.make_tls_context())
    return partial(_open_tcp, options)


async def open_wire(options: RedisOptions, connect: Connect) -> Wire:
    """Connect, with TLS if the stream is one for it, and greet, within `options.connect_timeout`.

    Raises RedisUnavailable with the reason; when the server turned us away, its reply is the `__cause__`.
    """
    stream: trio.abc.Stream | None = None
    step = _Step.CONNECT
    try:
        with trio.fail_after(options.connect_timeout):
            stream = await connect()
            if isinstance(stream, trio.SSLStream):
                step = _Step.HANDSHAKE
                await stream.do_handshake()
            step = _Step.GREET
            wire = Wire(stream, decode=options.decode_responses)
            await _greet(wire, options)
    except BaseException as error:
        if stream is not None:
            await Wire(stream, decode=False).aclose()
        if isinstance(error, trio.TooSlowError):
            reason = f"no connection within {options.connect_timeout:g} s"
            if step is _Step.HANDSHAKE:
                reason += ": TCP is connected, but TLS gets no answer (is this a TLS port?)"
            raise RedisUnavailable(options.address, reason) from error
        # UnicodeError: a host name with an empty or endless label, or a greeting that is no text.
        if isinstance(error, (EOFError, UnicodeError, redis.exceptions.RedisError, *STREAM_ERRORS)):
            reason = f"cannot connect: {describe(error)}{_question(step, options, error)}"
            raise RedisUnavailable(options.address, reason) from error
        raise
    return wire


class _Step(Enum):
    """How far a connection has come."""

    CONNECT = auto()
    HANDSHAKE = auto()
    GREET = auto()


def _question(step: _Step, options: RedisOptions, error: BaseException) -> str:
    """What to ask oneself where somebody else than the expected server seems to have been there."""
    roots = _roots(error)
    if step is _Step.HANDSHAKE:
        no_tls = any(isinstance(root, ssl.SSLError) and root.reason in _NO_TLS for root in roots)
        return " (is this a TLS port?)" if no_tls else ""
    strange = (EOFError, ConnectionResetError, BrokenPipeError, redis.exceptions.InvalidResponse)
    if step is _Step.GREET and any(isinstance(root, strange) for root in roots) and options.path is None:
        return " (is this a Redis server's port" + ("?)" if options.tls else ", and without TLS?)")
    return ""


_NO_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "UNEXPECTED_EOF_WHILE_READING", "RECORD_LAYER_FAILURE"})


def describe(error: BaseException) -> str:
    """What happened to a stream, in a few words."""
    if isinstance(error, EOFError):
        return "the server closed the connection"
    if isinstance(error, redis.exceptions.RedisError):
        return str(getattr(error, "reply_text", error))
    roots = _roots(error)
    texts = [(root.strerror if isinstance(root, OSError) else None) or str(root) for root in roots]
    return "; ".join(dict.fromkeys(texts)) or "the connection is broken"


async def _open_tcp(options: RedisOptions) -> trio.SocketStream:
    stream = await trio.open_tcp_stream(options.host, options.port)
    if options.tcp_keepalive:
        # A NAT or firewall that forgets an idle connection is noticed by the kernel, not by the next command.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return stream


async def _open_tls(options: RedisOptions, context: ssl.SSLContext) -> trio.abc.Stream:
    stream = await _open_tcp(options)
    # https_compatible: servers close without TLS's close_notify; RESP itself says where a reply ends.
    return trio.SSLStream(stream, context, server_hostname=options.host, https_compatible=True)


async def _greet(wire: Wire, options: RedisOptions) -> None:
    """Login, client name and database, in one burst. Raises the first error reply.

    No CLIENT SETINFO: a user without the right to it would get an ACL LOG entry for each connection.
    """
    try:
        count = await _say_hello(wire, options)
    except STREAM_ERRORS as failure:
        # A server with too many clients says so and hangs up before we speak: hear it out.
        reply = await _last_words(wire, failure)
        if isinstance(reply, Exception):
            raise reply from failure
        raise
    for _ in range(count):
        reply = await wire.receive()
        if isinstance(reply, Exception):
            raise reply  # at once: who turns us away may hang up before the next reply


async def _say_hello(wire: Wire, options: RedisOptions) -> int:
    """Send the greeting; how many replies it gets.

    In a frame of its own, which is over when a reply is an error: some reports of errors show the locals of each frame,
    and the password is among these.
    """
    commands = _greeting(options, await _credentials(options))
    await wire.send(b"".join(_compat.pack_command(each) for each in commands))
    return len(commands)


async def _credentials(options: RedisOptions) -> tuple[str | None, str | None]:
    """User and password for this connection. Raises RedisUnavailable."""
    if options.credential_provider is None:
        return options.username, options.password
    try:
        found = await options.credential_provider.get_credentials_async()
    except Exception as error:
        # Whatever it was: there is no login, and there may be one at the next attempt. Its text may be secret.
        raise RedisUnavailable(options.address, f"no credentials ({type(error).__name__})") from error
    return (found[0], found[1]) if len(found) == 2 else (None, found[0])


def _greeting(options: RedisOptions, login: tuple[str | None, str | None]) -> list[tuple[Any, ...]]:
    user, password = login
    commands: list[tuple[Any, ...]] = []
    auth: tuple[Any, ...] = ()
    if password is not None:
        auth = ("AUTH", user or "default", password)
    if options.protocol == 3:
        name = () if options.client_name is None else ("SETNAME", options.client_name)
        commands.append(("HELLO", 3, *auth, *name))
    else:
        if password is not None:
            # Without a user, the form that servers and proxies without ACL know.
            commands.append(auth if user else ("AUTH", password))
        if options.client_name is not None:
            commands.append(("CLIENT", "SETNAME", options.client_name))
    if options.db:
        commands.append(("SELECT", options.db))
    return commands or [("PING",)]  # a server that says nothing, or hangs up, is no server


async def _last_words(wire: Wire, failure: Exception) -> Any:
    try:
        return await wire.receive()
    except (EOFError, *STREAM_ERRORS):
        raise failure from None


def _roots(error: BaseException) -> list[BaseException]:
    """What lies under trio's wrappers: one cause, or one for each address that was tried."""
    if isinstance(error, BaseExceptionGroup):
        return [root for each in error.exceptions for root in _roots(each)]
    is_wrapper = isinstance(error, (trio.BrokenResourceError, trio.ClosedResourceError)) or type(error) is OSError
    return _roots(error.__cause__) if is_wrapper and error.__cause__ is not None else [error]


def _socket_of(stream: trio.abc.Stream) -> trio.socket.SocketType | None:
    inner = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    return inner.socket if isinstance(inner, trio.SocketStream) else None
