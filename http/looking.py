"""Things that are asked of a server again and again, for as long as somebody wants to see them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Generic, TypeVar

import redis.exceptions
import trio
from attrs import define, frozen

from ..runtime.masking import mask_text
from ..runtime.postgres import PostgresUnavailable
from ..runtime.telemetry import get_logger
from .running import RunningSystem
from .views import shut_gate

__all__ = ["DATABASE", "REDIS", "WITHIN", "Look", "Server"]

log = get_logger(__name__)

WITHIN = 3.0
"""Seconds that the server has for an answer."""

SHARE = 0.1
"""Of the server's time, what one look may take at the most: whoever looks at a slow one looks less often."""

T = TypeVar("T")


@frozen
class Server:
    """Who is asked.

    Attributes:
        name: as it is told.
        gate: is shut while it is away.
        away: what is raised when it goes away, or refuses.
    """

    name: str
    gate: str
    away: type[Exception]


DATABASE = Server("the database", "postgres", PostgresUnavailable)
REDIS = Server("Redis", "redis", redis.exceptions.RedisError)


@define(eq=False)
class Look(Generic[T]):
    """What is known of one thing.

    Attributes:
        deployment: the system.
        what: its name, for the log.
        server: who is asked.
        ask: asks; None where there is nobody to be asked.
        every: seconds between two questions.
        value: the last answer.
        observed_at: when that was; None: never yet.
        stale: why it is not up to date; empty when it is.
    """

    deployment: RunningSystem
    what: str
    server: Server
    ask: Callable[[], Awaitable[T]] | None
    every: float
    value: T
    observed_at: datetime | None = None
    stale: str = ""

    async def renew(self) -> bool:
        """Ask, and return whether there is anything new to be seen. Raises nothing: what goes wrong is told."""
        before = (self.value, self.stale)
        self.stale = await self._ask()
        return (self.value, self.stale) != before

    async def follow(self, wanted: Callable[[], trio.Event], news: Callable[[], None]) -> None:
        """Ask whenever the event that `wanted` gives is set, and tell `news`; until cancelled."""
        while True:
            await wanted().wait()
            began = trio.current_time()
            if await self.renew():
                news()
            await trio.sleep(max(self.every, (trio.current_time() - began) / SHARE))

    async def _ask(self) -> str:
        deployment, server = self.deployment, self.server
        gate = shut_gate(deployment.gates, server.gate)
        if gate is not None:
            return f"{server.name} is away: {mask_text(gate.cause)}"
        if self.ask is None:
            return "this system has none"
        try:
            with trio.fail_after(WITHIN):
                self.value = await self.ask()
        except trio.TooSlowError:
            return f"{server.name} did not answer within {WITHIN:g} s"
        except server.away as error:
            return mask_text(str(error))
        except Exception as error:
            # The page is for the worst of nights: whatever is wrong with the table must not take the tree off it.
            log.warning(f"{self.what} cannot be read", exc_info=error)
            return f"they cannot be read: {type(error).__name__}"
        self.observed_at = deployment.tree.journal.wall()
        return ""
