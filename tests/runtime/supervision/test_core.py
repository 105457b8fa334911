"""The pure core as tables: events in, actions out, no task anywhere."""

from __future__ import annotations

import random
from typing import Any

import pytest
from playing import Play, begun, nobody, spec

from penstock.runtime.supervision import Backoff, ChildSpec, Intensity, InvalidSpec, Restart, Strategy
from penstock.runtime.supervision.errors import RestartLimitExceeded, StartFailed, StartTimeout
from penstock.runtime.supervision.events import LifecycleKind
from penstock.runtime.supervision.messages import (
    Begin,
    ChildEnded,
    ChildReady,
    Finish,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    RestartChild,
    Status,
    StopOrdered,
    TerminateChild,
)
from penstock.runtime.supervision.outcome import Outcome


def test_children_start_in_order_and_stop_in_reverse() -> None:
    play = begun("c", "a", "b")
    play.tell(StopOrdered("enough"))
    assert play.take() == "-b -a -c"
    assert play.finished == Finish(None)
    assert play.core.phase is Phase.DONE


def test_a_child_waits_for_the_readiness_of_the_one_before() -> None:
    play = Play([spec("slow"), spec("next")])
    play.slow_starters.add("slow")
    play.tell(Begin())
    assert play.take() == "+slow"
    assert not play.settled
    play.tell(ChildReady("slow", 1))
    assert play.take() == "+next"
    assert play.settled


def test_an_empty_supervisor_is_ready_at_once_and_ends_cleanly() -> None:
    play = Play([])
    play.tell(Begin())
    assert play.settled
    play.tell(StopOrdered("enough"))
    assert play.finished == Finish(None)


def test_one_for_one_restarts_only_the_dead_after_its_backoff() -> None:
    play = begun("a", "b", "c")
    play.crash("b")
    assert play.take() == ""
    play.advance(0.99)
    assert play.take() == ""
    play.advance(0.01)
    assert play.take() == "+b"


def test_rest_for_one_stops_the_later_ones_in_reverse_and_starts_all_in_order() -> None:
    play = begun("1", "2", "3", "4", "5", strategy=Strategy.REST_FOR_ONE)
    play.crash("3")
    assert play.take() == "-5 -4"
    play.advance(1)
    assert play.take() == "+3 +4 +5"


def test_one_for_all_stops_all_others_and_starts_all_in_order() -> None:
    play = begun("1", "2", "3", strategy=Strategy.ONE_FOR_ALL)
    play.crash("2")
    assert play.take() == "-3 -1"
    play.advance(1)
    assert play.take() == "+1 +2 +3"


def test_one_for_all_stops_the_started_ones_again_when_a_later_one_fails_to_come_back() -> None:
    play = begun("1", "2", strategy=Strategy.ONE_FOR_ALL)
    play.slow_starters.add("2")
    play.crash("1")
    assert play.take() == "-2"
    play.advance(1)
    assert play.take() == "+1 +2"
    play.crash("2")  # not ready yet: the restart failed
    assert play.take() == "-1"
    play.slow_starters.clear()
    play.advance(1)
    assert play.take() == "+1 +2"
    assert play.status("2") is Status.RUNNING


def test_rest_for_one_leaves_the_earlier_one_up_when_a_later_one_fails_to_come_back() -> None:
    play = begun("1", "2", strategy=Strategy.REST_FOR_ONE)
    play.slow_starters.add("2")
    play.crash("1")
    play.advance(1)
    assert play.take() == "-2 +1 +2"
    play.crash("2")
    play.advance(1)
    assert play.take() == "+2"


@pytest.mark.parametrize(
    ("restart", "crashes", "comes_back"),
    [
        (Restart.PERMANENT, False, True),
        (Restart.PERMANENT, True, True),
        (Restart.TRANSIENT, False, False),
        (Restart.TRANSIENT, True, True),
        (Restart.TEMPORARY, False, False),
        (Restart.TEMPORARY, True, False),
    ],
)
def test_restart_types(restart: Restart, crashes: bool, comes_back: bool) -> None:
    play = Play([spec("x", restart=restart)])
    play.tell(Begin())
    play.take()
    play.end("x", RuntimeError("broke") if crashes else None)
    play.advance(100)
    assert play.take() == ("+x" if comes_back else "")


def test_a_temporary_bystander_of_a_group_restart_is_gone_for_good() -> None:
    play = Play([spec("a"), spec("t", restart=Restart.TEMPORARY)], Strategy.ONE_FOR_ALL)
    play.tell(Begin())
    play.take()
    play.end("a")
    play.advance(1)
    assert play.take() == "-t +a"


def test_backoff_grows_to_its_cap_and_is_forgotten_after_a_long_life() -> None:
    play = begun("x")
    for delay in (1, 2, 4, 8, 10, 10):
        play.crash("x")
        play.advance(delay - 0.001)
        assert play.take() == ""
        play.advance(0.001)
        assert play.take() == "+x"
    play.advance(60)
    play.crash("x")
    play.advance(1)
    assert play.take() == "+x"


def test_jitter_stretches_by_less_than_its_share() -> None:
    backoff = Backoff(minimum=2.0, maximum=2.0, jitter=0.5)
    delays = [backoff.delay(1, random.Random(seed).random()) for seed in range(200)]
    assert min(delays) >= 2.0
    assert max(delays) < 3.0
    assert len(set(delays)) > 100


def test_a_burnt_budget_stops_all_in_reverse_and_is_a_typed_crash() -> None:
    play = begun("a", "b", intensity=Intensity(2, 10.0))
    for _ in range(2):
        play.crash("a")
        play.advance(5)
    play.take()
    play.crash("a")
    assert play.take() == "-b"
    assert play.finished is not None
    assert isinstance(play.finished.error, RestartLimitExceeded)
    assert isinstance(play.finished.error.__cause__, RuntimeError)
    assert "supervisor_gave_up" in play.kinds("a")


def test_a_restart_exactly_one_period_ago_still_counts_and_an_older_one_does_not() -> None:
    play = begun("a", intensity=Intensity(1, 10.0))
    play.crash("a")
    play.advance(10)
    assert play.core.budget.left(play.now) == 0
    play.advance(0.01)
    assert play.core.budget.left(play.now) == 1


def test_intensity_zero_gives_up_at_the_first_crash() -> None:
    play = begun("a", intensity=Intensity(0, 10.0))
    play.crash("a")
    assert play.finished is not None
    assert isinstance(play.finished.error, RestartLimitExceeded)


def test_a_failing_first_start_stops_the_earlier_ones_and_fails_the_start() -> None:
    play = Play([spec("1"), spec("2"), spec("3")])
    play.slow_starters.add("3")
    play.tell(Begin())
    play.take()
    play.crash("3")
    assert play.take() == "-2 -1"
    assert play.finished is not None
    assert isinstance(play.finished.error, StartFailed)
    assert "3" in str(play.finished.error)


def test_a_child_that_is_not_ready_in_time_is_cancelled_and_counts_as_crashed() -> None:
    play = begun("x")
    play.slow_starters.add("x")
    play.crash("x")
    play.advance(1)
    play.advance(30)
    assert play.take() == "+x -x"
    assert play.core.children["x"].last_error is not None
    assert StartTimeout.__name__ in play.core.children["x"].last_error.type


def test_stop_during_start_cancels_the_starting_child_first() -> None:
    play = Play([spec(name) for name in "12345"])
    play.slow_starters.add("3")
    play.tell(Begin())
    play.take()
    play.tell(StopOrdered("enough"))
    assert play.take() == "-3 -2 -1"
    assert play.finished == Finish(None)


def test_a_drain_is_granted_before_the_cancel() -> None:
    play = Play([spec("a"), spec("b", drain_within=3.0)])
    play.tell(Begin())
    play.take()
    play.tell(StopOrdered("enough"))
    assert play.take() == "~b"
    play.advance(3)
    assert play.take() == "-b -a"


def test_a_second_stop_order_with_cut_ends_the_drain() -> None:
    play = Play([spec("a", drain_within=9.0), spec("b", drain_within=9.0)])
    play.tell(Begin())
    play.tell(StopOrdered("enough"))
    play.take()
    play.tell(StopOrdered("now", Grace.CUT))
    assert play.take() == "-b -a"


def test_a_stuck_child_is_reported_and_passed_by_but_waited_for_at_the_end() -> None:
    play = begun("a", "b")
    play.deaf.add("b")
    play.tell(StopOrdered("enough"))
    assert play.take() == "-b"
    play.advance(5)
    assert "child_stuck" in play.kinds("b")
    assert play.take() == "-a"
    assert play.finished is None
    play.end("b")
    assert play.finished == Finish(None)


def test_a_child_whose_gate_is_shut_is_held_at_start_and_does_not_hold_up_the_others() -> None:
    play = Play([spec("a", requires=("redis",)), spec("b")], shut={"redis": "not probed"})
    play.tell(Begin())
    assert play.take() == "+b"
    assert play.settled
    play.tell(GateTurned("redis", True, settle=0.5))
    play.advance(0.5)
    assert play.take() == "+a"


def test_a_shut_gate_stops_who_requires_it_in_reverse_without_touching_the_budget() -> None:
    gated = {"requires": ("redis",)}
    play = Play([spec("a", **gated), spec("b"), spec("c", **gated)], intensity=Intensity(0, 10.0))
    play.tell(Begin())
    play.take()
    for _ in range(20):
        play.tell(GateTurned("redis", False, "refused"))
        assert play.take() == "-c -a"
        play.tell(GateTurned("redis", True, settle=0.0))
        assert sorted(play.take().split()) == ["+a", "+c"]
    assert play.core.budget.left(play.now) == 0 == play.core.plan.intensity.restarts
    assert play.finished is None


def test_a_crash_while_the_gate_is_shut_is_a_hold_not_a_restart() -> None:
    play = Play([spec("a", requires=("redis",))], intensity=Intensity(0, 10.0))
    play.slow_starters.add("a")
    play.tell(Begin())
    play.deaf.add("a")
    play.tell(GateTurned("redis", False, "refused"))
    play.crash("a")
    assert play.finished is None
    assert play.core.held_by(play.core.children["a"]) == "redis"
    assert play.core.children["a"].restarts == 0


def test_a_gate_that_flaps_faster_than_it_settles_starts_nobody() -> None:
    play = Play([spec("a", requires=("redis",))], shut={"redis": "away"})
    play.tell(Begin())
    for _ in range(10):
        play.tell(GateTurned("redis", True, settle=1.0))
        play.advance(0.9)
        play.tell(GateTurned("redis", False, "away again"))
        play.advance(0.1)
    assert play.take() == ""
    play.tell(GateTurned("redis", True, settle=1.0))
    play.advance(1.0)
    assert play.take() == "+a"


def test_an_opened_gate_wipes_out_the_backoff() -> None:
    play = Play([spec("a", requires=("redis",))])
    play.tell(Begin())
    for _ in range(4):
        play.crash("a")
        play.advance(10)
    play.crash("a")
    play.tell(GateTurned("redis", False, "away"))
    play.take()
    play.tell(GateTurned("redis", True, settle=0.25))
    play.advance(0.25)
    assert play.take() == "+a"


def test_two_shut_gates_hold_once_and_release_when_both_are_open() -> None:
    play = Play([spec("a", requires=("redis", "postgres"))])
    play.tell(Begin())
    play.take()
    play.tell(GateTurned("redis", False, "away"))
    play.tell(GateTurned("postgres", False, "away"))
    assert play.kinds("a").count("child_held") == 1
    play.tell(GateTurned("redis", True))
    assert play.take() == "-a"
    play.tell(GateTurned("postgres", True))
    assert play.take() == "+a"


def test_a_child_that_makes_no_progress_is_stalled_and_counts_as_crashed() -> None:
    play = Play([spec("a", progress_within=5.0)])
    play.tell(Begin())
    play.take()
    play.advance(5)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, at=3.0))
    play.advance(3)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, at=3.0))
    assert play.take() == "-a"
    assert play.core.children["a"].restarts == 1
    play.advance(1)
    assert play.take() == "+a"


def test_a_process_that_stood_still_holds_that_against_no_child() -> None:
    """Frozen for ten minutes, say: the child had no chance to make progress. It has its time again, once."""
    play = Play([spec("a", progress_within=5.0)])
    play.tell(Begin())
    play.take()
    play.advance(600)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, at=0.0))
    assert play.take() == ""
    play.advance(5)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, at=600.0))
    assert play.take() == "-a"


def test_what_ends_the_process_is_never_restarted() -> None:
    play = begun("a", "b")
    play.end("a", KeyboardInterrupt(), fatal=True)
    assert play.take() == "-b"
    assert play.finished is not None
    assert isinstance(play.finished.error, KeyboardInterrupt)


def test_ends_during_the_stop_restart_nobody() -> None:
    play = begun("a", "b", "c")
    play.deaf.add("c")
    play.tell(StopOrdered("enough"))
    play.crash("a")
    play.end("b")
    play.end("c")
    play.advance(100)
    assert play.take() == "-c"
    assert play.finished == Finish(None)


def test_an_end_of_an_earlier_incarnation_changes_nothing() -> None:
    play = begun("a")
    play.crash("a")
    play.advance(1)
    play.take()
    play.tell(ChildEnded("a", 1, Outcome(RuntimeError("old news"))))
    play.advance(100)
    assert play.take() == ""
    assert play.status("a") is Status.RUNNING


def test_each_change_is_reported_with_its_cause() -> None:
    play = begun("a", "b", strategy=Strategy.ONE_FOR_ALL)
    play.reports.clear()
    play.crash("a")
    play.advance(1)
    told = [(report.subject, report.kind, report.cause) for report in play.reports]
    assert told == [
        ("a", LifecycleKind.CHILD_CRASHED, None),
        ("a", LifecycleKind.CHILD_BACKOFF, "child:a"),
        ("b", LifecycleKind.CHILD_STOPPING, "child:a"),
        ("b", LifecycleKind.CHILD_STOPPED, None),
        ("a", LifecycleKind.CHILD_STARTING, "child:a"),
        ("a", LifecycleKind.CHILD_READY, None),
        ("b", LifecycleKind.CHILD_STARTING, "child:a"),
        ("b", LifecycleKind.CHILD_READY, None),
    ]


def test_two_children_of_one_id_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="'x'"):
        Play([spec("x"), spec("x")])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", ""),
        ("id", "a/b"),
        ("id", 7),
        ("body", "no function"),
        ("restart", "permanent"),
        ("requires", "redis"),
        ("requires", (7,)),
        ("start_within", -1),
        ("stop_within", "5"),
        ("stop_within", True),
        ("drain_within", float("nan")),
        ("backoff", 3),
        ("progress_within", 0),
        ("kind", "worker"),
    ],
)
def test_a_bad_field_is_named_with_its_value(field: str, value: object) -> None:
    options: dict[str, Any] = {"id": "x", "body": nobody, field: value}
    with pytest.raises(InvalidSpec) as caught:
        ChildSpec(**options)
    assert field in str(caught.value)


def test_the_documented_defaults_are_the_real_ones() -> None:
    plain = ChildSpec(id="x", body=nobody)
    assert (plain.restart, plain.stop_within, plain.start_within, plain.drain_within) == (Restart.PERMANENT, 5, 30, 0)
    assert (Intensity().restarts, Intensity().within) == (5, 30)
    backoff = Backoff()
    assert (backoff.minimum, backoff.maximum, backoff.factor, backoff.jitter, backoff.reset_after) == (
        0.1,
        10,
        2,
        0.5,
        60,
    )


def test_who_is_stopped_and_restarted_while_the_others_start_has_its_turn_at_once() -> None:
    """Its turn was passed by; those behind it wait until it is up, and the order of the group is kept."""
    play = Play([spec("a"), spec("b"), spec("c")], strategy=Strategy.ONE_FOR_ALL)
    play.slow_starters = {"b"}
    play.tell(Begin())
    assert play.take() == "+a +b"
    play.tell(TerminateChild(1, "a"))
    assert play.take() == "-a"
    play.tell(RestartChild(2, "a"))
    assert play.take() == "+a"
    assert play.answers == {1: None, 2: ("a", 2)}
    play.tell(ChildReady("b", 1))
    assert play.take() == "+c"
    assert play.settled
