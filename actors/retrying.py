"""How often, and after which pauses, an event is tried again whose attempt failed by its own fault. Pure."""

from __future__ import annotations

from typing import Any

from attrs import field, frozen

from ..runtime.settings import above_zero, at_least

__all__ = ["RetryPolicy"]


@frozen(kw_only=True)
class RetryPolicy:
    """A policy of retries. Outages never count, whatever it says.

    Attributes:
        deliveries: attempts after which the event becomes a dead letter.
        minimum: seconds before the second attempt; each further one waits up to twice as long, at random below that.
        maximum: seconds that an attempt waits at the most.
        permanent: types of errors after which no attempt will help: dead at once, like `Permanent`.
    """

    deliveries: int = field(default=5, validator=at_least(1))
    minimum: float = field(default=1.0, validator=above_zero)
    maximum: float = field(default=60.0, validator=above_zero)
    permanent: tuple[type[Exception], ...] = ()

    @maximum.validator
    def _not_below_minimum(self, attribute: Any, value: float) -> None:
        if value < self.minimum:
            raise ValueError("maximum must not be below minimum")

    def pause(self, attempts: int, chance: float) -> float:
        """Seconds after attempt number `attempts`: doubling up to the maximum, full jitter by `chance` in [0, 1)."""
        return chance * min(self.maximum, self.minimum * 2.0 ** min(attempts - 1, 60))
