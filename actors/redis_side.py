"""The Redis side of a deployment: its link, the watch over its gates, its checks, and what its errors mean."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from copy import copy
from datetime import datetime
from typing import TYPE_CHECKING, Final

import trio

from ..runtime.redis import (
    AnyRedis,
    ClusterOptions,
    Kind,
    RedisCluster,
    RedisOptions,
    RedisUnavailable,
    classify,
    open_client,
)
from ..runtime.redis.replies import reply_text
from ..runtime.telemetry import get_logger
from .checking import Checks
from .cluster_probe import ClusterProbe, probe_of
from .health_monitor import Watch
from .ownership import Ownership
from .probes import Unhealthy

if TYPE_CHECKING:
    from ..runtime.supervision import Child, Gates
    from .backends import Backends
    from .settings import ActorSettings
    from .system import System

__all__ = ["RedisSide"]

log = get_logger(__name__)

REST_AT_MOST: Final = 1.0
"""Seconds between two probes of a Redis that may come back on another node: a failover takes one or two, and nobody
tells us of its end."""

PATIENCE: Final = 1.0
"""Seconds for which a listener makes a connection to a cluster again before it calls that trouble."""


class RedisSide:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        backends: what the deployment stands on.
        gates: the deployment's.
        chance: of all jitter.
        wall: where dates come from.

    Attributes:
        checks: the start-up checks, and what they found.
        cluster: looks at the nodes; None where there is no cluster.
        watch: over the gate ``redis``.
    """

    def __init__(
        self,
        system: System,
        settings: ActorSettings,
        backends: Backends,
        gates: Gates,
        *,
        chance: random.Random,
        wall: Callable[[], datetime],
    ) -> None:
        self._backends, self._gates, self._random = backends, gates, chance
        self._client: AnyRedis | None = None
        self._misdeclared = ""
        options, health = backends.redis_options, settings.health
        probe = probe_of(
            options,
            tuple(key for stream in system.streams.values() for key in stream.keys),
            connect=backends.redis_connect,
            memory=gates["redis-memory"],
            within=health.timeout,
            rng=copy(chance),  # of its own: how often it probes changes nothing for the others
        )
        self.cluster: ClusterProbe | None = None
        if isinstance(probe, ClusterProbe):
            self.cluster = probe
            probe.on_change = _tell_nodes
        self.checks = Checks(system, probe, gates["redis"], allow=settings.checks.allow, wall=wall)
        rest = REST_AT_MOST if self.may_move else None
        self.watch = Watch(gates["redis"], self._probe, health, options.address, rest_at_most=rest)

    # The link -------------------------------------------------------------------------------------------------------

    def client(self) -> AnyRedis:
        """The link; see `Deployment.client`."""
        if self._client is None:
            raise RuntimeError("the link to Redis is not up; the actor links/redis holds it")
        return self._client

    @property
    def address(self) -> str:
        """Of Redis, for people; without secrets."""
        return self._backends.redis_options.address

    def ownership(self) -> Ownership | None:
        """Who is asked on a cluster whether an acknowledgement counts; None where there is none."""
        return None if self.cluster is None else Ownership(self._cluster_client)

    def _cluster_client(self) -> RedisCluster:
        client = self.client()
        assert isinstance(client, RedisCluster)  # noqa: S101 - asked only where the options are a cluster's
        return client

    async def hold(self, child: Child) -> None:
        """The body of the child that holds the link."""
        options, connect = self._backends.redis_options, self._backends.redis_connect
        async with open_client(options, on_trouble=self.link_trouble, connect=connect, rng=self._random) as client:
            self._client = client
            child.note(options.address)
            child.started()
            try:
                await trio.sleep_forever()
            finally:
                self._client = None

    def subscribers(self) -> AbstractAsyncContextManager[AnyRedis]:
        """A client of their own for those who subscribe: that one of their connections ends proves nothing.

        A server cuts whoever is too slow for what is published. So it is only a doubt, and the probe decides.
        """
        options, connect = self._backends.redis_options, self._backends.redis_connect
        return open_client(options, on_trouble=lambda _: self.watch.doubt(), connect=connect, rng=self._random)

    @property
    def may_move(self) -> bool:
        """Whether another node may become what the present master is."""
        return not isinstance(self._backends.redis_options, RedisOptions)

    @property
    def silence(self) -> float:
        """Seconds for which the server of a subscription may be gone before anybody notices, at the most."""
        options = self._backends.redis_options
        return 2 * (options if isinstance(options, RedisOptions) else options.node).response_timeout

    @property
    def patience(self) -> float:
        """Seconds for which a reader's connection that breaks is no trouble yet: another node may be taking over."""
        return PATIENCE if self.cluster else 0.0

    def read_within(self, block: float) -> float:
        """Seconds within which a blocking read has an end, whatever happens, unless a long reply is on its way."""
        options = self._backends.redis_options
        server = options if isinstance(options, RedisOptions) else options.node
        limit = block + server.block_margin
        if isinstance(options, ClusterOptions):
            # When its slot moves it is made again on another node, with its whole BLOCK, which may be there or not.
            limit += block + options.retry_for + server.connect_timeout
        return limit

    # What shuts its gate --------------------------------------------------------------------------------------------

    def misdeclared(self, mend: str) -> None:
        """Hold what needs Redis, for a stream is declared otherwise than it was made; ``""``: no longer."""
        before, self._misdeclared = self._misdeclared, mend
        if mend and mend != before:
            log.error("a stream is declared otherwise than it was made", mend=mend)
            self.watch.trouble(Unhealthy(mend))

    async def _probe(self) -> None:
        if self._misdeclared:
            raise Unhealthy(self._misdeclared)
        await self.checks()

    def link_trouble(self, error: Exception) -> None:
        """What the link itself says, before any caller has an error.

        In a cluster a connection that breaks proves nothing: a master that hands over closes some. That it cannot be
        made again, or that a node is silent, does.
        """
        probe = self.cluster
        if probe is not None and (_has_broken(error) or not probe.concerns(error)):
            self.watch.doubt()
        else:
            self.trouble(error)

    def trouble(self, error: Exception) -> None:
        """Shut the gate for what an error of Redis says about Redis; never for what it says about a command."""
        row = classify(error)
        if row.shuts_gate or row.kind in _OF_THE_SERVER:
            self.watch.trouble(error)
        elif row.kind is Kind.DEGRADE:
            self._gates["redis-memory"].shut(reply_text(error))

    def reader_trouble(self, error: Exception) -> None:
        """The same for a listener: a full Redis lets it read, but not make a group, and without one it must wait."""
        if classify(error).kind is Kind.DEGRADE:
            self.watch.trouble(error)
        else:
            self.trouble(error)


_OF_THE_SERVER = (Kind.WAIT, Kind.REROUTE, Kind.REDIRECT, Kind.CONFIG)
"""Kinds of replies that no other command would fare better with; on the one server that there is."""


def _tell_nodes(gone: list[str], back: list[str]) -> None:
    if gone:
        log.warning("nodes of the cluster have failed; our streams work without them", nodes=gone)
    if back:
        log.info("nodes of the cluster are no longer called failed", nodes=back)


def _has_broken(error: Exception) -> bool:
    """Whether it tells of a connection that was there, and is no more."""
    ends = (EOFError, trio.BrokenResourceError, trio.ClosedResourceError, ConnectionResetError, BrokenPipeError)
    return isinstance(error, RedisUnavailable) and isinstance(error.__cause__, ends)
