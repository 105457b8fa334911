"""Storms of a day: the counts are exact. What they cost is measured in tests/bench/bench_storms.py."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.supervision import (
    Backoff,
    ChildSpec,
    Gates,
    Intensity,
    LifecycleKind,
    RestartLimitExceeded,
    Strategy,
    Subscription,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import (
    DAY,
    Diary,
    naughty,
    outage,
    restart_storm,
    seed_scheduler,
    slow_starter,
    steady,
    storm,
    virtual_time,
)

ENDLESS = Intensity(1_000_000, 60.0)
CAPPED = Backoff(minimum=1.0, maximum=58.0, jitter=0.0)


async def test_a_day_of_crashes_with_a_capped_backoff_is_counted_exactly(autojump_clock: MockClock) -> None:
    """Crashes 2 s after each start, and waits 1, 2, 4, 8, 16, 32, 58, 58, … s: at 2, 5, 9, 15, 25, 43, 77, 137, … s."""
    specs = [ChildSpec(id="good", body=steady()), ChildSpec(id="bad", body=naughty(2.0), backoff=CAPPED)]
    seen = await restart_storm(Tree(Supervisor("app", specs, intensity=ENDLESS)), DAY - 1)
    bad, good = seen["app/bad"], seen["app/good"]
    assert bad.starts == bad.crashes == bad.restarts == 7 + (DAY - 1 - 77) // 60 == 1445  # and now it waits
    assert bad.longest_silence == 60.0
    assert bad.holds == 0
    assert (good.starts, good.crashes, good.restarts, good.longest_silence) == (1, 0, 0, 0.0)
    assert seen.seconds == DAY - 1
    assert set(seen.children) == {"app/good", "app/bad"}
    children = sum(sum(tally.events.values()) for tally in seen.children.values())
    assert seen.events == children + 3  # and the tree is ready, stopping, stopped


async def test_a_day_of_outage_costs_no_restart(autojump_clock: MockClock) -> None:
    gates = Gates()
    river = gates.add("river", settle=0.5, shut="no rain")
    spec = ChildSpec(id="wheel", body=naughty(7200.0), requires=("river",))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(outage, river, DAY, "no rain")
        seen = await restart_storm(Tree(Supervisor("app", [spec]), gates=gates, seed=0), DAY + 3600)
    wheel = seen["app/wheel"]
    assert (wheel.starts, wheel.crashes, wheel.restarts, wheel.holds) == (1, 0, 0, 1)
    assert seen.seconds == DAY + 3600


async def test_an_outage_in_the_midst_is_one_hold_and_one_silence(autojump_clock: MockClock) -> None:
    gates = Gates()
    river = gates.add("river", settle=0.5)
    diary = Diary()
    spec = ChildSpec(id="wheel", body=diary.of("wheel"), requires=("river",))

    async def later() -> None:
        await trio.sleep(100)
        await outage(river, DAY)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        seen = await restart_storm(Tree(Supervisor("app", [spec]), gates=gates), 2 * DAY)
    assert diary.take() == "+wheel -wheel +wheel -wheel"
    assert (seen["app/wheel"].starts, seen["app/wheel"].holds) == (2, 1)
    assert seen["app/wheel"].longest_silence == 100 + DAY + 0.5


@virtual_time(seeds=5)
async def test_a_group_storm_counts_each_restart_once() -> None:
    specs = [ChildSpec(id=name, body=naughty(3.0), backoff=CAPPED) for name in "abc"]
    tree = Tree(Supervisor("app", specs, strategy=Strategy.ONE_FOR_ALL, intensity=ENDLESS))
    seen = await restart_storm(tree, 3600)
    tallies = [seen[f"app/{name}"] for name in "abc"]
    assert len({tally.starts for tally in tallies}) == 1
    assert sum(tally.restarts for tally in tallies) >= tallies[0].starts - 1
    assert tallies[0].starts > 60


async def test_the_seconds_count_from_when_it_is_ready(autojump_clock: MockClock) -> None:
    seen = await restart_storm(Tree(Supervisor("app", [ChildSpec(id="late", body=slow_starter(20.0))])), 100)
    assert seen.seconds == 120


async def test_a_tree_that_gives_up_says_so(autojump_clock: MockClock) -> None:
    tree = Tree(Supervisor("app", [ChildSpec(id="bad", body=naughty())], intensity=Intensity(3, 60.0)))
    with pytest.raises(RestartLimitExceeded):
        await restart_storm(tree, DAY)


async def test_a_missed_event_is_an_error(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storm, "_BUFFER", 1)
    specs = [ChildSpec(id=name, body=steady()) for name in "abc"]
    with pytest.raises(RuntimeError, match="missed"):
        await restart_storm(Tree(Supervisor("app", specs)), 1)


async def test_nothing_is_missed_when_hundreds_crash_at_once(autojump_clock: MockClock) -> None:
    specs = [ChildSpec(id=str(number), body=naughty(2.0), backoff=CAPPED) for number in range(300)]
    tree = Tree(Supervisor("app", specs, intensity=ENDLESS))
    seen = await restart_storm(tree, 26)
    for view in tree.snapshot().root.children:
        tally = seen[view.path]
        assert (tally.starts, tally.restarts) == (view.incarnation, tally.crashes)
    assert sum(tally.crashes for tally in seen.children.values()) > 1000
    assert len(seen.children) == 300


def test_the_count_needs_no_memory_for_what_it_has_counted() -> None:
    """The buffer bounds the events that wait; in a storm of a day it is never half as full as for one tick."""
    seed_scheduler(0)
    peak = 0

    class Watched(Subscription):
        def _take(self, event: object) -> None:
            nonlocal peak
            super()._take(event)  # type: ignore[arg-type]
            peak = max(peak, len(self._events))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("penstock.runtime.supervision.events.Subscription", Watched)
        spec = ChildSpec(id="bad", body=naughty(2.0), backoff=CAPPED)
        clock = MockClock(autojump_threshold=0)
        seen = trio.run(restart_storm, Tree(Supervisor("app", [spec], intensity=ENDLESS)), DAY, clock=clock)
    assert seen["app/bad"].events[LifecycleKind.CHILD_CRASHED] > 1400
    assert 0 < peak < 20
