"""Work queues, in virtual time: every job comes to one end, and an outage costs none an attempt."""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
import trio
from trio.testing import MockClock

from penstock.actors.event import Envelope, InvalidEvent
from penstock.actors.handling import Context, Permanent, Unavailable
from penstock.actors.queue_lists import QueueLists
from penstock.actors.retrying import RetryPolicy
from penstock.actors.settings import ActorSettings
from penstock.actors.system import DeclarationError, System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import NotSent, OutcomeUnknown, RedisUnavailable
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.supervision import LifecycleKind
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from queue_parts import GROUP, PLACE, QUEUE, CropImage, ResizeImage, done, lists_of, resizing, restarts

# Declaring ------------------------------------------------------------------------------------------------------------


def test_a_declaration_that_cannot_work_says_so() -> None:
    system = System("images")
    system.stream("uploads")
    for name in ("", "a{b}", "uploads"):
        with pytest.raises(DeclarationError):
            system.queue(name)
    with pytest.raises(DeclarationError, match="workers"):
        system.queue("thumbnails", workers=-1)
    queue = system.queue("thumbnails", requires=("disk",))
    with pytest.raises(DeclarationError, match="declared already"):
        system.queue("thumbnails")
    with pytest.raises(DeclarationError, match="declared once"):
        system.stream("thumbnails")
    with pytest.raises(DeclarationError, match="requires the gate 'disk'"):
        system.check()
    system.gate("disk", trio.lowlevel.checkpoint)
    with pytest.raises(DeclarationError, match="has no handler"):
        system.check()
    with pytest.raises(DeclarationError, match="async function"):
        queue.on(ResizeImage)(lambda job, context: None)  # type: ignore[arg-type, return-value]


# Handling -------------------------------------------------------------------------------------------------------------


async def test_jobs_are_handled_and_leave_nothing_behind(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        ids = await app.enqueue(QUEUE, *map(ResizeImage, range(200)))
        await app.settled()
        assert len(set(ids)) == 200
        assert done(app.store) == list(range(200))
        assert set(await app.deployment.client().keys("*")) == {b"{thumbnails}:consumers"}
        assert app.deployment.pools[GROUP].counts.duplicates == 0


async def test_jobs_are_taken_in_their_order(autojump_clock: MockClock) -> None:
    begun: list[int] = []

    async def handler(job: ResizeImage, context: Context) -> None:
        begun.append(job.number)
        await trio.sleep(1)

    async with virtual(resizing(handler, workers=1)) as app:
        await app.enqueue(QUEUE, *map(ResizeImage, range(10)))
        await app.settled()
    assert begun == list(range(10))


async def test_no_more_is_taken_than_there_are_workers(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        await trio.sleep(4)

    async with InProcessRedis() as server:
        store = MemoryStore()
        async with (
            virtual(resizing(handler, workers=2), redis=server, store=store, instance="a") as app,
            virtual(resizing(handler, workers=3), redis=server, store=store, instance="b"),
        ):
            await app.enqueue(QUEUE, *map(ResizeImage, range(15)))
            await trio.sleep(2)
            [view] = await app.deployment.queues()
            assert {each.consumer: each.jobs for each in view.taken} == {"a": 2, "b": 3}
            assert (view.name, view.waiting, view.returned) == (QUEUE, 10, 0)
            assert view.oldest is not None
            began = trio.current_time()
            await app.settled()
            assert trio.current_time() - began < 12, "five at a time"
            assert done(store) == list(range(15))
            [view] = await app.deployment.queues()
            assert (view.waiting, view.oldest, [each.jobs for each in view.taken]) == (0, None, [0, 0])


async def test_a_process_without_workers_puts_jobs_in_and_takes_none(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as server:
        store = MemoryStore()
        async with virtual(resizing(workers=0), redis=server, store=store, instance="front") as front:
            await front.enqueue(QUEUE, *map(ResizeImage, range(3)))
            await trio.sleep(60)
            assert done(store) == []
            with pytest.raises(KeyError):
                front.child(PLACE)
            async with virtual(resizing(), redis=server, store=store, instance="worker"):
                await front.settled()
        assert done(store) == [0, 1, 2]


async def test_a_handler_publishes_in_its_transaction(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        await context.publish("done", CropImage(job.number))
        assert (context.stream, context.group) == (QUEUE, GROUP)

    system = resizing(handler)
    system.stream("done", events=[CropImage])
    async with virtual(system) as app:
        await app.enqueue(QUEUE, ResizeImage(1))
        await app.settled()
        assert await app.deployment.client().xlen("done") == 1


# The same job twice ---------------------------------------------------------------------------------------------------


async def test_the_same_event_id_is_one_effect_however_often_it_is_put_in(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        await trio.sleep(3)

    envelope = Envelope(event_type="RESIZE_IMAGE", data={"number": 1})
    other = Envelope(
        event_type="RESIZE_IMAGE",
        data={"number": 1},
        event_id=envelope.event_id,
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )
    async with virtual(resizing(handler)) as app:
        for _ in range(3):
            assert await app.enqueue(QUEUE, envelope, other, envelope) == [envelope.event_id] * 3
            await trio.sleep(2)
        with trio.fail_after(60):
            await app.settled()
        await app.enqueue(QUEUE, envelope)
        await app.settled()
        assert done(app.store) == [1]
        assert app.store.letters == []


# Failing --------------------------------------------------------------------------------------------------------------


async def test_what_fails_is_tried_again_after_pauses_that_are_kept_in_the_database(autojump_clock: MockClock) -> None:
    attempts: list[int] = []

    async def handler(job: ResizeImage, context: Context) -> None:
        assert context.delivery is not None
        attempts.append(context.delivery.attempt)
        if len(attempts) < 4:
            raise OSError("no such file yet")

    async with InProcessRedis() as server:
        store = MemoryStore()
        async with virtual(resizing(handler), redis=server, store=store) as app:
            await app.enqueue(QUEUE, ResizeImage(1))
            while not store.retries.rows:
                await trio.sleep(0.1)
            await trio.sleep(0.1)
            assert await lists_of(app).count() == 0, "it is off the list: the row is what is left of it"
            [row] = store.retries.rows
            assert (row.consumer_group, row.stream, row.attempts) == (GROUP, QUEUE, 1)
        async with virtual(resizing(handler), redis=server, store=store) as app:
            await app.settled()
        assert attempts == [1, 2, 3, 4]
        assert done(store) == [1]


async def test_it_is_dead_when_its_policy_says_so(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        if job.number == 1:
            raise Permanent("no image")
        if job.number == 2:
            raise ValueError("unlucky")
        if job.number == 3:
            await trio.sleep(3600)

    async with virtual(resizing(handler, retry=RetryPolicy(deliveries=2))) as app:
        await app.enqueue(QUEUE, *map(ResizeImage, range(5)))
        await app.settled()
        told = {letter.error_message: (letter.reason.value, letter.deliveries) for letter in app.store.letters}
        assert told.pop("no image") == ("permanent", 1)
        assert told.pop("unlucky") == ("max_deliveries", 2)
        assert [*told.values()] == [("max_deliveries", 2)], "the one that took too long"
        assert {(letter.consumer_group, letter.stream, letter.mirror) for letter in app.store.letters} == {
            (GROUP, QUEUE, None)
        }
        assert done(app.store) == [0, 4], "and nothing that a failed attempt wrote"
        assert restarts(app) == {}


async def test_a_queue_may_give_its_handlers_more_time(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        await trio.sleep(90)

    async with InProcessRedis() as server:
        store = MemoryStore()
        async with (
            virtual(resizing(handler, timeout=100.0), redis=server, store=store, instance="a") as app,
            virtual(resizing(handler, timeout=100.0), redis=server, store=store, instance="b") as other,
        ):
            await app.enqueue(QUEUE, ResizeImage(1))
            await trio.sleep(80)
            assert done(store) == []
            await trio.sleep(20)
            assert done(store) == [1]
            pools = [each.deployment.pools[GROUP] for each in (app, other)]
            assert [pool.counts.duplicates for pool in pools] == [0, 0], "a consumer that is at work is not silent"


def _job(**members: Any) -> bytes:
    whole = {"eventId": "0199c0de-0000-7000-8000-000000000001", "eventType": "RESIZE_IMAGE", "data": {"number": 1}}
    return json.dumps({**whole, "timestamp": "2026-01-01T00:00:00+00:00", **members}).encode()


NO_JOBS = [
    b"",
    b"hello",
    b"\xff\xfe",
    b"[1, 2]",
    b"7",
    b"{}",
    b"[" * 100_000,
    b'{"eventType": "RESIZE_IMAGE", "data": {"number": 1}}',
    _job(eventId="7"),
    _job(eventId=7),
    _job(timestamp="noon"),
    _job(data=[1]),
    _job(data={"number": "one"}),
    _job(data=None),
    _job(eventType="CROP_IMAGE", eventId="0199c0de-0000-7000-8000-000000000002"),
    _job(eventType=None),
    _job(key="\ud800"),
    _job(eventType="\ud800"),
]


async def test_what_is_no_job_is_a_dead_letter_and_harms_no_other(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        lists = lists_of(app)
        for element in NO_JOBS:
            await lists.add(element)
        await app.enqueue(QUEUE, ResizeImage(2))
        await app.settled()
        assert len(app.store.letters) == len(NO_JOBS)
        assert {letter.reason.value for letter in app.store.letters} == {"undecodable", "permanent"}
        assert done(app.store) == [2]
        assert restarts(app) == {}
        whole = [letter for letter in app.store.letters if "hello" in str(letter.shown_fields)]
        assert len(whole) == 1


async def test_what_the_queue_has_no_handler_of_is_refused_at_the_door(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        with pytest.raises(InvalidEvent, match="its jobs are: RESIZE_IMAGE"):
            await app.enqueue(QUEUE, CropImage(1))
        with pytest.raises(InvalidEvent, match="number"):
            await app.enqueue(QUEUE, Envelope(event_type="RESIZE_IMAGE", data={"number": "one"}))
        with pytest.raises(InvalidEvent, match="JSON"):
            await app.enqueue(QUEUE, Envelope(event_type="RESIZE_IMAGE", data={"number": 1, "x": float("nan")}))
        with pytest.raises(TypeError):
            await app.enqueue(QUEUE, object())
        with pytest.raises(KeyError):
            await app.deployment.enqueue("other", ResizeImage(1))
        assert await lists_of(app).count() == 0


# Outages --------------------------------------------------------------------------------------------------------------


async def test_while_redis_is_away_jobs_are_refused_and_what_was_accepted_is_handled(autojump_clock: MockClock) -> None:
    async def handler(job: ResizeImage, context: Context) -> None:
        await trio.sleep(2)

    async with virtual(resizing(handler, workers=1)) as app:
        await app.enqueue(QUEUE, *map(ResizeImage, range(5)))
        await trio.sleep(3)
        app.redis.refuse()
        app.redis.cut()
        await trio.sleep(900)
        with pytest.raises(NotSent, match="not sent"):
            await app.enqueue(QUEUE, ResizeImage(9))
        app.redis.restore()
        await app.settled()
        assert done(app.store) == list(range(5))
        assert app.deployment.pools[GROUP].counts.retried == 0
        assert restarts(app) == {}


async def test_a_process_that_has_stopped_says_that_it_sent_nothing(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        await app.serving()
    with pytest.raises(NotSent, match="the link to Redis is not up"):
        await app.enqueue(QUEUE, ResizeImage(1))


async def test_a_process_that_stops_before_it_can_ask_whether_the_answer_counts_does_not_know(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a cluster; found by the simulation."""
    add = QueueLists.add
    async with InProcessCluster() as cluster, virtual(resizing(workers=0), redis=cluster) as app:

        async def and_then_the_link_is_gone(self: QueueLists, element: bytes) -> int:
            waiting = await add(self, element)
            monkeypatch.setattr(app.deployment._parts.redis, "_client", None)
            return waiting

        await app.serving()
        with monkeypatch.context() as broken, pytest.raises(OutcomeUnknown, match="not believed: the link to Redis"):
            broken.setattr(QueueLists, "add", and_then_the_link_is_gone)
            await app.enqueue(QUEUE, ResizeImage(1))
        monkeypatch.undo()
        assert (await lists_of(app).view(60)).waiting == 1


async def test_a_frozen_redis_holds_the_taker_and_loses_nothing(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        app.redis.hang()
        with pytest.raises(RedisUnavailable):
            await app.enqueue(QUEUE, ResizeImage(1))
        await trio.sleep(600)
        assert app.child(f"{PLACE}/taker").state == "held"
        app.redis.resume()
        await app.serving()
        await app.enqueue(QUEUE, ResizeImage(2))
        await app.settled()
        assert set(done(app.store)) in ({2}, {1, 2}), "who was told that the outcome is unknown may try again"
        assert restarts(app) == {}


async def test_hours_without_the_database_cost_no_attempt(autojump_clock: MockClock) -> None:
    async with virtual(resizing()) as app:
        app.lose_database("the disk is full")
        await app.enqueue(QUEUE, *map(ResizeImage, range(50)))
        await trio.sleep(4 * 3600)
        assert app.child(f"{PLACE}/taker").state == "held"
        app.restore_database()
        await app.settled()
        assert done(app.store) == list(range(50))
        assert (app.deployment.pools[GROUP].counts.retried, app.store.letters) == (0, [])
        assert restarts(app) == {}


async def test_a_full_redis_refuses_jobs_and_lets_itself_be_emptied(autojump_clock: MockClock) -> None:
    async with virtual(resizing(), settings=ActorSettings()) as app:
        app.lose_database("away")
        await app.enqueue(QUEUE, *map(ResizeImage, range(6)))
        app.redis.answer("out-of-memory")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await app.enqueue(QUEUE, ResizeImage(99))
        app.restore_database()
        with trio.fail_after(600):
            while len(done(app.store)) < 6:
                await trio.sleep(1)
        app.redis.heal()
        await app.serving()
        await app.enqueue(QUEUE, ResizeImage(6))
        await app.settled()
        assert done(app.store) == list(range(7))
        assert restarts(app) == {}


async def test_behind_a_gate_that_is_shut_nothing_is_taken_and_no_attempt_is_counted(autojump_clock: MockClock) -> None:
    is_away = True

    async def handler(job: ResizeImage, context: Context) -> None:
        if is_away:
            raise Unavailable("disk", "it is full")

    async with virtual(resizing(handler, requires=("disk",))) as app:
        app.lose("disk", "it is full")
        await app.enqueue(QUEUE, *map(ResizeImage, range(10)))
        await trio.sleep(3600)
        assert app.child(f"{PLACE}/taker").held_by == "disk"
        is_away = False
        app.restore("disk")
        await app.settled()
        assert done(app.store) == list(range(10))
        assert (app.deployment.pools[GROUP].counts.retried, app.store.letters) == (0, [])


# On a cluster -------------------------------------------------------------------------------------------------------


class Load:
    """Puts jobs in until it is cancelled.

    Attributes:
        accepted: their numbers.
        refused: how many were not.
    """

    def __init__(self, app: VirtualDeployment[InProcessCluster]) -> None:
        self.app = app
        self.accepted: list[int] = []
        self.refused = 0

    async def run(self) -> None:
        for number in itertools.count():
            try:
                await self.app.enqueue(QUEUE, ResizeImage(number))
                self.accepted.append(number)
            except RedisUnavailable:
                self.refused += 1
            await trio.sleep(0.05)

    async def settled(self) -> None:
        with trio.fail_after(120):
            await self.app.settled()
        assert set(self.accepted) <= set(done(self.app.store)), "lost"
        assert len(done(self.app.store)) == len(set(done(self.app.store))), "twice"
        assert restarts(self.app) == {}


async def test_slots_that_move_and_masters_that_change_places_are_no_outage(autojump_clock: MockClock) -> None:
    async with InProcessCluster(replicas=1) as cluster, virtual(resizing(), redis=cluster) as app:
        load, slot = Load(app), slot_of(lists_of(app).waiting)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            await trio.sleep(1)
            owner = cluster.owner(slot)
            target = next(node for node in cluster.masters() if node is not owner)
            cluster.begin_migration(slot, target)
            await trio.sleep(3)
            cluster.move_keys(slot)
            await trio.sleep(3)
            cluster.finish_migration(slot)
            await trio.sleep(2)
            (replica,) = cluster.replicas_of(target)
            cluster.fail_over(replica)
            await trio.sleep(3)
            nursery.cancel_scope.cancel()
        await load.settled()
        assert len(load.accepted) > 150
        assert load.refused == 0
        shut = [each for each in app.deployment.tree.journal.recent if each.kind is LifecycleKind.GATE_SHUT]
        assert shut == []


async def test_masters_that_freeze_and_are_replaced_lose_no_job(autojump_clock: MockClock) -> None:
    async with InProcessCluster(replicas=1) as cluster, virtual(resizing(), redis=cluster) as app:
        load, slot = Load(app), slot_of(lists_of(app).waiting)
        await trio.sleep(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(load.run)
            for _ in range(2):
                await trio.sleep(1)
                owner = cluster.owner(slot)
                assert owner is not None
                (replica,) = cluster.replicas_of(owner)
                owner.hang()
                await trio.sleep(0.3)
                cluster.fail_over(replica)
                await trio.sleep(2)
                owner.resume()
            await trio.sleep(2)
            nursery.cancel_scope.cancel()
        await load.settled()
        assert load.accepted


class Doubting:
    """Does not believe the next acknowledgement."""

    why = "its replica has its place"

    async def claims(self, keys: Iterable[str]) -> dict[str, Any]:
        return dict.fromkeys(keys)

    async def doubts(self, claims: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, str]:
        why, self.why = self.why, ""
        return {key: why for key in written if why}


async def test_an_acknowledgement_that_does_not_count_is_an_unknown_outcome(autojump_clock: MockClock) -> None:
    """What counts on a cluster is judged as for streams: tests/integration/test_cluster_ownership.py."""
    async with virtual(resizing()) as app:
        doubting: Any = Doubting()
        app.deployment.queueing._ownership = doubting
        envelope = Envelope(event_type="RESIZE_IMAGE", data={"number": 1})
        with pytest.raises(OutcomeUnknown, match="its replica has its place"):
            await app.enqueue(QUEUE, envelope)
        await app.enqueue(QUEUE, envelope)
        await app.settled()
        assert done(app.store) == [1]


REFUSALS = [
    ("EVALSHA", "MOVED 866 127.0.0.1:7002"),
    ("EVALSHA", "NOPERM User default has no permissions to run the command"),
    ("EVALSHA", "WRONGTYPE Operation against a key holding the wrong kind of value"),
    ("BLMOVE", "READONLY You can't write against a read only replica."),
    ("BLMOVE", "UNBLOCKED client unblocked via CLIENT UNBLOCK"),
    ("BLMOVE", "OOM command not allowed when used memory > 'maxmemory'."),
    ("LRANGE", "LOADING Redis is loading the dataset in memory"),
]


@pytest.mark.parametrize(("command", "reply"), REFUSALS, ids=lambda text: text[:9].replace(" ", "-"))
async def test_no_reply_of_the_server_costs_a_restart(autojump_clock: MockClock, command: str, reply: str) -> None:
    async with virtual(resizing()) as app:
        if command == "LRANGE":
            app.redis.cut()  # so that it looks back at what it holds
        app.redis.fail_next(command, reply, times=10)
        await trio.sleep(100)
        await app.serving()
        await app.enqueue(QUEUE, ResizeImage(1))
        with trio.fail_after(3600):
            await app.settled()
        assert done(app.store) == [1]
        assert restarts(app) == {}


async def test_the_how_to_says_how_to_test(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's test, on the page's program."""
    root = Path(__file__).parents[2] / "docs"
    monkeypatch.syspath_prepend(str(root / "examples"))
    thumbnails = importlib.import_module("thumbnails")
    program = (root / "how-to" / "work-queue.md").read_text().rpartition("```python\n")[2].partition("```")[0]
    space = {"virtual": virtual, "trio": trio, "MockClock": MockClock, **vars(thumbnails)}
    exec("from __future__ import annotations\n" + program, space)
    await space["test_images_are_resized_after_an_hour_without_redis"](autojump_clock)
