"""One connection to PostgreSQL: psycopg's `AsyncConnection` on trio."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from types import TracebackType
from typing import TYPE_CHECKING, cast

import psycopg
import trio
from psycopg import pq
from psycopg.rows import AsyncRowFactory, Row, TupleRow
from psycopg.transaction import OutOfOrderTransactionNesting

from . import internals
from .cursors import cursor_class
from .driving import DrivenConnection, tell
from .errors import PostgresUnavailable, connect_failure, first_line
from .interruption import Interruption, hurried
from .resolving import resolve
from .waiting import drive_connecting

if TYPE_CHECKING:
    from typing import Self

    from psycopg.abc import AdaptContext, ConnParam

    from .options import PostgresOptions


class Connection(DrivenConnection[Row]):
    """`psycopg.AsyncConnection` on trio: psycopg's documentation holds, and this rule for cancellation.

    A cancelled task gets its `trio.Cancelled` within *cancel_grace*, and leaves the connection usable or closed,
    never stuck: the running statement is cancelled on the server and its answer awaited under a shield; a server
    that does not answer in time loses the connection. A statement that succeeded all the same returns normally
    (trio raises at the next checkpoint), so that ``Cancelled`` out of a statement means that it had no effect,
    unless the connection is closed or in pipeline mode.

    Made by `open` (our options, autocommit) or `connect` (psycopg's signature). Statements of several tasks on
    one connection are taken in turn, but one connection serves one task best.

    Attributes:
        cancel_grace: Seconds that the server has to end a cancelled statement.
        opened_at: `trio.current_time` when the connection was made.
    """

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
                tell(on_trouble, failure)
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
        raise type(failures[-1])("; ".join(first_line(failure) for failure in failures))

    @property
    def cursor_factory(self) -> type[psycopg.AsyncCursor[Row]]:
        """The class of cursors. psycopg's own are replaced by ours; others have to be made from ours (`TypeError`)."""
        return self._cursor_factory

    @cursor_factory.setter
    def cursor_factory(self, wanted: type[psycopg.AsyncCursor[Row]]) -> None:
        self._cursor_factory: type[psycopg.AsyncCursor[Row]] = cursor_class(wanted)

    @property
    def server_cursor_factory(self) -> type[psycopg.AsyncServerCursor[Row]]:
        """The class of named cursors; see `cursor_factory`."""
        return self._server_cursor_factory

    @server_cursor_factory.setter
    def server_cursor_factory(self, wanted: type[psycopg.AsyncServerCursor[Row]]) -> None:
        self._server_cursor_factory: type[psycopg.AsyncServerCursor[Row]] = cursor_class(wanted)

    async def ping(self, limit: float) -> bool:
        """Whether the server answers on this connection within *limit* seconds: one empty statement, nothing else.

        Closed at once if it does not, for a late answer is worth nothing, and told to ``on_slow``. A cancellation
        closes it, too. Not for pipeline mode.
        """
        with Interruption.ABANDON.rules(), suppress(psycopg.Error):
            with trio.move_on_after(limit):
                await self.execute("")
                return True
            if self.closed:
                self.tell_slow(limit)
        return False

    @asynccontextmanager
    async def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> AsyncIterator[psycopg.AsyncTransaction]:
        """A transaction, or a savepoint within one.

        Left with an exception it is rolled back, within the grace or by closing the connection. Left normally in
        a cancelled scope it is rolled back too. Once COMMIT is sent it is seen through: a cancellation then only
        starts the grace, and shows at the next checkpoint. So an exception means that nothing was committed, unless
        the connection was lost or given up while committing (it is closed then): the outcome is unknown.
        A COMMIT, or the end of a savepoint, that other tasks on this connection keep from its turn for the grace of
        a cancellation closes the connection, too.

        Raises:
            psycopg.errors.InFailedSqlTransaction: a statement failed and its error was caught within the block.
                PostgreSQL answers such a COMMIT with a rollback and no error, which would pass for success.
            psycopg.OperationalError: the connection was lost within the block, or while committing.
            psycopg.transaction.OutOfOrderTransactionNesting: another task's block began within this one and has not
                ended. The connection is closed: neither is committed.
        """
        await _enter()
        manager = super().transaction(savepoint_name, force_rollback)
        with Interruption.FINISH.rules():
            transaction = await manager.__aenter__()
        try:
            yield transaction
            await trio.lowlevel.checkpoint_if_cancelled()
            if not force_rollback:
                await internals.sync_pipeline(self)  # or an error in it may be unknown here, or forgotten
                self._check_can_commit()
        except BaseException as error:
            if isinstance(error, trio.Cancelled) and self.pgconn.pipeline_status:
                # What is still in the pipeline stands between here and the ROLLBACK.
                await self._request_cancel()
            swallowed: bool | None = False
            with hurried(), self._ending():
                swallowed = await manager.__aexit__(type(error), error, error.__traceback__)
            self.tell_loss()
            if swallowed:
                return
            raise
        with Interruption.FINISH.rules(), self._ending():
            await manager.__aexit__(None, None, None)

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Close, if the end of a transaction is broken off, or out of order: other tasks on it are in the way.

        They did not let it have its turn in time, or began a block within it that has not ended. Left open, the
        transaction would go on without its block. Whatever comes next would be a part of it, each `transaction` a
        savepoint in it, and committed by nobody; and what a savepoint was to undo would be committed.
        """
        try:
            yield
        except (trio.Cancelled, KeyboardInterrupt, OutOfOrderTransactionNesting):
            self.abandon()
            raise

    async def _enter_commit(self) -> None:
        await _enter()
        await internals.sync_pipeline(self)
        if not self.closed:
            self._check_can_commit()

    def _check_can_commit(self) -> None:
        if self.closed:
            raise psycopg.OperationalError("the connection was lost in the transaction: nothing was committed")
        if self.pgconn.transaction_status == pq.TransactionStatus.INERROR:
            raise psycopg.errors.InFailedSqlTransaction(
                "a statement of this transaction failed and its error was caught: nothing can be committed"
                " (run what may fail in a nested transaction())"
            )

    async def commit(self) -> None:
        """Commit the pending transaction. Once sent it is seen through, as in `transaction`.

        Cancelled before that, also because its turn did not come, it leaves the transaction pending.

        Raises:
            psycopg.errors.InFailedSqlTransaction: a statement of it failed, as in `transaction`; roll it back.
        """
        await self._enter_commit()
        with Interruption.FINISH.rules():
            await super().commit()

    async def rollback(self) -> None:
        """Roll back the pending transaction, also in a cancelled scope: within the grace, or by closing."""
        with Interruption.FINISH.rules(), self._ending():
            await super().rollback()

    async def tpc_prepare(self) -> None:
        """Vote for the two-phase transaction. Once sent it is seen through, as a COMMIT is; same errors."""
        await self._enter_commit()
        with Interruption.FINISH.rules():
            await super().tpc_prepare()

    async def tpc_commit(self, xid: psycopg.Xid | str | None = None) -> None:
        """Commit the two-phase transaction. Once sent it is seen through; errors as of `commit`."""
        await self._enter_commit()
        with Interruption.FINISH.rules():
            await super().tpc_commit(xid)

    async def tpc_rollback(self, xid: psycopg.Xid | str | None = None) -> None:
        """Roll the two-phase transaction back, also in a cancelled scope; as `rollback` does.

        A prepared one is left to ``tpc_recover()`` where the connection is closed.
        """
        with Interruption.FINISH.rules(), self._ending():
            await super().tpc_rollback(xid)

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
            # Results that nobody collected: libpq cannot leave pipeline mode any more. Or psycopg, which leaves it in
            # two turns and did not get the second, thinks itself in it still, and would not read a result again.
            if pipeline.level == 0 and not self.closed and (self.pgconn.pipeline_status or internals.in_pipeline(self)):
                self.abandon()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        """Commit when left normally, and close: closing rolls back."""
        try:
            if exc_val is None and not self.closed:
                await self.commit()
        finally:
            await self.close()


async def _enter() -> None:
    """Start nothing in a cancelled scope, unless as part of a clean-up."""
    if not Interruption.current().starts_anyway:
        await trio.lowlevel.checkpoint_if_cancelled()


def _cleaning_up(*, cancel: bool) -> Interruption:
    """The rule for leaving a block: that of the clean-up it is part of, if there is one."""
    rule = Interruption.current()
    if rule.starts_anyway:
        return rule
    return Interruption.CANCEL if cancel else Interruption.FINISH
