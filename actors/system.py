"""The declaration of an event system: its streams, their groups, and the handlers of each event type.

    system = System("shop")
    orders = system.stream("order-events", events=[OrderPlaced])

    @orders.on(OrderPlaced, group="payment-service-group")
    async def pay(event: OrderPlaced, context: Context) -> None:
        await context.connection.execute("insert into payment …")

A declaration starts nothing. `penstock run shop.module:system` does, or `Deployment`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from copy import copy
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from uuid import UUID
from zlib import crc32

from attrs import define, field, frozen, validators

from .channels import Channel
from .declarations import MOST_PARTITIONS, DeclarationError, check_async, check_name
from .event import (
    JSON_CODEC,
    Codec,
    Envelope,
    EventType,
    Fields,
    Origin,
    SkippedEntry,
    UndecodableEntry,
    event_type_of,
)
from .leasing import LEASE_GATE
from .retrying import RetryPolicy

if TYPE_CHECKING:
    from .handling import Context, Delivery
    from .queue import Queue

__all__ = ["DeclarationError", "Group", "Handler", "Probe", "Stream", "System"]

H = TypeVar("H", bound=Callable[..., Awaitable[None]])

Probe = Callable[[], Awaitable[None]]
"""Raises if what stands behind a gate cannot do its work."""

REDIS_GATES: Final = ("redis", "redis-memory")
"""Those that Redis stands behind."""

OWN_GATES: Final = (*REDIS_GATES, "postgres", "schema")
"""The gates that every system has."""


@frozen
class Handler:
    """One handler of one event type in one group.

    Attributes:
        event_type: what it handles.
        call: ``async (event, context)``, or for a batch handler ``async (deliveries, context)``.
        batch: it takes all events of its type that came in one transaction, at once.
        retry: how often its events are tried again; None: as the group says.
        timeout: seconds that one call may take; None: as the settings say.
    """

    event_type: EventType
    call: Callable[..., Awaitable[None]]
    batch: bool = False
    retry: RetryPolicy | None = None
    timeout: float | None = None

    @property
    def name(self) -> str:
        """How logs name it: module and qualified name."""
        return f"{self.call.__module__}.{getattr(self.call, '__qualname__', repr(self.call))}"


def _names(value: Iterable[str]) -> tuple[str, ...]:
    if isinstance(value, str):
        raise TypeError(f"requires takes several names, as ({value!r},)")
    return tuple(value)


@define(eq=False)
class Group:
    """A consumer group of one stream: each event is handled once in it.

    Attributes:
        name: of the consumer group in Redis.
        stream: the stream it reads.
        consumers: how many listeners read for it in one process. Default 1.
        consumer_prefix: the beginning of their consumer names. Default: the group's name.
        workers: how many transactions are open at a time. Default 4: the work is the database's.
        batch: how many events share a transaction at the most. Default 100: the knee of the measured curve.
        block: seconds that a read waits for news. Default 1.0, as in S1; it costs no latency.
        start: the id at which a new group starts. Default ``0``: what was published before it is read, too.
        ordered: events of one key are handled one after the other, in the order of the stream, also across retries: a
            key whose event failed waits, the others go on. Each partition has one owner at a time, among all processes.
            Default False: any consumer takes any entry, and nothing but the stream is in order.
        retry: how often, and after which pauses, its events are tried again. Default: as the settings say.
        requires: gates of the system's own (see `System.gate`), behind which the group stands: while one is shut, none
            of its events is read or handled, and none is blamed.
        handlers: by event type.
        enabled: whether this process reads it. Default True. False: the group is made, and its events wait for the
            processes that do; nothing of it is trimmed before.
    """

    name: str
    stream: str
    consumers: int = field(default=1, validator=validators.ge(1))
    consumer_prefix: str = ""
    workers: int = field(default=4, validator=validators.ge(1))
    batch: int = field(default=100, validator=validators.ge(1))
    block: float = field(default=1.0, validator=validators.gt(0))
    start: str = "0"
    ordered: bool = False
    retry: RetryPolicy | None = None
    requires: tuple[str, ...] = field(default=(), converter=_names)
    handlers: dict[str, Handler] = field(factory=dict)
    enabled: bool = True

    @property
    def behind(self) -> tuple[str, ...]:
        """The gates of which a handler may say that what stands behind them is away (`Unavailable`)."""
        return (*self.requires, *REDIS_GATES)


@define(eq=False)
class Stream:
    """A declared stream.

    Attributes:
        key: its key in Redis.
        types: the event types that it carries, by name; empty: any type (and nothing is validated at the door).
        groups: its consumer groups, by name.
        external: groups that other programs read, by name: they are made, and their entries are kept for them; nothing
            else here has to do with them. See `configured`.
        trim_without_groups: retention may trim it by age alone while it has no group at all. Default False: where
            nobody reads, nothing proves that the entries are not wanted any more.
        partitions: over how many streams of Redis it is spread, by the event's key (without one, by its id); at most
            16,384, as many as a cluster has slots. Default 1:
            one stream, whose key is this one's; otherwise their keys are ``{key:0}``, ``{key:1}`` … Fixed when the
            stream is first used.
        lossy_cap: how many entries of a partition are kept at the most, about; older ones are cut off **unread or
            not**. Default None: nothing is cut off but by retention, which proves that everybody is done with it.
        mirror: dead letters are shown in the stream ``key:dead-letter``, too (about the last 10,000). Default True.
    """

    key: str
    types: dict[str, EventType] = field(factory=dict)
    groups: dict[str, Group] = field(factory=dict)
    trim_without_groups: bool = False
    partitions: int = field(
        default=1, validator=[validators.instance_of(int), validators.ge(1), validators.le(MOST_PARTITIONS)]
    )
    lossy_cap: int | None = field(default=None, validator=validators.optional(validators.ge(1)))
    mirror: bool = True
    external: dict[str, Group] = field(factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of its partitions in Redis, in order."""
        return (self.key,) if self.partitions == 1 else tuple(f"{{{self.key}:{n}}}" for n in range(self.partitions))

    @property
    def read_here(self) -> list[Group]:
        """The groups that this process reads."""
        return [group for group in self.groups.values() if group.enabled]

    @property
    def made_only(self) -> list[Group]:
        """The groups that this process makes in Redis, and does not read."""
        return [*[group for group in self.groups.values() if not group.enabled], *self.external.values()]

    @property
    def mirror_key(self) -> str:
        """The key of the stream that shows its dead letters."""
        return f"{self.key}:dead-letter"

    def partition(self, key: str | None, event_id: UUID) -> str:
        """The key of the partition that an event belongs to: always the same for the same `key`."""
        if self.partitions == 1:
            return self.key
        spread = crc32((key if key is not None else str(event_id)).encode("utf-8", "surrogatepass"))
        return self.keys[spread % self.partitions]

    def group(self, name: str, **options: Any) -> Group:
        """Declare a group with options (see `Group`); needed only where the defaults do not fit.

        Raises:
            DeclarationError: it was declared before, or an option is unknown or wrong.
        """
        if name in self.groups:
            raise DeclarationError(f"the group {name!r} of stream {self.key!r} is declared already")
        check_name(f"stream {self.key!r}: a group's name", name)
        try:
            declared = Group(name, self.key, **options)
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"group {name!r} of stream {self.key!r}: {error}") from error
        self.groups[name] = declared
        return declared

    def on(
        self,
        cls: type,
        *,
        group: str,
        batch: bool = False,
        retry: RetryPolicy | None = None,
        timeout: float | None = None,
    ) -> Callable[[H], H]:
        """Register the decorated async function as the handler of `cls` in `group`; see `Handler` for the rest.

        It is called as ``handler(event, context)`` inside a transaction that it must not commit; when it returns, its
        writes and the fact that the event was handled are committed together, and the entry is acknowledged. With
        `batch`, it is called as ``handler(deliveries, context)`` with a sequence of `Delivery`.

        Raises:
            DeclarationError: it is no async function, or the group has a handler of this type already.
        """
        declared = event_type_of(cls)

        def register(call: H) -> H:
            where = f"stream {self.key!r}, group {group!r}, event {declared.name!r}"
            check_async(where, "handler", call)
            if declared.name not in self.types:
                self.types[declared.name] = declared
            target = self.groups.get(group) or self.group(group)
            if declared.name in target.handlers:
                raise DeclarationError(f"{where}: has a handler: {target.handlers[declared.name].name}")
            target.handlers[declared.name] = Handler(declared, call, batch, retry, timeout)
            return call

        return register

    def encode(self, envelope: Envelope) -> Fields:
        """The entry's fields of `envelope`, by its type's codec."""
        return self._codec(envelope.event_type).encode(envelope)

    def decode(self, fields: Mapping[str, str], origin: Origin) -> Envelope:
        """The envelope of an entry's fields; raises `UndecodableEntry`, or `SkippedEntry` for what is no event."""
        try:
            for codec in self._codecs():
                if codec.recognises(fields):
                    return codec.decode(fields, origin)
        except (UndecodableEntry, SkippedEntry):
            raise
        except Exception as error:
            # A codec of the user's may raise anything, and JSON nested too deep raises RecursionError.
            raise UndecodableEntry(f"its codec failed: {type(error).__name__}: {error}") from error
        names = ", ".join(sorted(fields)) or "none"
        raise UndecodableEntry(f"no eventType and no known flat form; fields: {names}")

    def _codec(self, event_type: str) -> Codec:
        declared = self.types.get(event_type)
        return declared.codec if declared is not None else JSON_CODEC

    def _codecs(self) -> Iterable[Codec]:
        # The special ones first: somebody's flat entry may have a field ``eventType``, too.
        yield from dict.fromkeys(declared.codec for declared in self.types.values() if declared.codec is not JSON_CODEC)
        yield JSON_CODEC


class System:
    """An event system: a name and its streams.

    Args:
        name: the root of the supervision tree, and the first word in logs.
        migrations: a directory of migrations (``0001.what.sql``) that make the tables of its handlers; they are applied
            at every start, under a lock, before any handler runs.

    Attributes:
        streams: by key, in order of declaration.
        channels: by name, in order of declaration; see `channel`.
        queues: by name, in order of declaration; see `queue`.
        gates: the probes of its own gates, by name; see `gate`.
        parts: what other floors keep with the declaration (`penstock.http.routes`); nothing here looks at it.
    """

    def __init__(self, name: str, *, migrations: Path | Traversable | None = None) -> None:
        check_name("a system's name", name)
        if "/" in name:
            raise DeclarationError(f"a system's name is a string without '/', not {name!r}")
        self.name = name
        self.migrations = migrations
        self.streams: dict[str, Stream] = {}
        self.channels: dict[str, Channel] = {}
        self.queues: dict[str, Queue] = {}
        self.gates: dict[str, Probe] = {}
        self.parts: list[object] = []

    def gate(self, name: str, probe: Probe) -> None:
        """Declare a gate for something that handlers need beside Redis and PostgreSQL: a mail server, another service.

        The groups that require it (`Group.requires`) are held while it is shut. The health monitor shuts it when
        `probe` raises anything, or takes longer than the setting ``health.timeout``, and opens it when it returns; a
        handler shuts it by raising `Unavailable`. How often it is probed, the settings ``health.interval_…`` say.

        Args:
            name: how others name it, in `Group.requires`, on the page and in logs.
            probe: ``async ()``; it raises, or hangs, while what stands behind the gate cannot do its work. It may be
                cancelled at any time, and must not block the thread: all of the process would stand still.

        Raises:
            DeclarationError: the name is empty, taken, or one of Penstock's own; or `probe` is no async function.
        """
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise DeclarationError(f"a gate's name is a non-empty string on one line, not {name!r}")
        if name in self.gates or name in OWN_GATES or name.startswith(LEASE_GATE):
            raise DeclarationError(f"a gate's name is declared once, and none of Penstock's own: {name!r} is taken")
        check_async(f"gate {name!r}", "probe", probe)
        self.gates[name] = probe

    def check(self) -> None:
        """Raise `DeclarationError` if what was declared does not fit together."""
        owners: dict[str, str] = {}
        for stream in self.streams.values():
            for key in stream.keys:
                if (other := owners.setdefault(key, stream.key)) != stream.key:
                    raise DeclarationError(f"streams {other!r} and {stream.key!r} would both be {key!r} in Redis")
            for group in stream.groups.values():
                self._check_gates(f"group {group.name!r} of stream {stream.key!r}", group.requires)
        for queue in self.queues.values():
            self._check_gates(f"queue {queue.name!r}", queue.requires)
            if not queue.stream.types:
                raise DeclarationError(f"queue {queue.name!r} has no handler; register one with @….on(JobClass)")

    def _check_gates(self, where: str, requires: Sequence[str]) -> None:
        unknown = [name for name in requires if name not in self.gates]
        if unknown:
            known = ", ".join(sorted(self.gates)) or "none"
            raise DeclarationError(
                f"{where} requires the gate {unknown[0]!r}, which is not declared; the system's gates are: {known}"
            )

    def stream(self, key: str, *, events: Sequence[type] = (), **options: Any) -> Stream:
        """Declare a stream that carries `events`, with options; see `Stream`.

        Raises:
            DeclarationError: the key is empty or declared already, or an option is unknown or wrong.
        """
        check_name("a stream's key", key)
        if key in self.streams or key in self.queues:
            raise DeclarationError(f"a stream's key is declared once: {key!r} is taken")
        declared = {kind.name: kind for kind in map(event_type_of, events)}
        try:
            self.streams[key] = stream = Stream(key, declared, **options)
        except (TypeError, ValueError) as error:
            raise DeclarationError(f"stream {key!r}: {error}") from error
        return stream

    def with_streams(self, streams: Mapping[str, Stream]) -> System:
        """The same declaration with other streams, by key; what is declared further on one is not on the other."""
        made = copy(self)
        made.streams = dict(streams)
        made.channels, made.queues = dict(self.channels), dict(self.queues)
        made.gates, made.parts = dict(self.gates), list(self.parts)
        return made

    def channel(self, name: str, *, pattern: bool = False) -> Channel:
        """Declare a broadcast channel: what is sent to it, every process of the system is told; see `Channel`.

        It has a connection to Redis of its own, so that a slow handler holds up no other channel; for channels of which
        there are many, declare a pattern.

        Args:
            name: in Redis.
            pattern: `name` is a glob-style pattern, as PSUBSCRIBE takes it.

        Raises:
            DeclarationError: the name is empty or declared already, or is a pattern and is not called one.
        """
        if not name or name in self.channels:
            raise DeclarationError(f"a channel's name is a non-empty string that is declared once, not {name!r}")
        if "*" in name and not pattern:
            raise DeclarationError(f"channel {name!r}: with a * it is a pattern; say channel({name!r}, pattern=True)")
        self.channels[name] = channel = Channel(name, pattern)
        return channel

    def queue(self, name: str, **options: Any) -> Queue:
        """Declare a work queue, with options; see `Queue`.

        Raises:
            DeclarationError: the name is empty, has braces, or is declared already (as a stream, too), or an option is
                unknown or wrong.
        """
        from .queue import declare  # it is made of a stream and a group, which are made here

        if name in self.queues or name in self.streams:
            raise DeclarationError(f"{name!r} is declared already")
        self.queues[name] = made = declare(name, **options)
        return made

    def stream_of(self, partition: str) -> Stream | None:
        """The declared stream that the Redis key `partition` belongs to; None if it is none of ours."""
        return next((stream for stream in self.streams.values() if partition in stream.keys), None)

    def __repr__(self) -> str:
        return f"<System {self.name}: {', '.join(self.streams) or 'no streams'}>"


SingleHandler = Callable[[Any, "Context"], Awaitable[None]]
BatchHandler = Callable[["Sequence[Delivery[Any]]", "Context"], Awaitable[None]]
