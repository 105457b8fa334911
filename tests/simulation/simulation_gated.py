"""A system whose one group needs what is behind a gate of its own, and stories about it."""

from __future__ import annotations

import random
from collections.abc import Sequence

import trio
from attrs import frozen

from penstock.actors.event import event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.simulation.scenario import Publication, Scenario
from penstock.actors.system import System

__all__ = ["GATED"]


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
