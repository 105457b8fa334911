"""Publishing on a condition: an event is added only if a key beside its stream holds ``true`` at that very moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from uuid import UUID

from attrs import define, frozen

from .outgoing import Outgoing, Published, PublishFailed
from .sending import Refusal

if TYPE_CHECKING:
    from .detours import Detours
    from .sending import Sender
    from .system import Stream

__all__ = ["ConditionNotMet", "Conditions", "condition_key", "condition_keys"]

MET: Final = "true"


@frozen
class ConditionNotMet:
    """The event was not published, for its condition does not hold. That is an answer, and no failure.

    Attributes:
        event_id: of the event.
        condition: the condition's name.
    """

    event_id: UUID
    condition: str


@define(eq=False)
class Conditions:
    """See the module.

    Args:
        sender: the way to Redis.
        detours: which streams have something in the outbox.
    """

    sender: Sender
    detours: Detours

    async def publish(self, condition: str, entry: Outgoing) -> Published | ConditionNotMet | PublishFailed:
        """Add an entry if the condition holds; both are one step for everybody else.

        Never spooled: whether a condition holds cannot be judged later. So while Redis is away, or events before it
        wait in the outbox, it is refused. Raises nothing for Redis. Cancelled, the outcome is unknown.
        """
        if self.detours.is_on(entry.stream):
            why = self.sender.why_not() or "events before it wait in the outbox"
            return PublishFailed(entry.event_id, why)
        found = await self.sender.add_if(condition_key(entry.place, condition), entry)
        if found is None:
            return ConditionNotMet(entry.event_id, condition)
        if isinstance(found, Refusal):
            return PublishFailed(entry.event_id, found.reason, outcome_unknown=found.unknown, permanent=found.permanent)
        return Published(entry.event_id, found)

    async def set(self, stream: Stream, condition: str, holds: bool) -> None:
        """Let a condition hold, or no longer, for all partitions of a stream: one after the other.

        Raises:
            redis.exceptions.RedisError: Redis is away, or refuses; some partitions may have it already.
        """
        client = self.sender.client()
        for key in condition_keys(stream, condition):
            await (client.set(key, MET) if holds else client.delete(key))

    async def holds(self, stream: Stream, condition: str) -> bool:
        """Whether a condition holds, for all partitions; raises redis.exceptions.RedisError."""
        client = self.sender.client()
        found = [await client.get(key) for key in condition_keys(stream, condition)]
        return all(value == MET.encode() for value in found)


def condition_keys(stream: Stream, condition: str) -> list[str]:
    """The keys of a condition: one beside each partition, for one script reads it and adds the entry."""
    return [condition_key(key, condition) for key in stream.keys]


def condition_key(place: str, condition: str) -> str:
    """The key of a condition, in the slot of the stream `place`: ``{orders}:condition:open``.

    Where the stream's key has a hash tag (a partition's has), that is the tag: ``{orders:0}:condition:open``.
    """
    start, end = place.find("{"), place.find("}", place.find("{") + 1)
    has_tag = 0 <= start < end - 1
    return f"{place if has_tag else '{' + place + '}'}:condition:{condition}"
