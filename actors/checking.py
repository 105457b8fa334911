"""When the start-up checks are made, and what follows: the probe that opens the gate ``redis`` makes them, too."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import psycopg
import redis.exceptions
import trio

from ..runtime.telemetry import get_logger
from .checks import declared_findings, server_findings, skew_finding
from .cluster_probe import ClusterProbe
from .findings import Finding, Severity
from .probes import RedisProbe, Unhealthy
from .rights import Needs, access_findings

if TYPE_CHECKING:
    from ..runtime.postgres import Pool
    from ..runtime.supervision import Gate
    from .system import System

__all__ = ["Checks", "database_clock", "look_at_redis"]

log = get_logger(__name__)

AGAIN: Final = 300.0
"""Seconds between two rounds of checks while all is well: somebody may change a server's settings at any time."""

WITHIN: Final = 0.5
"""Seconds that a round may take; a server that is slower than that is looked at another time."""


def _now() -> datetime:
    return datetime.now(UTC)


async def look_at_redis(
    probe: RedisProbe | ClusterProbe, needs: Needs, wall: Callable[[], datetime] = _now
) -> list[Finding]:
    """One round of checks of the servers behind a probe that has just found them well.

    Args:
        probe: of a cluster, one that has run: each master that it saw is looked at.
        needs: what our user must have rights to.
        wall: our clock, aware.

    Raises:
        redis.exceptions.RedisError: as the link or a server says.
    """
    findings: list[Finding] = []
    if isinstance(probe, RedisProbe):
        async with probe.client() as client:
            findings += await server_findings(client, probe.options.address, wall)
            return [*findings, *await access_findings(client, needs, probe.options.address)]
    for node in probe.view.masters if probe.view is not None else ():
        if not node.failed:
            async with probe.node(node.address) as server:
                findings += await server_findings(server, node.address, wall)
    async with probe.client() as cluster:
        return [*findings, *await access_findings(cluster, needs, probe.options.address)]


async def database_clock(pool: Pool) -> datetime:
    """What time it is there; aware. Raises psycopg.Error."""
    async with pool.connection() as connection:
        row = await (await connection.execute("select clock_timestamp()")).fetchone()
    assert row is not None  # noqa: S101 - a select without a table
    moment: datetime = row[0]
    return moment


class Checks:
    """A probe of Redis with the start-up checks behind it.

    Args:
        system: what was declared.
        probe: raises `Unhealthy` unless Redis can do its work.
        gate: which it opens; while that is shut, everything is checked before.
        allow: names of checks whose findings are never more than warnings.
        wall: our clock, aware.
    """

    def __init__(
        self,
        system: System,
        probe: RedisProbe | ClusterProbe,
        gate: Gate,
        *,
        allow: Sequence[str] = (),
        wall: Callable[[], datetime] = _now,
    ) -> None:
        self._probe: Callable[[], Awaitable[None]] = probe
        self._look: Callable[[], Awaitable[list[Finding]]] = partial(look_at_redis, probe, Needs.of(system), wall)
        self._gate = gate
        self._allow = frozenset(allow)
        self._declared = declared_findings(system)
        self._found: list[Finding] = []
        self._database: list[Finding] = []
        self._database_at = -math.inf
        self._wall = wall
        self._told: set[tuple[str, str, Severity]] = set()
        self._at = -math.inf
        self._are_made = True
        for finding in self._declared:
            self._tell(finding)

    @property
    def warnings(self) -> list[Finding]:
        """What somebody should mend: of the declaration, and of the servers when they were looked at last."""
        found = (*self._declared, *self._found, *self._database)
        return [each for each in found if each.severity is not Severity.GOOD]

    async def __call__(self) -> None:
        """Raise `Unhealthy` unless Redis can do its work, and keeps what it is given."""
        await self._probe()
        if self._gate.is_open and trio.current_time() - self._at < AGAIN:
            return
        found = await self._round()
        if found is None:
            return
        self._found, self._at = found, trio.current_time()
        refusals = [each for each in found if self._refuses(each)]
        for finding in found:
            self._tell(finding)
        if refusals:
            self._at = -math.inf  # look again with the next probe: somebody may be at it
            raise Unhealthy("; ".join(str(each) for each in refusals))

    async def look_at_database(self, address: str, clock: Callable[[], Awaitable[datetime]]) -> None:
        """Compare the database's clock with ours, every few minutes; a database that is away is no finding.

        Args:
            address: the database's, without secrets.
            clock: asks it what time it is; aware.
        """
        if trio.current_time() - self._database_at < AGAIN:
            return
        with trio.move_on_after(WITHIN):
            try:
                before = self._wall()
                theirs = await clock()
            except psycopg.Error as error:
                log.debug("the database's clock is not known", error=str(error))
                return
            finding = skew_finding(address, theirs, before, self._wall())
            self._database, self._database_at = [finding], trio.current_time()
            self._tell(finding)

    async def _round(self) -> list[Finding] | None:
        """None where a server could not be looked at: the probe has just found it well, and will look again."""
        found, why = None, f"no answer within {WITHIN:g} s"
        with trio.move_on_after(WITHIN):
            try:
                found = await self._look()
            except redis.exceptions.RedisError as error:
                why = str(error)
        if found is None and self._are_made:
            log.warning("start-up checks not made; they are tried with each probe", error=why)
        self._are_made = found is not None
        return found

    def _refuses(self, finding: Finding) -> bool:
        return finding.severity is Severity.REFUSE and finding.name not in self._allow

    def _tell(self, finding: Finding) -> None:
        """Once for each thing that is wrong; again if it was mended in between."""
        place = (finding.name, finding.where, finding.severity)
        if finding.severity is Severity.GOOD:
            self._told.difference_update([(*place[:2], severity) for severity in Severity])
        elif place not in self._told:
            self._told.add(place)
            facts: dict[str, Any] = {"check": finding.name, "found": finding.found, "mend": finding.mend}
            (log.error if self._refuses(finding) else log.warning)("start-up check", where=finding.where, **facts)
