"""A running system in memory: real tree, real gates, real declaration; Redis and PostgreSQL are lists."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import trio
from attrs import define, evolve, field, frozen

from penstock.actors.access import (
    AccessCategory,
    AccessEvent,
    AccessRecord,
    AccessSummary,
    CategoryChange,
    CategoryExists,
    CategoryNotFound,
    CategorySummary,
)
from penstock.actors.claim_order import ClaimResult, KeeperHeld
from penstock.actors.cluster_view import ClusterView
from penstock.actors.conditional import ConditionNotMet
from penstock.actors.delivery_view import DeliveryView
from penstock.actors.event import Envelope, event
from penstock.actors.findings import Finding
from penstock.actors.ledger import Ledger
from penstock.actors.letters import LetterDesk
from penstock.actors.losses import Loss
from penstock.actors.probes import GroupView, StreamView
from penstock.actors.producer import Published, PublishFailed
from penstock.actors.queue_lists import QueueView
from penstock.actors.relay import OutboxView
from penstock.actors.system import System
from penstock.runtime.postgres import PostgresUnavailable
from penstock.runtime.supervision import Backoff, Child, ChildSpec, Gates, Strategy, Supervisor, Tree

SEOUL = ZoneInfo("Asia/Seoul")
REFUSED = "connection refused at 127.0.0.1:6379"


@event("ORDER_PLACED")
@frozen
class OrderPlaced:
    order_id: str
    price: float


@event("ORDER_CANCELLED")
@frozen
class OrderCancelled:
    order_id: str


@frozen
class FakeSettings:
    zone_info: ZoneInfo = SEOUL


@define(slots=False)
class FakeAccess:
    """The access tables; `away` makes every question fail as an outage does."""

    rows: list[AccessRecord] = field(factory=list)
    table: dict[int, AccessCategory] = field(factory=dict)
    away: bool = False
    broken: bool = False

    def __attrs_post_init__(self) -> None:
        created = datetime(2026, 3, 1, 0, 0, 0, 123456, UTC)
        for number, code in enumerate(("API_ADMIN", "API_PUBLIC", "UNKNOWN"), 1):
            self.table[number] = AccessCategory(
                id=number,
                category_code=code,
                name=code.title(),
                description=None,
                is_deleted=False,
                created_at=created,
                updated_at=created,
            )

    async def _ask(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.broken:
            raise RuntimeError("column password=hunter2 does not exist")
        if self.away:
            raise PostgresUnavailable("connection refused", address="127.0.0.1:5432")

    async def categories(self) -> list[AccessCategory]:
        await self._ask()
        return [each for each in self.table.values() if not each.is_deleted]

    async def category_by_id(self, number: int) -> AccessCategory:
        for each in await self.categories():
            if each.id == number:
                return each
        raise CategoryNotFound(f"there is no category with the id {number}")

    async def category_by_code(self, code: str) -> AccessCategory:
        for each in await self.categories():
            if each.category_code == code:
                return each
        raise CategoryNotFound(f"there is no category with the code {code!r}")

    async def change_category(self, change: CategoryChange) -> AccessCategory:
        await self._ask()
        if change.id not in self.table:
            raise CategoryNotFound(f"there is no category with the id {change.id}")
        if any(each.name == change.name and each.id != change.id for each in self.table.values()):
            raise CategoryExists("another category has this name")
        given = {name: getattr(change, name) for name in ("name", "description", "is_deleted")}
        changed = evolve(self.table[change.id], **{name: value for name, value in given.items() if value is not None})
        self.table[change.id] = changed
        return changed

    async def summary(self, day: date) -> AccessSummary:
        found = [row for row in self.rows if row.created_at.astimezone(SEOUL).date() == day]
        return AccessSummary(
            access_date=day,
            total_access_count=len(found),
            access_event_summaries=[
                CategorySummary(
                    category_code=each.category_code,
                    access_events=[row for row in found if row.category_code == each.category_code],
                )
                for each in await self.categories()
            ],
        )

    async def recent(self, limit: int) -> list[AccessRecord]:
        await self._ask()
        return list(reversed(self.rows))[:limit]

    def add(self, method: str, endpoint: str, status: int | None, seconds: float, at: datetime | None = None) -> None:
        """Store one access event."""
        self.rows.append(
            AccessRecord(
                id=len(self.rows) + 1,
                event_id=uuid4(),
                entry_id=f"1700000000000-{len(self.rows)}",
                category_code="API_ADMIN" if endpoint.startswith("/admin") else "API_PUBLIC",
                user_id="anonymous",
                endpoint=endpoint,
                http_method=method,
                response_status=status,
                response_time=seconds,
                ip_address="127.0.0.1",
                user_agent="test",
                inputs=None,
                outputs=None,
                created_at=at or datetime.now(UTC),
            )
        )


@define
class FakeDelivery:
    """How delivery stands."""

    view: DeliveryView = field(factory=DeliveryView)

    async def look(self) -> DeliveryView:
        await trio.lowlevel.checkpoint()
        return self.view


class FakeDeployment:
    """See the module. `failure` makes publishes fail; what was published and captured is kept.

    A child named in `starts` is up when its event there is set; one fails when its event in `crashes` is set.
    """

    def __init__(self, front_ends: Callable[[FakeDeployment], Sequence[ChildSpec]] = lambda _: ()) -> None:
        self.system = System("event-system")
        self.system.stream("EVENT_STREAM", events=[AccessEvent])
        self.system.stream("order-events", events=[OrderPlaced, OrderCancelled])
        self.system.stream("anything")
        self.settings = FakeSettings()
        self.instance = "fake-1"
        self.access: FakeAccess | None = FakeAccess()
        self.letters: LetterDesk | None = None
        self.ledger: Ledger | None = None
        self.upkeep: Any = None
        self.findings: list[Finding] = []
        self.delivery: FakeDelivery | None = FakeDelivery()
        self.waiting: list[OutboxView] = []
        self.lost: list[Loss] = []
        self.queued: list[QueueView] = []
        self.published: list[tuple[str, Envelope]] = []
        self.captured: list[Envelope] = []
        self.conditions: set[str] = set()
        self.spooling = False
        self.failure: Callable[[Envelope], PublishFailed | None] = lambda _: None
        self.capture_error: Exception | None = None
        self.news = trio.Event()
        self.crashes: dict[str, trio.Event] = {}
        self.starts: dict[str, trio.Event] = {}
        self.lag = 0
        self.nodes: ClusterView | None = None
        self.gates = Gates()
        for name in ("redis", "postgres"):
            self.gates.add(name, settle=0.0)
        self.gates.add("schema", settle=0.0)
        self.tree = Tree(self._root(front_ends(self)), gates=self.gates, seed=1)

    def _root(self, front_ends: Sequence[ChildSpec]) -> Supervisor:
        group = Supervisor(
            "EVENT_GROUP@EVENT_STREAM",
            [
                self._worker("handler-pool", "4 workers, 0 in work", requires=("postgres", "schema")),
                self._worker("listener-1", "EVENT_CONSUMER-1:fake-1", requires=("redis", "postgres", "schema")),
                self._worker("listener-2", "EVENT_CONSUMER-2:fake-1", requires=("redis", "postgres", "schema")),
            ],
            strategy=Strategy.REST_FOR_ONE,
        )
        servers = [self._worker("redis-server", "pid 4711"), self._worker("postgres-server", "pid 4712")]
        links = [self._worker("redis", "127.0.0.1:6379"), self._worker("postgres", "127.0.0.1:5432")]
        actors = [self._worker("health-monitor", "all well"), self._worker("producer"), group.spec()]
        children = [
            Supervisor("servers", servers).spec(),
            Supervisor("links", links).spec(),
            Supervisor("actors", actors).spec(),
            *front_ends,
        ]
        return Supervisor("event-system", children, strategy=Strategy.REST_FOR_ONE)

    def _worker(self, name: str, note: str = "", requires: tuple[str, ...] = ()) -> ChildSpec:
        async def work(child: Child) -> None:
            crash = self.crashes[name] = trio.Event()
            child.note(note)
            if name in self.starts:
                await self.starts[name].wait()
            child.started()
            await crash.wait()
            raise ConnectionError(f"{name} lost redis://root:hunter2@127.0.0.1:6379")

        return ChildSpec(id=name, body=work, requires=requires, backoff=Backoff(minimum=30, maximum=30, jitter=0))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeDeployment]:
        """The tree is up inside of the block, and stopped in order at its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.tree.run)
            await self.tree.ready()
            try:
                yield self
            finally:
                self.tree.stop("the test is over")

    async def publish(self, stream: str, envelopes: Sequence[Envelope]) -> list[Published | PublishFailed]:
        await trio.lowlevel.checkpoint()
        results: list[Published | PublishFailed] = []
        for envelope in envelopes:
            failed = self.failure(envelope)
            if failed is None:
                self.published.append((stream, envelope))
                self.news.set()
                self.news = trio.Event()
            results.append(failed or self._published(envelope))
        return results

    def _published(self, envelope: Envelope) -> Published:
        if self.spooling:
            return Published(envelope.event_id, None, "outbox")
        return Published(envelope.event_id, f"1700000000000-{len(self.published)}")

    async def publish_if(
        self, stream: str, envelope: Envelope, condition: str
    ) -> Published | ConditionNotMet | PublishFailed:
        if condition not in self.conditions:
            await trio.lowlevel.checkpoint()
            return ConditionNotMet(envelope.event_id, condition)
        return (await self.publish(stream, [envelope]))[0]

    async def claim(
        self, keys: Sequence[str], group: str, ids: Sequence[str], *, idle: float, by: str
    ) -> list[ClaimResult]:
        raise KeeperHeld("nobody keeps anything here")

    def capture(self, envelope: Envelope) -> bool:
        if self.capture_error is not None:
            raise self.capture_error
        self.captured.append(envelope)
        return True

    def streams(self) -> list[StreamView]:
        seen = trio.current_time()
        group = GroupView(name="EVENT_GROUP", lag=self.lag, pending=0, consumers=2, last_delivered_id="1-0")
        return [
            StreamView(key="EVENT_STREAM", length=1204, last_id="1700000000000-3", observed_at=seen, groups=(group,)),
            StreamView(key="order-events", length=len(self.published), last_id="0-0", observed_at=seen),
        ]

    async def look(self) -> list[StreamView]:
        await trio.lowlevel.checkpoint()
        return self.streams()

    def outbox(self) -> list[OutboxView]:
        return self.waiting

    def losses(self) -> list[Loss]:
        return self.lost

    async def queues(self) -> list[QueueView]:
        await trio.lowlevel.checkpoint()
        return self.queued

    def warnings(self) -> list[Finding]:
        return self.findings

    def cluster(self) -> ClusterView | None:
        return self.nodes

    async def tail(self, stream: str, last_id: str) -> AsyncIterator[tuple[str, Envelope]]:
        """Yields what is published from now on, or after the n-th entry for ``0-n``."""
        place = len(self.published) if last_id == "$" else int(last_id.partition("-")[2] or 0)
        while True:
            for key, envelope in self.published[place:]:
                place += 1
                if key == stream:
                    yield f"1700000000000-{place}", envelope
            await self.news.wait()

    def shut_redis(self, cause: str = REFUSED) -> None:
        """Redis goes away: the gate, and every publish from now on."""
        self.gates["redis"].shut(cause)
        self.failure = lambda envelope: PublishFailed(envelope.event_id, cause, retry_after=1.2)


def long_ago(days: int) -> datetime:
    return datetime.now(UTC) - timedelta(days=days)
