"""Events as clients send them: from text to `Envelope`, every mistake named. Pure.

What gets through here can be stored: no NUL (PostgreSQL has none), no half surrogate pairs (no UTF-8), no NaN or
Infinity (no JSON), nothing nested so deep that some later reader gives up.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn
from uuid import UUID

from ..actors.event import Envelope, EventType, InvalidEvent, event_id_of, new_event_id
from ..actors.system import Stream
from .problems import Problem

__all__ = ["DEEPEST", "decode", "is_utf8", "parse", "read_event", "read_values", "traceparent_of"]

DEEPEST = 64
"""How deep JSON may be nested: far beyond any event, and far below what would break a reader."""

_MEMBERS = ("eventType", "data", "eventId", "key", "timestamp", "traceparent")
_FLOAT_DIGITS = 15
"""Digits that a float keeps of any number."""

_MISTAKES = 20
"""Mistakes that are named at the most: an answer is no longer than what it answers, however wrong that is."""

_NAME_SHOWN = 100
_TYPE_LIMIT = 200
_KEY_LIMIT = 512

# Version 00 of W3C Trace Context; another version is passed on as long as it begins like this one.
_TRACEPARENT = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-[\x21-\x7e]{1,200})?"
)

_Mistakes = list[dict[str, str]]


def decode(body: bytes) -> str:
    """The body as text; raises a 400 `Problem` if it is not UTF-8."""
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start + 1} is not UTF-8") from None


def parse(text: str) -> Any:
    """JSON, strictly (RFC 8259: no NaN, no Infinity); raises a 400 `Problem` that says what is wrong and where."""
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise _malformed(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # a number with thousands of digits, or one of ours
        raise _malformed(str(error)) from None
    _check_depth(value)
    return value


def read_event(item: Any, stream: Stream, traceparent: str | None = None) -> Envelope:
    """The event that `item`, a parsed JSON value, is on `stream`; `traceparent` is the request's, if it has none.

    Raises:
        Problem: 422, with ``errors`` that name each member at fault, and ``eventId`` where there is one.
    """
    if not isinstance(item, dict):
        raise _invalid([_mistake("", f"an event is a JSON object, not {_kind(item)}")], None)
    mistakes: _Mistakes = []
    envelope = Envelope(
        event_id=_event_id(item, mistakes),
        event_type=_event_type(item, stream, mistakes),
        data=_data(item, mistakes),
        key=_key(item, mistakes),
        traceparent=_own_trace(item, mistakes) or traceparent,
        **_timestamp(item, mistakes),
    )
    unknown = [name for name in item if name not in _MEMBERS]
    mistakes += [_mistake(name, "there is no such member") for name in unknown[: _MISTAKES + 1]]
    mistakes += _unstorable({name: item[name] for name in _MEMBERS if name in item})
    declared = stream.types.get(envelope.event_type)
    if declared is not None and not mistakes:
        mistakes += _unfit(declared, envelope.data)
    if mistakes:
        raise _invalid(mistakes, item.get("eventId"))
    return envelope


def read_values(values: Mapping[str, Any], declared: EventType) -> Any:
    """The object of an event class that JSON values, or texts of a query, describe.

    Raises:
        Problem: 422, with ``errors`` that name each member at fault.
    """
    mistakes = _unstorable(values)
    if not mistakes:
        try:
            return declared.structure(values)
        except InvalidEvent as error:
            mistakes = [_mistake(path.removeprefix("data."), problem) for path, problem in error.problems]
    raise _invalid(mistakes, None)


def traceparent_of(header: str | None) -> str | None:
    """The ``traceparent`` header if it is one; a broken one is ignored, as W3C Trace Context asks."""
    return header if header is not None and _TRACEPARENT.fullmatch(header) else None


# Members -------------------------------------------------------------------------------------------------------------


def _event_id(item: Mapping[str, Any], mistakes: _Mistakes) -> UUID:
    given = item.get("eventId")
    if given is None:
        return new_event_id()
    event_id = event_id_of(given)
    if event_id is None:
        mistakes.append(_mistake("eventId", "must be a UUID, written with dashes"))
        return new_event_id()
    return event_id


def _event_type(item: Mapping[str, Any], stream: Stream, mistakes: _Mistakes) -> str:
    given = item.get("eventType")
    if not isinstance(given, str) or not 0 < len(given) <= _TYPE_LIMIT:
        mistakes.append(_mistake("eventType", f"must be a string of 1 to {_TYPE_LIMIT} characters"))
        return ""
    if stream.types and given not in stream.types:
        known = ", ".join(sorted(stream.types))
        mistakes.append(_mistake("eventType", f"the stream {stream.key} does not carry {given!r}; it carries {known}"))
    return given


def _data(item: Mapping[str, Any], mistakes: _Mistakes) -> dict[str, Any]:
    given = item.get("data")
    if not isinstance(given, dict):
        mistakes.append(_mistake("data", "must be a JSON object"))
        return {}
    return given


def _key(item: Mapping[str, Any], mistakes: _Mistakes) -> str | None:
    given = item.get("key")
    if given is None:
        return None
    if not isinstance(given, str) or not 0 < len(given) <= _KEY_LIMIT:
        mistakes.append(_mistake("key", f"must be a string of 1 to {_KEY_LIMIT} characters"))
        return None
    return given


def _own_trace(item: Mapping[str, Any], mistakes: _Mistakes) -> str | None:
    """Events of one request may be of different traces, so each may bring its own."""
    given = item.get("traceparent")
    if given is None or isinstance(given, str):
        return traceparent_of(given)
    mistakes.append(_mistake("traceparent", "must be a string"))
    return None


def _timestamp(item: Mapping[str, Any], mistakes: _Mistakes) -> dict[str, datetime]:
    given = item.get("timestamp")
    if given is None:
        return {}
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else None
    except ValueError:
        moment = None
    if moment is not None and not 1970 <= moment.year <= 9998:
        mistakes.append(_mistake("timestamp", "must be between the years 1970 and 9998"))
        return {}
    if moment is None or moment.tzinfo is None:
        mistakes.append(_mistake("timestamp", "must be an ISO 8601 time with an offset, as 2026-03-01T09:30:00+09:00"))
        return {}
    return {"timestamp": moment}


def _unfit(declared: EventType, data: Mapping[str, Any]) -> _Mistakes:
    try:
        declared.structure(data)
    except InvalidEvent as error:
        return [_mistake(path, problem) for path, problem in error.problems]
    return []


# Values --------------------------------------------------------------------------------------------------------------


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class _Written(float):
    """A number of which it is known how it was written: a decimal that is no float shows (`structuring`)."""

    written: str

    def __str__(self) -> str:
        return self.written


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:40]} is too large")
    if len(text) <= _FLOAT_DIGITS and "e" not in text and "E" not in text:
        return value
    made = _Written(value)
    made.written = text
    return made


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise _too_deep()


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [inner for inner in value.values() if isinstance(inner, dict | list)]
    if isinstance(value, list):
        return [inner for inner in value if isinstance(inner, dict | list)]
    return []


def _unstorable(item: Mapping[str, Any]) -> _Mistakes:
    """What PostgreSQL or UTF-8 cannot hold, by the member that it is in."""
    found = []
    for name, value in item.items():
        if any("\0" in text for text in _texts({name: value})):
            found.append(_mistake(name, "must not hold the character NUL (U+0000), which PostgreSQL cannot store"))
        elif any(not is_utf8(text) for text in _texts({name: value})):
            found.append(_mistake(name, "must not hold half of a surrogate pair, which is no UTF-8"))
    return found


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if isinstance(current, str):
            yield current
        elif isinstance(current, dict):
            yield from current
            waiting.extend(current.values())
        elif isinstance(current, list):
            waiting.extend(current)


def is_utf8(text: str) -> bool:
    """Whether UTF-8 can carry the text: a half surrogate pair, which JSON allows, it cannot."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# Problems ------------------------------------------------------------------------------------------------------------


def _mistake(member: str, detail: str) -> dict[str, str]:
    return {"field": member[:_NAME_SHOWN], "detail": detail}


def _malformed(reason: str) -> Problem:
    return Problem(400, "malformed-json", "Malformed JSON", f"The body cannot be read as JSON: {reason}.")


def _too_deep() -> Problem:
    return _malformed(f"it is nested deeper than {DEEPEST} levels")


def _invalid(mistakes: _Mistakes, event_id: Any) -> Problem:
    if len(mistakes) > _MISTAKES:
        mistakes = [*mistakes[:_MISTAKES], _mistake("", "and more of the kind")]
    detail = "; ".join(f"{each['field']}: {each['detail']}" if each["field"] else each["detail"] for each in mistakes)
    members: dict[str, Any] = {"errors": mistakes}
    if isinstance(event_id, str) and len(event_id) <= 64:
        members["eventId"] = event_id
    return Problem(422, "invalid-event", "Invalid event", detail, members=members)
