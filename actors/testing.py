"""A `Store` in memory that behaves like PostgreSQL, for tests in virtual time.

What is true of it is held by the same tests that hold `PostgresStore`: a rollback undoes everything, a savepoint undoes
its block, a second transaction that enters the same event waits for the first, and two that wait for each other are a
deadlock. On top of that it fails on order: `MemoryStore.refuse`, `MemoryStore.lose_commit`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

import psycopg
import trio
from attrs import define, field, frozen

from ..runtime.postgres import PostgresUnavailable
from .dead_letter import DeadLetter
from .handling import entry_order
from .store import InboxEntry, Transaction

__all__ = ["Effect", "MemoryConnection", "MemoryStore"]

_ADDRESS: Final = "memory"

_Key = tuple[str, UUID]
_Place = tuple[str, str]


@frozen
class Effect:
    """A statement that a handler executed: what a test counts."""

    statement: str
    values: tuple[Any, ...]


@define
class _State:
    """What is stored; copied whole, for the tests are small."""

    inbox: dict[_Key, InboxEntry] = field(factory=dict)
    positions: dict[_Place, str] = field(factory=dict)
    letters: dict[tuple[str, str, str], DeadLetter] = field(factory=dict)
    effects: list[Effect] = field(factory=list)

    def copy(self) -> _State:
        return _State(dict(self.inbox), dict(self.positions), dict(self.letters), list(self.effects))


class MemoryStore:
    """`Store` in memory.

    Attributes:
        commits: how many transactions took effect.
    """

    def __init__(self) -> None:
        self.commits = 0
        self._state = _State()
        self._open: set[_MemoryTransaction] = set()
        self._refusal: str | None = None
        self._commit_losses: list[bool] = []
        self._statement_errors: list[psycopg.Error] = []

    # What a test looks at

    @property
    def effects(self) -> list[Effect]:
        """What handlers executed in committed transactions, in the order of the commits."""
        return list(self._state.effects)

    @property
    def letters(self) -> list[DeadLetter]:
        """The dead letters, in the order of their commits."""
        return list(self._state.letters.values())

    @property
    def inbox(self) -> set[tuple[str, UUID]]:
        """The group and the event id of everything that was handled."""
        return set(self._state.inbox)

    # Faults on order

    def refuse(self, cause: str) -> None:
        """From now on the database is away: open transactions have lost their connection, new ones cannot begin."""
        self._refusal = cause
        for transaction in list(self._open):
            transaction.lose()

    def restore(self) -> None:
        """It is back. Transactions that were open when it went stay lost."""
        self._refusal = None

    def lose_commit(self, *, effect: bool) -> None:
        """Let the connection be lost in the next commit: before it took `effect`, or after, when nobody can tell."""
        self._commit_losses.append(effect)

    def fail_statement(self, error: psycopg.Error) -> None:
        """Let the next statement that a handler executes fail with `error`, a violated constraint say."""
        self._statement_errors.append(error)

    # Store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See `Store.transaction`."""
        await trio.lowlevel.checkpoint()
        self._check()
        transaction = _MemoryTransaction(self)
        self._open.add(transaction)
        try:
            yield transaction
            await trio.lowlevel.checkpoint_if_cancelled()
            self._commit(transaction)
        finally:
            self._open.discard(transaction)
            transaction.end()

    async def stored_position(self, group: str, stream: str) -> str | None:
        """See `Store.stored_position`."""
        await trio.lowlevel.checkpoint()
        self._check()
        return self._state.positions.get((group, stream))

    def _commit(self, transaction: _MemoryTransaction) -> None:
        transaction.check()
        loss = self._commit_losses.pop(0) if self._commit_losses else None
        if loss is not False:
            self._take(transaction.made)
            self.commits += 1
        if loss is not None:
            transaction.lose()
            transaction.check()

    def _take(self, made: _State) -> None:
        stored = self._state
        stored.inbox.update(made.inbox)
        for place, entry_id in made.positions.items():
            before = stored.positions.get(place)
            if before is None or entry_order(before) < entry_order(entry_id):
                stored.positions[place] = entry_id
        for key, letter in made.letters.items():
            stored.letters.setdefault(key, letter)
        stored.effects.extend(made.effects)

    def _check(self) -> None:
        if self._refusal is not None:
            raise PostgresUnavailable(self._refusal, address=_ADDRESS)

    # What transactions ask for

    def holder(self, key: _Key) -> _MemoryTransaction | None:
        """The open transaction that has entered this event."""
        return next((transaction for transaction in self._open if key in transaction.made.inbox), None)

    def next_error(self) -> psycopg.Error | None:
        """What the statement that a handler executes now is to fail with."""
        return self._statement_errors.pop(0) if self._statement_errors else None

    def has_buried(self, group: str, entry: InboxEntry) -> bool:
        """Whether the group has given up this entry."""
        return (group, entry.stream, entry.entry_id) in self._state.letters

    def knows(self, key: _Key) -> bool:
        """Whether this event was entered by a transaction that is committed."""
        return key in self._state.inbox


class MemoryConnection:
    """What handlers get instead of a psycopg connection: it remembers what they execute."""

    def __init__(self, transaction: _MemoryTransaction) -> None:
        self._transaction = transaction

    async def execute(self, statement: str, values: Sequence[Any] = ()) -> None:
        """Remember a statement; it becomes one of `MemoryStore.effects` when the transaction is committed."""
        await trio.lowlevel.checkpoint()
        self._transaction.execute(Effect(statement, tuple(values)))


class _MemoryTransaction:
    """`Transaction` in memory: `made` is what it will add to the store."""

    def __init__(self, store: MemoryStore) -> None:
        self.connection = MemoryConnection(self)
        self.made = _State()
        self._store = store
        self._lost = False
        self._failed = False
        self._waits_for: _MemoryTransaction | None = None
        self._changed = trio.Event()

    @property
    def is_lost(self) -> bool:
        return self._lost

    def execute(self, effect: Effect) -> None:
        """A handler's statement."""
        self.check()
        error = self._store.next_error()
        if error is not None:
            self._failed = True
            raise error
        self.made.effects.append(effect)

    async def first_time(self, group: str, entries: Sequence[InboxEntry]) -> set[UUID]:
        await trio.lowlevel.checkpoint()
        self.check()
        new = set()
        for entry in sorted(entries, key=lambda entry: entry.event_id):
            key = (group, entry.event_id)
            if self._store.has_buried(group, entry):
                continue
            await self._wait_for(key)
            if key not in self.made.inbox and not self._store.knows(key):
                self.made.inbox[key] = entry
                new.add(entry.event_id)
        return new

    async def position(self, group: str, stream: str, entry_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.check()
        self.made.positions[group, stream] = max(
            entry_id, self.made.positions.get((group, stream), entry_id), key=entry_order
        )

    async def bury(self, letter: DeadLetter) -> None:
        await trio.lowlevel.checkpoint()
        self.check()
        self.made.letters.setdefault((letter.consumer_group, letter.stream, letter.entry_id), letter)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        self.check()
        before = self.made.copy()
        try:
            yield
            self.check()
        except BaseException:
            if not self._lost:
                self.made, self._failed = before, False
                self._wake()
            raise

    def check(self) -> None:
        """Raise what PostgreSQL would: the connection is lost, or a statement has failed before."""
        if self._lost:
            raise PostgresUnavailable("the connection was lost", address=_ADDRESS)
        if self._failed:
            raise psycopg.errors.InFailedSqlTransaction("a statement of this transaction has failed")

    def lose(self) -> None:
        """Lose the connection, and with it what was made."""
        self._lost = True
        self.end()

    def end(self) -> None:
        """Give up what is held; those who wait for it look again."""
        self.made = _State()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _wait_for(self, key: _Key) -> None:
        """Block while another open transaction has entered this event."""
        while (holder := self._store.holder(key)) not in (None, self):
            assert holder is not None  # noqa: S101
            self._check_deadlock(holder)
            self._waits_for = holder
            try:
                await holder._changed.wait()
            finally:
                self._waits_for = None
            self.check()

    def _check_deadlock(self, holder: _MemoryTransaction) -> None:
        link: _MemoryTransaction | None = holder
        while link is not None:
            if link is self:
                self._failed = True
                raise psycopg.errors.DeadlockDetected("deadlock detected")
            link = link._waits_for
