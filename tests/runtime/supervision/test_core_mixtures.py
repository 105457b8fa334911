"""The pure core where several things happen at once: stops, outages, group restarts, drains, limits."""

from __future__ import annotations

from typing import Any

import pytest
from playing import PLAIN, Play, begun, spec

from penstock.runtime.supervision import Backoff, Intensity, Restart, Strategy
from penstock.runtime.supervision.errors import RestartLimitExceeded, StartFailed
from penstock.runtime.supervision.events import LifecycleKind
from penstock.runtime.supervision.messages import (
    Begin,
    CancelChild,
    ChildEnded,
    ChildReady,
    ChildStuck,
    DeleteChild,
    Finish,
    GateTurned,
    Grace,
    ProgressSeen,
    Status,
    StopOrdered,
    Stuck,
    TerminateChild,
)
from penstock.runtime.supervision.outcome import Outcome

GATED: dict[str, Any] = {"requires": ("redis",)}
SHUT = GateTurned("redis", False, "refused")
OPEN = GateTurned("redis", True)


def gated(*names: str, strategy: Strategy = Strategy.ONE_FOR_ONE, intensity: Intensity | None = None) -> Play:
    play = Play([spec(name, **GATED) for name in names], strategy, intensity)
    play.tell(Begin())
    play.take()
    return play


# Stops ------------------------------------------------------------------------------------------------------------


def test_a_permanent_child_that_returns_during_the_stop_costs_no_restart() -> None:
    play = begun("a", "b", intensity=Intensity(0, 10.0))
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    play.end("a")
    play.end("b")
    assert play.finished == Finish(None)
    assert play.core.children["a"].restarts == 0
    assert "child_backoff" not in play.kinds("a")


def test_a_cut_that_is_the_first_order_ends_the_drain_of_a_group_restart() -> None:
    play = Play([spec("a"), spec("b", drain_within=600.0)], Strategy.ONE_FOR_ALL)
    play.tell(Begin())
    play.crash("a")
    assert play.take().endswith("~b")
    play.tell(StopOrdered("now", Grace.CUT))
    assert play.take() == "-b"
    assert play.finished == Finish(None)


def test_a_drain_that_was_cut_short_has_the_ordinary_limit_to_leave() -> None:
    play = Play([spec("a"), spec("b", drain_within=600.0, stop_within=5.0)])
    play.tell(Begin())
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    play.tell(StopOrdered("now", Grace.CUT))
    play.take()
    play.advance(5)
    assert "child_stuck" in play.kinds("b")
    assert play.take() == "-a"


def test_a_cut_tells_those_that_were_cancelled_before_to_hurry_once() -> None:
    play = begun("a", "b")
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    hurry = CancelChild("b", 1, "now", cut=True)
    assert hurry in play.core.handle(StopOrdered("now", Grace.CUT), play.now)
    assert hurry not in play.core.handle(StopOrdered("now", Grace.CUT), play.now)


def test_nobody_is_condemned_out_of_turn_during_the_stop() -> None:
    play = Play([spec("a", progress_within=5.0), spec("b", drain_within=60.0)])
    play.tell(Begin())
    play.take()
    play.tell(StopOrdered("enough"))
    play.advance(6)
    play.tell(ProgressSeen("a", 1, at=0.0))
    assert "-a" not in play.take()
    play.end("b")
    assert play.take() == "-a"


def test_a_stop_ordered_before_the_beginning_starts_nobody() -> None:
    play = Play([spec("a")])
    play.tell(StopOrdered("never mind"))
    assert play.finished == Finish(None)
    play.tell(Begin())
    assert play.take() == ""


def test_what_ends_the_process_outweighs_a_burnt_budget() -> None:
    play = begun("a", "b", intensity=Intensity(0, 10.0))
    play.deaf.add("b")
    play.crash("a")
    play.end("b", KeyboardInterrupt(), fatal=True)
    assert play.finished is not None
    assert isinstance(play.finished.error, KeyboardInterrupt)


def test_a_supervisor_says_when_only_stuck_children_are_left() -> None:
    play = begun("a", "b")
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    play.now += 5
    actions = play.core.handle(StopOrdered("again"), play.now)
    assert Stuck() not in actions
    play.advance(0)
    assert play.take() == "-b -a"
    assert play.stuck
    assert play.finished is None


def test_a_sub_supervisor_that_says_it_is_stuck_is_passed_by_but_waited_for_at_the_end() -> None:
    endless = {"drain_within": float("inf"), "stop_within": float("inf")}
    play = Play([spec("a"), spec("sub", **endless)])
    play.tell(Begin())
    play.deaf.add("sub")
    play.tell(StopOrdered("enough"))
    play.take()
    play.tell(ChildStuck("sub", 1))
    assert play.take() == "-a"
    assert "child_stuck" in play.kinds("sub")
    assert play.finished is None
    play.end("sub")
    assert play.finished == Finish(None)


# Starts -----------------------------------------------------------------------------------------------------------


def test_a_permanent_child_that_returns_before_it_is_ready_fails_the_first_start() -> None:
    play = Play([spec("a"), spec("b"), spec("c")])
    play.slow_starters.add("b")
    play.tell(Begin())
    play.end("b")
    assert play.take() == "+a +b -a"
    assert play.finished is not None
    assert isinstance(play.finished.error, StartFailed)


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
def test_a_step_that_returns_without_being_ready_lets_the_start_go_on(restart: Restart) -> None:
    play = Play([spec("step", restart=restart), spec("next")])
    play.slow_starters.add("step")
    play.tell(Begin())
    play.end("step")
    assert play.take() == "+step +next"
    assert play.settled


def test_a_temporary_child_that_fails_its_first_start_fails_the_start_as_in_otp() -> None:
    play = Play([spec("a"), spec("b", restart=Restart.TEMPORARY)])
    play.slow_starters.add("b")
    play.tell(Begin())
    play.crash("b")
    assert play.finished is not None
    assert isinstance(play.finished.error, StartFailed)


def test_the_start_waits_for_a_child_whose_gate_flapped_during_its_start() -> None:
    play = Play([spec("a", **GATED), spec("b")])
    play.slow_starters.add("a")
    play.deaf.add("a")
    play.tell(Begin())
    play.tell(SHUT)
    play.tell(OPEN)
    assert play.take() == "+a -a"
    play.end("a")
    assert play.take() == "+a"
    play.tell(ChildReady("a", 2))
    assert play.take() == "+b"


def test_a_group_restart_during_the_start_takes_along_the_child_that_is_starting() -> None:
    play = Play([spec("1"), spec("2"), spec("3")], Strategy.REST_FOR_ONE)
    play.slow_starters.add("2")
    play.tell(Begin())
    play.crash("1")
    assert play.take() == "+1 +2 -2"
    play.slow_starters.clear()
    play.advance(1)
    assert play.take() == "+1 +2 +3"
    assert play.settled


def test_a_hold_before_the_turn_to_start_is_reported_once() -> None:
    play = Play([spec("a"), spec("b", **GATED)])
    play.slow_starters.add("a")
    play.tell(Begin())
    play.tell(SHUT)
    play.tell(ChildReady("a", 1))
    assert play.kinds("b") == ["child_held"]


# Outages ----------------------------------------------------------------------------------------------------------


def test_a_permanent_child_that_returns_while_its_gate_is_shut_is_held_at_no_cost() -> None:
    play = gated("a", "b", intensity=Intensity(0, 10.0))
    play.deaf.add("b")
    play.tell(SHUT)
    play.end("a")
    play.end("b")
    assert play.finished is None
    assert play.core.children["a"].restarts == 0


def test_who_was_held_is_respawned_although_the_gate_opened_before_its_turn_to_stop() -> None:
    """What it holds of the far side is dead: left alone, it would crash later, and pay for it."""
    play = gated("a", "b")
    play.deaf.add("b")
    play.tell(SHUT)
    play.tell(OPEN)
    assert play.take() == "-b"
    play.end("b")
    assert sorted(play.take().split()) == ["+a", "+b", "-a"]


def test_a_crash_between_a_short_outage_and_the_stop_costs_no_restart() -> None:
    play = gated("a", "b", intensity=Intensity(0, 10.0))
    play.deaf.add("b")
    play.tell(SHUT)
    play.tell(OPEN)
    play.crash("a")
    assert play.finished is None
    assert "+a" in play.take()
    assert play.core.children["a"].restarts == 0


def test_a_transient_child_that_finished_just_before_the_order_reached_it_stays_finished() -> None:
    play = Play([spec("job", restart=Restart.TRANSIENT, **GATED)])
    play.deaf.add("job")
    play.tell(Begin())
    play.tell(SHUT)
    play.tell(ChildEnded("job", 1, Outcome(unasked=True)))
    play.tell(OPEN)
    assert play.take() == "+job -job"


def test_a_child_that_leaves_for_its_group_into_an_outage_is_reported_as_held() -> None:
    play = Play([spec("a"), spec("b", **GATED)], Strategy.ONE_FOR_ALL)
    play.deaf.add("b")
    play.tell(Begin())
    play.crash("a")
    play.tell(SHUT)
    play.end("b")
    assert play.kinds("b")[-1] == "child_held"
    play.advance(100)
    assert play.take() == "+a +b -b +a"


def test_a_gate_that_shuts_during_a_group_restart_lets_the_others_come_back() -> None:
    play = Play([spec("1"), spec("2", **GATED), spec("3")], Strategy.ONE_FOR_ALL)
    play.tell(Begin())
    play.take()
    play.crash("1")
    play.tell(SHUT)
    play.advance(1)
    assert play.take() == "-3 -2 +1 +3"
    play.tell(OPEN)
    assert play.take() == "+2"


# Group restarts ---------------------------------------------------------------------------------------------------


def test_siblings_that_crash_before_their_turn_in_a_group_restart_count_once() -> None:
    """OTP: one restart is entered for the group, whoever else is found dead on the way."""
    play = begun("1", "2", "3", strategy=Strategy.ONE_FOR_ALL, intensity=Intensity(1, 10.0))
    play.deaf.add("3")
    play.crash("1")
    play.crash("2")
    play.end("3")
    play.advance(1)
    assert play.finished is None
    assert play.take() == "-3 +1 +2 +3"
    assert play.core.budget.left(play.now) == 0
    assert [play.core.children[name].restarts for name in "123"] == [1, 0, 0]
    assert "child_crashed" in play.kinds("2")


def test_a_temporary_bystander_that_crashes_before_its_turn_is_gone_for_good() -> None:
    play = Play([spec("a"), spec("t", restart=Restart.TEMPORARY), spec("z")], Strategy.ONE_FOR_ALL)
    play.deaf.add("z")
    play.tell(Begin())
    play.take()
    play.crash("a")
    play.crash("t")
    play.end("z")
    play.advance(1)
    assert play.take() == "-z +a +z"


def test_in_a_group_nobody_starts_while_a_later_one_still_leaves() -> None:
    play = begun("1", "2", strategy=Strategy.REST_FOR_ONE)
    play.deaf.add("2")
    play.crash("1")
    play.advance(1)
    assert play.take() == "-2"
    play.end("2")
    assert play.take() == "+1 +2"


def test_in_a_group_nobody_starts_before_a_stuck_one_that_stands_before_it() -> None:
    play = begun("1", "2", strategy=Strategy.ONE_FOR_ALL)
    play.deaf.add("1")
    play.crash("2")
    play.advance(100)
    assert play.take() == "-1"
    assert "child_stuck" in play.kinds("1")
    play.end("1")
    assert play.take() == "+1 +2"


# Errors and memory ------------------------------------------------------------------------------------------------


class _Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("I cannot be said")


def test_an_error_whose_text_cannot_be_shown_fails_a_start_like_any_other() -> None:
    play = Play([spec("a")])
    play.slow_starters.add("a")
    play.tell(Begin())
    play.end("a", _Unspeakable())
    assert play.finished is not None
    assert isinstance(play.finished.error, StartFailed)


def test_an_error_of_a_condemned_child_stands_behind_what_it_was_condemned_for() -> None:
    play = Play([spec("a", progress_within=5.0)])
    play.deaf.add("a")
    play.tell(Begin())
    play.advance(5)
    play.tell(ProgressSeen("a", 1, at=0.0))
    play.end("a", KeyError("the real bug"))
    crash = next(report for report in play.reports if report.kind is LifecycleKind.CHILD_CRASHED)
    assert crash.error is not None
    assert crash.error.type.endswith("Stalled")
    assert "the real bug" in crash.error.traceback


def test_a_storm_of_restarts_leaves_no_heap_of_alarms_behind() -> None:
    quick = Backoff(minimum=0.0, maximum=0.0)
    play = Play([spec("a", backoff=quick, start_within=3600.0)], intensity=Intensity(10**9, 1.0))
    play.tell(Begin())
    for _ in range(5000):
        play.now += 0.001
        play.crash("a")
        play.advance(0)
    assert play.status("a") is Status.RUNNING
    assert len(play.core._alarms) < 200


@pytest.mark.parametrize("strategy", Strategy)
def test_a_storm_of_short_outages_leaves_nobody_behind(strategy: Strategy) -> None:
    """Each gate opens again while some are still to be stopped; the alarms for their starts are set by then."""
    play = gated("a", "b", "c", strategy=strategy)
    play.deaf.add("c")
    opened = GateTurned("redis", True, settle=0.25)
    for number in range(1, 200):
        play.tell(SHUT)
        play.advance(0.02)
        play.tell(opened)
        play.advance(0.02)
        play.end("c")
        play.advance(0.25)
        assert play.take().endswith("+a +b +c")
        assert [play.core.children[name].incarnation for name in "abc"] == [number + 1] * 3
    assert len(play.core._alarms) < 2000


def test_the_limit_of_a_hold_stands_also_in_a_storm_of_alarms() -> None:
    play = Play([spec("a", **GATED, hold_within=60.0), spec("b", **GATED), spec("c")])
    play.tell(Begin())
    play.deaf.add("b")
    play.tell(SHUT)  # a is held, and works until b has left
    for _ in range(90):
        play.crash("c")
        play.advance(0.01)
    play.end("b")
    assert play.status("a") is Status.DOWN
    play.advance(60)
    assert play.finished is not None
    assert "was held for 60 s" in str(play.finished.error)


def test_the_limit_of_a_hold_stands_also_for_whom_it_finds_before_its_turn_to_stop() -> None:
    play = Play([spec("a", **GATED, hold_within=60.0), spec("b", **GATED)])
    play.tell(Begin())
    play.deaf.add("b")
    play.tell(SHUT)
    play.advance(59.9)
    assert play.finished is None
    play.advance(0.1)
    play.end("b")
    assert play.finished is not None
    assert "was held for 60 s" in str(play.finished.error)


def test_those_who_wait_for_their_turn_have_it_also_when_the_first_of_them_is_deleted() -> None:
    names = ("a", "b", "c")
    quick = Backoff(minimum=0.0, maximum=0.0)
    play = Play([*(spec(name, **GATED) for name in names), spec("d", backoff=quick)], stagger=1.0)
    play.tell(Begin())
    play.tell(SHUT)
    play.tell(OPEN)
    assert play.take().endswith("-c -b -a +a")
    play.tell(TerminateChild(object(), "b"))
    play.tell(DeleteChild(object(), "b"))
    assert set(play.answers.values()) == {None}
    for _ in range(90):
        play.crash("d")
    play.take()
    assert play.core.next_deadline() == 1.0
    play.advance(1.0)
    assert play.take() == "+c"


def test_no_growth_from_nothing_however_many_crashes() -> None:
    assert Backoff(minimum=0.0, maximum=10.0, jitter=0.0).delay(5000, 0.0) == 0.0
    assert PLAIN.delay(5000, 0.0) == 10.0


def test_a_burnt_budget_names_its_last_straw_even_if_it_is_falsy() -> None:
    class Empty(Exception):
        def __bool__(self) -> bool:
            return False

    play = begun("a", intensity=Intensity(0, 10.0))
    play.end("a", Empty("nothing left"))
    assert play.finished is not None
    assert isinstance(play.finished.error, RestartLimitExceeded)
    assert "nothing left" in str(play.finished.error)
