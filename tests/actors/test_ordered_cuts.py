"""In an ordered group, too, the actors are cancelled at every step: nothing is lost, nothing twice, the order stays."""

from __future__ import annotations

from functools import partial

import pytest
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.testing import Cut, cut_everywhere

STREAM = "orders"
STEPS = 300
"""More points than any of the actors has in the scenario; the test asserts that."""


@event("ORDER", key="customer")
@frozen
class Order:
    customer: str
    number: int


def orders() -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group("payments", ordered=True, workers=2, batch=2)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.customer, order.number])

    return system


async def scenario(cut: Cut, part: str, gate: str) -> None:
    async with virtual(orders()) as app:
        deployment = app.deployment
        watch = deployment.watches[gate]
        with cut.calling(lambda: watch.trouble(ConnectionError("cut")), at=part):
            for number in range(2):
                await app.publish(STREAM, Order("a", number), Order("b", number))
            await app.settled()
        found: dict[str, list[int]] = {"a": [], "b": []}
        for effect in app.store.effects:
            found[effect.values[0]].append(effect.values[1])
        assert found == {"a": [0, 1], "b": [0, 1]}
        assert {view.path: view.restarts for view in deployment.tree.snapshot().root.walk() if view.restarts} == {}


@pytest.mark.parametrize(("part", "gate"), [("listener-1", "redis"), ("handler-pool", "postgres")])
def test_a_cut_at_every_step_costs_no_order(part: str, gate: str, every: int) -> None:
    points = cut_everywhere(partial(scenario, part=part, gate=gate), every=every, most=STEPS)
    assert len(points) > 1 / every
