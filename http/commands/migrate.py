"""``penstock migrate``: bring a database's tables up to date without starting anything else."""

from __future__ import annotations

import sys

import click
import trio

from ...actors.backends import Backends, postgres_options
from ...actors.migrating import migrate_all
from ...actors.probes import PostgresProbe
from ...actors.store import PostgresStore
from ...actors.system import System
from ...runtime.cli import CommandError, json_option, load_settings
from ...runtime.output import echo_json
from ...runtime.postgres import (
    MigrationFailed,
    MigrationLocked,
    Pool,
    PostgresOptions,
    PostgresRejected,
    PostgresUnavailable,
    migrate,
)
from ...runtime.redis import RedisOptions
from ...runtime.telemetry import close_logging, configure_logging
from ..configuration import Settings
from .declared import declared_system

__all__ = ["migrate_command"]


@click.command("migrate", short_help="Bring the tables of the database up to date.")
@click.argument("system", required=False, metavar="[MODULE:SYSTEM]")
@json_option
def migrate_command(system: str | None, as_json: bool) -> None:
    """Bring the tables of the database at PENSTOCK_POSTGRES_URL up to date, and start nothing.

    Every `penstock run` does the same before anything else. This is for those who want it done on its own, in a
    deployment's own step, or under another role: set the URL of a role that may create tables. The embedded database
    is migrated at each start.
    """
    settings = load_settings(Settings)
    declared = declared_system(system, settings)
    if settings.postgres.url is None:
        raise CommandError("postgres.url is not set: the embedded database is migrated at each start", 2)
    configure_logging(settings.log, sys.stderr)
    try:
        applied = trio.run(_migrate, declared, postgres_options(settings, settings.postgres.url))
    except (MigrationFailed, MigrationLocked, PostgresRejected, PostgresUnavailable, ValueError) as error:
        raise CommandError(str(error), 2) from error
    finally:
        close_logging()
    if as_json:
        echo_json({"applied": applied})
    else:
        click.echo("\n".join(applied) if applied else "up to date")


async def _migrate(system: System, options: PostgresOptions) -> list[str]:
    backends = Backends(
        redis_options=RedisOptions(),
        store=PostgresStore(Pool(options)),
        probe_postgres=PostgresProbe(options),
        migrate=lambda where, prefix: migrate(options, where, table_prefix=prefix),
    )
    return await migrate_all(system, backends)
