"""The relay and a lane's second way lose their servers at every step that they take: nothing is lost or overtaken."""

from __future__ import annotations

import json
from functools import partial

import pytest
import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.producer import Published
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.testing import Cut, cut_everywhere

STEPS = 400
"""More points than any of the actors has in the scenario; the test asserts that."""


@event("ORDER")
@frozen
class Order:
    number: int


def shop() -> System:
    system = System("app")
    system.stream("orders", events=[Order])
    return system


async def scenario(cut: Cut, part: str, gate: str) -> None:
    """Two bursts that Redis answers late, one that it refuses, what goes behind, and a cut."""
    async with virtual(shop()) as app:
        deployment = app.deployment
        watch = deployment.watches[gate]
        accepted: list[int] = []

        async def publish(*numbers: int) -> None:
            results = await app.publish("orders", *(Order(number) for number in numbers))
            accepted.extend(
                number for number, result in zip(numbers, results, strict=True) if isinstance(result, Published)
            )

        with cut.calling(lambda: watch.trouble(ConnectionError("cut")), at=part):
            app.redis.delay(0.1, "XADD")
            await publish(0, 1)
            await publish(2)
            app.redis.delay(0, "XADD")
            await trio.sleep(3)
            app.redis.fail_next("XADD", "TRYAGAIN Multiple keys request during rehashing of slot")
            await publish(3, 4)
            await publish(5)
            await trio.sleep(5)
            await publish(6)
            with trio.fail_after(300):
                while app.store.outbox.rows:
                    await trio.sleep(0.05)
        entries = await deployment.client().xrange("orders")
        added = list(dict.fromkeys(json.loads(fields[b"data"])["number"] for _, fields in entries))
        # What was refused, or of unknown outcome, may be there; then it is in its place, too.
        assert added == sorted(added)
        assert set(accepted) <= set(added)
        assert {view.path: view.restarts for view in deployment.tree.snapshot().root.walk() if view.restarts} == {}


@pytest.mark.parametrize("gate", ["redis", "postgres"])
@pytest.mark.parametrize("part", ["outbox-relay", "Lane._hedge"])
def test_a_cut_at_every_step_loses_and_overtakes_nothing(part: str, gate: str, every: int) -> None:
    points = cut_everywhere(partial(scenario, part=part, gate=gate), every=every, most=STEPS)
    assert len(points) > 3 / every
