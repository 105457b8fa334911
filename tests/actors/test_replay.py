"""Replays in virtual time: the actor over the in-process Redis and the store in memory; then the pieces alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import trio
from attrs import field, frozen

from penstock.actors import replay as replay_module
from penstock.actors.event import Envelope, event
from penstock.actors.outbox_table import OutboxRow
from penstock.actors.replay import ReplayRefused, Replays
from penstock.actors.replay_range import RangeEntry, id_at, in_order
from penstock.actors.replay_table import Replay, ReplayState
from penstock.actors.retry_table import RetryOrigin
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.supervision import ChildSpec, Gates, Supervisor, Tree
from penstock.runtime.testing import Cut, cut_everywhere
from penstock.runtime.testing.redis import InProcessRedis

KEY, GROUP = "orders", "payment"
SEOUL = ZoneInfo("Asia/Seoul")


@event("ORDER", key="number")
@frozen
class Order:
    number: int


@frozen
class World:
    """A stream, a store, and any number of processes that replay."""

    redis: Redis
    server: InProcessRedis
    store: MemoryStore = field(factory=MemoryStore)
    partitions: int = 1

    @property
    def system(self) -> System:
        system = System("shop")
        stream = system.stream(KEY, events=[Order], partitions=self.partitions)
        stream.group(GROUP)
        return system

    def process(self) -> Replays:
        return Replays(self.system, lambda: self.redis, self.store)

    async def fill(self, count: int, *, every: int = 1000) -> list[UUID]:
        """Entries at 0, 1, … seconds after 1970; their event ids."""
        stream = self.system.streams[KEY]
        ids = []
        for number in range(count):
            envelope = Envelope(event_type="ORDER", data={"number": number}, key=str(number))
            place = stream.partition(envelope.key, envelope.event_id)
            await self.redis.xadd(place, stream.encode(envelope), id=f"{1 + number * every}-0")
            ids.append(envelope.event_id)
        return ids

    @property
    def copies(self) -> list[OutboxRow]:
        return self.store.outbox.rows

    @property
    def order(self) -> Replay:
        (replay,) = self.store.replays.rows
        return replay

    async def until(self, state: ReplayState = ReplayState.DONE) -> None:
        with trio.fail_after(3600):
            while self.order.state is not state:
                await trio.sleep(0.1)


@asynccontextmanager
async def _world(**facts: Any) -> AsyncIterator[World]:
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as link:
        yield World(link, server, **facts)


@asynccontextmanager
async def _running(*processes: Replays) -> AsyncIterator[Callable[[], None]]:
    """The actors at work; yields what ends them at once."""
    specs = [ChildSpec(id=f"replays-{number}", body=each) for number, each in enumerate(processes)]
    tree = Tree(Supervisor("root", specs), gates=Gates(), seed=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tree.run)
        await tree.ready()
        yield nursery.cancel_scope.cancel
        tree.stop("the test is over")


async def test_copies_carry_the_original_fields_and_the_two_of_s4(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        ids = await world.fill(3)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0", by="tester")
            await world.until()
    assert [row.event_id for row in world.copies] == ids
    first = world.copies[0]
    assert (first.stream, first.kind, first.key) == ("orders:reprocess", "replay", "0")
    assert first.fields["eventId"] == str(ids[0])
    assert first.fields["reprocessed"] == "true"
    assert first.fields["originalRecordId"] == "1-0"
    assert first.fields["data"] == '{"number":0}'
    assert (world.order.total, world.order.replayed, world.order.ordered_by) == (3, 3, "tester")


async def test_only_the_range_is_replayed_and_both_ends_belong_to_it(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        ids = await world.fill(10)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "2001-0", "5001-0")
            await world.until()
    assert [row.event_id for row in world.copies] == ids[2:6]


async def test_what_comes_after_the_order_is_not_replayed(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.fill(2)
        process = world.process()
        await process.order(KEY, "0-0")
        await world.fill(0)
        await world.redis.xadd(KEY, {"eventType": "ORDER"})
        async with _running(process):
            await world.until()
    assert len(world.copies) == 2


async def test_a_group_alone_gets_rows_that_are_handled_again(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        ids = await world.fill(3)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0", group=GROUP)
            await world.until()
        async with world.store.transaction() as transaction:
            rows = await world.store.retries.take(transaction, GROUP, KEY, limit=10)
    assert [row.event_id for row in rows] == ids
    assert {(row.origin, row.forced, row.attempts) for row in rows} == {(RetryOrigin.REPLAY, True, 0)}
    assert world.copies == []


async def test_of_an_event_that_stands_there_twice_a_group_gets_one_row_for_each_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with _world() as world:
        ids = await world.fill(2)
        twice = world.system.streams[KEY].encode(Envelope(event_type="ORDER", data={"number": 9}, event_id=ids[0]))
        await world.redis.xadd(KEY, twice, id="5000-0")
        process = world.process()
        async with _running(process):
            for _ in range(2):
                await process.order(KEY, "0-0", group=GROUP, rate=1)
                await trio.sleep(1.5)
                async with world.store.transaction() as transaction:  # the first one is handled before the other's turn
                    (row, *_) = await world.store.retries.take(transaction, GROUP, KEY, limit=10)
                    assert row.event_id == ids[0]
                    assert await world.store.retries.enter(transaction, row)
                    await world.store.retries.delete(transaction, [row])
                await trio.sleep(5)
                async with world.store.transaction() as transaction:
                    rest = await world.store.retries.take(transaction, GROUP, KEY, limit=10)
                    assert [each.event_id for each in rest] == [ids[1]]
                    await world.store.retries.delete(transaction, rest)


async def test_all_partitions_together_in_the_order_of_time(autojump_clock: trio.testing.MockClock) -> None:
    async with _world(partitions=3) as world:
        ids = await world.fill(700)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0")
            await world.until()
    assert [row.event_id for row in world.copies] == ids


async def test_a_dry_run_counts_and_orders_nothing(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.fill(1500)
        replay = await world.process().order(KEY, "1-0", "1000001-0", dry_run=True)
    assert replay.total == 1001
    assert world.store.replays.rows == []


@pytest.mark.parametrize(("count", "rate", "least", "most"), [(100, 10, 8.5, 11.5), (4, 0.05, 58, 82)])
async def test_a_rate_is_kept_above_and_below_one_a_second(
    autojump_clock: trio.testing.MockClock, count: int, rate: float, least: float, most: float
) -> None:
    async with _world() as world:
        await world.fill(count)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0", rate=rate)
            began = trio.current_time()
            await world.until()
            assert least < trio.current_time() - began < most


async def test_the_original_pace_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.fill(61, every=10_000)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0", original_pace=True)
            await trio.sleep(305)
            assert len(world.copies) == 31
            await world.until()
            assert len(world.copies) == 61


async def test_nobody_is_buried(autojump_clock: trio.testing.MockClock) -> None:
    """Nobody takes the rows away: after some thousand it waits for that."""
    async with _world() as world:
        await world.fill(3000)
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0")
            await trio.sleep(100)
            assert len(world.copies) == replay_module.WAITING
            async with world.store.transaction() as transaction:
                await world.store.outbox.remove(transaction, list(world.store.outbox.table.rows))
            await world.until()
            assert len(world.copies) == 1000


async def test_a_cancelled_replay_stops_and_what_it_did_stays(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.fill(100)
        process = world.process()
        async with _running(process):
            replay = await process.order(KEY, "0-0", rate=5)
            await trio.sleep(7)
            assert await process.cancel(replay.id)
            done = len(world.copies)
            await trio.sleep(60)
        assert 0 < len(world.copies) == done < 100
        assert world.order.state is ReplayState.CANCELLED
        assert not await process.cancel(replay.id)


async def test_two_processes_replay_each_entry_once(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        ids = await world.fill(900)
        one, two = world.process(), world.process()
        await one.order(KEY, "0-0")
        async with _running(one, two):
            await world.until()
    assert [row.event_id for row in world.copies] == ids


async def test_after_a_restart_it_goes_on_where_it_stopped(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        ids = await world.fill(100)
        process = world.process()
        await process.order(KEY, "0-0", rate=10)
        async with _running(process) as kill:
            await trio.sleep(3.5)
            kill()
        assert 0 < len(world.copies) < 100
        async with _running(world.process()):
            await world.until()
    assert [row.event_id for row in world.copies] == ids


async def test_a_commit_with_unknown_outcome_is_no_second_copy(autojump_clock: trio.testing.MockClock) -> None:
    for effect in (False, True):
        async with _world() as world:
            ids = await world.fill(50)
            process = world.process()
            await process.order(KEY, "0-0", rate=10)
            async with _running(process):
                await trio.sleep(1.5)
                world.store.lose_commit(effect=effect)
                await world.until()
        assert [row.event_id for row in world.copies] == ids


async def test_an_entry_that_is_no_event_is_copied_as_it_is(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.redis.xadd(KEY, {b"a": b"\xff"}, id="1-0")
        process = world.process()
        async with _running(process):
            await process.order(KEY, "0-0")
            await world.until()
    (copy,) = world.copies
    assert copy.fields == {"a": "\udcff", "reprocessed": "true", "originalRecordId": "1-0"}


async def test_what_is_no_stream_fails_and_says_why(autojump_clock: trio.testing.MockClock) -> None:
    async with _world() as world:
        await world.fill(1)
        process = world.process()
        await process.order(KEY, "0-0", "9-0")
        await world.redis.delete(KEY)
        await world.redis.set(KEY, "no stream")
        async with _running(process):
            await world.until(ReplayState.FAILED)
    assert world.order.error is not None
    assert world.order.error.startswith("WRONGTYPE")


@pytest.mark.parametrize("reply", ["cluster-down", "loading"])
async def test_what_passes_fails_no_order(autojump_clock: trio.testing.MockClock, reply: str) -> None:
    async with _world() as world:
        await world.fill(3)
        process = world.process()
        await process.order(KEY, "0-0", "9999999-0")
        world.server.answer(reply, until=trio.current_time() + 60, commands=["XRANGE"])
        async with _running(process):
            await world.until()
    assert len(world.copies) == 3


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"group": "nobody"}, "has no group 'nobody'"),
        ({"into": KEY}, "would never end"),
        ({"group": GROUP, "into": "x"}, "not both"),
        ({"rate": 0.0}, "above 0"),
        ({"rate": 1.0, "original_pace": True}, "not both"),
        ({"to_id": "0-0"}, "range is empty"),
    ],
)
async def test_an_order_that_makes_no_sense_is_refused(
    autojump_clock: trio.testing.MockClock, facts: dict[str, Any], why: str
) -> None:
    async with _world() as world:
        await world.fill(1)
        with pytest.raises(ReplayRefused, match=why):
            await world.process().order(KEY, "1-0", **facts)


# Ranges


@pytest.mark.parametrize(
    ("text", "last", "entry_id"),
    [
        ("1700000000000-7", True, "1700000000000-7"),
        ("1700000000000", False, "1700000000000-0"),
        ("1700000000000", True, "1700000000000-18446744073709551615"),
        ("1970-01-01T09:00:01", False, "1000-0"),
        ("1970-01-01T00:00:01+00:00", True, "1000-18446744073709551615"),
        ("1970-01-02", False, "54000000-0"),
    ],
)
def test_a_range_is_named_by_ids_or_times(text: str, last: bool, entry_id: str) -> None:
    assert id_at(text, SEOUL, last=last) == entry_id


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "99999999999999999999", "1-2-3"])
def test_what_names_no_place_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="entry id"):
        id_at(text, SEOUL, last=False)


def _entries(key: str, *ids: str) -> list[RangeEntry]:
    return [RangeEntry(key, entry_id, {}) for entry_id in ids]


def test_entries_behind_the_end_of_what_was_read_wait() -> None:
    a, b = _entries("a", "1-0", "4-0"), _entries("b", "2-0", "3-0", "9-0")
    assert [entry.id for entry in in_order([a, b], 2)] == ["1-0", "2-0", "3-0", "4-0"]
    assert [entry.id for entry in in_order([a, b], 10)] == ["1-0", "2-0", "3-0", "4-0", "9-0"]


# At every step


async def _cut_short(cut: Cut, group: str | None) -> None:
    """An order of three entries, and its actor cancelled at one of its steps; another process goes on."""
    async with _world() as world:
        ids = await world.fill(3)
        process = world.process()
        await process.order(KEY, "0-0", group=group, rate=2)
        async with _running(process) as end:
            with cut.calling(end, at="replays-0"):
                with trio.move_on_after(4):
                    await world.until()
        async with _running(world.process()):
            await world.until()
        if group is None:
            assert [row.event_id for row in world.copies] == ids
        else:
            async with world.store.transaction() as transaction:
                rows = await world.store.retries.take(transaction, group, KEY, limit=10)
            assert [row.event_id for row in rows] == ids


@pytest.mark.parametrize("group", [None, GROUP], ids=["stream", "group"])
def test_a_cut_at_every_step_costs_no_entry_and_repeats_none(group: str | None) -> None:
    points = cut_everywhere(partial(_cut_short, group=group), most=400)
    assert len(points) > 20
