"""What a subscriber gets, and can subscribe to: `Message`, `Gap`, `Topic`, `Loss`; and who is told: `Owner`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple, Protocol

from attrs import frozen

__all__ = ["SUBSCRIBE", "UNSUBSCRIBE", "Gap", "Loss", "Message", "Owner", "Topic", "TopicKind"]

TopicKind = Literal["channel", "pattern", "shard"]

SUBSCRIBE: Final[dict[TopicKind, str]] = {"channel": "SUBSCRIBE", "pattern": "PSUBSCRIBE", "shard": "SSUBSCRIBE"}
UNSUBSCRIBE: Final[dict[TopicKind, str]] = {
    "channel": "UNSUBSCRIBE",
    "pattern": "PUNSUBSCRIBE",
    "shard": "SUNSUBSCRIBE",
}


@frozen(kw_only=True)
class Message:
    """One published message.

    Attributes:
        kind: ``message`` (SUBSCRIBE), ``pmessage`` (PSUBSCRIBE) or ``smessage`` (SSUBSCRIBE).
        channel: that it was published on.
        pattern: that matched, for a ``pmessage``; else None.
        data: what was published.

    Texts are str with `decode_responses`, else bytes.
    """

    kind: Literal["message", "pmessage", "smessage"]
    channel: str | bytes
    pattern: str | bytes | None = None
    data: str | bytes


@frozen(kw_only=True)
class Gap:
    """Messages may be missing at this place of the stream. Read again what they would have told you.

    Nothing published on these channels before `lost_at` or after `back_at` is missing. Times are
    `trio.current_time()`: ``trio.current_time() - gap.lost_at`` is how many seconds ago it began.

    Attributes:
        reason: what happened, in a few words, without secrets.
        lost_at: the server had answered until then, and everything before has been handed out.
        back_at: the server had confirmed every subscription again.
        channels: the names concerned, as they were subscribed to (patterns, too); str with `decode_responses`, if they
            are UTF-8, else bytes.
    """

    reason: str
    lost_at: float
    back_at: float
    channels: tuple[str | bytes, ...]


class Topic(NamedTuple):
    """Something that can be subscribed to. A tuple, for one is made for every message that comes."""

    kind: TopicKind
    name: bytes


@frozen(eq=False)
class Loss:
    """One event that interrupted subscriptions; it becomes a `Gap` when they are back."""

    reason: str
    lost_at: float


class Owner(Protocol):
    """Who is told. All of it is called in the tick of the event, must be quick and must not raise."""

    @property
    def is_full(self) -> bool:
        """Whether reading should stop (until `resume` is called)."""

    def received(self, topic: Topic, channel: bytes, data: bytes) -> None:
        """A message for a topic that is wanted."""

    def confirmed(self, topic: Topic) -> None:
        """The server has subscribed us."""

    def released(self, topic: Topic) -> None:
        """The server has unsubscribed us, as was wanted (or the connection is gone, which is as good)."""

    def refused(self, topic: Topic, error: Exception, loss: Loss | None) -> None:
        """The server's answer to a subscription, and what had interrupted it; the topic is not wanted any more."""

    def hindered(self, topics: Iterable[Topic], error: Exception) -> None:
        """There is no connection, or the server cannot subscribe us yet; it is tried again."""

    def interrupted(self, gap: Gap) -> None:
        """What was lost is back."""
