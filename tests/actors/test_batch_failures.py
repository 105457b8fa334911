"""Batch handlers of which some events fail: the others are committed, and the failed ones are tried again alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from attrs import evolve, frozen
from trio.testing import MockClock

from penstock.actors.calling import plan
from penstock.actors.event import Envelope, event, event_type_of
from penstock.actors.handling import Context, Delivery, Entry, Permanent
from penstock.actors.retry_table import RetryOrigin, RetryRow
from penstock.actors.retrying import RetryPolicy
from penstock.actors.sorting import Handle
from penstock.actors.system import Handler, System
from penstock.actors.virtual import VirtualDeployment, virtual

STREAM, GROUP = "orders", "billing"


@event("BILL", key="customer")
@frozen
class Bill:
    number: int
    customer: str | None = None


@event("NOTE", key="customer")
@frozen
class Note:
    number: int
    customer: str | None = None


class Billing:
    """A batch handler that writes an effect for each event, and lets those fail that it is told to."""

    def __init__(self, **group: Any) -> None:
        self.failing: dict[int, Exception] = {}
        self.times = 1
        self.batches: list[list[int]] = []
        self.attempts: list[tuple[int, int]] = []
        self.system = System("app")
        self.stream = self.system.stream(STREAM, events=[Bill, Note])
        self.stream.group(GROUP, **group)
        self.stream.on(Bill, group=GROUP, batch=True, retry=RetryPolicy(deliveries=3, minimum=1, maximum=2))(self.bill)
        self.stream.on(Note, group=GROUP)(self.note)

    async def bill(self, deliveries: Sequence[Delivery[Bill]], context: Context) -> None:
        self.batches.append([delivery.event.number for delivery in deliveries])
        for delivery in deliveries:
            number = delivery.event.number
            self.attempts.append((number, delivery.attempt))
            error = self.failing.get(number)
            if error is not None and delivery.attempt <= self.times:
                context.fail(delivery, error)
            else:
                await context.connection.execute("bill", [number])
        await self.then(deliveries, context)

    async def note(self, note: Note, context: Context) -> None:
        await context.connection.execute("note", [note.number])

    async def then(self, deliveries: Sequence[Delivery[Bill]], context: Context) -> None:
        """What a test replaces."""


def effects(app: VirtualDeployment[Any]) -> list[int]:
    return [effect.values[0] for effect in app.store.effects]


async def test_what_fails_alone_costs_the_others_nothing_and_is_tried_again(autojump_clock: MockClock) -> None:
    billing = Billing()
    billing.failing = {3: OSError("no answer"), 5: OSError("no answer")}
    async with virtual(billing.system) as app:
        await app.publish(STREAM, *map(Bill, range(8)))
        await app.settled()
        assert billing.batches[0] == list(range(8))
        assert effects(app)[:6] == [0, 1, 2, 4, 6, 7]
        assert sorted(effects(app)) == list(range(8))
        assert sorted(billing.attempts[8:]) == [(3, 2), (5, 2)]
        counts = app.deployment.pools[f"{GROUP}@{STREAM}"].counts
        assert (counts.handled, counts.retried, counts.duplicates, counts.dead) == (8, 2, 0, 0)


async def test_what_fails_for_good_is_a_dead_letter_beside_the_effects_of_the_others(autojump_clock: MockClock) -> None:
    billing = Billing()
    billing.failing, billing.times = {3: Permanent("closed account"), 5: OSError("no answer")}, 99
    async with virtual(billing.system) as app:
        await app.publish(STREAM, *map(Bill, range(8)))
        await app.settled()
        assert sorted(effects(app)) == [0, 1, 2, 4, 6, 7]
        reasons = {letter.event_id: (letter.reason.value, letter.deliveries) for letter in app.store.letters}
        assert sorted(reasons.values()) == [("max_deliveries", 3), ("permanent", 1)]
        assert {event_id for _, event_id in app.store.inbox}.isdisjoint(reasons)


async def test_a_batch_that_raises_is_halved(autojump_clock: MockClock) -> None:
    billing = Billing()

    async def then(deliveries: Sequence[Delivery[Bill]], context: Context) -> None:
        if any(delivery.event.number == 3 for delivery in deliveries):
            raise Permanent("closed account")

    billing.then = then  # type: ignore[method-assign]
    async with virtual(billing.system) as app:
        await app.publish(STREAM, *map(Bill, range(5)))
        await app.settled()
        assert effects(app) == [0, 1, 2, 4]
        assert billing.batches == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4], [3], [4]]
        assert len(app.store.letters) == 1


async def test_a_failure_of_what_was_not_given_is_the_handlers_fault(autojump_clock: MockClock) -> None:
    billing = Billing()
    strange: list[Delivery[Bill]] = []

    async def then(deliveries: Sequence[Delivery[Bill]], context: Context) -> None:
        if not strange:
            strange.append(evolve(deliveries[0], entry_id="7-7"))
        if deliveries[-1].event.number == 2:
            context.fail(strange[0], OSError("somebody else's"))

    billing.then = then  # type: ignore[method-assign]
    async with virtual(billing.system) as app:
        await app.publish(STREAM, *map(Bill, range(3)))
        await app.settled()
        assert sorted(effects(app)) == [0, 1]
        (letter,) = app.store.letters
        assert letter.error_class == "builtins.ValueError"
        assert "7-7" in (letter.error_message or "")
        assert "bill" in (letter.error_message or "")


async def test_an_event_that_fails_alone_leaves_nothing_of_its_own_behind(autojump_clock: MockClock) -> None:
    """Alone in its transaction, everything is undone: there is nobody beside it whose effects must stay."""
    billing = Billing(batch=1)
    billing.failing, billing.times = {1: OSError("no")}, 1

    async def then(deliveries: Sequence[Delivery[Bill]], context: Context) -> None:
        await context.connection.execute("trace", [deliveries[0].attempt])

    billing.then = then  # type: ignore[method-assign]
    async with virtual(billing.system) as app:
        await app.publish(STREAM, Bill(1))
        await app.settled()
        assert [(effect.statement, *effect.values) for effect in app.store.effects] == [("bill", 1), ("trace", 2)]


async def test_the_same_event_twice_in_a_batch_fails_once(autojump_clock: MockClock) -> None:
    billing = Billing()
    billing.failing = {1: OSError("no answer")}
    envelope = event_type_of(Bill).envelope(Bill(1))
    async with virtual(billing.system) as app:
        await app.publish(STREAM, envelope, event_type_of(Bill).envelope(Bill(2)), envelope)
        await app.settled()
        assert sorted(effects(app)) == [1, 2]


async def test_a_replay_by_order_that_fails_in_a_batch_forgets_nothing(autojump_clock: MockClock) -> None:
    """What the inbox knew before, it knows afterwards."""
    billing = Billing()
    envelopes = [event_type_of(Bill).envelope(Bill(number)) for number in range(3)]
    async with virtual(billing.system) as app:
        await app.publish(STREAM, *envelopes)
        await app.settled()
        billing.failing, billing.times = {1: Permanent("closed")}, 99
        known = app.store.inbox
        async with app.store.transaction() as transaction:
            for number, envelope in enumerate(envelopes):
                replay = RetryRow(
                    consumer_group=GROUP,
                    stream=STREAM,
                    entry_id=f"{number + 1}-0",
                    event_id=envelope.event_id,
                    fields=billing.stream.encode(envelope),
                    origin=RetryOrigin.REPLAY,
                    forced=True,
                )
                await app.store.retries.add(transaction, [replay])
        await app.settled()
        assert app.store.inbox == known
        assert sorted(effects(app)) == [0, 0, 1, 2, 2]
        assert len(app.store.letters) == 1


@pytest.mark.parametrize("seed", range(3))
async def test_in_order_a_failed_event_is_not_overtaken_by_its_own_batch(autojump_clock: MockClock, seed: int) -> None:
    billing = Billing(ordered=True)
    billing.failing, billing.times = {2: OSError("no answer")}, 2
    async with virtual(billing.system, seed=seed) as app:
        await app.publish(STREAM, *(Bill(number, "ab"[number % 2]) for number in range(8)))
        await app.settled()
        done = effects(app)
        assert [number for number in done if number % 2 == 0] == [0, 2, 4, 6]
        assert [number for number in done if number % 2] == [1, 3, 5, 7]
        assert done.index(7) < done.index(2)


async def test_in_order_single_and_batch_handlers_keep_the_order_of_a_key(autojump_clock: MockClock) -> None:
    billing = Billing(ordered=True)
    async with virtual(billing.system) as app:
        await app.publish(STREAM, Bill(0, "a"), Note(1, "a"), Bill(2, "a"), Bill(3, "b"), Note(4, "a"), Bill(5, "b"))
        await app.settled()
        done = effects(app)
        assert [number for number in done if number in (0, 1, 2, 4)] == [0, 1, 2, 4]
        assert [number for number in done if number in (3, 5)] == [3, 5]


# The plan, as a table -------------------------------------------------------------------------------------------------


async def _nothing(*_: Any) -> None:
    """A handler."""


_KINDS = {
    "x": Handler(evolve(event_type_of(Bill), name="x"), _nothing, batch=True),
    "y": Handler(evolve(event_type_of(Bill), name="y"), _nothing, batch=True),
    "s": Handler(evolve(event_type_of(Bill), name="s"), _nothing),
}


@pytest.mark.parametrize(
    ("events", "ordered", "calls"),
    [
        ("x1 x2 s1 s2", False, "s1 | s2 | x1 x2"),
        ("x1 s2 x3", True, "s2 | x1 x3"),
        ("x1 x2 s1 x1", True, "x1 x2 | s1 | x1"),
        ("x1 y1 x1", True, "x1 | y1 | x1"),
        ("x1 y2 x2 y1", True, "y2 | x1 x2 | y1"),
        ("x- y- s- x-", True, "s- | x- x- | y-"),
        ("s1 s1 s1", True, "s1 | s1 | s1"),
    ],
)
def test_calls_are_planned(events: str, ordered: bool, calls: str) -> None:
    handles = []
    for number, text in enumerate(events.split()):
        kind, key = text
        envelope = Envelope(event_type=kind, data={}, key=None if key == "-" else key)
        handles.append(Handle(Entry(STREAM, f"{number}-0", {}, read_at=0.0), envelope, text, _KINDS[kind]))
    planned = plan(handles, ordered=ordered)
    assert " | ".join(" ".join(handle.event for handle in call.handles) for call in planned) == calls


async def test_an_event_that_is_in_the_batch_twice_keeps_its_first_place(autojump_clock: MockClock) -> None:
    """As after a relay that died before it could delete what it had added. The second entry is not parked for it."""
    billing = Billing(ordered=True, workers=1)
    billing.failing = {1: OSError("no answer")}
    bills = [event_type_of(Bill).envelope(Bill(number, "ada")) for number in range(3)]
    async with virtual(billing.system) as app:
        await app.deployment.publish(STREAM, [*bills, *bills])
        await app.settled()
        assert effects(app) == [0, 1, 2]
        assert not app.store.letters
