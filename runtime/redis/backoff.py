"""`Backoff`: when the next connect attempt may start."""

from __future__ import annotations

import random
from collections.abc import Callable

import trio
from attrs import define, field

__all__ = ["Backoff"]


@define(eq=False)
class Backoff:
    """Capped exponential backoff with full jitter: `uniform(0, min(cap, base * 2**(n - 1)))` after n failures in a row.

    Full jitter, so that the many clients of a server that comes back do not come in step. The first attempt after a
    success starts at once.

    Attributes:
        random: source of numbers in [0, 1).
        base: ceiling of the first wait, seconds.
        cap: ceiling of every wait, seconds.
        failures: failed attempts in a row.
    """

    random: Callable[[], float] = field(factory=lambda: random.Random().random)  # noqa: S311  # jitter, no secret
    base: float = 0.05
    cap: float = 2.0
    failures: int = field(default=0, init=False)
    _not_before: float = field(default=float("-inf"), init=False)

    def failed(self) -> None:
        """Note a failed attempt; the next one has to wait."""
        # 2**16 is far beyond any cap; the bound keeps the float from overflowing in a long outage.
        ceiling = min(self.cap, self.base * 2.0 ** min(self.failures, 16))
        self.failures += 1
        self._not_before = trio.current_time() + self.random() * ceiling

    def succeeded(self) -> None:
        """Note a success; the next attempt may start at once."""
        self.failures = 0
        self._not_before = float("-inf")

    async def wait(self) -> None:
        """Sleep until the next attempt may start; a checkpoint in any case. Waits at most `cap` seconds."""
        await trio.sleep(max(0.0, self._not_before - trio.current_time()))
