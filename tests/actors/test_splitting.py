"""What a batch costs of which a few events fail: transactions, and calls of handlers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context, Delivery, Entry
from penstock.actors.retrying import RetryPolicy
from penstock.actors.splitting import REPEATS, Splitting
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual

STREAM, GROUP = "orders", "billing"
LATER = RetryPolicy(deliveries=5, minimum=60, maximum=60)


@event("ONE", key="customer")
@frozen
class One:
    number: int
    customer: str


@event("MANY", key="customer")
@frozen
class Many:
    number: int
    customer: str


class CountingStore(MemoryStore):
    """Counts the transactions that are begun, while it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: int | None = None

    def transaction(self) -> Any:
        if self.begun is not None:
            self.begun += 1
        return super().transaction()


class Office:
    """A system whose handlers fail for the numbers that they are told, each for so many times."""

    def __init__(self, failing: Collection[int], **group: Any) -> None:
        self.failing = set(failing)
        self.calls: list[int] = []
        self.transactions: list[Any] = []
        self.system = System("app")
        stream = self.system.stream(STREAM, events=[One, Many])
        stream.group(GROUP, retry=LATER, batch=100, workers=1, **group)
        stream.on(One, group=GROUP)(self.one)
        stream.on(Many, group=GROUP, batch=True)(self.many)

    async def one(self, one: One, context: Context) -> None:
        self.calls.append(one.number)
        self.transactions.append(context.connection)
        if one.number in self.failing:
            raise OSError("no answer")
        await context.connection.execute("done", [one.number, one.customer])

    async def many(self, deliveries: Sequence[Delivery[Many]], context: Context) -> None:
        for delivery in deliveries:
            await self.one(delivery.event, context)


def done(store: MemoryStore) -> list[int]:
    return [effect.values[0] for effect in store.effects]


async def handled(store: MemoryStore, count: int) -> None:
    """Block until so many events have their effect or their row."""
    while len(store.effects) + len(store.retries.rows) < count:
        await trio.sleep(0.001)


@pytest.mark.parametrize(
    ("kind", "failing", "transactions"),
    [
        (One, {50}, 2),
        (One, {7, 50, 99}, 4),
        (One, set(range(100)), 101),
        (Many, {50}, 16),
        (Many, {7, 50, 99}, 42),
    ],
)
@pytest.mark.parametrize("ordered", [False, True])
async def test_a_hundred_events_of_which_some_fail_cost_few_transactions(
    autojump_clock: MockClock, kind: Any, failing: set[int], transactions: int, ordered: bool
) -> None:
    office, store = Office(failing, ordered=ordered), CountingStore()
    async with virtual(office.system, store=store) as app:
        events = [kind(number, str(number)) for number in range(100)]
        store.begun = 0
        await app.publish(STREAM, *events)
        await handled(store, 100)
        assert store.begun <= transactions + 6  # looks for due rows, and the lease
        assert [row.attempts for row in store.retries.rows] == [1] * len(failing)
        assert sorted(done(store)) == sorted(set(range(100)) - failing)


@pytest.mark.parametrize("ordered", [False, True])
async def test_rows_that_are_due_share_transactions_and_are_split_likewise(
    autojump_clock: MockClock, ordered: bool
) -> None:
    office, store = Office(set(range(20)), ordered=ordered), MemoryStore()
    async with virtual(office.system, store=store) as app:
        await app.publish(STREAM, *(One(number, str(number)) for number in range(20)))
        await handled(store, 20)
        office.failing, office.calls, office.transactions = {10}, [], []
        async with store.transaction() as transaction:
            await store.retries.claim(transaction, store.retries.rows, 1.0)
        while [row.attempts for row in store.retries.rows] != [2] and trio.current_time() < 1000:
            await trio.sleep(0.01)
        assert len(set(map(id, office.transactions))) <= 4
        assert [row.attempts for row in store.retries.rows] == [2]
        assert office.calls.count(10) == 1
        office.failing = set()
        await app.settled()
        assert sorted(done(store)) == list(range(20))


async def test_a_handler_is_called_for_an_event_in_vain_only_so_often(autojump_clock: MockClock) -> None:
    office, store = Office(set(range(0, 100, 2))), MemoryStore()
    async with virtual(office.system, store=store) as app:
        await app.publish(STREAM, *(One(number, str(number)) for number in range(100)))
        await handled(store, 100)
        assert max(office.calls.count(number) for number in range(100)) <= REPEATS + 2
        assert len(store.retries.rows) == 50


async def test_in_order_what_has_failed_and_what_is_behind_it_keep_their_order(autojump_clock: MockClock) -> None:
    """Also where a later one of the key fails first: it has come too early, and that was no attempt."""
    failures = iter([6, 4])
    office, store = Office((), ordered=True), MemoryStore()
    then = [next(failures)]
    real = office.one

    async def one(event: One, context: Context) -> None:
        office.failing = set(then)
        try:
            await real(event, context)
        except OSError:
            then[:] = [each for each in [next(failures, None)] if each is not None]
            raise

    office.system.streams[STREAM].groups[GROUP].handlers["ONE"].call.__self__.one = one  # type: ignore[attr-defined]
    async with virtual(office.system, store=store) as app:
        await app.publish(STREAM, *(One(number, "a") for number in range(10)))
        await app.settled()
        assert done(store) == list(range(10))


async def test_who_meets_anothers_failed_statement_is_not_blamed(autojump_clock: MockClock) -> None:
    """One hid the error of its statement; the next one's statement fails of it, and that costs the next no attempt."""
    store, attempts = MemoryStore(), list[tuple[int, int]]()
    system = System("app")
    stream = system.stream(STREAM, events=[One])
    stream.group(GROUP, retry=LATER)

    @stream.on(One, group=GROUP)
    async def one(one: One, context: Context) -> None:
        assert context.delivery is not None
        attempts.append((one.number, context.delivery.attempt))
        if one.number == 1:
            store.fail_statement(psycopg.errors.UndefinedTable("no such table"))
            try:
                await context.connection.execute("hidden", [one.number])
            except psycopg.Error:
                return
        await context.connection.execute("done", [one.number])

    async with virtual(system, store=store) as app:
        await app.publish(STREAM, *(One(number, "a") for number in range(4)))
        await handled(store, 4)
        assert sorted(done(store)) == [0, 2, 3]
        assert {attempt for number, attempt in attempts if number != 1} == {1}
        assert [row.attempts for row in store.retries.rows] == [1]


def _entries(count: int) -> list[Entry]:
    return [Entry(STREAM, f"{number}-0", {}, read_at=0.0) for number in range(count)]


async def test_halving_ends_however_many_fail(autojump_clock: MockClock) -> None:
    """Everything fails, nobody knows who: that costs little more than to try them one by one."""
    splitting, attempts, settled = Splitting(_entries(100)), 0, 0
    while splitting.parts:
        part = splitting.parts.pop(0)
        attempts += 1
        if len(part.entries) == 1 and part.failed:
            settled += 1
        else:
            assert splitting.again(part, OSError(), {})
    assert settled == 100
    assert attempts <= 2 * 100 + 2 * 3 * 7 + 1
