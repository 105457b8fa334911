"""The end of a mailbox, when its owner is gone for good; in virtual time."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.runtime.mailbox import Mailbox, MailboxClosed, Overflow, PeerDied, Reply

Clock = trio.testing.MockClock


@frozen
class Question:
    text: str
    reply: Reply[str]


async def test_what_is_queued_goes_to_the_hook_once_and_in_order(autojump_clock: Clock) -> None:
    """Conformance 128: the restart budget is exhausted, and nothing vanishes."""
    given: list[tuple[list[int], str]] = []
    box: Mailbox[int] = Mailbox("orders", 5, on_undelivered=lambda *what: given.append(what))
    for number in (1, 2, 3):
        await box.tell(number)
    assert not box.is_closed
    assert box.close("its owner gave up") is None
    assert box.is_closed
    assert given == [([1, 2, 3], "its owner gave up")]
    assert box.close("once more") is None
    assert len(given) == 1
    seen = box.statistics()
    assert (seen.depth, seen.peak, seen.oldest_age, seen.undelivered, seen.received) == (0, 3, 0.0, 0, 0)


async def test_without_a_hook_they_are_counted(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("orders", 5)
    for number in (1, 2, 3):
        await box.tell(number)
    box.close("done")
    assert box.statistics().undelivered == 3


def test_an_empty_mailbox_calls_no_hook_and_can_be_closed_outside_of_trio() -> None:
    box: Mailbox[int] = Mailbox("orders", 5, on_undelivered=lambda *what: pytest.fail("called"))
    assert box.close("done") is None
    assert box.hook_error is None


async def test_a_hook_that_raises_does_not_harm_who_closes_and_the_error_is_handed_back(autojump_clock: Clock) -> None:
    def hook(messages: list[int], reason: str) -> None:
        raise OSError("the disk is full")

    box: Mailbox[int] = Mailbox("orders", 5, on_undelivered=hook)
    box.offer(1)
    error = box.close("done")
    assert isinstance(error, OSError)
    assert box.hook_error is error
    assert box.statistics().undelivered == 1
    assert box.is_closed


async def test_waiting_senders_hear_it_at_once_and_their_messages_are_not_queued(autojump_clock: Clock) -> None:
    given: list[int] = []
    patient: Mailbox[int] = Mailbox("patient", 1, on_undelivered=lambda messages, _: given.extend(messages))
    bounded: Mailbox[int] = Mailbox("bounded", 1, wait_within=60.0)

    async def send(box: Mailbox[int], number: int) -> None:
        with pytest.raises(MailboxClosed, match=f"{box.name}.*the end") as caught:
            await box.tell(number)
        assert (caught.value.mailbox, caught.value.reason) == (box.name, "the end")

    async with trio.open_nursery() as nursery:
        for box in (patient, bounded):
            box.offer(0)
            nursery.start_soon(send, box, 1)
            nursery.start_soon(send, box, 2)
        await trio.sleep(1)
        patient.close("the end")
        bounded.close("the end")
    assert trio.current_time() == 1
    assert given == [0]
    assert (bounded.statistics().refused, bounded.statistics().senders_waiting) == (0, 0)


async def test_askers_hear_it_at_once_whether_their_request_is_queued_or_waits_for_room(autojump_clock: Clock) -> None:
    given: list[str] = []
    box: Mailbox[Question] = Mailbox(
        "oracle", 1, on_undelivered=lambda messages, _: given.extend(each.text for each in messages)
    )

    async def ask(text: str) -> None:
        with pytest.raises(MailboxClosed, match="the end"):
            await box.ask(lambda reply: Question(text, reply), 60.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "queued")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "outside")
        await trio.testing.wait_all_tasks_blocked()
        box.close("the end")
    assert trio.current_time() == 0
    assert given == ["queued"]


@pytest.mark.parametrize("overflow", Overflow)
async def test_whoever_sends_later_hears_it_and_an_offer_is_counted(overflow: Overflow, autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 1, overflow=overflow)
    box.close("the end")
    with pytest.raises(MailboxClosed):
        await box.tell(Question("?", Reply(box)))
    with pytest.raises(MailboxClosed):
        await box.ask(lambda reply: Question("?", reply), 60.0)
    assert not box.offer(Question("?", Reply(box)))
    assert (box.statistics().dropped, box.statistics().refused) == (1, 0)


async def test_a_reader_that_is_still_inside_comes_to_the_end_and_may_answer_what_it_took(
    autojump_clock: Clock,
) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 3)
    told: list[str] = []

    async def oracle() -> None:
        async with box.receive() as inbox:
            async for question in inbox:
                await trio.sleep(2)
                question.reply.set("forty-two")
            told.append("the iteration ended")
            with pytest.raises(trio.EndOfChannel):
                await inbox.next()
            with pytest.raises(trio.EndOfChannel):
                inbox.next_nowait()

    async def ask() -> None:
        told.append(await box.ask(lambda reply: Question("?", reply), 60.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle)
        nursery.start_soon(ask)
        await trio.sleep(1)
        box.close("the end")
    assert sorted(told) == ["forty-two", "the iteration ended"]
    assert trio.current_time() == 2
    async with box.receive() as inbox:
        assert [message async for message in inbox] == []


async def test_a_reader_that_waits_for_a_message_is_woken(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("orders", 3)
    taken: list[int] = []

    async def read() -> None:
        async with box.receive() as inbox:
            taken.extend([number async for number in inbox])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        box.offer(1)  # the reader has it, and has not run yet: it is no longer the mailbox's to give away
        box.close("the end")
    assert taken == [1]
    assert (box.statistics().received, box.statistics().undelivered) == (1, 0)


async def test_a_reader_that_dies_after_the_closing_is_still_bad_news_for_its_askers(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("oracle", 3)

    async def oracle() -> None:
        async with box.receive() as inbox:
            async for _ in inbox:
                await trio.sleep(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(oracle)
        nursery.start_soon(lambda: _close_after(box, 1))
        with pytest.raises(PeerDied, match="oracle"):
            await box.ask(lambda reply: Question("?", reply), 60.0)
    assert trio.current_time() == 2


async def _close_after(box: Mailbox[Question], seconds: float) -> None:
    await trio.sleep(seconds)
    box.close("the end")
