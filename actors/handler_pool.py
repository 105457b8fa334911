"""The handler pool: takes entries from the backlog, and rows that are due from the table of retries, lets their effects
be committed (`settling`), and acknowledges what is committed (`acknowledging`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from .acknowledging import Acknowledging
from .claims import Claims
from .due_rows import Due, DueRows
from .failures import Counts
from .pool_outages import PoolOutages
from .settling import Settling
from .sorting import key_of, verdict_of
from .stopping import DRAIN_WITHIN

if TYPE_CHECKING:
    from ..runtime.supervision import Child
    from .assignment import Assignment
    from .site import Site

__all__ = ["Counts", "HandlerPool"]

ABSOLVE_WITHIN = 1.0
"""Seconds that a pool which leaves has to take back what it counted for entries that it has broken off."""


class HandlerPool:
    """The body of the actor ``handler-pool`` of one partition of a group, or of a queue.

    Args:
        site: what it stands on.
        assignment: what it is there for.

    Attributes:
        counts: what became of entries.
    """

    def __init__(self, site: Site, assignment: Assignment) -> None:
        self._group = assignment.group
        self._backlog = assignment.backlog
        self._stopping = site.stopping
        self._draining = False
        self._due = Due()
        claims = Claims(site, assignment)
        outages = PoolOutages(site, assignment, self._is_draining)
        self._settling = Settling(site, assignment, claims, outages, self._due, self._is_draining)
        self._rows = DueRows(assignment, site.isolation, claims, self._settling, outages, self._due)
        self._acknowledging = Acknowledging(site, assignment, self._is_draining)
        self.counts = self._settling.counts
        if assignment.group.ordered:
            stream, group = assignment.stream, assignment.group
            self._backlog.order_by(lambda entry: key_of(verdict_of(entry, stream, group)))

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; entries in work go back to the backlog, their transactions are rolled back.

        When drained, or when the process stops, finish what is in work and acknowledge what is committed; the rest
        stays pending. Returns when drained. What was broken off counts for no death, however it leaves: that takes up
        to `ABSOLVE_WITHIN` seconds, shielded, and none while PostgreSQL is away.
        """
        self._draining = False
        self._due.soon(0.0)
        await self._settling.absolve(None)
        try:
            await self._handle(child)
        finally:
            # The next process knows of the counts alone, and not who broke off. What is left is asked for again at
            # the next start, if there is one in this process.
            with trio.move_on_after(ABSOLVE_WITHIN, shield=True):
                await self._settling.absolve(None)
        await child.draining.wait()

    async def _handle(self, child: Child) -> None:
        """Work until drained."""
        async with trio.open_nursery() as acknowledging:
            acknowledging.start_soon(self._acknowledging.run)
            async with trio.open_nursery() as working:
                for number in range(self._group.workers):
                    working.start_soon(self._work, name=f"{child.path}/worker-{number + 1}")
                child.started()
                with self._stopping.until():
                    await child.draining.wait()
                self._draining = True
                self._backlog.wake()
                # All pools of a process drain within the same time.
                working.cancel_scope.deadline = self._stopping.deadline(DRAIN_WITHIN)
            await self._acknowledging.wait_done(until=self._stopping.deadline(DRAIN_WITHIN + 1.0))
            acknowledging.cancel_scope.cancel(reason="the handler pool is drained")

    async def _work(self) -> None:
        """Entries and due rows in turns, so that neither keeps the other waiting."""
        while not self._draining:
            if self._due.is_due:
                await self._rows.attempt()
            batch = await self._backlog.take(self._group.batch, self._is_draining, lambda: self._due.at)
            if batch:
                await self._settling.settle(batch)

    def _is_draining(self) -> bool:
        return self._draining
