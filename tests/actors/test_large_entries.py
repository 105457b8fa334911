"""Entries of several MB on a real Valkey, with the real clock: large replies are work, and no silence of the server."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import trio
from attrs import frozen

from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.actors.event import event
from penstock.actors.handling import Context, Entry
from penstock.actors.read_size import COUNT, FIRST, READ_BYTES, ReadSize
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.runtime.redis import Redis

ENTRIES, BYTES = 60, 5_000_000


@event("SCAN")
@frozen
class Scan:
    number: int
    image: str


def archive(handled: dict[str, list[int]]) -> System:
    system = System("archive")
    scans = system.stream("scans", events=[Scan])
    for name in handled:
        scans.group(name, ordered=name == "ordered")

        @scans.on(Scan, group=name)
        async def keep(scan: Scan, context: Context, name: str = name) -> None:
            handled[name].append(scan.number)

    return system


async def add(redis: Redis) -> None:
    for number in range(ENTRIES):
        fields = {
            "eventId": str(uuid4()),
            "eventType": "SCAN",
            "timestamp": "2026-05-04T00:00:00+00:00",
            "data": json.dumps({"number": number, "image": "x" * BYTES}),
        }
        await redis.xadd("scans", fields)  # type: ignore[arg-type]  # the stub's dict is invariant


async def test_hundreds_of_megabytes_shut_no_gate(make_valkey: Any) -> None:
    """They are read by a group in order, and by one that is not, at the same time."""
    valkey, handled = make_valkey(), dict[str, list[int]](plain=[], ordered=[])
    backends = Backends(redis_options=valkey.options, store=MemoryStore(), probe_postgres=trio.lowlevel.checkpoint)
    settings = ActorSettings(health=HealthSettings(interval_up=0.3))
    deployment = Deployment(archive(handled), settings, backends, instance="one")
    async with Redis(valkey.options) as redis:
        await add(redis)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployment.run)
        with trio.fail_after(100):
            await deployment.tree.ready()
            while any(len(numbers) < ENTRIES for numbers in handled.values()):
                await trio.sleep(0.05)
        deployment.tree.stop("the test is over")
    assert handled["ordered"] == sorted(handled["plain"]) == list(range(ENTRIES))
    told = [str(each) for each in deployment.gates.journal.recent]
    assert [each for each in told if "gate_opened redis" in each] != []
    assert [each for each in told if "gate_shut redis" in each] == []


# The size of a read


def entries(*sizes: int) -> list[Entry]:
    return [Entry("scans", f"1-{number}", {b"data": b"x" * (size - 4)}) for number, size in enumerate(sizes)]


async def test_it_begins_with_few_and_grows_to_what_is_best() -> None:
    size, counts = ReadSize(), []
    for _ in range(6):
        counts.append(size.count(1000))
        size.took(entries(*[100] * counts[-1]))
    assert counts == [FIRST, 20, 40, 80, COUNT, COUNT]
    assert size.count(7) == 7
    assert size.count(0) == 1


async def test_of_large_entries_few_are_asked_for_at_once_and_more_again_once_they_are_small() -> None:
    size = ReadSize()
    for _ in range(10):
        size.took(entries(100))
    size.took(entries(READ_BYTES // 4, 3 * READ_BYTES // 4))
    assert size.count(1000) == 2
    size.took(entries(3 * READ_BYTES))
    assert size.count(1000) == 1
    counts = []
    for _ in range(4):
        size.took(entries(100))
        counts.append(size.count(1000))
    assert counts == [1, 1, 2, 5]
    size.took([])
    assert size.count(1000) == 5


async def test_a_read_that_fails_is_half_as_large_the_next_time() -> None:
    size, counts = ReadSize(), []
    for _ in range(6):
        size.failed()
        counts.append(size.count(1000))
    assert counts == [5, 2, 1, 1, 1, 1]
    size.took([Entry("scans", "1-1", None)])
    assert size.count(1000) == 2
