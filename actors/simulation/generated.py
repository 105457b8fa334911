"""Events and jobs made up from the declared classes, for systems that bring none: a value for every type."""

from __future__ import annotations

import enum
import random
import types
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin, get_type_hints
from uuid import UUID

import attrs

from ..event import EventType, new_event_id
from ..system import System
from .scenario import Publication

__all__ = ["CannotMake", "make_event", "make_publications"]

FEW: Final = 4
"""So many different texts there are for an attribute: keys must meet again, or their order would be no matter."""

TRIES: Final = 50
"""So often an object is made anew that its class refuses."""


class CannotMake(ValueError):
    """No event can be made up for this class; the text says why, and what helps."""


def make_publications(chance: random.Random, system: System, *, least: int = 10, most: int = 40) -> list[Publication]:
    """Events for the streams of `system`, of every type that some group handles, and jobs for its queues.

    Raises:
        CannotMake: see there; or no group and no queue has a handler.
    """
    places = [
        (stream.key, declared)
        for stream in system.streams.values()
        for declared in stream.types.values()
        if any(declared.name in group.handlers for group in stream.groups.values())
    ]
    taken = {name: queue for name, queue in system.queues.items() if queue.workers}
    places += [(name, declared) for name, queue in taken.items() for declared in queue.stream.types.values()]
    if not places:
        raise CannotMake(f"nothing in the system {system.name!r} has a handler: there is nothing to simulate")
    made = []
    for _ in range(chance.randint(least, most)):
        stream, declared = chance.choice(places)
        envelope = declared.envelope(make_event(declared, chance), event_id=new_event_id())
        if declared.key is None and chance.random() < 0.5:
            envelope = attrs.evolve(envelope, key=f"key-{chance.randrange(FEW)}")
        made.append(Publication(stream, envelope))
    return made


def make_event(declared: EventType, chance: random.Random) -> Any:
    """An object of an event class, its values drawn by their types.

    Raises:
        CannotMake: a type is not known here, or the class refuses whatever is made.
    """
    if declared.cls is dict:
        raise CannotMake(
            f"nothing is declared of the data of {declared.name!r}, so that none can be made up; "
            "bring your own events with simulation_events(chance) in its module"
        )
    for attempt in range(TRIES):
        try:
            made = _object(declared.cls, chance)
            declared.structure(declared.unstructure(made))  # as it will come out of the stream
        except CannotMake:
            raise
        except Exception as error:
            # Its validators may raise anything.
            if attempt == TRIES - 1:
                raise CannotMake(
                    f"{declared.cls.__name__} refuses whatever is made up for it ({type(error).__name__}: {error}); "
                    "bring your own events with simulation_events(chance) in its module"
                ) from error
        else:
            return made
    raise AssertionError("unreachable")


def _object(cls: type, chance: random.Random) -> Any:
    hints = get_type_hints(cls, include_extras=True)
    values = {}
    for attribute in attrs.fields(cls):
        if not attribute.init or (attribute.default is not attrs.NOTHING and chance.random() < 0.3):
            continue
        where = f"{cls.__name__}.{attribute.name}"
        values[attribute.alias] = _value(hints.get(attribute.name, Any), chance, attribute.name, where)
    return cls(**values)


def _value(kind: Any, chance: random.Random, name: str, where: str) -> Any:
    if kind in _SCALARS:
        return _SCALARS[kind](chance, name)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _value(arguments[0], chance, name, where)
    if origin is Literal:
        return chance.choice(arguments)
    if origin in (Union, types.UnionType):
        return _value(chance.choice(arguments), chance, name, where)
    if origin is not None:
        return _container(kind, origin, arguments, chance, name, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return chance.choice(list(kind))
    if isinstance(kind, type) and attrs.has(kind):
        return _object(kind, chance)
    shown = getattr(kind, "__name__", repr(kind))
    raise CannotMake(
        f"{where} is of the type {shown}, for which no value can be made up; "
        "bring your own events with simulation_events(chance) in its module"
    )


def _container(kind: Any, origin: Any, arguments: Any, chance: random.Random, name: str, where: str) -> Any:
    def one(of: Any) -> Any:
        return _value(of, chance, name, where)

    size = chance.randrange(4)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        return tuple(one(each) for each in arguments)
    if origin is tuple:
        return tuple(one(arguments[0]) for _ in range(size))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {one(arguments[0]): one(arguments[1]) for _ in range(size)}
    if isinstance(origin, type) and issubclass(origin, set | frozenset):
        return origin(one(arguments[0]) for _ in range(size))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return [one(arguments[0]) for _ in range(size)]
    raise CannotMake(f"{where} is of the type {kind!r}, for which no value can be made up")


_EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)

_SCALARS: Final[dict[Any, Callable[[random.Random, str], Any]]] = {
    str: lambda chance, name: f"{name}-{chance.randrange(FEW)}",
    int: lambda chance, name: chance.choice([0, 1, 2, 3, 10, 1_000]),
    float: lambda chance, name: chance.choice([0.5, 1.0, 9.5, 1_000.25]),
    bool: lambda chance, name: chance.random() < 0.5,
    Decimal: lambda chance, name: Decimal(chance.randrange(100_000)) / 100,
    UUID: lambda chance, name: UUID(int=chance.getrandbits(128), version=4),
    datetime: lambda chance, name: _EPOCH + timedelta(seconds=chance.randrange(86_400)),
    date: lambda chance, name: _EPOCH.date() + timedelta(days=chance.randrange(28)),
    type(None): lambda chance, name: None,
    Any: lambda chance, name: f"{name}-{chance.randrange(FEW)}",
}
