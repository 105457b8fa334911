"""Servers of the user's own: here those of another installation, over their sockets."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
from installation import Installation, access_event, until


@pytest.fixture
def other(installation: Installation) -> Iterator[Installation]:
    """An installation without servers: it uses those of `installation`, and a database of its own there."""
    home = installation.directory / ".penstock"
    with psycopg.connect(f"host={home / 'postgres'} dbname=penstock user=penstock", autocommit=True) as connection:
        connection.execute("create database theirs")
        connection.execute("create role weak login")
    urls = {
        "PENSTOCK_REDIS_URL": f"unix://{home / 'valkey' / 'valkey.sock'}?db=1",
        "PENSTOCK_POSTGRES_URL": f"postgresql://penstock@/theirs?host={quote(str(home / 'postgres'))}",
    }
    with tempfile.TemporaryDirectory(prefix="penstock-it-") as directory:
        made = Installation(Path(directory), environment=urls)
        yield made
        made.close()


def test_a_system_runs_on_servers_that_are_not_its_own(installation: Installation, other: Installation) -> None:
    assert other.command("check").returncode == 0
    other.start()
    assert other.post(access_event(1))[0] == 202
    home = installation.directory / ".penstock" / "postgres"
    with psycopg.connect(f"host={home} dbname=theirs user=penstock", autocommit=True) as connection:
        query = "select count(*) from access_event where endpoint = '/load/1'"
        until(lambda: connection.execute(query).fetchall() == [(1,)], 30.0, "the event is a row there")
    assert other.terminate() == 0
    assert installation.get("/healthz")[0] == 200


def test_a_role_that_may_not_make_tables_is_told_so_before_anything_starts(other: Installation) -> None:
    other.environment["PENSTOCK_POSTGRES_URL"] = other.environment["PENSTOCK_POSTGRES_URL"].replace(
        "penstock@", "weak@"
    )
    ended = other.command("run")
    assert ended.returncode == 2
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("penstock: ")]
    assert "permission denied" in line
    assert "Traceback" not in ended.stderr + ended.stdout
