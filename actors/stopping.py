"""The stop of a process, as all parts of its consume side learn of it at once.

A tree stops its children one after the other. If each began to drain only when its turn comes, a process with many
groups and partitions would need the sum of their drains. So when the tree's stop begins, all listeners stop reading
and all pools begin to drain; each of them leaves in its turn as ever, and has nothing left to wait for then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from ..runtime.supervision import Body, Child

__all__ = ["DRAIN_WITHIN", "Stopping"]

DRAIN_WITHIN = 5.0
"""Seconds that a pool has to handle and acknowledge what is in work; the rest is given back."""


class Stopping:
    """Whether the process stops."""

    def __init__(self) -> None:
        self._begun_at: float | None = None
        self._scopes: set[trio.CancelScope] = set()

    @property
    def has_begun(self) -> bool:
        """Whether it stops."""
        return self._begun_at is not None

    def begin(self) -> None:
        """It stops. Called again, nothing happens. Never blocks."""
        if self._begun_at is None:
            self._begun_at = trio.current_time()
            for scope in self._scopes:
                scope.cancel(reason="the process stops")

    def deadline(self, within: float) -> float:
        """When so many seconds have passed since the stop began (`trio.current_time()`); never, if it has not."""
        return math.inf if self._begun_at is None else self._begun_at + within

    @contextmanager
    def until(self) -> Iterator[None]:
        """A block that is cancelled, and left, when the stop begins; at its first checkpoint if it has."""
        scope = trio.CancelScope()
        self._scopes.add(scope)
        if self.has_begun:
            scope.cancel(reason="the process stops")
        try:
            with scope:
                yield
        finally:
            self._scopes.discard(scope)

    def reading(self, body: Body) -> Body:
        """A listener's body that reads nothing more once the stop has begun, and then waits for its turn to leave."""

        async def run(child: Child) -> None:
            with self.until():
                await body(child)
            while self.has_begun:
                child.progress()
                with trio.move_on_after(1.0):
                    await child.draining.wait()
                    return

        return run
