"""Mailboxes, in virtual time."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import trio
import trio.testing
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime.mailbox import AskTimeout, Inbox, Mailbox, PeerDied, Reply


@frozen
class Question:
    text: str
    reply: Reply[str]


async def test_messages_survive_the_crash_of_their_reader(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 10)
    for number in (1, 2, 3):
        await box.tell(number)

    async def actor() -> int:
        async with box.receive() as inbox:
            first = await inbox.next()
            if first == 1:
                raise RuntimeError("crash on the first")
            return first

    with pytest.raises(RuntimeError):
        await actor()
    assert await actor() == 2
    assert box.statistics().depth == 1


async def test_a_full_mailbox_makes_tell_wait_and_counts_what_offer_could_not_place(
    autojump_clock: trio.testing.MockClock,
) -> None:
    box: Mailbox[int] = Mailbox("box", 2)
    assert box.offer(1)
    assert box.offer(2)
    assert not box.offer(3)
    with trio.move_on_after(5) as scope:
        await box.tell(4)
    assert scope.cancelled_caught
    seen = box.statistics()
    assert (seen.depth, seen.peak, seen.dropped, seen.oldest_age) == (2, 2, 1, 5.0)
    async with box.receive() as inbox:
        assert [await inbox.next(), await inbox.next()] == [1, 2]
        with pytest.raises(trio.WouldBlock):
            inbox.next_nowait()
    assert box.statistics().received == 2


async def test_ask_gets_the_answer_or_the_error(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 1)

    async def oracle() -> None:
        async with box.receive() as inbox:
            async for question in inbox:
                if question.text == "bad":
                    question.reply.fail(KeyError("bad question"))
                else:
                    question.reply.set(question.text.upper())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle)
        assert await box.ask(lambda reply: Question("hello", reply), 1.0) == "HELLO"
        with pytest.raises(KeyError):
            await box.ask(lambda reply: Question("bad", reply), 1.0)
        nursery.cancel_scope.cancel()


async def test_ask_names_the_mailbox_when_nobody_answers(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 1)
    with pytest.raises(AskTimeout, match="oracle"):
        await box.ask(lambda reply: Question("?", reply), 3.0)
    assert trio.current_time() == 3
    with pytest.raises(AskTimeout):
        await box.ask(lambda reply: Question("no room either", reply), 3.0)


async def test_a_late_answer_harms_nobody_and_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("slow", 1)

    async def slow() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            await trio.sleep(10)
            assert question.reply.is_abandoned
            question.reply.set("too late")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        with pytest.raises(AskTimeout):
            await box.ask(lambda reply: Question("?", reply), 1.0)
    assert box.statistics().late_replies == 1


async def test_the_asker_hears_at_once_that_the_peer_died_and_why(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("mortal", 1)

    async def mortal() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            inbox.owe(question.reply)
            raise ZeroDivisionError("the cause")

    async def ask() -> None:
        with pytest.raises(PeerDied) as caught:
            await box.ask(lambda reply: Question("?", reply), 60.0)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(ZeroDivisionError):
            await mortal()
    assert trio.current_time() == 0


async def test_an_asker_that_is_cancelled_leaves_no_trace(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("box", 1)
    with trio.move_on_after(1):
        await box.ask(lambda reply: Question("?", reply), 60.0)
    async with box.receive() as inbox:
        question = await inbox.next()
        assert question.reply.is_abandoned
        question.reply.set("dropped")


async def test_one_mailbox_one_reader() -> None:
    box: Mailbox[int] = Mailbox("box", 1)
    async with box.receive():
        with pytest.raises(RuntimeError, match="box"):
            async with box.receive():
                pass
    async with box.receive():
        pass


async def test_a_cancelled_reader_takes_no_message(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 1)
    async with box.receive() as inbox:
        for deadline in (0.0, 0.5, 1.0):
            with trio.move_on_after(deadline):
                await inbox.next()
        box.offer(7)
        assert await inbox.next() == 7


def test_a_capacity_must_be_a_bound() -> None:
    for bad in (0, -1, float("inf")):
        with pytest.raises(ValueError, match="capacity"):
            Mailbox("box", bad)  # type: ignore[arg-type]


async def test_the_age_is_that_of_what_is_queued_though_senders_are_always_waiting(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A reader that keeps up with a queue that is never empty is not hours behind."""
    box: Mailbox[int] = Mailbox("box", 2)

    async def send() -> None:
        for number in range(100):
            await box.tell(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        async with box.receive() as inbox:
            for number in range(100):
                await trio.sleep(60)
                assert await inbox.next() == number
                assert box.statistics().oldest_age <= 60
    seen = box.statistics()
    assert (seen.depth, seen.peak, seen.received, seen.oldest_age) == (0, 2, 100, 0.0)


async def test_what_is_handed_to_a_waiting_reader_was_never_queued(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 5)
    taken: list[int] = []

    async def read() -> None:
        async with box.receive() as inbox:
            taken.append(await inbox.next())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        box.offer(1)  # the reader has it, and has not run yet
        box.offer(2)
        assert (box.statistics().depth, box.statistics().peak) == (1, 1)
    await trio.sleep(7)
    assert taken == [1]
    assert (box.statistics().depth, box.statistics().oldest_age) == (1, 7.0)


@given(
    happenings=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["tell", "offer", "read"])),
            st.tuples(st.sampled_from(["cancel_sender", "cancel_reader", "sleep"]), st.integers(0, 5)),
        ),
        max_size=40,
    )
)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
def test_each_message_comes_once_in_order_and_is_counted_whoever_is_cancelled(
    happenings: list[tuple[str, int]],
) -> None:
    trio.run(_random_life, happenings, clock=trio.testing.MockClock(autojump_threshold=0))


async def _random_life(happenings: list[tuple[str, int]]) -> None:
    box: Mailbox[int] = Mailbox("box", 3)
    sent: list[int] = []
    taken: list[int] = []
    senders: list[trio.CancelScope] = []
    readers: list[trio.CancelScope] = []

    async def tell(number: int, scope: trio.CancelScope) -> None:
        with scope:
            await box.tell(number)
            sent.append(number)

    async def read(inbox: Inbox[int], scope: trio.CancelScope) -> None:
        with scope:
            taken.append(await inbox.next())

    async with trio.open_nursery() as nursery, box.receive() as inbox:
        for number, (kind, *which) in enumerate(happenings):
            scope = trio.CancelScope()
            if kind == "tell":
                senders.append(scope)
                nursery.start_soon(tell, number, scope)
            elif kind == "offer":
                if box.offer(number):
                    sent.append(number)
            elif kind == "read":
                readers.append(scope)
                nursery.start_soon(read, inbox, scope)
            elif kind == "sleep":
                await trio.sleep(1)
            else:
                scopes = senders if kind == "cancel_sender" else readers
                for victim in scopes[which[0] : which[0] + 1]:
                    victim.cancel()
            held = box._send.statistics().current_buffer_used
            assert box.statistics().depth == held
        await trio.testing.wait_all_tasks_blocked()
        assert box.statistics().depth == box._send.statistics().current_buffer_used
        assert set(taken) <= set(sent)
        assert box.statistics().received == len(taken)
        for scope in (*senders, *readers):
            scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        while box.statistics().depth:
            taken.append(inbox.next_nowait())
    assert sorted(taken) == sorted(sent)
    assert box.statistics().peak <= box.capacity


async def test_an_answer_of_the_last_moment_is_either_given_or_counted_as_late(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Answer and time-out in one tick, in whichever order the scheduler takes them."""
    answers: list[str] = []
    late = 0

    async def ask(box: Mailbox[Question]) -> None:
        with contextlib.suppress(AskTimeout):
            answers.append(await box.ask(lambda reply: Question("?", reply), 5.0))

    async def answer(box: Mailbox[Question]) -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            await trio.sleep_until(start + 5.0)
            question.reply.set("just in time")

    for _ in range(40):
        start = trio.current_time()
        box: Mailbox[Question] = Mailbox("punctual", 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, box)
            nursery.start_soon(answer, box)
        late += box.statistics().late_replies
    assert len(answers) + late == 40
    assert answers


async def test_the_bad_news_of_a_death_is_no_late_answer(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("mortal", 1)

    async def mortal() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            inbox.owe(question.reply)
            await trio.sleep(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mortal)
        with pytest.raises(AskTimeout):
            await box.ask(lambda reply: Question("?", reply), 1.0)
    assert box.statistics().late_replies == 0


async def test_an_inbox_that_was_given_back_takes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 3)
    async with box.receive() as old:
        pass
    box.offer(1)
    with pytest.raises(trio.ClosedResourceError):
        await old.next()
    with pytest.raises(trio.ClosedResourceError):
        old.next_nowait()
    assert box.statistics().depth == 1


async def test_an_error_that_was_answered_leaves_no_cycle_that_keeps_its_frames(
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Ballast:
        pass

    box: Mailbox[Question] = Mailbox("oracle", 1)
    kept: list[weakref.ref[Ballast]] = []

    async def oracle() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            question.reply.fail(KeyError("bad question"))

    async def ask() -> None:
        ballast = Ballast()
        kept.append(weakref.ref(ballast))
        with contextlib.suppress(KeyError):
            await box.ask(lambda reply: Question("?", reply), 1.0)

    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(oracle)
            nursery.start_soon(ask)
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_what_was_asked_of_a_reader_that_is_held_for_hours_is_marked_as_abandoned(
    autojump_clock: trio.testing.MockClock,
) -> None:
    box: Mailbox[Question] = Mailbox("held", 2)
    for _ in range(5):
        with pytest.raises(AskTimeout):
            await box.ask(lambda reply: Question("?", reply), 1.0)
    await trio.sleep(3600)
    assert box.statistics().depth == 2  # the mailbox keeps what it took; the others never came in
    async with box.receive() as inbox:
        assert [(await inbox.next()).reply.is_abandoned for _ in range(2)] == [True, True]


def test_a_capacity_is_a_whole_number() -> None:
    for bad in (1.5, True, "3"):
        with pytest.raises(ValueError, match="capacity"):
            Mailbox("box", bad)  # type: ignore[arg-type]
