"""What is simulated: a system, the events and jobs that are given to it, and how much goes wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

from attrs import field, frozen

from ..event import Envelope
from ..settings import ActorSettings, DeliverySettings, HealthSettings
from ..system import System
from ..testing import MemoryStore

__all__ = ["SETTINGS", "Publication", "Scenario"]

SETTINGS: Final = ActorSettings(
    delivery=DeliverySettings(retry_minimum=0.1, retry_maximum=2.0, handler_timeout=10.0),
    # In a story of some minutes, looks at what is well would be most of the work.
    health=HealthSettings(interval_up=60.0, observe_every=600.0),
)
"""Shorter pauses than by default; all else as it is in production."""


@frozen
class Publication:
    """An event to be published, or a job to be put in.

    Attributes:
        stream: the declared stream's key, or the queue's name.
        envelope: the event or job, with its id and its key.
    """

    stream: str
    envelope: Envelope


@frozen(kw_only=True)
class Scenario:
    """See the module. Everything that is drawn comes from the generator that is given: of one seed, always the same.

    Attributes:
        system: the declaration, fresh or not; it is not changed.
        publications: the events and jobs of one story, in the order in which they are given.
        begins: called before each story with its database, to say what statements find there (`MemoryStore.answer`),
            and to put something in memory in the place of what handlers use beside it.
        processes: how many processes share the work; None: one to three.
        faults: the least and the most number of faults in a story.
        stumbling: whether handlers are made to fail, to be slow and to break off, beside what they do themselves.
        settings: of the actors.
        on_cluster: the share of stories on a Redis Cluster, whose masters fall and whose slots move.
    """

    system: Callable[[random.Random], System]
    publications: Callable[[random.Random, System], Sequence[Publication]]
    begins: Callable[[MemoryStore], None] = field(default=lambda store: None)
    processes: int | None = None
    faults: tuple[int, int] = (3, 10)
    stumbling: bool = True
    settings: ActorSettings = SETTINGS
    on_cluster: float = 0.1
