"""The settings of an event system: what `Deployment` needs to know, as far as it is not declared in code.

How they are read (file, environment, profiles) is told by `penstock.runtime.settings`. Durations are seconds.
"""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from attrs import field, frozen

from ..runtime.settings import PostgresSettings, RedisSettings, above_zero, at_least
from .findings import NAMES as CHECKS
from .schedule import Schedule
from .stream_settings import StreamSettings

__all__ = [
    "ActorSettings",
    "CaptureSettings",
    "CheckSettings",
    "DeliverySettings",
    "HealthSettings",
    "PublishSettings",
    "RetentionSettings",
]


def _zone(instance: object, attribute: Any, value: str) -> None:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("must be the name of a time zone, such as Asia/Seoul") from None


def _cron(instance: object, attribute: Any, value: str) -> None:
    Schedule(value, ZoneInfo("UTC"))


@frozen(kw_only=True)
class DeliverySettings:
    """How events reach their handlers, and how often.

    Attributes:
        max_deliveries: attempts after which an event becomes a dead letter; outages do not count.
        retry_minimum: seconds before the second attempt; each further one waits twice as long, at random below that.
        retry_maximum: seconds that an attempt waits at the most.
        handler_timeout: seconds that one transaction may take; then it is rolled back, and counts as an attempt.
        reclaim_idle: seconds after which an entry that nobody touches is taken over from its consumer. Entries in work
            are touched every third of it.
        reclaim_every: seconds between two looks for such entries, more or less a fifth.
        lease_ttl: seconds after which a partition of an ordered group goes to another process if its owner is silent.
        heartbeat_every: seconds between two signs of life of a process; after three without one it has no share in
            the partitions of ordered groups.
        publish_capacity: publish requests that may wait for Redis at a time; further ones wait to be let in.
    """

    max_deliveries: int = field(default=5, validator=at_least(1))
    retry_minimum: float = field(default=1.0, validator=above_zero)
    retry_maximum: float = field(default=60.0, validator=above_zero)
    handler_timeout: float = field(default=30.0, validator=above_zero)
    reclaim_idle: float = field(default=60.0, validator=above_zero)
    reclaim_every: float = field(default=15.0, validator=above_zero)
    lease_ttl: float = field(default=15.0, validator=above_zero)
    heartbeat_every: float = field(default=5.0, validator=above_zero)
    publish_capacity: int = field(default=1_000, validator=at_least(1))

    @retry_maximum.validator
    def _not_below_minimum(self, attribute: Any, value: float) -> None:
        if value < self.retry_minimum:
            raise ValueError("must not be below retry_minimum")

    @reclaim_idle.validator
    def _above_handler_timeout(self, attribute: Any, value: float) -> None:
        if value <= self.handler_timeout:
            raise ValueError("must be above handler_timeout, or entries are taken over while they are handled")


@frozen(kw_only=True)
class RetentionSettings:
    """What is deleted, and when. See `docs/reference/retention.md`.

    Attributes:
        enabled: whether it runs at all.
        cron: when, in five fields (minute, hour, day, month, weekday), in the system's zone.
        days: entries and rows older than this many days are deleted, entries only where every group is done with them.
        batch: rows that are deleted in one transaction.
        dry_run: report what would be deleted, and delete nothing.
        keep_entries_for: seconds for which entries are kept in Redis, though every group is done with them; older ones
            go within `trim_every`. Default: as long as `days` says, and they go at the time of `cron`. Shorten it where
            there is much traffic, to 86400 say: Redis is transport, and holds them in memory.
        max_entries: entries that a stream (or each of its partitions) keeps at the most, as far as every group is done
            with the others; 1,000,000 access events take 0.55 GB. 0: any number.
        trim_every: seconds between two looks at what may be trimmed by these two; the rows wait for `cron`.
    """

    enabled: bool = True
    cron: str = field(default="0 10 * * *", validator=_cron)
    days: int = field(default=60, validator=at_least(1))
    batch: int = field(default=5_000, validator=at_least(1))
    dry_run: bool = False
    keep_entries_for: float | None = field(default=None, validator=above_zero)
    max_entries: int = field(default=1_000_000, validator=at_least(0))
    trim_every: float = field(default=60.0, validator=above_zero)

    @property
    def keep_seconds(self) -> float:
        """Seconds for which entries are kept."""
        return self.days * 86_400.0 if self.keep_entries_for is None else self.keep_entries_for


@frozen(kw_only=True)
class HealthSettings:
    """How the health monitor probes Redis and PostgreSQL.

    Attributes:
        interval_up: seconds between probes while all is well.
        interval_down_min: seconds before the first further probe in an outage; each further pause is twice as long.
        interval_down_max: seconds between probes in a long outage.
        timeout: seconds that a probe may take.
        observe_every: seconds between two looks at the streams' lengths and lags.
    """

    interval_up: float = field(default=10.0, validator=above_zero)
    interval_down_min: float = field(default=1.0, validator=above_zero)
    interval_down_max: float = field(default=10.0, validator=above_zero)
    timeout: float = field(default=2.0, validator=above_zero)
    observe_every: float = field(default=2.0, validator=above_zero)

    @interval_down_max.validator
    def _not_below_minimum(self, attribute: Any, value: float) -> None:
        if value < self.interval_down_min:
            raise ValueError("must not be below interval_down_min")


@frozen(kw_only=True)
class CaptureSettings:
    """The capture of requests as access events.

    Attributes:
        buffer: access events that wait in memory while Redis is away; what does not fit is dropped and counted.
    """

    buffer: int = field(default=10_000, validator=at_least(1))


@frozen(kw_only=True)
class PublishSettings:
    """How events are accepted.

    Attributes:
        hedge_after: seconds after which a burst that Redis has not answered goes into the outbox, too.
        look_every: seconds between two looks into the outbox while nothing is told of it.
    """

    hedge_after: float = field(default=0.05, validator=above_zero)
    look_every: float = field(default=1.0, validator=above_zero)


def _checks(instance: object, attribute: Any, value: list[str]) -> None:
    for name in value:
        if name not in CHECKS:
            raise ValueError(f"must name checks ({', '.join(CHECKS)}), and {name!r} is none")


@frozen(kw_only=True)
class CheckSettings:
    """The start-up checks of servers.

    Attributes:
        allow: checks that may fail without anything being held: `version`, `eviction`, `append-only`, `access`,
            `clock`, `slots` or `groups`. What they find is a warning then.
    """

    allow: list[str] = field(factory=list, validator=_checks)


@frozen(kw_only=True)
class ActorSettings:
    """The settings of one event system.

    Attributes:
        zone: the time zone whose days the summaries speak of, and in which cron times are meant.
        redis: the link to Redis.
        postgres: the link to PostgreSQL.
        publish: how events are accepted.
        delivery: how events reach their handlers.
        retention: what is deleted, and when.
        health: how Redis and PostgreSQL are probed.
        capture: the capture of requests.
        checks: what the servers must be like.
        streams: what is set of streams and their groups, by the stream's key; see `configured`.
    """

    zone: str = field(default="Asia/Seoul", validator=_zone)
    redis: RedisSettings = field(factory=RedisSettings)
    postgres: PostgresSettings = field(factory=PostgresSettings)
    publish: PublishSettings = field(factory=PublishSettings)
    delivery: DeliverySettings = field(factory=DeliverySettings)
    retention: RetentionSettings = field(factory=RetentionSettings)
    health: HealthSettings = field(factory=HealthSettings)
    capture: CaptureSettings = field(factory=CaptureSettings)
    checks: CheckSettings = field(factory=CheckSettings)
    streams: dict[str, StreamSettings] = field(factory=dict)

    @property
    def zone_info(self) -> ZoneInfo:
        """The zone, ready for use."""
        return ZoneInfo(self.zone)
