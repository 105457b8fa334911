"""What the actors of all groups and queues of a process stand on."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from attrs import field, frozen

from .broadcasting import to_nobody
from .group_making import look_away
from .isolation import Isolation
from .stopping import Stopping
from .system import REDIS_GATES

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Gate, Gates
    from .channels import Notice
    from .event import Envelope
    from .handling import Unavailable
    from .settings import DeliverySettings
    from .store import Store, Transaction

__all__ = ["Site"]


@frozen(kw_only=True)
class Site:
    """See the module; one for each process.

    Attributes:
        client: the link to Redis.
        store: where effects go.
        gates: those of the tree.
        settings: how events reach their handlers.
        instance: the short stable id of the installation.
        live_instances: the installations that are not known to be gone; None while nobody knows.
        redis_trouble: told of every error of Redis, so that its gate can be shut at once.
        reader_trouble: the same for who reads.
        postgres_trouble: told of what keeps the database from working for us, for the same reason.
        outside_trouble: told what a handler says is away behind a gate of the system's own, for the same reason.
        publish: publishes to a stream within a handler's transaction, in the name of a group.
        broadcast: sends what a handler wants to have broadcast, after its transaction. Default: nobody is told.
        chance: random numbers in [0, 1) for the jitter.
        wall: what time it is, for events that expire.
        read_within: seconds within which a read that blocks for so many seconds has an end.
        patience: seconds for which a connection that breaks is no trouble yet.
        look: notes what a stream has lost, before somebody reads on in it.
        stopping: whether the process stops.
        isolation: what all pools of the process keep suspects apart by.
    """

    client: Callable[[], AnyRedis]
    store: Store
    gates: Gates
    settings: DeliverySettings
    instance: str
    live_instances: Callable[[], Collection[str] | None]
    redis_trouble: Callable[[Exception], None]
    reader_trouble: Callable[[Exception], None]
    postgres_trouble: Callable[[Exception], None]
    outside_trouble: Callable[[Unavailable], None] = lambda _: None
    publish: Callable[[Transaction, str, Sequence[Envelope], str], Awaitable[None]]
    broadcast: Callable[[Sequence[Notice]], Awaitable[None]] = to_nobody
    chance: Callable[[], float]
    wall: Callable[[], datetime]
    read_within: Callable[[float], float]
    patience: float
    look: Callable[[str], Awaitable[object]] = look_away
    stopping: Stopping = field(factory=Stopping)
    isolation: Isolation = field(factory=Isolation)

    @property
    def redis_gates(self) -> tuple[Gate, ...]:
        """The gates that Redis stands behind: that it is there, and that it takes something."""
        return tuple(self.gates[name] for name in REDIS_GATES)
