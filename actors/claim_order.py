"""Orders to take entries over now: what a keeper is asked, and what it answers."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from attrs import frozen

from ..runtime.mailbox import Reply

__all__ = ["ClaimOrder", "ClaimOutcome", "ClaimResult", "KeeperHeld"]


class KeeperHeld(Exception):
    """The keeper of a partition did not answer: it is held, or this process stops."""


class ClaimOutcome(enum.StrEnum):
    """What came of one entry of an order."""

    CLAIMED = "claimed"
    """This process has it now, and handles it."""

    GONE = "gone"
    """Its entry was trimmed or deleted: this process has what is left of it, and makes a dead letter of that."""

    BUSY = "busy"
    """Somebody has touched it more lately than was asked for."""

    HERE = "here"
    """This process has it already."""

    NOT_PENDING = "not-pending"
    """The group was not given it, or has acknowledged it."""

    NO_ROOM = "no-room"
    """This process has read as much as it may; later there is room again."""


@frozen(kw_only=True)
class ClaimResult:
    """One entry of an order.

    Attributes:
        key: the key of its stream, or of the partition.
        entry_id: its id.
        outcome: what came of it.
        consumer: who had it before; None where nobody had.
        idle: seconds for which that one had not touched it; likewise.
    """

    key: str
    entry_id: str
    outcome: ClaimOutcome
    consumer: str | None = None
    idle: float | None = None


@frozen(kw_only=True)
class ClaimOrder:
    """What somebody orders of the keeper of a group's partition.

    Attributes:
        ids: of the entries, at most `pending.AT_ONCE` of them.
        idle: only what nobody has touched for so many seconds.
        by: who orders it, for the log.
        reply: one result an entry, in order; or the `redis.exceptions.RedisError` that was met.
    """

    ids: Sequence[str]
    idle: float
    by: str
    reply: Reply[list[ClaimResult]]
