"""Pauses and budgets: when a crashed child is started again, and how often (lines 113 to 120 of the list)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
from playing import Play, begun, spec
from trio.testing import MockClock
from worlds import GROUPS, make

from penstock.runtime.supervision import (
    Backoff,
    Body,
    Child,
    ChildSpec,
    Decay,
    Directive,
    Gates,
    Intensity,
    LifecycleKind,
    RestartLimitExceeded,
    Rule,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.supervision.budget import budget_of
from penstock.runtime.supervision.messages import Begin, ChildEnded, ChildReady, Status
from penstock.runtime.supervision.outcome import Outcome
from penstock.runtime.testing import Misbehaved, running, slow_starter, steady

AT_ONCE = Backoff(minimum=0.0, maximum=0.0)
PLENTY = Intensity(10_000, 1.0)


class Starts:
    """When bodies began, by the name that they were given."""

    def __init__(self) -> None:
        self.of_all: list[tuple[str, float]] = []

    def of(self, name: str) -> list[float]:
        return [at for each, at in self.of_all if each == name]

    def noted(self, name: str, body: Body) -> Body:
        async def kept(child: Child) -> None:
            self.of_all.append((name, trio.current_time()))
            await body(child)

        return kept


def living(*lives: float, error: Callable[[], Exception] = Misbehaved) -> Body:
    """Crashes after each of these lives, and then lives on for good."""
    left = iter(lives)

    async def body(child: Child) -> None:
        child.started()
        await trio.sleep(next(left, float("inf")))
        raise error()

    return body


def crashing_at(*instants: float | tuple[float, type[Exception]]) -> Body:
    """Crashes at each of these instants, of the run's clock, and then lives on for good."""
    left = iter(instants)

    async def body(child: Child) -> None:
        child.started()
        what = next(left, float("inf"))
        at, error = what if isinstance(what, tuple) else (what, Misbehaved)
        await trio.sleep_until(at)
        raise error(f"at {at:g}")

    return body


def app(*specs: ChildSpec, **options: Any) -> Tree:
    return make(*specs, **{"intensity": PLENTY, **options})


def distances(instants: list[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(instants)]


# 113 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", ["crash", "fail"])
async def test_own_113_the_pauses_grow_by_the_factor_up_to_the_maximum(word: str, autojump_clock: MockClock) -> None:
    """From 1 s by a factor of 2 to 10 s: a child that crashes again and again, or never comes up again, is started at
    +1, +2, +4, +8, +10, +10 s."""
    starts = Starts()

    async def body(child: Child) -> None:
        if word == "crash" or child.incarnation == 1:
            child.started()
        raise Misbehaved

    backoff = Backoff(minimum=1.0, maximum=10.0, factor=2.0, jitter=0.0)
    tree = app(ChildSpec(id="a", body=starts.noted("a", body), backoff=backoff))
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(36)
        told = [event.seconds for event in events.drain() if event.kind is LifecycleKind.CHILD_BACKOFF]
    assert distances(starts.of("a")) == [1, 2, 4, 8, 10, 10]
    assert starts.of("a")[0] == 0
    assert told == [1, 2, 4, 8, 10, 10, 10]


async def test_own_113_the_pause_begins_at_the_crash_and_is_shown(autojump_clock: MockClock) -> None:
    """The pause is counted from the crash, not from the start, and the snapshot counts it down."""
    starts = Starts()
    backoff = Backoff(minimum=1.0, maximum=10.0, factor=2.0, jitter=0.0)
    tree = app(ChildSpec(id="a", body=starts.noted("a", living(0.5, 0.5, 0.5)), backoff=backoff))
    async with running(tree):
        await trio.sleep(2.25)  # crashed at 0.5 and 2.0
        view = tree.snapshot().find("app/a")
        assert view is not None
        assert (view.state, view.next_start_in, view.restarts) == ("backoff", 1.75, 2)
        await trio.sleep(20)
    assert starts.of("a") == [0, 1.5, 4, 8.5]


def test_core_113_the_next_start_is_due_at_the_very_instant() -> None:
    """The core starts it when the pause is over, and not a moment earlier."""
    play = begun("a")
    for pause in (1, 2, 4, 8, 10, 10, 10):
        play.crash("a")
        play.advance(pause - 2**-10)
        assert play.take() == ""
        play.advance(2**-10)
        assert play.take() == "+a"


# 114 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("life", "pauses"),
    [(59.999, [1, 2, 4, 8, 10]), (60.0, [1, 2, 4, 1, 2]), (3600.0, [1, 2, 4, 1, 2])],
)
async def test_own_114_a_life_of_reset_after_wipes_the_count(
    life: float, pauses: list[float], autojump_clock: MockClock
) -> None:
    """A child that was ready for `reset_after` begins with the minimum again, as if it had never crashed.

    (Akka's default for it is the mean of minimum and maximum; ours is 60 s.)
    """
    assert Backoff().reset_after == 60
    backoff = Backoff(minimum=1.0, maximum=10.0, factor=2.0, jitter=0.0)
    tree = app(ChildSpec(id="a", body=living(0, 0, 0, life, 0), backoff=backoff))
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(4000)
        told = [event.seconds for event in events.drain() if event.kind is LifecycleKind.CHILD_BACKOFF]
    assert told == pauses


async def test_own_114_what_counts_is_the_time_in_which_it_was_ready(autojump_clock: MockClock) -> None:
    """A minute spent over coming up is no good life."""
    starts = Starts()

    async def body(child: Child) -> None:
        await trio.sleep(70 if child.incarnation == 3 else 0)
        child.started()
        await trio.sleep(1)
        raise Misbehaved

    backoff = Backoff(minimum=1.0, maximum=10.0, factor=2.0, jitter=0.0)
    tree = app(ChildSpec(id="a", body=starts.noted("a", body), backoff=backoff, start_within=100))
    async with running(tree):
        await trio.sleep(90)
    assert starts.of("a")[:4] == [0, 1 + 1, 3 + 2, 5 + 70 + 1 + 4]


def test_core_114_the_count_of_crashes_in_a_row_is_0_then_and_the_budget_is_not() -> None:
    """The long life wipes the row of crashes; the total of restarts, and what the budget has spent, stay."""
    play = begun("a", intensity=Intensity(10, 1000.0))
    child = play.core.children["a"]
    for _ in range(3):
        play.crash("a")
        play.advance(10)
    assert (child.tallies.of(None).crashes, child.restarts) == (3, 3)
    play.advance(60)
    play.crash("a")
    assert (child.tallies.of(None).crashes, child.restarts) == (1, 4)
    assert play.core.budget.left(play.now) == 6


# 115 -----------------------------------------------------------------------------------------------------------------


class Red(Exception):
    pass


class Blue(Exception):
    pass


RED = Rule(Red, Directive.RESTART, backoff=Backoff(1.0, 100.0, jitter=0.0), limit=Intensity(3, 1000.0))
BLUE = Rule(Blue, Directive.RESTART, backoff=Backoff(10.0, 100.0, jitter=0.0), limit=Intensity(2, 1000.0))


async def test_own_115_each_rule_has_a_row_of_crashes_of_its_own(autojump_clock: MockClock) -> None:
    """Red and blue crashes in turn: each colour's pauses grow by its own count, and plain crashes by the child's.

    (Ours are rules side by side in one policy where Akka nests two backoff supervisors.)
    """
    errors = iter([Red, Blue, ValueError, Red, Blue, ValueError, Red])
    tree = app(
        ChildSpec(
            id="a",
            body=living(0, 0, 0, 0, 0, 0, 0, error=lambda: next(errors)()),
            backoff=Backoff(0.5, 100.0, jitter=0.0),
            policy=[RED, BLUE],
        ),
        intensity=Intensity(2, 1000.0),
    )
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(500)
            assert tree.snapshot().root.restarts_left == 0  # spent by the two plain crashes alone
        told = [event.seconds for event in events.drain() if event.kind is LifecycleKind.CHILD_BACKOFF]
    assert told == [1, 10, 0.5, 2, 20, 1, 4]


@pytest.mark.parametrize(
    ("colours", "limit"),
    [("rrrr", "3 restarts in 1000 s"), ("bbb", "2 restarts in 1000 s"), ("rbrbrr", "3 restarts"), ("rbrbb", "2 res")],
)
async def test_own_115_each_rule_has_a_limit_of_its_own(colours: str, limit: str, autojump_clock: MockClock) -> None:
    """One more crash of a colour than its limit allows ends it, however many there were of the other."""
    errors = iter(colours)
    made = {"r": Red, "b": Blue}
    crashing = living(*[0.0] * len(colours), error=lambda: made[next(errors)]())
    tree = app(ChildSpec(id="a", body=crashing, policy=[RED, BLUE]), intensity=Intensity(0, 1.0))
    with pytest.raises(RestartLimitExceeded, match=f"more than {limit}") as caught:
        await tree.run()
    assert type(caught.value.__cause__) is made[colours[-1]]
    assert next(errors, None) is None


def test_core_115_a_rule_without_numbers_of_its_own_shares_the_child_s() -> None:
    """A rule that has neither a backoff nor a limit counts with the plain crashes."""
    play = Play([spec("a", policy=[Rule(Red, Directive.RESTART), BLUE])], intensity=Intensity(10, 1000.0))
    play.tell(Begin())
    pauses = []
    for error in (Red, ValueError, Blue, Red):
        play.end("a", error())
        pauses.append(play.core.next_deadline() - play.now)
        play.advance(pauses[-1])
    assert pauses == [1, 2, 10, 4]
    assert play.core.budget.left(play.now) == 7


# 116 -----------------------------------------------------------------------------------------------------------------


def limited(where: str, limit: Intensity | Decay, body: Body) -> Tree:
    """A tree with this limit, either of the supervisor or of a rule of its child's."""
    if where == "supervisor":
        return app(ChildSpec(id="a", body=body, backoff=AT_ONCE), intensity=limit)
    rule = Rule(Misbehaved, Directive.RESTART, limit=limit)
    return app(ChildSpec(id="a", body=body, backoff=AT_ONCE, policy=[rule]), intensity=Intensity(0, 1.0))


WHERE = ["supervisor", "rule"]


@pytest.mark.parametrize("where", WHERE)
async def test_own_116_a_limit_of_0_escalates_the_first_crash(where: str, autojump_clock: MockClock) -> None:
    """Limit 0: the first crash is the supervisor's own, with the crash as its cause."""
    tree = limited(where, Intensity(0, 60.0), crashing_at(7.0))
    with pytest.raises(RestartLimitExceeded, match="more than 0 restarts in 60 s; the last was of a: ") as caught:
        await tree.run()
    assert trio.current_time() == 7
    assert isinstance(caught.value.__cause__, Misbehaved)


@pytest.mark.parametrize("where", WHERE)
async def test_own_116_with_a_limit_of_2_in_a_minute_the_third_crash_escalates(
    where: str, autojump_clock: MockClock
) -> None:
    """Limit 2 in 1 min: two crashes are restarts, the third inside of the minute is the end."""
    tree = limited(where, Intensity(2, 60.0), crashing_at(10.0, 30.0, 69.0))
    with pytest.raises(RestartLimitExceeded):
        await tree.run()
    assert trio.current_time() == 69


@pytest.mark.parametrize("where", WHERE)
async def test_own_116_after_the_window_the_count_starts_anew(where: str, autojump_clock: MockClock) -> None:
    """What is more than a minute ago is forgotten; what is exactly one minute ago counts, as in OTP."""
    # 10 and 30 are forgotten at 90.5; 91, 92 are two again; 120 is a third.
    tree = limited(where, Intensity(2, 60.0), crashing_at(10.0, 30.0, 90.5, 92.0, 120.0))
    with pytest.raises(RestartLimitExceeded, match="at 120"):
        await tree.run()
    assert trio.current_time() == 120


@pytest.mark.parametrize(("third", "is_over"), [(70.0, True), (70.001, False)])
def test_core_116_the_edge_of_the_window_is_inside(third: float, is_over: bool) -> None:
    """A crash exactly one period old still counts."""
    play = Play([spec("a", backoff=AT_ONCE)], intensity=Intensity(2, 60.0))
    play.tell(Begin())
    for at in (10.0, 30.0, third):
        play.advance(at - play.now)
        play.crash("a")
    assert (play.finished is not None) is is_over


# 117 -----------------------------------------------------------------------------------------------------------------

JITTERY = Backoff(minimum=1.0, maximum=10.0, factor=2.0, jitter=0.5)


async def pauses_of(seed: int) -> list[float]:
    starts = Starts()
    body = starts.noted("a", living(*[0.0] * 100))
    tree = Tree(Supervisor("app", [ChildSpec(id="a", body=body, backoff=JITTERY)], intensity=PLENTY), seed=seed)
    async with running(tree):
        await trio.sleep(100 * 15)
    return distances(starts.of("a"))


async def test_own_117_each_pause_is_stretched_by_less_than_its_share(autojump_clock: MockClock) -> None:
    """With a jitter of 0.5 each pause lies in [d, 1.5 d), the capped ones too, and all over it."""
    assert Backoff().jitter == 0.5
    pauses = await pauses_of(7)
    assert len(pauses) == 100
    for number, pause in enumerate(pauses):
        plain = min(10.0, 2.0**number)
        assert plain - 1e-9 <= pause < 1.5 * plain
    stretches = sorted(pause / 10 for pause in pauses[4:])
    assert stretches[0] < 1.05
    assert stretches[-1] > 1.45


async def test_own_117_a_seeded_run_repeats_exactly(autojump_clock: MockClock) -> None:
    """The same seed gives the same pauses, another seed others."""
    first = await pauses_of(7)
    again = await pauses_of(7)
    other = await pauses_of(8)
    assert again == pytest.approx(first, abs=1e-9)  # the same draws; the clock stands elsewhere, and rounds
    assert all(abs(mine - theirs) > 1e-9 for mine, theirs in zip(first[4:], other[4:], strict=True))


async def test_own_117_supervisors_below_repeat_too(autojump_clock: MockClock) -> None:
    """The tree's seed is that of all its supervisors, in each of their lives; and no two of them draw alike."""

    async def told(seed: int) -> list[tuple[str, float]]:
        low, other = (
            Supervisor(
                name, [ChildSpec(id="a", body=living(*[0.0] * 20), backoff=JITTERY)], intensity=Intensity(5, 1e4)
            )
            for name in ("low", "other")
        )
        tree = Tree(Supervisor("app", [low.spec(), other.spec()], intensity=PLENTY), seed=seed)
        with tree.subscribe() as events:
            async with running(tree):
                await trio.sleep(120)
            backoffs = [each for each in events.drain() if each.kind is LifecycleKind.CHILD_BACKOFF]
        return sorted((event.path, event.seconds or 0.0) for event in backoffs)

    first = await told(7)
    assert len(first) > 20
    assert await told(7) == first
    assert await told(8) != first
    of = {name: [seconds for path, seconds in first if path == f"app/{name}/a"] for name in ("low", "other")}
    assert set(of["low"]).isdisjoint(of["other"])
    assert len(set(of["low"])) == len(of["low"])


@pytest.mark.parametrize("crashes", [1, 2, 3, 4, 5, 100, 100_000])
def test_core_117_the_stretch_is_half_open(crashes: int) -> None:
    """A chance of 0 gives d itself; one just below 1 gives less than 1.5 d (but for the last three bits of a float)."""
    plain = min(10.0, 2.0 ** min(crashes - 1, 10))
    assert JITTERY.delay(crashes, 0.0) == plain
    assert JITTERY.delay(crashes, 1 - 2**-50) < 1.5 * plain
    assert JITTERY.delay(crashes, 0.5) == 1.25 * plain


# 118 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", WHERE)
async def test_own_118_a_steady_drip_never_trips_a_decaying_count(where: str, autojump_clock: MockClock) -> None:
    """Half-life 30 s, threshold 5: one crash each 30 s, for hours, is no reason to give up."""
    starts = Starts()
    tree = limited(where, Decay(threshold=5, half_life=30.0), starts.noted("a", living(*[30.0] * 200)))
    async with running(tree):
        await trio.sleep(30 * 200 + 1)
    assert starts.of("a") == [30.0 * number for number in range(201)]


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("life", [0.0, 0.5])
async def test_own_118_six_in_a_row_trip_it(where: str, life: float, autojump_clock: MockClock) -> None:
    """The sixth crash in a row does, the fifth does not; also after hours of drip had worn off."""
    starts = Starts()
    tree = limited(where, Decay(threshold=5, half_life=30.0), starts.noted("a", living(3600.0, *[life] * 5)))
    with pytest.raises(RestartLimitExceeded, match="a count of 5 restarts with a half-life of 30 s"):
        await tree.run()
    assert len(starts.of("a")) == 6
    assert trio.current_time() == 3600 + 5 * life


def test_core_118_the_count_halves_every_half_life() -> None:
    """Pure: the count tends to 2 under a drip of one for each half-life, and what is left says so."""
    budget = budget_of(Decay(threshold=5, half_life=30.0))
    assert all(budget.spend(30.0 * number) for number in range(10_000))
    assert budget.left(30.0 * 9_999) == 3  # 5 - 2
    burst = budget_of(Decay(threshold=5, half_life=30.0))
    assert [burst.spend(0.0) for _ in range(6)] == [True] * 5 + [False]
    assert [burst.left(at) for at in (0.0, 30.0, 60.0, 1e9)] == [0, 2, 3, 5]


# 119 -----------------------------------------------------------------------------------------------------------------

TEN = [f"c{number}" for number in range(10)]


async def test_own_119_ten_that_come_back_together_start_in_order_and_spaced(autojump_clock: MockClock) -> None:
    """Ten children crash at one instant; when their pause is over they start in the order of their specifications,
    one each hundredth of a second."""
    starts = Starts()
    backoff = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)
    tree = app(*[ChildSpec(id=name, body=starts.noted(name, crashing_at(5.0)), backoff=backoff) for name in TEN])
    async with running(tree):
        await trio.sleep(4)
        starts.of_all.clear()
        await trio.sleep(4)
    assert [name for name, _ in starts.of_all] == TEN
    assert [at for _, at in starts.of_all] == pytest.approx([6 + 0.01 * number for number in range(10)])


@pytest.mark.parametrize("stagger", [0.0, 0.5])
async def test_own_119_the_spacing_is_the_supervisor_s_stagger(stagger: float, autojump_clock: MockClock) -> None:
    """`stagger` says how far apart; 0 means all at once, in order all the same."""
    starts = Starts()
    backoff = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)
    specs = [ChildSpec(id=name, body=starts.noted(name, crashing_at(5.0)), backoff=backoff) for name in TEN]
    tree = app(*specs, stagger=stagger)
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(20)
        told = [each.path for each in events.drain() if each.kind is LifecycleKind.CHILD_STARTING]
    assert told[10:] == [f"app/{name}" for name in TEN]
    assert sorted(at for _, at in starts.of_all[10:]) == [6 + stagger * number for number in range(10)]


async def test_own_119_pauses_that_end_one_after_the_other_are_spaced_too(autojump_clock: MockClock) -> None:
    """With jitter the pauses end here and there; nobody starts closer than the stagger to the one before."""
    starts = Starts()
    specs = [ChildSpec(id=name, body=starts.noted(name, crashing_at(5.0)), backoff=JITTERY) for name in TEN]
    tree = app(*specs, stagger=0.04)
    async with running(tree):
        await trio.sleep(20)
    back = [at for _, at in starts.of_all[10:]]
    assert len(back) == 10
    assert 6 <= back[0] < 6.5
    assert all(distance >= 0.04 - 1e-9 for distance in distances(back))
    assert max(distances(back)) > 0.04 + 1e-9  # they did not simply queue up behind the first one


async def test_own_119_so_are_those_that_a_gate_had_held(autojump_clock: MockClock) -> None:
    """When a dependency is back its users come in order and spaced, after its settle time."""
    starts = Starts()
    gates = Gates()
    gate = gates.add("redis", settle=0.25, shut="refused")
    specs = [ChildSpec(id=name, body=starts.noted(name, steady()), requires=["redis"]) for name in TEN]
    tree = Tree(Supervisor("app", specs), gates=gates)
    async with running(tree):
        await trio.sleep(4)
        assert starts.of_all == []
        gate.open()
        await trio.sleep(4)
    assert [name for name, _ in starts.of_all] == TEN
    assert [at for _, at in starts.of_all] == pytest.approx([4.25 + 0.01 * number for number in range(10)])


@pytest.mark.parametrize("strategy", GROUPS)
async def test_own_119_a_group_starts_one_after_the_other(strategy: Strategy, autojump_clock: MockClock) -> None:
    """In a group each one waits for the readiness of the one before: that is spacing enough."""
    starts = Starts()
    backoff = Backoff(minimum=1.0, maximum=10.0, jitter=0.0)
    first = starts.noted("c0", crashing_at(50.0))
    specs = [ChildSpec(id=name, body=starts.noted(name, slow_starter(0.5)), backoff=backoff) for name in TEN[1:]]
    tree = app(ChildSpec(id="c0", body=first, backoff=backoff), *specs, strategy=strategy)
    async with running(tree):
        await trio.sleep_until(60)
    assert starts.of_all[10:] == [("c0", 51.0), *((name, 51 + 0.5 * i) for i, name in enumerate(TEN[1:]))]


# 120 -----------------------------------------------------------------------------------------------------------------


def joined(strategy: Strategy, **pauses: tuple[float, float]) -> tuple[Tree, Starts]:
    """Children that crash at an instant, and then pause, as said; the others are steady."""
    starts = Starts()
    specs = []
    for name in "abc":
        at, pause = pauses.get(name, (float("inf"), 1.0))
        backoff = Backoff(minimum=pause, maximum=100.0, jitter=0.0)
        specs.append(ChildSpec(id=name, body=starts.noted(name, crashing_at(at)), backoff=backoff))
    return app(*specs, strategy=strategy, intensity=Intensity(2, 1000.0)), starts


async def test_own_120_a_sibling_s_crash_in_the_pause_joins_both_in_one_group_start(autojump_clock: MockClock) -> None:
    """rest_for_one, b waits for its restart until 4, a crashes at 2 and waits until 12: at 12 all start, once."""
    tree, starts = joined(Strategy.REST_FOR_ONE, a=(2.0, 10.0), b=(1.0, 3.0))
    async with running(tree):
        await trio.sleep(100)
        assert tree.snapshot().root.restarts_left == 0  # two crashes, two entries, as OTP counts
    assert starts.of_all[3:] == [("a", 12.0), ("b", 12.0), ("c", 12.0)]


async def test_own_120_the_shorter_pause_of_an_earlier_sibling_cuts_no_other_short(autojump_clock: MockClock) -> None:
    """The other way round: a is back when its own pause is over, b waits for the rest of its own, c for b; each starts
    once."""
    tree, starts = joined(Strategy.REST_FOR_ONE, a=(3.0, 1.0), b=(1.0, 10.0))
    async with running(tree):
        await trio.sleep(100)
        assert tree.snapshot().root.restarts_left == 0
    assert starts.of_all[3:] == [("a", 4.0), ("b", 11.0), ("c", 11.0)]


async def test_own_120_a_later_sibling_is_down_in_the_pause_and_comes_once(autojump_clock: MockClock) -> None:
    """c was stopped with its group at 1: its own crash, due at 2, never happens, and the three come back together."""
    tree, starts = joined(Strategy.REST_FOR_ONE, a=(1.0, 4.0), c=(2.0, 4.0))
    async with running(tree):
        await trio.sleep(100)
        assert tree.snapshot().root.restarts_left == 1
    assert starts.of_all[3:6] == [("a", 5.0), ("b", 5.0), ("c", 5.0)]


@pytest.mark.parametrize("strategy", GROUPS)
def test_core_120_a_crash_on_the_way_out_with_the_group_is_no_second_restart(strategy: Strategy) -> None:
    """b crashes, c is told to leave and crashes meanwhile: one cause, one entry in the budget, one start of each."""
    play = begun("a", "b", "c", strategy=strategy)
    left = play.core.budget.left(play.now)
    play.deaf.update("abc")
    play.crash("b")
    assert play.take() == "-c"
    play.crash("c")
    if strategy is Strategy.ONE_FOR_ALL:
        assert play.take() == "-a"
        play.crash("a")
    play.deaf.clear()
    play.advance(0.9)
    assert play.take() == ""
    play.advance(0.1)
    assert play.take() == ("+a +b +c" if strategy is Strategy.ONE_FOR_ALL else "+b +c")
    assert play.core.budget.left(play.now) == left - 1


@pytest.mark.parametrize("a_at", [0.5, 1.0, 1.5, 2.5])
@pytest.mark.parametrize("a_pause", [0.25, 1.0, 5.0])
@pytest.mark.parametrize("b_pause", [0.25, 1.0, 5.0])
def test_core_120_whatever_the_pauses_nobody_starts_twice_and_the_order_holds(
    a_at: float, a_pause: float, b_pause: float
) -> None:
    """a crashes before, with, during or after the pause of b: nobody starts before those that stand before it, and
    nobody more often than there were crashes."""
    a, b = (Backoff(pause, 100.0, jitter=0.0) for pause in (a_pause, b_pause))
    play = Play([spec("a", backoff=a), spec("b", backoff=b), spec("c")], Strategy.REST_FOR_ONE)
    play.tell(Begin())
    crashes = 0

    def pass_time(until: float) -> None:
        while play.core.next_deadline() < until:
            play.advance(max(0.0, play.core.next_deadline() - play.now))
        play.advance(until - play.now)

    for at, name in sorted([(a_at, "a"), (1.0, "b")]):
        pass_time(at)
        if play.status(name) is Status.RUNNING:  # else it was stopped with the group of the other
            play.log.append(f"!{name}")
            play.crash(name)
            crashes += 1
    pass_time(20.0)
    said = play.take().split()
    up = ""
    for sign, name in said:
        if sign == "+":
            assert up == "abc"[: "abc".index(name)], said
            up += name
        else:
            up = up.replace(name, "")
    assert up == "abc"
    assert said.count("!a") == 1
    assert said.count("+c") <= 1 + crashes
    assert play.core.budget.left(play.now) == 100 - crashes


def test_core_120_an_end_that_comes_twice_is_one() -> None:
    """An end, or a readiness, of an earlier incarnation that arrives in the pause changes nothing."""
    play = begun("a", "b", strategy=Strategy.REST_FOR_ONE)
    play.crash("a")
    play.take()
    play.tell(ChildEnded("a", 1, Outcome(Misbehaved())))
    play.tell(ChildReady("a", 1))
    assert play.take() == ""
    play.advance(1)
    assert play.take() == "+a +b"
