"""Whether the declared streams can be read and written on a Redis Cluster, and which node is at fault if they cannot.

PING and a cluster state from just anywhere prove nothing: what counts is each master that owns a slot of ours.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio
from attrs import define, evolve, field

from ..runtime.redis import (
    ClusterOptions,
    Redis,
    RedisCluster,
    RedisOptions,
    RedisUnavailable,
    SentinelOptions,
    open_client,
)
from ..runtime.redis.cluster.nodes import with_tls_context
from ..runtime.redis.replies import classify, reply_text
from .cluster_view import ClusterView, NodeAccount, NodeView, address_of, owners_of, read_account, view_of
from .probes import RedisProbe, Unhealthy, check_stream, tell_memory

if TYPE_CHECKING:
    from ..runtime.supervision import Gate

__all__ = ["ClusterProbe", "probe_of"]

NodeConnect = Callable[[str, int], Awaitable[trio.abc.Stream]]

GRACE: Final = 0.3
"""Seconds that the other nodes have to answer once one has: a node that was away may be the first, with old news."""

ASKED: Final = 16
"""Nodes that are asked about the cluster at the most: those that are named, and those that had our streams."""

RETRY_FOR: Final = 0.5
"""Seconds within which a redirection has to lead to an answer."""


def _ignore(*_: object) -> None:
    """Nobody wants to know."""


def probe_of(
    options: RedisOptions | ClusterOptions | SentinelOptions,
    streams: Sequence[str],
    *,
    connect: Callable[..., Awaitable[trio.abc.Stream]] | None = None,
    memory: Gate | None = None,
    within: float,
    rng: random.Random | None = None,
) -> RedisProbe | ClusterProbe:
    """The probe that goes with the options; `within` is for how long, in seconds, its caller will wait for it."""
    if isinstance(options, ClusterOptions):
        # It ends before its caller's patience does, for it alone can name the node that does not answer.
        return ClusterProbe(options, streams, connect, memory, limit=0.75 * within, rng=rng)
    return RedisProbe(options, streams, connect, memory, rng)


@define(eq=False)
class ClusterProbe:
    """Asks a Redis Cluster, over connections opened for the purpose, whether the streams work on it.

    Attributes:
        options: the cluster.
        streams: the declared streams' keys.
        connect: opens the byte stream to a node instead of the options; None for the real one.
        memory: the gate that is shut while a master that is well otherwise is full; None where nobody asks, then being
            full is unhealthy, too.
        limit: seconds that a probe takes at the most.
        view: the cluster as it was seen last; None before.
        on_change: told, while our streams work, of the nodes that the cluster has come to call failed, and of those
            that it no longer does.
        rng: of the choice among nodes that are equally good, and of the jitter between attempts to connect; None for
            one of its own.
    """

    options: ClusterOptions
    streams: Sequence[str]
    connect: NodeConnect | None = None
    memory: Gate | None = None
    limit: float = 1.5
    view: ClusterView | None = None
    on_change: Callable[[list[str], list[str]], None] = field(default=_ignore)
    rng: random.Random | None = field(default=None, repr=False)
    _lost: frozenset[str] = field(factory=frozenset, init=False)
    _read: ClusterOptions | None = field(default=None, init=False)

    async def __call__(self) -> None:
        """Raise `Unhealthy`, naming the nodes at fault, unless every stream can be read and written where it is now.

        The owner of a stream's slot must say itself that the cluster is in order, and take a write that stores nothing.
        A node that is away and has none of our streams is no fault: `on_change` is told.

        Blocks `limit` seconds at the most; each node that is asked has that long, whatever the others do. It raises
        OSError or ssl.SSLError, too, when a TLS file of the options cannot be read.
        """
        started = trio.current_time()
        deadline = started + self.limit
        self._options()
        accounts, silent = await self._accounts(deadline)
        if not accounts:
            raise Unhealthy(f"{self.options.address}: no node can be asked: {'; '.join(_alike(silent))}")
        owners = owners_of(self.streams, [*accounts.values()])
        late = [node.address for node in _distinct(owners) if node.address not in accounts]
        accounts |= await self._ask(late, silent, deadline)
        if trio.current_time() - started > GRACE:
            # An owner that kept us waiting was away, perhaps, and the others have replaced it since they were asked.
            others = [address for address in accounts if address not in {node.address for node in _distinct(owners)}]
            accounts |= await self._ask(others, silent, min(deadline, trio.current_time() + GRACE))
            owners = owners_of(self.streams, [*accounts.values()])
        self.view = view_of([*accounts.values()], owners, trio.current_time())
        if causes := [*self._causes(owners, accounts, silent)]:
            raise Unhealthy("; ".join([*causes, *self._circumstances(owners, accounts)]))
        await self._check_streams(owners, accounts, deadline)
        self._tell_lost()

    def concerns(self, error: Exception) -> bool:
        """Whether a lost connection may have been one to an owner of our streams, as far as we know."""
        if self.view is None or not isinstance(error, RedisUnavailable):
            return True
        others = {self.node_options(node.address).address for node in self.view.nodes if not node.streams}
        return error.address not in others

    def node_options(self, address: str) -> RedisOptions:
        """The options of a connection to one node, by its address in `view`."""
        host, _, port = address.rpartition(":")
        return self._options().for_node((host.strip("[]"), int(port)))

    def client(self) -> RedisCluster:
        """A fresh client of the cluster, to be entered."""
        return open_client(self._options(), connect=self.connect, rng=self.rng)

    def node(self, address: str) -> Redis:
        """A fresh client of one node, by its address in `view`, to be entered."""
        options = self.node_options(address)
        connect = None if self.connect is None else partial(self.connect, options.host, options.port)
        return Redis(options, connect=connect, rng=self.rng)

    def _options(self) -> ClusterOptions:
        """With the TLS files read, once: there are many connections."""
        if self._read is None:
            self._read = with_tls_context(self.options) if self.connect is None else self.options
        return self._read

    # What the nodes say ----------------------------------------------------------------------------------------------

    async def _accounts(self, deadline: float) -> tuple[dict[str, NodeAccount], dict[str, str]]:
        """What the known nodes say, and why some say nothing, by address."""
        accounts: dict[str, NodeAccount] = {}
        silent: dict[str, str] = {}
        with trio.CancelScope(deadline=deadline) as scope:
            async with trio.open_nursery() as nursery:

                async def ask(address: str) -> None:
                    accounts.update(await self._ask([address], silent, deadline))
                    if any(account.state == "ok" for account in accounts.values()):
                        scope.deadline = min(scope.deadline, trio.current_time() + GRACE)

                for address in self._known():
                    nursery.start_soon(ask, address)
        return accounts, silent

    def _known(self) -> list[str]:
        seen = () if self.view is None else self.view.nodes
        owners = [node.address for node in seen if node.streams]
        named = [address_of(host, port) for host, port in self.options.nodes]
        return list(dict.fromkeys([*owners, *named, *(node.address for node in seen)]))[:ASKED]

    async def _ask(self, addresses: Iterable[str], silent: dict[str, str], deadline: float) -> dict[str, NodeAccount]:
        """What these nodes say, until `deadline`; why one says nothing is entered in `silent`."""
        accounts: dict[str, NodeAccount] = {}

        async def ask(address: str) -> None:
            silent[address] = f"does not answer within {self.limit:g} s"
            with trio.CancelScope(deadline=deadline):
                try:
                    accounts[address] = await self._account(address)
                    del silent[address]
                except redis.exceptions.RedisError as error:
                    silent[address] = _said(error)
                except (ValueError, IndexError) as error:
                    silent[address] = f"gives answers that are none of a cluster's ({error})"

        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(ask, address)
        return accounts

    async def _account(self, address: str) -> NodeAccount:
        async with self.node(address) as node:
            burst = node.pipeline(transaction=False)
            for question in ("INFO", "NODES", "SLOTS"):
                burst.execute_command("CLUSTER", question)
            info, nodes, slots = await burst.execute()
        return read_account(self.node_options(address).host, info, nodes, slots)

    # What follows from it --------------------------------------------------------------------------------------------

    def _causes(
        self, owners: Mapping[str, NodeView | None], accounts: Mapping[str, NodeAccount], silent: Mapping[str, str]
    ) -> Iterable[str]:
        """One for each node that keeps a stream of ours from being used, and for the slots that nobody owns.

        Where an owner is away, that others call the cluster failed is a consequence, and no cause.
        """
        is_whole = all(node.address in accounts for node in _distinct(owners))
        if not owners and all(account.state != "ok" for account in accounts.values()):
            yield f"{self.options.address}: cluster_state is fail"
        if orphans := [stream for stream, owner in owners.items() if owner is None]:
            yield f"{self.options.address}: no node owns the slots of {', '.join(orphans)}"
        for node in _distinct(owners):
            name = f"node {node.address} (slots of {', '.join(_streams_of(node, owners))})"
            account = accounts.get(node.address)
            if account is None:
                yield f"{name} {silent.get(node.address, 'does not answer')}"
            elif account.me != node.id:
                yield f"{name} is another node by now"
            elif (own := account.node(node.id)) is not None and own.role != "master":
                yield f"{name} is a replica by its own account, and nobody has taken over yet"
            elif account.state != "ok" and is_whole:
                yield f"{name}: cluster_state is {account.state}"
            elif any(other.gives_up(node.id) for other in accounts.values()):
                yield f"{name} was given up by other nodes, and its replica is to take over"

    def _circumstances(
        self, owners: Mapping[str, NodeView | None], accounts: Mapping[str, NodeAccount]
    ) -> Iterable[str]:
        """What else is worth knowing in an outage: the state as others see it, and who else has failed."""
        assert self.view is not None  # noqa: S101 - there are accounts
        named = {node.address for node in _distinct(owners) if node.address not in accounts}
        if named and any(account.state != "ok" for account in accounts.values()):
            yield "cluster_state is fail"
        failed = [node.address for node in self.view.nodes if node.failed or node.suspected]
        if others := [address for address in failed if address not in named]:
            yield f"failed nodes: {', '.join(others)}"

    async def _check_streams(
        self, owners: Mapping[str, NodeView | None], accounts: Mapping[str, NodeAccount], deadline: float
    ) -> None:
        """Read and write each stream as everybody does, by way of a fresh client: it follows a slot that moves."""
        seeds = [self.node_options(address) for address in accounts]
        options = evolve(self._options(), nodes=tuple((seed.host, seed.port) for seed in seeds), retry_for=RETRY_FOR)
        full, where = [], self.options.address
        with trio.CancelScope(deadline=deadline) as scope:
            try:
                async with open_client(options, connect=self.connect, rng=self.rng) as client:
                    for stream, owner in owners.items():
                        where = f"node {owner.address} (slots of {stream})" if owner is not None else where
                        full.append(await check_stream(client, stream, where, full_is_fault=self.memory is None))
            except redis.exceptions.RedisError as error:
                raise Unhealthy(f"{where}: {reply_text(error)}") from error
        if scope.cancelled_caught:
            raise Unhealthy(f"{where} does not answer within {self.limit:g} s")
        tell_memory(self.memory, full)

    def _tell_lost(self) -> None:
        assert self.view is not None  # noqa: S101 - it was just made
        lost = frozenset(node.address for node in self.view.nodes if node.failed)
        if lost != self._lost:
            self.on_change(sorted(lost - self._lost), sorted(self._lost - lost))
        self._lost = lost


def _distinct(owners: Mapping[str, NodeView | None]) -> list[NodeView]:
    """Each owner once."""
    return [*{node.id: node for node in owners.values() if node is not None}.values()]


def _streams_of(node: NodeView, owners: Mapping[str, NodeView | None]) -> list[str]:
    return [stream for stream, owner in owners.items() if owner is not None and owner.id == node.id]


def _alike(silent: Mapping[str, str]) -> Iterable[str]:
    """Why some nodes say nothing, each reason once."""
    nodes: dict[str, list[str]] = {}
    for address, why in sorted(silent.items()):
        nodes.setdefault(why, []).append(address)
    for why, alike in nodes.items():
        yield f"{alike[0]} {why}" if len(alike) == 1 else f"{len(alike)} nodes ({', '.join(alike)}): each {why}"


def _said(error: redis.exceptions.RedisError) -> str:
    row = classify(error).name
    if row == "credentials":
        return f"refuses the login: {reply_text(_root(error))}"
    if row == "no-cluster":
        return f"is a single server, not a cluster: begin the URL with redis:// (rediss://) ({reply_text(error)})"
    if isinstance(error, RedisUnavailable):
        return "refuses connections" if "refused" in error.reason.lower() else f"is away: {error.reason}"
    return f"says: {reply_text(error)}"


def _root(error: BaseException) -> BaseException:
    """What the server itself said, under what it meant for the connection."""
    while isinstance(error, RedisUnavailable) and error.__cause__ is not None:
        error = error.__cause__
    return error
