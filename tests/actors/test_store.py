"""The contract of `Store`, held against the one in memory and the one on PostgreSQL alike; then what each has alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.actors.dead_letter import DeadLetter, unpack_fields
from penstock.actors.letter_terms import Reason
from penstock.actors.store import InboxEntry, PostgresStore, Store, Transaction
from penstock.actors.testing import Effect, MemoryStore
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

GROUP, STREAM = "EVENT_GROUP", "EVENT_STREAM"


@frozen
class Subject:
    """A store under test.

    Attributes:
        store: it.
        count: how many dead letters it holds.
        blocked: waits until some transaction waits for another one.
    """

    store: Store
    count: Callable[[], Awaitable[int]]
    blocked: Callable[[], Awaitable[None]]


def _in_memory() -> Subject:
    store = MemoryStore()

    async def count() -> int:
        return len(store.letters)

    return Subject(store, count, trio.testing.wait_all_tasks_blocked)


@asynccontextmanager
async def _on_postgres(options: PostgresOptions) -> AsyncIterator[Subject]:
    async with Pool(options) as pool:

        async def ask(statement: bytes) -> int:
            async with pool.connection() as connection:
                row = await (await connection.execute(statement)).fetchone()
                assert row is not None
                return int(row[0])

        async def count() -> int:
            return await ask(b"select count(*) from penstock_dead_letter")

        async def blocked() -> None:
            # Another process decides, so there is no event to wait for; the test's watchdog bounds it.
            while not await ask(b"select count(*) from pg_locks where not granted"):
                await trio.sleep(0.01)

        yield Subject(PostgresStore(pool), count, blocked)


@pytest.fixture
async def subject(place: PostgresOptions | None) -> AsyncIterator[Subject]:
    if place is None:
        yield _in_memory()
        return
    async with _on_postgres(place) as on_postgres:
        yield on_postgres


def _entry(event_id: UUID, entry_id: str = "1-0") -> InboxEntry:
    return InboxEntry(event_id, STREAM, entry_id)


def _letter(**facts: Any) -> DeadLetter:
    given: dict[str, Any] = {
        "stream": STREAM,
        "entry_id": "1-0",
        "consumer_group": GROUP,
        "consumer": "EVENT_CONSUMER-1",
        "reason": Reason.UNDECODABLE,
        "fields": {"a": "1"},
        "deliveries": 1,
    }
    return DeadLetter(**{**given, **facts})


class _Refused(Exception):
    """What a handler raises in these tests."""


async def _enter(store: Store, *ids: UUID, group: str = GROUP) -> set[UUID]:
    async with store.transaction() as transaction:
        return await transaction.first_time(group, [_entry(event_id) for event_id in ids])


async def test_an_event_is_new_to_a_group_once(subject: Subject) -> None:
    old, new = uuid4(), uuid4()
    assert await _enter(subject.store, old) == {old}
    assert await _enter(subject.store, old, new) == {new}


async def test_another_group_has_an_inbox_of_its_own(subject: Subject) -> None:
    event_id = uuid4()
    assert await _enter(subject.store, event_id) == {event_id}
    assert await _enter(subject.store, event_id, group="OTHER") == {event_id}


async def test_an_event_that_stands_twice_in_a_batch_is_one(subject: Subject) -> None:
    event_id = uuid4()
    async with subject.store.transaction() as transaction:
        twice = [_entry(event_id, "1-0"), _entry(event_id, "2-0")]
        assert await transaction.first_time(GROUP, twice) == {event_id}
        assert await transaction.first_time(GROUP, twice) == set()


async def test_an_entry_that_was_buried_is_not_new_and_its_event_is_elsewhere(subject: Subject) -> None:
    """A dead letter is an end: its entry may be delivered again, when the acknowledgement was lost."""
    event_id = uuid4()
    async with subject.store.transaction() as transaction:
        await transaction.bury(_letter(entry_id="1-0"))
    async with subject.store.transaction() as transaction:
        assert await transaction.first_time(GROUP, [_entry(event_id, "1-0")]) == set()
        assert await transaction.first_time("OTHER", [_entry(event_id, "1-0")]) == {event_id}
        assert await transaction.first_time(GROUP, [_entry(event_id, "2-0")]) == {event_id}


async def test_a_healthy_transaction_is_not_lost_by_an_error(subject: Subject) -> None:
    with pytest.raises(_Refused):
        async with subject.store.transaction() as transaction:
            raise _Refused
    assert not transaction.is_lost


async def test_nothing_is_new_in_an_empty_batch(subject: Subject) -> None:
    assert await _enter(subject.store) == set()


async def test_a_rollback_undoes_everything(subject: Subject) -> None:
    event_id = uuid4()
    with pytest.raises(_Refused):
        async with subject.store.transaction() as transaction:
            await transaction.first_time(GROUP, [_entry(event_id)])
            await transaction.bury(_letter())
            await transaction.position(GROUP, STREAM, "1-0")
            raise _Refused
    assert await _enter(subject.store, event_id) == {event_id}
    assert await subject.count() == 0
    assert await subject.store.stored_position(GROUP, STREAM) is None


async def test_a_cancelled_transaction_leaves_nothing(subject: Subject) -> None:
    event_id = uuid4()
    with trio.CancelScope() as scope:
        async with subject.store.transaction() as transaction:
            await transaction.first_time(GROUP, [_entry(event_id)])
            scope.cancel()
    assert scope.cancelled_caught
    assert await _enter(subject.store, event_id) == {event_id}


async def test_a_savepoint_undoes_its_block_alone(subject: Subject) -> None:
    kept, undone = uuid4(), uuid4()
    async with subject.store.transaction() as transaction:
        await transaction.first_time(GROUP, [_entry(kept)])
        with pytest.raises(_Refused):
            async with transaction.savepoint():
                await transaction.first_time(GROUP, [_entry(undone)])
                await transaction.bury(_letter())
                raise _Refused
    assert await _enter(subject.store, kept, undone) == {undone}
    assert await subject.count() == 0


async def test_a_savepoint_left_normally_is_part_of_the_transaction(subject: Subject) -> None:
    event_id = uuid4()
    async with subject.store.transaction() as transaction, transaction.savepoint():
        await transaction.first_time(GROUP, [_entry(event_id)])
    assert await _enter(subject.store, event_id) == set()


async def test_a_position_only_moves_forward_and_by_number_not_by_text(subject: Subject) -> None:
    for given, stored in [("9-5", "9-5"), ("10-0", "10-0"), ("9-9", "10-0"), ("10-9", "10-9"), ("10-10", "10-10")]:
        async with subject.store.transaction() as transaction:
            await transaction.position(GROUP, STREAM, given)
        assert await subject.store.stored_position(GROUP, STREAM) == stored
    assert await subject.store.stored_position(GROUP, "other") is None


async def test_a_position_holds_the_greatest_ids_that_redis_has(subject: Subject) -> None:
    greatest = f"{2**64 - 1}-{2**64 - 1}"
    for given in (f"{2**64 - 1}-{2**64 - 2}", greatest, "1-1"):
        async with subject.store.transaction() as transaction:
            await transaction.position(GROUP, STREAM, given)
    assert await subject.store.stored_position(GROUP, STREAM) == greatest


async def test_an_entry_is_buried_once_in_a_group(subject: Subject) -> None:
    for letter in (_letter(), _letter(reason=Reason.PERMANENT), _letter(consumer_group="OTHER")):
        async with subject.store.transaction() as transaction:
            await transaction.bury(letter)
    assert await subject.count() == 2


async def _first_and_second(
    subject: Subject, event_id: UUID, first: Callable[[Transaction], Awaitable[None]]
) -> set[UUID]:
    """What a second transaction finds that enters the event while the first one, that entered it before, is open."""
    found: list[set[UUID]] = []

    async def second() -> None:
        found.append(await _enter(subject.store, event_id))

    async with trio.open_nursery() as nursery:
        try:
            async with subject.store.transaction() as transaction:
                await transaction.first_time(GROUP, [_entry(event_id)])
                nursery.start_soon(second)
                await subject.blocked()
                assert found == []
                await first(transaction)
        except _Refused:
            pass
    return found[0]


async def test_who_comes_second_waits_and_finds_the_event_handled(subject: Subject) -> None:
    async def commit(transaction: Transaction) -> None: ...

    assert await _first_and_second(subject, uuid4(), commit) == set()


async def test_who_comes_second_waits_and_handles_what_the_first_rolled_back(subject: Subject) -> None:
    async def refuse(transaction: Transaction) -> None:
        raise _Refused

    event_id = uuid4()
    assert await _first_and_second(subject, event_id, refuse) == {event_id}


async def test_who_finds_an_event_handled_keeps_nobody_waiting(subject: Subject) -> None:
    """What is in the inbox already is not held by who looks for it, however long that one's transaction lasts."""
    event_id = uuid4()
    assert await _enter(subject.store, event_id) == {event_id}
    async with subject.store.transaction() as transaction:
        assert await transaction.first_time(GROUP, [_entry(event_id)]) == set()
        with trio.fail_after(20):
            assert await _enter(subject.store, event_id) == set()


async def test_two_that_wait_for_each_other_are_a_deadlock_that_one_survives(subject: Subject) -> None:
    one, two = uuid4(), uuid4()
    outcomes: list[str] = []
    both = {one: trio.Event(), two: trio.Event()}

    async def enter(mine: UUID, other: UUID) -> None:
        try:
            async with subject.store.transaction() as transaction:
                await transaction.first_time(GROUP, [_entry(mine)])
                both[mine].set()
                await both[other].wait()
                await transaction.first_time(GROUP, [_entry(other)])
            outcomes.append("committed")
        except psycopg.errors.DeadlockDetected:
            outcomes.append("deadlock")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(enter, one, two)
        nursery.start_soon(enter, two, one)
    assert sorted(outcomes) == ["committed", "deadlock"]


async def test_transactions_that_share_events_in_any_order_do_not_deadlock(subject: Subject) -> None:
    ids = [uuid4() for _ in range(40)]
    new: list[set[UUID]] = []

    async def enter(order: list[UUID]) -> None:
        new.append(await _enter(subject.store, *order))

    async with trio.open_nursery() as nursery:
        for order in (ids, ids[::-1], ids[20:] + ids[:20]):
            nursery.start_soon(enter, order)
    assert sorted(map(len, new)) == [0, 0, 40]


async def _divide_by_zero(subject: Subject, transaction: Transaction) -> None:
    if isinstance(subject.store, MemoryStore):
        subject.store.fail_statement(psycopg.errors.DivisionByZero("division by zero"))
    with pytest.raises(psycopg.errors.DivisionByZero):
        await transaction.connection.execute("select 1 / 0")


async def test_a_caught_error_does_not_pass_for_success(subject: Subject) -> None:
    """After a failed statement nothing can be committed, also if somebody swallowed the error."""
    event_id = uuid4()
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        async with subject.store.transaction() as transaction:
            await transaction.first_time(GROUP, [_entry(event_id)])
            await _divide_by_zero(subject, transaction)
    assert await _enter(subject.store, event_id) == {event_id}


async def test_after_a_failed_statement_every_other_one_fails(subject: Subject) -> None:
    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        async with subject.store.transaction() as transaction:
            await _divide_by_zero(subject, transaction)
            await transaction.position(GROUP, STREAM, "1-0")


async def test_a_savepoint_heals_a_failed_statement(subject: Subject) -> None:
    event_id = uuid4()
    async with subject.store.transaction() as transaction:
        await transaction.first_time(GROUP, [_entry(event_id)])
        with pytest.raises(_Refused):
            async with transaction.savepoint():
                await _divide_by_zero(subject, transaction)
                raise _Refused
    assert await _enter(subject.store, event_id) == set()


async def test_a_lost_connection_is_an_outage_and_leaves_nothing(subject: Subject) -> None:
    event_id = uuid4()
    with pytest.raises(PostgresUnavailable):
        async with subject.store.transaction() as transaction:
            await transaction.first_time(GROUP, [_entry(event_id)])
            if isinstance(subject.store, MemoryStore):
                subject.store.refuse("killed")
                subject.store.restore()
            else:
                async with transaction.connection.cursor() as cursor:
                    with pytest.raises(psycopg.OperationalError):
                        await cursor.execute("select pg_terminate_backend(pg_backend_pid())")
            await transaction.position(GROUP, STREAM, "1-0")
    assert transaction.is_lost
    assert await _enter(subject.store, event_id) == {event_id}


async def test_a_handlers_error_from_elsewhere_is_not_taken_for_ours(subject: Subject) -> None:
    """An outage of a database of the handler's own says nothing about ours."""
    with pytest.raises(psycopg.OperationalError, match="another server") as caught:
        async with subject.store.transaction():
            raise psycopg.OperationalError("another server")
    assert not isinstance(caught.value, PostgresUnavailable)


# The one on PostgreSQL alone


async def test_a_connection_that_a_handler_has_spoilt_is_not_lost(database: PostgresOptions) -> None:
    """The pool closes it; the event whose handler did it must pay all the same."""
    async with Pool(database) as pool:
        store = PostgresStore(pool)
        with pytest.raises(_Refused):
            async with store.transaction() as transaction:
                transaction.connection.pgconn.send_query(b"select pg_sleep(600)")
                raise _Refused
        assert not transaction.is_lost
        assert await _enter(store, uuid4())


async def test_a_letter_keeps_every_byte_and_shows_what_json_can_hold(database: PostgresOptions) -> None:
    fields = {b"a\0b": b"\xff\xfe", "ü".encode(): b"plain"}
    async with Pool(database) as pool:
        async with PostgresStore(pool).transaction() as transaction:
            await transaction.bury(_letter(fields=fields, event_type="A\0", error_message="\0" + "x" * 3000))
        async with pool.connection() as connection:
            cursor = await connection.execute(
                "select fields, raw, reason, status, event_type, length(error_message) from penstock_dead_letter"
            )
            [(shown, raw, reason, status, event_type, length)] = await cursor.fetchall()
    assert shown == {"ab": "??", "ü": "plain"}
    assert {
        name.encode(errors="surrogateescape"): value.encode(errors="surrogateescape")
        for name, value in unpack_fields(raw).items()
    } == fields
    assert (reason, status, event_type) == ("undecodable", "dead", "A")
    assert length < 2048


async def test_ordinary_fields_are_stored_once(database: PostgresOptions) -> None:
    async with Pool(database) as pool:
        async with PostgresStore(pool).transaction() as transaction:
            await transaction.bury(_letter(fields={"a": "1", "b": "\u2028"}))
        async with pool.connection() as connection:
            cursor = await connection.execute("select fields, raw from penstock_dead_letter")
            assert await cursor.fetchall() == [({"a": "1", "b": "\u2028"}, None)]


# The one in memory alone


async def test_a_refusing_store_begins_nothing_until_it_is_restored() -> None:
    store = MemoryStore()
    store.refuse("stopped for the test")
    with pytest.raises(PostgresUnavailable, match="stopped for the test"):
        await _enter(store, uuid4())
    with pytest.raises(PostgresUnavailable):
        await store.stored_position(GROUP, STREAM)
    store.restore()
    assert len(await _enter(store, uuid4())) == 1


async def test_an_outage_wakes_who_waits_for_another_transaction() -> None:
    store, event_id = MemoryStore(), uuid4()
    lost: list[str] = []

    async def enter() -> None:
        with pytest.raises(PostgresUnavailable):
            await _enter(store, event_id)
        lost.append("second")

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            with pytest.raises(PostgresUnavailable):
                async with store.transaction() as transaction:
                    await transaction.first_time(GROUP, [_entry(event_id)])
                    nursery.start_soon(enter)
                    await trio.testing.wait_all_tasks_blocked()
                    store.refuse("gone")
    assert lost == ["second"]


@pytest.mark.parametrize("effect", [False, True])
async def test_a_lost_commit_took_effect_or_not_and_nobody_is_told(effect: bool) -> None:
    store, event_id = MemoryStore(), uuid4()
    store.lose_commit(effect=effect)
    with pytest.raises(PostgresUnavailable):
        await _enter(store, event_id)
    assert await _enter(store, event_id) == (set() if effect else {event_id})


async def test_effects_are_those_of_committed_transactions() -> None:
    store = MemoryStore()
    for kept in (True, False):
        with contextlib.suppress(_Refused):
            async with store.transaction() as transaction:
                await transaction.connection.execute("insert", (kept,))
                with contextlib.suppress(_Refused):
                    async with transaction.savepoint():
                        await transaction.connection.execute("undone")
                        raise _Refused
                if not kept:
                    raise _Refused
    assert store.effects == [Effect("insert", (True,))]


async def test_who_expects_to_be_silent_is_not_taken_for_frozen(pool: Pool) -> None:
    store = PostgresStore(pool, abandon_after=1.0)

    async def silent(expected: float | None) -> None:
        async with store.transaction() as transaction:
            await transaction.first_time(GROUP, [InboxEntry(uuid4(), STREAM, "1-0")])
            if expected is not None:
                await transaction.expect_silence(expected)
            await trio.sleep(1.5)  # it is the server's clock that counts
            await transaction.connection.execute("select 1")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(silent, 60.0)
        with pytest.raises(psycopg.Error):
            await silent(None)
