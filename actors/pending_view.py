"""Pending entries: what was given to the consumers of a group, and not acknowledged yet."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
from attrs import frozen

from ..runtime.redis import Kind, classify
from .handling import entry_order

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis

__all__ = ["ConsumerView", "EntryState", "Pending", "PendingEntry", "consumer_of", "left_of", "pending_of", "state_of"]

COUNTED: Final = 1_000
"""Pending entries among which those that are left lying are counted: Redis looks at all of them for it."""


class EntryState(enum.StrEnum):
    """How an entry stands in a group, in S3's words."""

    NEW = "NEW"
    """The group was not given it yet."""

    DELIVERED = "DELIVERED"
    """Its consumer has it, and may be at work on it."""

    PENDING = "PENDING"
    """Its consumer has left it lying: the next process that looks takes it over."""

    ACK = "ACK"
    """It was given to the group and acknowledged, or the group was made behind it."""


def state_of(idle: float, reclaim_idle: float) -> EntryState:
    """Of a pending entry that nobody has touched for `idle` seconds."""
    return EntryState.DELIVERED if idle < reclaim_idle else EntryState.PENDING


@frozen(kw_only=True)
class PendingEntry:
    """An entry in somebody's hands.

    Attributes:
        key: the stream's key; of one with several partitions, the partition's.
        entry_id: its id.
        consumer: who has it.
        idle: seconds since it was given to that consumer, or since the consumer said that it is still at it.
        deliveries: how often it was given to anybody.
    """

    key: str
    entry_id: str
    consumer: str
    idle: float
    deliveries: int


@frozen(kw_only=True)
class ConsumerView:
    """A consumer of a group.

    Attributes:
        key: the stream's key, or the partition's.
        name: its name.
        pending: how many entries it has.
        idle: seconds since it last asked for something.
        inactive: seconds since it last got something; None where that is not known (before Redis 7.2, or never).
    """

    key: str
    name: str
    pending: int
    idle: float
    inactive: float | None = None


@frozen(kw_only=True)
class Pending:
    """What is pending for a group.

    Attributes:
        total: how many entries, of all partitions.
        entries: the oldest of them, by id.
        consumers: who is there, with and without entries.
        partitions: the keys in which Redis has the group.
    """

    total: int
    entries: tuple[PendingEntry, ...]
    consumers: tuple[ConsumerView, ...]
    partitions: tuple[str, ...]


async def pending_of(
    client: AnyRedis,
    keys: Sequence[str],
    group: str,
    *,
    limit: int,
    consumer: str | None = None,
    idle: float = 0.0,
) -> Pending:
    """What is pending for a group in a stream's partitions.

    Args:
        client: the link.
        keys: of the partitions.
        group: its name; where it is not there, nothing is pending.
        limit: entries in the answer at the most.
        consumer: only what this one has.
        idle: only what nobody has touched for so many seconds.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    total, entries, consumers, partitions = 0, [], [], []
    for key in keys:
        try:
            summary: Any = await client.xpending(key, group)
            who: Any = await client.xinfo_consumers(key, group)
            found: Any = await client.xpending_range(
                key, group, "-", "+", limit, consumername=consumer, idle=int(idle * 1000) or None
            )
        except redis.exceptions.ResponseError as error:
            if classify(error).kind is not Kind.REPAIR and "no such key" not in str(error).lower():
                raise
            continue
        partitions.append(key)
        total += int(summary["pending"])
        entries += [_entry(key, each) for each in found]
        consumers += [consumer_of(key, each) for each in who]
    entries.sort(key=lambda entry: entry_order(entry.entry_id))
    return Pending(
        total=total, entries=tuple(entries[:limit]), consumers=tuple(consumers), partitions=tuple(partitions)
    )


async def left_of(client: AnyRedis, key: str, group: str, reclaim_idle: float, pending: int) -> int | None:
    """How many of a group's pending entries are `EntryState.PENDING`; None if there are too many to look at.

    Args:
        client: the link.
        key: of the stream, or the partition.
        group: one that is there.
        reclaim_idle: seconds after which an entry that nobody touches is taken over.
        pending: how many there are, as was seen just now.

    Raises:
        redis.exceptions.RedisError: as the link says.
    """
    if not 0 < pending <= COUNTED:
        return None if pending else 0
    found: Any = await client.xpending_range(key, group, "-", "+", COUNTED, idle=int(reclaim_idle * 1000))
    return min(len(found), pending)


def _entry(key: str, found: Any) -> PendingEntry:
    return PendingEntry(
        key=key,
        entry_id=_text(found["message_id"]),
        consumer=_text(found["consumer"]),
        idle=int(found["time_since_delivered"]) / 1000,
        deliveries=int(found["times_delivered"]),
    )


def consumer_of(key: str, found: Any) -> ConsumerView:
    """A consumer as XINFO CONSUMERS shows it."""
    inactive = int(found.get("inactive", -1))
    return ConsumerView(
        key=key,
        name=_text(found["name"]),
        pending=int(found["pending"]),
        idle=int(found["idle"]) / 1000,
        inactive=None if inactive < 0 else inactive / 1000,
    )


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)
