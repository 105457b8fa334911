"""What was at work at a death is at work with no other suspect; whoever waits for that, or gives up, blocks nobody."""

from __future__ import annotations

import trio
from trio.testing import wait_all_tasks_blocked

from penstock.actors.isolation import Isolation


async def test_who_wants_to_be_alone_waits_for_those_at_work_and_goes_before_those_who_come_later() -> None:
    isolation, steps, leave = Isolation(), list[str](), trio.Event()

    async def beside(name: str) -> None:
        async with isolation.beside():
            steps.append(name)
            await leave.wait()

    async def alone(name: str) -> None:
        async with isolation.alone():
            steps.append(f"{name} in")
            await wait_all_tasks_blocked()
            steps.append(f"{name} out")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beside, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(alone, "second")
        await wait_all_tasks_blocked()
        assert not isolation.is_open
        nursery.start_soon(beside, "third")
        await wait_all_tasks_blocked()
        assert steps == ["first"]
        leave.set()
    assert steps == ["first", "second in", "second out", "third"]
    assert isolation.is_open


async def test_who_is_cancelled_while_it_waits_holds_nobody_up() -> None:
    isolation, entered, given_up = Isolation(), list[str](), trio.CancelScope()

    async def wait_in_vain() -> None:
        with given_up:
            async with isolation.alone():
                entered.append("alone")

    async def come_later() -> None:
        async with isolation.beside():
            entered.append("later")

    async with isolation.beside(), trio.open_nursery() as nursery:
        nursery.start_soon(wait_in_vain)
        await wait_all_tasks_blocked()
        nursery.start_soon(come_later)
        await wait_all_tasks_blocked()
        assert entered == []
        given_up.cancel()
    assert entered == ["later"]
    assert isolation.is_open
