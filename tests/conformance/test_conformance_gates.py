"""Dependencies and health: holds, gates that need gates, stalls (lines 135 to 142 of the list)."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import trio
from playing import Play, spec
from trio.testing import MockClock
from worlds import PLAIN, child, look, of_kind

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    Directive,
    GateCycle,
    Gates,
    HeldTooLong,
    Intensity,
    InvalidSpec,
    LifecycleKind,
    RestartLimitExceeded,
    Rule,
    Stalled,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import Begin, ChildReady, GateTurned, ProgressSeen
from penstock.runtime.testing import Diary, Misbehaved, naughty, outage, running, shut, slow_leaver, stalled, steady

NEVER_AGAIN = Intensity(0, 1.0)


class Starts:
    """When bodies began, by name."""

    def __init__(self) -> None:
        self.of_all: list[tuple[str, float]] = []

    def of(self, name: str, body: Body | None = None) -> Body:
        kept = body or steady()

        async def noted(child: Child) -> None:
            self.of_all.append((name, trio.current_time()))
            await kept(child)

        return noted


def needing(name: str, body: Body | None = None, *gates: str, **options: Any) -> ChildSpec:
    return child(name, body, requires=gates, **options)


# 135 -----------------------------------------------------------------------------------------------------------------


async def test_own_135_a_child_whose_dependency_is_down_at_the_start_is_held(autojump_clock: MockClock) -> None:
    """The tree comes up without it, and shows who is held by what and why; no budget is used, and nobody behind it
    waits.

    ("Degraded" is no word of ours: such a tree is ready, and its snapshot has a held child and a shut gate.)
    """
    gates = Gates()
    gates.add("redis", shut="connection refused")
    diary = Diary()
    specs = [
        needing("a", diary.of("a")),
        needing("b", diary.of("b"), "redis"),
        needing("c", diary.of("c")),
    ]
    tree = Tree(Supervisor("app", specs, intensity=NEVER_AGAIN), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            assert trio.current_time() == 0
            assert diary.take() == "+a +c"
            snapshot = tree.snapshot()
            assert snapshot.root.state == "running"
            assert [view.state for view in snapshot.root.children] == ["running", "held", "running"]
            view = look(tree, "app/b")
            assert (view.held_by, view.cause, view.incarnation) == ("redis", "connection refused", 0)
            assert (view.restarts, view.last_error, view.next_start_in) == (0, None, None)
            assert [(gate.name, gate.open, gate.cause) for gate in snapshot.gates] == [
                ("redis", False, "connection refused")
            ]
            await trio.sleep(24 * 3600)
            assert look(tree, "app").restarts_left == 0  # all there was: an intensity of 0
            assert look(tree, "app/b").state == "held"
        told = list(events.drain())
    (held,) = of_kind(told, LifecycleKind.CHILD_HELD)
    assert (held.path, held.reason) == ("app/b", "redis: connection refused")
    assert diary.take() == "-c -a"


@pytest.mark.parametrize("strategy", list(Strategy))
async def test_own_135_under_any_strategy_and_for_whole_supervisors(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """A held child stands in nobody's way in a group either; a supervisor that is held starts none of its own."""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=0.0)
    diary = Diary()
    inner = Supervisor("inner", [needing("x", diary.of("x")), needing("y", diary.of("y"))])
    specs = [inner.spec(requires=["redis"]), needing("a", diary.of("a"))]
    tree = Tree(Supervisor("app", specs, strategy=strategy, intensity=NEVER_AGAIN), gates=gates)
    async with running(tree):
        assert diary.take() == "+a"
        assert [view.state for view in look(tree, "app/inner").children] == ["waiting", "waiting"]
        gate.open()
        await trio.sleep(1)
        assert diary.take() == "+x +y"


# 136 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settle", [0.0, 0.25, 5.0])
async def test_own_136_a_held_child_starts_when_the_gate_has_been_open_for_its_settle_time(
    settle: float, autojump_clock: MockClock
) -> None:
    """At that very instant: no backoff and no jitter on top, however long it was held or had crashed before. (The first
    of several: they are spaced by the stagger, line 119.)"""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=settle)
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("a", starts.of("a"), "redis")]), gates=gates)
    async with running(tree):
        await trio.sleep(1000)
        gate.open()
        if settle:
            await trio.sleep(settle / 2)
            assert (look(tree, "app/a").state, look(tree, "app/a").held_by) == ("waiting", None)
        await trio.sleep(10)
        assert look(tree, "app/a").state == "running"
    assert starts.of_all == [("a", 1000 + settle)]


async def test_own_136_with_a_settle_time_of_0_it_starts_in_the_tick_of_the_signal(autojump_clock: MockClock) -> None:
    """One pass of the scheduler is all it takes."""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=0.0)
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("a", starts.of("a"), "redis")]), gates=gates)
    async with running(tree):
        gate.open()
        for _ in range(3):  # its supervisor's turn, its own, and this one's
            await trio.lowlevel.checkpoint()
        assert starts.of_all == [("a", 0)]


async def test_own_136_a_backoff_that_had_built_up_does_not_delay_it(autojump_clock: MockClock) -> None:
    """A pause of a minute is over when the dependency is back: its cause is gone."""
    gates = Gates()
    gate = gates.add("redis", settle=0.25)
    starts = Starts()

    async def crashes_once(child: Child) -> None:
        child.started()
        if child.incarnation == 1:
            await trio.sleep(1)
            raise Misbehaved
        await trio.sleep_forever()

    slow = Backoff(60.0, 60.0, jitter=0.0)
    tree = Tree(Supervisor("app", [needing("a", starts.of("a", crashes_once), "redis", backoff=slow)]), gates=gates)
    async with running(tree):
        await trio.sleep(2)
        assert look(tree, "app/a").state == "backoff"
        with shut(gate, "refused"):
            await trio.sleep(1)
            assert look(tree, "app/a").state == "held"
        await trio.sleep(100)
    assert starts.of_all == [("a", 0), ("a", 3.25)]


async def test_own_136_with_several_gates_the_last_one_counts(autojump_clock: MockClock) -> None:
    """It starts when all have been open, each for its own settle time."""
    gates = Gates()
    redis = gates.add("redis", shut="refused", settle=5.0)
    postgres = gates.add("postgres", shut="starting up", settle=1.0)
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("a", starts.of("a"), "redis", "postgres")]), gates=gates)
    async with running(tree):
        await trio.sleep(10)
        redis.open()
        await trio.sleep(2)
        assert look(tree, "app/a").held_by == "postgres"
        postgres.open()
        await trio.sleep(10)
    assert starts.of_all == [("a", 15)]


# 137 -----------------------------------------------------------------------------------------------------------------


async def test_own_137_a_crash_while_the_dependency_is_down_is_a_hold(autojump_clock: MockClock) -> None:
    """The gate is shut, and the child crashes with the error of the outage before it has heard of it: it is held, its
    error is told with the gate as the cause, and no restart is counted."""
    gates = Gates()
    gate = gates.add("redis", settle=0.25)

    async def loses_its_connection(child: Child) -> None:
        child.started()
        await lost.wait()
        raise ConnectionResetError("gone")

    lost = trio.Event()
    tree = Tree(Supervisor("app", [needing("a", loses_its_connection, "redis")], intensity=NEVER_AGAIN), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(1)
            list(events.drain())
            gate.shut("connection reset")
            lost.set()
            await trio.sleep(1)
            view = look(tree, "app/a")
            assert (view.state, view.held_by, view.restarts, view.last_error) == ("held", "redis", 0, None)
            told = list(events.drain())
            lost = trio.Event()
            gate.open()
            await trio.sleep(1)
            assert (look(tree, "app/a").state, look(tree, "app/a").incarnation) == ("running", 2)
    gate_shut = told[0]
    assert gate_shut.kind is LifecycleKind.GATE_SHUT
    (stopped,) = of_kind(told, LifecycleKind.CHILD_STOPPED)
    assert stopped.cause == gate_shut.sequence
    assert stopped.error is not None
    assert stopped.error.message == "gone"
    assert of_kind(told, LifecycleKind.CHILD_CRASHED) == []
    assert of_kind(told, LifecycleKind.CHILD_BACKOFF) == []


async def test_own_137_also_one_that_crashes_over_its_way_out(autojump_clock: MockClock) -> None:
    """It is cancelled for the outage, and its clean-up fails for want of what is down: a hold, with the error told."""
    gates = Gates()
    gate = gates.add("redis")

    async def cleans_up_badly(child: Child) -> None:
        child.started()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            raise ConnectionResetError("gone")

    tree = Tree(Supervisor("app", [needing("a", cleans_up_badly, "redis")], intensity=NEVER_AGAIN), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            gate.shut("refused")
            await trio.sleep(3)
            assert (look(tree, "app/a").state, look(tree, "app/a").restarts) == ("held", 0)
        stopped = of_kind(events.drain(), LifecycleKind.CHILD_STOPPED)
    assert [event.error.message for event in stopped if event.error is not None] == ["gone"]


async def test_own_137_one_that_crashed_before_the_gate_was_shut_is_held_from_then_on(
    autojump_clock: MockClock,
) -> None:
    """The crash was quicker than the news of the outage: that one restart is counted, and no further start tried."""
    gates = Gates()
    gate = gates.add("redis")
    starts = Starts()
    tree = Tree(
        Supervisor("app", [needing("a", starts.of("a", naughty(1.0)), "redis")], intensity=Intensity(1, 60.0)),
        gates=gates,
    )
    async with running(tree):
        await trio.sleep(1.5)
        assert (look(tree, "app/a").state, look(tree, "app/a").restarts) == ("backoff", 1)
        gate.shut("refused")
        await trio.sleep(100)
        view = look(tree, "app/a")
        assert (view.state, view.restarts, view.next_start_in) == ("held", 1, None)
    assert starts.of_all == [("a", 0)]


# 138 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [0.0, 0.1, 0.24])
async def test_own_138_a_dependency_that_flaps_faster_than_it_settles_starts_nobody(
    up: float, autojump_clock: MockClock
) -> None:
    """A hundred times open for less than the settle time: not one start is tried, and one when it stays open."""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=0.25)
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("a", starts.of("a"), "redis")], intensity=NEVER_AGAIN), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            for _ in range(100):
                gate.open()
                await trio.sleep(up)
                gate.shut("refused")
                await trio.sleep(0.1)
            told = list(events.drain())
            assert starts.of_all == []
            assert look(tree, "app/a").state == "held"
            gate.open()
            at = trio.current_time()
            await trio.sleep(1)
    assert of_kind(told, LifecycleKind.CHILD_STARTING) == []
    assert len(of_kind(told, LifecycleKind.GATE_OPENED)) == 100
    assert starts.of_all == [("a", at + 0.25)]


async def test_own_138_each_opening_begins_the_settle_time_anew(autojump_clock: MockClock) -> None:
    """0.2 s of open and 0.2 s of open are not 0.4 s."""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=0.25)
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("a", starts.of("a"), "redis")]), gates=gates)
    async with running(tree):
        gate.open()
        await trio.sleep(0.2)
        gate.shut("again")
        gate.open()
        await trio.sleep(1)
    assert starts.of_all == [("a", 0.45)]


async def test_own_138_a_new_life_of_the_supervisor_waits_for_it_too(autojump_clock: MockClock) -> None:
    """A supervisor that is started anew within the settle time does not start who requires the gate before it is over;
    those behind it wait for their turn."""
    gates = Gates()
    gate = gates.add("redis", shut="refused", settle=5.0)
    starts = Starts()
    specs = [
        needing("a", starts.of("a", naughty(11.0))),
        needing("b", starts.of("b"), "redis"),
        needing("c", starts.of("c")),
    ]
    inner = Supervisor("inner", specs, intensity=NEVER_AGAIN)
    tree = Tree(Supervisor("app", [inner.spec(backoff=PLAIN)]), gates=gates)
    async with running(tree):
        await trio.sleep(10)
        gate.open()
        await trio.sleep(2.5)
        assert [view.state for view in look(tree, "app/inner").children] == ["running", "waiting", "waiting"]
        await trio.sleep(5)
        assert look(tree, "app/inner").state == "running"
    assert starts.of_all == [("a", 0), ("c", 0), ("a", 12), ("b", 15), ("c", 15)]


# 139 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["at the start", "later"])
async def test_own_139_a_hold_beyond_its_limit_escalates(when: str, autojump_clock: MockClock) -> None:
    """The supervisor stops its children in order and fails, with an error that names child, gate and cause. (The limit
    is the hold's own: it escalates at once, whatever budget is left.)"""
    gates = Gates()
    gate = gates.add("redis", shut="refused" if when == "at the start" else None)

    async def breaks_it_at_100(child: Child) -> None:
        child.started()
        await trio.sleep(100)
        gate.shut("refused")
        await trio.sleep_forever()

    diary = Diary()
    specs = [
        needing("a", diary.of("a", breaks_it_at_100)),
        needing("b", diary.of("b"), "redis", hold_within=60.0),
        needing("c", diary.of("c")),
    ]
    tree = Tree(Supervisor("app", specs), gates=gates)
    with tree.subscribe() as events:
        with pytest.raises(HeldTooLong, match="b was held for 60 s by the gate redis: refused"):
            await tree.run()
        told = list(events.drain())
    assert trio.current_time() == (60 if when == "at the start" else 160)
    assert diary.take() == ("+a +c -c -a" if when == "at the start" else "+a +b +c -b -c -a")
    (gave_up,) = of_kind(told, LifecycleKind.SUPERVISOR_GAVE_UP)
    assert gave_up.path == "app"
    assert "redis: refused" in gave_up.reason


async def test_own_139_one_floor_up_it_is_a_crash(autojump_clock: MockClock) -> None:
    """The supervisor above counts it, waits, and starts the whole again, until its own budget is burnt."""
    gates = Gates()
    gates.add("redis", shut="refused")
    inner = Supervisor("inner", [needing("a", None, "redis", hold_within=60.0)])
    tree = Tree(Supervisor("app", [inner.spec(backoff=PLAIN)], intensity=Intensity(2, 1000.0)), gates=gates)
    with tree.subscribe() as events:
        with pytest.raises(RestartLimitExceeded) as caught:
            await tree.run()
        crashes = of_kind(events.drain(), LifecycleKind.CHILD_CRASHED)
    assert isinstance(caught.value.__cause__, HeldTooLong)
    assert [event.path for event in crashes] == ["app/inner"] * 3
    assert trio.current_time() == 60 + 1 + 60 + 1 + 60  # it was ready, with somebody held, for its `reset_after`


async def test_own_139_a_hold_that_ends_in_time_is_forgotten(autojump_clock: MockClock) -> None:
    """Each hold has its limit for itself: 50 s and 50 s are not 100 s. Without a limit it may last for ever."""
    gates = Gates()
    gate = gates.add("redis", settle=0.25)
    specs = [needing("a", None, "redis", hold_within=60.0), needing("b", None, "redis")]
    tree = Tree(Supervisor("app", specs), gates=gates)
    async with running(tree):
        for _ in range(3):
            await outage(gate, 50)
            await trio.sleep(0.5)
        assert look(tree, "app/a").state == "running"
        assert ChildSpec(id="c", body=steady()).hold_within == float("inf")


# 140 -----------------------------------------------------------------------------------------------------------------


def chain(down: str | None = None) -> Gates:
    """`a` needs `b` needs `c`, added in an order that helps nobody; one of them may begin shut."""
    gates = Gates()
    for name, needs in (("b", ["c"]), ("a", ["b"]), ("c", [])):
        gates.add(name, requires=needs, settle=0.25, shut=f"{name} is gone" if name == down else None)
    return gates


@pytest.mark.parametrize("when", ["at the start", "later"])
async def test_own_140_in_a_chain_of_needs_one_cause_is_shown_for_all(when: str, autojump_clock: MockClock) -> None:
    """A needs B needs C, and C is down: both that are held show C and its cause; the events lead from one to the
    other; and when C is back all are, with nobody else's word."""
    gates = chain("c" if when == "at the start" else None)
    specs = [needing("one", None, "a"), needing("two", None, "b"), needing("three", None)]
    tree = Tree(Supervisor("app", specs, intensity=NEVER_AGAIN), gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            if when == "later":
                await trio.sleep(1)
                gates["c"].shut("c is gone")
                await trio.sleep(1)
            held = [look(tree, f"app/{name}") for name in ("one", "two")]
            assert [(view.state, view.held_by, view.cause) for view in held] == [("held", "c", "c is gone")] * 2
            assert look(tree, "app/three").state == "running"
            assert [gates[name].root for name in "abc"] == [("c", "c is gone")] * 3
            told = list(events.drain())
            gates["c"].open()
            await trio.sleep(1)
            assert {view.state for view in tree.snapshot().root.children} == {"running"}
            assert [gates[name].root for name in "abc"] == [None] * 3
    assert [event.reason for event in of_kind(told, LifecycleKind.CHILD_HELD)] == ["c: c is gone"] * 2
    if when == "later":
        by_path = {event.path: event for event in of_kind(told, LifecycleKind.GATE_SHUT)}
        assert by_path["c"].cause is None
        assert (by_path["b"].cause, by_path["a"].cause) == (by_path["c"].sequence, by_path["b"].sequence)


async def test_own_140_what_is_down_itself_stays_so(autojump_clock: MockClock) -> None:
    """B was shut for a reason of its own as well: when C is back that one is shown, and holds them still."""
    gates = chain("c")
    gates["b"].shut("b is gone")
    tree = Tree(Supervisor("app", [needing("one", None, "a"), needing("two", None, "b")]), gates=gates)
    async with running(tree):
        assert [view.held_by for view in tree.snapshot().root.children] == ["c", "c"]
        gates["c"].open()
        await trio.sleep(1)
        held = tree.snapshot().root.children
        assert [(view.state, view.held_by, view.cause) for view in held] == [("held", "b", "b is gone")] * 2
        gates["b"].open()
        await trio.sleep(1)
        assert {view.state for view in tree.snapshot().root.children} == {"running"}


async def test_own_140_the_settle_time_is_the_longest_of_the_chain(autojump_clock: MockClock) -> None:
    """What stands behind a slow one is not quicker than that."""
    gates = Gates()
    slow = gates.add("c", settle=5.0, shut="gone")
    gates.add("a", settle=0.25, requires=["c"])
    starts = Starts()
    tree = Tree(Supervisor("app", [needing("one", starts.of("one"), "a")]), gates=gates)
    async with running(tree):
        await trio.sleep(1)
        slow.open()
        await trio.sleep(10)
    assert starts.of_all == [("one", 6)]


# 141 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_own_141_a_circle_of_gates_is_refused_and_named(order: tuple[str, ...]) -> None:
    """Whichever is added last closes the circle, and is refused with the whole of it; so is one that needs itself.
    Nothing has been started by then."""
    needs = {"a": ["b"], "b": ["c"], "c": ["a"]}
    gates = Gates()
    gates.add("aside", requires=["a"])
    for name in order[:2]:
        gates.add(name, requires=needs[name])
    with pytest.raises(GateCycle, match="in a circle") as caught:
        gates.add(order[2], requires=needs[order[2]])
    assert isinstance(caught.value, InvalidSpec)
    circle = "a needs b needs c needs a needs b needs c"
    assert any(f"circle: {circle[at : at + 25]};" in str(caught.value) for at in (0, 8, 16))
    with pytest.raises(GateCycle, match="circle: self needs self;"):
        gates.add("self", requires=["self"])
    assert sorted(gates) == sorted(["aside", *order[:2]])


def test_own_141_needs_that_meet_again_are_no_circle() -> None:
    """A diamond is fine."""
    gates = Gates()
    gates.add("top", requires=["left", "right"])
    gates.add("left", requires=["bottom"])
    gates.add("right", requires=["bottom"])
    gates.add("bottom", shut="gone")
    Tree(Supervisor("app", [needing("a", None, "top")]), gates=gates)
    assert gates["top"].root == ("bottom", "gone")


async def test_own_141_a_circle_through_children_that_open_gates_is_refused_before_the_start() -> None:
    """Who opens a gate may not stand behind it, directly or through others: the tree is refused, naming gate and
    children."""
    gates = Gates()
    for name in ("redis", "postgres"):
        gates.add(name, shut="not probed yet")
    began: list[str] = []

    async def body(child: Child) -> None:
        began.append(child.id)

    specs = [
        ChildSpec(id="one", body=body, requires=["redis"], opens=["postgres"]),
        ChildSpec(id="two", body=body, requires=["postgres"], opens=["redis"]),
    ]
    with pytest.raises(InvalidSpec) as caught:
        Tree(Supervisor("app", specs), gates=gates)
    for name in ("redis", "postgres", "app/one", "app/two"):
        assert name in str(caught.value)
    assert began == []


# 142 -----------------------------------------------------------------------------------------------------------------


async def test_own_142_a_child_without_a_sign_of_life_is_treated_as_crashed(autojump_clock: MockClock) -> None:
    """It promises progress each 10 s, makes the last at 29, and is cancelled at 39: crashed, "stalled", counted, and
    started again after its pause."""
    starts = Starts()
    slow = ChildSpec(id="a", body=starts.of("a", stalled(29.5)), progress_within=10.0, backoff=PLAIN)
    tree = Tree(Supervisor("app", [slow]))
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep_until(38.9)
            assert look(tree, "app/a").state == "running"
            await trio.sleep_until(39.5)
            view = look(tree, "app/a")
            assert (view.state, view.restarts) == ("backoff", 1)
            assert look(tree, "app").restarts_left == 4
            assert view.last_error is not None
            assert view.last_error.type.endswith(".Stalled")
            assert view.last_error.message == "no progress for 10 s"
            await trio.sleep_until(42)
            assert look(tree, "app/a").state == "running"
        told = list(events.drain())
    (crash,) = of_kind(told, LifecycleKind.CHILD_CRASHED)
    assert crash.error == view.last_error
    assert starts.of_all == [("a", 0), ("a", 40)]


async def test_own_142_who_keeps_its_promise_lives_and_so_does_who_made_none(autojump_clock: MockClock) -> None:
    """A mark just inside of the limit, for an hour, is enough; readiness is the first one; the start is not counted."""

    async def makes_progress(child: Child) -> None:
        await trio.sleep(25)
        child.started()
        while True:
            await trio.sleep(9.5)
            child.progress()

    specs = [ChildSpec(id="a", body=makes_progress, progress_within=10.0), ChildSpec(id="b", body=stalled())]
    tree = Tree(Supervisor("app", specs, intensity=NEVER_AGAIN))
    async with running(tree):
        await trio.sleep(3600)
        assert [(view.state, view.incarnation) for view in tree.snapshot().root.children] == [("running", 1)] * 2


async def test_own_142_a_stall_is_an_error_like_others(autojump_clock: MockClock) -> None:
    """It burns the budget, and a policy may name it; what the child raises on its way out is its cause."""
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=stalled(), progress_within=10.0)], intensity=NEVER_AGAIN))
    with pytest.raises(RestartLimitExceeded, match="Stalled") as caught:
        await tree.run()
    assert isinstance(caught.value.__cause__, Stalled)
    assert trio.current_time() == 10
    rule = Rule(Stalled, Directive.STOP)
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=stalled(), progress_within=10.0, policy=[rule])]))
    async with running(tree):
        await trio.sleep(15)
        assert look(tree, "app/a").state == "ended"


async def test_own_142_a_stalled_child_that_does_not_leave_is_stuck_and_then_crashed(autojump_clock: MockClock) -> None:
    """It counts as crashed when it is gone, not before: two of it never live at once."""
    starts = Starts()

    async def silent(child: Child) -> None:
        await slow_leaver(7.0)(child)

    spec = ChildSpec(id="a", body=starts.of("a", silent), progress_within=10.0, stop_within=5.0, backoff=PLAIN)
    tree = Tree(Supervisor("app", [spec]))
    async with running(tree):
        await trio.sleep(16)
        assert (look(tree, "app/a").state, look(tree, "app/a").restarts) == ("stuck", 0)
        await trio.sleep(3)
    assert starts.of_all[:2] == [("a", 0), ("a", 18)]


# Over the core -------------------------------------------------------------------------------------------------------


def test_core_136_the_start_is_due_one_settle_time_after_the_opening() -> None:
    """Neither earlier nor later; and at once with a settle time of 0."""
    for settle in (0.0, 0.25, 5.0):
        play = Play([spec("a", requires=["redis"])], shut={"redis": "refused"})
        play.tell(Begin())
        assert (play.take(), play.settled) == ("", True)
        play.advance(100)
        play.tell(GateTurned("redis", True, settle=settle))
        if settle:
            play.advance(settle - 2**-10)
            assert play.take() == ""
            play.advance(2**-10)
        assert play.take() == "+a"


@pytest.mark.parametrize("strategy", list(Strategy))
def test_core_137_the_budget_is_not_touched(strategy: Strategy) -> None:
    """The gate is shut and the child crashes before it is cancelled, under any strategy: nobody else stops."""
    play = Play([spec("a", requires=["redis"]), spec("b")], strategy)
    play.tell(Begin())
    play.deaf.add("a")
    play.take()
    play.tell(GateTurned("redis", False, "refused"))
    assert play.take() == "-a"
    play.crash("a")
    assert play.take() == ""
    assert play.core.budget.left(play.now) == 100
    assert "child_backoff" not in play.kinds("a")
    play.tell(GateTurned("redis", True))
    assert play.take() == "+a"


def test_core_142_progress_is_asked_for_at_the_limit_and_counted_from_the_last_mark() -> None:
    """A mark at 8 of 10 s moves the limit to 18; then it is at fault."""
    play = Play([spec("a", progress_within=10.0)])
    play.slow_starters.add("a")
    play.tell(Begin())
    play.advance(5)
    play.tell(ChildReady("a", 1))
    play.take()
    play.advance(10)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, 13.0))
    play.advance(7.5)
    assert play.take() == ""
    play.advance(0.5)
    assert play.take() == "?a"
    play.tell(ProgressSeen("a", 1, 13.0))
    assert play.take() == "-a"
    assert play.kinds("a")[-2:] == ["child_crashed", "child_backoff"]
