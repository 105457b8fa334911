"""What follows when a child ends by itself, by its restart type (lines 56 to 65 of the list)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from playing import Play, spec
from trio.testing import MockClock, wait_all_tasks_blocked
from worlds import GROUPS, HOUR, PLAIN, counts, end, events_of

from penstock.runtime.supervision import (
    AlreadyPresent,
    Body,
    Child,
    ChildHandle,
    ChildSpec,
    LifecycleEvent,
    LifecycleKind,
    NotFound,
    Restart,
    Shutdown,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import Begin, Status
from penstock.runtime.supervision.outcome import ErrorInfo
from penstock.runtime.testing import Diary, Misbehaved, running, steady

ONE = "app/one"


def child(name: str, body: Body, restart: Restart, **options: object) -> ChildSpec:
    return ChildSpec(id=name, body=body, **{"restart": restart, "backoff": PLAIN, **options})  # type: ignore[arg-type]


def ends(*ways: str) -> Body:
    """Ends in its first life in the first way, in its second in the second, and then works well; each after 5 s."""
    left = list(ways)

    async def body(child: Child) -> None:
        child.started()
        if not left:
            await trio.sleep_forever()
        way = left.pop(0)
        await trio.sleep(5)
        end(way)

    return body


def beside(one: ChildSpec) -> Supervisor:
    return Supervisor("app", [child("other", steady(), Restart.PERMANENT), one])


def alive(root: Supervisor, name: str) -> ChildHandle:
    """Its handle; it must run."""
    entry = root.which_child(name)
    assert entry.state == "running"
    assert entry.handle is not None
    assert entry.handle.is_alive
    return entry.handle


@contextmanager
def life_of(tree: Tree, path: str) -> Iterator[list[LifecycleEvent]]:
    """The events of one child, filled after the block."""
    told: list[LifecycleEvent] = []
    with events_of(tree) as events:
        yield told
    told.extend(event for event in events if event.path == path)


def kinds(events: list[LifecycleEvent]) -> str:
    """Without the prefix that they have in common: ``starting ready returned``."""
    return " ".join(event.kind.value.removeprefix("child_") for event in events)


# Started again: 56, 59, 62, 63 ---------------------------------------------------------------------------------------


async def comes_back(restart: Restart, way: str) -> list[LifecycleEvent]:
    """Hold that a child of that type is started again, 1 s after it has ended in that way; its events."""
    root = beside(child("one", ends(way), restart))
    tree = Tree(root)
    with life_of(tree, ONE) as events:
        async with running(tree):
            first, other = alive(root, "one"), alive(root, "other")
            await trio.sleep_until(5.9)
            assert not first.is_alive
            assert (root.which_child("one").state, root.which_child("one").handle) == ("backoff", None)
            assert counts(root) == (2, 1, 0, 2)
            await trio.sleep_until(6)
            await wait_all_tasks_blocked()
            second = alive(root, "one")
            assert second is not first
            assert (first.incarnation, second.incarnation) == (1, 2)
            assert counts(root) == (2, 2, 0, 2)
            await trio.sleep(HOUR)
            assert alive(root, "one") is second
            assert alive(root, "other") is other
    return events


async def test_otp_056_a_permanent_child_that_returns_is_started_again(autojump_clock: MockClock) -> None:
    """A permanent child that returns is started again, and its return is no crash."""
    events = await comes_back(Restart.PERMANENT, "return")
    assert kinds(events) == "starting ready returned backoff starting ready stopping stopped"
    assert (events[2].reason, events[2].error) == ("", None)


async def test_otp_059_a_permanent_child_that_bows_out_is_started_again_each_time(autojump_clock: MockClock) -> None:
    """A permanent child that bows out is started again, first without a word, and then with one; neither is a crash."""
    root = beside(child("one", ends("bow out", "bow out with a word"), Restart.PERMANENT))
    tree = Tree(root)
    with life_of(tree, ONE) as events:
        async with running(tree):
            first = alive(root, "one")
            await trio.sleep_until(6.5)
            second = alive(root, "one")
            await trio.sleep_until(13.5)  # the second pause is 2 s
            third = alive(root, "one")
            assert [handle.incarnation for handle in (first, second, third)] == [1, 2, 3]
            assert not first.is_alive
            assert not second.is_alive
            view = tree.snapshot().find(ONE)
            assert view is not None
            assert view.last_error is None
    assert kinds(events) == (
        "starting ready returned backoff starting ready returned backoff starting ready stopping stopped"
    )
    said = [(event.reason, event.error) for event in events if event.kind is LifecycleKind.CHILD_RETURNED]
    assert said == [("bowed out", None), ("bowed out: enough", None)]


async def crashes_and_comes_back(restart: Restart) -> None:
    events = await comes_back(restart, "crash")
    assert kinds(events) == "starting ready crashed backoff starting ready stopping stopped"
    assert events[2].error is not None
    assert events[2].error.type == ErrorInfo.of(Misbehaved()).type


async def test_otp_062_a_permanent_child_that_crashes_is_started_again(autojump_clock: MockClock) -> None:
    """A permanent child that crashes is started again."""
    await crashes_and_comes_back(Restart.PERMANENT)


async def test_otp_063_a_transient_child_that_crashes_is_started_again(autojump_clock: MockClock) -> None:
    """A transient child that crashes is started again."""
    await crashes_and_comes_back(Restart.TRANSIENT)


# Over, the specification kept: 57, 60 --------------------------------------------------------------------------------


async def test_otp_057_a_transient_child_that_returns_stays_stopped(autojump_clock: MockClock) -> None:
    """A transient child that returns is not started again, and its specification is kept."""
    one = child("one", ends("return"), Restart.TRANSIENT)
    root = beside(one)
    tree = Tree(root)
    with life_of(tree, ONE) as events:
        async with running(tree):
            await trio.sleep(HOUR)
            # "ended" is our word for OTP's "stopped".
            assert (root.which_child("one").state, root.which_child("one").handle) == ("ended", None)
            assert counts(root) == (2, 1, 0, 2)
            assert root.get_childspec("one") == one
            with pytest.raises(AlreadyPresent):
                await root.start_child(one)
            alive(root, "other")
    assert kinds(events) == "starting ready returned"


async def test_otp_060_a_transient_child_that_bows_out_stays_stopped_until_it_is_asked_for(
    autojump_clock: MockClock,
) -> None:
    """A transient child that bows out is over; restarted by id it works; bowing out with a word it is over again."""
    root = beside(child("one", ends("bow out", "bow out with a word"), Restart.TRANSIENT))
    tree = Tree(root)
    with life_of(tree, ONE) as events:
        async with running(tree):
            await trio.sleep(HOUR)
            assert (root.which_child("one").state, root.which_child("one").handle) == ("ended", None)
            handle = await root.restart_child("one")
            assert handle is alive(root, "one")
            await trio.sleep(HOUR)
            assert (root.which_child("one").state, root.which_child("one").handle) == ("ended", None)
            assert not handle.is_alive
            assert counts(root) == (2, 1, 0, 2)
            alive(root, "other")
    assert kinds(events) == "starting ready returned starting ready returned"
    assert [event.reason for event in events if event.reason] == ["bowed out", "bowed out: enough"]


# Over, the specification gone: 58, 61, 64 ----------------------------------------------------------------------------


async def is_gone(*ways: str) -> list[LifecycleEvent]:
    """Hold that a temporary child is gone after each of these ends, and can be added again; its events."""
    one = child("one", ends(*ways), Restart.TEMPORARY)
    root = beside(one)
    tree = Tree(root)
    with life_of(tree, ONE) as events:
        async with running(tree):
            other = alive(root, "other")
            for _ in ways:
                alive(root, "one")
                await trio.sleep(HOUR)
                for ask in (root.which_child, root.get_childspec):
                    with pytest.raises(NotFound):
                        ask("one")
                with pytest.raises(NotFound):
                    await root.restart_child("one")
                assert [entry.id for entry in root.which_children()] == ["other"]
                assert counts(root) == (1, 1, 0, 1)
                handle = await root.start_child(one)
                assert handle is alive(root, "one")
                assert handle.incarnation == 1
            assert alive(root, "other") is other
    return events


async def test_otp_058_a_temporary_child_that_returns_is_gone(autojump_clock: MockClock) -> None:
    """A temporary child that returns is gone, and so is its specification."""
    events = await is_gone("return")
    assert kinds(events) == "starting ready returned removed starting ready stopping stopped"


async def test_otp_061_a_temporary_child_that_bows_out_is_gone_and_can_be_added_again(
    autojump_clock: MockClock,
) -> None:
    """A temporary child that bows out, with a word or without, is gone; the same specification can be added again."""
    events = await is_gone("bow out", "bow out with a word")
    assert kinds(events) == (
        "starting ready returned removed starting ready returned removed starting ready stopping stopped"
    )
    said = [event.reason for event in events if event.kind is LifecycleKind.CHILD_RETURNED]
    assert said == ["bowed out", "bowed out: enough"]


async def test_otp_064_a_temporary_child_that_crashes_is_gone(autojump_clock: MockClock) -> None:
    """A temporary child that crashes is gone, and so is its specification; the crash is told."""
    events = await is_gone("crash")
    assert kinds(events) == "starting ready crashed removed starting ready stopping stopped"


# The same as a table over the core -----------------------------------------------------------------------------------

AGAIN, KEPT, GONE = "started again", "over, and kept", "gone"

TABLE = {
    (Restart.PERMANENT, "return"): AGAIN,
    (Restart.PERMANENT, "bow out"): AGAIN,
    (Restart.PERMANENT, "bow out with a word"): AGAIN,
    (Restart.PERMANENT, "crash"): AGAIN,
    (Restart.TRANSIENT, "return"): KEPT,
    (Restart.TRANSIENT, "bow out"): KEPT,
    (Restart.TRANSIENT, "bow out with a word"): KEPT,
    (Restart.TRANSIENT, "crash"): AGAIN,
    (Restart.TEMPORARY, "return"): GONE,
    (Restart.TEMPORARY, "bow out"): GONE,
    (Restart.TEMPORARY, "bow out with a word"): GONE,
    (Restart.TEMPORARY, "crash"): GONE,
}

ERRORS = {
    "return": lambda: None,
    "bow out": Shutdown,
    "bow out with a word": lambda: Shutdown("enough"),
    "crash": Misbehaved,
}


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize(("restart", "way"), TABLE)
def test_core_056_to_064_what_follows_an_end(restart: Restart, way: str, strategy: Strategy) -> None:
    """By restart type and way of ending: started again after the pause, over and kept, or gone."""
    play = begun_with(restart, strategy)
    left = play.core.budget.left(0)
    play.end("one", ERRORS[way]())
    follows = TABLE[restart, way]
    assert play.core.budget.left(0) == (left - 1 if follows is AGAIN else left)
    # The group of who is not started again is left alone.
    in_group = follows is AGAIN and strategy is Strategy.ONE_FOR_ALL
    assert play.take() == ("-other" if in_group else "")
    play.advance(1)
    again = "+other +one" if in_group else "+one"
    assert play.take() == (again if follows is AGAIN else "")
    assert ("one" in play.core.children) is (follows is not GONE)
    play.advance(HOUR)
    assert play.take() == ""
    if follows is not GONE:
        assert play.status("one") is (Status.RUNNING if follows is AGAIN else Status.DOWN)


def begun_with(restart: Restart, strategy: Strategy) -> Play:
    play = Play([spec("other"), spec("one", restart=restart)], strategy)
    play.tell(Begin())
    assert play.take() == "+other +one"
    return play


# 65: temporary bystanders --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["return", "bow out", "crash"])
@pytest.mark.parametrize("strategy", GROUPS)
async def test_otp_065_a_temporary_bystander_of_a_group_restart_is_gone_for_good(
    strategy: Strategy, way: str, autojump_clock: MockClock
) -> None:
    """When a permanent child returns it is back, its later temporary sibling is gone for good, the tree is alive."""
    diary = Diary()
    specs = [
        child("lasting", diary.of("lasting", ends(way)), Restart.PERMANENT),
        child("passing", diary.of("passing"), Restart.TEMPORARY),
    ]
    root = Supervisor("app", specs, strategy=strategy)
    tree = Tree(root)
    async with running(tree):
        first = alive(root, "lasting")
        passing = alive(root, "passing")
        diary.take()
        await trio.sleep(HOUR)
        assert diary.take() == ("!lasting" if way != "return" else "-lasting") + " -passing +lasting"
        assert alive(root, "lasting") is not first
        assert not passing.is_alive
        with pytest.raises(NotFound):
            root.which_child("passing")
        assert counts(root) == (1, 1, 0, 1)
        assert await root.start_child(child("passing", steady(), Restart.TEMPORARY)) is not None
        assert trio.current_time() == HOUR


@pytest.mark.parametrize("strategy", GROUPS)
def test_core_065_a_temporary_bystander_of_a_group_restart_is_gone_for_good(strategy: Strategy) -> None:
    """The core stops the temporary bystander, removes it, and starts the permanent child alone."""
    play = Play([spec("lasting"), spec("passing", restart=Restart.TEMPORARY)], strategy)
    play.tell(Begin())
    play.take()
    play.end("lasting")
    assert play.take() == "-passing"
    assert "passing" not in play.core.children
    assert play.kinds("passing")[-1] == "child_removed"
    play.advance(1)
    assert play.take() == "+lasting"
    assert play.finished is None
