"""The contract of `OutboxTable`, held against the one in memory and the one in PostgreSQL alike."""

from __future__ import annotations

from uuid import uuid4

import pytest
import trio
import trio.testing

from penstock.actors import outbox_table
from penstock.actors.outbox_table import OutboxRow, pack, unpack
from penstock.actors.store import Store
from penstock.actors.testing import MemoryStore
from penstock.runtime.postgres import Pool, PostgresUnavailable

ODD = {"data": '{"note": "\0 \ud800 \udcff ü"}', "": "nameless"}


def row(number: int, stream: str = "orders") -> OutboxRow:
    return OutboxRow(stream=stream, event_id=uuid4(), fields={"number": str(number)}, key=f"k-{number}", kind="spool")


async def add(store: Store, *rows: OutboxRow) -> list[int]:
    async with store.transaction() as transaction:
        return await store.outbox.add(transaction, rows)


async def numbers(store: Store, limit: int = 100) -> list[int]:
    async with store.transaction() as transaction:
        taken = await store.outbox.take(transaction, "orders", limit)
        assert taken is not None
        return [int(each.row.fields["number"]) for each in taken]


async def test_rows_are_taken_in_the_order_in_which_they_were_added(store: Store) -> None:
    rows = [row(number) for number in range(700)]
    ids = await add(store, *rows)
    assert ids == sorted(ids)
    assert len(set(ids)) == 700
    await add(store, row(700), row(0, "other"))
    assert await numbers(store, 10) == list(range(10))
    assert await numbers(store, 1000) == list(range(701))
    async with store.transaction() as transaction:
        taken = await store.outbox.take(transaction, "orders", 700)
        assert taken is not None
        assert [each.id for each in taken] == ids
        assert [each.row for each in taken] == rows
        assert all(0 <= each.age < 60 for each in taken)


async def test_nothing_is_added_without_a_row(store: Store) -> None:
    assert await add(store) == []
    assert await store.outbox.waiting() == []


async def test_a_row_keeps_everything(store: Store) -> None:
    given = OutboxRow(
        stream="orders:dead-letter",
        event_id=None,
        fields=ODD,
        kind="mirror",
        max_len=10_000,
        letter_id=7,
        created_by="payments",
    )
    await add(store, given)
    async with store.transaction() as transaction:
        taken = await store.outbox.take(transaction, "orders:dead-letter", 1)
    assert taken is not None
    assert taken[0].row == given
    assert list(taken[0].row.fields) == list(ODD)


def test_fields_survive_as_they_are() -> None:
    assert unpack(pack(ODD)) == ODD


async def test_what_is_rolled_back_was_never_there(store: Store) -> None:
    with pytest.raises(RuntimeError, match="no"):
        async with store.transaction() as transaction:
            await store.outbox.add(transaction, [row(1)])
            raise RuntimeError("no")
    assert await store.outbox.waiting() == []


async def test_one_takes_from_a_stream_at_a_time(store: Store) -> None:
    await add(store, row(1), row(2, "other"))
    async with store.transaction() as first:
        assert await store.outbox.take(first, "orders", 10) is not None
        async with store.transaction() as second:
            assert await store.outbox.take(second, "orders", 10) is None
            assert await store.outbox.take(second, "other", 10) is not None
    assert await numbers(store) == [1]


async def test_what_is_removed_is_gone_with_the_commit(store: Store) -> None:
    ids = await add(store, row(1), row(2), row(3))
    with pytest.raises(RuntimeError, match="no"):
        async with store.transaction() as transaction:
            assert await store.outbox.remove(transaction, ids[:2]) == 2
            raise RuntimeError("no")
    assert await numbers(store) == [1, 2, 3]
    async with store.transaction() as transaction:
        assert await store.outbox.remove(transaction, ids[:2]) == 2
    async with store.transaction() as transaction:
        assert await store.outbox.remove(transaction, ids) == 1
    assert await numbers(store) == []


async def test_what_waits_is_told_by_stream(store: Store) -> None:
    await add(store, row(1), row(2))
    await add(store, row(3, "another"))
    waiting = await store.outbox.waiting()
    assert [(each.stream, each.count) for each in waiting] == [("another", 1), ("orders", 2)]
    assert all(0 <= each.age < 60 for each in waiting)


async def test_news_come_with_the_commit(store: Store) -> None:
    async with store.outbox.news() as news:
        heard = trio.Event()

        async def wait() -> None:
            await news.wait()
            heard.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            async with store.transaction() as transaction:
                await store.outbox.add(transaction, [row(1)])
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not heard.is_set()
            await heard.wait()


async def test_news_that_came_before_the_wait_are_not_lost(store: Store) -> None:
    async with store.outbox.news() as news:
        await add(store, row(1))
        await news.wait()


async def test_the_entry_of_a_mirror_is_told_to_its_letter(store: Store) -> None:
    async with store.transaction() as transaction:
        await store.outbox.tell_letters(transaction, {})
        await store.outbox.tell_letters(transaction, {7: "1-0"})  # a letter that is gone meanwhile harms nobody


async def test_an_outage_is_told_to_who_waits_for_news() -> None:
    store = MemoryStore()
    async with store.outbox.news() as news:
        store.refuse("away")
        with pytest.raises(PostgresUnavailable):
            await news.wait()
    with pytest.raises(PostgresUnavailable):
        await store.outbox.waiting()


async def test_a_stream_is_read_without_what_waits_for_others_before_it(pool: Pool) -> None:
    """Though the planner thinks it common, and so soon to be found by the primary key."""
    async with pool.connection() as connection:
        await connection.execute(
            "insert into penstock_outbox (stream, fields, kind) "
            "select case when n <= 20000 then 'first' else 'second' end, convert_to(repeat('x', 300), 'UTF8'), 'spool' "
            "from generate_series(1, 40000) n"
        )
        await connection.execute("analyze penstock_outbox")
        given = {"stream": "second", "after": 0, "limit": 500}
        plan = await connection.execute(f"explain {outbox_table._TAKE}", given)
        text = "\n".join([row[0] for row in await plan.fetchall()])
    assert "penstock_outbox_stream_idx" in text
