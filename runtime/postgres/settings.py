"""What psycopg keeps for a connection on this side of the line, to be put back when a borrower changed it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
from attrs import frozen
from psycopg.rows import AsyncRowFactory, TupleRow

from . import internals
from .connection import Connection

__all__ = ["Settings"]


@frozen
class Settings:
    """psycopg's settings of one connection, all but autocommit: those that a pool's ``configure`` left."""

    row_factory: AsyncRowFactory[TupleRow]
    cursor_factory: type[psycopg.AsyncCursor[TupleRow]]
    server_cursor_factory: type[psycopg.AsyncServerCursor[TupleRow]]
    prepare_threshold: int | None
    prepared_max: int | None
    isolation_level: psycopg.IsolationLevel | None
    read_only: bool | None
    deferrable: bool | None
    handlers: tuple[tuple[Callable[..., Any], ...], tuple[Callable[..., Any], ...]]

    @classmethod
    def of(cls, connection: Connection[TupleRow]) -> Settings:
        """Those that *connection* has now."""
        return cls(
            row_factory=connection.row_factory,
            cursor_factory=connection.cursor_factory,
            server_cursor_factory=connection.server_cursor_factory,
            prepare_threshold=connection.prepare_threshold,
            prepared_max=connection.prepared_max,
            isolation_level=connection.isolation_level,
            read_only=connection.read_only,
            deferrable=connection.deferrable,
            handlers=internals.handlers(connection),
        )

    async def put_back(self, connection: Connection[TupleRow]) -> None:
        """Give them back to *connection*, which is idle, and autocommit too. Asks no server."""
        connection.row_factory = self.row_factory
        connection.cursor_factory = self.cursor_factory
        connection.server_cursor_factory = self.server_cursor_factory
        connection.prepare_threshold = self.prepare_threshold
        connection.prepared_max = self.prepared_max
        internals.set_handlers(connection, self.handlers)
        await connection.set_autocommit(True)
        await connection.set_isolation_level(self.isolation_level)
        await connection.set_read_only(self.read_only)
        await connection.set_deferrable(self.deferrable)
