"""The journal and its subscribers: each event once, in order, to the end, and at nobody's expense."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from trees import child, make, of_kind

from penstock.runtime.supervision import (
    ChildSpec,
    Gates,
    InvalidSpec,
    LifecycleEvent,
    LifecycleKind,
    Restart,
    Strategy,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import flaky, running, steady


async def test_a_subscription_ends_when_the_tree_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("a"))
    seen: list[LifecycleEvent] = []

    async def follow() -> None:
        with tree.subscribe() as events:
            seen.extend([event async for event in events])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        async with running(tree):
            pass
    assert seen[-1].kind is LifecycleKind.TREE_STOPPED
    assert [event.sequence for event in seen] == list(range(1, len(seen) + 1))


async def test_whoever_subscribes_after_the_end_does_not_wait(autojump_clock: trio.testing.MockClock) -> None:
    tree = make()
    async with running(tree):
        pass
    with tree.subscribe() as events:
        assert [event async for event in events] == []
        with pytest.raises(trio.EndOfChannel):
            await events.next()


async def test_a_gate_that_turns_after_the_end_is_kept_and_told_to_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gates = Gates()
    redis = gates.add("redis")
    tree = make(gates=gates)
    with tree.subscribe() as events:
        async with running(tree):
            pass
        redis.shut("the link was closed")
        assert [event.kind for event in events.drain()][-1] is LifecycleKind.TREE_STOPPED
    assert tree.journal.recent[-1].kind is LifecycleKind.GATE_SHUT


async def test_gates_of_a_tree_that_has_ended_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    gates = Gates()
    async with running(make(gates=gates)):
        pass
    with pytest.raises(InvalidSpec, match="app"):
        make(gates=gates)


async def test_two_tasks_may_share_a_subscription(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(child("a"))
    taken: list[int] = []

    with tree.subscribe() as events:

        async def take() -> None:
            async for event in events:
                taken.append(event.sequence)
                await trio.sleep(0.1)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked()
                async with running(tree):
                    await trio.sleep(1)
    assert sorted(taken) == list(range(1, len(taken) + 1))


async def test_following_a_full_buffer_lets_others_run(autojump_clock: trio.testing.MockClock) -> None:
    tree = make(*(child(f"c{number}") for number in range(20)))
    with tree.subscribe() as events:
        async with running(tree):
            with trio.testing.assert_checkpoints():
                await events.next()


async def test_the_stops_of_a_group_restart_name_the_crash_that_caused_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    leaves = [child("bad", flaky("crash stay")), child("victim")]
    tree = make(*leaves, strategy=Strategy.REST_FOR_ONE)
    with tree.subscribe() as events:
        async with running(tree):
            await trio.sleep(5)
            seen = list(events.drain())
    (stopping,) = of_kind(seen, LifecycleKind.CHILD_STOPPING)
    (backoff,) = of_kind(seen, LifecycleKind.CHILD_BACKOFF)
    (crash,) = of_kind(seen, LifecycleKind.CHILD_CRASHED)
    assert (stopping.path, stopping.cause) == ("app/victim", backoff.sequence)
    assert backoff.cause == crash.sequence


async def test_supervisors_that_come_and_go_leave_nothing_behind(autojump_clock: trio.testing.MockClock) -> None:
    root = Supervisor("app", [child("stays")])
    tree = Tree(root)

    def kept() -> int:
        return sum(map(len, tree.journal._last.values()))

    async with running(tree):
        sizes = []
        for number in range(600):
            below = Supervisor("below", [ChildSpec(id="deep", body=steady())])
            made = Supervisor(f"made-{number}", [below.spec(), ChildSpec(id="x", body=steady())])
            await root.start_child(made.spec(restart=Restart.TEMPORARY))
            await root.terminate_child(made.id)
            sizes.append(kept())
        assert sizes[-1] == sizes[300]
