from __future__ import annotations

import re
from contextlib import suppress

import pytest
import trio

from penstock.runtime.supervision import ChildSpec, Gates, Supervisor, Tree
from penstock.runtime.testing import Cut, Overdue, cut_everywhere, cuts, run_virtual, running

here = trio.lowlevel.current_task


async def three_waits(done: list[int]) -> None:
    for number in range(3):
        await trio.sleep(1)
        done.append(number)


# Cancelling -----------------------------------------------------------------------------------------------------------


def test_a_scope_is_cancelled_at_each_wait() -> None:
    ends: list[list[int]] = []

    async def scenario(cut: Cut) -> None:
        send, receive = trio.open_memory_channel[int](0)
        done: list[int] = []

        async def reader() -> None:
            with trio.CancelScope() as scope, cut.cancelling(scope, at=here()):
                for _ in range(3):
                    done.append(await receive.receive())
            receive.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            with suppress(trio.BrokenResourceError):
                for number in range(3):
                    await trio.sleep(1)
                    await send.send(number)
        ends.append(done)

    points = cut_everywhere(scenario)
    # Within each of three waits; and when it is over, so that the next one is cancelled, and the last cut is too late.
    assert ends == [[], [0], [0], [0, 1], [0, 1], [0, 1, 2], [0, 1, 2]]
    assert [point.moment for point in points] == ["after", "before"] * 3
    assert [point.number for point in points] == [1, 2, 3, 4, 5, 6]
    assert all(re.match(r".*reader \(test_cut_points.py:\d+\)", point.place) for point in points)


def test_a_cleanup_that_a_cancel_breaks_is_found_and_its_point_is_named() -> None:
    async def scenario(cut: Cut) -> None:
        saved = released = False
        with trio.CancelScope() as scope, cut.cancelling(scope, at=here()):
            try:
                await trio.sleep(1)
                saved = True
                await trio.sleep(1)
            finally:
                if saved:
                    await trio.lowlevel.checkpoint()  # the bug: a cancelled clean-up gets no further than this
                released = True
        assert released

    with pytest.raises(AssertionError) as caught:
        cut_everywhere(scenario)
    seed, point = caught.value.__notes__
    assert seed == "in virtual time with seed 0"
    assert re.match(r"cut point 3, after a step of .*, at .*scenario \(test_cut_points.py:\d+\)", point)
    with pytest.raises(AssertionError) as again:
        cut_everywhere(scenario, first=3)
    assert again.value.__notes__ == [seed, point]


def test_tasks_are_chosen_by_name_over_all_their_lives() -> None:
    lives: list[int] = []

    async def scenario(cut: Cut) -> None:
        with trio.CancelScope() as scope, cut.cancelling(scope, at="worker"):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(trio.sleep, number, name=f"worker-{number}")
                nursery.start_soon(trio.sleep, 9, name="bystander")
        if cut.point is not None:
            lives.append(int(cut.point.task.rpartition("-")[2]))

    cut_everywhere(scenario)
    # before its first step, after it, before its second and last one, after that
    assert sorted(lives) == sorted([0, 1, 2] * 4)


# Raising --------------------------------------------------------------------------------------------------------------


def test_an_error_is_raised_out_of_each_wait() -> None:
    ends: list[tuple[list[int], str]] = []

    async def scenario(cut: Cut) -> None:
        done: list[int] = []
        caught = ""
        with cut.raising(ConnectionError, at=here()):
            try:
                await three_waits(done)
            except ConnectionError:
                caught = "caught"
                await trio.sleep(1)  # an error, unlike a cancel, leaves the clean-up alone
                caught += ", cleaned up"
        ends.append((done, caught))

    points = cut_everywhere(scenario)
    caught = "caught, cleaned up"
    assert ends == [([], caught), ([0], caught), ([0, 1], caught), ([0, 1, 2], "")]
    assert [point.moment for point in points] == ["after"] * 3


def test_what_was_awaited_has_had_no_effect() -> None:
    """A message whose receive failed is there for the next one; a lock whose acquire failed is free."""
    errors = 0

    async def scenario(cut: Cut) -> None:
        nonlocal errors
        send, receive = trio.open_memory_channel[int](0)
        lock = trio.Lock()
        got: list[int] = []

        async def reader() -> None:
            nonlocal errors
            while len(got) < 3:
                try:
                    async with lock:
                        await trio.sleep(0.1)
                    got.append(await receive.receive())
                except OSError:
                    errors += 1

        with cut.raising(OSError, at="reader"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(reader, name="reader")
                for number in range(3):
                    async with lock:
                        await trio.sleep(1)
                    await send.send(number)
        assert got == [0, 1, 2]
        assert not lock.locked()

    points = cut_everywhere(scenario)
    assert errors == len(points)
    assert len(points) >= 6


def test_a_wait_that_cannot_be_called_off_does_not_count() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.raising(OSError, at=here()):
            await trio.lowlevel.cancel_shielded_checkpoint()
            with suppress(OSError):
                await trio.sleep(1)

    (point,) = cut_everywhere(scenario)
    assert point.number == 1


def test_a_trio_that_does_not_allow_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "_RAISE_OUT", None)
    with pytest.raises(NotImplementedError, match=re.escape(trio.__version__)):
        with Cut().raising(OSError, at="any"):
            pytest.fail("the block began")


def test_a_childs_wait_fails_and_it_is_restarted() -> None:
    async def body(child: object) -> None:
        child.started()  # type: ignore[attr-defined]
        for _ in range(3):
            await trio.sleep(1)
        await trio.sleep_forever()

    async def scenario(cut: Cut) -> None:
        tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=body)]), seed=0)
        async with running(tree):
            with cut.raising(OSError, at="app/worker"):
                await trio.sleep(100)
            view = tree.snapshot().root.children[0]
            assert (view.state, view.restarts) == ("running", int(cut.point is not None))

    # Its first wait is over before the tree is said to be ready: the block sees the three others, and a restart none.
    assert len(cut_everywhere(scenario)) == 3


# Calling --------------------------------------------------------------------------------------------------------------


def test_a_gate_is_shut_at_each_step() -> None:
    async def scenario(cut: Cut) -> None:
        gates = Gates()
        gate = gates.add("gate")
        done: list[int] = []

        async def body(child: object) -> None:
            child.started()  # type: ignore[attr-defined]
            await three_waits(done)
            await trio.sleep_forever()

        spec = ChildSpec(id="worker", body=body, requires=("gate",))
        async with running(Tree(Supervisor("app", [spec]), gates=gates)) as tree:
            with cut.calling(lambda: gate.shut("cut"), at="app/worker"):
                await trio.sleep(10)
            state = tree.snapshot().root.children[0].state
            assert state == ("held" if cut.point is not None else "running")

    assert len(cut_everywhere(scenario)) == 6


def test_an_error_of_the_called_function_comes_out() -> None:
    """Trio would log it and drop the instrument, and the rest of the test would test nothing."""

    async def scenario(cut: Cut) -> None:
        def fail() -> None:
            raise KeyError("the test's own")

        with cut.calling(fail, at=here()):
            await trio.sleep(1)

    with pytest.raises(KeyError, match="the test's own"):
        cut_everywhere(scenario)


def test_it_acts_once() -> None:
    async def scenario(cut: Cut) -> None:
        calls: list[int] = []
        with cut.calling(lambda: calls.append(1), at=here()):
            await three_waits([])
        assert len(calls) == int(cut.point is not None)

    assert len(cut_everywhere(scenario)) == 6


# The loop -------------------------------------------------------------------------------------------------------------


def test_the_points_are_the_same_in_each_run_of_a_seed() -> None:
    """Sixteen tasks that are ready at once have an order of their own for each seed."""

    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at="worker"):
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(trio.sleep, 0, name=f"worker-{number}")

    first = cut_everywhere(scenario, seed=1)
    assert cut_everywhere(scenario, seed=1) == first
    assert cut_everywhere(scenario, seed=2) != first
    assert {point.task for point in first} == {f"worker-{number}" for number in range(16)}


def test_some_of_the_points_are_enough_where_there_are_many() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at="worker"):
            async with trio.open_nursery() as nursery:
                for number in range(16):
                    nursery.start_soon(trio.sleep, 0, name=f"worker-{number}")

    points = cut_everywhere(scenario)
    assert cut_everywhere(scenario, every=3) == points[::3]
    assert cut_everywhere(scenario, first=2, every=5) == points[1::5]


def test_a_scenario_that_was_never_cut_tests_nothing() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at="no such task"):
            await trio.sleep(1)

    with pytest.raises(AssertionError, match="not cut: it has 0 points, and 1 was due"):
        cut_everywhere(scenario)


def test_a_scenario_without_end_is_ended() -> None:
    async def scenario(cut: Cut) -> None:
        with trio.CancelScope() as scope, cut.cancelling(scope, at=here()):
            while not scope.cancel_called:
                await trio.sleep(1)

    with pytest.raises(AssertionError, match="more than 50 points; the last was cut point 50"):
        cut_everywhere(scenario, most=50)


def test_a_cut_that_makes_the_scenario_hang_is_named() -> None:
    async def scenario(cut: Cut) -> None:
        event = trio.Event()

        async def worker() -> None:
            try:
                await trio.sleep(1)
            except OSError:
                return  # the bug: nobody sets the event
            event.set()

        with cut.raising(OSError, at="worker"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker, name="worker")
                await event.wait()

    with pytest.raises(Overdue, match=r"scenario \(test_cut_points.py") as caught:
        cut_everywhere(scenario)
    assert caught.value.__notes__[1].startswith("cut point 1, after a step of worker")


def test_a_failure_without_a_cut_says_so() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at=here()):
            await trio.sleep(1)
        assert cut.point is not None

    with pytest.raises(AssertionError) as caught:
        cut_everywhere(scenario)
    assert caught.value.__notes__[1:] == ["not cut; 2 points were seen"]


def test_a_scenario_has_one_block() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at="any"):
            pass
        with cut.raising(OSError, at="any"):
            pytest.fail("the block began")

    with pytest.raises(RuntimeError, match="one block"):
        cut_everywhere(scenario)


def test_cuts_leave_no_trace() -> None:
    async def main() -> None:
        calls: list[int] = []
        with Cut(due=2).calling(lambda: calls.append(1), at=here()):
            await trio.lowlevel.cancel_shielded_checkpoint()
        await trio.sleep(1)
        assert calls == [1]
        calls.clear()
        with Cut(due=9).calling(lambda: calls.append(1), at=here()):
            await trio.sleep(1)
        await three_waits([])
        await three_waits([])
        assert calls == []

    run_virtual(main)


def test_a_beginning_beyond_the_end_tests_nothing() -> None:
    async def scenario(cut: Cut) -> None:
        with cut.calling(lambda: None, at=here()):
            await trio.sleep(1)

    with pytest.raises(AssertionError, match="it has 2 points, and 7 was due"):
        cut_everywhere(scenario, first=7)
