"""The table of replays: what somebody ordered, how far it is, and which process works it off."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol
from uuid import UUID, uuid4

from attrs import field, frozen
from psycopg.types.json import Jsonb

from .texts import storable

if TYPE_CHECKING:
    from .store import Transaction

__all__ = ["PostgresReplays", "Replay", "ReplayState", "ReplayTable"]


class ReplayState(enum.StrEnum):
    """What became of a replay."""

    WAITING = "waiting"
    """Ordered, and not begun."""

    RUNNING = "running"
    """Begun. It goes on after a restart where it stopped."""

    DONE = "done"
    """Every entry of the range that was still there has been replayed."""

    CANCELLED = "cancelled"
    """Somebody stopped it; what was replayed stays so."""

    FAILED = "failed"
    """It cannot be done; `Replay.error` says why."""


@frozen(kw_only=True)
class Replay:
    """An order to replay a range of a stream.

    Attributes:
        system: whose stream it is.
        stream: the declared stream's key; the range is taken of all its partitions.
        from_id: the first entry id of the range.
        to_id: the last one.
        target_stream: the key of the stream into which copies go; None where they go to one group.
        consumer_group: the group that handles the events again; None where they go into a stream.
        rate: events a second at the most; None: as fast as they are taken.
        original_pace: with the pauses that lay between the entries.
        total: how many entries the range had when it was ordered; None if that was not counted.
        ordered_by: who ordered it, for people.
        id: of the order.
        state: what became of it.
        cursors: the last entry that was replayed, by partition.
        replayed: how many were.
        ordered_at: aware; set by the table.
        finished_at: aware; None while it is not finished.
        error: why it failed.
    """

    system: str
    stream: str
    from_id: str
    to_id: str
    target_stream: str | None = None
    consumer_group: str | None = None
    rate: float | None = None
    original_pace: bool = False
    total: int | None = None
    ordered_by: str = ""
    id: UUID = field(factory=uuid4)
    state: ReplayState = field(default=ReplayState.WAITING, converter=ReplayState)
    cursors: Mapping[str, str] = field(factory=dict)
    replayed: int = 0
    ordered_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None

    @property
    def is_open(self) -> bool:
        """Whether something is left to be done."""
        return self.state in (ReplayState.WAITING, ReplayState.RUNNING)


class ReplayTable(Protocol):
    """In PostgreSQL or in memory. Errors are those of any statement of the transaction."""

    async def add(self, transaction: Transaction, replay: Replay) -> None:
        """Store a new order."""
        ...

    async def get(self, transaction: Transaction, replay_id: UUID) -> Replay | None:
        """The order of this id."""
        ...

    async def recent(self, transaction: Transaction, system: str, limit: int) -> list[Replay]:
        """The orders of a system, newest first."""
        ...

    async def claim(self, transaction: Transaction, system: str, worker: UUID, seconds: float) -> Replay | None:
        """The oldest open order that is ours, or nobody's; it is ours for so many seconds from now, and running."""
        ...

    async def advance(
        self, transaction: Transaction, replay: Replay, worker: UUID, cursors: Mapping[str, str], count: int
    ) -> bool:
        """Store how far we are, `count` entries further; False if it is ours no more, or was cancelled.

        Then this transaction must not be committed.
        """
        ...

    async def finish(self, transaction: Transaction, replay_id: UUID, state: ReplayState, error: str | None) -> bool:
        """Settle an open order; False if it is settled already."""
        ...

    async def release(self, transaction: Transaction, replay_id: UUID, worker: UUID) -> None:
        """Give an order back that is ours: the next process need not wait."""
        ...


_COLUMNS: Final = """
    system, stream, from_id, to_id, target_stream, consumer_group, rate, original_pace, total, ordered_by, id, state,
    cursors, replayed, ordered_at, finished_at, error
"""

_NAMES: Final = tuple(name.strip() for name in _COLUMNS.split(","))

_ADD: Final = """
insert into penstock_replay (
    system, stream, from_id, to_id, target_stream, consumer_group, rate, original_pace, total, ordered_by, id, cursors
) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""

_CLAIM: Final = f"""
update penstock_replay
set state = 'running', worker = %(worker)s, worker_until = now() + make_interval(secs => %(seconds)s)
where id = (
    select id from penstock_replay
    where system = %(system)s and state in ('waiting', 'running')
    and (worker is null or worker = %(worker)s or worker_until < now())
    order by ordered_at, id limit 1 for update skip locked
)
returning {_COLUMNS}
"""  # noqa: S608 - our own names

_ADVANCE: Final = """
update penstock_replay set cursors = %s, replayed = replayed + %s
where id = %s and worker = %s and state = 'running'
"""

_FINISH: Final = """
update penstock_replay set state = %s, error = %s, finished_at = now(), worker = null, worker_until = null
where id = %s and state in ('waiting', 'running')
"""


class PostgresReplays:
    """`ReplayTable` in PostgreSQL."""

    async def add(self, transaction: Transaction, replay: Replay) -> None:
        """See `ReplayTable.add`."""
        values = (
            replay.system,
            replay.stream,
            replay.from_id,
            replay.to_id,
            replay.target_stream,
            replay.consumer_group,
            replay.rate,
            replay.original_pace,
            replay.total,
            storable(replay.ordered_by),
            replay.id,
            Jsonb(dict(replay.cursors)),
        )
        await transaction.connection.execute(_ADD, values)

    async def get(self, transaction: Transaction, replay_id: UUID) -> Replay | None:
        """See `ReplayTable.get`."""
        cursor = await transaction.connection.execute(
            f"select {_COLUMNS} from penstock_replay where id = %s",  # noqa: S608 - our own names
            (replay_id,),
        )
        return _first(await cursor.fetchall())

    async def recent(self, transaction: Transaction, system: str, limit: int) -> list[Replay]:
        """See `ReplayTable.recent`."""
        cursor = await transaction.connection.execute(
            f"select {_COLUMNS} from penstock_replay where system = %s"  # noqa: S608 - our own names
            " order by ordered_at desc, id desc limit %s",
            (system, limit),
        )
        return [_replay(row) for row in await cursor.fetchall()]

    async def claim(self, transaction: Transaction, system: str, worker: UUID, seconds: float) -> Replay | None:
        """See `ReplayTable.claim`."""
        values = {"system": system, "worker": worker, "seconds": seconds}
        cursor = await transaction.connection.execute(_CLAIM, values)
        return _first(await cursor.fetchall())

    async def advance(
        self, transaction: Transaction, replay: Replay, worker: UUID, cursors: Mapping[str, str], count: int
    ) -> bool:
        """See `ReplayTable.advance`."""
        values = (Jsonb(dict(cursors)), count, replay.id, worker)
        return bool((await transaction.connection.execute(_ADVANCE, values)).rowcount)

    async def finish(self, transaction: Transaction, replay_id: UUID, state: ReplayState, error: str | None) -> bool:
        """See `ReplayTable.finish`."""
        told = None if error is None else storable(error, 2000)
        return bool((await transaction.connection.execute(_FINISH, (state.value, told, replay_id))).rowcount)

    async def release(self, transaction: Transaction, replay_id: UUID, worker: UUID) -> None:
        """See `ReplayTable.release`."""
        await transaction.connection.execute(
            "update penstock_replay set worker = null, worker_until = null where id = %s and worker = %s",
            (replay_id, worker),
        )


def _first(rows: list[Any]) -> Replay | None:
    return _replay(rows[0]) if rows else None


def _replay(row: Any) -> Replay:
    return Replay(**dict(zip(_NAMES, row, strict=True)))
