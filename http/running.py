"""What the HTTP floor sees of a running system: the one seam to the floor below."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import date
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

from ..actors.access import AccessCategory, AccessRecord, AccessSummary, CategoryChange
from ..actors.claim_order import ClaimResult
from ..actors.cluster_view import ClusterView
from ..actors.conditional import ConditionNotMet
from ..actors.delivery_view import DeliveryView
from ..actors.event import Envelope
from ..actors.findings import Finding
from ..actors.ledger import Ledger
from ..actors.letters import LetterDesk
from ..actors.losses import Loss
from ..actors.probes import StreamView
from ..actors.producer import Published, PublishFailed
from ..actors.queue_lists import QueueView
from ..actors.relay import OutboxView
from ..actors.system import System
from ..actors.upkeep import Upkeep
from ..runtime.postgres import Connection
from ..runtime.redis import AnyRedis
from ..runtime.supervision import Gates, Tree

__all__ = ["AccessStore", "DeliveryLook", "RunningSystem", "ZoneSettings"]


class ZoneSettings(Protocol):
    """What HTTP reads of the actors' settings."""

    @property
    def zone_info(self) -> ZoneInfo:
        """The zone whose days and offsets are shown."""
        ...


class AccessStore(Protocol):
    """The access events' tables; every method raises `PostgresUnavailable` while the database is away."""

    async def categories(self) -> list[AccessCategory]:
        """Those that are not deleted."""
        ...

    async def category_by_id(self, id: int, /) -> AccessCategory:  # noqa: A002 - the column's name
        """Raises `CategoryNotFound`."""
        ...

    async def category_by_code(self, code: str, /) -> AccessCategory:
        """Raises `CategoryNotFound`."""
        ...

    async def change_category(self, change: CategoryChange, /) -> AccessCategory:
        """Raises `CategoryNotFound` and `CategoryExists`."""
        ...

    async def summary(self, day: date, /) -> AccessSummary:
        """All of one day of the configured zone."""
        ...

    async def recent(self, limit: int, /) -> list[AccessRecord]:
        """The last ones, newest first."""
        ...


class DeliveryLook(Protocol):
    """Says how delivery stands."""

    async def look(self) -> DeliveryView:
        """How it stands now. Raises `PostgresUnavailable` while the database is away."""
        ...


class RunningSystem(Protocol):
    """A deployed system; `penstock.actors.deployment.Deployment` is the one there is."""

    @property
    def system(self) -> System:
        """Its declaration."""
        ...

    @property
    def tree(self) -> Tree:
        """Its supervision tree."""
        ...

    @property
    def gates(self) -> Gates:
        """Its gates."""
        ...

    @property
    def instance(self) -> str:
        """Its name among the processes of the same system."""
        ...

    @property
    def settings(self) -> ZoneSettings:
        """The actors' settings."""
        ...

    @property
    def access(self) -> AccessStore | None:
        """The access events' tables; None for a system without a database."""
        ...

    @property
    def letters(self) -> LetterDesk | None:
        """The desk of dead letters; None for a system without a database."""
        ...

    @property
    def delivery(self) -> DeliveryLook | None:
        """How delivery stands; None for a system without a database."""
        ...

    @property
    def ledger(self) -> Ledger | None:
        """What came of events; None for a system without a database."""
        ...

    @property
    def upkeep(self) -> Upkeep | None:
        """What keeps streams in order: replays, retention, losses; None where there is none."""
        ...

    def warnings(self) -> Sequence[Finding]:
        """What the start-up checks found that somebody should mend."""
        ...

    def client(self) -> AnyRedis:
        """The link to Redis; raises RuntimeError while its actor is not running."""
        ...

    def connection(self) -> AbstractAsyncContextManager[Connection[Any]]:
        """A connection to the database, in autocommit mode; raises `PostgresUnavailable` while it is away."""
        ...

    async def publish(self, stream: str, envelopes: Sequence[Envelope], /) -> list[Published | PublishFailed]:
        """One result an envelope, in order; an outage is a result, not an error."""
        ...

    async def publish_if(
        self, stream: str, envelope: Envelope, condition: str, /
    ) -> Published | ConditionNotMet | PublishFailed:
        """One event, if a condition holds; an outage is a result, not an error."""
        ...

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], /, *, idle: float, by: str
    ) -> list[ClaimResult]:
        """Have this process take pending entries over now; raises `KeeperHeld`, and the link's errors."""
        ...

    async def broadcast(self, channel: str, data: Any, /) -> int:
        """Tell every process that listens to `channel` now; how many Redis has counted. Raises the link's errors."""
        ...

    async def enqueue(self, queue: str, job: object, /) -> UUID:
        """Put a job into a work queue; an outage is an error, see `Deployment.enqueue`."""
        ...

    async def queues(self) -> Sequence[QueueView]:
        """The work queues as they are now; raises the link's errors."""
        ...

    def capture(self, envelope: Envelope, /) -> bool:
        """Take an access event without waiting; False: dropped, and counted."""
        ...

    def outbox(self) -> Sequence[OutboxView]:
        """What waited in the outbox when it was last looked at, by stream."""
        ...

    def losses(self) -> Sequence[Loss]:
        """What this process has met with of what was trimmed unread."""
        ...

    def streams(self) -> Sequence[StreamView]:
        """What was seen last, by the health monitor or a look."""
        ...

    async def look(self) -> Sequence[StreamView]:
        """The streams as they are now; raises the links' errors."""
        ...

    def cluster(self) -> ClusterView | None:
        """The Redis Cluster as the health monitor saw it last; None where there is none, or it was not seen yet."""
        ...

    def tail(self, stream: str, last_id: str, /) -> AsyncIterator[tuple[str, Envelope]]:
        """The entries after `last_id`, for ever."""
        ...
