"""`Topology`: which node owns which slot; read from CLUSTER SLOTS, corrected by MOVED. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..errors import InvalidRedisUrl
from ..slots import SLOTS

__all__ = ["Address", "Topology", "parse_slots", "read_address", "redirected_to"]

_EPOCH: Final = re.compile(r"^cluster_current_epoch:(\d+)", re.MULTILINE)
_UNKNOWN: Final = "?"
"""What a node says that prefers host names, of a node that has none."""


class Address(NamedTuple):
    """Where a node takes clients."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def read_address(text: str, port: int) -> Address:
    """`host`, `host:port`, `[IPv6]` or `[IPv6]:port`, as in a URL; `port` if there is none. Raises InvalidRedisUrl."""
    host, colon, given = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, given = text, str(port)
    if not given.isdecimal() or not host or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise InvalidRedisUrl(f"Redis URL: {text!r} is not host:port")
    return Address(host.strip("[]"), int(given))


class Topology:
    """The owners of the slots, and the masters' replicas, as one node sees them.

    Args:
        owners: for each slot its master, or None where it is served by no node.
        replicas: master -> its replicas.
        epoch: the cluster's current epoch, as that node knows it; None: it does not say. It grows with each failover,
            so that a node which is cut off from the others can be told by its lower one.
    """

    def __init__(
        self,
        owners: Sequence[Address | None],
        replicas: Mapping[Address, Sequence[Address]],
        epoch: int | None = None,
    ) -> None:
        if len(owners) != SLOTS:
            raise ValueError(f"a topology has {SLOTS} slots, not {len(owners)}")
        self.epoch = epoch
        self._owners = list(owners)
        self._replicas = {master: tuple(each) for master, each in replicas.items()}
        self._counts: dict[Address, int] = {}
        for owner in owners:
            if owner is not None:
                self._counts[owner] = self._counts.get(owner, 0) + 1

    def __repr__(self) -> str:
        return f"<Topology: {len(self._counts)} masters, {len(self.replicas)} replicas, {self.served} of {SLOTS} slots>"

    def owner(self, slot: int) -> Address | None:
        """The master of a slot; None while no node serves it."""
        return self._owners[slot]

    @property
    def owners(self) -> tuple[Address | None, ...]:
        """The master of each slot, as of now."""
        return tuple(self._owners)

    @property
    def masters(self) -> tuple[Address, ...]:
        """All nodes that own a slot, in the order of their first slots as far as known."""
        return tuple(self._counts)

    def replicas_of(self, master: Address) -> tuple[Address, ...]:
        """The replicas of a master."""
        return self._replicas.get(master, ())

    @property
    def replicas(self) -> tuple[Address, ...]:
        """All replicas."""
        return tuple(dict.fromkeys(each for found in self._replicas.values() for each in found))

    @property
    def nodes(self) -> tuple[Address, ...]:
        """Masters, then replicas."""
        return tuple(dict.fromkeys((*self._counts, *self.replicas)))

    @property
    def served(self) -> int:
        """How many slots have an owner."""
        return sum(self._counts.values())

    def slots_of(self, master: Address) -> int:
        """How many slots a node owns."""
        return self._counts.get(master, 0)

    def owns_slots(self, address: Address) -> bool:
        """Whether the node is a master with a slot."""
        return address in self._counts

    def move(self, slot: int, owner: Address) -> bool:
        """Note that a slot is elsewhere (MOVED); returns whether that was news."""
        before = self._owners[slot]
        if before == owner:
            return False
        self._owners[slot] = owner
        self._counts[owner] = self._counts.get(owner, 0) + 1
        if before is not None:
            self._counts[before] -= 1
            if not self._counts[before]:
                del self._counts[before]
        return True


def parse_slots(reply: Iterable[Any], asked: Address, info: Any = None) -> Topology:
    """Read a reply of CLUSTER SLOTS, and one of CLUSTER INFO (an error, say, tells nothing).

    A node without a host ("" or null) is on the host that was asked. "?" is a node that has no name to be called by:
    its IP address from the metadata is taken, and without one the node is left out. Raises ValueError for what is no
    reply of CLUSTER SLOTS.
    """
    owners: list[Address | None] = [None] * SLOTS
    replicas: dict[Address, list[Address]] = {}
    try:
        for low, high, master, *others in reply:
            address = _address(master, asked)
            owners[low : high + 1] = [address] * (high + 1 - low)
            if address is not None:
                found = replicas.setdefault(address, [])
                found.extend(each for other in others if (each := _address(other, asked)) and each not in found)
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError("this is no reply of CLUSTER SLOTS") from error
    return Topology(owners, replicas, _epoch(info))


def redirected_to(host: str, port: int, asked: Address) -> Address | None:
    """The node that MOVED or ASK names; None when it has no name. No host means the host that was asked."""
    return None if host == _UNKNOWN else Address(host or asked.host, port)


def _epoch(info: Any) -> int | None:
    found = _EPOCH.search(_text(info)) if isinstance(info, (bytes, str)) else None
    return int(found[1]) if found else None


def _address(node: Sequence[Any], asked: Address) -> Address | None:
    host, port = _text(node[0]), int(node[1])
    if host == _UNKNOWN:
        metadata = node[3] if len(node) > 3 else ()
        pairs = metadata.items() if isinstance(metadata, Mapping) else zip(metadata[::2], metadata[1::2], strict=False)
        host = next((_text(value) for name, value in pairs if _text(name) == "ip"), _UNKNOWN)
    return redirected_to(host, port, asked)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value.decode() if isinstance(value, bytes) else str(value)
