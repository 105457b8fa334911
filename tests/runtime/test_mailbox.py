"""Mailboxes, in virtual time."""

from __future__ import annotations

import contextlib
import gc
import math
import weakref

import pytest
import trio
import trio.testing
from attrs import frozen
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime.mailbox import AskTimeout, Inbox, Mailbox, MailboxClosed, Overflow, Overloaded, PeerDied, Reply


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
            assert question.text == "?"
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
    overflow=st.sampled_from(Overflow),
    wait_within=st.sampled_from([math.inf, 2.0]),
    happenings=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["tell", "tell", "offer", "ask", "read", "read"]), st.just(0)),
            st.tuples(st.sampled_from(["cancel_sender", "cancel_reader", "sleep", "sleep"]), st.integers(0, 5)),
            st.tuples(st.sampled_from(["settle", "settle", "settle", "close"]), st.just(0)),
        ),
        min_size=8,
        max_size=40,
    ),
)
@settings(max_examples=400, deadline=None, derandomize=True, database=None)
def test_each_message_comes_once_in_order_and_is_counted_whoever_is_cancelled(
    overflow: Overflow, wait_within: float, happenings: list[tuple[str, int]]
) -> None:
    life = _Life(overflow, wait_within if overflow is Overflow.WAIT else math.inf)
    trio.run(life.live, happenings, clock=trio.testing.MockClock(autojump_threshold=0))


class _Life:
    """A mailbox of numbers, whatever happens to it, and what we know about it without asking it."""

    def __init__(self, overflow: Overflow, wait_within: float) -> None:
        self.box: Mailbox[int] = Mailbox(
            "box", 2, overflow=overflow, wait_within=wait_within, on_undelivered=lambda them, _: self.lost.extend(them)
        )
        self.sent: list[int] = []
        self.asked: list[int] = []  # these may have come in; an ask does not say
        self.refused = 0
        self.offers_refused = 0
        self.taken: list[int] = []
        self.lost: list[int] = []
        self.seen: dict[int, float] = {}  # when each number was first seen in the buffer
        self.senders: list[trio.CancelScope] = []
        self.readers: list[trio.CancelScope] = []

    async def live(self, happenings: list[tuple[str, int]]) -> None:
        async with trio.open_nursery() as nursery, self.box.receive() as inbox:
            for number, (kind, which) in enumerate(happenings):
                if kind in ("tell", "ask"):
                    self.senders.append(trio.CancelScope())
                    nursery.start_soon(self._send, kind, number, self.senders[-1])
                elif kind == "offer":
                    if self.box.offer(number):
                        self.sent.append(number)
                    else:
                        self.offers_refused += 1
                elif kind == "read":
                    self.readers.append(trio.CancelScope())
                    nursery.start_soon(self._read, inbox, self.readers[-1])
                elif kind == "settle":
                    await trio.testing.wait_all_tasks_blocked()
                elif kind == "sleep":
                    await trio.testing.wait_all_tasks_blocked()
                    self._check()  # so that nothing comes in unseen
                    await trio.sleep(1)
                elif kind == "close":
                    self.box.close("enough")
                    self._check()
                    assert self.box.statistics().senders_waiting == 0
                else:
                    scopes = self.senders if kind == "cancel_sender" else self.readers
                    for victim in scopes[which : which + 1]:
                        victim.cancel()
                self._check()
            await trio.testing.wait_all_tasks_blocked()
            self._check()
            for scope in (*self.senders, *self.readers):
                scope.cancel()
            await trio.testing.wait_all_tasks_blocked()
            assert self.box.statistics().senders_waiting == 0
            assert self.box.statistics().received == len(self.taken)
            while self.box.statistics().depth:
                self.taken.append(inbox.next_nowait())
        ended = [number for number in (*self.taken, *self.lost) if number not in self.asked]
        assert sorted(ended) == sorted(self.sent)
        assert len(set(self.taken)) == len(self.taken)
        assert set(self.taken).isdisjoint(self.lost)
        seen = self.box.statistics()
        assert (seen.refused, seen.undelivered) == (self.refused, 0)
        gave_way = 0 if self.box.is_closed or self.box.overflow is not Overflow.DROP_OLDEST else len(self.lost)
        if not self.box.is_closed:
            assert seen.dropped == self.offers_refused + gave_way

    def _check(self) -> None:
        now = trio.current_time()
        state = self.box._send._state
        for _, number, _ in state.data:
            self.seen.setdefault(number, now)
        seen = self.box.statistics()
        assert seen.depth == len(state.data) <= seen.peak <= self.box.capacity
        assert seen.oldest_age == (now - self.seen[state.data[0][1]] if state.data else 0.0)
        assert not (state.data and state.receive_tasks)
        assert not seen.senders_waiting or seen.depth == self.box.capacity

    async def _send(self, kind: str, number: int, scope: trio.CancelScope) -> None:
        with scope, contextlib.suppress(MailboxClosed):
            try:
                if kind == "tell":
                    await self.box.tell(number)
                else:
                    with contextlib.suppress(AskTimeout):
                        await self.box.ask(lambda reply: self._made(number), 3.0)
            except Overloaded as overloaded:
                self.refused += "give way" not in str(overloaded)
            else:
                if kind == "tell":
                    self.sent.append(number)

    def _made(self, number: int) -> int:
        self.asked.append(number)
        return number

    async def _read(self, inbox: Inbox[int], scope: trio.CancelScope) -> None:
        with scope, contextlib.suppress(trio.EndOfChannel):
            self.taken.append(await inbox.next())


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


async def test_bad_news_that_meets_a_cancelled_asker_is_no_late_answer(autojump_clock: trio.testing.MockClock) -> None:
    """The asker is cancelled and the reader ends in one step."""
    box: Mailbox[Question] = Mailbox("mortal", 1)
    scope = trio.CancelScope()

    async def ask() -> None:
        with scope:
            await box.ask(lambda reply: Question("?", reply), 60.0)

    async with trio.open_nursery() as nursery:
        async with box.receive() as inbox:
            nursery.start_soon(ask)
            await inbox.next()
            scope.cancel()
    assert scope.cancelled_caught
    assert box.statistics().late_replies == 0


async def test_the_bad_news_of_a_death_leaves_no_cycle_either(autojump_clock: trio.testing.MockClock) -> None:
    class Ballast:
        pass

    box: Mailbox[Question] = Mailbox("mortal", 1)
    kept: list[weakref.ref[Ballast]] = []

    async def mortal() -> None:
        ballast = Ballast()
        kept.append(weakref.ref(ballast))
        async with box.receive() as inbox:
            await inbox.next()
            raise ZeroDivisionError

    async def life() -> None:
        with contextlib.suppress(ZeroDivisionError):
            await mortal()

    async def ask() -> None:
        with contextlib.suppress(PeerDied):
            await box.ask(lambda reply: Question("?", reply), 1.0)

    gc.disable()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(life)
            nursery.start_soon(ask)
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_the_bad_news_of_a_death_is_no_late_answer(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[Question] = Mailbox("mortal", 1)

    async def mortal() -> None:
        async with box.receive() as inbox:
            await inbox.next()
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


async def test_the_account_is_exact_while_readers_that_were_handed_something_have_not_run(
    autojump_clock: trio.testing.MockClock,
) -> None:
    box: Mailbox[int] = Mailbox("box", 5)
    async with box.receive() as inbox, trio.open_nursery() as nursery:
        nursery.start_soon(inbox.next)
        await trio.testing.wait_all_tasks_blocked()
        box.offer(1)  # the helper has it
        autojump_clock.jump(3)
        box.offer(2)
        autojump_clock.jump(2)
        seen = box.statistics()
        assert (seen.depth, seen.peak, seen.oldest_age, seen.received) == (1, 1, 2.0, 0)
        assert inbox.next_nowait() == 2
        assert (box.statistics().depth, box.statistics().peak, box.statistics().oldest_age) == (0, 1, 0.0)
    assert box.statistics().received == 2


async def test_the_wait_is_from_the_entering_of_tell_to_the_taking(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 1)
    assert box.statistics().wait_p99 == 0.0
    async with trio.open_nursery() as nursery, box.receive() as inbox:
        nursery.start_soon(box.tell, 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(box.tell, 2)
        await trio.sleep(5)
        await inbox.next()
        await trio.sleep(2)
        assert (box.statistics().oldest_age, box.statistics().wait_p99) == (2.0, 5.0)
        await inbox.next()  # it was queued for 2 seconds, and waited for 7
    assert box.statistics().wait_p99 == 7.0


async def test_one_of_a_hundred_may_wait_longer_and_what_was_long_ago_is_forgotten(
    autojump_clock: trio.testing.MockClock,
) -> None:
    box: Mailbox[int] = Mailbox("box", 1)
    async with box.receive() as inbox:
        for number in range(100):
            await box.tell(number)
            await trio.sleep(number)
            await inbox.next()
        assert box.statistics().wait_p99 == 98.0
        for number in range(1024):
            await box.tell(number)
            await inbox.next()
        assert box.statistics().wait_p99 == 0.0


async def test_telling_and_taking_let_others_run(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 1, overflow=Overflow.DROP_OLDEST)
    async with box.receive() as inbox:
        for _ in range(2):  # into the buffer, and in place of the oldest
            with trio.testing.assert_checkpoints():
                await box.tell(1)
        with trio.testing.assert_checkpoints():
            await inbox.next()


async def test_whoever_is_cancelled_before_it_begins_changes_nothing(autojump_clock: trio.testing.MockClock) -> None:
    box: Mailbox[int] = Mailbox("box", 1, overflow=Overflow.DROP_OLDEST)
    box.offer(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await box.tell(2)
    async with box.receive() as inbox:
        with trio.CancelScope() as scope:
            scope.cancel()
            await inbox.next()
        assert inbox.next_nowait() == 1
    assert (box.statistics().dropped, box.statistics().received) == (0, 1)
