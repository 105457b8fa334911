"""What a handler gets in a simulation instead of a psycopg connection, unless its module brings a better one.

It remembers statements, and commits them with the transaction or not at all; it fails as a connection does when the
simulated database goes. It does not run SQL: queries find no row, and no constraint is ever violated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from ..testing import MemoryConnection

__all__ = ["SimulatedConnection", "SimulatedCursor"]


class SimulatedCursor:
    """The cursor of a statement that found nothing.

    Attributes:
        rowcount: 1 for whatever was executed: as if each write had met its row.
        description: None: there are no columns.
    """

    rowcount = 1
    description = None

    def __init__(self, connection: MemoryConnection) -> None:
        self._connection = connection

    async def __aenter__(self) -> SimulatedCursor:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def execute(self, query: Any, params: Sequence[Any] | Mapping[str, Any] | None = None) -> SimulatedCursor:
        """Remember a statement."""
        await self._connection.execute(str(query), _values(params))
        return self

    async def executemany(self, query: Any, params_seq: Sequence[Any]) -> None:
        """Remember a statement for each of the values."""
        for params in params_seq:
            await self.execute(query, params)

    async def fetchone(self) -> None:
        """No row."""
        return

    async def fetchall(self) -> list[Any]:
        """No rows."""
        return []

    async def fetchmany(self, size: int = 0) -> list[Any]:
        """No rows."""
        return []

    async def __aiter__(self) -> AsyncIterator[Any]:
        rows: tuple[Any, ...] = ()
        for row in rows:
            yield row


class SimulatedConnection:
    """See the module.

    Args:
        connection: of the store in memory.
    """

    def __init__(self, connection: MemoryConnection) -> None:
        self._connection = connection

    async def execute(self, query: Any, params: Sequence[Any] | Mapping[str, Any] | None = None) -> SimulatedCursor:
        """Remember a statement; it takes effect if the transaction is committed."""
        return await SimulatedCursor(self._connection).execute(query, params)

    def cursor(self, *_: Any, **__: Any) -> SimulatedCursor:
        """A cursor; it, too, finds nothing."""
        return SimulatedCursor(self._connection)

    def transaction(self) -> AbstractAsyncContextManager[None]:
        """A savepoint."""
        return self._connection.transaction()


def _values(params: Sequence[Any] | Mapping[str, Any] | None) -> tuple[Any, ...]:
    if params is None:
        return ()
    return tuple(params.values()) if isinstance(params, Mapping) else tuple(params)
