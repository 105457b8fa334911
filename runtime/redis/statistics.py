"""`RedisStatistics`: what a client of one server is doing."""

from __future__ import annotations

from attrs import frozen

__all__ = ["RedisStatistics"]


@frozen(kw_only=True)
class RedisStatistics:
    """What a `Redis` is doing. Counters run from its start.

    Attributes:
        address: without secrets.
        connected: whether the shared connection is up.
        since: `trio.current_time()` of the last change of `connected`.
        reconnects: shared connections made after the first one.
        sent: commands sent over the shared connection.
        pending: requests queued or unanswered on it (a pipeline counts once).
        waiting: callers that wait for room on it (`RedisOptions.max_pending`, `max_queued_bytes`).
        queued_bytes: bytes queued and not given to the socket.
        dedicated: connections of their own in use.
        last_error: the last trouble reported, or None.
        last_error_at: `trio.current_time()` of it, or None.
    """

    address: str
    connected: bool
    since: float
    reconnects: int
    sent: int
    pending: int
    waiting: int
    queued_bytes: int
    dedicated: int
    last_error: Exception | None
    last_error_at: float | None
