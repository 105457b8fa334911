"""How delivery stands, read from the tables of a real database."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.delivery_view import DeliveryWatch
from penstock.actors.letter_filter import LetterFilter
from penstock.actors.letters import LetterDesk
from penstock.actors.losses import Loss
from penstock.actors.member_table import Member
from penstock.actors.replay_table import Replay
from penstock.actors.retry_table import RetryFailure, RetryOrigin, RetryRow
from penstock.actors.store import PostgresStore
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

THIS, OTHER = UUID(int=1), UUID(int=2)


@pytest.fixture
async def watch(pool: Pool) -> DeliveryWatch:
    system = System("shop")
    stream = system.stream("orders", partitions=2)
    stream.group("payments", ordered=True)
    return DeliveryWatch(system, pool, PostgresStore(pool), LetterDesk(pool, system), THIS)


def row(number: int, origin: RetryOrigin = RetryOrigin.ATTEMPT, **facts: Any) -> RetryRow:
    given = {"consumer_group": "payments", "stream": "{orders:0}", "fields": {"eventType": "X", "data": "{}"}, **facts}
    return RetryRow(entry_id=f"{number}-0", origin=origin, event_id=uuid4(), **given)


async def test_of_a_system_to_which_nothing_happened_there_is_nothing(watch: DeliveryWatch) -> None:
    view = await watch.look()
    assert (view.retries, view.dead, view.letters, view.orders, view.replays, view.losses) == ((), 0, (), (), (), ())
    assert (view.members, view.leases, view.process) == ((), (), THIS)


async def test_retries_are_counted_by_group_and_partition(watch: DeliveryWatch, pool: Pool) -> None:
    store = PostgresStore(pool)
    failure = RetryFailure(error_class="E", error_message="no", fingerprint="f")
    async with store.transaction() as transaction:
        rows = [
            row(1, attempts=2, due_in=60, failure=failure),
            row(2, RetryOrigin.PARKED),
            row(3, attempts=1, due_in=30),
        ]
        await store.retries.add(transaction, [*rows, row(4, stream="{orders:1}")])
    first, second = (await watch.look()).retries
    assert (first.consumer_group, first.stream, first.waiting, first.parked, first.attempts) == (
        "payments",
        "{orders:0}",
        3,
        1,
        2,
    )
    assert first.due_in == pytest.approx(30, abs=15)
    assert 0 <= first.oldest < 15
    assert (second.stream, second.waiting) == ("{orders:1}", 1)


async def test_letters_orders_replays_and_losses_are_shown_as_long_as_they_matter(
    watch: DeliveryWatch, pool: Pool
) -> None:
    store, desk = PostgresStore(pool), watch._letters
    async with store.transaction() as transaction:
        for number in range(3):
            letter = DeadLetter.of(
                ValueError("no"),
                stream="{orders:0}",
                entry_id=f"{number}-0",
                consumer_group="payments",
                consumer="c",
                reason="max_deliveries",
                fields={"eventType": "X"},
                deliveries=5,
                event_id=uuid4(),
                event_type="X",
            )
            await transaction.bury(letter)
        replay = Replay(system="shop", stream="orders", from_id="0-1", to_id="9-0", target_stream="orders:reprocess")
        await store.replays.add(transaction, replay)
        await store.losses.add(
            transaction, Loss(group="payments", stream="{orders:0}", after_id="1-0", before_id="8-0", entries=7)
        )
    order = await desk.replay(LetterFilter(), by="ann", limit=2)
    view = await watch.look()
    assert view.dead == 1
    assert [(group.reason, group.count) for group in view.letters] == [("max_deliveries", 1)]
    assert [each.id for each in view.orders] == [order.id]
    assert [each.id for each in view.replays] == [replay.id]
    assert [each.entries for each in view.losses] == [7]
    await desk.cancel(order.id, by="ann")
    view = await watch.look()
    assert (view.dead, view.orders) == (3, ())


async def test_members_and_leases_are_those_of_this_system(watch: DeliveryWatch, pool: Pool) -> None:
    store = PostgresStore(pool)
    facts = {"instance": "north", "host": "mill", "pid": 7, "version": "1"}
    async with store.transaction() as transaction:
        await store.members.beat(transaction, Member(process=THIS, system="shop", **facts))
        await store.members.beat(transaction, Member(process=OTHER, system="another", **facts))
        for key in ("{orders:0}", "{others:0}"):
            assert await store.leases.take(transaction, "payments", key, THIS, 30) is not None
    view = await watch.look()
    assert [each.member.process for each in view.members] == [THIS]
    assert [(each.stream, each.owner) for each in view.leases] == [(watch._system.streams["orders"].keys[0], THIS)]


async def test_a_connection_that_is_cut_is_an_outage_and_no_other_error(
    watch: DeliveryWatch, server: Any, pool: Pool, database: PostgresOptions
) -> None:
    await watch.look()
    server.execute(f"alter database {database.database} allow_connections false")
    server.execute(f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{database.database}'")
    with trio.fail_after(30), pytest.raises(PostgresUnavailable):
        while True:
            await watch.look()
