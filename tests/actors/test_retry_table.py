"""The contract of the tables of retries and suspects, held against those in memory and those on PostgreSQL alike."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio
import trio.lowlevel
import trio.testing
from attrs import evolve

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.replay_table import Replay
from penstock.actors.retry_table import RetryFailure, RetryOrigin, RetryRow
from penstock.actors.store import InboxEntry, Store
from penstock.actors.testing import MemoryStore

GROUP, STREAM = "payments", "{orders:1}"


def row(number: int, **facts: Any) -> RetryRow:
    given: dict[str, Any] = {
        "consumer_group": GROUP,
        "stream": STREAM,
        "entry_id": f"{number}-0",
        "event_id": UUID(int=number),
        "event_type": "ORDER",
        "fields": {"a": str(number)},
        "origin": RetryOrigin.ATTEMPT,
        "attempts": 1,
        "due_in": -1.0,
    }
    return RetryRow(**{**given, **facts})


async def add(store: Store, *rows: RetryRow) -> int:
    async with store.transaction() as transaction:
        return await store.retries.add(transaction, rows)


async def due(store: Store, **options: Any) -> list[str]:
    """The entries of the rows that are due now."""
    async with store.transaction() as transaction:
        rows = await store.retries.take(transaction, GROUP, STREAM, **{"limit": 100, **options})
        return [each.entry_id for each in rows]


async def blocked(store: Store) -> None:
    """Block until some transaction waits for another one."""
    if isinstance(store, MemoryStore):
        await trio.testing.wait_all_tasks_blocked()
        return
    # Another process decides, so there is no event to wait for; the test's watchdog bounds it.
    while True:
        async with store.transaction() as transaction:
            cursor = await transaction.connection.execute("select from pg_locks where not granted")
            if await cursor.fetchone() is not None:
                return
        await trio.sleep(0.01)


@asynccontextmanager
async def taken(store: Store, limit: int = 1, **options: Any) -> AsyncIterator[list[RetryRow]]:
    """Rows that a transaction has in hand."""
    async with store.transaction() as transaction:
        yield await store.retries.take(transaction, GROUP, STREAM, limit=limit, **options)


async def test_a_row_comes_back_as_it_was(store: Store) -> None:
    failure = RetryFailure(error_class="x.E", error_message="m", traceback="t", fingerprint="f")
    strange = {b"a\0": b"\xff\x00\xc3\xa4", b"b": "€".encode()}
    given = row(1, fields=strange, event_key="k\0ey", failure=failure, letter_id=7, forced=True, attempts=3)
    assert await add(store, given) == 1
    async with taken(store) as (read,):
        assert read.entry_fields == strange
        assert read.event_key == "key"
        assert read.first_failed_at is not None
        assert read.due_in <= 0
        same = evolve(read, id=0, due_in=given.due_in, first_failed_at=None)
        assert same == given


async def test_what_never_failed_has_no_time_of_its_first_failure(store: Store) -> None:
    await add(store, row(1, attempts=0, origin=RetryOrigin.PARKED, event_id=None, event_type=None))
    async with taken(store) as (read,):
        assert read.first_failed_at is None
        assert read.event_id is None


async def test_an_entry_has_one_row_in_a_group(store: Store) -> None:
    assert await add(store, row(1), row(1), row(2)) == 2
    assert await add(store, row(1), row(1, consumer_group="other"), row(1, stream="{orders:2}")) == 2
    assert await due(store) == ["1-0", "2-0"]


async def test_rows_are_due_at_their_time_and_the_longest_due_first(store: Store) -> None:
    await add(store, row(1, due_in=3600), row(2, due_in=-5), row(3, due_in=-10), row(4, due_in=1800))
    assert await due(store) == ["3-0", "2-0"]
    assert await due(store, limit=1) == ["3-0"]
    async with store.transaction() as transaction:
        soon = await store.retries.next_due(transaction, GROUP, STREAM)
        assert soon is not None
        assert 1700 < soon <= 1800
        assert await store.retries.next_due(transaction, GROUP, "elsewhere") is None
        assert await store.retries.count(transaction, GROUP, STREAM) == 4


async def test_a_row_that_somebody_has_is_passed_over(store: Store) -> None:
    await add(store, row(1), row(2))
    async with taken(store) as (first,), taken(store) as (second,):
        assert [first.entry_id, second.entry_id] == ["1-0", "2-0"]
        assert await due(store) == []
    assert await due(store) == ["1-0", "2-0"]


async def test_a_rollback_leaves_a_row_due(store: Store) -> None:
    await add(store, row(1))
    with pytest.raises(OSError, match="died"):
        async with store.transaction() as transaction:
            rows = await store.retries.take(transaction, GROUP, STREAM)
            assert await store.retries.delete(transaction, rows) == 1
            raise OSError("died")
    assert await due(store) == ["1-0"]


async def test_a_row_that_is_deleted_is_gone_and_its_entry_may_come_again(store: Store) -> None:
    await add(store, row(1))
    async with store.transaction() as transaction:
        rows = await store.retries.take(transaction, GROUP, STREAM)
        assert await store.retries.delete(transaction, rows) == 1
        assert await store.retries.delete(transaction, rows) == 0
    assert await due(store) == []
    assert await add(store, row(1)) == 1


async def test_rows_are_held_only_as_they_were_read(store: Store) -> None:
    await add(store, row(1), row(2), row(3))
    async with taken(store, limit=3) as read:
        pass
    async with store.transaction() as transaction:
        await store.retries.put_off(transaction, evolve(read[1], attempts=2))
    async with taken(store, limit=1) as (first,):
        assert first.entry_id == "1-0"
        async with store.transaction() as transaction:
            held = await store.retries.hold(transaction, read)
            assert [each.entry_id for each in held] == ["3-0"]
            assert await due(store) == ["2-0"]


async def test_a_row_is_put_off_once_for_what_was_read(store: Store) -> None:
    await add(store, row(1, attempts=0, origin=RetryOrigin.LETTER))
    async with taken(store) as (read,):
        pass
    later = evolve(read, attempts=1, due_in=600, failure=RetryFailure(error_class="E", error_message="why"))
    for expected in (True, False):
        async with store.transaction() as transaction:
            assert await store.retries.put_off(transaction, later) is expected
    assert await due(store) == []
    async with store.transaction() as transaction:
        (held,) = await store.retries.hold(transaction, [later])
        assert (held.attempts, held.failure.error_message) == (1, "why")
        assert held.first_failed_at is not None
        assert 500 < held.due_in <= 600


# Order ----------------------------------------------------------------------------------------------------------------


async def test_in_order_only_the_first_row_of_a_key_is_ever_due(store: Store) -> None:
    await add(
        store,
        row(1, event_key="a", due_in=3600),
        row(2, event_key="a"),
        row(3, event_key="b"),
        row(4, event_key="b"),
        row(5),
        row(6),
    )
    assert await due(store, ordered=True) == ["3-0", "5-0", "6-0"]
    assert await due(store, ordered=True, without=["b"]) == ["5-0", "6-0"]
    assert await due(store) == ["2-0", "3-0", "4-0", "5-0", "6-0"]


async def test_in_order_a_key_goes_on_when_its_first_row_is_gone(store: Store) -> None:
    await add(store, row(1, event_key="a"), row(2, event_key="a"))
    async with store.transaction() as transaction:
        rows = await store.retries.take(transaction, GROUP, STREAM, ordered=True)
        # Not even while it is in work with somebody.
        assert await due(store, ordered=True) == []
        await store.retries.delete(transaction, rows)
    assert await due(store, ordered=True) == ["2-0"]


async def test_in_order_rows_follow_the_first_of_their_key_until_one_has_failed(store: Store) -> None:
    await add(
        store,
        row(1, event_key="a", attempts=0),
        row(2, event_key="b", attempts=0),
        row(3, event_key="a", attempts=0),
        row(4, event_key="b", attempts=1),
        row(5, event_key="a", attempts=0),
        row(6, event_key="b", attempts=0),
        row(7, event_key="a", attempts=0, due_in=60),
        row(8, event_key="a", attempts=0),
        row(9, event_key="c", attempts=0),
        row(10, attempts=0),
    )
    async with taken(store, limit=2, ordered=True) as heads:
        assert [each.entry_id for each in heads] == ["1-0", "2-0"]
        async with store.transaction() as transaction:
            behind = await store.retries.following(transaction, heads, 10)
            assert [each.entry_id for each in behind] == ["3-0", "5-0"]
            assert [each.entry_id for each in await store.retries.following(transaction, heads, 1)] == ["3-0"]
            assert await store.retries.following(transaction, heads, 0) == []


async def test_in_order_a_row_is_not_held_while_another_stands_before_it(store: Store) -> None:
    await add(store, row(1, event_key="a"), row(2, event_key="a"), row(3, event_key="a"), row(4))
    async with taken(store, limit=4) as rows:
        pass

    async def held(*given: RetryRow) -> list[str]:
        async with store.transaction() as transaction:
            return [each.entry_id for each in await store.retries.hold(transaction, given, ordered=True)]

    assert await held(*rows) == ["1-0", "2-0", "3-0", "4-0"]
    assert await held(*rows[1:]) == ["4-0"]
    assert await held(rows[0], rows[2]) == ["1-0"]
    async with store.transaction() as transaction:
        await store.retries.delete(transaction, rows[:1])
    assert await held(*rows) == ["2-0", "3-0", "4-0"]


async def test_a_claimed_row_is_nobody_elses_for_a_while(store: Store) -> None:
    await add(store, row(1), row(2))
    async with store.transaction() as transaction:
        rows = await store.retries.take(transaction, GROUP, STREAM, limit=1)
        await store.retries.claim(transaction, rows, 60)
    assert await due(store) == ["2-0"]
    async with store.transaction() as transaction:
        (held,) = await store.retries.hold(transaction, rows)
        assert 50 < held.due_in <= 60
        await store.retries.claim(transaction, rows, -1)
    assert await due(store) == ["2-0", "1-0"]


async def test_what_is_parked_in_great_number_behind_one_key_hides_no_other(store: Store) -> None:
    await add(store, row(1, event_key="slow", due_in=60))
    await add(store, *[row(number, event_key="slow", attempts=0, due_in=-100) for number in range(2, 300)])
    assert await due(store, ordered=True, limit=2) == []
    await add(store, row(400, event_key="b"), row(401, event_key="a", due_in=-2), row(402), row(403, event_key="a"))
    await add(store, row(404, event_key="c", due_in=60), row(405, event_key="busy"))
    assert await due(store, ordered=True, limit=2, without=["busy"]) == ["401-0", "400-0"]
    assert await due(store, ordered=True, limit=9, without=["busy"]) == ["401-0", "400-0", "402-0"]
    async with store.transaction() as transaction:
        assert await store.retries.keys(transaction, GROUP, STREAM, ["slow", "a", "x"]) == {"slow", "a"}


async def test_keys_that_wait_are_known_by_group_and_partition(store: Store) -> None:
    await add(store, row(1, event_key="a\0"), row(2, event_key="b", stream="{orders:2}"), row(3))
    async with store.transaction() as transaction:
        assert await store.retries.keys(transaction, GROUP, STREAM, ["a\0", "b", "c"]) == {"a\0"}
        assert await store.retries.keys(transaction, "other", STREAM, ["a\0"]) == set()
        assert await store.retries.keys(transaction, GROUP, STREAM, []) == set()


# The inbox ------------------------------------------------------------------------------------------------------------


async def test_an_entry_that_waits_for_a_retry_is_not_new(store: Store) -> None:
    await add(store, row(1))
    async with store.transaction() as transaction:
        entries = [InboxEntry(UUID(int=1), STREAM, "1-0"), InboxEntry(UUID(int=2), STREAM, "2-0")]
        assert await transaction.first_time(GROUP, entries) == {UUID(int=2)}
        assert await transaction.first_time("other", entries[:1]) == {UUID(int=1)}


async def test_an_event_that_waits_for_a_retry_is_not_new_as_another_entry(store: Store) -> None:
    await add(store, row(1))
    async with store.transaction() as transaction:
        twice = [InboxEntry(UUID(int=1), "another stream", "5-0"), InboxEntry(UUID(int=1), STREAM, "6-0")]
        assert await transaction.first_time(GROUP, twice) == set()
        assert await transaction.first_time("other", twice) == {UUID(int=1)}
    async with store.transaction() as transaction:
        await store.retries.delete(transaction, await store.retries.take(transaction, GROUP, STREAM))
        assert await transaction.first_time(GROUP, twice) == {UUID(int=1)}


def letter(number: int, **facts: Any) -> DeadLetter:
    given: dict[str, Any] = {
        "stream": STREAM,
        "entry_id": f"{number}-0",
        "event_id": UUID(int=number),
        "consumer_group": GROUP,
        "consumer": "c",
        "reason": "permanent",
        "fields": {},
        "deliveries": 1,
    }
    return DeadLetter(**{**given, **facts})


async def test_an_event_that_is_dead_is_not_new_as_another_entry(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.bury(letter(1))
    async with store.transaction() as transaction:
        again, fresh = InboxEntry(UUID(int=1), STREAM, "5-0"), InboxEntry(UUID(int=2), STREAM, "6-0")
        assert await transaction.first_time(GROUP, [again, fresh]) == {UUID(int=2)}
        assert await transaction.first_time("other", [again]) == {UUID(int=1)}


async def test_an_event_whose_letter_was_settled_may_come_again_as_another_entry(store: Store) -> None:
    """It was published once more for all groups; the entry that died is over for good."""
    async with store.transaction() as transaction:
        await transaction.bury(letter(1))
        await store.dead_letters.settle(transaction, GROUP, STREAM, "1-0", "c")
    async with store.transaction() as transaction:
        assert await transaction.first_time(GROUP, [InboxEntry(UUID(int=1), STREAM, "1-0")]) == set()
        both = [InboxEntry(UUID(int=1), STREAM, "1-0"), InboxEntry(UUID(int=1), STREAM, "5-0")]
        assert await transaction.first_time(GROUP, both) == {UUID(int=1)}
        assert await transaction.first_time(GROUP, both) == set()


async def test_a_row_is_over_whose_event_died_as_another_entry_unless_it_was_ordered(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.bury(letter(1))
    for origin in RetryOrigin:
        async with store.transaction() as transaction:
            ordered = origin in (RetryOrigin.LETTER, RetryOrigin.REPLAY)
            again = row(1, entry_id="5-0", origin=origin)
            assert await store.retries.enter(transaction, again) is ordered
            await store.retries.withdraw(transaction, GROUP, [UUID(int=1)])


async def test_a_replay_settles_the_letters_of_all_entries_of_its_event(store: Store) -> None:
    async with store.transaction() as transaction:
        for entry in ("1-0", "5-0"):
            await transaction.bury(letter(1, entry_id=entry))
        await transaction.bury(letter(2))
        await transaction.bury(letter(1, consumer_group="other"))
    async with store.transaction() as transaction:
        assert await store.dead_letters.settle(transaction, GROUP, STREAM, "7-0", "c", UUID(int=1))
        assert not await store.dead_letters.settle(transaction, GROUP, STREAM, "1-0", "c")
        assert not await store.dead_letters.settle(transaction, GROUP, STREAM, "5-0", "c")
        assert await store.dead_letters.settle(transaction, GROUP, STREAM, "2-0", "c")
        assert await store.dead_letters.settle(transaction, "other", STREAM, "1-0", "c")


@pytest.mark.parametrize("end", ["a letter", "a row"])
async def test_who_waited_for_a_duplicate_sees_what_became_of_it(store: Store, end: str) -> None:
    """The one entry fails for good while the other is about to be handled: one end, and not two."""
    event_id = UUID(int=1)
    found: list[set[UUID]] = []

    async def handle() -> None:
        async with store.transaction() as transaction:
            found.append(await transaction.first_time(GROUP, [InboxEntry(event_id, STREAM, "5-0")]))

    async with trio.open_nursery() as nursery:
        async with store.transaction() as transaction:
            assert await transaction.first_time(GROUP, [InboxEntry(event_id, STREAM, "1-0")])
            nursery.start_soon(handle)
            await blocked(store)
            await store.retries.withdraw(transaction, GROUP, [event_id])
            if end == "a letter":
                await transaction.bury(letter(1))
            else:
                await store.retries.add(transaction, [row(1)])
    assert found == [set()]


async def test_a_row_enters_the_inbox_once_unless_it_is_forced(store: Store) -> None:
    for expected in (True, False):
        async with store.transaction() as transaction:
            assert await store.retries.enter(transaction, row(1)) is expected
    for _ in range(2):
        async with store.transaction() as transaction:
            assert await store.retries.enter(transaction, row(1, forced=True))
    async with store.transaction() as transaction:
        assert await store.retries.enter(transaction, row(2, forced=True))
        assert not await store.retries.enter(transaction, row(2))


async def test_what_was_replayed_since_an_order_is_known(store: Store) -> None:
    async with store.transaction() as transaction:
        await transaction.first_time(GROUP, [InboxEntry(UUID(int=1), STREAM, "1-0")])
    await trio.sleep(0.01)
    order = Replay(system="s", stream="orders", from_id="0", to_id="9", consumer_group=GROUP)
    async with store.transaction() as transaction:
        await store.replays.add(transaction, order)
        placed = await store.replays.get(transaction, order.id)
        assert placed is not None
        assert placed.ordered_at is not None
    await trio.sleep(0.01)
    await add(store, row(2, forced=True), row(3), row(4, forced=True, consumer_group="other"))
    async with store.transaction() as transaction:
        assert await store.retries.enter(transaction, row(5, forced=True))
    async with store.transaction() as transaction:
        ids = [UUID(int=number) for number in range(1, 7)]
        found = await store.retries.replayed(transaction, GROUP, ids, placed.ordered_at)
        assert found == {UUID(int=2), UUID(int=5)}
        assert await store.retries.replayed(transaction, GROUP, [], placed.ordered_at) == set()


async def test_an_event_that_was_withdrawn_is_new_again(store: Store) -> None:
    entries = [InboxEntry(UUID(int=number), STREAM, f"{number}-0") for number in (1, 2)]
    async with store.transaction() as transaction:
        await transaction.first_time(GROUP, entries)
        await store.retries.withdraw(transaction, GROUP, [UUID(int=1), UUID(int=9)])
    async with store.transaction() as transaction:
        assert await transaction.first_time(GROUP, entries) == {UUID(int=1)}


async def test_entries_that_wait_or_are_dead_do_not_remain(store: Store) -> None:
    await add(store, row(1))
    async with store.transaction() as transaction:
        await transaction.bury(
            DeadLetter(
                stream=STREAM,
                entry_id="2-0",
                consumer_group=GROUP,
                consumer="c",
                reason="poison",
                fields={},
                deliveries=1,
            )
        )
    async with store.transaction() as transaction:
        assert await store.retries.remaining(transaction, GROUP, STREAM, ["1-0", "2-0", "3-0"]) == {"3-0"}
        assert await store.retries.remaining(transaction, "other", STREAM, ["1-0", "2-0"]) == {"1-0", "2-0"}


# Suspects -------------------------------------------------------------------------------------------------------------


async def test_a_suspect_is_counted_until_it_is_cleared(store: Store) -> None:
    async def mark(*ids: str) -> dict[str, int]:
        async with store.transaction() as transaction:
            return await store.suspects.mark(transaction, GROUP, STREAM, ids)

    assert await mark("2-0", "1-0") == {"1-0": 1, "2-0": 1}
    assert await mark("1-0") == {"1-0": 2}
    async with store.transaction() as transaction:
        assert await store.suspects.known(transaction, GROUP, STREAM, ["1-0", "9-0"]) == {"1-0": 2}
        await store.suspects.absolve(transaction, GROUP, STREAM, ["1-0", "9-0"])
        await store.suspects.clear(transaction, GROUP, STREAM, ["2-0", "9-0"])
    assert await mark("1-0", "2-0") == {"1-0": 2, "2-0": 1}
    async with store.transaction() as transaction:
        await store.suspects.absolve(transaction, GROUP, STREAM, ["2-0"])
        assert await store.suspects.known(transaction, GROUP, STREAM, ["1-0", "2-0"]) == {"1-0": 2}
    async with store.transaction() as transaction:
        assert await store.suspects.mark(transaction, "other", STREAM, ["1-0"]) == {"1-0": 1}


async def test_rows_that_two_workers_take_at_a_time_are_taken_once(store: Store) -> None:
    await add(store, *(row(number, event_id=uuid4()) for number in range(1, 41)))
    seen: list[str] = []

    async def work() -> None:
        while True:
            async with store.transaction() as transaction:
                rows = await store.retries.take(transaction, GROUP, STREAM, limit=3)
                if not rows:
                    return
                await trio.lowlevel.checkpoint()
                await store.retries.delete(transaction, rows)
                seen.extend(each.entry_id for each in rows)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(work)
    assert sorted(seen) == sorted(f"{number}-0" for number in range(1, 41))
