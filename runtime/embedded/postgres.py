"""An embedded PostgreSQL: made at the first start, listening on a private unix socket only."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import psycopg
import trio
from psycopg import sql

from ..processes import Log, ProcessSpec, StopStep
from ..supervision.spec import ChildSpec
from .binaries import postgres_installation, postgres_major
from .datadir import DataDirectory, Home
from .errors import DataDirectoryError
from .leftovers import end_leftovers
from .server import run_server, run_tool

if TYPE_CHECKING:
    from ..supervision.child import Child

__all__ = ["EmbeddedPostgres"]

PORT = 5432
"""Only part of the socket's name. Said everywhere all the same, for a PGPORT in the environment would change it."""
SOCKET_NAME = f".s.PGSQL.{PORT}"
DATABASE = "penstock"
USER = "penstock"

STOP = (StopStep(signal.SIGINT, 4.0), StopStep(signal.SIGQUIT, 1.5))
"""Fast shutdown, which writes a checkpoint; then immediate, which leaves that to the next start. Neither loses data."""

START_WITHIN = 120.0
"""Seconds, for the making of the cluster on a slow disk, or for recovery after a crash."""

INITDB_OPTIONS = (
    f"--username={USER}",
    # Whoever can open the socket may be the superuser; only the account and root can, by the directory's mode 0700.
    "--auth=trust",
    # Code point order on every machine, whatever locales it has, with Unicode's upper and lower case.
    "--encoding=UTF8",
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
)

SETTINGS = {
    "listen_addresses": "",
    "port": str(PORT),
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    # For a development machine: small, and few processes. fsync and synchronous_commit stay on.
    "shared_buffers": "64MB",
    "io_method": "sync",
    "min_wal_size": "64MB",
    "max_wal_size": "512MB",
    # No replicas here; less is written.
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # To standard error, and so into our log, which has its own time stamps.
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "[%p] ",
    "log_checkpoints": "off",
    "lc_messages": "C",
}
if sys.platform == "linux":
    # After a crash, one sync of the file system instead of a thousand fsyncs: back in 0.5 s, not in 0.5 to 2.3 s.
    SETTINGS["recovery_init_sync_method"] = "syncfs"


class EmbeddedPostgres:
    """The PostgreSQL server of one data directory, as a child of a supervisor.

    Attributes:
        url: where its database ``penstock`` will be; known before it runs, always the same for a data directory.
    """

    def __init__(self, directory: DataDirectory, *, log: Log) -> None:
        """Raises ServerNotInstalled when the extra ``embedded`` is not there."""
        self._installation = postgres_installation()
        self._directory = directory
        self._log = log
        self._sockets = directory.socket_directory("postgres", SOCKET_NAME)
        self.url = f"postgresql:///{DATABASE}?host={quote(str(self._sockets), safe='')}&port={PORT}&user={USER}"

    async def run(self, child: Child) -> None:
        """The body of the child: runs the server until cancelled; ready when its database accepts connections.

        The first start makes the cluster. Stops the server on cancellation, within the limits of `STOP`.
        Raises what `run_server` raises, and DataDirectoryError when the data is of another major version.
        """
        home = self._directory.home("postgres", SOCKET_NAME)
        data = home.path / "data"
        if not (data / "PG_VERSION").exists():
            await self._make_cluster(home, data)
        _check_version(data)
        # Before the lock files are looked at: what they name must not be one of ours.
        await end_leftovers("postgres", data, STOP, self._log)
        _drop_foreign_lock(data / "postmaster.pid")
        _drop_foreign_lock(home.sockets / f"{SOCKET_NAME}.lock")
        spec = self._process(home, data)
        await run_server(child, spec, data=data, sockets=home.sockets, ready=self._accepts, log=self._log)

    def spec(self) -> ChildSpec:
        """The child specification, with limits that let the ordered stop come to its end."""
        return ChildSpec(
            id="postgres-server",
            body=self.run,
            start_within=START_WITHIN,
            # Margin of a second: if the supervisor's limit struck first, it would report a stop that is in order.
            stop_within=ProcessSpec(name="", argv=(), cwd=Path(), stop=STOP).stop_within + 1,
        )

    def _process(self, home: Home, data: Path) -> ProcessSpec:
        settings = {**SETTINGS, "unix_socket_directories": str(home.sockets)}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return ProcessSpec(
            name="postgres",
            argv=(str(self._installation / "bin" / "postgres"), "-D", str(data), *options),
            cwd=home.path,
            account=home.account,
            reach=(*self._own_directories(), home.path, home.sockets),
            stop=STOP,
        )

    async def _make_cluster(self, home: Home, data: Path) -> None:
        """Under another name until it is complete: whenever we are killed, there is a whole cluster or none."""
        unfinished = home.path / "data.new"
        await end_leftovers("initdb", home.path, STOP, self._log)
        await end_leftovers("postgres", unfinished, STOP, self._log)
        if unfinished.exists():
            await trio.to_thread.run_sync(shutil.rmtree, unfinished)
        initdb = ProcessSpec(
            name="initdb",
            argv=(str(self._installation / "bin" / "initdb"), f"--pgdata={unfinished}", *INITDB_OPTIONS),
            cwd=home.path,
            account=home.account,
            reach=(*self._own_directories(), home.path),
        )
        await run_tool(initdb, log=self._log)
        try:
            unfinished.rename(data)
            _sync_directory(home.path)
        except OSError as error:
            raise DataDirectoryError(f"cannot put the new cluster at {data}: {error.strerror}") from error

    def _own_directories(self) -> tuple[Path, ...]:
        return tuple(self._installation / name for name in ("bin", "lib", "share"))

    async def _accepts(self) -> bool:
        # Each connection before that would put a FATAL line into the log.
        if not _says_ready(self._directory.path / "postgres" / "data" / "postmaster.pid"):
            return False
        # Abandoned, the thread ends with its connection's time-out; a daemon thread, it does not hold up the end.
        return await trio.to_thread.run_sync(self._ensure_database, abandon_on_cancel=True)

    def _ensure_database(self) -> bool:
        try:
            with psycopg.connect(
                host=str(self._sockets), port=PORT, user=USER, dbname="postgres", connect_timeout=2, autocommit=True
            ) as connection:
                if not connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).rowcount:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))
            return True
        except psycopg.Error:
            return False


def _says_ready(lock: Path) -> bool:
    """Whether the postmaster says that it accepts connections: in line 8 of its lock file, where pg_ctl looks, too."""
    try:
        return lock.read_text().splitlines()[7].strip() == "ready"
    except (FileNotFoundError, IndexError):
        return False


def _check_version(data: Path) -> None:
    made_by, ours = (data / "PG_VERSION").read_text().strip(), postgres_major()
    if made_by != ours:
        raise DataDirectoryError(
            f"{data} was made by PostgreSQL {made_by}, but the embedded one is {ours}: dump it with the old version and"
            " restore it, or choose another directory with PENSTOCK_DATA_DIR"
        )


def _drop_foreign_lock(path: Path) -> None:
    """Remove PostgreSQL's lock file when its pid now belongs to something else, or when it names none.

    PostgreSQL would refuse to start for ever. A lock file of a dead process is left to it: from it PostgreSQL knows
    which shared memory to look for. To be called when no server of ours works in the directory.
    """
    try:
        pid = abs(int(path.read_text().split()[0]))
        os.kill(pid, 0)
    except (FileNotFoundError, ProcessLookupError):
        return
    except PermissionError:
        return  # another user's process: PostgreSQL sees by itself that it cannot be one of its own
    except (ValueError, IndexError):
        pass
    path.unlink(missing_ok=True)


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
