from __future__ import annotations

import subprocess
import sys

import pytest
import trio

from penstock.runtime.testing import seed_scheduler

PROGRAM = """
import trio
from penstock.runtime.testing import seed_scheduler

order = []

async def step(number, event):
    await event.wait()
    order.append(number)

async def main():
    event = trio.Event()
    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(step, number, event)
        await trio.testing.wait_all_tasks_blocked()
        event.set()

import trio.testing
seed_scheduler(5)
trio.run(main)
print(order)
"""


def order_under(seed: int) -> list[int]:
    seed_scheduler(seed)
    order: list[int] = []

    async def step(number: int) -> None:
        await trio.lowlevel.checkpoint()
        order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(step, number)

    trio.run(main)
    return order


def test_each_seed_has_its_own_order_of_tasks() -> None:
    assert order_under(1) == order_under(1)
    assert order_under(1) != order_under(2)


def test_the_order_is_the_same_in_another_process_also_where_trio_wakes_a_set_of_tasks() -> None:
    """The tasks that wait for an event stand in a set, whose order depends on addresses in memory."""
    runs = [subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True) for _ in range(3)]
    assert len({run.stdout for run in runs}) == 1
    assert len(runs[0].stdout) > 100


def test_trio_still_has_what_is_seeded() -> None:
    assert seed_scheduler(1)


def test_a_trio_that_cannot_be_seeded_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(trio._core._run, "_r")
    assert not seed_scheduler(1)
