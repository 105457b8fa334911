"""S1's access event: one HTTP call, its category, and the flat entry that the original service shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from attrs import Factory, field, frozen

from .event import Envelope, Fields, Origin, SkippedEntry, UndecodableEntry, event, event_type_of
from .texts import well_formed

__all__ = ["ACCESS_CODEC", "AccessEvent", "category_of"]

_TYPE: Final = "ACCESS"

_CATEGORIES: Final = (
    ("/admin", "API_ADMIN"),
    ("/external", "API_EXTERNAL"),
    ("/internal", "API_INTERNAL"),
    ("/health", "HEALTH_SYSTEM"),
    ("/queue", "SERVICE_QUEUE"),
    ("/api", "API_PUBLIC"),
)

# Outside of these years, PostgreSQL, Python and zone offsets disagree about what can be stored and read back.
_EARLIEST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LATEST: Final = datetime(9999, 1, 1, tzinfo=UTC)

_INT4: Final = 2**31


def category_of(path: str) -> str:
    """The category code of a request's path: the first prefix that fits, ``UNKNOWN`` if none does.

    Plain prefixes, as the original has them: ``/external-api`` is API_EXTERNAL by ``/external``, ``/healthz`` is
    HEALTH_SYSTEM, and ``/administrator`` is API_ADMIN.
    """
    return next((code for prefix, code in _CATEGORIES if path.startswith(prefix)), "UNKNOWN")


def _with_zone(moment: datetime) -> datetime:
    """A time without an offset counts as UTC, as in the original."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _storable_time(instance: object, attribute: Any, value: datetime) -> None:
    if not _EARLIEST <= value < _LATEST:
        raise ValueError("createdAt must be between the years 1970 and 9998")


def _storable_integer(instance: object, attribute: Any, value: int | None) -> None:
    if value is not None and not -_INT4 <= value < _INT4:
        raise ValueError("responseStatus must fit in 32 bits")


def _storable_float(instance: object, attribute: Any, value: float | None) -> None:
    if value is not None and not math.isfinite(value):
        raise ValueError("responseTime must be a finite number")


class _FlatCodec:
    """The original's entry: 13 flat text fields, no JSON around them, and beside them our ``eventId``.

    Nothing is ever named ``id``: the original would read that as a number. An entry that it wrote has no ``eventId``;
    its id is made of the entry's place then, so that it is the same at every delivery.
    """

    def encode(self, envelope: Envelope) -> Fields:
        value: AccessEvent = _access.structure({"createdAt": envelope.timestamp.isoformat(), **envelope.data})
        fields = {"type": _TYPE}
        fields.update((name, write(getattr(value, attribute))) for name, (attribute, _, write) in _FLAT.items())
        fields["eventId"] = str(envelope.event_id)
        if envelope.key is not None:
            fields["key"] = envelope.key
        if envelope.traceparent is not None:
            fields["traceparent"] = envelope.traceparent
        return fields

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        if "type" not in fields:
            raise SkippedEntry("the original service's placeholder, which kept its stream from being empty")
        try:
            # Empty text is how the original writes null; a field that is left out here gets the class's default.
            data = {name: read(fields[name]) for name, (_, read, _) in _FLAT.items() if fields.get(name)}
            for name in _MAY_BE_EMPTY & fields.keys():
                data[name] = fields[name]
            happened = _with_zone(datetime.fromisoformat(data["createdAt"])) if "createdAt" in data else origin.added_at
            event_id = UUID(fields["eventId"]) if fields.get("eventId") else origin.event_id
        except ValueError as broken:
            raise UndecodableEntry(f"a field cannot be read: {broken}") from broken
        return Envelope(
            event_id=event_id,
            event_type=_TYPE,
            timestamp=happened,
            data={**data, "createdAt": happened.isoformat()},
            key=fields.get("key"),
            traceparent=fields.get("traceparent"),
        )

    def recognises(self, fields: Mapping[str, str]) -> bool:
        # The original's own reader does not look at case either.
        return fields.get("type", "").upper() == _TYPE or dict(fields) == _PLACEHOLDER


ACCESS_CODEC: Final = _FlatCodec()


@event(_TYPE, codec=ACCESS_CODEC)
@frozen(kw_only=True)
class AccessEvent:
    """One HTTP call.

    Attributes:
        endpoint: the path that was called.
        http_method: in capitals, as it came.
        category_code: default: what `category_of` says of the endpoint.
        user_id: default ``anonymous``.
        method_name: the function that answered; it travels and is not stored.
        response_status: the HTTP status, or None where nothing was answered.
        response_time: seconds; three decimals travel.
        ip_address: of the caller.
        user_agent: of the caller.
        inputs: what was sent, as JSON.
        outputs: what was answered, as JSON.
        created_at: when it was called; aware. Default: now.
    """

    endpoint: str
    http_method: str
    category_code: str = field(default=Factory(lambda self: category_of(self.endpoint), takes_self=True))
    user_id: str = "anonymous"
    method_name: str = ""
    response_status: int | None = field(default=None, validator=_storable_integer)
    response_time: float | None = field(default=None, validator=_storable_float)
    ip_address: str | None = None
    user_agent: str | None = None
    inputs: str | None = None
    outputs: str | None = None
    created_at: datetime = field(factory=lambda: datetime.now(UTC), converter=_with_zone, validator=_storable_time)


_access = event_type_of(AccessEvent)


def _write_text(value: str | None) -> str:
    return "" if value is None else well_formed(value)


def _write_number(value: int | None) -> str:
    return "" if value is None else str(value)


def _write_seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


_TEXT: Final = (str, _write_text)

# The name in the entry: the attribute, how its text is read, how it is written. In the original's order.
_FLAT: Final[dict[str, tuple[str, Callable[[str], Any], Callable[[Any], str]]]] = {
    "categoryCode": ("category_code", *_TEXT),
    "userId": ("user_id", *_TEXT),
    "endpoint": ("endpoint", *_TEXT),
    "httpMethod": ("http_method", *_TEXT),
    "methodName": ("method_name", *_TEXT),
    "responseStatus": ("response_status", int, _write_number),
    "responseTime": ("response_time", float, _write_seconds),
    "ipAddress": ("ip_address", *_TEXT),
    "userAgent": ("user_agent", *_TEXT),
    "inputs": ("inputs", *_TEXT),
    "outputs": ("outputs", *_TEXT),
    "createdAt": ("created_at", str, datetime.isoformat),
}

_MAY_BE_EMPTY: Final = {"endpoint", "httpMethod"}

_PLACEHOLDER: Final = {"event_id": "preservedId"}
