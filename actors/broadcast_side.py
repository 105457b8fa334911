"""The broadcast side of a deployment: who sends to channels, and who listens to them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..runtime.supervision import ChildSpec
from .broadcasting import Broadcasting
from .listening import Channels

if TYPE_CHECKING:
    from ..runtime.postgres import Connection
    from ..runtime.supervision import Gates
    from .redis_side import RedisSide
    from .settings import ActorSettings
    from .store import Store
    from .system import System

__all__ = ["BroadcastSide"]


class BroadcastSide:
    """See the module.

    Args:
        system: what was declared.
        settings: what was set.
        store: where handlers read again what they may have missed.
        gates: the deployment's.
        redis: its link, and who is told of its errors.

    Attributes:
        sending: sends to channels.
        channels: listens to those that are declared.
    """

    def __init__(self, system: System, settings: ActorSettings, store: Store, gates: Gates, redis: RedisSide) -> None:
        self._store, self._schema = store, gates["schema"]
        # In a cluster the error of a node that has none of our streams is nobody's outage: so says the link's own way.
        self.sending = Broadcasting(redis.client, gates["redis"], redis.link_trouble)
        self.channels = Channels(
            system.channels.values(),
            redis.subscribers,
            self._connection,
            within=settings.delivery.handler_timeout,
            silence=redis.silence,
        )

    def children(self) -> Iterable[ChildSpec]:
        """The one child, where a channel has handlers."""
        if self.channels.listening:
            yield ChildSpec(id="channels", body=self.channels, requires=("redis",))

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection[Any]]:
        # Who has begun to listen may be there before the tables are; the handler's own limit of time holds.
        await self._schema.wait_open()
        async with self._store.connection() as connection:
            yield connection
