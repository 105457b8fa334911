"""Which processes run a system: rows of ``penstock_member``, each renewed by its process every few seconds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from attrs import frozen

if TYPE_CHECKING:
    from .store import Transaction

__all__ = ["Member", "MemberTable", "MemberView", "PostgresMembers"]


@frozen(kw_only=True)
class Member:
    """What a process says of itself.

    Attributes:
        process: made anew at each start.
        system: the name of the system that it runs.
        instance: the short stable id of the installation; it outlives the process, and names its consumers.
        host: the machine.
        pid: its number there.
        version: of Penstock.
        groups: the ordered groups, ``GROUP@STREAM``, of which it could handle partitions right now.
    """

    process: UUID
    system: str
    instance: str
    host: str
    pid: int
    version: str
    groups: tuple[str, ...] = ()


@frozen(kw_only=True)
class MemberView:
    """A process as it was seen last.

    Attributes:
        member: what it says of itself.
        started_ago: seconds since its first sign of life.
        seen_ago: seconds since the last one.
    """

    member: Member
    started_ago: float
    seen_ago: float


class MemberTable(Protocol):
    """The processes. All methods raise what a statement of the transaction raises."""

    async def beat(self, transaction: Transaction, member: Member) -> None:
        """Say that a process is there."""
        ...

    async def leave(self, transaction: Transaction, process: UUID) -> None:
        """Say that it is not any more. Nothing happens if nobody knew it."""
        ...

    async def all(self, transaction: Transaction) -> list[MemberView]:
        """All that are known, whether they live or not; the oldest first."""
        ...

    async def forget(self, transaction: Transaction, silent_for: float) -> int:
        """Remove those that have given no sign of life for so many seconds; how many that were."""
        ...


_BEAT = """
insert into penstock_member as known (process, system, instance, host, pid, version, groups)
values (%s, %s, %s, %s, %s, %s, %s)
on conflict (process) do update set groups = excluded.groups, seen_at = now()
"""

_ALL = """
select process, system, instance, host, pid, version, groups,
    extract(epoch from now() - started_at)::double precision, extract(epoch from now() - seen_at)::double precision
from penstock_member order by started_at, process
"""


class PostgresMembers:
    """`MemberTable` on PostgreSQL."""

    async def beat(self, transaction: Transaction, member: Member) -> None:
        """See `MemberTable.beat`."""
        row = (member.process, member.system, member.instance, member.host, member.pid, member.version)
        await transaction.connection.execute(_BEAT, (*row, list(member.groups)))

    async def leave(self, transaction: Transaction, process: UUID) -> None:
        """See `MemberTable.leave`."""
        await transaction.connection.execute("delete from penstock_member where process = %s", (process,))

    async def all(self, transaction: Transaction) -> list[MemberView]:
        """See `MemberTable.all`."""
        rows = await (await transaction.connection.execute(_ALL)).fetchall()
        return [
            MemberView(
                member=Member(
                    process=process, system=system, instance=instance, host=host, pid=pid, version=version,
                    groups=tuple(groups),
                ),
                started_ago=started_ago,
                seen_ago=seen_ago,
            )
            for process, system, instance, host, pid, version, groups, started_ago, seen_ago in rows
        ]  # fmt: skip

    async def forget(self, transaction: Transaction, silent_for: float) -> int:
        """See `MemberTable.forget`."""
        statement = "delete from penstock_member where seen_at < now() - make_interval(secs => %s)"
        return int((await transaction.connection.execute(statement, (silent_for,))).rowcount)
