from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
import trio
from trio.testing import MockClock

from penstock.runtime.supervision import Gates, Journal
from penstock.runtime.testing import DAY, VirtualWall, run_virtual
from penstock.runtime.testing.redis import EPOCH


async def test_it_moves_with_the_virtual_clock(autojump_clock: MockClock) -> None:
    wall = VirtualWall()
    before = wall()
    await trio.sleep(DAY)
    assert wall() - before == timedelta(days=1)
    assert wall().tzinfo is UTC


def test_gates_made_outside_of_the_run_are_dated_by_it() -> None:
    gates = Gates(Journal(VirtualWall(datetime(2030, 1, 1, tzinfo=UTC))))
    gate = gates.add("river")
    assert gate.since == datetime(2030, 1, 1, tzinfo=UTC)

    async def main() -> None:
        await trio.sleep(90)
        gate.shut("no rain")

    run_virtual(main)
    assert gate.since == datetime(2030, 1, 1, 0, 1, 30, tzinfo=UTC)


def test_the_date_is_utc_whatever_the_zone_of_the_epoch() -> None:
    epoch = datetime(2026, 7, 1, 2, tzinfo=timezone(timedelta(hours=2)))
    assert str(VirtualWall(epoch)()) == "2026-07-01 00:00:00+00:00"


def test_an_epoch_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        VirtualWall(datetime(2026, 1, 1))


async def test_a_run_in_real_time_has_no_virtual_date() -> None:
    with pytest.raises(RuntimeError, match="MockClock"):
        VirtualWall()()


def test_it_begins_when_the_redis_of_tests_does() -> None:
    assert VirtualWall()().timestamp() == EPOCH
