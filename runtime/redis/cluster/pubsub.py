"""`ClusterSubscriber`: subscriptions in a cluster, each at a node that gets its messages."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import redis.exceptions
import trio
from attrs import define, evolve, field

from ..backoff import Backoff
from ..errors import RedisUnavailable
from ..link import OnTrouble
from ..messages import Gap, Loss, Owner, Topic
from ..slots import slot_of
from ..subscriber import Subscriber
from .steps import target_of
from .topology import Address, Topology

if TYPE_CHECKING:
    from .client import RedisCluster

__all__ = ["ClusterSubscriber"]

_BACKOFF_CAP: Final = 0.5
"""Seconds: shorter than a single server's, for the slot may be on another node by then."""

_UNNOTICED: Final = 60.0
"""Seconds for which the others may list a node that is cut off: cluster-node-timeout (15 by default), an election."""


class ClusterSubscriber:
    """The `Subscriptions` of a cluster's `PubSub`.

    Messages on plain channels reach every node, so these (and the patterns) are all subscribed to at one master, any.
    Shard channels are at the owner of their slot. There is one connection to each node that is needed.

    A topic that is lost (its connection, or its slot) is subscribed to again where it belongs by then, and its `Gap`
    follows. As long as its node cannot be reached, the topology is read again before each attempt.

    A node that the others have given up may go on taking itself for the owner, and answer every PING: so each reading
    of the topology is compared with where the topics are. Two that agree are believed: on another owner of a shard
    channel's slot, or on a cluster without the node where the plain channels are. For the same reason the `Gap` of a
    shard channel begins with the last reading that found everything in its place, and that of a plain channel
    `_UNNOTICED` before it, for a node that is cut off gets nothing from then on, and is still listed for a while.
    """

    def __init__(self, cluster: RedisCluster, owner: Owner, on_trouble: OnTrouble, rng: random.Random) -> None:
        self._cluster = cluster
        self._owner = owner
        self._on_trouble = on_trouble
        self._rng = rng
        self._posts: dict[Address, _Post] = {}
        self._homes: dict[Topic, Address] = {}
        self._homed_at: dict[Topic, float] = {}
        self._homeless: dict[Topic, Loss | None] = {}
        self._doubtful: dict[Topic, Address] = {}  # what could not be had there
        self._plain_home: Address | None = None
        self._is_stale = False  # whether the topology is known to be
        self._is_news = False  # whether it was read since it was last compared
        self._misplaced: dict[Topic, Address | None] = {}  # and who should have it, as the last reading says; None: any
        self._in_order_at = trio.current_time()  # the last reading that found no misplaced topic
        self._lost_since: dict[Topic, float] = {}  # shard channels whose gap has not been told
        self._work = trio.Event()

    def want(self, topic: Topic, loss: Loss | None = None) -> None:
        """As `Subscriber.want`."""
        self._homeless[topic] = loss
        self._work.set()

    def unwant(self, topic: Topic) -> bool:
        """As `Subscriber.unwant`."""
        self._homeless.pop(topic, None)
        home = self._homes.pop(topic, None)
        self._homed_at.pop(topic, None)
        self._lost_since.pop(topic, None)
        self._work.set()
        return home is not None and self._posts[home].subscriber.unwant(topic)

    def topology_read(self) -> None:
        """The cluster's client has read the topology. Does not block."""
        self._is_news = True
        self._work.set()

    def resume(self) -> None:
        """As `Subscriber.resume`."""
        for post in self._posts.values():
            post.subscriber.resume()

    async def run(self) -> None:
        """Until cancelled. Never raises (unless `on_trouble` or the owner does)."""
        backoff = Backoff(random=self._rng.random, cap=_BACKOFF_CAP)
        async with trio.open_nursery() as nursery:
            while True:
                self._work = trio.Event()
                try:
                    await self._place_all(nursery)
                except RedisUnavailable as error:
                    self._is_stale = True
                    self._owner.hindered(list(self._homeless), error)
                    backoff.failed()
                    await backoff.wait()
                else:
                    backoff.succeeded()
                    await self._work.wait()

    # What the posts tell.

    def hindered(self, address: Address, topics: Iterable[Topic], error: Exception) -> None:
        topics = list(topics)
        for topic in topics:
            if self._homes.get(topic) == address:
                self._doubtful[topic] = address
                self._is_stale = True
                if self._posts[address].subscriber.is_lost(topic):
                    self._note_loss(topic)
        self._owner.hindered(topics, error)
        self._work.set()

    def refused(self, address: Address, topic: Topic, error: Exception, loss: Loss | None) -> None:
        self._homes.pop(topic, None)
        self._work.set()
        target = target_of(error, address) if isinstance(error, redis.exceptions.MovedError) else None
        if target is None:
            self._homed_at.pop(topic, None)
            self._lost_since.pop(topic, None)
            self._owner.refused(topic, error, loss)
        else:
            self._cluster.moved(slot_of(topic.name), target)
            self.want(topic, loss)

    def dropped(self, topic: Topic, loss: Loss) -> None:
        self._note_loss(topic)
        self._homes.pop(topic, None)
        self._is_stale = True
        self.want(topic, loss)

    def _trouble(self, error: Exception) -> None:
        """Also silence that ends before the deadline: a failover may have happened meanwhile."""
        self._is_stale = True
        self._work.set()
        self._on_trouble(error)

    def interrupted(self, gap: Gap) -> None:
        shards = [Topic("shard", name) for name in gap.channels if isinstance(name, bytes)]
        since = [self._lost_since.pop(topic) for topic in shards if topic in self._lost_since]
        self._owner.interrupted(evolve(gap, lost_at=min([gap.lost_at, *since])))

    # Homes.

    async def _place_all(self, nursery: trio.Nursery) -> None:
        """Raises RedisUnavailable: no node answers, or none serves a slot."""
        if self._is_stale:
            self._is_stale = False
            await self._cluster.refresh()
        masters = await self._cluster.masters()  # reads the topology if there is none
        topology = self._cluster.topology
        assert topology is not None  # noqa: S101
        losses: dict[float, Loss] = {}
        doubtful, self._doubtful = self._doubtful, {}
        for topic, address in doubtful.items():
            if self._homes.get(topic) == address and not self._posts[address].subscriber.has(topic):
                self._leave_wrong_home(topic, address, topology, losses)
        if self._is_news:
            self._is_news = False
            self._look_for_misplaced(topology, losses)
        for topic in list(self._homeless):
            home = self._home_of(topic, topology, masters)
            if home is not None:
                self._settle(topic, home, nursery)
        self._close_idle()
        if self._homeless:
            slot = slot_of(next(iter(self._homeless)).name)
            raise RedisUnavailable(self._cluster.options.address, f"no node serves slot {slot}")

    def _leave_wrong_home(self, topic: Topic, home: Address, topology: Topology, losses: dict[float, Loss]) -> None:
        if _belongs(topic, home, topology):
            return
        loss = self._posts[home].subscriber.give_up(topic)
        if topic.kind != "shard":
            if self._plain_home == home:
                self._plain_home = self._any_other(home, topology.masters)
            if loss is not None and home not in topology.nodes:  # perhaps longer than it has not answered
                loss = min(loss, self._loss_of_misplaced(topic, losses), key=lambda each: each.lost_at)
        del self._homes[topic]
        self._homeless[topic] = loss

    def _look_for_misplaced(self, topology: Topology, losses: dict[float, Loss]) -> None:
        before, self._misplaced = self._misplaced, {}
        nodes = frozenset(topology.nodes)
        for topic, home in list(self._homes.items()):
            owner = topology.owner(slot_of(topic.name)) if topic.kind == "shard" else None
            if (owner in (None, home)) if topic.kind == "shard" else (home in nodes):
                continue
            # Also when it is the owner's replica now: that gets the messages, but it may have missed some.
            if topic in before and before[topic] == owner:
                loss = self._loss_of_misplaced(topic, losses)
                del self._homes[topic]
                self._homeless[topic] = self._posts[home].subscriber.give_up(topic) or loss
            else:
                self._misplaced[topic] = owner
        if self._misplaced:
            self._is_stale = True
            self._work.set()
        elif not before:
            self._in_order_at = trio.current_time()

    def _loss_of_misplaced(self, topic: Topic, losses: dict[float, Loss]) -> Loss:
        """Plain channels that were lost together share theirs, out of `losses`, so that one `Gap` tells of them."""
        if topic.kind == "shard":
            self._note_loss(topic)
            return Loss("another node owns the slot", self._lost_since[topic])
        since = max(self._in_order_at - _UNNOTICED, self._homed_at[topic])
        return losses.setdefault(since, Loss("its node has left the cluster", since))

    def _note_loss(self, topic: Topic) -> None:
        """The slot may have had another owner for longer than the one whom we had asked knew."""
        if topic.kind == "shard":
            surely_there_at = max(self._in_order_at, self._homed_at.get(topic, self._in_order_at))
            self._lost_since.setdefault(topic, surely_there_at)

    def _home_of(self, topic: Topic, topology: Topology, masters: tuple[Address, ...]) -> Address | None:
        """Where it belongs; None while no node serves its slot."""
        if topic.kind == "shard":
            return topology.owner(slot_of(topic.name))
        if self._plain_home not in masters:
            self._plain_home = self._any_other(None, masters)
        return self._plain_home

    def _any_other(self, address: Address | None, masters: tuple[Address, ...]) -> Address | None:
        others = [master for master in masters if master != address]
        return self._rng.choice(others) if others else address

    def _settle(self, topic: Topic, home: Address, nursery: trio.Nursery) -> None:
        if home not in self._posts:
            self._posts[home] = self._open_post(home, nursery)
        self._homes[topic] = home
        self._homed_at[topic] = trio.current_time()
        self._posts[home].subscriber.want(topic, self._homeless.pop(topic))

    def _open_post(self, address: Address, nursery: trio.Nursery) -> _Post:
        cluster, backoff = self._cluster, Backoff(random=self._rng.random, cap=_BACKOFF_CAP)
        teller = _Teller(self, self._owner, address)
        options, connect = cluster.options.for_node(address), cluster.connect_to(address)
        post = _Post(Subscriber(options, connect, self._trouble, backoff, teller, self.dropped))
        nursery.start_soon(post.run)
        return post

    def _close_idle(self) -> None:
        """End the connections that nothing needs any more; what was to be unsubscribed there is, then."""
        for address, post in list(self._posts.items()):
            if not post.subscriber.wanted:
                post.scope.cancel()
                del self._posts[address]


def _belongs(topic: Topic, home: Address, topology: Topology) -> bool:
    if topic.kind == "shard":
        return topology.owner(slot_of(topic.name)) == home
    return topology.masters == (home,)  # anywhere else, but if there is nothing else


@define(eq=False)
class _Post:
    """The connection to one node."""

    subscriber: Subscriber
    scope: trio.CancelScope = field(factory=trio.CancelScope)

    async def run(self) -> None:
        with self.scope:
            await self.subscriber.run()


class _Teller:
    """The `Owner` of one node's `Subscriber`: knows which node it is."""

    def __init__(self, subscriber: ClusterSubscriber, owner: Owner, address: Address) -> None:
        self._subscriber = subscriber
        self._address = address
        self._owner = owner
        self.received = owner.received
        self.confirmed = owner.confirmed
        self.released = owner.released
        self.interrupted = subscriber.interrupted

    @property
    def is_full(self) -> bool:
        return self._owner.is_full

    def refused(self, topic: Topic, error: Exception, loss: Loss | None) -> None:
        self._subscriber.refused(self._address, topic, error, loss)

    def hindered(self, topics: Iterable[Topic], error: Exception) -> None:
        self._subscriber.hindered(self._address, topics, error)
