"""What requests about stored things have in common: who asks, what they give, and a database that may be away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, NoReturn, TypeVar
from uuid import UUID

import redis.exceptions
import trio
from quart import request

from ..actors.system import Stream, System
from ..runtime.masking import mask_text
from .headers import ACTOR
from .incoming import decode, is_utf8, parse
from .problems import Problem
from .running import RunningSystem
from .views import iso, shut_gate

__all__ = [
    "Given",
    "asker",
    "asking",
    "asking_redis",
    "given_body",
    "given_query",
    "json_object",
    "known_stream",
    "query",
    "unknown_group",
    "wrong",
]

T = TypeVar("T")

_ACTOR_LIMIT = 200
_TEXT_LIMIT = 2_000


@contextmanager
def asking(deployment: RunningSystem, wanted: T | None, within: float) -> Iterator[T]:
    """Answer for the database, and for Redis: at once while they are known to be away, in any case within seconds.

    Args:
        deployment: the running system.
        wanted: what the block works with; None where there is no database behind the system.
        within: seconds that it has.
    """
    if wanted is None:
        raise _away("This system runs without a database.")
    gate = shut_gate(deployment.gates, "postgres") or shut_gate(deployment.gates, "schema")
    if gate is not None:
        since = gate.since.isoformat(timespec="seconds")
        raise _away(f"The database is away since {since}: {mask_text(gate.cause)}.")
    try:
        with trio.fail_after(within):
            yield wanted
    except trio.TooSlowError:
        raise _away(f"There was no answer within {within:g} s; ask for less at a time.") from None
    except redis.exceptions.RedisError as error:
        raise _redis_away(f"Redis went away while it was asked: {mask_text(str(error))}") from None


@contextmanager
def asking_redis(deployment: RunningSystem, asked: T | None, within: float) -> Iterator[T]:
    """The same for what needs Redis alone."""
    gate = shut_gate(deployment.gates, "redis")
    if gate is not None or asked is None:
        why = f" since {iso(gate.since)}: {mask_text(gate.cause)}" if gate is not None else ""
        raise _redis_away(f"Redis is away{why}.")
    try:
        with trio.fail_after(within):
            yield asked
    except trio.TooSlowError:
        raise _redis_away(f"Redis did not answer within {within:g} s.") from None
    except redis.exceptions.RedisError as error:
        raise _redis_away(f"Redis could not be asked: {mask_text(str(error))}.") from None


def known_stream(system: System, name: str) -> tuple[Stream, tuple[str, ...]]:
    """The declared stream that is called so, and the keys of its partitions; by the key of one, that one alone."""
    if name in system.streams:
        return system.streams[name], system.streams[name].keys
    stream = system.stream_of(name)
    if stream is not None:
        return stream, (name,)
    known = sorted(system.streams)
    detail = f"There is no stream {name!r}; the streams are: {', '.join(known) or 'none'}."
    raise Problem(404, "unknown-stream", "Unknown stream", detail, members={"streams": known})


def unknown_group(stream: Stream, group: str) -> NoReturn:
    """Say that there is no such group, and which there are."""
    known = ", ".join(sorted(stream.groups)) or "none"
    detail = f"The stream {stream.key} has no group {group!r}; its groups are: {known}."
    raise Problem(404, "unknown-group", "Unknown group", detail)


def asker() -> str:
    """Who asks, by the header `ACTOR`."""
    name = request.headers.get(ACTOR, "http").strip()
    if not 0 < len(name) <= _ACTOR_LIMIT or not name.isprintable():
        wrong(f"{ACTOR}: must be 1 to {_ACTOR_LIMIT} characters that can be printed.")
    return name


def given_query() -> Given:
    """The parameters of the request's query; one that is given twice is refused."""
    return Given(query(), text_only=True)


def query() -> dict[str, str]:
    """The same, as text."""
    for name, values in request.args.lists():
        if len(values) > 1:
            wrong(f"{name[:40]}: is given more than once.")
    return dict(request.args.items())


async def given_body() -> Given:
    """The members of the request's body, a JSON object; no body is an empty one."""
    return Given(await json_object())


async def json_object() -> dict[str, Any]:
    """The same, as JSON values."""
    body = await request.get_data(cache=False, as_text=False, parse_form_data=False)
    if not body.strip():
        return {}
    if request.mimetype != "application/json":
        came = request.content_type or "a body without a content type"
        detail = f"What is asked comes as application/json, not as {came}."
        raise Problem(415, "unsupported-media-type", "Unsupported media type", detail)
    value = parse(decode(body))
    if not isinstance(value, dict):
        wrong("The body must be a JSON object.")
    return value


class Given:
    """What a client gave: each value is taken once, checked; what is left over at `end` was a mistake.

    Args:
        values: by name.
        text_only: numbers and truth values come as text, as in a query.
    """

    def __init__(self, values: Mapping[str, Any], *, text_only: bool = False) -> None:
        self._left = {name: value for name, value in values.items() if value is not None}
        self._text_only = text_only

    def text(self, name: str, *, limit: int = _TEXT_LIMIT) -> str | None:
        """A text of 1 to `limit` characters, without NUL; None where it is not given."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, str) or not 0 < len(value) <= limit or "\0" in value or not is_utf8(value):
            wrong(f"{name}: must be a text of 1 to {limit} characters.")
        return value

    def one_of(self, name: str, *choices: str) -> str | None:
        """One of some words; None where it is not given."""
        value = self.text(name)
        if value is not None and value not in choices:
            wrong(f"{name}: must be one of {', '.join(choices)}.")
        return value

    def number(self, name: str, least: int, most: int) -> int | None:
        """A whole number within bounds; None where it is not given."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if self._text_only:
            value = int(value) if value.isascii() and value.isdecimal() and len(value) < 20 else None
        if type(value) is not int or not least <= value <= most:
            wrong(f"{name}: must be a whole number from {least} to {most}.")
        return value

    def real(self, name: str, least: float, most: float) -> float | None:
        """A number within bounds; None where it is not given."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            wrong(f"{name}: must be a number from {least:g} to {most:g}.")
        return float(value)

    def truth(self, name: str) -> bool:
        """True or false; False where it is not given."""
        value = self._left.pop(name, False)
        if not isinstance(value, bool):
            wrong(f"{name}: must be true or false.")
        return value

    def moment(self, name: str) -> datetime | None:
        """A time with an offset; None where it is not given."""
        value = self.text(name)
        if value is None:
            return None
        try:
            # A query that was not encoded has a blank where the plus sign of an offset stood.
            moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        except ValueError:
            moment = None
        if moment is None or moment.tzinfo is None:
            wrong(f"{name}: must be an ISO 8601 time with an offset, as 2026-03-01T09:30:00+09:00.")
        return moment

    def uuid(self, name: str) -> UUID | None:
        """A UUID; None where it is not given."""
        value = self.text(name)
        try:
            return None if value is None else UUID(value)
        except ValueError:
            wrong(f"{name}: must be a UUID.")

    def members(self, name: str) -> Given | None:
        """An object of its own; None where it is not given. A null in it is refused: what selects must say so."""
        value = self._left.pop(name, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            wrong(f"{name}: must be an object.")
        for member, each in value.items():
            if each is None:
                wrong(f"{name}.{member[:40]}: must not be null; leave it out where it selects nothing.")
        return Given(value)

    def items(self, name: str) -> list[Any] | None:
        """A list; None where it is not given."""
        value = self._left.pop(name, None)
        if value is not None and not isinstance(value, list):
            wrong(f"{name}: must be a list.")
        return value

    def end(self) -> None:
        """Refuse what nobody has taken: a misspelt name must not pass unseen."""
        for name in self._left:
            wrong(f"{name[:40]}: there is no such member or parameter here.")


def wrong(detail: str) -> NoReturn:
    """Refuse what the client gave."""
    raise Problem(400, "invalid-parameter", "Invalid parameter", detail, error_type="INVALID_PARAMETER")


def _away(detail: str) -> Problem:
    return Problem(503, "database-away", "The database is away", detail, headers={"Retry-After": "1"})


def _redis_away(detail: str) -> Problem:
    return Problem(503, "redis-away", "Redis is away", detail, headers={"Retry-After": "1"})
