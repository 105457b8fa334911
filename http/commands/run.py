"""``penstock run``: one process, one supervision tree."""

from __future__ import annotations

import gc
import sys

import click
import trio

from ...actors.backends import Backends
from ...actors.deployment import Deployment
from ...actors.migrating import migrate_all
from ...actors.system import System
from ...runtime.cli import CommandError, load_settings
from ...runtime.embedded import DataDirectory, DataDirectoryError, EmbeddedServerError
from ...runtime.postgres import MigrationFailed, MigrationLocked, PostgresRejected
from ...runtime.supervision import Escalated, HeldTooLong, RestartLimitExceeded, StartFailed, stop_on_signals
from ...runtime.telemetry import close_logging, configure_logging, get_logger, log_lifecycle
from ..configuration import Settings
from ..front_end import CannotListen, check_binds, front_end
from .declared import declared_system
from .servers import wait_for_servers

__all__ = ["run"]

log = get_logger("penstock")


@click.command(short_help="Start the event system as one process.")
@click.argument("system", required=False, metavar="[MODULE:SYSTEM]")
def run(system: str | None) -> None:
    """Start the event system as one process, and keep it running through every outage.

    MODULE:SYSTEM is a System object in a module (shop.orders:system) or a file (shop/orders.py:system). Without it, it
    is the system that the settings name (system) or make ([streams.NAME]), and else the access-event system. Without
    PENSTOCK_REDIS_URL and PENSTOCK_POSTGRES_URL it starts a Valkey and a PostgreSQL of its own in .penstock/. SIGTERM
    and Ctrl-C stop it in order; a second one leaves out the graces.
    """
    settings = load_settings(Settings)
    declared = declared_system(system, settings)
    configure_logging(settings.log, sys.stdout)
    try:
        with DataDirectory(settings.data_dir) as directory:
            trio.run(_run, declared, settings, directory)
    except (
        DataDirectoryError,
        EmbeddedServerError,
        CannotListen,
        MigrationFailed,
        MigrationLocked,
        PostgresRejected,
        ValueError,
    ) as error:
        raise CommandError(str(error), exit_code=2) from error
    finally:
        close_logging()


async def _run(system: System, settings: Settings, directory: DataDirectory) -> None:
    check_binds(settings.http.bind)
    await wait_for_servers(settings, settings.start.wait_for_servers)
    backends = Backends.of(settings, directory, system)
    if settings.postgres.url is not None:
        # Once before anything starts: what our role may not do in somebody's database is told, and not tried again.
        await migrate_all(system, backends)
    deployment = Deployment(
        system,
        settings,
        backends,
        instance=directory.instance,
        front_ends=lambda made: [front_end(made, settings.http)],
    )
    _tell_findings(deployment)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(stop_on_signals, deployment.tree)
            await nursery.start(log_lifecycle, deployment.tree)
            nursery.start_soon(_greet, deployment)
            await deployment.run()
            nursery.cancel_scope.cancel(reason="the system has stopped")
    except* (StartFailed, RestartLimitExceeded, Escalated, HeldTooLong) as failed:
        raise CommandError(_reason(failed.exceptions[0])) from failed


def _reason(error: BaseException) -> str:
    """The first cause, which is what somebody can mend, behind what it led to."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return str(error)


def _tell_findings(deployment: Deployment) -> None:
    """What is worth knowing of the tree before it starts: a system's own children may be declared without limits."""
    for finding in deployment.tree.check():
        (log.warning if finding.severity == "warning" else log.debug)(finding.text, child=finding.path)


async def _greet(deployment: Deployment) -> None:
    if not await deployment.tree.ready():
        return
    # What stands now stays: the collector need not walk through it again, for some 80 ms each time, while events wait.
    gc.collect()
    gc.freeze()
    addresses = [view.note for view in deployment.tree.snapshot().root.children if view.id == "http"]
    log.info("listening", page=" ".join(addresses), system=deployment.system.name, instance=deployment.instance)
