"""What the nodes of a Redis Cluster say of it: who is there, who owns which slots, who has failed. Pure.

Every node has an account of its own, and while masters change they differ. A slot belongs to whom the account with the
highest configuration epoch names, as the nodes themselves decide it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from attrs import evolve, field, frozen

from ..runtime.redis.slots import SLOTS, slot_of

__all__ = ["ClusterView", "NodeAccount", "NodeView", "owners_of", "read_account", "view_of"]

UNUSABLE: Final = frozenset({"handshake", "noaddr"})
"""Flags of nodes that are not there yet, or whose address nobody knows: no members to speak of."""


@frozen(kw_only=True)
class NodeView:
    """A node as the cluster sees it.

    Attributes:
        id: its name in the cluster.
        address: ``host:port``, as clients reach it.
        role: what it is.
        master_id: the id of the master that a replica copies; empty for a master.
        failed: most masters agree that it is away.
        suspected: somebody does not reach it.
        epoch: the configuration epoch of its slots.
        ranges: the slots that it owns, first and last.
        streams: the declared streams among them.
    """

    id: str
    address: str
    role: Literal["master", "replica"] = "master"
    master_id: str = ""
    failed: bool = False
    suspected: bool = False
    epoch: int = 0
    ranges: tuple[tuple[int, int], ...] = ()
    streams: tuple[str, ...] = ()

    @property
    def slots(self) -> int:
        """How many it owns."""
        return sum(last - first + 1 for first, last in self.ranges)

    def owns(self, slot: int) -> bool:
        """Whether this slot is among them."""
        return any(first <= slot <= last for first, last in self.ranges)


@frozen(kw_only=True)
class ClusterView:
    """A cluster as it was seen last.

    Attributes:
        state: ``ok`` or ``fail``, as the node says that was believed.
        nodes: its nodes, masters in the order of their slots, each before its replicas.
        observed_at: `trio.current_time()` of the observation.
    """

    state: str
    nodes: tuple[NodeView, ...]
    observed_at: float = field(default=0.0, eq=False)

    @property
    def covered(self) -> int:
        """How many of the 16384 slots have an owner."""
        return sum(node.slots for node in self.nodes)

    @property
    def masters(self) -> tuple[NodeView, ...]:
        """The nodes that own slots."""
        return tuple(node for node in self.nodes if node.ranges)

    def owner(self, stream: str) -> NodeView | None:
        """The node that has this declared stream; None while nobody owns its slot."""
        return next((node for node in self.nodes if stream in node.streams), None)


@frozen(kw_only=True)
class NodeAccount:
    """What one node says.

    Attributes:
        state: its ``cluster_state``.
        epoch: the highest epoch that it has heard of.
        me: its own id.
        nodes: the members that it knows, with itself.
    """

    state: str
    epoch: int
    me: str
    nodes: tuple[NodeView, ...]

    def node(self, id: str) -> NodeView | None:  # noqa: A002 - what a cluster calls it
        """What it says of one of them."""
        return next((node for node in self.nodes if node.id == id), None)

    def gives_up(self, id: str) -> bool:  # noqa: A002 - what a cluster calls it
        """Whether it has seen this master fail, and a replica that may take over.

        Then its vote may be given already, whatever the master says: it does not say so any more when it knows of the
        successor, or when the master has been back for twice the cluster's time-out.
        """
        seen = self.node(id)
        heirs = [node for node in self.nodes if node.master_id == id and not node.failed]
        return seen is not None and seen.failed and bool(heirs)


def read_account(host: str, info: Any, nodes: Any, slots: Any) -> NodeAccount:
    """What the node at `host` has answered to CLUSTER INFO, NODES and SLOTS, as it came over the wire.

    SLOTS gives the addresses: it names each node as clients are to reach it (`cluster-preferred-endpoint-type`), and
    leaves the host empty where it is the very one that was asked. Nodes without slots stand in NODES alone.

    Raises:
        ValueError: that is no answer of a cluster.
    """
    facts = {name: value for name, _, value in (line.partition(":") for line in _text(info).splitlines())}
    endpoints = dict(_endpoints(slots, host))
    found, me = [], ""
    for line in _text(nodes).splitlines():
        words = line.split()
        if len(words) < 8:
            raise ValueError(f"CLUSTER NODES has a line of {len(words)} words")
        flags = frozenset(words[2].split(","))
        if "myself" in flags:
            me = words[0]
        if not flags & UNUSABLE:
            found.append(_node(words, flags, endpoints, host))
    return NodeAccount(
        state=facts.get("cluster_state", "unknown").strip(),
        epoch=int(facts.get("cluster_current_epoch", "0")),
        me=me,
        nodes=tuple(found),
    )


def owners_of(streams: Iterable[str], accounts: Sequence[NodeAccount]) -> dict[str, NodeView | None]:
    """The node that has each stream; None for one whose slot nobody owns."""
    return {stream: _owner(slot_of(stream), accounts) for stream in streams}


def view_of(accounts: Sequence[NodeAccount], owners: Mapping[str, NodeView | None], now: float) -> ClusterView:
    """The cluster as the best informed of the nodes sees it: one that is in order, and has heard the most.

    Raises:
        ValueError: there are no accounts.
    """
    best = max(accounts, key=lambda account: (account.state == "ok", account.epoch, len(account.nodes)))
    nodes = [
        evolve(node, streams=tuple(key for key, owner in owners.items() if owner is not None and owner.id == node.id))
        for node in best.nodes
    ]
    first = {node.id: node.ranges[0][0] if node.ranges else SLOTS for node in nodes}
    # A replica stands behind its master; one whose master is not known, behind all.
    nodes.sort(key=lambda node: (first.get(node.master_id or node.id, SLOTS), node.role != "master", node.address))
    return ClusterView(state=best.state, nodes=tuple(nodes), observed_at=now)


def _owner(slot: int, accounts: Sequence[NodeAccount]) -> NodeView | None:
    claims = [
        (node.epoch, account.me == node.id, account.state == "ok", node)
        for account in accounts
        for node in account.nodes
        if node.owns(slot)
    ]
    return max(claims, key=lambda claim: claim[:3])[3] if claims else None


def _node(words: Sequence[str], flags: frozenset[str], endpoints: Mapping[str, str], host: str) -> NodeView:
    is_master = "master" in flags
    where, _, _names = words[1].partition(",")
    ip, _, port = where.partition("@")[0].rpartition(":")
    return NodeView(
        id=words[0],
        address=endpoints.get(words[0]) or address_of(ip or host, port),
        role="master" if is_master else "replica",
        master_id="" if is_master or words[3] == "-" else words[3],
        failed="fail" in flags,
        suspected="fail?" in flags or words[7] == "disconnected",
        epoch=int(words[6]),
        ranges=tuple(_ranges(words[8:])) if is_master else (),
    )


def address_of(host: str, port: int | str) -> str:
    """``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _ranges(words: Iterable[str]) -> Iterable[tuple[int, int]]:
    for word in words:
        if not word.startswith("["):  # a slot on its way, which is listed with its owner anyway
            first, _, last = word.partition("-")
            yield int(first), int(last or first)


def _endpoints(slots: Any, host: str) -> Iterable[tuple[str, str]]:
    for _first, _last, *nodes in slots:
        for named, port, *more in nodes:
            text = "" if named is None else _text(named)
            if text != "?" and more:  # "?": it is to be called by its host name, and has none
                yield _text(more[0]), address_of(text or host, int(port))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
