"""psycopg's steps, taken on trio: waiting, cancellation (the rule is in `Connection`), and telling of trouble."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar, cast

import psycopg
import trio
from psycopg import pq
from psycopg.rows import AsyncRowFactory, Row, tuple_row

from . import internals
from .errors import Fault, PostgresUnavailable, classify, first_line, is_fatal, lost_what_was_prepared
from .internals import WRITE
from .internals import ready as ready_now
from .interruption import Interruption
from .lock import StatementLock
from .slowness import SlowWatch
from .waiting import drive_connecting, wait_ready

if TYPE_CHECKING:
    from .internals import PQGen

_R = TypeVar("_R")
_A = TypeVar("_A")

# How long a connection may keep the scheduler busy with sockets that are always ready, in seconds, so that a
# long executemany() or COPY does not starve the other tasks. As psycopg does on asyncio.
_MAX_BUSY = 0.005

# Looking up a member of an enumeration costs as much as a step that has nothing to wait for.
_AT_ONCE, _ABANDON, _FINISH = Interruption.AT_ONCE, Interruption.ABANDON, Interruption.FINISH

_log = logging.getLogger(__name__)


class DrivenConnection(psycopg.AsyncConnection[Row]):
    """The part of `Connection` that waits; see there.

    Attributes:
        cancel_grace: Seconds that the server has to end a cancelled statement.
        opened_at: `trio.current_time` when the connection was made.
        copying: Whether a COPY is under way, whose steps are many and small: each of them runs until it has to wait
            (and at most for 5 ms) before a cancellation shows.
    """

    def __init__(self, pgconn: pq.abc.PGconn, row_factory: AsyncRowFactory[Row] | None = None) -> None:
        super().__init__(pgconn, row_factory or cast("AsyncRowFactory[Row]", tuple_row))
        self.opened_at = trio.current_time()
        self._address = "an unnamed server"
        self._on_trouble: Callable[[PostgresUnavailable], None] | None = None
        self._on_slow: Callable[[float], None] | None = None
        self._slow_after = 1.0
        self._slow_told = False
        self._loss_told = False  # or there is nothing to tell, for we closed it
        self._yielded_at = 0.0
        self.copying = False
        self._turns = StatementLock(grace=2.0, untidy=self._is_left_active, tidy=self._settle)
        internals.set_lock(self, self._turns)

    @property
    def cancel_grace(self) -> float:
        return self._turns.grace

    @cancel_grace.setter
    def cancel_grace(self, seconds: float) -> None:
        self._turns.grace = seconds

    @property
    def address(self) -> str:
        """Where this connection leads to, without secrets."""
        return self._address

    async def wait(
        self,
        gen: PQGen[_R],
        interval: float = 0.0,
        timeout: float | None = None,  # noqa: ASYNC109 - psycopg's signature
    ) -> _R:
        """Run *gen*, the steps of one operation, to its end: the place that all of psycopg's operations pass.

        *interval* is psycopg's and not needed here. A checkpoint where there is something to wait for.

        Cancellation: see `Connection`; `Interruption` says which rule holds.
        """
        # Each row of a COPY comes here: whatever is done before the first step is paid a million times.
        if self.copying:
            if monotonic() - self._yielded_at >= _MAX_BUSY:
                await self._give_way()
        elif (rule := Interruption.current()) is _AT_ONCE or rule is _ABANDON:
            # Before the first step: a step that was taken and then reported as cancelled would be lost.
            await trio.lowlevel.checkpoint_if_cancelled()
        self._slow_told = False
        try:
            try:
                want = next(gen)
            except StopIteration as end:
                result: _R = end.value
                return result
            except psycopg.Error as error:
                self._failed(gen, error)
                raise
            return await self._go_on(gen, want, None if timeout is None else trio.current_time() + timeout)
        except trio.Cancelled:
            if not self._is_busy():
                raise
            rule = Interruption.current()
            if rule is _ABANDON:
                self.abandon()
                _close(gen)
                raise
            cancel = rule is not _FINISH
            outcome = await self._end_interrupted(gen, cancel=cancel)
            # In a pipeline the end of these steps is not yet the end of the statements that were cancelled.
            if outcome is None or (cancel and not self.closed and self.pgconn.pipeline_status):
                raise
            self._yielded_at = 0.0  # the cancellation is to show before the next step of a COPY, and not its error
            return outcome[0]
        except KeyboardInterrupt:
            await self._end_broken_off(gen)
            raise

    def _is_active(self) -> bool:
        return self.pgconn.transaction_status == pq.TransactionStatus.ACTIVE

    def _is_busy(self) -> bool:
        return self._is_active() or bool(not self.closed and self.pgconn.pipeline_status)

    async def _drive(self, steps: PQGen[_R]) -> _R:
        """Run *steps* to their end, begun or not, and without any rule for a cancellation."""
        try:
            want = next(steps)
        except StopIteration as end:
            return cast("_R", end.value)
        except psycopg.Error as error:
            self._failed(steps, error)
            raise
        return await self._go_on(steps, want)

    async def _go_on(self, steps: PQGen[_R], want: int, deadline: float | None = None) -> _R:
        """Give *steps* what they wait for, until their end."""
        try:
            fd = self.pgconn.socket
            while True:
                ready = 0
                if want & WRITE:
                    # Nearly always writable: a pipeline and COPY would pay a trip through the scheduler for nothing.
                    if monotonic() - self._yielded_at >= _MAX_BUSY:
                        await self._give_way()
                    ready = ready_now(fd, want)
                if not ready:
                    ready = await self._wait_ready(fd, want, deadline)
                want = steps.send(ready)
                if deadline is not None and trio.current_time() >= deadline:
                    raise internals.WaitTimeout("wait timeout expired")
        except StopIteration as end:
            return cast("_R", end.value)
        except internals.WaitTimeout:
            raise  # ours, for notifies(timeout=…), and no trouble
        except psycopg.Error as error:
            self._failed(steps, error)
            raise

    def _failed(self, steps: PQGen[Any], error: psycopg.Error) -> None:
        _close(steps)  # they are suspended still when it was not they who failed
        if not self.closed and (self.pgconn.pipeline_status or lost_what_was_prepared(error)):
            internals.forget_prepared(self)
        self._look_for_trouble(error)

    async def _give_way(self) -> None:
        await trio.lowlevel.checkpoint()
        self._yielded_at = monotonic()

    async def _wait_ready(self, fd: int, want: int, deadline: float | None) -> int:
        """Wait for the socket; 0 when *deadline* passed."""
        try:
            if deadline is not None:
                with trio.move_on_at(deadline):
                    return await wait_ready(fd, want)
                return 0
            if self._on_slow is None or self._slow_told or not self._is_active():
                return await wait_ready(fd, want)
            watch = SlowWatch.current()
            watch.begin(self)
            try:
                return await wait_ready(fd, want)
            finally:
                watch.end(self)
        finally:
            self._yielded_at = monotonic()

    @property
    def slow_after(self) -> float:
        """Seconds without an answer after which ``on_slow`` is called."""
        return self._slow_after

    def tell_slow(self, seconds: float) -> None:
        """Call ``on_slow``, once for each statement."""
        if self._on_slow is not None and not self._slow_told:
            self._slow_told = True
            tell(self._on_slow, seconds)

    def _look_for_trouble(self, error: psycopg.Error) -> None:
        """Report what says that the server is away; turn a standby's refusal to write into an outage."""
        if self._loss_told:
            return
        self._loss_told = self.closed or is_fatal(error)  # what comes next is but the end of the connection
        if isinstance(error, psycopg.errors.ReadOnlySqlTransaction) and self._server_is_read_only():
            unavailable = PostgresUnavailable("it is read-only (a standby?)", address=self._address)
            unavailable.__cause__ = error
            if self._on_trouble is not None:
                tell(self._on_trouble, unavailable)
            raise unavailable from error
        if self._on_trouble is not None and classify(error) is Fault.OUTAGE:
            unavailable = PostgresUnavailable(first_line(error), address=self._address)
            unavailable.__cause__ = error
            tell(self._on_trouble, unavailable)

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
                    return (await self._cancelling(partial(self._drive, steps)),)
                return (await self._drive(steps),)
            except psycopg.Error:
                if not cancel:
                    raise
                if not self._is_active() or self.pgconn.pipeline_status:
                    return None  # a pipeline is drained where it is left
            except KeyboardInterrupt:
                self._give_up(steps)
                raise
        self._give_up(steps)
        return None

    async def _end_broken_off(self, steps: PQGen[Any]) -> None:
        """What Control-C breaks off is cancelled on the server. Where more would have to follow, it closes."""
        if not self.closed and self.pgconn.pipeline_status:
            self.abandon()
            _close(steps)
        elif self._is_active():
            await self._end_interrupted(steps, cancel=True)
            if self._is_active():
                await self._settle()  # a COPY has begun all the same

    def _give_up(self, steps: PQGen[Any]) -> None:
        """Close a connection whose server does not end what was cancelled: it may be frozen, so say that too."""
        _log.warning("no end of a statement within %g s of its cancellation: closing its connection", self.cancel_grace)
        self.abandon()
        _close(steps)
        self.tell_slow(self.cancel_grace)

    async def _cancelling(self, finish: Callable[[], Awaitable[_R]]) -> _R:
        """Have the running statement cancelled on the server until `finish` returns; what that returns or raises.

        Asked once, the server may be faster than the statement that is on its way to it: it cancels nothing then.
        """
        raised: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_cancelling)
            try:
                result = await finish()
            except trio.Cancelled:
                raise
            except BaseException as error:  # noqa: BLE001 - raised below, not in a group
                raised = error
            nursery.cancel_scope.cancel(reason="the statement is over")
        if raised is not None:
            raise raised
        return result

    async def _keep_cancelling(self) -> None:
        while not self.closed:
            await self._request_cancel()
            await trio.sleep(self.cancel_grace / 8)

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
            try:
                await drive_connecting(steps)
            except KeyboardInterrupt:
                self.abandon()
                raise
            return
        self.abandon()
        raise psycopg.errors.CancellationTimeout("cancellation timeout expired")

    async def settle(self) -> None:
        """Bring a connection that was left in the middle of something out of it, within the grace, or close it.

        Shielded; never raises. What is under way is cancelled on the server, an open COPY fails. What another task has
        begun meanwhile is left to it.
        """
        if self._is_left_active() and not self._turns.locked():
            async with self._turns:
                pass  # it is done by taking the turn

    def _is_left_active(self) -> bool:
        """Whether something is under way, asked by who has the turn and has begun nothing."""
        return self._is_active() and not self.pgconn.pipeline_status

    async def _settle(self) -> None:
        try:
            with trio.move_on_after(self.cancel_grace, shield=True), suppress(psycopg.Error):
                await self._cancelling(self._drain)
        finally:
            if self._is_active():
                self.abandon()

    async def _drain(self) -> None:
        while results := await self._drive(internals.result_steps(self.pgconn)):
            if results[-1].status == pq.ExecStatus.COPY_IN:
                await self._drive(internals.copy_end_steps(self.pgconn, b"abandoned"))
            elif results[-1].status == pq.ExecStatus.COPY_OUT:
                while isinstance(await self._drive(internals.copy_out_steps(self.pgconn)), memoryview):
                    pass

    @property
    def in_use(self) -> bool:
        """Whether somebody is in the middle of something: a statement of another task, or a ``stream()`` left open."""
        return self._turns.locked()

    def still_connected(self) -> bool:
        """Whether the server has not ended this idle connection, as far as is known here; asks nobody."""
        # A terminated backend sends its reason and then the end of the stream: read until there is nothing left.
        with suppress(psycopg.Error):
            while not self.closed and internals.ready(self.pgconn.socket, internals.READ):
                self.pgconn.consume_input()
            return not self.closed
        return False

    def tell_loss(self) -> None:
        """Report the loss of the connection, if there was one that nobody was told of.

        psycopg ignores errors of a rollback, for there is another error already; that the server is away is news.
        """
        if self.closed:
            self._look_for_trouble(psycopg.OperationalError(self.pgconn.get_error_message()))

    def abandon(self) -> None:
        """Close at once, whatever is under way, without waiting; a task that waits for it gets an error."""
        self._loss_told = True
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
            self.pgconn.finish()

    async def close(self) -> None:
        """Close the connection. No checkpoint; the server rolls back what is open."""
        self._loss_told = True
        if not self.closed:
            trio.lowlevel.notify_closing(self.pgconn.socket)
        await super().close()


def _close(steps: PQGen[Any]) -> None:
    """End suspended steps for good: their own clean-up wants the connection, and may want to wait for it."""
    with suppress(psycopg.Error, RuntimeError):
        steps.close()


def tell(listener: Callable[[_A], None], news: _A) -> None:
    """Call a listener in the middle of a statement: whatever it does wrong must not become the statement's error."""
    try:
        listener(news)
    except Exception:  # noqa: BLE001 - see above, and it is logged
        _log.exception("%r failed on %r", listener, news)
