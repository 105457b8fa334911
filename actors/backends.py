"""What a deployment stands on: the servers, the links to them, and the store behind them.

`Backends.of` makes the real ones from the settings; a test makes them of `InProcessRedis` and `MemoryStore`, and the
deployment on top is the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from attrs import define, evolve, field

from ..runtime.embedded import EmbeddedPostgres, EmbeddedValkey
from ..runtime.postgres import Pool, PostgresOptions, migrate
from ..runtime.redis import ClusterOptions, RedisOptions, SentinelOptions, read_url
from ..runtime.telemetry import get_logger
from .probes import PostgresProbe
from .store import ABANDON_MARGIN, PostgresStore, Store

if TYPE_CHECKING:
    import trio

    from ..runtime.embedded import DataDirectory
    from ..runtime.supervision import ChildSpec
    from .settings import ActorSettings
    from .system import System

__all__ = ["Backends", "RedisPlace", "postgres_options", "redis_options"]

RedisPlace = RedisOptions | ClusterOptions | SentinelOptions
"""Where Redis is: one server, a cluster, or a master that Sentinels know."""

HEALED_WITHIN: Final = 1.0
"""Seconds within which the link to a cluster has to get over what is no outage: slots that move, masters that change
places. Longer than a planned failover takes, and short, for whoever publishes waits meanwhile."""

CONNECTIONS: Final = 10
"""Connections of the pool, where they are enough."""

SPARE: Final = 6
"""Connections beside those of the workers: for the relay, leases, routes and all else that must not wait for them."""

MOST: Final = 50
"""Connections that a pool takes without being told: a server has 100 in all, unless it is set up otherwise."""

NOTES: Final = 2
"""Connections for the notes of `Context.once`, beside the pool's: single statements, so that few serve many."""

log = get_logger(__name__)


def _ignore(*_: object) -> None:
    """Nobody listens yet."""


async def _nothing_to_migrate(directory: Traversable | Path, prefix: str) -> list[str]:
    return []


@define(eq=False, kw_only=True)
class Backends:
    """See the module.

    Attributes:
        redis_options: where Redis is.
        redis_connect: opens the byte stream to it instead of the options (for a cluster, to a host and a port); None
            for the real one.
        store: where effects are committed.
        probe_postgres: raises `Unhealthy` unless the database takes writes.
        migrate: applies what is new of a directory of migrations, and keeps the account in tables of that prefix;
            returns what it applied.
        pool: the connections to PostgreSQL; None in memory.
        notes: a few more, for what handlers note while they hold one of `pool`; None where there are none.
        postgres_address: how the database is shown, without secrets.
        servers: embedded servers, as children.
        on_postgres_trouble: told when the database went away; a `Deployment` listens.
        on_postgres_slow: told when a statement waits suspiciously long; a `Deployment` listens.
    """

    redis_options: RedisPlace
    redis_connect: Callable[..., Awaitable[trio.abc.Stream]] | None = None
    store: Store
    probe_postgres: Callable[[], Awaitable[None]]
    migrate: Callable[[Traversable | Path, str], Awaitable[list[str]]] = _nothing_to_migrate
    pool: Pool | None = None
    notes: Pool | None = None
    postgres_address: str = "memory"
    servers: tuple[ChildSpec, ...] = ()
    on_postgres_trouble: Callable[[Exception], None] = field(default=_ignore)
    on_postgres_slow: Callable[[float], None] = field(default=_ignore)

    @classmethod
    def of(cls, settings: ActorSettings, directory: DataDirectory, system: System | None = None) -> Self:
        """The real ones: the user's own servers where a URL is set, embedded ones in `directory` where not.

        Touches no server. For `system` there are as many connections as its workers need, unless the settings say how
        many.

        Raises:
            ServerNotInstalled: an embedded server is wanted, and the extra ``embedded`` is not installed.
            ValueError: a URL cannot be used; the text names the part at fault.
        """
        servers: list[ChildSpec] = []
        redis_url, postgres_url = settings.redis.url, settings.postgres.url
        if redis_url is None:
            valkey = EmbeddedValkey(directory, log=lambda line: log.debug("redis-server says", line=line))
            servers.append(valkey.spec())
            redis_url = valkey.url
        if postgres_url is None:
            postgres = EmbeddedPostgres(directory, log=lambda line: log.debug("postgres-server says", line=line))
            servers.append(postgres.spec())
            postgres_url = postgres.url
        options = postgres_options(settings, postgres_url, _workers(system))
        pool, notes = (
            Pool(
                each,
                on_trouble=lambda error: made.on_postgres_trouble(error),
                on_slow=lambda seconds: made.on_postgres_slow(seconds),
                # Only a doubt, and so early: whether a server is frozen, the health monitor's probe decides.
                slow_after=0.3,
            )
            for each in (options, evolve(options, min_size=0, max_size=NOTES))
        )
        abandon_after = settings.delivery.handler_timeout + ABANDON_MARGIN
        made = cls(
            redis_options=redis_options(settings, redis_url),
            store=PostgresStore(pool, abandon_after=abandon_after, notes=notes),
            probe_postgres=PostgresProbe(options),
            migrate=lambda where, prefix: migrate(options, where, table_prefix=prefix),
            pool=pool,
            notes=notes,
            postgres_address=options.address,
            servers=tuple(servers),
        )
        return made


def redis_options(settings: ActorSettings, url: str) -> RedisPlace:
    """The options of the link to the Redis server or cluster at `url`.

    Raises:
        ValueError: the URL cannot be used; the text names the part at fault.
    """
    options = read_url(
        url,
        connect_timeout=settings.redis.connect_timeout,
        response_timeout=settings.redis.response_timeout,
        stall_after=settings.redis.stall_after,
        client_name="penstock",
        retry_for=0.0,  # the actors have gates and mailboxes of their own: they are told at once
    )
    return evolve(options, retry_for=HEALED_WITHIN) if isinstance(options, ClusterOptions) else options


def postgres_options(settings: ActorSettings, url: str, workers: int = 0) -> PostgresOptions:
    """The options of the link to the PostgreSQL server at `url`, whose pool so many workers share."""
    size = settings.postgres.pool_size
    if size is None:
        size = min(max(CONNECTIONS, workers + SPARE), MOST)
    return PostgresOptions.from_url(url, connect_timeout=settings.postgres.connect_timeout, max_size=size)


def _workers(system: System | None) -> int:
    """How many handlers may hold a connection at a time, also while they wait for something else."""
    if system is None:
        return 0
    groups = [group for stream in system.streams.values() for group in stream.read_here]
    return sum(group.workers for group in groups) + sum(queue.workers for queue in system.queues.values())
