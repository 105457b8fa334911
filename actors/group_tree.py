"""The part of the tree that one consumer group is.

    GROUP@STREAM (rest_for_one)
    ├── group-opener        only of a group that starts at ``$`` and requires gates of the system's own: makes it before
    │                       they are open; requires redis, postgres, schema
    ├── keeper              requires postgres, schema
    ├── handler-pool        requires postgres, schema
    └── listener-1, …       requires redis, postgres, schema

Of a stream with partitions each partition is a supervisor of its own with these children, ``partition-0`` …; of an
ordered group all of them stand behind the gate ``lease GROUP@KEY`` beside the others, and so they do behind the gates
of the system's own that the group requires. The keeper is first so that it
is stopped last: what the others have left over is given back by it. When the process stops, all of them begin at once
to do what a stop takes (see `stopping`).
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import redis.exceptions
import trio
from attrs import frozen

from ..runtime.mailbox import Mailbox
from ..runtime.supervision import Body, Child, ChildSpec, Intensity, Restart, Strategy, Supervisor
from .assignment import Assignment
from .backlog import Backlog
from .child_names import child_id, group_id
from .claim_order import ClaimOrder
from .group_making import GroupMaking
from .handler_pool import HandlerPool
from .keeper import Keeper
from .leasing import LEASE_GATE, Tenure
from .listener import Listener
from .ordered_reading import OrderedListener, owner_prefix
from .stopping import DRAIN_WITHIN

if TYPE_CHECKING:
    from .site import Site
    from .system import Group, Stream

__all__ = ["GroupTree", "Partition"]

ORDERS = 16
"""Orders that may wait for a keeper."""

READ_AHEAD = 2
"""The backlogs of a group hold so many batches for each worker: one in work, one waiting. More is only more to give
back."""


@frozen
class Partition:
    """A group's part in one partition of its stream.

    Attributes:
        name: ``GROUP@KEY``.
        key: of the partition in Redis.
        backlog: what this process has read of it.
        pool: who handles it.
        tenure: for how long this process has it; None in a group that is not ordered.
        orders: what its keeper is ordered to take over.
    """

    name: str
    key: str
    backlog: Backlog
    pool: HandlerPool
    tenure: Tenure | None
    orders: Mailbox[ClaimOrder]


class GroupTree:
    """See the module. Adds the gates of its leases.

    Args:
        site: what it stands on.
        stream: the declared stream.
        group: the declared group.

    Attributes:
        partitions: the group's part in each of the stream's partitions, in order.
    """

    def __init__(self, site: Site, stream: Stream, group: Group) -> None:
        self._site = site
        self._stream = stream
        self._group = group
        # Created here and not by the pools: however many partitions there are, a group has its `workers`.
        self._limiter = trio.CapacityLimiter(group.workers)
        self.partitions = [self._partition(key) for key in stream.keys]

    @property
    def group(self) -> str:
        """The group's name."""
        return self._group.name

    @property
    def name(self) -> str:
        """``GROUP@STREAM``, as the tree has it."""
        return group_id(self._group, self._stream)

    @property
    def tenures(self) -> list[Tenure]:
        """Those of its partitions; empty if it is not ordered."""
        return [partition.tenure for partition in self.partitions if partition.tenure is not None]

    def supervisor(self) -> Supervisor:
        """The group's supervisor."""
        if len(self.partitions) == 1:
            return Supervisor(self.name, self._children(self.partitions[0]), strategy=Strategy.REST_FOR_ONE)
        parts = [
            Supervisor(
                f"partition-{number}",
                self._children(partition),
                strategy=Strategy.REST_FOR_ONE,
                # Budgets multiply with each floor of the tree: one more must not let a crash be ridden out for long.
                intensity=Intensity(3),
            ).spec()
            for number, partition in enumerate(self.partitions)
        ]
        return Supervisor(self.name, parts)

    def _partition(self, key: str) -> Partition:
        site, group = self._site, self._group
        name = child_id(f"{group.name}@{key}")
        batches = math.ceil(group.workers / self._stream.partitions)
        backlog = Backlog(READ_AHEAD * batches * group.batch)
        tenure = None
        if group.ordered:
            tenure = Tenure(group.name, key, backlog, site.gates.add(f"{LEASE_GATE}{name}", settle=0.0, shut=NOT_OURS))
        assignment = Assignment(
            stream=self._stream,
            group=group,
            partition=key,
            backlog=backlog,
            fence=None if tenure is None else tenure.fence,
            limiter=self._limiter,
        )
        pool = HandlerPool(site, assignment)
        return Partition(name, key, backlog, pool, tenure, Mailbox(f"keeper.{name}", ORDERS))

    def _children(self, partition: Partition) -> list[ChildSpec]:
        tenure = partition.tenure
        gates = (*(() if tenure is None else (tenure.gate.name,)), *self._group.requires)
        children = self._openers(partition)
        children += [
            ChildSpec(
                id="keeper",
                body=_within(tenure, self._keeper(partition)),
                requires=("postgres", "schema", *gates),
                drain_within=3.0,
                mailboxes=() if tenure is not None else (partition.orders,),
            ),
            ChildSpec(
                id="handler-pool",
                body=_within(tenure, partition.pool),
                requires=("postgres", "schema", *gates),
                drain_within=DRAIN_WITHIN,
            ),
        ]
        children += [
            ChildSpec(
                id=f"listener-{number}",
                body=_within(tenure, self._site.stopping.reading(listener)),
                requires=("redis", "postgres", "schema", *gates),
                progress_within=self._site.read_within(self._group.block) + 5.0,
            )
            for number, listener in enumerate(self._listeners(partition), 1)
        ]
        return children

    def _openers(self, partition: Partition) -> list[ChildSpec]:
        """Who makes a group that is not to wait for the gates of the system's own: what comes meanwhile is for it."""
        if self._group.start != "$" or not self._group.requires:
            return []
        making = self._making(partition.key)

        async def open_group(_: Child) -> None:
            try:
                await making.make(self._site.client())
            except redis.exceptions.RedisError as error:
                self._site.redis_trouble(error)
                raise

        needs = ("redis", "postgres", "schema")
        return [ChildSpec(id="group-opener", body=open_group, restart=Restart.TRANSIENT, requires=needs)]

    def _consumers(self) -> list[str]:
        prefix = self._group.consumer_prefix or self._group.name
        return [f"{prefix}-{number}:{self._site.instance}" for number in range(1, self._group.consumers + 1)]

    def _listeners(self, partition: Partition) -> list[Listener | OrderedListener]:
        site, making = self._site, self._making(partition.key)
        if partition.tenure is not None:
            return [
                OrderedListener(
                    site.client,
                    self._group,
                    partition.key,
                    making,
                    partition.tenure,
                    site.reader_trouble,
                    patience=site.patience,
                )
            ]
        return [
            Listener(
                site.client,
                self._group,
                partition.key,
                consumer,
                partition.backlog,
                making,
                site.reader_trouble,
                patience=site.patience,
            )
            for consumer in self._consumers()
        ]

    def _making(self, key: str) -> GroupMaking:
        store, group = self._site.store, self._group
        return GroupMaking(
            key, group.name, group.start, lambda: store.stored_position(group.name, key), look=self._site.look
        )

    def _keeper(self, partition: Partition) -> Keeper:
        site = self._site
        return Keeper(
            site.client,
            partition.key,
            self._group.name,
            self._group.consumer_prefix or self._group.name,
            self._consumers(),
            partition.backlog,
            site.settings,
            orders=partition.orders,
            redis_gate=site.gates["redis"],
            redis_trouble=site.redis_trouble,
            live_instances=site.live_instances,
            chance=site.chance,
            owner=None if partition.tenure is None else partial(self._owner, partition.tenure),
            stopping=site.stopping,
        )

    def _owner(self, tenure: Tenure) -> str:
        lease = tenure.fence()
        return f"{owner_prefix(self._group)}{0 if lease is None else lease.epoch}"


NOT_OURS = "another process has it, or it is free"


def _within(tenure: Tenure | None, body: Body) -> Body:
    """The same body, for as long as which the partition counts as in use."""
    if tenure is None:
        return body

    async def run(child: Child) -> None:
        with tenure.in_use():
            await body(child)

    return run
