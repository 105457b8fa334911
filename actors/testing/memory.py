"""Transactions in memory that behave like PostgreSQL's at READ COMMITTED: what `MemoryStore` is made of.

A transaction sees what is committed and what it wrote itself. Who writes a row, or locks it, has it until the end of
the transaction; others wait for that, pass it over (``skip=True``), or find that they wait for each other, which is a
deadlock for one of them. A rollback undoes everything, a savepoint its block.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar

import psycopg
import trio

from ...runtime.postgres import PostgresUnavailable

__all__ = ["ADDRESS", "MemoryTransactions", "MemoryWork", "Table"]

ADDRESS: Final = "memory"

K = TypeVar("K")
V = TypeVar("V")

_DELETED: Final = object()


class Table(Generic[K, V]):
    """A table: rows by their primary key. Rows are immutable values; to change one, put another in its place.

    Args:
        name: for debugging.

    Attributes:
        rows: what is committed, in the order of insertion.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[K, V] = {}
        self._next = 0

    def next_id(self) -> int:
        """The next number of an identity column; like PostgreSQL's, it is used up also by what is rolled back."""
        self._next += 1
        return self._next

    def __repr__(self) -> str:
        return f"<Table {self.name}: {len(self.rows)} rows>"


_Place = tuple[Table[Any, Any], Any]


class MemoryTransactions:
    """The server: it knows the open transactions, and fails when it is told to.

    Attributes:
        commits: how many took effect.
        open: the open ones.
        holders: who has which row.
        refusal: why the database is away; None while it is there.
        commit_losses: for each of the next commits whether it takes effect before its answer is lost.
        guard: asked for each connection, in the task that wants it; raises where it cannot be made.
        trouble: told of each loss of a connection, by who meets it, as a pool tells.
        committed: told of the rows that a commit has put (None: deleted), by table and key, right after it.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.open: dict[MemoryWork, None] = {}  # in the order of their beginning, so that runs can be repeated
        self.holders: dict[_Place, MemoryWork] = {}
        self.sharers: dict[_Place, dict[MemoryWork, None]] = {}
        self.refusal: str | None = None
        self.commit_losses: list[bool] = []
        self.guard: Callable[[], None] = _let_in
        self.trouble: Callable[[PostgresUnavailable], None] = _ignore
        self.committed: Callable[[Mapping[tuple[Table[Any, Any], Any], Any | None]], None] = _ignore

    def check(self) -> None:
        """Raise what a new connection would meet."""
        if self.refusal is not None:
            raise PostgresUnavailable(self.refusal, address=ADDRESS)
        self.guard()

    @asynccontextmanager
    async def work(self) -> AsyncIterator[MemoryWork]:
        """A transaction: committed when the block is left normally, rolled back otherwise."""
        await trio.lowlevel.checkpoint()
        self.check()
        work = MemoryWork(self)
        self.open[work] = None
        try:
            yield work
            await trio.lowlevel.checkpoint_if_cancelled()
            work.commit()
        finally:
            self.open.pop(work, None)
            work.end()


def _let_in() -> None:
    """Nobody is kept out."""


def _ignore(rows: object) -> None:
    """Nobody looks on."""


class MemoryWork:
    """One open transaction, as far as rows are concerned. Every method that waits is a checkpoint.

    Attributes:
        task: that began it.
    """

    def __init__(self, server: MemoryTransactions) -> None:
        self.task = trio.lowlevel.current_task()
        self._server = server
        self._written: dict[_Place, Any] = {}
        self._held: dict[_Place, None] = {}
        self._shared: dict[_Place, None] = {}
        self._on_commit: list[Callable[[], None]] = []
        self._lost = False
        self._failed = False
        self._waits_for: MemoryWork | None = None
        self._changed = trio.Event()

    @property
    def is_lost(self) -> bool:
        """Whether the connection is gone."""
        return self._lost

    # Rows -----------------------------------------------------------------------------------------------------------

    def get(self, table: Table[K, V], key: K) -> V | None:
        """The row as this transaction sees it."""
        written = self._written.get((table, key), None)
        if written is not None:
            return None if written is _DELETED else written
        return table.rows.get(key)

    def scan(self, table: Table[K, V]) -> Iterator[tuple[K, V]]:
        """All rows as this transaction sees them: committed ones first, in the order of insertion."""
        for key, row in list(table.rows.items()):
            written = self._written.get((table, key))
            if written is None:
                yield key, row
            elif written is not _DELETED:
                yield key, written
        for (place, key), written in list(self._written.items()):
            if place is table and written is not _DELETED and key not in table.rows:
                yield key, written

    async def lock(self, table: Table[K, V], key: K, *, skip: bool = False) -> bool:
        """``for update``: have the row, or the right to insert it, until the end. Waits for whoever has it.

        With `skip`, returns False instead of waiting. What `get` returns may be another row afterwards.

        Raises:
            psycopg.errors.DeadlockDetected: we would wait for each other.
            PostgresUnavailable: the connection was lost.
        """
        await trio.lowlevel.checkpoint()
        self.check()
        place = (table, key)
        while (holder := self._in_the_way(place)) is not None:
            if skip:
                return False
            await self._wait_for(holder)
        self._server.holders[place] = self
        self._held[place] = None
        return True

    async def share(self, table: Table[K, V], key: K) -> None:
        """``for share``: nobody else locks or writes the row until the end, though others may share it, too.

        Waits like `lock`, and raises what it raises.
        """
        await trio.lowlevel.checkpoint()
        self.check()
        place = (table, key)
        while (holder := self._server.holders.get(place)) not in (None, self):
            assert holder is not None  # noqa: S101
            await self._wait_for(holder)
        self._server.sharers.setdefault(place, {})[self] = None
        self._shared[place] = None

    async def put(self, table: Table[K, V], key: K, row: V) -> None:
        """Insert or replace a row; see `lock` for what it waits for."""
        await self.lock(table, key)
        self._written[table, key] = row

    async def insert(self, table: Table[K, V], key: K, row: V) -> bool:
        """Insert a row; False, and nothing happens or is held, if there is one (``on conflict do nothing``)."""
        was_held = (table, key) in self._held
        await self.lock(table, key)
        if self.get(table, key) is None:
            self._written[table, key] = row
            return True
        if not was_held:
            self._release((table, key))
        return False

    async def delete(self, table: Table[K, V], key: K) -> bool:
        """Delete a row; False if there was none."""
        await self.lock(table, key)
        there = self.get(table, key) is not None
        self._written[table, key] = _DELETED
        return there

    def on_commit(self, call: Callable[[], None]) -> None:
        """Call this once the transaction is committed, as NOTIFY would."""
        self._on_commit.append(call)

    # The transaction ------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        """A block whose writes and locks are undone, alone, when it is left with an exception."""
        await trio.lowlevel.checkpoint()
        self.check()
        written, held, calls = dict(self._written), dict(self._held), list(self._on_commit)
        try:
            yield
            self.check()
        except BaseException:
            if not self._lost:
                self._written, self._on_commit, self._failed = written, calls, False
                for place in [each for each in self._held if each not in held]:
                    self._release(place)
                self._wake()
            raise

    def fail(self) -> None:
        """A statement has failed: nothing else may be done before a rollback."""
        self._failed = True

    def check(self) -> None:
        """Raise what PostgreSQL would: the connection is lost, or a statement has failed before."""
        if self._lost:
            lost = PostgresUnavailable("the connection was lost", address=ADDRESS)
            self._server.trouble(lost)
            raise lost
        if self._failed:
            raise psycopg.errors.InFailedSqlTransaction("a statement of this transaction has failed")

    def commit(self) -> None:
        """Let everything take effect at once.

        Raises:
            PostgresUnavailable: the connection was lost; before it took effect, or after.
        """
        self.check()
        server = self._server
        loss = server.commit_losses.pop(0) if server.commit_losses else None
        if loss is not False:
            for (table, key), row in self._written.items():
                if row is _DELETED:
                    table.rows.pop(key, None)
                else:
                    table.rows[key] = row
            server.commits += 1
            server.committed({place: None if row is _DELETED else row for place, row in self._written.items()})
            for call in self._on_commit:
                call()
        if loss is not None:
            self.lose()
            self.check()

    def lose(self) -> None:
        """Lose the connection, and with it what was written."""
        self._lost = True
        self.end()

    def end(self) -> None:
        """Give up what is held; those who wait for it look again."""
        self._written, self._on_commit = {}, []
        for place in list(self._held):
            self._release(place)
        for place in self._shared:
            self._server.sharers[place].pop(self, None)
        self._shared = {}
        self._wake()

    def _in_the_way(self, place: _Place) -> MemoryWork | None:
        """Who keeps us from having the row alone."""
        holder = self._server.holders.get(place)
        if holder not in (None, self):
            return holder
        return next((each for each in self._server.sharers.get(place, ()) if each is not self), None)

    async def _wait_for(self, holder: MemoryWork) -> None:
        self._check_deadlock(holder)
        self._waits_for = holder
        try:
            await holder._changed.wait()
        finally:
            self._waits_for = None
        self.check()

    def _release(self, place: _Place) -> None:
        self._held.pop(place, None)
        if self._server.holders.get(place) is self:
            del self._server.holders[place]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _check_deadlock(self, holder: MemoryWork) -> None:
        link: MemoryWork | None = holder
        while link is not None:
            if link is self:
                self._failed = True
                raise psycopg.errors.DeadlockDetected("deadlock detected")
            link = link._waits_for
