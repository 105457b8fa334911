"""`Node`: the shared connection to one node of the cluster; `Nodes`: those that there are."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from typing import Any, Final

import trio
from attrs import define, evolve, field

from .. import _compat
from ..backoff import Backoff
from ..dedicated import DedicatedRedis
from ..errors import NotSent, RedisClosed
from ..link import Link
from ..mux import Mux
from ..options import RedisOptions
from ..wire import Connect, Wire, connector, open_wire
from .options import ClusterOptions
from .topology import Address

__all__ = ["ASKING", "MAX_SPARE", "Node", "NodeConnect", "NodeConnection", "Nodes", "with_tls_context"]

NodeConnect = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens the byte stream to a node: the seam for tests and tunnels."""

ASKING: Final = _compat.pack_command(("ASKING",))
MAX_SPARE: Final = 4
"""Idle connections for blocking commands that are kept for each node."""
KEPT_FOR: Final = 5.0
"""Seconds for which a node outside of the topology is kept after its last use (the target of ASK has no slot yet)."""
_BACKOFF_CAP: Final = 0.5
"""Seconds: shorter than a single server's, for the slot may be on another node by then."""


class NodeConnection(DedicatedRedis):
    """A connection of one's own to one node, for blocking commands."""

    async def execute_asking(self, *args: Any, **options: Any) -> Any:
        """Run one command with ASKING before it; otherwise as `execute_command`."""
        await self.burst(ASKING, 1, follow=False)
        # Nobody else uses the connection: the next command on it is ours. Should it break in between, the command goes
        # without ASKING over a new one, and is answered with MOVED.
        return await self.execute_command(*args, **options)


@define(eq=False)
class Node:
    """One node and the connections to it.

    Attributes:
        address: where it is.
        options: for it.
        connect: opens a stream to it.
        link: the shared connection.
        spare: idle connections for blocking commands.
        keyed: whether a command went there because of its key.
        calls: commands under way on the shared connection.
        used_at: `trio.current_time()` of the last command that is not for one of its slots.
        stalled_at: `trio.current_time()` of its last silence.
        left: whether it was taken out of service: no new commands.
    """

    address: Address
    options: RedisOptions
    connect: Connect
    link: Link
    spare: list[NodeConnection] = field(factory=list)
    keyed: bool = False
    calls: int = 0
    used_at: float = float("-inf")
    stalled_at: float = float("-inf")
    left: bool = False
    _waiting: set[trio.CancelScope] = field(factory=set, init=False)

    async def call(self, payload: bytes, count: int, raw: frozenset[int]) -> Any:
        """Send over the shared connection; see `Mux.call`. Raises NotSent, OutcomeUnknown."""
        self.calls += 1
        try:
            mux = self.link.mux or await self._open()
            return await mux.call(payload, count, raw)
        finally:
            self.calls -= 1
            if self.left and not self.calls:
                self.link.close()

    def leave(self, *, at_once: bool) -> None:
        """Take it out of service; its connection is closed when its calls are answered, or at once.

        Those who wait for a connection get NotSent: they can go elsewhere now.
        """
        self.left = True
        for scope in self._waiting:
            scope.cancel()
        if at_once or not self.calls:
            self.link.close()

    async def _open(self) -> Mux:
        with trio.CancelScope() as scope:
            self._waiting.add(scope)
            try:
                return await self.link.open()
            finally:
                self._waiting.discard(scope)
        raise NotSent(self.options.address, "not sent: the node is not in service any more")


class Nodes:
    """The nodes that are in use, by address.

    Args:
        options: of the cluster.
        connect: opens streams instead of the options.
        on_trouble: told of trouble with a node, in the scheduler tick.
        rng: source of jitter.
        nursery: the tasks of all connections run there.

    Attributes:
        closed: whether `close` was called.
        sent_before: commands sent to nodes that have left.
        reconnects_before: connections made to them after the first one of each.

    Raises OSError or ssl.SSLError when a TLS file of the options cannot be read.
    """

    def __init__(
        self,
        options: ClusterOptions,
        connect: NodeConnect | None,
        on_trouble: Callable[[Node, Exception], None],
        rng: random.Random,
        nursery: trio.Nursery,
    ) -> None:
        self._options = options
        self._connect = connect
        self._on_trouble = on_trouble
        self._rng = rng
        self._nursery = nursery
        self._nodes: dict[Address, Node] = {}
        self.closed = False
        self.sent_before = 0
        self.reconnects_before = 0

    def __getitem__(self, address: Address) -> Node:
        """The node, made when it is new. Raises RedisClosed after `close`."""
        node = self._nodes.get(address)
        if node is None:
            if self.closed:
                raise RedisClosed(self._options.address, "the client is closed")
            node = self._nodes[address] = self._make(address)
        return node

    def __iter__(self) -> Iterator[Node]:
        return iter(list(self._nodes.values()))

    async def open_wire(self, address: Address) -> Wire:
        """A fresh connection to a node. Raises RedisUnavailable."""
        options = self._options.for_node(address)
        return await open_wire(options, self.connect_to(address))

    def connect_to(self, address: Address) -> Connect:
        """The function that opens a stream to a node."""
        if self._connect is not None:
            return partial(self._connect, *address)
        return connector(self._options.for_node(address))

    def retain(self, masters: Iterable[Address]) -> None:
        """Take all other nodes out of service, but those that were used lately by name or by ASK.

        Calls under way on a silent node fail at once, so that they can go to its successor; others are answered.
        """
        kept, now = set(masters), trio.current_time()
        for address, node in list(self._nodes.items()):
            if address not in kept and now - node.used_at > KEPT_FOR:
                del self._nodes[address]
                self._release(node, at_once=now - node.stalled_at <= self._options.response_timeout)

    def close(self) -> list[NodeConnection]:
        """Fail what is under way on the shared connections; returns the idle ones, for the caller to close."""
        self.closed = True
        spares = []
        while self._nodes:
            _, node = self._nodes.popitem()
            self._retire(node, at_once=True)
            spares += node.spare
            node.spare = []
        return spares

    def new_connection(self, node: Node) -> NodeConnection:
        """A connection of one's own to a node; connects with its first command."""
        return NodeConnection(node.options, node.connect, partial(self._on_trouble, node), self._backoff())

    def _make(self, address: Address) -> Node:
        options, connect = self._options.for_node(address), self.connect_to(address)

        def tell(error: Exception) -> None:
            self._on_trouble(node, error)

        node = Node(address, options, connect, Link(options, connect, tell, self._backoff(), self._nursery))
        return node

    def _retire(self, node: Node, *, at_once: bool) -> None:
        node.leave(at_once=at_once)
        self.sent_before += node.link.sent
        self.reconnects_before += max(0, node.link.connections - 1)

    def _release(self, node: Node, *, at_once: bool) -> None:
        self._retire(node, at_once=at_once)
        spares, node.spare = node.spare, []
        for connection in spares:
            self._nursery.start_soon(connection.aclose)

    def _backoff(self) -> Backoff:
        return Backoff(random=self._rng.random, cap=_BACKOFF_CAP)


def with_tls_context(options: ClusterOptions) -> ClusterOptions:
    """The same options with the TLS files read, once for all nodes. Raises OSError or ssl.SSLError."""
    if not options.tls:
        return options
    return evolve(options, node=evolve(options.node, tls_context=options.node.make_tls_context()))
