"""The system that the simulation runs for the sake of its work queues: a workshop, whose jobs tell of what they did."""

from __future__ import annotations

import random
from datetime import timedelta
from uuid import UUID, uuid5

import trio
from attrs import evolve, frozen

from penstock.actors.event import Envelope, event, event_type_of
from penstock.actors.handling import Context
from penstock.actors.simulation import SETTINGS, Publication, Scenario
from penstock.actors.system import System

CHAIRS, TABLES, NEWS = "chairs", "tables", "news"


@event("BUILD")
@frozen
class Build:
    number: int


@event("PAINT", max_age=timedelta(seconds=20))
@frozen
class Paint:
    number: int


@event("BUILT")
@frozen
class Built:
    number: int


def workshop(chance: random.Random) -> System:
    """The declaration: whether there are one or two queues, how many workers, and whether there is a stream, too."""
    system = System("workshop")
    with_news = chance.random() < 0.3
    for name in [CHAIRS] if chance.random() < 0.7 else [CHAIRS, TABLES]:
        _queue(system, name, chance, with_news=with_news)
    if with_news:
        news = system.stream(NEWS, events=[Built])
        news.group("readers", workers=2, batch=4, block=5.0)

        @news.on(Built, group="readers")
        async def read(built: Built, context: Context) -> None:
            await context.connection.execute("insert into news", [built.number])

    return system


def _queue(system: System, name: str, chance: random.Random, *, with_news: bool) -> None:
    queue, takes = system.queue(name, workers=chance.choice([1, 2, 4]), block=5.0), chance.choice([0.5, 3.0, 8.0])

    @queue.on(Build)
    async def build(job: Build, context: Context) -> None:
        await trio.sleep(takes)
        await context.connection.execute("insert into built", [job.number])
        if with_news:
            assert context.delivery is not None
            built_id = uuid5(context.delivery.envelope.event_id, "built")
            await context.publish(NEWS, event_type_of(Built).envelope(Built(job.number), event_id=built_id))

    @queue.on(Paint)
    async def paint(job: Paint, context: Context) -> None:
        await context.connection.execute("update built", [job.number])


def publications(chance: random.Random, system: System) -> list[Publication]:
    """10 to 30 jobs."""
    made = []
    for number in range(chance.randint(10, 30)):
        kind = "PAINT" if chance.random() < 0.2 else "BUILD"
        event_id = UUID(int=chance.getrandbits(128), version=4)
        queue = chance.choice(list(system.queues))
        made.append(Publication(queue, Envelope(event_type=kind, data={"number": number}, event_id=event_id)))
    return made


# Jobs that take long, in processes that are soon held for dead: so that many are in somebody's hands when it is.
DELIVERY = evolve(SETTINGS.delivery, reclaim_idle=21.0, reclaim_every=5.0)

WORKSHOP = Scenario(
    system=workshop, publications=publications, faults=(8, 20), settings=evolve(SETTINGS, delivery=DELIVERY)
)
