"""One set of tests for three servers: the in-process one, Valkey 9 and Debian's Redis 7.0; each in RESP2 and RESP3."""

from __future__ import annotations

import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import hiredis
import pytest
import trio
from attrs import define, field
from trio.testing import MockClock

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.servers import LocalNode, free_port

sys.path.insert(0, str(Path(__file__).parent))


class RawClient:
    """Sends words, and gives replies as hiredis reads them; pushes as ("push", …)."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.reader = hiredis.Reader()

    async def call(self, *words: Any) -> Any:
        """Send a command and take the next message, whatever it is."""
        await self.send(*words)
        return await self.receive()

    async def send(self, *words: Any) -> None:
        await self.stream.send_all(hiredis.pack_command(words))

    async def receive(self) -> Any:
        """The next message; "end" at the end of the stream. An error comes as its text."""
        while (reply := self.reader.gets()) is False:
            data = await self.stream.receive_some()
            if not data:
                return "end"
            self.reader.feed(bytes(data))
        if isinstance(reply, hiredis.PushNotification):
            return ("push", *reply)
        return str(reply) if isinstance(reply, hiredis.ReplyError) else reply

    async def reply(self, *words: Any) -> Any:
        """As `call`, with errors as hiredis' own objects."""
        await self.send(*words)
        while (reply := self.reader.gets()) is False:
            self.reader.feed(bytes(await self.stream.receive_some()))
        return reply

    async def bytes_of(self, *words: Any) -> bytes:
        """What comes in answer, as it is; PING marks its end."""
        await self.stream.send_all(hiredis.pack_command(words) + hiredis.pack_command(("PING",)))
        data = b""
        while not data.endswith(b"+PONG\r\n"):
            data += bytes(await self.stream.receive_some())
        return data.removesuffix(b"+PONG\r\n")

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self.stream)


DEBIAN = "/usr/bin/redis-server"


@define
class Server:
    """The server of a test.

    Attributes:
        kind: "in-process", "valkey" or "redis-7.0".
        protocol: of the clients.
        version: of Redis, as far as streams go: (7, 2) for Valkey.
        inside: the in-process one.
        node: the process.
    """

    kind: str
    protocol: int
    version: tuple[int, int]
    inside: InProcessRedis | None = None
    node: LocalNode | None = None
    clients: list[Redis] = field(factory=list)

    @property
    def is_valkey(self) -> bool:
        return self.version >= (7, 2)

    def client(self, **options: Any) -> Redis:
        """A client, to be entered."""
        if self.inside is not None:
            return Redis(RedisOptions(protocol=self.protocol, **options), connect=self.inside.connect)
        assert self.node is not None
        return Redis(RedisOptions(port=self.node.port, protocol=self.protocol, **options))

    async def dial(self, greet: bool = True) -> RawClient:
        """A connection without a driver, which shows what is on the wire."""
        if self.inside is not None:
            client = RawClient(await self.inside.connect())
        else:
            assert self.node is not None
            client = RawClient(await trio.open_tcp_stream("127.0.0.1", self.node.port))
        if greet and self.protocol == 3:
            await client.call("HELLO", 3)
        return client

    def crash_and_restart(self) -> None:
        """kill -9, and start again; the data were written down."""
        if self.inside is not None:
            self.inside.restart()
        else:
            assert self.node is not None
            self.node.kill()
            self.node.start()


@pytest.fixture(scope="session")
def real_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], LocalNode]]:
    """Start the server of a kind, once for the session."""
    nodes: dict[str, LocalNode] = {}

    def get(kind: str) -> LocalNode:
        if kind not in nodes:
            program = str(valkey_server()) if kind == "valkey" else DEBIAN
            directory = tmp_path_factory.mktemp(kind)
            arguments = [
                "--appendonly",
                "yes",
                "--appendfsync",
                "always",
                "--save",
                "",
                "--enable-debug-command",
                "yes",
            ]
            nodes[kind] = LocalNode(program, free_port(), directory, arguments)
            nodes[kind].start()
        return nodes[kind]

    yield get
    for node in nodes.values():
        node.kill()


@pytest.fixture(params=["in-process", "valkey", "redis-7.0"])
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "redis-7.0" and shutil.which(DEBIAN) is None:
        pytest.skip(f"{DEBIAN} is not installed (Debian: apt-get install redis-server)")
    return str(request.param)


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def clock(kind: str) -> MockClock | None:
    """Virtual time for the in-process server, the real clock for the others."""
    return MockClock(autojump_threshold=0) if kind == "in-process" else None


@pytest.fixture
async def server(
    kind: str, protocol: int, real_node: Callable[[str], LocalNode], clock: MockClock | None
) -> AsyncIterator[Server]:
    """The server, empty."""
    if kind == "in-process":
        async with InProcessRedis() as inside:
            yield Server(kind, protocol, (7, 2), inside=inside)
        return
    made = Server(kind, protocol, (7, 2) if kind == "valkey" else (7, 0), node=real_node(kind))
    async with made.client() as redis:
        await redis.flushall()
        await redis.script_flush()
    yield made
    await trio.lowlevel.checkpoint()


Dial: TypeAlias = "Callable[[InProcessRedis], Awaitable[RawClient]]"


@pytest.fixture
def dial_inside() -> Dial:
    """Opens a raw connection to an in-process server."""

    async def dial(inside: InProcessRedis) -> RawClient:
        return RawClient(await inside.connect())

    return dial


@pytest.fixture
def open_raw() -> Callable[[trio.abc.Stream], RawClient]:
    """Makes a raw client of a stream."""
    return RawClient


@pytest.fixture
async def raw(server: Server) -> AsyncIterator[RawClient]:
    client = await server.dial()
    yield client
    await client.aclose()


@pytest.fixture
async def redis(server: Server) -> AsyncIterator[Redis]:
    async with server.client() as client:
        yield client
