"""`RedisCluster`: the client of a Redis Cluster."""

from __future__ import annotations

import random
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Final, Self

import redis.exceptions
import trio

from .. import _compat
from ..borrowing import BlockingLimit
from ..commands import shape
from ..errors import CommandRefused, RedisClosed, RedisStalled, RedisUnavailable
from ..link import OnTrouble
from ..messages import Owner
from ..pubsub import BUFFER_BYTES, PubSub
from ..retry import READS, SCRIPTS
from ..routing import block_of, check_shared, command_name
from ..slots import SLOTS
from ..transaction import Transaction
from ..wire import Connect
from .commands import ClusterCommands
from .dedicated import ClusterConnection, attempt_on, is_key_there
from .discovery import Discovery
from .everywhere import run_everywhere
from .key_finder import KeyFinder
from .keyless import combiner_of, refusal_of, slot_argument_of
from .keys import common_slot, full_name, keys_of, slot_of_argument
from .node_client import ClusterNode
from .nodes import MAX_SPARE, Node, NodeConnect, NodeConnection, Nodes, with_tls_context
from .options import ClusterOptions
from .pipeline import ClusterPipeline
from .pubsub import ClusterSubscriber
from .router import Router
from .statistics import ClusterStatistics, statistics_of
from .steps import Nature
from .topology import Address, Topology
from .transaction import run_transaction

__all__ = ["RedisCluster"]

SILENT_FOR: Final = 10.0
"""Seconds: age of a topology that a shard channel without subscribers makes doubtful."""

Target = str | tuple[str, int] | Sequence[tuple[str, int]]
"""One node, several, or "masters", "replicas", "all"."""


class RedisCluster(ClusterCommands):
    """redis-py's commands on a cluster, over one auto-pipelined connection to each node that is needed.

    ::

        async with RedisCluster(ClusterOptions.from_url("redis+cluster://10.0.0.1,10.0.0.2")) as cluster:
            entry_id = await cluster.xadd("{orders}:new", {"data": "{}"})

    Commands go to the master that owns the slot of their keys, which must be one slot: give keys that belong together
    one hash tag. A few commands without keys go to all masters and have one combined result (DBSIZE, KEYS, FLUSHALL,
    SCRIPT LOAD, CONFIG SET …), others to any master. `target` sends a command to the nodes that it names, whatever
    its keys: `cluster.info(target=("10.0.0.1", 6379))`, `target="masters"` (a result for each address).

    MOVED and ASK are followed. What may safely be sent again (see `Redis`) is sent again for `options.retry_for`
    seconds, long enough for a failover; anything else that was sent and not answered raises `OutcomeUnknown`.
    Cancellation is that of `Redis`.

    The client owns its background tasks; leave it in the task that entered it. Leaving fails what is under way.

    Args:
        options: nodes, login and limits.
        on_trouble: called at once, in the scheduler tick, with RedisUnavailable or RedisStalled, when a master whose
            slots are in use is lost or silent, and when no node answers a command that needs the topology. Must return
            quickly and must not raise.
        connect: opens the byte stream to a node (host, port) instead of `options` (tests, tunnels).
        rng: source of jitter and of the choice among equal nodes; give a seeded one for reproducible runs.

    Raises OSError or ssl.SSLError when a TLS file of the options cannot be read.
    """

    options: ClusterOptions  # type: ignore[assignment]  # it answers whatever is asked of a single server's

    def __init__(
        self,
        options: ClusterOptions,
        *,
        on_trouble: OnTrouble | None = None,
        connect: NodeConnect | None = None,
        rng: random.Random | None = None,
    ) -> None:
        if not isinstance(options, ClusterOptions):
            kind = type(options).__name__
            raise TypeError(f"RedisCluster takes ClusterOptions, not {kind}: use open_client(read_url(url))")
        super().__init__(options.node)
        self.options = with_tls_context(options) if connect is None else options
        self._listener = on_trouble
        self._connect = connect
        self._rng = rng if rng is not None else random.Random()  # noqa: S311  # jitter, no secret
        self._nurseries: Any = None
        self._nursery: trio.Nursery | None = None
        self._router: Router | None = None
        self._keys: KeyFinder | None = None
        self._limit = BlockingLimit(options.max_blocking)
        self._dedicated: set[ClusterConnection | NodeConnection] = set()
        self._pubsubs: weakref.WeakSet[PubSub] = weakref.WeakSet()
        self._subscribers: weakref.WeakSet[ClusterSubscriber] = weakref.WeakSet()
        self._last_error: Exception | None = None
        self._last_error_at: float | None = None

    def __repr__(self) -> str:
        state = "new" if self._router is None else "closed" if self._router.nodes.closed else "open"
        return f"<RedisCluster {self.options.address} ({state})>"

    async def __aenter__(self) -> Self:
        if self._nurseries is not None:
            raise RuntimeError("this RedisCluster client was entered before; make a new one")
        self._nurseries = trio.open_nursery()
        self._nursery = await self._nurseries.__aenter__()
        options = self.options
        nodes = Nodes(options, self._connect, self._node_trouble, self._rng, self._nursery)
        discovery = Discovery(
            options, nodes.open_wire, on_topology=self._adopt, on_failure=self._trouble, rng=self._rng
        )
        self._router = Router(options, nodes, discovery, self._rng)
        self._keys = KeyFinder(self._router)
        self._nursery.start_soon(discovery.run)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None  # noqa: S101
        for pubsub in self._pubsubs:
            pubsub.close()
        spares = self._opened().nodes.close()
        # As in `Redis`: the body's exception is not wrapped in a group, and every background task ends at once.
        self._nursery.cancel_scope.cancel()
        try:
            await self._nurseries.__aexit__(None, None, None)
        finally:  # also when an outer cancellation comes out of the nursery
            for connection in [*self._dedicated, *spares]:
                await connection.aclose()

    # Commands --------------------------------------------------------------------------------------------------------

    async def execute_command(self, *args: Any, target: Target | None = None, **options: Any) -> Any:
        """Run one command; what every command method ends in.

        Raises NotSent, OutcomeUnknown, CommandRefused, redis.exceptions.DataError (a value that Redis has no type for),
        redis.exceptions.ResponseError (the server's answer).
        """
        name = command_name(args)
        check_shared(name, args)
        target = options.pop("target_nodes", target)
        if target is not None:
            return await self._run_on(target, args, options)
        block = block_of(name, args)
        full = full_name(name, args)
        slot = await self._slot_of(full, args)
        if block is not None:
            return await self._run_blocking(full, args, options, slot, block)
        if slot is None and (combine := combiner_of(full)) is not None:
            replies = await run_everywhere(self._opened(), full, args)
            return combine([shape(name, reply, options, self.options.node.protocol) for reply in replies])
        raw = _FIRST if _compat.NEVER_DECODE in options else _NONE
        reply = await self._opened().call(Nature(slot, full in READS, full in SCRIPTS), args, raw)
        return shape(name, reply, options, self.options.node.protocol)

    def pipeline(self, transaction: bool = True) -> ClusterPipeline:
        """Many commands in one burst for each node: see `ClusterPipeline`.

        With `transaction` (redis-py's default), in MULTI and EXEC: all keys must be in one slot.
        """
        return ClusterPipeline(self.options.node, self._opened(), self._find_keys, transaction=transaction)

    async def transaction(
        self,
        function: Callable[[Transaction], Any],
        *watches: Any,
        value_from_callable: bool = False,
        attempts: int = 50,
    ) -> Any:
        """Read, decide and write in one step, unless somebody else writes to the keys `watches` meanwhile: then again.

        See `Redis.transaction`. All keys must be in one slot. After a failover or a migration the function runs again
        at the new owner.

        Raises redis.exceptions.WatchError (outrun in every attempt), and as `execute_command` and a pipeline do.
        """
        if not watches:
            raise redis.exceptions.DataError("a transaction without keys to watch: use pipeline(transaction=True)")
        router = self._opened()
        async with self._limit.place():
            value, results = await run_transaction(router, self._lent, function, watches, attempts=attempts)
        return value if value_from_callable else results

    @asynccontextmanager
    async def dedicated(self, key: Any = None) -> AsyncIterator[ClusterConnection]:
        """A connection of one's own to the owner of a key's slot, for a loop of blocking reads; it follows the slot.

        Without a key, it goes to the owner of each command's keys. It reports trouble to the same `on_trouble`, and
        does not count against `options.max_blocking`.
        """
        router = self._opened()
        slot = None if key is None else slot_of_argument(key)
        connection = ClusterConnection(router, router.nodes, slot, self._find_keys)
        self._dedicated.add(connection)
        try:
            yield connection
        finally:
            self._dedicated.discard(connection)
            await connection.aclose()

    async def spublish(self, shard_channel: Any, message: Any, target_nodes: Any = None) -> int:
        """Publish to a shard channel; returns how many subscribers there are at the node that was asked.

        A master that was demoted in order takes the message as before, passes it on, and says 0: so after a 0 the
        topology is read again in the background, though not more often than each `SILENT_FOR` seconds.
        """
        count: int = await self.execute_command("SPUBLISH", shard_channel, message, target=target_nodes)
        if not count and target_nodes is None:
            self._opened().discovery.refresh_if_older(SILENT_FOR)
        return count

    def pubsub(self, *, buffer_bytes: int = BUFFER_BYTES) -> PubSub:
        """Subscriptions, on connections of their own: `async with cluster.pubsub() as pubsub:`. See `PubSub`.

        Channels and patterns are subscribed to at one master, any, for messages reach every node; shard channels at the
        owner of their slot, and after a migration or a failover at the new one, with a `Gap`. `buffer_bytes` is how
        much may wait here for a slow consumer. Raises RedisClosed after the client was left.
        """
        if self._opened().nodes.closed:
            raise RedisClosed(self.options.address, "the client is closed")

        def subscriber(owner: Owner) -> ClusterSubscriber:
            made = ClusterSubscriber(self, owner, self._trouble, self._rng)
            self._subscribers.add(made)
            return made

        pubsub = PubSub(self.options, subscriber, buffer_bytes=buffer_bytes)
        self._pubsubs.add(pubsub)
        return pubsub

    def node(self, host: str, port: int) -> ClusterNode:
        """The client of one node, for what is to be asked there and nowhere else; redirections are errors there."""
        return ClusterNode(self.options.node, self._opened(), Address(host, port))

    # Topology --------------------------------------------------------------------------------------------------------

    @property
    def topology(self) -> Topology | None:
        """The topology as far as it is known; None before the first command."""
        return self._opened().discovery.topology

    async def masters(self) -> tuple[Address, ...]:
        """The addresses of all masters that own slots. Raises NotSent when no node answers."""
        return (await self._opened().discovery.current()).masters

    async def replicas(self) -> tuple[Address, ...]:
        """The addresses of all replicas. Raises NotSent when no node answers."""
        return (await self._opened().discovery.current()).replicas

    async def node_for_slot(self, slot: int) -> Address:
        """The present owner of a slot, as far as known.

        Raises NotSent when no node answers, or none serves it, and ValueError for what is no slot.
        """
        router = self._opened()
        if not 0 <= slot < SLOTS:
            raise ValueError(f"{slot} is no slot: they are 0 to {SLOTS - 1}")
        return router.pick(await router.discovery.current(), slot)

    async def refresh(self) -> None:
        """Read the topology again, from whichever node answers. Raises NotSent when none does."""
        await self._opened().discovery.refresh()

    def refresh_soon(self, suspect: Address | None = None) -> None:
        """Read the topology again in the background; a node that `suspect` names is asked last. Does not block."""
        discovery = self._opened().discovery
        if suspect is not None:
            discovery.suspect(suspect)
        discovery.refresh_soon()

    def moved(self, slot: int, owner: Address) -> None:
        """Note what a MOVED said that came over a connection which is not this client's. Does not block."""
        self._opened().discovery.moved(slot, owner)

    def connect_to(self, address: Address) -> Connect:
        """The function that opens the byte stream to a node, for connections of other kinds."""
        return self._opened().nodes.connect_to(address)

    def statistics(self) -> ClusterStatistics:
        """A snapshot; does not block."""
        return statistics_of(self._opened(), len(self._dedicated), self._last_error, self._last_error_at)

    # ------------------------------------------------------------------------------------------------------------------

    async def _owners(self) -> tuple[Address | None, ...]:
        discovery = self._opened().discovery
        await discovery.refresh()
        return (await discovery.current()).owners

    async def _slot_of(self, name: str, args: tuple[Any, ...]) -> int | None:
        """The slot of the command; None if any master will do. Raises CommandRefused."""
        keys = keys_of(name, args)
        if keys is None:
            keys = await self._find_keys(name, args)
        if keys:
            return slot_of_argument(keys[0]) if len(keys) == 1 else common_slot(name, keys)
        refusal = refusal_of(name)
        if refusal is not None:
            raise refusal
        return slot_argument_of(name, args)

    async def _find_keys(self, name: str, args: Sequence[Any]) -> Sequence[Any]:
        self._opened()
        assert self._keys is not None  # noqa: S101
        return await self._keys(name, args)

    async def _run_blocking(
        self, name: str, args: tuple[Any, ...], options: dict[str, Any], slot: int | None, block: float
    ) -> Any:
        router = self._opened()

        async def attempt(node: Node, asking: bool) -> Any:
            node.keyed = node.keyed or slot is not None
            async with self._lent(node) as connection:
                return await attempt_on(connection, asking, args, options)

        async with self._limit.place():
            reply = await router.run(
                Nature.of(slot, name, args),
                attempt,
                until=trio.current_time() + router.options.retry_for + block,
                survives=is_key_there(router, name, args),
            )
        if isinstance(reply, Exception):
            raise reply
        return reply

    @asynccontextmanager
    async def _lent(self, node: Node) -> AsyncIterator[NodeConnection]:
        """A connection of one's own to a node, for a while; kept for others if it is well."""
        connection = node.spare.pop() if node.spare else self._opened().nodes.new_connection(node)
        self._dedicated.add(connection)
        try:
            yield connection
        finally:
            self._dedicated.discard(connection)
            if connection.connected and not node.left and len(node.spare) < MAX_SPARE:
                node.spare.append(connection)
            else:
                await connection.aclose()

    async def _run_on(self, target: Target, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        if isinstance(target, str):
            addresses = await self._named(target)
        elif len(target) == 2 and isinstance(target[1], int):
            return await self.node(str(target[0]), target[1]).execute_command(*args, **options)
        else:
            addresses = [Address(*each) for each in target]  # type: ignore[misc]
        name = command_name(args)
        if block_of(name, args) is not None:
            raise CommandRefused(f"{name} blocks: without `target`, or inside `async with cluster.dedicated()`")
        replies = await self._opened().call_each(addresses, args)
        for reply in replies:
            if isinstance(reply, RedisUnavailable):
                raise reply
        return {
            address: shape(name, reply, options, self.options.node.protocol)
            for address, reply in zip(addresses, replies, strict=True)
        }

    async def _named(self, target: str) -> Sequence[Address]:
        topology = await self._opened().discovery.current()
        known = {"masters": topology.masters, "primaries": topology.masters, "replicas": topology.replicas}
        known["all"] = topology.nodes
        if target not in known:
            raise redis.exceptions.DataError('target: an address (host, port), several, "masters", "replicas" or "all"')
        return known[target]

    def _adopt(self, topology: Topology) -> None:
        router = self._opened()
        router.nodes.retain(topology.masters)
        assert self._nursery is not None  # noqa: S101
        for connection in self._dedicated:
            if isinstance(connection, ClusterConnection):
                self._nursery.start_soon(connection.leave_if_idle)
        for subscriber in self._subscribers:
            subscriber.topology_read()

    def _node_trouble(self, node: Node, error: Exception) -> None:
        router = self._opened()
        if isinstance(error, RedisStalled):
            node.stalled_at = trio.current_time()
        router.discovery.suspect(node.address)
        router.discovery.refresh_soon()
        topology = router.discovery.topology
        if node.keyed and not node.left and topology is not None and topology.owns_slots(node.address):
            self._trouble(error)

    def _trouble(self, error: Exception) -> None:
        self._last_error = error
        self._last_error_at = trio.current_time()
        if self._listener is not None:
            self._listener(error)

    def _opened(self) -> Router:
        if self._router is None:
            raise RuntimeError("the client is not open: use `async with RedisCluster(options) as cluster:`")
        return self._router


_FIRST: Final = frozenset({0})
_NONE: Final[frozenset[int]] = frozenset()
