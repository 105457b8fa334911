"""A small pool of connections, without tasks of its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from weakref import WeakKeyDictionary

import attrs
import psycopg
import trio
from attrs import define, frozen
from psycopg import pq
from psycopg.rows import TupleRow

from . import internals
from .connection import Connection
from .errors import PoolTimeout, PostgresUnavailable
from .interruption import hurried
from .options import PostgresOptions
from .pool_statistics import Counters, Loan, PoolStatistics
from .settings import Settings

__all__ = ["Pool"]

_IDLE = pq.TransactionStatus.IDLE

_log = logging.getLogger(__name__)


@frozen
class _Idle:
    connection: Connection[TupleRow]
    since: float


@define(eq=False)
class _Ticket:
    """Who was let in. Not the task itself: one task may borrow two."""

    task: str
    since: float
    connection: Connection[TupleRow] | None = None


class Pool:
    """Lends connections to one database: ``async with pool.connection() as connection``.

    Connections are opened when they are needed, up to ``options.max_size``, and the one used last is lent first,
    so that the others may expire. Who has to wait is served in order. Entering the pool does not touch the server: a
    pool can be made in an outage.

    At the first sign that the server went away or changed its role, all idle connections are closed, and those lent
    out are closed when they come back. A sign is a statement that fails so (`Fault.OUTAGE`, but not because the server
    is full), or a check that gets no answer.

    Args:
        options: The database, and the pool's limits.
        on_trouble: Called at once, synchronously, when an error says that the server is away, so that a gate can
            be shut before anybody else runs into it. It may call `drop_idle`. What it raises is logged.
        on_slow: Called once, synchronously, with *slow_after* for each statement that has waited that long for an
            answer: a frozen server says nothing of itself.
        slow_after: Seconds; see *on_slow*.
        acquire_timeout: Seconds to wait for a connection while all are lent out.
        check_after: A connection that has idled for so many seconds is asked by a round trip before it is lent. All
            are looked at without one, but a peer that vanished without a word is not seen that way.
        check_timeout: Seconds for that round trip; without an answer another connection is opened.
        configure: Called with each new connection before it is first lent (to register types, say). What it sets of
            psycopg's settings is what every borrower finds. What it raises comes out of `connection`.
    """

    def __init__(
        self,
        options: PostgresOptions,
        *,
        on_trouble: Callable[[PostgresUnavailable], None] | None = None,
        on_slow: Callable[[float], None] | None = None,
        slow_after: float = 1.0,
        acquire_timeout: float = 30.0,
        check_after: float = 30.0,
        check_timeout: float = 1.0,
        configure: Callable[[Connection[TupleRow]], Awaitable[None]] | None = None,
    ) -> None:
        self.options = options
        self._on_trouble = on_trouble
        self._on_slow = on_slow
        self._slow_after = slow_after
        self._acquire_timeout = acquire_timeout
        self._check_after = check_after
        self._check_timeout = check_timeout
        self._configure = configure
        # All of the state: who is let in, what lies idle (used last at the end), and which connections are not to be
        # trusted: those opened up to then.
        self._limiter = trio.CapacityLimiter(options.max_size)
        self._tickets: dict[_Ticket, None] = {}
        self._idle: list[_Idle] = []
        self._settings: WeakKeyDictionary[Connection[TupleRow], Settings] = WeakKeyDictionary()
        self._doubted_at = float("-inf")
        self._open = False
        self._count = Counters()

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

        When it comes back, an open transaction is rolled back, settings of psycopg (autocommit, row and cursor
        factories, isolation level, handlers …) are restored, and a connection whose state cannot be mended within
        ``cancel_grace`` (a task that still uses it, say, or an open ``stream()``) is closed. Settings of the
        *session* (``SET``, ``LISTEN``, advisory locks) and registered types stay: use ``SET LOCAL`` and
        ``pg_advisory_xact_lock``, or a connection of your own.

        Cancellation: waiting for one and opening one are given up; giving back is shielded and bounded.

        Raises:
            PoolTimeout: all connections were lent out for ``acquire_timeout``; it names who holds one longest.
            PostgresUnavailable: one had to be opened and the server is away.
            PostgresRejected: one had to be opened and the server refuses the settings.
            RuntimeError: the pool is not open.
        """
        ticket = await self._admit()
        try:
            connection = ticket.connection = await self._take()
            self._count.lent += 1
            try:
                yield connection
            finally:
                await self._give_back(connection)
        finally:
            del self._tickets[ticket]
            self._limiter.release_on_behalf_of(ticket)

    async def warm_up(self) -> int:
        """Open connections until `min_size` idle; returns how many were opened. Waits for none that is lent out.

        Never done by the pool itself, which has no task for it: call it before the first rush, if that matters.

        Raises:
            As `connection`.
        """
        before = self._count.opened
        async with AsyncExitStack() as borrowed:
            for _ in range(min(self.options.min_size, int(self._limiter.available_tokens))):
                await borrowed.enter_async_context(self.connection())
        return self._count.opened - before

    def statistics(self) -> PoolStatistics:
        """The pool at this moment."""
        limiter = self._limiter.statistics()
        return PoolStatistics(
            idle=len(self._idle),
            in_use=limiter.borrowed_tokens,
            waiting=limiter.tasks_waiting,
            max_size=self.options.max_size,
            **attrs.asdict(self._count),
        )

    def loans(self) -> tuple[Loan, ...]:
        """Who holds a connection at this moment, the longest first: where one is never given back, it shows here."""
        now = trio.current_time()
        return tuple(
            Loan(task=ticket.task, seconds=now - ticket.since, backend_pid=_backend_pid(ticket.connection))
            for ticket in self._tickets
        )

    def drop_idle(self) -> int:
        """Close the idle connections at once, after an outage say; returns how many they were."""
        dropped = len(self._idle)
        while self._idle:
            self._idle.pop().connection.abandon()
        return dropped

    async def _admit(self) -> _Ticket:
        self._check_open()
        ticket = _Ticket(trio.lowlevel.current_task().name, trio.current_time())
        try:
            self._limiter.acquire_on_behalf_of_nowait(ticket)
        except trio.WouldBlock:
            await self._queue(ticket)
            if not self._open:
                self._limiter.release_on_behalf_of(ticket)
                self._check_open()
        ticket.since = trio.current_time()
        self._tickets[ticket] = None
        return ticket

    def _check_open(self) -> None:
        if not self._open:
            raise RuntimeError("the pool is closed: use it within `async with pool`")

    async def _queue(self, ticket: _Ticket) -> None:
        """Wait in line. A token is handed over in the very moment in which it is released: nobody can overtake."""
        try:
            with trio.move_on_after(self._acquire_timeout):
                await self._limiter.acquire_on_behalf_of(ticket)
                return
        finally:
            self._count.note_wait(trio.current_time() - ticket.since)
        self._count.timeouts += 1
        # None, if all were given on in this very moment.
        longest = "".join(f"; {loan.task!r} holds one for {loan.seconds:.1f} s" for loan in self.loans()[:1])
        raise PoolTimeout(
            f"all {self.options.max_size} connections to {self.options.address} (max_size) were in use for"
            f" {self._acquire_timeout:g} s (acquire_timeout){longest}"
        )

    async def _take(self) -> Connection[TupleRow]:
        self._expire()
        while self._idle:
            idle = self._idle.pop()
            if await self._is_well(idle):
                return idle.connection
            self._discard(idle.connection)
        return await self._open_another()

    async def _is_well(self, idle: _Idle) -> bool:
        if not idle.connection.still_connected():
            return False
        if trio.current_time() - idle.since < self._check_after:
            return True
        self._count.checked += 1
        try:
            answered = await idle.connection.ping(self._check_timeout)
        except BaseException:  # cancelled, mostly: nobody would give it back
            self._discard(idle.connection)
            raise
        if not answered:
            self._doubt()
        return answered

    async def _open_another(self) -> Connection[TupleRow]:
        connection = await Connection.open(
            self.options,
            on_trouble=self._trouble,
            on_slow=None if self._on_slow is None else self._slow,
            slow_after=self._slow_after,
        )
        self._count.opened += 1
        if self._configure is not None:
            try:
                await self._configure(connection)
            except BaseException:
                self._discard(connection)
                raise
        self._settings[connection] = Settings.of(connection)
        return connection

    async def _give_back(self, connection: Connection[TupleRow]) -> None:
        try:
            with trio.CancelScope(shield=True):  # bounded: each step within has the connection's grace
                await _restore(connection, self._settings[connection])
        except psycopg.Error as error:
            _log.debug("cannot restore %r: %s", connection, error)
        except BaseException:  # Control-C
            self._discard(connection)
            raise
        if not _is_restored(connection) or connection.opened_at <= self._doubted_at:
            self._discard(connection)
        elif not self._open:
            await connection.close()
        else:
            self._idle.append(_Idle(connection, trio.current_time()))
            self._expire()

    def _discard(self, connection: Connection[TupleRow]) -> None:
        self._count.broken += 1
        connection.abandon()

    def _doubt(self) -> None:
        """Trust no connection that was opened up to now."""
        self._doubted_at = trio.current_time()
        self.drop_idle()

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
        if _loses_connections(trouble):
            self._doubt()
        if self._on_trouble is not None:
            self._on_trouble(trouble)

    def _slow(self, seconds: float) -> None:
        self._count.slow += 1
        if self._on_slow is not None:
            self._on_slow(seconds)


def _loses_connections(trouble: PostgresUnavailable) -> bool:
    """Whether a statement failed for a reason that concerns other connections as well.

    Not when connecting failed (there is no cause yet; others may be well), nor for a server that is full (53) or
    cannot use its disk (58).
    """
    cause = trouble.__cause__
    return isinstance(cause, psycopg.Error) and (cause.sqlstate or "")[:2] not in ("53", "58")


def _backend_pid(connection: Connection[TupleRow] | None) -> int | None:
    return None if connection is None or connection.closed else connection.info.backend_pid


def _is_restored(connection: Connection[TupleRow]) -> bool:
    if connection.closed or connection.pgconn.pipeline_status or internals.in_two_phase(connection):
        return False
    if connection.in_use:
        return False
    return connection.pgconn.transaction_status == _IDLE


async def _restore(connection: Connection[TupleRow], settings: Settings) -> None:
    """Undo what the borrower left behind, as far as it can be undone within the grace."""
    await connection.settle()
    if connection.closed or connection.pgconn.pipeline_status:
        return
    if connection.in_use:
        _log.warning("%r came back to the pool while a task or an open stream() uses it", connection)
    elif connection.pgconn.transaction_status != _IDLE:
        _log.warning("%r came back to the pool within a transaction: rolling back", connection)
    if connection.in_use or connection.pgconn.transaction_status != _IDLE:
        with hurried():
            await connection.rollback()  # when it has its turn
    if _is_restored(connection):
        await settings.put_back(connection)
