"""Who has which partition of an ordered group: rows of ``penstock_lease``.

A lease has an epoch, which grows with every new owner. Each handling transaction of an ordered group holds its lease:
as long as it is open nobody else can take the partition, and once somebody has taken it, whoever had it before can
commit nothing. When a lease ends, the database's clock alone says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from attrs import frozen

if TYPE_CHECKING:
    from .store import Transaction

__all__ = ["Lease", "LeaseLost", "LeaseTable", "LeaseView", "PostgresLeases", "abandoned_as"]


class LeaseLost(Exception):
    """The partition is not ours (any more): nothing of it may be committed. No event is at fault."""


@frozen
class Lease:
    """The right to handle a partition for an ordered group.

    Attributes:
        consumer_group: the group.
        stream: the partition's key.
        owner: the process that has it.
        epoch: how many owners the partition has had; the greater one is the right one.
    """

    consumer_group: str
    stream: str
    owner: UUID
    epoch: int


@frozen
class LeaseView:
    """A row of the table.

    Attributes:
        consumer_group: the group.
        stream: the partition's key.
        owner: the process that has or had it last; None when it was given back.
        epoch: of that owner.
        expires_in: seconds until it ends if it is not renewed; below zero: it has ended.
    """

    consumer_group: str
    stream: str
    owner: UUID | None
    epoch: int
    expires_in: float

    @property
    def is_free(self) -> bool:
        """Whether anybody may take it."""
        return self.owner is None or self.expires_in <= 0


class LeaseTable(Protocol):
    """The leases. Everything takes the open transaction that it belongs to, and counts once that is committed.

    All methods raise what a statement of the transaction raises.
    """

    async def hold(self, transaction: Transaction, lease: Lease) -> None:
        """Make sure that `lease` is in force until the end of the transaction: nobody takes it before.

        Waits for somebody who is about to take it.

        Raises:
            LeaseLost: it has ended, or somebody else has the partition.
        """
        ...

    async def take(
        self,
        transaction: Transaction,
        consumer_group: str,
        stream: str,
        owner: UUID,
        within: float,
        above: int = 0,
    ) -> Lease | None:
        """Take a partition that nobody has, or `owner` itself, for `within` seconds, with the next epoch.

        That is greater than `above`, too.

        Returns None, without waiting, if somebody has it, or a transaction that holds it is still open.
        """
        ...

    async def renew(self, transaction: Transaction, leases: Sequence[Lease], within: float) -> list[Lease]:
        """Let leases last `within` seconds from now; returns those that are still ours, whether they had ended or not.

        Does not wait for transactions that hold them.
        """
        ...

    async def release(self, transaction: Transaction, lease: Lease) -> bool:
        """Give a partition back; False if it is somebody else's already."""
        ...

    async def all(self, transaction: Transaction) -> list[LeaseView]:
        """All rows, by group and stream."""
        ...


def abandoned_as(seconds: float) -> str:
    """How PostgreSQL is told after how many seconds without a statement it should end a transaction."""
    return str(round(seconds * 1000))


_HOLD = """
select set_config('idle_in_transaction_session_timeout', %s, true) from penstock_lease
where consumer_group = %s and stream = %s and owner = %s and epoch = %s and expires_at > clock_timestamp()
for key share
"""
# KEY SHARE: a renewal goes on beside it, a new owner (FOR UPDATE) does not. A process that is frozen from here on
# must not hold the partition for ever.

_MAKE = """
insert into penstock_lease (consumer_group, stream, expires_at) values (%s, %s, '-infinity') on conflict do nothing
"""

_TAKE = """
with free as (
    select consumer_group, stream from penstock_lease
    where consumer_group = %(group)s and stream = %(stream)s
        and (owner is null or owner = %(owner)s or expires_at <= clock_timestamp())
    for update skip locked
)
update penstock_lease lease
set owner = %(owner)s, epoch = greatest(lease.epoch, %(above)s) + 1,
    expires_at = clock_timestamp() + make_interval(secs => %(within)s)
from free where lease.consumer_group = free.consumer_group and lease.stream = free.stream
returning lease.epoch
"""

_RENEW = """
update penstock_lease lease set expires_at = clock_timestamp() + make_interval(secs => %(within)s)
from unnest(%(groups)b::text[], %(streams)b::text[], %(owners)b::uuid[], %(epochs)b::bigint[])
    as ours (consumer_group, stream, owner, epoch)
where lease.consumer_group = ours.consumer_group and lease.stream = ours.stream
    and lease.owner = ours.owner and lease.epoch = ours.epoch
returning lease.consumer_group, lease.stream, lease.owner, lease.epoch
"""

_RELEASE = """
update penstock_lease set owner = null, expires_at = clock_timestamp()
where consumer_group = %s and stream = %s and owner = %s and epoch = %s
"""

_ALL = """
select consumer_group, stream, owner, epoch,
    case when expires_at = '-infinity' then -1e9
        else extract(epoch from expires_at - clock_timestamp()) end::double precision
from penstock_lease order by consumer_group, stream
"""


class PostgresLeases:
    """`LeaseTable` on PostgreSQL.

    Args:
        abandon_after: see `PostgresStore`.
    """

    def __init__(self, abandon_after: float = 35.0) -> None:
        self._abandoned = abandoned_as(abandon_after)

    async def hold(self, transaction: Transaction, lease: Lease) -> None:
        """See `LeaseTable.hold`."""
        place = (lease.consumer_group, lease.stream, lease.owner, lease.epoch)
        cursor = await transaction.connection.execute(_HOLD, (self._abandoned, *place))
        if await cursor.fetchone() is None:
            raise LeaseLost(f"{lease.stream} is not ours any more for {lease.consumer_group}, epoch {lease.epoch}")

    async def take(
        self,
        transaction: Transaction,
        consumer_group: str,
        stream: str,
        owner: UUID,
        within: float,
        above: int = 0,
    ) -> Lease | None:
        """See `LeaseTable.take`."""
        await transaction.connection.execute(_MAKE, (consumer_group, stream))
        asked = {"group": consumer_group, "stream": stream, "owner": owner, "within": within, "above": above}
        row = await (await transaction.connection.execute(_TAKE, asked)).fetchone()
        return None if row is None else Lease(consumer_group, stream, owner, row[0])

    async def renew(self, transaction: Transaction, leases: Sequence[Lease], within: float) -> list[Lease]:
        """See `LeaseTable.renew`."""
        cursor = await transaction.connection.execute(
            _RENEW,
            {
                "within": within,
                "groups": [lease.consumer_group for lease in leases],
                "streams": [lease.stream for lease in leases],
                "owners": [lease.owner for lease in leases],
                "epochs": [lease.epoch for lease in leases],
            },
        )
        return [Lease(*row) for row in await cursor.fetchall()]

    async def release(self, transaction: Transaction, lease: Lease) -> bool:
        """See `LeaseTable.release`."""
        place = (lease.consumer_group, lease.stream, lease.owner, lease.epoch)
        cursor = await transaction.connection.execute(_RELEASE, place)
        return bool(cursor.rowcount)

    async def all(self, transaction: Transaction) -> list[LeaseView]:
        """See `LeaseTable.all`."""
        return [LeaseView(*row) for row in await (await transaction.connection.execute(_ALL)).fetchall()]
