"""What a full mailbox does, in virtual time."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing
from attrs import frozen

from penstock.runtime.mailbox import AskTimeout, Mailbox, Overflow, Overloaded, Reply

Clock = trio.testing.MockClock


@frozen
class Question:
    text: str
    reply: Reply[str]


async def test_a_bounded_wait_for_room_ends_in_overloaded_and_is_counted(autojump_clock: Clock) -> None:
    """Conformance 125: the actor is in backoff, so nobody reads."""
    box: Mailbox[int] = Mailbox("orders", 1, wait_within=3.0)
    await box.tell(1)
    with pytest.raises(Overloaded, match=r"orders \(capacity 1\): there was no room within 3 s.*wait_within") as caught:
        await box.tell(2)
    assert (caught.value.mailbox, caught.value.capacity) == ("orders", 1)
    assert trio.current_time() == 3
    seen = box.statistics()
    assert (seen.refused, seen.depth, seen.dropped, seen.senders_waiting) == (1, 1, 0, 0)


async def test_room_that_comes_in_time_is_taken_and_is_no_refusal(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("orders", 1, wait_within=3.0)
    await box.tell(1)
    async with trio.open_nursery() as nursery, box.receive() as inbox:
        nursery.start_soon(box.tell, 2)
        await trio.sleep(2.9)
        assert box.statistics().senders_waiting == 1
        assert [await inbox.next(), await inbox.next()] == [1, 2]
    assert (box.statistics().refused, box.statistics().senders_waiting) == (0, 0)


async def test_room_in_the_very_tick_in_which_the_time_is_up_is_either_room_or_refusal(autojump_clock: Clock) -> None:
    for _ in range(30):
        box: Mailbox[int] = Mailbox("punctual", 1, wait_within=5.0)
        box.offer(1)
        outcome: list[str] = []

        async def send(box: Mailbox[int] = box, outcome: list[str] = outcome) -> None:
            try:
                await box.tell(2)
                outcome.append("sent")
            except Overloaded:
                outcome.append("refused")

        async with trio.open_nursery() as nursery, box.receive() as inbox:
            nursery.start_soon(send)
            await trio.sleep(5.0)
            assert inbox.next_nowait() == 1
        seen = box.statistics()
        assert (outcome, seen.depth, seen.refused) in ((["sent"], 1, 0), (["refused"], 0, 1))


async def test_senders_get_in_in_the_order_in_which_they_came(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("queue", 1)
    async with trio.open_nursery() as nursery, box.receive() as inbox:
        for number in range(20):
            nursery.start_soon(box.tell, number)
            await trio.testing.wait_all_tasks_blocked()
        assert not box.offer(99)  # nobody overtakes them
        assert [await inbox.next() for _ in range(20)] == list(range(20))


async def test_refusing_is_at_once_and_counted_and_lets_others_run(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("strict", 2, overflow=Overflow.REFUSE)
    await box.tell(1)
    await box.tell(2)
    with trio.testing.assert_checkpoints():
        with pytest.raises(Overloaded, match=r"strict.*full"):
            await box.tell(3)
    assert not box.offer(4)
    assert trio.current_time() == 0
    seen = box.statistics()
    assert (seen.depth, seen.refused, seen.dropped) == (2, 1, 1)


async def test_an_ask_that_finds_no_room_is_refused_likewise(autojump_clock: Clock) -> None:
    strict: Mailbox[Question] = Mailbox("strict", 1, overflow=Overflow.REFUSE)
    patient: Mailbox[Question] = Mailbox("patient", 1, wait_within=2.0)
    for box, seconds in ((strict, 0.0), (patient, 2.0)):
        box.offer(Question("first", Reply(box)))
        started = trio.current_time()
        with pytest.raises(Overloaded, match=box.name):
            await box.ask(lambda reply: Question("?", reply), 10.0)
        assert trio.current_time() - started == seconds
        assert box.statistics().refused == 1
    with pytest.raises(AskTimeout, match="patient"):
        await patient.ask(lambda reply: Question("?", reply), 1.0)
    assert patient.statistics().refused == 1  # its own time was up, not the mailbox's


async def test_the_limit_of_the_wait_for_room_is_not_one_for_the_answer(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("patient", 1, wait_within=2.0)
    box.offer(Question("first", Reply(box)))

    async def slow() -> None:
        async with box.receive() as inbox:
            await trio.sleep(1.5)
            await inbox.next()  # now there is room
            await trio.sleep(20)
            (await inbox.next()).reply.set("at last")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        answer: str = await box.ask(lambda reply: Question("?", reply), 60.0)
    assert (answer, trio.current_time(), box.statistics().refused) == ("at last", 21.5, 0)


async def test_a_request_that_is_answered_before_it_is_in_does_not_come_in(autojump_clock: Clock) -> None:
    """Its slot was given to somebody else as well."""
    box: Mailbox[Question] = Mailbox("patient", 1)
    box.offer(Question("first", Reply(box)))
    slots: list[Reply[str]] = []

    def make(reply: Reply[str]) -> Question:
        slots.append(reply.detach())
        return Question("?", reply)

    async def answer() -> None:
        await trio.sleep(1)
        slots[0].set("from elsewhere")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        assert await box.ask(make, 60.0) == "from elsewhere"
    assert (box.statistics().senders_waiting, box.statistics().depth) == (0, 1)


async def test_the_oldest_gives_way_and_goes_to_the_hook(autojump_clock: Clock) -> None:
    given: list[tuple[list[int], str]] = []
    box: Mailbox[int] = Mailbox(
        "latest", 2, overflow=Overflow.DROP_OLDEST, on_undelivered=lambda *what: given.append(what)
    )
    for number in (1, 2, 3):
        await box.tell(number)
        await trio.sleep(1)
    assert box.offer(4)
    reason = "mailbox latest was full: the oldest message gave way"
    assert given == [([1], reason), ([2], reason)]
    seen = box.statistics()
    assert (seen.depth, seen.peak, seen.dropped, seen.undelivered, seen.oldest_age) == (2, 2, 2, 0, 1.0)
    async with box.receive() as inbox:
        assert [await inbox.next(), await inbox.next()] == [3, 4]


async def test_without_a_hook_what_gave_way_is_counted_as_undelivered(autojump_clock: Clock) -> None:
    box: Mailbox[int] = Mailbox("latest", 1, overflow=Overflow.DROP_OLDEST)
    for number in range(4):
        await box.tell(number)
    seen = box.statistics()
    assert (seen.depth, seen.dropped, seen.undelivered) == (1, 3, 3)


async def test_whoever_asked_with_the_message_that_gave_way_hears_it_at_once(autojump_clock: Clock) -> None:
    given: list[Question] = []
    box: Mailbox[Question] = Mailbox(
        "latest", 1, overflow=Overflow.DROP_OLDEST, on_undelivered=lambda messages, _: given.extend(messages)
    )

    async def ask() -> None:
        with pytest.raises(Overloaded, match=r"latest.*give way"):
            await box.ask(lambda reply: Question("old", reply), 60.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AskTimeout):
            await box.ask(lambda reply: Question("new", reply), 0.5)
    assert trio.current_time() == 0.5
    assert [question.text for question in given] == ["old"]
    given[0].reply.set("too late")
    assert (box.statistics().depth, box.statistics().refused, box.statistics().late_replies) == (1, 0, 0)


async def test_a_hook_that_raises_harms_no_sender(autojump_clock: Clock) -> None:
    def hook(messages: list[int], reason: str) -> None:
        raise OSError(f"the disk is full, {messages}")

    box: Mailbox[int] = Mailbox("latest", 1, overflow=Overflow.DROP_OLDEST, on_undelivered=hook)
    for number in range(3):
        await box.tell(number)
    assert str(box.hook_error) == "the disk is full, [1]"
    assert (box.statistics().dropped, box.statistics().undelivered) == (2, 2)


async def test_a_hook_may_offer_to_its_own_mailbox(autojump_clock: Clock) -> None:
    """Even that, foolish as it is, ends: the limit of recursion is an error of the hook."""
    rescued: list[int] = []

    def hook(messages: list[int], reason: str) -> None:
        rescued.extend(messages)
        if len(rescued) == 1:
            assert box.offer(10 * messages[0])

    box: Mailbox[int] = Mailbox("latest", 1, overflow=Overflow.DROP_OLDEST, on_undelivered=hook)
    for number in (1, 2):
        await box.tell(number)
    assert rescued == [1, 2]
    async with box.receive() as inbox:
        assert inbox.next_nowait() == 10
        with pytest.raises(trio.WouldBlock):
            inbox.next_nowait()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"overflow": "wait"}, "overflow"),
        ({"wait_within": -1}, "wait_within"),
        ({"wait_within": math.nan}, "wait_within"),
        ({"wait_within": None}, "wait_within"),
        ({"wait_within": 1.0, "overflow": Overflow.REFUSE}, "wait_within.*REFUSE"),
        ({"wait_within": 1.0, "overflow": Overflow.DROP_OLDEST}, "wait_within.*DROP_OLDEST"),
    ],
)
def test_a_policy_that_cannot_be_meant_is_refused_by_name(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=f"{said}.*'box'|'box'.*{said}|{said}"):
        Mailbox("box", 1, **options)


async def test_what_nobody_waits_for_any_more_gives_way_without_a_late_answer(autojump_clock: Clock) -> None:
    box: Mailbox[Question] = Mailbox("latest", 1, overflow=Overflow.DROP_OLDEST)
    with pytest.raises(AskTimeout):
        await box.ask(lambda reply: Question("?", reply), 1.0)
    box.offer(Question("!", Reply(box)))
    assert (box.statistics().dropped, box.statistics().late_replies) == (1, 0)
