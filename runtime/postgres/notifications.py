"""LISTEN on a connection of its own: what was notified, and where something may be missing."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs
import psycopg
import trio
from attrs import define, frozen
from psycopg import sql
from psycopg.rows import TupleRow

from . import internals
from .connection import Connection
from .driving import tell
from .errors import Fault, PostgresUnavailable, classify, first_line
from .interruption import Interruption

if TYPE_CHECKING:
    from .options import PostgresOptions

__all__ = ["Gap", "Notification", "Notifications", "NotificationsStatistics", "listen"]

_NAME_BYTES = 63
"""PostgreSQL cuts longer names (NAMEDATALEN - 1), and would so listen to another channel than was asked for."""

_PASSING = (Fault.OUTAGE, Fault.RETRY)
"""After these another connection is made; somebody may have cancelled our LISTEN, say."""

_BACKOFF_BASE = 0.05
_BACKOFF_CAP = 2.0
"""Seconds; full jitter, so that the many clients of a server that comes back do not come in step."""


@frozen
class Notification:
    """What somebody said by ``NOTIFY channel, 'payload'`` or ``pg_notify(channel, payload)``, once it was committed.

    Attributes:
        channel: Where.
        payload: What; empty if nothing, at most 7999 bytes.
        backend_pid: The server's process of who said it.
    """

    channel: str
    payload: str
    backend_pid: int


@frozen
class Gap:
    """Notifications may be missing between the item before and the one after: look at the tables.

    Attributes:
        reason: The connection's loss, or that the buffer was full.
        seconds: From the moment at which the loss was noticed until all is listened to again; 0 for a full buffer.
    """

    reason: str
    seconds: float


@frozen(kw_only=True)
class NotificationsStatistics:
    """What was heard since the beginning; all but *waiting* only grow.

    Attributes:
        waiting: Items that nobody has taken yet.
        received: Notifications received.
        dropped: Those of them for which there was no room; a `Gap` stands for them.
        connects: Connections made, the first one included.
        troubles: Connections lost, and attempts to make one that failed.
        checks: Round trips made because nothing was heard for ``check_every``.
    """

    waiting: int
    received: int
    dropped: int
    connects: int
    troubles: int
    checks: int


def listen(
    options: PostgresOptions,
    *channels: str,
    on_trouble: Callable[[PostgresUnavailable], None] | None = None,
    check_every: float = 5.0,
    check_timeout: float = 2.0,
    retry_for: float = float("inf"),
    max_waiting: int = 1024,
    rng: random.Random | None = None,
) -> Notifications:
    """Listen to *channels* on a connection of its own::

        async with listen(options, "outbox") as notifications:
            async for item in notifications:
                match item:
                    case Gap():
                        await sweep()
                    case Notification(payload=payload):
                        await relay(payload)

    Args:
        options: The server. A pooler in transaction mode cannot serve LISTEN.
        channels: Their names, as they are written (case counts); more can be added later.
        on_trouble: Called at once, synchronously, when the connection is lost, an attempt to make another fails, or
            the server does not answer a check.
        check_every: Seconds of silence after which the server is asked whether it is there.
        check_timeout: Seconds that it has to answer.
        retry_for: Seconds of one outage after which the iteration raises `PostgresUnavailable`.
        max_waiting: Notifications kept for a slow reader; when there are more, they are dropped and a `Gap` tells.
        rng: The source of the jitter between attempts to connect.
    """
    return Notifications(
        options,
        channels,
        on_trouble=on_trouble,
        check_every=check_every,
        check_timeout=check_timeout,
        retry_for=retry_for,
        max_waiting=max_waiting,
        rng=rng,
    )


@define
class _Counters:
    received: int = 0
    dropped: int = 0
    connects: int = 0
    troubles: int = 0
    checks: int = 0


class Notifications:
    """The items heard, in order: an asynchronous iterator, and a context manager that owns the task that listens.

    Made by `listen`. Entering connects and listens; from then on every notification that is committed is an item, or a
    `Gap` stands for it. A lost connection is made again: at once, then after up to 50 ms, 100 ms, … 2 s (full jitter).
    When all channels are listened to again, there is a `Gap`.

    The task reads all the time, also while nobody takes the items: a listener that does not read fills the queue of
    the *server*, in which NOTIFY fails for everybody when it is full. So memory is bounded here, by ``max_waiting``.

    Cancellation: an item is taken or not, never lost; leaving closes the connection without waiting.
    """

    def __init__(
        self,
        options: PostgresOptions,
        channels: Iterable[str],
        *,
        on_trouble: Callable[[PostgresUnavailable], None] | None,
        check_every: float,
        check_timeout: float,
        retry_for: float,
        max_waiting: int,
        rng: random.Random | None,
    ) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting must be at least 1, not {max_waiting!r}")
        self.options = options
        self._on_trouble = on_trouble
        self._check_every = check_every
        self._check_timeout = check_timeout
        self._retry_for = retry_for
        self._max_waiting = max_waiting
        self._rng = rng or random.Random()  # noqa: S311 - jitter, no secret
        # What is wanted, in order, and what the present connection listens to; while that is being changed, nobody
        # can rely on it.
        self._wanted: dict[str, None] = dict.fromkeys(_checked(channels))
        self._listening: dict[str, None] = {}
        self._changing = False
        # What nobody has taken yet, and why there will be nothing more.
        self._items: deque[Notification | Gap] = deque()
        self._end: BaseException | None = None
        self._takers = trio.lowlevel.ParkingLot()
        self._agreed = trio.lowlevel.ParkingLot()
        self._connection: Connection[TupleRow] | None = None
        self._wait = trio.CancelScope()
        self._nurseries: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._nursery: trio.Nursery | None = None
        self._count = _Counters()

    async def __aenter__(self) -> Self:
        """Connect and listen.

        Raises:
            PostgresUnavailable: the server is away.
            PostgresRejected: it refuses the settings.
        """
        if self._nurseries is not None:
            raise RuntimeError("these notifications were entered before; call listen() again")
        self._connection = await self._connect()
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        self._nursery.start_soon(self._run, name=f"listen at {self.options.address}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop listening. Who still iterates gets `trio.ClosedResourceError`."""
        # The nursery does not get the block's exception: that goes on as it is, not wrapped in a group. The wait for
        # the task is short: cancelled, it waits for nothing.
        assert self._nurseries is not None  # noqa: S101 - entered
        assert self._nursery is not None  # noqa: S101
        self._nursery.cancel_scope.shield = True
        self._nursery.cancel_scope.cancel()
        await self._nurseries.__aexit__(None, None, None)

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are to be listened to, in the order in which they were asked for."""
        return tuple(self._wanted)

    async def add(self, *channels: str) -> None:
        """Listen to *channels*, too. Afterwards all that is committed on them is an item, or a `Gap` stands for it.

        Returns at once in an outage: the next connection will listen to them, and the `Gap` is still to come.

        Cancellation: they may be listened to or not; `channels` says whether it is wanted.

        Raises:
            ValueError: a name is empty, too long (63 bytes), or has a NUL.
        """
        self._wanted.update(dict.fromkeys(_checked(channels)))
        await self._agree()

    async def remove(self, *channels: str) -> None:
        """Listen no longer to *channels*. Items that are there already stay."""
        for channel in channels:
            self._wanted.pop(channel, None)
        await self._agree()

    def drain(self) -> list[Notification | Gap]:
        """Take all items that are there, without waiting: for who does the same for one as for many."""
        items = list(self._items)
        self._items.clear()
        return items

    def statistics(self) -> NotificationsStatistics:
        """What was heard."""
        return NotificationsStatistics(waiting=len(self._items), **attrs.asdict(self._count))

    def __aiter__(self) -> AsyncIterator[Notification | Gap]:
        return self

    async def __anext__(self) -> Notification | Gap:
        """The next item; waits for one. A checkpoint.

        Raises:
            PostgresUnavailable: an outage lasted longer than ``retry_for``.
            PostgresRejected: a new connection was refused for good.
            trio.ClosedResourceError: the block was left.
            RuntimeError: it was not entered.
        """
        if self._nursery is None:
            raise RuntimeError("nothing is listened to yet: use it within `async with listen(...)`")
        await trio.lowlevel.checkpoint()
        while not self._items:
            if self._end is not None:
                raise self._end
            await self._takers.park()
        return self._items.popleft()

    async def _agree(self) -> None:
        """Wait until what is wanted is listened to, or will be, when there is a connection again."""
        await trio.lowlevel.checkpoint()
        if self._end is not None:
            raise self._end
        if self._connection is not None and (self._changing or self._listening != self._wanted):
            self._wait.cancel()
            await self._agreed.park()

    # The task

    async def _run(self) -> None:
        """Listen until cancelled. Never raises: what ends it is raised where the items are taken."""
        try:
            while True:
                try:
                    await self._hear()
                except psycopg.Error as error:
                    if not self._lost() and classify(error) not in _PASSING:
                        raise
                    await self._connect_again(first_line(error))
        except Exception as error:  # noqa: BLE001 - raised to whoever takes the items
            self._end = error
        finally:
            self._end = self._end or trio.ClosedResourceError("these notifications were closed")
            self._lost()
            self._takers.unpark_all()

    async def _hear(self) -> None:
        """Take what comes, on one connection; ask when nothing comes; keep to what is wanted."""
        connection = self._connection
        assert connection is not None  # noqa: S101 - _run sees to it
        while True:
            await self._listen(connection)
            self._agreed.unpark_all()
            # From the look at what is wanted up to the wait nothing gives way; a change later on cancels the wait.
            with trio.move_on_after(self._check_every) as self._wait:
                await connection.wait(internals.notify_steps(connection.pgconn))
            if self._wait.cancelled_caught and self._listening == self._wanted:
                self._count.checks += 1
                await self._ask(connection, sql.SQL(""))

    async def _listen(self, connection: Connection[TupleRow]) -> None:
        """Make the server's list of channels ours, which may change meanwhile."""
        while self._listening != (wanted := self._wanted.copy()):
            gone = [name for name in self._listening if name not in wanted]
            new = [name for name in wanted if name not in self._listening]
            changes = [sql.SQL("unlisten {}").format(sql.Identifier(name)) for name in gone]
            changes += [sql.SQL("listen {}").format(sql.Identifier(name)) for name in new]
            self._changing = True
            try:
                await self._ask(connection, sql.SQL("; ").join(changes))
            finally:
                self._changing = False
            self._listening = wanted

    async def _ask(self, connection: Connection[TupleRow], statement: sql.SQL | sql.Composed) -> None:
        """Run a statement that a healthy server answers at once; on a frozen one it takes no longer than the limit."""
        with Interruption.ABANDON.rules(), trio.move_on_after(self._check_timeout):
            await connection.execute(statement)
            return
        silent = PostgresUnavailable(f"no answer within {self._check_timeout:g} s", address=self.options.address)
        self._trouble(silent)
        raise silent

    async def _connect(self, gap: Callable[[], Gap] | None = None) -> Connection[TupleRow]:
        """Make a connection that listens. The *gap* comes before what is heard on it."""
        connection = await Connection.open(self.options, on_trouble=self._trouble)
        early: list[psycopg.Notify] = []
        connection.add_notify_handler(early.append)
        try:
            self._listening = {}
            await self._listen(connection)
        except BaseException:
            self._listening = {}
            connection.abandon()
            raise
        connection.remove_notify_handler(early.append)
        connection.add_notify_handler(self._received)
        self._count.connects += 1
        if gap is not None:
            self._put(gap())
        for notify in early:
            self._received(notify)
        return connection

    async def _connect_again(self, reason: str) -> None:
        lost_at = trio.current_time()
        failures = 0
        while True:
            try:
                self._connection = await self._connect(lambda: Gap(reason, trio.current_time() - lost_at))
                return
            except psycopg.OperationalError as error:
                if classify(error) not in _PASSING or trio.current_time() - lost_at >= self._retry_for:
                    raise
            ceiling = min(_BACKOFF_CAP, _BACKOFF_BASE * 2.0 ** min(failures, 16))
            failures += 1
            await trio.sleep(self._rng.random() * ceiling)

    def _lost(self) -> bool:
        """Give the connection up; whether it had been closed."""
        connection, self._connection, self._listening = self._connection, None, {}
        self._agreed.unpark_all()
        if connection is None:
            return True
        was_closed = connection.closed
        connection.abandon()
        return was_closed

    def _trouble(self, error: PostgresUnavailable) -> None:
        self._count.troubles += 1
        if self._on_trouble is not None:
            tell(self._on_trouble, error)

    def _received(self, notify: psycopg.Notify) -> None:
        self._count.received += 1
        if len(self._items) < self._max_waiting:
            self._put(Notification(notify.channel, notify.payload, notify.pid))
            return
        self._count.dropped += 1
        if not isinstance(self._items[-1], Gap):
            self._put(Gap(f"{self._max_waiting} notifications (max_waiting) had not been taken yet", 0.0))

    def _put(self, item: Notification | Gap) -> None:
        if isinstance(item, Gap) and self._items and isinstance(self._items[-1], Gap):
            self._items.pop()  # one gap tells as much as two, and their number has no other bound
        self._items.append(item)
        self._takers.unpark()


def _checked(channels: Iterable[str]) -> tuple[str, ...]:
    """*channels*, if PostgreSQL can listen to them by just these names."""
    names = tuple(channels)
    for name in names:
        if not name or "\0" in name or len(name.encode()) > _NAME_BYTES:
            raise ValueError(f"a channel's name has 1 to {_NAME_BYTES} bytes and no NUL, unlike {name!r}")
    return names
