"""The live state of the system for the page: one `LiveFeed` for all clients, sent by ``/api/v1/live``.

The feed works only while somebody looks. Each client gets the newest state when it can take it, so that a slow one
misses states, and delays nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio
from attrs import Factory, define, field

from ..actors.access import AccessRecord
from ..actors.delivery_view import DeliveryView
from ..actors.queue_lists import QueueView
from .delivery import delivery_json, outbox_json
from .looking import DATABASE, REDIS, Look
from .queues import queue_json
from .replies import dump
from .running import RunningSystem
from .sse import Event, Places
from .streams import warning_json
from .views import cluster_json, iso, readiness, stream_json, tree_json

__all__ = ["LiveFeed"]

AT_MOST_EVERY = 0.2
"""Seconds between two states: what happens faster is seen together."""

AT_LEAST_EVERY = 2.0
"""Seconds after which a state is sent though nothing happened: the page knows by it that it is not cut off."""

ACCESS_EVERY = 1.0
"""Seconds between two questions for the last access events."""

ACCESS_ROWS = 20

DELIVERY_EVERY = 2.0
"""Seconds between two questions for how delivery stands."""

QUEUES_EVERY = 2.0
"""Seconds between two questions for how the work queues stand."""


@define(eq=False)
class LiveFeed:
    """The state of `deployment`, kept up to date by `run` while there are clients.

    Attributes:
        deployment: the system.
        limit: how many clients there may be.
        draining: set when the front end is about to leave.
    """

    deployment: RunningSystem
    limit: int
    draining: trio.Event
    _places: Places = Factory(lambda self: Places(self.limit), takes_self=True)
    _state: Event | None = None
    _changed: trio.Event = field(factory=trio.Event)
    _wanted: trio.Event = field(factory=trio.Event)
    _stirred: trio.Event = field(factory=trio.Event)
    _access: Look[Sequence[AccessRecord]] = field(init=False)
    _delivery: Look[DeliveryView] = field(init=False)
    _queues: Look[Sequence[QueueView]] = field(init=False)

    def __attrs_post_init__(self) -> None:
        deployment = self.deployment
        access = None if deployment.access is None else self._recent_access
        self._access = Look(deployment, "the last access events", DATABASE, access, ACCESS_EVERY, ())
        delivery = None if deployment.delivery is None else self._delivery_now
        self._delivery = Look(deployment, "how delivery stands", DATABASE, delivery, DELIVERY_EVERY, DeliveryView())
        queues = deployment.queues if deployment.system.queues else None
        self._queues = Look(deployment, "how the queues stand", REDIS, queues, QUEUES_EVERY, ())

    @property
    def is_full(self) -> bool:
        """Whether no further client is taken."""
        return self._places.is_full

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be one of the clients."""
        self._wanted.set()
        self._stirred.set()
        try:
            with self._places.take():
                yield
        finally:
            if not self._places.taken:
                self._wanted = trio.Event()
                self._state = None  # the next client must not be shown an old one

    async def events(self) -> AsyncGenerator[Event, None]:
        """The newest state at once, then each newer one; without end."""
        seen: Event | None = None
        while True:
            while self._state is None or self._state is seen:
                await self._changed.wait()
            seen = self._state
            yield seen

    async def run(self) -> None:
        """Keep the state; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_tree)
            for look in (self._access, self._delivery, self._queues):
                nursery.start_soon(look.follow, lambda: self._wanted, lambda: self._stirred.set())
            nursery.start_soon(self._publish_states)

    async def _publish_states(self) -> None:
        while True:
            await self._wanted.wait()
            self._stirred = trio.Event()
            self._publish()
            await trio.sleep(AT_MOST_EVERY)
            with trio.move_on_after(AT_LEAST_EVERY - AT_MOST_EVERY):
                await self._stirred.wait()

    async def _follow_tree(self) -> None:
        with self.deployment.tree.subscribe(buffer=1) as news:
            while True:
                await news.next()
                self._stirred.set()

    async def _recent_access(self) -> Sequence[AccessRecord]:
        return () if self.deployment.access is None else await self.deployment.access.recent(ACCESS_ROWS)

    async def _delivery_now(self) -> DeliveryView:
        return DeliveryView() if self.deployment.delivery is None else await self.deployment.delivery.look()

    def _publish(self) -> None:
        state = self._current()
        self._state = Event(dump(state), name="state", id=str(state["sequence"]))
        self._changed.set()
        self._changed = trio.Event()

    def _current(self) -> dict[str, Any]:
        deployment = self.deployment
        snapshot = deployment.tree.snapshot()
        streams = list(deployment.streams())
        ready, _ = readiness(snapshot, streams, deployment.system.gates)
        clock, cluster = trio.current_time(), deployment.cluster()
        return {
            "system": deployment.system.name,
            "instance": deployment.instance,
            "ready": ready,
            **tree_json(snapshot),
            "streams": [stream_json(stream, snapshot.time, clock) for stream in streams],
            "cluster": None if cluster is None else cluster_json(cluster, snapshot.time, clock),
            "access": self._access_json(),
            "warnings": [warning_json(each) for each in deployment.warnings()],
            "outbox": outbox_json(deployment.outbox()),
            "delivery": self._delivery_json(),
            "queues": self._queues_json(),
        }

    def _access_json(self) -> dict[str, Any]:
        last = self._access
        return {
            **_age_json(last),
            "events": [
                {
                    "time": iso(event.created_at),
                    "method": event.http_method,
                    "endpoint": event.endpoint,
                    "status": event.response_status,
                    "ms": None if event.response_time is None else round(event.response_time * 1000),
                }
                for event in last.value
            ],
        }

    def _delivery_json(self) -> dict[str, Any]:
        last = self._delivery
        seen = last.observed_at or self.deployment.tree.journal.wall()
        return {
            **_age_json(last),
            **delivery_json(last.value, seen),
        }

    def _queues_json(self) -> dict[str, Any]:
        last = self._queues
        return {**_age_json(last), "queues": [queue_json(self.deployment.system, each) for each in last.value]}


def _age_json(look: Look[Any]) -> dict[str, Any]:
    return {
        "stale": look.stale or None,
        "observedAt": None if look.observed_at is None else iso(look.observed_at),
    }
