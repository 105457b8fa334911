"""What handlers do by `once_in_redis` is done once, whoever is killed, frozen or cut off."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
from attrs import frozen

from penstock.actors.event import Envelope, event
from penstock.actors.handling import Context, Delivery
from penstock.actors.simulation import Publication, Scenario, story, tell_story
from penstock.actors.system import System
from penstock.runtime.testing.redis import InProcessRedis

SEEDS = 12


@event("ORDER", key="customer")
@frozen
class Order:
    number: int
    customer: str


def shop(chance: random.Random) -> System:
    system = System("shop")
    orders = system.stream("orders", events=[Order])
    orders.group("ranking", workers=3, batch=chance.choice([1, 4, 100]), block=5.0, ordered=chance.random() < 0.3)
    if chance.random() < 0.3:

        @orders.on(Order, group="ranking", batch=True)
        async def rank_all(deliveries: Sequence[Delivery[Order]], context: Context) -> None:
            for each in deliveries:
                await context.once_in_redis("count", [("INCR", f"{{n}}:{each.envelope.event_id}")], delivery=each)

    else:

        @orders.on(Order, group="ranking")
        async def rank(order: Order, context: Context) -> None:
            await context.once_in_redis("count", [("INCR", f"{{n}}:{context.event_id}")])

    return system


def publications(chance: random.Random, declared: System) -> Sequence[Publication]:
    made = []
    for number in range(chance.randint(10, 40)):
        customer = f"c-{number % 4}"
        envelope = Envelope(event_type="ORDER", data={"number": number, "customer": customer}, key=customer)
        made.append(Publication("orders", envelope))
    return made


class Counted(InProcessRedis):
    """A server that keeps what was counted in it."""

    found: dict[str, bytes]

    async def __aexit__(self, *error: Any) -> None:
        database = self._engine.data.databases[0]
        keys = [key for key in database if key.startswith(b"{n}:") and b"penstock-once" not in key]
        Counted.found = {key.decode(): database[key].value for key in keys}
        await super().__aexit__(*error)


def test_each_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(story, "InProcessRedis", Counted)
    scenario = Scenario(system=shop, publications=publications, on_cluster=0.0)
    counted = 0
    for seed in range(SEEDS):
        outcome = tell_story(scenario, seed)
        assert outcome.violations == (), seed
        twice = {key: value for key, value in Counted.found.items() if value != b"1"}
        assert twice == {}, seed
        # What was done is there; what died has done it, or not.
        assert outcome.ends.get("done", 0) <= len(Counted.found) <= outcome.events
        counted += len(Counted.found)
    assert counted > 10 * SEEDS
