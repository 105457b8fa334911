from __future__ import annotations

import pytest
import trio

ORDERS: list[list[int]] = []


@pytest.mark.parametrize("attempt", range(2))
async def test_the_same_seed_gives_the_same_order_of_tasks(attempt: int) -> None:
    """Forty tasks, ready at once, forty times: that the order agrees by chance is one in 2 ** 40."""
    order: list[int] = []

    async def step(number: int) -> None:
        for _ in range(40):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(step, number)
    ORDERS.append(order)
    assert ORDERS[0] == order
