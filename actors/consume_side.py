"""The consume side of a deployment: who is there, who has which partition, groups (read here or only made), queues."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..runtime.supervision import ChildSpec
from .child_names import group_id
from .claim_order import ClaimDesk
from .group_tree import GroupTree
from .leasing import Leasing
from .made_groups import MadeGroup
from .membership import LEAVE_WITHIN
from .queue_tree import QueueTree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from uuid import UUID

    from .group_tree import Partition
    from .leasing import Standing
    from .membership import Membership
    from .site import Site
    from .system import System

__all__ = ["ConsumeSide"]


class ConsumeSide:
    """See the module. Adds the gates of its leases.

    Args:
        system: what was declared.
        site: what it stands on.
        membership: who else is there.
        standings: whether this process can handle the ordered groups; see `leasing.standings`.
        process: of this process alone.

    Attributes:
        pools: the handler pools, by group and partition (``GROUP@KEY``), or ``queue NAME``.
        backlogs: their backlogs.
        claim_desk: where this process is ordered to take entries over.
    """

    def __init__(
        self, system: System, site: Site, membership: Membership, standings: Mapping[str, Standing], process: UUID
    ) -> None:
        self._groups = _group_trees(system, site)
        self._made = _made_groups(system, site)
        self._queues = [QueueTree(site, queue) for queue in system.queues.values() if queue.workers]
        self._membership = membership
        self._tenures = {group.name: group.tenures for group in self._groups if group.tenures}
        self._leasing = Leasing(site.store, process, self._tenures, site.settings, standings)
        partitions = [partition for group in self._groups for partition in group.partitions]
        works: list[Partition | QueueTree] = [*partitions, *self._queues]
        self.pools = {work.name: work.pool for work in works}
        self.backlogs = {work.name: work.backlog for work in works}
        self.claim_desk = ClaimDesk(
            {(group.group, each.key): each.orders for group in self._groups for each in group.partitions}
        )

    def children(self) -> Iterable[ChildSpec]:
        """The children, in the order of their start."""
        yield ChildSpec(
            id="membership", body=self._membership, requires=("postgres", "schema"), drain_within=LEAVE_WITHIN + 1.0
        )
        if self._tenures:
            yield ChildSpec(
                id="leases",
                body=self._leasing,
                requires=("redis", "postgres", "schema"),
                opens=tuple(tenure.gate.name for each in self._tenures.values() for tenure in each),
                drain_within=LEAVE_WITHIN + 1.0,
            )
        for group in self._groups:
            yield group.supervisor().spec()
        for name, made in self._made.items():
            yield ChildSpec(id=name, body=made, requires=("redis", "postgres", "schema"))
        for queue in self._queues:
            yield queue.supervisor().spec()


def _group_trees(system: System, site: Site) -> list[GroupTree]:
    return [GroupTree(site, stream, group) for stream in system.streams.values() for group in stream.read_here]


def _made_groups(system: System, site: Site) -> dict[str, MadeGroup]:
    return {
        group_id(group, stream): MadeGroup(site, stream, group)
        for stream in system.streams.values()
        for group in stream.made_only
    }
