"""What a handler gets in memory instead of a psycopg connection.

It remembers statements, and commits them with the transaction or not at all; it fails as a connection does when the
database goes. It does not run SQL: statements find the rows that `MemoryStore.answer` was given for them, or none, and
no constraint is ever violated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

import trio

from .effect import Effect

if TYPE_CHECKING:
    from .memory import MemoryWork
    from .store import MemoryStore

__all__ = ["MemoryConnection", "MemoryCursor"]

Params = Sequence[Any] | Mapping[str, Any] | None


class MemoryCursor:
    """The cursor of a statement.

    Attributes:
        rowcount: how many rows it has; 1 for one of which nothing was said: as if each write had met its row.
        description: None: columns have no names.
    """

    description = None

    def __init__(self, store: MemoryStore, work: MemoryWork) -> None:
        self.rowcount = -1
        self._store = store
        self._work = work
        self._left: list[tuple[Any, ...]] = []

    async def __aenter__(self) -> MemoryCursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self, query: Any, params: Params = None) -> MemoryCursor:
        """Remember a statement; it becomes one of `MemoryStore.effects` when the transaction is committed."""
        rows = await self._store.execute(self._work, Effect(str(query), _values(params)))
        self.rowcount = 1 if rows is None else len(rows)
        self._left = list(rows or ())
        return self

    async def executemany(self, query: Any, params_seq: Sequence[Any]) -> None:
        """Remember a statement for each of the values."""
        for params in params_seq:
            await self.execute(query, params)
        self._left.clear()

    async def fetchone(self) -> tuple[Any, ...] | None:
        """The next row; None if there is none."""
        found = await self.fetchmany(1)
        return found[0] if found else None

    async def fetchmany(self, size: int = 1) -> list[tuple[Any, ...]]:
        """The next rows."""
        await trio.lowlevel.checkpoint()
        found, self._left = self._left[:size], self._left[size:]
        return found

    async def fetchall(self) -> list[tuple[Any, ...]]:
        """The rows that are left."""
        return await self.fetchmany(len(self._left))

    async def __aiter__(self) -> AsyncIterator[tuple[Any, ...]]:
        """The same, one by one."""
        while (row := await self.fetchone()) is not None:
            yield row


class MemoryConnection:
    """See the module."""

    def __init__(self, store: MemoryStore, work: MemoryWork) -> None:
        self._store = store
        self._work = work

    @property
    def is_lost(self) -> bool:
        """Whether it is gone, and its transaction with it."""
        return self._work.is_lost

    async def execute(self, query: Any, params: Params = None) -> MemoryCursor:
        """See `MemoryCursor.execute`."""
        return await self.cursor().execute(query, params)

    def cursor(self, *_: Any, **__: Any) -> MemoryCursor:
        """A cursor."""
        return MemoryCursor(self._store, self._work)

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A savepoint, as psycopg's ``connection.transaction()`` is one inside of a transaction."""
        return self._work.savepoint()


def _values(params: Params) -> tuple[Any, ...]:
    if params is None:
        return ()
    return tuple(params.values()) if isinstance(params, Mapping) else tuple(params)
