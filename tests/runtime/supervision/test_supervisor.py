"""The real supervisor, in virtual time."""

from __future__ import annotations

import contextvars
import re

import pytest
import trio
import trio.lowlevel
import trio.testing
from trees import PLAIN, child, look, make, of_kind

from penstock.runtime.supervision import (
    CUT,
    Backoff,
    Child,
    ChildIsStuck,
    ChildSpec,
    Gates,
    Intensity,
    Journal,
    LifecycleKind,
    Plan,
    Restart,
    RestartLimitExceeded,
    StartFailed,
    Strategy,
    Supervisor,
    Tree,
    UnknownGate,
)
from penstock.runtime.testing import (
    DAY,
    Diary,
    Misbehaved,
    VirtualWall,
    bad_starter,
    flaky,
    naughty,
    run_virtual,
    running,
    steady,
    stuck,
)


async def test_an_empty_tree_is_ready_at_once_and_leaves_without_error(autojump_clock: trio.testing.MockClock) -> None:
    async with running(make()):
        pass
    assert trio.current_time() == 0


async def test_start_in_order_stop_in_reverse(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    async with running(make(*(child(name, diary.of(name)) for name in "31254"))):
        assert diary.take() == "+3 +1 +2 +5 +4"
    assert diary.take() == "-4 -5 -2 -1 -3"


async def test_a_cancel_from_outside_keeps_the_order_too(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    inner = Supervisor("inner", [child(name, diary.of(name)) for name in "bc"])
    tree = make(child("a", diary.of("a")), inner.spec(), child("d", diary.of("d")))
    with trio.CancelScope() as scope:
        async with running(tree):
            diary.take()
            scope.cancel()
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert diary.take() == "-d -c -b -a"


async def test_a_crashed_child_comes_back_and_its_sibling_is_untouched(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    bad = naughty(5.0, lambda: Misbehaved("naughty"))
    async with running(make(child("good", diary.of("good")), child("bad", bad))) as tree:
        await trio.sleep(7)
        view = look(tree, "app/bad")
        assert (view.state, view.incarnation, view.restarts) == ("running", 2, 1)
        assert view.last_error is not None
        assert "naughty" in view.last_error.message
        assert diary.take() == "+good"


async def test_a_burnt_budget_reaches_the_caller_with_its_cause(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("bad", naughty(0.1)), intensity=Intensity(2, 60.0))
    with pytest.raises(RestartLimitExceeded) as caught:
        await tree.run()
    assert isinstance(caught.value.__cause__, Misbehaved)


async def test_a_transient_sub_supervisor_that_gave_up_is_restarted_not_taken_for_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """OTP takes a burnt budget of a transient supervisor for a normal end; Penstock does not."""
    inner = Supervisor("inner", [child("bad", naughty(0.1))], intensity=Intensity(0, 60.0))
    async with running(make(inner.spec(restart=Restart.TRANSIENT, backoff=PLAIN))) as tree:
        await trio.sleep(2)
        view = look(tree, "app/inner")
        assert view.restarts >= 1


async def test_a_failing_first_start_fails_the_whole_start_and_names_the_leaf(
    autojump_clock: trio.testing.MockClock,
) -> None:
    diary = Diary()
    broken = bad_starter(1, lambda: OSError("port 47170 is in use"))
    inner = Supervisor("inner", [child("ok", diary.of("ok")), child("leaf", broken)])
    tree = make(child("first", diary.of("first")), inner.spec())
    with pytest.raises(StartFailed) as caught:
        await tree.run()
    assert "leaf" in str(caught.value)
    assert "47170" in str(caught.value)
    root: BaseException = caught.value
    while root.__cause__ is not None:
        root = root.__cause__
    assert isinstance(root, OSError)
    assert root.__traceback__ is not None
    assert diary.take() == "+first +ok -ok -first"


async def test_a_gate_cancels_and_respawns_whom_it_holds_without_using_the_budget(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gates = Gates(Journal(VirtualWall()))
    gates.add("redis", settle=0.25)
    diary = Diary()
    tree = make(
        child("listener", diary.of("listener"), requires=("redis",)),
        child("other", diary.of("other")),
        gates=gates,
        intensity=Intensity(0, 3600.0),
    )
    async with running(tree):
        diary.take()
        for _ in range(100):
            gates["redis"].shut("connection refused at 127.0.0.1:6379")
            await trio.sleep(600)
            assert diary.take() == "-listener"
            view = look(tree, "app/listener")
            assert (view.state, view.held_by, view.restarts) == ("held", "redis", 0)
            assert view.cause == "connection refused at 127.0.0.1:6379"
            gates["redis"].open()
            await trio.sleep(0.3)
            assert diary.take() == "+listener"
        root = tree.snapshot().root
        assert root.state == "running"


async def test_a_child_whose_gate_shuts_with_its_own_error_is_held_not_restarted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The link's error shuts the gate before the child's exception arrives: one cause, no restart."""
    gates = Gates()
    gates.add("redis", settle=0.0)

    async def listener(child: Child) -> None:
        child.started()
        await trio.sleep(1)
        gates["redis"].shut("reset by peer")
        raise ConnectionError("reset by peer")

    tree = make(child("listener", listener, requires=("redis",)), gates=gates, intensity=Intensity(0, 3600.0))
    async with running(tree):
        await trio.sleep(5)
        view = look(tree, "app/listener")
        assert (view.state, view.restarts) == ("held", 0)
        gates["redis"].open()
        await trio.sleep(0.5)
        view = look(tree, "app/listener")
        assert (view.state, view.incarnation) == ("running", 2)


async def test_a_stuck_child_is_reported_with_the_place_where_it_waits(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    tree = make(child("polite", diary.of("polite")), child("stuck", stuck(100.0), stop_within=1.0))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        reports = of_kind(events.drain(), LifecycleKind.CHILD_STUCK)
    assert [event.path for event in reports] == ["app/stuck"]
    assert re.search(r"stuck\.<locals>\.body \(\S*children\.py:\d+\)", reports[0].reason)
    assert diary.take() == "+polite -polite"
    assert trio.current_time() == pytest.approx(100)


async def test_an_error_while_stopping_is_not_lost_though_a_finally_awaited(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def masked(child: Child) -> None:
        child.started()
        try:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("the real bug")
        finally:
            await trio.sleep(0.1)

    tree = make(child("masked", masked))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        stopped = of_kind(events.drain(), LifecycleKind.CHILD_STOPPED)
    assert stopped[0].error is not None
    assert stopped[0].error.message == "the real bug"
    assert "masked" in stopped[0].error.traceback


async def test_an_error_in_a_nested_nursery_is_unwrapped_once(autojump_clock: trio.testing.MockClock) -> None:
    async def nested(child: Child) -> None:
        child.started()
        async with trio.open_nursery():
            async with trio.open_nursery() as inner:
                inner.start_soon(trio.sleep_forever)
                await trio.sleep(1)
                raise KeyError("deep")

    async with running(make(child("nested", nested))) as tree:
        await trio.sleep(1.5)
        view = look(tree, "app/nested")
        assert view.last_error is not None
        assert view.last_error.type == "KeyError"


async def test_a_drain_lets_a_child_finish_before_it_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    done = []

    async def worker(child: Child) -> None:
        child.started()
        await child.draining.wait()
        await trio.sleep(2)
        done.append("finished")

    async with running(make(child("worker", worker, drain_within=5.0))):
        pass
    assert done == ["finished"]
    assert trio.current_time() == pytest.approx(2)


async def test_the_second_stop_order_gives_no_grace_at_any_level(autojump_clock: trio.testing.MockClock) -> None:
    inner = Supervisor("inner", [child("slow", steady(), drain_within=600.0)])
    tree = make(inner.spec())
    async with running(tree):
        tree.stop("SIGTERM")
        await trio.sleep(1)
        assert tree.snapshot().root.state == "stopping"
        tree.stop("SIGTERM again", cut=True)
    assert trio.current_time() == pytest.approx(1)


async def test_children_inherit_no_context_of_a_stranger(autojump_clock: trio.testing.MockClock) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    gates = Gates()
    gates.add("g", settle=0.0, shut="not yet")
    seen = []

    async def reader(child: Child) -> None:
        seen.append(variable.get())
        child.started()
        await trio.sleep_forever()

    async with running(make(child("reader", reader, requires=("g",)), gates=gates)):
        variable.set("req-42")
        gates["g"].open()
        await trio.testing.wait_all_tasks_blocked()
    assert seen == ["none"]


async def test_what_ends_the_process_is_let_through_in_order(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    tree = make(child("a", diary.of("a")), child("exit", naughty(1.0, lambda: SystemExit(3))))
    with pytest.raises(SystemExit):
        await tree.run()
    assert diary.take() == "+a -a"


async def test_events_are_numbered_without_gaps_and_name_their_causes(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates(Journal(VirtualWall()))
    gates.add("redis", settle=0.0)
    diary = Diary()
    tree = make(child("listener", diary.of("listener"), requires=("redis",)), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            gates["redis"].shut("away")
            await trio.sleep(3)
            gates["redis"].open()
            await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
        seen = list(events.drain())
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))
    by_kind = {event.kind: event for event in seen if event.incarnation < 2}
    shut, held = by_kind[LifecycleKind.GATE_SHUT], by_kind[LifecycleKind.CHILD_HELD]
    assert held.cause == shut.sequence
    opened = next(event for event in seen if event.kind is LifecycleKind.GATE_OPENED)
    respawn = next(event for event in seen if event.kind is LifecycleKind.CHILD_STARTING and event.incarnation == 2)
    assert respawn.cause == opened.sequence
    assert opened.seconds == pytest.approx(3)
    assert seen[-1].kind is LifecycleKind.TREE_STOPPED


async def test_a_slow_subscriber_delays_nobody_and_is_told_what_it_missed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    tree = make(child("bad", naughty(0.0)), intensity=Intensity(1000, 1.0))
    with tree.subscribe(buffer=10) as events:
        async with running(tree):
            await trio.sleep(600)
        assert events.missed > 100
        assert len(list(events.drain())) == 10


async def test_a_day_of_restart_storm_and_a_day_of_outage_take_no_time(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    gates.add("redis", shut="away since yesterday")
    tree = make(
        child("bad", naughty(0.0), backoff=Backoff(1.0, 30.0, jitter=0.0)),
        child("held", naughty(1.0), requires=("redis",)),
        gates=gates,
        intensity=Intensity(100_000, 3600.0),
    )
    async with running(tree):
        await trio.sleep(DAY)
        storm, held = look(tree, "app/bad"), look(tree, "app/held")
        assert 2880 <= storm.restarts <= 2890
        assert (held.state, held.incarnation) == ("held", 0)


async def test_a_gate_that_was_never_added_is_refused_before_anything_starts() -> None:
    diary = Diary()
    with pytest.raises(UnknownGate, match="'reddis'"):
        make(child("a", diary.of("a"), requires=("reddis",)), gates=Gates())
    assert diary.take() == ""


async def test_group_strategies_in_a_run(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    tree = make(
        child("a", diary.of("a")),
        child("x", diary.of("x", flaky("crash stay"))),
        child("z", diary.of("z")),
        strategy=Strategy.REST_FOR_ONE,
    )
    async with running(tree):
        await trio.sleep(3)
        assert diary.take() == "+a +x +z !x -z +x +z"


async def test_a_bug_in_the_supervisor_itself_still_stops_its_children(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    tree = make(child("a", diary.of("a")))
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await tree.ready()
            run = tree.root.run
            assert run is not None

            def broken(*_: object) -> list[object]:
                raise ZeroDivisionError("a bug")

            monkeypatch.setattr(type(run.core), "handle", broken)
            tree.stop("enough")
    assert diary.take() == "+a -a"


@pytest.mark.parametrize("seed", range(20))
def test_whoever_leaves_at_once_is_not_stuck_though_it_has_no_grace(seed: int) -> None:
    """With a limit of 0 s it must not matter whether trio runs the child or its supervisor first."""

    async def nested(child: Child) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            child.started()

    async def tidy(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()

    async def main() -> None:
        bodies = {"plain": steady(), "nested": nested, "tidy": tidy}
        specs = [ChildSpec(id=name, body=body, stop_within=CUT) for name, body in bodies.items()]
        root = Supervisor("app", [*specs, ChildSpec(id="deaf", body=stuck(100.0), stop_within=0.0)])
        tree = Tree(root)
        async with running(tree):
            with tree.subscribe() as events:
                for name in bodies:
                    await root.terminate_child(name)
                with pytest.raises(ChildIsStuck):
                    await root.terminate_child("deaf")
                assert trio.current_time() == 0
                late = of_kind(events.drain(), LifecycleKind.CHILD_STUCK)
                assert [event.path for event in late] == ["app/deaf"]

    run_virtual(main, seed=seed)


async def test_a_child_that_is_ready_and_gone_in_one_tick_leaves_its_handle(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Who asked for it is told which incarnation it was, and not that there was nothing to run."""

    async def brief(child: Child) -> None:
        child.started("done")

    root = Supervisor("app")
    tree = Tree(root)
    async with running(tree):
        handle = await root.start_child(child("brief", brief, restart=Restart.TEMPORARY))
        assert handle is not None
        assert (handle.info, handle.is_alive, await handle.wait_ended()) == ("done", False, None)


async def test_a_change_of_order_alone_is_a_change(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    root = Supervisor("app", [child(name, diary.of(name)) for name in "ab"])
    tree = Tree(root)
    async with running(tree):
        changes = await root.reload(Plan([*reversed(root.plan.children)]))
        assert changes
        assert str(changes) == "another order"
        assert tree.journal.recent[-1].kind is LifecycleKind.PLAN_CHANGED
        diary.take()
    assert diary.take() == "-a -b"
