"""What one handler pool is there for: a group's part in one partition of its stream, or a queue."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import TYPE_CHECKING

import trio
from attrs import frozen

if TYPE_CHECKING:
    from .backlog import Backlog
    from .lease_table import Lease
    from .system import Group, Stream

__all__ = ["Assignment"]


@frozen(kw_only=True)
class Assignment:
    """See the module.

    Attributes:
        stream: the declared stream.
        group: the declared group, with its handlers.
        partition: the key of the partition in Redis.
        backlog: where the entries come from.
        fence: of an ordered group: the lease of the partition, if it is in force.
        limiter: how many transactions the group may have open, in all its partitions. Default: no limit beside
            `Group.workers`.
        acknowledge: tells Redis that entries, by their ids, are over; raises its errors. Default: XACK.
    """

    stream: Stream
    group: Group
    partition: str
    backlog: Backlog
    fence: Callable[[], Lease | None] | None = None
    limiter: trio.CapacityLimiter | None = None
    acknowledge: Callable[[Sequence[str]], Awaitable[object]] | None = None

    def turn(self) -> AbstractAsyncContextManager[object]:
        """A block within the group's limit; blocks until it has room."""
        return self.limiter or nullcontext()
