"""The lock that orders the statements of tasks sharing a connection: nobody is forgotten, and nobody overtaken."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from penstock.runtime.postgres.interruption import Interruption, hurried
from penstock.runtime.postgres.lock import StatementLock

CLEAN_UP = [rule for rule in Interruption if rule.starts_anyway]
STATEMENT = [rule for rule in Interruption if not rule.starts_anyway]


async def _nothing() -> None:
    pytest.fail("nothing was left untidy")


@pytest.fixture
def lock() -> StatementLock:
    return StatementLock(grace=2.0, untidy=lambda: False, tidy=_nothing)


class Waiter:
    """A task that takes the lock by a rule, and writes down that it got it."""

    def __init__(self, lock: StatementLock, rule: Interruption, turns: list[Waiter], hold: float = 0.0) -> None:
        self.scope = trio.CancelScope()
        self.rule = rule
        self._lock, self._turns, self._hold = lock, turns, hold

    async def run(self) -> None:
        with trio.fail_after(60), self.scope, self.rule.rules():
            async with self._lock:
                self._turns.append(self)
                with trio.CancelScope(shield=True):
                    await trio.sleep(self._hold)
                assert self._turns[-1] is self, "nobody else had it meanwhile"

    async def queue_up(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self.run)
        await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("rule", CLEAN_UP)
async def test_a_clean_up_cancelled_as_the_lock_is_let_go_of_gets_it(
    lock: StatementLock, rule: Interruption, autojump_clock: MockClock
) -> None:
    """It was taken out of its wait, and had not begun the next: the release came in between."""
    turns: list[Waiter] = []
    waiter = Waiter(lock, rule, turns)
    await lock.acquire()
    async with trio.open_nursery() as nursery:
        await waiter.queue_up(nursery)
        waiter.scope.cancel()
        lock.release()
    assert turns == [waiter]
    assert not lock.locked()


@pytest.mark.parametrize("rule", STATEMENT)
async def test_a_statement_cancelled_as_the_lock_is_let_go_of_leaves_it_to_the_next(
    lock: StatementLock, rule: Interruption, autojump_clock: MockClock
) -> None:
    turns: list[Waiter] = []
    waiter, follower = Waiter(lock, rule, turns), Waiter(lock, rule, turns)
    await lock.acquire()
    async with trio.open_nursery() as nursery:
        await waiter.queue_up(nursery)
        await follower.queue_up(nursery)
        waiter.scope.cancel()
        lock.release()
    assert turns == [follower]
    assert not lock.locked()


@pytest.mark.parametrize("cancelled", ["in the queue", "before it"])
async def test_a_cancelled_clean_up_keeps_its_place(
    lock: StatementLock, cancelled: str, autojump_clock: MockClock
) -> None:
    turns: list[Waiter] = []
    waiter, follower = Waiter(lock, Interruption.FINISH, turns), Waiter(lock, Interruption.AT_ONCE, turns)
    await lock.acquire()
    async with trio.open_nursery() as nursery:
        if cancelled == "before it":
            waiter.scope.cancel()
        await waiter.queue_up(nursery)
        await follower.queue_up(nursery)
        waiter.scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        lock.release()
    assert turns == [waiter, follower]
    assert not lock.locked()


async def test_a_clean_up_whose_grace_passes_leaves_the_queue(lock: StatementLock, autojump_clock: MockClock) -> None:
    turns: list[Waiter] = []
    waiter, follower = Waiter(lock, Interruption.FINISH, turns), Waiter(lock, Interruption.AT_ONCE, turns)
    await lock.acquire()
    async with trio.open_nursery() as nursery:
        await waiter.queue_up(nursery)
        await follower.queue_up(nursery)
        waiter.scope.cancel()
        await trio.sleep(lock.grace + 1)
        assert waiter.scope.cancelled_caught
        assert turns == []
        lock.release()
    assert turns == [follower]
    assert not lock.locked()


async def test_without_a_grace_a_clean_up_takes_a_free_lock_and_waits_for_no_other(autojump_clock: MockClock) -> None:
    lock = StatementLock(grace=0.0, untidy=lambda: False, tidy=_nothing)
    with hurried():
        await lock.acquire()
    assert lock.locked()
    with trio.fail_after(1), hurried():
        await lock.acquire()
        pytest.fail("somebody has it")
    lock.release()
    assert not lock.locked()


@pytest.mark.parametrize("seed", range(20))
async def test_cancelled_at_any_moment_the_lock_ends_free(
    lock: StatementLock, seed: int, autojump_clock: MockClock
) -> None:
    """One holder at a time; each clean-up gets its turn, for nobody holds it long; others do unless cancelled."""
    dice = random.Random(seed)
    turns: list[Waiter] = []
    waiters = [Waiter(lock, dice.choice(list(Interruption)), turns, dice.choice([0, 0.01])) for _ in range(30)]
    async with trio.open_nursery() as nursery:
        for waiter in waiters:
            await waiter.queue_up(nursery) if dice.random() < 0.5 else nursery.start_soon(waiter.run)
            if dice.random() < 0.5:
                dice.choice(waiters).scope.cancel()
            if dice.random() < 0.3:
                await trio.sleep(0.01 * dice.random())
    assert not lock.locked()
    assert len(set(turns)) == len(turns)
    for waiter in waiters:
        assert waiter in turns or (waiter.scope.cancel_called and not waiter.rule.starts_anyway)
