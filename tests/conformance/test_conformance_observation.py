"""What can be seen of a tree, and what a tree sees of others (lines 143 to 145 of the list)."""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from attrs import Factory, define
from trio.testing import MockClock

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    ChildView,
    ErrorInfo,
    Gates,
    Intensity,
    Journal,
    LifecycleEvent,
    LifecycleKind,
    Pool,
    Restart,
    Shutdown,
    Strategy,
    SupervisionError,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.declaration import Declaration
from penstock.runtime.supervision.nested import Nested
from penstock.runtime.testing import (
    Misbehaved,
    VirtualWall,
    bad_starter,
    flaky,
    naughty,
    outage,
    running,
    seed_scheduler,
    shut,
    slow_leaver,
    slow_starter,
    steady,
    stuck,
)

PLAIN = Backoff(minimum=1.0, maximum=4.0, jitter=0.25)
WALL = VirtualWall()
Kind = LifecycleKind
ENDS = (Kind.CHILD_RETURNED, Kind.CHILD_CRASHED, Kind.CHILD_STOPPED, Kind.CHILD_IGNORED)


# A rich life ---------------------------------------------------------------------------------------------------------


def bows_out_twice() -> Body:
    async def body(child: Child) -> None:
        child.started()
        await trio.sleep(2)
        if child.incarnation <= 2:
            raise Shutdown("done for now")
        await trio.sleep_forever()

    return body


class World:
    """A tree in which about everything happens that can happen to a tree.

    Attributes:
        late: the specifications that calls bring, by id.
    """

    def __init__(self, seed: int) -> None:
        self.late: dict[str, ChildSpec] = {}
        self.gates = Gates(Journal(WALL))
        self.gates.add("redis", settle=0.25, requires=["cluster"])
        self.gates.add("cluster", settle=0.5, shut="not probed yet")
        self.rest = Supervisor(
            "rest",
            [
                self.child("a", flaky("crash stay", 9.0)),
                self.child("b", flaky("crash fail stay", 2.0)),
                self.child("c", flaky("return return stay"), restart=Restart.TRANSIENT),
                self.child("d", slow_leaver(0.5), requires=["redis"]),
                self.child("e", steady(), restart=Restart.TEMPORARY),
            ],
            strategy=Strategy.REST_FOR_ONE,
        )
        self.all = Supervisor(
            "all",
            [self.child("x", naughty(3.0)), self.child("y", slow_starter(0.5)), self.child("z", slow_leaver(0.25))],
            strategy=Strategy.ONE_FOR_ALL,
            intensity=Intensity(1, 100.0),
        )
        worker = self.child("worker", flaky("stay crash stay stay fail crash stay"), requires=["cluster"])
        self.pool = Pool("pool", worker)
        self.app = Supervisor(
            "app",
            [
                self.child("steady", steady()),
                self.child("flaky", flaky("crash crash fail stay", 1.5), drain_within=1.0),
                self.child("held", steady(), requires=["redis"]),
                self.child("silent", steady(), progress_within=6.0),
                self.child("polite", bows_out_twice()),
                self.child("temp", naughty(2.5), restart=Restart.TEMPORARY),
                self.rest.spec(backoff=PLAIN),
                self.all.spec(backoff=PLAIN),
                self.pool.spec(backoff=PLAIN),
                self.child("stuck", stuck(90.0), stop_within=1.0),
            ],
            intensity=Intensity(50, 1000.0),
        )
        self.tree = Tree(self.app, gates=self.gates, seed=seed)

    def child(self, name: str, body: Body, **options: Any) -> ChildSpec:
        self.late[name] = spec = ChildSpec(id=name, body=body, **{"backoff": PLAIN, **options})
        return spec

    async def live(self) -> None:
        """All of it: crashes of many kinds, outages, calls, a supervisor that gives up, and a stop that is hastened."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tree.run)
            await self.tree.ready()
            nursery.start_soon(self._outages)
            nursery.start_soon(self._calls)
            nursery.start_soon(self._pool_calls)
            await trio.sleep_until(60)
            self.tree.stop("enough")
            await trio.sleep(0.2)
            self.tree.stop("now", cut=True)

    async def _outages(self) -> None:
        cluster, redis = self.gates["cluster"], self.gates["redis"]
        await trio.sleep(1)
        cluster.open()
        await trio.sleep_until(6)
        await outage(redis, 2)
        await trio.sleep_until(10)
        for _ in range(4):
            await outage(cluster, 0.1)
            await trio.sleep(0.2)
        await trio.sleep_until(20)
        with shut(cluster, "gone"):
            await trio.sleep(1)
            with shut(redis, "gone too"):
                await trio.sleep(1)
        with shut(redis):  # a flap within one tick
            pass

    async def _calls(self) -> None:
        await _ask(self.app.start_child(self.child("late", naughty(1.0))))
        await trio.sleep(1.5)
        await _ask(self.app.terminate_child("late"))  # in its backoff
        await _ask(self.app.restart_child("late"))
        await _ask(self.app.terminate_child("late"))
        await _ask(self.app.delete_child("late"))
        await _ask(self.app.start_child(self.child("no", bad_starter(1))))
        await _ask(self.app.start_child(self.child("brief", flaky("return"), restart=Restart.TEMPORARY)))
        await trio.sleep_until(20.5)
        await _ask(self.app.terminate_child("held"))  # in its hold
        await _ask(self.app.start_child(self.child("held late", steady(), requires=["redis"])))
        await trio.sleep_until(24)
        await _ask(self.app.restart_child("held"))
        await _ask(self.rest.terminate_child("b"))
        await _ask(self.rest.restart_child("b"))
        await _ask(self.app.terminate_child("rest"))
        await trio.sleep(1)
        await _ask(self.app.restart_child("rest"))

    async def _pool_calls(self) -> None:
        first = await self.pool.start_child(1)
        for number in range(2, 8):
            await _ask(self.pool.start_child(number))
            await trio.sleep(1)
        if first is not None:
            await _ask(self.pool.terminate_child(first))
        for entry in self.pool.which_children():
            if entry.handle is not None:
                await _ask(self.pool.terminate_child(entry.handle))
                break


async def _ask(call: Awaitable[object]) -> None:
    with suppress(SupervisionError):
        await call


# 143 -----------------------------------------------------------------------------------------------------------------


def check_each_once(events: list[LifecycleEvent]) -> None:
    """Each start is followed by at most one readiness and one order, and by exactly one end; then by the next start."""
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert all(one.time <= other.time for one, other in pairwise(events))
    lives: dict[tuple[str, int], list[LifecycleKind]] = {}
    of_a_life = (Kind.CHILD_STARTING, Kind.CHILD_READY, Kind.CHILD_STOPPING, Kind.CHILD_STUCK, *ENDS)
    alive: dict[str, int] = {}
    for event in events:
        if event.kind is Kind.CHILD_STARTING:
            assert event.path not in alive
            alive[event.path] = event.incarnation
            lives[event.path, event.sequence] = told = []
        if event.kind in of_a_life:
            assert alive[event.path] == event.incarnation
            told = next(kinds for (path, _), kinds in reversed(lives.items()) if path == event.path)
            told.append(event.kind)
        if event.kind in ENDS:
            del alive[event.path]
    assert alive == {}
    for kinds in lives.values():
        assert len(set(kinds)) == len(kinds), kinds
        assert kinds[0] is Kind.CHILD_STARTING
        assert kinds[-1] in ENDS


CAUSES = {
    Kind.CHILD_BACKOFF: (Kind.CHILD_CRASHED, Kind.CHILD_RETURNED),
    Kind.CHILD_HELD: (Kind.GATE_SHUT,),
    Kind.GATE_SHUT: (Kind.GATE_SHUT,),
    Kind.GATE_OPENED: (Kind.GATE_OPENED,),
}
"""What may have brought about what, where it is told."""


def check_causes(events: list[LifecycleEvent]) -> None:
    """A cause is earlier than what it caused, stands on the same floor or is a gate, and is of a kind that can be."""
    for event in events:
        if event.cause is None:
            assert event.kind not in (Kind.CHILD_BACKOFF,)
            continue
        cause = events[event.cause - 1]
        assert cause.sequence == event.cause < event.sequence
        assert cause.kind in CAUSES.get(event.kind, tuple(Kind))
        is_gate = cause.kind in (Kind.GATE_SHUT, Kind.GATE_OPENED)
        if is_gate:  # starts come of an opening, all else of a shutting; also where it has turned again by then
            opens = event.kind in (Kind.CHILD_STARTING, Kind.GATE_OPENED)
            assert cause.kind is (Kind.GATE_OPENED if opens else Kind.GATE_SHUT)
        above = event.path if event.kind is Kind.SUPERVISOR_GAVE_UP else event.path.rpartition("/")[0]
        assert is_gate or cause.path.rpartition("/")[0] == above
    caused = {event.kind for event in events if event.cause is not None}
    assert caused >= {Kind.CHILD_STARTING, Kind.CHILD_STOPPING, Kind.CHILD_STOPPED, *CAUSES}


async def test_own_143_a_subscriber_sees_each_change_once_in_order_with_its_cause(autojump_clock: MockClock) -> None:
    """Whatever happens: no gap, nothing twice, causes that exist; and all subscribers see the same."""
    world = World(seed=1)
    all_seen: list[list[LifecycleEvent]] = [[], []]

    async def follow(seen: list[LifecycleEvent], task_status: trio.TaskStatus[None]) -> None:
        with world.tree.subscribe() as events:
            task_status.started()
            async for event in events:
                seen.append(event)
            assert events.missed == 0

    async with trio.open_nursery() as nursery:
        for seen in all_seen:
            await nursery.start(follow, seen)
        await world.live()
    one, other = all_seen
    assert one == other
    assert one[-1].kind is Kind.TREE_STOPPED
    check_each_once(one)
    check_causes(one)
    assert {event.kind for event in one} >= set(Kind) - {
        *(Kind.CHILD_RESUMED, Kind.CHILD_IGNORED, Kind.SUPERVISOR_SHUT_DOWN, Kind.PLAN_CHANGED, Kind.MAIL_LOST),
    }


Watcher = Callable[[Tree], Awaitable[None]]


async def life_of(*watchers: Watcher) -> list[tuple[float, str]]:
    """When which child was started, in a minute of crashes that is watched by these, each a task of its own."""
    begun_at = trio.current_time()
    starts: list[tuple[float, str]] = []

    def noted(name: str, after: float) -> ChildSpec:
        async def body(child: Child) -> None:
            starts.append((trio.current_time() - begun_at, name))
            await naughty(after)(child)

        return ChildSpec(id=name, body=body, backoff=PLAIN)

    specs = [noted("a", 0.75), noted("b", 1.0625), noted("c", 3.25)]
    tree = Tree(Supervisor("app", specs, intensity=Intensity(1000, 60.0)), seed=1)
    async with trio.open_nursery() as nursery:
        for watcher in watchers:
            nursery.start_soon(watcher, tree)
        await trio.testing.wait_all_tasks_blocked()
        async with running(tree):
            await trio.sleep_until(begun_at + 60)
        nursery.cancel_scope.cancel()
    return starts


async def test_own_143_a_slow_subscriber_delays_nobody_and_is_told_what_it_missed(autojump_clock: MockClock) -> None:
    """One that takes an hour over each event, and one that never looks: the life is the same as without them. What
    does not fit in their buffer is counted, and the newest are kept."""
    taken: list[int] = []
    seen: dict[str, int] = {}

    async def slow(tree: Tree) -> None:
        with tree.subscribe(buffer=5) as events:
            try:
                async for event in events:
                    taken.append(event.sequence)
                    await trio.sleep(3600)
            finally:
                seen["missed"] = events.missed
                seen["last"] = tree.journal.sequence
                taken.extend(event.sequence for event in events.drain())

    async def never_looks(tree: Tree) -> None:
        with tree.subscribe(buffer=1):
            await trio.sleep_forever()

    alone = await life_of()
    watched = await life_of(slow, never_looks)
    assert len(alone) > 30
    assert [each for _, each in watched] == [each for _, each in alone]
    assert [at for at, _ in watched] == pytest.approx([at for at, _ in alone])
    assert taken == [1, *range(seen["last"] - 4, seen["last"] + 1)]
    assert seen["missed"] == seen["last"] - len(taken)


async def test_own_143_a_subscriber_that_raises_or_leaves_harms_nobody(autojump_clock: MockClock) -> None:
    """Its error is its own: the tree, and the other subscribers, do not notice."""
    gone: list[str] = []
    all_seen: list[int] = []

    async def raises(tree: Tree) -> None:
        with pytest.raises(Misbehaved):
            with tree.subscribe() as events:
                async for _ in events:
                    raise Misbehaved
        gone.append("raised")

    async def leaves(tree: Tree) -> None:
        with trio.move_on_after(5), tree.subscribe() as events:
            async for _ in events:
                pass
        gone.append("left")

    async def stays(tree: Tree) -> None:
        with tree.subscribe() as events:
            async for event in events:
                all_seen.append(event.sequence)

    alone = await life_of()
    watched = await life_of(raises, stays, leaves, raises)
    assert [each for _, each in watched] == [each for _, each in alone]
    assert [at for at, _ in watched] == pytest.approx([at for at, _ in alone])
    assert sorted(gone) == ["left", "raised", "raised"]
    assert all_seen == list(range(1, len(all_seen) + 1))
    assert len(all_seen) > len(alone)


async def test_own_143_a_restart_that_a_call_ends_is_told(autojump_clock: MockClock) -> None:
    """Nobody leaves when a child is terminated in its backoff, or in its hold; it is a change all the same."""
    gates = Gates()
    gates.add("redis", shut="refused")
    app = Supervisor(
        "app",
        [
            ChildSpec(id="a", body=naughty(1.0), backoff=Backoff(60.0, 60.0)),
            ChildSpec(id="b", body=steady(), requires=["redis"]),
            ChildSpec(id="c", body=naughty(1.0), backoff=Backoff(60.0, 60.0)),
        ],
    )
    tree = Tree(app, gates=gates)
    async with running(tree):
        await trio.sleep(2)
        with tree.subscribe() as events:
            for name in "ab":
                await app.terminate_child(name)
                await app.terminate_child(name)  # it is stopped already: no news
            assert [(each.kind, each.path) for each in events.drain()] == [
                (Kind.CHILD_CALLED_OFF, "app/a"),
                (Kind.CHILD_CALLED_OFF, "app/b"),
            ]
        assert [view.state for view in tree.snapshot().root.children] == ["ended", "ended", "backoff"]


# 144 -----------------------------------------------------------------------------------------------------------------

UP = ("starting", "running", "stopping", "stuck")
STATES = (*UP, "waiting", "held", "backoff", "ended")


@define(eq=False)
class Node:
    """A child as the events tell of it.

    Attributes:
        task: the state of its task; empty without one.
        goal: whether it is to run at all.
        failing: it crashed, and was not ready since.
        bounced: its group is about to stop it, and will start it again.
        due: when its pause is over.
        ordered: of a supervisor: it was told to stop; it may not have heard of it yet.
        stopping: of a supervisor: it stops its children.
    """

    spec: ChildSpec | None
    declaration: Declaration | None
    children: dict[str, Node] = Factory(dict)
    task: str = ""
    incarnation: int = 0
    goal: bool = True
    failing: bool = False
    bounced: bool = False
    restarts: int = 0
    last_error: ErrorInfo | None = None
    due: float = 0.0
    ordered: bool = False
    stopping: bool = False

    @classmethod
    def of(cls, spec: ChildSpec) -> Node:
        node = cls(spec, spec.body.declaration if isinstance(spec.body, Nested) else None)
        node.begin()
        return node

    def begin(self) -> None:
        """A supervisor that is not up has the children that it was declared with, as they were declared."""
        self.ordered = self.stopping = False
        specs = () if self.declaration is None or self.declaration.is_pool else self.declaration.own_specs
        self.children = {spec.id: Node.of(spec) for spec in specs}

    @property
    def requires(self) -> tuple[str, ...]:
        return () if self.spec is None else self.spec.requires

    @property
    def is_temporary(self) -> bool:
        return self.spec is not None and self.spec.restart is Restart.TEMPORARY

    def walk(self) -> Iterator[Node]:
        yield self
        for child in self.children.values():
            yield from child.walk()


class Replay:
    """The states of a tree, made from its lifecycle events alone and from what was declared.

    Attributes:
        late: what calls bring, by id.
    """

    def __init__(self, tree: Tree) -> None:
        self.root = Node(None, tree.root)
        self.root.begin()
        self.shut = {name for name, gate in tree.gates.items() if not gate.is_open}
        self.late: dict[str, ChildSpec] = {}
        self.events: list[LifecycleEvent] = []
        self.is_ready = self.has_ended = False

    def find(self, path: str) -> tuple[Node, Node]:
        """The child at `path`, and the supervisor above it; one that nobody has heard of was brought by a call."""
        above, node = self.root, self.root
        for name in path.split("/")[1:]:
            above = node
            if name not in above.children:
                pool = above.declaration
                spec = pool.template.renamed(name) if isinstance(pool, Pool) else self.late[name]
                above.children[name] = Node.of(spec)
            node = above.children[name]
        return node, above

    def take(self, event: LifecycleEvent) -> None:
        self.events.append(event)
        match event.kind:
            case Kind.GATE_SHUT:
                self.shut.add(event.path)
            case Kind.GATE_OPENED:
                self.shut.discard(event.path)
                for node in self.root.walk():
                    if event.path in node.requires:
                        node.failing = False
            case Kind.TREE_READY:
                self.is_ready = True
            case Kind.TREE_STOPPING:
                self.root.ordered = True
            case Kind.TREE_STOPPED:
                self.has_ended = self.root.stopping = True
            case Kind.SUPERVISOR_GAVE_UP:
                node, _ = self.find(event.path)
                node.stopping = True
                assert event.cause is not None
                culprit, _ = self.find(self.events[event.cause - 1].path)
                culprit.restarts += event.reason.startswith("more than")
            case _:
                node, above = self.find(event.path)
                self._take_of_child(event, node, above)

    def _take_of_child(self, event: LifecycleEvent, node: Node, above: Node) -> None:
        match event.kind:
            case Kind.CHILD_STARTING:
                node.begin()
                node.task, node.incarnation, node.goal = "starting", event.incarnation, True
            case Kind.CHILD_READY:
                node.task, node.failing = "running", False
            case Kind.CHILD_STOPPING:
                node.task, node.ordered = "stopping", True
                node.goal = node.goal and event.reason != "terminated by a call"
            case Kind.CHILD_STUCK:
                node.task = "stuck"
            case Kind.CHILD_HELD:
                node.goal = True
            case Kind.CHILD_CALLED_OFF:
                node.goal = node.failing = False
            case Kind.CHILD_REMOVED:
                del above.children[event.path.rpartition("/")[2]]
            case Kind.CHILD_BACKOFF:
                self._restart(node, above)
                node.due = (event.time - WALL.epoch).total_seconds() + (event.seconds or 0.0)
            case kind if kind in ENDS:
                self._end(event, node)

    def _end(self, event: LifecycleEvent, node: Node) -> None:
        node.begin()
        node.task = ""
        comes_back = node.bounced and not node.is_temporary
        if event.kind is Kind.CHILD_CRASHED:
            node.last_error = event.error
        if event.kind is not Kind.CHILD_STOPPED:
            node.goal = node.goal and comes_back  # else a pause is told next
        elif not node.goal:
            node.failing = False
        node.bounced = False

    def _restart(self, node: Node, above: Node) -> None:
        node.goal = node.failing = True
        node.restarts += 1
        siblings = list(above.children.values())
        assert above.declaration is not None
        strategy = Strategy.ONE_FOR_ONE if above.declaration.is_pool else above.declaration.plan.strategy
        if strategy is Strategy.ONE_FOR_ONE:
            return
        for each in siblings if strategy is Strategy.ONE_FOR_ALL else siblings[siblings.index(node) :]:
            if each is not node:
                each.goal = each.goal or not each.is_temporary
                each.bounced = each.task != ""

    # What must be seen ----------------------------------------------------------------------------------------------

    def states_of_root(self) -> set[str]:
        if self.has_ended:
            return {"ended"}
        before = {"running"} if self.is_ready else {"waiting", "starting"}
        if self.root.stopping:
            return {"stopping", "ended"}
        return before | {"stopping", "ended"} if self.root.ordered else before

    def states_of(self, node: Node, above: Node, *, has_news: bool) -> set[str]:
        """The states that `node` may be in. More than one only while its supervisor has not yet heard of something:
        of a gate that turned, or of the order to stop."""
        if node.task:
            return {node.task}
        if above.stopping or not node.goal:
            return {"ended"}
        is_held = any(gate in self.shut for gate in node.requires)
        states = {"held" if is_held else "backoff" if node.failing else "waiting"}
        if has_news and node.requires:
            states |= {"held", "backoff", "waiting"}
        return states | {"ended"} if above.ordered else states


class Forgetful(Replay):
    """One that misses all events of a kind."""

    def __init__(self, tree: Tree, kind: LifecycleKind) -> None:
        super().__init__(tree)
        self.kind = kind

    def take(self, event: LifecycleEvent) -> None:
        if event.kind is self.kind:
            self.events.append(event)
        else:
            super().take(event)


class Inspector(trio.abc.Instrument):
    """Takes a snapshot before every step of every task, and holds it to the rules, and to what the events told."""

    def __init__(self, world: World) -> None:
        self.tree = world.tree
        self.replay = Replay(world.tree)
        self.replay.late = world.late
        self.taken = 0
        self.seen: set[str] = set()
        self.failed: BaseException | None = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        with self.tree.subscribe(buffer=1_000_000) as self.events:
            trio.lowlevel.add_instrument(self)
            try:
                yield
            finally:
                trio.lowlevel.remove_instrument(self)
                if self.failed is not None:  # trio drops an instrument that raises, and goes on
                    raise self.failed

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.failed is None:
            try:
                self.look()
            except BaseException as error:  # noqa: BLE001 - raised at the end
                error.add_note(f"before a step of {task.name} at {trio.current_time():g}, after {self.told()}")
                self.failed = error

    def told(self) -> str:
        return "; ".join(f"{event.kind.value} {event.path}" for event in self.replay.events[-8:])

    def look(self) -> None:
        now = trio.current_time()
        for event in self.events.drain():
            self.replay.take(event)
        snapshot = self.tree.snapshot()
        self.taken += 1
        assert snapshot.sequence == len(self.replay.events)
        gates = {gate.name: gate for gate in snapshot.gates}
        assert {name for name, gate in gates.items() if not gate.open} == self.replay.shut
        assert all(bool(gate.cause) is not gate.open for gate in gates.values())
        root = snapshot.root
        assert (root.id, root.path, root.kind, root.incarnation) == ("app", "app", "supervisor", 1)
        assert root.state in self.replay.states_of_root()
        self.check_children(root, self.replay.root, now)
        for view in root.walk():
            self.seen.add(view.state)
            check_alone(view)
            if view.held_by is not None and not gates[view.held_by].open:
                assert view.cause == gates[view.held_by].cause

    def check_children(self, above: ChildView, node: Node, now: float) -> None:
        """The children of one supervisor, against what was told of them."""
        declared = node.declaration
        if declared is None:
            assert above.children == ()
            return
        views = {view.id: view for view in above.children}
        assert len(views) == len(above.children)
        assert all(view.path == f"{above.path}/{view.id}" for view in above.children)
        run = declared.run
        if above.restarts_left is None and not any(view.incarnation for view in above.children):
            # It is not up, or has done nothing yet; or its end is not told yet.
            assert all(not child.task for child in node.children.values())
            self.check_not_up(above, declared)
            return
        # One that was added while its gate settles has not done anything that could be told.
        told = [name for name, view in views.items() if view.incarnation or view.state != "waiting"]
        assert [name for name in views if name in node.children or name in told] == list(node.children)
        has_news = run is not None and bool(run._inbox)
        for name, child in node.children.items():
            view = views[name]
            assert view.state in self.replay.states_of(child, node, has_news=has_news), view.path
            assert view.incarnation == child.incarnation, view.path
            assert (view.restarts, view.last_error) == (child.restarts, child.last_error), view.path
            if view.next_start_in is not None:
                assert now + view.next_start_in >= child.due - 1e-5, view.path  # dates have microseconds
                assert view.next_start_in <= 5.0 + 0.1, view.path  # the longest pause, and some turns
            self.check_children(view, child, now)
        if run is not None and not run.has_ended and isinstance(declared, Supervisor | Pool):
            check_calls(declared, above, has_news=has_news)

    def check_not_up(self, above: ChildView, declared: Declaration) -> None:
        expected = "ended" if above.state in ("stopping", "stuck", "ended") else "waiting"
        specs = () if declared.is_pool else declared.own_specs
        assert [view.id for view in above.children] == [spec.id for spec in specs]
        for view in above.children:
            assert (view.state, view.incarnation, view.restarts, view.last_error) == (expected, 0, 0, None)


def check_alone(view: ChildView) -> None:
    """What must hold within one view."""
    assert view.state in STATES
    is_supervisor = view.kind == "supervisor"
    assert (view.strategy is not None) is is_supervisor
    assert is_supervisor or (view.children == () and view.restarts_left is None)
    if view.state in UP:
        assert view.incarnation >= 1
    else:
        assert (view.restarts_left is None) or view.path == "app"
        assert view.note == ""
    assert view.restarts <= view.incarnation
    assert (view.held_by is not None) is (view.cause is not None) is (view.state == "held")
    assert view.next_start_in is None or (view.state == "backoff" and view.next_start_in > 0)
    if view.state == "backoff":
        assert view.restarts >= 1
        assert view.incarnation >= 1
    for child in view.children:
        if view.state in ("waiting", "held", "backoff"):
            assert child.state in ("waiting", "held"), child.path
        if view.state == "ended":
            assert child.state == "ended", child.path


def check_calls(declared: Supervisor | Pool, view: ChildView, *, has_news: bool) -> None:
    """The supervisor's own list and counts say the same as the snapshot."""
    entries = declared.which_children()
    assert [(entry.id, entry.state) for entry in reversed(entries)] == [
        (child.id, child.state) for child in view.children
    ]
    for entry, child in zip(reversed(entries), view.children, strict=True):
        handle = entry.handle
        if handle is not None:
            assert (handle.path, handle.incarnation) == (child.path, max(child.incarnation, 1))
        if handle is not None and handle.is_alive:
            assert entry.state in UP, child.path
        else:
            assert entry.state not in UP or has_news, child.path  # its end is in the inbox
            # In a pool it has no other name: there the handle of the last one, or of the one to come, stands for it.
            assert handle is None or declared.is_pool, child.path
    counts = declared.count_children()
    assert counts.workers + counts.supervisors == len(view.children)
    assert counts.active <= sum(child.state in UP for child in view.children)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_own_144_a_snapshot_is_consistent_before_every_step(seed: int, autojump_clock: MockClock) -> None:
    """Taken before each single step of each task, through crashes, holds, group restarts, calls and the stop: parents
    and children, states, incarnations, handles, pauses, holds and errors fit together; and the events up to its
    `sequence`, replayed, come to the same states."""
    seed_scheduler(seed)
    world = World(seed)
    inspector = Inspector(world)
    with inspector.watching():
        await world.live()
        inspector.look()
    assert world.tree.snapshot().root.state == "ended"
    assert inspector.taken > 700
    assert inspector.seen == set(STATES)


@pytest.mark.parametrize(
    "kind",
    [
        *(Kind.CHILD_STARTING, Kind.CHILD_READY, Kind.CHILD_CRASHED, Kind.CHILD_BACKOFF, Kind.CHILD_STOPPING),
        *(Kind.CHILD_STOPPED, Kind.CHILD_CALLED_OFF, Kind.CHILD_REMOVED, Kind.CHILD_STUCK, Kind.GATE_SHUT),
        *(Kind.GATE_OPENED, Kind.TREE_READY, Kind.SUPERVISOR_GAVE_UP),
    ],
)
async def test_own_144_the_rules_are_able_to_fail(kind: LifecycleKind, autojump_clock: MockClock) -> None:
    """A replay that misses the events of one kind does not come to what the snapshot shows."""
    world = World(1)
    inspector = Inspector(world)
    inspector.replay = Forgetful(world.tree, kind)
    inspector.replay.late = world.late
    with pytest.raises((AssertionError, KeyError)):
        with inspector.watching():
            await world.live()
    assert inspector.failed is not None


# 145 -----------------------------------------------------------------------------------------------------------------

request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request_id", default="none")


def tells(seen: list[str]) -> Body:
    """Notes the request that it finds in its context, in each of its lives."""

    async def body(child: Child, *args: object) -> None:
        seen.append(request_id.get())
        child.started()
        await trio.sleep_forever()

    return body


async def as_request(call: Callable[[], Awaitable[object]]) -> None:
    """What a web server does: each request has a task, and a context, of its own."""

    async def handler() -> None:
        request_id.set("4711")
        await call()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(handler)


async def test_own_145_plain_trio_hands_the_context_on(autojump_clock: MockClock) -> None:
    """What the tests below are about: a task that is started the plain way has the context of who started it."""
    seen: list[str] = []

    async def started_by_the_handler() -> None:
        seen.append(request_id.get())

    async with trio.open_nursery() as nursery:

        async def call() -> None:
            nursery.start_soon(started_by_the_handler)

        await as_request(call)
    assert seen == ["4711"]


async def test_own_145_a_child_does_not_inherit_the_context_of_the_request_that_started_it(
    autojump_clock: MockClock,
) -> None:
    """Started, restarted, or started in a pool from within a request: the child has the context of its tree."""
    seen: list[str] = []
    pool = Pool("pool", ChildSpec(id="worker", body=tells(seen)))
    app = Supervisor("app", [pool.spec()])

    async def call() -> None:
        await app.start_child(ChildSpec(id="a", body=tells(seen)))
        await app.terminate_child("a")
        await app.restart_child("a")
        await pool.start_child("an argument")

    request_id.set("the tree's")
    async with running(Tree(app)):
        request_id.set("somebody's")
        await as_request(call)
    assert seen == ["the tree's"] * 3


async def test_own_145_nor_of_whoever_brings_about_a_start_in_another_way(autojump_clock: MockClock) -> None:
    """A request that opens a gate, or makes a child crash, or goes over to another plan, leaves no trace in who is
    started for it, however late."""
    seen: list[str] = []
    gates = Gates()
    gate = gates.add("redis", shut="refused")
    break_it = trio.Event()

    async def breaks(child: Child) -> None:
        seen.append(request_id.get())
        child.started()
        await break_it.wait() if child.incarnation == 1 else await trio.sleep_forever()
        raise Misbehaved

    app = Supervisor(
        "app",
        [
            ChildSpec(id="a", body=tells(seen), requires=["redis"]),
            ChildSpec(id="b", body=breaks, backoff=PLAIN),
            ChildSpec(id="c", body=tells(seen), backoff=PLAIN),
        ],
        strategy=Strategy.REST_FOR_ONE,
    )

    async def call() -> None:
        gate.open()
        await trio.sleep(1)
        break_it.set()

    async with running(Tree(app, gates=gates)):
        await as_request(call)
        await trio.sleep(5)
    assert seen == ["none"] * 5
