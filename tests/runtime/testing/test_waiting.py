from __future__ import annotations

import math

import pytest
import trio
import trio.lowlevel
import trio.testing
from trio.testing import MockClock

from penstock.runtime.testing import Overdue, tasks_waiting, within


async def wait_for_nobody() -> None:
    await trio.Event().wait()


async def test_a_limit_shows_where_each_task_waits(autojump_clock: MockClock) -> None:
    with pytest.raises(Overdue, match=r"the harvest is not over after 60 s") as caught:
        with within(60, "the harvest"):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait_for_nobody, name="miller")
                await trio.sleep_forever()
    assert trio.current_time() == 60
    (miller,) = [line for line in caught.value.waiting if line.startswith("miller")]
    assert miller.startswith("miller: wait_for_nobody (test_waiting.py:")
    assert miller in str(caught.value)
    assert any("test_a_limit_shows_where" in line for line in caught.value.waiting)


async def test_what_is_over_in_time_leaves_no_trace(autojump_clock: MockClock) -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    with within(60):
        await trio.sleep(59)
    await trio.testing.wait_all_tasks_blocked()
    assert trio.lowlevel.current_statistics().tasks_living == before
    await trio.sleep(10)
    assert trio.current_time() == 69


async def test_no_limit_is_no_limit(autojump_clock: MockClock) -> None:
    with within(math.inf):
        await trio.sleep(3600)


async def test_an_error_of_the_block_passes(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyError):
        with within(60):
            raise KeyError


async def test_an_error_on_the_way_out_is_the_cause(autojump_clock: MockClock) -> None:
    with pytest.raises(Overdue) as caught:
        with within(60):
            try:
                await trio.sleep_forever()
            finally:
                raise KeyError
    assert isinstance(caught.value.__cause__, KeyError)


async def test_what_ends_the_process_outweighs_it(autojump_clock: MockClock) -> None:
    with pytest.raises(KeyboardInterrupt):
        with within(60):
            try:
                await trio.sleep_forever()
            finally:
                raise KeyboardInterrupt


async def test_a_block_that_swallows_its_cancel_is_overdue_all_the_same(autojump_clock: MockClock) -> None:
    with pytest.raises(Overdue):
        with within(60):
            with trio.CancelScope(shield=True):
                await trio.sleep(61)


async def test_a_cancel_from_outside_is_no_overdue(autojump_clock: MockClock) -> None:
    with trio.move_on_after(1) as scope:
        with within(60):
            await trio.sleep_forever()
    assert scope.cancelled_caught


def test_trios_own_tasks_are_not_shown() -> None:
    async def main() -> tuple[str, ...]:
        with within(60):
            await trio.lowlevel.checkpoint()
            return tasks_waiting()

    (line,) = trio.run(main)
    assert "main (test_waiting.py:" in line


def test_outside_of_a_run_there_are_none() -> None:
    with pytest.raises(RuntimeError):
        tasks_waiting()
