"""The keeper of a queue: sees to it that no job stays with a consumer that does not work on it.

Every third of `reclaim_idle` it gives a sign of life for its own process, and learns what was taken from it
nevertheless. Every `reclaim_every` seconds it returns what consumers hold that have given none for `reclaim_idle`
seconds: their process has died, or is frozen. When the process stops, what it has not finished waits for others at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..runtime.telemetry import get_logger
from .queue import Job
from .queue_lists import QueueLists, digest_of
from .rounds import Rounds

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child
    from .queue_taker import QueueBacklog
    from .settings import DeliverySettings

__all__ = ["QueueKeeper"]

log = get_logger(__name__)


class QueueKeeper:
    """The body of the actor ``keeper`` of one queue.

    Args:
        client: the link to Redis.
        queue: the queue's name.
        consumer: this process's.
        backlog: what this process has taken.
        settings: the times.
        rounds: when what is done.
    """

    def __init__(
        self,
        client: Callable[[], AnyRedis],
        queue: str,
        consumer: str,
        backlog: QueueBacklog,
        settings: DeliverySettings,
        rounds: Rounds,
    ) -> None:
        self._client = client
        self._queue = queue
        self._consumer = consumer
        self._backlog = backlog
        self._idle = settings.reclaim_idle
        self._every = settings.reclaim_every
        self._rounds = rounds

    async def __call__(self, child: Child) -> None:
        """Work until cancelled, or drained: then give back what is left over, within a few seconds."""

        async def look() -> None:
            await self._return()
            child.note(f"{await self._lists.count()} jobs")

        await self._rounds(child, [(self._every, look), (self._idle / 3, self._beat)], self._leave)

    @property
    def _lists(self) -> QueueLists:
        return QueueLists(self._client(), self._queue)

    async def _return(self) -> None:
        """Return what silent consumers hold."""
        lists = self._lists
        for consumer in await lists.silent(self._idle):
            returned = 0 if consumer == self._consumer else await lists.give_back(consumer, self._idle)
            if returned:
                log.warning("returned what a consumer left", queue=self._queue, consumer=consumer, jobs=returned)

    async def _beat(self) -> None:
        jobs = [entry for entries in self._backlog.rest().values() for entry in entries if isinstance(entry, Job)]
        held = await self._lists.beat(self._consumer)
        gone = self._backlog.forget([job.id for job in jobs if digest_of(job.element) not in held])
        if gone:
            log.warning("others were given what we had", queue=self._queue, jobs=len(gone))

    async def _leave(self) -> None:
        given = await self._lists.leave(self._consumer, self._idle)
        log.info("left the queue", queue=self._queue, given_back=given)
