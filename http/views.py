"""What is shown of a running system, as JSON values: tree, gates, streams. Pure, and without secrets."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ..actors.cluster_view import ClusterView
from ..actors.leasing import LEASE_GATE
from ..actors.probes import StreamView
from ..runtime.mailbox import MailboxStatistics
from ..runtime.masking import mask_text
from ..runtime.supervision import ChildView, ErrorInfo, Gates, GateView, LifecycleEvent, Snapshot

__all__ = [
    "child_json",
    "cluster_json",
    "event_json",
    "gate_json",
    "held_json",
    "iso",
    "readiness",
    "shut_gate",
    "stream_json",
    "tree_json",
]

_COMING = ("waiting", "starting")
"""What a child is between the opening of its gate, or its turn, and the moment when it works."""


def iso(moment: datetime) -> str:
    """A time in UTC with milliseconds."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def tree_json(snapshot: Snapshot) -> dict[str, Any]:
    """The whole tree at one moment."""
    return {
        "time": iso(snapshot.time),
        "sequence": snapshot.sequence,
        "gates": [gate_json(gate, snapshot.time) for gate in snapshot.gates],
        "tree": child_json(snapshot.root),
    }


def child_json(child: ChildView) -> dict[str, Any]:
    """A child and all below it. Of its last error the type and the text, not the traceback."""
    return {
        "id": child.id,
        "path": child.path,
        "kind": child.kind,
        "state": child.state,
        "incarnation": child.incarnation,
        "restarts": child.restarts,
        "heldBy": child.held_by,
        "cause": mask_text(child.cause) if child.cause else None,
        "nextStartIn": None if child.next_start_in is None else round(child.next_start_in, 3),
        "note": mask_text(child.note),
        "lastError": _error_json(child.last_error),
        "strategy": child.strategy,
        "restartsLeft": child.restarts_left,
        "mailboxes": [mailbox_json(each) for each in child.mailboxes],
        "children": [child_json(each) for each in child.children],
    }


def _error_json(error: ErrorInfo | None) -> dict[str, str] | None:
    return None if error is None else {"type": error.type, "message": mask_text(error.message)}


def event_json(event: LifecycleEvent) -> dict[str, Any]:
    """A lifecycle event. Of its error the type and the text, not the traceback."""
    return {
        "sequence": event.sequence,
        "time": iso(event.time),
        "kind": event.kind.value,
        "path": event.path,
        "incarnation": event.incarnation,
        "reason": mask_text(event.reason),
        "error": _error_json(event.error),
        "seconds": None if event.seconds is None else round(event.seconds, 3),
        "cause": event.cause,
    }


def mailbox_json(mailbox: MailboxStatistics) -> dict[str, Any]:
    """How full a mailbox is and was; ages and waits in seconds."""
    return {
        "name": mailbox.name,
        "depth": mailbox.depth,
        "capacity": mailbox.capacity,
        "peak": mailbox.peak,
        "oldestAge": round(mailbox.oldest_age, 3),
        "waitP99": round(mailbox.wait_p99, 3),
        "received": mailbox.received,
        "dropped": mailbox.dropped,
        "refused": mailbox.refused,
    }


def gate_json(gate: GateView, now: datetime) -> dict[str, Any]:
    """A gate; `seconds` is how long it has been as it is."""
    return {
        "name": gate.name,
        "open": gate.open,
        "cause": mask_text(gate.cause) if gate.cause else None,
        "since": iso(gate.since),
        "seconds": round(max(0.0, (now - gate.since).total_seconds()), 3),
    }


def shut_gate(gates: Gates, name: str) -> GateView | None:
    """The gate of this name if there is one, and it is shut."""
    return next((view for view in gates.view() if view.name == name and not view.open), None)


def held_json(root: ChildView) -> list[dict[str, Any]]:
    """The children that a shut gate holds."""
    return [{"path": child.path, "heldBy": child.held_by} for child in root.walk() if child.state == "held"]


def stream_json(stream: StreamView, now: datetime, clock: float) -> dict[str, Any]:
    """A stream and its groups, as last observed; `clock` is `trio.current_time()` at `now`."""
    observed_at = now - timedelta(seconds=max(0.0, clock - stream.observed_at))
    return {
        "key": stream.key,
        "length": stream.length,
        "lastId": stream.last_id,
        "observedAt": iso(observed_at),
        "groups": [
            {"name": group.name, "lag": group.lag, "pending": group.pending, "consumers": group.consumers}
            for group in stream.groups
        ],
    }


def cluster_json(cluster: ClusterView, now: datetime, clock: float) -> dict[str, Any]:
    """A Redis Cluster, as last observed; `clock` is `trio.current_time()` at `now`."""
    addresses = {node.id: node.address for node in cluster.nodes}
    observed_at = now - timedelta(seconds=max(0.0, clock - cluster.observed_at))
    return {
        "state": cluster.state,
        "slots": cluster.covered,
        "observedAt": iso(observed_at),
        "nodes": [
            {
                "address": node.address,
                "role": node.role,
                "replicaOf": addresses.get(node.master_id),
                "failed": node.failed,
                "slots": node.slots,
                "streams": list(node.streams),
            }
            for node in cluster.nodes
        ],
    }


def readiness(
    snapshot: Snapshot, streams: Iterable[StreamView], own_gates: Collection[str] = ()
) -> tuple[bool, dict[str, Any]]:
    """Whether events can be taken and handled now, and what stands in the way.

    While a gate of the system's own (one of `own_gates`) is shut, some handlers wait for something outside; it is
    shown, and this process is ready: another one would not do better.
    """
    # A partition that another process has is no fault of this one.
    gates = [gate for gate in snapshot.gates if not gate.name.startswith(LEASE_GATE)]
    shut = [gate_json(gate, snapshot.time) for gate in gates if not gate.open]
    held = [child for child in held_json(snapshot.root) if not str(child["heldBy"]).startswith(LEASE_GATE)]
    in_the_way = [each for each in shut if each["name"] not in own_gates]
    in_the_way += [each for each in held if each["heldBy"] not in own_gates]
    starting = [child.path for child in snapshot.root.walk() if child.state in _COMING]
    ready = not in_the_way and not starting and snapshot.root.state == "running"
    return ready, {
        "time": iso(snapshot.time),
        "state": snapshot.root.state,
        "gates": shut,
        "held": held,
        "starting": starting,
        "lag": list(_lags(streams)),
    }


def _lags(streams: Iterable[StreamView]) -> Iterator[dict[str, Any]]:
    for stream in streams:
        for group in stream.groups:
            yield {"stream": stream.key, "group": group.name, "lag": group.lag, "pending": group.pending}
