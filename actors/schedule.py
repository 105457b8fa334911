"""Cron times in a time zone: when was it due last, when is it due next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from croniter import CroniterError, croniter

__all__ = ["Schedule"]

_TICK = timedelta(microseconds=1)


class Schedule:
    """A cron expression of five fields, in a zone; `croniter` reads it.

    On the day that a clock is put forward, a time that does not exist is due right after the gap. On the day that it is
    put back, a time that comes twice is due twice.

    Args:
        expression: minute, hour, day of month, month, weekday; or an alias such as ``@daily``.
        zone: where these times are meant.

    Raises:
        ValueError: it is no such expression, or one that is never due (30 February).
    """

    def __init__(self, expression: str, zone: ZoneInfo) -> None:
        self._expression = expression
        self._zone = zone
        if not expression.startswith("@") and len(expression.split()) != 5:
            raise ValueError("must have five fields: minute, hour, day of month, month, weekday")
        try:
            self.next(datetime.now(UTC))
        except (CroniterError, ValueError, KeyError) as error:
            raise ValueError(f"must be a cron expression: {error}") from None

    def next(self, now: datetime) -> datetime:
        """The first time after `now`; aware, in the zone."""
        return self._at(now).get_next(datetime)

    def latest(self, now: datetime) -> datetime:
        """The last time that is not after `now`; aware, in the zone."""
        found: datetime = self._at(now + _TICK).get_prev(datetime)
        # In the hour that comes twice croniter goes back too far; forwards it is right.
        while (following := self.next(found)).timestamp() <= now.timestamp():
            found = following
        return found

    def _at(self, moment: datetime) -> croniter:
        return croniter(self._expression, moment.astimezone(self._zone))

    def __repr__(self) -> str:
        return f"<Schedule {self._expression!r} in {self._zone.key}>"
