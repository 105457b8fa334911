"""What a mailbox tells of itself."""

from __future__ import annotations

import math
from collections.abc import Collection

from attrs import frozen

__all__ = ["REMEMBERED", "MailboxStatistics", "percentile"]

REMEMBERED = 1_024
"""How many waits `MailboxStatistics.wait_p99` looks at: ten of them are beyond it, and they cost 40 KB at the most."""


@frozen(kw_only=True)
class MailboxStatistics:
    """A mailbox at one moment.

    Of the messages that came in, each is in exactly one place: received, still queued (or in the hands of a reader that
    has been woken and not run), given to ``on_undelivered``, or counted as undelivered.

    Attributes:
        name: its name.
        capacity: how many messages it holds at the most.
        depth: how many are queued.
        peak: the most that ever were.
        oldest_age: seconds that the oldest queued message has been queued; 0.0 when empty.
        received: messages taken so far.
        dropped: offers that found no room, or the mailbox closed; and oldest messages that gave way.
        refused: tells and asks that got `Overloaded` for want of room.
        undelivered: messages that had come in and were given up, and that no hook took.
        late_replies: answers that came after their asker had left.
        wait_p99: seconds between tell and taking: of the last 1,024 taken, 99 of 100 waited no longer. 0.0 at first.
        senders_waiting: tasks that wait for room now.
    """

    name: str
    capacity: int
    depth: int
    peak: int
    oldest_age: float
    received: int
    dropped: int
    refused: int
    undelivered: int
    late_replies: int
    wait_p99: float
    senders_waiting: int


def percentile(values: Collection[float], percent: int) -> float:
    """By nearest rank; 0.0 of nothing."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1] if values else 0.0
