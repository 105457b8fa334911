"""The outer boundary of the application, between the server and the framework.

What holds for every answer holds here: the security headers; a problem for whatever the framework itself stumbles
over; an answer that its client can read although it came before the request's body had ended; and its orderly end.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import cast

import trio
from quart import request

from .access import ASGI, Message, Receive, Scope, Send
from .problems import PROBLEM, Problem, problem_of
from .replies import dump
from .security import complete

__all__ = ["Boundary", "hold"]

_HELD = "penstock.held"
"""Where in the scope stands what is held until the request is over."""

LINGER = 2.0
"""Seconds for which the rest of a body is read and thrown away after the answer. Closing at once would make the
client's system discard an answer that it has not read yet (RFC 9112, 9.6)."""


def hold(context: AbstractContextManager[object]) -> None:
    """Enter it now, in a route, and leave it when the request is over, whatever becomes of its answer."""
    cast("ExitStack", cast("Scope", request.scope)[_HELD]).enter_context(context)


class Boundary:
    """Wraps an ASGI application; see the module.

    Args:
        app: the application.
        sockets: serves its WebSockets.
    """

    def __init__(self, app: ASGI, sockets: ASGI) -> None:
        self._app = app
        self._sockets = sockets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises nothing but cancellation, and errors after the answer had begun."""
        if scope["type"] == "websocket":
            await self._sockets(scope, receive, send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        failed: BaseException | None = None
        with ExitStack() as held:
            scope[_HELD] = held
            try:
                await self._app(scope, exchange.receive, exchange.send)
            except* (trio.Cancelled, KeyboardInterrupt):
                raise
            except* BaseException as errors:  # noqa: BLE001 - it is the boundary: problem_of logs what it does not know
                failed = errors
        if failed is not None:
            await exchange.fail(problem_of(failed))


class _Exchange:
    """One request: whether its body has ended, and its answer begun."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._answering = False
        self._failed = False
        self._receive = receive
        self._send = send
        self._received = trio.Event()

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._received.set()
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._answering = True
            message["headers"] = complete(message.get("headers", ()))
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            await self._finish(message)
            return
        await self._send(message)

    async def fail(self, problem: Problem) -> None:
        """Answer for an application that has raised. Once it had begun to answer it is too late for that: the server
        cuts the connection, and the client sees that the answer is not whole."""
        self._failed = True
        if not self._answering:
            head = [(b"content-type", PROBLEM.encode())]
            await self.send({"type": "http.response.start", "status": problem.status, "headers": head})
            await self.send({"type": "http.response.body", "body": dump(problem.body()).encode()})

    async def _finish(self, last: Message) -> None:
        """Send the end of the answer when the request has ended too, or after `LINGER`."""
        if not self._received.is_set():
            await self._send({**last, "more_body": True})
            last = {**last, "body": b""}
            with trio.move_on_after(LINGER):
                await self._rest()
        # Within this call Hypercorn tells Quart that the request is over, and Quart cancels who is sending: in the
        # midst of closing the connection, or of starting the clock of an idle one. It would then stay open for ever.
        with trio.move_on_after(LINGER, shield=True):
            await self._send(last)

    async def _rest(self) -> None:
        """Block until the request has ended. The framework goes on receiving while it answers, unless it has failed."""
        while self._failed and not self._received.is_set():
            await self.receive()
        await self._received.wait()
