"""Dead letters: entries that were given up, with all that is needed to understand them and to try them again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from types import TracebackType
from typing import Any, Final
from uuid import UUID

from attrs import field, frozen

from ..runtime.masking import mask_text
from ..runtime.supervision import ErrorInfo
from .letter_terms import Reason
from .texts import CUT, cut_bytes, storable

__all__ = ["DEAD_LETTER_MIRROR", "DeadLetter", "fingerprint", "unpack_fields"]

DEAD_LETTER_MIRROR: Final = 10_000
"""About how many entries the stream is cut to that shows a stream's dead letters; the letters of record all stay."""

_MESSAGE_LIMIT: Final = 2048
_TRACEBACK_LIMIT: Final = 16 * 1024

_MASKED: Final = 4 * _TRACEBACK_LIMIT
"""Characters at the end of a traceback that are searched for secrets; it may quote a whole input, of many megabytes."""

_FRAMES: Final = 10
"""The innermost frames that tell one fault from another; a recursion's other thousand say nothing new."""


def _message(text: str | None) -> str | None:
    return None if text is None else cut_bytes(mask_text(text), _MESSAGE_LIMIT)


def _traceback(text: str | None) -> str | None:
    if text is None:
        return None
    if len(text) > _MASKED:
        text = CUT + text[-_MASKED:]
    # The end names the error and the line that raised it.
    return cut_bytes(mask_text(text), _TRACEBACK_LIMIT, keep_end=True)


@cache
def _version() -> str:
    return version("penstock")


def _exact(fields: Mapping[bytes, bytes] | Mapping[str, str] | None) -> dict[str, str]:
    return {_as_text(name): _as_text(value) for name, value in (fields or {}).items()}


def _as_text(value: bytes | str) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value


@frozen(kw_only=True)
class DeadLetter:
    """One entry that one group gave up.

    Attributes:
        stream: the stream's key.
        entry_id: the entry's id in it.
        consumer_group: the group that gave it up; the others are not concerned.
        consumer: the consumer that had it last.
        reason: why.
        fields: all fields of the entry, exactly; bytes that are no UTF-8 as surrogate escapes (PEP 383). Given as bytes
            or text; None (the entry was trimmed meanwhile) becomes no fields.
        deliveries: how often it was delivered.
        event_id: None where it could not be read.
        event_type: likewise.
        event_key: likewise.
        error_class: module and name of the error's class.
        error_message: at most 2 kB of UTF-8; passwords masked.
        traceback: at most 16 kB, the end of it; passwords masked.
        fingerprint: the same for letters that died in the same way; see `fingerprint`.
        published_at: the envelope's time; aware. None where it could not be read.
        first_delivered_at: when the group first took it; aware.
        dead_at: when it was given up; aware. Default: now.
        traceparent: the event's W3C trace context.
        host: of the process that gave it up. Default: this one's.
        pid: of that process.
        version: of Penstock there.
        mirror: the key of the stream that is to show it; None: none is.
        again: the entry was tried again outside of its stream (a retry, a replay): a letter that it has already is
            dead again, with what is told here. False, for what comes out of the stream: a letter that is there stays
            as it is, for only the acknowledgement was lost.
    """

    stream: str
    entry_id: str
    consumer_group: str
    consumer: str
    reason: Reason = field(converter=Reason)
    fields: Mapping[str, str] = field(converter=_exact, repr=False)
    deliveries: int
    event_id: UUID | None = None
    event_type: str | None = None
    event_key: str | None = None
    error_class: str | None = None
    error_message: str | None = field(default=None, converter=_message)
    traceback: str | None = field(default=None, converter=_traceback, repr=False)
    fingerprint: str | None = None
    published_at: datetime | None = None
    first_delivered_at: datetime | None = None
    dead_at: datetime = field(factory=lambda: datetime.now(UTC))
    traceparent: str | None = None
    host: str = field(factory=platform.node)
    pid: int = field(factory=os.getpid)
    version: str = field(factory=_version)
    mirror: str | None = None
    again: bool = False

    @classmethod
    def of(cls, error: BaseException, **facts: Any) -> DeadLetter:
        """The letter of an entry given up because of `error`; `facts` are the attributes that it cannot tell."""
        return cls(
            error_class=_class_name(error),
            error_message=ErrorInfo.of(error).message,
            traceback="".join(traceback.format_exception(error)),
            fingerprint=fingerprint(error),
            **facts,
        )

    @property
    def shown_fields(self) -> dict[str, str]:
        """The fields as PostgreSQL's JSON can hold them: for people and queries."""
        return {storable(name): storable(text) for name, text in self.fields.items()}

    @property
    def raw(self) -> bytes | None:
        """The exact fields where `shown_fields` are not; read it with `unpack_fields`."""
        if self.shown_fields == dict(self.fields):
            return None
        return json.dumps(dict(self.fields)).encode("ascii")

    @property
    def mirror_fields(self) -> dict[str, str]:
        """The fields of the entry that shows it in `mirror`: the original's, and S4's three."""
        return {
            **self.fields,
            "originalRecordId": self.entry_id,
            "errorMessage": self.error_message or self.reason.value,
            "failedAt": self.dead_at.isoformat(),
        }


def unpack_fields(raw: bytes) -> dict[str, str]:
    """The fields that `DeadLetter.raw` holds, exactly."""
    fields: dict[str, str] = json.loads(raw)
    return fields


def fingerprint(error: BaseException) -> str:
    """16 hexadecimal digits that are the same for errors of the same kind from the same place.

    Made of the classes of the error and its causes and of the functions that the innermost frames stand in; not of
    messages, which hold ids, nor of line numbers, which move with every release.
    """
    parts = [part for link in _chain(error) for part in (_class_name(link), *_functions(link.__traceback__))]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "replace")).hexdigest()[:16]


def _class_name(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def _functions(trace: TracebackType | None) -> list[str]:
    frames = [frame for frame, _ in traceback.walk_tb(trace)][-_FRAMES:]
    return [f"{frame.f_globals.get('__name__', '?')}.{frame.f_code.co_qualname}" for frame in frames]
