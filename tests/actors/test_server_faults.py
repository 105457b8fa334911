"""Real servers that are misconfigured while events flow: what an operator sees, and that mending it is enough.

The whole deployment but HTTP, on a real Valkey and a real PostgreSQL, with the real clock.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import define, evolve, field, frozen

from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context
from penstock.actors.probes import PostgresProbe
from penstock.actors.producer import Published
from penstock.actors.settings import ActorSettings, DeliverySettings, HealthSettings
from penstock.actors.store import PostgresStore
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions
from penstock.runtime.redis import Redis, RedisOptions

STREAM = "orders"
SETTINGS = ActorSettings(
    # One attempt: whatever costs one that should not, costs the event.
    delivery=DeliverySettings(max_deliveries=1),
    health=HealthSettings(interval_up=0.3, interval_down_min=0.05, interval_down_max=0.3),
)


@event("ORDER")
@frozen
class Order:
    number: int


def orders() -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group("payments", consumers=2, block=0.2)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert into payment values (%s)", [order.number])

    return system


@define(eq=False)
class Site:
    """A running deployment, an administrator's access to its servers, and a load.

    Attributes:
        accepted: the numbers of the events that were accepted.
        refused: how many were not.
    """

    deployment: Deployment
    redis: Redis
    sql: Callable[[str], Any]
    database: str
    accepted: list[int] = field(factory=list)
    refused: int = 0

    async def load(self) -> None:
        """Publish one event after the other, until cancelled."""
        number = 0
        while True:
            envelopes = [Envelope(event_type="ORDER", data={"number": number + each}) for each in range(5)]
            for envelope, result in zip(envelopes, await self.deployment.publish(STREAM, envelopes), strict=True):
                if isinstance(result, Published):
                    self.accepted.append(envelope.data["number"])
                else:
                    self.refused += 1
            number += len(envelopes)
            await trio.sleep(0.005)

    async def until(self, true: Callable[[], Any]) -> None:
        """Wait until `true()`; the servers are other processes, so there is no event to wait for.

        A gate that was shut again and again right after a good probe stays so for up to ten seconds.
        """
        with trio.fail_after(40):
            while not true():
                await trio.sleep(0.02)

    async def settled(self) -> None:
        """Wait until every accepted event has its row, and nothing is pending; fail with what is open."""
        ends: dict[str, int] = {}
        with trio.move_on_after(40):
            while any((ends := await self._open_ends()).values()):
                await trio.sleep(0.05)
            return
        views = self.deployment.tree.snapshot().root.walk()
        held = [f"{view.path}: {view.state} {view.note}" for view in views if view.state != "running"]
        pytest.fail(f"open after 40 s: {ends}; not running: {held}")

    async def _open_ends(self) -> dict[str, int]:
        groups = await self.redis.xinfo_groups(STREAM)
        if not groups:
            return {"groups to be made": 1}  # no listener has come so far yet
        ends = {"outbox": sum(each.count for each in await self.deployment.backends.store.outbox.waiting())}
        for group in groups:
            name = group["name"].decode()
            ends |= {f"{name} pending": int(group["pending"]), f"{name} lag": int(group["lag"] or 0)}
        return ends

    async def added(self) -> list[int]:
        """The numbers of the events in the stream, in the order in which they came for the first time."""
        entries = await self.redis.xrange(STREAM)
        return list(dict.fromkeys(json.loads(fields[b"data"])["number"] for _, fields in entries))


@pytest.fixture
async def site(make_valkey: Any, server: Any, database: PostgresOptions) -> AsyncIterator[Site]:
    valkey = make_valkey()
    name = database.conninfo()["dbname"]

    def sql(statement: str) -> Any:
        return server.execute(statement)

    async with Pool(database) as admin, Redis(valkey.options) as redis:
        async with admin.connection() as connection:
            await connection.execute("create table payment (number int)")
        await redis.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all")
        async with _deployed(evolve(valkey.options, username="app", password="secret"), database) as deployment:
            yield Site(deployment, redis, sql, str(name))


@asynccontextmanager
async def _deployed(redis: RedisOptions, postgres: PostgresOptions) -> AsyncIterator[Deployment]:
    pool = Pool(
        postgres,
        on_trouble=lambda error: backends.on_postgres_trouble(error),
        on_slow=lambda seconds: backends.on_postgres_slow(seconds),
    )
    backends = Backends(
        redis_options=redis, store=PostgresStore(pool), probe_postgres=PostgresProbe(postgres), pool=pool
    )
    deployment = Deployment(orders(), SETTINGS, backends, instance="i1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployment.run)
        await deployment.tree.ready()
        for name in ("redis", "postgres", "schema"):
            await deployment.gates[name].wait_open()
        yield deployment
        deployment.tree.stop("the test is over")


Act = Callable[[Site], Awaitable[None]]


def commands(*lines: str) -> Act:
    """Commands of an administrator of Redis."""

    async def act(site: Site) -> None:
        for line in lines:
            await site.redis.execute_command(*line.split(" "))

    return act


def statements(*lines: str) -> Act:
    """Statements of an administrator of PostgreSQL, from another database."""

    async def act(site: Site) -> None:
        for line in lines:
            await trio.to_thread.run_sync(site.sql, line.format(db=site.database))

    return act


KILL_CLIENTS = "CLIENT KILL USER app"
KILL_BACKENDS = "select pg_terminate_backend(pid) from pg_stat_activity where datname = '{db}'"


@frozen
class Fault:
    """What goes wrong, how it is mended, and what must be told meanwhile, and at which gate."""

    happen: Act
    mend: Act
    gate: str
    told: str


async def take_table(site: Site) -> None:
    async with site.deployment.backends.pool.connection() as connection:  # type: ignore[union-attr]
        await connection.execute("alter table penstock_inbox rename to taken")


async def bring_table(site: Site) -> None:
    async with site.deployment.backends.pool.connection() as connection:  # type: ignore[union-attr]
        await connection.execute("alter table taken rename to penstock_inbox")


FAULTS = {
    "password": Fault(
        commands("ACL SETUSER app resetpass >other", KILL_CLIENTS),
        commands("ACL SETUSER app resetpass >secret"),
        "redis",
        "WRONGPASS",
    ),
    "right to read": Fault(
        commands("ACL SETUSER app -xreadgroup"), commands("ACL SETUSER app +xreadgroup"), "redis", "xreadgroup"
    ),
    "right to acknowledge": Fault(
        commands("ACL SETUSER app -xack"), commands("ACL SETUSER app +xack"), "redis", "xack"
    ),
    "right to add": Fault(commands("ACL SETUSER app -xadd"), commands("ACL SETUSER app +xadd"), "redis", "xadd"),
    "right to the key": Fault(
        commands(f"ACL SETUSER app resetkeys ~{{{STREAM}}}:*"), commands("ACL SETUSER app ~*"), "redis", STREAM
    ),
    "full": Fault(commands("CONFIG SET maxmemory 1"), commands("CONFIG SET maxmemory 0"), "redis-memory", "OOM"),
    "no replicas": Fault(
        commands("CONFIG SET min-replicas-to-write 1"),
        commands("CONFIG SET min-replicas-to-write 0"),
        "redis",
        "NOREPLICAS",
    ),
    "a replica": Fault(commands("REPLICAOF 127.0.0.1 1"), commands("REPLICAOF NO ONE"), "redis", "READONLY"),
    "read-only database": Fault(
        statements("alter database {db} set default_transaction_read_only = on", KILL_BACKENDS),
        statements("alter database {db} reset default_transaction_read_only", KILL_BACKENDS),
        "postgres",
        "read_only",
    ),
    "closed database": Fault(
        statements("alter database {db} allow_connections false", KILL_BACKENDS),
        statements("alter database {db} allow_connections true"),
        "postgres",
        "accepting connections",
    ),
    "lost table": Fault(take_table, bring_table, "postgres", "penstock_inbox"),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_fault_is_told_at_its_gate_and_mending_it_is_enough(site: Site, fault: Fault) -> None:
    gate = site.deployment.gates[fault.gate]
    causes: set[str] = set()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.load)
        await site.until(lambda: len(site.accepted) > 50)
        await fault.happen(site)
        await site.until(lambda: causes.add(gate.cause) or any(fault.told in cause for cause in causes))
        await trio.sleep(1.0)  # long enough for budgets to burn, if they did
        count = len(site.accepted)
        await fault.mend(site)
        await site.until(lambda: gate.is_open and len(site.accepted) > count + 50)
        nursery.cancel_scope.cancel()
    await site.settled()
    if fault.gate.startswith("redis"):
        # Whatever Redis refuses: PostgreSQL takes it, and it comes to the stream in its order.
        assert site.refused == 0
        added = await site.added()
        # Before that: what was trimmed when it was full. Behind it: what was on its way when the load ended.
        kept = site.accepted[site.accepted.index(added[0]) :]
        assert added[: len(kept)] == kept
    async with site.deployment.backends.pool.connection() as connection:  # type: ignore[union-attr]
        rows = await (await connection.execute("select number from payment order by number")).fetchall()
        letters = await (await connection.execute("select error_message from penstock_dead_letter")).fetchall()
    numbers = [row[0] for row in rows]
    assert len(numbers) == len(set(numbers))
    assert set(site.accepted) <= set(numbers)
    assert letters == []
    views = site.deployment.tree.snapshot().root.walk()
    assert {view.path: view.restarts for view in views if view.restarts} == {}


async def test_events_are_handled_while_redis_is_full(site: Site) -> None:
    """What came before the memory was full does not wait until it is free again."""
    pool, memory = site.deployment.pools[f"payments@{STREAM}"], site.deployment.gates["redis-memory"]
    one, two = (Envelope(event_type="ORDER", data={"number": number}) for number in (1, 2))
    await site.deployment.publish(STREAM, [one])
    await site.until(lambda: pool.counts.handled == 1)
    await site.redis.config_set("maxmemory", "1")
    await site.until(lambda: not memory.is_open)
    await site.redis.execute_command("CLIENT", "KILL", "USER", "app")  # the listeners start anew, on a full server
    burst = site.redis.pipeline(transaction=False)
    burst.config_set("maxmemory", "0")
    burst.xadd(STREAM, site.deployment.system.streams[STREAM].encode(two))  # type: ignore[arg-type]
    burst.config_set("maxmemory", "1")
    await burst.execute()
    await site.until(lambda: pool.counts.handled == 2)
    await site.settled()
    assert not memory.is_open


@pytest.mark.parametrize("act", [commands(KILL_CLIENTS), statements(KILL_BACKENDS)], ids=["redis", "postgres"])
async def test_connections_killed_again_and_again_cost_nothing(site: Site, act: Act) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(site.load)
        for _ in range(15):
            await act(site)
            await trio.sleep(0.15)
        count = len(site.accepted)
        await site.until(lambda: len(site.accepted) > count + 50)
        nursery.cancel_scope.cancel()
    await site.settled()
    async with site.deployment.backends.pool.connection() as connection:  # type: ignore[union-attr]
        rows = await (await connection.execute("select number from payment order by number")).fetchall()
        letters = await (await connection.execute("select error_message from penstock_dead_letter")).fetchall()
    numbers = [row[0] for row in rows]
    assert len(numbers) == len(set(numbers))
    assert set(site.accepted) <= set(numbers)
    assert letters == []
    views = site.deployment.tree.snapshot().root.walk()
    assert {view.path: view.restarts for view in views if view.restarts} == {}
