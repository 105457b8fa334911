"""Whoever uses a mailbox is cancelled at every point at which it gives way; in virtual time."""

from __future__ import annotations

import contextlib
import math
from functools import partial

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.runtime.mailbox import (
    AskTimeout,
    Inbox,
    Mailbox,
    Overflow,
    Overloaded,
    PeerDied,
    Reply,
    waits,
)
from penstock.runtime.testing import Cut, cut_everywhere


@frozen
class Question:
    number: int
    reply: Reply[str]


def policies() -> list[tuple[Overflow, float]]:
    return [
        (Overflow.WAIT, math.inf),
        (Overflow.WAIT, 2.0),
        (Overflow.WAIT, 0.0),
        (Overflow.REFUSE, math.inf),
        (Overflow.DROP_OLDEST, math.inf),
    ]


@pytest.mark.parametrize(("overflow", "wait_within"), policies())
def test_a_tell_that_is_cut_has_queued_nothing_and_one_that_is_not_has(overflow: Overflow, wait_within: float) -> None:
    async def scenario(cut: Cut) -> None:
        lost: list[int] = []
        box: Mailbox[int] = Mailbox(
            "box", 1, overflow=overflow, wait_within=wait_within, on_undelivered=lambda them, _: lost.extend(them)
        )
        told: list[int] = []
        taken: list[int] = []
        refused = 0

        async def tell() -> None:
            nonlocal refused
            with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                for number in range(3):
                    try:
                        await box.tell(number)
                        told.append(number)
                    except Overloaded:
                        refused += 1

        async def read(inbox: Inbox[int]) -> None:
            await trio.sleep(1)
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    taken.append(inbox.next_nowait())
                    await trio.sleep(1.5)

        async with box.receive() as inbox, trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            nursery.start_soon(read, inbox)
        async with box.receive() as inbox:
            while box.statistics().depth:
                taken.append(inbox.next_nowait())
        assert sorted(taken + lost) == told
        assert taken == sorted(taken)
        seen = box.statistics()
        assert (seen.received, seen.refused, seen.senders_waiting) == (len(taken), refused, 0)
        assert waits._asleep == {}

    assert len(cut_everywhere(scenario)) >= 6


def test_a_reader_that_is_cut_has_taken_nothing_more_than_it_got() -> None:
    async def scenario(cut: Cut) -> None:
        box: Mailbox[int] = Mailbox("box", 2)
        taken: list[int] = []

        async def read() -> None:
            with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                async with box.receive() as inbox:
                    async for number in inbox:
                        taken.append(number)
                        if number == 2:
                            await trio.sleep(1)

        async def send() -> None:
            for number in range(5):
                await box.tell(number)
            await trio.sleep(2)
            await box.tell(5)
            await trio.sleep(2)
            await box.tell(6)

        async def read_the_rest() -> None:
            await trio.sleep(20)
            async with box.receive() as inbox:
                async for number in inbox:
                    taken.append(number)

        async def close() -> None:
            await trio.sleep(30)
            box.close("the end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(send)
            await trio.sleep(15)
            if box._inbox is not None:
                nursery.start_soon(close)
            else:
                nursery.start_soon(read_the_rest)
                nursery.start_soon(close)
        assert taken == [0, 1, 2, 3, 4, 5, 6]
        assert (box.statistics().received, box.statistics().depth) == (7, 0)

    assert len(cut_everywhere(scenario)) >= 10


@pytest.mark.parametrize(("overflow", "wait_within"), policies())
def test_an_asker_that_is_cut_leaves_a_whole_mailbox_and_an_unharmed_reader(
    overflow: Overflow, wait_within: float
) -> None:
    async def scenario(cut: Cut) -> None:
        lost: list[Question] = []
        box: Mailbox[Question] = Mailbox(
            "oracle", 1, overflow=overflow, wait_within=wait_within, on_undelivered=lambda them, _: lost.extend(them)
        )
        made: list[int] = []
        got: list[str] = []
        answered = 0

        def make(number: int, reply: Reply[str]) -> Question:
            made.append(number)
            return Question(number, reply)

        async def ask() -> None:
            with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                for number in range(3):
                    with contextlib.suppress(Overloaded, AskTimeout):
                        got.append(await box.ask(partial(make, number), 4.0))

        async def oracle() -> None:
            nonlocal answered
            async with box.receive() as inbox:
                async for question in inbox:
                    await trio.sleep(1)
                    question.reply.set(str(question.number))
                    answered += 1
                assert inbox._owed == {}

        box.offer(Question(-1, Reply(box)))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(1)
            nursery.start_soon(oracle)
            await trio.sleep(100)
            box.close("the end")
        seen = box.statistics()
        assert seen.received == answered
        # What was answered was got, or late; the first message had no asker, and waits for its answer in vain.
        assert len(got) + seen.late_replies + 1 >= answered
        assert (seen.depth, seen.senders_waiting, seen.undelivered) == (0, 0, 0)
        assert waits._asleep == {}

    assert len(cut_everywhere(scenario)) >= 6


def test_a_reader_that_is_cut_at_any_point_leaves_no_asker_waiting() -> None:
    """Each gets its answer, the bad news, or has its request read by the next reader; never is it a time-out."""

    async def scenario(cut: Cut) -> None:
        box: Mailbox[Question] = Mailbox("oracle", 2)
        outcomes: list[str] = []

        async def ask(number: int) -> None:
            try:
                outcomes.append(await box.ask(lambda reply: Question(number, reply), 50.0))
            except PeerDied:
                outcomes.append("died")

        async def serve() -> None:
            async with box.receive() as inbox, trio.open_nursery() as nursery:

                async def help_reading() -> None:
                    async for question in inbox:
                        await trio.sleep(1)
                        question.reply.set("answer")

                nursery.start_soon(help_reading)
                await help_reading()

        async def oracle() -> None:
            with trio.CancelScope() as scope, cut.cancelling(scope, at="help_reading"):
                await serve()
            await serve()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(oracle)
            async with trio.open_nursery() as asking:
                for number in range(5):
                    asking.start_soon(ask, number)
            nursery.cancel_scope.cancel()
        assert sorted(set(outcomes)) in (["answer"], ["answer", "died"])
        assert (len(outcomes), trio.current_time() < 50) == (5, True)

    assert len(cut_everywhere(scenario)) >= 10
