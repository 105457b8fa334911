"""Sends to broadcast channels: at once, or what handlers noted, once their transaction is committed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import redis.exceptions
import trio

from ..runtime.redis.replies import reply_text
from ..runtime.telemetry import get_logger
from .channels import Notice
from .sparing import Sparing

if TYPE_CHECKING:
    from ..runtime.redis import AnyRedis
    from ..runtime.supervision import Gate

__all__ = ["Broadcasting", "to_nobody"]

log = get_logger(__name__)

SENT_WITHIN: Final = 1.0
"""Seconds that a worker gives to what its handlers noted: the next events wait meanwhile."""


async def to_nobody(notices: Sequence[Notice]) -> None:
    """Where there are no channels."""


class Broadcasting:
    """See the module.

    Args:
        client: the link to Redis.
        gate: while it is shut, nothing that was noted is sent.
        trouble: told of every error of Redis that is not about one channel, so that the gate can be shut at once.

    Attributes:
        sent: messages that Redis has taken.
        dropped: messages that handlers had noted, and that were not sent.
    """

    def __init__(self, client: Callable[[], AnyRedis], gate: Gate, trouble: Callable[[Exception], None]) -> None:
        self.sent = 0
        self.dropped = Sparing()
        self._client = client
        self._gate = gate
        self._trouble = trouble

    async def send(self, channel: str, data: Any) -> int:
        """See `Deployment.broadcast`."""
        return await self._send(Notice.of(channel, data))

    async def send_noted(self, notices: Sequence[Notice]) -> None:
        """Send them in order, each at most once; what cannot be sent now is dropped, counted and logged.

        Blocks for `SENT_WITHIN` at the most. Cancelled, the rest is not sent.
        """
        left, why = list(notices), ""
        with trio.move_on_after(SENT_WITHIN) as scope:
            while left and self._gate.is_open:
                try:
                    await self._send(left[0])
                except redis.exceptions.RedisError as error:
                    why = f"{left[0].channel}: {reply_text(error)}"
                    self._drop(1, why)
                del left[0]
        if left:
            self._drop(
                len(left), f"not within {SENT_WITHIN:g} s" if scope.cancelled_caught else why or self._gate.cause
            )

    async def _send(self, notice: Notice) -> int:
        try:
            count: int = await self._client().publish(notice.channel, notice.text)
        except redis.exceptions.NoPermissionError:
            raise  # to this one channel: all else goes on, and the start-up checks name it
        except redis.exceptions.RedisError as error:
            self._trouble(error)
            raise
        self.sent += 1
        return count

    def _drop(self, number: int, why: str) -> None:
        if since := self.dropped.count(number):
            log.warning("broadcasts dropped", messages=since, dropped=self.dropped.total, error=why)
