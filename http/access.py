"""The access log's beginning: every HTTP request becomes an access event, whatever became of it.

An ASGI middleware, outside of the framework, so that it also sees what never reached a route: unknown paths, wrong
methods, bodies that were refused, clients that left. It never delays a request and never makes one fail. Of a WebSocket
its handshake is recorded, as soon as it is answered: it may then stay open for days.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import datetime
from typing import Any
from urllib.parse import quote, urlsplit

from ..actors.access_event import AccessEvent, category_of
from ..actors.event import Envelope, event_type_of
from ..actors.texts import storable
from ..runtime.telemetry import get_logger
from .incoming import parse
from .problems import Problem
from .redaction import redact_pairs, redact_text
from .replies import dump
from .running import RunningSystem

__all__ = ["ASGI", "CUT", "METHOD_NAME", "AccessRecorder", "Message", "Receive", "Scope", "Send"]

log = get_logger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Scope, Receive, Send], Awaitable[None]]

CUT = "…[cut]"
"""What stands at the end of inputs or outputs that were too long."""

METHOD_NAME = "penstock.method_name"
"""Where in the ASGI scope the name of the function stands that answers; put there by the application."""

_SLACK = 4096
"""Bytes kept beyond the limit while masking, so that a secret is still recognised where the cut goes through it."""

_ENDPOINT_LIMIT = 2048
_METHOD_LIMIT = 32
_IP_LIMIT = 64
_AGENT_LIMIT = 1024

_ACCESS = event_type_of(AccessEvent)


class AccessRecorder:
    """Wraps an ASGI application and hands one access event for each request to `RunningSystem.capture`.

    Args:
        app: the application.
        deployment: where the events go.
        body_limit: bytes of inputs, and of outputs, that an event keeps.
    """

    def __init__(self, app: ASGI, deployment: RunningSystem, body_limit: int) -> None:
        self._app = app
        self._deployment = deployment
        self._limit = body_limit
        self._zone = deployment.settings.zone_info
        self._complained = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; what the application raises goes through."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limit + _SLACK, self._record, datetime.now(self._zone))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        finally:
            exchange.end()

    def _record(self, exchange: _Exchange, seconds: float) -> None:
        try:
            event = _event(exchange, seconds, self._limit)
            envelope = Envelope(event_type=_ACCESS.name, data=_ACCESS.unstructure(event), timestamp=exchange.created_at)
            self._deployment.capture(envelope)
        except Exception:
            if not self._complained:
                log.exception("a request could not be recorded; further such failures are not logged")
            self._complained = True


class _Exchange:
    """One request and its answer, as they pass by."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        keep: int,
        record: Callable[[_Exchange, float], None],
        created_at: datetime,
    ) -> None:
        self.scope = scope
        self.created_at = created_at
        self.headers = {name.lower(): value.decode("latin1") for name, value in scope["headers"]}
        self.request = _Body(_media_type(self.headers.get(b"content-type")), keep)
        self.response = _Body("", 0)
        self.status: int | None = None
        self._receive = receive
        self._send = send
        self._keep = keep
        self._record = record
        self._recorded = False
        self._began = time.perf_counter()

    def end(self) -> None:
        """Have it recorded, unless it is."""
        if not self._recorded:
            self._recorded = True
            self._record(self, time.perf_counter() - self._began)

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self.request.add(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        kind = message["type"].removeprefix("websocket.")  # a handshake is answered like a request
        if kind == "http.response.start":
            self.status = message["status"]
            headers = {name.lower(): value.decode("latin1") for name, value in message.get("headers", ())}
            self.response = _Body(_media_type(headers.get(b"content-type")), self._keep)
        elif kind == "http.response.body":
            self.response.add(message.get("body", b""))
        elif kind == "accept":
            self.status = 101 if self.scope.get("http_version", "1.1") == "1.1" else 200
            self.end()
        elif kind == "close" and self.status is None:
            self.status = 403
        await self._send(message)


class _Body:
    """The beginning of a body, if it is one that can be shown, and its size."""

    def __init__(self, media_type: str, keep: int) -> None:
        self.media_type = media_type
        self.kind = _kind(media_type)
        self.size = 0
        self._start = bytearray()
        self._keep = keep if self.kind else 0

    def add(self, data: bytes) -> None:
        self.size += len(data)
        room = self._keep - len(self._start)
        if room > 0:
            self._start += data[:room]

    @property
    def complete(self) -> bool:
        return len(self._start) == self.size

    @property
    def shown(self) -> bool:
        """Whether it is text that can be searched for secrets; with a NUL it is UTF-16, say, or none."""
        return bool(self.kind) and b"\0" not in self._start

    @property
    def text(self) -> str:
        return self._start.decode(errors="replace")


# What is kept --------------------------------------------------------------------------------------------------------


def _event(exchange: _Exchange, seconds: float, limit: int) -> AccessEvent:
    scope = exchange.scope
    client = scope.get("client")
    agent = exchange.headers.get(b"user-agent")
    return AccessEvent(
        category_code=category_of(scope["path"]),
        endpoint=storable(_endpoint(scope), _ENDPOINT_LIMIT),
        http_method=storable(scope.get("method", "GET"), _METHOD_LIMIT),
        method_name=scope.get(METHOD_NAME, ""),
        response_status=exchange.status,
        response_time=round(seconds, 3),
        ip_address=storable(str(client[0]), _IP_LIMIT) if client else None,
        user_agent=None if agent is None else storable(agent, _AGENT_LIMIT),
        inputs=_inputs(exchange, limit),
        outputs=_outputs(exchange, limit),
        created_at=exchange.created_at,
    )


def _endpoint(scope: Scope) -> str:
    """The path as it was sent, percent-encoded and without its query."""
    raw = scope.get("raw_path")
    path = raw.decode("latin1") if raw is not None else quote(scope["path"])
    if path.startswith("/"):
        return path
    try:  # a proxy may be asked for a whole URL, which may hold a password
        return urlsplit(path).path or path[:1]
    except ValueError:  # "http://[" is no URL
        return path[:1]


def _inputs(exchange: _Exchange, limit: int) -> str | None:
    shown: dict[str, Any] = {}
    query = exchange.scope.get("query_string", b"")
    if query:
        shown["query"] = redact_pairs(query[: limit + _SLACK].decode("latin1"))
    if exchange.request.size:
        shown["body"] = _shown_body(exchange.request)
    return _cut(dump(_without_nul(shown)), limit) if shown else None


def _without_nul(value: Any) -> Any:
    """The value without NUL in its texts: escaped in JSON it would pass, and break who reads the column as JSON."""
    if isinstance(value, str):
        return value.replace("\0", "")
    if isinstance(value, dict):
        return {_without_nul(name): _without_nul(inner) for name, inner in value.items()}
    return [_without_nul(inner) for inner in value] if isinstance(value, list) else value


def _shown_body(body: _Body) -> Any:
    if not body.shown:
        return f"[{storable(body.media_type, 100) or 'no content type'}, {body.size} bytes, not shown]"
    if body.kind == "form":
        return redact_pairs(body.text)
    redacted = redact_text(body.text)
    if body.kind == "json" and body.complete:
        try:
            return parse(redacted)
        except Problem:
            pass  # many lines of JSON, or none, or far too deep: the text itself is shown
    return redacted


def _outputs(exchange: _Exchange, limit: int) -> str | None:
    answer = exchange.response
    if not answer.shown or answer.kind == "form" or not answer.size or exchange.scope.get("method") == "HEAD":
        return None
    return _cut(redact_text(answer.text), limit)


def _cut(text: str, limit: int) -> str:
    """The text, storable, in at most `limit` bytes of UTF-8, and the mark where something was cut away."""
    data = storable(text).encode()
    if len(data) <= limit:
        return data.decode()
    return data[: max(0, limit - len(CUT.encode()))].decode(errors="ignore") + CUT


def _media_type(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def _kind(media_type: str) -> str:
    """How a body of this type is shown; empty: not at all. Pages, styles and streams of events are not copied."""
    if media_type.endswith("json"):
        return "json"
    if media_type == "application/x-www-form-urlencoded":
        return "form"
    return "text" if media_type == "text/plain" else ""
