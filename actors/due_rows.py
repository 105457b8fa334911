"""The rows of a handler pool that are due: when to look for them, claiming them, and having them attempted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from ..runtime.supervision.outcome import outcome_of

if TYPE_CHECKING:
    from .assignment import Assignment
    from .claims import Claim, Claims
    from .isolation import Isolation
    from .pool_outages import PoolOutages
    from .settling import Settling

__all__ = ["Due", "DueRows"]

LOOK, LOOK_IDLE = 1.0, 10.0
"""Seconds between two looks for rows that somebody else wrote (what we wrote ourselves we know of): while there is
something to do, and when there was nothing for `IDLE_AFTER` seconds. A look is a transaction."""

IDLE_AFTER = 60.0


class Due:
    """When to look for rows that are due: one look at a time.

    Attributes:
        at: when (`trio.current_time()`).
    """

    def __init__(self) -> None:
        self.at = -math.inf
        self._busy_at = -math.inf

    @property
    def is_due(self) -> bool:
        """Whether to look now."""
        return trio.current_time() >= self.at

    @property
    def pace(self) -> float:
        """Seconds until the next look, where nothing is known of when a row is due."""
        return LOOK if trio.current_time() - self._busy_at < IDLE_AFTER else LOOK_IDLE

    def looking(self) -> None:
        """Somebody looks, and will say when to look again."""
        self.at = math.inf

    def soon(self, delay: float) -> None:
        """Look in so many seconds at the latest."""
        self.at = min(self.at, trio.current_time() + delay)

    def busy(self) -> None:
        """There is something to do."""
        self._busy_at = trio.current_time()

    def worked(self, *, rows: bool) -> None:
        """Entries have come to an end; `rows`: so that there is a row to look at."""
        self.busy()
        self.soon(0.0 if rows else LOOK)


class DueRows:
    """See the module.

    Args:
        assignment: what the pool is there for.
        isolation: what suspects are kept apart by.
        claims: claims rows.
        settling: attempts what was claimed.
        outages: waits until the database is back.
        due: when to look.
    """

    def __init__(
        self,
        assignment: Assignment,
        isolation: Isolation,
        claims: Claims,
        settling: Settling,
        outages: PoolOutages,
        due: Due,
    ) -> None:
        self._assignment = assignment
        self._backlog = assignment.backlog
        self._isolation = isolation
        self._claims = claims
        self._settling = settling
        self._outages = outages
        self._due = due

    async def attempt(self) -> None:
        """Take rows that are due, and attempt them."""
        if not self._isolation.is_open:
            self._due.looking()
            self._due.soon(LOOK)
            return
        occupied: set[str] = set()
        try:
            async with self._outages.waited_out():
                async with self._isolation.beside():
                    wants_alone = await self._attempt_some(occupied, alone=False)
                if wants_alone:
                    async with self._isolation.alone():
                        await self._attempt_some(occupied, alone=True)
        finally:
            self._backlog.release(occupied)

    async def _attempt_some(self, occupied: set[str], *, alone: bool) -> bool:
        """Returns whether nothing was attempted, for the row whose turn it is wants to be `alone`.

        Puts into `occupied` the keys that are ours from then on. Raises `Outage`.
        """

        def occupy(keys: set[str]) -> set[str]:
            occupied.update(ours := self._backlog.occupy(keys))
            return ours

        claim = await self._claim(occupy, alone=alone)
        await self._settling.settle_rows(claim)
        return claim.wants_alone

    async def _claim(self, occupy: Callable[[set[str]], set[str]], *, alone: bool) -> Claim:
        again = look = self._due.pace
        claim: Claim | None = None
        self._due.looking()
        try:
            async with self._assignment.turn():
                claim = await self._claims.claim(
                    self._assignment.group.batch, self._backlog.busy_keys, occupy, alone=alone
                )
            again = 0.0 if claim.more else min(look, claim.next_in or look)
            if claim.entries:
                self._due.busy()
            return claim
        except Exception as raised:  # no handler was called: whatever it is, it is the database's
            raise self._outages.met(outcome_of(raised).error or raised) from raised
        finally:
            self._due.soon(again)
            if claim is None or claim.entries or claim.poison:
                # This worker is busy now: another one must look next. If it found nothing, it will do so itself.
                self._backlog.wake()
