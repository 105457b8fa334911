"""Poison: what kills its workers comes to an end, and whoever merely stood beside it does not."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.event import event
from penstock.actors.handler_pool import ABSOLVE_WITHIN
from penstock.actors.handling import Context
from penstock.actors.retrying import RetryPolicy
from penstock.actors.stopping import DRAIN_WITHIN
from penstock.actors.store import Transaction
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "payments"
POOL = "actors/payments@orders/handler-pool"


@event("ORDER")
@frozen
class Order:
    number: int


Then = Callable[[Order, Context], Awaitable[None]]


def shop(then: Then, **group: Any) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group(GROUP, **group)

    @stream.on(Order, group=GROUP, retry=RetryPolicy(minimum=1, maximum=2))
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])
        await then(order, context)

    return system


def effects(app: VirtualDeployment[Any]) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


class Killed(Exception):
    """The process is gone."""


async def live(system: System, redis: InProcessRedis, store: MemoryStore, *numbers: int, dies: trio.Event) -> None:
    """A life of a process: it publishes, and is killed when `dies` says so, like by SIGKILL; or comes to rest."""
    try:
        async with virtual(system, redis=redis, store=store) as app, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def die() -> None:
                await dies.wait()
                # Nothing of it reaches a server any more, orderly or not.
                store.refuse("killed")
                redis.cut()
                raise Killed

            if numbers:
                await app.publish(STREAM, *map(Order, numbers))
            await app.settled()
            nursery.cancel_scope.cancel()
    except* Killed:
        pass
    finally:
        store.restore()


@pytest.mark.parametrize("ordered", [False, True], ids=["shared", "ordered"])
async def test_an_event_that_kills_its_worker_again_and_again_is_dead_and_no_other_is(
    autojump_clock: MockClock, ordered: bool
) -> None:
    deaths: list[trio.Event] = []

    async def then(order: Order, context: Context) -> None:
        if order.number == 3:
            deaths[-1].set()
            await trio.sleep_forever()

    store, lives = MemoryStore(), 0
    async with InProcessRedis() as redis:
        while not lives or deaths[-1].is_set():
            lives += 1
            assert lives < 8
            deaths.append(trio.Event())
            numbers = range(6) if lives == 1 else ()
            await live(shop(then, ordered=ordered), redis, store, *numbers, dies=deaths[-1])
    assert lives == 5  # with others, with others again, alone, alone; and then it is not tried
    assert sorted(effect.values[0] for effect in store.effects) == [0, 1, 2, 4, 5]
    (letter,) = store.letters
    assert letter.reason.value == "poison"
    assert not store.suspects.table.rows


@pytest.mark.parametrize("origin", ["stream", "rows"])
async def test_slow_events_that_are_at_work_whenever_their_process_dies_are_not_held_for_poison(
    autojump_clock: MockClock, origin: str
) -> None:
    """In its group, in another one, and in a queue: all of them are cut off each time, for they take longer."""
    deaths: list[trio.Event] = []
    failed: set[int] = set()

    async def then(order: Order, context: Context) -> None:
        if origin == "rows" and order.number not in failed:
            failed.add(order.number)
            raise OSError("so that it becomes a row")
        await trio.sleep(0.1)
        if order.number == 3:
            deaths[-1].set()
            await trio.sleep_forever()
        await trio.sleep(5)

    def busy() -> System:
        system = shop(then, workers=4, batch=1)

        async def slow(order: Order, context: Context) -> None:
            await trio.sleep(5)
            await context.connection.execute("insert", [100 + order.number])

        system.streams[STREAM].group("slow", workers=4, batch=1)
        system.streams[STREAM].on(Order, group="slow")(slow)
        system.queue("jobs", workers=4).on(Order)(slow)
        return system

    store, lives = MemoryStore(), 0
    async with InProcessRedis() as redis:
        async with virtual(busy(), redis=redis, store=store) as app:
            store.refuse("not yet")
            await app.enqueue("jobs", *(Order(100 + number) for number in range(8)))
        store.restore()
        while not lives or deaths[-1].is_set():
            lives += 1
            assert lives < 12
            deaths.append(trio.Event())
            await live(busy(), redis, store, *(range(8) if lives == 1 else ()), dies=deaths[-1])
    assert [(letter.reason.value, letter.consumer_group) for letter in store.letters] == [("poison", GROUP)]
    assert sorted(effect.values[0] for effect in store.effects) == [
        0,
        1,
        2,
        4,
        5,
        6,
        7,
        *range(100, 108),
        *range(200, 208),
    ]
    assert not store.suspects.table.rows


async def test_a_row_that_kills_its_worker_is_dead_as_well(autojump_clock: MockClock) -> None:
    deaths: list[trio.Event] = []
    seen: list[int] = []

    async def then(order: Order, context: Context) -> None:
        seen.append(order.number)
        if order.number == 3 and seen.count(3) == 1:
            raise OSError("first it only fails")
        if order.number == 3:
            deaths[-1].set()
            await trio.sleep_forever()

    store, lives = MemoryStore(), 0
    async with InProcessRedis() as redis:
        while not lives or deaths[-1].is_set():
            lives += 1
            assert lives < 8
            deaths.append(trio.Event())
            await live(shop(then, batch=1), redis, store, *([3, 4] if lives == 1 else []), dies=deaths[-1])
    assert lives == 4  # alone, alone, alone; and then it is not tried
    assert [effect.values[0] for effect in store.effects] == [4]
    assert [letter.reason.value for letter in store.letters] == ["poison"]
    assert not store.suspects.table.rows


@pytest.mark.parametrize(
    "error", [psycopg.errors.CheckViolation("a trigger says no"), psycopg.errors.DeadlockDetected("a lock")], ids=type
)
@pytest.mark.parametrize("origin", ["stream", "rows"])
async def test_poison_whose_letter_the_database_refuses_is_not_tried_meanwhile(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, origin: str, error: Exception
) -> None:
    """It would kill its process once more."""
    deaths, calls = list[trio.Event](), list[int]()
    store, lives, refused = MemoryStore(), 0, [error] * 3
    bury = store.dead_letters.bury

    async def refuse(transaction: Transaction, letter: DeadLetter) -> None:
        if refused:
            raise refused.pop()
        await bury(transaction, letter)

    async def then(order: Order, context: Context) -> None:
        calls.append(order.number)
        if origin == "rows" and len(calls) == 1:
            raise OSError("so that it becomes a row")
        deaths[-1].set()
        await trio.sleep_forever()

    monkeypatch.setattr(store.dead_letters, "bury", refuse)
    async with InProcessRedis() as redis:
        while not lives or deaths[-1].is_set():
            lives += 1
            assert lives < 8
            deaths.append(trio.Event())
            await live(shop(then), redis, store, *([1] if lives == 1 else []), dies=deaths[-1])
    assert (refused, lives) == ([], 5 if origin == "stream" else 4)
    assert [letter.reason.value for letter in store.letters] == ["poison"]
    assert not store.suspects.table.rows


async def test_processes_that_are_killed_for_other_reasons_poison_nothing(autojump_clock: MockClock) -> None:
    """Killed at a moment of nobody's choice, ten times, with slow handlers at work."""

    async def then(order: Order, context: Context) -> None:
        await trio.sleep(0.7)

    store = MemoryStore()
    async with InProcessRedis() as redis:
        for life in range(10):
            dies = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_later, dies, 3.1 + 0.37 * life)
                await live(shop(then, workers=2, batch=3), redis, store, *range(5 * life, 5 * life + 5), dies=dies)
                nursery.cancel_scope.cancel()
        await live(shop(then), redis, store, dies=trio.Event())
    assert store.letters == []
    assert sorted(effect.values[0] for effect in store.effects) == list(range(50))


@pytest.mark.parametrize(
    ("where", "failed", "others"),
    [
        ("shared", False, False),
        ("shared", False, True),
        ("shared", True, False),
        ("ordered", False, True),
        ("job", True, False),
    ],
)
async def test_orderly_stops_poison_nothing_however_long_it_takes(
    autojump_clock: MockClock, where: str, failed: bool, others: bool
) -> None:
    """Deployments (of the same instance, or each of another one) that break off each attempt, for it takes long."""
    calls: list[int] = []

    async def then(order: Order, context: Context) -> None:
        calls.append(order.number)
        if failed and len(calls) == 1:
            raise OSError("so that it becomes a row")
        await trio.sleep(300)

    def slow() -> System:
        system, retry = System("app"), RetryPolicy(minimum=1, maximum=2)
        system.queue("jobs", timeout=3600.0).on(Order, retry=retry)(then)
        stream = system.stream(STREAM, events=[Order])
        stream.group(GROUP, ordered=where == "ordered")
        stream.on(Order, group=GROUP, timeout=3600.0, retry=retry)(then)
        return system

    store = MemoryStore()
    async with InProcessRedis() as redis:
        for life in range(6):
            instance = f"i{life}" if others else "test"
            async with virtual(slow(), redis=redis, store=store, instance=instance) as app:
                if not life:
                    await (app.enqueue("jobs", Order(1)) if where == "job" else app.publish(STREAM, Order(1)))
                with trio.fail_after(150):
                    while len(calls) < life + 1 + failed:
                        await trio.sleep(1)
            assert not store.suspects.table.rows
    assert store.letters == []


async def test_a_partition_that_changes_hands_again_and_again_poisons_nothing(autojump_clock: MockClock) -> None:
    """One process stays, another one comes and goes; what each of them breaks off is handled by the other."""
    calls, enough = list[str](), trio.Event()

    def slow(who: str) -> System:
        system = System("app")
        stream = system.stream(STREAM, events=[Order], partitions=2)
        stream.group(GROUP, ordered=True, workers=8)

        @stream.on(Order, group=GROUP, timeout=3600.0)
        async def pay(order: Order, context: Context) -> None:
            calls.append(who)
            await enough.wait()

        return system

    store = MemoryStore()
    async with InProcessRedis() as redis, virtual(slow("a"), redis=redis, store=store, instance="a") as stays:
        await stays.publish(STREAM, *map(Order, range(8)))
        await trio.sleep(20)
        for _ in range(5):
            async with virtual(slow("b"), redis=redis, store=store, instance="b"):
                await trio.sleep(20)
            await trio.sleep(20)
        assert calls.count("b") >= 5
        enough.set()
        await stays.settled()
        assert store.letters == []
        assert not store.suspects.table.rows


async def test_a_pool_that_leaves_a_silent_database_does_so_soon(autojump_clock: MockClock) -> None:
    """What it counted stays then, and is taken back when it starts again."""
    silent, calls = trio.Event(), list[int]()

    class Silent(MemoryStore):
        @asynccontextmanager
        async def transaction(self) -> AsyncIterator[Transaction]:
            if silent.is_set():
                await trio.sleep_forever()
            async with super().transaction() as transaction:
                yield transaction

    async def then(order: Order, context: Context) -> None:
        calls.append(order.number)
        if len(calls) == 1:
            raise OSError("so that it becomes a row")
        if len(calls) == 2:
            silent.set()
            await trio.sleep_forever()

    async with virtual(shop(then), store=Silent()) as app:
        await app.publish(STREAM, Order(1))
        await silent.wait()
        began = trio.current_time()
        app.lose_database("it says nothing")
        while app.child(POOL).state != "held":
            await trio.sleep(0.01)
        assert trio.current_time() - began < ABSOLVE_WITHIN
        silent = trio.Event()
        app.restore_database()
        await app.settled()
        assert (effects(app), app.store.letters, app.store.suspects.table.rows) == ([1], [], {})
        silent.set()
        began = trio.current_time()
    assert trio.current_time() - began < DRAIN_WITHIN + 2 * ABSOLVE_WITHIN


async def _later(event: trio.Event, seconds: float) -> None:
    await trio.sleep(seconds)
    event.set()


async def test_an_outage_while_a_suspect_is_at_work_is_held_against_nobody(autojump_clock: MockClock) -> None:
    async def then(order: Order, context: Context) -> None:
        if app.store.suspects.table.rows and outages:
            app.lose_database(outages.pop())
            nursery.start_soon(back)
            await trio.sleep_forever()
        elif not app.store.suspects.table.rows:
            raise OSError("so that it becomes a row")

    async def back() -> None:
        await trio.sleep(3)
        app.restore_database()

    outages = [f"outage {number}" for number in range(8)]
    async with virtual(shop(then)) as app, trio.open_nursery() as nursery:
        await app.publish(STREAM, Order(1))
        while outages:
            await trio.sleep(1)
        await app.settled()
        assert effects(app) == [1]
        assert app.store.letters == []
        assert not app.store.suspects.table.rows
        nursery.cancel_scope.cancel()


def leave() -> None:
    sys.exit(3)


def close() -> None:
    raise GeneratorExit


def odd() -> None:
    raise BaseExceptionGroup("from a nursery", [SystemExit(1), OSError("beside")])


@pytest.mark.parametrize("end", [leave, close, odd], ids=lambda end: end.__name__)
async def test_a_handler_that_tries_to_end_the_process_ends_its_event_at_the_second_time(
    autojump_clock: MockClock, end: Callable[[], None]
) -> None:
    calls: list[int] = []

    async def then(order: Order, context: Context) -> None:
        calls.append(order.number)
        if order.number == 2:
            await trio.lowlevel.checkpoint()
            end()

    async with virtual(shop(then)) as app:
        await app.publish(STREAM, Order(1), Order(2), Order(3))
        await app.settled()
        assert effects(app) == [1, 3]
        (letter,) = app.store.letters
        assert (letter.reason.value, letter.deliveries) == ("poison", 2)
        assert letter.error_class == "penstock.actors.failures.HandlerExit"
        assert app.child(POOL).restarts == 0
        assert app.deployment.pools[f"{GROUP}@{STREAM}"].counts.poison == 1


async def test_the_user_at_the_keyboard_is_not_an_event(autojump_clock: MockClock) -> None:
    async def then(order: Order, context: Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(BaseException) as caught:  # noqa: PT011 - as trio and the tree wrap it
        async with virtual(shop(then)) as app:
            await app.publish(STREAM, Order(1))
            await trio.sleep(60)
    assert "KeyboardInterrupt" in repr(caught.value)
