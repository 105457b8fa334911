"""A `Store` in memory that behaves like PostgreSQL, for tests in virtual time.

What is true of it is held by the same tests that hold `PostgresStore`. On top of that it fails on order:
`MemoryStore.refuse`, `MemoryStore.lose_commit`, `MemoryStore.fail_statement`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from uuid import UUID

import psycopg
import trio

from ..dead_letter import DeadLetter
from ..handling import entry_order
from ..store import InboxEntry, Transaction
from .connection import MemoryConnection
from .deletions import MemoryDeletions
from .effect import Effect
from .leases import MemoryLeases
from .letters import MemoryLetters
from .losses import MemoryLosses
from .members import MemoryMembers
from .memory import MemoryTransactions, MemoryWork, Table
from .outbox import MemoryOutbox
from .replays import MemoryReplays
from .retries import MemoryRetries
from .steps import MemorySteps
from .streams import MemoryStreams
from .suspects import MemorySuspects

__all__ = ["MemoryStore", "MemoryTransaction"]


Answer = Sequence[tuple[Any, ...]] | Callable[[tuple[Any, ...]], Sequence[tuple[Any, ...]]]


def _squeezed(statement: str) -> str:
    return " ".join(statement.split()).lower()


def _check_rows(beginning: str, rows: object) -> None:
    if not isinstance(rows, list | tuple) or not all(isinstance(row, tuple) for row in rows):
        raise TypeError(
            f"the answer to {beginning!r} is a list of rows, and a row is a tuple, as in [(1,)]: not {rows!r}"
        )


class MemoryStore:
    """`Store` in memory.

    Attributes:
        outbox: events on their way to Redis.
        losses: entries that were lost to somebody's trimming.
        replays: ranges of streams that somebody ordered to be replayed.
        leases: who has which partition of an ordered group.
        members: which processes there are.
        streams: with how many partitions streams were made.
        steps: what handlers did outside of their transactions.
    """

    def __init__(self) -> None:
        self.server = MemoryTransactions()
        self.outbox = MemoryOutbox(self.server)
        self.dead_letters = MemoryLetters(self.outbox)
        self.deletions = MemoryDeletions()
        self.losses = MemoryLosses(self.server, self.deletions)
        self.replays = MemoryReplays()
        self.leases = MemoryLeases()
        self.members = MemoryMembers()
        self.streams = MemoryStreams()
        self.inbox_table: Table[tuple[str, UUID], float] = Table("inbox")  # when it was entered
        self.position_table: Table[tuple[str, str], str] = Table("position")
        self.letter_table = self.dead_letters.table
        self.effect_table: Table[int, Effect] = Table("effect")
        self.retries = MemoryRetries(self)
        self.suspects = MemorySuspects()
        self.steps = MemorySteps(self.server)
        self._statement_errors: list[psycopg.Error] = []
        self._answers: list[tuple[str, Answer]] = []

    # What a test looks at

    @property
    def commits(self) -> int:
        """How many transactions took effect."""
        return self.server.commits

    @property
    def effects(self) -> list[Effect]:
        """What handlers executed in committed transactions, in the order of the commits."""
        return list(self.effect_table.rows.values())

    @property
    def letters(self) -> list[DeadLetter]:
        """The letters that are dead (and were not replayed with success), in the order of their first burials."""
        return [stored.letter for stored in self.letter_table.rows.values() if stored.status == "dead"]

    @property
    def inbox(self) -> set[tuple[str, UUID]]:
        """The group and the event id of everything that was handled."""
        return set(self.inbox_table.rows)

    # Faults on order

    def refuse(self, cause: str) -> None:
        """From now on the database is away: open transactions have lost their connection, new ones cannot begin."""
        self.server.refusal = cause
        for work in list(self.server.open):
            work.lose()
        self.outbox.tell()

    def restore(self) -> None:
        """It is back. Transactions that were open when it went stay lost."""
        self.server.refusal = None

    def lose_commit(self, *, effect: bool) -> None:
        """Let the connection be lost in the next commit: before it took `effect`, or after, when nobody can tell."""
        self.server.commit_losses.append(effect)

    def fail_statement(self, error: psycopg.Error) -> None:
        """Let the next statement that a handler executes fail with `error`, a violated constraint say."""
        self._statement_errors.append(error)

    def forget_errors(self) -> None:
        """No statement fails any more that was ordered to."""
        self._statement_errors.clear()

    async def execute(self, work: MemoryWork, effect: Effect) -> Sequence[tuple[Any, ...]] | None:
        """Execute a handler's statement within `work`: its rows; None where nothing was said of it."""
        await trio.lowlevel.checkpoint()
        work.check()
        if self._statement_errors:
            work.fail()
            raise self._statement_errors.pop(0)
        await work.put(self.effect_table, self.effect_table.next_id(), effect)
        return self._rows_of(effect)

    # What handlers are answered

    def answer(self, beginning: str, rows: Answer) -> None:
        """Answer the statements that begin so with rows, by what was given last for such a beginning.

        Args:
            beginning: of the statement; white space counts as one blank, and case does not.
            rows: the rows, as tuples; or a function of the statement's values that makes them.

        Raises:
            TypeError: they are none.
            ValueError: there is no beginning.
        """
        if not _squeezed(beginning):
            raise ValueError("every statement begins with nothing: say how those begin that are answered so")
        if not callable(rows):
            _check_rows(beginning, rows)
        self._answers.insert(0, (_squeezed(beginning), rows))

    def _rows_of(self, effect: Effect) -> Sequence[tuple[Any, ...]] | None:
        statement = _squeezed(effect.statement)
        for beginning, rows in self._answers:
            if statement.startswith(beginning):
                found = rows(effect.values) if callable(rows) else rows
                _check_rows(beginning, found)
                return found
        return None

    # Store

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """See `Store.transaction`."""
        async with self.server.work() as work:
            yield MemoryTransaction(self, work)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        """See `Store.connection`; here all of the block is one transaction."""
        async with self.server.work() as work:
            yield MemoryConnection(self, work)

    async def stored_position(self, group: str, stream: str) -> str | None:
        """See `Store.stored_position`."""
        await trio.lowlevel.checkpoint()
        self.server.check()
        return self.position_table.rows.get((group, stream))


class MemoryTransaction:
    """`Transaction` in memory.

    Attributes:
        connection: what handlers write with.
        work: the rows that it reads and writes, for the tables beside this one.
    """

    def __init__(self, store: MemoryStore, work: MemoryWork) -> None:
        self.connection = MemoryConnection(store, work)
        self.work = work
        self._store = store

    @property
    def is_lost(self) -> bool:
        """See `Transaction.is_lost`."""
        return self.work.is_lost

    async def first_time(self, group: str, entries: Sequence[InboxEntry]) -> set[UUID]:
        """See `Transaction.first_time`."""
        await trio.lowlevel.checkpoint()
        self.work.check()
        new = set()
        for entry in sorted(entries, key=lambda entry: entry.event_id):
            if await self.work.insert(self._store.inbox_table, (group, entry.event_id), trio.current_time()):
                new.add(entry.event_id)
        # Looked for afterwards: whoever was waited for may have buried it.
        ended = new - {entry.event_id for entry in entries if not self._has_ended(group, entry)}
        for event_id in sorted(ended):
            await self.work.delete(self._store.inbox_table, (group, event_id))
        return new - ended

    def _has_ended(self, group: str, entry: InboxEntry) -> bool:
        """Whether an entry, or its event, is dead or waits for a retry."""
        letters, retries = self._store.dead_letters, self._store.retries
        return (
            self.work.get(letters.table, (group, entry.stream, entry.entry_id)) is not None
            or retries.has(self.work, group, entry.stream, entry.entry_id)
            or letters.has_event(self.work, group, entry.event_id)
            or retries.has_event(self.work, group, entry.event_id)
        )

    async def expect_silence(self, seconds: float) -> None:
        """See `Transaction.expect_silence`: here nobody is abandoned."""
        await trio.lowlevel.checkpoint()
        self.work.check()

    async def position(self, group: str, stream: str, entry_id: str) -> None:
        """See `Transaction.position`."""
        table, key = self._store.position_table, (group, stream)
        await self.work.lock(table, key)
        before = self.work.get(table, key)
        if before is None or entry_order(before) < entry_order(entry_id):
            await self.work.put(table, key, entry_id)

    async def bury(self, letter: DeadLetter) -> None:
        """See `Transaction.bury`."""
        await self._store.dead_letters.bury(self, letter)

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """See `Transaction.savepoint`."""
        return self.work.savepoint()
