"""Whose fault a failure is: what costs an event an attempt, what does not, and what never ends in a hot loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, Fields, Origin, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.producer import Published
from penstock.actors.settings import ActorSettings, DeliverySettings
from penstock.actors.store import Transaction
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.postgres import PoolTimeout, PostgresRejected, PostgresUnavailable

STREAM = "orders"
POOL = "actors/payments@orders/handler-pool"
ONE_ATTEMPT = ActorSettings(delivery=DeliverySettings(max_deliveries=1))


@event("ORDER")
@frozen
class Order:
    number: int


class Shop:
    """A system whose handler does as it is told, and remembers its calls."""

    def __init__(self, **group: Any) -> None:
        self.calls: list[int] = []
        self.at: list[float] = []
        self.system = System("app")
        self.stream = self.system.stream(STREAM, events=[Order])
        self.stream.group("payments", **group)
        self.stream.on(Order, group="payments")(self.pay)

    async def pay(self, order: Order, context: Context) -> None:
        self.calls.append(order.number)
        self.at.append(trio.current_time())
        await context.connection.execute("insert", [order.number])
        await self.then(order, context)

    async def then(self, order: Order, context: Context) -> None:
        """What a test replaces."""


class StubbornStore(MemoryStore):
    """A database that fails in its own ways: before a transaction is open, in the inbox, or at a dead letter."""

    def __init__(self) -> None:
        super().__init__()
        self.opening: list[Exception] = []
        self.inbox_errors: list[Exception] = []
        self.letter_errors: list[Exception] = []
        self.slow = 0.0

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        if self.opening:
            raise self.opening.pop()
        await trio.sleep(self.slow)
        async with super().transaction() as transaction:
            _fail(transaction, "first_time", self.inbox_errors)
            _fail(transaction, "bury", self.letter_errors)
            yield transaction


def _fail(transaction: Any, method: str, errors: list[Exception]) -> None:
    real: Callable[..., Awaitable[Any]] = getattr(transaction, method)

    async def failing(*arguments: Any) -> Any:
        if errors:
            raise errors.pop()
        return await real(*arguments)

    setattr(transaction, method, failing)


def effects(app: VirtualDeployment) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


# Outages of something else --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("connection to another database failed"),
        PostgresUnavailable("another database is away", address="elsewhere"),
        ConnectionError("the payment service is away"),
        trio.TooSlowError("the payment service is slow"),
        PoolTimeout("the handler's second connection"),
        ExceptionGroup("two tasks failed", [OSError("a"), psycopg.OperationalError("b")]),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_an_outage_that_a_handler_meets_elsewhere_counts_as_a_failed_attempt(
    autojump_clock: MockClock, error: Exception
) -> None:
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        raise error

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        with trio.fail_after(3600):
            await app.publish(STREAM, Order(1))
            await app.settled()
        assert shop.calls == [1] * 5
        (letter,) = app.store.letters
        assert letter.reason.value == "max_deliveries"
        assert app.deployment.gates["postgres"].is_open


async def test_what_others_suffer_from_does_not_keep_a_neighbour_waiting(autojump_clock: MockClock) -> None:
    shop = Shop(workers=1)

    async def then(order: Order, context: Context) -> None:
        if order.number == 1:
            raise psycopg.OperationalError("connection to another database failed")

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1), Order(2))
        with trio.fail_after(3600):
            await app.settled()
        assert effects(app) == [2]


# What the database does to us -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("opening", lambda: PoolTimeout("all connections were in use")),
        ("opening", lambda: PostgresRejected("password authentication failed", address="here")),
        ("opening", lambda: psycopg.errors.TooManyConnections("sorry, too many clients already")),
        ("inbox_errors", lambda: psycopg.errors.ReadOnlySqlTransaction("cannot execute INSERT")),
        ("inbox_errors", lambda: psycopg.errors.DeadlockDetected("deadlock detected")),
        ("inbox_errors", lambda: psycopg.errors.UndefinedTable('relation "penstock_inbox" does not exist')),
        ("inbox_errors", lambda: psycopg.errors.InsufficientPrivilege("permission denied")),
    ],
)
async def test_what_the_database_does_before_a_handler_is_called_costs_no_attempt(
    autojump_clock: MockClock, where: str, error: Callable[[], Exception]
) -> None:
    shop, store = Shop(), StubbornStore()
    async with virtual(shop.system, settings=ONE_ATTEMPT, store=store) as app:
        getattr(store, where).extend(error() for _ in range(11))
        await app.publish(STREAM, *(Order(number) for number in range(10)))
        with trio.fail_after(600):
            await app.settled()
        assert effects(app) == list(range(10))
        assert store.letters == []
        assert app.child(POOL).restarts == 0


async def test_a_database_that_is_slow_to_begin_costs_no_attempt(autojump_clock: MockClock) -> None:
    settings = ActorSettings(delivery=DeliverySettings(max_deliveries=1, handler_timeout=5.0))
    shop, store = Shop(), StubbornStore()
    async with virtual(shop.system, settings=settings, store=store) as app:
        store.slow = 8.0
        await app.publish(STREAM, Order(1))
        await trio.sleep(100)
        assert shop.calls == []
        store.slow = 0.0
        await app.settled()
        assert effects(app) == [1]
        assert store.letters == []


async def test_what_only_the_pool_meets_shuts_the_gate_and_is_seen(autojump_clock: MockClock) -> None:
    """A lost table passes every probe; the cause stands at the gate all the same, and nothing turns at full speed."""
    shop, store = Shop(), StubbornStore()
    async with virtual(shop.system, store=store) as app:
        store.inbox_errors.extend(psycopg.errors.UndefinedTable("no penstock_inbox") for _ in range(10_000))
        await app.publish(STREAM, Order(1))
        await trio.sleep(600)
        gate = app.deployment.gates["postgres"]
        assert not gate.is_open
        assert "penstock_inbox" in gate.cause
        assert 10_000 - len(store.inbox_errors) < 200
        store.inbox_errors.clear()
        with trio.fail_after(30):
            await app.settled()
        assert effects(app) == [1]


# Handlers of every kind -----------------------------------------------------------------------------------------------


async def test_a_group_with_a_permanent_error_in_it_is_permanent(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_raise, Permanent("never"))
            nursery.start_soon(_raise, OSError("and the disk"))

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert shop.calls == [1]
        assert [letter.reason.value for letter in app.store.letters] == ["permanent"]


async def _raise(error: Exception) -> None:
    raise error


async def test_an_error_of_the_database_that_a_handler_hides_harms_that_event_alone(autojump_clock: MockClock) -> None:
    """PostgreSQL commits nothing after a failed statement: to go on as if nothing had happened loses the effect."""
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        if order.number == 2:
            app.store.fail_statement(psycopg.errors.DivisionByZero("division by zero"))
            with suppress(psycopg.Error):
                await context.connection.execute("select 1/0")

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1), Order(2), Order(3))
        await app.settled()
        assert effects(app) == [1, 3]
        (letter,) = app.store.letters
        assert letter.error_class == "psycopg.errors.InFailedSqlTransaction"


async def test_a_handler_that_holds_the_processor_beyond_its_limit_is_rolled_back(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        if len(shop.calls) == 1:
            autojump_clock.jump(31)

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert shop.calls == [1, 1]
        assert effects(app) == [1]


async def test_a_handler_whose_tasks_do_not_leave_in_time_is_rolled_back_with_all_of_them(
    autojump_clock: MockClock,
) -> None:
    shop, left = Shop(), []

    async def then(order: Order, context: Context) -> None:
        if len(shop.calls) > 1:
            return
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_stay, left)

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert len(left) == 3
        assert effects(app) == [1]


async def _stay(left: list[bool]) -> None:
    try:
        await trio.sleep_forever()
    finally:
        left.append(True)


# Dead letters ---------------------------------------------------------------------------------------------------------


class Speechless(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_error_that_cannot_be_told_does_not_keep_its_event_from_its_end(autojump_clock: MockClock) -> None:
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        raise Speechless

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system, settings=ONE_ATTEMPT) as app:
        await app.publish(STREAM, Order(1))
        with trio.fail_after(60):
            await app.settled()
        (letter,) = app.store.letters
        assert letter.error_class == f"{__name__}.Speechless"


async def test_a_letter_that_the_database_refuses_is_tried_again_in_peace(autojump_clock: MockClock) -> None:
    shop, store = Shop(), StubbornStore()

    async def then(order: Order, context: Context) -> None:
        if order.number == 1:
            raise Permanent("never")

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system, store=store) as app:
        store.letter_errors.extend(psycopg.errors.ProgramLimitExceeded("index row too large") for _ in range(1000))
        await app.publish(STREAM, Order(1))
        await trio.sleep(600)
        assert len(shop.calls) < 20
        await app.publish(STREAM, Order(2))
        await trio.sleep(1)
        assert effects(app) == [2]
        store.letter_errors.clear()
        await app.settled()
        (letter,) = store.letters
        assert letter.deliveries == 1


async def test_an_outage_at_the_letter_does_not_wait_for_peace(autojump_clock: MockClock) -> None:
    shop, store = Shop(), StubbornStore()

    async def then(order: Order, context: Context) -> None:
        raise Permanent("never")

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system, store=store) as app:
        store.letter_errors.append(psycopg.errors.DiskFull("no space left on device"))
        await app.publish(STREAM, Order(1))
        with trio.fail_after(20):
            await app.settled()
        assert len(store.letters) == 1


async def test_an_entry_that_was_buried_is_not_handled_when_it_comes_again(autojump_clock: MockClock) -> None:
    """The answer to the letter's commit is lost: the event is dead, and must not be alive as well."""
    shop = Shop()

    async def then(order: Order, context: Context) -> None:
        if len(shop.calls) == 1:
            app.store.lose_commit(effect=True)
            raise Permanent("only this time")

    shop.then = then  # type: ignore[method-assign]
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Order(1))
        await app.settled()
        assert len(app.store.letters) == 1
        assert effects(app) == []


# Entries --------------------------------------------------------------------------------------------------------------


class BrokenCodec:
    """Somebody's codec, with a bug."""

    def encode(self, envelope: Envelope) -> Fields:
        return {"broken": "yes", "eventId": str(envelope.event_id)}

    def decode(self, fields: Any, origin: Origin) -> Envelope:
        raise KeyError("a bug")

    def recognises(self, fields: Any) -> bool:
        return "broken" in fields


@event("BROKEN", codec=BrokenCodec())
@frozen
class Broken:
    pass


async def test_a_codec_that_fails_makes_a_dead_letter_and_kills_nobody(autojump_clock: MockClock) -> None:
    shop = Shop()
    shop.stream.on(Broken, group="payments")(shop.pay)
    async with virtual(shop.system) as app:
        await app.publish(STREAM, Broken(), Order(1))
        with trio.fail_after(60):
            await app.settled()
        assert effects(app) == [1]
        assert [letter.reason.value for letter in app.store.letters] == ["undecodable"]
        assert app.child(POOL).restarts == 0


async def test_data_nested_too_deep_to_be_read_kill_nobody(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with virtual(shop.system) as app:
        deep = Envelope(event_type="ORDER", data={"number": 1})
        fields = {**shop.stream.encode(deep), "data": "[" * 100_000 + "]" * 100_000}
        await app.deployment.client().xadd(STREAM, fields)  # type: ignore[arg-type]
        await app.publish(STREAM, Order(2))
        with trio.fail_after(60):
            await app.settled()
        assert effects(app) == [2]
        assert [letter.reason.value for letter in app.store.letters] == ["undecodable"]
        assert app.child(POOL).restarts == 0


@pytest.mark.parametrize("text", ["x" * 1_000_000, "\0", "\u2028\r\n", "😀" * 1000])
async def test_large_and_strange_texts_arrive_as_they_were(autojump_clock: MockClock, text: str) -> None:
    seen: list[Sequence[Any]] = []

    @event("NOTE")
    @frozen
    class Note:
        text: str

    system = System("app")
    notes = system.stream("notes", events=[Note])

    @notes.on(Note, group="readers")
    async def read(note: Any, context: Context) -> None:
        seen.append(note.text)

    async with virtual(system) as app:
        (result,) = await app.publish("notes", Note(text))
        assert isinstance(result, Published)
        await app.settled()
        assert seen == [text]


# Acknowledgements -----------------------------------------------------------------------------------------------------


async def test_acknowledgements_that_are_refused_shut_the_gate_and_are_seen(autojump_clock: MockClock) -> None:
    shop = Shop()
    async with virtual(shop.system) as app:
        app.redis.fail_next("XACK", "NOPERM User default has no permissions to run the 'xack' command", times=10_000)
        await app.publish(STREAM, Order(1))
        await trio.sleep(300)
        gate = app.deployment.gates["redis"]
        assert not gate.is_open
        assert "xack" in gate.cause
        app.redis.heal()
        with trio.fail_after(30):
            await app.settled()
        assert effects(app) == [1]
        assert shop.calls == [1]


async def test_two_installations_share_a_group_and_each_event_is_handled_once(autojump_clock: MockClock) -> None:
    one, two = Shop(), Shop()
    async with virtual(one.system, instance="one") as first:
        async with virtual(two.system, redis=first.redis, store=first.store, instance="two") as second:
            for start in range(0, 600, 20):
                app = first if start % 40 else second
                await app.publish(STREAM, *(Order(number) for number in range(start, start + 20)))
                await trio.sleep(0.01)
            await first.settled()
            assert effects(first) == list(range(600))
            assert sorted(one.calls + two.calls) == list(range(600))
            assert one.calls
            assert two.calls


async def test_the_same_event_in_two_transactions_at_a_time_is_one_effect(autojump_clock: MockClock) -> None:
    shop = Shop(workers=4, batch=1)

    async def then(order: Order, context: Context) -> None:
        await trio.sleep(1)

    shop.then = then  # type: ignore[method-assign]
    envelope = Envelope(event_type="ORDER", data={"number": 1})
    async with virtual(shop.system) as app:
        await app.publish(STREAM, *[envelope] * 8)
        await app.settled()
        assert shop.calls == [1]
        assert app.deployment.pools["payments@orders"].counts.duplicates == 7
