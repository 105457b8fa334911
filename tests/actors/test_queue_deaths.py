"""The consumer of a work queue dies, freezes or stops, at any moment: no job is lost, and none has two effects."""

from __future__ import annotations

import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from penstock.actors.event import event_type_of
from penstock.actors.handling import Context, Permanent
from penstock.actors.queue import element_of, job_of
from penstock.actors.queue_keeper import QueueKeeper
from penstock.actors.queue_lists import QueueLists
from penstock.actors.queue_taker import QueueBacklog
from penstock.actors.settings import ActorSettings, DeliverySettings, HealthSettings, PublishSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import virtual
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing import Cut
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.virtual import run_virtual

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from queue_parts import GROUP, QUEUE, ResizeImage, done, lists_of, resizing

IDLE, EVERY = 3.0, 1.0
SETTINGS = ActorSettings(
    delivery=DeliverySettings(handler_timeout=2.0, reclaim_idle=IDLE, reclaim_every=EVERY, retry_minimum=0.1),
    health=HealthSettings(interval_up=600.0, observe_every=3600.0),
    publish=PublishSettings(look_every=60.0),
)
JOBS = 3


def client_of(server: InProcessRedis) -> Redis:
    return Redis(RedisOptions(), connect=server.connect)


async def put_in(client: Redis, *numbers: int) -> None:
    for number in numbers:
        await QueueLists(client, QUEUE).add(element_of(event_type_of(ResizeImage).envelope(ResizeImage(number))))


# Dying ----------------------------------------------------------------------------------------------------------------


async def _unlucky(job: ResizeImage, context: Context) -> None:
    await trio.sleep(0.1)
    if job.number == 1:
        raise Permanent("no image")


async def _dies(cut: Cut, part: str, heir: str) -> None:
    """A process is gone at a step of its `part`; the next, whose instance is `heir`, has the rest."""
    async with InProcessRedis() as server, client_of(server) as client:
        store = MemoryStore()
        await put_in(client, *range(JOBS))
        system = partial(resizing, _unlucky, workers=2)
        with trio.CancelScope() as life, cut.cancelling(life, at=part):
            async with virtual(system(), settings=SETTINGS, redis=server, store=store, instance="a") as app:
                await app.settled()
        async with virtual(system(), settings=SETTINGS, redis=server, store=store, instance=heir) as app:
            with trio.fail_after(IDLE if heir == "a" else IDLE + 2 * EVERY + 2.0):
                while await lists_of(app).count():
                    await trio.sleep(0.1)
        assert Counter(effect.values[0] for effect in store.effects) == {0: 1, 2: 1}
        assert [letter.error_message for letter in store.letters] == ["no image"]
        assert [key for key in await client.keys("*") if not key.endswith(b":consumers")] == []


@pytest.mark.parametrize(
    ("part", "heir", "stride"),
    [
        (f"{GROUP}/taker", "b", 3),
        (f"{GROUP}/taker", "a", 8),
        (f"{GROUP}/handler-pool/worker", "b", 5),
        (f"{GROUP}/handler-pool/worker", "a", 9),
        ("Acknowledging.run", "b", 2),
    ],
)
def test_a_process_may_die_at_any_step(part: str, heir: str, stride: int) -> None:
    """Each one was tried once; here it is some of them."""
    points = 0
    for due in range(1, 1000, stride):
        cut = Cut(due)
        try:
            run_virtual(_dies, cut, part, heir)
        except BaseException as error:
            error.add_note(str(cut.point))
            raise
        if cut.point is None:
            break
        points += 1
    assert points > 5


async def test_the_list_of_the_original_loses_the_job_that_its_consumer_took(autojump_clock: MockClock) -> None:
    """LPUSH and BRPOP: what is taken is nowhere but with its consumer."""
    async with InProcessRedis() as server, client_of(server) as client:
        await client.lpush("queue", "job")
        async with client_of(server) as consumer, consumer.dedicated() as connection:
            assert await connection.brpop(["queue"], timeout=5) == (b"queue", b"job")
            # It dies here, with the job in its hands.
        assert await client.keys("*") == []


async def test_a_job_that_kills_its_consumer_comes_to_an_end_and_harms_no_other(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as server, client_of(server) as client:
        store = MemoryStore()
        await put_in(client, 1, 2, 3)
        for life in range(8):
            with trio.CancelScope() as scope:

                async def deadly(job: ResizeImage, context: Context) -> None:
                    await trio.sleep(0.05)
                    if job.number == 2:
                        store.refuse("killed")  # no clean-up reaches it any more
                        scope.cancel(reason="the process is gone")
                        await trio.sleep_forever()

                async with virtual(
                    resizing(deadly), settings=SETTINGS, redis=server, store=store, instance=f"life-{life}"
                ) as app:
                    await trio.sleep(IDLE + 3 * EVERY)
                    await app.settled()
            store.restore()
            if not scope.cancelled_caught:
                break
        assert done(store) == [1, 3]
        [letter] = store.letters
        assert (letter.reason.value, letter.error_class) == ("poison", "penstock.actors.failures.PoisonousEvent")
        assert life == 4, "four processes have died of it"


# Freezing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends_first", ["the one believed dead", "the one that took over"])
async def test_one_that_was_believed_dead_and_goes_on_has_no_second_effect(
    autojump_clock: MockClock, ends_first: str
) -> None:
    """Its jobs were returned while it had one of them in work, and another one waiting for the database."""
    takes = {"a": 1.0, "b": 0.2 if ends_first == "the one that took over" else 1.9}

    def slow(instance: str) -> System:
        async def handler(job: ResizeImage, context: Context) -> None:
            await trio.sleep(takes[instance])

        return resizing(handler, workers=2)

    async with InProcessRedis() as server, client_of(server) as client:
        store = MemoryStore()
        async with virtual(slow("a"), settings=SETTINGS, redis=server, store=store, instance="a") as one:
            await put_in(client, 1, 2)
            await trio.sleep(0.3)
            lists = QueueLists(client, QUEUE)
            assert len(await lists.held("a")) == 2
            assert await lists.give_back("a", 0.0) == 2, "somebody holds it for dead"
            async with virtual(slow("b"), settings=SETTINGS, redis=server, store=store, instance="b") as other:
                with trio.fail_after(60):
                    await other.settled()
                await trio.sleep(5)
                counts = [app.deployment.pools[GROUP].counts for app in (one, other)]
            assert done(store) == [1, 2]
            assert sum(each.handled for each in counts) == 2
            assert sum(each.duplicates for each in counts) >= 2
            assert store.letters == []


async def test_what_was_returned_leaves_the_hands_of_who_had_it(autojump_clock: MockClock) -> None:
    """What it has not begun, it does not begin once others have it."""
    async with InProcessRedis() as server, client_of(server) as client:
        async with virtual(resizing(workers=2), settings=SETTINGS, redis=server, instance="a") as app:
            app.lose_database("away")
            await app.deployment.gates["postgres"].wait_shut()
            backlog = app.deployment.backlogs[GROUP]
            assert isinstance(backlog, QueueBacklog)
            lists = QueueLists(client, QUEUE)
            await put_in(client, 1, 2)
            queue = app.deployment.system.queues[QUEUE]
            taken = await lists.take("a", 2)
            backlog.add([job_of(queue, each, "a", redelivered=False) for each in taken.fresh])
            await lists.give_back("a", 0.0)
            keeper = QueueKeeper(
                lambda: client,
                QUEUE,
                "a",
                backlog,
                SETTINGS.delivery,
                rounds=None,  # type: ignore[arg-type]
            )
            await keeper._beat()
            assert backlog.known() == frozenset()
            app.restore_database()
            with trio.fail_after(60):
                await app.settled()
            assert done(app.store) == [1, 2]


# Stopping -------------------------------------------------------------------------------------------------------------


async def test_who_stops_finishes_what_it_can_and_gives_the_rest_back_at_once(autojump_clock: MockClock) -> None:
    patient = ActorSettings(delivery=DeliverySettings(), health=SETTINGS.health, publish=SETTINGS.publish)
    begun: list[tuple[str, int]] = []

    def system(name: str) -> System:
        async def handler(job: ResizeImage, context: Context) -> None:
            begun.append((name, job.number))
            await trio.sleep(2.0 if job.number == 1 or name == "b" else 20.0)

        return resizing(handler, workers=3)

    async with InProcessRedis() as server, client_of(server) as client:
        store = MemoryStore()
        async with virtual(system("a"), settings=patient, redis=server, store=store, instance="a"):
            await put_in(client, *range(6))
            await trio.sleep(1)
        assert done(store) == [1], "in its drain time"
        assert [name for name, _ in begun] == ["a"] * 3, "and nothing new was taken meanwhile"
        lists = QueueLists(client, QUEUE)
        view = await lists.view(60)
        assert (view.waiting, view.returned, view.taken) == (5, 0, ())
        started = trio.current_time()
        async with virtual(system("b"), settings=patient, redis=server, store=store, instance="b") as heir:
            await heir.settled()
            assert trio.current_time() - started < 10
        assert done(store) == list(range(6))
        assert {number for name, number in begun[3:6]} == {0, 2, 3}, "what was given back goes first"
