"""`ClusterStatistics`: what a `RedisCluster` is doing."""

from __future__ import annotations

from attrs import frozen

from .router import Router
from .topology import Address

__all__ = ["ClusterStatistics", "NodeStatistics", "statistics_of"]


@frozen(kw_only=True)
class NodeStatistics:
    """One node that is in use.

    Attributes:
        address: of the node.
        slots: how many it owns; 0 for a node that is asked by name or by ASK only.
        connected: whether the shared connection is up.
        since: `trio.current_time()` of the last change of `connected`.
        connections: shared connections made so far.
        sent: commands sent over them.
        pending: requests queued or unanswered.
        queued_bytes: bytes queued and not given to the socket.
        troubled: whether there was trouble with it in the last seconds.
    """

    address: Address
    slots: int
    connected: bool
    since: float
    connections: int
    sent: int
    pending: int
    queued_bytes: int
    troubled: bool


@frozen(kw_only=True)
class ClusterStatistics:
    """What a `RedisCluster` is doing. Counters run from its start; those of `RedisStatistics` are sums over the nodes.

    Attributes:
        address: of the nodes to begin with, without secrets.
        connected: whether all masters that are in use are connected, and there is one.
        since: `trio.current_time()` of the last change of a connection; of the start of time if there was none.
        reconnects: shared connections made after the first one of each node.
        sent: commands sent over the shared connections.
        pending: requests queued or unanswered on them.
        queued_bytes: bytes queued and not given to the sockets.
        dedicated: connections of their own in use.
        last_error: the last trouble reported, or None.
        last_error_at: `trio.current_time()` of it, or None.
        masters: how many own slots.
        replicas: how many are known.
        served_slots: slots that have an owner.
        readings: how often the topology was read.
        read_at: `trio.current_time()` of the last reading, or None.
        moved: MOVED replies that were followed.
        asked: ASK replies that were followed.
        repeated: attempts made again after trouble.
        nodes: those that are in use.
    """

    address: str
    connected: bool
    since: float
    reconnects: int
    sent: int
    pending: int
    queued_bytes: int
    dedicated: int
    last_error: Exception | None
    last_error_at: float | None
    masters: int
    replicas: int
    served_slots: int
    readings: int
    read_at: float | None
    moved: int
    asked: int
    repeated: int
    nodes: tuple[NodeStatistics, ...]


def statistics_of(
    router: Router, dedicated: int, last_error: Exception | None, last_error_at: float | None
) -> ClusterStatistics:
    """A snapshot; does not block."""
    discovery = router.discovery
    topology = discovery.topology
    nodes = tuple(
        NodeStatistics(
            address=node.address,
            slots=0 if topology is None else topology.slots_of(node.address),
            connected=node.link.connected,
            since=node.link.since,
            connections=node.link.connections,
            sent=node.link.sent,
            pending=node.link.pending,
            queued_bytes=node.link.queued_bytes,
            troubled=discovery.is_suspect(node.address),
        )
        for node in router.nodes
    )
    used = [node for node in nodes if node.slots]
    return ClusterStatistics(
        address=router.options.address,
        connected=bool(used) and all(node.connected for node in used),
        since=max((node.since for node in nodes), default=0.0),
        reconnects=router.nodes.reconnects_before + sum(max(0, node.connections - 1) for node in nodes),
        sent=router.nodes.sent_before + sum(node.sent for node in nodes),
        pending=sum(node.pending for node in nodes),
        queued_bytes=sum(node.queued_bytes for node in nodes),
        dedicated=dedicated,
        last_error=last_error,
        last_error_at=last_error_at,
        masters=0 if topology is None else len(topology.masters),
        replicas=0 if topology is None else len(topology.replicas),
        served_slots=0 if topology is None else topology.served,
        readings=discovery.readings,
        read_at=discovery.since if discovery.readings else None,
        moved=router.moved,
        asked=router.asked,
        repeated=router.repeated,
        nodes=nodes,
    )
