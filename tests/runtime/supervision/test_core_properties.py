"""What holds for the pure core whatever happens, told by random lives of random supervisors."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from playing import nobody

from penstock.runtime.supervision import (
    AutoShutdown,
    Backoff,
    Changes,
    ChildSpec,
    Directive,
    Ignore,
    Intensity,
    NotRunning,
    Plan,
    Restart,
    Rule,
    Shutdown,
    Strategy,
)
from penstock.runtime.supervision.core import Core
from penstock.runtime.supervision.events import LifecycleKind, Report
from penstock.runtime.supervision.messages import (
    Action,
    AddChild,
    AdoptChild,
    Answer,
    Begin,
    CancelChild,
    CheckProgress,
    ChildEnded,
    ChildReady,
    ChildStuck,
    DeleteChild,
    DrainChild,
    Event,
    Finish,
    ForgetChild,
    GateTurned,
    Grace,
    Phase,
    ProgressSeen,
    Refuse,
    Reload,
    RestartChild,
    Settled,
    StartChild,
    StopOrdered,
    Stuck,
    TakeOver,
    TerminateChild,
    Tick,
)
from penstock.runtime.supervision.outcome import Outcome

GATES = ("redis", "postgres")
ENDS = {
    LifecycleKind.CHILD_RETURNED,
    LifecycleKind.CHILD_CRASHED,
    LifecycleKind.CHILD_STOPPED,
    LifecycleKind.CHILD_IGNORED,
}


class Incarnation:
    """One task, as a shell would run it."""

    def __init__(self, spec: ChildSpec, number: int) -> None:
        self.spec = spec
        self.name = spec.id
        self.number = number
        self.told: list[LifecycleKind] = []
        self.ready = False
        self.drained = False
        self.cancelled = False
        self.stuck = False

    @property
    def ordered_off(self) -> bool:
        return self.drained or self.cancelled


class World:
    """A shell whose children do what the test says, and which objects to every wrong order."""

    def __init__(self, plan: Plan, shut: set[str], *, is_pool: bool = False) -> None:
        self.plan = plan
        self.names = [spec.id for spec in plan.children]
        self.is_pool = is_pool
        self.shut = set(shut)
        self.core = Core(plan, random.Random(7).random, dict.fromkeys(shut, "at first"), is_pool=is_pool)
        self.now = 0.0
        self.alive: dict[str, Incarnation] = {}
        self.gone: list[Incarnation] = []
        self.started: dict[str, int] = {}
        self.restarts: list[float] = []
        self.calls: list[Event] = []
        self.answers: dict[int, Any] = {}
        self.was_held: set[str] = set()
        self.was_up: set[str] = set()
        self.most_restarts = 0
        self.settled = self.is_calm = False
        self.finish: Finish | None = None

    def __repr__(self) -> str:
        return f"<World {self.plan} shut={sorted(self.shut)}{', a pool' if self.is_pool else ''}>"

    @property
    def strategy(self) -> Strategy:
        return self.core.plan.strategy

    @property
    def stopping(self) -> bool:
        return self.core.phase in (Phase.STOPPING, Phase.DONE)

    # What happens to the core ---------------------------------------------------------------------------------------

    def tell(self, event: Event) -> None:
        queue = [event]
        while queue:
            actions = self.core.handle(queue.pop(0), self.now)
            over = self.finish is not None
            assert not over or all(isinstance(each, Refuse) for each in actions), "nothing follows the end"
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
            case "add", spec:
                self.call(AddChild, spec)
            case "reload", plan:
                self.call(Reload, plan)
            case ("terminate" | "restart" | "delete") as kind, number:
                if self.names:
                    call = {"terminate": TerminateChild, "restart": RestartChild, "delete": DeleteChild}[kind]
                    self.call(call, self.names[number % len(self.names)])
            case kind, number:
                task = self.alive.get(self.names[number % len(self.names)]) if self.names else None
                if task is not None:
                    self.live(kind, task)

    def call(self, kind: Any, subject: Any) -> None:
        """One more call; the tickets are the numbers of the calls."""
        self.calls.append(kind(len(self.calls), subject))
        self.tell(self.calls[-1])

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
        elif kind == "bow_out":
            self.end(task, Outcome(Shutdown("enough"), unasked=not task.ordered_off))
        elif kind == "ignore" and not task.ready:
            self.end(task, Outcome(Ignore("not here"), unasked=not task.ordered_off))
        elif kind == "exit":
            self.end(task, Outcome(SystemExit(1), fatal=True, unasked=not task.ordered_off))
        elif kind == "finish_unseen":  # it returned before the order that is on its way could reach it
            self.end(task, Outcome(unasked=True))
        elif kind == "stuck":
            self.tell(ChildStuck(task.name, task.number))

    def end(self, task: Incarnation, outcome: Outcome) -> None:
        del self.alive[task.name]
        self.gone.append(task)
        self.tell(ChildEnded(task.name, task.number, outcome))
        assert len([kind for kind in task.told if kind in ENDS]) == 1, "one end, one report"

    # What the core orders -------------------------------------------------------------------------------------------

    def perform(self, action: Action) -> list[Event]:
        match action:
            case StartChild(id=name, incarnation=number, spec=spec):
                self.may_start(spec, number)
                self.alive[name] = Incarnation(spec, number)
                self.alive[name].told.append(LifecycleKind.CHILD_STARTING)
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
                assert all(name in self.started or name in self.was_held or self.is_over(name) for name in self.names)
                self.settled = True
            case AdoptChild(spec=spec):
                assert spec.id not in self.names
                self.names.append(spec.id)
            case ForgetChild(spec=spec):
                assert spec.id not in self.alive, "who is forgotten has left"
                self.forget(spec.id)
            case TakeOver(plan=plan):
                planned = [spec.id for spec in plan.children]
                self.names = planned + [name for name in self.names if name not in planned]
            case Answer(ticket=ticket, value=value, id=name):
                self.answer(ticket, value if name is None else self.alive[name])
            case Refuse(ticket=ticket, error=error):
                self.answer(ticket, error)
            case Stuck():
                assert self.alive
                assert all(task.stuck for task in self.alive.values())
            case Finish():
                assert not self.alive, "nobody runs on after the end"
                self.finish = action
        return []

    def answer(self, ticket: Any, value: Any) -> None:
        """What a call is told is true at that moment."""
        assert ticket not in self.answers, "a call is answered once"
        self.answers[ticket] = value
        match self.calls[ticket], value:
            case ((AddChild() | RestartChild()), Incarnation()):
                assert value.ready, "a start is answered when the child is up"
            case TerminateChild(id=name), None:
                assert name not in self.alive, "a stop is answered when the child has left"
            case DeleteChild(id=name), None:
                assert name not in self.names, "a deletion is answered when it is done"
            case Reload(), _:
                assert isinstance(value, Changes | NotRunning)

    def forget(self, name: str) -> None:
        self.names.remove(name)
        self.started.pop(name, None)
        self.was_held.discard(name)
        self.was_up.discard(name)

    def is_over(self, name: str) -> bool:
        return name not in self.core.children or not self.core.children[name].goal

    def may_start(self, spec: ChildSpec, number: int) -> None:
        name = spec.id
        assert name not in self.alive, "never two incarnations at a time"
        assert number == self.started.get(name, 0) + 1
        assert not self.shut & set(spec.requires), "nobody is started behind a shut gate"
        assert not self.stopping, "nobody is started during the stop"
        assert not self.is_over(name), "who is stopped, and over, stays so"
        if self.strategy is not Strategy.ONE_FOR_ONE:
            assert all(task.stuck or not task.ordered_off for task in self.alive.values()), "all leave, then all start"
        for other in self.names[: self.names.index(name)]:
            over = self.is_over(other)
            if self.strategy is Strategy.ONE_FOR_ONE:
                began = other in self.was_up or other in self.was_held or over
                late = self.settled or number > 1 or name in self.was_held
                assert began or late, "the first start goes in order"
            else:
                up = other in self.alive and self.alive[other].ready and not self.alive[other].ordered_off
                assert up or over or self.is_held(other), "a group starts in order"

    def order_off(self, action: DrainChild | CancelChild, task: Incarnation, number: int) -> None:
        assert task.number == number
        if isinstance(action, DrainChild):
            assert not task.ordered_off
            assert task.name in self.core.children
        first = not task.ordered_off
        task.drained = task.drained or isinstance(action, DrainChild)
        task.cancelled = task.cancelled or isinstance(action, CancelChild)
        condemned = isinstance(action, CancelChild) and action.reason.startswith(
            ("no progress", f"{task.name} was not")
        )
        if self.is_pool:
            return
        if first and self.stopping and not condemned:  # what it is condemned for may have come before the stop
            later = self.names[self.names.index(task.name) + 1 :]
            assert all(other not in self.alive or self.alive[other].stuck for other in later), "stops in reverse"
        elif first and not condemned and not (self.is_over(task.name) and self.strategy is Strategy.ONE_FOR_ONE):
            others = [other for other in self.alive.values() if other is not task and other.ordered_off]
            if self.is_recalled(task.name):  # it waits for nobody but those who leave for the same reason
                others = [other for other in others if self.is_recalled(other.name)]
            assert all(other.stuck for other in others), "one leaves after the other"

    def enter(self, report: Report) -> None:
        kinds_of_the_whole = (
            LifecycleKind.SUPERVISOR_GAVE_UP,
            LifecycleKind.SUPERVISOR_SHUT_DOWN,
            LifecycleKind.PLAN_CHANGED,
            LifecycleKind.CHILD_CALLED_OFF,
            LifecycleKind.CHILD_REMOVED,
        )
        if report.kind in kinds_of_the_whole:
            return
        if report.kind is LifecycleKind.CHILD_HELD:
            self.was_held.add(report.subject)
        if report.kind is LifecycleKind.CHILD_READY:
            self.was_up.add(report.subject)
        if report.kind is LifecycleKind.CHILD_BACKOFF:
            self.restarts.append(self.now)
            limit = self.core.plan.intensity
            assert isinstance(limit, Intensity)
            recent = [at for at in self.restarts if at >= self.now - limit.within]
            assert len(recent) <= max(limit.restarts, self.most_restarts), "the budget is never exceeded"
            self.most_restarts = max(self.most_restarts, len(recent)) if limit is not self.plan.intensity else 0
        if report.kind is LifecycleKind.CHILD_STARTING:
            return  # it is entered with the start itself, which follows
        task = self.alive.get(report.subject) or next(
            (each for each in reversed(self.gone) if each.name == report.subject), None
        )
        if task is None or task.number != report.incarnation:
            assert report.kind is LifecycleKind.CHILD_HELD
            return
        if report.kind is LifecycleKind.CHILD_STUCK:
            assert not task.stuck
            task.stuck = True
        if report.kind in (LifecycleKind.CHILD_READY, LifecycleKind.CHILD_STOPPING):
            assert report.kind not in task.told
            assert not ENDS & set(task.told), "nothing is told of an incarnation after its end"
        task.told.append(report.kind)

    def is_recalled(self, name: str) -> bool:
        return self.core.children[name].recalled is not None

    def is_held(self, name: str) -> bool:
        child = self.core.children.get(name)
        return child is not None and bool(self.shut & set(child.spec.requires))

    # The end --------------------------------------------------------------------------------------------------------

    def calm(self) -> None:
        """Let everybody do what is asked of them, with all gates open, until nothing more is to come."""
        self.is_calm = True
        for gate in GATES:
            self.happen(("gate", gate, True))
        for _ in range(60):
            while restless := [task for task in self.alive.values() if not task.ready or task.ordered_off]:
                self.live("leave" if restless[0].ordered_off else "ready", restless[0])
            self.happen(("tick", min(60.0, max(0.0, self.core.next_deadline() - self.now))))


OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "restart": st.sampled_from(Restart),
    "requires": st.sets(st.sampled_from(GATES)).map(sorted),
    "drain_within": st.sampled_from([0.0, 3.0, float("inf")]),
    "stop_within": st.sampled_from([1.0, 5.0, float("inf")]),
    "start_within": st.sampled_from([4.0, float("inf")]),
    "hold_within": st.sampled_from([float("inf"), float("inf"), 20.0]),
    "progress_within": st.sampled_from([None, None, 7.0]),
    "backoff": st.sampled_from([Backoff(0.0, 0.0), Backoff(1.0, 8.0)]),
    "policy": st.sampled_from([(), (), *((Rule(RuntimeError, directive),) for directive in Directive)]),
}
WHO = st.integers(0, 5)


@st.composite
def specs(draw: st.DrawFn, name: str, mode: AutoShutdown = AutoShutdown.NEVER) -> ChildSpec:
    options = draw(st.fixed_dictionaries(OPTIONS))
    may_be = mode is not AutoShutdown.NEVER and options["restart"] is not Restart.PERMANENT
    return ChildSpec(id=name, body=nobody, significant=may_be and draw(st.booleans()), **options)


@st.composite
def plans(draw: st.DrawFn, names: st.SearchStrategy[list[str]]) -> Plan:
    mode = draw(st.sampled_from(AutoShutdown))
    return Plan(
        [draw(specs(name, mode)) for name in draw(names)],
        draw(st.sampled_from(Strategy)),
        Intensity(draw(st.sampled_from([0, 2, 50])), 20.0),
        mode,
        draw(st.sampled_from([0.0, 0.5])),
    )


@st.composite
def worlds(draw: st.DrawFn) -> World:
    plan = draw(plans(st.integers(1, 4).map(lambda count: [f"c{number}" for number in range(count)])))
    return World(plan, draw(st.sets(st.sampled_from(GATES))))


@st.composite
def pools(draw: st.DrawFn) -> World:
    plan = Plan((), intensity=Intensity(draw(st.sampled_from([0, 2, 50])), 20.0), stagger=draw(st.sampled_from([0, 1])))
    return World(plan, draw(st.sets(st.sampled_from(GATES))), is_pool=True)


NAMES = st.sampled_from([f"c{number}" for number in range(7)])
LIFE = st.one_of(
    st.tuples(st.sampled_from(["ready", "leave", "return", "crash", "crash"]), WHO),
    st.tuples(st.sampled_from(["ready", "leave"]), WHO),
    st.tuples(st.sampled_from(["finish_unseen", "stuck", "bow_out", "ignore"]), WHO),
    st.tuples(st.just("tick"), st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0])),
    st.tuples(st.just("gate"), st.sampled_from(GATES), st.booleans()),
)
CALL = st.one_of(
    st.tuples(st.sampled_from(["terminate", "restart", "delete"]), WHO),
    st.tuples(st.just("add"), NAMES.flatmap(specs)),
)
RELOAD = st.tuples(st.just("reload"), plans(st.lists(NAMES, unique=True, max_size=5)))
END = st.one_of(
    st.tuples(st.just("stop"), st.sampled_from(Grace)),
    st.tuples(st.just("exit"), WHO),
    LIFE,
)
ENDS_OF_LIFE = st.one_of(st.just([]), st.lists(END, max_size=10))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(world=worlds(), boots=st.booleans(), life=st.lists(LIFE, max_size=30), end=ENDS_OF_LIFE)
def test_the_rules_hold_whatever_happens(
    world: World, boots: bool, life: list[tuple[Any, ...]], end: list[tuple[Any, ...]]
) -> None:
    """No rule of `World` is broken; with nothing more in the way all are up; and after a stop everybody is gone."""
    live_through(world, boots, [*life, *end])


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(world=worlds(), boots=st.booleans(), life=st.lists(st.one_of(LIFE, CALL, RELOAD), max_size=40), end=ENDS_OF_LIFE)
def test_the_rules_hold_whatever_is_asked(
    world: World, boots: bool, life: list[tuple[Any, ...]], end: list[tuple[Any, ...]]
) -> None:
    """The same while children come and go by calls, and plans change; every call is answered, once and truly."""
    live_through(world, boots, [*life, *end])


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(world=pools(), life=st.lists(st.one_of(LIFE, CALL), max_size=40), end=ENDS_OF_LIFE)
def test_the_rules_hold_in_a_pool(world: World, life: list[tuple[Any, ...]], end: list[tuple[Any, ...]]) -> None:
    live_through(world, False, [*life, *end])


def live_through(world: World, boots: bool, happenings: list[tuple[Any, ...]]) -> None:
    world.tell(Begin())
    for number in range(len(world.names) if boots else 0):
        world.happen(("ready", number))
    for happening in happenings:
        world.happen(happening)
    world.calm()
    if not world.stopping:
        assert world.core.phase is Phase.RUNNING
        assert [child.spec.id for child in world.core.children] == world.names
        assert all((child.spec.id in world.alive) == child.goal for child in world.core.children), "who is wanted is up"
        world.happen(("stop", Grace.DRAIN))
        world.calm()
    for _ in range(7):
        for task in list(world.alive.values()):
            if world.alive.get(task.name) is task:
                world.live("return", task)  # those without a limit, which may drain for ever
        world.calm()
    assert world.finish is not None
    assert len(world.answers) == len(world.calls), "nobody waits for an answer for ever"
    assert all(ENDS & set(task.told) for task in world.gone), "one end for each start"
