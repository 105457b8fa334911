"""The outbox: events that are accepted, and not yet in Redis.

Rows come in three ways: spooled by the producer while Redis refuses or is away, written in a handler's own transaction
(`Context.publish`), or ordered (a dead letter's mirror, a replay). The relay (`relay.py`) adds them to their streams in
the order of their ids, and deletes them.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol
from uuid import UUID

from attrs import field, frozen

from ..runtime.postgres import Notification, Notifications, Pool, listen
from .event import Fields
from .texts import storable

if TYPE_CHECKING:
    from .store import Transaction

__all__ = [
    "INSERT",
    "OutboxNews",
    "OutboxRow",
    "OutboxTable",
    "PostgresOutbox",
    "StoredRow",
    "WaitingRows",
    "insert_values",
    "pack",
    "unpack",
]

Kind = Literal["spool", "behind", "transaction", "mirror", "replay"]

CHANNEL: Final = "penstock_outbox"
"""The channel on which every insert is told."""


@frozen(kw_only=True)
class OutboxRow:
    """One event on its way to a stream.

    Attributes:
        stream: the key of the declared stream (the relay finds the partition), or of any other, a mirror say.
        event_id: of the event; None only for a mirror of what is no event.
        fields: the entry's fields; bytes that are no UTF-8 as surrogate escapes (PEP 383).
        key: the event's key.
        kind: ``spool``: Redis did not take it; ``behind``: it went behind such a one, and Redis was not asked;
            ``transaction``: published within a transaction; ``mirror``: of a dead
            letter; ``replay``: somebody ordered it.
        max_len: about how many entries its stream may have; None: any number.
        letter_id: the dead letter that a mirror shows; it is told the entry's id.
        created_by: who wrote it, for people: a group, a command.
    """

    stream: str
    event_id: UUID | None
    fields: Fields = field(repr=False)
    key: str | None = None
    kind: Kind
    max_len: int | None = None
    letter_id: int | None = None
    created_by: str = ""


@frozen
class StoredRow:
    """A row as it is in the table.

    Attributes:
        id: rows of one stream go in the order of their ids.
        row: what is to be added.
        age: seconds since it was written.
    """

    id: int
    row: OutboxRow
    age: float


@frozen
class WaitingRows:
    """What waits for one stream.

    Attributes:
        stream: its key.
        count: how many rows.
        age: seconds since the oldest of them was written.
    """

    stream: str
    count: int
    age: float


class OutboxNews(Protocol):
    """Tells when there may be something new; entered and left as a context."""

    async def wait(self) -> frozenset[str]:
        """Block until rows were committed since the last call, or may have been. A checkpoint.

        Returns the streams for which somebody has spooled, as far as that was told: what is published now goes behind.

        Raises:
            PostgresUnavailable: nobody can tell any more.
        """
        ...


class OutboxTable(Protocol):
    """The table, in PostgreSQL or in memory. Every method raises `PostgresUnavailable` when the database is away."""

    async def add(self, transaction: Transaction, rows: Sequence[OutboxRow]) -> list[int]:
        """Write rows, which are on their way as soon as the transaction is committed; their ids, in the same order.

        Rows of transactions that overlap have no order among each other.
        """
        ...

    async def take(self, transaction: Transaction, stream: str, limit: int, after: int = 0) -> list[StoredRow] | None:
        """The first rows of a stream behind `after`, to be added to it.

        Nobody else is given rows of that stream until the transaction ends.

        Returns None, at once, if somebody else is at it.
        """
        ...

    async def remove(self, transaction: Transaction, ids: Sequence[int]) -> int:
        """Delete rows; how many of them were there."""
        ...

    async def tell_letters(self, transaction: Transaction, entries: Mapping[int, str]) -> None:
        """Write into dead letters, by their ids, under which entry ids their mirrors show them."""
        ...

    async def streams(self) -> list[str]:
        """The streams for which something waits, in order. Quick, however much it is."""
        ...

    async def waiting(self) -> list[WaitingRows]:
        """How much waits, by stream. Counts it all."""
        ...

    def news(self) -> AbstractAsyncContextManager[OutboxNews]:
        """Listen for rows that are committed from now on; see `OutboxNews`. What was there before is not told."""
        ...


def pack(fields: Mapping[str, str]) -> bytes:
    """The fields as the table has them: a JSON object in ASCII, exactly, NUL and half surrogate pairs included."""
    return json.dumps(dict(fields)).encode("ascii")


def unpack(packed: bytes) -> Fields:
    """The fields that `pack` made; what SQL has written as UTF-8 is read, too."""
    fields: Fields = json.loads(packed)
    return fields


INSERT: Final = """
insert into penstock_outbox (stream, event_id, event_key, fields, kind, max_len, letter_id, created_by)
select stream, event_id, event_key, fields, kind, max_len, letter_id, created_by
from unnest(
    %s::text[], %s::uuid[], %s::text[], %s::bytea[], %s::text[], %s::bigint[], %s::bigint[], %s::text[]
) with ordinality
    as given (stream, event_id, event_key, fields, kind, max_len, letter_id, created_by, place)
order by place
returning id
"""
"""Writes rows in the order of `insert_values`."""

STANDS_STILL_FOR: Final = "20s"
"""How long who relays a stream may leave its transaction alone, longer than any answer of Redis takes: a process that
was frozen in the midst of it must not keep the others from relaying."""

_LOCK: Final = """
select pg_try_advisory_xact_lock(hashtextextended(%s, 0)), set_config('idle_in_transaction_session_timeout', %s, true)
"""

_TAKE: Final = """
select id, stream, event_id, event_key, fields, kind, max_len, letter_id, created_by,
       greatest(0, extract(epoch from clock_timestamp() - created_at))::float8
from penstock_outbox where (stream, id) > (%(stream)s, %(after)s) and stream <= %(stream)s
order by stream, id limit %(limit)s
"""
"""In words that leave only the index (stream, id). With ``stream = …`` the planner takes that of the primary key for a
stream that it thinks common, and reads through all that other streams have before it."""

# Locked by age, as the desk of letters locks them.
_TELL: Final = """
with given as (select * from unnest(%s::bigint[], %s::text[]) as given (letter_id, entry_id)
), locked as (
    select id from penstock_dead_letter where id in (select letter_id from given) order by id for no key update
)
update penstock_dead_letter as letter set mirror_id = given.entry_id
from locked join given on given.letter_id = locked.id where letter.id = locked.id
"""

_STREAMS: Final = """
with recursive found (stream) as (
    (select stream from penstock_outbox order by stream limit 1)
    union all
    select (select next.stream from penstock_outbox as next where next.stream > found.stream order by stream limit 1)
    from found where found.stream is not null
)
select stream from found where stream is not null
"""
"""Steps from stream to stream through the index, instead of reading every row."""

_WAITING: Final = """
select stream, count(*), greatest(0, extract(epoch from clock_timestamp() - min(created_at)))::float8
from penstock_outbox group by stream order by stream
"""


def insert_values(rows: Sequence[OutboxRow]) -> tuple[list[Any], ...]:
    """The values of `INSERT`."""
    return (
        [storable(row.stream) for row in rows],
        [row.event_id for row in rows],
        # For people and queries: the relay and the handlers have the exact one in the fields.
        [None if row.key is None else storable(row.key) for row in rows],
        [pack(row.fields) for row in rows],
        [row.kind for row in rows],
        [row.max_len for row in rows],
        [row.letter_id for row in rows],
        [storable(row.created_by) for row in rows],
    )


class PostgresOutbox:
    """`OutboxTable` in PostgreSQL.

    Args:
        pool: for what needs no transaction of the caller's.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def add(self, transaction: Transaction, rows: Sequence[OutboxRow]) -> list[int]:
        """See `OutboxTable.add`."""
        if not rows:
            return []
        cursor = await transaction.connection.execute(INSERT, insert_values(rows))
        # RETURNING promises no order; identities are given in the order of the insert.
        return sorted(row[0] for row in await cursor.fetchall())

    async def take(self, transaction: Transaction, stream: str, limit: int, after: int = 0) -> list[StoredRow] | None:
        """See `OutboxTable.take`."""
        connection = transaction.connection
        cursor = await connection.execute(_LOCK, (f"penstock_outbox {stream}", STANDS_STILL_FOR))
        if not (await cursor.fetchone())[0]:
            return None
        cursor = await connection.execute(_TAKE, {"stream": stream, "after": after, "limit": limit})
        return [_stored(*row) for row in await cursor.fetchall()]

    async def remove(self, transaction: Transaction, ids: Sequence[int]) -> int:
        """See `OutboxTable.remove`."""
        cursor = await transaction.connection.execute("delete from penstock_outbox where id = any(%s)", (list(ids),))
        return int(cursor.rowcount)

    async def tell_letters(self, transaction: Transaction, entries: Mapping[int, str]) -> None:
        """See `OutboxTable.tell_letters`."""
        if entries:
            await transaction.connection.execute(_TELL, (list(entries), list(entries.values())))

    async def streams(self) -> list[str]:
        """See `OutboxTable.streams`."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_STREAMS)
            return [row[0] for row in await cursor.fetchall()]

    async def waiting(self) -> list[WaitingRows]:
        """See `OutboxTable.waiting`."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_WAITING)
            return [WaitingRows(*row) for row in await cursor.fetchall()]

    @asynccontextmanager
    async def news(self) -> AsyncIterator[OutboxNews]:
        """See `OutboxTable.news`."""
        async with listen(self._pool.options, CHANNEL, retry_for=0.0) as notifications:
            yield _News(notifications)


@frozen
class _News:
    _notifications: Notifications

    async def wait(self) -> frozenset[str]:
        # A Gap counts, too: rows may have come meanwhile.
        items = [await anext(self._notifications), *self._notifications.drain()]
        return frozenset(item.payload for item in items if isinstance(item, Notification) and item.payload)


def _stored(
    number: int,
    stream: str,
    event_id: UUID | None,
    key: str | None,
    fields: bytes,
    kind: Kind,
    max_len: int | None,
    letter_id: int | None,
    created_by: str,
    age: float,
) -> StoredRow:
    row = OutboxRow(
        stream=stream,
        event_id=event_id,
        fields=unpack(fields),
        key=key,
        kind=kind,
        max_len=max_len,
        letter_id=letter_id,
        created_by=created_by,
    )
    return StoredRow(number, row, age)
