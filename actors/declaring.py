"""Tells the database which groups are declared: the ledger has to know who is to get an event."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .lease_table import abandoned_as

if TYPE_CHECKING:
    from ..runtime.postgres import Pool
    from .system import System

__all__ = ["declare_groups"]

ABANDON_AFTER: Final = 10.0
"""Seconds without a statement after which the server ends the transaction: its statements follow each other at once."""

_BEGIN: Final = "select set_config('idle_in_transaction_session_timeout', %s, true)"
"""A process that is frozen from here on must not keep others, who write the same rows, from starting."""

_DECLARE: Final = """
insert into penstock_group as known (stream, consumer_group, system, partitions, event_types)
values (%(stream)s, %(group)s, %(system)s, %(partitions)s, %(event_types)s)
on conflict (stream, consumer_group) do update set system = excluded.system, partitions = excluded.partitions,
    event_types = excluded.event_types, declared_at = now()
where (known.system, known.partitions, known.event_types)
    is distinct from (excluded.system, excluded.partitions, excluded.event_types)
"""

_RETRACT: Final = """
delete from penstock_group known where known.system = %(system)s and not exists (
    select from unnest(%(streams)s::text[], %(groups)s::text[]) as declared (stream, consumer_group)
    where declared.stream = known.stream and declared.consumer_group = known.consumer_group
)
"""


async def declare_groups(pool: Pool, system: System, *, abandon_after: float = ABANDON_AFTER) -> None:
    """Store the groups of `system`, its queues among them, and forget those that it declares no more.

    Processes that declare differently (an old and a new release) overwrite each other; the one that started last is
    right. Blocks for as long as others who start hold the same rows. Cancelled, nothing is stored.

    Args:
        pool: to the database.
        system: what is declared.
        abandon_after: seconds without a statement, since this process was frozen, after which the server gives it up.

    Raises:
        PostgresUnavailable: the database is away, or has ended the transaction of a process that was frozen.
        psycopg.errors.IdleInTransactionSessionTimeout: the latter, told by the server itself.
    """
    streams = [*system.streams.values(), *(queue.stream for queue in system.queues.values())]
    groups = sorted(
        ((stream, group) for stream in streams for group in stream.groups.values()),
        key=lambda pair: (pair[0].key, pair[1].name),  # in one order: processes that start together must not deadlock
    )
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(_BEGIN, [abandoned_as(abandon_after)])
        for stream, group in groups:
            facts = {
                "stream": stream.key,
                "group": group.name,
                "system": system.name,
                "partitions": list(stream.keys),
                "event_types": sorted(group.handlers),
            }
            await connection.execute(_DECLARE, facts)
        known = {
            "system": system.name,
            "streams": [stream.key for stream, _ in groups],
            "groups": [group.name for _, group in groups],
        }
        await connection.execute(_RETRACT, known)
