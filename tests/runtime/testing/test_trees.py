from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.supervision import (
    Child,
    ChildSpec,
    Gates,
    Intensity,
    RestartLimitExceeded,
    StartFailed,
    Supervisor,
    Tree,
)
from penstock.runtime.testing import Diary, Misbehaved, bad_starter, naughty, outage, running, shut, slow_leaver, steady


def tree_of(*specs: ChildSpec, gates: Gates | None = None) -> Tree:
    return Tree(Supervisor("app", specs, intensity=Intensity(0, 60.0)), gates=gates, seed=0)


async def test_it_is_up_in_the_block_and_gone_after_it(autojump_clock: MockClock) -> None:
    diary = Diary()
    async with running(tree_of(ChildSpec(id="a", body=diary.of("a", slow_leaver(3.0))))) as tree:
        assert [view.state for view in tree.snapshot().root.walk()] == ["running", "running"]
        assert diary.take() == "+a"
    assert diary.take() == "-a"
    assert trio.current_time() == 3.0


async def test_children_that_drain_may_do_so(autojump_clock: MockClock) -> None:
    drained = False

    async def body(child: Child) -> None:
        nonlocal drained
        child.started()
        await child.draining.wait()
        await trio.sleep(5)
        drained = True

    async with running(tree_of(ChildSpec(id="a", body=body, drain_within=10.0))):
        pass
    assert drained
    assert trio.current_time() == 5


async def test_a_failed_start_comes_out_bare_and_the_block_does_not_begin(autojump_clock: MockClock) -> None:
    with pytest.raises(StartFailed) as caught:
        async with running(tree_of(ChildSpec(id="a", body=bad_starter(1)))):
            pytest.fail("the block began")
    assert isinstance(caught.value.__cause__, Misbehaved)


async def test_a_tree_that_gives_up_cancels_the_block(autojump_clock: MockClock) -> None:
    with pytest.raises(RestartLimitExceeded):
        async with running(tree_of(ChildSpec(id="a", body=naughty(5.0)))):
            await trio.sleep_forever()
    assert trio.current_time() == 5.0


async def test_an_error_of_the_block_comes_out_bare_when_all_are_gone(autojump_clock: MockClock) -> None:
    diary = Diary()
    with pytest.raises(KeyError):
        async with running(tree_of(ChildSpec(id="a", body=diary.of("a")))):
            raise KeyError
    assert diary.take() == "+a -a"


async def test_several_errors_come_as_a_group(autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(RestartLimitExceeded, KeyError):
        async with running(tree_of(ChildSpec(id="a", body=naughty(5.0)))):
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError


async def test_a_tree_that_was_stopped_before_is_an_error(autojump_clock: MockClock) -> None:
    tree = tree_of(ChildSpec(id="a", body=steady()))
    tree.stop("too early")
    with pytest.raises(RuntimeError, match="over before it was ready"):
        async with running(tree):
            pytest.fail("the block began")


async def test_a_cancel_from_outside_stops_the_tree(autojump_clock: MockClock) -> None:
    diary = Diary()
    with trio.move_on_after(10) as scope:
        async with running(tree_of(ChildSpec(id="a", body=diary.of("a")))):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert diary.take() == "+a -a"


# Outages --------------------------------------------------------------------------------------------------------------


async def test_an_outage_holds_and_ends(autojump_clock: MockClock) -> None:
    gates = Gates()
    river = gates.add("river", settle=0.5)
    diary = Diary()
    tree = tree_of(ChildSpec(id="wheel", body=diary.of("wheel"), requires=("river",)), gates=gates)
    async with running(tree), trio.open_nursery() as nursery:
        nursery.start_soon(outage, river, 3600.0, "no rain")
        await trio.sleep(3599)
        assert river.cause == "no rain"
        assert diary.take() == "+wheel -wheel"
        await trio.sleep(1.4)
        assert river.is_open
        assert diary.take() == ""
        await trio.sleep(0.2)
        assert diary.take() == "+wheel"


async def test_a_gate_is_shut_while_a_block_runs(autojump_clock: MockClock) -> None:
    gate = Gates().add("river")
    with pytest.raises(KeyError):
        with shut(gate, "no rain") as same:
            assert same is gate
            assert (gate.is_open, gate.cause) == (False, "no rain")
            raise KeyError
    assert gate.is_open


async def test_a_cancelled_outage_is_over(autojump_clock: MockClock) -> None:
    gate = Gates().add("river")
    with trio.move_on_after(1):
        await outage(gate, 3600.0)
    assert gate.is_open
