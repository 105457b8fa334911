"""The client on a real server: commands, shapes, pipelines, scripts, blocking commands, refusals."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import trio
from redis import exceptions

from penstock.runtime.redis import CommandRefused, NotSent, Redis, RedisOptions

if TYPE_CHECKING:
    from conftest import ValkeyServer


async def test_replies_have_redis_pys_shapes(redis: Redis) -> None:
    """What redis-py's asyncio client gives over RESP2, this client gives over RESP3."""
    assert await redis.set("k", "v") is True
    assert await redis.get("k") == b"v"
    assert await redis.mget("k", "absent") == [b"v", None]
    assert await redis.mget([]) == []
    assert await redis.ping() is True
    entry_id = await redis.xadd("s", {"a": 1})
    assert await redis.xgroup_create("s", "g", "0") is True
    assert await redis.xreadgroup("g", "c", {"s": ">"}, count=10) == [[b"s", [(entry_id, {b"a": b"1"})]]]
    assert await redis.xreadgroup("g", "c", {"s": ">"}, count=10) == []
    assert (await redis.xpending("s", "g"))["pending"] == 1
    assert await redis.xack("s", "g", entry_id) == 1
    assert (await redis.xinfo_groups("s"))[0]["name"] == b"g"
    assert await redis.hset("h", mapping={"x": 1}) == 1
    assert await redis.hgetall("h") == {b"x": b"1"}
    assert await redis.zadd("z", {"m": 1.5}) == 1
    assert await redis.zrange("z", 0, -1, withscores=True) == [(b"m", 1.5)]
    assert (await redis.info("replication"))["role"] == "master"
    assert (await redis.config_get("maxmemory"))["maxmemory"] == "0"


async def test_decode_responses_gives_text_and_leaves_dumps_alone(valkey: ValkeyServer) -> None:
    """NEVER_DECODE holds for one reply on the shared connection, between decoded ones."""
    async with Redis(RedisOptions.from_url(valkey.url, decode_responses=True)) as redis:
        await redis.set("k", "ä")
        results: dict[str, object] = {}

        async def note(name: str, command: object) -> None:
            results[name] = await command  # type: ignore[misc]

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, "before", redis.get("k"))
            nursery.start_soon(note, "dump", redis.dump("k"))
            nursery.start_soon(note, "after", redis.get("k"))
        assert results["before"] == results["after"] == "ä"
        assert isinstance(results["dump"], bytes)
        pipeline = redis.pipeline(transaction=False)
        for command in (pipeline.get, pipeline.dump, pipeline.get):
            command("k")
        assert (await pipeline.execute())[::2] == ["ä", "ä"]


async def test_commands_of_one_tick_travel_together_and_in_order(redis: Redis) -> None:
    """500 tasks get each its own reply."""
    await redis.ping()
    replies: dict[int, bytes] = {}

    async def echo(number: int) -> None:
        replies[number] = await redis.echo(str(number))

    async with trio.open_nursery() as nursery:
        for number in range(500):
            nursery.start_soon(echo, number)
    assert replies == {number: str(number).encode() for number in range(500)}
    assert redis.statistics().pending == 0


async def test_an_error_reply_is_raised_to_its_caller_only(redis: Redis) -> None:
    await redis.set("k", "v")
    with pytest.raises(exceptions.ResponseError, match="WRONGTYPE"):
        await redis.xadd("k", {"a": 1})
    assert await redis.get("k") == b"v"


async def test_a_value_that_redis_has_no_type_for_is_refused_before_it_is_sent(redis: Redis) -> None:
    sent = redis.statistics().sent
    for value in (None, True, object()):
        with pytest.raises(exceptions.DataError, match="an argument of type"):
            await redis.set("k", value)  # type: ignore[arg-type]
    assert redis.statistics().sent == sent


async def test_pipeline_results_come_in_order_and_errors_in_their_place(redis: Redis) -> None:
    pipeline = redis.pipeline(transaction=False)
    pipeline.set("k", "v")
    pipeline.incr("k")
    pipeline.get("k")
    assert len(pipeline) == 3
    first, error, last = await pipeline.execute(raise_on_error=False)
    assert (first, last) == (True, b"v")
    assert isinstance(error, exceptions.ResponseError)
    assert await pipeline.execute() == []  # used up
    pipeline.incr("k")
    with pytest.raises(exceptions.ResponseError, match="not an integer") as caught:
        await pipeline.execute()
    assert caught.value.__notes__ == ["command 1 of 1 in the pipeline: INCRBY"]


async def test_a_transaction_runs_as_one_step_among_other_writers(redis: Redis) -> None:
    """20 tasks move between two keys; the sum never changes in any transaction's eyes."""
    await redis.mset({"a": 0, "b": 0})

    async def move() -> None:
        for _ in range(20):
            pipeline = redis.pipeline(transaction=True)
            pipeline.incr("a")
            pipeline.decr("b")
            pipeline.mget("a", "b")
            _, _, (a, b) = await pipeline.execute()
            assert int(a) + int(b) == 0

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(move)
    assert await redis.get("a") == b"400"


async def test_a_refused_transaction_raises_the_reason_and_runs_nothing(redis: Redis) -> None:
    pipeline = redis.pipeline()
    pipeline.set("k", "v")
    pipeline.execute_command("NO-SUCH-COMMAND")
    with pytest.raises(exceptions.ResponseError, match="unknown command") as caught:
        await pipeline.execute()
    assert isinstance(caught.value.__cause__, exceptions.ExecAbortError)
    assert await redis.get("k") is None


async def test_a_script_is_taught_to_a_server_that_forgot_it(redis: Redis) -> None:
    add = redis.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert await add(keys=["n"], args=[2]) == 2
    assert await add(keys=["n"], args=[2]) == 4
    await redis.script_flush()
    assert await add(keys=["n"], args=[2]) == 6
    await redis.script_flush()
    for transaction in (False, True):
        pipeline = redis.pipeline(transaction=transaction)
        add.queue(pipeline, ["n"], [1])
        add.queue(pipeline, ["n"], [1])
        await pipeline.execute()
    assert await redis.get("n") == b"10"


async def test_blocking_commands_do_not_hold_up_the_shared_connection(redis: Redis) -> None:
    """A BLPOP and an XREAD wait for what other tasks of the same client write."""
    popped: list[object] = []

    async def pop() -> None:
        popped.append(await redis.blpop(["list"], timeout=5))

    async def read() -> None:
        popped.append(await redis.xread({"stream": "$"}, block=5000))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pop)
        nursery.start_soon(read)
        while await blocked_clients(redis) < 2:
            pass
        await redis.rpush("list", "x")
        entry_id = await redis.xadd("stream", {"a": 1})
    assert len(popped) == 2
    assert (b"list", b"x") in popped
    assert [[b"stream", [(entry_id, {b"a": b"1"})]]] in popped
    assert redis.statistics().dedicated == 0


async def test_a_blocking_read_of_nothing_ends_with_its_block(redis: Redis) -> None:
    assert await redis.xread({"stream": "$"}, block=20) == []
    assert await redis.blpop(["list"], timeout=0.02) is None


async def test_connections_for_blocking_commands_are_used_again_and_bounded(valkey: ValkeyServer) -> None:
    """Three commands over two connections: the third waits its turn; one after another, they share one."""
    async with Redis(RedisOptions.from_url(valkey.url, max_blocking=2)) as redis:
        for _ in range(3):
            await redis.blpop(["list"], timeout=0.01)
        connections = int((await redis.info("stats"))["total_connections_received"])
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(redis.blpop, ["list"], 5)
            while await blocked_clients(redis) < 2:
                pass
            assert redis.statistics().dedicated == 2
            for number in range(3):
                await redis.rpush("list", number)
        assert int((await redis.info("stats"))["total_connections_received"]) == connections + 1


@pytest.mark.parametrize(
    "command",
    [
        ("SELECT", 1),
        ("select", 1),
        (b"AUTH", "x"),
        ("HELLO", 2),
        ("MULTI",),
        ("WATCH", "k"),
        ("SUBSCRIBE", "c"),
        ("MONITOR",),
        ("CLIENT REPLY", "OFF"),
        ("CLIENT", "reply", "OFF"),
        ("CLIENT", b"TRACKING", "ON"),
        ("CLIENT SETNAME", "x"),
        ("SCRIPT DEBUG", "YES"),
        ("WAIT", 1, 100),
        ("BLPOP", "k", 0),
        ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"),
    ],
)
async def test_commands_that_would_harm_the_connection_are_refused(redis: Redis, command: tuple[object, ...]) -> None:
    """Refused with advice, on the client and in a pipeline, and nothing is sent."""
    await redis.ping()
    sent = redis.statistics().sent
    with pytest.raises(CommandRefused, match=r": | without a limit"):
        await redis.execute_command(*command)
    with pytest.raises(CommandRefused):
        redis.pipeline().execute_command(*command)
    assert redis.statistics().sent == sent


async def test_no_kind_of_client_takes_a_watch_that_would_watch_nothing(redis: Redis) -> None:
    with pytest.raises(CommandRefused, match=r"redis\.transaction\(\)"):
        await redis.watch("k")
    with pytest.raises(CommandRefused):
        await redis.unwatch()
    with pytest.raises(CommandRefused):
        redis.pipeline().watch("k")
    async with redis.dedicated() as connection:
        with pytest.raises(CommandRefused):
            await connection.watch("k")


async def test_harmless_client_commands_pass(valkey: ValkeyServer) -> None:
    async with Redis(RedisOptions.from_url(valkey.url, client_name="penstock-test")) as redis:
        assert await redis.client_getname() == "penstock-test"
        assert await redis.client_id() > 0
        assert (await redis.client_info())["resp"] == "3"


async def test_the_bodys_exception_leaves_the_client_as_it_is(valkey: ValkeyServer) -> None:
    """No exception group around it, and no task left behind."""

    async def fail() -> None:
        async with Redis(valkey.options) as redis:
            await redis.ping()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()


async def test_the_bodys_exception_survives_an_outer_cancellation(valkey: ValkeyServer) -> None:
    async def fail(scope: trio.CancelScope) -> None:
        async with Redis(valkey.options) as redis:
            await redis.ping()
            scope.cancel()
            raise ZeroDivisionError

    with trio.CancelScope() as scope, pytest.raises(ZeroDivisionError):
        await fail(scope)


async def test_leaving_the_client_fails_what_is_under_way_and_what_comes_after(valkey: ValkeyServer) -> None:
    async with trio.open_nursery() as nursery:
        async with Redis(valkey.options) as redis:
            await redis.ping()

            async def read() -> None:
                with pytest.raises(exceptions.ConnectionError, match=r"no reply"):
                    await redis.blpop(["list"], timeout=30)

            nursery.start_soon(read)
            while await blocked_clients(redis) < 1:
                pass
        with pytest.raises(NotSent, match="closed"):
            await redis.ping()
        with trio.move_on_after(0.01) as scope:
            while True:
                with contextlib.suppress(NotSent):
                    await redis.ping()
        assert scope.cancelled_caught


async def test_a_client_that_was_not_entered_says_so(valkey: ValkeyServer) -> None:
    with pytest.raises(RuntimeError, match="async with"):
        await Redis(valkey.options).ping()


async def test_a_call_without_a_command_is_a_mistake_in_code(redis: Redis) -> None:
    with pytest.raises(TypeError, match="without a command"):
        await redis.execute_command()
    async with redis.dedicated() as connection:
        with pytest.raises(TypeError, match="without a command"):
            await connection.execute_command()


async def test_a_client_shows_where_it_leads_and_no_secret() -> None:
    client = Redis(RedisOptions.from_url("redis://user:secret@h:7000/2"))
    assert repr(client) == "<Redis redis://h:7000/2 (new)>"
    async with client:
        assert repr(client) == "<Redis redis://h:7000/2 (open)>"
        async with client.dedicated() as connection:
            assert repr(connection) == "<DedicatedRedis redis://h:7000/2>"
    assert repr(client) == "<Redis redis://h:7000/2 (closed)>"


async def test_a_node_of_a_cluster_is_not_taken_for_a_single_server(redis: Redis) -> None:
    """Its redirections come as they are, with a note of what to use instead."""
    redirect = "return redis.error_reply('MOVED 3694 10.0.0.2:6379')"
    with pytest.raises(exceptions.MovedError) as single:
        await redis.eval(redirect, 0)
    with pytest.raises(exceptions.MovedError) as piped:
        await redis.pipeline(transaction=False).eval(redirect, 0).execute()
    for caught in (single, piped):
        [note] = [note for note in caught.value.__notes__ if "cluster" in note]
        assert "open it with redis+cluster://" in note


async def test_an_outer_cancellation_goes_through_the_client(valkey: ValkeyServer) -> None:
    with trio.move_on_after(0.05) as scope:
        async with Redis(valkey.options) as redis:
            await redis.ping()
            await trio.sleep_forever()
    assert scope.cancelled_caught


async def test_dedicated_waits_for_replicas_on_the_connection_that_wrote(redis: Redis) -> None:
    async with redis.dedicated() as connection:
        await connection.xadd("s", {"a": 1})
        assert await connection.wait(0, 10) == 0
        await connection.aclose()
    async with redis.dedicated() as connection:
        with pytest.raises(NotSent, match="gone"):
            await connection.wait(0, 10)
        with pytest.raises(CommandRefused, match=r"RedisOptions\.db"):
            await connection.select(1)


async def test_a_dedicated_connection_runs_one_command_at_a_time(redis: Redis) -> None:
    async with redis.dedicated() as connection, trio.open_nursery() as nursery:
        nursery.start_soon(connection.blpop, ["list"], 5)
        while await blocked_clients(redis) < 1:
            pass
        with pytest.raises(trio.BusyResourceError):
            await connection.ping()
        await redis.rpush("list", 1)


async def test_a_cancelled_blocking_read_closes_its_connection_and_the_next_one_works(redis: Redis) -> None:
    async with redis.dedicated() as connection:
        with trio.move_on_after(0.05) as scope:
            await connection.xread({"s": "$"}, block=5000)
        assert scope.cancelled_caught
        assert not connection.connected
        assert await connection.echo("again") == b"again"
        while await blocked_clients(redis):
            pass


async def test_statistics_can_be_looked_at(valkey: ValkeyServer) -> None:
    async with Redis(RedisOptions.from_url(valkey.url, password=None)) as redis:
        await redis.ping()
        statistics = redis.statistics()
    assert "connected=True" in repr(statistics)
    assert (statistics.sent, statistics.pending, statistics.reconnects, statistics.last_error) == (1, 0, 0, None)


async def blocked_clients(redis: Redis) -> int:
    return int((await redis.info("clients"))["blocked_clients"])
