"""Strategies, the restart budget, and what follows when it is burnt (lines 66 to 87 of the list)."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock, wait_all_tasks_blocked
from worlds import HOUR, PLAIN, child, counts, handles, states

from penstock.runtime.supervision import (
    AlreadyPresent,
    Backoff,
    Body,
    Child,
    ChildHandle,
    ChildSpec,
    Ignore,
    Intensity,
    IsAPool,
    LifecycleKind,
    NotFound,
    Pool,
    Restart,
    RestartLimitExceeded,
    StartFailed,
    StillRestarting,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.messages import Begin, Status, StopOrdered
from penstock.runtime.testing import Diary, Misbehaved, flaky, running, steady

NO_PAUSE = Backoff(minimum=0.0, maximum=0.0, jitter=0.0)
TWO_AN_HOUR = Intensity(2, HOUR)
FOUR_AN_HOUR = Intensity(4, HOUR)
ANY_NUMBER = Intensity(10_000, HOUR)


class Troupe:
    """Children that crash when the test says so, and whose next starts fail as often as it says.

    Attributes:
        diary: who came and went.
        failing: by name: how many of its next starts fail.
        slow: seconds that a start takes which is not the first.
        given: by name: the arguments of each of its starts.
    """

    def __init__(self, slow: float = 0.0) -> None:
        self.diary = Diary()
        self.failing: Counter[str] = Counter()
        self.slow = slow
        self.given: dict[str, list[tuple[object, ...]]] = {}
        self._orders: dict[str, trio.Event] = {}

    def spec(self, name: str, **options: object) -> ChildSpec:
        return child(name, self.body(name), **options)

    def body(self, name: str) -> Body:
        """Of a child that is no pool's."""
        return self.diary.of(name, self._live)

    async def one(self, child: Child, *args: object) -> None:
        """The body of the children of a pool."""
        self.given.setdefault(child.id, []).append(args)
        await self.diary.of(child.id, self._live)(child)

    async def _live(self, child: Child) -> None:
        if child.incarnation > 1:
            await trio.sleep(self.slow)
        if self.failing[child.id] > 0:
            self.failing[child.id] -= 1
            raise Misbehaved(f"{child.id} does not start")
        order = self._orders[child.id] = trio.Event()
        child.started(f"{child.id} #{child.incarnation}")
        await order.wait()
        raise Misbehaved(f"{child.id} broke")

    async def crash(self, name: str) -> None:
        """Let a child crash; back when everybody has heard of it."""
        self._orders[name].set()
        await wait_all_tasks_blocked()

    def take(self) -> str:
        return self.diary.take()


def alive(root: Supervisor | Pool) -> dict[str, ChildHandle]:
    """The handles of the children; all must run."""
    for entry in root.which_children():
        assert entry.state == "running"
        assert entry.handle is not None
        assert entry.handle.is_alive
    return {name: handle for name, handle in handles(root).items() if handle is not None}


def lives(root: Supervisor | Pool) -> dict[str, int]:
    """How often each child that runs was started."""
    return {name: handle.incarnation for name, handle in alive(root).items()}


async def until(at: float) -> None:
    """Wait until then, and until all that happens then has happened."""
    await trio.sleep_until(at)
    await wait_all_tasks_blocked()


# 66: the window ------------------------------------------------------------------------------------------------------


async def test_otp_066_crashes_further_apart_than_the_period_are_no_burst(autojump_clock: MockClock) -> None:
    """With 1 restart in 1 s allowed, a child that crashes every 2.1 s, four times, is started again each time."""
    often = child("often", flaky("crash crash crash crash stay", after=2.1), backoff=NO_PAUSE)
    root = Supervisor("app", [often, child("other", steady())], intensity=Intensity(1, 1.0))
    async with running(Tree(root)):
        for number in range(1, 5):
            await until(2.1 * number - 0.1)
            assert lives(root) == {"often": number, "other": 1}
        await until(HOUR)
        assert lives(root) == {"often": 5, "other": 1}


@pytest.mark.parametrize(("after", "stays"), [(2.1, True), (1.0, False), (0.9, False)])
async def test_otp_066_crashes_within_the_period_are_one(after: float, stays: bool, autojump_clock: MockClock) -> None:
    """The same child, crashing at shorter distances, makes its supervisor leave at the second crash."""
    often = child("often", flaky("crash crash crash crash stay", after=after), backoff=NO_PAUSE)
    tree = Tree(Supervisor("app", [often], intensity=Intensity(1, 1.0)))
    if stays:
        async with running(tree):
            await trio.sleep(HOUR)
    else:
        with pytest.raises(RestartLimitExceeded):
            await tree.run()
        assert trio.current_time() == pytest.approx(2 * after)


# 67 to 69: one for one -----------------------------------------------------------------------------------------------


async def test_otp_067_one_for_one_leaves_the_others_alone(autojump_clock: MockClock) -> None:
    """With one_for_one, when one of two crashes, the other keeps its handle."""
    troupe = Troupe()
    root = Supervisor("app", [troupe.spec("a"), troupe.spec("b")], intensity=TWO_AN_HOUR)
    async with running(Tree(root)):
        before = alive(root)
        troupe.take()
        await troupe.crash("a")
        await until(1)
        assert troupe.take() == "!a +a"
        after = alive(root)
        assert after["a"] is not before["a"]
        assert after["b"] is before["b"]


async def test_otp_068_one_for_one_leaves_when_its_budget_is_burnt(autojump_clock: MockClock) -> None:
    """A third crash within the period makes a supervisor with 2 per hour stop everything and leave."""
    troupe = Troupe()
    root = Supervisor("app", [troupe.spec(name) for name in "abc"], intensity=TWO_AN_HOUR)
    with pytest.raises(RestartLimitExceeded, match="2 restarts in 3600 s") as caught:
        async with running(Tree(root)):
            await troupe.crash("a")
            await until(1)
            await troupe.crash("b")
            await until(2)
            assert lives(root) == {"a": 2, "b": 2, "c": 1}
            troupe.take()
            await troupe.crash("a")
            await trio.sleep_forever()
    # Ours, not OTP's: its reason is "shutdown", ours a typed crash with the last straw as its cause.
    assert isinstance(caught.value.__cause__, Misbehaved)
    assert troupe.take() == "!a -c -b"
    assert trio.current_time() == 2


async def test_otp_068_giving_up_leaves_the_siblings_their_drains(autojump_clock: MockClock) -> None:
    """Whoever is stopped because the budget is burnt is stopped in good order: it may finish what it has."""
    drained: list[float] = []

    async def finishes(child: Child) -> None:
        child.started()
        await child.draining.wait()
        await trio.sleep(3)
        drained.append(trio.current_time())

    specs = [child("finishing", finishes, drain_within=5), child("bad", flaky("crash", after=1))]
    with pytest.raises(RestartLimitExceeded):
        await Tree(Supervisor("app", specs, intensity=Intensity(0, HOUR))).run()
    assert drained == [4]
    assert trio.current_time() == 4


async def test_otp_068_a_crash_that_is_older_than_the_period_is_forgotten(autojump_clock: MockClock) -> None:
    """Two crashes an hour may come for ever."""
    troupe = Troupe()
    root = Supervisor("app", [troupe.spec("a", backoff=NO_PAUSE)], intensity=TWO_AN_HOUR)
    async with running(Tree(root)):
        for number in range(1, 11):
            await until(number * (HOUR / 2 + 1))
            await troupe.crash("a")
        assert lives(root) == {"a": 11}


async def burn(strategy: Strategy, bad: str, fails: str) -> tuple[str, RestartLimitExceeded]:
    """Let `bad` crash at 10 s, and no start of `fails` succeed: what happens until the supervisor has left."""
    troupe = Troupe()
    root = Supervisor("app", [troupe.spec(name) for name in "abc"], strategy=strategy, intensity=FOUR_AN_HOUR)
    with pytest.raises(RestartLimitExceeded) as caught:
        async with running(Tree(root)):
            await until(10)
            troupe.take()
            troupe.failing[fails] = 1000
            await troupe.crash(bad)
            await trio.sleep_forever()
    return troupe.take(), caught.value


async def test_otp_069_one_for_one_escalates_when_a_child_cannot_be_restarted(autojump_clock: MockClock) -> None:
    """A child that never comes back burns a budget of 4 in attempts; then its siblings are stopped, and that is it."""
    said, error = await burn(Strategy.ONE_FOR_ONE, "b", "b")
    assert said == "!b +b !b +b !b +b !b +b !b -c -a"
    assert isinstance(error.__cause__, Misbehaved)
    assert trio.current_time() == 10 + 1 + 2 + 4 + 8


def test_core_069_every_attempt_is_entered_in_the_budget() -> None:
    """The crash and each failed start cost one; the one that is too many stops all, backwards, as a typed crash."""
    play = begun("a", "b", "c", intensity=FOUR_AN_HOUR)
    play.slow_starters.add("b")
    left = []
    for delay in (1, 2, 4, 8):
        play.crash("b")
        left.append(play.core.budget.left(play.now))
        assert play.take() == ""
        play.advance(delay)
        assert play.take() == "+b"
    assert left == [3, 2, 1, 0]
    play.crash("b")
    assert play.take() == "-c -a"
    assert play.finished is not None
    assert isinstance(play.finished.error, RestartLimitExceeded)


# 70 to 72: one for all -----------------------------------------------------------------------------------------------


async def test_otp_070_one_for_all_takes_all_along_until_its_budget_is_burnt(autojump_clock: MockClock) -> None:
    """When the first crashes the second is stopped, and both come back anew; a third restart in the period is one too
    many."""
    troupe = Troupe()
    specs = [troupe.spec("a"), troupe.spec("b")]
    root = Supervisor("app", specs, strategy=Strategy.ONE_FOR_ALL, intensity=TWO_AN_HOUR)
    with pytest.raises(RestartLimitExceeded):
        async with running(Tree(root)):
            before = alive(root)
            troupe.take()
            await troupe.crash("a")
            assert troupe.take() == "!a -b"
            await until(1)
            assert troupe.take() == "+a +b"
            after = alive(root)
            assert not {id(each) for each in before.values()} & {id(each) for each in after.values()}
            assert not any(each.is_alive for each in before.values())
            await troupe.crash("b")
            await until(2)
            assert troupe.take() == "!b -a +a +b"
            assert lives(root) == {"a": 3, "b": 3}
            await troupe.crash("a")
            await trio.sleep_forever()
    assert troupe.take() == "!a -b"
    assert trio.current_time() == 2


async def test_otp_071_one_for_all_escalates_when_another_child_cannot_be_restarted(autojump_clock: MockClock) -> None:
    """When the first crashes and the second cannot be started again, the budget burns, and all are stopped."""
    said, _ = await burn(Strategy.ONE_FOR_ALL, "a", "b")
    tried = "+a +b !b -a"
    assert said == f"!a -c -b {tried} {tried} {tried} {tried}"
    # The crash costs 1 s; then the failures of the other are counted as its own: 1, 2 and 4 s.
    assert trio.current_time() == 10 + 1 + 1 + 2 + 4


async def test_otp_072_one_for_all_tries_the_whole_group_again_when_a_later_start_fails(
    autojump_clock: MockClock,
) -> None:
    """When the second fails in a restart, the first is stopped again, and one more try of the whole group succeeds."""
    troupe = Troupe()
    specs = [troupe.spec(name) for name in "abc"]
    root = Supervisor("app", specs, strategy=Strategy.ONE_FOR_ALL, intensity=TWO_AN_HOUR)
    async with running(Tree(root)):
        troupe.take()
        troupe.failing["b"] = 1
        await troupe.crash("a")
        assert troupe.take() == "!a -c -b"
        await until(1)
        assert troupe.take() == "+a +b !b -a"
        await until(2)
        assert troupe.take() == "+a +b +c"
        assert lives(root) == {"a": 3, "b": 3, "c": 2}
        await until(HOUR)
        assert troupe.take() == ""


# 73 to 75: rest for one ----------------------------------------------------------------------------------------------


async def test_otp_073_rest_for_one_takes_the_later_ones_along_until_its_budget_is_burnt(
    autojump_clock: MockClock,
) -> None:
    """When the second of three crashes the first keeps its handle, the third is stopped, and both come back; more
    crashes than the budget allows are too many."""
    troupe = Troupe()
    specs = [troupe.spec(name) for name in "abc"]
    root = Supervisor("app", specs, strategy=Strategy.REST_FOR_ONE, intensity=TWO_AN_HOUR)
    with pytest.raises(RestartLimitExceeded):
        async with running(Tree(root)):
            before = alive(root)
            troupe.take()
            await troupe.crash("b")
            assert troupe.take() == "!b -c"
            assert handles(root) == {"a": before["a"], "b": None, "c": None}
            await until(1)
            assert troupe.take() == "+b +c"
            after = alive(root)
            assert after["a"] is before["a"]
            assert after["b"] is not before["b"]
            assert after["c"] is not before["c"]
            await troupe.crash("c")
            await until(2)
            assert troupe.take() == "!c +c"
            assert lives(root) == {"a": 1, "b": 2, "c": 3}
            await troupe.crash("a")
            await trio.sleep_forever()
    assert troupe.take() == "!a -c -b"
    assert trio.current_time() == 2


async def test_otp_074_rest_for_one_escalates_when_a_later_child_cannot_be_restarted(autojump_clock: MockClock) -> None:
    """When the first crashes and the second cannot be started again, the budget burns, and all are stopped."""
    said, _ = await burn(Strategy.REST_FOR_ONE, "a", "b")
    assert said == "!a -c -b +a +b !b +b !b +b !b +b !b -a"
    assert trio.current_time() == 10 + 1 + 1 + 2 + 4


async def test_otp_075_rest_for_one_tries_only_the_rest_again_when_a_later_start_fails(
    autojump_clock: MockClock,
) -> None:
    """When the second fails in a restart, the first is left running, and only the second on is tried again."""
    troupe = Troupe()
    specs = [troupe.spec(name) for name in "abc"]
    root = Supervisor("app", specs, strategy=Strategy.REST_FOR_ONE, intensity=TWO_AN_HOUR)
    async with running(Tree(root)):
        troupe.take()
        troupe.failing["b"] = 1
        await troupe.crash("a")
        assert troupe.take() == "!a -c -b"
        await until(1)
        assert troupe.take() == "+a +b !b"
        first = root.which_child("a").handle
        assert first is not None
        await until(2)
        assert troupe.take() == "+b +c"
        assert lives(root) == {"a": 2, "b": 3, "c": 2}
        assert root.which_child("a").handle is first
        await until(HOUR)
        assert troupe.take() == ""


OTHER_START_FAILS = {
    Strategy.ONE_FOR_ONE: ["", "+a", "", ""],
    Strategy.ONE_FOR_ALL: ["-c -b -z", "+z +a +b", "-a -z", "+z +a +b +c"],
    Strategy.REST_FOR_ONE: ["-c -b", "+a +b", "", "+b +c"],
}
"""After the crash of the second of four; after its pause; after the failed start of the third; after that pause."""


@pytest.mark.parametrize("strategy", list(Strategy))
def test_core_067_to_075_who_is_taken_along(strategy: Strategy) -> None:
    """By strategy: who is stopped and started when a child crashes, and when a later start fails."""
    play = begun("z", "a", "b", "c", strategy=strategy)
    steps = OTHER_START_FAILS[strategy]
    play.slow_starters.add("b")
    play.crash("a")
    assert play.take() == steps[0]
    play.advance(1)
    assert play.take() == steps[1]
    if strategy is not Strategy.ONE_FOR_ONE:
        assert play.status("b") is Status.STARTING
        play.slow_starters.clear()
        play.crash("b")
    assert play.take() == steps[2]
    play.advance(1)
    assert play.take() == steps[3]
    assert [play.status(name) for name in "zabc"] == [Status.RUNNING] * 4


# 76 to 79: pools -----------------------------------------------------------------------------------------------------


async def test_otp_076_a_pool_starts_who_crashed_again_with_its_own_arguments(autojump_clock: MockClock) -> None:
    """When one child of a pool crashes only it is started again, with its own arguments; too many crashes end it."""
    troupe = Troupe()
    pool = Pool("pool", child("each", troupe.one), intensity=TWO_AN_HOUR)
    with pytest.raises(RestartLimitExceeded):
        async with running(Tree(pool)):
            for args in (("one", 1), ("two", 2), ("three", 3)):
                await pool.start_child(*args)
            before = alive(pool)
            troupe.take()
            await troupe.crash("2")
            await until(1)
            assert troupe.take() == "!2 +2"
            assert lives(pool) == {"1": 1, "2": 2, "3": 1}
            assert alive(pool)["1"] is before["1"]
            assert alive(pool)["3"] is before["3"]
            assert troupe.given == {"1": [("one", 1)], "2": [("two", 2)] * 2, "3": [("three", 3)]}
            await troupe.crash("1")
            await until(2)
            assert troupe.given["1"] == [("one", 1)] * 2
            troupe.take()
            await troupe.crash("3")
            await trio.sleep_forever()
    # Ours, not OTP's: its reason is "shutdown", ours a typed crash.
    assert sorted(troupe.take().split()) == ["!3", "-1", "-2"]
    assert trio.current_time() == 2


async def test_otp_077_the_extra_information_of_a_start_comes_with_each_restart(autojump_clock: MockClock) -> None:
    """A pool whose starts return extra information restarts its children as well, and has that of the new start."""
    troupe = Troupe()
    pool = Pool("pool", child("each", troupe.one), intensity=TWO_AN_HOUR)
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        assert handle.info == "1 #1"
        await troupe.crash("1")
        await until(1)
        assert lives(pool) == {"1": 2}
        assert alive(pool)["1"].info == "1 #2"
        assert handle.info == "1 #1"


async def test_otp_078_a_pool_escalates_when_a_child_cannot_be_restarted(autojump_clock: MockClock) -> None:
    """A child of a pool that never comes back burns the budget; then all children of the pool end."""
    troupe = Troupe()
    pool = Pool("pool", child("each", troupe.one), intensity=FOUR_AN_HOUR)
    with pytest.raises(RestartLimitExceeded):
        async with running(Tree(pool)):
            for _ in range(3):
                await pool.start_child()
            troupe.take()
            troupe.failing["2"] = 1000
            await troupe.crash("2")
            await trio.sleep_forever()
    said = troupe.take().split()
    assert said[:9] == ["!2", "+2", "!2", "+2", "!2", "+2", "!2", "+2", "!2"]
    assert sorted(said[9:]) == ["-1", "-3"]
    assert trio.current_time() == 1 + 2 + 4 + 8


@pytest.mark.parametrize("restart", [Restart.PERMANENT, Restart.TRANSIENT])
async def test_otp_079_a_child_of_a_pool_that_ignores_its_restart_is_gone(
    restart: Restart, autojump_clock: MockClock
) -> None:
    """A child of a pool that dies twice, and then says that there is nothing to run, vanishes; the pool is healthy."""

    async def body(child: Child, kind: str) -> None:
        if kind == "dying" and child.incarnation == 3:
            raise Ignore("nothing to run any more")
        child.started()
        await trio.sleep(5 if kind == "dying" else HOUR * 24)
        raise Misbehaved

    pool = Pool("pool", child("each", body, restart=restart))
    tree = Tree(pool)
    with tree.subscribe() as events:
        async with running(tree):
            await pool.start_child("well")
            handle = await pool.start_child("dying")
            assert handle is not None
            await until(12)  # dead at 5, back at 6, dead at 11
            assert states(pool) == {"1": "running", "2": "backoff"}
            await until(13)  # the second pause is 2 s
            assert lives(pool) == {"1": 1}
            assert counts(pool) == (1, 1, 0, 1)
            with pytest.raises(NotFound):
                pool.which_child(handle)
            assert await pool.start_child("well") is not None
            assert lives(pool) == {"1": 1, "3": 1}
            await until(HOUR)
            assert lives(pool) == {"1": 1, "3": 1}
        kinds = [event.kind for event in events.drain() if event.path == "pool/2"]
    assert kinds.count(LifecycleKind.CHILD_STARTING) == 3
    assert kinds[-2:] == [LifecycleKind.CHILD_IGNORED, LifecycleKind.CHILD_REMOVED]


# 80 to 82: a tree ----------------------------------------------------------------------------------------------------


class Grove:
    """A one_for_all top over three supervisors, each of which makes 2 restarts an hour; "d" was added by a call."""

    def __init__(self) -> None:
        self.troupe = Troupe()
        self.first = self._supervisor("first", "ab")
        self.second = self._supervisor("second", "c")
        self.third = self._supervisor("third", "e")
        specs = [
            self.first.spec(backoff=PLAIN),
            self.second.spec(backoff=PLAIN),
            self.third.spec(backoff=PLAIN, restart=Restart.TRANSIENT),
        ]
        self.top = Supervisor("top", specs, strategy=Strategy.ONE_FOR_ALL, intensity=FOUR_AN_HOUR)
        self.tree = Tree(self.top)

    def _supervisor(self, name: str, leaves: str) -> Supervisor:
        return Supervisor(name, [self.troupe.spec(leaf) for leaf in leaves], intensity=TWO_AN_HOUR)

    async def grow(self) -> None:
        """Add the child that no plan knows."""
        assert await self.second.start_child(self.troupe.spec("d")) is not None
        assert self.troupe.take() == "+a +b +c +e +d"

    async def break_leaf(self) -> None:
        """Let "a" crash, and fail in its next two starts: one attempt too many for its supervisor, at 3 s."""
        self.troupe.failing["a"] = 2
        await self.troupe.crash("a")
        await until(3)


async def test_otp_080_a_leaf_that_is_restarted_concerns_its_own_supervisor_alone(autojump_clock: MockClock) -> None:
    """When a leaf crashes and is restarted, only the list of its own supervisor changes."""
    grove = Grove()
    async with running(grove.tree):
        await grove.grow()
        others = [grove.top, grove.second, grove.third]
        before, lists = alive(grove.first), [each.which_children() for each in others]
        await grove.troupe.crash("a")
        await until(1)
        assert grove.troupe.take() == "!a +a"
        after = alive(grove.first)
        assert after["a"] is not before["a"]
        assert after["b"] is before["b"]
        assert [each.which_children() for each in others] == lists


async def test_otp_081_a_leaf_that_cannot_be_restarted_costs_all_sub_trees_a_restart(autojump_clock: MockClock) -> None:
    """Its supervisor leaves; the top restarts all of them in order, with their static leaves, and no others."""
    grove = Grove()
    async with running(grove.tree):
        await grove.grow()
        before = alive(grove.top)
        await grove.break_leaf()
        assert grove.troupe.take() == "!a +a !a +a !a -b -e -d -c"
        assert states(grove.top) == {"first": "backoff", "second": "waiting", "third": "waiting"}
        await until(4)
        assert grove.troupe.take() == "+a +b +c +e"
        assert lives(grove.top) == {"first": 2, "second": 2, "third": 2}
        assert not any(handle.is_alive for handle in before.values())
        assert [lives(each) for each in (grove.first, grove.second, grove.third)] == [
            {"a": 1, "b": 1},
            {"c": 1},
            {"e": 1},
        ]
        assert counts(grove.second) == (1, 1, 0, 1)
        crashed = grove.tree.snapshot().find("top/first")
        assert crashed is not None
        assert crashed.last_error is not None
        assert crashed.last_error.type.endswith("RestartLimitExceeded")


async def test_otp_082_a_stopped_sub_supervisor_is_started_with_its_group(autojump_clock: MockClock) -> None:
    """When the group restarts, a transient supervisor that a call had stopped is started too."""
    grove = Grove()
    async with running(grove.tree):
        await grove.grow()
        await grove.top.terminate_child("third")
        assert grove.troupe.take() == "-e"
        assert states(grove.top) == {"first": "running", "second": "running", "third": "ended"}
        await grove.break_leaf()
        assert grove.troupe.take() == "!a +a !a +a !a -b -d -c"
        await until(4)
        assert grove.troupe.take() == "+a +b +c +e"
        assert lives(grove.top) == {"first": 2, "second": 2, "third": 2}


# 83 to 87: endless loops ---------------------------------------------------------------------------------------------

IN_LOOP = pytest.mark.parametrize(("at", "state"), [(4.0, "backoff"), (1.25, "starting")])
"""A child that crashed at 0 s and takes 0.5 s over each failing start is in its second pause, or its first start."""


class Loop:
    """A child that crashed at 0 s and whose starts fail, for ever, beside those that stand before and behind it."""

    def __init__(self, names: str = "m", strategy: Strategy = Strategy.ONE_FOR_ONE) -> None:
        self.troupe = Troupe(slow=0.5)
        self.specs = {name: self.troupe.spec(name) for name in names}
        self.root = Supervisor("app", self.specs.values(), strategy=strategy, intensity=ANY_NUMBER)
        self.tree = Tree(self.root)

    async def begin(self, at: float) -> None:
        self.troupe.failing["m"] = 1_000_000
        await self.troupe.crash("m")
        await until(at)
        self.troupe.take()

    def heal(self) -> None:
        self.troupe.failing.clear()


async def holds_83(loop: Loop, name: str, state: str) -> None:
    """A child that is being restarted can neither be added, restarted nor deleted, and all of it at once."""
    now = trio.current_time()
    with pytest.raises(AlreadyPresent):
        await loop.root.start_child(loop.specs[name])
    with pytest.raises(StillRestarting):
        await loop.root.restart_child(name)
    with pytest.raises(StillRestarting):
        await loop.root.delete_child(name)
    # OTP's "restarting" is "backoff" or "starting" with us.
    assert loop.root.which_child(name).state == state
    assert trio.current_time() == now


async def holds_84(loop: Loop) -> None:
    """Stopped by its id the child leaves the loop at once; it may be restarted by id, and comes up if it can."""
    now = trio.current_time()
    await loop.root.terminate_child("m")
    assert trio.current_time() == now
    assert (loop.root.which_child("m").state, loop.root.which_child("m").handle) == ("ended", None)
    loop.troupe.take()
    await until(now + HOUR)
    assert "m" not in loop.troupe.take()
    assert loop.root.which_child("m").state == "ended"
    with pytest.raises(StartFailed):
        await loop.root.restart_child("m")
    assert loop.root.which_child("m").state == "ended"
    loop.heal()
    handle = await loop.root.restart_child("m")
    assert handle is not None
    assert handle is loop.root.which_child("m").handle
    assert loop.root.which_child("m").state == "running"


@IN_LOOP
async def test_otp_083_calls_find_a_child_in_an_endless_restart(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """While a child cannot be restarted: add says present, restart and delete say restarting, and so does the list."""
    loop = Loop()
    async with running(loop.tree):
        await loop.begin(at)
        await holds_83(loop, "m", state)
        assert counts(loop.root) == (1, 0, 0, 1)
        assert states(loop.root) == {"m": state}


@IN_LOOP
async def test_otp_084_a_call_ends_an_endless_restart(at: float, state: str, autojump_clock: MockClock) -> None:
    """Stopped by its id the child is stopped, and nobody tries again; restart by id works later."""
    loop = Loop()
    async with running(loop.tree):
        await loop.begin(at)
        assert loop.root.which_child("m").state == state
        await holds_84(loop)
        assert counts(loop.root) == (1, 1, 0, 1)


@IN_LOOP
async def test_otp_085_an_endless_restart_does_not_hold_up_the_stop(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """Told to stop, the supervisor stops at once."""
    loop = Loop()
    async with running(loop.tree):
        await loop.begin(at)
        assert loop.root.which_child("m").state == state
    assert loop.troupe.take() == ("-m" if state == "starting" else "")
    assert trio.current_time() == at


@IN_LOOP
async def test_otp_086_in_rest_for_one_the_endless_restart_concerns_the_later_one_too(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """With the middle child in the loop the earlier one runs, the later one is stopped; calls find them so."""
    loop = Loop("amz", Strategy.REST_FOR_ONE)
    async with running(loop.tree):
        before = alive(loop.root)
        await loop.begin(at)
        assert handles(loop.root)["a"] is before["a"]
        assert not before["z"].is_alive
        assert states(loop.root) == {"a": "running", "m": state, "z": "waiting"}
        assert counts(loop.root) == (3, 1, 0, 3)
        await holds_83(loop, "m", state)
        await holds_83(loop, "z", "waiting")  # it comes back with its group, so it is being restarted, too


@IN_LOOP
async def test_otp_086_in_rest_for_one_a_call_ends_the_endless_restart(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """Stopped by its id the middle child is stopped; restart by id works later; the earlier one is never touched."""
    loop = Loop("amz", Strategy.REST_FOR_ONE)
    async with running(loop.tree):
        first = alive(loop.root)["a"]
        await loop.begin(at)
        await holds_84(loop)
        # Ours, not OTP's: nobody has told the later one to stop, so it comes back once the loop is over.
        assert states(loop.root) == {"a": "running", "m": "running", "z": "running"}
        assert alive(loop.root)["a"] is first
        assert counts(loop.root) == (3, 3, 0, 3)


@IN_LOOP
async def test_otp_086_in_rest_for_one_an_endless_restart_does_not_hold_up_the_stop(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """Told to stop, the supervisor stops at once, backwards."""
    loop = Loop("amz", Strategy.REST_FOR_ONE)
    async with running(loop.tree):
        await loop.begin(at)
    assert loop.troupe.take() == ("-m -a" if state == "starting" else "-a")
    assert trio.current_time() == at


@IN_LOOP
async def test_otp_087_in_a_pool_an_endless_restart_goes_by_handle(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """A pool's child in the loop is found, and stopped, by its handle; the pool takes calls, and stops, at once."""
    troupe = Troupe(slow=0.5)
    pool = Pool("pool", child("each", troupe.one), intensity=ANY_NUMBER)
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        troupe.failing["1"] = 1_000_000
        await troupe.crash("1")
        await until(at)
        for call in (pool.restart_child, pool.delete_child):
            with pytest.raises(IsAPool):
                await call(handle)
        assert pool.which_child(handle).state == state
        assert states(pool) == {"1": state}
        assert counts(pool) == (1, 0, 0, 1)
        other = await pool.start_child()
        assert other is not None
        assert counts(pool) == (1, 1, 0, 2)
        assert trio.current_time() == at

        await pool.terminate_child(handle)
        assert trio.current_time() == at
        assert states(pool) == {"2": "running"}
        troupe.take()
        with pytest.raises(NotFound):
            pool.which_child(handle)
        await pool.terminate_child(handle)  # a dead one of its own is fine
        await trio.sleep(HOUR)
        assert troupe.take() == ""
        assert states(pool) == {"2": "running"}


@IN_LOOP
async def test_otp_087_in_a_pool_an_endless_restart_does_not_hold_up_the_stop(
    at: float, state: str, autojump_clock: MockClock
) -> None:
    """Told to stop, the pool stops at once."""
    troupe = Troupe(slow=0.5)
    pool = Pool("pool", child("each", troupe.one), intensity=ANY_NUMBER)
    async with running(Tree(pool)):
        handle = await pool.start_child()
        assert handle is not None
        troupe.failing["1"] = 1_000_000
        await troupe.crash("1")
        await until(at)
        assert pool.which_child(handle).state == state
    assert trio.current_time() == at


def test_core_085_a_stop_in_a_pause_starts_nobody_any_more() -> None:
    """Told to stop in a pause the core stops who is up, and finishes; the pause wakes nobody."""
    play = Play([spec("a"), spec("m"), spec("z")], Strategy.REST_FOR_ONE)
    play.tell(Begin())
    play.crash("m")
    play.take()
    play.tell(StopOrdered("enough"))
    assert play.take() == "-a"
    assert play.finished is not None
    assert play.finished.error is None
    play.advance(HOUR)
    assert play.take() == ""
