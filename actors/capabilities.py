"""What the servers can do beyond the oldest that is supported: asked of every node, and never assumed."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
from attrs import define, frozen

from ..runtime.redis import RedisCluster
from ..runtime.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ..runtime.redis import AnyRedis

__all__ = ["Ability", "Capabilities", "NodeVersion", "abilities_of", "ask_versions", "version_of"]

log = get_logger(__name__)

_IDMP_SINCE: Final = (8, 6)
"""XADD … IDMP came with Redis 8.6; Valkey has none."""


@frozen
class NodeVersion:
    """What one node says of itself.

    Attributes:
        address: the node.
        server: ``redis`` or ``valkey``.
        version: of it, as numbers; of Valkey its own, not that of the Redis that it is compatible with.
    """

    address: str
    server: str
    version: tuple[int, ...]

    @property
    def text(self) -> str:
        """For people: ``valkey 9.0.1``."""
        return f"{self.server} {'.'.join(map(str, self.version))}"


@frozen
class Ability:
    """One accelerator.

    Attributes:
        name: ``idmp``.
        there: whether every master has it.
        what: what it is used for.
        why_not: which node lacks it; empty if it is there.
    """

    name: str
    there: bool
    what: str
    why_not: str = ""


def version_of(address: str, info: Mapping[str, Any]) -> NodeVersion:
    """What INFO's section ``server`` says; unknown text becomes version 0."""
    valkey = info.get("valkey_version")
    text = str(valkey or info.get("redis_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    return NodeVersion(address, "valkey" if valkey else str(info.get("server_name") or "redis"), numbers or (0,))


async def ask_versions(client: AnyRedis) -> list[NodeVersion]:
    """Ask every master.

    Raises:
        redis.exceptions.RedisError: one does not answer, or may not (INFO needs a right).
    """
    if not isinstance(client, RedisCluster):
        return [version_of(client.options.address, await client.info("server"))]
    return [version_of(str(address), await client.node(*address).info("server")) for address in await client.masters()]


def abilities_of(nodes: list[NodeVersion]) -> list[Ability]:
    """The accelerators that we know of, and whether all of `nodes` have them."""
    lacking = [node for node in nodes if node.server != "redis" or node.version < _IDMP_SINCE]
    why = "no node was asked" if not nodes else ", ".join(f"{node.address}: {node.text}" for node in lacking)
    what = "an event whose XADD was sent twice is once in the stream"
    return [Ability("idmp", not why, what, why and f"needs Redis 8.6 on every master; {why}")]


@define(eq=False)
class Capabilities:
    """What all masters can do, as it was last seen.

    Args:
        client: the link, asked for at each use.

    Attributes:
        idmp: whether XADD takes IDMP.
        nodes: who was asked.
    """

    client: Callable[[], AnyRedis]
    idmp: bool = False
    nodes: tuple[NodeVersion, ...] = ()
    _seen: object = None

    async def look(self) -> None:
        """Ask again where the link, or the topology, is another than last time. Raises nothing for Redis.

        What cannot be asked is not there: the older way always works.
        """
        client = self.client()
        seen: object = (id(client), client.topology) if isinstance(client, RedisCluster) else id(client)
        if self._seen == seen:
            return
        self.forget()
        try:
            self.nodes = tuple(await ask_versions(client))
        except redis.exceptions.RedisError as error:
            log.debug("the servers' versions are not known", error=str(error))
            return
        self.idmp = all(ability.there for ability in abilities_of(list(self.nodes)) if ability.name == "idmp")
        self._seen = seen

    def forget(self) -> None:
        """Assume nothing: servers were replaced, or refused what we took for granted."""
        self.idmp, self.nodes, self._seen = False, (), None
