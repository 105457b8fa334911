"""Stops that do not go smoothly: who does not hear, who raises, signals, cancels (lines 130 to 134 of the list)."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress

import pytest
import trio
import trio.testing
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import PLAIN, look, of_kind

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    Ending,
    LifecycleEvent,
    LifecycleKind,
    Supervisor,
    Tree,
    stop_on_signals,
)
from penstock.runtime.supervision.messages import Begin, ChildEnded, Grace, StopOrdered
from penstock.runtime.supervision.outcome import Outcome
from penstock.runtime.testing import Diary, bad_starter, deaf, running, slow_leaver, slow_starter, steady, stuck


class Log:
    """Who left, and when."""

    def __init__(self) -> None:
        self.left: list[tuple[str, float]] = []

    def of(self, name: str, body: Body | None = None) -> Body:
        kept = body or steady()

        async def noted(child: Child) -> None:
            try:
                await kept(child)
            finally:
                self.left.append((name, trio.current_time()))

        return noted


def drains(seconds: float) -> Body:
    """Works until it is asked to finish, and then takes so long over it."""

    async def body(child: Child) -> None:
        child.started()
        await child.draining.wait()
        await trio.sleep(seconds)

    return body


def cleans_up(seconds: float) -> Body:
    """Takes so long to leave once it is cancelled, shielded; told to hurry it leaves at once."""

    async def body(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(seconds):
                await child.cut.wait()

    return body


# 130 -----------------------------------------------------------------------------------------------------------------


async def test_own_130_who_ignores_its_cancel_is_reported_and_the_others_go_on(autojump_clock: MockClock) -> None:
    """Behind a shield: when its limit has passed a report tells name, age, limit and the frames at which it waits, and
    the stop goes on with those before it."""
    log = Log()
    specs = [
        ChildSpec(id="a", body=log.of("a")),
        ChildSpec(id="b", body=log.of("b", stuck(100)), stop_within=3.0),
        ChildSpec(id="c", body=log.of("c")),
    ]
    tree = Tree(Supervisor("app", specs))
    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await trio.sleep(10)
            tree.stop("enough")
            await trio.sleep(2.9)
            assert (look(tree, "app/b").state, log.left) == ("stopping", [("c", 10)])
            await trio.sleep(0.2)
            assert (look(tree, "app/b").state, log.left) == ("stuck", [("c", 10), ("a", 13)])
        (report,) = of_kind(events.drain(), LifecycleKind.CHILD_STUCK)
    assert (report.path, report.incarnation, report.seconds) == ("app/b", 1, 3)
    assert report.reason.startswith("still running 3 s after the cancel (limit 3 s); waiting at ")
    assert "stuck.<locals>.body (" in report.reason
    assert "children.py:" in report.reason
    assert log.left[2:] == [("b", 100)]
    assert trio.current_time() == 100  # nobody is left behind: the run ends with the last task


async def test_own_130_a_thread_that_cannot_be_cancelled_is_reported_likewise(autojump_clock: MockClock) -> None:
    """A body that waits for a thread: trio cannot cancel that. The report has the frame that went into it."""
    log = Log()
    release = threading.Event()

    async def waits_for_a_thread(child: Child) -> None:
        child.started()
        await trio.to_thread.run_sync(release.wait)

    specs = [ChildSpec(id="a", body=log.of("a")), ChildSpec(id="b", body=waits_for_a_thread)]
    tree = Tree(Supervisor("app", specs))
    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await tree.ready()
            tree.stop("enough")
            async for event in events:
                if event.kind is LifecycleKind.CHILD_STUCK:
                    break
            assert (event.path, event.seconds, trio.current_time()) == ("app/b", 5, 5)
            assert "waits_for_a_thread" in event.reason
            assert "to_thread_run_sync" in event.reason
            await trio.testing.wait_all_tasks_blocked()
            assert log.left == [("a", 5)]
            release.set()
    assert look(tree, "app/b").state == "ended"


async def test_own_130_each_that_is_stuck_has_its_own_limit_in_turn(autojump_clock: MockClock) -> None:
    """Three in a row: each gets its cancel when the one behind it was reported, and its own limit then."""
    specs = [
        ChildSpec(id=name, body=stuck(50), stop_within=limit) for name, limit in zip("abc", (1, 2, 4), strict=True)
    ]
    tree = Tree(Supervisor("app", specs))
    reports: list[tuple[str, float]] = []

    async def watch() -> None:
        with tree.subscribe() as events:
            async for event in events:
                if event.kind is LifecycleKind.CHILD_STUCK:
                    reports.append((event.path, trio.current_time()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(tree.run)
        await trio.sleep(10)
        tree.stop("enough")
    assert reports == [("app/c", 14), ("app/b", 16), ("app/a", 17)]
    assert trio.current_time() == 50


async def test_own_130_who_swallows_a_cancel_but_leaves_in_time_is_no_news(autojump_clock: MockClock) -> None:
    """Slow, or deaf for a moment, is not stuck."""
    tree = Tree(
        Supervisor("app", [ChildSpec(id="a", body=deaf(3)), ChildSpec(id="b", body=slow_leaver(4.9), stop_within=5.0)])
    )
    with tree.subscribe() as events:
        async with running(tree):
            pass
        told = list(events.drain())
    assert of_kind(told, LifecycleKind.CHILD_STUCK) == []
    assert trio.current_time() == 4.9


async def test_own_130_a_stuck_one_is_not_started_again_before_it_is_gone(autojump_clock: MockClock) -> None:
    """Terminated by a call it is reported to the caller too; it stays listed, and two of it never live at once."""
    lives: list[tuple[str, float]] = []

    async def body(child: Child) -> None:
        lives.append(("+", trio.current_time()))
        child.started()
        with trio.CancelScope(shield=child.incarnation == 1):
            await trio.sleep(20 if child.incarnation == 1 else float("inf"))
        lives.append(("-", trio.current_time()))

    app = Supervisor("app", [ChildSpec(id="a", body=body, progress_within=2.0, stop_within=3.0, backoff=PLAIN)])
    tree = Tree(app)
    async with running(tree):
        await trio.sleep(6)  # stalled at 2, stuck at 5
        assert look(tree, "app/a").state == "stuck"
        await trio.sleep(13)
        assert lives == [("+", 0)]
        await trio.sleep(2.5)
    assert lives[:3] == [("+", 0), ("-", 20), ("+", 21)]


# 131 -----------------------------------------------------------------------------------------------------------------


def raises_on_the_way_out(awaits: int) -> Body:
    """Raises as it is cancelled, within so many clean-ups that wait."""

    async def body(child: Child) -> None:
        child.started()
        await cleaning(awaits)

    async def cleaning(floors: int) -> None:
        if not floors:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("the real bug")
        try:
            await cleaning(floors - 1)
        finally:
            await trio.sleep(0.1)  # cancelled at once: hides what is on its way out

    return body


@pytest.mark.parametrize("awaits", [0, 1, 3])
@pytest.mark.parametrize("in_a_nursery", [False, True])
async def test_own_131_an_error_while_stopping_is_told_and_not_lost(
    awaits: int, in_a_nursery: bool, autojump_clock: MockClock
) -> None:
    """A child that raises while it is stopped is reported with error and traceback, though later clean-ups awaited and
    were cancelled themselves; the stop goes on, and is no failure of the tree."""
    inner = raises_on_the_way_out(awaits)

    async def body(child: Child) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(inner, child)

    diary = Diary()
    child = ChildSpec(id="b", body=body if in_a_nursery else inner)
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=diary.of("a")), child]))
    endings: list[Ending] = []

    async def run() -> None:
        endings.append(await tree.run())

    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await tree.ready()
            handle = tree.root.which_child("b").handle  # type: ignore[attr-defined]
            tree.stop("enough")
        told = list(events.drain())
    (stopped,) = [event for event in of_kind(told, LifecycleKind.CHILD_STOPPED) if event.path == "app/b"]
    assert stopped.error is not None
    assert str(stopped.error) == "ValueError: the real bug"
    assert 'raise ValueError("the real bug")' in stopped.error.traceback
    assert handle is not None
    assert await handle.wait_ended() == stopped.error
    assert of_kind(told, LifecycleKind.CHILD_CRASHED) == []
    assert endings == [Ending.STOPPED]
    assert diary.take() == "+a -a"


async def test_own_131_it_is_no_crash_of_a_child_that_a_call_stops_either(autojump_clock: MockClock) -> None:
    """Stopped by a call, and started again: the error is told, costs no restart, and shows nowhere as a crash."""
    app = Supervisor("app", [ChildSpec(id="b", body=raises_on_the_way_out(1))])
    tree = Tree(app)
    with tree.subscribe() as events:
        async with running(tree):
            await app.terminate_child("b")
            await app.restart_child("b")
            view = look(tree, "app/b")
            assert (view.state, view.restarts, view.last_error) == ("running", 0, None)
            assert look(tree, "app").restarts_left == 5
        errors = [event.error for event in of_kind(events.drain(), LifecycleKind.CHILD_STOPPED)]
    assert [None if error is None else error.message for error in errors] == ["the real bug"] * 2


async def test_own_131_several_errors_are_told_together(autojump_clock: MockClock) -> None:
    """Two tasks of one child raise while they are stopped: both are in the report."""

    async def body(child: Child) -> None:
        child.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails, ValueError("one"))
            nursery.start_soon(fails, KeyError("two"))

    async def fails(error: Exception) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error

    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=body)]))
    with tree.subscribe() as events:
        async with running(tree):
            pass
        (stopped,) = of_kind(events.drain(), LifecycleKind.CHILD_STOPPED)
    assert stopped.error is not None
    assert "ValueError: one" in stopped.error.traceback
    assert "KeyError: 'two'" in stopped.error.traceback


# 132 -----------------------------------------------------------------------------------------------------------------


async def send_at(*signals: tuple[float, signal.Signals]) -> None:
    for at, number in signals:
        await trio.sleep_until(at)
        os.kill(os.getpid(), number)


async def stopped_by(
    *orders: tuple[float, signal.Signals], by_signal: bool
) -> tuple[list[tuple[str, float]], list[LifecycleEvent]]:
    """Who left and when, of a tree whose children take their time, under such orders."""
    log = Log()
    below = Supervisor("d", [ChildSpec(id="e", body=log.of("e", drains(10)), drain_within=20.0)])
    specs = [
        ChildSpec(id="a", body=log.of("a", drains(10)), drain_within=20.0),
        ChildSpec(id="b", body=log.of("b", cleans_up(4)), stop_within=5.0),
        ChildSpec(id="c", body=log.of("c", drains(10)), drain_within=20.0),
        below.spec(),
    ]
    tree = Tree(Supervisor("app", specs))
    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            if by_signal:
                await nursery.start(stop_on_signals, tree)
                nursery.start_soon(send_at, *orders)
            else:
                nursery.start_soon(order_at, tree, *orders)
            await tree.run()
            nursery.cancel_scope.cancel()
        return log.left, list(events.drain())


async def order_at(tree: Tree, *orders: tuple[float, signal.Signals]) -> None:
    for number, (at, name) in enumerate(orders):
        await trio.sleep_until(at)
        tree.stop(name.name, cut=number > 0)


TERM, INT = signal.SIGTERM, signal.SIGINT
BY = pytest.mark.parametrize("by_signal", [False, True], ids=["stop", "signal"])


@BY
@pytest.mark.parametrize("number", [TERM, INT])
async def test_own_132_the_first_signal_starts_the_ordered_stop(
    number: signal.Signals, by_signal: bool, autojump_clock: MockClock
) -> None:
    """SIGTERM (or Ctrl-C) once: each child has its grace, one after the other, from the last to the first."""
    left, told = await stopped_by((1.0, number), by_signal=by_signal)
    assert left == [("e", 11), ("c", 21), ("b", 25), ("a", 35)]
    (event,) = of_kind(told, LifecycleKind.TREE_STOPPING)
    assert (event.path, event.reason) == ("app", number.name)
    assert (told[-1].kind, told[-1].reason) == (LifecycleKind.TREE_STOPPED, number.name)


@BY
@pytest.mark.parametrize("second", [TERM, INT])
@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (3.0, [("e", 3), ("c", 3), ("b", 3), ("a", 3)]),
        (13.0, [("e", 11), ("c", 13), ("b", 13), ("a", 13)]),
        (22.0, [("e", 11), ("c", 21), ("b", 22), ("a", 22)]),
        (30.0, [("e", 11), ("c", 21), ("b", 25), ("a", 30)]),
    ],
)
async def test_own_132_the_second_one_cuts_all_graces_to_zero(
    at: float, expected: list[tuple[str, float]], second: signal.Signals, by_signal: bool, autojump_clock: MockClock
) -> None:
    """The drain that is under way ends, on whatever floor, those to come are left out, a bounded clean-up is told to
    hurry; the order is kept, and all is over in that very instant."""
    left, told = await stopped_by((1.0, TERM), (at, second), by_signal=by_signal)
    assert left == expected
    assert trio.current_time() == at
    assert of_kind(told, LifecycleKind.CHILD_STUCK) == []
    reasons = [event.reason for event in of_kind(told, LifecycleKind.TREE_STOPPING)]
    assert reasons == ["SIGTERM", f"{second.name} again: without grace"]


async def test_own_132_further_signals_change_nothing(autojump_clock: MockClock) -> None:
    """A third and a fourth are as good as the second; who is stuck is reported at its limit (what the second signal
    leaves out is grace, not the time after which somebody is called stuck)."""
    log = Log()
    specs = [ChildSpec(id="a", body=log.of("a")), ChildSpec(id="b", body=stuck(50), drain_within=9.0, stop_within=5.0)]
    tree = Tree(Supervisor("app", specs))
    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signals, tree)
            nursery.start_soon(send_at, (1.0, TERM), (2.0, TERM), (3.0, INT), (4.0, TERM))
            await tree.run()
            nursery.cancel_scope.cancel()
        (report,) = of_kind(events.drain(), LifecycleKind.CHILD_STUCK)
    assert report.reason.startswith("still running 5 s after the cancel (limit 5 s)")
    assert log.left == [("a", 7)]
    assert trio.current_time() == 50


async def test_own_132_the_handlers_go_with_the_task(autojump_clock: MockClock) -> None:
    """Once `stop_on_signals` is cancelled, the signals are what they were before."""
    before = signal.getsignal(TERM), signal.getsignal(INT)
    tree = Tree(Supervisor("app"))
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_on_signals, tree)
        assert signal.getsignal(TERM) != before[0]
        nursery.cancel_scope.cancel()
    assert (signal.getsignal(TERM), signal.getsignal(INT)) == before


# 133 -----------------------------------------------------------------------------------------------------------------

FIVE = ["1", "2", "3", "4", "5"]


async def test_own_133_a_cancel_from_outside_keeps_the_order(autojump_clock: MockClock) -> None:
    """The scope around the run is cancelled: the children leave 5, 4, 3, 2, 1, each in its time, and no two at once."""
    log = Log()
    specs = [ChildSpec(id=name, body=log.of(name, slow_leaver(1.0))) for name in FIVE]
    tree = Tree(Supervisor("app", specs))
    with trio.move_on_after(10) as scope:
        await tree.run()
    assert scope.cancelled_caught
    assert log.left == [("5", 11), ("4", 12), ("3", 13), ("2", 14), ("1", 15)]


async def test_own_133_within_the_limits(autojump_clock: MockClock) -> None:
    """Somebody who does not leave is passed by at its limit, also then; there are no drains; the run waits for the
    last task."""
    log = Log()
    specs = [
        ChildSpec(id="1", body=log.of("1", drains(5)), drain_within=10.0),
        ChildSpec(id="2", body=log.of("2", slow_leaver(1.0))),
        ChildSpec(id="3", body=log.of("3", stuck(40)), stop_within=2.0),
        ChildSpec(id="4", body=log.of("4", slow_leaver(1.0))),
        ChildSpec(id="5", body=log.of("5", drains(5)), drain_within=10.0),
    ]
    tree = Tree(Supervisor("app", specs))
    with trio.move_on_after(10):
        await tree.run()
    assert log.left == [("5", 10), ("4", 11), ("2", 14), ("1", 14), ("3", 40)]
    assert trio.current_time() == 40


@pytest.mark.parametrize("how", ["nursery", "sibling crashes"])
async def test_own_133_on_every_floor(how: str, autojump_clock: MockClock) -> None:
    """Supervisors in supervisors: the order is that of one floor within the other, whether a scope is cancelled or a
    stranger in the same nursery crashes."""
    log = Log()

    def leaves(*names: str) -> list[ChildSpec]:
        return [ChildSpec(id=name, body=log.of(name, slow_leaver(1.0))) for name in names]

    inner = Supervisor("inner", leaves("2", "3", "4"))
    tree = Tree(Supervisor("app", [*leaves("1"), inner.spec(), *leaves("5")]))
    with suppress(ExceptionGroup):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await trio.sleep(10)
            if how == "sibling crashes":
                raise ValueError
            nursery.cancel_scope.cancel()
    assert log.left == [("5", 11), ("4", 12), ("3", 13), ("2", 14), ("1", 15)]


async def test_own_133_a_cancel_during_an_ordered_stop_ends_the_drains(autojump_clock: MockClock) -> None:
    """It comes on top of a stop that is under way: no further drains, the order as it was."""
    log = Log()
    specs = [ChildSpec(id=name, body=log.of(name, drains(5)), drain_within=10.0) for name in FIVE]
    tree = Tree(Supervisor("app", specs))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await trio.sleep(10)
            tree.stop("enough")
            await trio.sleep(7)
            scope.cancel()
    assert log.left == [("5", 15), ("4", 17), ("3", 17), ("2", 17), ("1", 17)]


# 134 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "cut", "cancel"])
async def test_own_134_a_stop_during_the_start_takes_back_what_was_started(how: str, autojump_clock: MockClock) -> None:
    """Child 3 of 5 is not ready yet: its start is cancelled, 2 and 1 stop in order, 4 and 5 never begin; whoever waits
    for readiness hears that there will be none."""
    diary = Diary()
    bodies = {name: slow_leaver(1.0) for name in FIVE} | {"3": slow_starter(20.0)}
    tree = Tree(Supervisor("app", [ChildSpec(id=name, body=diary.of(name, bodies[name])) for name in FIVE]))
    heard: list[tuple[bool, float]] = []

    async def wait() -> None:
        heard.append((await tree.ready(), trio.current_time()))

    async with trio.open_nursery() as outside:
        outside.start_soon(wait)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tree.run)
                await trio.sleep(10)
                assert [view.state for view in tree.snapshot().root.children] == [
                    *["running", "running"],
                    "starting",
                    *["waiting", "waiting"],
                ]
                if how == "cancel":
                    scope.cancel()
                else:
                    tree.stop("enough", cut=how == "cut")
    assert diary.take() == "+1 +2 +3 -3 -2 -1"
    assert heard == [(False, 12)]
    assert {view.state for view in tree.snapshot().root.children} == {"ended"}


async def test_own_134_who_is_not_ready_has_no_drain_and_those_before_it_have(autojump_clock: MockClock) -> None:
    """There is nothing to finish for somebody who has not begun; the others get their grace."""
    log = Log()
    slow = ChildSpec(id="3", body=log.of("3", slow_starter(20.0)), drain_within=9.0)
    specs = [ChildSpec(id=name, body=log.of(name, drains(5)), drain_within=9.0) for name in ("1", "2")]
    tree = Tree(Supervisor("app", [*specs, slow, ChildSpec(id="4", body=log.of("4"))]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.sleep(10)
        tree.stop("enough")
    assert log.left == [("3", 10), ("2", 15), ("1", 20)]


async def test_own_134_a_start_on_the_floor_below_is_cancelled_too(autojump_clock: MockClock) -> None:
    """3 is a supervisor that is starting: its own children go first, in order."""
    diary = Diary()
    inner = Supervisor(
        "inner",
        [
            ChildSpec(id="a", body=diary.of("a")),
            ChildSpec(id="b", body=diary.of("b", slow_starter(20.0))),
            ChildSpec(id="c", body=diary.of("c")),
        ],
    )
    tree = Tree(
        Supervisor("app", [ChildSpec(id="1", body=diary.of("1")), inner.spec(), ChildSpec(id="5", body=diary.of("5"))])
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await trio.sleep(10)
        tree.stop("enough")
    assert diary.take() == "+1 +a +b -b -a -1"
    assert trio.current_time() == 10


async def test_own_134_a_readiness_that_comes_after_the_order_starts_nobody(autojump_clock: MockClock) -> None:
    """3 says that it is ready while it is being cancelled, or fails: 4 does not start, and the run does not fail."""
    for ends_badly in (False, True):

        async def late(child: Child, ends_badly: bool = ends_badly) -> None:
            try:
                await trio.sleep_forever()
            finally:
                child.started()
                if ends_badly:
                    raise ValueError

        diary = Diary()
        bodies = {name: steady() for name in FIVE} | {"3": late}
        tree = Tree(Supervisor("app", [ChildSpec(id=name, body=diary.of(name, bodies[name])) for name in FIVE]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await trio.sleep(1)
            tree.stop("enough")
        assert diary.take() == f"+1 +2 +3 {'!' if ends_badly else '-'}3 -2 -1"


async def test_own_134_a_restart_that_is_waited_for_is_given_up(autojump_clock: MockClock) -> None:
    """Likewise in a later start: 3 is in its pause, or failing to come up, when the stop comes; nobody is started."""
    diary = Diary()
    specs = [
        ChildSpec(id="1", body=diary.of("1")),
        ChildSpec(id="2", body=diary.of("2", bad_starter(0))),
        ChildSpec(id="3", body=diary.of("3", _crashes_at_1), backoff=Backoff(5.0, 5.0, jitter=0.0)),
    ]
    tree = Tree(Supervisor("app", specs))
    async with running(tree):
        await trio.sleep(3)
        assert look(tree, "app/3").state == "backoff"
    assert trio.current_time() == 3
    assert diary.take() == "+1 +2 +3 !3 -2 -1"


async def _crashes_at_1(child: Child) -> None:
    child.started()
    await trio.sleep(1)
    raise ValueError


# Over the core -------------------------------------------------------------------------------------------------------


def test_core_130_a_stuck_child_is_passed_by_and_waited_for_at_the_end() -> None:
    """The cancel goes to the next one when the limit is passed; the end comes with the last task."""
    play = begun(*"abc")
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    assert play.take() == "-c -b"
    play.advance(4.9)
    assert play.take() == ""
    play.advance(0.1)
    assert play.take() == "-a"
    assert (play.finished, play.stuck) == (None, True)
    play.tell(ChildEnded("b", 1, Outcome()))
    assert play.finished is not None
    assert play.finished.error is None


@pytest.mark.parametrize("grace", [Grace.CANCEL, Grace.CUT])
def test_core_132_a_tighter_order_ends_the_drain_and_leaves_out_those_to_come(grace: Grace) -> None:
    """A looser one that comes later changes nothing."""
    play = Play([spec(name, drain_within=10.0) for name in "abc"])
    play.tell(Begin())
    play.take()
    play.tell(StopOrdered("enough"))
    assert play.take() == "~c"
    play.tell(StopOrdered("now", grace))
    assert play.take() == "-c -b -a"
    assert play.finished is not None


def test_core_134_who_was_not_begun_is_not_begun_any_more() -> None:
    """The stop in the start: cancel, then those before it."""
    play = Play([spec(name) for name in "abcde"])
    play.slow_starters.add("c")
    play.tell(Begin())
    assert play.take() == "+a +b +c"
    play.tell(StopOrdered("enough"))
    assert play.take() == "-c -b -a"
    assert play.finished is not None
    assert not play.settled
