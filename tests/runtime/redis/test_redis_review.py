"""What an unfriendly reader tried: replies that cannot be read, whole lines as commands, odd limits, late calls."""

from __future__ import annotations

import enum
import signal
import traceback
from math import inf
from typing import Any

import pytest
import trio
import trio.testing
from redis import exceptions

from penstock.runtime.redis import (
    CommandRefused,
    NotSent,
    OutcomeUnknown,
    Redis,
    RedisClosed,
    RedisOptions,
    RedisStalled,
    RedisUnavailable,
    Transaction,
)
from penstock.runtime.redis._compat import pack_command
from penstock.runtime.testing.redis import InProcessRedis

NO_TEXT = b"\xff\xfe"
ODD_MAP = "redis.setresp(3); local map = {}; map[{1}] = 2; return {map = map}"
"""A map with a list as its key: RESP3 has that, and Python has not."""


async def test_what_is_no_text_troubles_its_own_caller_only(valkey: Any) -> None:
    options = RedisOptions(path=str(valkey.path), decode_responses=True, retry_for=0)
    troubles: list[Exception] = []
    async with Redis(options, on_trouble=troubles.append) as redis:
        await redis.set("blob", NO_TEXT)

        async def read() -> None:
            with pytest.raises(UnicodeDecodeError):
                await redis.get("blob")

        async def echo(text: str) -> None:
            assert await redis.echo(text) == text

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(read)
                nursery.start_soon(echo, str(number))
        async with redis.dedicated() as connection:
            with pytest.raises(UnicodeDecodeError):
                await connection.get("blob")
            assert await connection.echo("text") == "text"
        assert redis.statistics().reconnects == 0
    assert troubles == []


async def test_what_is_no_text_is_one_result_of_a_pipeline(valkey: Any) -> None:
    options = RedisOptions(path=str(valkey.path), decode_responses=True, retry_for=0)
    async with Redis(options) as redis:
        await redis.set("blob", NO_TEXT)
        pipeline = redis.pipeline(transaction=False)
        pipeline.get("blob")
        pipeline.incr("n")
        error, n = await pipeline.execute(raise_on_error=False)
        assert isinstance(error, UnicodeDecodeError)
        assert n == 1
        pipeline = redis.pipeline(transaction=True)
        pipeline.get("blob")
        pipeline.incr("n")
        with pytest.raises(UnicodeDecodeError):  # EXEC's reply as a whole; the transaction has run
            await pipeline.execute()
        assert await redis.get("n") == "2"


async def test_a_reply_that_python_has_no_value_for_costs_the_connection_and_not_the_client(redis: Redis) -> None:
    with pytest.raises(OutcomeUnknown, match="cannot be read"):
        await redis.eval(ODD_MAP, 0)  # type: ignore[misc]
    assert await redis.ping()  # type: ignore[misc]
    async with redis.dedicated() as connection:
        with pytest.raises(OutcomeUnknown, match="cannot be read"):
            await connection.eval(ODD_MAP, 0)  # type: ignore[misc]
        assert await connection.ping()  # type: ignore[misc]


@pytest.mark.parametrize("host", ["a..b", "x" * 300], ids=["empty label", "endless label"])
async def test_a_name_that_is_no_host_name_is_an_outage_and_no_crash(host: str) -> None:
    async with Redis(RedisOptions(host=host, retry_for=0)) as redis:
        with pytest.raises(RedisUnavailable, match="cannot connect"):
            await redis.ping()  # type: ignore[misc]


@pytest.mark.parametrize("line", [" ", "SELECT 3", "MULTI ", "CLIENT  REPLY", "BLPOP key 0", "AUTH secret"])
async def test_a_whole_line_is_no_command(redis: Redis, line: str) -> None:
    """The rules about blocking and connection-changing commands know commands by their names."""
    pipeline = redis.pipeline()
    async with redis.dedicated() as connection:
        for execute in (redis.execute_command, connection.execute_command):
            with pytest.raises(CommandRefused) as caught:
                await execute(line)
            assert "secret" not in str(caught.value).lower()
        with pytest.raises(CommandRefused):
            pipeline.execute_command(line)
    told: Any = await redis.client_info()
    assert (told["db"], told["multi"]) == (0, -1)


def test_numbers_and_bytes_of_other_types_are_packed() -> None:
    class Level(enum.IntEnum):
        HIGH = 3

    assert pack_command(("SET", "k", Level.HIGH)) == pack_command(("SET", "k", 3))
    assert pack_command(("SET", "k", bytearray(b"x"))) == pack_command(("SET", "k", b"x"))
    for wrong in (True, None, object()):
        with pytest.raises(exceptions.DataError, match=f"type '{type(wrong).__name__}'"):
            pack_command(("SET", "k", wrong))


async def test_a_refused_exec_is_not_its_own_cause(redis: Redis, valkey: Any) -> None:
    """Whoever follows `__cause__` would go round for ever."""
    await redis.acl_setuser("w", enabled=True, passwords=["+x"], categories=["+@all"], commands=["-exec"], keys=["*"])
    async with Redis(RedisOptions(path=str(valkey.path), username="w", password="x")) as weak:
        pipeline = weak.pipeline()
        pipeline.set("k", 1)
        with pytest.raises(exceptions.ExecAbortError) as caught:
            await pipeline.execute()
    await redis.acl_deluser("w")
    assert caught.value.__cause__ is None


async def test_no_frame_of_a_refused_login_shows_the_password(redis: Redis, valkey: Any) -> None:
    """Some reports of errors show the locals of each frame."""
    options = RedisOptions(path=str(valkey.path), username="nobody", password="pass-that-is-wrong", retry_for=0)
    with pytest.raises(NotSent) as caught:
        async with Redis(options) as stranger:
            await stranger.ping()  # type: ignore[misc]
    error: BaseException | None = caught.value
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_code.co_filename != __file__:
                assert "pass-that-is-wrong" not in repr(frame.f_locals), frame.f_code.co_name
        error = error.__cause__


async def test_a_transaction_may_block_in_its_function(valkey: Any) -> None:
    """On a second connection, which does not count: with one allowed it would wait for itself."""
    async with Redis(RedisOptions(path=str(valkey.path), max_blocking=1)) as redis:
        await redis.rpush("jobs", "a")  # type: ignore[misc]

        async def move(transaction: Transaction) -> None:
            job = await redis.blpop(["jobs"], timeout=1)  # type: ignore[misc]
            transaction.multi()
            transaction.set("job", job[1])

        with trio.fail_after(10):
            assert await redis.transaction(move, "job") == [True]
            assert await redis.blpop(["jobs"], timeout=0.01) is None  # type: ignore[misc,arg-type]
        assert await redis.get("job") == b"a"


async def test_a_dedicated_connection_sends_nothing_in_a_cancelled_scope(redis: Redis) -> None:
    async with redis.dedicated() as connection:
        await connection.ping()  # type: ignore[misc]
        with trio.CancelScope() as scope:
            scope.cancel()
            await connection.incr("n")
        assert scope.cancelled_caught
        assert connection.connected
    assert await redis.get("n") is None


@pytest.mark.parametrize("stall_after", [0.3, 10.0, inf])
async def test_the_response_timeout_may_be_the_shorter_one(stall_after: float, autojump_clock: Any) -> None:
    options = RedisOptions(response_timeout=0.3, stall_after=stall_after, retry_for=0)
    troubles: list[Exception] = []
    async with InProcessRedis() as server, Redis(options, connect=server.connect, on_trouble=troubles.append) as redis:
        await redis.ping()  # type: ignore[misc]
        server.hang()
        start = trio.current_time()
        with trio.fail_after(60), pytest.raises(OutcomeUnknown):
            await redis.incr("n")
        assert trio.current_time() - start == pytest.approx(0.3, abs=0.06)
        assert [type(trouble) for trouble in troubles] == [RedisStalled]


class SlowUplink(trio.abc.Stream):
    """100 kB a second; with `stuck`, nothing that is long."""

    def __init__(self, stream: trio.abc.Stream, *, stuck: bool) -> None:
        self._stream = stream
        self._stuck = stuck

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(inf if self._stuck and len(data) > 100_000 else len(data) / 100_000)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize("stuck", [False, True])
async def test_a_long_command_may_take_longer_than_the_response_timeout(stuck: bool, autojump_clock: Any) -> None:
    """As long as it moves: ten seconds of sending are no silence of the server, and three without a byte are."""
    options = RedisOptions(response_timeout=3.0, stall_after=3.0, retry_for=0)
    payload = bytes(1_000_000)
    troubles: list[Exception] = []
    async with InProcessRedis() as server:

        async def connect() -> trio.abc.Stream:
            return SlowUplink(await server.connect(), stuck=stuck)

        async with (
            Redis(options, connect=connect, on_trouble=troubles.append) as redis,
            redis.dedicated() as connection,
        ):
            for client in (redis, connection):
                start = trio.current_time()
                if stuck:
                    with pytest.raises((OutcomeUnknown, RedisStalled)):
                        await client.set("long", payload)
                    assert trio.current_time() - start < 4
                else:
                    await client.set("long", payload)
                    assert trio.current_time() - start > 10
    assert bool(troubles) is stuck


async def test_a_blocking_call_that_connects_while_the_client_is_left_is_told(autojump_clock: Any) -> None:
    """Nothing is sent after the client was left, and no connection is kept."""
    may_connect = trio.Event()
    opened: list[trio.abc.Stream] = []
    async with InProcessRedis() as server, trio.open_nursery() as nursery:

        async def connect() -> trio.abc.Stream:
            await may_connect.wait()
            opened.append(await server.connect())
            return opened[-1]

        redis = Redis(RedisOptions(), connect=connect)

        async def pop() -> None:
            with pytest.raises(RedisClosed):
                await redis.blpop(["list"], timeout=1)  # type: ignore[misc]

        async with redis:
            nursery.start_soon(pop)
            await trio.testing.wait_all_tasks_blocked()
        may_connect.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.ClosedResourceError):
            await opened[0].send_all(b"x")


async def test_a_listener_that_raises_leaves_no_reply_to_somebody_else(autojump_clock: Any) -> None:
    def complain(error: Exception) -> None:
        raise LookupError

    options = RedisOptions(retry_for=0)
    async with InProcessRedis() as server, Redis(options, connect=server.connect, on_trouble=complain) as redis:
        async with redis.dedicated() as connection:
            await connection.ping()  # type: ignore[misc]
            server.hang()
            with pytest.raises(LookupError):
                await connection.xread({"s": "0"}, block=100)
            assert not connection.connected
            server.resume()
            assert await connection.echo("mine") == b"mine"  # type: ignore[arg-type]


async def test_a_script_that_speaks_like_a_server_runs_once_in_a_transaction_too(autojump_clock: Any) -> None:
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:

        async def count(transaction: Transaction) -> None:
            text = "redis.call('INCR', KEYS[1]) return redis.error_reply('BUSY with my own things')"
            await transaction.eval(text, 1, "n")  # type: ignore[misc]

        with pytest.raises(exceptions.ResponseError):
            await redis.transaction(count, "k")
        assert await redis.get("n") == b"1"


async def test_a_registered_script_that_says_noscript_itself_runs_once(redis: Redis) -> None:
    script = redis.register_script("redis.call('INCR', KEYS[1]) return redis.error_reply('NOSCRIPT of mine')")
    for calls in (1, 2):
        with pytest.raises(exceptions.NoScriptError, match="of mine"):
            await script(keys=["n"])
        assert await redis.get("n") == str(calls).encode()


async def test_a_read_from_now_on_is_not_sent_again(autojump_clock: Any) -> None:
    """What came while there was no connection would be stepped over, and nobody would know."""
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
        await redis.xadd("s", {"n": 1})
        for start, expected in (("0-0", True), ("$", False)):
            async with trio.open_nursery() as nursery:
                results: list[Any] = []

                async def read(start: str = start, results: list[Any] = results) -> None:
                    try:
                        results.append(await redis.xread({"s": start}, block=1000))
                    except OutcomeUnknown as error:
                        results.append(error)

                server.cut_after(1, command="XREAD")
                nursery.start_soon(read)
            assert isinstance(results[0], list) is expected


class Interrupting(SlowUplink):
    """Somebody presses Ctrl-C when the next bytes come."""

    pressed = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await super().receive_some(max_bytes)
        if not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)
        return data


def test_a_keyboard_interrupt_is_for_the_program_and_not_for_the_link() -> None:
    """In a task of the link it would come out as a crash of the client, and lose a reply."""

    async def main() -> None:
        streams: list[Interrupting] = []
        async with InProcessRedis() as server:

            async def connect() -> trio.abc.Stream:
                streams.append(Interrupting(await server.connect(), stuck=False))
                return streams[-1]

            async with Redis(RedisOptions(retry_for=0), connect=connect) as redis:
                await redis.echo("a")
                streams[0].pressed = False
                with pytest.raises(KeyboardInterrupt):
                    assert await redis.echo("b") == b"b"
                    await trio.sleep_forever()
                assert await redis.echo("c") == b"c"
                assert len(streams) == 1

    trio.run(main)
