"""`InProcessCluster`: a Redis Cluster inside the test's own process, in virtual time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import trio

from ..redis.slots import SLOTS, slot_of
from .redis import InProcessRedis
from .redis_cluster_gate import ClusterGate
from .redis_engine import Data
from .redis_gate import Gate

__all__ = ["InProcessCluster", "InProcessClusterNode"]


class InProcessCluster:
    """Several servers that share the slots. `RedisCluster(options, connect=cluster.connect)` uses it.

    ::

        async with InProcessCluster(replicas=1) as cluster:
            options = ClusterOptions(nodes=cluster.addresses, node=RedisOptions())
            async with RedisCluster(options, connect=cluster.connect) as redis:
                await redis.xadd("orders", {"data": "{}"})
                cluster.master_of("orders").refuse()  # after a second its replica takes over

    All nodes have one view of the cluster, and replicas hold what their master holds, at once: what gossip and
    replication take time for takes none here. Losing a node takes time: one that does not answer is given up after
    `node_timeout`; then a replica takes over, or the cluster is down until it is back.

    Args:
        masters: number of masters; slots are shared out evenly.
        replicas: replicas of each master.
        hosts: names of the nodes, masters first; None: 127.0.0.1 for all.
        first_port: of the first node; the others follow.
        users: see `InProcessRedis`.
        node_timeout: seconds after which a silent node is given up.

    Attributes:
        nodes: the first masters first. Roles change; `master_of` tells.
    """

    def __init__(
        self,
        *,
        masters: int = 3,
        replicas: int = 0,
        hosts: Sequence[str] | None = None,
        first_port: int = 7001,
        users: Mapping[str, str] | None = None,
        node_timeout: float = 1.0,
    ) -> None:
        count = masters * (1 + replicas)
        names = list(hosts) if hosts is not None else ["127.0.0.1"] * count
        if len(names) != count:
            raise ValueError(f"{count} nodes need {count} host names, not {len(names)}")
        self.node_timeout = node_timeout
        self.nodes = [
            InProcessClusterNode(self, number, host, first_port + number, users) for number, host in enumerate(names)
        ]
        self._masters = masters
        self._owners: list[InProcessClusterNode | None] = [None] * SLOTS
        self._ranges: dict[InProcessClusterNode, list[tuple[int, int]]] | None = None  # until slots change hands
        self._serving: set[InProcessClusterNode | None] = {None}
        self._migrations: dict[int, tuple[InProcessClusterNode, InProcessClusterNode]] = {}
        self._stack = AsyncExitStack()
        self._nursery: trio.Nursery | None = None

    @property
    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Host and port of every node."""
        return tuple((node.host, node.port) for node in self.nodes)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        try:
            for node in self.nodes:
                await self._stack.enter_async_context(node)
            self._form()
            self._nursery = await self._stack.enter_async_context(trio.open_nursery())
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._nursery is not None  # noqa: S101
        self._nursery.cancel_scope.cancel()
        # Without the body's exception: it goes on as it is, not wrapped in a group.
        await self._stack.__aexit__(None, None, None)

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        """Open a connection to a node: the `connect` of `RedisCluster`. Raises ConnectionRefusedError."""
        for node in self.nodes:
            if node.port == port and node.host == host:
                return await node.connect()
        await trio.lowlevel.checkpoint()
        raise ConnectionRefusedError(f"nobody listens at {host}:{port}")

    def masters(self) -> list[InProcessClusterNode]:
        """The masters, also those that are away."""
        return [node for node in self.nodes if node.master is None]

    def master_of(self, key: str | bytes | int) -> InProcessClusterNode:
        """The master that owns a key's slot, or the slot of that number. Raises LookupError when nobody does."""
        slot = key if isinstance(key, int) else slot_of(key)
        owner = self._owners[slot]
        if owner is None:
            raise LookupError(f"nobody owns slot {slot}")
        return owner

    def replicas_of(self, master: InProcessClusterNode) -> list[InProcessClusterNode]:
        """The replicas of a master, also those that are away."""
        return [node for node in self.nodes if node.master is master]

    # Slots

    def migrate_slot(self, slot: int, target: InProcessClusterNode) -> None:
        """Move a slot with its keys to another master, at once. Blocked readers are told."""
        self.begin_migration(slot, target)
        self.move_keys(slot)
        self.finish_migration(slot)

    def begin_migration(self, slot: int, target: InProcessClusterNode) -> None:
        """The first step: the owner is migrating, the target importing; keys that the owner has not get ASK."""
        if target.master is not None:
            raise ValueError(f"{target} is a replica: a slot goes to a master")
        self._migrations[slot] = (self.master_of(slot), target)

    def move_keys(self, slot: int, keys: Iterable[str | bytes] | None = None) -> None:
        """The second step, any number of times: these keys, or all that are left, go over."""
        source, target = self._migrations[slot]
        moving = source.keys_in(slot)
        if keys is not None:
            wanted = {key.encode() if isinstance(key, str) else key for key in keys}
            moving = [key for key in moving if key in wanted]
        source.hand_over(moving, target)

    def finish_migration(self, slot: int) -> None:
        """The last step: the target owns the slot, and all nodes know."""
        source, target = self._migrations.pop(slot)
        source.hand_over(source.keys_in(slot), target)
        self._give([slot], target)
        source.tell_blocked()

    def stop_migration(self, slot: int) -> None:
        """The slot is neither migrated nor imported any more (CLUSTER SETSLOT … STABLE); what went over stays there."""
        del self._migrations[slot]

    def lose_slots(self, slots: Iterable[int]) -> None:
        """Nobody owns these any more: CLUSTERDOWN Hash slot not served."""
        self._give(slots, None)
        for node in self.nodes:
            node.tell_blocked()

    def give_slots(self, slots: Iterable[int], node: InProcessClusterNode) -> None:
        """This master owns them now, without the keys."""
        self._give(slots, node)
        for each in self.nodes:
            each.tell_blocked()

    # Nodes

    def fail_over(self, replica: InProcessClusterNode) -> None:
        """CLUSTER FAILOVER: the replica is the master now, with all data, and its master its replica. Clients that were
        blocked on the old master get MOVED.
        """
        master = replica.master
        if master is None:
            raise ValueError(f"{replica} is a master already")
        for node in self.replicas_of(master):
            node.master = replica
        replica.master, master.master = None, replica
        self._give([slot for slot, owner in enumerate(self._owners) if owner is master], replica)
        for slot, (source, target) in list(self._migrations.items()):
            moved = tuple(replica if node is master else node for node in (source, target))
            self._migrations[slot] = moved  # type: ignore[assignment]
        master.tell_blocked()

    def is_down(self) -> bool:
        """Whether a slot is served by nobody."""
        return any(owner is None or owner.given_up for owner in self._serving)

    def owner(self, slot: int) -> InProcessClusterNode | None:
        return self._owners[slot]

    def migration(self, slot: int) -> tuple[InProcessClusterNode, InProcessClusterNode] | None:
        """Source and target while the slot moves."""
        return self._migrations.get(slot)

    def note_loss(self, node: InProcessClusterNode) -> None:
        """A node has fallen silent."""
        if self._nursery is not None:
            self._nursery.start_soon(self._watch, node)

    def note_return(self, node: InProcessClusterNode) -> None:
        """A node answers again."""
        node.given_up = False

    def ranges(self, node: InProcessClusterNode) -> list[tuple[int, int]]:
        """The slots of a master, as (first, last)."""
        if self._ranges is None:
            self._ranges = {}
            for slot, owner in enumerate(self._owners):
                if owner is None:
                    continue
                found = self._ranges.setdefault(owner, [])
                if found and found[-1][1] == slot - 1:
                    found[-1] = (found[-1][0], slot)
                else:
                    found.append((slot, slot))
        return list(self._ranges.get(node, ()))

    async def _watch(self, node: InProcessClusterNode) -> None:
        loss = node.losses
        await trio.sleep(self.node_timeout)
        if node.losses != loss or not node.silent:
            return
        node.given_up = True
        successors = [replica for replica in self.replicas_of(node) if not replica.silent]
        if successors:
            self.fail_over(successors[0])
        elif node.master is None:
            for each in self.nodes:
                each.tell_blocked()

    def _form(self) -> None:
        masters = self.nodes[: self._masters]
        for number, master in enumerate(masters):
            low, high = number * SLOTS // self._masters, (number + 1) * SLOTS // self._masters
            self._give(range(low, high), master)
        for number, replica in enumerate(self.nodes[self._masters :]):
            replica.follow(masters[number % self._masters])
        for node in self.nodes:
            node.meet(self.nodes)

    def _give(self, slots: Iterable[int], owner: InProcessClusterNode | None) -> None:
        gone: dict[InProcessClusterNode, set[int]] = {}
        for slot in slots:
            before, self._owners[slot] = self._owners[slot], owner
            if before is not None and before is not owner:
                gone.setdefault(before, set()).add(slot)
        self._serving = set(self._owners)
        self._ranges = None
        for node, lost in gone.items():
            node.drop_shard_channels(lost)


class InProcessClusterNode(InProcessRedis):
    """One node: an `InProcessRedis` with its faults.

    Attributes:
        host, port: its address, for `connect` and in MOVED.
        id: its id in the cluster.
        master: whose replica it is; None for a master.
        given_up: whether the other nodes count it as failed.
        losses: how often it has fallen silent.
    """

    def __init__(
        self, cluster: InProcessCluster, number: int, host: str, port: int, users: Mapping[str, str] | None
    ) -> None:
        super().__init__(users=users)
        self.cluster = cluster
        self.host, self.port = host, port
        self.id = f"{number + 1:040x}"
        self.master: InProcessClusterNode | None = None
        self.given_up = False
        self.losses = 0

    def __repr__(self) -> str:
        return f"<InProcessClusterNode {self.host}:{self.port}>"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self.host, self.port

    @property
    def silent(self) -> bool:
        """Whether it refuses connections or hangs."""
        return self._refusing or not self._gate.running.is_set()

    def refuse(self) -> None:
        """See `InProcessRedis`. After the cluster's `node_timeout` the others give it up."""
        super().refuse()
        self._lost()

    def restore(self) -> None:
        """See `InProcessRedis`. If a replica has taken over, it is that one's replica now."""
        super().restore()
        self._is_back()

    def hang(self) -> None:
        """See `InProcessRedis`. After the cluster's `node_timeout` the others give it up."""
        super().hang()
        self._lost()

    def resume(self) -> None:
        """See `InProcessRedis`. If a replica has taken over, it is that one's replica now."""
        super().resume()
        self._is_back()

    def keys_in(self, slot: int) -> list[bytes]:
        """The keys of a slot that it holds."""
        return [key for key in self.data.databases[0] if slot_of(key) == slot]

    def hand_over(self, keys: Iterable[bytes], target: InProcessClusterNode) -> None:
        """Move keys, as MIGRATE does."""
        here, there = self.data.databases[0], target.data.databases[0]
        for key in keys:
            there[key] = here[key]
            del here[key]
            here.notify_watch(key)
            there.notify_watch(key)
        self.data.serve_blocked()
        target.data.serve_blocked()

    def tell_blocked(self) -> None:
        """Blocked clients whose keys are served elsewhere, or by nobody, are told so."""
        for session in list(self.data.blocked):
            session.follow()

    def follow(self, master: InProcessClusterNode) -> None:
        """Become a replica."""
        self.master = master
        self._engine.data = master.data

    def meet(self, nodes: Sequence[InProcessClusterNode]) -> None:
        """Know the others: what is published here is heard there."""
        self._engine.peers = [node._engine for node in nodes if node is not self]

    def drop_shard_channels(self, slots: set[int]) -> None:
        """Tell the listeners of shard channels in these slots that they have gone."""
        channels = self._engine.channels
        for name in [name for name in channels.shard if slot_of(name) in slots]:
            for session in list(channels.shard[name]):
                session.sunsubscribe(name)

    @property
    def data(self) -> Data:
        """What it holds; shared with its replicas."""
        data: Data = self._engine.data
        return data

    def _make_gate(self) -> Gate:
        return ClusterGate(self)

    def _lost(self) -> None:
        self.losses += 1
        self.cluster.note_loss(self)

    def _is_back(self) -> None:
        if not self.silent:
            self.losses += 1
            self.cluster.note_return(self)
