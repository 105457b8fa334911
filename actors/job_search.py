"""Finds jobs in the lists of work queues, for the ledger. Reads only."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from attrs import frozen

from .queue import job_of
from .queue_lists import QueueLists

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from .queue import Job, Queue
    from .system import System

__all__ = ["JobPlace", "JobSearch"]

PAGE: Final = 1_000
"""Jobs in one reply."""

_WAITS: Final = "in the queue, not taken yet"
_RETURNED: Final = "in the queue again; the consumer that had taken it is gone"


@frozen
class JobPlace:
    """A job that stands in a list.

    Attributes:
        queue: the declared queue.
        job: what stands there.
        where: in words.
    """

    queue: Queue
    job: Job
    where: str


class JobSearch:
    """One look at the lists.

    Args:
        client: the link.
        system: what is declared.
    """

    def __init__(self, client: AnyRedis, system: System) -> None:
        self._client = client
        self._system = system

    async def scan(self, event_ids: Iterable[UUID], limit: int) -> dict[UUID, JobPlace]:
        """Where jobs of these ids stand; those that are in no list are left out. A job moves while this goes on: lists
        are read in the order in which it goes through them, and what it may go back to is read once more.

        Args:
            event_ids: what to look for.
            limit: jobs to read at the most, of all queues together.

        Raises:
            redis.exceptions.RedisError: as the link says.
        """
        wanted, found = set(event_ids), dict[UUID, JobPlace]()
        for queue in self._system.queues.values():
            look = _Look(queue, QueueLists(self._client, queue.name), wanted, found, limit)
            await look.at(look.lists.waiting, _WAITS)
            await look.at(look.lists.returned, _RETURNED)
            for consumer in await look.lists.known() if look.goes_on else ():
                await look.at(look.lists.taken(consumer), f"taken by {consumer}, and in work")
            await look.at(look.lists.returned, _RETURNED)
            await look.at(look.lists.waiting, _WAITS, first=-PAGE)
            limit = look.limit
        return found


class _Look:
    """At the lists of one queue."""

    def __init__(
        self, queue: Queue, lists: QueueLists, wanted: set[UUID], found: dict[UUID, JobPlace], limit: int
    ) -> None:
        self.lists = lists
        self.limit = limit
        self._queue = queue
        self._wanted = wanted
        self._found = found

    @property
    def goes_on(self) -> bool:
        """Whether something is still missing, and may be looked for."""
        return self.limit > 0 and len(self._found) < len(self._wanted)

    async def at(self, key: str, where: str, *, first: int = 0) -> None:
        """Read a list from the left, so that what is taken meanwhile moves nothing."""
        while self.goes_on:
            count = min(PAGE, self.limit)
            page = await self.lists.page(key, first, count)
            for element in page:
                self._keep(element, where)
            self.limit -= len(page)
            if len(page) < count or first < 0:
                return
            first += count

    def _keep(self, element: bytes, where: str) -> None:
        job = job_of(self._queue, element, "", redelivered=False)
        try:
            event_id = UUID((job.fields or {})[b"eventId"].decode())
        except (KeyError, ValueError):
            return  # no job: a dead letter tells of it
        if event_id in self._wanted:
            self._found.setdefault(event_id, JobPlace(self._queue, job, where))
