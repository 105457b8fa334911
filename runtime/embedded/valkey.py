"""An embedded Valkey: every acknowledged write is on disk, and nobody but us can connect."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from ..processes import Log, ProcessSpec, StopStep
from ..supervision.spec import ChildSpec
from .binaries import valkey_server
from .datadir import DataDirectory, Home
from .server import run_server

if TYPE_CHECKING:
    from ..supervision.child import Child

__all__ = ["EmbeddedValkey"]

SOCKET_NAME = "valkey.sock"

STOP = (StopStep(signal.SIGTERM, 3.0),)
"""Nothing is lost when the limit strikes: what was acknowledged is on disk already."""

START_WITHIN = 60.0
"""Seconds: loading an append-only file goes at some 100 MB/s."""

SETTINGS = {
    # A unix socket only; its directory is closed to others, so there is no password.
    "port": "0",
    "unixsocketperm": "700",
    "appendonly": "yes",
    # `everysec` is not enough. While its background fsync runs, the server puts off the *write* too, for up to two
    # seconds, and acknowledges all the same: a kill -9 at such a moment lost up to 41,889 acknowledged entries here
    # (fsync slowed to 0.4 s). With `always`, all commands of one turn of its loop share one fsync before they are
    # acknowledged: a quarter less throughput in pipelines of 128.
    "appendfsync": "always",
    # A write that was cut short by a crash was not acknowledged: load the rest.
    "aof-load-truncated": "yes",
    # Snapshots would only write the same data once more.
    "save": "",
    # An event must never be thrown out to make room for another.
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
    "supervised": "no",
    # To standard output, and so into our log.
    "logfile": "",
    "set-proc-title": "no",
}


class EmbeddedValkey:
    """The Valkey server of one data directory, as a child of a supervisor.

    Attributes:
        url: where it will listen; known before it runs, and always the same for a data directory.
    """

    def __init__(self, directory: DataDirectory, *, log: Log) -> None:
        """Raises ServerNotInstalled when the extra ``embedded`` is not there."""
        self._program = valkey_server()
        self._directory = directory
        self._log = log
        self._socket = directory.socket_directory("valkey", SOCKET_NAME) / SOCKET_NAME
        self.url = f"unix://{quote(str(self._socket))}"

    async def run(self, child: Child) -> None:
        """The body of the child: runs the server until cancelled; ready when it answers PING with PONG.

        Stops it on cancellation, within the limits of `STOP`. Raises what `run_server` raises.
        """
        home = self._directory.home("valkey", SOCKET_NAME)
        await run_server(
            child, self._process(home), data=home.path, sockets=home.sockets, ready=self._answers, log=self._log
        )

    def spec(self) -> ChildSpec:
        """The child specification, with limits that let the ordered stop come to its end."""
        return ChildSpec(
            id="redis-server",
            body=self.run,
            start_within=START_WITHIN,
            # Margin of a second: if the supervisor's limit struck first, it would report a stop that is in order.
            stop_within=ProcessSpec(name="", argv=(), cwd=Path(), stop=STOP).stop_within + 1,
        )

    def _process(self, home: Home) -> ProcessSpec:
        settings = {**SETTINGS, "dir": str(home.path), "unixsocket": str(self._socket)}
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        return ProcessSpec(
            name="valkey-server",
            argv=(str(self._program), *options),
            cwd=home.path,
            account=home.account,
            reach=(self._program.parent, home.path, home.sockets),
            stop=STOP,
        )

    async def _answers(self) -> bool:
        """While it loads its data it answers ``-LOADING``."""
        try:
            stream = await trio.open_unix_socket(str(self._socket))
            async with stream:
                await stream.send_all(b"PING\r\n")
                return (await stream.receive_some(64)).startswith(b"+PONG")
        except (OSError, trio.BrokenResourceError):
            return False
