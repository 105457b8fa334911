"""Random trees on trio, in virtual time: random crashes, outages, calls and stops, and the pure core as their model.

Every life is looked at from three sides that know nothing of each other: what the bodies did (a diary of their own),
what the journal told, and what a fresh core decides when it is fed what the real one was fed.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trio
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    Gates,
    Intensity,
    LifecycleEvent,
    LifecycleKind,
    Restart,
    RestartLimitExceeded,
    StartFailed,
    Strategy,
    SupervisionError,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.core import Core
from penstock.runtime.supervision.events import Report
from penstock.runtime.supervision.messages import Action, Answer, Event, Finish, Refuse
from penstock.runtime.supervision.run import Run
from penstock.runtime.testing import run_virtual, tasks_waiting

GATES = ("redis", "postgres")
OF_A_SUPERVISOR = (LifecycleKind.TREE_READY, LifecycleKind.SUPERVISOR_GAVE_UP, LifecycleKind.PLAN_CHANGED)
ENDS = (LifecycleKind.CHILD_RETURNED, LifecycleKind.CHILD_CRASHED, LifecycleKind.CHILD_STOPPED)


# What is drawn: trees, and what happens to them ---------------------------------------------------------------------


@define
class Habit:
    """How a leaf behaves: how long it takes to start and to leave, and how each of its lives ends by itself."""

    start: float
    leave: float
    lives: list[tuple[str, float]]


@define
class Leaf:
    name: str
    habit: Habit
    options: dict[str, Any]


@define
class Node:
    name: str
    strategy: Strategy
    intensity: Intensity
    restart: Restart
    children: list[Leaf | Node] = field(factory=list)

    def leaves(self, path: str = "") -> Iterator[tuple[str, Leaf]]:
        for child in self.children:
            place = f"{path}{self.name}/"
            if isinstance(child, Leaf):
                yield f"{place}{child.name}", child
            else:
                yield from child.leaves(place)


LIVES = st.lists(
    st.tuples(st.sampled_from(["crash", "crash", "return"]), st.sampled_from([0.0, 0.3, 2.0, 7.0])), max_size=4
)
HABITS = st.builds(Habit, st.sampled_from([0.0, 0.0, 1.0]), st.sampled_from([0.0, 0.0, 0.5, 8.0]), LIVES)
OPTIONS = st.fixed_dictionaries(
    {
        "restart": st.sampled_from(Restart),
        "requires": st.sets(st.sampled_from(GATES)).map(sorted),
        "drain_within": st.sampled_from([0.0, 0.0, 1.0]),
        "stop_within": st.sampled_from([1.0, 10.0]),
        "backoff": st.sampled_from([Backoff(0.0, 0.0), Backoff(0.5, 4.0, jitter=0.0), Backoff(1.0, 8.0)]),
    }
)


@st.composite
def nodes(draw: st.DrawFn, name: str, depth: int) -> Node:
    intensity = Intensity(draw(st.sampled_from([0, 3, 20])), 20.0)
    node = Node(name, draw(st.sampled_from(Strategy)), intensity, draw(st.sampled_from(Restart)))
    for number in range(draw(st.integers(1, 3))):
        if depth and draw(st.booleans()):
            node.children.append(draw(nodes(f"n{number}", depth - 1)))
        else:
            node.children.append(Leaf(f"c{number}", draw(HABITS), draw(OPTIONS)))
    return node


HAPPENING = st.one_of(
    st.tuples(st.just("gate"), st.sampled_from(GATES), st.booleans()),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 5.0, 20.0])),
    st.tuples(st.just("sleep"), st.sampled_from([0.1, 1.0, 5.0, 20.0])),
    st.tuples(st.sampled_from(["terminate", "restart", "delete"]), st.integers(0, 5)),
    st.tuples(st.just("add"), HABITS, OPTIONS),
)
END = st.sampled_from(["stop", "cut", "stop then cut", "cancel"])


# What is watched ----------------------------------------------------------------------------------------------------


@define(eq=False)
class Life:
    """One life of one supervisor: what its core began with, was fed, drew by lot, and decided."""

    core: Core
    shut: dict[str, str]
    roots: dict[str, str]
    settled: dict[str, float]
    lots: list[float] = field(factory=list)
    fed: list[tuple[Event, float]] = field(factory=list)
    decided: list[tuple[float, Action]] = field(factory=list)


@define(eq=False)
class Record:
    """What was seen of one life of a tree.

    The diary holds what bodies did: ``+`` and ``-`` with path and incarnation, and ``!`` when the stop was ordered.
    """

    diary: list[tuple[str, str, int]] = field(factory=list)
    events: list[LifecycleEvent] = field(factory=list)
    missed: int = 0
    lives: dict[str, list[Life]] = field(factory=lambda: defaultdict(list))
    error: BaseException | None = None


def core_of(record: Record) -> type[Core]:
    """A core that writes down what it is fed and what it decides."""

    class Watched(Core):
        life: Life

        def __attrs_post_init__(self) -> None:
            super().__attrs_post_init__()
            self.life = Life(self, dict(self.shut), dict(self.roots), dict(self.settled))
            chance = self.chance
            self.chance = lambda: self.life.lots.append(chance()) or self.life.lots[-1]  # type: ignore[func-returns-value]

        def handle(self, event: Event, now: float) -> list[Action]:
            actions = super().handle(event, now)
            self.life.fed.append((event, now))
            self.life.decided.extend((now, action) for action in actions)
            return actions

    return Watched


def body_of(leaf: Leaf, record: Record) -> Body:
    async def body(child: Child) -> None:
        record.diary.append(("+", child.path, child.incarnation))
        try:
            await trio.sleep(leaf.habit.start)
            child.started()
            lives = leaf.habit.lives
            if child.incarnation > len(lives):
                await trio.sleep_forever()
            how, seconds = lives[child.incarnation - 1]
            await trio.sleep(seconds)
            if how == "crash":
                raise RuntimeError(f"{child.path} broke")
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(leaf.habit.leave)
            record.diary.append(("-", child.path, child.incarnation))

    return body


def planted(node: Node, record: Record) -> Supervisor:
    specs = []
    for child in node.children:
        if isinstance(child, Leaf):
            specs.append(ChildSpec(id=child.name, body=body_of(child, record), **child.options))
        else:
            specs.append(planted(child, record).spec(restart=child.restart, backoff=Backoff(0.5, 4.0)))
    return Supervisor(node.name, specs, strategy=node.strategy, intensity=node.intensity)


async def live(node: Node, happenings: list[tuple[Any, ...]], end: str) -> Record:
    record = Record()
    gates = Gates()
    for gate in GATES:
        gates.add(gate, settle=0.25)
    root = planted(node, record)
    tree = Tree(root, gates=gates, seed=1)
    with pytest.MonkeyPatch.context() as patch, trio.CancelScope() as whole:
        patch.setattr("penstock.runtime.supervision.run.Core", core_of(record))
        patch.setattr(Run, "__attrs_post_init__", _registering(record, Run.__attrs_post_init__))
        async with trio.open_nursery() as nursery:
            await nursery.start(_follow, tree, record)
            nursery.start_soon(_keep, tree, record, nursery.cancel_scope)
            await tree.ready()
            for happening in happenings:
                await _happen(happening, root, gates, record)
            record.diary.append(("!", "", 0))
            if end == "cancel":
                whole.cancel()
            tree.stop("the life is over", cut=end == "cut")
            if end == "stop then cut":
                await trio.sleep(0.7)
                tree.stop("hurry", cut=True)
    return record


def _registering(record: Record, original: Callable[[Run], None]) -> Callable[[Run], None]:
    def made(run: Run) -> None:
        original(run)
        record.lives[run.path].append(run.core.life)  # type: ignore[attr-defined]

    return made


async def _keep(tree: Tree, record: Record, scope: trio.CancelScope) -> None:
    try:
        await tree.run()
    except SupervisionError as error:
        record.error = error
        scope.cancel()
    assert [line for line in tasks_waiting() if line.startswith(f"{tree.root.id}/")] == [], "nobody runs on"


async def _follow(tree: Tree, record: Record, task_status: trio.TaskStatus[None]) -> None:
    with trio.CancelScope(shield=True), tree.subscribe(buffer=1_000_000) as events:
        task_status.started()
        async for event in events:
            record.events.append(event)
        record.missed = events.missed


async def _happen(happening: tuple[Any, ...], root: Supervisor, gates: Gates, record: Record) -> None:
    match happening:
        case "gate", name, True:
            gates[name].open()
        case "gate", name, False:
            gates[name].shut("away")
        case "sleep", seconds:
            await trio.sleep(seconds)
        case "add", habit, options:
            leaf = Leaf(f"d{len(record.events)}", habit, options)
            await _ask(root.start_child(ChildSpec(id=leaf.name, body=body_of(leaf, record), **options)))
        case kind, number:
            names = [spec.id for spec in root.plan.children]
            await _ask(getattr(root, f"{kind}_child")(names[number % len(names)]))


async def _ask(call: Any) -> None:
    try:
        with trio.fail_after(200):
            await call
    except SupervisionError:
        pass  # refusals are answers, too; who waits longer than any limit here allows would not be answered at all


# What must hold -----------------------------------------------------------------------------------------------------


def check_diary(record: Record) -> None:
    """Bodies and journal agree: every start began a body, every body ended once, never two of one child at a time."""
    alive: dict[str, int] = {}
    for sign, path, incarnation in record.diary:
        if sign == "+":
            assert path not in alive, "never two incarnations at a time"
            alive[path] = incarnation
        elif sign == "-":
            assert alive.pop(path) == incarnation
    assert alive == {}, "nobody runs on after the stop"
    bodies = [(path, incarnation) for sign, path, incarnation in record.diary if sign == "+"]
    leaves = {path for path, _ in bodies}
    told = [(e.path, e.incarnation) for e in record.events if e.kind is LifecycleKind.CHILD_STARTING]
    # A supervisor is a child, too, and has no diary; a leaf that was cut before its first line has written nothing.
    missing = Counter(each for each in told if each[0] in leaves) - Counter(bodies)
    cut = {(e.path, e.incarnation) for e in record.events if e.kind is LifecycleKind.CHILD_STOPPED}
    assert Counter(bodies) - Counter(told) == Counter()
    assert missing.keys() <= cut


def check_events(record: Record) -> None:
    """Nothing is missing, nothing is told twice, and each cause is earlier than what it caused."""
    assert record.missed == 0
    assert [event.sequence for event in record.events] == list(range(1, len(record.events) + 1))
    assert all(event.cause is None or event.cause < event.sequence for event in record.events)
    assert record.events[-1].kind is LifecycleKind.TREE_STOPPED
    alive: dict[str, int] = {}
    for event in record.events:
        if event.kind is LifecycleKind.CHILD_STARTING:
            assert event.path not in alive
            alive[event.path] = event.incarnation
        elif event.kind in ENDS:
            assert alive.pop(event.path) == event.incarnation, "one end for each start"
    assert alive == {}


def check_gates(record: Record) -> None:
    """While all gates are shut nobody who was held is started."""
    shut: set[str] = set()
    held: set[str] = set()
    for event in record.events:
        if event.kind is LifecycleKind.GATE_SHUT:
            shut.add(event.path)
        elif event.kind is LifecycleKind.GATE_OPENED:
            shut.discard(event.path)
            held.clear()
        elif event.kind is LifecycleKind.CHILD_HELD:
            held.add(event.path)
        elif event.kind is LifecycleKind.CHILD_STARTING:
            assert event.path not in held


def check_budget(life: Life) -> None:
    """No supervisor makes more restarts in its period than it may, in any one of its lives."""
    made = [now for now, action in life.decided if _is_report(action, LifecycleKind.CHILD_BACKOFF)]
    limit = life.core.plan.intensity
    assert isinstance(limit, Intensity)
    assert all(
        sum(at - limit.within <= other <= at for other in made[: n + 1]) <= limit.restarts for n, at in enumerate(made)
    )


def check_model(life: Life) -> None:
    """A fresh core that is fed the same decides the same: nothing but its input decides."""
    lots = iter(life.lots)
    model = Core(life.core.plan, lambda: next(lots), dict(life.shut), dict(life.roots), settled=dict(life.settled))
    again = [(now, action) for event, now in life.fed for action in model.handle(event, now)]
    assert [(now, _plain(action)) for now, action in again] == [(now, _plain(action)) for now, action in life.decided]


def check_journal(record: Record, lives: list[Life], path: str) -> None:
    """What the cores of a supervisor decided to report stands in the journal, in that order, and nothing else does."""
    decided = [action for life in lives for _, action in life.decided if isinstance(action, Report)]
    told = [e for e in record.events if e.path.rpartition("/")[0] == path and e.kind not in OF_A_SUPERVISOR]
    expected = [report for report in decided if report.kind not in OF_A_SUPERVISOR]
    assert [(r.kind, r.subject, r.incarnation, r.error) for r in expected] == [
        (e.kind, e.path.rpartition("/")[2], e.incarnation, e.error) for e in told
    ]


def check_stop_order(record: Record, order: list[str]) -> bool:
    """Who was there when the stop was ordered left in the reverse order; False where that cannot be compared."""
    at = next((n for n, (sign, *_) in enumerate(record.diary) if sign == "!"), None)
    if at is None or record.error is not None or not _is_quiet(record):
        return False
    alive = {}
    for sign, path, _ in record.diary[:at]:
        alive[path] = sign == "+"
    left = [path for sign, path, _ in record.diary[at:] if sign == "-"]
    added = sorted(
        (path for path in alive if path not in order), key=lambda path: [p for _, p, _ in record.diary].index(path)
    )
    expected = [path for path in (*order, *added) if alive.get(path)]
    assert left == expected[::-1]
    return len(left) > 1


def _is_quiet(record: Record) -> bool:
    """Whether nobody was leaving, or about to start, when the stop was ordered, and nobody ended by itself then."""
    leaving: set[str] = set()
    events = iter(record.events)
    for event in events:
        if event.kind is LifecycleKind.TREE_STOPPING:
            break
        if event.kind in (LifecycleKind.CHILD_STOPPING, LifecycleKind.CHILD_STARTING):
            leaving.add(event.path)
        elif event.kind in ENDS or event.kind is LifecycleKind.CHILD_READY:
            leaving.discard(event.path)
    spoilers = {*ENDS[:2], LifecycleKind.CHILD_STARTING, LifecycleKind.CHILD_STUCK}
    return not leaving and not any(
        event.kind in spoilers or (event.kind is LifecycleKind.CHILD_STOPPING and event.reason.startswith("held"))
        for event in events
    )


def _is_report(action: Action, kind: LifecycleKind) -> bool:
    return isinstance(action, Report) and action.kind is kind


def _plain(action: Action) -> object:
    """An action, comparable: of errors that a core makes up, anew each time, the text counts."""
    if isinstance(action, Finish):
        return Finish, repr(action.error), action.bowed_out
    if isinstance(action, Refuse):
        return Refuse, repr(action.error), action.id
    return Answer if isinstance(action, Answer) else action


@settings(max_examples=150, deadline=None, derandomize=True, database=None, report_multiple_bugs=False)
@given(
    node=nodes("app", 2),
    happenings=st.lists(HAPPENING, max_size=12),
    end=END,
    seed=st.integers(0, 2**32 - 1),
)
def test_every_life_of_a_tree_keeps_the_rules(
    node: Node, happenings: list[tuple[Any, ...]], end: str, seed: int
) -> None:
    """Starts, stops, budgets, gates and journal agree, from the first start to the last stop."""
    record = run_virtual(live, node, happenings, end, seed=seed)
    assert record.error is None or isinstance(record.error, StartFailed | RestartLimitExceeded)
    check_diary(record)
    check_events(record)
    check_gates(record)
    check_stop_order(record, [path for path, _ in node.leaves()])
    for path, lives in record.lives.items():
        check_journal(record, lives, path)
        for life in lives:
            check_budget(life)
            check_model(life)
