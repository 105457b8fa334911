"""What came of an event, as the ledger tells it: one event in one group, and many in sum."""

from __future__ import annotations

import enum
from datetime import datetime
from uuid import UUID

from attrs import field, frozen

__all__ = ["EventFate", "Fate", "LedgerLine"]


class Fate(enum.StrEnum):
    """What came of an event in one group."""

    DONE = "done"
    """It was handled, or the group has nothing to do with it."""

    RETRYING = "retrying"
    """An attempt failed, or somebody ordered another; it will be tried again."""

    DEAD = "dead"
    """It was given up: there is a dead letter."""

    EXPIRED = "expired"
    """It was too old when its turn came: there is a dead letter, too."""

    LOST = "lost"
    """It was taken from the stream before the group had it."""

    WAITING = "waiting"
    """It is in the outbox, or in the stream, or in a list of its work queue."""

    UNKNOWN = "unknown"
    """There is no trace: it was never accepted here, or it is so old that retention has deleted what was known."""


@frozen(kw_only=True)
class EventFate:
    """What came of one event in one group.

    Attributes:
        event_id: the event.
        stream: the declared stream; None where nothing is known of the event.
        consumer_group: the group; likewise.
        fate: what came of it.
        reason: why, in words.
        partition: the key of the stream where its entry is or was.
        entry_id: that entry.
        since: when it came to that; aware.
    """

    event_id: UUID
    stream: str | None = None
    consumer_group: str | None = None
    fate: Fate = field(converter=Fate)
    reason: str
    partition: str | None = None
    entry_id: str | None = None
    since: datetime | None = None


@frozen(kw_only=True)
class LedgerLine:
    """How many events of one stream came to what in one group.

    What is in Redis is counted by Redis: an entry whose acknowledgement is on its way is both done and in work.

    Attributes:
        done: handled, and still in the inbox (`retention.days`).
        retrying: waiting for another attempt.
        dead: dead letters that are not settled by a replay.
        expired: of them, those that were too old; not counted in `dead`.
        lost: entries that others trimmed (those that Redis could not count are one each), or that were deleted unread.
        outbox: accepted, and on their way to Redis.
        unread: in the stream, not given to the group yet; None: Redis is away, or cannot tell.
        in_work: given to the group and not acknowledged; likewise.
    """

    stream: str
    consumer_group: str
    done: int = 0
    retrying: int = 0
    dead: int = 0
    expired: int = 0
    lost: int = 0
    outbox: int = 0
    unread: int | None = None
    in_work: int | None = None
