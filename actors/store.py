"""Where the effects of events are committed: together with the fact that they were handled, or not at all.

A handler's writes, the inbox rows of its events, its dead letters and its group's position stand in one transaction.
`PostgresStore` is the real one; `penstock.actors.testing.MemoryStore` behaves like it, for virtual time.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Any, Final, Protocol
from uuid import UUID

import psycopg
from attrs import frozen
from psycopg.rows import TupleRow

from ..runtime.postgres import Connection, Pool, PostgresUnavailable
from .dead_letter import DeadLetter
from .deletion_table import DeletionTable, PostgresDeletions
from .lease_table import LeaseTable, PostgresLeases, abandoned_as
from .letter_table import LetterTable, PostgresLetters
from .loss_table import LossTable, PostgresLosses
from .member_table import MemberTable, PostgresMembers
from .outbox_table import OutboxTable, PostgresOutbox
from .replay_table import PostgresReplays, ReplayTable
from .retry_table import PostgresRetries, RetryTable
from .step_table import PostgresSteps, StepTable
from .stream_table import PostgresStreams, StreamTable
from .suspect_table import PostgresSuspects, SuspectTable

__all__ = ["ABANDON_MARGIN", "InboxEntry", "PostgresStore", "Store", "Transaction"]

ABANDON_MARGIN: Final = 5.0
"""Seconds beyond a handler's limit after which a transaction is taken for that of a frozen process."""


@frozen
class InboxEntry:
    """An event that is about to be handled.

    Attributes:
        event_id: what a group handles once.
        stream: where this delivery of it came from.
        entry_id: the entry there.
    """

    event_id: UUID
    stream: str
    entry_id: str


class Transaction(Protocol):
    """An open transaction. After an error of one of its methods outside of a `savepoint`, it cannot be committed."""

    @property
    def connection(self) -> Any:
        """What handlers write with: a psycopg connection within this transaction. They must not commit it."""
        ...

    @property
    def is_lost(self) -> bool:
        """Whether its connection is gone: then every error is a consequence, and nobody's fault."""
        ...

    async def first_time(self, group: str, entries: Sequence[InboxEntry]) -> set[UUID]:
        """Enter events into the group's inbox; return those that were not there before.

        An event that the group has buried, or that waits for a retry, is left out: it comes again when its
        acknowledgement is lost, or when it was published twice. One whose dead letter was settled as replayed, but is
        not in the inbox, was published once more: only the entry that died is left out then.
        An id that stands twice among `entries` is one event: handle it once. Where another transaction is about to
        enter the same event, this waits until that one is committed (then the event is not new) or rolled back.
        """
        ...

    async def position(self, group: str, stream: str, entry_id: str) -> None:
        """Remember that the group is done with every entry of the stream up to and including `entry_id`.

        An id below the stored one changes nothing; ids are compared as Redis does, by milliseconds and then by
        number. Locks the group's row until the end of the transaction, so call it last.
        """
        ...

    async def expect_silence(self, seconds: float) -> None:
        """From now on there may be no statement for so many seconds; who is silent for longer is taken for frozen."""
        ...

    async def bury(self, letter: DeadLetter) -> None:
        """Store a dead letter; see `LetterTable.bury` for one that is there already."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """A block whose writes are undone, alone, when it is left with an exception."""
        ...


class Store(Protocol):
    """What a handler pool needs of a database."""

    @property
    def leases(self) -> LeaseTable:
        """Who has which partition of an ordered group."""
        ...

    @property
    def members(self) -> MemberTable:
        """Which processes there are."""
        ...

    @property
    def streams(self) -> StreamTable:
        """With how many partitions streams were made."""
        ...

    @property
    def outbox(self) -> OutboxTable:
        """Events on their way to Redis."""
        ...

    @property
    def retries(self) -> RetryTable:
        """Events that wait for another attempt."""
        ...

    @property
    def suspects(self) -> SuspectTable:
        """Entries that were with a process when it died."""
        ...

    @property
    def dead_letters(self) -> LetterTable:
        """What was given up."""
        ...

    @property
    def losses(self) -> LossTable:
        """Entries that were lost to somebody's trimming."""
        ...

    @property
    def deletions(self) -> DeletionTable:
        """Entries that somebody deleted by our command."""
        ...

    @property
    def replays(self) -> ReplayTable:
        """Ranges of streams that somebody ordered to be replayed."""
        ...

    @property
    def steps(self) -> StepTable:
        """What handlers did outside of their transactions."""
        ...

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """A transaction: committed when the block is left normally, rolled back with an exception or a cancellation.

        Raises:
            PostgresUnavailable: the database went away; within the block, or in committing. In the latter case the
                outcome is unknown; handling the same events again is right, for the inbox knows.
        """
        ...

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        """A connection for whoever is no handler, in autocommit mode; raises PostgresUnavailable."""
        ...

    async def stored_position(self, group: str, stream: str) -> str | None:
        """The id that `Transaction.position` stored, or None; raises PostgresUnavailable."""
        ...


_ENTER = """
select * from penstock_enter(
    %(group)s, %(event_ids)b::uuid[], %(streams)b::text[], %(entry_ids)b::text[], %(abandoned)s
)
"""

_MOVE = """
insert into penstock_group_position as stored (consumer_group, stream, entry_id) values (%s, %s, %s)
on conflict (consumer_group, stream) do update set entry_id = excluded.entry_id, updated_at = now()
where string_to_array(stored.entry_id, '-')::numeric[] < string_to_array(excluded.entry_id, '-')::numeric[]
"""

_EXPECT_SILENCE = "select set_config('idle_in_transaction_session_timeout', %s, true)"


class _PostgresTransaction:
    """`Transaction` on one connection of the pool."""

    def __init__(self, connection: Connection[TupleRow], letters: LetterTable, abandoned: str) -> None:
        self.connection = connection
        self.is_lost = False
        self._letters = letters
        self._abandoned = abandoned

    async def first_time(self, group: str, entries: Sequence[InboxEntry]) -> set[UUID]:
        # In one order, so that two transactions that share events wait for each other and never deadlock.
        given = sorted(entries, key=lambda entry: entry.event_id)
        cursor = await self.connection.execute(
            _ENTER,
            {
                "group": group,
                "event_ids": [entry.event_id for entry in given],
                "streams": [entry.stream for entry in given],
                "entry_ids": [entry.entry_id for entry in given],
                "abandoned": self._abandoned,
            },
        )
        return {row[0] for row in await cursor.fetchall()}

    async def position(self, group: str, stream: str, entry_id: str) -> None:
        await self.connection.execute(_MOVE, (group, stream, entry_id))

    async def expect_silence(self, seconds: float) -> None:
        await self.connection.execute(_EXPECT_SILENCE, (abandoned_as(seconds),))

    async def bury(self, letter: DeadLetter) -> None:
        await self._letters.bury(self, letter)

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self.connection.transaction():
            yield


class PostgresStore:
    """`Store` on PostgreSQL.

    Args:
        pool: where connections come from; one for each open transaction.
        abandon_after: seconds that a transaction which handles events may leave the server waiting for its next
            statement; then the server ends it, so that one in a frozen process blocks nobody for longer. More than a
            handler may take.
        notes: where the connections for the notes of `Context.once` come from. Of its own where handlers run side by
            side: they hold one of `pool` while they wait for a note, and would wait for each other. Default: `pool`.
    """

    def __init__(self, pool: Pool, *, abandon_after: float = 35.0, notes: Pool | None = None) -> None:
        self._pool = pool
        self._abandoned = abandoned_as(abandon_after)
        self.retries: RetryTable = PostgresRetries()
        self.suspects: SuspectTable = PostgresSuspects()
        self.outbox: OutboxTable = PostgresOutbox(pool)
        self.dead_letters: LetterTable = PostgresLetters(self.outbox)
        self.losses: LossTable = PostgresLosses(pool)
        self.deletions: DeletionTable = PostgresDeletions()
        self.replays: ReplayTable = PostgresReplays()
        self.leases: LeaseTable = PostgresLeases(abandon_after)
        self.members: MemberTable = PostgresMembers()
        self.streams: StreamTable = PostgresStreams(abandon_after)
        self.steps: StepTable = PostgresSteps(notes or pool)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        async with self._pool.connection() as connection:
            transaction = _PostgresTransaction(connection, self.dead_letters, self._abandoned)
            try:
                with _losing(connection):
                    async with connection.transaction():
                        yield transaction
            except BaseException:
                # Now, for the pool closes a healthy one too, if it comes back in a state that cannot be mended.
                transaction.is_lost = connection.broken
                raise

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        return self._pool.connection()

    async def stored_position(self, group: str, stream: str) -> str | None:
        async with self._pool.connection() as connection:
            with _losing(connection):
                cursor = await connection.execute(
                    "select entry_id from penstock_group_position where consumer_group = %s and stream = %s",
                    (group, stream),
                )
                row = await cursor.fetchone()
                return None if row is None else str(row[0])


@contextmanager
def _losing(connection: Connection[TupleRow]) -> Iterator[None]:
    """Raise `PostgresUnavailable` where the connection was lost; every other error as it is.

    The connection tells, and not the error: a handler's error may come from a database of its own.
    """
    try:
        yield
    except PostgresUnavailable:
        raise
    except psycopg.OperationalError as error:
        if connection.closed:
            raise PostgresUnavailable("the connection was lost", address=connection.address) from error
        raise
