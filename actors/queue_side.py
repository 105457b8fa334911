"""The queues of a deployment, as far as others use them: putting jobs in, and looking at them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import UUID

import redis.exceptions
import trio

from ..runtime.redis import NotSent, OutcomeUnknown
from .event import Envelope, event_type_of
from .queue import element_of
from .queue_lists import QueueLists, QueueView

if TYPE_CHECKING:
    from ..runtime.supervision import Gates
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .system import System

__all__ = ["QueueSide"]


class QueueSide:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        gates: the deployment's: while ``redis`` is shut, nothing is tried.
        redis: its link, and who is told of its errors.
    """

    def __init__(self, system: System, settings: ActorSettings, gates: Gates, redis: RedisSide) -> None:
        self._system = system
        self._client = redis.client
        self._gate = gates["redis"]
        self._trouble = redis.trouble
        self._idle = settings.delivery.reclaim_idle
        self._address = redis.address
        self._ownership = redis.ownership()

    async def enqueue(self, queue: str, job: object) -> UUID:
        """See `Deployment.enqueue`."""
        declared = self._system.queues[queue]
        envelope = job if isinstance(job, Envelope) else event_type_of(type(job)).envelope(job)
        declared.check(envelope)
        element = element_of(envelope)
        if not self._gate.is_open:
            await trio.lowlevel.checkpoint()
            raise NotSent(self._address, f"not sent: {self._gate.cause}")
        why = await self._add(queue, element)
        if why:
            raise OutcomeUnknown(self._address, f"acknowledged, and not believed: {why}")
        return envelope.event_id

    async def _add(self, queue: str, element: bytes) -> str:
        """Add an element; why its acknowledgement does not count, or nothing."""
        lists = self._lists(queue)
        try:
            claims = {} if self._ownership is None else await self._ownership.claims((lists.waiting,))
            await lists.add(element)
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise
        if self._ownership is None:
            return ""
        return (await self._ownership.doubts(claims, {lists.waiting: ()})).get(lists.waiting, "")

    async def look(self) -> list[QueueView]:
        """See `Deployment.queues`."""
        return [await self._lists(name).view(self._idle) for name in self._system.queues]

    async def is_empty(self) -> bool:
        """Whether no queue has any job, waiting or taken. Raises redis.exceptions.RedisError."""
        return not any([await self._lists(name).count() for name in self._system.queues])

    def _lists(self, queue: str) -> QueueLists:
        try:
            client = self._client()
        except RuntimeError as error:  # the process starts, or stops
            raise NotSent(self._address, f"not sent: {error}") from error
        return QueueLists(client, queue)
