"""The in-process Redis: the same answers as a real server, and its faults, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import pytest
from redis import exceptions

from penstock.runtime.redis import (
    Redis,
    RedisOptions,
    classify,
)
from penstock.runtime.testing.redis import InProcessRedis

if TYPE_CHECKING:
    from conftest import ValkeyServer

Step = Callable[[Redis], Awaitable[Any]]


def command(*words: Any) -> Step:
    return lambda redis: redis.execute_command(*words)


def add(key: str, number: int, *options: Any) -> Step:
    return command("XADD", key, *options, f"{number}-0", "n", number)


FIVE = [add("s", number) for number in range(1, 6)]
GROUP = [*FIVE, command("XGROUP", "CREATE", "s", "g", "0")]
READ = command("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", "s", ">")

SCENARIOS: dict[str, list[Step]] = {
    "strings and keys": [
        command("SET", "k", "v", "EX", 100),
        command("SET", "k", "w", "NX"),
        command("GET", "k"),
        command("TTL", "k"),
        command("INCR", "k"),
        command("INCRBY", "n", 5),
        command("MGET", "k", "absent", "n"),
        command("TYPE", "k"),
        command("EXISTS", "k", "absent"),
        command("DEL", "k", "absent"),
    ],
    "hashes, lists, sets, sorted sets": [
        command("HSET", "h", "a", 1, "b", 2),
        command("HGETALL", "h"),
        command("HINCRBY", "h", "a", 2),
        command("HMGET", "h", "a", "absent"),
        command("RPUSH", "l", 1, 2, 3),
        command("LRANGE", "l", 0, -1),
        command("LPOP", "l"),
        command("BLPOP", "l", "0.01"),
        command("BLPOP", "absent", "0.01"),
        command("SADD", "set", "x"),
        command("SISMEMBER", "set", "x"),
        command("ZADD", "z", 1, "a", 2.5, "b"),
        command("ZRANGE", "z", 0, -1, "WITHSCORES"),
        command("ZRANGEBYSCORE", "z", "-inf", 2),
        command("ZREMRANGEBYSCORE", "z", "-inf", 1),
    ],
    "adding and trimming": [
        *FIVE,
        add("s", 3),
        add("absent", 1, "NOMKSTREAM"),
        command("XLEN", "s"),
        command("XRANGE", "s", "-", "+", "COUNT", 2),
        command("XRANGE", "s", "(2-0", "+"),
        command("XREVRANGE", "s", "+", "-", "COUNT", 1),
        command("XDEL", "s", "2-0", "9-0"),
        command("XTRIM", "s", "MINID", "4"),
        command("XTRIM", "s", "MINID", "~", "4"),
        command("XTRIM", "s", "MAXLEN", 0),
        command("XLEN", "s"),
        command("EXISTS", "s"),
        add("s", 6, "MAXLEN", 1),
        command("XINFO", "STREAM", "s"),
    ],
    "groups": [
        *GROUP,
        command("XGROUP", "CREATE", "s", "g", "0"),
        command("XGROUP", "CREATE", "absent", "g", "0"),
        command("XGROUP", "CREATE", "made", "g", "$", "MKSTREAM"),
        command("XGROUP", "CREATECONSUMER", "s", "g", "other"),
        READ,
        command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", "0"),
        command("XACK", "s", "g", "1-0", "9-0"),
        command("XACK", "absent", "g", "1-0"),
        command("XPENDING", "s", "g"),
        lambda redis: redis.xpending_range("s", "g", "-", "+", 10),
        lambda redis: redis.xpending_range("s", "g", "-", "+", 10, "other"),
        READ,
        READ,
        READ,
        command("XINFO", "GROUPS", "s"),
        command("XGROUP", "SETID", "s", "g", "0"),
        command("XGROUP", "DELCONSUMER", "s", "g", "c"),
        command("XGROUP", "DESTROY", "s", "g"),
        READ,
        command("XREADGROUP", "GROUP", "g", "c", "COUNT", 2, "STREAMS", "absent", ">"),
        command("XREADGROUP", "GROUP", "absent", "c", "STREAMS", "made", ">"),
        command("XPENDING", "s", "g"),
    ],
    "no acknowledgement wanted": [
        *GROUP,
        command("XREADGROUP", "GROUP", "g", "c", "NOACK", "STREAMS", "s", ">"),
        command("XPENDING", "s", "g"),
    ],
    "claiming": [
        *GROUP,
        READ,
        command("XCLAIM", "s", "g", "d", 0, "1-0"),
        command("XCLAIM", "s", "g", "d", 1_000_000, "2-0"),
        lambda redis: redis.xclaim("s", "g", "d", 0, ["2-0"], justid=True, retrycount=7),
        lambda redis: redis.xpending_range("s", "g", "-", "+", 10),
        command("XPENDING", "s", "g"),
        command("XAUTOCLAIM", "s", "g", "e", 0, "0", "COUNT", 1),
        lambda redis: redis.xautoclaim("s", "g", "e", 0, justid=True),
        command("XDEL", "s", "1-0"),
        command("XAUTOCLAIM", "s", "g", "e", 0, "0"),
        command("XAUTOCLAIM", "s", "g", "e", 1_000_000, "0"),
        command("XPENDING", "s", "g"),
    ],
    "trimmed behind the group's back": [
        *GROUP,
        READ,
        command("XTRIM", "s", "MAXLEN", 1),
        command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "s", "0"),
        command("XINFO", "GROUPS", "s"),
        READ,
        command("XINFO", "GROUPS", "s"),
    ],
    "blocking reads": [
        command("XGROUP", "CREATE", "s", "g", "$", "MKSTREAM"),
        command("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "BLOCK", 20, "STREAMS", "s", ">"),
        command("XREADGROUP", "GROUP", "g", "c", "BLOCK", 20, "STREAMS", "s", ">"),
        add("s", 1),
        command("XREADGROUP", "GROUP", "g", "c", "COUNT", 10, "BLOCK", 20, "STREAMS", "s", ">"),
        command("XREADGROUP", "GROUP", "g", "c", "BLOCK", 20, "STREAMS", "s", ">"),
        command("XREADGROUP", "GROUP", "g", "c", "BLOCK", 20, "STREAMS", "absent", ">"),
        command("XREAD", "BLOCK", 20, "STREAMS", "s", "0"),
        command("XREAD", "BLOCK", 20, "STREAMS", "s", "$"),
        command("XREAD", "STREAMS", "s", "9"),
    ],
    "scripts": [
        command("EVAL", "return redis.call('INCRBY', KEYS[1], ARGV[1])", 1, "n", 3),
        command("EVAL", "return {1, 'two', false, {3}}", 0),
        command("EVAL", "return redis.status_reply('FINE')", 0),
        command("EVAL", "return redis.error_reply('MINE it is')", 0),
        command("EVALSHA", "0" * 40, 0),
        command("SCRIPT", "LOAD", "return 1"),
        command("EVAL", "return #redis.call('XRANGE', KEYS[1], '-', '+')", 1, "s"),
    ],
    "errors": [
        command("SET", "k", "v"),
        add("k", 1),
        command("XREADGROUP", "GROUP", "g", "c", "STREAMS", "k", ">"),
        command("XACKDEL", "s", "g"),
        command("XADD", "s", "1-0", "odd"),
        command("CLUSTER", "INFO"),
        command("CONFIG", "GET", "maxmemory-policy"),
    ],
}


async def transcript(redis: Redis, steps: list[Step]) -> list[Any]:
    """The reply of each step; an error as its row of the table and its first word."""
    replies = []
    for step in steps:
        try:
            replies.append(await step(redis))
        except exceptions.RedisError as error:
            replies.append((classify(error).name, str(getattr(error, "reply_text", "")).split(" ")[0]))
    return [comparable(reply) for reply in replies]


def comparable(reply: Any) -> Any:
    """Without what differs between two runs of the same real server (idle times) or between versions (node counts)."""
    if isinstance(reply, dict):
        volatile = {"radix-tree-keys", "radix-tree-nodes", "time_since_delivered", "idle", "inactive"}
        return {text(key): comparable(value) for key, value in reply.items() if text(key) not in volatile}
    if isinstance(reply, (list, tuple)):
        return [comparable(each) for each in reply]
    return reply


def text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)


@pytest.mark.parametrize("name", SCENARIOS)
async def test_it_answers_as_a_real_server_does(name: str, valkey: ValkeyServer) -> None:
    """The same steps on both, through the same driver, give the same transcript."""
    async with Redis(valkey.options) as redis:
        real = await transcript(redis, SCENARIOS[name])
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as redis:
        assert await transcript(redis, SCENARIOS[name]) == real
