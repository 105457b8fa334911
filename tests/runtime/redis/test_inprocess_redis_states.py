"""The in-process Redis refuses as a real server does in each state of the table of replies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Any

import pytest
import trio
from redis import exceptions
from trio.testing import MockClock

from penstock.runtime.redis import REPLIES, Redis, RedisOptions, classify
from penstock.runtime.redis.replies import reply_text
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_faults import GREETINGS, SPOKEN, WAKE_UPS


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
async def redis(server: InProcessRedis) -> AsyncIterator[Redis]:
    """One that sends nothing again, with a stream and a group."""
    async with Redis(RedisOptions(retry_for=0), connect=server.connect) as redis:
        await redis.xadd("s", {"n": 1}, id="1-0")
        await redis.xgroup_create("s", "g", "0")
        yield redis


async def row_of(command: Awaitable[Any]) -> str:
    """The row of the error that the command brings; "fine" without one."""
    try:
        await command
    except exceptions.RedisError as error:
        return classify(error).name
    return "fine"


def provoked(redis: Redis, row: str) -> Awaitable[Any]:
    """A command that meets the row."""
    commands: dict[str, tuple[Any, ...]] = {
        "try-again": ("MGET", "{a}1", "{a}2"),
        "cross-slot": ("MGET", "a", "b"),
        "no-group": ("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", ">"),
        "no-key": ("XGROUP CREATE", "s", "h", "0"),
        "busy-group": ("XGROUP CREATE", "s", "h", "0"),
        "no-script": ("EVALSHA", "0" * 40, 0),
        "wrong-type": ("XLEN", "s"),
        "no-cluster": ("CLUSTER INFO",),
    }
    if row == "transaction-refused":
        return redis.pipeline().incr("n").execute()  # type: ignore[attr-defined, no-any-return]
    if row in WAKE_UPS:
        return redis.xreadgroup("g", "c", {"s": ">"}, block=5000)
    return redis.execute_command(*commands.get(row, ("XADD", "s", "2-0", "n", 2)))


# Rows that a client meets when it connects.
AT_LOGIN = frozenset({"no-protocol", "no-database", *GREETINGS})
# Rows in which nothing is left to be fine afterwards.
NEVER_FINE = frozenset({"no-script", "cross-slot", "no-cluster", "protocol-error", *WAKE_UPS})
# Rows that end the wait or the connection.
ONCE = frozenset({"protocol-error", *WAKE_UPS})


@pytest.mark.parametrize("row", sorted(SPOKEN - AT_LOGIN))
async def test_each_row_can_be_provoked_and_passes(
    row: str, autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    if row in WAKE_UPS:
        await redis.xreadgroup("g", "c", {"s": ">"})
    server.answer(row, commands=["XADD"] if row == "unknown-command" else None)
    assert await row_of(provoked(redis, row)) == row
    if row not in ONCE:
        assert await row_of(provoked(redis, row)) == row
    server.heal()
    if row not in NEVER_FINE:
        assert await row_of(provoked(redis, row)) == "fine"


def test_every_row_that_a_server_can_send_is_there() -> None:
    assert {row.name for row in REPLIES} - SPOKEN == {"silence", "disconnected", "refused-by-link", "nothing-new"}


@pytest.mark.parametrize("row", ["silence", "disconnected", "nothing-new", "no such row"])
async def test_what_no_server_sends_cannot_be_ordered(row: str, server: InProcessRedis) -> None:
    with pytest.raises(ValueError, match=r"no server sends|no row"):
        server.answer(row)


REFUSED = {
    # state: what it lets pass of these
    "out-of-memory": {"PING", "GET", "XREADGROUP", "XACK", "XTRIM", "XDEL", "XRANGE", "DEL"},
    "disk-error": {"GET", "XRANGE"},
    "no-replicas": {"PING", "GET", "XRANGE"},
    "read-only": {"PING", "GET", "XRANGE"},
    "loading": set(),
    "busy-script": set(),
    "master-down": set(),
    "cluster-down": {"PING"},
    "cluster-read-only": {"PING", "GET", "XRANGE"},
    "no-permission": set(),
    "credentials": set(),
}


@pytest.mark.parametrize("row", REFUSED)
async def test_a_state_lets_pass_what_a_real_server_does(
    row: str, autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    commands: dict[str, tuple[Any, ...]] = {
        "PING": (),
        "GET": ("k",),
        "SET": ("k", "v"),
        "DEL": ("k",),
        "XADD": ("s", "9-0", "n", 9),
        "XGROUP CREATE": ("s", "h", "0"),
        "XREADGROUP": ("GROUP", "g", "c", "STREAMS", "s", ">"),
        "XACK": ("s", "g", "1-0"),
        "XTRIM": ("s", "MAXLEN", 10),
        "XDEL": ("s", "8-0"),
        "XRANGE": ("s", "-", "+"),
    }
    server.answer(row)
    rows = {name: await row_of(redis.execute_command(name, *words)) for name, words in commands.items()}
    assert {name for name, seen in rows.items() if seen == "fine"} == REFUSED[row]
    assert set(rows.values()) <= {"fine", row}


async def test_scripts_are_let_in_and_stopped_where_they_write(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    server.answer("out-of-memory")
    assert await redis.eval("return redis.call('XLEN', KEYS[1])", 1, "s") == 1
    assert await row_of(redis.eval("return redis.call('SET', KEYS[1], 'v')", 1, "k")) == "out-of-memory"


async def test_a_transaction_falls_with_its_command(
    autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    server.answer("out-of-memory")
    with pytest.raises(exceptions.RedisError) as caught:
        await redis.pipeline().set("k", "v").execute()  # type: ignore[attr-defined]
    assert classify(caught.value).name == "out-of-memory"
    server.heal()
    assert await redis.exists("k") == 0


async def test_a_state_passes_by_itself(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """The link sends again what says that nothing ran and that it passes."""
    server.answer("loading", until=trio.current_time() + 2)
    async with Redis(RedisOptions(), connect=server.connect) as redis:
        assert await redis.incr("n") == 1
    assert trio.current_time() >= 2


async def test_only_some_commands(autojump_clock: MockClock, server: InProcessRedis, redis: Redis) -> None:
    server.answer("no-permission", commands=["XADD", "PUBLISH"])
    with pytest.raises(exceptions.NoPermissionError) as caught:
        await redis.xadd("s", {"n": 2})
    assert reply_text(caught.value) == "NOPERM User default has no permissions to run the 'xadd' command"
    assert await row_of(redis.publish("c", "m")) == "no-permission"
    assert await redis.xlen("s") == 1


@pytest.mark.parametrize("row", sorted(AT_LOGIN))
async def test_new_connections_are_told(
    row: str, autojump_clock: MockClock, server: InProcessRedis, redis: Redis
) -> None:
    server.answer(row)
    database = 1 if row == "no-database" else 0
    async with Redis(RedisOptions(retry_for=0, db=database), connect=server.connect) as another:
        assert await row_of(another.ping()) == row
        server.heal()
        assert await row_of(another.ping()) == "fine"
    assert await row_of(redis.ping()) == "fine"


async def test_logins(autojump_clock: MockClock) -> None:
    async with InProcessRedis(users={"default": "secret", "reader": "pages"}) as server:

        async def seen(**login: Any) -> str:
            async with Redis(RedisOptions(retry_for=0, **login), connect=server.connect) as redis:
                return await row_of(redis.set("k", "v"))

        assert await seen(password="secret") == await seen(username="reader", password="pages") == "fine"
        assert await seen(password="secret", protocol=2) == "fine"
        assert await seen() == await seen(protocol=2) == await seen(password="wrong") == "credentials"
        assert await seen(username="nobody", password="secret", protocol=2) == "credentials"
