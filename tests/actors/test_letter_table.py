"""The contract of `LetterTable`, held against the one in memory and the one on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from attrs import frozen

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.store import InboxEntry, PostgresStore, Store
from penstock.actors.testing import MemoryStore
from penstock.runtime.postgres import Pool, PostgresOptions

GROUP, STREAM = "billing", "orders"


@frozen
class Bench:
    """A store under test.

    Attributes:
        store: it.
        letters: the entry, the status, the error's text and the deliveries of each letter, in order.
    """

    store: Store
    letters: Callable[[], Awaitable[list[tuple[str, str, str | None, int]]]]

    async def bury(self, letter: DeadLetter) -> None:
        async with self.store.transaction() as transaction:
            await transaction.bury(letter)

    async def settle(self, entry_id: str = "1-0", group: str = GROUP) -> bool:
        async with self.store.transaction() as transaction:
            return await self.store.dead_letters.settle(transaction, group, STREAM, entry_id, "billing-1")

    async def shown(self) -> list[OutboxRow]:
        async with self.store.transaction() as transaction:
            rows = await self.store.outbox.take(transaction, "orders:dead-letter", 100)
        return [stored.row for stored in rows or ()]

    async def relay(self) -> None:
        """What the relay does: the entries are added, and the letters told where."""
        async with self.store.transaction() as transaction:
            rows = await self.store.outbox.take(transaction, "orders:dead-letter", 100) or []
            await self.store.outbox.remove(transaction, [stored.id for stored in rows])
            places = {stored.row.letter_id: f"9-{stored.id}" for stored in rows if stored.row.letter_id is not None}
            await self.store.outbox.tell_letters(transaction, places)


def _in_memory() -> Bench:
    store = MemoryStore()

    async def letters() -> list[tuple[str, str, str | None, int]]:
        rows = store.dead_letters.table.rows.values()
        return [(row.letter.entry_id, row.status, row.letter.error_message, row.letter.deliveries) for row in rows]

    return Bench(store, letters)


def _on_postgres(pool: Pool) -> Bench:
    async def letters() -> list[tuple[str, str, str | None, int]]:
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "select entry_id, status, error_message, deliveries from penstock_dead_letter order by id"
            )
            return [tuple(row) for row in await cursor.fetchall()]

    return Bench(PostgresStore(pool), letters)


@pytest.fixture(params=["memory", "postgres"])
def options(request: pytest.FixtureRequest) -> PostgresOptions | None:
    found: PostgresOptions | None = request.getfixturevalue("database") if request.param == "postgres" else None
    return found


@pytest.fixture
async def bench(options: PostgresOptions | None) -> AsyncIterator[Bench]:
    if options is None:
        yield _in_memory()
        return
    async with Pool(options) as pool:
        yield _on_postgres(pool)


def _letter(why: str = "no funds", **facts: Any) -> DeadLetter:
    given: dict[str, Any] = {
        "stream": STREAM,
        "entry_id": "1-0",
        "consumer_group": GROUP,
        "consumer": "billing-1",
        "reason": "max_deliveries",
        "fields": {b"eventId": b"e", b"data": b"{}\xff"},
        "deliveries": 5,
        "event_id": UUID(int=7),
        "event_key": "customer-1",
        "mirror": "orders:dead-letter",
    }
    return DeadLetter.of(ValueError(why), **{**given, **facts})


async def test_a_letter_is_shown_in_the_mirror_with_the_original_s_fields_and_three_more(bench: Bench) -> None:
    letter = _letter()
    await bench.bury(letter)
    (row,) = await bench.shown()
    assert row.fields == {
        "eventId": "e",
        "data": "{}\udcff",
        "originalRecordId": "1-0",
        "errorMessage": "no funds",
        "failedAt": letter.dead_at.isoformat(),
    }
    assert (row.kind, row.max_len, row.event_id, row.key) == ("mirror", 10_000, UUID(int=7), "customer-1")


async def test_a_letter_without_a_mirror_is_shown_nowhere(bench: Bench) -> None:
    await bench.bury(_letter(mirror=None))
    assert await bench.shown() == []
    assert len(await bench.letters()) == 1


async def test_what_is_no_event_is_shown_too(bench: Bench) -> None:
    await bench.bury(_letter(event_id=None, event_key=None, reason="undecodable"))
    (row,) = await bench.shown()
    assert row.event_id is None


async def test_a_rollback_undoes_the_letter_and_what_shows_it(bench: Bench) -> None:
    with pytest.raises(ZeroDivisionError):
        async with bench.store.transaction() as transaction:
            await transaction.bury(_letter())
            raise ZeroDivisionError
    assert await bench.letters() == []
    assert await bench.shown() == []


async def test_an_entry_that_comes_out_of_the_stream_again_changes_nothing(bench: Bench) -> None:
    """Only its acknowledgement was lost."""
    await bench.bury(_letter("first"))
    await bench.bury(_letter("second"))
    assert await bench.letters() == [("1-0", "dead", "first", 5)]
    assert len(await bench.shown()) == 1


async def test_a_replay_that_succeeds_settles_its_letter_once(bench: Bench) -> None:
    await bench.bury(_letter())
    assert await bench.settle()
    assert await bench.letters() == [("1-0", "replayed", "no funds", 5)]
    assert not await bench.settle()


async def test_there_is_nothing_to_settle_where_nothing_died(bench: Bench) -> None:
    await bench.bury(_letter())
    assert not await bench.settle("2-0")
    assert not await bench.settle(group="other")
    assert [status for _, status, *_ in await bench.letters()] == ["dead"]


async def test_a_settled_letter_still_ends_its_entry(bench: Bench) -> None:
    """It may come again when its first acknowledgement was lost, long ago."""
    await bench.bury(_letter())
    await bench.settle()
    async with bench.store.transaction() as transaction:
        assert await transaction.first_time(GROUP, [InboxEntry(UUID(int=7), STREAM, "1-0")]) == set()
    await bench.bury(_letter("late", deliveries=1))
    assert await bench.letters() == [("1-0", "replayed", "no funds", 5)]


async def test_a_letter_that_was_tried_again_is_dead_again_and_tells_of_the_last_time(bench: Bench) -> None:
    await bench.bury(_letter())
    await bench.bury(_letter("still no funds", deliveries=3, again=True, fields={}, event_id=uuid4()))
    assert await bench.letters() == [("1-0", "dead", "still no funds", 3)]


async def test_one_that_was_settled_may_die_again(bench: Bench) -> None:
    await bench.bury(_letter())
    await bench.settle()
    await bench.bury(_letter("ordered once more", again=True))
    assert await bench.letters() == [("1-0", "dead", "ordered once more", 5)]


async def test_a_retry_that_dies_for_the_first_time_is_a_new_letter(bench: Bench) -> None:
    await bench.bury(_letter(again=True))
    assert await bench.letters() == [("1-0", "dead", "no funds", 5)]
    assert len(await bench.shown()) == 1


@pytest.mark.parametrize("relayed", [False, True], ids=["still in the outbox", "added"])
async def test_one_entry_shows_a_letter_however_often_it_dies(bench: Bench, relayed: bool) -> None:
    await bench.bury(_letter())
    if relayed:
        await bench.relay()
    await bench.bury(_letter("again", again=True))
    assert len(await bench.shown()) == (0 if relayed else 1)
