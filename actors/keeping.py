"""What decides whether a Redis server keeps what it has acknowledged: its eviction policy and its append-only file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from ..runtime.redis import Redis

__all__ = ["Keeping", "keeping_of"]


@frozen(kw_only=True)
class Keeping:
    """How a server keeps its data.

    Attributes:
        version: of the server.
        policy: its ``maxmemory-policy``.
        limited: whether it has a ``maxmemory`` at all.
        appendonly: whether it writes each command to disk.
    """

    version: str
    policy: str
    limited: bool
    appendonly: bool

    @property
    def told(self) -> str:
        """In a few words."""
        return f"{self.version}, {self.policy}, append-only file {'on' if self.appendonly else 'off'}"

    @property
    def advice(self) -> str:
        """What somebody should change; empty if it is well."""
        found = []
        if self.policy != "noeviction":
            found.append("set maxmemory-policy noeviction: a full server would throw away whole streams")
        if not self.appendonly:
            found.append("set appendonly yes: a crash would take what came after the last snapshot")
        return "; ".join(found)


async def keeping_of(server: Redis) -> Keeping:
    """What the server says of it in INFO, which every kind of server answers (CONFIG is often forbidden).

    Raises:
        redis.exceptions.RedisError: as the link or the server says.
    """
    info: Mapping[str, Any] = await server.info()
    name, version = ("Valkey", "valkey_version") if "valkey_version" in info else ("Redis", "redis_version")
    return Keeping(
        version=f"{name} {info.get(version, 'of unknown version')}",
        policy=str(info.get("maxmemory_policy", "noeviction")),
        limited=bool(int(info.get("maxmemory", 0))),
        appendonly=bool(int(info.get("aof_enabled", 0))),
    )
