"""The reply table: each row by its text, and by a real server that is made to refuse."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
from redis import exceptions

from penstock.runtime.redis import (
    REPLIES,
    UNCLASSIFIED,
    CommandRefused,
    Kind,
    NotSent,
    OutcomeUnknown,
    Redis,
    RedisOptions,
    RedisStalled,
    RedisUnavailable,
    classify,
)
from penstock.runtime.redis._compat import reply_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from conftest import ValkeyServer

TEXTS = [
    ("LOADING Redis is loading the dataset in memory", "loading"),
    ("CLUSTERDOWN Hash slot not served", "slot-not-served"),
    ("CLUSTERDOWN The cluster is down and only accepts read commands", "cluster-read-only"),
    ("CLUSTERDOWN The cluster is down", "cluster-down"),
    ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "master-down"),
    ("READONLY You can't write against a read only replica.", "read-only"),
    ("MOVED 8340 10.0.0.1:7001", "moved"),
    ("MOVED 8340 :7001", "moved"),
    ("ASK 8340 10.0.0.1:7001", "ask"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "try-again"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "cross-slot"),
    ("NOGROUP No such key 's' or consumer group 'g' in XREADGROUP with GROUP option", "no-group"),
    ("NOGROUP No such consumer group 'g' for key name 's'", "no-group"),
    ("NOGROUP the consumer group this client was blocked on no longer exists", "group-destroyed"),
    (
        "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use MKSTREAM",
        "no-key",
    ),
    ("UNBLOCKED the stream key no longer exists", "unblocked-key-gone"),
    (
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "unblocked-failover",
    ),
    ("UNBLOCKED client unblocked via CLIENT UNBLOCK", "unblocked-by-client"),
    ("BUSYGROUP Consumer Group name already exists", "busy-group"),
    ("OOM command not allowed when used memory > 'maxmemory'.", "out-of-memory"),
    (
        "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
        "disk-error",
    ),
    ("MISCONF Errors writing to the AOF file: No space left on device", "disk-error"),
    ("NOREPLICAS Not enough good replicas to write.", "no-replicas"),
    ("NOAUTH Authentication required.", "credentials"),
    ("WRONGPASS invalid username-password pair or user is disabled.", "credentials"),
    ("ERR invalid password", "credentials"),
    ("NOPERM User default has no permissions to run the 'xadd' command", "no-permission"),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy-script"),
    ("NOSCRIPT No matching script. Please use EVAL.", "no-script"),
    ("EXECABORT Transaction discarded because of previous errors.", "transaction-refused"),
    ("EXECABORT Transaction discarded because of: OOM command not allowed", "out-of-memory"),
    ("EXECABORT Transaction discarded because of: wrong number of arguments", "transaction-refused"),
    ("WRONGTYPE Operation against a key holding the wrong kind of value", "wrong-type"),
    ("ERR max number of clients reached", "too-many-clients"),
    ("ERR unknown command 'XACKDEL', with args beginning with: 's' 'g'", "unknown-command"),
    ("ERR syntax error", "unknown-command"),
    ("ERR The ID specified in XADD is equal or smaller than the target stream top item", "id-too-small"),
    ("ERR value is not an integer or out of range", "unclassified"),
]


@pytest.mark.parametrize(("text", "name"), TEXTS)
def test_an_error_line_finds_its_row(text: str, name: str) -> None:
    assert classify(reply_error(text)).name == name


def test_every_row_of_the_table_is_held_by_a_case() -> None:
    without_line = {row.name for row in REPLIES if row.pattern is None}
    assert {row.name for row in REPLIES} - without_line == {name for _, name in TEXTS} - {"unclassified"}
    assert without_line == {"silence", "disconnected", "refused-by-link", "nothing-new"}
    assert len({row.name for row in REPLIES}) == len(REPLIES)


def test_an_error_of_redis_py_without_our_mark_is_found_too() -> None:
    """Only the code and the shortened message are left there."""
    assert classify(exceptions.ReadOnlyError("You can't write", status_code="READONLY")).name == "read-only"
    assert classify(exceptions.ConnectionError("reset by peer")).name == "disconnected"
    assert classify(exceptions.TimeoutError("too slow")).name == "silence"


def test_what_happened_to_the_connection_is_classified_by_its_cause() -> None:
    address = "redis://127.0.0.1:6379/0"

    def caused(error: RedisUnavailable, cause: BaseException) -> RedisUnavailable:
        error.__cause__ = cause
        return error

    refused = caused(RedisUnavailable(address, "cannot connect"), ConnectionRefusedError())
    slow = caused(RedisUnavailable(address, "no connection within 5 s"), trio.TooSlowError())
    login = caused(RedisUnavailable(address, "cannot connect"), reply_error("WRONGPASS invalid username-password pair"))
    stalled = RedisStalled(address, "no byte for 5 s")
    assert classify(refused).name == classify(caused(NotSent(address, ""), refused)).name == "disconnected"
    assert classify(slow).name == classify(caused(NotSent(address, ""), slow)).name == "silence"
    assert classify(login).name == classify(caused(NotSent(address, ""), login)).name == "credentials"
    assert classify(stalled).name == classify(caused(OutcomeUnknown(address, ""), stalled)).name == "silence"
    assert classify(OutcomeUnknown(address, "closed")).name == "disconnected"
    assert classify(CommandRefused("SELECT")).kind is Kind.BUG
    assert classify(ValueError()) is classify(TimeoutError()) is UNCLASSIFIED


async def test_out_of_memory_refuses_writes_and_allows_acknowledging(redis: Redis) -> None:
    entry_id = await redis.xadd("s", {"a": 1})
    await redis.xgroup_create("s", "g", "0")
    async with setting(redis, "maxmemory", "1"):
        assert await row_of(redis.xadd("s", {"a": 1})) == "out-of-memory"
        assert await row_of(redis.pipeline().xadd("s", {"a": 1}).execute()) == "out-of-memory"  # type: ignore[attr-defined]
        assert len(await redis.xreadgroup("g", "c", {"s": ">"})) == 1
        assert await redis.xack("s", "g", entry_id) == 1


async def test_too_few_replicas_refuse_reading_in_a_group_too(redis: Redis) -> None:
    await redis.xadd("s", {"a": 1})
    await redis.xgroup_create("s", "g", "0")
    async with setting(redis, "min-replicas-to-write", "1"):
        assert await row_of(redis.xadd("s", {"a": 1})) == "no-replicas"
        assert await row_of(redis.xreadgroup("g", "c", {"s": ">"})) == "no-replicas"


async def test_a_demoted_master_is_read_only(redis: Redis) -> None:
    await redis.replicaof("127.0.0.1", "1")
    try:
        assert await row_of(redis.xadd("s", {"a": 1})) == "read-only"
        async with setting(redis, "replica-serve-stale-data", "no"):
            assert await row_of(redis.get("k")) == "master-down"
    finally:
        await redis.replicaof("NO", "ONE")


async def test_a_demotion_wakes_a_blocked_reader_with_unblocked(redis: Redis) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    try:
        reply = await reply_of_a_blocked_read(redis, lambda: redis.replicaof("127.0.0.1", "1"))
    finally:
        await redis.replicaof("NO", "ONE")
    # 9.1 closes the connection with, or instead of, the reply.
    assert reply in {"unblocked-failover", "disconnected"}


async def test_a_disk_error_stops_all_writes(make_valkey: Callable[..., ValkeyServer]) -> None:
    server = make_valkey()
    async with Redis(server.options) as redis:
        await redis.config_set("save", "3600 1")
        # A directory in the way of the snapshot's file: also root cannot write there.
        (server.path.parent / "dump.rdb").mkdir()
        await redis.set("k", "v")
        await redis.bgsave()
        while (await redis.info("persistence"))["rdb_last_bgsave_status"] == "ok":
            pass
        assert await row_of(redis.xadd("s", {"a": 1})) == "disk-error"
        assert await redis.get("k") == b"v"


async def test_passwords_and_rights(redis: Redis, valkey: ValkeyServer) -> None:
    """A wrong login is a matter of credentials, an ACL one of permission; no message shows the password."""
    await redis.acl_setuser("limited", enabled=True, passwords=["+secret-1"], categories=["+@read"], keys=["*"])
    try:
        good = RedisOptions.from_url(valkey.url, username="limited", password="secret-1")
        async with Redis(good) as limited:
            assert await row_of(limited.xadd("s", {"a": 1})) == "no-permission"
        bad = RedisOptions.from_url(valkey.url, username="limited", password="secret-2")
        troubles: list[Exception] = []
        async with Redis(bad, on_trouble=troubles.append) as stranger:
            with pytest.raises(NotSent) as caught:
                await stranger.ping()
        assert classify(caught.value).name == classify(troubles[0]).name == "credentials"
        assert "secret" not in str(caught.value) + repr(caught.value) + repr(bad)
    finally:
        await redis.acl_deluser("limited")
    async with setting(redis, "requirepass", "secret-3"), Redis(valkey.options) as stranger:
        assert await row_of(stranger.ping()) == "credentials"


async def test_missing_groups_and_streams(redis: Redis) -> None:
    assert await row_of(redis.xreadgroup("g", "c", {"absent": ">"})) == "no-group"
    assert await row_of(redis.xgroup_create("absent", "g", "0")) == "no-key"
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    assert await row_of(redis.xgroup_create("s", "g", "0")) == "busy-group"
    assert await row_of(redis.xreadgroup("other", "c", {"s": ">"})) == "no-group"


@pytest.mark.parametrize("how", ["destroy", "delete", "flush"])
async def test_a_blocked_reader_learns_that_its_group_is_gone(redis: Redis, how: str) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    ends: dict[str, Callable[[], Awaitable[Any]]] = {
        "destroy": lambda: redis.xgroup_destroy("s", "g"),
        "delete": lambda: redis.delete("s"),
        "flush": redis.flushall,
    }
    assert classify_name_is_repair(await reply_of_a_blocked_read(redis, ends[how]))


async def test_client_unblock_wakes_a_reader_with_an_error_that_is_normal(redis: Redis) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    async with redis.dedicated() as connection:
        number = await connection.client_id()
        rows: list[str] = []

        async def read() -> None:
            rows.append(await row_of(connection.xreadgroup("g", "c", {"s": ">"}, block=5000)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while not await redis.client_unblock(number, error=True):
                pass
        assert rows == ["unblocked-by-client"]
        assert connection.connected


async def test_a_long_script_makes_the_server_busy(valkey: ValkeyServer) -> None:
    """The script's own client waits; another one is refused, kills the script, and both go on."""
    async with Redis(valkey.options) as redis, Redis(valkey.options) as other, trio.open_nursery() as nursery:
        async with setting(other, "busy-reply-threshold", "20"):
            rows: list[str] = []

            async def run() -> None:
                rows.append(await row_of(redis.eval("while true do end", 0)))

            nursery.start_soon(run)
            while (row := await row_of(other.ping())) == "fine":
                pass
            assert row == "busy-script"
            await other.script_kill()
            while await row_of(other.ping()) != "fine":
                pass
        assert rows == ["unclassified"]  # "ERR Error running script: killed": the caller's business


async def test_wrong_type_unknown_command_and_old_ids(redis: Redis) -> None:
    await redis.set("k", "v")
    assert await row_of(redis.xadd("k", {"a": 1})) == "wrong-type"
    assert await row_of(redis.execute_command("NO-SUCH-COMMAND")) == "unknown-command"
    assert await row_of(redis.execute_command("XADD", "s", "NO-SUCH-OPTION", "x", "*", "a", "1")) != "fine"
    await redis.xadd("s", {"a": 1}, id="5-0")
    assert await row_of(redis.xadd("s", {"a": 1}, id="4-0")) == "id-too-small"
    assert await row_of(redis.evalsha("0" * 40, 0)) == "no-script"


async def test_too_many_clients(make_valkey: Callable[..., ValkeyServer]) -> None:
    server = make_valkey("--maxclients", "1")
    async with Redis(server.options) as first, Redis(server.options) as second:
        while await row_of(first.ping()) != "fine":  # until the fixture's probe is gone
            pass
        assert await row_of(second.ping()) == "too-many-clients"


async def test_loading(make_valkey: Callable[..., ValkeyServer]) -> None:
    """A restarted server that reads its data slowly answers LOADING, to XADD and to PING."""
    server = make_valkey(
        "--enable-debug-command", "yes", "--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"
    )
    async with Redis(server.options) as redis:
        pipeline = redis.pipeline(transaction=False)
        for number in range(2000):
            pipeline.set(f"k{number}", "x" * 20)
        await pipeline.execute()
        await redis.save()
    server.kill()
    server.start()
    async with Redis(server.options) as redis:
        assert await row_of(redis.xadd("s", {"a": 1})) == "loading"
        assert await row_of(redis.ping()) == "loading"


def classify_name_is_repair(name: str) -> bool:
    return next(row for row in REPLIES if row.name == name).kind is Kind.REPAIR


async def row_of(command: Awaitable[Any]) -> str:
    """The row of the error that the command brings; "fine" without one."""
    try:
        await command
    except exceptions.RedisError as error:
        return classify(error).name
    return "fine"


async def reply_of_a_blocked_read(redis: Redis, disturb: Callable[[], Awaitable[Any]]) -> str:
    rows: list[str] = []

    async def read() -> None:
        rows.append(await row_of(redis.xreadgroup("g", "c", {"s": ">"}, block=5000)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not (await redis.info("clients"))["blocked_clients"]:
            pass
        await disturb()
    return rows[0]


@asynccontextmanager
async def setting(redis: Redis, name: str, value: str) -> AsyncIterator[None]:
    """CONFIG SET for a while."""
    before = (await redis.config_get(name))[name]
    await redis.config_set(name, value)
    try:
        yield
    finally:
        await redis.config_set(name, before)
