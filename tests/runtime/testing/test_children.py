"""Each child has the vice that it is named for, under the real supervisor."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.supervision import (
    Backoff,
    Body,
    ChildSpec,
    ChildView,
    Gates,
    LifecycleEvent,
    LifecycleKind,
    StartFailed,
    StartTimeout,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import (
    Diary,
    Misbehaved,
    bad_starter,
    deaf,
    flaky,
    naughty,
    running,
    slow_leaver,
    slow_starter,
    stalled,
    steady,
    stuck,
)

PLAIN = Backoff(minimum=1.0, maximum=1.0, jitter=0.0)


def tree_of(body: Body, **options: object) -> Tree:
    spec = ChildSpec(**{"id": "child", "body": body, "backoff": PLAIN, **options})  # type: ignore[arg-type]
    return Tree(Supervisor("app", [spec]), seed=0)


def child_of(tree: Tree) -> ChildView:
    view = tree.snapshot().find("app/child")
    assert view is not None
    return view


async def kinds_of(tree: Tree, seconds: float) -> list[str]:
    """What happens to the child within so many seconds, and in the stop."""
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(seconds)
        return [_word(event) for event in events.drain() if event.path == "app/child"]


def _word(event: LifecycleEvent) -> str:
    return event.kind.value.removeprefix("child_")


async def test_steady_works_well(autojump_clock: MockClock) -> None:
    assert await kinds_of(tree_of(steady()), 100) == ["starting", "ready", "stopping", "stopped"]


async def test_naughty_starts_well_and_crashes(autojump_clock: MockClock) -> None:
    tree = tree_of(naughty(after=5.0, error=KeyError))
    async with running(tree):
        await trio.sleep(4.9)
        assert child_of(tree).state == "running"
        await trio.sleep(0.2)
        assert child_of(tree).state == "backoff"
        error = child_of(tree).last_error
        assert error is not None
        assert error.type == "KeyError"


async def test_bad_starter_fails_before_it_is_ready(autojump_clock: MockClock) -> None:
    with pytest.raises(StartFailed) as caught:
        await tree_of(bad_starter(1)).run()
    assert isinstance(caught.value.__cause__, Misbehaved)


async def test_bad_starter_counts_over_the_lives_of_its_supervisor(autojump_clock: MockClock) -> None:
    body = bad_starter(2)
    for _ in range(2):
        with pytest.raises(StartFailed):
            await tree_of(body).run()
    assert "crashed" not in await kinds_of(tree_of(body), 100)


async def test_flaky_does_what_its_pattern_says(autojump_clock: MockClock) -> None:
    tree = tree_of(flaky("return crash fail stay", after=2.0))
    assert await kinds_of(tree, 100) == [
        *("starting", "ready", "returned", "backoff"),
        *("starting", "ready", "crashed", "backoff"),
        *("starting", "crashed", "backoff"),
        *("starting", "ready", "stopping", "stopped"),
    ]


async def test_flaky_repeats_its_last_word(autojump_clock: MockClock) -> None:
    gates = Gates()
    gate = gates.add("gate", settle=0.0)
    spec = ChildSpec(id="child", body=flaky("stay crash"), requires=("gate",), backoff=PLAIN)
    tree = Tree(Supervisor("app", [spec]), gates=gates)
    async with running(tree):
        await trio.sleep(50)
        assert child_of(tree).restarts == 0
        gate.shut("now")
        gate.open()
        await trio.sleep(5.5)
        assert child_of(tree).restarts == 3


@pytest.mark.parametrize("pattern", ["", "stay jump"])
def test_flaky_knows_its_words(pattern: str) -> None:
    with pytest.raises(ValueError, match="stay, crash, return, fail"):
        flaky(pattern)


async def test_slow_starter_takes_its_time(autojump_clock: MockClock) -> None:
    async with running(tree_of(slow_starter(20.0))):
        assert trio.current_time() == 20.0
    assert trio.current_time() == 20.0


async def test_slow_starter_may_be_too_slow(autojump_clock: MockClock) -> None:
    with pytest.raises(StartFailed) as caught:
        await tree_of(slow_starter(20.0), start_within=10.0).run()
    assert isinstance(caught.value.__cause__, StartTimeout)


async def test_slow_leaver_takes_its_time_and_is_not_reported_within_its_limit(autojump_clock: MockClock) -> None:
    tree = tree_of(slow_leaver(4.0), stop_within=5.0)
    assert await kinds_of(tree, 100) == ["starting", "ready", "stopping", "stopped"]
    assert trio.current_time() == 104.0


async def test_stuck_does_not_hear_its_cancel(autojump_clock: MockClock) -> None:
    tree = tree_of(stuck(100.0), stop_within=5.0)
    assert await kinds_of(tree, 10.0) == ["starting", "ready", "stopping", "stuck", "stopped"]
    assert trio.current_time() == 100.0


@pytest.mark.parametrize("times", [1, 3])
async def test_deaf_swallows_its_cancel_and_leaves_all_the_same(autojump_clock: MockClock, times: int) -> None:
    diary = Diary()
    tree = tree_of(diary.of("deaf", deaf(times)))
    assert await kinds_of(tree, 10.0) == ["starting", "ready", "stopping", "stopped"]
    assert diary.take() == "+deaf -deaf"
    assert trio.current_time() == 10.0


async def test_deaf_hears_only_the_cancel_after_those_that_it_swallows() -> None:
    """Each swallowed cancel costs one more wait."""

    async def waits_of(times: int) -> int:
        waits = 0

        class Steps(trio.abc.Instrument):
            def after_task_step(self, task: trio.lowlevel.Task) -> None:
                nonlocal waits
                waits += task.name == "app/child"

        async with running(tree_of(deaf(times))):
            trio.lowlevel.add_instrument(steps := Steps())
        trio.lowlevel.remove_instrument(steps)
        return waits

    assert await waits_of(5) - await waits_of(2) == 3


async def test_stalled_lives_on_without_progress(autojump_clock: MockClock) -> None:
    tree = tree_of(stalled(after=20.0), progress_within=5.0)
    with tree.subscribe() as events:
        async with running(tree):
            async for event in events:
                if event.kind is LifecycleKind.CHILD_CRASHED:
                    break
    assert 24.0 <= trio.current_time() <= 25.0
    assert event.error is not None
    assert event.error.type.endswith("Stalled")


async def test_stalled_harms_nobody_who_asks_for_no_progress(autojump_clock: MockClock) -> None:
    assert "crashed" not in await kinds_of(tree_of(stalled()), 1000)


# The diary ------------------------------------------------------------------------------------------------------------


async def test_the_diary_tells_who_came_and_went(autojump_clock: MockClock) -> None:
    diary = Diary()
    specs = [
        ChildSpec(id="a", body=diary.of("a")),
        ChildSpec(id="b", body=diary.of("b", flaky("crash stay")), backoff=PLAIN),
        ChildSpec(id="c", body=diary.of("c", slow_leaver(3.0))),
    ]
    async with running(Tree(Supervisor("app", specs))):
        assert diary.take() == "+a +b +c"
        await trio.sleep(2.5)
        assert diary.lines == ["!b", "+b"]
        assert diary.take() == "!b +b"
    assert diary.take() == "-c -b -a"


async def test_a_cancel_that_comes_in_a_group_is_no_error(autojump_clock: MockClock) -> None:
    diary = Diary()

    async def two_tasks(child: object) -> None:
        child.started()  # type: ignore[attr-defined]
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            raise BaseExceptionGroup("as nurseries do", [cancelled]) from None

    async with running(Tree(Supervisor("app", [ChildSpec(id="a", body=diary.of("a", two_tasks))]))):
        pass
    assert diary.take() == "+a -a"
