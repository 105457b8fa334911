"""The trimmer: between the daily runs of retention it keeps streams short, by proof; and at once when Redis is full.

Rows are not its business, and it needs no database: an outage of PostgreSQL is when streams grow.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio

from ..runtime.telemetry import get_logger
from .trimming import StreamReport, trim

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child, Gate
    from .settings import RetentionSettings
    from .system import System

__all__ = ["Trimmer"]

log = get_logger(__name__)

BREATH: Final = 5.0
"""Seconds between two emergencies: what cannot be trimmed now is held by a group, and that takes its time."""

TELL_EVERY: Final = 60.0
"""Seconds between two lines of the log about an emergency that has not changed."""

_NEVER: Final = datetime.fromtimestamp(0, UTC)


class Trimmer:
    """The body of the actor ``trimmer``.

    Args:
        system: whose streams are trimmed.
        client: gives the link to Redis.
        memory: the gate that is shut while Redis is full.
        settings: what is kept, and how often that is looked at.
        made_room: called when entries were trimmed in an emergency: Redis may take new ones now.
        wall: the wall clock, aware.
    """

    def __init__(
        self,
        system: System,
        client: Callable[[], AnyRedis],
        memory: Gate,
        settings: RetentionSettings,
        *,
        made_room: Callable[[], None] = lambda: None,
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._system = system
        self._client = client
        self._memory = memory
        self._settings = settings
        self._made_room = made_room
        self._wall = wall
        self._told: list[str] | None = None
        self._told_at = -math.inf

    async def __call__(self, child: Child) -> None:
        """Trim for ever. Cancellation: what was trimmed stays so, and nothing is half done."""
        child.started()
        while True:
            if self._memory.is_open:
                self._told = None
                reports = await self._trim(self._oldest_kept())
            else:
                reports = await self._make_room()
            child.note(_told(reports))
            with trio.move_on_after(self._settings.trim_every if self._memory.is_open else BREATH):
                await (self._memory.wait_shut if self._memory.is_open else self._memory.wait_open)()

    def _oldest_kept(self) -> datetime:
        """Without a time of its own for entries, age is left to the daily run."""
        kept = self._settings.keep_entries_for
        return _NEVER if kept is None else self._wall() - timedelta(seconds=kept)

    async def _make_room(self) -> list[StreamReport]:
        """Redis is full: everything that every group is done with may go, however young."""
        cause = self._memory.cause
        reports = await self._trim(self._wall() + timedelta(days=1))
        gone = sum(report.trimmed for report in reports)
        held_back = sorted({f"{held.group}@{report.stream}" for report in reports for held in report.held_back})
        self._tell(gone, cause, held_back)
        if gone:
            self._made_room()
        return reports

    def _tell(self, gone: int, cause: str, held_back: list[str]) -> None:
        """What was trimmed, each time; that there is nothing to trim, once, when it is held by others, and rarely."""
        now = trio.current_time()
        if not gone and held_back == self._told and now - self._told_at < TELL_EVERY:
            return
        self._told, self._told_at = held_back, now
        told = "trimmed what every group is done with" if gone else "nothing can be trimmed"
        log.error(f"redis is full; {told}", entries=gone, cause=cause, held_back=held_back)

    async def _trim(self, oldest: datetime) -> list[StreamReport]:
        reports = []
        for stream in self._system.streams.values():
            for key in stream.keys:
                try:
                    report = await trim(self._client(), stream, oldest, key=key, most=self._settings.max_entries)
                except redis.exceptions.RedisError as error:
                    # A refusal, or a node of a cluster that is just not there. The daily run tells of it loudly; here
                    # it would be each minute.
                    report = StreamReport(stream=key, error=str(error))
                reports.append(report)
        return reports


def _told(reports: list[StreamReport]) -> str:
    gone = sum(report.trimmed for report in reports)
    refused = [report.stream for report in reports if report.error is not None]
    return f"{gone} entries trimmed" + (f"; refused: {', '.join(refused)}" if refused else "")
