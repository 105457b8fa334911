"""`Silence`: how long a server has said nothing, as far as that is the server's doing.

Whoever waits for a byte looks at the clock in steps, and no step counts for more than it was to take. So a turn of our
own event loop that takes seconds, because somebody decodes megabytes in it, is no silence of the server. Nor is the
time in which a long reply arrives, byte by byte.
"""

from __future__ import annotations

from typing import Final

import trio

__all__ = ["STEP", "Silence"]

STEP: Final = 0.1
"""Seconds of a step: what a turn of our own event loop may take at the server's expense."""

_EXACT: Final = 1e-6
"""Seconds that sums of steps may be off."""


class Silence:
    """A silence that begins now. Nothing here waits.

    Attributes:
        turn: how often it was broken: another number is another silence.
    """

    def __init__(self) -> None:
        self.turn = 0
        self._counted = 0.0
        self._looked_at = trio.current_time()

    def end(self, until: float | None = None) -> None:
        """A sign of life: another silence begins now, or counts from `until` on (`trio.current_time()`)."""
        self.turn += 1
        self._counted = 0.0
        self._looked_at = trio.current_time() if until is None else until

    def next_look(self, limit: float) -> float:
        """When to call `exceeds` the next time (`trio.current_time()`)."""
        return self._looked_at + min(STEP, max(0.0, limit - self._counted))

    def exceeds(self, limit: float) -> bool:
        """Whether it has lasted for `limit` seconds by now."""
        now = trio.current_time()
        self._counted += min(STEP, max(0.0, now - self._looked_at))
        self._looked_at = max(now, self._looked_at)
        return self._counted >= limit - _EXACT
