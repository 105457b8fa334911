"""A system for the commands about single entries: two groups on one stream, and a stream with partitions."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System


@event("JOB")
@frozen
class Job:
    number: int


async def clerks_are_there() -> None:
    """The probe of a gate that a test shuts by making a file."""
    if "closed" in os.listdir():
        raise RuntimeError("the desk is closed")


system = System("entry-shop", migrations=Path(__file__).parent / "shared_shop_migrations")
system.gate("clerk", clerks_are_there)

jobs = system.stream("jobs", events=[Job])
jobs.group("workers of/all")
jobs.group("clerks", requires=["clerk"])

desk = system.stream("desk", events=[Job], partitions=3)
desk.group("workers of/all")


@desk.on(Job, group="workers of/all")
@jobs.on(Job, group="workers of/all")
async def work(job: Job, context: Context) -> None:
    await _note(context, "work", job)


@jobs.on(Job, group="clerks")
async def file(job: Job, context: Context) -> None:
    await _note(context, "file", job)


async def _note(context: Context, kind: str, job: Job) -> None:
    await context.connection.execute(
        "insert into handled (kind, key, number, pid) values (%s, '', %s, 0)", [kind, job.number]
    )
