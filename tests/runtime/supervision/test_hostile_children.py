"""What children and callers do that they should not: none of it may take the tree along, or leave it wedged."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

import pytest
import trio
import trio.testing
from trees import child, look, make, of_kind

from penstock.runtime.mailbox import Mailbox
from penstock.runtime.supervision import (
    AlreadyStarted,
    Backoff,
    Child,
    ChildIsStuck,
    ChildSpec,
    Decay,
    Directive,
    Ending,
    Gates,
    HeldTooLong,
    Intensity,
    InvalidSpec,
    LifecycleKind,
    Plan,
    Pool,
    Restart,
    Rule,
    StartFailed,
    Supervisor,
    Tree,
    UnknownGate,
)
from penstock.runtime.supervision.boundary import judged
from penstock.runtime.supervision.core import Core
from penstock.runtime.supervision.messages import Begin, CancelChild, ChildReady, GateTurned
from penstock.runtime.supervision.policy import rule_for
from penstock.runtime.testing import Diary, flaky, running, steady, stuck

# Errors that cannot be looked at --------------------------------------------------------------------------------------


class Nothing(BaseException):
    """Not even an `Exception`."""


class RaisingClass(Exception):
    @property
    def __class__(self) -> type:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise RuntimeError("no class")


class RaisingText(Exception):
    def __str__(self) -> str:
        raise Nothing


class RaisingContext(Exception):
    @property
    def __context__(self) -> BaseException | None:  # type: ignore[override]
        raise RuntimeError("no context")


class RaisingGroup(ExceptionGroup[Exception]):
    @property
    def exceptions(self) -> tuple[Exception, ...]:
        raise RuntimeError("no errors")


class RaisingAll(Exception):
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)

    def __setattr__(self, name: str, value: object) -> None:
        raise RuntimeError(name)


class Unhashable(type):
    def __hash__(cls) -> int:
        raise ValueError("no hash")


class UnhashableClass(Exception, metaclass=Unhashable):
    pass


class KeepsItsTraceback(Exception):
    def with_traceback(self, trace: TracebackType | None) -> None:  # type: ignore[override]
        pass


def a_group() -> Exception:
    return RaisingGroup("one", [ValueError()])


async def crash_once(error: Callable[[], Exception], **options: object) -> str:
    """What the tree tells of the crash of a child that raises this, beside a sibling that must not notice."""
    diary = Diary()

    async def bad(child: Child) -> None:
        child.started()
        if child.incarnation > 1:
            await trio.sleep_forever()
        await trio.sleep(1)
        raise error()

    async with running(make(child("good", diary.of("good")), child("bad", bad, **options))) as tree:
        await trio.sleep(5)
        view = look(tree, "app/bad")
        assert (view.state, view.incarnation, view.restarts) == ("running", 2, 1)
        assert view.last_error is not None
        assert diary.take() == "+good"
        return str(view.last_error)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (RaisingClass, "RaisingClass"),
        (RaisingText, "RaisingText"),
        (RaisingContext, "RaisingContext"),
        (RaisingAll, "RaisingAll"),
        (a_group, "RaisingGroup"),
    ],
)
async def test_an_error_that_cannot_be_looked_at_is_a_crash_that_names_its_type(
    autojump_clock: trio.testing.MockClock, error: Callable[[], Exception], named: str
) -> None:
    assert named in await crash_once(error)


async def test_an_error_keeps_its_name_whatever_its_with_traceback_returns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    assert (await crash_once(KeepsItsTraceback)).endswith("KeepsItsTraceback")


async def test_a_policy_asks_no_class_for_its_hash(autojump_clock: trio.testing.MockClock) -> None:
    told = await crash_once(UnhashableClass, policy=[Rule(OSError, Directive.STOP)])
    assert "UnhashableClass" in told


def test_an_error_that_a_policy_cannot_look_at_falls_under_no_rule() -> None:
    assert rule_for(a_group(), (Rule(ValueError, Directive.STOP),)) is None


def test_what_ends_the_process_does_so_although_it_cannot_be_shown() -> None:
    class Leaves(SystemExit):
        def __str__(self) -> str:
            raise Nothing

    outcome = judged(Leaves())
    assert outcome.fatal
    assert "Leaves" in str(outcome.error)


async def test_an_error_that_is_passed_over_need_not_be_printable(autojump_clock: trio.testing.MockClock) -> None:
    async def resumes(child: Child) -> None:
        child.started()
        with child.resuming():
            raise RaisingText
        await trio.sleep_forever()

    async with running(make(child("a", resumes, policy=[Rule(RaisingText, Directive.RESUME)]))) as tree:
        await trio.sleep(1)
        view = look(tree, "app/a")
        assert (view.state, view.incarnation) == ("running", 1)
        assert "RaisingText" in str(view.last_error)


async def test_a_nursery_that_is_left_open_ends_the_supervisor_and_its_other_children_leave(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """As documented: trio speaks to the supervisor's own nursery then, past the boundary of the child."""
    diary = Diary()

    async def leaves_it_open(child: Child) -> None:
        child.started()
        await trio.sleep(1)
        await trio.open_nursery().__aenter__()

    tree = make(child("good", diary.of("good")), child("bad", leaves_it_open))
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="Nursery stack corrupted"), flatten_subgroups=True):
        await tree.run()
    assert diary.take() == "+good -good"


# Names ----------------------------------------------------------------------------------------------------------------


async def test_a_name_held_by_a_stranger_costs_restarts_and_nobody_his_turn() -> None:
    """Without a backoff too. In real time, for it is real time that would be lost."""
    crash, stranger = trio.Event(), object()

    async def gives_its_name_away(child: Child) -> None:
        child.started()
        await crash.wait()
        tree.names.release("db", tree.whereis("db"))
        tree.names.register("db", stranger)
        raise OSError

    spec = child("a", gives_its_name_away, name="db", backoff=Backoff(0, 0))
    async with running(make(spec, intensity=Intensity(10**9, 1e6))) as tree:
        crash.set()
        before = time.monotonic()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert time.monotonic() - before < 5
        assert look(tree, "app/a").restarts > 10


async def test_a_name_that_another_supervisor_finds_taken_is_a_failed_start_here(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A body that lets the error of its own call out; only a clash of its own name answers the call."""
    below = Supervisor("below", [child("there")])

    async def asks_for_what_is_there(child: Child) -> None:
        await below.start_child({"id": "there", "body": steady()})

    app = Supervisor("app", [below.spec()])
    async with running(Tree(app)) as tree:
        with pytest.raises(StartFailed) as failed:
            await app.start_child(child("asks", asks_for_what_is_there))
        assert isinstance(failed.value.__cause__, AlreadyStarted)
        tree.names.register("db", stranger := object())
        with pytest.raises(AlreadyStarted) as clash:
            await app.start_child(child("named", name="db"))
        assert clash.value.handle is stranger


# Stops ----------------------------------------------------------------------------------------------------------------


async def test_a_stop_from_within_the_root_s_builder_starts_nobody(autojump_clock: trio.testing.MockClock) -> None:
    diary = Diary()

    def build() -> list[ChildSpec]:
        tree.stop("there is no licence")
        return [child("a", diary.of("a"))]

    tree = Tree(Supervisor("app", build))
    with trio.fail_after(10):
        assert await tree.run() is Ending.STOPPED
    assert diary.take() == ""
    assert [event.kind for event in tree.journal.recent] == [LifecycleKind.TREE_STOPPING, LifecycleKind.TREE_STOPPED]


async def test_a_hook_that_raises_at_the_end_does_not_keep_the_end_from_being_told(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def hook(messages: object, reason: str) -> None:
        raise Nothing

    mailbox: Mailbox[int] = Mailbox("m", 10, on_undelivered=hook)
    mailbox.offer(1)
    tree = make(child("a", mailboxes=[mailbox]))
    told: list[LifecycleKind] = []

    async def hear() -> None:
        with tree.subscribe() as events:
            async for event in events:
                told.append(event.kind)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hear)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.RaisesGroup(Nothing, flatten_subgroups=True, allow_unwrapped=True):
                async with running(tree):
                    pass
    assert told[-1] is LifecycleKind.TREE_STOPPED


async def test_who_is_stuck_from_the_first_moment_is_said_to_be_so_since_then(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The clock may well stand at 0."""
    app = Supervisor("app", [child("a", stuck(60.0), stop_within=5.0)])
    async with running(Tree(app)) as tree:
        with pytest.raises(ChildIsStuck):
            await app.terminate_child("a")
        (told,) = of_kind(tree.journal.recent, LifecycleKind.CHILD_STUCK)
        assert told.reason.startswith("still running 5 s after the cancel")


# Threads --------------------------------------------------------------------------------------------------------------


async def test_a_call_from_a_thread_is_refused_before_it_changes_anything() -> None:
    gates = Gates()
    gate = gates.add("redis", settle=0.0)
    hands: list[Child] = []

    async def hands_itself_out(child: Child) -> None:
        hands.append(child)
        await trio.sleep_forever()

    async def from_a_thread(call: Callable[[], None]) -> None:
        with pytest.raises(RuntimeError, match=r"from_thread\.run_sync"):
            await trio.to_thread.run_sync(call)

    tree = make(child("a", requires=["redis"]), child("b", hands_itself_out, start_within=60), gates=gates)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await trio.testing.wait_all_tasks_blocked()
            await from_a_thread(lambda: gate.shut("away"))
            assert gate.is_open
            gate.shut("away")
            await from_a_thread(gate.open)
            assert not gate.was_opened
            gate.open()
            assert gate.is_open
            await from_a_thread(hands[0].started)
            assert not hands[0].ready
            hands[0].started()
            assert await tree.ready()
            await from_a_thread(lambda: tree.stop("from a thread"))
            assert not of_kind(tree.journal.recent, LifecycleKind.TREE_STOPPING)
            tree.stop("from trio")


def test_before_the_run_a_stop_may_come_from_anywhere() -> None:
    tree = make(child("a"))
    tree.stop("changed our mind")
    assert trio.run(tree.run) is Ending.STOPPED


# Gates ----------------------------------------------------------------------------------------------------------------


async def test_nobody_is_started_whose_gate_was_shut_in_the_same_breath(autojump_clock: trio.testing.MockClock) -> None:
    """Also where what starts him was said before, and where the gate was shut through another one."""
    gates = Gates()
    gates.add("behind", settle=0.0, requires=["first"])
    first = gates.add("first", settle=0.0)
    diary = Diary()

    async def lets_the_next_start_and_shuts(child: Child) -> None:
        child.started()
        first.shut("away")
        await trio.sleep_forever()

    shuts, looks = child("shuts", lets_the_next_start_and_shuts), child("looks", diary.of("looks"), requires=["behind"])
    async with running(make(shuts, looks, gates=gates)) as tree:
        await trio.sleep(1)
        assert diary.take() == ""
        assert look(tree, "app/looks").held_by == "first"


def test_of_gates_that_turn_together_all_are_known_before_anything_is_done() -> None:
    core = Core(Plan([child("a", requires=["first"]), child("b", requires=["behind"])]), lambda: 0.0)
    core.handle(Begin(), 0.0)
    core.handle(ChildReady("a", 1), 0.0)
    core.handle(ChildReady("b", 1), 0.0)
    first = core.handle(GateTurned("first", False, "away", is_last=False), 1.0)
    assert not any(isinstance(action, CancelChild) for action in first)
    last = core.handle(GateTurned("behind", False, "away", root="first"), 1.0)
    assert [action.id for action in last if isinstance(action, CancelChild)] == ["b"]


async def test_a_hold_names_the_gate_that_is_the_cause_by_now(autojump_clock: trio.testing.MockClock) -> None:
    """The first cause goes, and another has come meanwhile: the gate itself never opened between them."""
    gates = Gates()
    first = gates.add("first", settle=0.0)
    second = gates.add("second", settle=0.0, requires=["first"])
    tree = make(child("a", requires=["second"], hold_within=60.0), gates=gates)
    with pytest.raises(HeldTooLong, match="second is down"):
        async with running(tree):
            first.shut("first is down")
            await trio.sleep(10)
            assert (look(tree, "app/a").held_by, look(tree, "app/a").cause) == ("first", "first is down")
            second.shut("second is down")
            first.open()
            await trio.sleep(10)
            assert (look(tree, "app/a").held_by, look(tree, "app/a").cause) == ("second", "second is down")
            await trio.sleep(100)


async def test_gates_in_layers_turn_once_each(autojump_clock: trio.testing.MockClock) -> None:
    """Of the ways through them there are a million; and what is told is never a state in between."""
    gates = Gates()
    for layer in range(20):
        below = [f"a{layer - 1}", f"b{layer - 1}"] if layer else ["root"]
        gates.add(f"a{layer}", requires=below)
        gates.add(f"b{layer}", requires=below)
    root = gates.add("root", settle=3.0)
    assert gates["a19"].settle == 3.0
    told: list[tuple[str, str] | None] = []
    gates["a19"].listen(lambda gate: told.append(gate.root))
    root.shut("away")
    root.shut("still away")
    root.open()
    assert told == [("root", "away"), ("root", "still away"), None]
    assert gates.journal.sequence == 2 * 41


def test_a_long_chain_of_gates_is_no_problem(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    for number in range(1100):  # more than calls may be nested
        gates.add(f"g{number}", requires=[f"g{number - 1}"] if number else [])

    async def main() -> None:
        gates["g0"].shut("away")

    trio.run(main)
    assert gates["g1099"].root == ("g0", "away")


@pytest.mark.parametrize("settle", [math.inf, math.nan, -1, True, "1", None, 10**400])
def test_the_settle_time_of_a_gate_is_a_finite_number(settle: float) -> None:
    with pytest.raises(InvalidSpec, match="settle"):
        Gates().add("redis", settle=settle)


# Trees that are refused, and budgets without an end -------------------------------------------------------------------


def test_the_root_of_a_tree_that_was_refused_may_be_the_root_of_another() -> None:
    app = Supervisor("app", [child("a", requires=["redis"], opens=["redis"])])
    with pytest.raises(UnknownGate):
        Tree(app)
    shut = Gates()
    shut.add("redis", shut="not probed yet")
    with pytest.raises(InvalidSpec, match="can never open"):
        Tree(app, gates=shut)
    gates = Gates()
    gates.add("redis")
    assert Tree(app, gates=gates).snapshot().find("app/a") is not None


async def test_a_budget_may_be_without_limit(autojump_clock: trio.testing.MockClock) -> None:
    endless = Decay(threshold=math.inf)
    inner = Supervisor("inner", [child("a")], intensity=endless)
    tree = make(inner.spec(), intensity=endless)
    (finding,) = [each for each in tree.check() if each.path == "app/inner/a"]
    assert (finding.severity, "for ever" in finding.text) == ("warning", True)
    async with running(tree):
        assert look(tree, "app").restarts_left == sys.maxsize


# A full load ----------------------------------------------------------------------------------------------------------


async def resuming(started: Child) -> None:
    """Something comes of it at each turn of the loop."""
    started.started()
    while True:
        with started.resuming():
            raise ValueError("bad message")
        await trio.lowlevel.checkpoint()


BAD_MESSAGES = [Rule(ValueError, Directive.RESUME)]


async def test_under_a_full_load_who_crashed_is_started_again() -> None:
    tree = make(
        child("crashes", flaky("crash stay"), backoff=Backoff(minimum=0.05, maximum=0.05, jitter=0)),
        child("storm", resuming, policy=BAD_MESSAGES),
    )
    with trio.fail_after(20):
        async with running(tree):
            while look(tree, "app/crashes").restarts == 0 or look(tree, "app/crashes").state != "running":
                await trio.lowlevel.checkpoint()


async def test_under_a_full_load_a_drain_ends() -> None:
    async def works_on(started: Child) -> None:
        started.started()
        await trio.sleep_forever()

    tree = make(child("storm", resuming, policy=BAD_MESSAGES), child("drains", works_on, drain_within=0.1))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            await tree.ready()
            tree.stop("enough")


async def test_under_a_full_load_of_calls_a_start_has_its_limit() -> None:
    async def body(started: Child, kind: str) -> None:
        if kind == "late":
            await trio.sleep_forever()
        started.started()

    pool = Pool("pool", ChildSpec(id="made", body=body, restart=Restart.TEMPORARY, start_within=0.1))

    async def call() -> None:
        while True:
            await pool.start_child("quick")

    with trio.fail_after(20):
        async with running(Tree(pool)), trio.open_nursery() as nursery:
            nursery.start_soon(call)
            with pytest.raises(StartFailed, match=r"was not ready within 0\.1 s"):
                await pool.start_child("late")
            nursery.cancel_scope.cancel()
