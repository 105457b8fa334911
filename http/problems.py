"""Errors as HTTP shows them: problem details (RFC 9457), without exception.

A `Problem` may be raised anywhere in a request. What is raised besides is turned into one here: werkzeug's errors by
their status, an outage of Redis or the database into 503, and all else into a 500 that says nothing but the id under
which the log has the rest. Below ``/admin`` a problem also carries ``errorMessage`` and ``errorType``, as S1's clients
expect.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, cast
from uuid import uuid4

import psycopg
from quart import Quart, has_websocket_context, request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from quart_trio.wrappers import TrioResponse
from werkzeug.exceptions import HTTPException, InternalServerError
from werkzeug.routing import WebsocketMismatch

from ..runtime.masking import mask_text
from ..runtime.postgres import Fault, PoolTimeout
from ..runtime.postgres import classify as fault_of
from ..runtime.redis import Kind, RedisUnavailable, classify
from ..runtime.telemetry import get_logger
from .replies import json_reply

__all__ = ["FAILED", "PROBLEM", "Problem", "install", "problem_of", "reply", "sentence"]

log = get_logger(__name__)

PROBLEM = "application/problem+json"
"""The media type of problem details."""

FAILED = "penstock.failed"
"""Where in the ASGI scope of a WebSocket the problem stands of which it ends."""

_PASSING = (Kind.WAIT, Kind.REROUTE, Kind.DEGRADE, Kind.RECONNECT)
"""What Redis says that will not be said for ever, to the same request."""

_S1_TYPES = {
    400: "INVALID_DATA",
    404: "NO_RESOURCE",
    405: "NO_RESOURCE",
    408: "INVALID_DATA",
    409: "DATA_ALREADY_EXISTS",
    413: "INVALID_DATA",
    415: "INVALID_DATA",
    422: "INVALID_DATA",
}
_DETAILS = {
    408: "The request's body did not come in time.",
    413: "The request's body is larger than this server takes (setting http.body_limit).",
}


class Problem(Exception):
    """An error for the client.

    Args:
        status: the HTTP status.
        name: of the kind of problem, the last part of its ``type``; ``docs/reference/http-api.md`` lists them all.
        title: the kind in words.
        detail: this occurrence in words: what is wrong, and what to do.
        headers: for the answer, for example ``Retry-After``.
        error_type: S1's name for it; by default it follows from the status.
        members: further members of the body, in camelCase.
    """

    def __init__(
        self,
        status: int,
        name: str,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        error_type: str | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.title = title
        self.detail = detail
        self.headers = dict(headers or {})
        self.error_type = error_type or _S1_TYPES.get(status, "UNKNOWN")
        self.members = dict(members or {})

    def body(self) -> dict[str, Any]:
        """The problem as JSON values."""
        return {
            "type": f"urn:penstock:problem:{self.name}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            **self.members,
        }


def install(app: Quart) -> None:
    """Have every error of `app` answered with a problem."""

    async def answer(error: Exception) -> TrioResponse:
        problem = problem_of(error)
        if has_websocket_context():
            cast("dict[str, Any]", websocket.scope)[FAILED] = problem
        return reply(problem, _asked().path)

    app.register_error_handler(Exception, answer)


def reply(problem: Problem, path: str) -> TrioResponse:
    """The answer that shows `problem` to a client that asked for `path`."""
    body = problem.body()
    if path.startswith("/admin/"):
        body |= {"errorMessage": problem.detail, "errorType": problem.error_type}
    return json_reply(body, problem.status, media_type=PROBLEM, headers=problem.headers)


def problem_of(error: BaseException) -> Problem:
    """What `error` is to the client. What is nobody's but ours is logged with its traceback."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, Problem):
        return error
    if isinstance(error, InternalServerError) and error.original_exception is not None:
        return _internal(error.original_exception)
    if isinstance(error, HTTPException) and error.code is not None:
        return _of_status(error, error.code)
    if isinstance(error, PoolTimeout):
        detail = "All connections to the database are in use."
        return Problem(503, "database-busy", "The database is busy", detail, headers={"Retry-After": "1"})
    if isinstance(error, psycopg.Error) and fault_of(error) is Fault.OUTAGE:
        detail = f"The database is away: {mask_text(str(error))}"
        return Problem(503, "database-away", "The database is away", detail, headers={"Retry-After": "1"})
    if isinstance(error, RedisUnavailable) or classify(error).kind in _PASSING:
        detail = f"Redis is away, or takes nothing: {mask_text(str(error))}"
        return Problem(503, "redis-away", "Redis is away", detail, headers={"Retry-After": "1"})
    return _internal(error)


def sentence(error: Exception) -> str:
    """What an error says, as the sentence that a problem's detail is."""
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}."


def _of_status(error: HTTPException, status: int) -> Problem:
    if isinstance(error, WebsocketMismatch):
        return _mismatch()
    phrase = HTTPStatus(status).phrase
    name = phrase.lower().replace(" ", "-").replace("'", "")
    if status == 404:
        detail = f"There is nothing at {_asked().path}."
    elif status == 405:
        detail = f"{request.method} is not for {request.path}."
    else:
        detail = _DETAILS.get(status) or error.description or phrase
    headers = {key: value for key, value in error.get_headers() if key.lower() not in ("content-type", "location")}
    return Problem(status, name, phrase, detail, headers=headers)


def _mismatch() -> Problem:
    """For HTTP where a WebSocket is, or the other way round."""
    if has_websocket_context():
        return Problem(404, "not-found", "Not Found", f"There is no WebSocket at {websocket.path}.")
    detail = f"There is a WebSocket at {request.path}, and nothing else."
    # HTTP/2 knows no such headers.
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"} if request.http_version.startswith("1") else {}
    return Problem(426, "upgrade-required", "Upgrade Required", detail, headers=headers)


def _asked() -> BaseRequestWebsocket:
    return websocket if has_websocket_context() else request


def _internal(error: BaseException) -> Problem:
    instance = f"urn:uuid:{uuid4()}"
    log.error("request failed", instance=instance, exc_info=error)
    return Problem(
        500,
        "internal-error",
        "Internal error",
        "Something went wrong here that should not have. The log has it under this problem's instance.",
        members={"instance": instance},
    )
