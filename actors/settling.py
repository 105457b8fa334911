"""Settles the batches of a handler pool: brings each entry to one of its ends, or gives it back.

Many events share one transaction; when it fails, they are tried again without the one at fault (`splitting`), so that
only that one pays, with a row in the table of retries or a dead letter. What the transactions hold is told in
`attempts`.

An outage of PostgreSQL costs no event an attempt (`blame` tells it from a failure of the event): the entries go back,
and wait at the gate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import trio

from ..runtime.supervision import ErrorInfo
from ..runtime.supervision.outcome import outcome_of
from ..runtime.telemetry import get_logger
from .attempts import Attempts
from .blame import Progress
from .failures import Counts, PoisonousEvent
from .pool_outages import Outage
from .splitting import Part, Splitting

if TYPE_CHECKING:
    from .assignment import Assignment
    from .claims import Claim, Claims
    from .due_rows import Due
    from .handling import Entry
    from .pool_outages import PoolOutages
    from .site import Site

__all__ = ["Settling"]

log = get_logger(__name__)

T = TypeVar("T")

LETTER_PAUSE = 60.0
"""Seconds before an event is looked at again whose row or letter the database refuses: somebody must mend that."""


class Settling:
    """See the module.

    Args:
        site: where effects go, what is broadcast, and what suspects are kept apart by.
        assignment: what the pool is there for.
        claims: the lease, and what is held against entries.
        outages: tells an outage from a failure of an event, and waits until it is over.
        due: told when to look for rows again.
        is_draining: whether the pool ends: then nothing is begun.

    Attributes:
        counts: what became of entries.
    """

    def __init__(
        self,
        site: Site,
        assignment: Assignment,
        claims: Claims,
        outages: PoolOutages,
        due: Due,
        is_draining: Callable[[], bool],
    ) -> None:
        self.counts = Counts()
        self._broadcast = site.broadcast
        self._isolation = site.isolation
        self._assignment = assignment
        self._group = assignment.group
        self._backlog = assignment.backlog
        self._claims = claims
        self._attempts = Attempts(site, assignment, claims)
        self._outages = outages
        self._due = due
        self._is_draining = is_draining

    async def settle(self, batch: Sequence[Entry]) -> None:
        """Bring every entry of the batch to one of its ends: done, to be retried, or given back, behind an outage."""
        left = {entry.id: entry for entry in batch}
        try:
            async with self._outages.waited_out():
                if batch[0].redelivered:
                    await self._settle_suspects(batch, left)
                else:
                    await self._in_turn(self._attempt_all, batch, left)
        finally:
            # Cancelled, or an outage: nobody's attempt. In their order, to the front.
            self._backlog.give_back(list(left.values()))

    async def settle_rows(self, claim: Claim) -> None:
        """The same for rows that were claimed, but for the wait: raises `Outage`, for they are beside others."""
        if claim.entries:
            await self._in_turn(self._attempt_all, claim.entries, {entry.id: entry for entry in claim.entries})
        await self._bury(claim.poison, {})

    async def absolve(self, entries: Sequence[Entry] | None) -> None:
        """What was broken off by others is held against no event (of all that this process had: None).

        Not while PostgreSQL is away: then the pool leaves at once, and it is asked for again when it starts.
        """
        if not self._outages.is_database_up:
            return
        try:
            await self._claims.absolve(entries)
        except Exception as raised:  # noqa: BLE001 - it is asked for again when the pool starts
            log.debug("suspects not absolved", group=self._group.name, error=str(ErrorInfo.of(raised)))

    # One batch ------------------------------------------------------------------------------------------------------

    async def _settle_suspects(self, batch: Sequence[Entry], left: dict[str, Entry]) -> None:
        """Those that were counted before while no other suspect is at work. (Before its turn, as with rows.)"""
        async with self._isolation.beside():
            wants_alone = await self._in_turn(self._attempt_suspects, batch, left, False)
        if wants_alone:
            async with self._isolation.alone():
                await self._in_turn(self._attempt_suspects, batch, left, True)

    async def _in_turn(
        self, attempt: Callable[..., Awaitable[T]], batch: Sequence[Entry], left: dict[str, Entry], *more: bool
    ) -> T | None:
        """What `attempt` returns, within the group's limit; None if the pool drains by then: nothing was begun."""
        async with self._assignment.turn():
            try:
                result = None if self._is_draining() else await attempt(batch, left, *more)
            except Outage:
                # Before anybody waits: who is not at work is held for no death meanwhile.
                await self.absolve(list(left.values()))
                raise
            await self.absolve(list(left.values()))
            return result

    async def _attempt_all(
        self, batch: Sequence[Entry], left: dict[str, Entry], failed: Mapping[str, BaseException] | None = None
    ) -> None:
        """Attempt the batch, in parts where it must be; takes out of `left` what is settled.

        Args:
            batch: in order.
            left: what is to be given back.
            failed: what those have failed of that are not to be handled.

        Raises:
            Outage: it came to an outage.
        """
        splitting = Splitting(batch, failed)
        while splitting.parts:
            part = splitting.parts.pop(0)
            progress = Progress()
            ended = await self._attempt(part, progress)
            if isinstance(ended, Counts):
                self._end(part.entries, ended)
            elif self._outages.is_one(ended, progress):
                raise self._outages.met(ended)
            elif splitting.again(part, ended, progress.failed):
                continue
            else:
                await self._postpone(part.entries[0], ended)
            for entry in part.entries:
                left.pop(entry.id, None)
            if isinstance(ended, Counts):
                if progress.notices:
                    await self._broadcast(progress.notices)
            elif self._group.ordered:
                return  # what is behind it under its key waits as well

    async def _attempt_suspects(self, batch: Sequence[Entry], left: dict[str, Entry], alone: bool) -> bool:
        """Attempt those of the redelivered entries that may be attempted together; the others stay in `left`.

        Returns whether none was, for the first one wants to be `alone`.
        """
        try:
            claim = await self._claims.suspect(batch, alone=alone)
        except Exception as raised:  # no handler was called: whatever it is, it is the database's
            raise self._outages.met(outcome_of(raised).error or raised) from raised
        if claim.entries:
            await self._attempt_all(claim.entries, left)
        await self._bury(claim.poison, left)
        return claim.wants_alone

    async def _bury(self, poison: Sequence[Entry], left: dict[str, Entry]) -> None:
        """Bury entries that were taken up too often, and take them out of `left`."""
        if poison:
            error = PoisonousEvent(
                "it was taken up several times, and its worker was gone each time; it is not tried again"
            )
            await self._attempt_all(poison, left, {entry.id: error for entry in poison})

    async def _attempt(self, part: Part, progress: Progress) -> Counts | BaseException:
        """One transaction: what it came to, or why it came to nothing."""
        try:
            return await self._attempts.handle(part.entries, progress, part.failed)
        except Exception as raised:  # noqa: BLE001 - the boundary of handlers: whatever they raise is judged
            return outcome_of(raised).error or raised

    # What it came to ------------------------------------------------------------------------------------------------

    def _end(self, entries: Sequence[Entry], counts: Counts) -> None:
        """What became of entries is committed."""
        self.counts.add(counts)
        # At once for a row that waits, or one that is gone and had others waiting behind it.
        self._due.worked(rows=bool(counts.retried or counts.parked or entries[0].retry is not None))
        for entry in entries:
            entry.verdict = None  # it knows its entry, and a circle lives on until the collector comes
        if entries[0].retry is None:
            self._backlog.done(entries)
        self._backlog.wake()

    async def _postpone(self, entry: Entry, error: BaseException) -> None:
        """The database refuses what became of an entry."""
        log.error("failed event not stored, trying again", stream=entry.stream, group=self._group.name,
                  entry=entry.id, next_in=LETTER_PAUSE, error=str(ErrorInfo.of(error)))  # fmt: skip
        at = trio.current_time() + LETTER_PAUSE
        if entry.retry is None:
            self._backlog.postpone(entry, at)
            return
        try:
            await self._claims.put_away(entry.retry, LETTER_PAUSE)
        except Exception as raised:  # noqa: BLE001 - it is due again anyway, only sooner
            log.debug("row not put off", group=self._group.name, entry=entry.id, error=str(ErrorInfo.of(raised)))
