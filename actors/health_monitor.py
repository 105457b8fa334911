"""The health monitor: opens and shuts the gates.

A gate is shut by whoever notices first: a link, at the very moment of its error (`Watch.trouble`), or the probe. It is
opened by nobody but the probe, because a connection that works proves little. Up, a probe every 10 s; down, after 1 s,
2 s, … up to every 10 s, and at once when there is news (`Watch.nudge`). Where another node may have taken over, a
connection that broke is no more than news (`Watch.doubt`), and so is a statement that takes long.

A probe may be content with a server that others cannot work with. Then the gate would open and shut at full speed, so
that what shuts it again soon after it was opened has to wait, longer each time.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import redis.exceptions
import trio

from ..runtime.redis import RedisClosed, RedisUnavailable
from ..runtime.redis.replies import reply_text
from ..runtime.supervision import ErrorInfo
from ..runtime.telemetry import get_logger
from .probes import Unhealthy

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gate
    from .settings import HealthSettings

__all__ = ["HealthMonitor", "Watch"]

log = get_logger(__name__)

RELAPSES = 2
"""How often a gate may be shut again soon after it was opened, and be probed at once: an outage often has echoes."""

TELL_EVERY = 60.0
"""Seconds between two log lines of an outage in which nothing changes."""

STEPS = 10
"""Parts of a probe's limit, after each of which our own delay is found out and not counted."""


class Watch:
    """The eye on one server: its gate and its probe.

    Args:
        gate: the gate it keeps.
        probe: raises `Unhealthy` unless the server can do its work.
        settings: intervals and limits.
        address: the server's, without secrets: how it is named when it says nothing itself.
        rest_at_most: seconds between two probes in a long outage; None for what the settings say. Short where a server
            comes back by itself, and nobody tells us.
    """

    def __init__(
        self,
        gate: Gate,
        probe: Callable[[], Awaitable[None]],
        settings: HealthSettings,
        address: str,
        *,
        rest_at_most: float | None = None,
    ) -> None:
        self.gate = gate
        self._address = address
        self._probe = probe
        self._settings = settings
        self._rest_at_most = min(settings.interval_down_max, rest_at_most or settings.interval_down_max)
        self._news = trio.Event()
        self._troubles = 0
        self._opened_at = -math.inf
        self._relapses = 0
        self._not_before = -math.inf
        self._patience = math.inf
        self._told_cause, self._told_at = "", -math.inf

    def trouble(self, error: Exception) -> None:
        """A link lost its server: shut the gate now, and probe soon. Never blocks, never raises."""
        self._troubles += 1
        if self.gate.is_open:
            self._relapse(trio.current_time(), error)
        if self.gate.is_open or not _is_our_doing(error):
            self.gate.shut(self._cause_of(error))
        self._news.set()

    def doubt(self, answer_within: float = math.inf) -> None:
        """A connection broke, or an answer is late, and the server may be well: probe soon; the gate stays as it is.

        With `answer_within`, in seconds, that probe has no more time than this while the gate is open. Never blocks.
        """
        self._patience = min(self._patience, answer_within)
        self._news.set()

    def nudge(self) -> None:
        """Probe at once: something has changed. Never blocks."""
        self._not_before = -math.inf
        self._news.set()

    def _cause_of(self, error: Exception) -> str:
        """What a person reads: where, and the whole reply if it was one."""
        if isinstance(error, RedisUnavailable) or not isinstance(error, redis.exceptions.RedisError):
            return ErrorInfo.of(error).message
        return f"{self._address}: {reply_text(error)}"

    def _relapse(self, now: float, error: Exception) -> None:
        """Probe at once, unless the gate keeps being shut right after a probe has opened it."""
        settings = self._settings
        self._relapses = self._relapses + 1 if now - self._opened_at < settings.interval_down_max else 0
        over = self._relapses - RELAPSES
        if over > 0:
            pause = min(settings.interval_down_max, settings.interval_down_min * 2.0 ** min(over - 1, 60))
            if isinstance(error, RedisUnavailable):
                # A server that is away is what a probe does see; only what a server refuses can escape it.
                pause = min(pause, self._rest_at_most)
            self._not_before = now + pause
            log.warning(f"{self.gate.name} fails right after a good health check", times=self._relapses, wait=pause)

    async def run(self) -> None:
        """Probe for ever."""
        least = pause = min(self._settings.interval_down_min, self._rest_at_most)
        while True:
            await self._wait_out_relapse()
            started = trio.current_time()
            self._news = trio.Event()
            limit = self._limit(pause)
            cause = await self._look(limit)
            if cause is None:
                if not self.gate.is_open:
                    self._opened_at = trio.current_time()
                self.gate.open()
                pause = least
                await self._rest(started + self._settings.interval_up)
            else:
                # A frozen server keeps a probe waiting: then the next one is on its way at once, for only a probe that
                # waits notices the moment at which the server goes on.
                waited = trio.current_time() - started >= min(limit, self._settings.timeout)
                self._tell(cause, 0.0 if waited else pause)
                self.gate.shut(cause)
                await self._rest(started if waited else started + pause)
                pause = min(self._rest_at_most, pause * 2)

    def _limit(self, pause: float) -> float:
        """Seconds for the next probe.

        While the server is down it is the whole interval: a frozen server answers the waiting probe at the moment at
        which it goes on.
        """
        patience, self._patience = self._patience, math.inf
        return min(patience, self._settings.timeout) if self.gate.is_open else max(self._settings.timeout, pause)

    async def _look(self, limit: float) -> str | None:
        """One probe; None if all is well, otherwise what is wrong."""
        late: str | None = None
        cause: str | None = None

        def give_up() -> None:
            # At once: a probe may leave late, for it waits for a thread, say. What it says then is of no interest.
            nonlocal late
            late = f"{self._address}: no answer within {limit:g} s"
            self._tell(late, 0.0)
            self.gate.shut(late)
            nursery.cancel_scope.cancel(reason="no answer in time")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(_after, limit, give_up)
            cause = await self._ask()
            nursery.cancel_scope.cancel(reason="the probe has ended")
        return late or cause

    async def _ask(self) -> str | None:
        troubles = self._troubles
        try:
            await self._probe()
        except Unhealthy as error:
            return str(error)
        # What a link has seen since the probe began is newer than its answer: look again.
        return None if troubles == self._troubles else self.gate.cause or "trouble while it was probed"

    def _tell(self, cause: str, pause: float) -> None:
        now = trio.current_time()
        if self.gate.is_open:
            log.warning(f"{self.gate.name} health check failed", cause=cause)
        elif cause != self._told_cause or now - self._told_at >= TELL_EVERY:
            # New trouble is a warning, also at the start, where no gate is shut because none was ever open.
            (log.info if cause == self._told_cause else log.warning)(
                f"{self.gate.name} is not healthy", cause=cause, next_check_seconds=pause
            )
        else:
            return
        self._told_cause, self._told_at = cause, now

    async def _wait_out_relapse(self) -> None:
        while trio.current_time() < self._not_before:
            self._news = trio.Event()
            await self._rest(self._not_before)

    async def _rest(self, until: float) -> None:
        with trio.move_on_at(until):
            await self._news.wait()


def _is_our_doing(error: Exception) -> bool:
    """Whether a call failed because its connection was given up here: a consequence, which names no cause."""
    return isinstance(error, RedisClosed) or isinstance(error.__cause__, RedisClosed)


async def _after(limit: float, give_up: Callable[[], None]) -> None:
    """Give a probe up after so many seconds, without those for which this very process kept it waiting."""
    deadline = trio.current_time() + limit
    while (now := trio.current_time()) < deadline:
        until = min(deadline, now + limit / STEPS)
        await trio.sleep_until(until)
        deadline += trio.current_time() - until
    give_up()


class HealthMonitor:
    """The body of the actor ``health-monitor``.

    Args:
        watches: the servers to watch, each in a task of its own: a frozen one does not hide another.
        observe: called every `observe_every` seconds, to keep the view of the streams fresh.
        observe_every: seconds.
    """

    def __init__(
        self,
        watches: Sequence[Watch],
        observe: Callable[[], Awaitable[None]],
        observe_every: float,
    ) -> None:
        self._watches = watches
        self._observe = observe
        self._observe_every = observe_every

    async def __call__(self, child: Child) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            for watch in self._watches:
                nursery.start_soon(watch.run, name=f"{child.path}/{watch.gate.name}")
            child.started()
            while True:
                await self._observe()
                await trio.sleep(self._observe_every)
