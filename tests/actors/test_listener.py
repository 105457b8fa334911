"""The listener: no reply of Redis costs it a restart, and nothing that it was given is left behind."""

from __future__ import annotations

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.event import event
from penstock.actors.handling import Context
from penstock.actors.reading_on import LOOK_AGAIN, LOOK_BACK
from penstock.actors.settings import ActorSettings
from penstock.actors.system import System
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

STREAM = "orders"
PLACE = "actors/payments@orders"


@event("ORDER")
@frozen
class Order:
    number: int


def orders(handler_takes: float = 0.0, *, consumers: int = 1, workers: int = 4) -> System:
    system = System("app")
    stream = system.stream(STREAM, events=[Order])
    stream.group("payments", consumers=consumers, workers=workers)

    @stream.on(Order, group="payments")
    async def pay(order: Order, context: Context) -> None:
        await trio.sleep(handler_takes)
        await context.connection.execute("insert", [order.number])

    return system


def effects(app: VirtualDeployment) -> list[int]:
    return sorted(effect.values[0] for effect in app.store.effects)


REPLIES = [
    "MOVED 866 127.0.0.1:7002",
    "ASK 866 127.0.0.1:7002",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN Hash slot not served",
    "CLUSTERDOWN The cluster is down",
    "LOADING Redis is loading the dataset in memory",
    "READONLY You can't write against a read only replica.",
    "MISCONF Errors writing to the AOF file: No space left on device",
    "NOREPLICAS Not enough good replicas to write.",
    "NOAUTH Authentication required.",
    "NOPERM User default has no permissions to run the 'xreadgroup' command",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "BUSY Redis is busy running a script.",
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "UNBLOCKED client unblocked via CLIENT UNBLOCK",
]


@pytest.mark.parametrize(
    ("command", "reply"),
    [("XREADGROUP", reply) for reply in REPLIES]
    # Only a blocking read can be told that it is unblocked.
    + [("XINFO GROUPS", reply) for reply in REPLIES if not reply.startswith("UNBLOCKED")],
    ids=lambda text: text[:24].replace(" ", "-"),
)
async def test_no_reply_of_the_server_costs_a_restart(autojump_clock: MockClock, command: str, reply: str) -> None:
    async with virtual(orders()) as app:
        if command == "XINFO GROUPS":
            app.redis.cut()  # so that it starts anew, and looks for its group
        app.redis.fail_next(command, reply, times=30)
        await trio.sleep(400)
        await app.publish(STREAM, Order(1))
        with trio.fail_after(3600):
            await app.settled()
        assert effects(app) == [1]
        assert {view.path: view.restarts for view in app.deployment.tree.snapshot().root.walk() if view.restarts} == {}


async def test_a_group_is_lost_under_load_and_nothing_with_it(autojump_clock: MockClock) -> None:
    async with virtual(orders(0.05, consumers=2)) as app:
        for start in range(0, 300, 10):
            await app.publish(STREAM, *(Order(number) for number in range(start, start + 10)))
            if start == 150:
                await app.deployment.client().xgroup_destroy(STREAM, "payments")
            await trio.sleep(0.1)
        with trio.fail_after(600):
            await app.settled()
        assert effects(app) == list(range(300))


async def test_a_listener_starts_on_a_full_server_where_its_group_is(autojump_clock: MockClock) -> None:
    """XGROUP CREATE is refused there, also for a group that exists."""
    async with virtual(orders()) as app:
        await app.publish(STREAM, Order(1))
        app.redis.fail_next("XGROUP CREATE", "OOM command not allowed when used memory > 'maxmemory'.", times=1000)
        app.redis.cut()
        await trio.sleep(5)
        await app.publish(STREAM, Order(2))
        with trio.fail_after(60):
            await app.settled()
        assert effects(app) == [1, 2]


async def test_entries_given_to_a_connection_that_was_gone_are_taken_up(autojump_clock: MockClock) -> None:
    """A server that has not noticed the end of our old connection serves it first."""
    async with virtual(orders(), settings=ActorSettings()) as app:
        await app.settled()
        consumer = app.child(f"{PLACE}/listener-1").note
        async with Redis(RedisOptions(), connect=app.redis.connect) as old:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: old.xreadgroup("payments", consumer, {STREAM: ">"}, count=10, block=60_000))
                await trio.sleep(2)
                await app.publish(STREAM, Order(1))
                await trio.sleep(0.1)
        with trio.fail_after(LOOK_BACK + 2):
            await app.settled()
        assert effects(app) == [1]
        assert app.child(f"{PLACE}/listener-1").incarnation == 1


async def test_after_a_connection_that_broke_it_looks_again_soon(autojump_clock: MockClock) -> None:
    """What the server gives to the old connection, after the new one has looked, is not late by half a minute."""
    async with virtual(orders(), settings=ActorSettings()) as app:
        await trio.sleep(LOOK_BACK * 2.5)
        app.redis.cut()
        await app.deployment.gates["redis"].wait_shut()
        await app.serving()
        consumer = app.child(f"{PLACE}/listener-1").note
        started = trio.current_time()
        async with Redis(RedisOptions(), connect=app.redis.connect) as old:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: old.xreadgroup("payments", consumer, {STREAM: ">"}, count=10, block=60_000))
                await trio.sleep(1.5)  # the new connection's read comes round, and queues up behind it
                await app.publish(STREAM, Order(1))
                await trio.sleep(0.1)
        await app.settled()
        assert trio.current_time() - started < LOOK_AGAIN + 3
        assert effects(app) == [1]


class Lagging(trio.abc.HalfCloseableStream):
    """A stream over which maps, which are what reads are answered with, take a while."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._held: bytes | bytearray = b""
        self._due = 0.0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self._held:
            self._held = await self._stream.receive_some(max_bytes)
            self._due = trio.current_time() + (0.5 if self._held.startswith(b"%1") else 0.0)
        await trio.sleep_until(self._due)  # cancelled, it has lost nothing
        data, self._held = self._held, b""
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_looking_back_takes_nothing_twice(autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is acknowledged while the history is on its way is not taken for something that was left behind."""
    async with InProcessRedis() as redis:
        connect = redis.connect

        async def connect_lagging() -> trio.abc.Stream:
            return Lagging(await connect())

        monkeypatch.setattr(redis, "connect", connect_lagging)
        async with virtual(orders(0.02, workers=1), redis=redis) as app:
            for number in range(0, 1000, 10):
                await app.publish(STREAM, *(Order(each) for each in range(number, number + 10)))
                await trio.sleep(1)
            with trio.fail_after(3600):
                await app.settled()
            assert effects(app) == list(range(1000))
            assert app.deployment.pools["payments@orders"].counts.duplicates == 0


async def test_a_stop_while_the_history_is_read_leaves_the_rest_for_the_next_start(autojump_clock: MockClock) -> None:
    async with virtual(orders(0.05)) as app:
        redis, store = app.redis, app.store
        consumer = app.child(f"{PLACE}/listener-1").note
        async with Redis(RedisOptions(), connect=redis.connect) as other:
            await app.publish(STREAM, *(Order(number) for number in range(500)))
            await other.xreadgroup("payments", consumer, {STREAM: ">"}, count=300)
        app.deployment.tree.stop("at once")
        await trio.sleep(20)
        async with virtual(orders(), redis=redis, store=store) as again:
            with trio.fail_after(600):
                await again.settled()
            assert sorted(effect.values[0] for effect in store.effects) == list(range(500))


async def test_entries_that_are_trimmed_while_they_wait_are_named_and_do_not_stay(autojump_clock: MockClock) -> None:
    async with virtual(orders()) as app:
        redis, store = app.redis, app.store
        consumer = app.child(f"{PLACE}/listener-1").note
        app.lose_database("away")
        await trio.sleep(1)
        await app.publish(STREAM, *(Order(number) for number in range(5)))
        client = app.deployment.client()
        await client.xreadgroup("payments", consumer, {STREAM: ">"}, count=5)
        first = (await client.xrange(STREAM, count=1))[0][0]
        await client.xdel(STREAM, first)
        app.restore_database()
        with trio.fail_after(3600):
            await app.settled()
        assert effects(app) == [1, 2, 3, 4]
        assert [(letter.reason.value, letter.entry_id) for letter in store.letters] == [("trimmed", first.decode())]
        assert redis.commands["XREADGROUP"]
