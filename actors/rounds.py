"""The rounds of a keeper: chores at a pace, while Redis is there, and one thing more when the process stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio

from ..runtime.redis import Kind, classify
from ..runtime.telemetry import get_logger
from .stopping import DRAIN_WITHIN, Stopping

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gate

__all__ = ["Chore", "Rounds", "is_missing"]

log = get_logger(__name__)

JITTER: Final = 0.2
"""Share by which the pauses between two looks differ, so that not all processes look at once."""

LEAVE_WITHIN: Final = 2.5
"""Seconds that giving back may take: what is not given back is taken over later, by its idle time."""

Chore = Callable[[], Awaitable[object]]


class Rounds:
    """See the module.

    Args:
        redis_gate: while it is shut, chores wait.
        redis_trouble: told of every error of Redis.
        chance: random numbers in [0, 1) for the jitter.
        stopping: whether the process stops.
        where: of what is looked after, for the log.
    """

    def __init__(
        self,
        *,
        redis_gate: Gate,
        redis_trouble: Callable[[Exception], None],
        chance: Callable[[], float],
        stopping: Stopping,
        where: Mapping[str, str],
    ) -> None:
        self._redis_gate = redis_gate
        self._redis_trouble = redis_trouble
        self._chance = chance
        self._stopping = stopping
        self._where = dict(where)

    async def __call__(
        self,
        child: Child,
        chores: Sequence[tuple[float, Chore]],
        leave: Chore,
        *,
        beside: Callable[[], Awaitable[None]] = trio.sleep_forever,
    ) -> None:
        """Do each chore every so many seconds until cancelled, or drained: then `leave`, within a few seconds.

        `beside` runs so long, too.
        """
        child.started()
        async with trio.open_nursery() as working:
            for every, chore in chores:
                working.start_soon(self._at_pace, every, chore)
            working.start_soon(beside)
            with self._stopping.until():
                await child.draining.wait()
            working.cancel_scope.cancel(reason="the process stops")
        await child.draining.wait()
        if self._redis_gate.is_open:
            # All keepers of a process leave within the same time: a server that does not answer has them all wait.
            with (
                trio.move_on_at(self._stopping.deadline(DRAIN_WITHIN + LEAVE_WITHIN)),
                trio.move_on_after(LEAVE_WITHIN),
            ):
                await self._try(leave)

    async def _at_pace(self, every: float, chore: Chore) -> None:
        while True:
            await trio.sleep(every * (1 + JITTER * (2 * self._chance() - 1)))
            await self._redis_gate.wait_open()
            await self._try(chore)

    async def _try(self, chore: Chore) -> None:
        try:
            await chore()
        except redis.exceptions.RedisError as error:
            # The next look is soon. That there is no such group (yet, or any more) is the listener's to mend.
            log.debug("not looked after", **self._where, error=str(error))
            if not is_missing(error):
                self._redis_trouble(error)


def is_missing(error: Exception) -> bool:
    """Whether there is no such group: not yet, or not any more."""
    return classify(error).kind is Kind.REPAIR or "no such key" in str(error).lower()
