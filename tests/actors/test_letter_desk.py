"""What people do with dead letters, on a real database; the rest of the system is what each test does itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import psycopg
import pytest
import trio
from attrs import define, field

from penstock.actors import letter_orders
from penstock.actors.dead_letter import DeadLetter
from penstock.actors.letter_orders import LetterOrders
from penstock.actors.letters import LetterDesk, LetterFilter, LetterNotFound, LetterRefused, OrderNotFound
from penstock.actors.store import PostgresStore
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.supervision import ChildSpec, Gates, Supervisor, Tree
from penstock.runtime.testing.redis import InProcessRedis

GROUP, STREAM = "billing", "orders"
ANYTHING = LetterFilter(status=None)


def _system() -> System:
    system = System("shop")
    stream = system.stream(STREAM)
    stream.group(GROUP)
    stream.group("shipping")
    spread = system.stream("clicks", partitions=3)
    spread.group("counting")
    return system


@define(eq=False, slots=False)
class Office:
    """A desk, and what else there is of the system."""

    pool: Pool
    system: System = field(factory=_system)
    gates: Gates = field(factory=Gates)
    trouble: list[Exception] = field(factory=list)
    redis: Any = None
    deaths: int = 0

    def __attrs_post_init__(self) -> None:
        self.store = PostgresStore(self.pool)
        self.desk = LetterDesk(self.pool, self.system)
        self.gates.add("redis", settle=0.0)

    async def bury(self, count: int = 1, why: str = "no funds", **facts: Any) -> list[int]:
        """Dead letters, the ids of which are returned."""
        for _ in range(count):
            self.deaths += 1
            given: dict[str, Any] = {
                "stream": STREAM,
                "entry_id": f"{self.deaths}-0",
                "consumer_group": GROUP,
                "consumer": "billing-1",
                "reason": "max_deliveries",
                "fields": {"eventType": "ORDER", "data": f"{self.deaths}"},
                "deliveries": 5,
                "event_id": uuid4(),
                "event_type": "ORDER",
                "mirror": "orders:dead-letter",
            }
            error = ValueError(why) if why == "no funds" else KeyError(why)
            async with self.store.transaction() as transaction:
                await transaction.bury(DeadLetter.of(error, **{**given, **facts}))
        rows = await self.rows("select id from penstock_dead_letter order by id desc limit %s", count)
        return sorted(row[0] for row in rows)

    async def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        async with self.pool.connection() as connection:
            cursor = await connection.execute(statement.encode(), values)
            return [tuple(row) for row in await cursor.fetchall()] if cursor.description else []

    async def statuses(self) -> list[str]:
        return [row[0] for row in await self.rows("select status from penstock_dead_letter order by id")]

    def worker(self) -> LetterOrders:
        return LetterOrders(
            self.system,
            self.store,
            self.desk,
            lambda: self.redis,
            redis_gate=self.gates["redis"],
            redis_trouble=self.trouble.append,
        )

    async def work_off(self, number: UUID, workers: int = 1) -> None:
        """Run the actor, or several, until the order has ended."""
        children = [ChildSpec(id=f"dead-letters-{n}", body=self.worker()) for n in range(workers)]
        tree = Tree(Supervisor("root", children))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            while (await self.desk.order(number)).state == "running":
                await trio.sleep(0.01)
            tree.stop("done")

    async def retry_rows(self) -> list[tuple[Any, ...]]:
        return await self.rows(
            "select entry_id, consumer_group, origin, attempts, event_id, letter_id from penstock_retry order by id"
        )


@pytest.fixture
async def office(database: PostgresOptions) -> AsyncIterator[Office]:
    async with Pool(database) as pool:
        yield Office(pool)


# Looking -------------------------------------------------------------------------------------------------------------


async def test_letters_are_listed_page_by_page_the_last_first(office: Office) -> None:
    ids = await office.bury(5)
    first = await office.desk.letters(LetterFilter(), limit=2)
    assert [letter.id for letter in first.letters] == [ids[4], ids[3]]
    second = await office.desk.letters(LetterFilter(), limit=2, before=first.next)
    await office.bury()
    third = await office.desk.letters(LetterFilter(), limit=2, before=second.next)
    assert [letter.id for page in (second, third) for letter in page.letters] == [ids[2], ids[1], ids[0]]
    assert third.next is None


async def test_each_filter_finds_its_letters_and_no_others(office: Office) -> None:
    event_id = uuid4()
    (one,) = await office.bury(event_id=event_id, event_key="k", event_type="SPECIAL")
    (other,) = await office.bury(why="another", consumer_group="shipping", reason="permanent")
    (clicks,) = await office.bury(
        stream="{clicks:1}", consumer_group="counting", dead_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    (discarded,) = await office.bury()
    await office.desk.discard(LetterFilter(ids=(discarded,)), by="me")
    fingerprint = (await office.desk.letter(other)).letter.fingerprint
    turn = datetime.now(UTC) - timedelta(days=1)
    for which, found in (
        (LetterFilter(), [clicks, other, one]),
        (LetterFilter(ids=(one, other, 2**70)), [other, one]),
        (LetterFilter(stream=STREAM), [other, one]),
        (LetterFilter(stream="clicks"), [clicks]),
        (LetterFilter(stream="{clicks:1}"), [clicks]),
        (LetterFilter(stream="{clicks:2}"), []),
        (LetterFilter(group="shipping"), [other]),
        (LetterFilter(reason="permanent"), [other]),
        (LetterFilter(event_type="SPECIAL"), [one]),
        (LetterFilter(key="k"), [one]),
        (LetterFilter(event_id=event_id), [one]),
        (LetterFilter(fingerprint=fingerprint), [other]),
        (LetterFilter(status="discarded"), [discarded]),
        (LetterFilter(status=None), [discarded, clicks, other, one]),
        (LetterFilter(since=turn), [other, one]),
        (LetterFilter(until=turn), [clicks]),
        (LetterFilter(group=GROUP, reason="permanent"), []),
    ):
        page = await office.desk.letters(which)
        assert [letter.id for letter in page.letters] == found, which


async def test_what_died_of_one_error_is_one_group_with_an_example(office: Office) -> None:
    ids = await office.bury(3)
    await office.bury(why="another", event_type="OTHER")
    most, least = await office.desk.groups(LetterFilter())
    assert (most.count, most.example, most.error_message, most.event_types) == (3, ids[-1], "no funds", ("ORDER",))
    assert (most.streams, most.consumer_group, most.reason) == ((STREAM,), GROUP, "max_deliveries")
    assert most.first < most.last
    assert (least.count, least.error_class) == (1, "builtins.KeyError")


async def test_a_letter_is_shown_with_its_exact_fields_and_its_history(office: Office) -> None:
    (number,) = await office.bury(fields={b"a\0": b"\xff"}, traceparent="00-1", host="h", pid=7, version="1.2")
    await office.desk.note(number, "asked the bank", by="kim")
    found = await office.desk.letter(number)
    assert found.fields == {"a\0": "\udcff"}
    assert found.traceback is not None
    assert found.traceback.endswith("ValueError: no funds\n")
    assert [(each.action, each.by, each.note) for each in found.audit] == [("noted", "kim", "asked the bank")]
    letter = found.letter
    assert (letter.traceparent, letter.host, letter.pid, letter.version) == ("00-1", "h", 7, "1.2")
    assert letter.note == "asked the bank"


@pytest.mark.parametrize("number", [0, -1, 10**6, 2**63, 2**200])
async def test_what_is_not_there_is_not_found(office: Office, number: int) -> None:
    with pytest.raises(LetterNotFound):
        await office.desk.letter(number)
    with pytest.raises(LetterNotFound):
        await office.desk.note(number, "?", by="me")
    with pytest.raises(LetterNotFound):
        await office.desk.replay_one(number, by="me")
    with pytest.raises(OrderNotFound):
        await office.desk.order(uuid4())


# Discarding ----------------------------------------------------------------------------------------------------------


async def test_discarding_settles_the_oldest_that_are_dead_and_says_who_did_it(office: Office) -> None:
    ids = await office.bury(4)
    assert await office.desk.discard(LetterFilter(ids=tuple(ids[:2])), by="kim", note="test data") == 2
    assert await office.desk.discard(LetterFilter(ids=tuple(ids[:2])), by="lee") == 0
    assert await office.desk.discard(LetterFilter(), by="lee", limit=1) == 1
    assert await office.statuses() == ["discarded"] * 3 + ["dead"]
    found = await office.desk.letter(ids[0])
    assert (found.letter.settled_by, found.letter.note) == ("kim", "test data")
    assert [(each.action, each.by) for each in found.audit] == [("discarded", "kim")]


# Replaying -----------------------------------------------------------------------------------------------------------


async def test_a_replay_moves_letters_to_the_retries_of_their_group(office: Office) -> None:
    ids = await office.bury(3, fields={b"data": b"\xff"})
    order = await office.desk.replay(LetterFilter(), by="kim", note="mended", rate=1_000)
    assert (order.state, order.total, order.moved, order.ordered_by) == ("running", 3, 0, "kim")
    assert await office.statuses() == ["replaying"] * 3
    await office.work_off(order.id)
    rows = await office.retry_rows()
    letters = [(await office.desk.letter(number)).letter for number in ids]
    assert rows == [(letter.entry_id, GROUP, "letter", 0, letter.event_id, letter.id) for letter in letters]
    assert {letter.replays for letter in letters} == {1}
    (fields,) = {bytes(row[0]) for row in await office.rows("select fields from penstock_retry")}
    assert fields == b'{"data": "\\udcff"}'
    order = await office.desk.order(order.id)
    assert (order.state, order.moved, order.waiting, order.replayed, order.dead) == ("done", 3, 3, 0, 0)
    history = (await office.desk.letter(ids[0])).audit
    assert [(each.action, each.by, each.order_id) for each in history] == [
        ("ordered", "kim", order.id),
        ("moved", "kim", order.id),
    ]


async def test_an_order_tells_what_came_of_its_letters(office: Office) -> None:
    ids = await office.bury(3)
    order = await office.desk.replay(LetterFilter(), by="kim", rate=1_000)
    await office.work_off(order.id)
    letters = [(await office.desk.letter(number)).letter for number in ids]
    async with office.store.transaction() as transaction:
        assert await office.store.dead_letters.settle(transaction, GROUP, STREAM, letters[0].entry_id, "billing-1")
    await office.bury(entry_id=letters[1].entry_id, why="no funds", again=True)
    order = await office.desk.order(order.id)
    assert (order.waiting, order.replayed, order.dead) == (1, 1, 1)
    assert [each.action for each in (await office.desk.letter(ids[0])).audit] == ["ordered", "moved", "replayed"]
    died = (await office.desk.letter(ids[1])).audit[-1]
    assert (died.action, died.by, died.note, died.order_id) == ("died", "billing-1", "no funds", order.id)
    settled = (await office.desk.letter(ids[0])).letter
    assert settled.settled_at is not None
    assert settled.settled_by == "billing-1"


async def test_a_replay_to_the_stream_goes_through_the_outbox_with_the_same_event_id(office: Office) -> None:
    (number,) = await office.bury(stream="{clicks:1}", consumer_group="counting", event_key="k", mirror=None)
    order = await office.desk.replay(LetterFilter(), by="kim", target="stream")
    await office.work_off(order.id)
    letter = (await office.desk.letter(number)).letter
    assert (letter.status, letter.settled_by) == ("replayed", "kim")
    rows = await office.rows("select stream, event_id, event_key, kind from penstock_outbox")
    assert rows == [("clicks", letter.event_id, "k", "replay")]
    assert await office.retry_rows() == []


async def test_a_dry_run_counts_what_would_be_left_out(office: Office) -> None:
    await office.bury(3)
    await office.bury(event_id=None, event_type=None, reason="undecodable")
    await office.bury(reason="trimmed", fields=None)
    await office.bury(consumer_group="of-another-system")
    preview = await office.desk.preview(LetterFilter())
    assert (preview.matching, preview.letters, preview.trimmed, preview.undeclared) == (6, 4, 1, 1)
    preview = await office.desk.preview(LetterFilter(), target="stream", limit=2)
    assert (preview.letters, preview.no_events) == (2, 1)
    assert await office.statuses() == ["dead"] * 6
    order = await office.desk.replay(LetterFilter(), by="kim")
    assert order.total == 4
    assert (await office.statuses()).count("dead") == 2


async def test_letters_that_are_locked_for_a_moment_are_waited_for(office: Office) -> None:
    """As one is while the relay writes down where the mirror shows it: nothing must stay dead for that."""
    numbers = await office.bury(3)
    totals: list[int] = []

    async def order() -> None:
        totals.append((await office.desk.replay(ANYTHING, by="ann")).total)

    waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and query like '%%dead_letter_order%%'"
    async with trio.open_nursery() as nursery:
        async with office.pool.connection() as connection, connection.transaction():
            await connection.execute("update penstock_dead_letter set note = 'x' where id = %s", (numbers[1],))
            nursery.start_soon(order)
            while not await office.rows(waiting):
                assert not totals
                await trio.sleep(0.01)
    assert totals == [3]


async def test_an_order_that_lost_a_deadlock_is_tried_again(office: Office) -> None:
    numbers = await office.bury(2)
    note = "update penstock_dead_letter set note = 'x' where id = %s"
    hold = "select 1 from penstock_dead_letter where id = %s for update"
    totals: list[int] = []

    async def order() -> None:
        totals.append((await office.desk.replay(ANYTHING, by="ann")).total)

    async def until_waiting(count: int) -> None:
        waiting = "select 1 from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
        with trio.fail_after(20):
            while len(await office.rows(waiting)) < count:
                await trio.sleep(0.01)

    async with trio.open_nursery() as orders:
        async with office.pool.connection() as other, other.transaction(), trio.open_nursery() as nursery:
            # Only the order looks for a deadlock in time, and loses it. It looks once in each wait: so it comes to the
            # one that closes the circle when the other waits already.
            await other.execute("set local deadlock_timeout = '1min'")
            await other.execute(note, (numbers[1],))
            async with office.pool.connection() as door, door.transaction():
                await door.execute(hold, (numbers[0],))
                orders.start_soon(order)
                await until_waiting(1)
                nursery.start_soon(other.execute, note, (numbers[0],))
                await until_waiting(2)
    assert totals == [2]


async def test_the_limit_takes_the_oldest(office: Office) -> None:
    await office.bury(4)
    order = await office.desk.replay(LetterFilter(), by="kim", limit=3)
    assert order.total == 3
    assert await office.statuses() == ["replaying"] * 3 + ["dead"]


async def test_what_cannot_be_replayed_is_refused_and_says_why(office: Office) -> None:
    (trimmed,) = await office.bury(reason="trimmed", fields=None)
    (foreign,) = await office.bury(consumer_group="of-another-system")
    (no_event,) = await office.bury(event_id=None)
    (discarded,) = await office.bury()
    await office.desk.discard(LetterFilter(ids=(discarded,)), by="me")
    for number, target, why in (
        (trimmed, "group", "trimmed"),
        (foreign, "group", "not declared"),
        (no_event, "stream", "no event"),
        (discarded, "group", "discarded already"),
    ):
        with pytest.raises(LetterRefused, match=why):
            await office.desk.replay_one(number, by="me", target=target)  # type: ignore[arg-type]
    assert (await office.desk.replay_one(no_event, by="me")).total == 1


async def test_an_order_of_nothing_is_done_at_once(office: Office) -> None:
    order = await office.desk.replay(LetterFilter(), by="kim")
    assert (order.total, order.state) == (0, "done")
    assert order.finished_at is not None


async def test_a_cancelled_order_leaves_what_it_has_not_moved_dead(office: Office) -> None:
    await office.bury(3)
    order = await office.desk.replay(LetterFilter(), by="kim")
    async with office.pool.connection() as connection:  # one of them is moved
        await connection.execute(
            b"update penstock_dead_letter set moved_at = now() where id in (select min(id) from penstock_dead_letter)"
        )
    order = await office.desk.cancel(order.id, by="lee")
    assert (order.state, order.waiting, order.dead) == ("cancelled", 1, 2)
    assert await office.statuses() == ["replaying", "dead", "dead"]
    again = await office.desk.replay(LetterFilter(), by="kim")
    assert again.total == 2
    assert (await office.desk.cancel(order.id, by="lee")).state == "cancelled"


# The actor -----------------------------------------------------------------------------------------------------------


async def test_two_processes_move_each_letter_once(office: Office) -> None:
    await office.bury(40)
    orders = [await office.desk.replay(LetterFilter(), by="kim", limit=20, rate=400) for _ in range(2)]
    for order in orders:
        await office.work_off(order.id, workers=3)
    assert len(await office.retry_rows()) == 40
    assert {(await office.desk.order(order.id)).moved for order in orders} == {20}
    assert [
        row[0] for row in await office.rows("select count(*) from penstock_dead_letter_audit where action = 'moved'")
    ] == [40]


async def test_an_order_goes_on_after_a_restart_where_it_stood(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letter_orders, "LEFT_BEHIND", 0.0)
    await office.bury(6)
    order = await office.desk.replay(LetterFilter(), by="kim", rate=4)
    tree = Tree(Supervisor("root", [ChildSpec(id="dead-letters", body=office.worker())]))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        while not (await office.desk.order(order.id)).moved:
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    moved = (await office.desk.order(order.id)).moved
    assert 0 < moved < 6
    async with office.pool.connection() as connection:
        await connection.execute(b"update penstock_dead_letter_order set rate = 1000")
    await office.work_off(order.id)
    assert len(await office.retry_rows()) == 6


async def test_the_rate_is_kept(office: Office) -> None:
    """20 letters at 40 a second take half a second, and on a slow machine longer, but never less."""
    await office.bury(20)
    order = await office.desk.replay(LetterFilter(), by="kim", rate=40)
    began = trio.current_time()
    await office.work_off(order.id)
    assert trio.current_time() - began >= 0.25


async def test_a_letter_whose_entry_is_being_tried_already_is_not_tried_twice(office: Office) -> None:
    await office.bury()
    for _ in range(2):
        order = await office.desk.replay(LetterFilter(), by="kim", rate=1_000)
        await office.work_off(order.id)
        async with office.pool.connection() as connection:  # as a bug, or somebody with SQL, would
            await connection.execute(b"update penstock_dead_letter set status = 'dead'")
    assert len(await office.retry_rows()) == 1


async def test_entries_that_show_settled_letters_are_removed_from_the_mirror(office: Office) -> None:
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as client:
        office.redis = client
        ids = await office.bury(3)
        for number in ids:
            entry_id = await client.xadd("orders:dead-letter", {"n": number})
            async with office.pool.connection() as connection:
                await connection.execute(
                    b"update penstock_dead_letter set mirror_id = %s where id = %s", (entry_id.decode(), number)
                )
        await office.desk.discard(LetterFilter(ids=(ids[0],)), by="me")
        tree = Tree(Supervisor("root", [ChildSpec(id="dead-letters", body=office.worker())]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run)
            while (await office.desk.letter(ids[0])).letter.mirror_id is not None:
                await trio.sleep(0.01)
            tree.stop("done")
        assert [fields[b"n"] for _, fields in await client.xrange("orders:dead-letter")] == [
            str(number).encode() for number in ids[1:]
        ]
    assert office.trouble == []
    assert [row[0] is None for row in await office.rows("select mirror_id from penstock_dead_letter order by id")] == [
        True,
        False,
        False,
    ]


async def test_a_mirror_waits_for_redis_and_for_nothing_else(office: Office) -> None:
    """While Redis is away orders are worked off all the same."""
    office.gates["redis"].shut("gone")
    (settled, _) = await office.bury(2)
    async with office.pool.connection() as connection:
        await connection.execute(b"update penstock_dead_letter set mirror_id = '1-0'")
    await office.desk.discard(LetterFilter(ids=(settled,)), by="me")
    order = await office.desk.replay(LetterFilter(), by="kim", rate=1_000)
    await office.work_off(order.id)
    assert (await office.desk.order(order.id)).moved == 1
    assert await office.rows("select count(*) from penstock_dead_letter where mirror_id is null") == [(0,)]


async def test_an_outage_is_waited_for_and_costs_no_restart(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(letter_orders, "AGAIN", 0.01)
    await office.bury(3)
    order = await office.desk.replay(LetterFilter(), by="kim", rate=1_000)
    left = [PostgresUnavailable("gone", address="here"), psycopg.errors.DeadlockDetected("deadlock detected")]
    add = office.store.retries.add

    async def add_if_it_is_there(*given: Any) -> int:
        if left:
            raise left.pop()
        return await add(*given)

    monkeypatch.setattr(office.store.retries, "add", add_if_it_is_there)
    await office.work_off(order.id)
    assert left == []
    assert len(await office.retry_rows()) == 3


async def test_an_order_that_is_stuck_stops_no_other(office: Office) -> None:
    (broken,) = await office.bury()
    await office.bury(2)
    stuck = await office.desk.replay(LetterFilter(ids=(broken,)), by="kim")
    async with office.pool.connection() as connection:  # as only somebody with SQL can
        await connection.execute(b"update penstock_dead_letter set fields = '[7]' where id = %s", (broken,))
    order = await office.desk.replay(LetterFilter(), by="kim", rate=1_000)
    await office.work_off(order.id)
    assert (await office.desk.order(order.id)).moved == 2
    assert (await office.desk.order(stuck.id)).state == "running"


async def test_one_that_another_order_has_taken_meanwhile_is_refused(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    (number,) = await office.bury()
    preview = office.desk.preview

    async def and_somebody_is_faster(*given: Any, **more: Any) -> Any:
        found = await preview(*given, **more)
        await office.desk.replay(LetterFilter(), by="lee")
        return found

    monkeypatch.setattr(office.desk, "preview", and_somebody_is_faster)
    with pytest.raises(LetterRefused, match="somebody else"):
        await office.desk.replay_one(number, by="kim")
    assert [each.by for each in (await office.desk.letter(number)).audit] == ["lee"]


async def test_an_order_whose_rate_is_low_is_left_to_whoever_works_at_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letter_orders, "LEFT_BEHIND", 0.0)
    await office.bury(3)
    order = await office.desk.replay(ANYTHING, by="kim", rate=0.01)
    first, second = office.worker(), office.worker()
    await first._work()
    await second._work()
    assert len(await office.retry_rows()) == 1
    await office.rows("update penstock_dead_letter_order set worked_at = now() - interval '101 s'")
    await second._work()
    assert len(await office.retry_rows()) == 2
    assert (await office.desk.order(order.id)).moved == 2


async def test_a_mirror_that_refuses_keeps_no_other_and_shuts_no_gate(office: Office) -> None:
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as office.redis:
        await office.redis.set("orders:dead-letter", "no stream")
        shown = await office.redis.xadd("clicks:dead-letter", {"n": "1"})
        for mirror, entry_id in (("orders:dead-letter", "1-0"), ("clicks:dead-letter", shown.decode())):
            (number,) = await office.bury(mirror=mirror)
            await office.rows("update penstock_dead_letter set mirror_id = %s where id = %s", entry_id, number)
        await office.desk.discard(ANYTHING, by="kim")
        await office.worker()._clear_mirrors()
        assert await office.redis.xlen("clicks:dead-letter") == 0
    assert await office.rows("select mirror from penstock_dead_letter where mirror_id is not null") == [
        ("orders:dead-letter",)
    ]
    assert office.trouble == []
