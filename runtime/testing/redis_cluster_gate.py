"""`ClusterGate`: a node's redirections, and what it says about the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from ..redis.slots import SLOTS, slot_of
from ._fakeredis import OK, SimpleError
from .redis_commands import COMMANDS, Command, keys_of, name_of
from .redis_encoding import Verbatim
from .redis_gate import Gate
from .redis_session import Session

if TYPE_CHECKING:
    from .redis_cluster import InProcessClusterNode

__all__ = ["ClusterGate"]

_DOWN: Final = "CLUSTERDOWN The cluster is down"
_NOT_SERVED: Final = "CLUSTERDOWN Hash slot not served"
_TRY_AGAIN: Final = "TRYAGAIN Multiple keys request during rehashing of slot"
_CROSS_SLOT: Final = "CROSSSLOT Keys in request don't hash to the same slot"
_SHARD_CHANNELS: Final = frozenset({"ssubscribe", "sunsubscribe", "spublish"})


class ClusterGate(Gate):
    """The `Gatekeeper` of a node."""

    def __init__(self, node: InProcessClusterNode) -> None:
        super().__init__()
        self._node = node

    def redirect(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`; in the order of a real node's checks (measured on Valkey 9.1)."""
        keys = keys_of(command, words)
        if command.name == "exec":
            keys = [key for each in session.queued for key in keys_of(COMMANDS[name_of(each)], each)]
        if not keys:
            return None
        slots = {slot_of(key) for key in keys}
        node, slot = self._node, slot_of(keys[0])
        cluster = node.cluster
        owner = cluster.owner(slot)
        if owner is None:
            return _NOT_SERVED
        if len(slots) > 1:
            return _CROSS_SLOT
        if cluster.is_down():
            return _DOWN
        queueing = session.in_transaction and command.name != "exec"
        checks_keys = not queueing and command.name not in _SHARD_CHANNELS
        missing = [key for key in keys if key not in self._node.data.databases[0]] if checks_keys else []
        migration = cluster.migration(slot)
        if owner is node:
            if migration is None or not missing:
                return None
            target = migration[1]
            return f"ASK {slot} {target.host}:{target.port}" if len(missing) == len(keys) else _TRY_AGAIN
        if migration is not None and migration[1] is node and session.asking:
            return _TRY_AGAIN if len(keys) > 1 and missing else None
        if node.master is owner and session.read_only and "r" in command.flags:
            return None
        return f"MOVED {slot} {owner.host}:{owner.port}"

    def refusal(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """See `Gatekeeper`."""
        if command.name == "select" and words[1:] != [b"0"]:
            return "ERR DB index is out of range"
        if command.name == "swapdb":
            return "ERR SWAPDB is not allowed in cluster mode"
        if self._node.master is not None and command.writes:
            return "READONLY You can't write against a read only replica."
        return super().refusal(session, command, words)

    def cluster(self, session: Session, words: Sequence[bytes]) -> Any:
        """See `Gatekeeper`."""
        name = name_of(session.words)
        if name in ("readonly", "readwrite"):
            session.read_only = name == "readonly"
            return OK
        if name == "asking":
            session.asking = True
            return OK
        answer = getattr(self, "_" + name.replace(" ", "_"))
        return answer(*words)

    def facts(self) -> dict[str, Any]:
        """See `Gatekeeper`."""
        replicas = len(self._node.cluster.replicas_of(self._node))
        role = "master" if self._node.master is None else "slave"
        return {"mode": "cluster", "role": role, "replicas": replicas, "loading": self._loading(), "cluster": 1}

    def role(self) -> list[Any]:
        """See `Gatekeeper`."""
        if self._node.master is not None:
            return [b"slave", self._node.master.host.encode(), self._node.master.port, b"connected", 0]
        replicas = self._node.cluster.replicas_of(self._node)
        return [b"master", 0, [[node.host.encode(), b"%d" % node.port, b"0"] for node in replicas]]

    def _cluster_myid(self) -> bytes:
        return self._node.id.encode()

    def _cluster_keyslot(self, key: bytes) -> int:
        return slot_of(key)

    def _cluster_countkeysinslot(self, slot: bytes) -> int:
        return len(self._node.keys_in(_slot(slot)))

    def _cluster_getkeysinslot(self, slot: bytes, count: bytes) -> list[bytes]:
        return self._node.keys_in(_slot(slot))[: int(count)]

    def _cluster_info(self) -> Verbatim:
        cluster = self._node.cluster
        owned = {node: sum(high - low + 1 for low, high in cluster.ranges(node)) for node in cluster.masters()}
        assigned = sum(owned.values())
        failed = sum(count for node, count in owned.items() if node.given_up)
        facts = {
            "cluster_state": "fail" if cluster.is_down() else "ok",
            "cluster_slots_assigned": assigned,
            "cluster_slots_ok": assigned - failed,
            "cluster_slots_pfail": 0,
            "cluster_slots_fail": failed,
            "cluster_known_nodes": len(cluster.nodes),
            "cluster_size": sum(count > 0 for count in owned.values()),
            "cluster_current_epoch": len(cluster.nodes),
            "cluster_my_epoch": cluster.nodes.index(self._node) + 1,
        }
        return Verbatim("".join(f"{name}:{value}\r\n" for name, value in facts.items()).encode())

    def _cluster_nodes(self) -> Verbatim:
        return Verbatim("".join(self._line_of(node) + "\n" for node in self._node.cluster.nodes).encode())

    def _line_of(self, node: InProcessClusterNode) -> str:
        flags = ["myself"] if node is self._node else []
        flags.append("master" if node.master is None else "slave")
        flags += ["fail"] if node.given_up else []
        master = node.master.id if node.master is not None else "-"
        number = self._node.cluster.nodes.index(node) + 1
        link = "disconnected" if node.given_up else "connected"
        slots = [str(low) if low == high else f"{low}-{high}" for low, high in self._node.cluster.ranges(node)]
        words = [node.id, f"{node.host}:{node.port}@{node.port + 10000}", ",".join(flags), master, "0", "0"]
        return " ".join([*words, str(number), link, *slots])

    def _cluster_slots(self) -> list[Any]:
        cluster, rows = self._node.cluster, []
        for master in cluster.masters():
            nodes = [master, *(node for node in cluster.replicas_of(master) if not node.given_up)]
            for low, high in cluster.ranges(master):
                rows.append([low, high, *([each.host.encode(), each.port, each.id.encode(), {}] for each in nodes)])
        return sorted(rows, key=lambda row: row[0])

    def _cluster_shards(self) -> list[Any]:
        cluster = self._node.cluster
        return [
            {
                b"slots": [slot for pair in cluster.ranges(master) for slot in pair],
                b"nodes": [_shard_row(each) for each in (master, *cluster.replicas_of(master))],
                b"id": master.id[::-1].encode(),
            }
            for master in cluster.masters()
        ]


def _shard_row(node: InProcessClusterNode) -> dict[bytes, Any]:
    return {
        b"id": node.id.encode(),
        b"port": node.port,
        b"ip": node.host.encode(),
        b"endpoint": node.host.encode(),
        b"role": b"master" if node.master is None else b"replica",
        b"replication-offset": 0,
        b"health": b"fail" if node.given_up else b"online",
    }


def _slot(word: bytes) -> int:
    if not word.isdigit() or int(word) >= SLOTS:
        raise SimpleError("ERR Invalid or out of range slot")
    return int(word)
