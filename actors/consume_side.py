"""The consume side of a deployment: who is there, who has which partition, groups (read here or only made), queues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ..runtime.mailbox import AskTimeout, MailboxClosed, PeerDied
from ..runtime.supervision import ChildSpec
from .claim_order import ClaimOrder, ClaimOutcome, ClaimResult, KeeperHeld
from .group_tree import GroupTree, group_id
from .leasing import Leasing
from .made_groups import MadeGroup
from .membership import LEAVE_WITHIN, Membership
from .queue_tree import QueueTree
from .site import Site
from .stopping import Stopping

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable, Sequence
    from uuid import UUID

    from ..runtime.supervision import Gates
    from .backends import Backends
    from .backlog import Backlog
    from .channels import Notice
    from .handler_pool import HandlerPool
    from .handling import Unavailable
    from .health_monitor import Watch
    from .losses import LossDetector
    from .publish_side import PublishSide
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .system import System

__all__ = ["ConsumeSide"]

CLAIM_WITHIN: Final = 5.0
"""Seconds for which a keeper is given to answer an order: it does so at once, unless it is held."""

PATIENCE: Final = 1.0
"""Seconds for which a listener makes a connection to a cluster again before it calls that trouble."""


class ConsumeSide:
    """See the module. Adds the gates of its leases.

    Args:
        system: what was declared.
        settings: what was set.
        backends: what the deployment stands on.
        gates: the deployment's.
        redis: its link, and who is told of its errors.
        postgres: who is told of PostgreSQL's.
        outside_trouble: told of what is away behind the gates of the system's own.
        publishing: takes what handlers publish.
        broadcast: sends what handlers broadcast.
        losses: looks what a stream has lost, before somebody reads on in it.
        instance: the short stable id of the installation.
        process: of this process alone.
        chance: of all jitter.
        wall: where dates come from; None for the real clock.

    Attributes:
        pools: the handler pools, by group and partition (``GROUP@KEY``), or ``queue NAME``.
        backlogs: their backlogs.
        membership: who else is there.
        stopping: begun when the tree is stopped.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        backends: Backends,
        gates: Gates,
        *,
        redis: RedisSide,
        postgres: Watch,
        outside_trouble: Callable[[Unavailable], None],
        publishing: PublishSide,
        broadcast: Callable[[Sequence[Notice]], Awaitable[None]],
        losses: LossDetector,
        instance: str,
        process: UUID,
        chance: random.Random,
        wall: Callable[[], datetime] | None,
    ) -> None:
        self.stopping = Stopping()
        site = Site(
            client=redis.client,
            store=backends.store,
            gates=gates,
            settings=settings.delivery,
            instance=instance,
            live_instances=lambda: self.membership.live_instances(),
            redis_trouble=redis.trouble,
            reader_trouble=redis.reader_trouble,
            postgres_trouble=postgres.trouble,
            outside_trouble=outside_trouble,
            publish=publishing.publish_within,
            broadcast=broadcast,
            chance=chance.random,
            wall=wall or (lambda: datetime.now(UTC)),
            read_within=redis.read_within,
            patience=PATIENCE if redis.cluster else 0.0,
            look=losses.look,
            stopping=self.stopping,
        )
        self._trees = [
            GroupTree(site, stream, group)
            for stream in system.streams.values()
            for group in stream.groups.values()
            if group.enabled
        ]
        self._made = {
            group_id(group, stream): MadeGroup(redis.client, backends.store, stream, group, redis.trouble)
            for stream in system.streams.values()
            for group in stream.made_only
        }
        self._tenures = {tree.name: tree.tenures for tree in self._trees if tree.tenures}
        standings = {tree.name: tree.standing for tree in self._trees if tree.tenures}
        self.pools: dict[str, HandlerPool] = {}
        self.backlogs: dict[str, Backlog] = {}
        self._orders = {(tree.group, each.key): each.orders for tree in self._trees for each in tree.partitions}
        for partition in [each for tree in self._trees for each in tree.partitions]:
            self.pools[partition.name], self.backlogs[partition.name] = partition.pool, partition.backlog
        self._queues = [QueueTree(site, queue) for queue in system.queues.values() if queue.workers]
        for each in self._queues:
            self.pools[each.name], self.backlogs[each.name] = each.pool, each.backlog
        self.membership = Membership(
            backends.store,
            settings.delivery,
            system=system.name,
            instance=instance,
            process=process,
            groups=standings,
            gate=gates["redis"],
        )
        self._leasing = Leasing(backends.store, process, self._tenures, settings.delivery, standings)

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], *, idle: float, by: str
    ) -> list[ClaimResult]:
        """Have this process take pending entries over now, and handle them.

        Args:
            keys: of the partitions in which they are looked for.
            group: a declared group that is read here, and not ordered.
            ids: of the entries, at most `pending.AT_ONCE`.
            idle: only what nobody has touched for so many seconds.
            by: who orders it, for the log.

        Returns:
            A result for each entry; more of them for an id that is pending in several partitions. Blocks for
            `CLAIM_WITHIN` seconds a partition at the most. Cancelled: what a keeper has begun it goes on with.

        Raises:
            KeyError: there is no such group, or partition.
            KeeperHeld: a keeper did not answer.
            redis.exceptions.RedisError: as the link says.
        """
        found: list[ClaimResult] = []
        for key in keys:
            orders = self._orders[group, key]
            try:
                told: list[ClaimResult] = await orders.ask(
                    lambda reply: ClaimOrder(ids=ids, idle=idle, by=by, reply=reply), CLAIM_WITHIN
                )
            except (AskTimeout, MailboxClosed, PeerDied) as error:
                raise KeeperHeld(str(error)) from error
            found += told
        pending = {each.entry_id for each in found if each.outcome is not ClaimOutcome.NOT_PENDING}
        # Of an id that is pending nowhere, one partition says so for all.
        absent = {each.entry_id: each for each in found if each.entry_id not in pending}
        return [each for each in found if each.outcome is not ClaimOutcome.NOT_PENDING] + list(absent.values())

    def children(self) -> Iterable[ChildSpec]:
        """The children, in the order of their start."""
        yield ChildSpec(
            id="membership", body=self.membership, requires=("postgres", "schema"), drain_within=LEAVE_WITHIN + 1.0
        )
        if self._tenures:
            yield ChildSpec(
                id="leases",
                body=self._leasing,
                requires=("redis", "postgres", "schema"),
                opens=tuple(tenure.gate.name for each in self._tenures.values() for tenure in each),
                drain_within=LEAVE_WITHIN + 1.0,
            )
        for tree in self._trees:
            yield tree.supervisor().spec()
        for name, made in self._made.items():
            yield ChildSpec(id=name, body=made, requires=("redis", "postgres", "schema"))
        for queue in self._queues:
            yield queue.supervisor().spec()
