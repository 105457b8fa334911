"""What holds for the pure core whatever happens, told by random lives of random supervisors."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from playing import nobody

from penstock.runtime.supervision import Backoff, ChildSpec, Intensity, Plan, Restart, Strategy
from penstock.runtime.supervision.core import Core
from penstock.runtime.supervision.events import LifecycleKind, Report
from penstock.runtime.supervision.messages import (
    Action,
    Begin,
    CancelChild,
    CheckProgress,
    ChildEnded,
    ChildReady,
    ChildStuck,
    DrainChild,
    Event,
    Finish,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    Settled,
    StartChild,
    StopOrdered,
    Stuck,
    Tick,
)
from penstock.runtime.supervision.outcome import Outcome

GATES = ("redis", "postgres")
ENDS = {LifecycleKind.CHILD_RETURNED, LifecycleKind.CHILD_CRASHED, LifecycleKind.CHILD_STOPPED}


class Incarnation:
    """One task, as a shell would run it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.ready = False
        self.drained = False
        self.cancelled = False
        self.stuck = False

    @property
    def ordered_off(self) -> bool:
        return self.drained or self.cancelled


class World:
    """A shell whose children do what the test says, and which objects to every wrong order."""

    def __init__(self, specs: list[ChildSpec], strategy: Strategy, intensity: Intensity, shut: set[str]) -> None:
        self.specs = {spec.id: spec for spec in specs}
        self.names = [spec.id for spec in specs]
        self.strategy = strategy
        self.intensity = intensity
        self.shut = set(shut)
        self.core = Core(Plan(specs, strategy, intensity), random.Random(7).random, dict.fromkeys(shut, "at first"))
        self.now = 0.0
        self.alive: dict[str, Incarnation] = {}
        self.started: dict[str, int] = {}
        self.told: dict[tuple[str, int], list[LifecycleKind]] = {}
        self.restarts: list[float] = []
        self.over: set[str] = set()
        self.was_held: set[str] = set()
        self.was_up: set[str] = set()
        self.settled = self.is_calm = False
        self.finish: Finish | None = None

    def __repr__(self) -> str:
        return f"<World {list(self.specs.values())} {self.strategy} {self.intensity} shut={sorted(self.shut)}>"

    @property
    def stopping(self) -> bool:
        return self.core.phase in (Phase.STOPPING, Phase.DONE)

    # What happens to the core ---------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        queue = [event]
        while queue:
            actions = self.core.handle(queue.pop(0), self.now)
            assert self.finish is None or not actions, "nothing follows the end"
            for action in actions:
                queue += self.perform(action)

    def happen(self, what: tuple[Any, ...]) -> None:
        match what:
            case "tick", seconds:
                self.now += seconds
                self.tell(Tick())
            case "gate", name, is_open:
                (self.shut.discard if is_open else self.shut.add)(name)
                self.tell(GateTurned(name, is_open, "cause", settle=0.25))
            case "stop", grace:
                self.tell(StopOrdered("ordered", grace))
            case kind, number:
                task = self.alive.get(self.names[number % len(self.names)])
                if task is not None:
                    self.live(kind, task)

    def live(self, kind: str, task: Incarnation) -> None:
        if kind == "ready" and not task.ready:
            task.ready = True
            self.tell(ChildReady(task.name, task.number))
        elif kind == "leave" and task.ordered_off:
            self.end(task, Outcome())
        elif kind == "return":
            self.end(task, Outcome(unasked=not task.ordered_off))
        elif kind == "crash":
            self.end(task, Outcome(RuntimeError("broke"), unasked=not task.ordered_off))
        elif kind == "exit":
            self.end(task, Outcome(SystemExit(1), fatal=True, unasked=not task.ordered_off))
        elif kind == "finish_unseen":  # it returned before the order that is on its way could reach it
            self.end(task, Outcome(unasked=True))
        elif kind == "stuck":
            self.tell(ChildStuck(task.name, task.number))

    def end(self, task: Incarnation, outcome: Outcome) -> None:
        del self.alive[task.name]
        self.tell(ChildEnded(task.name, task.number, outcome))
        kinds = self.told[task.name, task.number]
        assert len([kind for kind in kinds if kind in ENDS]) == 1, "one end, one report"

    # What the core orders -------------------------------------------------------------------------------------------

    def perform(self, action: Action) -> list[Event]:
        match action:
            case StartChild(id=name, incarnation=number):
                self.may_start(name, number)
                self.alive[name] = Incarnation(name, number)
                self.started[name] = number
            case DrainChild(id=name, incarnation=number) | CancelChild(id=name, incarnation=number):
                self.order_off(action, self.alive[name], number)
            case CheckProgress(id=name, incarnation=number):
                assert self.alive[name].number == number
                return [ProgressSeen(name, number, self.now if self.is_calm or number % 2 else 0.0)]
            case Report():
                self.enter(action)
            case Settled():
                assert not self.settled
                assert set(self.names) == self.started.keys() | self.was_held
                self.settled = True
            case Stuck():
                assert self.alive
                assert all(task.stuck for task in self.alive.values())
            case Finish():
                assert not self.alive, "nobody runs on after the end"
                self.finish = action
        return []

    def may_start(self, name: str, number: int) -> None:
        assert name not in self.alive, "never two incarnations at a time"
        assert number == self.started.get(name, 0) + 1
        assert not self.is_held(name), "nobody is started behind a shut gate"
        assert not self.stopping, "nobody is started during the stop"
        if self.strategy is not Strategy.ONE_FOR_ONE:
            assert all(task.stuck or not task.ordered_off for task in self.alive.values()), "all leave, then all start"
        for other in self.names[: self.names.index(name)]:
            over = other not in self.core.children or not self.core.children[other].goal
            if self.strategy is Strategy.ONE_FOR_ONE:
                began = other in self.was_up or other in self.was_held or over
                assert began or number > 1 or name in self.was_held, "the first start goes in order"
            else:
                up = other in self.alive and self.alive[other].ready and not self.alive[other].ordered_off
                assert up or over or self.is_held(other), "a group starts in order"

    def order_off(self, action: DrainChild | CancelChild, task: Incarnation, number: int) -> None:
        assert task.number == number
        if isinstance(action, DrainChild):
            assert not task.ordered_off
            assert self.specs[task.name].drain_within > 0
        first = not task.ordered_off
        task.drained = task.drained or isinstance(action, DrainChild)
        task.cancelled = task.cancelled or isinstance(action, CancelChild)
        condemned = isinstance(action, CancelChild) and action.reason.startswith(("no progress", task.name))
        if first and self.stopping:
            later = self.names[self.names.index(task.name) + 1 :]
            assert all(other not in self.alive or self.alive[other].stuck for other in later), "stops in reverse"
        elif first and not condemned:
            others = [other for other in self.alive.values() if other is not task and other.ordered_off]
            assert all(other.stuck for other in others), "one leaves after the other"

    def enter(self, report: Report) -> None:
        if report.kind is LifecycleKind.SUPERVISOR_GAVE_UP:
            return
        if report.kind is LifecycleKind.CHILD_HELD:
            self.was_held.add(report.subject)
        if report.kind is LifecycleKind.CHILD_READY:
            self.was_up.add(report.subject)
        if report.kind is LifecycleKind.CHILD_BACKOFF:
            self.restarts.append(self.now)
            recent = [at for at in self.restarts if at >= self.now - self.intensity.within]
            assert len(recent) <= self.intensity.restarts, "the budget is never exceeded"
        kinds = self.told.setdefault((report.subject, report.incarnation), [])
        if report.kind is LifecycleKind.CHILD_STUCK:
            assert not self.alive[report.subject].stuck
            self.alive[report.subject].stuck = True
        if report.kind in (LifecycleKind.CHILD_STARTING, LifecycleKind.CHILD_READY, LifecycleKind.CHILD_STOPPING):
            assert report.kind not in kinds
            assert not ENDS & set(kinds), "nothing is told of an incarnation after its end"
        kinds.append(report.kind)

    def is_held(self, name: str) -> bool:
        return bool(self.shut & set(self.specs[name].requires))

    # The end --------------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """Let everybody do what is asked of them, with all gates open, until nothing more is to come."""
        self.is_calm = True
        for gate in GATES:
            self.happen(("gate", gate, True))
        for _ in range(30):
            for number in range(len(self.names)):
                self.happen(("ready", number))
                self.happen(("leave", number))
            self.happen(("tick", min(60.0, max(0.0, self.core.next_deadline() - self.now))))


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "restart": st.sampled_from(Restart),
    "requires": st.sets(st.sampled_from(GATES)).map(sorted),
    "drain_within": st.sampled_from([0.0, 3.0, float("inf")]),
    "stop_within": st.sampled_from([1.0, 5.0, float("inf")]),
    "start_within": st.sampled_from([4.0, float("inf")]),
    "progress_within": st.sampled_from([None, None, 7.0]),
    "backoff": st.sampled_from([Backoff(0.0, 0.0), Backoff(1.0, 8.0)]),
}
LIFE = st.one_of(
    st.tuples(st.sampled_from(["ready", "leave", "return", "crash", "crash"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["ready", "leave"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["finish_unseen", "stuck"]), st.integers(0, 3)),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0])),
    st.tuples(st.just("gate"), st.sampled_from(GATES), st.booleans()),
)
END = st.one_of(
    st.tuples(st.just("stop"), st.sampled_from(Grace)),
    st.tuples(st.just("exit"), st.integers(0, 3)),
    LIFE,
)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    count = draw(st.integers(1, 4))
    specs = [ChildSpec(id=f"c{number}", body=nobody, **draw(st.fixed_dictionaries(OPTIONS))) for number in range(count)]
    intensity = Intensity(draw(st.sampled_from([0, 2, 50])), 20.0)
    return World(specs, draw(st.sampled_from(Strategy)), intensity, draw(st.sets(st.sampled_from(GATES))))


@settings(max_examples=600, deadline=None, derandomize=True, database=None)
@given(
    world=worlds(),
    boots=st.booleans(),
    life=st.lists(LIFE, max_size=30),
    end=st.one_of(st.just([]), st.lists(END, max_size=10)),
)
def test_the_rules_hold_whatever_happens(
    world: World, boots: bool, life: list[tuple[Any, ...]], end: list[tuple[Any, ...]]
) -> None:
    """No rule of `World` is broken; with nothing more in the way all are up; and after a stop everybody is gone."""
    world.tell(Begin())
    for number in range(len(world.names) if boots else 0):
        world.happen(("ready", number))
    for happening in (*life, *end):
        world.happen(happening)
    world.calm()
    if not world.stopping:
        children = list(world.core.children)
        assert world.core.phase is Phase.RUNNING
        assert all((child.spec.id in world.alive) == child.goal for child in children), "who is wanted is up"
        world.happen(("stop", Grace.DRAIN))
        world.calm()
    for number in range(4):
        world.happen(("return", number))  # those without a limit, which may drain for ever
        world.calm()
    assert world.finish is not None
    assert {name: number for (name, number), kinds in world.told.items() if ENDS & set(kinds)} == world.started
