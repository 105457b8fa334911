"""Policies by exception type: what an error of a child leads to (lines 121 to 123 of the list)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import permutations, product
from typing import Any

import pytest
import trio
from attrs import frozen
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import PLAIN, look

from penstock.runtime import Mailbox
from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    Directive,
    Escalated,
    InvalidSpec,
    LifecycleEvent,
    LifecycleKind,
    NotRunning,
    Restart,
    Rule,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import Begin
from penstock.runtime.supervision.policy import directive_of, rule_for
from penstock.runtime.testing import Diary, flaky, naughty, running, steady

POLICY = (
    Rule(LookupError, Directive.STOP),
    Rule(KeyError, Directive.RESTART),
    Rule(OSError, Directive.ESCALATE),
    Rule(ConnectionError, Directive.RESUME),
)

NEAREST = [
    (LookupError, Directive.STOP),
    (IndexError, Directive.STOP),
    (KeyError, Directive.RESTART),
    (OSError, Directive.ESCALATE),
    (FileNotFoundError, Directive.ESCALATE),
    (ConnectionError, Directive.RESUME),
    (ConnectionResetError, Directive.RESUME),
    (ValueError, Directive.RESTART),
    (Exception, Directive.RESTART),
]
"""What each error must lead to under `POLICY`; the last two are listed nowhere."""


def kinds(events: Iterable[LifecycleEvent], path: str) -> list[str]:
    return [event.kind.value for event in events if event.path == path]


# 121 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "directive"), NEAREST)
def test_core_121_the_rule_of_the_nearest_type_wins(error: type[Exception], directive: Directive) -> None:
    """The order of the rules does not matter; an unlisted error takes the default, which is RESTART."""
    for policy in permutations(POLICY):
        assert directive_of(rule_for(error(), policy)) is directive


def test_core_121_the_nearest_type_is_that_of_the_method_resolution_order() -> None:
    """Of several bases the one that Python asks first."""

    class Both(ConnectionError, LookupError):
        pass

    class BothTurned(LookupError, ConnectionError):
        pass

    assert directive_of(rule_for(Both(), POLICY)) is Directive.RESUME
    assert directive_of(rule_for(BothTurned(), POLICY)) is Directive.STOP


def test_core_121_a_rule_for_exception_is_the_default_of_its_child() -> None:
    """`Rule(Exception, …)` says what happens with all that no other rule names."""
    policy = (*POLICY, Rule(Exception, Directive.ESCALATE))
    assert directive_of(rule_for(ValueError(), policy)) is Directive.ESCALATE
    assert directive_of(rule_for(KeyError(), policy)) is Directive.RESTART


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BaseException, trio.Cancelled, "OSError", None])
def test_own_121_no_policy_is_made_for_what_is_no_exception(error: Any) -> None:
    """A rule takes a class of exceptions; what ends the process, or is control flow, cannot be ruled."""
    with pytest.raises(InvalidSpec, match="must be a class of exceptions, not"):
        Rule(error, Directive.RESTART)


async def test_own_121_restart(autojump_clock: MockClock) -> None:
    """RESTART, listed or not: the child is started again after its pause."""
    for error in (KeyError, ValueError):
        begun_at = trio.current_time()
        child = ChildSpec(id="a", body=flaky("crash stay", 1.0, error), backoff=PLAIN, policy=POLICY)
        tree = Tree(Supervisor("app", [child]))
        async with running(tree):
            await trio.sleep_until(begun_at + 1.5)
            assert look(tree, "app/a").state == "backoff"
            await trio.sleep_until(begun_at + 2.5)
            view = look(tree, "app/a")
            assert (view.state, view.incarnation, view.restarts) == ("running", 2, 1)


@pytest.mark.parametrize("restart", list(Restart))
async def test_own_121_stop(restart: Restart, autojump_clock: MockClock) -> None:
    """STOP: the child is over, also a permanent one; its sibling lives, no budget is used, a call may start it again.
    (A temporary one is gone, as after any crash.)"""
    child = ChildSpec(id="a", body=flaky("crash stay", 1.0, IndexError), restart=restart, policy=POLICY)
    app = Supervisor("app", [child, ChildSpec(id="b", body=steady())], strategy=Strategy.ONE_FOR_ALL)
    tree = Tree(app)
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(100)
            told = kinds(events.drain(), "app/a")
            assert look(tree, "app/b").incarnation == 1
            left = look(tree, "app").restarts_left
            if restart is Restart.TEMPORARY:
                assert told == ["child_starting", "child_ready", "child_crashed", "child_removed"]
                assert tree.snapshot().find("app/a") is None
            else:
                assert told == ["child_starting", "child_ready", "child_crashed"]
                view = look(tree, "app/a")
                assert (view.state, view.restarts) == ("ended", 0)
                assert view.last_error is not None
                assert view.last_error.type == "IndexError"
                handle = await app.restart_child("a")
                assert handle is not None
                assert look(tree, "app/a").state == "running"
            assert left == 5


async def test_own_121_escalate(autojump_clock: MockClock) -> None:
    """ESCALATE: the supervisor stops all its children in order and fails with the error as its cause, whatever budget
    it has left."""
    diary = Diary()
    specs = [
        ChildSpec(id="a", body=diary.of("a")),
        ChildSpec(id="b", body=diary.of("b", naughty(1.0, FileNotFoundError)), policy=POLICY),
        ChildSpec(id="c", body=diary.of("c")),
    ]
    tree = Tree(Supervisor("app", specs))
    with pytest.raises(Escalated, match="b: FileNotFoundError") as caught:
        await tree.run()
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert trio.current_time() == 1
    assert diary.take() == "+a +b +c !b -c -a"


async def test_own_121_escalated_is_a_crash_one_floor_up(autojump_clock: MockClock) -> None:
    """The supervisor above takes it as a crash of its child, and has a policy of its own for it."""
    body = flaky("crash stay", 1.0, OSError)
    inner = Supervisor("inner", [ChildSpec(id="a", body=body, policy=POLICY)])
    rule = Rule(Escalated, Directive.RESTART, backoff=Backoff(7.0, 7.0, jitter=0.0))
    tree = Tree(Supervisor("app", [inner.spec(policy=[rule])]))
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(20)
            view = look(tree, "app/inner")
            assert (view.state, view.restarts) == ("running", 1)
            assert look(tree, "app/inner/a").state == "running"
        told = list(events.drain())
    crash = next(event for event in told if event.path == "app/inner" and event.kind is LifecycleKind.CHILD_CRASHED)
    assert crash.error is not None
    assert crash.error.type.endswith("Escalated")
    assert [event.seconds for event in told if event.kind is LifecycleKind.CHILD_BACKOFF] == [7]


@frozen
class Job:
    number: int
    error: Callable[[], BaseException] | None = None


def worker(box: Mailbox[Job], done: list[tuple[int, int]], *, resuming: bool = True) -> Body:
    """Notes the number of each job, and how many it had done in this life."""

    async def body(child: Child) -> None:
        child.started()
        count = 0
        async with box.receive() as inbox:
            async for job in inbox:
                if resuming:
                    with child.resuming():
                        count = work(job, count)
                else:
                    count = work(job, count)
                await trio.sleep(1)

    def work(job: Job, count: int) -> int:
        if job.error is not None:
            raise job.error()
        done.append((job.number, count + 1))
        return count + 1

    return body


async def test_own_121_resume_with_the_next_message(autojump_clock: MockClock) -> None:
    """RESUME, around the work on one message: the next message is worked on, with the state as it was; the error is
    told, nobody is restarted, no budget is used."""
    box: Mailbox[Job] = Mailbox("jobs", 10)
    done: list[tuple[int, int]] = []
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=worker(box, done), policy=POLICY)]))
    for job in (Job(1), Job(2, ConnectionResetError), Job(3), Job(4, ConnectionRefusedError), Job(5)):
        box.offer(job)
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(10)
            view = look(tree, "app/a")
            assert (view.state, view.incarnation, view.restarts) == ("running", 1, 0)
            assert view.last_error is not None
            assert view.last_error.type == "ConnectionRefusedError"
            assert look(tree, "app").restarts_left == 5
        resumed = [event for event in events.drain() if event.kind is LifecycleKind.CHILD_RESUMED]
    assert done == [(1, 1), (3, 2), (5, 3)]
    assert [event.error.type for event in resumed if event.error] == ["ConnectionResetError", "ConnectionRefusedError"]


async def test_own_121_what_the_policy_does_not_resume_passes_the_block(autojump_clock: MockClock) -> None:
    """Within `resuming` an error of another directive is what it is everywhere; so is any without a policy."""
    for policy in (POLICY, ()):
        begun_at = trio.current_time()
        box: Mailbox[Job] = Mailbox("jobs", 10)
        done: list[tuple[int, int]] = []
        tree = Tree(Supervisor("app", [ChildSpec(id="a", body=worker(box, done), backoff=PLAIN, policy=policy)]))
        for job in (Job(1), Job(2, KeyError if policy else ConnectionError), Job(3)):
            box.offer(job)
        async with running(tree):
            await trio.sleep_until(begun_at + 10)
            assert look(tree, "app/a").incarnation == 2
        assert done == [(1, 1), (3, 1)]


async def test_own_121_resume_that_leaves_the_body_is_a_restart(autojump_clock: MockClock) -> None:
    """Nothing can be resumed of a body that has ended: it is started again, and reads the next message then."""
    box: Mailbox[Job] = Mailbox("jobs", 10)
    done: list[tuple[int, int]] = []
    body = worker(box, done, resuming=False)
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=body, backoff=PLAIN, policy=POLICY)]))
    for job in (Job(1), Job(2, ConnectionResetError), Job(3)):
        box.offer(job)
    async with running(tree):
        await trio.sleep(10)
        assert (look(tree, "app/a").incarnation, look(tree, "app").restarts_left) == (2, 4)
    assert done == [(1, 1), (3, 1)]


@pytest.mark.parametrize("strategy", list(Strategy))
def test_core_121_a_stop_takes_nobody_along(strategy: Strategy) -> None:
    """STOP is the end of one child: its group is not restarted; it comes back with the next restart of its group."""
    play = Play([spec("a"), spec("b", policy=POLICY), spec("c")], strategy)
    play.tell(Begin())
    play.take()
    play.end("b", IndexError())
    play.advance(100)
    assert play.take() == ""
    play.crash("a")
    play.advance(1)
    assert play.take() == ("+a" if strategy is Strategy.ONE_FOR_ONE else "-c +a +b +c")


# 122 -----------------------------------------------------------------------------------------------------------------

FATAL = [SystemExit, KeyboardInterrupt, MemoryError]
EVERYTHING = [Rule(Exception, Directive.RESTART)]


def ending_the_process(error: Callable[[], BaseException], when: str) -> Body:
    """Is ready at 1, and raises at 1, at 2, or when it is stopped."""

    async def beside() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise error()

    async def body(child: Child) -> None:
        await trio.sleep(1)
        if when == "starting":
            raise error()
        child.started()
        try:
            await trio.sleep(1)
            if when == "running":
                raise error()
            if when == "in a nursery":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(beside)
                    await trio.lowlevel.checkpoint()
                    raise ValueError
            await trio.sleep_forever()
        finally:
            if when == "stopping":
                raise error()

    return body


@pytest.mark.parametrize("error", FATAL)
@pytest.mark.parametrize(
    ("when", "at", "said"),
    [
        ("starting", 1, "+a +b !b -a"),
        ("running", 2, "+a +b +c !b -c -a"),
        ("in a nursery", 2, "+a +b +c !b -c -a"),
        ("stopping", 3, "+a +b +c -c !b -a"),
    ],
)
async def test_own_122_what_ends_the_process_is_let_through(
    error: type[BaseException], when: str, at: float, said: str, autojump_clock: MockClock
) -> None:
    """Whenever a child raises one of these, it is not restarted, whatever its policy says: all stop in order, and the
    very error comes out of the run."""
    raised: list[BaseException] = []

    def make() -> BaseException:
        raised.append(error("over"))
        return raised[-1]

    async def orders_the_stop(child: Child) -> None:
        child.started()
        await trio.sleep_until(3)
        tree.stop("ordered")
        await trio.sleep_forever()

    diary = Diary()
    specs = [
        ChildSpec(id="a", body=diary.of("a")),
        ChildSpec(id="b", body=diary.of("b", ending_the_process(make, when)), backoff=PLAIN, policy=EVERYTHING),
        ChildSpec(id="c", body=diary.of("c", orders_the_stop)),
    ]
    tree = Tree(Supervisor("app", specs))
    with tree.subscribe() as events:
        with pytest.raises(error) as caught:
            await tree.run()
        told = list(events.drain())
    assert [caught.value] == raised
    (crash,) = [event for event in told if event.kind is LifecycleKind.CHILD_CRASHED]
    assert (crash.path, crash.reason) == ("app/b", "it ends the process")
    assert not [event for event in told if event.kind is LifecycleKind.CHILD_BACKOFF]
    assert told[-1].kind is LifecycleKind.TREE_STOPPED
    assert diary.take() == said
    assert trio.current_time() == at


@pytest.mark.parametrize("error", FATAL)
async def test_own_122_it_passes_all_floors_in_order(error: type[BaseException], autojump_clock: MockClock) -> None:
    """From a leaf three floors down it comes out as it is; each floor stops its children, and none restarts any."""
    diary = Diary()
    body = diary.of("leaf", ending_the_process(error, "running"))
    leaves = [ChildSpec(id="leaf", body=body), ChildSpec(id="beside", body=diary.of("beside"))]
    low = Supervisor("low", leaves)
    middle = Supervisor("middle", [low.spec(policy=EVERYTHING), ChildSpec(id="m", body=diary.of("m"))])
    tree = Tree(Supervisor("app", [middle.spec(policy=EVERYTHING), ChildSpec(id="t", body=diary.of("t"))]))
    with pytest.raises(error):
        await tree.run()
    assert diary.take() == "+leaf +beside +m +t !leaf -beside -m -t"
    assert trio.current_time() == 2


@pytest.mark.parametrize("grouped", [False, True])
async def test_own_122_no_block_resumes_it(grouped: bool, autojump_clock: MockClock) -> None:
    """`MemoryError` is an `Exception` for Python; not even a policy that resumes all of these swallows it, alone or in
    a group."""

    async def body(child: Child) -> None:
        child.started()
        with child.resuming():
            raise ExceptionGroup("two", [ValueError(), MemoryError()]) if grouped else MemoryError()

    rule = Rule(Exception, Directive.RESUME)
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=body, policy=[rule])]))
    with pytest.raises(MemoryError):
        await tree.run()


@pytest.mark.parametrize("error", FATAL)
async def test_own_122_a_child_that_a_call_brought_ends_the_tree_likewise(
    error: type[BaseException], autojump_clock: MockClock
) -> None:
    """The caller of `start_child` hears that the supervisor stopped; the error is the run's to raise."""
    app = Supervisor("app", [ChildSpec(id="a", body=steady())])
    tree = Tree(app)
    heard: list[Exception] = []

    async def call() -> None:
        try:
            await app.start_child(ChildSpec(id="b", body=ending_the_process(error, "starting")))
        except NotRunning as refused:
            heard.append(refused)

    with pytest.raises(error):
        async with running(tree), trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep_forever()
    assert len(heard) == 1
    assert trio.current_time() == 1


@pytest.mark.parametrize("error", FATAL)
@pytest.mark.parametrize("strategy", list(Strategy))
def test_core_122_no_strategy_restarts_anybody(error: type[BaseException], strategy: Strategy) -> None:
    """The core stops all, and finishes with the error."""
    play = begun("a", "b", "c", strategy=strategy)
    play.end("b", error(), fatal=True)
    assert play.take() == "-c -a"
    assert play.finished is not None
    assert isinstance(play.finished.error, error)
    assert play.core.budget.left(play.now) == 100


# 123 -----------------------------------------------------------------------------------------------------------------

OF = {
    Directive.RESUME: ConnectionError,
    Directive.RESTART: KeyError,
    Directive.STOP: LookupError,
    Directive.ESCALATE: OSError,
}
"""An error for each directive, under `POLICY`."""

SEVERITY = [Directive.RESUME, Directive.RESTART, Directive.STOP, Directive.ESCALATE]


@pytest.mark.parametrize(("one", "other"), list(product(SEVERITY, SEVERITY)))
def test_core_123_of_mixed_leaves_the_most_severe_directive_holds(one: Directive, other: Directive) -> None:
    """Resume < restart < stop < escalate, wherever the leaves stand in groups within groups."""
    assert list(Directive) == SEVERITY
    severest = max(one, other, key=SEVERITY.index)
    flat = ExceptionGroup("g", [OF[one](), OF[other]()])
    deep = ExceptionGroup("g", [ExceptionGroup("h", [ExceptionGroup("i", [OF[one]()])]), OF[other]()])
    assert directive_of(rule_for(flat, POLICY)) is severest
    assert directive_of(rule_for(deep, POLICY)) is severest


@pytest.mark.parametrize("other", SEVERITY)
def test_core_123_an_unlisted_leaf_counts_as_the_default(other: Directive) -> None:
    """A leaf that no rule matches is a RESTART: severer than RESUME, milder than the rest."""
    group = ExceptionGroup("g", [OF[other](), ValueError()])
    assert directive_of(rule_for(group, POLICY)) is max(other, Directive.RESTART, key=SEVERITY.index)


def test_core_123_no_rule_matches_the_group_itself() -> None:
    """A rule for `Exception` is asked for the leaves, not for the group, which is an exception too."""
    policy = (Rule(Exception, Directive.STOP), Rule(KeyError, Directive.RESTART))
    assert directive_of(rule_for(ExceptionGroup("g", [KeyError(), KeyError()]), policy)) is Directive.RESTART


def in_a_nursery(first: type[Exception], last: type[Exception] | None = None) -> Body:
    """Crashes in its first life out of a nursery: a task raises `first`, and another `last` as it is cancelled."""

    async def leaves_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if last is not None:
                raise last

    async def body(child: Child) -> None:
        child.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(leaves_badly)
            await trio.sleep(1)
            if child.incarnation == 1:
                raise first
            await trio.sleep_forever()

    return body


async def after(body: Body, **options: Any) -> tuple[str, int]:
    """State and incarnation of the child ten seconds after its crash."""
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=body, backoff=PLAIN, policy=POLICY, **options)]))
    async with running(tree):
        await trio.sleep(11)
        view = look(tree, "app/a")
        return view.state, view.incarnation


async def test_own_123_the_leaf_of_an_inner_nursery_chooses_the_policy(autojump_clock: MockClock) -> None:
    """Trio wraps what a task of the child raised in a group; the policy is chosen by what is in it."""
    assert await after(in_a_nursery(IndexError)) == ("ended", 1)
    assert await after(in_a_nursery(KeyError)) == ("running", 2)
    with pytest.raises(Escalated) as caught:
        await after(in_a_nursery(FileNotFoundError))
    assert isinstance(caught.value.__cause__, FileNotFoundError)


async def test_own_123_mixed_leaves_of_a_nursery_take_the_most_severe(autojump_clock: MockClock) -> None:
    """Two tasks fail at once, each with an error of its own; whichever came first, the severer decides."""
    for one, other in [(KeyError, IndexError), (IndexError, ValueError), (ConnectionError, IndexError)]:
        assert await after(in_a_nursery(one, other)) == ("ended", 1)
        assert await after(in_a_nursery(other, one)) == ("ended", 1)
    for one, other in [(KeyError, ConnectionError), (ValueError, ConnectionError)]:
        assert await after(in_a_nursery(one, other)) == ("running", 2)
        assert await after(in_a_nursery(other, one)) == ("running", 2)
    with pytest.raises(Escalated) as caught:
        await after(in_a_nursery(IndexError, FileNotFoundError))
    group = caught.value.__cause__
    assert isinstance(group, ExceptionGroup)
    assert {type(each) for each in group.exceptions} == {IndexError, FileNotFoundError}


async def test_own_123_the_pause_is_that_of_the_rule_that_decides(autojump_clock: MockClock) -> None:
    """The severest leaf's rule brings its own backoff, and its own count."""
    policy = (
        Rule(ConnectionError, Directive.RESUME, backoff=Backoff(3.0, 3.0, jitter=0.0)),
        Rule(KeyError, Directive.RESTART, backoff=Backoff(7.0, 7.0, jitter=0.0)),
    )
    child = ChildSpec(id="a", body=in_a_nursery(ConnectionError, KeyError), policy=policy)
    tree = Tree(Supervisor("app", [child]))
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(20)
        assert [event.seconds for event in events.drain() if event.kind is LifecycleKind.CHILD_BACKOFF] == [7]


async def test_own_123_a_block_resumes_a_group_only_if_it_may_resume_all_of_it(autojump_clock: MockClock) -> None:
    """`resuming` around a nursery: all leaves resumable, and it goes on; one that is not, and the group passes."""

    def body_with(*errors: type[Exception]) -> Body:
        async def body(child: Child) -> None:
            child.started()
            await trio.sleep(1)
            if child.incarnation == 1:
                with child.resuming():
                    raise ExceptionGroup("g", [error() for error in errors])
            await trio.sleep_forever()

        return body

    assert await after(body_with(ConnectionResetError, BrokenPipeError)) == ("running", 1)
    assert await after(body_with(ConnectionResetError, KeyError)) == ("running", 2)
    assert await after(body_with(ConnectionResetError, IndexError)) == ("ended", 1)
