from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from penstock.runtime.supervision import Child, ChildSpec, Supervisor, Tree
from penstock.runtime.testing import DAY, Overdue, run_virtual, virtual_time

UNREACHABLE = """
import math, sys, trio
from penstock.runtime.testing import Overdue, run_virtual

async def swallowing():
    while True:
        try:
            await trio.lowlevel.checkpoint()
        except BaseException:
            continue

async def shielded():
    with trio.CancelScope(shield=True):
        await trio.Event().wait()

try:
    run_virtual(globals()[sys.argv[1]], watchdog=0.1, limit=math.inf)
except Overdue as error:
    print(error)
"""


def test_a_day_takes_no_time_and_the_result_comes_back() -> None:
    async def main(days: int) -> float:
        await trio.sleep(days * DAY)
        return trio.current_time()

    assert run_virtual(main, 2) == 2 * DAY


def test_an_error_comes_bare_with_its_seed() -> None:
    async def main() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError) as caught:
        run_virtual(main, seed=7)
    assert caught.value.__notes__ == ["in virtual time with seed 7"]


def test_the_seed_that_was_chosen_repeats_the_run() -> None:
    async def main() -> None:
        order: list[int] = []

        async def step(number: int) -> None:
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(step, number)
        raise LookupError(order)

    errors = []
    for _ in range(2):
        with pytest.raises(LookupError) as caught:
            run_virtual(main)
        errors.append(caught.value)
    assert str(errors[0]) != str(errors[1])
    seed = int(errors[0].__notes__[0].rpartition(" ")[2])
    with pytest.raises(LookupError) as caught:
        run_virtual(main, seed=seed)
    assert str(caught.value) == str(errors[0])


def test_who_waits_for_nobody_is_overdue_at_once_and_shown() -> None:
    async def forgotten() -> None:
        await trio.Event().wait()

    began = time.monotonic()
    with pytest.raises(Overdue, match=r"the run is not over after 3600 s(.|\n)*forgotten \(test_virtual.py") as caught:
        run_virtual(forgotten, limit=3600)
    assert time.monotonic() - began < 5
    assert "seed" in caught.value.__notes__[0]


# Hangs in real time: each of these would go on for ever. --------------------------------------------------------------


def test_a_task_that_spins_is_found() -> None:
    async def spinning() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(Overdue, match=r"after 0.1 s of real time(.|\n)*spinning \(test_virtual.py"):
        run_virtual(spinning, watchdog=0.1)


@pytest.mark.parametrize("vice", ["swallowing", "shielded"])
def test_a_task_that_no_cancel_reaches_is_found(vice: str) -> None:
    """In a process of its own: trio is interrupted in the last resort, and says much about what it leaves behind."""
    run = subprocess.run([sys.executable, "-c", UNREACHABLE, vice], capture_output=True, text=True, timeout=30)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("the run is not over after 0.1 s of real time; at that moment\n")
    assert f"{vice} (<string>:" in run.stdout


def test_a_task_that_blocks_the_thread_is_found() -> None:
    async def blocking() -> None:
        time.sleep(1000)  # noqa: ASYNC251 - the point

    with pytest.raises(Overdue, match=r"blocking \(.*test_virtual.py"):
        run_virtual(blocking, watchdog=0.1)


def test_a_task_that_blocks_and_catches_every_exception_is_found() -> None:
    async def stubborn() -> None:
        while True:
            try:
                time.sleep(1000)  # noqa: ASYNC251 - the point
            except Exception:  # noqa: BLE001 - its vice
                continue

    began = time.monotonic()
    with pytest.raises(Overdue, match=r"stubborn \(.*test_virtual.py"):
        run_virtual(stubborn, watchdog=0.1)
    assert time.monotonic() - began < 10


def test_a_supervisor_does_not_restart_what_the_watchdog_interrupts() -> None:
    starts = 0

    async def body(child: Child) -> None:
        nonlocal starts
        starts += 1
        while True:
            pass

    tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=body)]))
    with pytest.raises(Overdue, match=r"body \(.*test_virtual.py"):
        run_virtual(tree.run, watchdog=0.1)
    assert starts == 1


def test_a_hang_that_ends_by_itself_is_overdue_all_the_same() -> None:
    async def late() -> str:
        time.sleep(0.3)  # noqa: ASYNC251 - the point
        return "too late"

    with pytest.raises(Overdue):
        run_virtual(late, watchdog=0.1)


def test_the_watchdog_leaves_no_trace() -> None:
    before = signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0

    async def main() -> None:
        await trio.sleep(1)

    run_virtual(main, watchdog=0.5)
    time.sleep(0.6)
    assert (signal.getsignal(signal.SIGVTALRM), signal.getitimer(signal.ITIMER_REAL)[0] > 0) == before


async def test_in_another_thread_it_cancels() -> None:
    async def spinning() -> None:
        while True:
            await trio.lowlevel.checkpoint()

    with pytest.raises(Overdue, match="spinning"):
        await trio.to_thread.run_sync(lambda: run_virtual(spinning, watchdog=0.1))


# The decorator --------------------------------------------------------------------------------------------------------


@virtual_time(seeds=3)
async def test_the_decorated_test_gets_its_fixtures_and_runs_in_virtual_time(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with runs.open("a") as file:
        file.write(".")
    assert trio.current_time() == 0
    await trio.sleep(DAY)
    assert trio.current_time() == DAY


def test_it_runs_once_under_each_seed() -> None:
    orders: list[list[int]] = []

    @virtual_time(seeds=20)
    async def decorated() -> None:
        order: list[int] = []

        async def step(number: int) -> None:
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(step, number)
        orders.append(order)

    decorated()
    assert len(orders) == 20
    assert len({tuple(order) for order in orders}) > 10


def test_all_failing_seeds_are_named_and_each_can_be_repeated() -> None:
    async def racy() -> None:
        order: list[int] = []

        async def step(number: int) -> None:
            order.append(number)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(step, 1)
            nursery.start_soon(step, 2)
        assert order == [1, 2]

    with pytest.raises(AssertionError) as caught:
        virtual_time(seeds=20)(racy)()
    first, row = caught.value.__notes__
    assert row.startswith(f"{len(row.split(','))} of 20 seeds failed: ")
    failing = [int(each) for each in row.partition(": ")[2].split(", ")]
    assert first == f"in virtual time with seed {failing[0]}"
    assert 1 < len(failing) < 20
    for seed in range(20):
        if seed in failing:
            with pytest.raises(AssertionError):
                virtual_time(seeds=[seed])(racy)()
        else:
            virtual_time(seeds=[seed])(racy)()


def test_a_skip_ends_the_row() -> None:
    @virtual_time(seeds=3)
    async def decorated() -> None:
        pytest.skip("not today")

    with pytest.raises(pytest.skip.Exception):
        decorated()


@pytest.mark.parametrize("seeds", [0, []])
def test_no_seed_would_test_nothing(seeds: int | list[int]) -> None:
    with pytest.raises(ValueError, match="seeds"):
        virtual_time(seeds=seeds)
