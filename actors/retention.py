"""The retention actor: runs a `Sweep` by cron, makes up for a run that was missed, and runs one by order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal
from uuid import UUID, uuid4

import psycopg
import redis.exceptions
import trio
from attrs import define, field

from ..runtime import postgres
from ..runtime import redis as redis_link
from ..runtime.telemetry import get_logger
from .schedule import Schedule
from .sweep import RetentionBusy, RetentionReport, Sweep

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from ..runtime.postgres import Pool
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Child
    from .settings import RetentionSettings
    from .system import System

__all__ = ["Retention", "RetentionOrder", "keep_schedule"]

log = get_logger(__name__)

_LOOK_AGAIN: Final = 60.0
"""Seconds between two looks at the wall clock: it may jump, and trio's sleeps while the machine does."""

_PASSING: Final = (postgres.Fault.OUTAGE, postgres.Fault.RETRY)

_LASTING: Final = (redis_link.Kind.CONFIG, redis_link.Kind.DOWNGRADE, redis_link.Kind.BUG)


REMEMBERED: Final = 20
"""Orders that are remembered at the most."""


@define(eq=False, kw_only=True)
class RetentionOrder:
    """A run that somebody ordered. It is forgotten with the process; what it did is in ``penstock_retention_run``.

    Attributes:
        dry_run: nothing is to be deleted.
        id: of the order.
        state: ``waiting``, ``running``, ``done`` or ``failed``.
        report: what it did.
        error: why it failed.
    """

    dry_run: bool
    id: UUID = field(factory=uuid4)
    state: Literal["waiting", "running", "done", "failed"] = "waiting"
    report: RetentionReport | None = None
    error: str | None = None


class Retention:
    """The body of the actor ``retention``.

    Args:
        system: whose streams are trimmed.
        client: gives the link to Redis.
        pool: where connections to PostgreSQL come from; a run keeps one.
        settings: when, how old, and how much at a time.
        zone: in which the cron times are meant.
        instance: who we are, for the record.
        wall: the wall clock, aware.

    Attributes:
        sweep: what does the work.
        orders: the runs that were ordered here, oldest first.
        settings: as given.
    """

    def __init__(
        self,
        *,
        system: System,
        client: Callable[[], AnyRedis],
        pool: Pool,
        settings: RetentionSettings,
        zone: ZoneInfo,
        instance: str = "",
        wall: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.sweep = Sweep(system, client, pool, settings, instance=instance, wall=wall)
        self.orders: list[RetentionOrder] = []
        self.settings = settings
        self._schedule = Schedule(settings.cron, zone)
        self._wall = wall
        self._ordered = trio.Event()

    @property
    def next_run(self) -> datetime:
        """When it is due next; aware."""
        return self._schedule.next(self._wall())

    def order(self, *, dry_run: bool) -> RetentionOrder:
        """Order a run now; it is worked off by the actor, and what it says changes meanwhile. Never blocks."""
        order = RetentionOrder(dry_run=dry_run)
        self.orders = [*self.orders[1 - REMEMBERED :], order]
        self._ordered.set()
        return order

    async def __call__(self, child: Child) -> None:
        """Work until cancelled; see `keep_schedule`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._obey)
            await keep_schedule(child, self.sweep.run_due, self._schedule, self._wall)

    async def _obey(self) -> None:
        while True:
            self._ordered = trio.Event()
            # Before the first wait, too: this actor may have been held while something was ordered.
            for order in [each for each in self.orders if each.state == "waiting"]:
                await self._run(order)
            await self._ordered.wait()

    async def _run(self, order: RetentionOrder) -> None:
        order.state, order.error = "running", "it was interrupted"
        try:
            order.report = await self.sweep.run(dry_run=order.dry_run)
        except (RetentionBusy, redis.exceptions.RedisError, psycopg.Error) as error:
            order.error = str(error)
            log.warning("ordered retention failed", error=str(error))
        else:
            order.error = None
            _tell(order.report)
        finally:
            order.state = "done" if order.error is None else "failed"


async def keep_schedule(
    child: Child,
    run: Callable[[datetime], Awaitable[RetentionReport | None]],
    schedule: Schedule,
    wall: Callable[[], datetime],
) -> None:
    """Run whatever is due, for ever. `run` gets the time that it was due at, and returns None if that run is done.

    A run that was due while nobody could do it (the process was down, or held at a gate) is done at the next start. One
    that an outage ends, or that another instance is at, is tried again each minute.

    Cancellation: a run that is cut short leaves a state from which the next one goes on.

    Raises:
        redis.exceptions.RedisError, psycopg.Error: from `run`, an error that waiting does not heal.
    """
    child.started()
    settled: datetime | None = None
    while True:
        due = schedule.latest(wall())
        if due != settled and await _settle(child, run, due):
            settled = due
        following = schedule.next(wall())
        if settled == due:
            child.note(f"next run {following:%Y-%m-%d %H:%M %Z}")
        left = (following - wall()).total_seconds()
        await trio.sleep(min(max(left, 0.0), _LOOK_AGAIN))


async def _settle(child: Child, run: Callable[[datetime], Awaitable[RetentionReport | None]], due: datetime) -> bool:
    """Whether the run that was due is done now."""
    child.note(f"running for {due:%Y-%m-%d %H:%M %Z}")
    try:
        report = await run(due)
    except RetentionBusy as busy:
        child.note("another instance is at it")
        log.info("retention left to another instance", due=due.isoformat(), reason=str(busy))
        return False
    except (redis.exceptions.RedisError, psycopg.Error) as error:
        if not _passes(error):
            raise
        child.note("interrupted; trying again")
        log.warning("retention interrupted", due=due.isoformat(), error=str(error))
        return False
    if report is not None:
        _tell(report)
    return True


def _passes(error: redis.exceptions.RedisError | psycopg.Error) -> bool:
    """Whether it is worth trying again."""
    if isinstance(error, psycopg.Error):
        return postgres.classify(error) in _PASSING
    return redis_link.classify(error).kind not in _LASTING


def _tell(report: RetentionReport) -> None:
    for stream in report.streams:
        for held in stream.held_back:
            log.warning(
                "retention_held_back", stream=stream.stream, group=held.group, entry=held.entry_id, reason=held.why
            )
        if stream.error is not None:
            log.error("retention of a stream refused", stream=stream.stream, error=stream.error)
    log.info(
        "retention done",
        dry_run=report.dry_run,
        entries=report.entries_trimmed,
        rows=report.rows_deleted,
        seconds=round(report.seconds, 3),
        cutoff=report.cutoff.isoformat(),
        streams={stream.stream: stream.safe_id for stream in report.streams},
    )
