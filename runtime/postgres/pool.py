"""A small pool of connections, without tasks of its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType

import psycopg
import trio
from attrs import define, frozen
from psycopg import pq
from psycopg.rows import TupleRow, tuple_row

from .connection import Connection
from .errors import PoolTimeout, PostgresUnavailable
from .interruption import hurried
from .options import PostgresOptions

_IDLE = pq.TransactionStatus.IDLE

_log = logging.getLogger(__name__)


@frozen(kw_only=True)
class PoolStatistics:
    """What a pool has and did since it was made; the counters only grow.

    Attributes:
        idle: Open connections that nobody uses.
        in_use: Connections lent out, or being opened for somebody.
        waiting: Tasks that wait for a free one.
        max_size: The limit of *idle* + *in_use*.
        opened: Connections opened.
        expired: Connections closed for their age or idleness.
        broken: Connections found dead, or given back in a state nobody could mend.
        lent: Times that a connection was lent out.
        timeouts: Times that nobody got one within ``acquire_timeout``.
        troubles: Errors that said that the server is away.
        slow: Statements without an answer for ``slow_after``.
    """

    idle: int
    in_use: int
    waiting: int
    max_size: int
    opened: int
    expired: int
    broken: int
    lent: int
    timeouts: int
    troubles: int
    slow: int


@define
class _Counters:
    opened: int = 0
    expired: int = 0
    broken: int = 0
    lent: int = 0
    timeouts: int = 0
    troubles: int = 0
    slow: int = 0


@frozen
class _Idle:
    connection: Connection[TupleRow]
    since: float


class Pool:
    """Lends connections to one database: ``async with pool.connection() as connection``.

    Connections are opened when they are needed, up to ``options.max_size``, and the one used last is lent first,
    so that the others may expire. Entering the pool does not touch the server: a pool can be made in an outage.

    Args:
        options: The database, and the pool's limits.
        on_trouble: Called at once, synchronously, when an error says that the server is away, so that a gate can
            be shut before anybody else runs into it. It may call `drop_idle`. What it raises is logged.
        on_slow: Called once, synchronously, with *slow_after* for each statement that has waited that long for an
            answer: a frozen server says nothing of itself.
        slow_after: Seconds; see *on_slow*.
        acquire_timeout: Seconds to wait for a connection while all are lent out.
    """

    def __init__(
        self,
        options: PostgresOptions,
        *,
        on_trouble: Callable[[PostgresUnavailable], None] | None = None,
        on_slow: Callable[[float], None] | None = None,
        slow_after: float = 1.0,
        acquire_timeout: float = 30.0,
    ) -> None:
        self.options = options
        self._on_trouble = on_trouble
        self._on_slow = on_slow
        self._slow_after = slow_after
        self._acquire_timeout = acquire_timeout
        # All of the state: who is let in, and what lies idle (used last at the end).
        self._limiter = trio.CapacityLimiter(options.max_size)
        self._idle: list[_Idle] = []
        self._open = False
        self._count = _Counters()

    async def __aenter__(self) -> Pool:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the idle connections; one still lent out is closed when it comes back."""
        self._open = False
        self.drop_idle()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection[TupleRow]]:
        """Borrow a connection in autocommit mode: open a ``connection.transaction()`` for more than one statement.

        When it comes back, an open transaction is rolled back, settings of psycopg (autocommit, row factory,
        isolation level …) are restored, and a connection whose state cannot be mended within ``cancel_grace`` is
        closed. Settings of the *session* (``SET``, ``LISTEN``, advisory locks) stay: use ``SET LOCAL`` and
        ``pg_advisory_xact_lock``, or a connection of your own.

        Cancellation: waiting for one and opening one are given up; giving back is shielded and bounded.

        Raises:
            PoolTimeout: all connections were lent out for ``acquire_timeout``.
            PostgresUnavailable: one had to be opened and the server is away.
            PostgresRejected: one had to be opened and the server refuses the settings.
            RuntimeError: the pool is not open.
        """
        ticket = object()  # not the task: one task may borrow two
        await self._admit(ticket)
        try:
            connection = await self._take()
            self._count.lent += 1
            try:
                yield connection
            finally:
                await self._give_back(connection)
        finally:
            self._limiter.release_on_behalf_of(ticket)

    def statistics(self) -> PoolStatistics:
        """The pool at this moment."""
        limiter = self._limiter.statistics()
        return PoolStatistics(
            idle=len(self._idle),
            in_use=limiter.borrowed_tokens,
            waiting=limiter.tasks_waiting,
            max_size=self.options.max_size,
            opened=self._count.opened,
            expired=self._count.expired,
            broken=self._count.broken,
            lent=self._count.lent,
            timeouts=self._count.timeouts,
            troubles=self._count.troubles,
            slow=self._count.slow,
        )

    def drop_idle(self) -> int:
        """Close the idle connections at once, after an outage say; returns how many they were."""
        dropped = len(self._idle)
        while self._idle:
            self._idle.pop().connection.abandon()
        return dropped

    async def _admit(self, ticket: object) -> None:
        if not self._open:
            raise RuntimeError("the pool is closed: use it within `async with pool`")
        try:
            self._limiter.acquire_on_behalf_of_nowait(ticket)
        except trio.WouldBlock:
            with trio.move_on_after(self._acquire_timeout):
                await self._limiter.acquire_on_behalf_of(ticket)
                return
            self._count.timeouts += 1
            raise PoolTimeout(
                f"all {self.options.max_size} connections to {self.options.address} (max_size) were in use for"
                f" {self._acquire_timeout:g} s (acquire_timeout)"
            ) from None

    async def _take(self) -> Connection[TupleRow]:
        self._expire()
        while self._idle:
            connection = self._idle.pop().connection
            if connection.still_connected():
                return connection
            self._discard(connection)
        connection = await Connection.open(
            self.options,
            on_trouble=self._trouble,
            on_slow=None if self._on_slow is None else self._slow,
            slow_after=self._slow_after,
        )
        self._count.opened += 1
        return connection

    async def _give_back(self, connection: Connection[TupleRow]) -> None:
        try:
            with trio.CancelScope(shield=True):  # bounded: each step within has the connection's grace
                await _restore(connection)
        except psycopg.Error as error:
            _log.debug("cannot restore %r: %s", connection, error)
        status = connection.pgconn.transaction_status
        if connection.closed or status != _IDLE or connection.pgconn.pipeline_status:
            self._discard(connection)
        elif not self._open:
            await connection.close()
        else:
            self._idle.append(_Idle(connection, trio.current_time()))
            self._expire()

    def _discard(self, connection: Connection[TupleRow]) -> None:
        self._count.broken += 1
        connection.abandon()

    def _expire(self) -> None:
        """Close what is too old, or has idled too long above ``min_size``; looked at when the pool is used."""
        now = trio.current_time()
        born_before = now - self.options.max_lifetime
        old = [idle for idle in self._idle if idle.connection.opened_at <= born_before]
        kept = [idle for idle in self._idle if idle.connection.opened_at > born_before]
        idle_before = now - self.options.max_idle
        while len(kept) > self.options.min_size and kept[0].since <= idle_before:
            old.append(kept.pop(0))
        for idle in old:
            idle.connection.abandon()
        self._count.expired += len(old)
        self._idle = kept

    def _trouble(self, trouble: PostgresUnavailable) -> None:
        self._count.troubles += 1
        if self._on_trouble is not None:
            self._on_trouble(trouble)

    def _slow(self, seconds: float) -> None:
        self._count.slow += 1
        if self._on_slow is not None:
            self._on_slow(seconds)


async def _restore(connection: Connection[TupleRow]) -> None:
    """Undo what the borrower left behind, as far as it can be undone within the grace."""
    await connection.settle()
    if connection.closed or connection.pgconn.pipeline_status:
        return
    if connection.pgconn.transaction_status != _IDLE:
        _log.warning("%r came back to the pool within a transaction: rolling back", connection)
        with hurried():
            await connection.rollback()
    if connection.closed or connection.pgconn.transaction_status != _IDLE:
        return
    connection.row_factory = tuple_row
    await connection.set_autocommit(True)
    await connection.set_isolation_level(None)
    await connection.set_read_only(None)
    await connection.set_deferrable(None)
