"""Who owes an answer, from when to when; in virtual time."""

from __future__ import annotations

import contextlib
from typing import assert_type

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.runtime.mailbox import AskTimeout, Inbox, Mailbox, PeerDied, Reply

Clock = trio.testing.MockClock


@frozen
class Question:
    text: str
    reply: Reply[str]


@frozen
class Ping:
    reply: Reply[int]


async def test_a_request_that_nobody_has_taken_survives_the_reader(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 5)

    async def oracle(*, dies: bool) -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            await trio.sleep(1)
            if dies:
                raise ZeroDivisionError
            question.reply.set(question.text.upper())

    async def ask_first() -> None:
        with pytest.raises(PeerDied) as caught:
            await box.ask(lambda reply: Question("first", reply), 60.0)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
        assert trio.current_time() == 1

    async def ask_second() -> None:
        await trio.sleep(0.5)
        assert await box.ask(lambda reply: Question("second", reply), 60.0) == "SECOND"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_first)
        nursery.start_soon(ask_second)
        with pytest.raises(ZeroDivisionError):
            await oracle(dies=True)
        await oracle(dies=False)


@pytest.mark.parametrize("how", ["returns", "is cancelled", "dies of a group"])
async def test_any_end_of_the_reader_is_bad_news_at_once(how: str, autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 5)

    async def oracle() -> None:
        async with box.receive() as inbox:
            await inbox.next()
            await trio.sleep(1)
            if how == "is cancelled":
                await trio.sleep_forever()
            if how == "dies of a group":
                raise ExceptionGroup("two", [ValueError(), KeyError()])

    async def life() -> None:
        limit = 1 if how == "is cancelled" else 60
        with trio.move_on_after(limit), contextlib.suppress(ExceptionGroup):
            await oracle()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(life)
        with pytest.raises(PeerDied, match="oracle") as caught:
            await box.ask(lambda reply: Question("?", reply), 60.0)
    assert trio.current_time() == 1
    assert isinstance(caught.value.__cause__, ExceptionGroup if how == "dies of a group" else type(None))


async def test_a_detached_reply_outlives_the_reader(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("front", 5)
    jobs: Mailbox[Question] = Mailbox("back", 5)

    async def front() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            assert question.reply.detach() is question.reply
            await jobs.tell(question)

    async def back() -> None:
        async with jobs.receive() as inbox:
            question = await inbox.next()
            await trio.sleep(5)
            question.reply.set("from behind")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(front)
        nursery.start_soon(back)
        assert await box.ask(lambda reply: Question("?", reply), 60.0) == "from behind"


async def test_a_reply_that_was_detached_and_never_answered_is_a_time_out(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("front", 5)

    async def front() -> None:
        async with box.receive() as inbox:
            (await inbox.next()).reply.detach()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(front)
        with pytest.raises(AskTimeout, match="front"):
            await box.ask(lambda reply: Question("?", reply), 9.0)
    assert trio.current_time() == 9


async def test_a_request_that_a_helper_gets_while_the_block_ends_is_not_owed_for_ever(autojump_clock: Clock) -> None:
    """It is handed to a waiting helper, and in the same round the reader leaves, before the helper runs or after."""

    async def ask() -> None:
        over.set()
        with pytest.raises(PeerDied, match="oracle"):
            await box.ask(lambda reply: Question("?", reply), 60.0)

    for _ in range(20):
        box: Mailbox[Question] = Mailbox("oracle", 5)
        over = trio.Event()
        async with trio.open_nursery() as nursery:
            async with box.receive() as inbox:
                nursery.start_soon(inbox.next)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(ask)
                await over.wait()
    assert trio.current_time() == 0


async def test_a_helper_that_waits_for_a_message_when_the_block_ends_gets_none(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("box", 5)

    async def read() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await inbox.next()

    async with trio.open_nursery() as nursery:
        async with box.receive() as inbox:
            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
        await trio.testing.wait_all_tasks_blocked()
        box.offer(1)
    assert box.statistics().depth == 1


async def test_abandoned_requests_are_not_kept_by_a_reader_that_never_answers_them(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("busy", 5)

    async def busy() -> None:
        async with box.receive() as inbox:
            async for _ in inbox:
                assert len(inbox._owed) <= 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(busy)
        for _ in range(10):
            with pytest.raises(AskTimeout):
                await box.ask(lambda reply: Question("?", reply), 1.0)
        nursery.cancel_scope.cancel()


async def test_answers_and_errors_count_once_and_the_first_holds(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("eager", 5)

    async def eager() -> None:
        async with box.receive() as inbox:
            question = await inbox.next()
            question.reply.set("first")
            question.reply.set("second")
            question.reply.fail(ValueError("third"))
            assert question.reply.is_answered

    async with trio.open_nursery() as nursery:
        nursery.start_soon(eager)
        assert await box.ask(lambda reply: Question("?", reply), 1.0) == "first"
    assert box.statistics().late_replies == 0


async def test_an_answer_that_meets_a_cancelled_asker_is_late(autojump_clock: Clock) -> None:
    """Cancel and answer in one step of another task: the asker leaves without it."""
    box: Mailbox[Question] = Mailbox("oracle", 5)
    scope = trio.CancelScope()

    async def ask() -> None:
        with scope:
            await box.ask(lambda reply: Question("?", reply), 60.0)

    async with trio.open_nursery() as nursery, box.receive() as inbox:
        nursery.start_soon(ask)
        question = await inbox.next()
        scope.cancel()
        question.reply.set("too late")
    assert scope.cancelled_caught
    assert box.statistics().late_replies == 1


async def test_strangers_read_only_what_was_shared(autojump_clock: Clock) -> None:
    """Else nobody could tell whether somebody may yet read: see `Deadlock`."""
    box: Mailbox[int] = Mailbox("box", 5)
    taken: list[int] = []

    async def stranger(inbox: Inbox[int]) -> None:
        with pytest.raises(RuntimeError, match=r"stranger.*inbox of box.*share"):
            inbox.next_nowait()
        with pytest.raises(RuntimeError, match="share"):
            await inbox.next()
        inbox.share()
        taken.append(await inbox.next())

    async def borrower() -> None:
        async with box.receive() as inbox:
            outside.start_soon(stranger, inbox)
            await trio.testing.wait_all_tasks_blocked()
            async with trio.open_nursery() as own, trio.open_nursery() as inner:
                inner.start_soon(inbox.next)
                own.start_soon(inbox.next)
                await trio.testing.wait_all_tasks_blocked()
                for number in (1, 2, 3):
                    box.offer(number)

    async with trio.open_nursery() as outside:
        outside.start_soon(borrower)
    assert taken == [1]
    assert box.statistics().received == 3


async def test_the_type_of_the_answer_is_that_of_the_slot(autojump_clock: Clock) -> None:
    """Seen by mypy, run for good measure."""
    box: Mailbox[Question | Ping] = Mailbox("oracle", 5)

    async def oracle() -> None:
        async with box.receive() as inbox:
            async for message in inbox:
                if isinstance(message, Ping):
                    message.reply.set(7)
                else:
                    message.reply.set(message.text)

    def hello(reply: Reply[str]) -> Question:
        return Question("hello", reply)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle)
        assert assert_type(await box.ask(Ping, 1.0), int) == 7
        assert assert_type(await box.ask(hello, 1.0), str) == "hello"
        text: str = await box.ask(lambda reply: Question("text", reply), 1.0)
        assert text == "text"
        nursery.cancel_scope.cancel()
