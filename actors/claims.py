"""What a handler pool writes before an attempt: which rows are its own now, and which entries may kill their worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import takewhile
from typing import TYPE_CHECKING

import trio
from attrs import field, frozen

from .handling import Entry
from .lease_table import LeaseLost
from .retry_table import RetryRow

if TYPE_CHECKING:
    from .assignment import Assignment
    from .site import Site
    from .store import Transaction

__all__ = ["Claim", "Claims"]

BETWEEN = 5.0
"""Seconds that a claimed row is kept from others before its attempt begins; an attempt itself has the row locked."""

DEADLY = 4
"""Times that an entry is taken up, the first perhaps with others and then alone, of which no orderly end is known: then
it is poison, and not tried. Fewer would bury what merely was at work when processes were killed for other reasons."""


@frozen
class Claim:
    """Rows whose attempt may begin.

    Attributes:
        entries: made of them.
        poison: those of them that are not to be tried any more.
        more: whether others may be due as well.
        next_in: seconds until the next one is due, as far as is known.
        wants_alone: nothing was claimed, for the first one was counted before: ask again, `alone`.
    """

    entries: list[Entry] = field(factory=list)
    poison: list[Entry] = field(factory=list)
    more: bool = False
    next_in: float | None = None
    wants_alone: bool = False


class Claims:
    """See the module.

    Args:
        site: where it is written, and the time limits.
        assignment: whose entries are handled.
    """

    def __init__(self, site: Site, assignment: Assignment) -> None:
        self._group = assignment.group
        self._partition = assignment.partition
        self._store = site.store
        self._settings = site.settings
        self._fence = assignment.fence
        self._marked: dict[str, int] = {}  # taken up by this process, and not ended: how often by then, as counted

    async def hold_lease(self, transaction: Transaction) -> None:
        """Make sure that the partition is ours until the end of `transaction`; raises `LeaseLost`."""
        if self._fence is None:
            return
        lease = self._fence()
        if lease is None:
            raise LeaseLost(f"{self._partition} is not ours")
        await self._store.leases.hold(transaction, lease)

    # Rows that are due ----------------------------------------------------------------------------------------------

    async def claim(
        self, limit: int, busy: Collection[str], occupy: Callable[[set[str]], set[str]], *, alone: bool
    ) -> Claim:
        """Claim rows that are due: many, or one that was counted as a suspect before; and count them so.

        Args:
            limit: how many at the most.
            busy: keys that are in work.
            occupy: called with the keys of the rows; says which of them are ours from now on. They stay so also if
                this raises, so whoever calls knows them.
            alone: whether no other suspect is at work in this process; else none is claimed that was counted before.
        """
        group, key = self._group.name, self._partition
        async with self._short_transaction() as transaction:
            rows = await self._store.retries.take(
                transaction, group, key, limit=limit, ordered=self._group.ordered, without=busy
            )
            if not rows:
                return Claim(next_in=await self._store.retries.next_due(transaction, group, key))
            chosen, is_known = await self._choose(transaction, rows)
            if is_known and not alone:
                return Claim(wants_alone=True)
            if self._group.ordered:
                ours = occupy({row.event_key for row in chosen if row.event_key is not None})
                chosen = [row for row in chosen if row.event_key is None or row.event_key in ours]
                chosen += await self._followers(transaction, chosen, limit)
            await self._store.retries.claim(transaction, chosen, BETWEEN)
            poison = await self._mark(transaction, [row.entry_id for row in chosen])
        entries = [_entry(row) for row in chosen]
        return Claim(
            entries=[entry for entry in entries if entry.id not in poison],
            poison=[entry for entry in entries if entry.id in poison],
            more=len(chosen) < len(rows) or len(chosen) == limit,
        )

    async def _choose(self, transaction: Transaction, rows: Sequence[RetryRow]) -> tuple[list[RetryRow], bool]:
        """The longest due, with others if nothing is held against it and them; and whether something is."""
        ids = [row.entry_id for row in rows]
        known = await self._store.suspects.known(transaction, self._group.name, self._partition, ids)
        calm = [row for row in rows if row.entry_id not in known]
        return (calm, False) if calm and calm[0] is rows[0] else ([rows[0]], True)

    async def _followers(self, transaction: Transaction, chosen: Sequence[RetryRow], limit: int) -> list[RetryRow]:
        """What waits behind the rows, to be handled with them: one at a time, a long queue never ends."""
        if not chosen:
            return []
        behind = await self._store.retries.following(transaction, chosen, limit - len(chosen))
        ids = [row.entry_id for row in (*chosen, *behind)]
        known = await self._store.suspects.known(transaction, self._group.name, self._partition, ids)
        halted = {row.event_key for row in (*chosen, *behind) if row.entry_id in known}
        return [row for row in behind if row.event_key not in halted]

    async def put_away(self, row: RetryRow, seconds: float) -> None:
        """Let a row rest: the database does not take what became of it."""
        async with self._short_transaction() as transaction:
            await self._store.retries.claim(transaction, [row], seconds)

    # Suspects -------------------------------------------------------------------------------------------------------

    async def suspect(self, entries: Sequence[Entry], *, alone: bool) -> Claim:
        """Count entries that come again without an end, before they are handled: the first that may be together.

        That is, those before the first that was counted already, or, if no other suspect is at work in this process
        (`alone`), that one; the rest must wait. Nor may any be beside poison whose letter is yet to be taken: what
        comes behind it under its key waits for that.
        """
        ids = [entry.id for entry in entries]
        async with self._short_transaction() as transaction:
            known = await self._store.suspects.known(transaction, self._group.name, self._partition, ids)
            calm = takewhile(lambda each: each not in known or self._marked.get(each, DEADLY) < DEADLY, ids)
            chosen = list(calm)
            if not chosen and not alone:
                return Claim(wants_alone=True)
            chosen = chosen or ids[:1]
            poison = await self._mark(transaction, chosen)
        return Claim(
            entries=[entry for entry in entries if entry.id in chosen and entry.id not in poison],
            poison=[entry for entry in entries if entry.id in poison],
        )

    async def absolve(self, entries: Iterable[Entry] | None = None) -> None:
        """Take back what was counted for entries (for all that have no end) whose attempt others broke off."""
        given = self._marked if entries is None else (entry.id for entry in entries)
        ids = self._marked.keys() & set(given)
        if not ids:
            return
        with trio.fail_after(self._settings.handler_timeout):
            async with self._store.transaction() as transaction:
                await self._store.suspects.absolve(transaction, self._group.name, self._partition, ids)
        self._forget(ids)

    async def _mark(self, transaction: Transaction, ids: Collection[str]) -> set[str]:
        """Count entries, those that this process has counted left out; those that are poison.

        What was poison before is so still: its letter was refused.
        """
        fresh = [each for each in ids if each not in self._marked]
        if fresh:
            # Before it is written: what is taken back once too often does no harm, what is never taken back does.
            self._marked.update(dict.fromkeys(fresh, 0))
            self._marked |= await self._store.suspects.mark(transaction, self._group.name, self._partition, fresh)
        return {each for each in ids if self._marked.get(each, 0) >= DEADLY}

    async def clear(self, transaction: Transaction, entries: Iterable[Entry]) -> None:
        """Forget what was counted for entries: their attempt has come to an orderly end with `transaction`."""
        ids = [entry.id for entry in entries if entry.id in self._marked]
        if ids:
            await self._store.suspects.clear(transaction, self._group.name, self._partition, ids)

    @asynccontextmanager
    async def _short_transaction(self) -> AsyncIterator[Transaction]:
        """One in which no handler is called: with our lease, and a limit: somebody may have locked a row."""
        with trio.fail_after(self._settings.handler_timeout):
            async with self._store.transaction() as transaction:
                await self.hold_lease(transaction)
                yield transaction

    def ended(self, entries: Iterable[Entry]) -> None:
        """The transaction in which entries were cleared is committed."""
        self._forget(entry.id for entry in entries)

    def _forget(self, ids: Iterable[str]) -> None:
        for each in ids:
            self._marked.pop(each, None)


def _entry(row: RetryRow) -> Entry:
    return Entry(row.stream, row.entry_id, row.entry_fields, attempts=row.attempts, retry=row)
