"""Starts: what comes up, what says that there is nothing to run, what fails (lines 1 to 15 of the list)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import KEPT, NO_BUDGET, child, counts, fails, handles, idle, ignores, in_turn, states

from penstock.runtime.supervision import (
    AlreadyStarted,
    Body,
    Child,
    ChildSpec,
    Ending,
    Ignore,
    Intensity,
    InvalidSpec,
    LifecycleEvent,
    LifecycleKind,
    NotFound,
    Plan,
    Pool,
    Restart,
    StartFailed,
    StartTimeout,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import AddChild, Begin, RestartChild, StopOrdered, TerminateChild
from penstock.runtime.telemetry.lifecycle import Story
from penstock.runtime.testing import Diary, Misbehaved, naughty, running, slow_leaver, slow_starter


def loud(events: Iterable[LifecycleEvent]) -> list[str]:
    """Those that the log shows as a warning or worse."""
    story = Story()
    return [str(event) for event in events if story.tell(event).level not in ("debug", "info")]


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def returns(child: Child, *args: object) -> None:
    """Returns before it is ready."""
    await trio.lowlevel.checkpoint()


def causes(error: BaseException | None) -> list[BaseException]:
    """The error, its cause, the cause of that, …"""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__
    return found


# 1: an empty one -----------------------------------------------------------------------------------------------------


async def test_otp_001_an_empty_tree_is_ready_at_once_and_leaves_without_error(autojump_clock: MockClock) -> None:
    """A tree of no children is up at once, runs on until it is told to stop, and then ends without error."""
    tree = Tree(Supervisor("app"))
    endings = []

    async def run() -> None:
        endings.append(await tree.run())

    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            assert await tree.ready()
            assert trio.current_time() == 0
            await trio.sleep(1000)
            assert endings == []
            tree.stop("enough")
        assert trio.current_time() == 1000
        kinds = [event.kind for event in events.drain()]
    assert endings == [Ending.STOPPED]
    assert kinds == [LifecycleKind.TREE_READY, LifecycleKind.TREE_STOPPING, LifecycleKind.TREE_STOPPED]


@pytest.mark.parametrize("is_pool", [False, True])
@pytest.mark.parametrize("strategy", Strategy)
def test_core_001_an_empty_supervisor_settles_with_its_first_event(strategy: Strategy, is_pool: bool) -> None:
    """No children: up with `Begin`, done with the order to stop, and never due in between."""
    play = Play([], strategy=strategy, is_pool=is_pool)
    assert not play.settled
    play.tell(Begin())
    assert play.settled
    assert play.core.next_deadline() == float("inf")
    play.tell(StopOrdered("enough"))
    assert play.finished is not None
    assert play.finished.error is None


# 2: a builder that says "ignore" -------------------------------------------------------------------------------------


async def test_otp_002_a_builder_that_ignores_its_start_ends_the_tree_as_ignored(autojump_clock: MockClock) -> None:
    """A root whose builder says ignore: the caller of `run` gets IGNORED, nothing ran, nobody is alarmed."""

    def builder() -> Plan:
        raise Ignore("no mill on this machine")

    before = tasks()
    tree = Tree(Supervisor("app", builder))
    with tree.subscribe() as events:
        assert await tree.run() is Ending.IGNORED
        seen = list(events.drain())
    assert [event.kind for event in seen] == [LifecycleKind.TREE_STOPPED]
    assert "no mill on this machine" in seen[0].reason
    assert loud(seen) == []
    assert not await tree.ready()
    assert tasks() == before


@pytest.mark.parametrize("by_call", [False, True])
async def test_otp_002_a_supervisor_below_that_ignores_its_start_is_none(
    by_call: bool, autojump_clock: MockClock
) -> None:
    """A supervisor in the tree whose builder says ignore: the start gives None, and the others run."""

    def builder() -> Plan:
        raise Ignore

    inner = Supervisor("inner", builder).spec()
    root = Supervisor("app", [child("a"), *([] if by_call else [inner]), child("z")])
    tree = Tree(root)
    with tree.subscribe() as events:
        async with running(tree):
            if by_call:
                assert await root.start_child(inner) is None
            assert states(root) == dict.fromkeys("az", "running") | {"inner": "ended"}
            assert root.which_child("inner").handle is None
        seen = list(events.drain())
    assert [event.path for event in seen if event.kind is LifecycleKind.CHILD_IGNORED] == ["app/inner"]
    assert loud(seen) == []


# 3 to 7: a child that says "ignore" ----------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_003_a_child_that_ignores_its_start_is_kept_as_stopped(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A permanent child added to a running tree says ignore: no task, spec kept as stopped, the sibling runs."""
    root = Supervisor("app", intensity=NO_BUDGET)
    tree = Tree(root)
    with tree.subscribe() as events:
        async with running(tree):
            sibling = await root.start_child(child("a"))
            ignoring = child("b", in_turn(ignores, ignores, idle), restart=restart)
            assert await root.start_child(ignoring) is None
            assert states(root) == {"a": "running", "b": "ended"}  # OTP's "stopped" is our "ended"
            assert handles(root) == {"a": sibling, "b": None}
            assert counts(root) == (2, 1, 0, 2)
            assert root.get_childspec("b") == ignoring
            await trio.sleep(100)  # nobody tries again
            assert counts(root) == (2, 1, 0, 2)
            assert await root.restart_child("b") is None
            assert states(root)["b"] == "ended"
            assert await root.restart_child("b") is not None
            assert states(root) == {"a": "running", "b": "running"}
            assert handles(root)["a"] is sibling
        assert loud(events.drain()) == []


@pytest.mark.parametrize("strategy", Strategy)
async def test_otp_004_a_static_temporary_child_that_ignores_its_start_is_gone(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """A static temporary child says ignore: when the tree is up its spec is gone, and its siblings run."""
    diary = Diary()
    ignoring = child("b", diary.of("b", ignores), restart=Restart.TEMPORARY)
    root = Supervisor("app", [child("a", diary.of("a")), ignoring, child("c", diary.of("c"))], strategy=strategy)
    async with running(Tree(root)):
        assert diary.take() == "+a +b !b +c"
        assert states(root) == {"a": "running", "c": "running"}
        assert counts(root) == (2, 2, 0, 2)
        with pytest.raises(NotFound):
            root.get_childspec("b")
        with pytest.raises(NotFound):
            await root.restart_child("b")


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_004_another_static_child_that_ignores_its_start_is_kept(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """It is the restart type that decides: a permanent or transient one is there, and stopped."""
    root = Supervisor("app", [child("a"), child("b", ignores, restart=restart), child("c")])
    async with running(Tree(root)):
        assert states(root) == {"a": "running", "b": "ended", "c": "running"}


async def test_otp_005_a_temporary_child_that_ignores_its_start_leaves_no_spec(autojump_clock: MockClock) -> None:
    """A temporary child added at run time says ignore: no task, no error, and no spec is kept."""
    root = Supervisor("app", [child("a")])
    async with running(Tree(root)):
        assert await root.start_child(child("b", ignores, restart=Restart.TEMPORARY)) is None
        assert states(root) == {"a": "running"}
        assert counts(root) == (1, 1, 0, 1)
        with pytest.raises(NotFound):
            root.which_child("b")
        assert await root.start_child(child("b", idle, restart=Restart.TEMPORARY)) is not None
        assert states(root) == {"a": "running", "b": "running"}


async def _pool_of_which_the_second_ignores(restart: Restart) -> None:
    diary = Diary()
    pool = Pool("pool", child("kind", in_turn(diary.of("x", idle), ignores, diary.of("z", idle)), restart=restart))
    tree = Tree(pool)
    endings = []

    async def run() -> None:
        endings.append(await tree.run())

    with tree.subscribe() as events:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await tree.ready()
            first = await pool.start_child("x")
            assert await pool.start_child("y") is None
            assert list(handles(pool).values()) == [first]
            assert counts(pool) == (1, 1, 0, 1)
            third = await pool.start_child("z")
            assert third is not None
            assert list(handles(pool).values()) == [first, third]
            await trio.sleep(100)  # and nobody tries again
            assert counts(pool) == (1, 2, 0, 2)
            assert diary.take() == "+x +z"
            tree.stop("enough")
        seen = list(events.drain())
    assert endings == [Ending.STOPPED]
    assert sorted(diary.take().split()) == ["-x", "-z"]  # all of a pool leave at once
    assert [event.path for event in seen if event.kind is LifecycleKind.CHILD_IGNORED] == ["pool/2"]
    assert loud(seen) == []


async def test_otp_006_a_pool_of_temporary_children_keeps_nothing_of_one_that_ignores(
    autojump_clock: MockClock,
) -> None:
    """One start of a pool of temporary children says ignore: nothing is kept of it, and the next start works."""
    await _pool_of_which_the_second_ignores(Restart.TEMPORARY)


@pytest.mark.parametrize("restart", KEPT)
async def test_otp_007_a_pool_of_permanent_children_keeps_nothing_of_one_that_ignores(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """One start of a pool of permanent children says ignore: nothing is kept of it, and a later stop is clean."""
    await _pool_of_which_the_second_ignores(restart)


@pytest.mark.parametrize(
    ("is_pool", "restart", "is_kept"),
    [
        (False, Restart.PERMANENT, True),
        (False, Restart.TRANSIENT, True),
        (False, Restart.TEMPORARY, False),
        (True, Restart.PERMANENT, False),
        (True, Restart.TRANSIENT, False),
        (True, Restart.TEMPORARY, False),
    ],
)
def test_core_003_to_007_whether_one_that_ignores_its_start_is_kept(
    is_pool: bool, restart: Restart, is_kept: bool
) -> None:
    """Ignored by a call's child: answered with None, once; kept unless it is temporary or of a pool."""
    play = Play([], is_pool=is_pool, intensity=NO_BUDGET)
    play.tell(Begin())
    play.slow_starters = {"a"}
    play.tell(AddChild("ticket", spec("a", restart=restart)))
    assert play.answers == {}
    play.end("a", Ignore("nothing to run"))
    assert play.answers == {"ticket": None}
    assert ("a" in play.core.children) is is_kept
    assert play.kinds("a") == ["child_starting", "child_ignored", *([] if is_kept else ["child_removed"])]
    assert play.finished is None
    play.advance(1000.0)
    assert play.take() == "+a"


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize(
    ("restart", "is_kept"), [(Restart.PERMANENT, True), (Restart.TRANSIENT, True), (Restart.TEMPORARY, False)]
)
def test_core_004_a_static_one_that_ignores_its_start_is_a_step_done(
    restart: Restart, is_kept: bool, strategy: Strategy
) -> None:
    """The first start goes on behind it, whatever the strategy."""
    play = Play([spec("a"), spec("b", restart=restart), spec("c")], strategy=strategy)
    play.slow_starters = {"b"}
    play.tell(Begin())
    assert play.take() == "+a +b"
    play.end("b", Ignore())
    assert play.take() == "+c"
    assert play.settled
    assert ("b" in play.core.children) is is_kept


# 8, 9: builders that fail --------------------------------------------------------------------------------------------

NONSENSE: dict[str, tuple[Any, str]] = {
    "a number": (42, "42"),
    "nothing": (None, "None"),
    "a text": ("one_for_one", "'one_for_one'"),
    "an error": (ValueError("not raised, but returned"), "not raised, but returned"),
    "a mapping": ({"id": "a", "body": idle}, "{'body': "),
    "a number among the children": ([child("a"), 42], "not 42"),
    "a text among the children": (["a"], "not 'a'"),
    "a pair": ((Strategy.ONE_FOR_ONE, [child("a")]), "ONE_FOR_ONE"),
}
"""What is no plan, and what the error must show of it."""


@pytest.mark.parametrize("what", NONSENSE)
async def test_otp_008_a_builder_that_makes_nonsense_is_named_with_the_value(
    what: str, autojump_clock: MockClock
) -> None:
    """A builder returns what is no plan: the start fails with an error that names it and the value; no task is left."""
    value, shown = NONSENSE[what]

    def water_wheel() -> Any:
        return value

    before = tasks()
    tree = Tree(Supervisor("app", water_wheel))
    with pytest.raises(InvalidSpec, match=r"the builder .*water_wheel of supervisor 'app' made no plan") as caught:
        await tree.run()
    assert shown in str(caught.value)
    assert tasks() == before
    assert not await tree.ready()


@pytest.mark.parametrize("by_call", [False, True])
async def test_otp_008_nonsense_below_fails_the_start_of_that_supervisor(
    by_call: bool, autojump_clock: MockClock
) -> None:
    """Further down: a static one fails the whole start, in order; one that a call brought fails the call alone."""
    diary = Diary()

    def water_wheel() -> Any:
        return 42

    inner = Supervisor("inner", water_wheel).spec()
    root = Supervisor("app", [child("a", diary.of("a")), *([] if by_call else [inner])])
    tree, before = Tree(root), tasks()
    if by_call:
        async with running(tree):
            with pytest.raises(StartFailed) as caught:
                await root.start_child(inner)
            assert states(root) == {"a": "running"}
    else:
        with pytest.raises(StartFailed) as caught:
            await tree.run()
    assert [type(each) for each in causes(caught.value)][:2] == [StartFailed, InvalidSpec]
    assert "water_wheel of supervisor 'inner'" in str(caught.value)
    assert "42" in str(caught.value)
    assert diary.take() == "+a -a"
    assert tasks() == before


async def test_otp_009_what_a_builder_raises_reaches_the_caller(autojump_clock: MockClock) -> None:
    """A builder raises: that very exception comes out of `run`, with its traceback, and no task is left."""
    broken = LookupError("no such table")

    def builder() -> Plan:
        raise broken

    before = tasks()
    tree = Tree(Supervisor("app", builder))
    with pytest.raises(LookupError) as caught:
        await tree.run()
    assert caught.value is broken
    assert caught.traceback[-1].name == "builder"
    assert tasks() == before
    assert not await tree.ready()


@pytest.mark.parametrize("by_call", [False, True])
async def test_otp_009_what_a_builder_below_raises_is_the_cause(by_call: bool, autojump_clock: MockClock) -> None:
    """Further down that very exception is the cause of the failed start."""
    broken = LookupError("no such table")

    def builder() -> Plan:
        raise broken

    inner = Supervisor("inner", builder).spec()
    root = Supervisor("app", [] if by_call else [inner])
    tree, before = Tree(root), tasks()
    if by_call:
        async with running(tree):
            with pytest.raises(StartFailed) as caught:
                await root.start_child(inner)
            assert states(root) == {}
    else:
        with pytest.raises(StartFailed) as caught:
            await tree.run()
    assert caught.value.__cause__ is broken
    assert tasks() == before


# 10 to 12: starts that fail for a caller -----------------------------------------------------------------------------

# In OTP a start fails by an exception, or by returning an error. A body that is no use says so by an exception, by
# returning before it is ready (which only a permanent child may not), or by being late.
FAILING: dict[str, tuple[Body, type[BaseException] | None, float]] = {
    "raises": (fails, Misbehaved, 0.0),
    "returns": (returns, None, 0.0),
    "is late": (slow_starter(100.0), StartTimeout, 3.0),
}


def _failing(how: str, restart: Restart = Restart.PERMANENT) -> ChildSpec:
    return child("b", FAILING[how][0], restart=restart, start_within=3.0)


@pytest.mark.parametrize(
    ("how", "restart"),
    [(how, restart) for how in FAILING for restart in Restart if how != "returns" or restart is Restart.PERMANENT],
)
async def test_otp_010_a_failing_start_is_the_caller_s_and_its_spec_is_discarded(
    how: str, restart: Restart, autojump_clock: MockClock
) -> None:
    """A child is added and its start fails: the caller gets the error with the spec, which goes; the tree stays."""
    cause, seconds = FAILING[how][1:]
    root = Supervisor("app", [child("a")], intensity=NO_BUDGET)
    failing = _failing(how, restart)
    async with running(Tree(root)) as tree:
        before = handles(root)
        with pytest.raises(StartFailed, match=r"^b could not be started") as caught:
            await root.start_child(failing)
        assert trio.current_time() == seconds
        assert caught.value.spec is not None
        assert (caught.value.spec.id, caught.value.spec.restart) == ("b", restart)
        if restart is not Restart.TEMPORARY:  # whose body is let go of with its start
            assert caught.value.spec == failing
        assert type(caught.value.__cause__) is (cause or type(None))
        with pytest.raises(NotFound):
            root.which_child("b")
        assert handles(root) == before
        await trio.sleep(100)
        assert states(root) == {"a": "running"}
        assert tree.snapshot().root.state == "running"
        assert await root.start_child(child("b")) is not None


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_otp_010_who_may_return_has_not_failed(restart: Restart, autojump_clock: MockClock) -> None:
    """A transient or temporary child that returns before it is ready is a step that is done: None, and no error."""
    root = Supervisor("app", [child("a")], intensity=NO_BUDGET)
    async with running(Tree(root)):
        assert await root.start_child(_failing("returns", restart)) is None
        kept = {"b": "ended"} if restart is Restart.TRANSIENT else {}
        assert states(root) == {"a": "running"} | kept


@pytest.mark.parametrize("how", FAILING)
async def test_otp_011_a_restart_by_call_that_fails_keeps_the_spec(how: str, autojump_clock: MockClock) -> None:
    """A stopped child is restarted by call, and its start fails: the error is returned, the spec stays, stopped."""
    body, cause, seconds = FAILING[how]
    stopped = child("b", in_turn(idle, body, body, idle), start_within=3.0)
    root = Supervisor("app", [child("a"), stopped], intensity=NO_BUDGET)
    async with running(Tree(root)):
        sibling = handles(root)["a"]
        await root.terminate_child("b")
        for attempt in (1, 2):
            with pytest.raises(StartFailed, match=r"^b could not be started") as caught:
                await root.restart_child("b")
            assert trio.current_time() == attempt * seconds
            assert caught.value.spec == stopped
            assert type(caught.value.__cause__) is (cause or type(None))
            assert states(root) == {"a": "running", "b": "ended"}
        await trio.sleep(100)  # nobody else tries
        assert states(root) == {"a": "running", "b": "ended"}
        assert root.get_childspec("b") == stopped
        handle = await root.restart_child("b")
        assert handle is not None
        assert handle.incarnation == 4
        assert handles(root) == {"a": sibling, "b": handle}


@pytest.mark.parametrize("restart", Restart)
async def test_otp_012_a_failing_start_in_a_pool_leaves_nothing(restart: Restart, autojump_clock: MockClock) -> None:
    """A start of a pool fails: the caller gets that very error, as the cause; no child is listed; the pool goes on."""
    broken = Misbehaved("no such mill")

    async def breaks(child: Child, *args: object) -> None:
        raise broken

    pool = Pool("pool", child("kind", in_turn(breaks, idle), restart=restart), intensity=NO_BUDGET)
    async with running(Tree(pool)):
        with pytest.raises(StartFailed, match="no such mill") as caught:
            await pool.start_child("x")
        assert caught.value.__cause__ is broken
        assert pool.which_children() == []
        assert counts(pool) == (1, 0, 0, 0)
        await trio.sleep(100)
        assert counts(pool) == (1, 0, 0, 0)
        assert await pool.start_child("x") is not None
        assert counts(pool) == (1, 1, 0, 1)


@pytest.mark.parametrize("is_pool", [False, True])
@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("error", [None, Misbehaved("broken")])
def test_core_010_to_012_what_a_start_that_comes_to_nothing_is_answered_with(
    error: Misbehaved | None, restart: Restart, is_pool: bool
) -> None:
    """New child, no start: refused and dropped, at no cost; but a step that is done is answered with None."""
    play = Play([], is_pool=is_pool, intensity=NO_BUDGET)
    play.tell(Begin())
    play.slow_starters = {"a"}
    play.tell(AddChild("ticket", spec("a", restart=restart)))
    play.end("a", error)
    is_done = error is None and restart is not Restart.PERMANENT
    if is_done:
        assert play.answers == {"ticket": None}
    else:
        assert isinstance(play.answers["ticket"], StartFailed)
        assert play.answers["ticket"].__cause__ is error
    assert ("a" in play.core.children) is (is_done and restart is Restart.TRANSIENT and not is_pool)
    assert play.finished is None
    play.advance(1000.0)
    assert play.take() == "+a"


def test_core_011_a_restart_by_call_that_fails_costs_nothing() -> None:
    """Known child, no start: refused, kept, and stopped."""
    play = begun("a", intensity=NO_BUDGET)
    play.tell(TerminateChild("stop", "a"))
    play.slow_starters = {"a"}
    for attempt in range(5):
        play.tell(RestartChild(attempt, "a"))
        play.crash("a")
        assert isinstance(play.answers[attempt], StartFailed)
        assert "a" in play.core.children
        play.advance(1000.0)
    assert play.take() == "-a +a +a +a +a +a"
    assert play.finished is None


# 13, 14: the whole start fails ---------------------------------------------------------------------------------------


async def test_otp_013_a_leaf_that_cannot_start_fails_the_whole_start_and_is_named(autojump_clock: MockClock) -> None:
    """A leaf deep down fails in its start: the whole start fails, naming the leaf, its traceback kept, all in order."""
    diary = Diary()

    async def bind(child: Child) -> None:
        await trio.lowlevel.checkpoint()
        raise OSError("port 47170 is in use")

    leaf_up = [child("ok", diary.of("ok")), child("leaf", diary.of("leaf", bind)), child("never", diary.of("never"))]
    inmost = Supervisor("inmost", leaf_up, strategy=Strategy.ONE_FOR_ALL, intensity=Intensity(100))
    middle = Supervisor("middle", [child("m", diary.of("m")), inmost.spec()], intensity=Intensity(100))
    root = Supervisor("app", [child("a", diary.of("a")), middle.spec(), child("z", diary.of("z"))])
    tree, before = Tree(root), tasks()
    with pytest.raises(StartFailed) as caught:
        await tree.run()
    assert trio.current_time() == 0  # a failing first start is not tried again, at any level
    for name in ("middle", "inmost", "leaf", "port 47170 is in use"):
        assert name in str(caught.value)
    chain = causes(caught.value)
    assert [type(each) for each in chain] == [StartFailed, StartFailed, StartFailed, OSError]
    frames = []
    trace = chain[-1].__traceback__
    while trace is not None:
        frames.append(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    assert frames[-1] == "bind"
    assert diary.take() == "+a +m +ok +leaf !leaf -ok -m -a"
    assert tasks() == before
    assert not await tree.ready()


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("how", FAILING)
@pytest.mark.parametrize("failing", [1, 2, 3, 4, 5])
async def test_otp_014_those_before_the_one_that_fails_are_stopped_in_reverse_order(
    failing: int, how: str, strategy: Strategy, autojump_clock: MockClock
) -> None:
    """Static child N fails in its start: N-1 to 1 are stopped, in that order, before the error is raised."""
    body, cause, seconds = FAILING[how]
    diary = Diary()
    bodies = [diary.of(str(number), slow_leaver(1.0)) for number in range(1, failing)]
    bodies += [diary.of(str(failing), body), *(diary.of(str(number)) for number in range(failing + 1, 6))]
    specs = [child(str(number), each, start_within=3.0) for number, each in enumerate(bodies, start=1)]
    with pytest.raises(StartFailed, match=rf"^{failing} could not be started") as caught:
        await Tree(Supervisor("app", specs, strategy=strategy, intensity=Intensity(100))).run()
    assert trio.current_time() == seconds + (failing - 1)  # each of them took its second, alone
    assert type(caught.value.__cause__) is (cause or type(None))
    sign = "!" if how == "raises" else "-"
    came = [f"+{number}" for number in range(1, failing + 1)]
    went = [f"-{number}" for number in range(failing - 1, 0, -1)]
    assert diary.lines == [*came, f"{sign}{failing}", *went]


@pytest.mark.parametrize("strategy", Strategy)
@pytest.mark.parametrize("restart", Restart)
@pytest.mark.parametrize("failing", range(5))
def test_core_014_a_first_start_that_fails_is_the_end(failing: int, restart: Restart, strategy: Strategy) -> None:
    """Whatever the type and the strategy: not tried again, those before it stopped, then the error."""
    names = "abcde"
    play = Play([spec(name, restart=restart) for name in names], strategy=strategy)
    play.slow_starters = {names[failing]}
    play.tell(Begin())
    assert play.take() == " ".join(f"+{name}" for name in names[: failing + 1])
    play.deaf = set(names)  # so that each one's stop is seen by itself
    play.crash(names[failing])
    for name in reversed(names[:failing]):
        assert play.finished is None
        assert play.take() == f"-{name}"
        play.end(name)
    assert play.take() == ""
    assert play.finished is not None
    assert isinstance(play.finished.error, StartFailed)
    assert isinstance(play.finished.error.__cause__, RuntimeError)
    assert not play.settled


# 15: names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", Restart)
async def test_otp_015_a_name_that_a_stranger_holds_is_already_started(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A child is added under a name that a stranger holds: already-started, with the holder; the tree is unharmed."""
    diary = Diary()
    root = Supervisor("app", [child("a")], intensity=NO_BUDGET)
    stranger = object()
    async with running(Tree(root)) as tree:
        before = handles(root)
        tree.names.register("mill", stranger)
        named = child("b", diary.of("b"), name="mill", restart=restart)
        with pytest.raises(AlreadyStarted, match="'mill'") as caught:
            await root.start_child(named)
        assert caught.value.handle is stranger
        assert handles(root) == before
        assert tree.names.whereis("mill") is stranger
        assert tree.whereis("mill") is None  # the holder is no child
        assert diary.take() == ""
        await trio.sleep(100)
        assert states(root) == {"a": "running"}
        tree.names.release("mill", stranger)
        handle = await root.start_child(named)
        assert tree.whereis("mill") is handle
        assert diary.take() == "+b"


async def test_otp_015_a_name_that_another_child_holds_is_already_started(autojump_clock: MockClock) -> None:
    """The holder may be a child, elsewhere in the tree: its handle is what the caller gets."""
    inner = Supervisor("inner")
    root = Supervisor("app", [child("a", name="mill"), inner.spec()])
    async with running(Tree(root)) as tree:
        with pytest.raises(AlreadyStarted) as caught:
            await inner.start_child(child("b", name="mill"))
        assert caught.value.handle is handles(root)["a"]
        assert states(inner) == {}
        assert tree.whereis("mill") is handles(root)["a"]


async def test_otp_015_a_name_that_was_taken_while_its_child_was_stopped(autojump_clock: MockClock) -> None:
    """A restart by call finds the name taken: already-started with the holder; the spec stays, stopped."""
    root = Supervisor("app", [child("a", name="mill")], intensity=NO_BUDGET)
    stranger = object()
    async with running(Tree(root)) as tree:
        await root.terminate_child("a")
        tree.names.register("mill", stranger)
        with pytest.raises(AlreadyStarted) as caught:
            await root.restart_child("a")
        assert caught.value.handle is stranger
        assert states(root) == {"a": "ended"}
        assert tree.names.whereis("mill") is stranger
        tree.names.release("mill", stranger)
        assert await root.restart_child("a") is not None


async def test_otp_015_in_a_pool_too(autojump_clock: MockClock) -> None:
    """A pool whose children have a name has one at a time: the second start gets the handle of the first."""
    pool = Pool("pool", child("kind", naughty(10.0), name="mill", restart=Restart.TEMPORARY))
    async with running(Tree(pool)):
        first = await pool.start_child()
        with pytest.raises(AlreadyStarted) as caught:
            await pool.start_child()
        assert caught.value.handle is first
        assert list(handles(pool).values()) == [first]
        await trio.sleep(11)
        assert await pool.start_child() is not None


async def test_otp_015_at_the_first_start_it_fails_the_start(autojump_clock: MockClock) -> None:
    """A static child whose name a stranger holds cannot be started: the start fails, and the holder is in the cause."""
    tree = Tree(Supervisor("app", [child("a", name="mill")]))
    stranger = object()
    tree.names.register("mill", stranger)
    with pytest.raises(StartFailed) as caught:
        await tree.run()
    assert isinstance(caught.value.__cause__, AlreadyStarted)
    assert caught.value.__cause__.handle is stranger
