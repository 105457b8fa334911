"""Significant children: when the end of a child is the end of its supervisor (lines 88 to 96 of the list)."""

from __future__ import annotations

import pytest
import trio
from playing import Play, spec
from trio.testing import MockClock
from worlds import LEAVING, PLAIN, end

from penstock.runtime.supervision import (
    AutoShutdown,
    Body,
    Child,
    ChildSpec,
    Ending,
    InvalidSpec,
    LifecycleKind,
    NotFound,
    Pool,
    Restart,
    Shutdown,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import Begin, Phase, TerminateChild
from penstock.runtime.testing import Diary, flaky, running, slow_leaver, steady

MODES = list(AutoShutdown)

BY_ITSELF = ["return", "bow out", "bow out with a word", "crash", "kill"]
WAYS = ["stop", *BY_ITSELF]
"""How a child may end: "stop" is by a call; "kill" by a hand that is not its own, its supervisor's, for it stalls."""

NORMAL = ["return", "bow out", "bow out with a word"]
ABNORMAL = ["crash", "kill"]


def ends(way: str, at: float = 1.0) -> Body:
    """Ends in that way so many seconds after its first start; in all other lives it works well."""

    async def body(child: Child) -> None:
        child.started()
        if child.incarnation == 1:
            with trio.move_on_after(at if way not in ("stop", "kill") else float("inf")):
                await trio.sleep_forever()
            end(way)
            return
        while True:
            child.progress()
            await trio.sleep(0.5)

    return body


def child(name: str, way: str, restart: Restart, *, significant: bool = False, at: float = 1.0) -> ChildSpec:
    watched = at if way == "kill" else None
    body = ends(way, at)
    return ChildSpec(
        id=name, body=body, restart=restart, significant=significant, backoff=PLAIN, progress_within=watched
    )


def state_of(tree: Tree, name: str) -> str:
    """What a child is doing; "gone" if there is none of that id."""
    assert isinstance(tree.root, Supervisor)
    try:
        return tree.root.which_child(name).state
    except NotFound:
        return "gone"


async def until_end(tree: Tree) -> tuple[Ending, float]:
    """How, and when, a tree ends that nobody stops."""
    return await tree.run(), trio.current_time()


async def end_by_hand(tree: Tree, name: str, way: str) -> None:
    assert isinstance(tree.root, Supervisor)
    if way == "stop":
        await tree.root.terminate_child(name)


# 88, 89: who is not significant --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
async def test_otp_088_a_temporary_child_that_is_not_significant_may_end_in_any_way(
    way: str, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """A temporary non-significant child that ends, in whatever way and under whatever mode, leaves the tree up."""
    fading = child("fading", way, Restart.TEMPORARY)
    tree = Tree(Supervisor("app", [ChildSpec(id="calm", body=steady()), fading], auto_shutdown=mode))
    async with running(tree):
        await trio.sleep_until(1)
        await end_by_hand(tree, "fading", way)
        await trio.sleep_until(100)
        assert (state_of(tree, "calm"), state_of(tree, "fading")) == ("running", "gone")
        assert tree.root.run is not None
        assert not tree.root.run.has_ended


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("way", WAYS)
async def test_otp_089_a_transient_child_that_is_not_significant_may_end_in_any_way(
    way: str, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """A transient non-significant child that ends leaves the tree up; killed or crashed, it is started again."""
    fading = child("fading", way, Restart.TRANSIENT)
    root = Supervisor("app", [ChildSpec(id="calm", body=steady()), fading], auto_shutdown=mode)
    tree = Tree(root)
    async with running(tree):
        await trio.sleep_until(1)
        await end_by_hand(tree, "fading", way)
        await trio.sleep_until(100)
        assert state_of(tree, "calm") == "running"
        entry = root.which_child("fading")
        if way in ABNORMAL:
            assert entry.handle is not None
            assert (entry.state, entry.handle.incarnation) == ("running", 2)
        else:
            assert (entry.state, entry.handle) == ("ended", None)


# 90, 91: temporary ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", BY_ITSELF)
async def test_otp_090_any_end_by_itself_of_a_temporary_significant_child_stops_the_tree(
    way: str, autojump_clock: MockClock
) -> None:
    """Under any_significant a temporary significant child that ends by itself, in whatever way, stops the tree."""
    diary = Diary()
    first, last = (ChildSpec(id=name, body=diary.of(name)) for name in ("first", "last"))
    fading = child("fading", way, Restart.TEMPORARY, significant=True)
    tree = Tree(Supervisor("app", [first, fading, last], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT))
    assert await until_end(tree) == (Ending.SHUTDOWN, 1)
    assert diary.take() == "+first +last -last -first"


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_otp_090_under_any_the_first_of_two_significant_ends_is_enough(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """Under any_significant the tree does not wait for the other significant children (092 likewise)."""
    specs = [
        child("one", "stop", restart, significant=True),
        child("two", "return", restart, significant=True),
        child("three", "stop", restart, significant=True),
    ]
    tree = Tree(Supervisor("app", specs, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT))
    assert await until_end(tree) == (Ending.SHUTDOWN, 1)


async def test_otp_090_a_call_that_stops_a_temporary_significant_child_stops_nothing_else(
    autojump_clock: MockClock,
) -> None:
    """Under any_significant a temporary significant child stopped by a call is gone, and the tree stays up."""
    diary = Diary()
    fading = child("fading", "stop", Restart.TEMPORARY, significant=True)
    root = Supervisor(
        "app", [ChildSpec(id="calm", body=diary.of("calm")), fading], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT
    )
    async with running(Tree(root)) as tree:
        await root.terminate_child("fading")
        await trio.sleep_until(100)
        assert diary.take() == "+calm"
        assert (state_of(tree, "calm"), state_of(tree, "fading")) == ("running", "gone")


@pytest.mark.parametrize("second", BY_ITSELF)
@pytest.mark.parametrize("first", WAYS)
async def test_otp_091_the_end_of_the_last_of_two_temporary_significant_children_stops_the_tree(
    first: str, second: str, autojump_clock: MockClock
) -> None:
    """Under all_significant the first of two ends does nothing, the second stops the tree and the third child."""
    diary = Diary()
    specs = [
        child("one", first, Restart.TEMPORARY, significant=True, at=1),
        child("two", second, Restart.TEMPORARY, significant=True, at=5),
        ChildSpec(id="three", body=diary.of("three")),
    ]
    tree = Tree(Supervisor("app", specs, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT))

    async def look() -> None:
        await trio.sleep_until(1)
        await end_by_hand(tree, "one", first)
        await trio.sleep_until(4.9)
        assert [state_of(tree, name) for name in ("one", "two", "three")] == ["gone", "running", "running"]
        assert diary.take() == "+three"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        assert await until_end(tree) == (Ending.SHUTDOWN, 5)
    assert diary.take() == "-three"


async def test_otp_091_a_call_that_stops_the_last_significant_child_stops_nothing_else(
    autojump_clock: MockClock,
) -> None:
    """Under all_significant the tree stays up when the last of the significant children is stopped by a call."""
    specs = [
        child("one", "return", Restart.TEMPORARY, significant=True),
        child("two", "stop", Restart.TEMPORARY, significant=True),
        ChildSpec(id="three", body=steady()),
    ]
    root = Supervisor("app", specs, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(2)
        await root.terminate_child("two")
        await trio.sleep_until(100)
        assert [state_of(tree, name) for name in ("one", "two", "three")] == ["gone", "gone", "running"]


# 92, 93: transient ones ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["stop", *ABNORMAL])
async def test_otp_092_a_transient_significant_child_that_did_not_end_normally_stops_nothing(
    way: str, autojump_clock: MockClock
) -> None:
    """Under any_significant a stop by a call, a kill and a crash do nothing; the last two are restarts."""
    fading = child("fading", way, Restart.TRANSIENT, significant=True)
    root = Supervisor("app", [ChildSpec(id="calm", body=steady()), fading], auto_shutdown=AutoShutdown.ANY_SIGNIFICANT)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(1)
        await end_by_hand(tree, "fading", way)
        await trio.sleep_until(100)
        assert state_of(tree, "calm") == "running"
        assert state_of(tree, "fading") == ("ended" if way == "stop" else "running")
        handle = root.which_child("fading").handle
        assert (handle and handle.incarnation) == (None if way == "stop" else 2)


@pytest.mark.parametrize("way", NORMAL)
async def test_otp_092_a_transient_significant_child_that_ends_normally_stops_the_tree(
    way: str, autojump_clock: MockClock
) -> None:
    """Under any_significant a transient significant child that returns, or bows out, stops the whole tree."""
    diary = Diary()
    specs = [
        ChildSpec(id="calm", body=diary.of("calm")),
        child("fading", way, Restart.TRANSIENT, significant=True),
    ]
    tree = Tree(Supervisor("app", specs, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT))
    assert await until_end(tree) == (Ending.SHUTDOWN, 1)
    assert diary.take() == "+calm -calm"


async def test_otp_092_a_restarted_significant_child_that_returns_at_last_stops_the_tree(
    autojump_clock: MockClock,
) -> None:
    """A crash of a transient significant child is a restart; its return in a later life stops the tree."""
    body = flaky("crash return")
    specs = [ChildSpec(id="c", body=body, restart=Restart.TRANSIENT, significant=True, backoff=PLAIN)]
    tree = Tree(Supervisor("app", specs, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT))
    assert await until_end(tree) == (Ending.SHUTDOWN, 3)  # a second of life, one of pause, one of life


@pytest.mark.parametrize("second", NORMAL)
@pytest.mark.parametrize("first", NORMAL)
async def test_otp_093_the_return_of_the_last_of_two_transient_significant_children_stops_the_tree(
    first: str, second: str, autojump_clock: MockClock
) -> None:
    """Under all_significant the first of two returns does nothing, the second stops the tree and the third child."""
    diary = Diary()
    specs = [
        child("one", first, Restart.TRANSIENT, significant=True, at=1),
        child("two", second, Restart.TRANSIENT, significant=True, at=5),
        ChildSpec(id="three", body=diary.of("three")),
    ]
    tree = Tree(Supervisor("app", specs, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT))

    async def look() -> None:
        await trio.sleep_until(4.9)
        assert [state_of(tree, name) for name in ("one", "two", "three")] == ["ended", "running", "running"]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        assert await until_end(tree) == (Ending.SHUTDOWN, 5)
    assert diary.take() == "+three -three"


@pytest.mark.parametrize("way", ABNORMAL)
async def test_otp_093_a_transient_significant_child_that_is_being_restarted_counts_as_alive(
    way: str, autojump_clock: MockClock
) -> None:
    """Under all_significant nothing stops while one of the two significant children crashed and comes back."""
    specs = [
        child("one", "return", Restart.TRANSIENT, significant=True, at=1.5),  # while the other one is in its pause
        child("two", way, Restart.TRANSIENT, significant=True, at=1),
    ]
    root = Supervisor("app", specs, auto_shutdown=AutoShutdown.ALL_SIGNIFICANT)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(1.6)
        assert (state_of(tree, "one"), state_of(tree, "two")) == ("ended", "backoff")
        await trio.sleep_until(100)
        assert (state_of(tree, "one"), state_of(tree, "two")) == ("ended", "running")


# 94: pools -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", LEAVING)
def test_otp_094_a_pool_has_no_automatic_shutdown(mode: AutoShutdown) -> None:
    """auto_shutdown any or all on a pool is refused."""
    # Ours: a pool has no such flag at all, so that it is Python that refuses it, and mypy before.
    with pytest.raises(TypeError, match="auto_shutdown"):
        Pool("pool", ChildSpec(id="kind", body=steady()), auto_shutdown=mode)  # type: ignore[call-arg]


@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
def test_otp_094_a_pool_has_no_significant_children(restart: Restart) -> None:
    """Since a pool's auto_shutdown is never, a template that is significant is refused."""
    with pytest.raises(InvalidSpec, match=r"'kind' has significant=True under auto_shutdown=AutoShutdown\.NEVER"):
        Pool("pool", ChildSpec(id="kind", body=steady(), restart=restart, significant=True))


@pytest.mark.parametrize("way", BY_ITSELF)
async def test_otp_094_a_pool_outlives_all_of_its_children(way: str, autojump_clock: MockClock) -> None:
    """A pool's auto_shutdown is never: it stays up when its last child has ended, in whatever way."""
    pool = Pool("pool", child("kind", way, Restart.TEMPORARY))
    assert pool.plan.auto_shutdown is AutoShutdown.NEVER
    async with running(Tree(pool)):
        await pool.start_child()
        await trio.sleep_until(100)
        assert pool.which_children() == []
        assert await pool.start_child() is not None


# 95: bystanders ------------------------------------------------------------------------------------------------------

TAKEN_ALONG = {
    Strategy.ONE_FOR_ONE: [],
    Strategy.ONE_FOR_ALL: ["before", "after"],
    Strategy.REST_FOR_ONE: ["after"],
}


@pytest.mark.parametrize("way", ABNORMAL)
@pytest.mark.parametrize("mode", LEAVING)
@pytest.mark.parametrize("strategy", Strategy)
async def test_otp_095_transient_significant_siblings_taken_down_with_a_killed_one_come_back_with_it(
    strategy: Strategy, mode: AutoShutdown, way: str, autojump_clock: MockClock
) -> None:
    """A killed non-significant child takes significant siblings along without a shutdown; they restart together."""
    specs = [
        child("before", "stop", Restart.TRANSIENT, significant=True),
        child("middle", way, Restart.TRANSIENT),
        child("after", "stop", Restart.TRANSIENT, significant=True),
    ]
    root = Supervisor("app", specs, strategy=strategy, auto_shutdown=mode)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(1.5)
        assert [state_of(tree, name) for name in TAKEN_ALONG[strategy]] == ["waiting"] * len(TAKEN_ALONG[strategy])
        await trio.sleep_until(100)
        lives = {entry.id: entry.handle and entry.handle.incarnation for entry in root.which_children()}
        assert lives == {
            name: 2 if name == "middle" or name in TAKEN_ALONG[strategy] else 1
            for name in ("before", "middle", "after")
        }


@pytest.mark.parametrize("mode", LEAVING)
@pytest.mark.parametrize("strategy", Strategy)
async def test_otp_095_temporary_significant_siblings_taken_down_with_a_killed_one_are_gone_without_a_shutdown(
    strategy: Strategy, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """A killed non-significant child takes temporary significant siblings along for good; the tree stays up."""
    specs = [
        child("before", "stop", Restart.TEMPORARY, significant=True),
        child("middle", "kill", Restart.PERMANENT),
        child("after", "stop", Restart.TEMPORARY, significant=True),
    ]
    root = Supervisor("app", specs, strategy=strategy, auto_shutdown=mode)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(100)
        left = {name: state_of(tree, name) for name in ("before", "middle", "after")}
        assert left == {
            name: "gone" if name in TAKEN_ALONG[strategy] else "running" for name in ("before", "middle", "after")
        }


@pytest.mark.parametrize("mode", LEAVING)
@pytest.mark.parametrize("restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_otp_095_a_significant_sibling_that_returns_before_its_turn_to_be_stopped_is_taken_down_too(
    restart: Restart, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """While the group of a killed child is being stopped, the end of a significant one of it is no shutdown either."""
    specs = [
        child("middle", "crash", Restart.PERMANENT),
        child("fading", "return", restart, significant=True, at=1.5),  # while "slow", behind it, is still leaving
        ChildSpec(id="slow", body=slow_leaver(1.0)),
    ]
    root = Supervisor("app", specs, strategy=Strategy.ONE_FOR_ALL, auto_shutdown=mode)
    async with running(Tree(root)) as tree:
        await trio.sleep_until(1.6)
        assert state_of(tree, "slow") == "stopping"
        await trio.sleep_until(100)
        assert state_of(tree, "fading") == ("running" if restart is Restart.TRANSIENT else "gone")
        assert (state_of(tree, "middle"), state_of(tree, "slow")) == ("running", "running")


@pytest.mark.parametrize("strategy", [Strategy.ONE_FOR_ALL, Strategy.REST_FOR_ONE])
async def test_otp_095_significant_siblings_count_again_after_they_came_back(
    strategy: Strategy, autojump_clock: MockClock
) -> None:
    """After the group restart the end of a significant child stops the tree as before."""
    significant = ChildSpec(id="after", body=flaky("stay return"), restart=Restart.TRANSIENT, significant=True)
    specs = [child("middle", "crash", Restart.TRANSIENT), significant]
    tree = Tree(Supervisor("app", specs, strategy=strategy, auto_shutdown=AutoShutdown.ANY_SIGNIFICANT))
    assert await until_end(tree) == (Ending.SHUTDOWN, 3)  # crash at 1, back at 2, return at 3


# 96: supervisors as significant children ------------------------------------------------------------------------------


def a_over_b_over_c(b_restart: Restart, mode: AutoShutdown, *, b_significant: bool) -> tuple[Supervisor, Supervisor]:
    c = child("c", "return", Restart.TRANSIENT, significant=True)
    b = Supervisor("b", [c, ChildSpec(id="d", body=steady())], auto_shutdown=mode)
    a = Supervisor("a", [b.spec(restart=b_restart, significant=b_significant)], auto_shutdown=mode)
    return a, b


@pytest.mark.parametrize("mode", LEAVING)
@pytest.mark.parametrize("b_restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_otp_096_a_shutdown_climbs_over_significant_supervisors(
    b_restart: Restart, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """A over B over worker C, B and C significant: C returns, then B leaves, then A leaves."""
    a, _ = a_over_b_over_c(b_restart, mode, b_significant=True)
    tree = Tree(a)
    with tree.subscribe() as events:
        assert await until_end(tree) == (Ending.SHUTDOWN, 1)
        seen = [(event.kind.name, event.path) for event in events.drain()]
    returned, b_leaves = ("CHILD_RETURNED", "a/b/c"), ("SUPERVISOR_SHUT_DOWN", "a/b")
    b_left, a_leaves = ("CHILD_RETURNED", "a/b"), ("SUPERVISOR_SHUT_DOWN", "a")
    order = [returned, b_leaves, ("CHILD_STOPPED", "a/b/d"), b_left, a_leaves]
    assert [each for each in seen if each in order] == order


@pytest.mark.parametrize("mode", LEAVING)
@pytest.mark.parametrize("b_restart", [Restart.TRANSIENT, Restart.TEMPORARY])
async def test_otp_096_a_shutdown_ends_at_a_supervisor_that_is_not_significant(
    b_restart: Restart, mode: AutoShutdown, autojump_clock: MockClock
) -> None:
    """With B not significant, B leaves and A stays."""
    a, b = a_over_b_over_c(b_restart, mode, b_significant=False)
    async with running(Tree(a)) as tree:
        await trio.sleep_until(100)
        assert b.run is not None
        assert b.run.has_ended
        assert state_of(tree, "b") == ("ended" if b_restart is Restart.TRANSIENT else "gone")
        assert a.count_children().active == 0


async def test_otp_096_a_permanent_supervisor_that_shut_itself_down_is_started_again(
    autojump_clock: MockClock,
) -> None:
    """With B permanent, which cannot be significant, B's leaving is a normal end: it is started again, and A stays."""
    a, b = a_over_b_over_c(Restart.PERMANENT, AutoShutdown.ANY_SIGNIFICANT, b_significant=False)
    async with running(Tree(a)) as tree:
        with tree.subscribe() as events:
            await trio.sleep_until(1.9)
            kinds = [event.kind for event in events.drain() if event.path == "a/b"]
        assert state_of(tree, "b") == "running"
        handle = b.which_child("c").handle
        assert handle is not None
        assert a.which_child("b").handle is not None
        assert LifecycleKind.CHILD_CRASHED not in kinds
        assert LifecycleKind.CHILD_RETURNED in kinds


# The same decisions over the core ------------------------------------------------------------------------------------


def play_end(play: Play, name: str, way: str) -> None:
    match way:
        case "stop":
            play.tell(TerminateChild("ticket", name))
        case "return":
            play.end(name)
        case "bow out":
            play.end(name, Shutdown())
        case "crash":
            play.crash(name)


def what_became(play: Play, name: str) -> str:
    if play.finished is not None:
        assert play.finished.error is None
        assert play.finished.bowed_out == f"the significant child {name} has ended"
        return "all over"
    if name not in play.core.children:
        return "gone"
    return "over" if not play.core.children[name].goal else "again"


@pytest.mark.parametrize(
    ("restart", "way", "plain", "weighty"),
    [
        # restart, way: what becomes of a child that is not significant; and of one that is
        (Restart.PERMANENT, "return", "again", None),
        (Restart.PERMANENT, "bow out", "again", None),
        (Restart.PERMANENT, "crash", "again", None),
        (Restart.PERMANENT, "stop", "over", None),
        (Restart.TRANSIENT, "return", "over", "all over"),
        (Restart.TRANSIENT, "bow out", "over", "all over"),
        (Restart.TRANSIENT, "crash", "again", "again"),
        (Restart.TRANSIENT, "stop", "over", "over"),
        (Restart.TEMPORARY, "return", "gone", "all over"),
        (Restart.TEMPORARY, "bow out", "gone", "all over"),
        (Restart.TEMPORARY, "crash", "gone", "all over"),
        (Restart.TEMPORARY, "stop", "gone", "gone"),
    ],
)
def test_core_088_to_093_the_table_of_ends(restart: Restart, way: str, plain: str, weighty: str | None) -> None:
    """What the end of one child leads to, by restart type, way, significance and mode."""
    for mode in MODES:
        play = Play([spec("a"), spec("b", restart=restart)], auto_shutdown=mode)
        hold_to(play, "b", way, plain)
    for mode in LEAVING if weighty is not None else ():
        play = Play([spec("a"), spec("b", restart=restart, significant=True)], auto_shutdown=mode)
        hold_to(play, "b", way, weighty)


def hold_to(play: Play, name: str, way: str, expected: str) -> None:
    play.tell(Begin())
    play.take()
    play_end(play, name, way)
    play.advance(2.0)
    assert what_became(play, name) == expected
    if expected == "all over":
        assert play.take() == "-a"
        assert play.core.phase is Phase.DONE
    else:
        assert play.take().split() == (["-b"] if way == "stop" else []) + (["+b"] if expected == "again" else [])
        assert play.core.phase is Phase.RUNNING
