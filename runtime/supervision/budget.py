"""The restart budget: how many restarts a supervisor may still make."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import Intensity

__all__ = ["Budget"]


class Budget:
    """Restarts counted in a sliding window, as OTP's ``supervisor`` counts them.

    One for a whole supervisor. Pure: the caller brings the time.
    """

    def __init__(self, intensity: Intensity) -> None:
        self.intensity = intensity
        self._spent: deque[float] = deque()

    def spend(self, now: float) -> bool:
        """Enter one restart at `now`; false if that is one more than the intensity allows."""
        self._forget(now)
        self._spent.append(now)
        return len(self._spent) <= self.intensity.restarts

    def left(self, now: float) -> int:
        """Restarts that may still be made at `now`."""
        self._forget(now)
        return max(0, self.intensity.restarts - len(self._spent))

    def _forget(self, now: float) -> None:
        # Inclusive edge, as in OTP: a restart exactly `within` seconds ago still counts.
        while self._spent and self._spent[0] < now - self.intensity.within:
            self._spent.popleft()
