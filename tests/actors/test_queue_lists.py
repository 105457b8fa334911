"""The lists of a work queue, on real servers and in process: a job is in exactly one of them, also on a full server."""

from __future__ import annotations

from typing import Any

import pytest
import redis.exceptions
import trio
from attrs import evolve

from penstock.actors.queue_lists import FINISH_BYTES, QueueLists, Taken, digest_of
from penstock.runtime.redis import Redis, RedisOptions


async def keys_of(redis: Redis) -> set[bytes]:
    return set(await redis.keys("*"))


async def test_a_job_is_moved_taken_and_finished(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    assert await lists.take("a", 5) == Taken((), ())
    assert [await lists.add(each) for each in (b"1", b"2", b"3", b"2")] == [1, 2, 3, 4]
    assert await lists.take("a", 2) == Taken((), (b"1", b"2"))
    async with any_redis.dedicated() as connection:
        own = QueueLists(connection, "q")
        assert await own.wait("a", 0.1) == b"3"
        assert await own.take("a", 5) == Taken((), (b"2",))
        assert await own.wait("a", 0.1) is None
    assert await lists.held("a") == [b"1", b"2", b"3", b"2"]
    assert await lists.beat("a") == set(map(digest_of, (b"1", b"2", b"3")))
    await lists.finish("a", [b"2", b"1", b"not there"])
    assert await lists.held("a") == [b"3"]
    await lists.finish("a", [b"3"])
    assert await keys_of(any_redis) == {b"{q}:consumers"}


async def test_large_jobs_are_finished_by_commands_that_a_server_takes(
    any_redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    run = any_redis.execute_command

    async def execute(*words: Any, **options: Any) -> Any:
        sent.append(sum(len(word) for word in words if isinstance(word, bytes)))
        return await run(*words, **options)

    lists = QueueLists(any_redis, "q")
    jobs = [str(number).encode() * size for number, size in enumerate([1_500_000] * 5 + [FINISH_BYTES + 1, 1, 1])]
    for each in jobs:
        await lists.add(each)
    assert await lists.take("a", 10) == Taken((), tuple(jobs))
    monkeypatch.setattr(any_redis, "execute_command", execute)
    await lists.finish("a", jobs)
    assert max(sent) == FINISH_BYTES + 1, "a single one that is larger"
    assert await lists.held("a") == []


async def test_what_a_silent_consumer_has_is_returned_before_all_others_in_its_order(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    for each in (b"1", b"2", b"3", b"4"):
        await lists.add(each)
    await lists.take("dead", 3)
    assert await lists.silent(60) == []
    assert await lists.give_back("dead", 60.0) == 0
    assert await lists.held("dead") == [b"1", b"2", b"3"]
    await trio.sleep(0.01)
    assert await lists.silent(0.0) == ["dead"]
    assert await lists.give_back("dead", 0.0) == 3
    assert await lists.take("live", 2) == Taken((b"1", b"2"), ())
    assert await lists.take("live", 2) == Taken((b"3",), (b"4",))
    assert await lists.give_back("never seen", 60.0) == 0


async def test_a_clock_that_is_set_back_keeps_nothing_with_who_is_gone(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    await lists.add(b"1")
    await lists.take("dead", 1)
    now = (await any_redis.zscore(lists.consumers, "dead")) or 0.0
    await any_redis.zadd(lists.consumers, {"dead": now + 3_600_000})
    assert await lists.silent(60.0) == []
    with trio.fail_after(10):
        while await lists.silent(0.001) != ["dead"]:
            await trio.sleep(0.005)
    assert await lists.give_back("dead", 0.001) == 1


async def test_a_silent_consumer_is_forgotten_after_a_day_and_not_while_it_holds_something(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    await lists.add(b"1")
    await lists.take("dead", 1)
    now = (await any_redis.zscore(lists.consumers, "dead")) or 0.0
    await any_redis.zadd(lists.consumers, {"dead": now - 23 * 3_600_000})
    assert await lists.give_back("dead", 60.0) == 1
    assert await lists.give_back("dead", 60.0) == 0
    assert await any_redis.zscore(lists.consumers, "dead") is not None, "it may still be given something"
    await any_redis.zadd(lists.consumers, {"dead": now - 25 * 3_600_000})
    assert await lists.give_back("dead", 60.0) == 0
    assert await any_redis.zscore(lists.consumers, "dead") is None


async def test_who_leaves_gives_back_at_once_and_what_comes_later_is_found(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    for each in (b"1", b"2", b"3"):
        await lists.add(each)
    await lists.take("a", 2)
    assert await lists.leave("a", 60.0) == 2
    assert await any_redis.lrange(lists.waiting, 0, -1) == [b"3", b"2", b"1"]
    # A server that has not noticed the end of its connection serves it.
    await any_redis.lmove(lists.waiting, lists.taken("a"), "RIGHT", "LEFT")
    assert await lists.silent(60.0) == ["a"]
    assert await lists.give_back("a", 60.0) == 1
    assert await lists.take("b", 3) == Taken((b"1",), (b"2", b"3"))


async def test_how_it_stands(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    empty = await lists.view(60.0)
    assert (empty.waiting, empty.returned, empty.taken, empty.oldest) == (0, 0, (), None)
    await lists.add(b'{"timestamp": "2026-01-01T00:00:00+00:00"}')
    await lists.add(b"no job")
    await lists.take("gone", 0)
    await lists.leave("gone", 60.0)
    await lists.take("a", 0)
    view = await lists.view(60.0)
    assert (view.name, view.waiting, view.returned) == ("q", 2, 0)
    assert [(each.consumer, each.jobs) for each in view.taken] == [("a", 0)]
    assert view.oldest is not None
    assert view.oldest.year == 2026
    await lists.take("a", 1)
    view = await lists.view(60.0)
    assert (view.waiting, [each.jobs for each in view.taken], view.oldest) == (1, [1], None)
    assert await lists.count() == 2


async def test_a_full_server_takes_no_job_and_gives_out_what_it_has(
    any_redis: Redis, redis_kind: RedisOptions | None
) -> None:
    if redis_kind is None:
        pytest.skip("the server in process is made full otherwise: test_queue.py")
    lists = QueueLists(any_redis, "q")
    for each in (b"1", b"2", b"3", b"4"):
        await lists.add(each)
    await any_redis.config_set("maxmemory", "1")
    try:
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            await lists.add(b"5")
        assert await lists.take("a", 2) == Taken((), (b"1", b"2"))
        async with any_redis.dedicated() as connection:
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                await QueueLists(connection, "q").wait("a", 0.1)
        assert len(await lists.beat("a")) == 2
        await lists.finish("a", [b"1"])
        await trio.sleep(0.01)
        assert await lists.give_back("a", 0.0) == 1
        assert await lists.take("b", 1) == Taken((b"2",), ())
        assert await lists.leave("b", 60.0) == 1
        assert (await lists.view(60.0)).waiting == 3
    finally:
        await any_redis.config_set("maxmemory", "0")


async def test_the_rights_that_the_how_to_names_are_enough(any_redis: Redis, redis_kind: RedisOptions | None) -> None:
    if redis_kind is None:
        pytest.skip("there are no rights in process")
    rights = ("~{q}:*", "+@list", "+@sortedset", "+@scripting", "+time", "+@connection")
    await any_redis.execute_command("ACL", "SETUSER", "worker", "reset", "on", ">secret", *rights)
    async with Redis(evolve(redis_kind, username="worker", password="secret")) as worker, worker.dedicated() as own:
        lists = QueueLists(worker, "q")
        await lists.add(b"1")
        await lists.take("a", 1)
        assert await QueueLists(own, "q").wait("a", 0.1) is None
        assert await lists.held("a") == [b"1"]
        await lists.beat("a")
        assert await lists.silent(60.0) == []
        await lists.finish("a", [b"2"])
        assert await lists.leave("a", 60.0) == 1
        assert await lists.give_back("a", 60.0) == 0
        assert (await lists.view(60.0)).waiting == await lists.count() == 1


async def test_a_key_of_another_type_loses_no_job(any_redis: Redis) -> None:
    lists = QueueLists(any_redis, "q")
    await lists.add(b"1")
    await any_redis.set(lists.taken("a"), "somebody else's")
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        await lists.take("a", 1)
    assert await lists.take("b", 1) == Taken((), (b"1",))
