"""The actors are cancelled at every single step that they take, and no event is lost or handled twice."""

from __future__ import annotations

from collections import Counter

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Permanent
from penstock.actors.producer import Published
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual

STREAM = "orders"
STEPS = 200
"""More than any of the actors takes in the scenario; the test asserts that."""


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


class CutAt(trio.abc.Instrument):
    """Cuts before the n-th step of the tasks whose name has `part` in it; `steps` is how many there were."""

    def __init__(self, app: VirtualDeployment, part: str, step: int, gate: str) -> None:
        self.steps = 0
        self._app, self._part, self._step, self._gate = app, part, step, gate

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._part in task.name:
            self.steps += 1
            if self.steps == self._step:
                deployment = self._app.deployment
                watch = deployment._redis_watch if self._gate == "redis" else deployment._postgres_watch
                watch.trouble(ConnectionError("cut"))


async def scenario(part: str, step: int, gate: str) -> int:
    """Seven events, one of them twice and one of them bad, and a cut; the steps that were taken."""
    envelopes = [Envelope(event_type="ORDER", data={"number": number}) for number in range(7)]
    async with virtual(orders()) as app:
        cut = CutAt(app, part, step, gate)
        trio.lowlevel.add_instrument(cut)
        accepted = []
        for batch in (envelopes[:4], envelopes[2:]):
            for envelope in batch:
                app.deployment.capture(envelope, STREAM)
            accepted += [each for each in await app.publish(STREAM, *batch) if isinstance(each, Published)]
        await app.settled()
        await trio.sleep(1)
        await app.settled()
        trio.lowlevel.remove_instrument(cut)
        done = Counter(effect.values[0] for effect in app.store.effects)
        assert done == dict.fromkeys((0, 1, 2, 3, 5, 6), 1)
        assert {letter.event_id for letter in app.store.letters} == {envelopes[4].event_id}
        statistics = app.deployment.backlogs["payments@orders"].statistics()
        assert (statistics.ready, statistics.delayed, statistics.in_work, statistics.unacknowledged) == (0, 0, 0, 0)
        assert app.deployment.producer.waiting == 0
        restarts = {view.path: view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts}
        assert restarts == {}
        return cut.steps


@pytest.mark.parametrize(
    ("part", "gate"),
    [
        ("handler-pool", "postgres"),
        ("_acknowledge", "postgres"),
        ("listener-1", "redis"),
        ("listener-1", "postgres"),
        ("_serve_captured", "redis"),
        ("_serve_requests", "redis"),
    ],
)
async def test_a_cut_at_every_step_costs_nothing(autojump_clock: MockClock, part: str, gate: str) -> None:
    for step in range(1, STEPS):
        with trio.fail_after(3600):
            steps = await scenario(part, step, gate)
        if steps < step:
            break  # the scenario was over before: there are no further steps
    else:
        pytest.fail(f"{part} takes {STEPS} steps and more")
    assert step > 5
