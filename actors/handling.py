"""What handlers see: the delivery, the context, and the error that says "never try this again"."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from uuid import UUID

import trio
from attrs import define, field, frozen

from .channels import Notice
from .event import Envelope, event_type_of

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from .once import Steps
    from .once_in_redis import RedisCommand, RedisSteps
    from .retry_table import RetryRow
    from .sorting import Verdict

__all__ = ["Context", "Delivery", "Entry", "Permanent", "Unavailable", "entry_order"]

E = TypeVar("E")


class Permanent(Exception):
    """Raised by a handler: the event itself is at fault, no further delivery will help. It becomes a dead letter."""


class Unavailable(Exception):
    """Raised by a handler: what it needs behind a gate of its group (`Group.requires`) is away; no fault of the event.

    The transaction is rolled back, no attempt is counted, the gate is shut, and the group is held until the gate's
    probe finds that it is back. For a gate that the group does not require it is an error as any other. The gates
    ``redis`` and ``redis-memory`` need not be required: what `Context` does in Redis raises it for them.

    Args:
        gate: the gate's name; see `System.gate`.
        why: for people: what happened, where.
    """

    gate = ""  # of a subclass whose __init__ does not call this one: no gate is meant
    why: str | None = None

    def __init__(self, gate: str, why: str) -> None:
        super().__init__(gate, why)  # both, so that it can come from another process
        self.gate = gate
        self.why = why

    def __str__(self) -> str:
        return super().__str__() if self.why is None else str(self.why)


def entry_order(entry_id: str) -> tuple[int, int]:
    """The order of stream entry ids: by milliseconds, then by sequence. As text they sort wrongly."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@define(eq=False)
class Entry:
    """An entry of a stream that this process has read and not yet acknowledged.

    Attributes:
        stream: the stream's key.
        id: the entry's id.
        fields: as they came; None when the entry was trimmed while it was pending.
        attempts: how often it has failed before.
        read_at: `trio.current_time()` when it was read.
        consumer: the name of the consumer that it was given to.
        redelivered: it was given to somebody before, who did not acknowledge it: to us before a restart, or to a
            consumer from whom it was taken over.
        retry: the row that it is now: its entry in the stream is acknowledged.
        verdict: what is to be done with it, once that was looked at; see `sorting.verdict_of`.
    """

    stream: str
    id: str
    fields: Mapping[bytes, bytes] | None
    attempts: int = 0
    read_at: float = field(factory=trio.current_time)
    consumer: str = ""
    redelivered: bool = False
    retry: RetryRow | None = None
    verdict: Verdict | None = field(default=None, repr=False)


@frozen(kw_only=True)
class Delivery(Generic[E]):
    """One event as a batch handler gets it.

    Attributes:
        event: an object of the event's class.
        envelope: what travelled: ids, type, time, key.
        entry_id: its id in the stream.
        attempt: 1 for the first; outages do not count.
        order: what ordered that it be handled although it had been before (`penstock replay --to-group`), by a number;
            None: nobody did.
    """

    event: E
    envelope: Envelope
    entry_id: str
    attempt: int
    order: int | None = None


@define(kw_only=True, eq=False)
class Context:
    """What a handler may use beside the event.

    Attributes:
        connection: a connection inside the transaction that also records the event as handled. What is written on it
            takes effect exactly once; do not commit or roll back yourself (savepoints are welcome).
        stream: the stream's key, as it was declared.
        group: the consumer group.
        delivery: the delivery of a single handler; None in a batch handler, which has one for each event.
        failures: what `fail` was told, by entry id.
    """

    connection: Connection[Any]
    stream: str
    group: str
    delivery: Delivery[Any] | None = None
    failures: dict[str, Exception] = field(factory=dict, init=False)
    _publish: Callable[[str, Sequence[Envelope]], Awaitable[None]] | None = None
    _steps: Steps | None = None
    _redis_steps: RedisSteps | None = None
    _redis_names: set[tuple[UUID, str]] = field(factory=set, init=False)
    _notices: list[Notice] = field(factory=list)

    @property
    def event_id(self) -> UUID:
        """The event's id, the same whenever and wherever it is handled; raises RuntimeError in a batch handler."""
        return self._one(None).envelope.event_id

    def _one(self, delivery: Delivery[Any] | None) -> Delivery[Any]:
        found = delivery or self.delivery
        if found is None:
            raise RuntimeError("a batch handler has an event for each delivery; say which one is meant")
        return found

    async def publish(self, stream: str, *events: object) -> list[UUID]:
        """Publish events if and only if this transaction is committed; they are on their way right after.

        Args:
            stream: the declared stream's key.
            events: objects of event classes, or `Envelope`; in order.

        Returns:
            Their event ids, in order.

        Raises:
            KeyError: no stream of that key is declared.
            InvalidEvent: an envelope's data do not fit, or its type is not the stream's.
            psycopg.Error, PostgresUnavailable: as for any statement on `connection`.
        """
        if self._publish is None:
            raise RuntimeError("this context has no store to publish through")
        envelopes = [
            each if isinstance(each, Envelope) else event_type_of(type(each)).envelope(each) for each in events
        ]
        await self._publish(stream, envelopes)
        return [envelope.event_id for envelope in envelopes]

    def broadcast(self, channel: str, data: object) -> None:
        """Tell every process that listens to `channel`, once this transaction is committed, and not if it is not.

        At most once, and best effort: while Redis is away it is dropped, counted and logged, and so it is lost when the
        process dies, or the answer to the commit gets lost, at that moment. In a batch it is sent, too, if events fail
        by `fail` and the rest is committed. Never blocks.

        Args:
            channel: its name in Redis, declared or not.
            data: JSON.

        Raises:
            TypeError, ValueError: the data are no JSON, or the name is empty.
        """
        self._notices.append(Notice.of(channel, data))

    async def once(
        self,
        name: str,
        call: Callable[[], Awaitable[object]],
        *,
        delivery: Delivery[Any] | None = None,
        again: bool = True,
    ) -> bool:
        """Do something outside of the transaction that is not to be repeated with it: send a mail, call a service.

        That it is begun, and that it is done, is noted in transactions of their own. So when the event comes again,
        because something that followed has failed, or the process died, what was done is not done again. If the process
        dies within `call`, or it is cancelled there, nobody can know whether it was done; then `again` decides. Give
        the other side what it needs to notice a repetition: the event's id.

        A group that does so should have ``batch=1``: events that share a transaction come again together. Its notes
        have connections of their own beside the pool's, two for all handlers of the process.

        Args:
            name: of the step, among those of the event: of two steps in one handler each has its own.
            call: ``async ()``. If it raises, nothing was done: the step is withdrawn, and the error goes on.
            delivery: the event; in a single handler by default its own.
            again: what to do where it is not known whether it was done before. True: do it (at least once; twice only
                if in that moment the process died, the database went away or the handler was cancelled). False: raise
                `Permanent`, so that a person decides (at most once).

        Returns:
            Whether it was done now; False if it had been before.

        Raises:
            Permanent: it is not known whether it was done, and `again` is False.
            ValueError: the name is empty, or another step's; nothing was done.
            TypeError: `call` is no function, or no async one (which was done all the same).
            psycopg.Error, PostgresUnavailable: it could not be noted; that it was done and is not known may be told so.
        """
        event_id = self._one(delivery).envelope.event_id
        if self._steps is None:
            raise RuntimeError("this context has no store to note steps in")
        return await self._steps.once(event_id, name, call, again=again)

    async def once_in_redis(
        self,
        name: str,
        commands: Sequence[RedisCommand],
        *,
        delivery: Delivery[Any] | None = None,
        expires: float = 7 * 86400.0,
    ) -> bool:
        """Change something in Redis once for this event, however often it comes: a score, a counter, a list.

        One script runs the commands and sets a marker beside their keys, so that whoever is killed, frozen or cancelled
        has done both or neither. It does not wait for the transaction: if that is rolled back for good (a dead letter),
        the change stays. So make it the last step of the handler. Give the same commands each time the event comes: if
        one fails, those before it are done, and it goes on with that one.

            await context.once_in_redis("ranking", [("ZINCRBY", "{ranking}:products", 3, "p-1")])

        Args:
            name: of the step, among those of the event.
            commands: each its name, its key and its arguments; commands that write one key (`once_in_redis.COMMANDS`).
                All keys must be in one slot of a cluster: give them one hash tag.
            delivery: the event; in a single handler by default its own.
            expires: seconds that the marker is kept, from the last time that the event came. Default: 7 days. A dead
                letter that is replayed later than that makes the change again.

        Returns:
            Whether it was done now; False if it had been before.

        Raises:
            Unavailable: Redis is away, or full; let it pass: the event waits, and no attempt is counted.
            redis.exceptions.ResponseError: Redis refuses a command; so it was not done, nor those behind it.
            ValueError: the commands cannot be run so, or the handler has given the name before; the text says why.
        """
        if self._redis_steps is None:
            raise RuntimeError("this context has no Redis to change")
        meant = self._one(delivery)
        step = (meant.envelope.event_id, name)
        if step in self._redis_names:
            raise ValueError(f"the handler has a step {name!r} of this event already; each needs a name of its own")
        self._redis_names.add(step)
        try:
            return await self._redis_steps.once(meant, name, commands, expires)
        except BaseException:
            self._redis_names.discard(step)  # a handler may try again what was refused
            raise

    def fail(self, delivery: Delivery[Any], error: Exception) -> None:
        """For batch handlers: this event failed, and the others did not.

        It is tried again later, or becomes a dead letter, as if its handler alone had raised `error`; everything else
        that was written is committed. Undo first what was written for it (a savepoint around each event does).
        """
        self.failures[delivery.entry_id] = error
