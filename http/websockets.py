"""WebSockets between the server and the framework: how many there may be, how one is refused, and how all of them end.

A handshake is refused by an answer over HTTP, a problem like any other. One that is open ends with a code that says
why: 1001 at once when the front end drains, 1008 after what the client did, 1011 after an error of ours, 1013 where to
come again later is worth it.
"""

from __future__ import annotations

import math
from contextlib import ExitStack

import h11
import trio

from .access import ASGI, Message, Receive, Scope, Send
from .connection import CONNECTION, Connection
from .frames import TOO_LONG
from .problems import FAILED, PROBLEM, Problem, problem_of
from .replies import dump
from .security import complete
from .sse import Places

__all__ = ["WebSockets"]

NORMAL = 1000
GOING_AWAY = 1001
POLICY = 1008
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013

LINGER = 2.0
"""Seconds in which a client may answer the close: the connection is to end after that (RFC 6455, 7.1.1)."""

SLOW = 30.0
"""Seconds for which one message may wait for a client that does not read; then it is cut off."""

SLOW_WHILE_LEAVING = 1.0
"""The same, and the time to answer the close, when the front end drains."""

VANISHED = 60.0
"""Seconds for which a client's machine may answer nothing, pings neither."""

_REASON = 123
"""Bytes that a reason may have (RFC 6455, 5.5)."""


class WebSockets:
    """Wraps the WebSockets of an ASGI application; see the module.

    Args:
        app: the application.
        limit: how many may be open at a time; one more is answered with 503.
        draining: set when all are to end.
    """

    def __init__(self, app: ASGI, limit: int, draining: trio.Event) -> None:
        self._app = app
        self._draining = draining
        self._places = Places(limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one, from its handshake to its end. Raises nothing but cancellation."""
        with ExitStack() as place:
            socket = _Socket(scope, receive, send, self._places, place)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(socket.cut_when_stuck, nursery.cancel_scope)
                nursery.start_soon(socket.cut_after_too_much)
                if self._draining.is_set():
                    socket.leave()
                else:
                    await self._serve(scope, socket)
                await socket.end()
                nursery.cancel_scope.cancel(reason="the WebSocket has ended")

    async def _serve(self, scope: Scope, socket: _Socket) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end_at_drain, socket, nursery.cancel_scope)
                await self._app(scope, socket.receive, socket.send)
                nursery.cancel_scope.cancel(reason="the WebSocket was served")
        except* Exception as errors:  # noqa: BLE001 - it is the boundary: problem_of logs what it does not know
            socket.fail(problem_of(errors))

    async def _end_at_drain(self, socket: _Socket, serving: trio.CancelScope) -> None:
        await self._draining.wait()
        socket.leave()
        serving.cancel(reason="the front end drains")


class _Socket:
    """One WebSocket: how far it is, and of what it ends."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, places: Places, place: ExitStack) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._places = places
        self._place = place
        self._open = False
        self._over = False
        self._gone = False
        self._leaving = False
        self._cut_at = math.inf
        self._sending = 0
        self._patience = trio.CancelScope()
        self._problem: Problem | None = None

    async def receive(self) -> Message:
        message = await self._receive()
        self._gone = message["type"] == "websocket.disconnect"
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "websocket.accept":
            self._take_place()
            self._open = True
            if connection := self._connection():
                connection.give_up_after(VANISHED)
            await self._accept(message)
            return
        if kind == "websocket.http.response.start":
            self._over = True
            message["headers"] = complete(message.get("headers", ()))
        elif kind == "websocket.close":
            problem = self._problem or self._scope.get(FAILED)
            if problem is not None:  # the framework would close as if all were well
                self.fail(problem)
                return
            self._over = True
        await self._give(message)

    async def _accept(self, message: Message) -> None:
        try:
            await self._give(message)
        except h11.LocalProtocolError:  # Hypercorn has refused it by itself, and will not say that the client is gone
            self._gone = True
            detail = "The client has not waited for the answer to its handshake."
            raise Problem(400, "bad-handshake", "Bad handshake", detail) from None

    async def cut_when_stuck(self, whole: trio.CancelScope) -> None:
        """Wait until a message has waited too long, then end the connection, or, where others share it, this alone."""
        with self._patience:
            await trio.sleep_forever()
        connection = self._connection()
        if connection is None:
            whole.cancel(reason="the client of a WebSocket does not read")
        else:
            connection.cut()

    async def cut_after_too_much(self) -> None:
        """The server has closed because the client has said too much: it may answer that for `LINGER`."""
        too_long: trio.Event | None = self._scope.get("state", {}).get(TOO_LONG)
        if too_long is not None:
            await too_long.wait()
            self._cut_at = trio.current_time() + LINGER
            self._be_patient()

    def _connection(self) -> Connection | None:
        """The connection, if it is this WebSocket's alone (over HTTP/2 others share it) and known."""
        alone = self._scope.get("http_version") == "1.1"
        return self._scope.get("state", {}).get(CONNECTION) if alone else None

    def _be_patient(self) -> None:
        limit = SLOW_WHILE_LEAVING if self._leaving else SLOW
        deadline = trio.current_time() + limit if self._sending else math.inf
        self._patience.deadline = min(deadline, self._cut_at)

    async def _give(self, message: Message) -> None:
        self._sending += 1
        self._be_patient()
        try:
            await self._send(message)
            # A server that has lost its client returns at once: whoever only sends must learn of it, too.
            await trio.lowlevel.checkpoint()
        finally:
            self._sending -= 1
            self._be_patient()

    def fail(self, problem: Problem) -> None:
        """It is to end of this, unless there was a reason before."""
        self._problem = self._problem or problem

    def leave(self) -> None:
        """It is to end because the server leaves."""
        self._leaving = True
        self._be_patient()
        detail = "The server is about to leave; come again in a moment."
        self.fail(Problem(503, "leaving", "The server leaves", detail, headers={"Retry-After": "1"}))

    async def end(self) -> None:
        """Say why it ends, where nobody has said it yet, and wait for the client's word for a while."""
        if not self._over and not self._gone:
            await (self._close() if self._open else self._refuse())
        with trio.move_on_after(SLOW_WHILE_LEAVING if self._leaving else LINGER):
            while self._open and not self._gone:
                await self.receive()

    def _take_place(self) -> None:
        limit = self._places.limit
        if self._places.is_full:
            detail = f"There are {limit} WebSockets already (setting http.topic_clients)."
            headers = {"Retry-After": "5"}
            problem = Problem(503, "too-many-clients", "Too many clients", detail, headers=headers)
            self.fail(problem)
            raise problem
        self._place.enter_context(self._places.take())

    async def _close(self) -> None:
        problem = self._problem
        if problem is None:
            await self._give({"type": "websocket.close", "code": NORMAL})
            return
        code = GOING_AWAY if self._leaving else _code(problem)
        reason = problem.detail.encode()[:_REASON].decode(errors="ignore")
        await self._give({"type": "websocket.close", "code": code, "reason": reason})

    async def _refuse(self) -> None:
        """Answer the handshake over HTTP, or, where the server cannot do that, as it does itself."""
        if "websocket.http.response" not in (self._scope.get("extensions") or {}):
            await self._give({"type": "websocket.close", "code": POLICY})
            return
        problem = self._problem or Problem(403, "refused", "Refused", "The route has not taken this WebSocket.")
        headers = {"content-type": PROBLEM, **problem.headers}
        listed = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        head = {"type": "websocket.http.response.start", "status": problem.status, "headers": complete(listed)}
        await self._give(head)
        await self._give({"type": "websocket.http.response.body", "body": dump(problem.body()).encode()})


def _code(problem: Problem) -> int:
    if problem.status == 503:
        return TRY_AGAIN_LATER
    return INTERNAL_ERROR if problem.status >= 500 else POLICY
