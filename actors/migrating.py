"""The migrations: the runtime's tables, then the system's own, then what was declared, written down."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib import resources
from typing import TYPE_CHECKING, Final

import trio

from ..runtime.telemetry import get_logger
from . import migrations
from .declaring import declare_groups
from .stream_table import misdeclared

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gate
    from .backends import Backends
    from .system import System

__all__ = ["Migrating", "migrate_all"]

log = get_logger(__name__)

MIGRATED_WITHIN: Final = 24 * 3600.0
"""Seconds. Each statement and each wait has a limit of its own (`MigrationLimits`), and what is broken off is rolled
back: its next attempt would take as long."""

LOOK_AGAIN: Final = 5.0
"""Seconds between two looks whether somebody has mended a declaration that does not fit the streams."""


async def migrate_all(system: System, backends: Backends) -> list[str]:
    """Bring the runtime's tables and the system's own up to date; the names of what was applied, in order.

    Raises:
        MigrationFailed: the database refused one; the text names it, and what the server said.
        PostgresUnavailable, PostgresRejected: as the link says.
    """
    applied = await backends.migrate(resources.files(migrations), "penstock")
    if system.migrations is not None:
        # An account of its own: the numbers of two sets of migrations mean nothing to each other.
        prefix = re.sub(r"\W", "_", system.name.lower(), flags=re.ASCII)
        applied += await backends.migrate(system.migrations, f"penstock_{prefix}")
    return applied


class Migrating:
    """Brings the tables up to date, and opens the gate ``schema``.

    It ends when the declared streams fit those that were made; until then it looks again and again.

    Args:
        system: what was declared.
        backends: whose database it is.
        schema: the gate.
        tell: told how a declaration is to be mended; ``""`` when there is nothing to mend.
    """

    def __init__(self, system: System, backends: Backends, schema: Gate, tell: Callable[[str], None]) -> None:
        self._system, self._backends, self._schema, self._tell = system, backends, schema, tell

    async def __call__(self, child: Child) -> None:
        """The body of the child; raises what `migrate_all` raises."""
        applied = await migrate_all(self._system, self._backends)
        if self._backends.pool is not None:
            await declare_groups(self._backends.pool, self._system)
        if applied:
            log.info("migrations applied", count=len(applied), last=applied[-1])
        child.note(f"{len(applied)} applied" if applied else "up to date")
        mend = await self._check_partitions()
        child.started()
        self._schema.open()
        while mend:
            await trio.sleep(LOOK_AGAIN)
            mend = await self._check_partitions()

    async def _check_partitions(self) -> str:
        mend = await misdeclared(self._backends.store, self._system)
        self._tell(mend)
        return mend
