"""A real Redis is killed, frozen and kept from saving while events are published: each is accepted, and in its place.

The publish side of a deployment, on a real Valkey that syncs what it is given, and a real PostgreSQL.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve, field, frozen

from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.actors.event import event
from penstock.actors.probes import PostgresProbe
from penstock.actors.producer import Published
from penstock.actors.publishing import envelopes_of
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.store import PostgresStore
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions
from penstock.runtime.redis import Redis

SETTINGS = ActorSettings(health=HealthSettings(interval_up=0.3, interval_down_min=0.05, interval_down_max=0.3))

WITHIN = 45.0
"""Seconds after which it is no longer the machine that is slow."""


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str


def shop() -> System:
    system = System("app")
    system.stream("orders", events=[Order], partitions=2)
    return system


@define(eq=False)
class Site:
    """A running deployment, its server, and what was published.

    Attributes:
        accepted: the numbers of the events that were accepted, by customer, in order.
        ways: where each was safe when it was accepted.
        refused: what was not accepted.
    """

    deployment: Deployment
    valkey: Any
    accepted: dict[str, list[int]] = field(factory=dict)
    ways: list[str] = field(factory=list)
    refused: list[object] = field(factory=list)

    async def load(self) -> None:
        """Publish for seven customers, one request after the other, until cancelled."""
        for number in range(20_000):
            orders = [Order(number, f"customer {number % 7}"), Order(number, "regular")]
            for order, result in zip(orders, await self.publish(orders), strict=True):
                if isinstance(result, Published):
                    self.accepted.setdefault(order.customer, []).append(order.number)
                    self.ways.append(result.durable)
                else:
                    self.refused.append(result)
            await trio.sleep(0.01)

    async def publish(self, orders: list[Order]) -> list[Any]:
        # A request that was begun is ended, so that we know what was accepted.
        with trio.CancelScope(shield=True):
            return list(await self.deployment.publish("orders", envelopes_of(orders)))

    async def goes_on(self, way: str, count: int = 10) -> None:
        """Wait until so many more events were accepted on this way."""
        wanted = self.ways.count(way) + count
        with trio.fail_after(WITHIN):
            while self.ways.count(way) < wanted:
                await trio.sleep(0.02)  # the servers are other processes: there is no event to wait for

    async def relayed(self) -> None:
        with trio.fail_after(WITHIN):
            while await self.deployment.backends.store.outbox.waiting():
                await trio.sleep(0.05)

    async def added(self) -> dict[str, list[int]]:
        """What is in the stream, by customer, in the order in which it came for the first time."""
        found: dict[str, dict[int, None]] = {}
        async with Redis(self.valkey.options) as redis:
            for key in self.deployment.system.streams["orders"].keys:
                for _, fields in await redis.xrange(key):
                    data = json.loads(fields[b"data"])
                    found.setdefault(data["customer"], {})[data["number"]] = None
        return {customer: list(numbers) for customer, numbers in found.items()}

    async def command(self, *words: str) -> Any:
        async with Redis(self.valkey.options) as redis:
            return await redis.execute_command(*words)


@pytest.fixture
async def site(make_valkey: Any, database: PostgresOptions) -> AsyncIterator[Site]:
    valkey = make_valkey("--appendonly", "yes", "--appendfsync", "always")
    pool = Pool(
        database,
        on_trouble=lambda error: backends.on_postgres_trouble(error),
        on_slow=lambda seconds: backends.on_postgres_slow(seconds),
    )
    backends = Backends(
        redis_options=evolve(valkey.options),
        store=PostgresStore(pool),
        probe_postgres=PostgresProbe(database),
        pool=pool,
    )
    deployment = Deployment(shop(), SETTINGS, backends, instance="i1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployment.run)
        await deployment.tree.ready()
        for name in ("redis", "postgres", "schema"):
            await deployment.gates[name].wait_open()
        yield Site(deployment, valkey)
        deployment.tree.stop("the test is over")


@asynccontextmanager
async def killed(site: Site) -> AsyncIterator[None]:
    site.valkey.kill()
    yield
    await trio.to_thread.run_sync(site.valkey.start)


@asynccontextmanager
async def frozen_(site: Site) -> AsyncIterator[None]:
    site.valkey.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        site.valkey.signal(signal.SIGCONT)


@asynccontextmanager
async def unable_to_save(site: Site) -> AsyncIterator[None]:
    """MISCONF: where the snapshot belongs there is a directory."""
    place = site.valkey.path.parent / "dump.rdb"
    place.unlink(missing_ok=True)
    place.mkdir()
    await site.command("CONFIG", "SET", "save", "3600 1000000")
    await site.command("BGSAVE")
    yield
    place.rmdir()
    await site.command("BGSAVE")


FAULTS: dict[str, Callable[[Site], Any]] = {"killed": killed, "frozen": frozen_, "unable to save": unable_to_save}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_everything_is_accepted_and_in_order_after_the_return(site: Site, fault: Callable[[Site], Any]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.load)
        for _ in range(2):
            await site.goes_on("redis")
            async with fault(site):
                await site.goes_on("outbox")
        await site.goes_on("redis")  # under load, too, the detour ends
        nursery.cancel_scope.cancel()
    await site.relayed()
    assert site.refused == []
    assert await site.added() == site.accepted
    views = site.deployment.tree.snapshot().root.walk()
    assert {view.path: view.restarts for view in views if view.restarts} == {}
