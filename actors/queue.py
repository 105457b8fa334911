"""Work queues: the declaration of one, and how a job looks in its list.

    thumbnails = system.queue("thumbnails", workers=4)

    @thumbnails.on(ResizeImage)
    async def resize(job: ResizeImage, context: Context) -> None: ...

A job is an event for one taker: whoever takes it out of the list handles it, and then it is gone. What it shares with
an event of a stream is everything behind that: the transaction, the inbox, retries, dead letters. So a queue has a
stream and a group of its own in the database, which are in no stream of Redis.

In the list a job is one JSON object: ``eventId``, ``eventType``, ``timestamp``, ``data`` and, where set, ``key`` and
``traceparent``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

from attrs import define, field, validators

from .event import JSON_CODEC, Envelope, InvalidEvent
from .handling import Entry
from .retrying import RetryPolicy
from .system import DeclarationError, Group, H, Stream

__all__ = ["Job", "Queue", "element_of", "job_of"]


@define(eq=False)
class Job(Entry):
    """An element of a queue's list that this process has taken.

    Attributes:
        element: as it stands in the list, byte for byte: by it, it is taken off.
    """

    element: bytes = b""


@define(eq=False)
class Queue:
    """A declared work queue. Made by `System.queue`.

    Attributes:
        name: of the queue; its keys in Redis are ``{name}:waiting`` and others with that hash tag.
        workers: how many jobs one process handles at a time, each in a transaction of its own. It takes no more than
            that out of the list. 0: this process puts jobs in, and takes none. Default 4.
        retry: how often, and after which pauses, its jobs are tried again. Default: as the settings say.
        timeout: seconds that a handler may take, where that is more than the setting ``delivery.handler_timeout``.
        block: seconds that a wait for the next job takes at the most, before it is asked again. Costs a new job no
            latency; one that was returned is taken after so long at the latest.
        requires: gates of the system's own, behind which the queue stands; see `Group.requires`.
        stream: what stands for the queue where events are decoded: its types are those that have handlers.
        group: what stands for it in the inbox and among the dead letters: ``queue NAME``.
    """

    name: str
    workers: int = field(default=4, validator=validators.ge(0))
    retry: RetryPolicy | None = None
    timeout: float | None = field(default=None, validator=validators.optional(validators.gt(0)))
    block: float = field(default=1.0, validator=validators.gt(0))
    requires: tuple[str, ...] = ()
    stream: Stream = field(init=False)
    group: Group = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.stream = Stream(self.name, mirror=False)
        # One job a transaction: jobs are work, and none is to wait for, or to be rolled back with, another.
        self.group = self.stream.group(
            f"queue {self.name}", workers=max(1, self.workers), batch=1, retry=self.retry, requires=self.requires
        )
        self.requires = self.group.requires

    def on(self, cls: type, *, retry: RetryPolicy | None = None, timeout: float | None = None) -> Callable[[H], H]:
        """Register the decorated async function as the handler of jobs of the event class `cls`.

        It is called as ``handler(job, context)`` inside a transaction that it must not commit; when it returns, its
        writes and the fact that the job was handled are committed together, and the job is taken off the list.

        Args:
            cls: an event class.
            retry: of this handler; None: as the queue says.
            timeout: of this handler, seconds; None: as the queue says.

        Raises:
            DeclarationError: it is no async function, or the queue has a handler of this type already.
        """
        return self.stream.on(cls, group=self.group.name, retry=retry, timeout=timeout or self.timeout)

    def check(self, envelope: Envelope) -> None:
        """Raise `InvalidEvent` unless a handler of this queue could be called with the job."""
        declared = self.stream.types.get(envelope.event_type)
        if declared is None:
            names = ", ".join(sorted(self.stream.types)) or "none"
            problem = f"{envelope.event_type!r} is no job of the queue {self.name!r}; its jobs are: {names}"
            raise InvalidEvent([("eventType", problem)])
        declared.structure(envelope.data)

    def __repr__(self) -> str:
        return f"<Queue {self.name}: {', '.join(self.stream.types) or 'no handlers'}>"


def declare(name: str, **options: Any) -> Queue:
    """A queue with options; raises `DeclarationError`."""
    if not name or "{" in name or "}" in name:
        raise DeclarationError(f"a queue's name is a non-empty string without braces, not {name!r}")
    try:
        return Queue(name, **options)
    except (TypeError, ValueError) as error:
        raise DeclarationError(f"queue {name!r}: {error}") from error


def element_of(envelope: Envelope) -> bytes:
    """The element of a job.

    Raises:
        InvalidEvent: the data are none that JSON, or UTF-8, can hold.
    """
    fields: dict[str, Any] = {**JSON_CODEC.encode(envelope), "data": envelope.data}
    try:
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise InvalidEvent([("data", f"cannot be written as JSON: {error}")]) from error


def job_of(queue: Queue, element: bytes, consumer: str, *, redelivered: bool) -> Job:
    """What a pool handles, made of an element; also of one that is no job, which comes to its end there."""
    fields = _fields(element)
    return Job(
        stream=queue.name,
        id=_id(element, fields.get(b"eventId")),
        fields=fields,
        consumer=consumer,
        redelivered=redelivered,
        element=element,
    )


def _fields(element: bytes) -> dict[bytes, bytes]:
    """As an entry of a stream has them; of what is no JSON object the element itself, to be seen in its dead letter."""
    try:
        members = json.loads(element)
    except (ValueError, RecursionError):
        members = None
    if not isinstance(members, dict):
        return {b"element": element}
    return {_bytes(name): _bytes(_text(name, value)) for name, value in members.items() if value is not None}


def _text(name: str, value: Any) -> str:
    if isinstance(value, str) and name != "data":
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _id(element: bytes, event_id: bytes | None) -> str:
    """The same for the same element, wherever it is met: the table of retries, suspects and letters know it by that.

    It has the form of an entry's id, and is in the order of time where the event's id is.
    """
    digest = int.from_bytes(hashlib.sha256(element).digest()[:8], "big")
    return f"{_milliseconds(event_id)}-{digest}"


def _milliseconds(event_id: bytes | None) -> int:
    try:
        known = UUID((event_id or b"").decode())
    except ValueError:
        return 0
    return known.int >> 80 if known.version == 7 else 0
