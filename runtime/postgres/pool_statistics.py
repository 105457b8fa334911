"""What a pool has and did, and who holds its connections."""

from __future__ import annotations

from attrs import define, frozen

__all__ = ["Counters", "Loan", "PoolStatistics"]


@frozen(kw_only=True)
class PoolStatistics:
    """What a pool has and did since it was made; the counters only grow.

    Attributes:
        idle: Open connections that nobody uses.
        in_use: Connections lent out, or being opened for somebody.
        waiting: Tasks that wait for a free one.
        max_size: The limit of *idle* + *in_use*.
        opened: Connections opened.
        expired: Connections closed for their age or idleness.
        broken: Connections found dead or doubtful, or given back in a state nobody could mend.
        checked: Connections asked by a round trip before they were lent, for they had idled for ``check_after``.
        lent: Times that a connection was lent out.
        waited: Times that somebody had to wait because all were in use, whether they got one or not.
        wait_seconds: How long those waited, together.
        longest_wait: The longest of those waits, in seconds.
        timeouts: Times that nobody got one within ``acquire_timeout``.
        troubles: Errors that said that the server is away.
        slow: Statements without an answer for ``slow_after``.
    """

    idle: int
    in_use: int
    waiting: int
    max_size: int
    opened: int
    expired: int
    broken: int
    checked: int
    lent: int
    waited: int
    wait_seconds: float
    longest_wait: float
    timeouts: int
    troubles: int
    slow: int


@frozen(kw_only=True)
class Loan:
    """A connection that is lent out, or being opened for somebody.

    Attributes:
        task: The name of the task that borrowed it.
        seconds: How long ago it was let in.
        backend_pid: The server's process for it (``pg_stat_activity.pid``); ``None`` while it is being opened.
    """

    task: str
    seconds: float
    backend_pid: int | None


@define
class Counters:
    """The pool's own account; the names are those of `PoolStatistics`."""

    opened: int = 0
    expired: int = 0
    broken: int = 0
    checked: int = 0
    lent: int = 0
    waited: int = 0
    wait_seconds: float = 0.0
    longest_wait: float = 0.0
    timeouts: int = 0
    troubles: int = 0
    slow: int = 0

    def note_wait(self, seconds: float) -> None:
        """Somebody had to wait for *seconds*."""
        self.waited += 1
        self.wait_seconds += seconds
        self.longest_wait = max(self.longest_wait, seconds)
