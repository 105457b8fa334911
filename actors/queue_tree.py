"""The part of the tree that one work queue is.

    queue NAME (rest_for_one)
    ├── keeper              requires postgres, schema
    ├── handler-pool        requires postgres, schema
    └── taker               requires redis, postgres, schema

All of them stand behind the gates of the system's own, too, that the queue requires. The handler pool is that of
streams: it does not know where its entries come from. The keeper is first so that it is stopped last: what the others
have left over is given back by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..runtime.supervision import ChildSpec, Strategy, Supervisor
from .assignment import Assignment
from .child_names import child_id
from .handler_pool import HandlerPool
from .queue_keeper import QueueKeeper
from .queue_lists import QueueLists, are_moving
from .queue_taker import QueueBacklog, Taker
from .rounds import Rounds
from .stopping import DRAIN_WITHIN

if TYPE_CHECKING:
    from .queue import Queue
    from .site import Site

__all__ = ["QueueTree"]


class QueueTree:
    """See the module.

    Args:
        site: what it stands on.
        queue: the declared queue.

    Attributes:
        backlog: what this process has taken.
        pool: who handles it.
    """

    def __init__(self, site: Site, queue: Queue) -> None:
        self._site = site
        self._queue = queue
        self._consumer = site.instance
        # Nothing is taken to lie here: somebody else may be idle.
        self.backlog = QueueBacklog(queue.workers)
        assignment = Assignment(
            stream=queue.stream,
            group=queue.group,
            partition=queue.stream.key,
            backlog=self.backlog,
            acknowledge=self._finish,
        )
        self.pool = HandlerPool(site, assignment)

    @property
    def name(self) -> str:
        """As the tree has it."""
        return child_id(self._queue.group.name)

    def supervisor(self) -> Supervisor:
        """The queue's supervisor."""
        site, gates = self._site, self._queue.requires
        taker = Taker(
            site.client, self._queue, self._consumer, self.backlog, site.redis_trouble, patience=site.patience
        )
        children = [
            ChildSpec(id="keeper", body=self._keeper(), requires=("postgres", "schema", *gates), drain_within=3.0),
            ChildSpec(
                id="handler-pool",
                body=self.pool,
                requires=("postgres", "schema", *gates),
                drain_within=DRAIN_WITHIN,
            ),
            ChildSpec(
                id="taker",
                body=site.stopping.reading(taker),
                requires=("redis", "postgres", "schema", *gates),
                progress_within=site.read_within(self._queue.block) + 5.0,
            ),
        ]
        return Supervisor(self.name, children, strategy=Strategy.REST_FOR_ONE)

    def _keeper(self) -> QueueKeeper:
        site = self._site
        rounds = Rounds(
            redis_gate=site.gates["redis"],
            redis_trouble=lambda error: None if are_moving(error) else site.redis_trouble(error),
            chance=site.chance,
            stopping=site.stopping,
            where={"queue": self._queue.name},
        )
        return QueueKeeper(site.client, self._queue.name, self._consumer, self.backlog, site.settings, rounds)

    async def _finish(self, ids: Sequence[str]) -> None:
        await QueueLists(self._site.client(), self._queue.name).finish(self._consumer, self.backlog.elements(ids))
