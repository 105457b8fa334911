"""URLs of every kind of Redis, and the client that goes with each."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final, overload

from .client import Redis
from .cluster import ClusterOptions, RedisCluster
from .errors import InvalidRedisUrl
from .link import OnTrouble
from .options import RedisOptions
from .sentinel import SentinelOptions, open_master

__all__ = ["AnyRedis", "open_client", "read_url"]

AnyRedis = Redis | RedisCluster
"""What `open_client` gives: both have every command of redis-py's, `pipeline`, `dedicated` and `register_script`."""


def read_url(url: str, **overrides: Any) -> RedisOptions | ClusterOptions | SentinelOptions:
    """The options that a URL asks for; `overrides` are fields of them, or of the `RedisOptions` of their nodes.

    | URL | options |
    |---|---|
    | `redis://`, `rediss://`, `unix://` | `RedisOptions`: one server |
    | `redis+cluster://`, `rediss+cluster://` | `ClusterOptions`: a Redis Cluster |
    | `redis+sentinel://`, `rediss+sentinel://` | `SentinelOptions`: the master of a service, as sentinels name it |

    Raises InvalidRedisUrl, which names the part at fault and shows no secret.
    """
    kind = _KINDS.get(url.partition("://")[0].lower())
    if kind is None:
        raise InvalidRedisUrl(f"Redis URL: it must begin with one of {', '.join(f'{name}://' for name in _KINDS)}")
    return kind.from_url(url, **overrides)


_KINDS: Final[dict[str, type[RedisOptions] | type[ClusterOptions] | type[SentinelOptions]]] = {
    "redis": RedisOptions,
    "rediss": RedisOptions,
    "unix": RedisOptions,
    "redis+cluster": ClusterOptions,
    "rediss+cluster": ClusterOptions,
    "redis+sentinel": SentinelOptions,
    "rediss+sentinel": SentinelOptions,
}


@overload
def open_client(
    options: ClusterOptions,
    *,
    on_trouble: OnTrouble | None = None,
    connect: Callable[..., Any] | None = None,
    rng: random.Random | None = None,
) -> RedisCluster: ...


@overload
def open_client(
    options: RedisOptions | SentinelOptions,
    *,
    on_trouble: OnTrouble | None = None,
    connect: Callable[..., Any] | None = None,
    rng: random.Random | None = None,
) -> Redis: ...


@overload
def open_client(
    options: RedisOptions | ClusterOptions | SentinelOptions,
    *,
    on_trouble: OnTrouble | None = None,
    connect: Callable[..., Any] | None = None,
    rng: random.Random | None = None,
) -> Redis | RedisCluster: ...


def open_client(
    options: RedisOptions | ClusterOptions | SentinelOptions,
    *,
    on_trouble: OnTrouble | None = None,
    connect: Callable[..., Any] | None = None,
    rng: random.Random | None = None,
) -> Redis | RedisCluster:
    """The client for these options, to be entered: `async with open_client(read_url(url)) as redis:`.

    `on_trouble` and `rng` are those of `Redis`. `connect` opens the byte streams (tests, tunnels): without arguments
    for one server, with host and port for a cluster and for sentinels. Does not block and does not connect.

    Raises OSError or ssl.SSLError when a TLS file of the options cannot be read.
    """
    if isinstance(options, ClusterOptions):
        return RedisCluster(options, on_trouble=on_trouble, connect=connect, rng=rng)
    if isinstance(options, SentinelOptions):
        return open_master(options, on_trouble=on_trouble, connect=connect, rng=rng)
    return Redis(options, on_trouble=on_trouble, connect=connect, rng=rng)
