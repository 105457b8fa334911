"""What the access log answers: categories, the summary of a day, the last events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date, datetime, time, timedelta
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import psycopg
from attrs import field, frozen
from psycopg.rows import TupleRow

from ..runtime.postgres import Connection, Pool
from .outages import outages

__all__ = [
    "AccessCategory",
    "AccessRecord",
    "AccessRepository",
    "AccessSummary",
    "CategoryChange",
    "CategoryExists",
    "CategoryNotFound",
    "CategorySummary",
]


class CategoryNotFound(LookupError):
    """There is no such category, or it is deleted."""


class CategoryExists(ValueError):
    """Another category that is not deleted has this name."""


@frozen(kw_only=True)
class AccessCategory:
    """A row of ``access_category``; times are aware."""

    id: int
    category_code: str
    name: str
    description: str | None
    is_deleted: bool
    created_at: datetime
    updated_at: datetime


def _text_of(least: int, most: int) -> Any:
    def check(instance: object, attribute: Any, value: str | None) -> None:
        if value is None:
            return
        if not least <= len(value.strip()) <= len(value) <= most:
            raise ValueError(f"{attribute.name} must have {least} to {most} characters, not only blanks")
        if not value.isprintable():
            raise ValueError(f"{attribute.name} must not hold control characters")

    return check


@frozen(kw_only=True)
class CategoryChange:
    """What to change of a category; None leaves a value as it is.

    Attributes:
        id: of the category; a deleted one may be changed, too, and so be brought back.
        name: 1 to 100 characters; no two living categories share one.
        description: up to 255 characters.
        is_deleted: a deleted category is no longer listed, and its events are counted as UNKNOWN from then on.
    """

    id: int
    name: str | None = field(default=None, validator=_text_of(1, 100))
    description: str | None = field(default=None, validator=_text_of(0, 255))
    is_deleted: bool | None = None


@frozen(kw_only=True)
class AccessRecord:
    """A row of ``access_event``: `response_time` in seconds, `created_at` aware.

    In a summary `inputs` and `outputs` are None, as in the original: there they would hold earlier summaries.
    """

    id: int
    event_id: UUID
    entry_id: str | None
    category_code: str
    user_id: str
    endpoint: str
    http_method: str
    response_status: int | None
    response_time: float | None
    ip_address: str | None
    user_agent: str | None
    inputs: str | None
    outputs: str | None
    created_at: datetime


@frozen(kw_only=True)
class CategorySummary:
    """The events of one category on one day, oldest first."""

    category_code: str
    access_events: list[AccessRecord]


@frozen(kw_only=True)
class AccessSummary:
    """A day.

    Attributes:
        access_date: the day, in the configured zone.
        total_access_count: all events of the day, those of deleted categories too.
        access_event_summaries: one for each category that is not deleted, by id; without events, an empty list.
    """

    access_date: date
    total_access_count: int
    access_event_summaries: list[CategorySummary]


_CATEGORY: Final = "id, category_code, name, description, is_deleted, created_at, updated_at"

_CATEGORIES: Final = f"select {_CATEGORY} from access_category where not is_deleted order by id"  # noqa: S608
_BY_ID: Final = f"select {_CATEGORY} from access_category where not is_deleted and id = %s"  # noqa: S608
_BY_CODE: Final = f"select {_CATEGORY} from access_category where not is_deleted and category_code = %s"  # noqa: S608

_CHANGE: Final = f"""
update access_category set
    name = coalesce(%s, name), description = coalesce(%s, description), is_deleted = coalesce(%s, is_deleted),
    updated_at = now()
where id = %s
returning {_CATEGORY}
"""  # noqa: S608

_RECENT: Final = """
select id, event_id, entry_id, category_code, user_id, endpoint, http_method, response_status, response_time,
       ip_address, user_agent, inputs, outputs, created_at
from access_event order by id desc limit %s
"""

# The total comes with every row, so that there is one row at least, also of a day without events or categories.
_SUMMARY: Final = """
with day as materialized (
    select * from access_event where created_at >= %s and created_at < %s::timestamptz
), total as (
    select count(*) as events from day
)
select total.events, category.category_code, day.id, day.event_id, day.entry_id, day.category_code, day.user_id,
       day.endpoint, day.http_method, day.response_status, day.response_time, day.ip_address, day.user_agent,
       null, null, day.created_at
from total
left join access_category category on not category.is_deleted
left join day on day.category_id = category.id
order by category.id, day.created_at, day.id
"""

_INT8: Final = 2**63


class AccessRepository:
    """Reads and edits S1's tables. Every method is one transaction.

    Args:
        pool: where connections come from.
        zone: whose days a summary speaks of.

    Every method raises `penstock.runtime.postgres.PostgresUnavailable` while the database is away.
    """

    def __init__(self, pool: Pool, zone: ZoneInfo) -> None:
        self._pool = pool
        self._zone = zone

    async def categories(self) -> list[AccessCategory]:
        """All categories that are not deleted, by id."""
        return [_category(row) for row in await self._rows(_CATEGORIES)]

    async def category_by_id(self, id: int) -> AccessCategory:  # noqa: A002 - the column's own name
        """The category with this id; raises CategoryNotFound."""
        rows = await self._rows(_BY_ID, id) if abs(id) < _INT8 else []
        return _only(rows, f"there is no category with the id {id}")

    async def category_by_code(self, code: str) -> AccessCategory:
        """The category with this code, exactly; raises CategoryNotFound."""
        rows = await self._rows(_BY_CODE, code) if code.isprintable() else []
        return _only(rows, f"there is no category with the code {code!r}")

    async def change_category(self, change: CategoryChange) -> AccessCategory:
        """Change a category, and return it as it is now.

        Raises:
            CategoryNotFound: there is none with this id; a deleted one counts as there.
            CategoryExists: another living category has this name.
        """
        given = (change.name, change.description, change.is_deleted, change.id)
        try:
            rows = await self._rows(_CHANGE, *given) if abs(change.id) < _INT8 else []
        except psycopg.errors.UniqueViolation as error:
            raise CategoryExists("another category has this name") from error
        return _only(rows, f"there is no category with the id {change.id}")

    async def summary(self, day: date) -> AccessSummary:
        """All events of a day, by category: the whole day is read into memory."""
        summaries: dict[str, CategorySummary] = {}
        total = 0
        for total, code, *event in await self._rows(_SUMMARY, *self._bounds(day)):  # noqa: B007
            if code is None:
                continue
            summary = summaries.setdefault(code, CategorySummary(category_code=code, access_events=[]))
            if event[0] is not None:
                summary.access_events.append(_record(event))
        return AccessSummary(access_date=day, total_access_count=total, access_event_summaries=list(summaries.values()))

    async def recent(self, limit: int) -> list[AccessRecord]:
        """The last `limit` events, the one stored last first."""
        return [_record(row) for row in await self._rows(_RECENT, limit)]

    def _bounds(self, day: date) -> tuple[datetime, datetime | str]:
        """From midnight to midnight in the zone, so that a day of 23 or 25 hours is right, too."""
        begin = datetime.combine(day, time(), self._zone)
        if day == date.max:
            return begin, "infinity"
        return begin, datetime.combine(day + timedelta(days=1), time(), self._zone)

    async def _rows(self, statement: str, *values: object) -> list[TupleRow]:
        async with self._connection() as connection:
            cursor = await connection.execute(statement.encode(), values)
            return await cursor.fetchall()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection[TupleRow]]:
        with outages(self._pool.options.address):
            async with self._pool.connection() as connection:
                yield connection


def _category(row: TupleRow) -> AccessCategory:
    return AccessCategory(
        id=row[0],
        category_code=row[1],
        name=row[2],
        description=row[3],
        is_deleted=row[4],
        created_at=row[5],
        updated_at=row[6],
    )


def _record(row: TupleRow | list[Any]) -> AccessRecord:
    return AccessRecord(
        id=row[0],
        event_id=row[1],
        entry_id=row[2],
        category_code=row[3],
        user_id=row[4],
        endpoint=row[5],
        http_method=row[6],
        response_status=row[7],
        response_time=row[8],
        ip_address=row[9],
        user_agent=row[10],
        inputs=row[11],
        outputs=row[12],
        created_at=row[13],
    )


def _only(rows: list[TupleRow], complaint: str) -> AccessCategory:
    if not rows:
        raise CategoryNotFound(complaint)
    return _category(rows[0])
