"""What is behind the gates of a system's own goes away in its stories, too, and costs no event an attempt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import ExitStack
from unittest.mock import patch

import trio
from attrs import frozen

from penstock.actors import attempts, blame, pool_outages
from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.simulation import tell_story
from penstock.actors.simulation.scenario import Publication, Scenario
from penstock.actors.system import System


@event("ORDERED", key="user")
@frozen
class Ordered:
    user: str


def _declared(_: random.Random) -> System:
    system = System("gated")
    system.gate("mail", trio.lowlevel.checkpoint)
    stream = system.stream("orders", events=[Ordered])
    stream.group("mailing", requires=("mail",))

    @stream.on(Ordered, group="mailing")
    async def mail(event: Ordered, context: Context) -> None:
        await trio.sleep(0.1)

    return system


def _published(chance: random.Random, _: System) -> Sequence[Publication]:
    kind = event_type_of(Ordered)
    return [Publication("orders", kind.envelope(Ordered(chance.choice("abcd")))) for _ in range(12)]


GATED = Scenario(system=_declared, publications=_published, faults=(4, 8), on_cluster=0.0)
SEEDS = 30


def test_every_promise_is_kept() -> None:
    outcomes = [tell_story(GATED, seed) for seed in range(SEEDS)]
    assert [violation for outcome in outcomes for violation in outcome.violations] == []
    told = [line for outcome in outcomes for line in outcome.story]
    assert sum("what is behind the gate mail is away" in line for line in told) >= SEEDS / 4


def test_a_variant_that_blames_the_event_is_caught() -> None:
    with ExitStack() as broken:
        for module in (attempts, blame, pool_outages):
            broken.enter_context(patch.object(module, "away_of", lambda error, gates: None))
        assert any(tell_story(GATED, seed).violations for seed in range(SEEDS))
