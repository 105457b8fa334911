"""Leasing: which partitions of ordered groups this process has.

Each process looks at the leases and at who else is there, and decides for itself what it should have (`plan`): it
gives back what is too much, and takes what is free. A partition changes hands in good order like this: nothing more
is read, what was read is handled, the gate is shut and the partition's actors have left; only then the lease is given
back. If the owner is gone, its lease ends by itself, and whoever takes it over reads the owner's history first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Final
from uuid import UUID

import trio
from attrs import define, field, frozen

from ..runtime.telemetry import get_logger
from .child_names import group_id

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gate, Gates
    from .backlog import Backlog
    from .lease_table import Lease, LeaseView
    from .settings import DeliverySettings
    from .store import Store
    from .system import System

__all__ = ["LEASE_GATE", "Leasing", "Plan", "Standing", "Tenure", "plan", "standings"]

log = get_logger(__name__)

LEASE_GATE: Final = "lease "
"""How the names of the gates of partitions begin. That one is shut is no fault: some process has the partition."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at the leases while we want more of them than we have."""

DRAIN_WITHIN = 5.0
"""Seconds in which what was read should be handled before a partition is given away; the rest is read by the next."""

LEAVE_WITHIN = 2.0
"""Seconds that giving everything back may take when the process stops; what is not given back ends by itself."""


class Standing:
    """Whether this process can handle a group's events, as far as gates of the system's own tell.

    Args:
        gates: behind which the group stands.
        patience: seconds for which one of them may be shut: partitions that change hands with each flicker help nobody.
    """

    def __init__(self, gates: Sequence[Gate], patience: float) -> None:
        self.gates = tuple(gates)
        self._patience = patience
        self._shut_since: float | None = None

    def is_fit(self) -> bool:
        """Whether it can; has to be asked every few seconds to know since when it cannot."""
        now = trio.current_time()
        if all(gate.is_open for gate in self.gates):
            self._shut_since = None
        elif self._shut_since is None:
            self._shut_since = now
        return self._shut_since is None or now - self._shut_since < self._patience


def standings(system: System, gates: Gates, settings: DeliverySettings) -> dict[str, Standing]:
    """The standing of this process in each ordered group that it reads, by the group's name (``GROUP@STREAM``)."""
    return {
        # As long as others wait for a process that is silent.
        group_id(group, stream): Standing([gates[name] for name in group.requires], settings.lease_ttl)
        for stream in system.streams.values()
        for group in stream.read_here
        if group.ordered
    }


@define(eq=False)
class Tenure:
    """This process's time as the owner of one partition for one group, again and again.

    Attributes:
        consumer_group: the group.
        stream: the partition's key.
        backlog: what was read of it.
        gate: open while it is ours.
        lease: what proves it.
        is_leaving: it is being given away: nothing more may be read.
        outrun: the greatest epoch that Redis knew of when it was above ours.
    """

    consumer_group: str
    stream: str
    backlog: Backlog
    gate: Gate
    lease: Lease | None = None
    is_leaving: bool = False
    outrun: int = 0
    _users: int = field(default=0, init=False)
    _left: trio.Event = field(factory=trio.Event, init=False)
    _doubted: Callable[[], None] = field(default=lambda: None, init=False)

    def fence(self) -> Lease | None:
        """The lease, for those who act under it."""
        return self.lease

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """A block that acts under the lease: it is not given back before."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users:
                self._left.set()
                self._left = trio.Event()

    def begin(self, lease: Lease) -> None:
        """The partition is ours."""
        self.backlog.clear()  # of an earlier tenure: whoever was the owner meanwhile has dealt with it
        self.lease, self.is_leaving = lease, False
        self.gate.open()

    async def end(self, why: str) -> None:
        """Hold the partition's actors, and block until they have left. Cancelled, it is begun again."""
        self.is_leaving = True
        self.gate.shut(why)
        while self._users:
            await self._left.wait()
        self.backlog.clear()
        self.lease, self.is_leaving = None, False

    async def drain(self) -> None:
        """Block until what was read is handled and acknowledged, `DRAIN_WITHIN` seconds at the most."""
        self.is_leaving = True
        with trio.move_on_after(DRAIN_WITHIN):
            await self.backlog.wait_empty()

    def doubt(self, epoch: int) -> None:
        """Somebody acts as if he was the owner, with a greater epoch: have the lease looked at now."""
        self.outrun = max(self.outrun, epoch)
        self._doubted()


@frozen
class Plan:
    """What a process should do about the partitions of one group.

    Attributes:
        release: what it has and should give back.
        take: what is free and should be its own.
        is_short: it has fewer than it should have, also after that.
    """

    release: tuple[str, ...]
    take: tuple[str, ...]
    is_short: bool


def plan(group: str, me: UUID, owners: Mapping[str, UUID | None], members: Collection[UUID]) -> Plan:
    """What to release and take.

    Everybody's share is the number of partitions by that of the processes; of what is left over one more goes to those
    who have most already, so that little changes hands, and else by lot, so that it is not the same one in each group.

    Args:
        group: the group's name, for the lot.
        me: this process.
        owners: by partition, in order: who has it; None where it is free.
        members: the processes that live and have this group.
    """
    everybody = {*members, me}
    held = {each: sum(owner == each for owner in owners.values()) for each in everybody}
    share, extra = divmod(len(owners), len(everybody))
    favoured = sorted(everybody, key=lambda each: (-held[each], _lot(group, each)))[:extra]
    quota = share + (me in favoured)
    mine = [key for key, owner in owners.items() if owner == me]
    free = [key for key, owner in owners.items() if owner is None]
    take = free[: max(0, quota - len(mine))]
    return Plan(tuple(mine[quota:]), tuple(take), len(mine) + len(take) < quota)


def _lot(group: str, process: UUID) -> bytes:
    return blake2b(group.encode() + process.bytes, digest_size=8).digest()


class Leasing:
    """The body of the actor ``leases``.

    Args:
        store: where the leases are.
        process: this process.
        tenures: all partitions of all ordered groups, by the group's name (``GROUP@STREAM``).
        settings: how long a lease lasts, and when a process counts as gone.
        standings: whether this process can handle them, by the group's name: it has no partition of one that it cannot.
    """

    def __init__(
        self,
        store: Store,
        process: UUID,
        tenures: Mapping[str, Sequence[Tenure]],
        settings: DeliverySettings,
        standings: Mapping[str, Standing],
    ) -> None:
        self._store = store
        self._process = process
        self._groups = tenures
        self._standings = standings
        self._ttl = settings.lease_ttl
        self._silent_after = 3 * settings.heartbeat_every
        self._changing: set[Tenure] = set()
        self._news = trio.Event()
        for tenure in self._tenures():
            tenure._doubted = self._wake
        for gate in {gate for standing in standings.values() for gate in standing.gates}:
            gate.listen(lambda _: self._wake())

    async def __call__(self, child: Child) -> None:
        """Keep the leases until cancelled (they last, and may be kept by the next incarnation), or drained: given back.

        Raises:
            PostgresUnavailable: as the link says.
        """
        async with trio.open_nursery() as changing:
            changing.start_soon(self._keep, child, changing)
            await child.draining.wait()
            changing.cancel_scope.cancel(reason="everything is given back")
        # Who is cancelled, for an outage, say, keeps what it has: it comes back for it.
        await trio.lowlevel.checkpoint()
        with trio.move_on_after(LEAVE_WITHIN):
            for tenure in self._tenures():
                await self._give_back(tenure, "the process stops")

    async def _keep(self, child: Child, changing: trio.Nursery) -> None:
        self._changing.clear()
        while True:
            self._news = trio.Event()
            is_short = await self._round(changing)
            if not child.ready:
                child.started()
            mine = sum(tenure.gate.is_open for tenure in self._tenures())
            child.note(f"{mine} of {sum(map(len, self._groups.values()))} partitions")
            with trio.move_on_after(LOOK_AGAIN if is_short else self._ttl / 3):
                await self._news.wait()

    async def _round(self, changing: trio.Nursery) -> bool:
        """Renew what we have, and change what should change; whether we want more than we have."""
        mine = [tenure.lease for tenure in self._tenures() if tenure.lease is not None]
        # As it was before: what is above an epoch that is in force after that is no successor's.
        outrun = {tenure for tenure in self._tenures() if tenure.lease and tenure.lease.epoch < tenure.outrun}
        async with self._store.transaction() as transaction:
            renewed = await self._store.leases.renew(transaction, mine, self._ttl) if mine else []
            rows = {(row.consumer_group, row.stream): row for row in await self._store.leases.all(transaction)}
            members = await self._store.members.all(transaction)
        for tenure in self._tenures():
            if tenure.lease is not None and tenure.lease not in renewed:
                log.warning("partition is lost", group=tenure.consumer_group, stream=tenure.stream)
                self._change(changing, self._lose, tenure)
            elif tenure.is_leaving:  # an earlier incarnation was cut off in the middle
                self._change(changing, self._leave, tenure)
            elif tenure in outrun:
                self._change(changing, self._renumber, tenure)
        is_short = False
        for name, tenures in self._groups.items():
            live = {
                each.member.process
                for each in members
                if each.seen_ago <= self._silent_after and name in each.member.groups
            }
            is_short |= await self._balance(changing, name, tenures, rows, live)
        return is_short

    async def _balance(
        self,
        changing: trio.Nursery,
        name: str,
        tenures: Sequence[Tenure],
        rows: Mapping[tuple[str, str], LeaseView],
        members: Collection[UUID],
    ) -> bool:
        if not self._standings[name].is_fit():
            for tenure in tenures:
                if tenure.lease is not None:
                    self._change(changing, self._leave, tenure)
            return False
        owners = {tenure.stream: self._owner(tenure, rows) for tenure in tenures}
        decided = plan(name, self._process, owners, members)
        for tenure in tenures:
            if tenure in self._changing:
                continue
            if tenure.stream in decided.release:
                self._change(changing, self._leave, tenure)
            elif tenure.stream in decided.take:
                await self._take(tenure)
        return decided.is_short or any(tenure.lease is None and tenure.stream in decided.take for tenure in tenures)

    def _owner(self, tenure: Tenure, rows: Mapping[tuple[str, str], LeaseView]) -> UUID | None:
        row = rows.get((tenure.consumer_group, tenure.stream))
        if tenure.lease is not None:
            # Also while it is on its way: it is nobody's before it is given back.
            return self._process if row is None or row.owner == self._process else row.owner
        if row is None or row.is_free or row.owner == self._process:
            return None
        return row.owner

    async def _take(self, tenure: Tenure) -> None:
        async with self._store.transaction() as transaction:
            lease = await self._store.leases.take(
                transaction, tenure.consumer_group, tenure.stream, self._process, self._ttl, above=tenure.outrun
            )
        if lease is not None:
            log.info("partition is ours", group=tenure.consumer_group, stream=tenure.stream, epoch=lease.epoch)
            tenure.begin(lease)

    def _change(self, changing: trio.Nursery, how: Callable[[Tenure], object], tenure: Tenure) -> None:
        """Let a partition go in a task of its own: the others must be renewed meanwhile."""
        if tenure not in self._changing:
            self._changing.add(tenure)
            changing.start_soon(how, tenure)  # type: ignore[arg-type]

    async def _lose(self, tenure: Tenure) -> None:
        await tenure.end("another process has taken it over")
        self._changed(tenure)

    async def _renumber(self, tenure: Tenure) -> None:
        """Redis knows of an epoch that the database has never given, or has forgotten: take it again, above that."""
        log.warning("the database is younger than Redis", group=tenure.consumer_group, stream=tenure.stream,
                    epoch_in_redis=tenure.outrun)  # fmt: skip
        await self._give_back(tenure, "its epoch is below that of an earlier owner")
        self._changed(tenure)

    async def _leave(self, tenure: Tenure) -> None:
        await tenure.drain()
        await self._give_back(tenure, "it goes to another process")
        self._changed(tenure)

    async def _give_back(self, tenure: Tenure, why: str) -> None:
        lease = tenure.lease
        await tenure.end(why)
        if lease is not None:
            async with self._store.transaction() as transaction:
                await self._store.leases.release(transaction, lease)
            log.info("partition given back", group=tenure.consumer_group, stream=tenure.stream, epoch=lease.epoch)

    def _changed(self, tenure: Tenure) -> None:
        self._changing.discard(tenure)
        self._wake()

    def _wake(self) -> None:
        self._news.set()

    def _tenures(self) -> Iterator[Tenure]:
        for tenures in self._groups.values():
            yield from tenures
