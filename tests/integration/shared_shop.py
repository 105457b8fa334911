"""A system that several processes run together: one shared group, and one ordered group with partitions."""

from __future__ import annotations

import os
from pathlib import Path

import trio
from attrs import frozen

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.system import System


@event("JOB")
@frozen
class Job:
    number: int


@event("ENTRY", key="account")
@frozen
class Entry:
    account: str
    number: int


system = System("shared-shop", migrations=Path(__file__).parent / "shared_shop_migrations")

jobs = system.stream("jobs", events=[Job])
jobs.group("workers", workers=2, batch=5)

ledger = system.stream("ledger", events=[Entry], partitions=6)
ledger.group("books", ordered=True, workers=2, batch=5)

INSERT = "insert into handled (kind, key, number, pid) values (%s, %s, %s, %s)"


@jobs.on(Job, group="workers")
async def work(job: Job, context: Context) -> None:
    await trio.sleep(0.01)
    await context.connection.execute(INSERT, ["job", "", job.number, os.getpid()])


@ledger.on(Entry, group="books")
async def enter(entry: Entry, context: Context) -> None:
    await trio.sleep(0.01)
    await context.connection.execute(INSERT, ["entry", entry.account, entry.number, os.getpid()])
