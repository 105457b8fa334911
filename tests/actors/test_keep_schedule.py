"""When retention runs, in virtual time: days pass in milliseconds, by a wall clock that follows trio's."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import psycopg
import pytest
import trio
from attrs import define, field

from penstock.actors.retention import keep_schedule
from penstock.actors.schedule import Schedule
from penstock.actors.sweep import RetentionBusy, RetentionReport
from penstock.runtime.postgres import PostgresUnavailable
from penstock.runtime.redis import RedisUnavailable
from penstock.runtime.supervision import Child

SEOUL = ZoneInfo("Asia/Seoul")
DAILY = Schedule("0 10 * * *", SEOUL)
MORNING = datetime(2025, 5, 4, 9, tzinfo=SEOUL)


@define
class Wall:
    """A wall clock that somebody may put forward or back."""

    start: datetime
    jumped: timedelta = timedelta()
    began: float = field(factory=trio.current_time)

    def __call__(self) -> datetime:
        return (self.start + self.jumped + timedelta(seconds=trio.current_time() - self.began)).astimezone(UTC)


@define
class RecordedSweep:
    """Instead of a `Sweep`: remembers what was run and when, and what it had promised to raise."""

    wall: Wall
    failures: list[Exception] = field(factory=list)
    done: list[datetime] = field(factory=list)
    tried: list[datetime] = field(factory=list)

    async def run_due(self, due: datetime) -> RetentionReport | None:
        await trio.lowlevel.checkpoint()
        self.tried.append(self.wall())
        if self.failures:
            raise self.failures.pop(0)
        if self.done and self.done[-1] >= due:
            return None
        self.done.append(due)
        return RetentionReport(
            system="s",
            instance="",
            due_at=due,
            started_at=self.wall(),
            seconds=0.0,
            dry_run=False,
            cutoff=due,
            streams=(),
            rows={},
        )


@define
class Scene:
    """The actor at work."""

    wall: Wall
    sweep: RecordedSweep
    child: Child


@asynccontextmanager
async def _running(
    start: datetime, *, done: datetime | None = None, failures: tuple[Exception, ...] = ()
) -> AsyncIterator[Scene]:
    wall = Wall(start)
    sweep = RecordedSweep(wall, list(failures), [] if done is None else [done])
    child = Child("system/retention", 1, _nothing)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_schedule, child, sweep.run_due, DAILY, wall)
        yield Scene(wall, sweep, child)
        nursery.cancel_scope.cancel()


def _ten(day: int) -> datetime:
    return datetime(2025, 5, day, 10, tzinfo=SEOUL)


async def test_it_runs_once_a_day_at_its_time(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(3)) as scene:
        await trio.sleep(3 * 86_400)
    assert scene.sweep.done == [_ten(3), _ten(4), _ten(5), _ten(6)]
    assert scene.sweep.tried[1:] == [_ten(4), _ten(5), _ten(6)]


async def test_a_run_that_was_missed_is_made_up_for_at_the_start(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(2)) as scene:
        await trio.sleep(1)
    assert scene.sweep.done == [_ten(2), _ten(3)]


async def test_the_very_first_start_runs(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING) as scene:
        await trio.sleep(1)
    assert scene.sweep.done == [_ten(3)]


async def test_a_run_that_is_done_is_not_made_up_for(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(3)) as scene:
        await trio.sleep(1800)
    assert scene.sweep.done == [_ten(3)]
    assert len(scene.sweep.tried) == 1


@pytest.mark.parametrize(
    "passing",
    [
        RetentionBusy("elsewhere"),
        PostgresUnavailable("away", address="db"),
        RedisUnavailable("redis://r", "away"),
        psycopg.errors.DeadlockDetected("deadlock"),
    ],
)
async def test_what_passes_is_tried_again_each_minute(
    autojump_clock: trio.testing.MockClock, passing: Exception
) -> None:
    async with _running(MORNING, done=_ten(2), failures=(passing, passing)) as scene:
        await trio.sleep(150)
    assert scene.sweep.done == [_ten(2), _ten(3)]
    gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(scene.sweep.tried)]
    assert gaps == pytest.approx([60, 60])


async def test_an_error_that_waiting_does_not_heal_is_a_crash(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.RaisesGroup(psycopg.errors.UndefinedTable):
        async with _running(MORNING, failures=(psycopg.errors.UndefinedTable("no inbox"),)):
            await trio.sleep(10)


async def test_a_clock_put_forward_is_noticed_within_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(3)) as scene:
        await trio.sleep(10)
        scene.wall.jumped = timedelta(days=2)
        await trio.sleep(61)
    assert scene.sweep.done == [_ten(3), _ten(5)]


async def test_a_clock_put_back_repeats_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(3)) as scene:
        await trio.sleep(2 * 3600)
        assert scene.sweep.done == [_ten(3), _ten(4)]
        scene.wall.jumped = timedelta(hours=-3)
        await trio.sleep(2.5 * 3600)
    assert scene.sweep.done == [_ten(3), _ten(4)]


async def test_it_says_when_it_runs_next(autojump_clock: trio.testing.MockClock) -> None:
    async with _running(MORNING, done=_ten(3)) as scene:
        await trio.sleep(1)
        assert scene.child.ready
        assert scene.child.text == "next run 2025-05-04 10:00 KST"


async def test_the_day_a_clock_is_put_back_has_one_run_too(autojump_clock: trio.testing.MockClock) -> None:
    new_york = ZoneInfo("America/New_York")
    wall = Wall(datetime(2026, 10, 31, 12, tzinfo=new_york))
    sweep = RecordedSweep(wall, done=[datetime(2026, 10, 31, 10, tzinfo=new_york)])
    with trio.move_on_after(2 * 86_400):
        child = Child("system/retention", 1, _nothing)
        await keep_schedule(child, sweep.run_due, Schedule("0 10 * * *", new_york), wall)
    assert [due.isoformat() for due in sweep.done[1:]] == ["2026-11-01T10:00:00-05:00", "2026-11-02T10:00:00-05:00"]


def _nothing() -> None: ...
