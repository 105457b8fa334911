"""`ClusterNode`: one node of a cluster, asked by name."""

from __future__ import annotations

from typing import Any

import trio

from .. import _compat
from ..commands import Commands, shape
from ..errors import CommandRefused, RedisClosed
from ..options import RedisOptions
from ..pipeline import Pipeline
from ..routing import block_of, check_shared, command_name
from .router import Router
from .topology import Address

__all__ = ["ClusterNode"]


class ClusterNode(Commands):
    """redis-py's commands on one node of a cluster. Made by `RedisCluster.node()`.

    Each command is sent once, over the connection that the client has with the node; redirections are errors.

    Attributes:
        address: of the node.
    """

    def __init__(self, options: RedisOptions, router: Router, address: Address) -> None:
        super().__init__(options)
        self._router = router
        self.address = address

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; what every command method ends in. Raises what `Redis.execute_command` raises."""
        name = command_name(args)
        check_shared(name, args)
        if block_of(name, args) is not None:
            raise CommandRefused(f"{name} blocks: call it on the client, or inside `async with cluster.dedicated()`")
        raw = frozenset({0} if _compat.NEVER_DECODE in options else ())
        reply = await self._call(_compat.pack_command(args), 1, raw)
        return shape(name, reply, options, self.options.protocol)

    def pipeline(self, transaction: bool = True) -> Pipeline:
        """Many commands for this node in one burst."""
        return Pipeline(self.options, self._burst, transaction=transaction)

    async def _burst(self, payload: bytes, count: int, raw: frozenset[int]) -> list[Any]:
        replies = await self._call(payload, count, raw)
        return replies if count > 1 else [replies]

    async def _call(self, payload: bytes, count: int, raw: frozenset[int]) -> Any:
        try:
            node = self._router.node(self.address)
        except RedisClosed:
            await trio.lowlevel.checkpoint()  # whoever tries again on NotSent must stay cancellable
            raise
        return await node.call(payload, count, raw)
