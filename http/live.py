"""The live state of the system for the page: one `LiveFeed` for all clients, sent by ``/api/v1/live``.

The feed works only while somebody looks. Each client gets the newest state when it can take it, so that a slow one
misses states, and delays nobody.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import trio
from attrs import Factory, define, evolve, field, frozen

from ..actors.access import AccessRecord
from ..runtime.masking import mask_text
from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .replies import dump
from .running import RunningSystem
from .sse import Event, Places
from .views import cluster_json, iso, readiness, shut_gate, stream_json, tree_json

__all__ = ["LiveFeed"]

log = get_logger(__name__)

AT_MOST_EVERY = 0.2
"""Seconds between two states: what happens faster is seen together."""

AT_LEAST_EVERY = 2.0
"""Seconds after which a state is sent though nothing happened: the page knows by it that it is not cut off."""

ACCESS_EVERY = 1.0
"""Seconds between two questions for the last access events."""

ACCESS_WITHIN = 3.0
"""Seconds that the database has to answer that question."""

ACCESS_ROWS = 20


@frozen
class _LastAccess:
    """The last access events as far as they are known.

    Attributes:
        events: newest first.
        observed_at: when they were asked for; None: never yet.
        stale: why they are not up to date; empty when they are.
    """

    events: Sequence[AccessRecord] = ()
    observed_at: datetime | None = None
    stale: str = ""


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
    _access: _LastAccess = field(factory=_LastAccess)

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
            nursery.start_soon(self._follow_access)
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

    async def _follow_access(self) -> None:
        while True:
            await self._wanted.wait()
            before = self._access
            self._access = await self._ask_for_access()
            if (before.events, before.stale) != (self._access.events, self._access.stale):
                self._stirred.set()
            await trio.sleep(ACCESS_EVERY)

    async def _ask_for_access(self) -> _LastAccess:
        deployment, last = self.deployment, self._access
        gate = shut_gate(deployment.gates, "postgres")
        if gate is not None:
            return evolve(last, stale=f"the database is away: {mask_text(gate.cause)}")
        if deployment.access is None:
            return evolve(last, stale="this system runs without a database")
        try:
            with trio.fail_after(ACCESS_WITHIN):
                events = await deployment.access.recent(ACCESS_ROWS)
        except trio.TooSlowError:
            return evolve(last, stale=f"the database did not answer within {ACCESS_WITHIN:g} s")
        except PostgresUnavailable as error:
            return evolve(last, stale=mask_text(str(error)))
        except Exception as error:
            # The page is for the worst of nights: whatever is wrong with the table must not take the tree off it.
            log.warning("the last access events cannot be read", exc_info=error)
            return evolve(last, stale=f"they cannot be read: {type(error).__name__}")
        return _LastAccess(events, deployment.tree.journal.wall())

    def _publish(self) -> None:
        state = self._current()
        self._state = Event(dump(state), name="state", id=str(state["sequence"]))
        self._changed.set()
        self._changed = trio.Event()

    def _current(self) -> dict[str, Any]:
        deployment = self.deployment
        snapshot = deployment.tree.snapshot()
        streams = list(deployment.streams())
        ready, _ = readiness(snapshot, streams)
        clock, cluster = trio.current_time(), deployment.cluster()
        return {
            "system": deployment.system.name,
            "instance": deployment.instance,
            "ready": ready,
            **tree_json(snapshot),
            "streams": [stream_json(stream, snapshot.time, clock) for stream in streams],
            "cluster": None if cluster is None else cluster_json(cluster, snapshot.time, clock),
            "access": self._access_json(),
        }

    def _access_json(self) -> dict[str, Any]:
        last = self._access
        return {
            "stale": last.stale or None,
            "observedAt": None if last.observed_at is None else iso(last.observed_at),
            "events": [
                {
                    "time": iso(event.created_at),
                    "method": event.http_method,
                    "endpoint": event.endpoint,
                    "status": event.response_status,
                    "ms": None if event.response_time is None else round(event.response_time * 1000),
                }
                for event in last.events
            ],
        }
