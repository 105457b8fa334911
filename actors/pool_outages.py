"""Outages as a handler pool meets them: whether a failure is one, and the waiting until it is over."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from ..runtime.supervision import ErrorInfo
from ..runtime.telemetry import get_logger
from .blame import away_of, met_redis, passes
from .lease_table import LeaseLost
from .system import REDIS_GATES

if TYPE_CHECKING:
    from .assignment import Assignment
    from .blame import Progress
    from .site import Site

__all__ = ["Outage", "PoolOutages"]

log = get_logger(__name__)


class Outage(Exception):
    """PostgreSQL, or what handlers need beside it, is away; whom that concerns was told.

    Args:
        in_redis: whether it is Redis: then nobody cancels the pool.
    """

    def __init__(self, *, in_redis: bool) -> None:
        super().__init__("Redis is away, or full" if in_redis else "PostgreSQL, or what handlers need, is away")
        self.in_redis = in_redis


class PoolOutages:
    """See the module.

    Args:
        site: whose gates are told, and waited for.
        assignment: what the pool is there for.
        is_draining: whether the pool ends: then nobody waits for Redis any more.
    """

    def __init__(self, site: Site, assignment: Assignment, is_draining: Callable[[], bool]) -> None:
        self._site = site
        self._group = assignment.group
        self._partition = assignment.partition
        self._is_draining = is_draining
        self._postgres_gate = site.gates["postgres"]
        self._redis_gate = site.gates["redis"]
        self._redis_gates = site.redis_gates

    @property
    def is_database_up(self) -> bool:
        """Whether our own link to the database thinks so."""
        return self._postgres_gate.is_open

    def is_one(self, error: BaseException, progress: Progress) -> bool:
        """Whether a transaction that came as far as `progress` failed by an outage, and by no fault of an event."""
        return not progress.blames(
            error,
            database_is_up=self.is_database_up,
            redis_is_up=self._redis_gate.is_open,
            gates=self._group.behind,
        )

    def met(self, error: BaseException) -> Outage:
        """Tell whom it concerns that something is away, which shuts its gate; to be raised. Never blocks."""
        away = away_of(error, self._group.behind)
        in_redis = met_redis(error) if away is None else away.gate in REDIS_GATES
        if away is not None:
            self._site.outside_trouble(away)
        else:
            self._tell(error, in_redis=in_redis)
        return Outage(in_redis=in_redis)

    @asynccontextmanager
    async def waited_out(self) -> AsyncIterator[None]:
        """A block that may raise `Outage`: then it blocks until that is over, or a gate has us cancelled.

        It waits behind the block, so that whatever was taken in it (turns, places beside others) is free for those who
        can go on.
        """
        try:
            yield
        except Outage as outage:
            await self._wait_out(in_redis=outage.in_redis)

    async def _wait_out(self, *, in_redis: bool) -> None:
        # Never at full speed, and not all workers in step.
        await trio.sleep(0.1 + 0.9 * self._site.chance())
        await self._postgres_gate.wait_open()
        while in_redis and not self._is_draining() and not all(gate.is_open for gate in self._redis_gates):
            # In turns: nobody cancels a pool for these gates, and its end is not to wait for Redis.
            with trio.move_on_after(0.5):
                for gate in self._redis_gates:
                    await gate.wait_open()

    def _tell(self, error: BaseException, *, in_redis: bool) -> None:
        """Log an outage that no handler has named, and have the gate shut that nobody has shut yet."""
        told = str(ErrorInfo.of(error))
        if in_redis or not self.is_database_up:
            log.debug("transaction given back", group=self._group.name, error=told)
        elif isinstance(error, LeaseLost):
            log.info("partition is not ours", group=self._group.name, stream=self._partition, error=told)
        elif passes(error):
            log.warning("database is busy, trying again", group=self._group.name, error=told)
        elif isinstance(error, Exception):
            # Shut, and opened by the probe: so that it is seen, and the pace is that of the health monitor.
            self._site.postgres_trouble(error)
