"""``penstock migrate`` and ``penstock run`` on tables that another process is migrating."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
from click.testing import CliRunner

from penstock.http.commands.migrate import migrate_command
from penstock.http.commands.run import run
from penstock.runtime.cli import CommandError
from penstock.runtime.postgres import MigrationLimits, migrations


@pytest.mark.parametrize("command", [migrate_command, run], ids=["migrate", "run"])
def test_tables_that_another_process_is_migrating_for_too_long_are_said_to_be(
    command: click.Command, database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "MigrationLimits", partial(MigrationLimits, turn=0.2))
    monkeypatch.chdir(tmp_path)
    environment = {"PENSTOCK_POSTGRES_URL": database.address, "PENSTOCK_HTTP_BIND": "127.0.0.1:0"}
    with psycopg.connect(database.address) as other:
        other.execute("select pg_advisory_lock(hashtextextended('penstock migrations penstock', 0))")
        told = CliRunner().invoke(command, env=environment)
    assert isinstance(told.exception, CommandError)
    assert told.exception.exit_code == 2
    assert "has been migrating" in str(told.exception)
