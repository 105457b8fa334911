"""The link in virtual time: trouble reports, silence, single flight, backoff, limits."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from penstock.runtime.redis import NotSent, OutcomeUnknown, Redis, RedisOptions, RedisStalled, RedisUnavailable
from penstock.runtime.testing.redis import InProcessRedis

OPTIONS = RedisOptions(retry_for=0)


class Report:
    """What `on_trouble` was told, and when."""

    def __init__(self) -> None:
        self.all: list[tuple[float, Exception]] = []

    def __call__(self, error: Exception) -> None:
        self.all.append((trio.current_time(), error))

    @property
    def kinds(self) -> list[type[Exception]]:
        return [type(error) for _, error in self.all]

    @property
    def times(self) -> list[float]:
        return [when for when, _ in self.all]


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
def report() -> Report:
    return Report()


@pytest.fixture
async def redis(server: InProcessRedis, report: Report) -> AsyncIterator[Redis]:
    async with Redis(OPTIONS, connect=server.connect, on_trouble=report) as redis:
        yield redis


async def failure_of(command: Awaitable[Any]) -> RedisUnavailable:
    with pytest.raises(RedisUnavailable) as caught:
        await command
    return caught.value


async def test_nothing_is_opened_before_a_command_needs_it(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    assert not redis.statistics().connected
    await trio.sleep(60)
    assert server.commands["HELLO"] == 0
    await redis.ping()
    assert redis.statistics().connected


async def test_many_tasks_share_one_connect_attempt(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(redis.ping)
    assert server.commands["HELLO"] == 1
    assert server.commands["PING"] == 50


async def test_the_end_of_the_stream_is_reported_without_any_command(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """In the tick in which the reader sees it, with the address, and once."""
    await redis.ping()
    server.cut()
    await trio.testing.wait_all_tasks_blocked()
    assert report.kinds == [RedisUnavailable]
    assert str(report.all[0][1]) == "redis://127.0.0.1:6379/0: the server closed the connection"
    statistics = redis.statistics()
    assert not statistics.connected
    assert statistics.last_error is report.all[0][1]
    await redis.ping()
    assert redis.statistics().reconnects == 1


async def test_trouble_is_reported_before_any_caller_runs_on(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """A gate can be shut before the first failed task can start its next attempt."""
    server.cut_after(1, command="XADD")
    seen: list[int] = []

    async def add() -> None:
        await failure_of(redis.xadd("s", {"a": 1}))
        seen.append(len(report.all))

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(add)
    assert seen == [1] * 5


async def test_silence_is_reported_and_the_connection_kept(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """After 0.75 s; the reply that comes at last reaches its caller; a second silence is reported again."""
    await redis.ping()
    for round_number in (1, 2):
        start = trio.current_time()
        server.hang()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(redis.ping)
            await trio.sleep(3)
            server.resume()
        assert report.kinds == [RedisStalled] * round_number
        assert report.times[-1] - start == pytest.approx(0.75)
    assert redis.statistics().reconnects == 0


async def test_an_idle_connection_is_not_silent(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    await redis.ping()
    server.hang()
    await trio.sleep(600)
    server.resume()
    await redis.ping()
    assert report.all == []


async def test_an_idle_connection_can_be_looked_after(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """A PING after each `health_check_interval` without commands; a dead connection is known before it is needed."""
    report = Report()
    options = RedisOptions(health_check_interval=30, retry_for=0)
    async with Redis(options, connect=server.connect, on_trouble=report) as redis:
        await redis.echo("x")
        await trio.sleep(95)
        assert server.commands["PING"] == 3
        assert report.all == []
        server.hang()
        start = trio.current_time()
        await trio.sleep(60)
        assert report.kinds == [RedisStalled, RedisStalled]
        assert report.times[-1] - start < 30 + 5.1
        server.resume()
        assert await redis.echo("x") == b"x"


async def test_silence_without_end_ends_the_connection(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """At 5 s; what was sent is of unknown outcome, and the next command opens another connection."""
    await redis.ping()
    server.hang()
    start = trio.current_time()
    error = await failure_of(redis.xadd("s", {"a": 1}))
    assert isinstance(error, OutcomeUnknown)
    assert isinstance(error.__cause__, RedisStalled)
    assert trio.current_time() - start == pytest.approx(5)
    assert report.kinds == [RedisStalled, RedisStalled]
    server.resume()
    assert await redis.xlen("s") == 1  # the frozen server had it: that is what "unknown" means


async def test_a_connect_that_gets_no_greeting_ends_in_time(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    server.hang()
    error = await failure_of(redis.ping())
    assert isinstance(error, NotSent)
    assert "no connection within 5 s" in str(error)
    assert report.times == [pytest.approx(5)]


async def test_attempts_back_off_to_two_seconds(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """Each command pays for one attempt; with the jitter at its ceiling the waits double from 50 ms to 2 s."""
    report = Report()

    class Ceiling(random.Random):
        def random(self) -> float:
            return 1.0

    server.refuse()
    async with Redis(OPTIONS, connect=server.connect, on_trouble=report, rng=Ceiling()) as redis:
        for _ in range(9):
            assert isinstance(await failure_of(redis.ping()), NotSent)
        waits = [later - earlier for earlier, later in zip(report.times, report.times[1:], strict=False)]
        assert waits == pytest.approx([0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2, 2])
        server.restore()
        await redis.ping()


async def test_the_jitter_comes_from_the_rng(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """Two links with one seed make the same attempts; full jitter stays below the ceiling."""
    runs = []
    server.refuse()
    for _ in range(2):
        report = Report()
        async with Redis(OPTIONS, connect=server.connect, on_trouble=report, rng=random.Random(7)) as redis:
            start = trio.current_time()
            for _ in range(5):
                await failure_of(redis.ping())
            runs.append([when - start for when in report.times])
    assert runs[0] == pytest.approx(runs[1])
    assert 0 < runs[0][-1] < 0.05 + 0.1 + 0.2 + 0.4


async def test_a_server_that_greets_and_hangs_up_is_not_called_in_a_hot_loop(
    autojump_clock: MockClock, server: InProcessRedis, report: Report
) -> None:
    async with Redis(OPTIONS, connect=server.connect, on_trouble=report, rng=random.Random(1)) as redis:
        for _ in range(20):
            server.cut_after(1, "before")
            await failure_of(redis.ping())
    assert trio.current_time() > 5


async def test_a_caller_that_gives_up_does_not_take_the_attempt_from_the_others(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    server.hang()
    async with trio.open_nursery() as nursery:

        async def hasty() -> None:
            with trio.move_on_after(1):
                await redis.ping()

        nursery.start_soon(hasty)
        nursery.start_soon(redis.ping)
        await trio.sleep(2)
        server.resume()
    assert server.commands["HELLO"] == 1
    assert server.commands["PING"] == 1


async def test_a_full_link_makes_callers_wait_and_lets_them_leave(
    autojump_clock: MockClock, server: InProcessRedis
) -> None:
    """The third caller's command is not even queued, and is gone when it is cancelled."""
    async with Redis(RedisOptions(max_pending=2, retry_for=0), connect=server.connect) as redis:
        await redis.ping()
        server.hang()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(redis.rpush, "l", "x")
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.1) as scope:
                await redis.rpush("l", "late")
            assert scope.cancelled_caught
            nursery.start_soon(redis.rpush, "l", "patient")
            await trio.testing.wait_all_tasks_blocked()
            assert redis.statistics().pending == 2
            server.resume()
        assert await redis.lrange("l", 0, -1) == [b"x", b"x", b"patient"]


async def test_queued_bytes_are_bounded_while_the_server_does_not_read(
    autojump_clock: MockClock, scripted: Any
) -> None:
    """One burst is being sent, one may queue up to the bound, the next caller waits; all fail when the link breaks."""
    connect, peer = scripted
    options = RedisOptions(max_queued_bytes=1000, retry_for=0)
    async with Redis(options, connect=connect) as redis, trio.open_nursery() as nursery:
        errors: list[type[Exception]] = []

        async def write() -> None:
            errors.append(type(await failure_of(redis.set("k", "x" * 1000))))

        nursery.start_soon(write)
        await trio.testing.wait_all_tasks_blocked()
        await greet(peer())
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(2):
            nursery.start_soon(write)
            await trio.testing.wait_all_tasks_blocked()
        assert redis.statistics().pending == 2
        assert 1000 < redis.statistics().queued_bytes < 2000
        await peer().aclose()
    assert errors.count(OutcomeUnknown) == 1
    assert errors.count(NotSent) == 2


async def test_a_cancelled_call_that_was_only_queued_is_never_sent(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    await redis.ping()
    with trio.CancelScope() as scope:
        scope.cancel()
        await redis.set("k", "v")
    assert await redis.get("k") is None
    assert server.commands["SET"] == 0


async def test_a_blocking_read_of_a_frozen_server_has_a_deadline(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """BLOCK 2 s + margin 1.5 s; reported; the next read has a connection of its own again."""
    async with redis.dedicated() as connection:
        await connection.xgroup_create("s", "g", mkstream=True)
        server.hang()
        start = trio.current_time()
        assert isinstance(await failure_of(connection.xreadgroup("g", "c", {"s": ">"}, block=2000)), RedisStalled)
        assert trio.current_time() - start == pytest.approx(3.5)
        assert report.kinds == [RedisStalled]
        server.resume()
        assert await connection.xreadgroup("g", "c", {"s": ">"}, block=2000) == []


async def test_a_dedicated_connection_reports_what_the_shared_one_does(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis, report: Report
) -> None:
    """Silence at 0.75 s and 5 s, the end of the stream, and refused connects."""
    async with redis.dedicated() as connection:
        await connection.ping()
        server.hang()
        start = trio.current_time()
        assert isinstance(await failure_of(connection.ping()), RedisStalled)
        assert [when - start for when in report.times] == pytest.approx([0.75, 5])
        server.resume()
        server.cut_after(1, command="XADD")
        assert isinstance(await failure_of(connection.xadd("s", {"a": 1})), OutcomeUnknown)
        server.refuse()
        assert isinstance(await failure_of(connection.ping()), NotSent)
    assert report.kinds == [RedisStalled, RedisStalled, RedisUnavailable, RedisUnavailable]


Peer = trio.StapledStream[Any, Any]


async def greet(peer: Peer) -> None:
    """A server's part of the handshake."""
    await peer.receive_some()
    await peer.send_all(b"%1\r\n$5\r\nproto\r\n:3\r\n")


@pytest.fixture
def scripted() -> tuple[Callable[[], Awaitable[Peer]], Callable[[], Peer]]:
    """A connect whose server's side is played by the test; a send waits until the test receives."""
    peers: list[Peer] = []

    async def connect() -> Peer:
        ours, theirs = trio.testing.lockstep_stream_pair()
        peers.append(ours)
        return theirs

    return connect, lambda: peers[-1]


async def test_what_was_not_sent_is_told_from_what_was(autojump_clock: MockClock, scripted: Any) -> None:
    """The first command is being sent when the server goes away, the second one still waits for its turn."""
    connect, peer = scripted
    errors: dict[str, RedisUnavailable] = {}

    async def run(name: str, command: Awaitable[Any]) -> None:
        errors[name] = await failure_of(command)

    async with Redis(OPTIONS, connect=connect) as redis, trio.open_nursery() as nursery:
        nursery.start_soon(run, "first", redis.incr("a"))
        await trio.testing.wait_all_tasks_blocked()
        await greet(peer())
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run, "second", redis.incr("b"))
        await trio.testing.wait_all_tasks_blocked()
        await peer().aclose()
    assert type(errors["first"]) is OutcomeUnknown
    assert type(errors["second"]) is NotSent


async def test_pushes_are_not_taken_for_replies(autojump_clock: MockClock, scripted: Any) -> None:
    connect, peer = scripted
    async with Redis(OPTIONS, connect=connect) as redis, trio.open_nursery() as nursery:

        async def get() -> None:
            assert await redis.get("k") == b"v"

        nursery.start_soon(get)
        await trio.testing.wait_all_tasks_blocked()
        await greet(peer())
        await peer().receive_some()
        for part in (b">2\r\n$10\r\ninvalidate\r\n*0\r\n", b"$1\r\n", b"v\r\n"):
            await peer().send_all(part)


@pytest.mark.parametrize("nonsense", [b"+OK\r\n", b"no RESP at all\r\n"])
async def test_a_reply_that_nobody_asked_for_ends_the_connection(
    autojump_clock: MockClock, scripted: Any, nonsense: bytes, report: Report
) -> None:
    """Rather no connection than one whose replies may belong to another command."""
    connect, peer = scripted
    async with Redis(OPTIONS, connect=connect, on_trouble=report) as redis, trio.open_nursery() as nursery:
        nursery.start_soon(redis.get, "k")
        await trio.testing.wait_all_tasks_blocked()
        await greet(peer())
        await peer().receive_some()
        await peer().send_all(b"_\r\n")
        await trio.testing.wait_all_tasks_blocked()
        await peer().send_all(nonsense)
        await trio.testing.wait_all_tasks_blocked()
        assert not redis.statistics().connected
    assert report.kinds == [RedisUnavailable]
