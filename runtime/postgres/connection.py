"""One connection to PostgreSQL: psycopg's `AsyncConnection` on trio.

The rule for cancellation, everywhere: a cancelled task gets its `trio.Cancelled` within the connection's
*cancel_grace*, and leaves the connection usable or closed, never stuck. To get there, a running statement is
cancelled on the server and its answer awaited under a shield; a server that does not answer in time loses the
connection. When a statement is found to have succeeded all the same, it returns normally (trio raises again at
the next checkpoint): so ``Cancelled`` out of a statement means that it had no effect, unless the connection is
closed afterwards.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
import trio
from psycopg import pq
from psycopg.rows import AsyncRowFactory, Row, TupleRow, tuple_row

from . import internals
from .cursors import Cursor, ServerCursor
from .errors import Fault, PostgresUnavailable, classify, connect_failure, first_line
from .interruption import Interruption, hurried
from .lock import StatementLock
from .resolving import resolve
from .waiting import drive_connecting, wait_ready

if TYPE_CHECKING:
    from typing import Self

    from psycopg.abc import AdaptContext, ConnParam

    from .internals import PQGen
    from .options import PostgresOptions

_R = TypeVar("_R")
_A = TypeVar("_A")

_ACTIVE = pq.TransactionStatus.ACTIVE
_INERROR = pq.TransactionStatus.INERROR

# How long a connection may keep the scheduler busy with sockets that are always ready, in seconds, so that a
# long executemany() or COPY does not starve the other tasks. As psycopg does on asyncio.
_MAX_BUSY = 0.005

_log = logging.getLogger(__name__)


class Connection(psycopg.AsyncConnection[Row]):
    """`psycopg.AsyncConnection` on trio; psycopg's documentation holds, with the cancellation rule of this module.

    Made by `open` (our options, autocommit) or `connect` (psycopg's signature). Statements of several tasks on
    one connection are taken in turn, but one connection serves one task best.

    Attributes:
        cancel_grace: Seconds that the server has to end a cancelled statement.
        opened_at: `trio.current_time` when the connection was made.
    """

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Row] | None = None) -> None:
        super().__init__(pgconn, row_factory or cast("AsyncRowFactory[Row]", tuple_row))
        self.cursor_factory = Cursor
        self.server_cursor_factory = ServerCursor
        self.cancel_grace = 2.0
        self.opened_at = trio.current_time()
        self._address = "an unnamed server"
        self._on_trouble: Callable[[PostgresUnavailable], None] | None = None
        self._on_slow: Callable[[float], None] | None = None
        self._slow_after = 1.0
        self._slow_told = False
        self._yielded_at = 0.0
        internals.set_lock(self, StatementLock(lambda: self.cancel_grace))

    @classmethod
    async def open(
        cls,
        options: PostgresOptions,
        *,
        on_trouble: Callable[[PostgresUnavailable], None] | None = None,
        on_slow: Callable[[float], None] | None = None,
        slow_after: float = 1.0,
    ) -> Connection[TupleRow]:
        """Connect as *options* say, in autocommit mode.

        Args:
            on_trouble: Called at once and synchronously when an error says that the server is away (`Fault.OUTAGE`),
                while connecting or later.
            on_slow: Called once for a statement that has had no answer for *slow_after* seconds: the server may be
                frozen, which says nothing of itself.

        Cancellation drops the attempt.

        Raises:
            PostgresUnavailable: the server is away, full, starting, or did not answer within ``connect_timeout``.
            PostgresRejected: it refuses the user, the password, the database or TLS.
        """
        try:
            connection = await cls._attempt(options.conninfo(), options.connect_timeout)
        except psycopg.OperationalError as error:
            failure = connect_failure(error, options.address)
            if on_trouble is not None and isinstance(failure, PostgresUnavailable):
                _tell(on_trouble, failure)
            raise failure from error
        internals.set_autocommit_state(connection, True)
        connection.cancel_grace = options.cancel_grace
        connection._address = options.address
        connection._on_trouble = on_trouble
        connection._on_slow = on_slow
        connection._slow_after = slow_after
        return cast("Connection[TupleRow]", connection)

    @classmethod
    async def connect(
        cls,
        conninfo: str = "",
        *,
        autocommit: bool = False,
        prepare_threshold: int | None = 5,
        context: AdaptContext | None = None,
        row_factory: AsyncRowFactory[Row] | None = None,
        cursor_factory: type[psycopg.AsyncCursor[Row]] | None = None,
        **kwargs: ConnParam,
    ) -> Self:
        """Connect as `psycopg.AsyncConnection.connect` does, with psycopg's errors."""
        params = internals.conninfo_to_dict(conninfo, **kwargs)
        connection = await cls._attempt(params, float(internals.timeout_from_conninfo(params)))
        internals.set_autocommit_state(connection, autocommit)
        if row_factory is not None:
            connection.row_factory = row_factory
        if cursor_factory is not None:
            connection.cursor_factory = cursor_factory
        if context is not None:
            internals.set_adapters(connection, context)
        connection.prepare_threshold = prepare_threshold
        return connection

    @classmethod
    async def _attempt(cls, params: internals.ConnDict, limit: float) -> Self:
        """Try the addresses in turn, *limit* seconds each; the last error tells of all."""
        failures: list[psycopg.OperationalError] = []
        for attempt in await resolve(params, limit):
            with trio.move_on_after(limit):
                try:
                    conninfo = internals.make_conninfo("", **attempt)
                    return await drive_connecting(internals.connect_steps(cls, conninfo))
                except psycopg.OperationalError as error:
                    failures.append(error)
                    continue
            failures.append(psycopg.errors.ConnectionTimeout(f"no connection within {limit:g} s"))
        if len(failures) == 1:
            raise failures[0]
        raise type(failures[-1])("; ".join(str(failure) for failure in failures))

    @property
    def address(self) -> str:
        """Where this connection leads to, without secrets."""
        return self._address

    # Waiting

    async def wait(
        self,
        gen: PQGen[_R],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's signature
    ) -> _R:
        """Run *gen*, the steps of one operation, to its end: the place that all of psycopg's operations pass.

        *interval* is psycopg's and not needed here. A checkpoint where there is something to wait for.

        Cancellation: see the module; `Interruption` says which rule holds.
        """
        rule = Interruption.current()
        if rule is Interruption.AT_ONCE:
            # Before the first step: a step that was taken and then reported as cancelled would be lost.
            await trio.lowlevel.checkpoint_if_cancelled()
        self._slow_told = False
        try:
            return await self._drive(gen, None if timeout is None else trio.current_time() + timeout)
        except trio.Cancelled:
            if not self._is_busy():
                raise
            cancel = rule is not Interruption.FINISH
            outcome = await self._end_interrupted(gen, cancel=cancel)
            # In a pipeline the end of these steps is not yet the end of the statements that were cancelled.
            if outcome is None or (cancel and not self.closed and self.pgconn.pipeline_status):
                raise
            return outcome[0]
        except KeyboardInterrupt:
            if self._is_busy():
                await self._end_interrupted(gen, cancel=True)
            raise

    def _is_busy(self) -> bool:
        return self.pgconn.transaction_status == _ACTIVE or bool(not self.closed and self.pgconn.pipeline_status)

    async def _drive(self, steps: PQGen[_R], deadline: float | None = None) -> _R:
        alive = not self.closed
        try:
            want = int(next(steps))
            fd = self.pgconn.socket
            while True:
                ready = 0
                if want & internals.WRITE:
                    # Nearly always writable: a pipeline and COPY would pay a trip through the scheduler for nothing.
                    await self._share_time()
                    ready = internals.ready(fd, want)
                if not ready:
                    ready = await self._wait_ready(fd, want, deadline)
                want = int(steps.send(ready))
                if deadline is not None and trio.current_time() >= deadline:
                    raise internals.WaitTimeout("wait timeout expired")
        except StopIteration as end:
            result: _R = end.value
            return result
        except psycopg.Error as error:
            if not self.closed and self.pgconn.pipeline_status:
                internals.forget_prepared(self)
            if alive:
                self._look_for_trouble(error)
            raise

    async def _share_time(self) -> None:
        if monotonic() - self._yielded_at >= _MAX_BUSY:
            await trio.lowlevel.checkpoint()
            self._yielded_at = monotonic()

    async def _wait_ready(self, fd: int, want: int, deadline: float | None) -> int:
        """Wait for the socket; 0 when *deadline* passed."""
        try:
            if deadline is not None:
                with trio.move_on_at(deadline):
                    return await wait_ready(fd, want)
                return 0
            if self._on_slow is not None and not self._slow_told and self.pgconn.transaction_status == _ACTIVE:
                with trio.move_on_after(self._slow_after):
                    return await wait_ready(fd, want)
                self._slow_told = True
                _tell(self._on_slow, self._slow_after)
            return await wait_ready(fd, want)
        finally:
            self._yielded_at = monotonic()

    def _look_for_trouble(self, error: psycopg.Error) -> None:
        """Report what says that the server is away; turn a standby's refusal to write into an outage."""
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self._server_is_read_only():
            unavailable = PostgresUnavailable("it is read-only (a standby?)", address=self._address)
            if self._on_trouble is not None:
                _tell(self._on_trouble, unavailable)
            raise unavailable from error
        if self._on_trouble is not None and classify(error) is Fault.OUTAGE:
            unavailable = PostgresUnavailable(first_line(error), address=self._address)
            unavailable.__cause__ = error
            _tell(self._on_trouble, unavailable)

    def _server_is_read_only(self) -> bool:
        # The server tells both of itself, and tells again when they change (PostgreSQL 14 and later).
        names = (b"in_hot_standby", b"default_transaction_read_only")
        return any(self.pgconn.parameter_status(name) == b"on" for name in names)

    # Ending what was interrupted

    async def _end_interrupted(self, steps: PQGen[_R], *, cancel: bool) -> tuple[_R] | None:
        """Bring interrupted *steps* to their end within the grace; ``None`` if they failed, else the result.

        With *cancel* a failure means that the statement was cancelled; without, it is raised, for then it says
        what became of a COMMIT.
        """
        with trio.move_on_after(self.cancel_grace, shield=True):
            try:
                if cancel:
                    await self._request_cancel()
                return (await self._drive(steps),)
            except psycopg.Error:
                if not cancel:
                    raise
                if self.pgconn.transaction_status != _ACTIVE or self.pgconn.pipeline_status:
                    return None  # a pipeline is drained where it is left
            except BaseException:
                self._give_up(steps)
                raise
        self._give_up(steps)
        return None

    def _give_up(self, steps: PQGen[Any]) -> None:
        _log.warning("no end of a statement within %g s of its cancellation: closing %r", self.cancel_grace, self)
        self.abandon()
        with suppress(psycopg.Error, RuntimeError):
            steps.close()  # its clean-up wants the connection, and may want to wait for it

    async def _request_cancel(self) -> None:
        """Ask the server, on a connection of its own, to cancel the running statement. A refusal is no error."""
        with suppress(psycopg.Error):
            await self.cancel_safe()

    async def cancel_safe(self, *, timeout: float = 30.0) -> None:  # noqa: ASYNC109 - psycopg's signature
        """Cancel the running statement, from any task.

        Once begun it is seen through, shielded, for at most half of the grace: a request that the server gets
        after we left it would hit whatever statement comes next. If that limit passes the connection is closed.

        Raises:
            psycopg.errors.CancellationTimeout: no answer within *timeout* seconds, or half of the grace.
        """
        steps = internals.cancel_steps(self)
        if steps is None:
            return
        with trio.move_on_after(min(timeout or float("inf"), self.cancel_grace / 2), shield=True):
            await drive_connecting(steps)
            return
        self.abandon()
        raise psycopg.errors.CancellationTimeout("cancellation timeout expired")

    async def settle(self) -> None:
        """Bring a connection that was left in the middle of something out of it, within the grace, or close it.

        Shielded; never raises. What is under way is cancelled on the server, an open COPY fails.
        """
        if self.pgconn.transaction_status != _ACTIVE or self.pgconn.pipeline_status:
            return
        with trio.move_on_after(self.cancel_grace, shield=True), suppress(psycopg.Error):
            await self._request_cancel()
            while results := await self._drive(internals.result_steps(self.pgconn)):
                if results[-1].status == pq.ExecStatus.COPY_IN:
                    await self._drive(internals.copy_end_steps(self.pgconn, b"abandoned"))
                elif results[-1].status == pq.ExecStatus.COPY_OUT:
                    while isinstance(await self._drive(internals.copy_out_steps(self.pgconn)), memoryview):
                        pass
        if self.pgconn.transaction_status == _ACTIVE:
            self.abandon()

    # Transactions

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A transaction, or a savepoint within one.

        Left with an exception it is rolled back, within the grace or by closing the connection. Left normally in
        a cancelled scope it is rolled back too. Once COMMIT is sent it is seen through: a cancellation then only
        starts the grace, and shows at the next checkpoint. So an exception other than a lost connection's means
        that nothing was committed.

        Raises:
            psycopg.errors.InFailedSqlTransaction: a statement failed and its error was caught within the block.
                PostgreSQL answers such a COMMIT with a rollback and no error, which would pass for success.
            psycopg.OperationalError: the connection was lost within the block, or while committing.
        """
        await _enter()
        manager = super().transaction(savepoint_name, force_rollback)
        with Interruption.FINISH.rules():
            transaction = await manager.__aenter__()
        try:
            yield transaction
            await trio.lowlevel.checkpoint_if_cancelled()
            if not force_rollback:
                self._check_can_commit()
        except BaseException as error:
            if isinstance(error, trio.Cancelled) and self.pgconn.pipeline_status:
                # What is still in the pipeline stands between here and the ROLLBACK.
                await self._request_cancel()
            with hurried():
                if await manager.__aexit__(type(error), error, error.__traceback__):
                    return
            raise
        with Interruption.FINISH.rules():
            await manager.__aexit__(None, None, None)

    def _check_can_commit(self) -> None:
        if self.closed:
            raise psycopg.OperationalError("the connection was lost in the transaction: nothing was committed")
        if self.pgconn.transaction_status == _INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "a statement of this transaction failed and its error was caught: nothing can be committed"
                " (run what may fail in a nested transaction())"
            )

    async def commit(self) -> None:
        """Commit the pending transaction. Once sent it is seen through, as in `transaction`."""
        await _enter()
        with Interruption.FINISH.rules():
            await super().commit()

    async def rollback(self) -> None:
        """Roll back the pending transaction, also in a cancelled scope."""
        with Interruption.FINISH.rules():
            await super().rollback()

    # Pipeline, end of life

    @asynccontextmanager
    async def pipeline(self) -> AsyncIterator[psycopg.AsyncPipeline]:
        """Pipeline mode. Left in a cancelled scope, what is still under way is cancelled on the server."""
        await _enter()
        manager = super().pipeline()
        with Interruption.FINISH.rules():
            pipeline = await manager.__aenter__()
        try:
            yield pipeline
        except BaseException as error:
            with hurried(_cleaning_up(cancel=isinstance(error, trio.Cancelled))):
                await manager.__aexit__(type(error), error, error.__traceback__)
            raise
        else:
            with _cleaning_up(cancel=True).rules():
                await manager.__aexit__(None, None, None)
        finally:
            if pipeline.level == 0 and not self.closed and self.pgconn.pipeline_status:
                self.abandon()  # results that nobody collected: libpq cannot leave pipeline mode any more

    def still_connected(self) -> bool:
        """Whether the server has not ended this idle connection, as far as is known here; asks nobody."""
        # A terminated backend sends its reason and then the end of the stream: read until there is nothing left.
        with suppress(psycopg.Error):
            while not self.closed and internals.ready(self.pgconn.socket, internals.READ):
                self.pgconn.consume_input()
            return not self.closed
        return False

    def abandon(self) -> None:
        """Close at once, whatever is under way, without waiting; a task that waits for it gets an error."""
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self.pgconn.finish()

    async def close(self) -> None:
        """Close the connection. No checkpoint; the server rolls back what is open."""
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
        await super().close()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Commit when left normally, and close: closing rolls back."""
        try:
            if exc_val is None and not self.closed:
                await self.commit()
        finally:
            await self.close()


def _tell(listener: Callable[[_A], None], news: _A) -> None:
    """Call a listener in the middle of a statement: whatever it does wrong must not become the statement's error."""
    try:
        listener(news)
    except Exception:  # noqa: BLE001 - see above, and it is logged
        _log.exception("%r failed on %r", listener, news)


async def _enter() -> None:
    """Start nothing in a cancelled scope, unless as part of a clean-up."""
    if Interruption.current() is Interruption.AT_ONCE:
        await trio.lowlevel.checkpoint_if_cancelled()


def _cleaning_up(*, cancel: bool) -> Interruption:
    """The rule for leaving a block: that of the clean-up it is part of, if there is one."""
    rule = Interruption.current()
    if rule is not Interruption.AT_ONCE:
        return rule
    return Interruption.CANCEL if cancel else Interruption.FINISH
