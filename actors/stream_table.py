"""With how many partitions each stream was made: rows of ``penstock_stream``. A key must go on meeting the same one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol

import psycopg

from .lease_table import abandoned_as

if TYPE_CHECKING:
    from ..runtime.postgres import Pool
    from .store import Store, Transaction
    from .system import Stream, System

__all__ = ["PostgresStreams", "StreamTable", "made_otherwise", "misdeclared"]

_DECLARE: Final = """
insert into penstock_stream (stream, partitions) select %s::text, %s::integer
where set_config('idle_in_transaction_session_timeout', %s, true) is not null
on conflict do nothing
"""
# A process that is frozen from here on must not keep others, who enter the same streams, from starting.


class StreamTable(Protocol):
    """The streams that were ever used."""

    async def declare(self, transaction: Transaction, stream: str, partitions: int) -> int:
        """Enter a stream at its first use; returns the number of partitions that is entered for it, ours or not.

        Raises what a statement of the transaction raises.
        """
        ...


class PostgresStreams:
    """`StreamTable` on PostgreSQL.

    Args:
        abandon_after: see `PostgresStore`.
    """

    def __init__(self, abandon_after: float = 35.0) -> None:
        self._abandoned = abandoned_as(abandon_after)

    async def declare(self, transaction: Transaction, stream: str, partitions: int) -> int:
        """See `StreamTable.declare`."""
        connection = transaction.connection
        await connection.execute(_DECLARE, (stream, partitions, self._abandoned))
        asked = await connection.execute("select partitions from penstock_stream where stream = %s", (stream,))
        return int((await asked.fetchone())[0])


async def misdeclared(store: Store, system: System) -> str:
    """Enter the streams of `system`; what is wrong with their declaration, and how to mend it. Empty if all is well.

    Raises:
        PostgresUnavailable: the database is away.
    """
    async with store.transaction() as transaction:
        # In one order: processes that start together must not wait for each other.
        known = {
            stream.key: await store.streams.declare(transaction, stream.key, stream.partitions)
            for stream in _sorted(system.streams.values())
        }
    return "; ".join(
        _refusal(stream, known[stream.key])
        for stream in system.streams.values()
        if known[stream.key] != stream.partitions
    )


async def made_otherwise(pool: Pool, system: System) -> list[str]:
    """As `misdeclared`, one text for each stream, but nothing is entered; before the first migration there is nothing.

    Raises:
        PostgresUnavailable, psycopg.Error: as the link says.
    """
    try:
        async with pool.connection() as connection:
            rows = await (await connection.execute("select stream, partitions from penstock_stream")).fetchall()
    except psycopg.errors.UndefinedTable:
        return []
    known: dict[str, int] = dict(rows)
    return [
        _refusal(stream, known[stream.key])
        for stream in system.streams.values()
        if known.get(stream.key, stream.partitions) != stream.partitions
    ]


def _sorted(streams: Iterable[Stream]) -> list[Stream]:
    return sorted(streams, key=lambda stream: stream.key)


def _refusal(stream: Stream, made_with: int) -> str:
    return (
        f"stream {stream.key!r} was made with {made_with} partitions and is declared with {stream.partitions}: keys "
        f"would meet other partitions, and lose their order; declare partitions={made_with}, or use another key, or, "
        f"when nothing is in it any more, delete its row of penstock_stream"
    )
