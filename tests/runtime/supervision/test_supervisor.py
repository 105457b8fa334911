"""The real supervisor, in virtual time."""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.lowlevel
import trio.testing

from penstock.runtime.supervision import (
    CUT,
    Backoff,
    Body,
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
from penstock.runtime.testing import run_virtual

PLAIN = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


def virtual_wall() -> datetime:
    return EPOCH + timedelta(seconds=trio.current_time())


class Diary:
    """What the children of a test did, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def polite(self, name: str) -> Body:
        async def body(child: Child) -> None:
            self.lines.append(f"+{name}")
            child.started()
            try:
                await trio.sleep_forever()
            finally:
                self.lines.append(f"-{name}")

        return body

    def take(self) -> str:
        said, self.lines = " ".join(self.lines), []
        return said


def naughty(after: float, error: Callable[[], BaseException] = lambda: RuntimeError("naughty")) -> Body:
    """Starts well, and crashes."""

    async def body(child: Child) -> None:
        child.started()
        await trio.sleep(after)
        raise error()

    return body


async def stuck(child: Child) -> None:
    """Ignores its cancellation for 100 s."""
    child.started()
    with trio.CancelScope(shield=True):
        await trio.sleep(100)


@asynccontextmanager
async def running(tree: Tree) -> AsyncIterator[Tree]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        yield tree
        tree.stop("the test is over")


def make(*specs: ChildSpec, gates: Gates | None = None, **options: object) -> Tree:
    return Tree(Supervisor("app", specs, **options), gates=gates, seed=1)  # type: ignore[arg-type]


def spec(name: str, body: Callable[[Child], Awaitable[None]], **options: object) -> ChildSpec:
    return ChildSpec(id=name, body=body, **{"backoff": PLAIN, **options})  # type: ignore[arg-type]


async def test_an_empty_tree_is_ready_at_once_and_leaves_without_error(autojump_clock: trio.testing.MockClock) -> None:
    async with running(make()):
        pass
    assert trio.current_time() == 0


async def test_start_in_order_stop_in_reverse(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    async with running(make(*(spec(name, diary.polite(name)) for name in "31254"))):
        assert diary.take() == "+3 +1 +2 +5 +4"
    assert diary.take() == "-4 -5 -2 -1 -3"


async def test_a_cancel_from_outside_keeps_the_order_too(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    inner = Supervisor("inner", [spec(name, diary.polite(name)) for name in "bc"])
    tree = make(spec("a", diary.polite("a")), inner.spec(), spec("d", diary.polite("d")))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await tree.ready()
            diary.take()
            scope.cancel()
    assert scope.cancelled_caught
    assert diary.take() == "-d -c -b -a"


async def test_a_crashed_child_comes_back_and_its_sibling_is_untouched(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    async with running(make(spec("good", diary.polite("good")), spec("bad", naughty(5.0)))) as tree:
        await trio.sleep(7)
        view = tree.snapshot().find("app/bad")
        assert view is not None
        assert (view.state, view.incarnation, view.restarts) == ("running", 2, 1)
        assert view.last_error is not None
        assert "naughty" in view.last_error.message
        assert diary.take() == "+good"


async def test_a_burnt_budget_reaches_the_caller_with_its_cause(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(spec("bad", naughty(0.1)), intensity=Intensity(2, 60.0))
    with pytest.raises(RestartLimitExceeded) as caught:
        await tree.run()
    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_transient_sub_supervisor_that_gave_up_is_restarted_not_taken_for_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """OTP takes a burnt budget of a transient supervisor for a normal end; Penstock does not."""
    inner = Supervisor("inner", [spec("bad", naughty(0.1))], intensity=Intensity(0, 60.0))
    async with running(make(inner.spec(restart=Restart.TRANSIENT, backoff=PLAIN))) as tree:
        await trio.sleep(2)
        view = tree.snapshot().find("app/inner")
        assert view is not None
        assert view.restarts >= 1


async def test_a_failing_first_start_fails_the_whole_start_and_names_the_leaf(
    autojump_clock: trio.testing.MockClock,
) -> None:
    diary = Diary()

    async def broken(child: Child) -> None:
        raise OSError("port 47170 is in use")

    inner = Supervisor("inner", [spec("ok", diary.polite("ok")), spec("leaf", broken)])
    tree = make(spec("first", diary.polite("first")), inner.spec())
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
    gates = Gates(Journal(virtual_wall))
    gates.add("redis", settle=0.25)
    diary = Diary()
    tree = make(
        spec("listener", diary.polite("listener"), requires=("redis",)),
        spec("other", diary.polite("other")),
        gates=gates,
        intensity=Intensity(0, 3600.0),
    )
    async with running(tree):
        diary.take()
        for _ in range(100):
            gates["redis"].shut("connection refused at 127.0.0.1:6379")
            await trio.sleep(600)
            assert diary.take() == "-listener"
            view = tree.snapshot().find("app/listener")
            assert view is not None
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

    tree = make(spec("listener", listener, requires=("redis",)), gates=gates, intensity=Intensity(0, 3600.0))
    async with running(tree):
        await trio.sleep(5)
        view = tree.snapshot().find("app/listener")
        assert view is not None
        assert (view.state, view.restarts) == ("held", 0)
        gates["redis"].open()
        await trio.sleep(0.5)
        view = tree.snapshot().find("app/listener")
        assert view is not None
        assert (view.state, view.incarnation) == ("running", 2)


async def test_a_stuck_child_is_reported_with_the_place_where_it_waits(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    tree = make(spec("polite", diary.polite("polite")), spec("stuck", stuck, stop_within=1.0))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        reports = [event for event in events.drain() if event.kind is LifecycleKind.CHILD_STUCK]
    assert [event.path for event in reports] == ["app/stuck"]
    assert "stuck (" in reports[0].reason
    assert "test_supervisor.py:" in reports[0].reason
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

    tree = make(spec("masked", masked))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        stopped = [event for event in events.drain() if event.kind is LifecycleKind.CHILD_STOPPED]
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

    async with running(make(spec("nested", nested))) as tree:
        await trio.sleep(1.5)
        view = tree.snapshot().find("app/nested")
        assert view is not None
        assert view.last_error is not None
        assert view.last_error.type == "KeyError"


async def test_a_drain_lets_a_child_finish_before_it_is_cancelled(autojump_clock: trio.testing.MockClock) -> None:
    done = []

    async def worker(child: Child) -> None:
        child.started()
        await child.draining.wait()
        await trio.sleep(2)
        done.append("finished")

    async with running(make(spec("worker", worker, drain_within=5.0))):
        pass
    assert done == ["finished"]
    assert trio.current_time() == pytest.approx(2)


async def test_the_second_stop_order_gives_no_grace_at_any_level(autojump_clock: trio.testing.MockClock) -> None:
    async def drains_for_ever(child: Child) -> None:
        child.started()
        await trio.sleep_forever()

    inner = Supervisor("inner", [spec("slow", drains_for_ever, drain_within=600.0)])
    tree = make(inner.spec())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
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

    async with running(make(spec("reader", reader, requires=("g",)), gates=gates)):
        variable.set("req-42")
        gates["g"].open()
        await trio.testing.wait_all_tasks_blocked()
    assert seen == ["none"]


async def test_what_ends_the_process_is_let_through_in_order(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    tree = make(spec("a", diary.polite("a")), spec("exit", naughty(1.0, lambda: SystemExit(3))))
    with pytest.raises(SystemExit):
        await tree.run()
    assert diary.take() == "+a -a"


async def test_events_are_numbered_without_gaps_and_name_their_causes(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates(Journal(virtual_wall))
    gates.add("redis", settle=0.0)
    diary = Diary()
    tree = make(spec("listener", diary.polite("listener"), requires=("redis",)), gates=gates)
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
    tree = make(spec("bad", naughty(0.0)), intensity=Intensity(1000, 1.0))
    with tree.subscribe(buffer=10) as events:
        async with running(tree):
            await trio.sleep(600)
        assert events.missed > 100
        assert len(list(events.drain())) == 10


async def test_a_day_of_restart_storm_and_a_day_of_outage_take_no_time(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    gates.add("redis", shut="away since yesterday")
    tree = make(
        spec("bad", naughty(0.0, lambda: RuntimeError("again")), backoff=Backoff(1.0, 30.0, jitter=0.0)),
        ChildSpec(id="held", body=naughty(1.0), requires=("redis",)),
        gates=gates,
        intensity=Intensity(100_000, 3600.0),
    )
    async with running(tree):
        await trio.sleep(24 * 3600)
        storm = tree.snapshot().find("app/bad")
        held = tree.snapshot().find("app/held")
        assert storm is not None
        assert held is not None
        assert 2880 <= storm.restarts <= 2890
        assert (held.state, held.incarnation) == ("held", 0)


async def test_a_gate_that_was_never_added_is_refused_before_anything_starts() -> None:
    diary = Diary()
    with pytest.raises(UnknownGate, match="'reddis'"):
        make(spec("a", diary.polite("a"), requires=("reddis",)), gates=Gates())
    assert diary.take() == ""


async def test_group_strategies_in_a_run(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()

    async def crashes_once(child: Child) -> None:
        diary.lines.append("+x")
        child.started()
        if child.incarnation == 1:
            await trio.sleep(1)
            raise RuntimeError("once")
        await trio.sleep_forever()

    tree = make(
        spec("a", diary.polite("a")),
        spec("x", crashes_once),
        spec("z", diary.polite("z")),
        strategy=Strategy.REST_FOR_ONE,
    )
    async with running(tree):
        await trio.sleep(3)
        assert diary.take() == "+a +x +z -z +x +z"


async def test_a_bug_in_the_supervisor_itself_still_stops_its_children(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = Diary()
    tree = make(spec("a", diary.polite("a")))
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
        bodies = {"plain": Diary().polite("plain"), "nested": nested, "tidy": tidy}
        specs = [ChildSpec(id=name, body=body, stop_within=CUT) for name, body in bodies.items()]
        root = Supervisor("app", [*specs, ChildSpec(id="deaf", body=stuck, stop_within=0.0)])
        tree = Tree(root)
        async with running(tree):
            with tree.subscribe() as events:
                for name in bodies:
                    await root.terminate_child(name)
                with pytest.raises(ChildIsStuck):
                    await root.terminate_child("deaf")
                assert trio.current_time() == 0
                late = [event.path for event in events.drain() if event.kind is LifecycleKind.CHILD_STUCK]
                assert late == ["app/deaf"]

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
        handle = await root.start_child(spec("brief", brief, restart=Restart.TEMPORARY))
        assert handle is not None
        assert (handle.info, handle.is_alive, await handle.wait_ended()) == ("done", False, None)


async def test_a_change_of_order_alone_is_a_change(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()
    root = Supervisor("app", [spec(name, diary.polite(name)) for name in "ab"])
    tree = Tree(root)
    async with running(tree):
        changes = await root.reload(Plan([*reversed(root.plan.children)]))
        assert changes
        assert str(changes) == "another order"
        assert tree.journal.recent[-1].kind is LifecycleKind.PLAN_CHANGED
        diary.take()
    assert diary.take() == "-a -b"
