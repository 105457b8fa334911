"""A weather station: two actors of one's own, a mailbox between them, and a gate. docs/tutorial-supervision.md.

python docs/examples/weather.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from datetime import datetime

import trio
from attrs import frozen

from penstock.runtime import Child, ChildSpec, Gates, Journal, Mailbox, Supervisor, Tree


@frozen
class Reading:
    minute: int
    celsius: float


Store = Callable[[Reading], Awaitable[None]]


class Station:
    """A thermometer reads once a minute; a sender puts the readings into the archive, over the uplink."""

    def __init__(self, store: Store, *, minute: float = 60.0, wall: Callable[[], datetime] | None = None) -> None:
        self.store = store
        self.minute = minute
        self.read = 0
        self.unsent: Reading | None = None
        self.readings: Mailbox[Reading] = Mailbox("readings", capacity=2_000)
        gates = Gates(Journal(wall))
        self.uplink = gates.add("uplink")
        self.tree = Tree(
            Supervisor(
                "station",
                [
                    ChildSpec(id="sender", body=self.send, requires=("uplink",)),
                    ChildSpec(id="thermometer", body=self.measure),
                ],
            ),
            gates=gates,
        )

    async def measure(self, child: Child) -> None:
        child.started()
        while True:
            celsius = round(10 + 8 * math.sin(2 * math.pi * self.read / 1440), 1)
            await self.readings.tell(Reading(self.read, celsius))
            self.read += 1
            await trio.sleep(self.minute)

    async def send(self, child: Child) -> None:
        async with self.readings.receive() as inbox:
            child.started()
            while True:
                if self.unsent is None:
                    self.unsent = await inbox.next()
                child.note(f"minute {self.unsent.minute}")
                await self.store(self.unsent)
                self.unsent = None


async def main() -> None:
    archive: dict[int, float] = {}
    hiccups = [ConnectionError("the archive is busy")]

    async def store(reading: Reading) -> None:
        await trio.sleep(0.001)
        if reading.minute == 3 and hiccups:
            raise hiccups.pop()
        archive[reading.minute] = reading.celsius

    async def has_reached(minute: int) -> None:
        while minute not in archive:  # noqa: ASYNC110 - an archive does not call
            await trio.sleep(0.01)

    station = Station(store, minute=0.02)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(station.tree.run)
        await station.tree.ready()
        await has_reached(10)
        show(station)

        station.uplink.shut("the cable is cut")
        await trio.sleep(0.5)
        show(station)

        station.uplink.open()
        await has_reached(station.read)
        show(station)
        station.tree.stop("the day is over")
    print("missing:", [minute for minute in range(max(archive)) if minute not in archive])


def show(station: Station) -> None:
    sender, thermometer = station.tree.snapshot().root.children
    for view in (sender, thermometer):
        print(f"{view.id}: {view.state}, {view.restarts} restarts, {view.cause or 'all is well'}")


if __name__ == "__main__":
    trio.run(main)
