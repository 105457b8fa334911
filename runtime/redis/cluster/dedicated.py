"""`ClusterConnection`: a connection of one's own that follows the owner of a slot."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import redis.exceptions
import trio

from ..commands import Commands
from ..errors import CommandRefused, NotSent, RedisClosed
from ..routing import block_of, check_dedicated, command_name
from .keys import common_slot, full_name, keys_of
from .nodes import Node, NodeConnection, Nodes
from .router import Router
from .steps import Nature

__all__ = ["ClusterConnection", "attempt_on", "is_key_there"]


class ClusterConnection(Commands):
    """One connection to the owner of a slot, one command at a time. Made by `RedisCluster.dedicated()`.

    Before each command, and whenever the node says that it is the wrong one, the connection goes over to the slot's
    present owner. A blocked read that is thrown out because its slot or its master moved is made again there, with its
    whole BLOCK; that its key is gone is reported only if the present owner does not have it. (An XREAD from ``$``
    begins there behind what was added in between: give it the last id.) Deadlines and cancellation are those of
    `DedicatedRedis`; attempts are made for `ClusterOptions.retry_for` seconds, beyond a BLOCK.

    Args:
        router: finds the owner.
        nodes: makes connections.
        slot: the slot to follow; None: that of each command's keys.
        find_keys: the keys of a command that the table does not know.
    """

    def __init__(
        self, router: Router, nodes: Nodes, slot: int | None, find_keys: Callable[..., Awaitable[Any]]
    ) -> None:
        super().__init__(router.options.node)
        self._router = router
        self._nodes = nodes
        self._slot = slot
        self._find_keys = find_keys
        self._node: Node | None = None
        self._connection: NodeConnection | None = None
        self._busy = False
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether there is a connection (it may have gone stale since the last command)."""
        return self._connection is not None and self._connection.connected

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Run one command; what every command method ends in.

        Raises what `DedicatedRedis.execute_command` raises, and CommandRefused for keys of another slot.
        """
        name = command_name(args)
        same_connection = check_dedicated(name, args)
        block = block_of(name, args)
        slot = await self._slot_of(name, args)
        if self._busy:
            raise trio.BusyResourceError("a dedicated Redis connection runs one command at a time")
        self._busy = True
        try:
            if same_connection:
                return await self._confirm(args, options)
            return await self._follow(name, args, options, slot, block)
        finally:
            self._busy = False

    async def aclose(self) -> None:
        """Close at once and for good; a command under way in another task gets OutcomeUnknown."""
        self._closed = True
        await self._leave()

    async def leave_if_idle(self) -> None:
        """Close a connection that nobody uses to a node that is not in service any more."""
        if not self._busy and self._node is not None and self._node.left:
            await self._leave()

    async def _slot_of(self, name: str, args: tuple[Any, ...]) -> int | None:
        full = full_name(name, args)
        keys = keys_of(full, args)
        if keys is None:
            keys = await self._find_keys(full, args)
        if not keys:
            return self._slot
        slot = common_slot(full, keys)
        if self._slot is not None and slot != self._slot:
            raise CommandRefused(
                f"{full} with a key of slot {slot} on a connection that follows slot {self._slot}: "
                "open another one with cluster.dedicated(key=...), or use the client itself"
            )
        return slot

    async def _follow(
        self, name: str, args: tuple[Any, ...], options: dict[str, Any], slot: int | None, block: float | None
    ) -> Any:
        router = self._router

        async def attempt(node: Node, asking: bool) -> Any:
            node.keyed = node.keyed or slot is not None
            return await attempt_on(await self._go_to(node), asking, args, options)

        reply = await router.run(
            Nature.of(slot, full_name(name, args), args),
            attempt,
            until=trio.current_time() + router.options.retry_for + (block or 0),
            survives=None if block is None else is_key_there(router, name, args),
        )
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def _confirm(self, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """WAIT: about the writes of this very connection, wherever the slot is by now."""
        if self._connection is None:
            raise NotSent(self._router.options.address, "there is no connection whose writes could be confirmed")
        return await self._connection.execute_command(*args, **options)

    async def _go_to(self, node: Node) -> NodeConnection:
        if self._connection is None or self._node is not node:
            await self._leave()
            if self._closed:  # perhaps in the meantime
                await trio.lowlevel.checkpoint()
                raise RedisClosed(node.options.address, "the client is closed")
            self._node, self._connection = node, self._nodes.new_connection(node)
        return self._connection

    async def _leave(self) -> None:
        self._node, connection, self._connection = None, self._connection, None
        if connection is not None:
            await connection.aclose()


async def attempt_on(connection: NodeConnection, asking: bool, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """One try on a connection of one's own. Error replies are returned; raises RedisUnavailable."""
    try:
        if asking:
            return await connection.execute_asking(*args, **options)
        return await connection.execute_command(*args, **options)
    except redis.exceptions.ResponseError as reply:
        return reply


def is_key_there(router: Router, name: str, args: tuple[Any, ...]) -> Callable[[], Awaitable[bool]]:
    """Asks the present owner whether a blocked read's keys are all there. Raises what keeps it from being known."""

    async def ask() -> bool:
        keys = keys_of(name, args) or ()
        if not keys:
            return False
        await router.discovery.refresh()
        reply = await router.call(Nature.of(common_slot(name, keys), "EXISTS"), ("EXISTS", *keys))
        if isinstance(reply, Exception):
            raise reply
        return bool(reply == len(keys))

    return ask
