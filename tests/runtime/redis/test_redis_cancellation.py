"""Every way of calling Redis, cancelled at every point at which anybody involved gives way, one point a run.

After each cut the same client must still pair replies with commands, and nothing may be left over: no request, no task
of the link, no connection beyond the shared one and the few that are kept for blocking commands.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from penstock.runtime.redis import Redis, RedisClosed, RedisOptions
from penstock.runtime.redis.transaction import Transaction
from penstock.runtime.testing.cuts import Cut, cut_everywhere
from penstock.runtime.testing.redis import InProcessRedis

OPTIONS = RedisOptions()
LINK = "penstock.runtime.redis."
"""What the names of the link's own tasks have in them."""
KEPT = 4

Operation = Callable[[Redis, InProcessRedis], Awaitable[object]]


class Wires:
    """A `connect` that knows which of its streams are open."""

    def __init__(self, server: InProcessRedis) -> None:
        self._server = server
        self.open: set[Wire] = set()

    async def __call__(self) -> trio.abc.Stream:
        return Wire(await self._server.connect(), self.open)


class Wire(trio.abc.Stream):
    def __init__(self, stream: trio.abc.Stream, among: set[Wire]) -> None:
        self._stream = stream
        self._among = among
        among.add(self)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        self._among.discard(self)
        await self._stream.aclose()


def link_tasks() -> list[str]:
    """The names of the tasks that the link has running."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    found, todo = [], [root]
    while todo:
        task = todo.pop()
        if LINK in task.name and "testing" not in task.name:
            found.append(task.name.rpartition(".")[2])
        for nursery in task.child_nurseries:
            todo.extend(nursery.child_tasks)
    return sorted(found)


async def prove_it_whole(redis: Redis, wires: Wires) -> None:
    """Each of several tasks gets its own replies, in every way of calling; and nothing is left over."""

    async def ask(token: bytes) -> None:
        assert await redis.echo(token) == token  # type: ignore[arg-type]
        pipeline = redis.pipeline(transaction=token == b"0")
        pipeline.echo(token + b"a")  # type: ignore[arg-type]
        pipeline.echo(token + b"b")  # type: ignore[arg-type]
        assert await pipeline.execute() == [token + b"a", token + b"b"]

    async def ask_alone() -> None:
        async with redis.dedicated() as connection:
            assert await connection.echo(b"2") == b"2"  # type: ignore[arg-type]
        await redis.rpush("proof", "3")
        assert await redis.blpop(["proof"], timeout=1) == (b"proof", b"3")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, b"0")
        nursery.start_soon(ask, b"1")
        nursery.start_soon(ask_alone)
    await trio.testing.wait_all_tasks_blocked()
    statistics = redis.statistics()
    assert (statistics.pending, statistics.queued_bytes, statistics.dedicated) == (0, 0, 0)
    assert link_tasks() == ["_watch", "_write", "run"]
    assert len(wires.open) <= 1 + KEPT


async def call(redis: Redis, server: InProcessRedis) -> None:
    await redis.incr("n")


async def transaction_pipeline(redis: Redis, server: InProcessRedis) -> None:
    pipeline = redis.pipeline()
    pipeline.incr("a")
    pipeline.incr("b")
    await pipeline.execute()


async def plain_pipeline(redis: Redis, server: InProcessRedis) -> None:
    pipeline = redis.pipeline(transaction=False)
    for _ in range(3):
        pipeline.incr("n")
    await pipeline.execute()


async def blocking_read_of_nothing(redis: Redis, server: InProcessRedis) -> None:
    await redis.xread({"s": "$"}, block=50)


async def blocking_pop_of_something(redis: Redis, server: InProcessRedis) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redis.blpop, ["list"], 5)
        await redis.rpush("list", "x")


async def dedicated(redis: Redis, server: InProcessRedis) -> None:
    async with redis.dedicated() as connection:
        await connection.xgroup_create("s", "g", "0", mkstream=True)
        await connection.xadd("s", {"a": 1})
        await connection.xreadgroup("g", "c", {"s": ">"}, block=50)
        await connection.xreadgroup("g", "c", {"s": ">"}, block=50)


async def optimistic_transaction(redis: Redis, server: InProcessRedis) -> None:
    calls = 0

    async def write(transaction: Transaction) -> None:
        nonlocal calls
        calls += 1
        value = int(await transaction.get("a") or 0)
        if calls == 1:
            await redis.incr("other")  # outrun once
        transaction.multi()
        transaction.set("a", value + 1)
        transaction.set("b", value + 1)

    await redis.transaction(write, "a", "other")


async def transaction_without_writing(redis: Redis, server: InProcessRedis) -> None:
    async def look(transaction: Transaction) -> None:
        await transaction.get("a")

    await redis.transaction(look, "a")


async def script(redis: Redis, server: InProcessRedis) -> None:
    await redis.register_script("return redis.call('INCR', KEYS[1])")(keys=["n"])


async def retried_call(redis: Redis, server: InProcessRedis) -> None:
    """Refused, turned away, and served at last."""
    server.refuse()
    await trio.testing.wait_all_tasks_blocked()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redis.incr, "n")
        await trio.sleep(0.3)
        server.fail_next("INCRBY", "LOADING x")
        server.restore()


async def call_over_a_breaking_connection(redis: Redis, server: InProcessRedis) -> None:
    server.cut_after(1, command="GET")
    await redis.get("n")


OPERATIONS: list[Operation] = [
    call,
    transaction_pipeline,
    plain_pipeline,
    blocking_read_of_nothing,
    blocking_pop_of_something,
    dedicated,
    optimistic_transaction,
    transaction_without_writing,
    script,
    retried_call,
    call_over_a_breaking_connection,
]


ALONE = [blocking_read_of_nothing, dedicated, transaction_without_writing]
"""Those that run in the calling task alone; the others use the shared connection."""

Case = tuple[Operation, str, str]
"""What, in whose tasks (the caller's own, or the link's), and over which connection (open already, or not)."""

EVERY_CASE = os.environ.get("CUTS") == "all"
"""Also the cases whose points are those of other cases, with something else under way: three times as long."""


def cases() -> Iterator[Case]:
    """Each point once; with `EVERY_CASE` in each operation that comes by it."""
    own_warm = OPERATIONS if EVERY_CASE else [each for each in OPERATIONS if each is not transaction_without_writing]
    shared = [each for each in OPERATIONS if each not in ALONE]
    # Connecting is the same for whatever waits for it.
    own_cold = shared if EVERY_CASE else [each for each in shared if each is not optimistic_transaction]
    link_warm = shared if EVERY_CASE else [each for each in shared if each not in (plain_pipeline, script)]
    link_cold = shared if EVERY_CASE else [call, call_over_a_breaking_connection]
    yield from ((each, "own", "warm") for each in own_warm)
    yield from ((each, "own", "cold") for each in own_cold)
    yield from ((each, "link", "warm") for each in link_warm)
    yield from ((each, "link", "cold") for each in link_cold)


def client_cases() -> Iterator[tuple[Operation, str]]:
    """As `cases`, for the client as a whole, which connects in its operation."""
    yield from ((each, "own") for each in OPERATIONS)
    link = [call, retried_call, call_over_a_breaking_connection]
    if EVERY_CASE:
        link = [each for each in OPERATIONS if each not in ALONE]
    yield from ((each, "link") for each in link)


def named(part: object) -> str:
    return str(getattr(part, "__name__", part))


@pytest.mark.parametrize(("operation", "whose", "connection"), list(cases()), ids=named)
def test_a_call_may_be_cancelled_anywhere(operation: Operation, whose: str, connection: str) -> None:
    """At each step of the calling task, or of a task of the link's own; over an open connection, or while it opens."""

    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            wires = Wires(server)
            async with Redis(OPTIONS, connect=wires) as redis:
                if connection == "warm":
                    await redis.echo("warm")
                at = trio.lowlevel.current_task() if whose == "own" else LINK
                with trio.CancelScope() as scope, cut.cancelling(scope, at=at):
                    await operation(redis, server)
                server.restore()
                await prove_it_whole(redis, wires)
                await prove_what_was_written(redis)
            assert link_tasks() == []
            assert wires.open == set()

    assert len(cut_everywhere(scenario)) >= 2


async def prove_what_was_written(redis: Redis) -> None:
    """Nothing twice, and of a transaction nothing or all."""
    assert await redis.get("n") in (None, b"1", b"3")
    assert await redis.get("a") == await redis.get("b")
    assert await redis.get("a") in (None, b"1")


@pytest.mark.parametrize(("operation", "whose"), list(client_cases()), ids=named)
def test_a_client_may_be_cancelled_anywhere(operation: Operation, whose: str) -> None:
    """The scope around the whole client: all its tasks and connections are gone, and a late call is told."""

    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            wires = Wires(server)
            redis = Redis(OPTIONS, connect=wires)
            at = trio.lowlevel.current_task() if whose == "own" else LINK
            entered = False
            with trio.CancelScope() as scope, cut.cancelling(scope, at=at):
                async with redis:
                    entered = True
                    await operation(redis, server)
            await trio.testing.wait_all_tasks_blocked()
            assert link_tasks() == []
            assert wires.open == set()
            if entered:
                for late in (redis.incr("n"), redis.blpop(["l"], 1), redis.pipeline().ping().execute()):  # type: ignore[attr-defined]
                    with pytest.raises(RedisClosed):
                        await late
                with pytest.raises(RedisClosed):
                    async with redis.dedicated():
                        pass
                assert wires.open == set()

    cut_everywhere(scenario)


@pytest.mark.parametrize("operation", [call, plain_pipeline], ids=lambda operation: operation.__name__)
def test_who_waits_for_room_may_be_cancelled_anywhere(operation: Operation) -> None:
    """Every limit is reached, and others wait behind."""

    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            wires = Wires(server)
            options = RedisOptions(max_pending=1, max_queued_bytes=1)
            async with Redis(options, connect=wires) as redis, trio.open_nursery() as nursery:
                await redis.echo("warm")
                for number in range(3):
                    nursery.start_soon(redis.echo, str(number))
                with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                    nursery.start_soon(redis.echo, "behind")
                    await operation(redis, server)
                await prove_it_whole(redis, wires)
                await prove_what_was_written(redis)

    cut_everywhere(scenario)
