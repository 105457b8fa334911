"""Retention on a real Valkey and a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
import trio
import trio.testing

from penstock.actors.retention import Retention
from penstock.actors.settings import RetentionSettings
from penstock.actors.sweep import OldRows, RetentionBusy, RetentionReport, Sweep
from penstock.actors.system import Stream, System
from penstock.actors.trimming import HeldBack, StreamReport, count_trimmable, entry_id_of, trim
from penstock.runtime.postgres import Pool
from penstock.runtime.redis import Redis
from penstock.runtime.supervision import Child

NOW = datetime(2025, 5, 4, 12, tzinfo=UTC)
CUTOFF = NOW - timedelta(days=60)
OLD, NEW = int(CUTOFF.timestamp() * 1000) - 86_400_000, int(NOW.timestamp() * 1000)

KEY, GROUP = "orders", "payment"


@pytest.fixture
async def redis(redis: Redis) -> Redis:
    """Redis frees entries by whole nodes; with one entry in each, trimming is exact and so can be counted."""
    await redis.config_set("stream-node-max-entries", 1)
    return redis


@pytest.fixture
def stream() -> Stream:
    stream = Stream(KEY)
    stream.group(GROUP)
    return stream


async def _fill(redis: Redis, *, old: int, new: int = 0, key: str = KEY) -> list[str]:
    """Add entries from before and from after the cut-off; their ids."""
    ids = [f"{OLD + number}-0" for number in range(old)] + [f"{NEW + number}-0" for number in range(new)]
    async with redis.pipeline(transaction=False) as pipeline:
        for entry_id in ids:
            pipeline.xadd(key, {"a": "1"}, id=entry_id)
        await pipeline.execute()
    return ids


async def _read(redis: Redis, count: int, *, acknowledge: int = 0, group: str = GROUP) -> None:
    """Make the group, have it read `count` entries, and acknowledge the first ones."""
    await redis.xgroup_create(KEY, group, id="0", mkstream=True)
    if count:
        [[_, entries]] = await redis.xreadgroup(group, "c", {KEY: ">"}, count=count)
        if acknowledge:
            await redis.xack(KEY, group, *[entry_id for entry_id, _ in entries][:acknowledge])


async def _ids(redis: Redis, key: str = KEY) -> list[str]:
    return [entry_id.decode() for entry_id, _ in await redis.xrange(key)]


# Trimming


async def test_what_is_old_and_acknowledged_is_trimmed(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20, new=5)
    await _read(redis, 25, acknowledge=25)
    report = await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids[20:]
    assert report == StreamReport(stream=KEY, trimmed=20, safe_id=entry_id_of(CUTOFF), first_id=ids[20])


async def test_what_is_not_read_is_kept(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20)
    await _read(redis, 8, acknowledge=8)
    report = await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids[8:]
    assert report.held_back == (HeldBack(group=GROUP, entry_id=ids[8], why="unread"),)


async def test_what_is_not_acknowledged_is_kept(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20)
    await _read(redis, 20, acknowledge=5)
    report = await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids[5:]
    assert report.held_back == (HeldBack(group=GROUP, entry_id=ids[5], why="pending"),)
    assert await redis.xack(KEY, GROUP, *ids[5:]) == 15, "retention acknowledges nothing"


async def test_one_pending_entry_far_back_keeps_all_after_it(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20)
    await _read(redis, 20, acknowledge=20)
    await redis.xclaim(KEY, GROUP, "c", 0, [ids[3]], force=True)
    await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids[3:]


async def test_a_group_that_nobody_declared_counts_too(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20)
    await _read(redis, 20, acknowledge=20)
    await _read(redis, 2, acknowledge=2, group="stranger")
    report = await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids[2:]
    assert report.held_back == (HeldBack(group="stranger", entry_id=ids[2], why="unread"),)


async def test_a_declared_group_that_redis_has_lost_has_read_nothing(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=20)
    await _read(redis, 20, acknowledge=20)
    stream.group("lost")
    report = await trim(redis, stream, CUTOFF)
    assert await _ids(redis) == ids
    assert report.held_back == (HeldBack(group="lost", entry_id=ids[0], why="missing"),)


async def test_without_any_group_nothing_is_proven(redis: Redis) -> None:
    ids = await _fill(redis, old=20)
    report = await trim(redis, Stream(KEY), CUTOFF)
    assert await _ids(redis) == ids
    assert report.held_back == (HeldBack(group="", entry_id=ids[0], why="no group"),)


async def test_without_any_group_age_is_enough_where_it_was_declared_so(redis: Redis) -> None:
    await _fill(redis, old=20, new=1)
    stream = Stream(KEY, trim_without_groups=True)
    assert (await trim(redis, stream, CUTOFF)).trimmed == 20


async def test_such_a_stream_is_trimmed_by_proof_once_it_has_a_group(redis: Redis) -> None:
    await _fill(redis, old=20)
    await _read(redis, 3, acknowledge=3)
    assert (await trim(redis, Stream(KEY, trim_without_groups=True), CUTOFF)).trimmed == 3


async def test_a_group_that_holds_nothing_old_is_not_reported(redis: Redis, stream: Stream) -> None:
    await _fill(redis, old=0, new=5)
    await _read(redis, 0)
    assert (await trim(redis, stream, CUTOFF)).held_back == ()


async def test_a_stream_may_become_empty(redis: Redis, stream: Stream) -> None:
    await _fill(redis, old=20)
    await _read(redis, 20, acknowledge=20)
    report = await trim(redis, stream, CUTOFF)
    assert (report.trimmed, report.first_id) == (20, None)
    assert await redis.exists(KEY) == 1
    assert len(await redis.xinfo_groups(KEY)) == 1


async def test_a_stream_that_does_not_exist_is_not_made(redis: Redis, stream: Stream) -> None:
    assert await trim(redis, stream, CUTOFF) == StreamReport(stream=KEY)
    assert await redis.exists(KEY) == 0


async def test_more_than_one_call_may_trim_goes_all_the_same(redis: Redis, stream: Stream) -> None:
    await _fill(redis, old=25_000)
    await redis.xgroup_create(KEY, GROUP, id="$")
    assert (await trim(redis, stream, CUTOFF)).trimmed == 25_000


async def test_only_whole_nodes_go(redis: Redis, stream: Stream) -> None:
    await redis.config_set("stream-node-max-entries", 100)
    await _fill(redis, old=250, new=1)
    await redis.xgroup_create(KEY, GROUP, id="$")
    assert (await trim(redis, stream, CUTOFF)).trimmed == 200


@pytest.mark.parametrize(
    "ids",
    [
        ["5-99", "5-100", "5-101"],
        ["9-0", "10-0", "100-0"],
        ["5-999999999999998", "5-999999999999999", "5-1000000000000000"],
        [f"5-{2**64 - 3}", f"5-{2**64 - 2}", f"5-{2**64 - 1}"],
    ],
)
async def test_ids_are_compared_as_the_numbers_they_are(redis: Redis, stream: Stream, ids: list[str]) -> None:
    """Neither by text nor as floating point numbers: what is unread stays, in every case."""
    for entry_id in ids:
        await redis.xadd(KEY, {"a": "1"}, id=entry_id)
    await _read(redis, 2, acknowledge=2)
    await trim(redis, stream, CUTOFF)
    assert (await _ids(redis))[-1] == ids[-1]
    await redis.xgroup_setid(KEY, GROUP, ids[-1])
    await trim(redis, stream, CUTOFF)
    # Of sequence numbers that Lua cannot count, the last one read may stay.
    assert len(await _ids(redis)) <= (1 if len(ids[0]) > 16 else 0)


async def test_a_dry_run_counts_and_trims_nothing(redis: Redis, stream: Stream) -> None:
    ids = await _fill(redis, old=2500, new=5)
    await _read(redis, 2505, acknowledge=2400)
    report = await count_trimmable(redis, stream, CUTOFF)
    assert (report.trimmed, report.safe_id) == (2400, ids[2400])
    assert len(await _ids(redis)) == 2505
    assert (await trim(redis, stream, CUTOFF)).trimmed == 2400


async def test_a_dry_run_of_an_empty_or_absent_stream_counts_none(redis: Redis, stream: Stream) -> None:
    assert (await count_trimmable(redis, stream, CUTOFF)).trimmed == 0
    await _read(redis, 0)
    assert (await count_trimmable(redis, stream, CUTOFF)).trimmed == 0


# A run


@pytest.fixture
def system() -> System:
    system = System("shop")
    system.stream(KEY).group(GROUP)
    return system


@pytest.fixture
def make_sweep(redis: Redis, pool: Pool, system: System) -> Callable[..., Sweep]:
    def make(*, now: datetime = NOW, tables: Sequence[OldRows] | None = None, **settings: Any) -> Sweep:
        given = {} if tables is None else {"tables": tables}
        return Sweep(
            system, lambda: redis, pool, RetentionSettings(**settings), instance="test", wall=lambda: now, **given
        )

    return make


async def _rows(pool: Pool, statement: str, *values: object) -> list[Any]:
    async with pool.connection() as connection:
        cursor = await connection.execute(statement.encode(), values)
        return await cursor.fetchall() if cursor.description else []


async def _count(pool: Pool, table: str) -> int:
    [(count,)] = await _rows(pool, f"select count(*) from {table}")
    return int(count)


async def _access_events(pool: Pool, *ages: timedelta) -> None:
    for age in ages:
        await _rows(
            pool,
            "insert into access_event"
            " (event_id, category_id, category_code, user_id, endpoint, http_method, created_at)"
            " values (%s, 1, 'X', 'x', '/', 'GET', %s)",
            uuid4(),
            NOW - age,
        )


async def _inbox(pool: Pool, *, stream: str = KEY, entry_id: str = "1-0", days: int = 61) -> None:
    await _rows(
        pool,
        "insert into penstock_inbox values (%s, %s, %s, %s, %s)",
        GROUP,
        uuid4(),
        stream,
        entry_id,
        NOW - timedelta(days=days),
    )


async def test_rows_older_than_the_cut_off_go_and_no_others(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    tick = timedelta(microseconds=1)
    sixty = timedelta(days=60)
    await _access_events(pool, sixty + tick, sixty * 2, sixty, sixty - tick, timedelta(0), -sixty)
    report = await make_sweep().run()
    assert report.rows["access_event"] == report.rows_deleted == 2
    assert await _count(pool, "access_event") == 4


async def test_rows_go_in_bounded_batches(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    await _access_events(pool, *[timedelta(days=61)] * 25)
    await _rows(
        pool,
        "create function at_most_ten() returns trigger language plpgsql as $$ begin"
        " if (select count(*) from gone) > 10 then raise 'too many at once'; end if; return null; end $$",
    )
    await _rows(
        pool,
        "create trigger at_most_ten after delete on access_event referencing old table as gone"
        " for each statement execute function at_most_ten()",
    )
    assert (await make_sweep(batch=10).run()).rows_deleted == 25


async def test_further_tables_are_swept_by_their_own_columns(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    await _rows(pool, "create schema shop")
    await _rows(pool, 'create table shop."Order" (a int, b int, "placed at" timestamptz, primary key (a, b))')
    for number, day in enumerate((61, 61, 1)):
        await _rows(pool, 'insert into shop."Order" values (1, %s, %s)', number, NOW - timedelta(days=day))
    await make_sweep(tables=[OldRows("shop.Order", "placed at", ("a", "b"))]).run()
    assert await _count(pool, 'shop."Order"') == 1


async def test_an_inbox_row_goes_when_its_entry_cannot_come_again(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    ids = await _fill(redis, old=12)
    await _read(redis, 12, acknowledge=5)
    await _inbox(pool, entry_id=ids[4])
    await _inbox(pool, entry_id=ids[5])
    await _inbox(pool, entry_id=ids[4], days=59)
    await _inbox(pool, stream="of another system")
    await make_sweep().run()
    left = await _rows(pool, "select entry_id from penstock_inbox where stream = %s order by handled_at", KEY)
    assert left == [(ids[5],), (ids[4],)]
    assert await _count(pool, "penstock_inbox") == 3


async def _letter(pool: Pool, entry_id: str, status: str, days: int = 61) -> None:
    settled_at = None if status in ("dead", "replaying") else NOW - timedelta(days=days)
    await _rows(
        pool,
        "insert into penstock_dead_letter"
        " (stream, entry_id, consumer_group, consumer, reason, fields, deliveries, dead_at, status, settled_at)"
        " values (%s, %s, %s, 'c', 'permanent', '{}', 1, %s, %s, %s)",
        KEY,
        entry_id,
        GROUP,
        NOW - timedelta(days=99),
        status,
        settled_at,
    )


async def test_a_dead_letter_goes_when_it_is_settled_and_its_entry_cannot_come_again(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    ids = await _fill(redis, old=12)
    await _read(redis, 12, acknowledge=5)
    for entry_id, status in ((ids[0], "dead"), (ids[1], "replaying"), (ids[2], "replayed"), (ids[3], "discarded")):
        await _letter(pool, entry_id, status)
    await _letter(pool, ids[4], "discarded", days=59)
    await _letter(pool, ids[5], "discarded")  # its entry is still there
    await _rows(
        pool,
        "insert into penstock_dead_letter_audit (letter_id, action, at, by)"
        " select id, 'noted', %s, 'kim' from penstock_dead_letter",
        NOW - timedelta(days=70),
    )
    report = await make_sweep().run()
    assert report.rows["penstock_dead_letter"] == 2
    left = await _rows(pool, "select entry_id, status from penstock_dead_letter order by id")
    assert left == [(ids[0], "dead"), (ids[1], "replaying"), (ids[4], "discarded"), (ids[5], "discarded")]
    # A history goes with its letter.
    assert report.rows["penstock_dead_letter_audit"] == 2
    assert await _count(pool, "penstock_dead_letter_audit") == 4


_OUTBOX = "insert into penstock_outbox (stream, event_id, fields, kind) values ('x', %s, '{}', 'spool')"
_RETRY = (
    "insert into penstock_retry (consumer_group, stream, entry_id, event_id, fields, origin)"
    " values ('g', 's', '1-0', %s, '{}', 'attempt')"
)
_LETTER = (
    "insert into penstock_dead_letter (stream, entry_id, consumer_group, consumer, reason, fields, deliveries,"
    " event_id) values ('s', '1-0', 'g', 'c', 'permanent', '{}', 1, %s)"
)


# It was published again lately: its new entry stands far behind the one that the inbox knows.
_PUBLISHED_AGAIN = (
    "insert into penstock_dead_letter (stream, entry_id, consumer_group, consumer, reason, fields, deliveries,"
    f" event_id, status, settled_at) values ('s', '1-0', 'g', 'c', 'permanent', '{{}}', 1, %s, 'replayed', '{NOW}')"
)


@pytest.mark.parametrize(
    "waiting", [_OUTBOX, _RETRY, _LETTER, _PUBLISHED_AGAIN], ids=["outbox", "retry", "letter", "published again"]
)
async def test_an_inbox_row_outlives_whatever_may_bring_its_event_again(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep], waiting: str
) -> None:
    await _read(redis, 0)
    await _inbox(pool)
    [(event_id,)] = await _rows(pool, "select event_id from penstock_inbox")
    await _rows(pool, waiting, event_id)
    assert (await make_sweep().run()).rows["penstock_inbox"] == 0
    table = waiting.split()[2]
    await _rows(pool, f"delete from {table}")
    assert (await make_sweep().run()).rows["penstock_inbox"] == 1


async def test_old_losses_suspects_and_finished_replays_go(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    old = NOW - timedelta(days=61)
    for stream in (KEY, "of another system"):
        await _rows(
            pool,
            "insert into penstock_loss (consumer_group, stream, after_id, before_id, detected_at)"
            " values ('g', %s, '1-0', '2-0', %s)",
            stream,
            old,
        )
    await _rows(pool, "insert into penstock_suspect values ('g', %s, '1-0', 1, %s)", KEY, old)
    await _rows(pool, "insert into penstock_deletion values (%s, '1-0', null, null, '{}', '{}', 'me', %s)", KEY, old)
    for number, finished in enumerate((old, None)):
        await _rows(
            pool,
            "insert into penstock_replay (id, system, stream, from_id, to_id, consumer_group, ordered_by, finished_at)"
            " values (%s, 'shop', %s, '0-0', '1-0', 'g', %s, %s)",
            uuid4(),
            KEY,
            str(number),
            finished,
        )
    rows = (await make_sweep().run()).rows
    assert (rows["penstock_loss"], rows["penstock_suspect"], rows["penstock_replay"]) == (1, 1, 1)
    assert rows["penstock_deletion"] == 1
    assert await _count(pool, "penstock_replay") == 1


async def test_every_partition_is_trimmed_and_reported(
    redis: Redis, system: System, make_sweep: Callable[..., Sweep]
) -> None:
    system.stream("spread", partitions=2, trim_without_groups=True)
    for key in ("{spread:0}", "{spread:1}"):
        await _fill(redis, old=4, key=key)
    report = await make_sweep(keep_entries_for=86_400.0).run()
    assert [(each.stream, each.trimmed) for each in report.streams][1:] == [("{spread:0}", 4), ("{spread:1}", 4)]


async def test_the_last_runs_are_told(make_sweep: Callable[..., Sweep]) -> None:
    await make_sweep().run()
    await make_sweep().run(dry_run=True)
    assert [run["dry_run"] for run in await make_sweep().runs(10)] == [True, False]
    assert len(await make_sweep().runs(1)) == 1


async def test_the_inbox_of_an_empty_stream_goes_by_age(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    await _read(redis, 0)
    await _inbox(pool)
    await _inbox(pool, days=59)
    assert (await make_sweep().run()).rows["penstock_inbox"] == 1


async def test_what_a_work_queue_leaves_in_the_database_goes_by_age(
    redis: Redis, pool: Pool, system: System, make_sweep: Callable[..., Sweep]
) -> None:
    system.queue("jobs")
    for days in (61, 59):
        await _inbox(pool, stream="jobs", entry_id="1795953224915-16403665382229609940", days=days)
    assert (await make_sweep().run()).rows["penstock_inbox"] == 1
    assert await _count(pool, "penstock_inbox") == 1


async def test_a_dry_run_deletes_nothing_and_says_what_would_go(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    await _fill(redis, old=7, new=1)
    await _read(redis, 8, acknowledge=8)
    await _access_events(pool, *[timedelta(days=61)] * 3)
    dry = await make_sweep(dry_run=True).run()
    assert (dry.entries_trimmed, dry.rows["access_event"], dry.dry_run) == (7, 3, True)
    assert len(await _ids(redis)) == 8
    assert await _count(pool, "access_event") == 3
    wet = await make_sweep(dry_run=True).run(dry_run=False)
    assert (wet.entries_trimmed, wet.rows["access_event"]) == (7, 3)


async def test_a_run_is_recorded(redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    ids = await _fill(redis, old=4)
    await _read(redis, 3, acknowledge=3)
    report = await make_sweep().run()
    [row] = await _rows(
        pool,
        "select system, instance, due_at, started_at, dry_run, entries_trimmed, rows_deleted, report"
        " from penstock_retention_run",
    )
    assert row[:7] == ("shop", "test", None, NOW, False, 3, 0)
    assert row[7]["streams"] == [
        {
            "stream": KEY,
            "trimmed": 3,
            "safe_id": f"{OLD + 2}-1",
            "first_id": ids[3],
            "held_back": [{"group": GROUP, "entry_id": ids[3], "why": "unread"}],
            "error": None,
        }
    ]
    assert report.cutoff == CUTOFF


async def test_a_stream_that_is_none_does_not_keep_the_others(
    redis: Redis, system: System, make_sweep: Callable[..., Sweep]
) -> None:
    await redis.set(KEY, "no stream")
    system.stream("refunds", trim_without_groups=True)
    await _fill(redis, old=5, key="refunds")
    wrong, right = (await make_sweep().run()).streams
    assert wrong.error is not None
    assert wrong.error.startswith("WRONGTYPE")
    assert right.trimmed == 5


async def test_a_due_run_is_done_once_by_whomever(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    due = NOW - timedelta(hours=1)
    assert await make_sweep().run_due(due) is not None
    assert await make_sweep().run_due(due) is None
    assert await make_sweep().run_due(due - timedelta(days=1)) is None
    assert await make_sweep().run_due(due + timedelta(days=1)) is not None


async def test_a_run_by_order_does_not_stand_for_the_scheduled_one(make_sweep: Callable[..., Sweep]) -> None:
    await make_sweep().run()
    assert await make_sweep().run_due(NOW) is not None


async def test_another_systems_run_does_not_stand_for_ours(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    other = Sweep(System("other"), lambda: redis, pool, RetentionSettings(), wall=lambda: NOW)
    assert await other.run_due(NOW) is not None
    assert await make_sweep().run_due(NOW) is not None


async def test_old_records_go_but_the_last_scheduled_one(pool: Pool, make_sweep: Callable[..., Sweep]) -> None:
    for days in (90, 80, 70):
        await make_sweep(now=NOW - timedelta(days=days), days=365).run_due(NOW - timedelta(days=days))
    await make_sweep(now=NOW - timedelta(days=75), days=365).run()
    await make_sweep().run()
    rows = await _rows(pool, "select due_at from penstock_retention_run order by started_at")
    assert rows == [(NOW - timedelta(days=70),), (None,)]


async def test_one_instance_at_a_time(
    redis: Redis, pool: Pool, system: System, make_sweep: Callable[..., Sweep]
) -> None:
    """The second says so and does nothing, and the first one's lock ends with it, however it ends."""
    under_way = trio.Event()

    class _Stuck(Exception):
        pass

    async def stuck(sweep: Sweep) -> None:
        async with sweep._locked():
            under_way.set()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stuck, make_sweep())
        await under_way.wait()
        for attempt in (make_sweep().run(), make_sweep().run_due(NOW)):
            with pytest.raises(RetentionBusy, match="shop"):
                await attempt
        nursery.cancel_scope.cancel()
    assert await make_sweep().run_due(NOW) is not None


async def test_a_cancelled_run_is_gone_on_with_by_the_next(
    redis: Redis, pool: Pool, make_sweep: Callable[..., Sweep]
) -> None:
    await _access_events(pool, *(timedelta(days=80 - number) for number in range(10)))
    async with pool.connection() as other, trio.open_nursery() as nursery:
        # Another transaction holds the seventh row, so that the run stands still there.
        async with other.transaction():
            await other.execute("select from access_event where id = 7 for update")
            nursery.start_soon(make_sweep(batch=2).run_due, NOW)
            with trio.fail_after(10):
                while await _count(pool, "access_event") > 4:
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert await _count(pool, "penstock_retention_run") == 0
    # The batch that it stood still in was rolled back, or was done just in time.
    left = await _count(pool, "access_event")
    assert left in (2, 4)
    report = await make_sweep(batch=2).run_due(NOW)
    assert report is not None
    assert report.rows["access_event"] == left


async def test_the_actor_runs_what_was_missed_and_reports_it(redis: Redis, pool: Pool, system: System) -> None:
    await _access_events(pool, *[timedelta(days=61)] * 3)
    actor = Retention(
        system=system,
        client=lambda: redis,
        pool=pool,
        settings=RetentionSettings(),
        zone=ZoneInfo("Asia/Seoul"),
        wall=lambda: NOW,
    )
    child = Child("shop/retention", 1, lambda: None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(actor, child)
        with trio.fail_after(10):
            while not child.text.startswith("next run"):
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    [(due,)] = await _rows(pool, "select due_at from penstock_retention_run")
    assert due == datetime(2025, 5, 4, 1, tzinfo=UTC)
    assert await _count(pool, "access_event") == 0


async def test_an_order_that_was_waiting_when_the_actor_was_held_is_worked_off_later(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch, system: System
) -> None:
    actor = Retention(
        system=system,
        client=lambda: None,  # type: ignore[arg-type, return-value]
        pool=None,  # type: ignore[arg-type]
        settings=RetentionSettings(),
        zone=ZoneInfo("Asia/Seoul"),
        wall=lambda: NOW,
    )
    runs: list[bool] = []

    async def run(*, dry_run: bool) -> RetentionReport:
        runs.append(dry_run)
        if len(runs) == 1:
            await trio.sleep_forever()
        raise RetentionBusy("somebody else is at it")

    async def nothing_due(due: datetime) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(actor.sweep, "run", run)
    monkeypatch.setattr(actor.sweep, "run_due", nothing_due)
    first, second = actor.order(dry_run=False), actor.order(dry_run=True)
    for _ in range(2):
        with trio.move_on_after(10):
            await actor(Child("shop/retention", 1, lambda: None))
    assert runs == [False, True]
    assert (first.state, first.error) == ("failed", "it was interrupted")
    assert (second.state, second.error) == ("failed", "somebody else is at it")
