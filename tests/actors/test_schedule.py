from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.actors.schedule import Schedule

SEOUL, NEW_YORK = ZoneInfo("Asia/Seoul"), ZoneInfo("America/New_York")
DAILY = Schedule("0 10 * * *", SEOUL)
TEN = datetime(2025, 5, 4, 10, tzinfo=SEOUL)


def test_times_are_meant_in_the_zone() -> None:
    assert DAILY.next(datetime(2025, 5, 4, 0, 59, tzinfo=UTC)) == datetime(2025, 5, 4, 1, tzinfo=UTC)


@pytest.mark.parametrize("beyond", [timedelta(0), timedelta(microseconds=1), timedelta(milliseconds=400)])
def test_at_its_time_and_right_after_it_is_due_now_and_next_tomorrow(beyond: timedelta) -> None:
    assert DAILY.latest(TEN + beyond) == TEN
    assert DAILY.next(TEN + beyond) == TEN + timedelta(days=1)


def test_right_before_its_time_it_was_due_yesterday_and_is_next_now() -> None:
    before = TEN - timedelta(microseconds=1)
    assert DAILY.latest(before) == TEN - timedelta(days=1)
    assert DAILY.next(before) == TEN


def _due_in(schedule: Schedule, year: int) -> list[datetime]:
    due, moment = [], datetime(year, 1, 1, tzinfo=NEW_YORK) - timedelta(microseconds=1)
    while (moment := schedule.next(moment)).year == year:
        due.append(moment)
    return due


def test_a_time_outside_of_the_gaps_is_due_once_each_day_of_the_year() -> None:
    due = _due_in(Schedule("0 10 * * *", NEW_YORK), 2026)
    assert [moment.date() for moment in due] == [date(2026, 1, 1) + timedelta(days=n) for n in range(365)]
    assert {(moment.hour, moment.minute) for moment in due} == {(10, 0)}


def test_a_time_that_does_not_exist_is_due_right_after_the_gap() -> None:
    due = _due_in(Schedule("30 2 * * *", NEW_YORK), 2026)
    assert len(due) == 365
    assert [moment.isoformat() for moment in due if moment.hour != 2] == ["2026-03-08T03:00:00-04:00"]


def test_a_time_that_comes_twice_is_due_twice() -> None:
    due = _due_in(Schedule("30 1 * * *", NEW_YORK), 2026)
    assert [moment.isoformat() for moment in due if moment.date() == date(2026, 11, 1)] == [
        "2026-11-01T01:30:00-04:00",
        "2026-11-01T01:30:00-05:00",
    ]


def test_the_latest_in_the_hour_that_comes_twice_is_in_its_second_half() -> None:
    schedule = Schedule("*/7 1-3 * * *", NEW_YORK)
    now = datetime(2024, 11, 3, 6, 10, tzinfo=UTC)
    assert schedule.latest(now).isoformat() == "2024-11-03T01:07:00-05:00"


@given(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
def test_nothing_is_due_between_the_latest_and_the_next_time(now: datetime) -> None:
    for schedule in (DAILY, Schedule("*/7 1-3 * * *", NEW_YORK)):
        latest, following = schedule.latest(now), schedule.next(now)
        assert latest.timestamp() <= now.timestamp() < following.timestamp()
        assert schedule.next(latest).timestamp() == following.timestamp()
        assert schedule.latest(following).timestamp() == following.timestamp()


@pytest.mark.parametrize(
    "wrong", ["", "0 10 * *", "0 0 10 * * *", "61 * * * *", "@sometimes", "0 0 30 2 *", "a b c d e"]
)
def test_what_is_no_schedule_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Schedule(wrong, SEOUL)
