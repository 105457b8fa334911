"""The actors are cancelled at every single step that they take, and no event is lost or handled twice."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import trio
from attrs import frozen

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.producer import Published
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.testing import Cut, cut_everywhere

STREAM = "orders"
STEPS = 400
"""More points than any of the actors has in the scenario; the test asserts that."""


@event("ORDER")
@frozen
class Order:
    number: int


def orders() -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group("payments", workers=2, batch=3)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await context.connection.execute("insert", [order.number])
        if order.number == 4:
            raise Permanent("unlucky")

    return system


async def scenario(cut: Cut, part: str, gate: str) -> None:
    """Seven events, one of them twice and one of them bad, and a cut."""
    envelopes = [Envelope(event_type="ORDER", data={"number": number}) for number in range(7)]
    async with virtual(orders()) as app:
        deployment = app.deployment
        watch = deployment.watches[gate]
        with cut.calling(lambda: watch.trouble(ConnectionError("cut")), at=part):
            accepted = []
            for batch in (envelopes[:4], envelopes[2:]):
                for envelope in batch:
                    deployment.capture(envelope, STREAM)
                accepted += [each for each in await app.publish(STREAM, *batch) if isinstance(each, Published)]
            await app.settled()
            await trio.sleep(1)
            await app.settled()
        done = Counter(effect.values[0] for effect in app.store.effects)
        assert done == dict.fromkeys((0, 1, 2, 3, 5, 6), 1)
        assert {letter.event_id for letter in app.store.letters} == {envelopes[4].event_id}
        statistics = deployment.backlogs["payments@orders"].statistics()
        assert (statistics.ready, statistics.delayed, statistics.in_work, statistics.unacknowledged) == (0, 0, 0, 0)
        assert deployment.producer.waiting == 0
        restarts = {view.path: view.restarts for view in deployment.tree.snapshot().root.walk() if view.restarts}
        assert restarts == {}


@pytest.mark.parametrize(
    ("part", "gate"),
    [
        ("handler-pool", "postgres"),
        ("Acknowledging.run", "postgres"),
        ("listener-1", "redis"),
        ("listener-1", "postgres"),
        ("_serve_captured", "redis"),
        ("Lane.serve", "redis"),
        ("Lane.serve", "postgres"),
        ("Lane._send", "redis"),
    ],
)
def test_a_cut_at_every_step_costs_nothing(part: str, gate: str, every: int) -> None:
    points = cut_everywhere(partial(scenario, part=part, gate=gate), every=every, most=STEPS)
    assert len(points) > 5 / every
