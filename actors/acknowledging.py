"""The acknowledgements of a handler pool: what is committed is acknowledged in batches, while Redis is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import redis.exceptions
import trio

from ..runtime.telemetry import get_logger

if TYPE_CHECKING:
    from .assignment import Assignment
    from .site import Site

__all__ = ["Acknowledging"]

log = get_logger(__name__)

ACKNOWLEDGE = 100
"""Ids in one XACK at the most; one at a time halved the measured throughput."""

LINGER = 0.02
"""Seconds that an acknowledgement waits for company. One that is lost is only a duplicate, which the inbox absorbs."""


class Acknowledging:
    """See the module.

    Args:
        site: the link to Redis, its gate, and who is told of its errors.
        assignment: whose entries are acknowledged.
        is_draining: whether the pool ends: then nothing waits for company.
    """

    def __init__(self, site: Site, assignment: Assignment, is_draining: Callable[[], bool]) -> None:
        self._client = site.client
        self._trouble = site.redis_trouble
        self._gate = site.gates["redis"]
        self._group = assignment.group
        self._partition = assignment.partition
        self._backlog = assignment.backlog
        self._acknowledge = assignment.acknowledge or self._xack
        self._is_draining = is_draining

    async def run(self) -> None:
        """Acknowledge what is done until cancelled; what Redis had not answered for then is acknowledged again."""
        while True:
            await self._gate.wait_open()
            ids = await self._backlog.take_done(ACKNOWLEDGE, 0.0 if self._is_draining() else LINGER)
            acknowledged = False
            try:
                await self._acknowledge(ids)
                acknowledged = True
            except redis.exceptions.RedisError as error:
                log.debug("acknowledgement postponed", group=self._group.name, ids=len(ids), error=str(error))
                self._trouble(error)
            finally:
                (self._backlog.acknowledged if acknowledged else self._backlog.acknowledge_again)(ids)
            if not acknowledged:
                # Harmless to repeat, useless to hurry: the gate, or this pause, sets the pace.
                await trio.sleep(0.5)

    async def wait_done(self, until: float) -> None:
        """Block until everything is acknowledged, Redis is away, or it is `until` (`trio.current_time()`)."""
        while not self._backlog.is_acknowledged and self._gate.is_open and trio.current_time() < until:
            # In turns, for a gate that shuts meanwhile makes the waiting pointless.
            with trio.move_on_after(0.1):
                await self._backlog.wait_acknowledged()

    async def _xack(self, ids: Sequence[str]) -> None:
        await self._client().xack(self._partition, self._group.name, *ids)
