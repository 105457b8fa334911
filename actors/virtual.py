"""A whole system in a test: in virtual time, with the real driver, actors and tree, and nothing outside the process.

    async def test_payment_survives_a_day_without_redis(autojump_clock: MockClock) -> None:
        async with virtual(system) as shop:
            shop.redis.refuse()
            shop.redis.cut()
            await trio.sleep(24 * 3600)
            shop.redis.restore()
            await shop.publish("order-events", OrderPlaced("o-1", 9.5))
            await shop.settled()
            assert shop.store.effects == […]

Needs the extra ``test``, and trio's MockClock with autojump (pytest-trio's ``autojump_clock``, an argument of the test
itself).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, TypeVar, overload
from uuid import UUID

import trio

from ..runtime.redis import ClusterOptions, RedisOptions
from ..runtime.supervision import ChildView
from ..runtime.testing.redis import EPOCH, InProcessRedis
from ..runtime.testing.redis_cluster import InProcessCluster
from .backends import HEALED_WITHIN, Backends, RedisPlace
from .deployment import Deployment
from .event import Envelope, event_type_of
from .group_making import text_of
from .leasing import LEASE_GATE
from .probes import Unhealthy
from .producer import Published, PublishFailed
from .settings import ActorSettings, HealthSettings, PublishSettings
from .system import System
from .testing import MemoryStore

__all__ = ["VirtualDeployment", "virtual"]

R = TypeVar("R", bound=InProcessRedis | InProcessCluster)
"""What stands for Redis."""


def _virtual_wall() -> datetime:
    return datetime.fromtimestamp(EPOCH, UTC) + timedelta(seconds=trio.current_time())


class VirtualDeployment(Generic[R]):
    """A deployment with everything around it in memory. Made by `virtual`.

    Attributes:
        redis: the server, or the cluster; it fails when it is told to.
        store: the database; likewise.
        deployment: the real one.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        redis: R,
        store: MemoryStore,
        *,
        instance: str,
        seed: int,
    ) -> None:
        self.redis = redis
        self.store = store
        self._away = ""
        self._lost: dict[str, str] = {}
        self._backends = Backends(
            redis_options=_options_for(redis),
            redis_connect=redis.connect,
            store=store,
            probe_postgres=self._probe,
        )
        self.deployment = Deployment(
            system,
            settings,
            self._backends,
            instance=instance,
            wall=_virtual_wall,
            seed=seed,
            probes={name: partial(self._probe_own, name) for name in system.gates},
        )

    async def publish(self, stream: str, *events: object) -> list[Published | PublishFailed]:
        """Publish objects of event classes, or envelopes; see `Deployment.publish`."""
        envelopes = [event if isinstance(event, Envelope) else _envelope(event) for event in events]
        return await self.deployment.publish(stream, envelopes)

    async def enqueue(self, queue: str, *jobs: object) -> list[UUID]:
        """Put jobs into a queue, in order; see `Deployment.enqueue`."""
        return [await self.deployment.enqueue(queue, job) for job in jobs]

    def lose_database(self, why: str) -> None:
        """The database goes away, and the links notice."""
        self._away = why
        self.store.refuse(why)
        self._backends.on_postgres_trouble(Unhealthy(why))

    def restore_database(self) -> None:
        """The database is back; the health monitor will find out."""
        self._away = ""
        self.store.restore()

    def lose(self, gate: str, why: str) -> None:
        """What stands behind a gate of the system's own goes away: its probe, which is none but this, says so.

        The gate is shut when it is probed next, or a handler raises `Unavailable`. Raises KeyError if the system
        declares no such gate.
        """
        self._check_gate(gate)
        self._lost[gate] = why

    def restore(self, gate: str) -> None:
        """It is back, if it was away; the health monitor will find out. Raises KeyError as `lose` does."""
        self._check_gate(gate)
        self._lost.pop(gate, None)

    def _check_gate(self, gate: str) -> None:
        own = self.deployment.system.gates
        if gate not in own:
            known = ", ".join(sorted(own)) or "none"
            raise KeyError(f"the system declares no gate {gate!r}; its own are: {known}")

    def child(self, path: str) -> ChildView:
        """The child at `path` below the root; raises KeyError."""
        view = self.deployment.tree.snapshot().find(f"{self.deployment.system.name}/{path}")
        if view is None:
            raise KeyError(path)
        return view

    async def serving(self) -> None:
        """Block until all gates are open and nobody is held."""
        with self.deployment.tree.subscribe() as events:
            while not self._is_serving():
                await events.next()

    async def settled(self) -> None:
        """Block until every published event and every job has come to its end: handled and acknowledged, or dead."""
        while not await self._is_settled():  # noqa: ASYNC110 - only Redis knows, and it does not call
            await trio.sleep(0.05)

    def _is_serving(self) -> bool:
        views = self.deployment.tree.snapshot().root.walk()
        return all(view.state in ("running", "ended") or _is_elsewhere(view) for view in views)

    async def _is_settled(self) -> bool:
        needed = [gate for gate in self.deployment.gates.values() if not gate.name.startswith(LEASE_GATE)]
        if not all(gate.is_open for gate in needed) or (self.store.outbox.rows or self.store.retries.rows):
            return False
        if self.deployment.producer.waiting:
            return False
        client = self.deployment.client()
        for stream in [each for each in self.deployment.system.streams.values() if each.groups]:
            not_read = {group.name for group in stream.made_only}
            for key in stream.keys:
                if not await client.exists(key):
                    continue
                last = (await client.xinfo_stream(key))["last-generated-id"]
                for group in await client.xinfo_groups(key):
                    is_read = text_of(group["name"]) not in not_read
                    if is_read and (group["pending"] or group["last-delivered-id"] != last):
                        return False
        if not await self.deployment.queueing.is_empty():
            return False
        # Last, for a row is written before its entry is acknowledged; and a handler may have published.
        return not self.store.retries.rows and not self.store.outbox.rows

    async def _probe(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._away:
            raise Unhealthy(self._away)

    async def _probe_own(self, gate: str) -> None:
        await trio.lowlevel.checkpoint()
        if gate in self._lost:
            raise Unhealthy(self._lost[gate])


@overload
def virtual(
    system: System,
    *,
    settings: ActorSettings | None = None,
    redis: None = None,
    store: MemoryStore | None = None,
    instance: str = "test",
    seed: int = 0,
) -> AbstractAsyncContextManager[VirtualDeployment[InProcessRedis]]: ...


@overload
def virtual(
    system: System,
    *,
    settings: ActorSettings | None = None,
    redis: R,
    store: MemoryStore | None = None,
    instance: str = "test",
    seed: int = 0,
) -> AbstractAsyncContextManager[VirtualDeployment[R]]: ...


@asynccontextmanager
async def virtual(
    system: System,
    *,
    settings: ActorSettings | None = None,
    redis: InProcessRedis | InProcessCluster | None = None,
    store: MemoryStore | None = None,
    instance: str = "test",
    seed: int = 0,
) -> AsyncIterator[VirtualDeployment[Any]]:
    """Run `system` in memory; it is up when the block begins, and stopped in order when it ends.

    Give it the `redis` (already entered) and the `store` of an earlier run to see a restart, or an `InProcessCluster`;
    another `seed` for other jitter.
    """
    if redis is None:
        async with (
            InProcessRedis() as fresh,
            virtual(system, settings=settings, redis=fresh, store=store, instance=instance, seed=seed) as made,
        ):
            yield made
        return
    # In a day of virtual time, looks at what is well every few seconds add up to seconds of real time.
    chosen = settings or ActorSettings(
        health=HealthSettings(interval_up=600.0, observe_every=3600.0), publish=PublishSettings(look_every=60.0)
    )
    running = VirtualDeployment(system, chosen, redis, store or MemoryStore(), instance=instance, seed=seed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(running.deployment.run)
        await running.deployment.tree.ready()
        await running.serving()
        yield running
        running.deployment.tree.stop("the test is over")


def _options_for(redis: InProcessRedis | InProcessCluster) -> RedisPlace:
    """As `Backends.of` would have them."""
    if isinstance(redis, InProcessCluster):
        return ClusterOptions(nodes=redis.addresses, retry_for=HEALED_WITHIN)
    return RedisOptions(retry_for=0.0)


def _is_elsewhere(view: ChildView) -> bool:
    """Whether it belongs to a partition that another process has."""
    return view.state == "held" and (view.held_by or "").startswith(LEASE_GATE)


def _envelope(value: object) -> Envelope:
    return event_type_of(type(value)).envelope(value)
