"""The PostgreSQL side of a deployment: its link, the watch over its gate, and connections for others."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from ..runtime.postgres import PostgresUnavailable
from .checking import database_clock
from .health_monitor import Watch

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from ..runtime.supervision import Child, Gates
    from .backends import Backends
    from .checking import Checks
    from .settings import ActorSettings

__all__ = ["PostgresSide"]

ANSWER_WITHIN: Final = 0.6
"""Seconds that PostgreSQL has for a probe while a statement takes suspiciously long: a healthy one took 0.24 s at the
most on a machine that was six times overloaded, and a frozen one is noticed within a second."""


class PostgresSide:
    """See the module. Listens to what the links of `backends` say.

    Args:
        settings: what was set.
        backends: what the deployment stands on.
        gates: the deployment's.

    Attributes:
        watch: over the gate ``postgres``.
    """

    def __init__(self, settings: ActorSettings, backends: Backends, gates: Gates) -> None:
        self._backends = backends
        self._gate, self._schema = gates["postgres"], gates["schema"]
        watch = Watch(self._gate, backends.probe_postgres, settings.health, backends.postgres_address)
        backends.on_postgres_trouble = watch.trouble
        backends.on_postgres_slow = lambda _: watch.doubt(ANSWER_WITHIN)
        self.watch = watch

    @property
    def has_link(self) -> bool:
        """Whether there is a real database."""
        return self._backends.pool is not None

    async def hold(self, child: Child) -> None:
        """The body of the child that holds the link, where there is one."""
        assert self._backends.pool is not None  # noqa: S101 - only then is this child declared
        async with self._backends.pool, self._backends.notes or nullcontext():
            child.note(self._backends.postgres_address)
            child.started()
            await trio.sleep_forever()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[Any]]:
        """See `Deployment.connection`."""
        if not self._schema.is_open:
            why = f"its tables are not ready: {self._schema.cause}"
            raise PostgresUnavailable(why, address=self._backends.postgres_address)
        async with self._backends.store.connection() as connection:
            yield connection

    async def observe(self, checks: Checks) -> None:
        """Have the database's clock checked, where it is there to be asked. Raises nothing for PostgreSQL."""
        if self._backends.pool is not None and self._gate.is_open:
            clock = partial(database_clock, self._backends.pool)
            await checks.look_at_database(self._backends.postgres_address, clock)
