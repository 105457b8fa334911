"""How a log line looks: for people on a terminal, as JSON for everything else.

Both hide secrets (`masking`), and keep one fact on one line whatever stands in it: a user agent with line breaks or
terminal codes must not be able to forge a line.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import MutableMapping
from datetime import UTC, date, datetime
from typing import Any

from ..masking import mask, mask_text
from ..printable import printable

__all__ = ["ConsoleLine", "JsonLine"]

EventDict = MutableMapping[str, Any]

_EVENT_WIDTH = 48
_COLOURS = {"debug": "2", "info": "32", "warning": "33", "error": "31", "critical": "1;31"}
_UNITS = 1000


class JsonLine:
    """One JSON object a line: ``time`` (UTC, ISO 8601), ``level``, ``logger``, ``event``, then the event's own keys."""

    def __call__(self, logger: object, method: str, event: EventDict) -> str:
        facts = _facts(event)
        line = {
            "time": facts.time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": facts.level,
            "logger": facts.logger,
            "event": facts.text,
            **{str(key): value for key, value in facts.rest.items()},
        }
        if facts.exception:
            line["exception"] = facts.exception
        try:
            return json.dumps(line, ensure_ascii=False, allow_nan=False, default=_plain)
        except (TypeError, ValueError):  # a key that JSON cannot have, a NaN, somewhere inside
            return json.dumps({key: _text(value) for key, value in line.items()}, ensure_ascii=False)


class ConsoleLine:
    """``07:42:11.123 warning  redis gate shut      cause="connection refused"``, a traceback below it.

    Args:
        colours: whether to use terminal colours.
    """

    def __init__(self, *, colours: bool) -> None:
        self._colours = colours

    def __call__(self, logger: object, method: str, event: EventDict) -> str:
        facts = _facts(event)
        for key in facts.said:
            facts.rest.pop(key, None)
        if not facts.logger.startswith("penstock"):
            facts.rest["logger"] = facts.logger  # a library's line; ours are known by what they say
        clock = facts.time.strftime("%H:%M:%S.") + f"{facts.time.microsecond // _UNITS:03d}"
        parts = [
            self._paint("2", clock),
            self._paint(_COLOURS.get(facts.level, "0"), f"{facts.level:<8}"),
            self._paint("1", printable(facts.text).ljust(_EVENT_WIDTH if facts.rest else 0)),
            *(self._paint("36", f"{printable(str(key))}=") + _word(value) for key, value in facts.rest.items()),
        ]
        line = " ".join(parts)
        if facts.exception:
            line += "\n" + "\n".join(f"    {printable(each)}" for each in facts.exception.splitlines())
        return line

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


class _Facts:
    """A log record taken apart: what every line has, and the event's own keys, masked.

    Attributes:
        time: when, local and aware.
        level: its name in small letters.
        logger: who.
        text: the event.
        exception: the traceback, or "".
        said: keys that the text has said already; people need not read them twice.
        rest: the other keys.
    """

    def __init__(self, event: EventDict) -> None:
        record = event.pop("_record")
        event.pop("_from_structlog", None)
        self.time = datetime.fromtimestamp(record.created).astimezone()
        self.level = str(record.levelname).lower()
        self.logger = str(record.name)
        self.text = mask_text(str(event.pop("event", "")))
        self.exception = mask_text(str(event.pop("exception", None) or "")).rstrip()
        self.said: list[str] = event.pop("_said", [])
        if stack := event.pop("stack", None):
            self.exception = f"{mask_text(str(stack))}\n{self.exception}".rstrip()
        reserved = ("time", "level", "logger")
        self.rest = {f"{key}_" if key in reserved else key: mask(value, key=str(key)) for key, value in event.items()}


def _facts(event: EventDict) -> _Facts:
    return _Facts(event)


def _plain(value: Any) -> Any:
    """What JSON has no form for, as text; masked, for a repr may hold anything."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, BaseException):
        return mask_text(f"{type(value).__name__}: {value}" if str(value) else type(value).__name__)
    if isinstance(value, bytes):
        return mask_text(value.decode("utf-8", "backslashreplace"))
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    return mask_text(repr(value))


def _word(value: Any) -> str:
    """A value on the console: bare where it is one word or has a form of its own, else quoted."""
    text = printable(_text(value))
    if isinstance(value, dict | list) or (text and not set(text) & {" ", "=", '"'}):
        return text
    return '"' + text.replace('"', '\\"') + '"'


def _text(value: Any) -> str:
    """Any value as text."""
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.6g}" if isinstance(value, float) else str(value)
    if isinstance(value, dict | list):
        try:
            return json.dumps(value, ensure_ascii=False, default=_plain)
        except (TypeError, ValueError):  # a key that JSON cannot have
            return mask_text(repr(value))
    return str(_plain(value))
