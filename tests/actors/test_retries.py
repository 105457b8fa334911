"""Retries: what failed waits in the table, whatever becomes of the process, of Redis and of the database meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
import trio
from attrs import evolve, frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.retry_table import RetryFailure, RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.store import Transaction
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
POOL = f"{GROUP}@{STREAM}"


@event("ORDER")
@frozen
class Order:
    number: int


@event("OFFER", max_age=timedelta(minutes=1))
@frozen
class Offer:
    number: int


Then = Callable[[Any, Context], Awaitable[None]]


class Shop:
    """A system whose handler does as it is told, and remembers when it was called."""

    def __init__(
        self, then: Then, *, policy: RetryPolicy | None = None, timeout: float | None = None, **group: Any
    ) -> None:
        self.calls: list[tuple[int, float]] = []
        self.attempts: list[int] = []
        self.then = then
        self.system = System("app")
        self.stream = self.system.stream(STREAM, events=[Order, Offer])
        self.stream.group(GROUP, **group)
        for kind in (Order, Offer):
            self.stream.on(kind, group=GROUP, retry=policy, timeout=timeout)(self.pay)

    async def pay(self, order: Any, context: Context) -> None:
        self.calls.append((order.number, trio.current_time()))
        assert context.delivery is not None
        self.attempts.append(context.delivery.attempt)
        await context.connection.execute("insert", [order.number])
        await self.then(order, context)

    @property
    def numbers(self) -> list[int]:
        return [number for number, _ in self.calls]


async def fine(order: Any, context: Context) -> None:
    """All is well."""


async def fails(order: Any, context: Context) -> None:
    raise OSError("the payment service said no")


def failing(times: int) -> Then:
    """A handler that fails so often."""
    left = iter(range(times))

    async def then(order: Any, context: Context) -> None:
        if next(left, None) is not None:
            raise OSError("not yet")

    return then


def effects(app: VirtualDeployment[Any]) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


async def pending(app: VirtualDeployment[Any]) -> int:
    return int((await app.deployment.client().xpending(STREAM, GROUP))["pending"])


async def waiting(app: VirtualDeployment[Any]) -> RetryRow:
    """Block until one row waits and its entry is acknowledged; the row."""
    while len(app.store.retries.rows) != 1 or await pending(app):
        await trio.sleep(0.01)
    return app.store.retries.rows[0]


def row(number: int, entry: str = "1-0", **facts: Any) -> RetryRow:
    """What the desk or a replay writes."""
    envelope = Envelope(event_type="ORDER", data={"number": number})
    given: dict[str, Any] = {
        "consumer_group": GROUP,
        "stream": STREAM,
        "entry_id": entry,
        "event_id": envelope.event_id,
        "event_type": "ORDER",
        "fields": System("x").stream(STREAM, events=[Order]).encode(envelope),
        "origin": RetryOrigin.REPLAY,
    }
    return RetryRow(**{**given, **facts})


async def add(store: MemoryStore, *rows: RetryRow) -> None:
    async with store.transaction() as transaction:
        assert await store.retries.add(transaction, rows) == len(rows)


# Where it waits -------------------------------------------------------------------------------------------------------


async def test_what_failed_waits_in_the_table_and_its_entry_is_acknowledged(autojump_clock: MockClock) -> None:
    shop = Shop(failing(2), retry=RetryPolicy(minimum=30, maximum=30))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        row = await waiting(app)
        assert (row.attempts, row.origin, row.failure.error_message) == (1, RetryOrigin.ATTEMPT, "not yet")
        assert 0 < row.due_in <= 30
        await app.settled()
        assert shop.attempts == [1, 2, 3]
        assert effects(app) == [1]
        assert app.deployment.pools[POOL].counts.retried == 2


async def test_attempts_outlive_the_process(autojump_clock: MockClock) -> None:
    shop = Shop(fails, retry=RetryPolicy(deliveries=3, minimum=20, maximum=20))
    store = MemoryStore()
    async with InProcessRedis() as redis:
        for _ in range(2):
            async with virtual(shop.system, redis=redis, store=store) as app:
                if not shop.calls:
                    await app.publish(STREAM, Order(1))
                await waiting(app)
        async with virtual(shop.system, redis=redis, store=store) as app:
            await app.settled()
        assert shop.attempts == [1, 2, 3]
        (letter,) = store.letters
        assert (letter.reason.value, letter.deliveries, letter.again) == ("max_deliveries", 3, True)
        assert letter.first_delivered_at is not None


async def test_what_waits_outlives_redis(autojump_clock: MockClock) -> None:
    shop = Shop(failing(1), retry=RetryPolicy(minimum=20, maximum=20))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await waiting(app)
        await app.deployment.client().flushall()
        await app.publish(STREAM, Order(2))
        await app.settled()
        assert effects(app) == [1, 2]


async def test_a_row_that_somebody_deletes_is_not_tried_again(autojump_clock: MockClock) -> None:
    shop = Shop(fails, retry=RetryPolicy(minimum=20, maximum=20))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        waits = await waiting(app)
        async with app.store.transaction() as transaction:
            await app.store.retries.delete(transaction, [waits])
        await trio.sleep(40)
        assert shop.numbers == [1]


async def test_an_entry_whose_acknowledgement_was_lost_is_not_tried_beside_its_row(autojump_clock: MockClock) -> None:
    shop = Shop(fails, retry=RetryPolicy(minimum=20, maximum=20))
    async with InProcessRedis() as redis:
        store = MemoryStore()
        async with virtual(shop.system, redis=redis, store=store) as app:
            redis.fail_next("XACK", "LOADING Redis is loading", times=10_000)
            await app.publish(STREAM, Order(1))
            while not store.retries.rows:
                await trio.sleep(0.1)
        redis.heal()
        async with virtual(shop.system, redis=redis, store=store) as app:
            await waiting(app)
            assert shop.numbers == [1]
            assert app.deployment.pools[POOL].counts.duplicates == 1


# Policies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "handler", "expected"),
    [(None, None, 5), (2, None, 2), (None, 3, 3), (2, 4, 4)],
    ids=["settings", "group", "handler", "handler before group"],
)
async def test_the_nearest_policy_counts(
    autojump_clock: MockClock, group: int | None, handler: int | None, expected: int
) -> None:
    shop = Shop(
        fails,
        policy=None if handler is None else RetryPolicy(deliveries=handler),
        **({} if group is None else {"retry": RetryPolicy(deliveries=group)}),
    )
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert len(shop.calls) == expected
        assert [letter.deliveries for letter in app.store.letters] == [expected]


async def test_pauses_double_up_to_their_limit(autojump_clock: MockClock) -> None:
    """Full jitter below 10, 20, 30, 30 seconds; the row is due at its time and not before."""
    dues: list[float] = []

    async def then(order: Any, context: Context) -> None:
        raise OSError("no")

    shop = Shop(then, retry=RetryPolicy(deliveries=5, minimum=10, maximum=30))
    async with virtual(shop.system, seed=3) as app:
        await app.publish(STREAM, Order(1))
        for attempt in range(1, 5):
            while not (rows := app.store.retries.rows) or rows[0].attempts != attempt:
                await trio.sleep(0.05)
            dues.append(trio.current_time() + rows[0].due_in)
            assert 0 <= rows[0].due_in <= [10, 20, 30, 30][attempt - 1]
        await app.settled()
        for due, (_, at) in zip(dues, shop.calls[1:], strict=True):
            assert due <= at <= due + 0.2


@pytest.mark.parametrize("error", [Permanent("never"), LookupError("no such customer"), KeyError("customer")])
async def test_errors_of_a_permanent_type_are_final(autojump_clock: MockClock, error: Exception) -> None:
    async def then(order: Any, context: Context) -> None:
        raise error

    shop = Shop(then, retry=RetryPolicy(permanent=(LookupError,)))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert shop.numbers == [1]
        assert [letter.reason.value for letter in app.store.letters] == ["permanent"]


async def test_a_call_that_takes_longer_than_its_handler_may_is_rolled_back_and_counts(
    autojump_clock: MockClock,
) -> None:
    async def then(order: Any, context: Context) -> None:
        if order.number == 1:
            await trio.sleep(3)

    shop = Shop(then, timeout=2.0, retry=RetryPolicy(deliveries=2))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1), Order(2))
        await app.settled()
        assert effects(app) == [2]
        (letter,) = app.store.letters
        assert (letter.reason.value, letter.error_class) == ("max_deliveries", "trio.TooSlowError")


async def test_a_handler_may_take_longer_than_the_others_may(autojump_clock: MockClock) -> None:
    async def then(order: Any, context: Context) -> None:
        await trio.sleep(50)

    shop = Shop(then, timeout=55.0)
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert effects(app) == [1]
        assert shop.numbers == [1]


async def test_an_event_that_has_become_too_old_is_not_handled(autojump_clock: MockClock) -> None:
    """Also while it waits for a retry; and one without an offset is meant in UTC."""
    shop = Shop(failing(1), retry=RetryPolicy(minimum=120, maximum=120))
    async with virtual(shop.system, seed=1) as app:
        now = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=trio.current_time())
        naive = (now - timedelta(minutes=2)).replace(tzinfo=None)
        await app.publish(STREAM, Envelope(event_type="OFFER", data={"number": 1}, timestamp=now))
        first = await waiting(app)
        await app.publish(
            STREAM,
            Envelope(event_type="OFFER", data={"number": 2}, timestamp=now - timedelta(minutes=2)),
            Envelope(event_type="OFFER", data={"number": 3}, timestamp=naive),
            Envelope(event_type="ORDER", data={"number": 4}, timestamp=naive),
        )
        async with app.store.transaction() as transaction:
            await app.store.retries.claim(transaction, [first], 70)
        await app.settled()
        assert sorted(set(shop.numbers)) == [1, 4]
        assert effects(app) == [4]
        assert [letter.reason.value for letter in app.store.letters] == ["expired"] * 3
        counts = app.deployment.pools[POOL].counts
        assert (counts.dead, counts.expired) == (3, 3)


# Rows of others -------------------------------------------------------------------------------------------------------


async def test_a_row_that_somebody_else_writes_is_handled_soon(autojump_clock: MockClock) -> None:
    shop = Shop(fine)
    async with virtual(shop.system) as app:
        await trio.sleep(100)
        await add(app.store, row(1), row(2, "2-0", event_id=None, event_type=None))
        with trio.fail_after(10.1):  # nothing was to be done for long
            await app.settled()
        await add(app.store, row(3, "3-0"))
        with trio.fail_after(1.1):
            await app.settled()
        assert effects(app) == [1, 2, 3]


@pytest.mark.parametrize(("forced", "expected"), [(False, [1]), (True, [1, 1])])
async def test_a_row_is_handled_again_only_if_it_is_forced(
    autojump_clock: MockClock, forced: bool, expected: list[int]
) -> None:
    shop = Shop(fine)
    async with virtual(shop.system) as app:
        envelope = Envelope(event_type="ORDER", data={"number": 1})
        await app.publish(STREAM, envelope)
        await app.settled()
        await add(app.store, row(1, event_id=envelope.event_id, fields=shop.stream.encode(envelope), forced=forced))
        await app.settled()
        assert effects(app) == expected


async def test_a_replayed_letter_is_settled_or_dead_again(autojump_clock: MockClock) -> None:
    async def then(order: Any, context: Context) -> None:
        raise Permanent("closed")

    shop = Shop(then)
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        (letter,) = app.store.letters
        replayed = RetryRow(
            consumer_group=GROUP,
            stream=STREAM,
            entry_id=letter.entry_id,
            event_id=letter.event_id,
            fields=letter.fields,
            origin=RetryOrigin.LETTER,
        )
        await add(app.store, replayed)
        await app.settled()
        ((stored),) = app.store.letter_table.rows.values()
        assert (stored.status, stored.deaths) == ("dead", 2)
        shop.then = fine
        await add(app.store, replayed)
        await app.settled()
        assert effects(app) == [1]
        assert app.store.letters == []


async def test_a_row_of_what_the_group_does_not_handle_any_more_goes(autojump_clock: MockClock) -> None:
    shop = Shop(fine)
    shop.system.streams[STREAM].groups[GROUP].handlers.pop("ORDER")
    async with virtual(shop.system) as app:
        await add(app.store, row(1))
        await app.settled()
        assert app.deployment.pools[POOL].counts.ignored == 1


async def test_due_rows_are_handled_by_one_of_two_processes(autojump_clock: MockClock) -> None:
    one, two = Shop(fine), Shop(fine)

    async def slowly(order: Any, context: Context) -> None:
        await trio.sleep(0.2)

    one.then = two.then = slowly
    async with virtual(one.system, instance="one") as first:
        async with virtual(two.system, redis=first.redis, store=first.store, instance="two"):
            await add(first.store, *(row(number, f"{number}-0", attempts=number % 2) for number in range(1, 61)))
            await first.settled()
            assert effects(first) == list(range(1, 61))
            assert sorted(one.numbers + two.numbers) == list(range(1, 61))
            assert not first.store.suspects.table.rows
            assert first.store.letters == []


# Neither keeps the other waiting --------------------------------------------------------------------------------------


async def test_a_stream_that_never_rests_does_not_keep_a_due_row_waiting(autojump_clock: MockClock) -> None:
    async def then(order: Any, context: Context) -> None:
        await trio.sleep(0.5)

    shop = Shop(then, workers=1, batch=1)
    async with virtual(shop.system) as app:
        await app.publish(STREAM, *(Order(number) for number in range(100, 160)))
        await trio.sleep(1)
        await add(app.store, row(1))
        await trio.sleep(4)
        assert 1 in shop.numbers
        assert len(shop.calls) < 20
        await app.settled()


async def test_many_due_rows_do_not_keep_the_stream_waiting(autojump_clock: MockClock) -> None:
    async def then(order: Any, context: Context) -> None:
        await trio.sleep(0.5)

    shop = Shop(then, workers=1, batch=1)
    async with virtual(shop.system) as app:
        await add(app.store, *(row(number, f"{number}-0") for number in range(100, 160)))
        await trio.sleep(1)
        await app.publish(STREAM, Order(1))
        await trio.sleep(4)
        assert 1 in shop.numbers
        await app.settled()
        assert len(effects(app)) == 61


# What the database does -----------------------------------------------------------------------------------------------


class StubbornStore(MemoryStore):
    """A database that refuses rows, or loses the answers to commits as it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0
        real = self.retries.add

        async def add(transaction: Transaction, rows: Any) -> int:
            if rows and self.refusals:
                self.refusals -= 1
                raise psycopg.errors.ProgramLimitExceeded("row is too big")
            return await real(transaction, rows)

        self.retries.add = add  # type: ignore[method-assign]


async def test_a_row_that_the_database_refuses_is_tried_again_in_peace(autojump_clock: MockClock) -> None:
    async def then(order: Any, context: Context) -> None:
        if order.number == 1 and shop.numbers.count(1) < 4:
            raise OSError("not yet")

    shop, store = Shop(then), StubbornStore()
    store.refusals = 3  # once beside the other one, and twice alone
    async with virtual(shop.system, store=store) as app:
        await app.publish(STREAM, Order(1), Order(2))
        await trio.sleep(100)
        assert 2 in effects(app)
        await app.settled()
        assert effects(app) == [1, 2]
        assert trio.current_time() > 119
        assert app.child("actors/payments@orders/handler-pool").restarts == 0


@pytest.mark.parametrize("effect", [False, True])
async def test_the_answer_to_a_failures_commit_may_be_lost(autojump_clock: MockClock, effect: bool) -> None:
    shop = Shop(fine)

    async def then(order: Any, context: Context) -> None:
        if len(shop.calls) == 1:
            app.store.lose_commit(effect=effect)
            raise OSError("once")

    shop.then = then
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert effects(app) == [1]
        assert len(shop.calls) <= 3
        assert app.store.letters == []


async def test_an_outage_costs_a_due_row_no_attempt(autojump_clock: MockClock) -> None:
    shop = Shop(fine, retry=RetryPolicy(deliveries=2))
    async with virtual(shop.system) as app:

        async def then(order: Any, context: Context) -> None:
            if len(shop.calls) == 1:
                raise OSError("once")
            if len(shop.calls) < 8:
                app.lose_database("away")
                nursery.start_soon(back)
                await trio.sleep_forever()

        async def back() -> None:
            await trio.sleep(5)
            app.restore_database()

        shop.then = then
        async with trio.open_nursery() as nursery:
            await app.publish(STREAM, Order(1))
            await trio.sleep(300)
            nursery.cancel_scope.cancel()
        await app.settled()
        assert effects(app) == [1]
        assert set(shop.attempts[1:]) == {2}
        assert app.store.letters == []
        assert not app.store.suspects.table.rows


async def test_whoever_handles_the_same_event_meanwhile_decides(autojump_clock: MockClock) -> None:
    """A handler that fails late: its entry was taken over, and is done elsewhere. No letter, no row."""
    shop = Shop(fine, batch=1)

    async def then(order: Any, context: Context) -> None:
        if len(shop.calls) == 1:
            await trio.sleep(5)
            raise Permanent("too late")

    shop.then = then
    envelope = Envelope(event_type="ORDER", data={"number": 1})
    async with virtual(shop.system) as app:
        await app.publish(STREAM, envelope)
        while not shop.calls:
            await trio.sleep(0.01)
        await app.publish(STREAM, envelope)
        await app.settled()
        assert effects(app) == [1]
        assert app.store.letters == []
        assert app.deployment.pools[POOL].counts.duplicates == 1


async def test_what_is_no_event_gets_a_second_chance_and_no_third(autojump_clock: MockClock) -> None:
    shop = Shop(fine)
    async with virtual(shop.system) as app:
        await app.deployment.client().xadd(STREAM, {"garbage": b"\xff\0"})
        waits = await waiting(app)
        assert (waits.attempts, waits.entry_fields) == (1, {b"garbage": b"\xff\0"})
        await app.settled()
        (letter,) = app.store.letters
        assert (letter.reason.value, letter.deliveries) == ("undecodable", 2)


@asynccontextmanager
async def as_row(app: VirtualDeployment[Any], **facts: Any) -> AsyncIterator[None]:
    """Change the one row that waits, as somebody might in SQL."""
    (before,) = app.store.retries.rows
    async with app.store.transaction() as transaction:
        await app.store.retries.delete(transaction, [before])
        await app.store.retries.add(transaction, [evolve(before, **facts)])
    yield


async def test_a_row_may_be_made_due_by_hand(autojump_clock: MockClock) -> None:
    shop = Shop(failing(1), retry=RetryPolicy(minimum=86_400, maximum=86_400))
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await waiting(app)
        async with as_row(app, due_in=0.0, failure=RetryFailure(), event_id=uuid4()):
            with trio.fail_after(5):
                await app.settled()
        assert effects(app) == [1]


def test_settings_and_policy_agree_on_their_defaults() -> None:
    settings, policy = DeliverySettings(), RetryPolicy()
    assert (settings.max_deliveries, settings.retry_minimum, settings.retry_maximum) == (
        policy.deliveries,
        policy.minimum,
        policy.maximum,
    )
    assert ActorSettings().delivery == settings
