"""Ordered groups: of each key one event after the other, also across retries, letters, restarts and lost leases."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import psycopg
import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.backlog import Backlog
from penstock.actors.dead_letter import DeadLetter
from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context, Entry, Permanent
from penstock.actors.lease_table import LeaseLost
from penstock.actors.retry_table import RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.store import Transaction
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.testing.redis import InProcessRedis

STREAM, GROUP = "orders", "shipping"


@event("MOVE", key="parcel")
@frozen
class Move:
    parcel: str | None
    step: int


Then = Callable[[Move, Context], Awaitable[None]]


class Depot:
    """A system that ships, and knows at any time which parcels are in hand."""

    def __init__(self, then: Then | None = None, *, partitions: int = 1, **group: Any) -> None:
        self.then = then
        self.in_hand: Counter[str | None] = Counter()
        self.together: set[str | None] = set()
        self.calls: list[tuple[str | None, int]] = []
        self.most = 0
        self.system = System("app")
        self.stream = self.system.stream(STREAM, events=[Move], partitions=partitions)
        self.stream.group(GROUP, ordered=True, **{"retry": RetryPolicy(deliveries=4, minimum=1, maximum=4), **group})
        self.stream.on(Move, group=GROUP)(self.move)

    async def move(self, move: Move, context: Context) -> None:
        self.calls.append((move.parcel, move.step))
        self.in_hand[move.parcel] += 1
        self.most = max(self.most, self.in_hand.total())
        if self.in_hand[move.parcel] > 1:
            self.together.add(move.parcel)
        try:
            await context.connection.execute("move", [move.parcel, move.step])
            if self.then is not None:
                await self.then(move, context)
        finally:
            self.in_hand[move.parcel] -= 1


def moved(store: MemoryStore) -> dict[str | None, list[int]]:
    """The steps that took effect, by parcel, in order."""
    done: dict[str | None, list[int]] = defaultdict(list)
    for effect in store.effects:
        done[effect.values[0]].append(effect.values[1])
    return done


def counts(app: VirtualDeployment[Any], key: str = STREAM) -> Any:
    return app.deployment.pools[f"{GROUP}@{key}"].counts


async def test_a_key_whose_event_fails_waits_and_the_others_go_on(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        if (move.parcel, move.step) == ("a", 1) and depot.calls.count(("a", 1)) <= 3:
            raise OSError("the gate is closed")

    depot = Depot(then)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move(parcel, step) for step in range(5) for parcel in "abc"))
        while len(moved(app.store)["b"]) < 5 or len(moved(app.store)["c"]) < 5:
            await trio.sleep(0.01)
        assert moved(app.store)["a"] == [0]
        assert [row.origin.value for row in app.store.retries.rows] == ["attempt", "parked", "parked", "parked"]
        await app.publish(STREAM, Move("a", 5))
        await app.settled()
        assert moved(app.store) == {"a": [0, 1, 2, 3, 4, 5], "b": [0, 1, 2, 3, 4], "c": [0, 1, 2, 3, 4]}
        assert counts(app).parked == 4
        assert not depot.together


async def test_what_waits_holds_back_neither_position_nor_acknowledgement(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        if move.parcel == "a":
            raise OSError("the gate is closed")

    depot = Depot(then, retry=RetryPolicy(minimum=60, maximum=60))
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move("a", step) for step in range(3)), Move("b", 0))
        while len(app.store.retries.rows) < 3:
            await trio.sleep(0.01)
        (result,) = await app.publish(STREAM, Move("b", 1))
        while moved(app.store)["b"] != [0, 1]:
            await trio.sleep(0.01)
        await trio.sleep(0.1)
        assert (await app.deployment.client().xpending(STREAM, GROUP))["pending"] == 0
        assert app.store.position_table.rows[GROUP, STREAM] == result.entry_id  # type: ignore[union-attr]


async def test_a_dead_event_lets_its_key_go_on(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        if move.step == 1:
            raise OSError("the gate is closed") if move.parcel == "a" else Permanent("no such gate")

    depot = Depot(then)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move(parcel, step) for step in range(4) for parcel in "ab"))
        await app.settled()
        assert moved(app.store) == {"a": [0, 2, 3], "b": [0, 2, 3]}
        assert sorted(letter.reason.value for letter in app.store.letters) == ["max_deliveries", "permanent"]


async def test_what_is_behind_poison_waits_until_its_letter_is_taken(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, refused = MemoryStore(), [psycopg.errors.CheckViolation("a trigger says no")] * 3
    calls: list[tuple[str | None, int, int]] = []
    bury = store.dead_letters.bury

    async def refuse(transaction: Transaction, letter: DeadLetter) -> None:
        if refused:
            raise refused.pop()
        await bury(transaction, letter)

    async def stay(move: Move, context: Context) -> None:
        await trio.sleep_forever()

    async def then(move: Move, context: Context) -> None:
        calls.append((move.parcel, move.step, len(store.letters)))

    monkeypatch.setattr(store.dead_letters, "bury", refuse)
    async with InProcessRedis() as redis:
        async with virtual(Depot(stay).system, redis=redis, store=store) as app:
            results = await app.publish(STREAM, *(Move("a", step) for step in range(3)), Move("b", 3))
            await trio.sleep(1)
        async with store.transaction() as transaction:
            for _ in range(3):
                await store.suspects.mark(transaction, GROUP, STREAM, [results[0].entry_id])  # type: ignore[union-attr]
        async with virtual(Depot(then).system, redis=redis, store=store) as app:
            await app.settled()
    assert sorted(calls) == [("a", 1, 1), ("a", 2, 1), ("b", 3, 0)]
    assert moved(store) == {"a": [1, 2], "b": [3]}
    assert ([letter.reason.value for letter in store.letters], refused) == (["poison"], [])


async def test_events_without_a_key_wait_for_nobody(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        await trio.sleep(1)
        if move.step == 0:
            raise OSError("the gate is closed")

    depot = Depot(then, workers=4, batch=1)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move(None, step) for step in range(8)))
        await app.settled()
        assert sorted(moved(app.store)[None]) == list(range(1, 8))
        assert depot.most == 4
        assert counts(app).parked == 0


async def test_keys_are_handled_beside_each_other(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        await trio.sleep(1)

    depot = Depot(then, workers=4, batch=1)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move(parcel, step) for parcel in "abcd" for step in range(3)))
        await app.settled()
        assert depot.most == 4
        assert not depot.together
        assert set(map(tuple, moved(app.store).values())) == {(0, 1, 2)}


async def test_partitions_share_the_workers_of_their_group(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        await trio.sleep(1)

    depot = Depot(then, workers=3, batch=1, partitions=4)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move(str(parcel), step) for step in range(2) for parcel in range(12)))
        await app.settled()
        assert depot.most == 3
        assert set(map(tuple, moved(app.store).values())) == {(0, 1)}


async def test_a_replayed_letter_is_not_handled_beside_another_event_of_its_key(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        await trio.sleep(2)

    depot = Depot(then, workers=4, batch=1)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move("a", step) for step in range(4)))
        await trio.sleep(0.5)
        envelope = event_type_of(Move).envelope(Move("a", 99))
        row = RetryRow(
            consumer_group=GROUP,
            stream=STREAM,
            entry_id="1-0",
            event_id=envelope.event_id,
            event_key="a",
            fields=depot.stream.encode(envelope),
            origin=RetryOrigin.LETTER,
        )
        async with app.store.transaction() as transaction:
            await app.store.retries.add(transaction, [row])
        await app.settled()
        assert not depot.together
        assert sorted(moved(app.store)["a"]) == [0, 1, 2, 3, 99]


async def test_many_that_are_parked_follow_in_order_and_in_batches(autojump_clock: MockClock) -> None:
    async def then(move: Move, context: Context) -> None:
        if move.step == 0 and len(depot.calls) < 3:
            raise OSError("the gate is closed")
        if move.step == 250 and depot.calls.count(("a", 250)) < 4:
            raise OSError("and another one")

    depot = Depot(then, retry=RetryPolicy(deliveries=9, minimum=5, maximum=5), batch=50)
    async with virtual(depot.system) as app:
        await app.publish(STREAM, *(Move("a", step) for step in range(400)))
        await app.settled()
        assert moved(app.store)["a"] == list(range(400))
        assert app.store.commits < 400


@pytest.mark.parametrize("seed", range(4))
async def test_order_is_kept_through_restarts_and_failures_of_all_kinds(autojump_clock: MockClock, seed: int) -> None:
    chance = random.Random(seed)

    async def then(move: Move, context: Context) -> None:
        await trio.sleep(chance.random() * 0.05)
        if chance.random() < 0.15:
            raise chance.choice([OSError("closed"), TimeoutError("slow")])

    store = MemoryStore()
    published: Counter[str] = Counter()
    async with InProcessRedis() as redis:
        for life in range(4):
            depot = Depot(
                then, partitions=2, workers=3, batch=4, retry=RetryPolicy(deliveries=99, minimum=0.5, maximum=2)
            )
            async with virtual(depot.system, redis=redis, store=store, seed=seed) as app:
                for _ in range(10):
                    moves = []
                    for _ in range(chance.randint(1, 5)):
                        parcel = chance.choice("abcde")
                        moves.append(Move(parcel, published[parcel]))
                        published[parcel] += 1
                    await app.publish(STREAM, *moves)
                    await trio.sleep(chance.random() * 0.3)
                    if chance.random() < 0.2:
                        app.lose_database("away")
                        await trio.sleep(chance.random() * 5)
                        app.restore_database()
                        await app.serving()
                if life == 3:
                    await app.settled()
            assert not depot.together
    assert moved(store) == {parcel: list(range(count)) for parcel, count in published.items()}
    assert store.letters == []


async def test_who_has_lost_the_lease_commits_nothing_and_costs_no_attempt(autojump_clock: MockClock) -> None:
    depot, lost = Depot(), [True]
    store = MemoryStore()
    real = store.leases.hold

    async def hold(*arguments: Any) -> None:
        if lost:
            raise LeaseLost("somebody else has it")
        await real(*arguments)

    store.leases.hold = hold  # type: ignore[method-assign]
    async with virtual(depot.system, store=store) as app:
        await app.publish(STREAM, Move("a", 0))
        await trio.sleep(30)
        assert depot.calls == []
        assert app.deployment.gates["postgres"].is_open
        lost.clear()
        await app.settled()
        assert moved(store) == {"a": [0]}
        assert store.letters == []


# The backlog ----------------------------------------------------------------------------------------------------------


def backlog(*keyed: str) -> Backlog:
    """With entries ``1-0``, ``2-0`` … of these keys (``-``: of none)."""
    made = Backlog(100)
    keys = {f"{number}-0": key for number, key in enumerate(keyed, 1)}
    made.order_by(lambda entry: None if keys[entry.id] == "-" else keys[entry.id])
    made.add(Entry(STREAM, each, {}) for each in keys)
    return made


async def take(made: Backlog, limit: int = 10) -> list[Entry]:
    return await made.take(limit, lambda: False, lambda: 0.0)


def ids(entries: Sequence[Entry]) -> str:
    return " ".join(entry.id.partition("-")[0] for entry in entries)


async def test_a_batch_has_all_of_a_key_and_another_batch_none_of_it() -> None:
    made = backlog("a", "b", "a", "-", "a", "b", "c")
    first = await take(made, 2)
    second = await take(made, 10)
    assert (ids(first), ids(second)) == ("1 2", "4 7")
    assert await take(made) == []
    made.done(first[:1])
    third = await take(made)
    assert ids(third) == "3 5"
    made.give_back(third)
    made.done(first[1:])
    assert ids(await take(made)) == "3 5 6"


async def test_what_is_postponed_halts_its_key(autojump_clock: MockClock) -> None:
    made = backlog("a", "a", "b")
    (one,) = await take(made, 1)
    made.postpone(one, 60.0)
    assert ids(await take(made)) == "3"
    await trio.sleep(60)
    assert ids(await take(made)) == "1 2"


async def test_keys_that_others_work_on_are_left_alone() -> None:
    made = backlog("a", "b", "c")
    (one,) = await take(made, 1)
    assert made.occupy({"a", "b"}) == {"b"}
    assert made.busy_keys == {"a", "b"}
    assert ids(await take(made)) == "3"
    made.release({"b"})
    assert ids(await take(made)) == "2"
    made.done([one])
    assert made.busy_keys == {"b", "c"}


async def test_what_comes_late_goes_before_what_is_younger() -> None:
    made = Backlog(10)
    made.order_by(lambda _: "a")
    made.add([Entry(STREAM, "5-0", {}), Entry(STREAM, "9-0", {})])
    made.add([Entry(STREAM, "3-0", {}), Entry(STREAM, "4-0", {})])
    assert [entry.id for entry in await take(made)] == ["3-0", "4-0", "5-0", "9-0"]


async def test_what_is_redelivered_does_not_come_with_others() -> None:
    made = Backlog(10)
    made.add([Entry(STREAM, f"{number}-0", {}, redelivered=number in (3, 4)) for number in range(1, 7)])
    assert [ids(await take(made)) for _ in range(3)] == ["1 2", "3 4", "5 6"]


async def test_the_rest_is_told_by_consumer_and_what_others_have_is_forgotten() -> None:
    made = Backlog(10)
    made.add([Entry(STREAM, f"{number}-0", {}, consumer="xy"[number % 2]) for number in range(1, 7)])
    one, two = await take(made, 2)
    made.done([one])
    assert {consumer: ids(entries) for consumer, entries in made.rest().items()} == {"x": "2 4 6", "y": "3 5"}
    assert made.forget({"1-0", "2-0", "5-0", "4-0", "9-0"}) == ["4-0", "5-0"]
    assert ids(made.entries()) == "1 2 3 6"
    assert made.room == 6
    assert two.id == "2-0"
