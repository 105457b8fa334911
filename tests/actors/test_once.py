"""What a handler does outside of its transaction, and how often, whatever happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
import trio
from attrs import define, field, frozen
from trio.testing import MockClock

from penstock.actors.event import event, new_event_id
from penstock.actors.handling import Context, Delivery, Permanent
from penstock.actors.once import Steps
from penstock.actors.step_table import Step, StepState
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual


@event("ORDER")
@frozen
class Order:
    number: int


Call = Callable[[], Awaitable[None]]


@define
class Outside:
    """Somebody who counts what he was asked for, and what happens then."""

    done: list[int] = field(factory=list)
    before: Call = trio.lowlevel.checkpoint
    after: Call = trio.lowlevel.checkpoint

    async def ask(self, number: int) -> None:
        await self.before()
        self.done.append(number)
        await self.after()


async def well() -> None:
    await trio.lowlevel.checkpoint()


def shop(outside: Outside, then: Callable[[Context], Awaitable[None]] | None = None, **options: Any) -> System:
    system = System("shop")
    orders = system.stream("orders", events=[Order])
    orders.group("mails", batch=1)

    @orders.on(Order, group="mails")
    async def send(order: Order, context: Context) -> None:
        await context.once("mail", lambda: outside.ask(order.number), **options)
        await context.connection.execute("insert mail", [order.number])
        if then is not None:
            await then(context)

    return system


async def test_what_was_done_is_not_done_again_when_what_follows_fails(autojump_clock: MockClock) -> None:
    outside, failures = Outside(), 3

    async def fail(context: Context) -> None:
        nonlocal failures
        await trio.lowlevel.checkpoint()
        failures -= 1
        if failures >= 0:
            raise ValueError("later")

    async with virtual(shop(outside, fail)) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        assert (outside.done, len(app.store.effects)) == ([1], 1)
        assert app.store.steps.table.rows == {}


@pytest.mark.parametrize("effect", [False, True])
async def test_nor_when_the_answer_to_the_commit_is_lost(autojump_clock: MockClock, *, effect: bool) -> None:
    outside = Outside()
    system = shop(outside)
    async with virtual(system) as app:

        async def lose() -> None:
            await trio.lowlevel.checkpoint()
            outside.after = trio.lowlevel.checkpoint
            # The next commit notes that it is done; the one after it is the handler's.
            end = app.store.steps.end
            app.store.steps.end = _then(end, lambda: app.store.lose_commit(effect=effect))  # type: ignore[method-assign]

        outside.after = lose
        await app.publish("orders", Order(1))
        await app.settled()
        assert (outside.done, len(app.store.effects)) == ([1], 1)


def _then(call: Callable[..., Awaitable[None]], after: Callable[[], None]) -> Any:
    async def both(*args: Any) -> None:
        await call(*args)
        after()

    return both


async def test_what_fails_was_not_done_and_is_tried_again(autojump_clock: MockClock) -> None:
    outside, refusals = Outside(), 2

    async def refuse() -> None:
        nonlocal refusals
        await trio.lowlevel.checkpoint()
        refusals -= 1
        if refusals >= 0:
            raise ConnectionError("refused")

    outside.before = refuse
    async with virtual(shop(outside, again=False)) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        assert (outside.done, app.store.letters) == ([1], [])


@pytest.mark.parametrize("again", [True, False])
async def test_of_what_was_broken_off_nobody_knows(autojump_clock: MockClock, *, again: bool) -> None:
    """At least once, or at most once and a person decides."""
    outside, lost = Outside(), False
    async with virtual(shop(outside, again=again)) as app:

        async def lose() -> None:
            nonlocal lost
            if not lost:
                lost = True
                app.lose_database("the disk is full")
                await trio.sleep_forever()

        outside.after = lose
        await app.publish("orders", Order(1))
        await trio.sleep(60)
        assert outside.done == [1]
        app.restore_database()
        await app.settled()
        if again:
            assert (outside.done, len(app.store.effects), app.store.letters) == ([1, 1], 1, [])
        else:
            assert (outside.done, len(app.store.effects)) == ([1], 0)
            (letter,) = app.store.letters
            assert letter.error_message.startswith("whether 'mail' was done is not known")


async def test_what_is_done_is_noted_though_its_handler_is_cancelled_in_that_moment(autojump_clock: MockClock) -> None:
    store, event_id = MemoryStore(), new_event_id()
    with trio.CancelScope() as scope:

        async def call() -> None:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)
            scope.cancel()

        await Steps(store.steps, "mails", "orders").once(event_id, "mail", call, again=True)
        await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert list(store.steps.table.rows.values()) == [StepState.DONE]


async def test_a_note_that_takes_too_long_keeps_nobody(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()

    async def never(step: Step) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(store.steps, "end", never)
    with trio.move_on_after(60):
        await Steps(store.steps, "mails", "orders").once(new_event_id(), "mail", trio.lowlevel.checkpoint, again=True)
    assert trio.current_time() == 62
    assert list(store.steps.table.rows.values()) == [StepState.BEGUN]


async def test_a_note_that_takes_long_is_waited_for_while_nobody_minds(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up, what is done would be done again, and no process has died."""
    store = MemoryStore()
    end = store.steps.end

    async def slowly(step: Step) -> None:
        await trio.sleep(10)
        await end(step)

    monkeypatch.setattr(store.steps, "end", slowly)
    assert await Steps(store.steps, "mails", "orders").once(
        new_event_id(), "mail", trio.lowlevel.checkpoint, again=True
    )
    assert list(store.steps.table.rows.values()) == [StepState.DONE]


async def test_what_failed_while_it_was_cancelled_was_not_done(autojump_clock: MockClock) -> None:
    store = MemoryStore()
    with trio.CancelScope() as scope:

        async def call() -> None:
            await trio.lowlevel.checkpoint()
            scope.cancel()
            raise ConnectionError("refused")

        await Steps(store.steps, "mails", "orders").once(new_event_id(), "mail", call, again=False)
    assert scope.cancelled_caught
    assert store.steps.table.rows == {}


async def test_two_steps_of_one_name_are_refused(autojump_clock: MockClock) -> None:
    """The second would be left out in silence, or done beside the first."""
    steps, event_id, done = Steps(MemoryStore().steps, "mails", "orders"), new_event_id(), []

    async def send(whom: str) -> None:
        await trio.sleep(1)
        done.append(whom)

    await steps.once(event_id, "mail", partial(send, "ann"), again=True)
    with pytest.raises(ValueError, match="has a step 'mail' of this event already"):
        await steps.once(event_id, "mail", partial(send, "bob"), again=True)
    await steps.once(new_event_id(), "mail", partial(send, "another event's"), again=True)
    with pytest.raises(ExceptionGroup) as caught:
        async with trio.open_nursery() as nursery:
            for whom in ("cid", "dan"):
                nursery.start_soon(partial(steps.once, event_id, "both", partial(send, whom), again=True))
    assert caught.group_contains(ValueError)
    assert done == ["ann", "another event's"]


async def test_a_handler_may_try_again_what_was_broken_off(autojump_clock: MockClock) -> None:
    steps, event_id, tries = Steps(MemoryStore().steps, "mails", "orders"), new_event_id(), []

    async def send() -> None:
        tries.append(trio.current_time())
        await trio.sleep(10 if len(tries) == 1 else 0)
        if len(tries) == 2:
            raise ConnectionError("refused")

    with trio.move_on_after(5):
        await steps.once(event_id, "mail", send, again=True)
    with pytest.raises(ConnectionError):
        await steps.once(event_id, "mail", send, again=True)
    assert await steps.once(event_id, "mail", send, again=True)
    assert len(tries) == 3


@pytest.mark.parametrize("name", ["", "a\0b", 7, None])
async def test_what_cannot_be_a_step_is_not_begun(autojump_clock: MockClock, name: Any) -> None:
    store = MemoryStore()
    steps, event_id = Steps(store.steps, "mails", "orders"), new_event_id()
    with pytest.raises(ValueError, match="non-empty string without NUL"):
        await steps.once(event_id, name, trio.lowlevel.checkpoint, again=True)
    sending: Any = well()
    with pytest.raises(TypeError, match=r"given as a function: once\('mail', lambda"):
        await steps.once(event_id, "mail", sending, again=True)
    assert store.steps.table.rows == {}


async def test_what_a_blocking_function_has_done_is_not_done_again(autojump_clock: MockClock) -> None:
    """It is refused too late to be undone."""
    sent: list[int] = []
    system = System("shop")
    orders = system.stream("orders", events=[Order])
    orders.group("mails", batch=1)

    @orders.on(Order, group="mails")
    async def send(order: Order, context: Context) -> None:
        blocking: Any = lambda: sent.append(order.number)  # noqa: E731
        await context.once("mail", blocking)

    async with virtual(system) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        assert (sent, app.store.letters) == ([1], [])


async def test_a_batch_handler_says_which_event_it_means(autojump_clock: MockClock) -> None:
    done: list[int] = []
    failed = False
    system = System("shop")
    orders = system.stream("orders", events=[Order])

    @orders.on(Order, group="mails", batch=True)
    async def send(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        nonlocal failed

        async def note(number: int) -> None:
            await trio.lowlevel.checkpoint()
            done.append(number)

        for each in deliveries:
            await context.once("mail", lambda each=each: note(each.event.number), delivery=each)  # type: ignore[misc]
        if not failed:
            failed = True
            context.fail(deliveries[0], ValueError("later"))

    async with virtual(system) as app:
        await app.publish("orders", *map(Order, range(3)))
        await app.settled()
        assert sorted(done) == [0, 1, 2]
        assert app.store.steps.table.rows == {}


async def test_without_an_event_it_is_refused(autojump_clock: MockClock) -> None:
    system = System("shop")
    orders = system.stream("orders", events=[Order])

    @orders.on(Order, group="mails", batch=True)
    async def send(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
        try:
            await context.once("mail", trio.lowlevel.checkpoint)
        except RuntimeError as error:
            raise Permanent(str(error)) from error

    async with virtual(system) as app:
        await app.publish("orders", Order(1))
        await app.settled()
        (letter,) = app.store.letters
        assert "say which one is meant" in letter.error_message


async def test_a_handler_is_answered_by_what_the_test_says(autojump_clock: MockClock) -> None:
    found: list[Any] = []
    system = System("shop")
    orders = system.stream("orders", events=[Order])

    @orders.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        cursor = await context.connection.execute(
            """INSERT into payment (number)
               values (%s) returning id""",
            [order.number],
        )
        found.append((cursor.rowcount, await cursor.fetchone(), await cursor.fetchone()))
        cursor = await context.connection.execute("select name from customer")
        found.append([row async for row in cursor])
        cursor = await context.connection.execute("select nothing")
        found.append((cursor.rowcount, await cursor.fetchall()))

    async with virtual(system) as app:
        app.store.answer("insert into payment", [(0,)])
        app.store.answer("insert into payment", lambda values: [(100 + values[0],)])
        app.store.answer("select name", [("a",), ("b",)])
        await app.publish("orders", Order(7))
        await app.settled()
    assert found == [(1, (107,), None), [("a",), ("b",)], (1, [])]


@pytest.mark.parametrize("rows", [None, 5, [1], "ab", (1, 2), {(1,)}])
def test_what_is_no_answer_is_refused(rows: Any) -> None:
    store = MemoryStore()
    with pytest.raises(TypeError, match=r"a row is a tuple, as in \[\(1,\)\]"):
        store.answer("select", rows)
    with pytest.raises(ValueError, match="say how those begin"):
        store.answer("  ", [(1,)])
