"""The scenario of somebody's own system: their declaration, their handlers, and events that fit."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from attrs import evolve

from ..event import Envelope, event_type_of, new_event_id
from ..stream_settings import StreamSettings
from ..system import System
from ..testing import MemoryStore
from .generated import make_publications
from .scenario import SETTINGS, Publication, Scenario

__all__ = ["scenario_of"]

Events = Callable[[random.Random], Iterable[tuple[str, object]]]
"""``simulation_events(chance)``: pairs of a stream's key, or a queue's name, and an object of an event class, or an
envelope."""


def scenario_of(
    system: System,
    *,
    streams: Mapping[str, StreamSettings] = MappingProxyType({}),
    events: Events | None = None,
    begins: Callable[[MemoryStore], None] | None = None,
    processes: int | None = None,
) -> Scenario:
    """What is simulated for `system`.

    Args:
        system: the declaration; its handlers are called as they are.
        streams: what is set of its streams.
        events: makes the events of one story from a generator of random numbers; None: they are made up by type.
        begins: called before each story; see `Scenario.begins`.
        processes: how many processes share the work; None: one to three.
    """

    def publications(chance: random.Random, declared: System) -> Sequence[Publication]:
        if events is None:
            return make_publications(chance, declared)
        return [Publication(stream, _envelope(each)) for stream, each in events(chance)]

    return Scenario(
        system=lambda chance: system,
        publications=publications,
        begins=begins or (lambda store: None),
        processes=processes,
        settings=evolve(SETTINGS, streams=dict(streams)),
    )


def _envelope(value: object) -> Envelope:
    if isinstance(value, Envelope):
        return value
    # Made here, and not by the default of the class: so that the seed says what it is.
    return evolve(event_type_of(type(value)).envelope(value), event_id=new_event_id())
