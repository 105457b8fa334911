"""The HTTP front end as a supervised child: the last one to start, the first one to stop.

It speaks HTTP by Hypercorn's protocols on trio, and accepts connections itself: `hypercorn.trio.serve` runs all
connections in one nursery, so that an error in one of them (garbage after a refused WebSocket upgrade will do, or a
path that is not ASCII over HTTP/2) ends them all, and the server. Here an error ends its own connection.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import AppWrapper, ConnectionState
from hypercorn.utils import wrap_app

from ..runtime.supervision import Child, ChildSpec
from ..runtime.telemetry import get_logger
from .app import create_app
from .connection import CONNECTION, Connection, ConnectionContext
from .frames import curbed
from .running import RunningSystem
from .settings import HttpSettings

__all__ = ["CannotListen", "check_binds", "front_end"]

log = get_logger(__name__)

_MARGIN = 1.0
"""Seconds beyond the requests' own time that the front end has before its supervisor cancels it."""

_BACKLOG = 1024

_PING_EVERY = 20.0
"""Seconds between two pings of a WebSocket: proxies close connections that are silent for a minute."""

_MESSAGE_LIMIT = 65_536
"""Bytes that a message of a WebSocket's client may have; more closes it with 1009."""


class CannotListen(OSError):
    """An address cannot be listened on; the text names it, the reason, and the setting."""

    tells_all = True


def check_binds(binds: Sequence[str]) -> None:
    """Raise `CannotListen` unless all addresses can be listened on now. Blocks for a few system calls.

    An inherited socket (``fd://``) is taken on trust: to look at it would be to close it.
    """
    sockets = _listen([bind for bind in binds if not bind.startswith("fd://")])
    addresses = [_url(each) for each in sockets]
    _close(sockets)
    _unlink(addresses)


def front_end(deployment: RunningSystem, settings: HttpSettings) -> ChildSpec:
    """The child ``http`` that serves `deployment`.

    Its start fails with `CannotListen` when an address is taken. Draining, it accepts no more, ends the streams of
    events and the WebSockets at once, and gives requests under way `HttpSettings.graceful_timeout` seconds.
    """
    return ChildSpec(
        id="http",
        body=partial(_serve, deployment, settings),
        drain_within=settings.graceful_timeout + _MARGIN,
    )


async def _serve(deployment: RunningSystem, settings: HttpSettings, child: Child) -> None:
    app = create_app(deployment, settings, draining=child.draining)
    sockets = _listen(settings.bind)
    addresses = [_url(each) for each in sockets]
    async with trio.open_nursery() as background:
        background.start_soon(app.feed.run)
        child.note(", ".join(addresses))
        try:
            await _accept(wrap_app(curbed(app), 0, "asgi"), sockets, settings, child, addresses)
        finally:
            _close(sockets)
            _unlink(addresses)
        background.cancel_scope.cancel(reason="the front end has drained")


async def _accept(
    app: AppWrapper, sockets: Sequence[socket.socket], settings: HttpSettings, child: Child, addresses: list[str]
) -> None:
    """Serve connections until the drain, then those that are left, for the time that they have."""
    config = _config()
    terminated = EventWrapper()

    async def serve_connection(stream: trio.SocketStream) -> None:
        connection = Connection(stream)
        context, state = ConnectionContext(connection, terminated), ConnectionState({CONNECTION: connection})
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cut_when_cancelled, connection)
                await TCPServer(app, config, context, state, connection)  # type: ignore[arg-type]
                nursery.cancel_scope.cancel(reason="the connection has ended")
        except* Exception as errors:
            log.warning("connection dropped", reason=repr(errors.exceptions[0]), exc_info=errors)

    listeners = [trio.SocketListener(trio.socket.from_stdlib_socket(each)) for each in sockets]
    async with trio.open_nursery() as connections:
        async with trio.open_nursery() as accepting:
            accepting.start_soon(
                partial(trio.serve_listeners, serve_connection, listeners, handler_nursery=connections)
            )
            child.started(addresses)
            await child.draining.wait()
            accepting.cancel_scope.cancel(reason="the front end drains")
        await terminated.set()  # connections without a request are closed at once
        connections.cancel_scope.deadline = trio.current_time() + settings.graceful_timeout


async def _cut_when_cancelled(connection: Connection) -> None:
    try:
        await trio.sleep_forever()
    finally:
        connection.cut()


def _config() -> Config:
    config = Config()
    # What Hypercorn says at `info` ("CTRL + C to quit") is not ours to say; requests are access events.
    logger = logging.getLogger("hypercorn.error")
    logger.setLevel(logging.WARNING)
    config.errorlog = logger
    config.accesslog = None
    config.include_server_header = False
    config.websocket_ping_interval = _PING_EVERY
    config.websocket_max_message_size = _MESSAGE_LIMIT
    return config


# Sockets -------------------------------------------------------------------------------------------------------------


def _listen(binds: Sequence[str]) -> list[socket.socket]:
    """A listening socket for each address, all or none."""
    sockets: list[socket.socket] = []
    try:
        for bind in binds:
            sockets += _listen_on(bind)
    except BaseException:
        _close(sockets)
        raise
    return sockets


def _listen_on(bind: str) -> list[socket.socket]:
    config = Config()
    config.bind = [bind]
    try:
        _refuse_to_steal(bind)
        opened = config.create_sockets().insecure_sockets
        for each in opened:
            each.listen(_BACKLOG)
            each.set_inheritable(False)  # Hypercorn wants its workers to inherit it; nobody here is to
    except OSError as error:
        reason = error.strerror or str(error)
        text = f"cannot listen on {bind}: {reason} (setting http.bind, PENSTOCK_HTTP_BIND)"
        raise CannotListen(error.errno, text) from error
    return opened


def _refuse_to_steal(bind: str) -> None:
    """Raise OSError if somebody listens on a unix socket: binding it anew would silently take it from them."""
    path = bind.removeprefix("unix:")
    if path == bind or not os.path.exists(path):
        return
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise FileExistsError(errno.EEXIST, "there is a file of that name that is no socket")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        with suppress(ConnectionRefusedError):
            probe.connect(path)
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _url(listening: socket.socket) -> str:
    name = listening.getsockname()
    if listening.family == socket.AF_UNIX:
        return f"unix:{name}"
    host = f"[{name[0]}]" if listening.family == socket.AF_INET6 else name[0]
    return f"http://{host}:{name[1]}"


def _close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()


def _unlink(addresses: Sequence[str]) -> None:
    """Take away the files of unix sockets."""
    for address in addresses:
        path = address.removeprefix("unix:")
        if path != address:
            with suppress(OSError):
                os.unlink(path)
