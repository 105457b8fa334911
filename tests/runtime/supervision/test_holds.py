"""Holds that meet something else: calls, drains, stops, flapping gates, many children."""

from __future__ import annotations

import pytest
import trio
from trees import child, look, make
from trio.testing import MockClock

from penstock.runtime.supervision import (
    Backoff,
    Child,
    ChildSpec,
    Gates,
    HeldTooLong,
    Ignore,
    Intensity,
    Plan,
    Pool,
    Restart,
    Rule,
    Shutdown,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.outcome import outcome_of
from penstock.runtime.supervision.spec import Directive
from penstock.runtime.testing import naughty, running, slow_leaver, steady, stuck


def gated() -> tuple[Gates, ChildSpec]:
    gates = Gates()
    gates.add("redis", settle=0.0)
    return gates, child("a", steady(), requires=("redis",), hold_within=60.0)


async def test_the_limit_of_a_hold_ends_with_the_wish_to_run(autojump_clock: MockClock) -> None:
    """Who was terminated while it was held is held no more; a call for it is answered, and the limit is forgotten."""
    gates, spec = gated()
    root = Supervisor("app", [spec])
    async with running(Tree(root, gates=gates)):
        gates["redis"].shut("away")
        await trio.sleep(1)
        await root.terminate_child("a")
        await trio.sleep(120)
        with trio.fail_after(1):
            assert await root.restart_child("a") is None  # held again
        await root.terminate_child("a")


async def test_a_gate_that_opens_too_briefly_for_a_start_does_not_begin_the_limit_anew(
    autojump_clock: MockClock,
) -> None:
    gates = Gates()
    gate = gates.add("redis", settle=5.0)
    tree = make(child("a", steady(), requires=("redis",), hold_within=60.0), gates=gates)
    with pytest.raises(HeldTooLong):
        async with running(tree):
            while True:
                gate.shut("flaps")
                await trio.sleep(8)
                gate.open()
                await trio.sleep(4)
    assert trio.current_time() == 60


async def test_flapping_puts_nobody_off_for_longer_than_the_last_opening(autojump_clock: MockClock) -> None:
    """Turns are taken by who starts, not by who was about to: the queue after the last opening is as long as ever."""
    gates = Gates()
    gate = gates.add("redis", settle=0.25)
    tree = make(*(child(f"c{number}", steady(), requires=("redis",)) for number in range(100)), gates=gates)
    async with running(tree):
        for _ in range(50):
            gate.shut("flaps")
            await trio.sleep(0.5)
            gate.open()
            await trio.sleep(0.3)
        gate.shut("flaps")
        await trio.sleep(1)
        gate.open()
        await trio.sleep(0.25 + 100 * 0.01)
        assert {view.state for view in tree.snapshot().root.children} == {"running"}


async def test_nobody_runs_on_behind_a_shut_gate_because_somebody_else_takes_his_time(
    autojump_clock: MockClock,
) -> None:
    gates, spec = gated()
    root = Supervisor("app", [spec, child("slow", slow_leaver(50), stop_within=100.0)])
    tree = Tree(root, gates=gates)
    async with running(tree), trio.open_nursery() as nursery:
        nursery.start_soon(root.terminate_child, "slow")
        await trio.sleep(1)
        gates["redis"].shut("away")
        await trio.sleep(0.001)
        assert look(tree, "app/a").state == "held"


async def test_a_drain_ends_when_there_is_nothing_to_finish_it_with(autojump_clock: MockClock) -> None:
    gates = Gates()
    gates.add("redis")
    root = Supervisor("app", [child("a", steady(), requires=("redis",), drain_within=600.0)])
    tree = Tree(root, gates=gates)
    async with running(tree), trio.open_nursery() as nursery:
        nursery.start_soon(root.terminate_child, "a")
        await trio.sleep(10)
        assert look(tree, "app/a").state == "stopping"
        gates["redis"].shut("away")
        await trio.sleep(0.001)
        assert look(tree, "app/a").state == "ended"


async def test_a_start_by_call_waits_for_the_gate_to_settle_like_all_others(autojump_clock: MockClock) -> None:
    gates = Gates()
    gate = gates.add("redis", settle=5.0)
    root = Supervisor("app", [child("static", steady(), requires=("redis",))])
    tree = Tree(root, gates=gates)
    async with running(tree):
        gate.shut("away")
        await trio.sleep(1)
        gate.open()
        await root.start_child(child("added", steady(), requires=("redis",)))
        assert trio.current_time() >= 6


async def test_a_stop_passes_by_a_supervisor_that_gave_up_over_a_stuck_child(autojump_clock: MockClock) -> None:
    """The stop of the others goes on, also when the supervisor's own stop had begun before anybody ordered it."""
    crash = child("crash", naughty(5.0), backoff=Backoff(0.0, 0.0))
    nested = Supervisor("nested", [child("deaf", stuck(10_000), stop_within=1.0), crash], intensity=Intensity(0, 1.0))
    left: list[float] = []

    async def first(me: Child) -> None:
        me.started()
        try:
            await trio.sleep_forever()
        finally:
            left.append(trio.current_time())

    tree = make(child("a", first), nested.spec())
    async with running(tree):
        await trio.sleep(20)
        tree.stop("enough")
        await trio.sleep(20)
        assert left
        assert left[0] < 30


async def test_what_a_supervisor_has_up_is_drained_also_while_it_is_still_starting(autojump_clock: MockClock) -> None:
    drained: list[bool] = []

    async def drains(me: Child) -> None:
        me.started()
        await me.draining.wait()
        await trio.sleep(1)
        drained.append(True)

    async def never_ready(me: Child) -> None:
        await trio.sleep_forever()

    below = Supervisor("below", [child("up", drains, drain_within=10.0), child("late", never_ready)])
    tree = make(below.spec())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.sleep(3)
        tree.stop("enough")
    assert drained == [True]


async def test_a_stop_answers_who_waits_for_the_turn_of_another_stop(autojump_clock: MockClock) -> None:
    """A clean-up that asks its supervisor for a sibling's stop does not hold up the stop of the tree."""
    root: Supervisor

    async def meddles(me: Child) -> None:
        me.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                with pytest.raises(Exception, match="stop"):
                    await root.terminate_child("a")

    root = Supervisor(
        "app", [child("a", steady()), child("b", meddles, stop_within=1000.0)], strategy=Strategy.ONE_FOR_ALL
    )
    async with running(Tree(root)):
        await trio.sleep(1)
    assert trio.current_time() < 10


async def test_polite_words_pass_through_a_policy_of_resuming(autojump_clock: MockClock) -> None:
    """`Shutdown` within `resuming()` is no error of a message."""

    async def bows_out(me: Child) -> None:
        me.started()
        with me.resuming():
            raise Shutdown("enough")

    spec = ChildSpec(
        id="a", body=bows_out, restart=Restart.TRANSIENT, policy=[Rule(Exception, Directive.RESUME)], name=None
    )
    root = Supervisor("app", [spec])
    async with running(Tree(root)):
        await trio.sleep(1)
        assert root.which_child("a").state == "ended"
    assert issubclass(Ignore, Exception)


def test_errors_that_hold_each_other_are_told_once() -> None:
    """A group unwrapped by hand, whose error was a `Cancelled`, makes a circle."""
    error = ValueError("real")
    group = BaseExceptionGroup("both", [error])
    error.__context__ = group
    assert outcome_of(group).error is error


async def test_a_journal_does_not_remember_each_child_of_a_pool_for_ever(autojump_clock: MockClock) -> None:
    pool = Pool("pool", child("c", steady(), restart=Restart.TEMPORARY))
    tree = Tree(pool)
    async with running(tree):
        for _ in range(500):
            handle = await pool.start_child()
            assert handle is not None
            await pool.terminate_child(handle)
        assert len(tree.journal._last) < 150


async def test_a_change_of_plan_begins_and_ends_the_holds_of_who_is_down(autojump_clock: MockClock) -> None:
    """Who waits for a restart is held by a gate that it requires from now on, within its limit; and free without it."""
    gates = Gates()
    gates.add("redis", shut="away")

    def crashing(**options: object) -> ChildSpec:
        return child("a", naughty(1.0), backoff=Backoff(5.0, 5.0, jitter=0.0), **options)

    root = Supervisor("app", [crashing()])
    tree = Tree(root, gates=gates)
    with pytest.raises(HeldTooLong):
        async with running(tree):
            await trio.sleep(2)
            await root.reload(Plan([crashing(requires=("redis",))]))
            assert look(tree, "app/a").state == "held"
            await root.reload(Plan([crashing()]))
            await trio.sleep(5)
            assert look(tree, "app/a").incarnation == 2
            await root.reload(Plan([crashing(requires=("redis",), hold_within=10.0)]))
            await trio.sleep(100)
