"""How delivery stands, for somebody who looks: what is tried again, is dead, was lost, is replayed, and who is there.

It is read from the tables, and so the same for all processes of the system. A few short queries, one after the other:
what is counted in one may have moved before the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from attrs import frozen

from .letter_filter import LetterFilter
from .outages import outages

if TYPE_CHECKING:
    from uuid import UUID

    from ..runtime.postgres import Pool
    from .lease_table import LeaseView
    from .letter_view import LetterGroup, LetterOrder
    from .letters import LetterDesk
    from .loss_table import RecordedLoss
    from .member_table import MemberView
    from .replay_table import Replay
    from .store import Store
    from .system import System

__all__ = ["DeliveryView", "DeliveryWatch", "RetryView"]

ROWS: Final = 50
"""Rows of each kind at the most: it is for looking at, not for working with."""

ENDED: Final = 10
"""Orders and replays that are looked through for those that still run."""


@frozen(kw_only=True)
class RetryView:
    """What of one partition waits for another attempt in one group.

    Attributes:
        consumer_group: the group.
        stream: the key of the partition.
        waiting: how many events, the parked ones included.
        parked: of them, those that only wait behind an earlier event of their key.
        attempts: the most that one of them has failed.
        oldest: seconds since the first of them came here.
        due_in: seconds until the next one is due; zero or below: it is; None where all are parked.
    """

    consumer_group: str
    stream: str
    waiting: int
    parked: int
    attempts: int
    oldest: float
    due_in: float | None


@frozen(kw_only=True)
class DeliveryView:
    """How delivery stands.

    Attributes:
        retries: what waits for another attempt.
        dead: letters that are dead, and nobody has decided on.
        letters: them, by what they died of; the most frequent first.
        orders: replays of letters that run.
        replays: replays of streams that run, or wait for their turn.
        losses: what was lost, the last first.
        members: the processes of this system.
        leases: who has which partition of the ordered groups of this system.
        process: the one that looked.
    """

    retries: tuple[RetryView, ...] = ()
    dead: int = 0
    letters: tuple[LetterGroup, ...] = ()
    orders: tuple[LetterOrder, ...] = ()
    replays: tuple[Replay, ...] = ()
    losses: tuple[RecordedLoss, ...] = ()
    members: tuple[MemberView, ...] = ()
    leases: tuple[LeaseView, ...] = ()
    process: UUID | None = None


_RETRIES: Final = """
select consumer_group, stream, count(*), count(*) filter (where origin = 'parked'), max(attempts),
    extract(epoch from now() - min(created_at))::float8,
    extract(epoch from min(due_at) filter (where origin <> 'parked') - now())::float8
from penstock_retry group by consumer_group, stream order by count(*) desc, consumer_group, stream limit %s
"""

_DEAD: Final = "select count(*) from penstock_dead_letter where status = 'dead'"


class DeliveryWatch:
    """Reads `DeliveryView` from the tables.

    Args:
        system: whose.
        pool: where connections come from.
        store: the tables.
        letters: the desk of dead letters.
        process: this one.
    """

    def __init__(self, system: System, pool: Pool, store: Store, letters: LetterDesk, process: UUID) -> None:
        self._system = system
        self._pool = pool
        self._store = store
        self._letters = letters
        self._process = process

    async def look(self) -> DeliveryView:
        """How it stands now. Bound it by a time-out: it counts rows.

        Raises:
            PostgresUnavailable: the database is away.
        """
        groups = {(group.name, key) for stream in self._system.streams.values() for group in stream.groups.values()
                  for key in stream.keys}  # fmt: skip
        async with self._store.transaction() as transaction:
            replays = await self._store.replays.recent(transaction, self._system.name, ENDED)
            members = await self._store.members.all(transaction)
            leases = await self._store.leases.all(transaction)
        async with self._pool.connection() as connection:
            with outages(self._pool.options.address):
                retries = await (await connection.execute(_RETRIES, (ROWS,))).fetchall()
                dead = await (await connection.execute(_DEAD)).fetchone()
        return DeliveryView(
            retries=tuple(_retry(*row) for row in retries),
            dead=0 if dead is None else dead[0],
            letters=tuple(await self._letters.groups(LetterFilter(), limit=ROWS)),
            orders=tuple(each for each in await self._letters.orders(limit=ENDED) if each.state == "running"),
            replays=tuple(each for each in replays if each.is_open),
            losses=tuple(await self._store.losses.recent(ROWS)),
            members=tuple(each for each in members if each.member.system == self._system.name),
            leases=tuple(each for each in leases if (each.consumer_group, each.stream) in groups),
            process=self._process,
        )


def _retry(
    group: str, stream: str, waiting: int, parked: int, attempts: int, oldest: float, due_in: float | None
) -> RetryView:
    return RetryView(
        consumer_group=group,
        stream=stream,
        waiting=waiting,
        parked=parked,
        attempts=attempts,
        oldest=oldest,
        due_in=due_in,
    )
