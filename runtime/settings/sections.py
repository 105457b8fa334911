"""The settings of this floor: the links to the servers, the log, and the start.

Higher floors have sections of their own, and the class that holds them all. Durations are seconds, as numbers: what
every clock here counts in, and what needs no syntax of its own.
"""

from __future__ import annotations

from typing import Literal

from attrs import field, frozen

from ..masking import mask_url
from .validators import above_zero, at_least, url_of, zero_or_more

__all__ = ["LogSettings", "PostgresSettings", "RedisSettings", "StartSettings"]


def _shown(url: str | None) -> str:
    """How a URL is shown in a repr: never with its password."""
    return "None" if url is None else repr(mask_url(url))


_REDIS_SCHEMES = ("redis", "rediss", "redis+cluster", "rediss+cluster", "redis+sentinel", "rediss+sentinel", "unix")


@frozen(kw_only=True)
class RedisSettings:
    """The link to Redis or Valkey.

    Attributes:
        url: one server: `redis://`, `rediss://` (TLS) or `unix://`; a cluster, by some of its nodes:
            `redis+cluster://host:port,host:port` (TLS: `rediss+cluster://`); a master that Sentinels know:
            `redis+sentinel://host:port,host:port/SERVICE` (TLS: `rediss+sentinel://`); not set: an embedded Valkey is
            started.
        connect_timeout: seconds for a connection to be made, TLS and log-in included.
        response_timeout: seconds without a reply, after which a connection is given up as dead.
        stall_after: seconds without a reply, after which the server counts as away and the `redis` gate shuts, while
            the connection still waits; below 1, so that a frozen server is noticed within a second, and below a
            cluster's node timeout, so that nothing is believed of a master that another has replaced meanwhile.
    """

    url: str | None = field(default=None, repr=_shown, validator=url_of(*_REDIS_SCHEMES))
    connect_timeout: float = field(default=5.0, validator=above_zero)
    response_timeout: float = field(default=5.0, validator=above_zero)
    stall_after: float = field(default=0.75, validator=above_zero)


@frozen(kw_only=True)
class PostgresSettings:
    """The link to PostgreSQL.

    Attributes:
        url: `postgresql://user@host/database`; not set: an embedded PostgreSQL is started.
        pool_size: how many connections are open at most; not set: 10, or, where the groups and queues of the system
            have more workers than leave some over, six more than they are, up to 50.
        connect_timeout: seconds for a connection to be made, TLS and log-in included.
    """

    url: str | None = field(default=None, repr=_shown, validator=url_of("postgresql", "postgres"))
    pool_size: int | None = field(default=None, validator=at_least(1))
    connect_timeout: float = field(default=5.0, validator=above_zero)


@frozen(kw_only=True)
class LogSettings:
    """The log.

    Attributes:
        level: the least level that is written.
        format: `console` is for people, `json` one JSON object a line; `auto` takes `console` on a terminal, otherwise
            `json`.
    """

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


@frozen(kw_only=True)
class StartSettings:
    """The start of `penstock run`.

    Attributes:
        wait_for_servers: seconds that it waits for servers of your own (`redis.url`, `postgres.url`) before it ends
            with exit code 2; once it is up, it outlives every outage.
    """

    wait_for_servers: float = field(default=3.0, validator=zero_or_more)
