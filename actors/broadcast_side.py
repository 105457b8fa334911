"""The broadcast side of a deployment: who sends to channels, and who listens to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..runtime.supervision import ChildSpec
from .broadcasting import Broadcasting
from .listening import Channels

if TYPE_CHECKING:
    from ..runtime.supervision import Gates
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .system import System

__all__ = ["BroadcastSide"]


class BroadcastSide:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        gates: the deployment's.
        redis: its link, and who is told of its errors.

    Attributes:
        sending: sends to channels.
        channels: listens to those that are declared.
    """

    def __init__(self, system: System, settings: ActorSettings, gates: Gates, redis: RedisSide) -> None:
        # In a cluster the error of a node that has none of our streams is nobody's outage: so says the link's own way.
        self.sending = Broadcasting(redis.client, gates["redis"], redis.link_trouble)
        self.channels = Channels(
            system.channels.values(),
            redis.subscribers,
            within=settings.delivery.handler_timeout,
            silence=redis.silence,
        )

    def children(self) -> Iterable[ChildSpec]:
        """The one child, where a channel has handlers."""
        if self.channels.listening:
            yield ChildSpec(id="channels", body=self.channels, requires=("redis",))
