"""The weather station through a day of outage, in virtual time. docs/tutorial-supervision.md says how to run this."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from weather import Reading, Station, Store

from penstock.runtime import Child
from penstock.runtime.testing import DAY, Cut, VirtualWall, cut_everywhere, outage, restart_storm, running, virtual_time


def into(archive: dict[int, float]) -> Store:
    async def store(reading: Reading) -> None:
        await trio.sleep(0.1)
        archive[reading.minute] = reading.celsius

    return store


@virtual_time(seeds=3)
async def test_a_day_without_the_uplink_costs_no_reading() -> None:
    archive: dict[int, float] = {}
    station = Station(into(archive), wall=VirtualWall())
    async with running(station.tree):
        await trio.sleep(30)
        await outage(station.uplink, DAY, "the cable is cut")
        assert list(archive) == [0]
        assert station.readings.statistics().depth == 1440
        assert str(station.uplink.since) == "2026-01-02 00:00:30+00:00"
        await trio.sleep(300)
    assert list(archive) == list(range(1446))


@virtual_time(seeds=3)
async def test_an_archive_that_fails_once_an_hour_costs_no_reading() -> None:
    archive: dict[int, float] = {}
    attempts = 0

    async def store(reading: Reading) -> None:
        nonlocal attempts
        attempts += 1
        if attempts % 60 == 0:
            raise ConnectionError("the archive is busy")
        await into(archive)(reading)

    seen = await restart_storm(Station(store).tree, DAY)
    assert list(archive) == list(range(1440))
    assert seen["station/sender"].restarts == 24
    assert seen["station/thermometer"].restarts == 0


async def cut_at_the_sender(cut: Cut, kind: type[Station] = Station) -> None:
    archive: dict[int, float] = {}
    station = kind(into(archive))
    async with running(station.tree):
        with cut.calling(lambda: station.uplink.shut("cut"), at="station/sender"):
            await trio.sleep(150)
        station.uplink.open()
        await trio.sleep(60)
    assert list(archive) == [0, 1, 2, 3]


def test_the_uplink_may_go_at_every_step_of_the_sender() -> None:
    assert len(cut_everywhere(cut_at_the_sender)) > 5


class Careless(Station):
    async def send(self, child: Child) -> None:
        async with self.readings.receive() as inbox:
            child.started()
            async for reading in inbox:
                await self.store(reading)


def test_a_careless_sender_is_found_out() -> None:
    with pytest.raises(AssertionError) as caught:
        cut_everywhere(partial(cut_at_the_sender, kind=Careless))
    assert "before a step of station/sender, at Inbox.next" in caught.value.__notes__[1]


async def fail_in_the_sender(cut: Cut) -> None:
    archive: dict[int, float] = {}
    async with running(Station(into(archive)).tree):
        with cut.raising(ConnectionError, at="station/sender"):
            await trio.sleep(210)
    assert list(archive) == [0, 1, 2, 3]


def test_every_wait_of_the_sender_may_fail() -> None:
    assert len(cut_everywhere(fail_in_the_sender)) > 5
