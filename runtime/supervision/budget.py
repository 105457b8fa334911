"""The restart budget: how many restarts a supervisor, or one rule of a child's policy, may still make.

Pure: the caller brings the time.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Protocol

from .spec import Decay, Intensity

__all__ = ["Budget", "budget_of"]


class Budget(Protocol):
    """A count of restarts against a limit."""

    def spend(self, now: float) -> bool:
        """Enter one restart at `now`; false if that is one more than the limit allows."""

    def left(self, now: float) -> int:
        """Restarts that may still be made at `now`; without a limit `sys.maxsize`."""

    def change(self, limit: Intensity | Decay) -> Budget:
        """This count against another limit; what was spent stays spent where both count alike."""


def budget_of(limit: Intensity | Decay) -> Budget:
    """A fresh count against `limit`."""
    return _Window(limit) if isinstance(limit, Intensity) else _Decaying(limit)


class _Window:
    """Restarts counted in a sliding window, as OTP's ``supervisor`` counts them."""

    def __init__(self, limit: Intensity) -> None:
        self.limit = limit
        self._spent: deque[float] = deque()

    def spend(self, now: float) -> bool:
        self._forget(now)
        self._spent.append(now)
        return len(self._spent) <= self.limit.restarts

    def left(self, now: float) -> int:
        self._forget(now)
        return max(0, self.limit.restarts - len(self._spent))

    def change(self, limit: Intensity | Decay) -> Budget:
        changed = budget_of(limit)
        if isinstance(changed, _Window):
            changed._spent = self._spent
        return changed

    def _forget(self, now: float) -> None:
        # Inclusive edge, as in OTP: a restart exactly `within` seconds ago still counts.
        while self._spent and self._spent[0] < now - self.limit.within:
            self._spent.popleft()


class _Decaying:
    """Restarts in a count that halves every half-life, as suture's."""

    def __init__(self, limit: Decay) -> None:
        self.limit = limit
        self._count = 0.0
        self._at = 0.0

    def spend(self, now: float) -> bool:
        self._count, self._at = self._now(now) + 1, now
        return self._count <= self.limit.threshold

    def left(self, now: float) -> int:
        return max(0, int(min(self.limit.threshold - self._now(now), sys.maxsize)))

    def change(self, limit: Intensity | Decay) -> Budget:
        changed = budget_of(limit)
        if isinstance(changed, _Decaying):
            changed._count, changed._at = self._count, self._at
        return changed

    def _now(self, now: float) -> float:
        # Not 2 ** x: a count that nobody has touched for a year must not underflow loudly.
        halvings = (now - self._at) / self.limit.half_life
        return self._count * 0.5**halvings if halvings < 1000 else 0.0
