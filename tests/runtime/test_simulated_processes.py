"""Simulated processes are frozen and killed between two steps, and can be counted on."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.lowlevel

from penstock.runtime.testing import run_virtual
from penstock.runtime.testing.simulation import ProcessDied, Simulation, current_process, outside


def test_a_frozen_process_takes_no_step_until_it_is_thawed() -> None:
    async def main() -> None:
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(trio.current_time())
                await trio.sleep(1.0)

        async with Simulation(0) as simulation:
            process = simulation.start("ticker", tick)
            await trio.sleep(2.5)
            process.freeze()
            await trio.sleep(10.0)
            assert ticks == [0.0, 1.0, 2.0]
            process.thaw()
            await trio.sleep(0.5)
            assert ticks == [0.0, 1.0, 2.0, 12.5]
            assert process.was_frozen

    run_virtual(main, seed=1)


def test_a_killed_process_does_not_even_clean_up() -> None:
    async def main() -> None:
        done: list[str] = []

        async def work() -> None:
            try:
                await trio.sleep_forever()
            finally:
                done.append("cleaned up")

        async with Simulation(0) as simulation:
            process = simulation.start("worker", work)
            process.at_kill(lambda: done.append("connections are cut"))
            await trio.sleep(1.0)
            process.kill()
            await process.ended.wait()
            await trio.sleep(100.0)
            assert done == ["connections are cut"]
        # Unwound at the end, so that the run can end.
        assert done == ["connections are cut", "cleaned up"]

    run_virtual(main, seed=1)


def test_a_fault_comes_after_the_ordered_step_whoever_is_ready() -> None:
    """Of ten tasks that are ready at once, exactly three go on before it."""

    async def main() -> None:
        steps: list[int] = []
        seen: list[int] = []

        async def step(number: int) -> None:
            await trio.lowlevel.checkpoint()
            steps.append(number)

        async def work() -> None:
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(step, number)
                # Its first steps are theirs, up to their checkpoints; then they append, in any order.
                await trio.sleep(0.0)
                simulation.after(3, lambda process, task: seen.append(len(steps)))

        async with Simulation(0) as simulation:
            process = simulation.start("worker", work)
            await process.ended.wait()
            simulation.check()
        assert len(steps) == 10
        assert len(seen) == 1
        assert 0 < seen[0] < 10

    for seed in range(20):
        run_virtual(main, seed=seed)


def test_a_call_is_answered_raised_or_lost_with_its_process() -> None:
    async def main() -> None:
        async def answer(value: int) -> int:
            assert current_process() is process
            await trio.sleep(1.0)
            if value < 0:
                raise ValueError("negative")
            return value

        async with Simulation(0) as simulation:
            process = simulation.start("server", trio.sleep_forever)
            await trio.sleep(0.1)
            assert await process.call(answer, 7) == 7
            with pytest.raises(ValueError, match="negative"):
                await process.call(answer, -1)
            simulation.later(0.5, process.kill)
            with pytest.raises(ProcessDied):
                await process.call(answer, 7)
            with pytest.raises(ProcessDied):
                await process.call(answer, 7)
            assert current_process() is None

    run_virtual(main, seed=1)


def test_a_call_in_the_moment_of_the_end_is_lost_with_the_process() -> None:
    """Also between the last step of its main function and the one in which it is over."""

    async def main() -> None:
        async def work() -> None:
            await trio.sleep(1.0)

        async with Simulation(0) as simulation:
            process = simulation.start("short", work)
            await trio.sleep(1.0)
            with suppress(ProcessDied):
                await process.call(trio.sleep, 0.0)
            await process.ended.wait()

    for seed in range(10):
        run_virtual(main, seed=seed)


def test_what_is_started_outside_belongs_to_nobody() -> None:
    async def main() -> None:
        async with trio.open_nursery() as servers, Simulation(0) as simulation:
            owners = []

            async def serve() -> None:
                owners.append(current_process())

            async def connect() -> None:
                with outside():
                    servers.start_soon(serve)
                servers.start_soon(serve)
                await trio.sleep_forever()

            process = simulation.start("client", connect)
            await trio.sleep(1.0)
            assert sorted(owners, key=lambda owner: owner is None) == [process, None]

    run_virtual(main, seed=1)


def test_how_a_process_ended_is_kept_and_does_not_end_the_others() -> None:
    async def main() -> None:
        async def fail() -> None:
            raise RuntimeError("a bug")

        async with Simulation(0) as simulation:
            failing, other = simulation.start("failing", fail), simulation.start("other", trio.sleep_forever)
            await failing.ended.wait()
            assert isinstance(failing.error, RuntimeError)
            assert other.is_running
            assert not failing.is_running

    run_virtual(main, seed=1)


def test_what_an_ordered_act_raises_comes_out_of_the_simulation() -> None:
    async def main() -> None:
        def act(process: object, task: str) -> None:
            raise RuntimeError("a bug in the fault")

        async with Simulation(0) as simulation:
            simulation.after(1, act)
            process = simulation.start("worker", trio.lowlevel.checkpoint)
            await process.ended.wait()
            await trio.sleep(1.0)

    with pytest.raises(RuntimeError, match="a bug in the fault"):
        run_virtual(main, seed=1)


def test_a_run_that_goes_on_and_on_is_ended_by_its_steps() -> None:
    async def main() -> None:
        async def spin() -> None:
            while True:
                await trio.lowlevel.checkpoint()

        async with Simulation(0) as simulation:
            with simulation.at_most(1_000) as limit:
                simulation.start("spinner", spin)
                await trio.sleep_forever()
        assert limit.cancelled_caught
        assert simulation.steps > 1_000

    run_virtual(main, seed=1)


def test_the_trace_tells_runs_apart() -> None:
    async def main(pause: float) -> str:
        async def work() -> None:
            for _ in range(3):
                await trio.sleep(pause)

        async with Simulation(0) as simulation:
            first, second = simulation.start("a", work), simulation.start("b", work)
            with suppress(ProcessDied):
                await first.call(trio.sleep, pause)
            await second.ended.wait()
            return simulation.trace

    assert run_virtual(main, 1.0, seed=1) == run_virtual(main, 1.0, seed=1)
    assert run_virtual(main, 1.0, seed=1) != run_virtual(main, 0.0, seed=1)
