"""The access log on a real PostgreSQL: what the handler stores, and what the repository answers."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import psycopg
import pytest

from penstock.actors.access import (
    ACCESS_GROUP,
    ACCESS_STREAM,
    AccessEvent,
    AccessEventHandler,
    AccessRepository,
    CategoryChange,
    CategoryExists,
    CategoryNotFound,
    event_system,
)
from penstock.actors.event import Envelope
from penstock.actors.handling import Context, Delivery
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

SEOUL = ZoneInfo("Asia/Seoul")
NOON = datetime(2025, 5, 4, 12, tzinfo=SEOUL)


def _event(**attributes: Any) -> AccessEvent:
    return AccessEvent(**{"endpoint": "/api/x", "http_method": "GET", "created_at": NOON, **attributes})


def _deliveries(events: Sequence[AccessEvent]) -> list[Delivery[AccessEvent]]:
    return [
        Delivery(event=event, envelope=Envelope(event_type="ACCESS", data={}), entry_id=f"{number}-0", attempt=1)
        for number, event in enumerate(events, 1)
    ]


async def _handle(pool: Pool, deliveries: Sequence[Delivery[AccessEvent]]) -> None:
    async with pool.connection() as connection, connection.transaction():
        await AccessEventHandler()(deliveries, Context(connection=connection, stream=ACCESS_STREAM, group=ACCESS_GROUP))


async def _store(pool: Pool, *events: AccessEvent) -> None:
    await _handle(pool, _deliveries(events))


async def _all(pool: Pool, statement: bytes) -> list[Any]:
    async with pool.connection() as connection:
        return await (await connection.execute(statement)).fetchall()


@pytest.fixture
def repository(pool: Pool) -> AccessRepository:
    return AccessRepository(pool, SEOUL)


# The system


def test_the_system_is_that_of_the_source() -> None:
    group = event_system.streams["EVENT_STREAM"].groups["EVENT_GROUP"]
    assert (group.consumers, group.consumer_prefix, group.block, group.start) == (2, "EVENT_CONSUMER", 1.0, "0")
    assert group.handlers["ACCESS"].batch


# The handler


async def test_every_attribute_but_the_method_name_is_stored(pool: Pool, repository: AccessRepository) -> None:
    event = _event(
        category_code="API_ADMIN",
        user_id="me",
        method_name="get",
        response_status=204,
        response_time=0.25,
        ip_address="::1",
        user_agent="curl",
        inputs="[1]",
        outputs="{}",
    )
    [delivery] = _deliveries([event])
    await _handle(pool, [delivery])
    [record] = await repository.recent(10)
    assert (record.event_id, record.entry_id) == (delivery.envelope.event_id, "1-0")
    for name in ("category_code", "user_id", "endpoint", "http_method", "response_status", "response_time"):
        assert getattr(record, name) == getattr(event, name)
    for name in ("ip_address", "user_agent", "inputs", "outputs", "created_at"):
        assert getattr(record, name) == getattr(event, name)


async def test_what_is_none_is_null(pool: Pool) -> None:
    await _store(pool, _event())
    assert await _all(
        pool, b"select response_status, response_time, ip_address, user_agent, inputs, outputs from access_event"
    ) == [(None,) * 6]


async def test_many_events_are_one_statement_and_keep_their_rows_apart(
    pool: Pool, repository: AccessRepository
) -> None:
    await _store(pool, *(_event(endpoint=f"/api/{n}", response_status=200 + n) for n in range(250)))
    records = await repository.recent(1000)
    assert {(record.endpoint, record.response_status) for record in records} == {
        (f"/api/{n}", 200 + n) for n in range(250)
    }


async def test_no_events_are_no_statement(pool: Pool) -> None:
    await _store(pool)
    assert await _all(pool, b"select count(*) from access_event") == [(0,)]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PROPFIND", "x" * 100, ""])
async def test_any_method_can_be_stored(pool: Pool, method: str) -> None:
    await _store(pool, _event(http_method=method))
    assert await _all(pool, b"select count(*) from access_event") == [(1,)]


async def test_no_request_is_impossible_to_store(pool: Pool) -> None:
    evil = "\0\ud800" + "ü" * 10_000
    await _store(
        pool,
        AccessEvent(
            endpoint=evil,
            http_method=evil,
            category_code=evil,
            user_id=evil,
            response_status=-(2**31),
            response_time=1e300,
            ip_address=evil,
            user_agent=evil,
            inputs=evil,
            outputs=evil,
            created_at=datetime(9998, 12, 30, 23, 59, tzinfo=timezone(timedelta(hours=-12))),
        ),
        AccessEvent(endpoint="", http_method="", created_at=datetime(1970, 1, 1, tzinfo=UTC)),
    )
    [(endpoint, length)] = await _all(
        pool, b"select left(endpoint, 2), length(endpoint) from access_event where endpoint <> ''"
    )
    assert (endpoint, length) == ("?ü", 2048)


@pytest.mark.parametrize("code", ["NO_SUCH", "SERVICE_QUEUE"])
async def test_an_unknown_or_deleted_category_is_counted_as_unknown_and_keeps_its_code(
    pool: Pool, repository: AccessRepository, code: str
) -> None:
    queue = await repository.category_by_code("SERVICE_QUEUE")
    await repository.change_category(CategoryChange(id=queue.id, is_deleted=True))
    await _store(pool, _event(category_code=code))
    assert await _all(
        pool,
        b"select c.category_code, e.category_code from access_event e join access_category c on c.id = e.category_id",
    ) == [("UNKNOWN", code)]


async def test_an_event_is_one_row_though_the_inbox_forgot_it(pool: Pool) -> None:
    deliveries = _deliveries([_event()])
    await _handle(pool, deliveries)
    await _handle(pool, deliveries)
    await _handle(pool, deliveries * 2)
    assert await _all(pool, b"select count(*) from access_event") == [(1,)]


# The tables


async def test_a_category_with_events_cannot_be_deleted_from_under_them(pool: Pool) -> None:
    await _store(pool, _event())
    with pytest.raises(psycopg.errors.RestrictViolation):
        await _all(pool, b"delete from access_category where category_code = 'API_PUBLIC' returning id")


async def test_a_fresh_access_log_has_the_seven_categories_and_no_events(
    pool: Pool, repository: AccessRepository
) -> None:
    assert [category.category_code for category in await repository.categories()] == [
        "UNKNOWN",
        "API_PUBLIC",
        "API_ADMIN",
        "API_EXTERNAL",
        "API_INTERNAL",
        "HEALTH_SYSTEM",
        "SERVICE_QUEUE",
    ]
    assert await repository.recent(10) == []


async def test_a_further_category_can_be_inserted_by_hand(pool: Pool) -> None:
    await _all(pool, b"insert into access_category (category_code, name) values ('BATCH', 'Batch') returning id")
    with pytest.raises(psycopg.errors.UniqueViolation):
        await _all(pool, b"insert into access_category (category_code, name) values ('BATCH', 'B') returning id")


# The categories


async def test_a_category_is_found_by_id_and_by_code(repository: AccessRepository) -> None:
    by_code = await repository.category_by_code("API_ADMIN")
    assert await repository.category_by_id(by_code.id) == by_code
    assert by_code.created_at.tzinfo is not None


@pytest.mark.parametrize("code", ["", "api_admin", "NO_SUCH", "a\0b", "x" * 300])
async def test_an_unknown_code_is_not_found(repository: AccessRepository, code: str) -> None:
    with pytest.raises(CategoryNotFound):
        await repository.category_by_code(code)


@pytest.mark.parametrize("number", [0, -1, 2**31, 2**63, 10**40])
async def test_an_unknown_id_is_not_found(repository: AccessRepository, number: int) -> None:
    with pytest.raises(CategoryNotFound):
        await repository.category_by_id(number)
    with pytest.raises(CategoryNotFound):
        await repository.change_category(CategoryChange(id=number, name="x"))


async def test_only_what_is_given_is_changed(repository: AccessRepository) -> None:
    before = await repository.category_by_code("API_ADMIN")
    changed = await repository.change_category(CategoryChange(id=before.id, description=""))
    assert (changed.name, changed.description, changed.is_deleted) == (before.name, "", False)
    assert changed.updated_at > before.updated_at
    assert changed.created_at == before.created_at
    assert await repository.category_by_id(before.id) == changed


async def test_a_deleted_category_is_gone_until_it_is_brought_back(repository: AccessRepository) -> None:
    admin = await repository.category_by_code("API_ADMIN")
    await repository.change_category(CategoryChange(id=admin.id, is_deleted=True))
    assert admin.id not in {category.id for category in await repository.categories()}
    for search in (repository.category_by_id(admin.id), repository.category_by_code("API_ADMIN")):
        with pytest.raises(CategoryNotFound):
            await search
    await repository.change_category(CategoryChange(id=admin.id, is_deleted=False))
    assert (await repository.category_by_id(admin.id)).name == admin.name


async def test_two_living_categories_have_two_names(repository: AccessRepository) -> None:
    admin = await repository.category_by_code("API_ADMIN")
    with pytest.raises(CategoryExists):
        await repository.change_category(CategoryChange(id=admin.id, name="Public API"))
    assert await repository.category_by_id(admin.id) == admin


@pytest.mark.parametrize(
    "wrong", [{"name": ""}, {"name": "   "}, {"name": "x" * 101}, {"name": "a\0"}, {"description": "x" * 256}]
)
def test_a_change_that_no_column_can_hold_is_refused_before(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CategoryChange(id=1, **wrong)


# The summary


async def test_a_day_is_that_of_the_zone(pool: Pool, repository: AccessRepository) -> None:
    day = date(2025, 5, 4)
    inside = [datetime(2025, 5, 3, 15, tzinfo=UTC), datetime(2025, 5, 4, 14, 59, 59, 999999, UTC)]
    outside = [datetime(2025, 5, 3, 14, 59, 59, 999999, UTC), datetime(2025, 5, 4, 15, tzinfo=UTC)]
    await _store(pool, *(_event(created_at=moment) for moment in inside + outside))
    summary = await repository.summary(day)
    assert (summary.access_date, summary.total_access_count) == (day, 2)
    events = {part.category_code: part.access_events for part in summary.access_event_summaries}
    assert [event.created_at for event in events["API_PUBLIC"]] == inside


async def test_a_day_may_have_25_hours(pool: Pool) -> None:
    repository = AccessRepository(pool, ZoneInfo("America/New_York"))
    await _store(
        pool, *(_event(created_at=datetime(2025, 11, 2, 4, 30, tzinfo=UTC) + timedelta(hours=h)) for h in range(26))
    )
    assert (await repository.summary(date(2025, 11, 2))).total_access_count == 25


async def test_every_living_category_has_its_place_and_the_total_counts_all(
    pool: Pool, repository: AccessRepository
) -> None:
    await _store(pool, _event(category_code="API_ADMIN"), _event(category_code="SERVICE_QUEUE"), _event())
    queue = await repository.category_by_code("SERVICE_QUEUE")
    await repository.change_category(CategoryChange(id=queue.id, is_deleted=True))
    summary = await repository.summary(NOON.date())
    assert summary.total_access_count == 3
    assert {part.category_code: len(part.access_events) for part in summary.access_event_summaries} == {
        "UNKNOWN": 0,
        "API_PUBLIC": 1,
        "API_ADMIN": 1,
        "API_EXTERNAL": 0,
        "API_INTERNAL": 0,
        "HEALTH_SYSTEM": 0,
    }


async def test_a_summary_holds_no_inputs_and_outputs(pool: Pool, repository: AccessRepository) -> None:
    await _store(pool, _event(inputs="[1]", outputs="{}"))
    [event] = (await repository.summary(NOON.date())).access_event_summaries[1].access_events
    assert (event.inputs, event.outputs, event.endpoint) == (None, None, "/api/x")


async def test_a_summary_without_any_category_still_counts(pool: Pool, repository: AccessRepository) -> None:
    await _store(pool, _event())
    await _all(pool, b"update access_category set is_deleted = true returning id")
    summary = await repository.summary(NOON.date())
    assert (summary.total_access_count, summary.access_event_summaries) == (1, [])


@pytest.mark.parametrize("day", [date.min, date(1969, 12, 31), date.max])
async def test_any_day_has_a_summary(repository: AccessRepository, day: date) -> None:
    summary = await repository.summary(day)
    assert summary.total_access_count == 0
    assert len(summary.access_event_summaries) == 7


async def test_the_last_events_are_those_stored_last(pool: Pool, repository: AccessRepository) -> None:
    await _store(pool, _event(endpoint="/1"))
    await _store(pool, _event(endpoint="/2", created_at=NOON - timedelta(days=1)))
    assert [record.endpoint for record in await repository.recent(10)] == ["/2", "/1"]
    assert [record.endpoint for record in await repository.recent(1)] == ["/2"]


async def test_a_database_that_is_away_is_an_outage() -> None:
    options = PostgresOptions(host="/nowhere", database="x", connect_timeout=1.0)
    async with Pool(options) as pool:
        with pytest.raises(PostgresUnavailable):
            await AccessRepository(pool, SEOUL).categories()


async def test_a_connection_lost_in_the_middle_is_an_outage(pool: Pool, repository: AccessRepository) -> None:
    with pytest.raises(PostgresUnavailable):
        await repository._rows("select pg_terminate_backend(pg_backend_pid())")
    assert len(await repository.categories()) == 7
