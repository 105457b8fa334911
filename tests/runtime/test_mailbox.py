"""Mailboxes, in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.runtime.mailbox import AskTimeout, Mailbox, PeerDied, Reply


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
