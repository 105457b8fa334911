"""What the settings say of streams and groups, put over what is declared in code.

    [streams."order-events"]
    max_len = 10_000

    [streams."order-events".groups."order-processing"]
    consumers = 3
    batch = 5
    handlers = { ORDER_COMPLETED = "shop.handlers:complete" }

Nothing here starts or asks anything; but functions that the settings name are imported.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable
from difflib import get_close_matches
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from attrs import evolve, fields, has

from ..runtime.import_string import ImportStringError, load_object
from .declarations import check_name, is_async
from .event import EventType, event_type_of, untyped
from .retrying import RetryPolicy
from .system import DeclarationError, Group, Handler, System

if TYPE_CHECKING:
    from .settings import ActorSettings, DeliverySettings
    from .stream_settings import GroupSettings, StreamSettings
    from .system import Stream

__all__ = ["configured", "handler_of"]


def configured(system: System, settings: ActorSettings) -> System:
    """The system as the settings want it: a new one, or `system` itself if they say nothing of streams.

    Streams and groups that nobody has declared are declared. A group that only the settings have, and for which they
    name no handler, is another program's (`Stream.external`). Applied again, nothing changes.

    Raises:
        DeclarationError: a handler cannot be imported or used, or what is set does not go with what is declared; the
            text names the table and the key. So it is for a further stream that nothing would use: beside streams that
            are declared in code, its name is taken for a mistyped one.
    """
    if not settings.streams:
        return system
    made = system.with_streams({key: _copy_of(stream) for key, stream in system.streams.items()})
    for key, chosen in settings.streams.items():
        stream = made.streams.get(key)
        if stream is None:
            if system.streams and not _is_used(chosen):
                raise DeclarationError(_mistyped(system, key))
            stream = made.stream(key)
        _configure_stream(made, stream, chosen, settings.delivery)
    return made


def _is_used(chosen: StreamSettings) -> bool:
    """Whether somebody publishes to, or reads, a stream that only the settings have."""
    groups = chosen.groups.values()
    return bool(chosen.events) or any(group.handlers or group.enabled is not False for group in groups)


def _mistyped(system: System, key: str) -> str:
    nearest = get_close_matches(key, system.streams, n=1)
    meant = f"did you mean {nearest[0]!r}?" if nearest else f"declared are {', '.join(map(repr, system.streams))}."
    return (
        f"[streams.{json.dumps(key, ensure_ascii=False)}]: no stream of this name is declared in code; {meant} If a "
        f"further stream is meant, say what it is for: name the event types that it carries (events = [...]) or a group"
    )


def _copy_of(stream: Stream) -> Stream:
    groups = {name: evolve(group, handlers=dict(group.handlers)) for name, group in stream.groups.items()}
    return evolve(stream, types=dict(stream.types), groups=groups, external=dict(stream.external))


def _configure_stream(system: System, stream: Stream, chosen: StreamSettings, delivery: DeliverySettings) -> None:
    if chosen.max_len is not None:
        stream.lossy_cap = chosen.max_len
    if chosen.partitions is not None:
        stream.partitions = chosen.partitions
    for name in chosen.events:
        check_name(f"stream {stream.key!r}: an event type's name", name)
        stream.types.setdefault(name, untyped(name))
    for name, options in chosen.groups.items():
        check_name(f"stream {stream.key!r}: a group's name", name)
        if name in stream.groups or options.handlers:
            _configure_group(stream, stream.groups.get(name) or stream.group(name), options, delivery)
        else:
            _configure_external(system, stream, name, options)


def _configure_external(system: System, stream: Stream, name: str, options: GroupSettings) -> None:
    strange = [
        each.name
        for each in fields(type(options))
        if each.name not in ("enabled", "start", "handlers") and getattr(options, each.name) is not None
    ]
    if strange:
        raise DeclarationError(
            f"group {name!r} of stream {stream.key!r} is not declared, and has no handlers set: it is another "
            f"program's, for which {' and '.join(strange)} cannot be set here{_meant(system, stream, name)}"
        )
    if options.enabled is not False:
        stream.external[name] = Group(name, stream.key, start=options.start or "0")


def _meant(system: System, stream: Stream, group: str) -> str:
    """What else a name of a group that is nobody's may have been meant to be."""
    if nearest := get_close_matches(group, stream.groups, n=1):
        return f"; did you mean {nearest[0]!r}?"
    others = [repr(other.key) for other in system.streams.values() if group in other.groups]
    return f"; stream {' and '.join(others)} has a group of this name" if others else ""


def _configure_group(stream: Stream, group: Group, options: GroupSettings, delivery: DeliverySettings) -> None:
    for name in ("enabled", "consumers", "batch", "block", "workers", "ordered", "start"):
        value = getattr(options, name)
        if value is not None:
            setattr(group, name, value)
    group.retry = _retry(stream, group, options, delivery)
    for event_type, place in options.handlers.items():
        handler = handler_of(stream, group, event_type, place)
        stream.types.setdefault(event_type, handler.event_type)
        group.handlers[event_type] = handler


def _retry(stream: Stream, group: Group, options: GroupSettings, delivery: DeliverySettings) -> RetryPolicy | None:
    given = {
        "deliveries": options.max_deliveries,
        "minimum": options.retry_minimum,
        "maximum": options.retry_maximum,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if not changes:
        return group.retry
    base = group.retry or RetryPolicy(
        deliveries=delivery.max_deliveries, minimum=delivery.retry_minimum, maximum=delivery.retry_maximum
    )
    least, most = changes.get("minimum", base.minimum), changes.get("maximum", base.maximum)
    if most < least:
        where = f"group {group.name!r} of stream {stream.key!r}"
        raise DeclarationError(f"{where}: retry_maximum ({most:g}) must not be below retry_minimum ({least:g})")
    return evolve(base, **changes)


# Handlers ------------------------------------------------------------------------------------------------------------


def handler_of(stream: Stream, group: Group, event_type: str, place: str) -> Handler:
    """The handler that `place` names, for one event type of a stream.

    What it is given is said by its first parameter: an event class of this type, or ``dict`` for the data as they are.
    If it says nothing, it is given what the stream has declared for the type; the data, if that is nothing, too.

    Raises:
        DeclarationError: there is no such function, its module raises, or it is none for this event type.
    """
    where = f"group {group.name!r} of stream {stream.key!r}: the handler of {event_type}, {place!r},"
    try:
        _, call = load_object(place)
    except ImportStringError as error:
        raise DeclarationError(f"{where} cannot be imported: {error}") from error
    except Exception as error:
        raise DeclarationError(f"{where} cannot be imported: {type(error).__name__}: {error}") from error
    if call is None:
        raise DeclarationError(f"{where} is not in its module")
    if not is_async(call):
        raise DeclarationError(f"{where} is no async function, but a {type(call).__name__}")
    check_name(f"{where}: an event type's name", event_type)
    try:
        inspect.signature(call).bind(None, None)
    except (TypeError, ValueError):
        raise DeclarationError(f"{where} must take two arguments, (event, context)") from None
    declared = stream.types.get(event_type)
    wanted = _wanted(call, where)
    if isinstance(wanted, type) and has(wanted):
        declared = _declared_as(wanted, event_type, where)
    elif wanted is dict or declared is None:
        plain = untyped(event_type)
        declared = plain if declared is None else evolve(plain, codec=declared.codec, max_age=declared.max_age)
    before = group.handlers.get(event_type)
    return Handler(
        declared,
        call,
        retry=None if before is None else before.retry,
        timeout=None if before is None else before.timeout,
    )


def _wanted(call: Callable[..., Any], where: str) -> Any:
    """The type of the first parameter, without its arguments; None if it has none."""
    whole = call.func if isinstance(call, partial) else call
    function = inspect.unwrap(whole if inspect.isroutine(whole) else type(whole).__call__)
    first = next(iter(inspect.signature(call).parameters.values()))
    if first.annotation is first.empty:
        return None
    alone = SimpleNamespace(__annotations__={"event": first.annotation})
    try:
        kind = typing.get_type_hints(alone, getattr(function, "__globals__", {}))["event"]
    except NameError as error:
        raise DeclarationError(
            f"{where} takes {first.annotation!r}, which is not known when it runs: import it outside of TYPE_CHECKING"
        ) from error
    return typing.get_origin(kind) or kind


def _declared_as(cls: type, event_type: str, where: str) -> EventType:
    try:
        declared = event_type_of(cls)
    except TypeError as error:
        raise DeclarationError(f"{where} takes what is no event: {error}") from error
    if declared.name != event_type:
        raise DeclarationError(f"{where} takes {cls.__name__}, which is {declared.name}")
    return declared
