"""Events: the envelope that travels, the classes that users declare, and how both become the fields of a stream entry.

An event class is an ordinary attrs class marked with `event`::

    @event("ORDER_COMPLETED")
    @frozen
    class OrderCompleted:
        order_id: str
        price: float

In JSON its attributes have camelCase names (``orderId``), as the sources have them. In an entry an event is
``eventId, eventType, timestamp, data`` (JSON) and, where set, ``key`` and ``traceparent``. A class may bring its own
`Codec` where its entries must look otherwise, as S1's access events do.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID, uuid5

import attrs
import cattrs
from attrs import field, frozen

from .structuring import camel, converter, scalars, value_of

__all__ = [
    "JSON_CODEC",
    "Codec",
    "Envelope",
    "EventType",
    "Fields",
    "InvalidEvent",
    "Origin",
    "SkippedEntry",
    "UndecodableEntry",
    "converter",
    "event",
    "event_id_of",
    "event_type_of",
    "new_event_id",
    "untyped",
]

Fields = dict[str, str]
"""The fields of a stream entry, in order, as text."""

C = TypeVar("C")

_MARK = "__penstock_event__"

_ORIGINS = UUID("5f0e8a0e-4b35-5c56-9a0e-6d0d3c1f7a42")
"""The namespace of ids that are made of an entry's place. Never changes: the inbox remembers events by these ids."""


class InvalidEvent(ValueError):
    """The data do not fit the event's class; the text names the fields at fault.

    Attributes:
        problems: pairs of the field's path, as it is in JSON (``data.orderId``), and what is wrong with it.
    """

    def __init__(self, problems: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{path}: {problem}" for path, problem in problems))
        self.problems = tuple(problems)


class UndecodableEntry(ValueError):
    """The fields of an entry are no event; the text says what is missing or broken."""


class SkippedEntry(Exception):
    """The entry carries no event and is not meant to: acknowledge it and go on. The text says what it is."""


# The seams of a simulation, whose runs must be repeatable.
_entropy: Callable[[int], bytes] = os.urandom
_clock: Callable[[], int] = time.time_ns


def new_event_id() -> UUID:
    """A UUIDv7 (RFC 9562): 48 bits of Unix time in ms, then random bits. Ordered by time, so kind to indexes."""
    random = int.from_bytes(_entropy(10), "big")
    value = (_clock() // 1_000_000) << 80 | random
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return UUID(int=value)


def event_id_of(given: object) -> UUID | None:
    """The id that a text is, in any case of letters; None where it is none, written with dashes."""
    try:
        event_id = UUID(given) if isinstance(given, str) else None
    except ValueError:
        return None
    # UUID() also takes braces, URNs and misplaced dashes.
    return event_id if event_id is not None and str(event_id) == str(given).lower() else None


@frozen(kw_only=True)
class Envelope:
    """An event as it travels.

    Attributes:
        event_id: made once, kept for ever; the same id twice is one effect.
        event_type: names the class and so the handlers.
        timestamp: when it happened; aware.
        data: the event itself as JSON values.
        key: what must stay in order among itself; None where order does not matter.
        traceparent: W3C trace context, passed on as it is.
    """

    event_type: str
    data: dict[str, Any]
    event_id: UUID = field(factory=new_event_id)
    timestamp: datetime = field(factory=lambda: datetime.now(UTC))
    key: str | None = None
    traceparent: str | None = None


@frozen
class Origin:
    """Where an entry stands: what an event is known by that brings no id of its own.

    Attributes:
        stream: the stream's key.
        entry_id: the entry's id in it, ``<ms>-<seq>``.
    """

    stream: str
    entry_id: str

    @property
    def event_id(self) -> UUID:
        """The same UUID (version 5) at every delivery of this entry."""
        return uuid5(_ORIGINS, f"{self.stream}/{self.entry_id}")

    @property
    def added_at(self) -> datetime:
        """When Redis took the entry, by its id; aware, UTC.

        Raises:
            UndecodableEntry: the id was made up by somebody and is no time.
        """
        try:
            return datetime.fromtimestamp(int(self.entry_id.partition("-")[0]) / 1000, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise UndecodableEntry(f"the entry id {self.entry_id} is no time") from error


class Codec(Protocol):
    """How envelopes of one event type become the fields of an entry, and back."""

    def encode(self, envelope: Envelope) -> Fields:
        """The entry's fields."""
        ...

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        """The envelope; raises `UndecodableEntry`, or `SkippedEntry` for what is no event on purpose."""
        ...

    def recognises(self, fields: Mapping[str, str]) -> bool:
        """Whether the fields look like an entry of this codec."""
        ...


class _JsonCodec:
    """The standard entry: ``eventId, eventType, timestamp, data`` (JSON), ``key``, ``traceparent``."""

    def encode(self, envelope: Envelope) -> Fields:
        """The entry's fields; raises `InvalidEvent` where the data are no JSON."""
        fields = {
            "eventId": str(envelope.event_id),
            "eventType": envelope.event_type,
            "timestamp": envelope.timestamp.isoformat(),
            "data": _json(envelope.data),
        }
        if envelope.key is not None:
            fields["key"] = envelope.key
        if envelope.traceparent is not None:
            fields["traceparent"] = envelope.traceparent
        return fields

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        try:
            data = json.loads(fields["data"])
            if not isinstance(data, dict):
                raise UndecodableEntry("data is not a JSON object")
            return Envelope(
                event_id=UUID(fields["eventId"]),
                event_type=fields["eventType"],
                timestamp=datetime.fromisoformat(fields["timestamp"]),
                data=data,
                key=fields.get("key"),
                traceparent=fields.get("traceparent"),
            )
        except KeyError as missing:
            raise UndecodableEntry(f"the field {missing.args[0]} is missing") from missing
        except UndecodableEntry:
            raise
        except ValueError as broken:
            raise UndecodableEntry(f"a field cannot be read: {broken}") from broken

    def recognises(self, fields: Mapping[str, str]) -> bool:
        return "eventType" in fields


def _json(data: Mapping[str, Any]) -> str:
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        advice = "where a number may be NaN or infinite, give null"
        raise InvalidEvent([("data", f"cannot be written as JSON: {error}; {advice}")]) from error


JSON_CODEC: Codec = _JsonCodec()


@frozen
class EventType:
    """A declared event: its name, its class, its codec.

    Attributes:
        name: what stands in ``eventType``.
        cls: the attrs class.
        codec: how its entries look.
        key: the attribute whose value, as text, keeps events in order among each other; None: it has no key.
        max_age: an event that is older when its turn comes is not handled, and becomes a dead letter (``expired``).
    """

    name: str
    cls: type
    codec: Codec = JSON_CODEC
    key: str | None = None
    max_age: timedelta | None = None

    def envelope(self, value: Any, **given: Any) -> Envelope:
        """The envelope of an object of the class; `given` are attributes of `Envelope` that differ from the usual."""
        key = getattr(value, self.key) if self.key is not None else None
        return Envelope(
            event_type=self.name, data=self.unstructure(value), **{"key": None if key is None else str(key), **given}
        )

    def key_of(self, data: Mapping[str, Any]) -> str | None:
        """The key of an event with these data, as `envelope` gives it; raises `InvalidEvent`."""
        key = getattr(self.structure(data), self.key) if self.key is not None else None
        return None if key is None else str(key)

    def structure(self, data: Mapping[str, Any]) -> Any:
        """An object of the class, made of JSON values.

        Raises:
            InvalidEvent: the values do not fit; the text names each field at fault.
        """
        if not isinstance(data, Mapping):
            raise InvalidEvent([("data", "expected a JSON object")])
        try:
            return converter.structure(data, self.cls)
        except Exception as error:
            # cattrs wraps whatever a hook or a validator raised; anything else is not possible here.
            told = cattrs.transform_error(error, path="data", format_exception=_told)
            raise InvalidEvent([_problem(each) for each in told]) from error

    def read_texts(self, texts: Mapping[str, str]) -> dict[str, Any]:
        """JSON values of texts, as a query has them: a number, or a truth value, where the attribute is one.

        What is none is left as it is, for `structure` to say so.
        """
        kinds = scalars(self.cls)
        return {name: value_of(text, kinds[name]) if name in kinds else text for name, text in texts.items()}

    def unstructure(self, value: Any) -> dict[str, Any]:
        """The JSON values of an object of the class."""
        data: dict[str, Any] = converter.unstructure(value)
        return data


def event(
    name: str, *, codec: Codec = JSON_CODEC, key: str | None = None, max_age: timedelta | None = None
) -> Callable[[type[C]], type[C]]:
    """Declare an attrs class as the event type `name`; see `EventType` for the rest.

    Raises:
        TypeError: the class is no attrs class (put ``@event`` above ``@frozen``), or has no attribute `key`.
        ValueError: `max_age` is not above zero.
    """
    if not name or not isinstance(name, str):
        raise TypeError(f"an event type is a non-empty string, not {name!r}")
    if max_age is not None and max_age <= timedelta(0):
        raise ValueError(f"max_age of {name!r} must be above zero, not {max_age}")

    def mark(cls: type[C]) -> type[C]:
        given: type = cls  # attrs.has() narrows what it is asked about, and would lose C
        if not attrs.has(given):
            raise TypeError(f"{cls.__name__} is no attrs class; write @event({name!r}) above @frozen")
        if key is not None and key not in {each.name for each in attrs.fields(given)}:
            raise TypeError(f"{cls.__name__} has no attribute {key!r} to be the key of {name!r}")
        setattr(cls, _MARK, EventType(name, cls, codec, key, max_age))
        return cls

    return mark


def event_type_of(cls: type) -> EventType:
    """The `EventType` that `cls` was declared as; raises `TypeError` if it never was."""
    declared = cls.__dict__.get(_MARK)
    if not isinstance(declared, EventType):
        raise TypeError(f"{cls.__name__} is no event class; mark it with @event('ITS_TYPE')")
    return declared


def untyped(name: str) -> EventType:
    """An event type of which only the name is known: its events are their data, a dict of JSON values."""
    return EventType(name, dict)


def _told(error: BaseException, kind: type | None) -> str:
    # cattrs keeps what a validator says to itself ("invalid value"); it is what names the field.
    if type(error) is ValueError and error.args:
        return str(error)
    return cattrs.v.format_exception(error, kind)


def _problem(told: str) -> tuple[str, str]:
    """cattrs says ``problem @ data.order_id``; its path has the names of attributes, and a missing one at its end."""
    problem, _, path = told.rpartition(" @ ")
    path = ".".join(camel(part) for part in path.split("."))
    return path, problem.replace("invalid value for type, ", "").replace("required field missing", "is missing")
