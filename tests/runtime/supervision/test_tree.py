"""A whole tree: run, stop, ready, snapshot; and trees within trees."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing
from trees import PLAIN, child, look, make, of_kind

from penstock.runtime.supervision import (
    Backoff,
    Child,
    Gates,
    Intensity,
    InvalidSpec,
    LifecycleKind,
    Restart,
    StartFailed,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import Diary, bad_starter, naughty, running, slow_leaver, slow_starter, stuck

# Run, stop, ready -------------------------------------------------------------------------------------------------


async def test_ready_says_no_when_the_start_fails(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("broken", bad_starter(1)))
    said: list[bool] = []

    async def ask() -> None:
        said.append(await tree.ready())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StartFailed):
            await tree.run()
    assert said == [False]
    assert not await tree.ready()


async def test_ready_says_no_when_the_tree_is_stopped_before_it_is_up(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("never", slow_starter(math.inf)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.testing.wait_all_tasks_blocked()
        tree.stop("SIGTERM")
        assert not await tree.ready()


async def test_a_stop_before_the_run_is_not_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """A SIGTERM may come before the tree's task has had its first turn."""
    diary = Diary()
    tree = make(child("a", diary.of("a")))
    tree.stop("SIGTERM")
    await tree.run()
    assert diary.take() == ""


async def test_a_tree_runs_once(autojump_clock: trio.testing.MockClock) -> None:
    tree = make()
    async with running(tree):
        with pytest.raises(RuntimeError, match="runs once"):
            await tree.run()
    with pytest.raises(RuntimeError, match="runs once"):
        await tree.run()
    tree.stop("after the end")


def test_a_supervisor_has_one_place_in_one_tree() -> None:
    inner = Supervisor("inner", [])
    with pytest.raises(InvalidSpec, match="inner"):
        Tree(Supervisor("app", [Supervisor("left", [inner.spec()]).spec(), inner.spec()]))


async def test_a_child_may_order_the_stop(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()

    async def suicidal(child: Child) -> None:
        child.started()
        await trio.sleep(1)
        tree.stop("a child wants it")
        await trio.sleep_forever()

    tree = make(child("a", diary.of("a")), child("suicidal", suicidal))
    await tree.run()
    assert diary.take() == "+a -a"
    assert trio.current_time() == 1


def test_the_tree_can_be_looked_at_before_and_after(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    gates.add("redis", shut="away")
    tree = make(child("a", requires=("redis",)), gates=gates)
    assert look(tree, "app/a").state == "waiting"

    async def main() -> None:
        async with running(tree):
            assert look(tree, "app/a").state == "held"

    trio.run(main, clock=autojump_clock)
    view = look(tree, "app/a")
    assert (view.state, view.held_by, view.next_start_in) == ("ended", None, None)
    assert look(tree, "app").restarts_left is None


# Trees within trees -----------------------------------------------------------------------------------------------


async def test_a_cut_keeps_the_order_between_sub_supervisors(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    first = Supervisor("first", [child("a", diary.of("a"))])
    second = Supervisor("second", [child("b", diary.of("b", slow_leaver(3.0)))])
    async with running(make(first.spec(), second.spec())) as tree:
        diary.take()
        tree.stop("SIGTERM", cut=True)
    assert diary.take() == "-b -a"
    assert trio.current_time() == 3


async def test_a_stuck_child_deep_below_does_not_hold_up_the_stop_of_the_others(
    autojump_clock: trio.testing.MockClock,
) -> None:
    diary = Diary()
    leaves = [child("before", diary.of("before")), child("stuck", stuck(1000.0), stop_within=5.0)]
    deep = Supervisor("mid", [Supervisor("low", leaves).spec()])
    tree = make(child("first", diary.of("first")), deep.spec())
    with tree.subscribe() as events:
        async with running(tree):
            diary.take()
            tree.stop("SIGTERM")
            await trio.sleep(6)
            assert diary.take() == "-before -first"
            assert look(tree, "app/mid").state == "stuck"
        told = of_kind(list(events.drain()), LifecycleKind.CHILD_STUCK)
    assert [event.path for event in told] == ["app/mid/low/stuck", "app/mid/low", "app/mid"]
    assert trio.current_time() == 1000


async def test_a_cut_reaches_the_bottom_and_ends_a_drain_there(autojump_clock: trio.testing.MockClock) -> None:
    """Also one that was not ordered by the stop, but by a restart of its group."""
    cut: list[bool] = []

    async def drains(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            cut.append(child.cut.is_set())

    leaves = [child("crashes", naughty()), child("drains", drains, drain_within=600.0)]
    inner = Supervisor("inner", leaves, strategy=Strategy.ONE_FOR_ALL)
    async with running(make(inner.spec())) as tree:
        await trio.sleep(2)
        assert look(tree, "app/inner/drains").state == "stopping"
        tree.stop("SIGTERM", cut=True)
    assert trio.current_time() == 2
    assert cut == [True]


async def test_a_clean_up_can_hurry_when_the_second_order_gives_no_grace(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def thorough(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            assert not child.cut.is_set()
            with trio.move_on_after(4.0, shield=True):
                await child.cut.wait()

    inner = Supervisor("inner", [child("thorough", thorough)])
    async with running(make(inner.spec())) as tree:
        tree.stop("SIGTERM")
        await trio.sleep(1)
        tree.stop("SIGTERM again", cut=True)
    assert trio.current_time() == 1


async def test_neither_a_hold_nor_a_cancel_from_outside_is_a_cut(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    gates.add("redis", settle=0.0)
    cut: list[bool] = []

    async def watches(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            cut.append(child.cut.is_set())

    inner = Supervisor("inner", [child("watches", watches, drain_within=60.0)])
    tree = make(inner.spec(requires=("redis",)), gates=gates)
    with trio.CancelScope() as scope:
        async with running(tree):
            gates["redis"].shut("away")
            await trio.sleep(1)
            gates["redis"].open()
            await trio.sleep(1)
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert cut == [False, False]
    assert trio.current_time() == 2


async def test_a_held_sub_supervisor_stops_in_order_and_comes_back_whole(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gates = Gates()
    gates.add("redis", settle=0.0)
    diary = Diary()
    inner = Supervisor("inner", [child("a", diary.of("a")), child("b", diary.of("b", slow_leaver(2.0)))])
    tree = make(inner.spec(requires=("redis",)), gates=gates, intensity=Intensity(0, 60.0))
    async with running(tree):
        gates["redis"].shut("away")
        await trio.sleep(1)
        gates["redis"].open()  # while b is still leaving
        await trio.sleep(5)
        assert diary.take() == "+a +b -b -a +a +b"
        assert look(tree, "app/inner").incarnation == 2


async def test_a_gate_that_flaps_within_one_tick_still_respawns_who_needs_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gates = Gates()
    gates.add("redis", settle=0.5)
    diary = Diary()
    async with running(make(child("a", diary.of("a"), requires=("redis",)), gates=gates)):
        gates["redis"].shut("reset by peer")
        gates["redis"].open()
        await trio.sleep(1)
        assert diary.take() == "+a -a +a"


async def test_the_snapshot_never_shows_an_old_incarnation_s_children(autojump_clock: trio.testing.MockClock) -> None:
    """Taken between every two steps of the scheduler: what is below a starting supervisor belongs to this start."""

    inner = Supervisor("inner", [child("bad", naughty())], intensity=Intensity(0, 60.0))
    tree = make(inner.spec(restart=Restart.TRANSIENT, backoff=PLAIN), intensity=Intensity(100, 600.0))
    seen: set[tuple[str, str]] = set()

    class Spy(trio.abc.Instrument):
        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            view = look(tree, "app/inner")
            seen.add((view.state, view.children[0].state))

    async with running(tree):
        trio.lowlevel.add_instrument(spy := Spy())
        await trio.sleep(30)
        trio.lowlevel.remove_instrument(spy)
    assert ("running", "running") in seen
    assert not {("starting", "ended"), ("backoff", "ended"), ("starting", "backoff")} & seen


async def test_the_snapshot_shows_the_latest_cause_of_a_gate(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    redis = gates.add("redis", shut="not probed yet")
    async with running(make(child("a", requires=("redis",)), gates=gates)) as tree:
        redis.shut("connection refused")
        assert look(tree, "app/a").cause == "connection refused"


async def test_in_the_stop_nobody_is_shown_as_about_to_start(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("bad", naughty()), child("slow", slow_leaver(5.0)))
    async with running(tree):
        await trio.sleep(1.5)
        assert look(tree, "app/bad").next_start_in == pytest.approx(0.5)
        tree.stop("enough")
        await trio.sleep(0.1)
        view = look(tree, "app/bad")
        assert (view.state, view.next_start_in) == ("ended", None)


@pytest.mark.parametrize("options", [{"minimum": math.inf, "maximum": math.inf}, {"maximum": math.inf}])
def test_a_backoff_that_never_ends_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(InvalidSpec, match="finite"):
        Backoff(**options)
