"""The script by which owners of partitions read, held against the Redis in memory, Valkey and Redis 7.0 alike."""

from __future__ import annotations

from typing import Any

import pytest
import redis.exceptions

from penstock.actors.ordered_reading import READ
from penstock.runtime.redis import Redis
from penstock.runtime.redis.script import Script

STREAM, GROUP = "{orders:0}", "payments"


async def add(client: Redis, *names: str) -> list[str]:
    return [(await client.xadd(STREAM, {"name": name})).decode() for name in names]


async def read(client: Redis, epoch: int, after: str, seen: str = "", count: int = 10) -> tuple[str, list[str], str]:
    """The status, the names (None: trimmed), and the last id."""
    reply: Any = await Script(client, READ)([STREAM], (GROUP, "payments@", epoch, count, after, seen))
    names = [fields[1].decode() if fields else None for _, fields in reply[2]]
    return reply[0].decode(), names, reply[3].decode()


async def consumers(client: Redis) -> dict[str, int]:
    return {row["name"].decode(): row["pending"] for row in await client.xinfo_consumers(STREAM, GROUP)}


@pytest.fixture
async def client(any_redis: Redis) -> Redis:
    await any_redis.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    return any_redis


async def test_the_owner_reads_its_history_and_then_what_is_new(client: Redis) -> None:
    ids = await add(client, "a", "b", "c")
    assert await read(client, 1, "0") == ("read", [], "0-0")
    assert await read(client, 1, ">", "0-0", count=2) == ("read", ["a", "b"], ids[1])
    assert await read(client, 1, ">", ids[1]) == ("read", ["c"], ids[2])
    assert await read(client, 1, ">", ids[2]) == ("read", [], ids[2])
    assert await read(client, 1, "0") == ("read", ["a", "b", "c"], ids[2])


async def test_nothing_new_is_read_before_an_answer_that_was_lost(client: Redis) -> None:
    ids = await add(client, "a", "b")
    await read(client, 1, ">", "0-0", count=1)  # and its answer does not come
    assert await read(client, 1, ">", "0-0") == ("behind", [], ids[0])
    assert await read(client, 1, "0") == ("read", ["a"], ids[0])
    assert await read(client, 1, ">", ids[0]) == ("read", ["b"], ids[1])


async def test_the_next_owner_reads_first_what_the_one_before_had(client: Redis) -> None:
    ids = await add(client, "a", "b", "c")
    await read(client, 1, ">", "0-0", count=2)
    await client.xack(STREAM, GROUP, ids[0])
    assert await read(client, 2, "0") == ("behind", [], ids[1])
    assert await read(client, 2, "0") == ("read", ["b"], ids[1])
    assert await read(client, 2, ">", ids[1]) == ("read", ["c"], ids[2])
    assert await consumers(client) == {"payments@2": 2}


async def test_who_has_been_replaced_reads_nothing(client: Redis) -> None:
    await add(client, "a", "b")
    await read(client, 9, ">", "0-0", count=1)
    await read(client, 10, "0")
    status, names, _ = await read(client, 9, ">", "0-0")
    assert (status, names) == ("replaced", [])
    assert await consumers(client) == {"payments@10": 1}, "10 is more than 9, which text would not know"


async def test_what_was_read_behind_the_owners_back_is_taken_back_before_anything_newer(client: Redis) -> None:
    """As long as the owner has read nothing, nothing tells the one before that it is not the owner any more."""
    ids = await add(client, "a", "b")
    assert (await read(client, 2, "0"))[0] == "read"
    await client.xreadgroup(GROUP, "payments@1", {STREAM: ">"}, count=1)
    assert await read(client, 2, ">", "0-0") == ("behind", [], ids[0])
    assert await read(client, 2, "0") == ("read", ["a"], ids[0])
    assert await read(client, 2, ">", ids[0]) == ("read", ["b"], ids[1])


async def test_entries_that_were_trimmed_are_told_until_they_are_acknowledged(client: Redis) -> None:
    ids = await add(client, "a", "b")
    await read(client, 1, ">", "0-0")
    await client.xdel(STREAM, ids[0])
    reply: Any = await Script(client, READ)([STREAM], (GROUP, "payments@", 2, 10, "0", ""))
    assert (reply[0], reply[1]) == (b"behind", [ids[0].encode()])
    assert await consumers(client) == {"payments@1": 1, "payments@2": 1}
    await client.xack(STREAM, GROUP, ids[0])
    assert await read(client, 2, "0") == ("read", ["b"], ids[1])
    assert await consumers(client) == {"payments@2": 1}


async def test_what_was_trimmed_hides_nothing_that_stands_behind_it(client: Redis) -> None:
    """However much it is: an older entry is never handled after a newer one."""
    async with client.pipeline(transaction=False) as pipe:
        for number in range(1300):
            pipe.xadd(STREAM, {"name": str(number)})
        ids = [each.decode() for each in await pipe.execute()]
    await read(client, 1, ">", "0-0", count=1300)
    await client.xtrim(STREAM, minid=ids[1100], approximate=False)
    await client.xdel(STREAM, *ids[1101:1151])
    assert await read(client, 2, "0") == ("behind", [], ids[-1])
    assert await consumers(client) == {"payments@1": 1150, "payments@2": 150}
    names = [str(number) for number in (1100, *range(1151, 1300))]
    assert await read(client, 2, "0", count=1000) == ("read", names, ids[-1])


async def test_consumers_of_others_are_left_alone(client: Redis) -> None:
    await add(client, "a", "b")
    for consumer in ("payments-1:instance", "payments@x", "payments@"):
        await client.xgroup_createconsumer(STREAM, GROUP, consumer)
    await client.xreadgroup(GROUP, "payments-1:instance", {STREAM: ">"}, count=1)
    status, names, _ = await read(client, 3, "0")
    assert (status, names) == ("read", [])
    found = await consumers(client)
    found.pop("payments@3", None)
    assert found == {"payments-1:instance": 1, "payments@x": 0, "payments@": 0}


async def test_a_group_that_is_lost_is_told_as_such(any_redis: Redis) -> None:
    for _ in range(2):
        with pytest.raises(redis.exceptions.ResponseError, match=r"^NOGROUP|NOGROUP No such key"):
            await read(any_redis, 1, "0")
        await any_redis.xadd(STREAM, {"name": "a"})
