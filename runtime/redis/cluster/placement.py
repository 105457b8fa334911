"""`Placement`: where the keys of each slot were at one time, to find those that moved while somebody listed them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from attrs import frozen

from .topology import Address

__all__ = ["Placement", "arrivals_in"]


@frozen
class Placement:
    """The owners of the slots, and the slots that are on their way.

    Attributes:
        owners: for each slot its master, or None.
        arrivals: slots of which keys are arriving at another master than the owner: (slot, that master).
    """

    owners: tuple[Address | None, ...]
    arrivals: frozenset[tuple[int, Address]] = frozenset()

    def gained_since(self, before: Placement) -> list[Address]:
        """The masters to which keys may have come since then."""
        pairs = zip(self.owners, before.owners, strict=True)
        taken = [owner for owner, former in pairs if owner != former and owner is not None]
        return list(dict.fromkeys([*taken, *(address for _, address in self.arrivals - before.arrivals)]))


def arrivals_in(views: Mapping[Address, Any]) -> Iterable[tuple[int, Address]]:
    """What the nodes say of themselves in CLUSTER NODES, as redis-py reads it. Another reply tells nothing."""
    for address, nodes in views.items():
        for node in nodes.values() if isinstance(nodes, Mapping) else ():
            if "myself" in node["flags"]:
                yield from ((int(each["slot"]), address) for each in node["migrations"] if each["state"] == "importing")
