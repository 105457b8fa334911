"""The backlog: its accounts are right after thousands of rounds, and whoever is cancelled has taken nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from penstock.actors.backlog import Backlog
from penstock.actors.handling import Entry, entry_order


def entries(*numbers: int) -> list[Entry]:
    return [Entry("orders", f"{number}-0", {}) for number in numbers]


def ids(taken: Sequence[Entry]) -> list[str]:
    return [entry.id for entry in taken]


def never() -> bool:
    return False


async def test_entries_are_taken_in_their_order_and_leave_when_they_are_acknowledged() -> None:
    backlog = Backlog(10)
    assert backlog.add(entries(1, 2, 3)) == 3
    taken = await backlog.take(2, never)
    assert ids(taken) == ["1-0", "2-0"]
    backlog.done(taken)
    assert backlog.room == 7
    done = await backlog.take_done(10, 0.0)
    assert done == ["1-0", "2-0"]
    assert not backlog.is_acknowledged
    backlog.acknowledged(done)
    assert backlog.is_acknowledged
    assert backlog.room == 9


async def test_what_is_known_is_not_taken_in_again_in_whatever_state_it_is() -> None:
    backlog = Backlog(10)
    backlog.add(entries(1, 2, 3, 4))
    (one,), (two,), (three,) = [await backlog.take(1, never) for _ in range(3)]
    backlog.done([one])
    await backlog.take_done(1, 0.0)
    backlog.done([two])
    backlog.postpone(three, 1e9)
    assert backlog.add(entries(1, 2, 3, 4)) == 0
    assert backlog.known() == {"1-0", "2-0", "3-0", "4-0"}


async def test_what_is_given_back_comes_first_and_in_order() -> None:
    backlog = Backlog(10)
    backlog.add(entries(1, 2, 3, 4))
    backlog.give_back(await backlog.take(3, never))
    assert ids(await backlog.take(10, never)) == ["1-0", "2-0", "3-0", "4-0"]


async def test_a_retry_is_due_at_its_time_and_not_before(autojump_clock: MockClock) -> None:
    backlog = Backlog(10)
    backlog.add(entries(1))
    (entry,) = await backlog.take(1, never)
    backlog.postpone(entry, trio.current_time() + 60)
    with trio.move_on_after(59.9) as early:
        await backlog.take(1, never)
    assert early.cancelled_caught
    assert ids(await backlog.take(1, never)) == ["1-0"]
    assert trio.current_time() == 60


async def test_an_earlier_retry_wakes_those_who_wait_for_a_later_one(autojump_clock: MockClock) -> None:
    backlog = Backlog(10)
    backlog.add(entries(1, 2))
    one, two = await backlog.take(2, never)
    backlog.postpone(one, 100)
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def work() -> None:
            assert ids(await backlog.take(1, never)) == ["2-0"]
            assert trio.current_time() == 5

        await wait_all_tasks_blocked()
        backlog.postpone(two, 5)


async def test_whoever_is_cancelled_while_waiting_takes_nothing() -> None:
    backlog = Backlog(10)
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backlog.take, 5, never)
            nursery.start_soon(backlog.take_done, 5, 0.001)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
    backlog.add(entries(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backlog.take_done, 5, 60.0)
        taken = await backlog.take(5, never)
        backlog.done(taken)
        await wait_all_tasks_blocked()  # it lingers for company
        nursery.cancel_scope.cancel()
    assert await backlog.take_done(5, 0.0) == ["1-0"]


async def test_the_position_is_just_before_the_first_that_is_not_done() -> None:
    backlog = Backlog(10)
    backlog.add(entries(5, 7, 9))
    five, seven, nine = await backlog.take(3, never)
    assert entry_order(backlog.position([]) or "") == (4, 2**64 - 1)
    assert entry_order(backlog.position([seven, nine]) or "") == (4, 2**64 - 1)
    assert entry_order(backlog.position([five]) or "") == (6, 2**64 - 1)
    backlog.done([five])
    assert entry_order(backlog.position([seven]) or "") == (8, 2**64 - 1)
    assert backlog.position([seven, nine]) == "9-0"


async def test_what_comes_late_moves_the_position_back() -> None:
    """Another listener's history may be older than what was handled meanwhile."""
    backlog = Backlog(10)
    backlog.add(entries(9))
    backlog.add(entries(3))
    nine, three = await backlog.take(2, never)
    assert entry_order(backlog.position([nine]) or "") < (3, 0)
    assert backlog.position([nine, three]) == "9-0"


@pytest.mark.parametrize("seed", range(5))
async def test_the_accounts_are_right_after_thousands_of_rounds(autojump_clock: MockClock, seed: int) -> None:
    """Against the plainest of models: what was added, what is done, what is acknowledged."""
    chance, backlog = random.Random(seed), Backlog(50)
    numbers = iter(range(1, 10**9))
    added: dict[str, bool] = {}  # id: whether it is done
    in_work: list[Entry] = []
    acknowledging: list[str] = []
    highest = ""
    for _ in range(3000):
        match chance.randrange(6):
            case 0 if backlog.room:
                fresh = entries(*(next(numbers) for _ in range(chance.randint(1, backlog.room))))
                assert backlog.add(fresh) == len(fresh)
                added.update((entry.id, False) for entry in fresh)
                highest = fresh[-1].id
            case 1:
                with trio.move_on_after(chance.random()):
                    in_work += await backlog.take(chance.randint(1, 20), never)
            case 2 if in_work:
                chance.shuffle(in_work)
                settled = [in_work.pop() for _ in range(chance.randint(1, len(in_work)))]
                unfinished = [key for key, done in added.items() if not done and key not in ids(settled)]
                expected = min(map(entry_order, unfinished), default=None)
                position = entry_order(backlog.position(settled) or "")
                assert position == entry_order(highest) if expected is None else position < expected
                backlog.done(settled)
                added.update((entry.id, True) for entry in settled)
            case 3 if in_work:
                backlog.postpone(in_work.pop(), trio.current_time() + chance.random() * 3)
            case 4 if in_work:
                backlog.give_back([in_work.pop()])
            case 5:
                if acknowledging and chance.random() < 0.3:
                    backlog.acknowledge_again(acknowledging)
                else:
                    backlog.acknowledged(acknowledging)
                    for each in acknowledging:
                        assert added.pop(each)
                acknowledging = []
                with trio.move_on_after(0.01):
                    acknowledging = await backlog.take_done(chance.randint(1, 30), chance.choice([0.0, 0.001, 0.02]))
        statistics = backlog.statistics()
        assert backlog.room == 50 - len(added) >= 0
        assert statistics.in_work == len(in_work)
        assert statistics.unacknowledged == sum(added.values())
        assert backlog.known() == set(added)
