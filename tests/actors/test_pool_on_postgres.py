"""The handler pool on a real database: retries, partial failures, parked keys and poison, in its own SQL."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from penstock.actors.backends import Backends
from penstock.actors.backlog import Backlog
from penstock.actors.handling import Context, Delivery, Entry, Permanent
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings
from penstock.actors.store import PostgresStore, Store
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions
from penstock.runtime.settings import PostgresSettings, RedisSettings

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from pool_parts import GROUP, STREAM, Child, Order, entry_of, pool_over

QUICK = RetryPolicy(deliveries=4, minimum=0.01, maximum=0.02)


class Shop:
    """A stream whose handlers write into a table of effects, and a pool for it."""

    def __init__(
        self,
        pool: Pool,
        handler: Callable[..., Any],
        *,
        in_batches: bool = False,
        store: Store | None = None,
        **group: Any,
    ) -> None:
        system = System("app")
        self.stream = system.stream(STREAM, events=[Order])
        declared = self.stream.group(GROUP, retry=QUICK, **group)
        self.stream.on(Order, group=GROUP, batch=in_batches)(handler)
        self.connections = pool
        self.store = store or PostgresStore(pool)
        self.backlog = Backlog(1000)
        self.pool = pool_over(
            self.store,
            self.stream,
            declared,
            self.backlog,
            postgres_trouble=lambda error: pytest.fail(f"the database was blamed: {error!r}"),
        )

    def entries(self, *orders: Order, redelivered: bool = False) -> list[Entry]:
        numbered = [(order, order.number + 1) for order in orders]
        return [entry_of(self.stream, each, f"{n}-0", event_id=n, redelivered=redelivered) for each, n in numbered]

    async def ask(self, statement: str) -> list[Any]:
        async with self.connections.connection() as connection:
            cursor = await connection.execute(statement.encode())
            return [row[0] for row in await cursor.fetchall()] if cursor.description else []

    async def effects(self) -> list[int]:
        return await self.ask("select number from effect order by id")

    async def work_off(self, *entries: Entry) -> None:
        child: Any = Child()
        self.backlog.add(entries)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.pool, child)
            # Another process decides, so there is no event to wait for; the test's watchdog bounds it.
            while self.backlog.known() or await self.ask("select id from penstock_retry"):
                await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert await self.ask("select times from penstock_suspect") == []


@pytest.fixture
async def effects(pool: Pool) -> Pool:
    async with pool.connection() as connection:
        await connection.execute("create table effect (id bigint generated always as identity, number integer unique)")
    return pool


async def insert(context: Context, number: int) -> None:
    await context.connection.execute("insert into effect (number) values (%s)", (number,))


async def test_what_fails_is_tried_again_and_what_fails_for_good_is_buried(effects: Pool) -> None:
    async def pay(order: Order, context: Context) -> None:
        assert context.delivery is not None
        await insert(context, order.number)
        if order.number % 7 == 3 and context.delivery.attempt < 3:
            raise OSError("not yet")
        if order.number == 20:
            raise OSError("never")
        if order.number == 30:
            await insert(context, order.number)  # a constraint: the event's own fault

    shop = Shop(effects, pay, workers=3)
    await shop.work_off(*shop.entries(*map(Order, range(40))))
    assert sorted(await shop.effects()) == [number for number in range(40) if number not in (20, 30)]
    told = await shop.ask("select reason || ' ' || deliveries from penstock_dead_letter order by entry_id")
    assert sorted(told) == ["max_deliveries 4", "permanent 1"]
    assert await shop.ask("select count(*) from penstock_inbox") == [38]


async def test_of_a_batch_the_failed_events_alone_are_tried_again(effects: Pool) -> None:
    async def pay(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        for delivery in deliveries:
            try:
                async with context.connection.transaction():
                    await insert(context, delivery.event.number)
                    if delivery.event.number in (2, 5) and delivery.attempt == 1:
                        raise OSError("not yet")
                    if delivery.event.number == 7:
                        raise Permanent("never")
            except (OSError, Permanent) as error:
                context.fail(delivery, error)

    shop = Shop(effects, pay, in_batches=True, workers=1)
    await shop.work_off(*shop.entries(*map(Order, range(10))))
    done = await shop.effects()
    assert done[:7] == [0, 1, 3, 4, 6, 8, 9]
    assert sorted(done[7:]) == [2, 5]
    assert shop.pool.counts.retried == 2
    assert await shop.ask("select reason from penstock_dead_letter") == ["permanent"]


async def test_a_key_that_is_retried_halts_and_the_others_go_on(effects: Pool) -> None:
    async def pay(order: Order, context: Context) -> None:
        assert context.delivery is not None
        await insert(context, order.number)
        if order.number in (1, 61) and context.delivery.attempt < 3:
            raise OSError("not yet")

    shop = Shop(effects, pay, workers=3, batch=5, ordered=True)
    await shop.work_off(*shop.entries(*(Order(number, "abc"[number % 3]) for number in range(90))))
    done = await shop.effects()
    for key in range(3):
        assert [number for number in done if number % 3 == key] == list(range(key, 90, 3))
    assert shop.pool.counts.parked > 0


async def test_what_killed_its_workers_is_not_tried_again(effects: Pool) -> None:
    async def pay(order: Order, context: Context) -> None:
        await insert(context, order.number)

    shop = Shop(effects, pay)
    async with shop.store.transaction() as transaction:
        for _ in range(3):
            await shop.store.suspects.mark(transaction, GROUP, STREAM, ["2-0"])
    await shop.work_off(*shop.entries(*map(Order, range(3)), redelivered=True))
    assert sorted(await shop.effects()) == [0, 2]
    assert await shop.ask("select reason from penstock_dead_letter") == ["poison"]


async def test_handlers_that_hold_all_connections_note_their_steps(database: PostgresOptions, effects: Pool) -> None:
    """They would wait for each other until their time is up, and their events would pay for it."""
    attempts: list[int] = []
    meet = trio.Event()

    async def send(order: Order, context: Context) -> None:
        attempts.append(order.number)
        if len(attempts) == 3:
            meet.set()
        await meet.wait()
        await context.once("mail", trio.lowlevel.checkpoint)
        await insert(context, order.number)

    url = f"postgresql:///{database.database}?host={database.host}&port={database.port}&user={database.user}"
    settings = ActorSettings(
        redis=RedisSettings(url="redis://127.0.0.1:1"), postgres=PostgresSettings(url=url, pool_size=3)
    )
    nowhere: Any = None
    backends = Backends.of(settings, nowhere)
    assert backends.pool is not None
    assert backends.notes is not None
    async with backends.pool, backends.notes:
        shop = Shop(effects, send, store=backends.store, workers=3, batch=1)
        with trio.fail_after(20):
            await shop.work_off(*shop.entries(*map(Order, range(9))))
    assert sorted(attempts) == list(range(9))
    assert sorted(await shop.effects()) == list(range(9))
