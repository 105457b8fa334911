"""What a publisher tells of itself."""

from __future__ import annotations

from attrs import frozen

__all__ = ["PublisherStatistics"]


@frozen(kw_only=True)
class PublisherStatistics:
    """How a publisher is doing.

    Attributes:
        waiting: events in the buffer that have no outcome, those under way included.
        waiting_bytes: their bytes.
        accepted: events that the server has accepted since the start.
        accepted_by_outbox: those of them that it keeps in its outbox, for Redis is away there.
        rejected: events that it does not take.
        gave_up: events that were given up, after `give_up_after` or when the publisher was left.
        withdrawn: events whose caller was cancelled before they were sent.
        requests: requests that were sent.
        sent_again: events that were sent again, counted each time.
        trouble: why the last request failed; empty if it did not.
    """

    waiting: int
    waiting_bytes: int
    accepted: int
    accepted_by_outbox: int
    rejected: int
    gave_up: int
    withdrawn: int
    requests: int
    sent_again: int
    trouble: str
