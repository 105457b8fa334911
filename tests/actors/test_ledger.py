"""What came of an event: every end, every way there, on a real database and a Redis in memory.

What each actor would have done to get there is written out in the tests.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import UUID
from uuid import uuid4 as new_event_id

import pytest
from attrs import define, field, frozen

from penstock.actors import job_search
from penstock.actors.dead_letter import DeadLetter
from penstock.actors.declaring import declare_groups
from penstock.actors.deletion_table import Deletion
from penstock.actors.event import Envelope, event
from penstock.actors.fate import EventFate, Fate
from penstock.actors.handling import Context
from penstock.actors.ledger import Ledger
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.queue import element_of
from penstock.actors.queue_lists import QueueLists
from penstock.actors.retry_table import RetryOrigin, RetryRow
from penstock.actors.store import InboxEntry, PostgresStore
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions
from penstock.runtime.redis import Redis, RedisOptions, RedisUnavailable
from penstock.runtime.supervision import Gates
from penstock.runtime.testing.redis import InProcessRedis

STREAM = "orders"


@event("PLACED")
@frozen
class Placed:
    n: int


@event("SHIPPED")
@frozen
class Shipped:
    n: int


def _system() -> System:
    system = System("shop")
    orders = system.stream(STREAM, events=[Placed, Shipped])

    @orders.on(Placed, group="billing")
    async def bill(event: Placed, context: Context) -> None: ...

    @orders.on(Placed, group="stock")
    @orders.on(Shipped, group="stock")
    async def count(event: object, context: Context) -> None: ...

    clicks = system.stream("clicks", events=[Placed], partitions=2)

    @clicks.on(Placed, group="counting")
    async def click(event: Placed, context: Context) -> None: ...

    return system


@define(eq=False, slots=False)
class Books:
    """A ledger, and what is written into it."""

    pool: Pool
    redis: Redis
    system: System = field(factory=_system)
    gates: Gates = field(factory=Gates)

    def __attrs_post_init__(self) -> None:
        self.store = PostgresStore(self.pool)
        self.gates.add("redis", settle=0.0)
        self.ledger = Ledger(self.pool, self.system, lambda: self.redis, self.gates["redis"])

    # What happens

    async def publish(
        self, event_id: UUID, stream: str = STREAM, event_type: str = "PLACED", entry_id: str = "*"
    ) -> str:
        envelope = Envelope(event_type=event_type, event_id=event_id, data={"n": 1})
        fields = self.system.streams[STREAM].encode(envelope)
        made = await self.redis.xadd(stream, dict(fields), id=entry_id)  # type: ignore[arg-type]
        return made.decode()

    async def groups(self, *names: str, stream: str = STREAM, start: str = "0") -> None:
        for name in names or ("billing", "stock"):
            await self.redis.xgroup_create(stream, name, id=start, mkstream=True)

    async def give(self, group: str, stream: str = STREAM) -> list[str]:
        """The group is given what there is; nothing is acknowledged."""
        reply = await self.redis.xreadgroup(group, f"{group}-1", {stream: ">"}, count=100)
        entries = next(iter(reply.values()))[0] if isinstance(reply, dict) else reply[0][1]
        return [entry_id.decode() for entry_id, _ in entries]

    async def acknowledge(self, group: str, entry_id: str, stream: str = STREAM) -> None:
        await self.redis.xack(stream, group, entry_id)

    async def handle(self, group: str, event_id: UUID, entry_id: str, stream: str = STREAM) -> None:
        async with self.store.transaction() as transaction:
            await transaction.first_time(group, [InboxEntry(event_id, stream, entry_id)])

    async def pass_by(self, group: str, entry_id: str, stream: str = STREAM) -> None:
        async with self.store.transaction() as transaction:
            await transaction.position(group, stream, entry_id)

    async def bury(
        self, group: str, event_id: UUID | None, entry_id: str, reason: str = "permanent", **facts: Any
    ) -> None:
        letter = DeadLetter(
            stream=STREAM, entry_id=entry_id, consumer_group=group, consumer="c", reason=reason, fields={"a": "1"},
            deliveries=1, event_id=event_id, **facts
        )  # fmt: skip
        async with self.store.transaction() as transaction:
            await transaction.bury(letter)

    async def retry(self, group: str, event_id: UUID, entry_id: str, **facts: Any) -> None:
        row = RetryRow(
            **{
                "consumer_group": group, "stream": STREAM, "entry_id": entry_id, "fields": {}, "event_id": event_id,
                "origin": RetryOrigin.ATTEMPT, **facts,
            }
        )  # fmt: skip
        async with self.store.transaction() as transaction:
            await self.store.retries.add(transaction, [row])

    async def delete(
        self, entry_id: str, event_id: UUID, unread_by: Sequence[str] = (), pending_by: Sequence[str] = ()
    ) -> None:
        deletion = Deletion(
            stream=STREAM, entry_id=entry_id, event_id=event_id, event_type="PLACED",
            unread_by=tuple(unread_by), pending_by=tuple(pending_by), deleted_by="ann",
        )  # fmt: skip
        async with self.store.transaction() as transaction:
            await self.store.deletions.add(transaction, [deletion])

    async def execute(self, statement: str, *values: Any) -> None:
        async with self.pool.connection() as connection:
            await connection.execute(statement.encode(), values)

    # What is told

    async def of(self, *event_ids: UUID, **options: Any) -> dict[str | None, tuple[str, str]]:
        fates = await self.ledger.fates(event_ids, **options)
        assert len({(fate.event_id, fate.consumer_group) for fate in fates}) == len(fates)
        return {fate.consumer_group: (fate.fate.value, fate.reason) for fate in fates}

    async def fates_of(self, event_id: UUID) -> dict[str | None, str]:
        return {group: fate for group, (fate, _) in (await self.of(event_id)).items()}


@pytest.fixture
async def books(database: PostgresOptions) -> AsyncIterator[Books]:
    async with (
        Pool(database) as pool,
        InProcessRedis() as server,
        Redis(RedisOptions(), connect=server.connect) as link,
    ):
        made = Books(pool, link)
        await declare_groups(pool, made.system)
        yield made


async def test_an_event_that_nobody_has_seen_is_unknown(books: Books) -> None:
    await books.groups()
    assert await books.of(new_event_id()) == {None: ("unknown", "no trace of it")}


async def test_an_event_waits_in_its_stream_until_each_group_has_had_it(books: Books) -> None:
    event_id = new_event_id()
    entry_id = await books.publish(event_id)
    assert await books.of(event_id) == {
        "billing": ("waiting", "in the stream; the group is not made yet"),
        "stock": ("waiting", "in the stream; the group is not made yet"),
    }
    await books.groups()
    await books.give("billing")
    assert await books.of(event_id) == {
        "billing": ("waiting", "given to the group, and in work or pending"),
        "stock": ("waiting", "in the stream, unread"),
    }
    await books.handle("billing", event_id, entry_id)
    assert await books.of(event_id) == {
        "billing": ("done", "handled"),
        "stock": ("waiting", "in the stream, unread"),
    }


def _id_of(milliseconds: int) -> UUID:
    """A UUID of version 7 with this time."""
    return UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | new_event_id().int >> 68)


async def test_for_ids_that_hold_a_time_nothing_older_is_read(books: Books) -> None:
    """But their publisher's clock may be ahead of that of Redis, by five minutes."""
    await books.groups()
    seconds, _ = await books.redis.time()
    ahead, far_ahead = _id_of(1000 * seconds + 290_000), _id_of(1000 * seconds + 310_000)
    await books.publish(ahead)
    await books.publish(far_ahead)
    assert await books.fates_of(ahead) == {"billing": "waiting", "stock": "waiting"}
    assert await books.fates_of(far_ahead) == {None: "unknown"}
    fates = await books.ledger.fates([far_ahead, new_event_id()])
    assert [fate.fate.value for fate in fates] == ["waiting", "waiting", "unknown"]


async def test_the_search_reads_no_more_than_it_may(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.publish(event_id)
    await books.publish(new_event_id())
    assert await books.of(event_id, scan=1) == {None: ("unknown", "no trace of it")}
    assert set(await books.of(event_id, scan=2)) == {"billing", "stock"}


async def test_a_long_stream_is_read_page_by_page(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.publish(event_id)
    pipe = books.redis.pipeline(transaction=False)
    for number in range(2_500):
        pipe.xadd(STREAM, {"n": str(number)})
    await pipe.execute()
    assert set(await books.of(event_id)) == {"billing", "stock"}


async def test_a_group_without_a_handler_is_done_with_an_event(books: Books) -> None:
    event_id = new_event_id()
    entry_id = await books.publish(event_id, event_type="SHIPPED")
    await books.groups()
    await books.give("billing")
    await books.acknowledge("billing", entry_id)
    assert await books.of(event_id) == {
        "billing": ("done", "the group has no handler of SHIPPED"),
        "stock": ("waiting", "in the stream, unread"),
    }


async def test_a_group_s_position_tells_as_much_where_the_entry_has_left_the_stream(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.handle("stock", event_id, "5-0")
    assert await books.fates_of(event_id) == {"stock": "done", "billing": "lost"}
    await books.pass_by("billing", "5-0")
    assert await books.of(event_id) == {
        "stock": ("done", "handled"),
        "billing": ("done", "passed without an effect"),
    }


async def test_what_somebody_else_acknowledged_is_lost_and_named(books: Books) -> None:
    event_id = new_event_id()
    entry_id = await books.publish(event_id)
    await books.groups()
    await books.give("billing")
    await books.acknowledge("billing", entry_id)
    assert (await books.of(event_id))["billing"] == ("lost", "acknowledged or passed over by somebody else")


async def test_what_stands_before_the_declared_beginning_of_a_group_is_none_of_its_business(books: Books) -> None:
    event_id = new_event_id()
    entry_id = await books.publish(event_id)
    group = books.system.streams[STREAM].groups["billing"]
    group.start = entry_id
    await books.groups("billing", start=entry_id)
    fate, reason = (await books.of(event_id))["billing"]
    assert (fate, "declared to begin" in reason) == ("done", True)
    group.start = "$"
    assert (await books.of(event_id))["billing"][0] == "unknown"


async def test_an_event_that_failed_is_retrying_and_the_row_says_why(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    entry_id = await books.publish(event_id)
    await books.retry("billing", event_id, entry_id, attempts=2)
    await books.execute("update penstock_retry set error_message = 'no funds'")
    assert (await books.of(event_id))["billing"] == ("retrying", "no funds")
    await books.execute("update penstock_retry set origin = 'parked', error_message = null")
    assert (await books.of(event_id))["billing"] == ("retrying", "waits behind its key")


@pytest.mark.parametrize(
    ("reason", "fate"),
    [
        ("permanent", "dead"),
        ("max_deliveries", "dead"),
        ("poison", "dead"),
        ("expired", "expired"),
        ("trimmed", "lost"),
    ],
)
async def test_a_dead_letter_is_an_end(books: Books, reason: str, fate: str) -> None:
    event_id = new_event_id()
    await books.groups()
    entry_id = await books.publish(event_id)
    await books.bury("billing", event_id, entry_id, reason)
    assert await books.of(event_id) == {"billing": (fate, reason), "stock": ("waiting", "in the stream, unread")}


async def test_a_discarded_letter_is_still_the_event_s_end(books: Books) -> None:
    event_id = new_event_id()
    await books.bury("billing", event_id, "5-0")
    await books.execute("update penstock_dead_letter set status = 'discarded', settled_by = 'kim', settled_at = now()")
    assert (await books.of(event_id))["billing"] == ("dead", "permanent, discarded by kim")


async def test_a_letter_s_replay_is_followed_to_its_end(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.bury("billing", event_id, "5-0")
    await books.execute("update penstock_dead_letter set status = 'replaying'")
    assert (await books.of(event_id))["billing"] == ("dead", "permanent, its replay is ordered")
    await books.retry("billing", event_id, "5-0", origin=RetryOrigin.LETTER)
    assert (await books.of(event_id))["billing"] == ("retrying", "replay ordered")
    async with books.store.transaction() as transaction:
        await transaction.connection.execute("delete from penstock_retry")
        await transaction.connection.execute(
            "insert into penstock_inbox (consumer_group, event_id, stream, entry_id)"
            " values ('billing', %s, 'orders', '5-0')",
            (event_id,),
        )
        await books.store.dead_letters.settle(transaction, "billing", STREAM, "5-0", "c")
    assert (await books.of(event_id))["billing"] == ("done", "handled")


async def test_a_letter_that_was_published_again_is_followed_into_the_stream(books: Books) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.bury("billing", event_id, "5-0")
    await books.execute("update penstock_dead_letter set status = 'replayed', settled_by = 'kim', settled_at = now()")
    row = OutboxRow(stream=STREAM, event_id=event_id, fields={}, kind="replay")
    async with books.store.transaction() as transaction:
        await books.store.outbox.add(transaction, [row])
    assert (await books.of(event_id))["billing"] == ("waiting", "in the outbox")
    await books.execute("delete from penstock_outbox")
    entry_id = await books.publish(event_id)
    assert (await books.of(event_id))["billing"] == ("waiting", "in the stream, unread")
    await books.bury("billing", event_id, entry_id)
    assert (await books.of(event_id))["billing"] == ("dead", "permanent")


async def test_an_event_in_the_outbox_waits_in_each_group(books: Books) -> None:
    event_id = new_event_id()
    row = OutboxRow(stream="clicks", event_id=event_id, fields={}, kind="spool")
    async with books.store.transaction() as transaction:
        await books.store.outbox.add(transaction, [row])
    assert await books.of(event_id) == {"counting": ("waiting", "in the outbox")}


async def test_the_mirror_of_a_letter_is_no_event_that_waits(books: Books) -> None:
    event_id = new_event_id()
    await books.bury("billing", event_id, "5-0", mirror="orders:dead-letter")
    assert (await books.of(event_id))["billing"] == ("dead", "permanent")


async def test_a_forced_replay_of_what_is_done_is_retrying_until_it_is_done_again(books: Books) -> None:
    event_id = new_event_id()
    await books.handle("billing", event_id, "5-0")
    await books.retry("billing", event_id, "5-0", origin=RetryOrigin.REPLAY, forced=True)
    assert (await books.of(event_id))["billing"] == ("retrying", "replay ordered")
    await books.execute("update penstock_retry set forced = false")
    assert (await books.of(event_id))["billing"] == ("done", "handled")


async def test_what_is_known_to_be_trimmed_unread_is_lost(books: Books) -> None:
    event_id = new_event_id()
    await books.handle("stock", event_id, "5-0")
    await books.pass_by("billing", "9-0")
    await books.execute(
        "insert into penstock_loss (consumer_group, stream, after_id, before_id, entries)"
        " values ('billing', 'orders', '4-0', '6-0', 1)"
    )
    assert (await books.of(event_id))["billing"] == ("lost", "trimmed before the group was given it")


async def test_what_was_deleted_by_command_says_by_whom(books: Books) -> None:
    """Also of an event that no group had anything to do with, and of which there is no other trace."""
    event_id, neighbour = new_event_id(), new_event_id()
    await books.publish(neighbour, entry_id="5-0")
    await books.handle("stock", neighbour, "5-0")
    await books.delete("6-0", event_id, unread_by=["billing", "stock"])
    # As the loss detector finds it: it only knows that something is missing before 6-1.
    await books.execute(
        "insert into penstock_loss (consumer_group, stream, after_id, before_id, entries)"
        " values ('billing', 'orders', '4-0', '6-1', 1)"
    )
    expected = ("lost", "deleted by ann before the group was given it")
    assert await books.of(event_id) == {"billing": expected, "stock": expected}
    assert (await books.of(neighbour))["billing"] == ("waiting", "in the stream; the group is not made yet")
    lines = {line.consumer_group: line.lost for line in await books.ledger.summary() if line.stream == STREAM}
    assert lines == {"billing": 1, "stock": 1}


async def test_what_was_deleted_after_all_were_done_is_done(books: Books) -> None:
    event_id = new_event_id()
    for group in ("billing", "stock"):
        await books.handle(group, event_id, "5-0")
    await books.delete("5-0", event_id)
    assert {fate for fate, _ in (await books.of(event_id)).values()} == {"done"}


async def test_what_was_deleted_while_it_was_pending_says_by_whom(books: Books) -> None:
    event_id = new_event_id()
    await books.delete("5-0", event_id, pending_by=["billing"])
    await books.bury("billing", None, "5-0", "trimmed")
    assert (await books.of(event_id))["billing"] == ("lost", "deleted by ann while it was pending")


async def test_an_entry_that_is_gone_before_the_group_had_it_is_lost(books: Books) -> None:
    event_id = new_event_id()
    entry_id = await books.publish(event_id)
    await books.groups()
    await books.handle("billing", event_id, entry_id)
    await books.redis.xdel(STREAM, entry_id)
    assert (await books.of(event_id))["stock"] == ("lost", "trimmed or deleted before the group was given it")


async def test_partitions_are_one_stream(books: Books) -> None:
    handled, waiting = new_event_id(), new_event_id()
    await books.groups("counting", stream="{clicks:1}")
    await books.publish(waiting, "{clicks:1}")
    await books.handle("counting", handled, "5-0", "{clicks:0}")
    fates = {fate.event_id: fate for fate in await books.ledger.fates([handled, waiting])}
    assert (fates[handled].stream, fates[handled].partition, fates[handled].fate) == ("clicks", "{clicks:0}", Fate.DONE)
    assert (fates[waiting].partition, fates[waiting].fate) == ("{clicks:1}", Fate.WAITING)


async def test_what_is_handled_between_the_two_looks_is_done(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostgreSQL was asked first, then it was handled and acknowledged, then Redis was asked."""
    event_id = new_event_id()
    entry_id = await books.publish(event_id)
    await books.groups()
    await books.give("billing")
    stored = books.ledger._stored

    async def and_then_it_is_handled(event_ids: list[UUID]) -> dict[UUID, list[EventFate]]:
        monkeypatch.undo()
        found = await stored(event_ids)
        await books.handle("billing", event_id, entry_id)
        await books.acknowledge("billing", entry_id)
        return found

    monkeypatch.setattr(books.ledger, "_stored", and_then_it_is_handled)
    assert (await books.of(event_id))["billing"] == ("done", "handled")


# Jobs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def jobs(books: Books) -> QueueLists:
    """The lists of a queue that the system has, too."""

    @books.system.queue("reports").on(Placed)
    async def write(job: Placed, context: Context) -> None: ...

    return QueueLists(books.redis, "reports")


def _job(event_id: UUID) -> bytes:
    return element_of(Envelope(event_type="PLACED", event_id=event_id, data={"n": 1}))


async def test_a_job_waits_wherever_it_stands(books: Books, jobs: QueueLists) -> None:
    await declare_groups(books.pool, books.system)
    first, second = new_event_id(), new_event_id()
    await jobs.add(_job(first))
    await jobs.add(b"no job")
    await jobs.add(_job(second))
    group = "queue reports"
    assert await books.of(first) == {group: ("waiting", "in the queue, not taken yet")}
    await jobs.take("one", 1)
    assert await books.of(first) == {group: ("waiting", "taken by one, and in work")}
    assert await books.of(second) == {group: ("waiting", "in the queue, not taken yet")}
    await jobs.give_back("one", 0.0)
    returned = "in the queue again; the consumer that had taken it is gone"
    assert await books.of(first) == {group: ("waiting", returned)}
    await books.handle(group, first, "1-1", stream="reports")
    assert await books.of(first) == {group: ("done", "handled")}, "though it still stands there"
    [fate] = await books.ledger.fates([second])
    assert (fate.stream, fate.partition) == ("reports", "reports")
    assert await books.fates_of(new_event_id()) == {None: "unknown"}


async def test_a_long_queue_is_read_page_by_page_as_far_as_it_may(
    books: Books, jobs: QueueLists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_search, "PAGE", 10)
    event_ids = [new_event_id() for _ in range(35)]
    for event_id in event_ids:
        await jobs.add(_job(event_id))
    assert {fate.fate for fate in await books.ledger.fates(event_ids)} == {Fate.WAITING}
    assert await books.fates_of(event_ids[0]) == {"queue reports": "waiting"}
    told = await books.ledger.fates(event_ids, scan=12)
    assert [fate.fate for fate in told] == [Fate.UNKNOWN] * 23 + [Fate.WAITING] * 12, "the last ones stand first"


@pytest.mark.parametrize("end", ["done", "given back", "returned"])
async def test_a_job_that_moves_while_it_is_looked_for_is_found(
    books: Books, jobs: QueueLists, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """It is taken when the lists are read in which it was; and then it is done, or goes back to one of them."""
    await declare_groups(books.pool, books.system)
    event_id = new_event_id()
    await jobs.add(_job(event_id))
    await jobs.take("one", 1)
    known = QueueLists.known

    async def and_then_it_moves(self: QueueLists) -> list[str]:
        found = await known(self)
        if end == "done":
            await books.handle("queue reports", event_id, "1-1", stream="reports")
            await self.finish("one", [_job(event_id)])
        else:
            await (self.leave("one", 60.0) if end == "given back" else self.give_back("one", 0.0))
        return found

    monkeypatch.setattr(QueueLists, "known", and_then_it_moves)
    assert await books.fates_of(event_id) == {"queue reports": "done" if end == "done" else "waiting"}


async def test_while_redis_is_away_postgres_answers_alone_and_says_so(books: Books) -> None:
    await books.groups()
    done, halfway, unread = new_event_id(), new_event_id(), new_event_id()
    await books.handle("billing", halfway, "5-0")
    await books.handle("billing", done, "5-1")
    await books.handle("stock", done, "5-1")
    await books.publish(unread)
    books.gates["redis"].shut("gone")
    away = "Redis is away, and cannot be asked"
    assert await books.fates_of(done) == {"billing": "done", "stock": "done"}
    assert (await books.of(halfway))["stock"] == ("waiting", f"in the stream; {away}")
    assert await books.of(unread) == {None: ("unknown", f"no trace of it in PostgreSQL; {away}")}


async def test_thousands_are_answered_in_order_each_once(books: Books) -> None:
    await books.groups()
    ids = [new_event_id() for _ in range(2_300)]
    async with books.store.transaction() as transaction:
        rows = [InboxEntry(event_id, STREAM, f"5-{n}") for n, event_id in enumerate(ids)]
        await transaction.first_time("billing", rows)
        await transaction.first_time("stock", rows)
    fates = await books.ledger.fates([*ids, ids[0]])
    assert [fate.event_id for fate in fates if fate.consumer_group == "billing"] == ids
    assert {fate.fate for fate in fates} == {Fate.DONE}
    assert len(fates) == 2 * len(ids)


async def test_a_group_that_is_declared_no_more_is_not_asked_for(books: Books) -> None:
    event_id = new_event_id()
    await books.handle("billing", event_id, "5-0")
    await books.handle("stock", event_id, "5-0")
    del books.system.streams[STREAM].groups["stock"]
    await declare_groups(books.pool, books.system)
    assert await books.fates_of(event_id) == {"billing": "done"}


async def test_the_summary_counts_each_event_once(books: Books) -> None:
    await books.groups()
    ids = [new_event_id() for _ in range(7)]
    for event_id in ids:
        await books.publish(event_id)
    entries = await books.give("billing")
    for event_id, entry_id in zip(ids[:2], entries, strict=False):
        await books.handle("billing", event_id, entry_id)
    await books.bury("billing", ids[2], entries[2])
    await books.bury("billing", ids[3], entries[3], "expired")
    await books.retry("billing", ids[4], entries[4])
    await books.bury("billing", ids[5], entries[5])
    await books.execute("update penstock_dead_letter set status = 'replaying' where event_id = %s", ids[5])
    await books.retry("billing", ids[5], entries[5], origin=RetryOrigin.LETTER)
    for entry_id in entries[:6]:
        await books.acknowledge("billing", entry_id)
    row = OutboxRow(stream=STREAM, event_id=new_event_id(), fields={}, kind="spool")
    async with books.store.transaction() as transaction:
        await books.store.outbox.add(transaction, [row])
    await books.execute(
        "insert into penstock_loss (consumer_group, stream, after_id, before_id, entries)"
        " values ('billing', 'orders', '1-0', '2-0', 40)"
    )
    lines = {(line.stream, line.consumer_group): line for line in await books.ledger.summary()}
    billing = lines[STREAM, "billing"]
    assert (billing.done, billing.retrying, billing.dead, billing.expired, billing.lost) == (2, 2, 1, 1, 40)
    assert (billing.outbox, billing.unread, billing.in_work) == (1, 0, 1)
    stock = lines[STREAM, "stock"]
    assert (stock.done, stock.outbox, stock.unread, stock.in_work) == (0, 1, 7, 0)
    assert lines["clicks", "counting"].unread == 0
    books.gates["redis"].shut("gone")
    assert {line.unread for line in await books.ledger.summary()} == {None}


async def test_sql_alone_answers_too(books: Books) -> None:
    event_id = new_event_id()
    await books.handle("billing", event_id, "5-0")
    async with books.pool.connection() as connection:
        cursor = await connection.execute(b"select consumer_group, fate from penstock_fate(%s) order by 1", (event_id,))
        assert await cursor.fetchall() == [("billing", "done"), ("stock", "waiting")]
        cursor = await connection.execute(b"select consumer_group, partition, fate from penstock_ledger")
        assert await cursor.fetchall() == [("billing", STREAM, "done")]


async def test_a_redis_that_goes_away_while_it_is_asked_says_so(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    for known in (False, True):  # looked for in the stream, and looked up where it stands
        event_id = new_event_id()
        entry_id = await books.publish(event_id)
        if known:
            await books.handle("billing", event_id, entry_id)
        with monkeypatch.context() as broken:

            async def lose(*given: Any, **more: Any) -> Any:
                raise RedisUnavailable("here", "gone")

            broken.setattr(books.redis, "xrange" if known else "xrevrange", lose)
            with pytest.raises(RedisUnavailable):
                await books.of(event_id)


async def test_what_was_trimmed_before_its_group_was_made_is_lost(books: Books) -> None:
    event_id = new_event_id()
    await books.groups("billing")
    await books.handle("billing", event_id, "5-0")
    assert (await books.of(event_id))["stock"] == ("lost", "trimmed or deleted before the group was made")


async def test_what_was_trimmed_while_it_was_pending_is_lost_also_if_its_letter_cannot_name_the_event(
    books: Books,
) -> None:
    event_id = new_event_id()
    await books.groups()
    await books.handle("stock", event_id, "5-0")
    await books.bury("billing", event_id, "5-0", "trimmed")
    await books.execute("update penstock_dead_letter set event_id = null")
    await books.pass_by("billing", "5-0")
    assert (await books.of(event_id))["billing"] == ("lost", "trimmed")
