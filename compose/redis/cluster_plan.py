"""What is to be done to make one Redis Cluster of some nodes: decided from what each of them says, without any I/O.

`decide` is asked again after each look at the nodes, and takes the first of these that is not as it should be:

1. the nodes are one cluster, or new and empty; if not, that is refused;
2. they know each other by the addresses that they have now (a container may come back with another one);
3. every slot has an owner: those that nobody has are shared out evenly over the nodes named first;
4. nodes without slots are replicas of the masters that lack one, as far as replicas are wanted;
5. `cluster_state` is ok on every node, all agree on who has what, and the replicas are in step.

What is as it should be is left alone: slots that have an owner are never moved, roles that a failover changed are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import field, frozen

from penstock.runtime.redis.slots import SLOTS

__all__ = ["NotYet", "Order", "Refused", "Row", "View", "decide"]

NO_LINK = frozenset({"handshake", "noaddr", "fail", "fail?"})
"""Flags of a node that the one asked cannot talk to."""


class Refused(Exception):
    """Waiting would not help, and going on could do harm."""


class NotYet(Exception):
    """Something is not as it should be, and may become so by itself."""


@frozen
class Row:
    """A line of CLUSTER NODES: what the node asked knows of one node, itself among them.

    Attributes:
        id: the node's id.
        address: `ip:port@bus-port[,name]`, as the node asked has it.
        flags: `master`, `slave`, `myself`, `fail`, …
        master: the id of the node's master; `-` for a master.
        connected: whether there is a link to it.
        slots: what it has.
    """

    id: str
    address: str
    flags: frozenset[str]
    master: str
    connected: bool
    slots: frozenset[int] = field(repr=False)

    @classmethod
    def parse(cls, line: str) -> Row:
        identity, address, flags, master, _, _, _, link, *slots = line.split(" ")
        held: set[int] = set()
        for each in slots:
            if not each.startswith("["):  # a slot on its way; it is its owner's until it has arrived
                low, _, high = each.partition("-")
                held.update(range(int(low), int(high or low) + 1))
        return cls(identity, address, frozenset(flags.split(",")), master, link == "connected", frozenset(held))

    @property
    def usable(self) -> bool:
        return self.connected and not self.flags & NO_LINK


@frozen
class View:
    """What one of the nodes says of itself and of those that it knows.

    Attributes:
        name: as the user has it, `host:port`.
        ip: the address that the host has now.
        port: where it listens.
        me: its own row.
        rows: all rows by id, its own among them; without handshakes, whose ids mean nothing.
        state: `cluster_state`.
        keys: how many it holds.
        in_step: whether it is a master, or a replica with a link to its master and a full copy.
    """

    name: str
    ip: str
    port: int
    me: Row
    rows: dict[str, Row] = field(repr=False)
    state: str
    keys: int
    in_step: bool

    @property
    def is_master(self) -> bool:
        return "master" in self.me.flags

    @property
    def is_alone(self) -> bool:
        return len(self.rows) == 1

    @property
    def is_new(self) -> bool:
        """Whether it is in no cluster, not even in one of its own."""
        return self.is_alone and not self.me.slots

    @property
    def owner(self) -> Row:
        """The master whose slots it serves: itself, or the one that it is a replica of."""
        return self.me if self.is_master else self.rows.get(self.me.master, self.me)


@frozen
class Order:
    """A command for one node, and what it is good for."""

    name: str
    command: tuple[str | int, ...]
    purpose: str


def decide(views: Sequence[View], replicas: int) -> list[Order]:
    """What is to be done now; nothing when all is in order.

    Args:
        views: one for each node, in the order in which the user named them.
        replicas: how many each master is to have.

    Raises:
        NotYet: there is nothing to do but wait.
        Refused: the nodes must not be made one cluster.
    """
    _refuse_strangers(views)
    if orders := _introductions(views):
        return orders
    if orders := _assignments(views, len(views) // (replicas + 1)):
        return orders
    if orders := _attachments(views, replicas):
        return orders
    _wait_for_health(views)
    return []


def _refuse_strangers(views: Sequence[View]) -> None:
    identities = {view.me.id: view.name for view in views}
    for view in views:
        if identities[view.me.id] != view.name:
            raise Refused(f"{view.name} and {identities[view.me.id]} are the same node; name each node once")
        if view.is_alone and view.keys:  # it may have taken the slots of its keys when it was started with them
            raise Refused(
                f"{view.name} is in no cluster, and holds {view.keys} keys; empty it with FLUSHALL and CLUSTER RESET "
                "if nobody needs them"
            )
    clusters = _clusters(views)
    if len(clusters) > 1:
        parts = " | ".join(", ".join(view.name for view in each) for each in clusters)
        raise Refused(f"the nodes belong to different clusters ({parts}), which are never joined")
    if clusters and len(clusters[0]) < len(views):
        _refuse_foreign(clusters[0])


def _refuse_foreign(members: Sequence[View]) -> None:
    """New nodes are let into the cluster that is meant, not into another one of which a node was named by mistake."""
    slots = _union(row for view in members for row in view.rows.values())
    if 2 * len(_union(view.owner for view in members)) < len(slots):
        raise Refused(
            f"{members[0].name} belongs to a cluster most of whose slots are on nodes that are not named here; "
            "name all of its nodes to add new ones"
        )


def _clusters(views: Sequence[View]) -> list[list[View]]:
    """The nodes that are in a cluster, by cluster: two that have any acquaintance in common are in the same one."""
    found: list[list[View]] = []
    for view in views:
        if not view.is_new:
            mine = [each for each in found if any(view.rows.keys() & other.rows.keys() for other in each)]
            found = [each for each in found if each not in mine] + [[*(one for each in mine for one in each), view]]
    return found


def _introductions(views: Sequence[View]) -> list[Order]:
    """One node is told the present addresses of all others; only then they are told each other's, which gossip would
    spread as well, some seconds later. (At once, it could look like two clusters for a moment.)
    """
    anchor = max(views, key=lambda view: sum(row.usable for row in view.rows.values()))
    return _meetings(anchor, views) or [
        order for place, view in enumerate(views) for order in _meetings(view, views[place + 1 :])
    ]


def _meetings(view: View, others: Iterable[View]) -> list[Order]:
    return [
        Order(view.name, ("CLUSTER", "MEET", other.ip, other.port), f"meets {other.name} at {other.ip}")
        for other in others
        if other is not view and not _know_each_other(view, other)
    ]


def _know_each_other(one: View, other: View) -> bool:
    rows = one.rows.get(other.me.id), other.rows.get(one.me.id)
    return all(row is not None and row.usable for row in rows)


def _assignments(views: Sequence[View], masters: int) -> list[Order]:
    """Orders for the slots that nobody has, as far as any node knows."""
    taken = _union(row for view in views for row in view.rows.values())
    if len(taken) == SLOTS:
        return []
    by_id = {view.me.id: view for view in views if view.is_master}
    orders = []
    for number, view in enumerate(views[:masters]):
        share = range(number * SLOTS // masters, (number + 1) * SLOTS // masters)
        target = by_id.get(view.owner.id) or next(iter(by_id.values()))
        for low, high in _ranges(slot for slot in share if slot not in taken):
            orders.append(Order(target.name, ("CLUSTER", "ADDSLOTSRANGE", low, high), f"takes slots {low}-{high}"))
    return orders


def _attachments(views: Sequence[View], replicas: int) -> list[Order]:
    """Orders that make nodes without slots replicas of the masters that lack one, in the order of their names."""
    masters = {view.me.id: view for view in views if view.is_master and view.me.slots}
    others = {identity: row for identity, row in views[0].rows.items() if row.usable}
    attached = dict.fromkeys(masters, 0)
    for row in {**others, **{view.me.id: view.me for view in views}}.values():
        if row.master in attached:
            attached[row.master] += 1
    orders = []
    for view in views:
        if view.is_master and not view.me.slots and masters:
            chosen = min(attached, key=lambda identity: attached[identity])
            if attached[chosen] < replicas:
                attached[chosen] += 1
                purpose = f"becomes a replica of {masters[chosen].name}"
                orders.append(Order(view.name, ("CLUSTER", "REPLICATE", chosen), purpose))
    return orders


def _wait_for_health(views: Sequence[View]) -> None:
    for view in views:
        for row in view.rows.values():
            if row.slots and not row.usable:
                slots = ", ".join(f"{low}-{high}" for low, high in _ranges(row.slots))
                raise NotYet(
                    f"slots {slots} belong to node {row.id} ({row.address}), which is away: start it with its data, "
                    f"or give them up (CLUSTER FORGET {row.id} on each node that knows it, within a minute)"
                )
        if view.state != "ok":
            raise NotYet(f"cluster_state is {view.state} on {view.name}")
        if not view.in_step:
            raise NotYet(f"the replica {view.name} is not in step with its master")
    if len({frozenset((row.id, row.slots) for row in view.rows.values() if row.slots) for view in views}) > 1:
        raise NotYet("the nodes do not agree on who has which slots")


def _union(rows: Iterable[Row]) -> frozenset[int]:
    return frozenset[int]().union(*(row.slots for row in rows))


def _ranges(slots: Iterable[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    return found
