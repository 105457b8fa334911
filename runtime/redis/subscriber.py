"""`Subscriber`: subscriptions to one server, kept up over every loss of the connection."""

from __future__ import annotations

from collections.abc import Callable

import trio

from .backoff import Backoff
from .errors import RedisUnavailable
from .link import OnTrouble
from .messages import Loss, Owner, Topic
from .options import RedisOptions
from .subscriber_session import Session, State
from .wire import Connect, open_wire

__all__ = ["Owner", "Subscriber"]


class Subscriber:
    """Keeps the wanted topics subscribed at one server while `run` runs.

    Connects when something is wanted, and again after a loss, with backoff. Then the owner gets a `Gap` that names what
    was interrupted, before any message that came after it.

    The server is asked for a sign of life (PING) every `options.response_timeout`; silence is reported after
    `options.stall_after` and ends the connection after another `options.response_timeout`.

    Args:
        options: server, login and limits.
        connect: opens the byte stream.
        on_trouble: told of each failed attempt, loss and silence, at once.
        backoff: paces the attempts.
        owner: is told what happens.
        dropped: told of topics that the server has unsubscribed by itself, and that are not wanted any more. By default
            they are subscribed to again.
    """

    def __init__(
        self,
        options: RedisOptions,
        connect: Connect,
        on_trouble: OnTrouble,
        backoff: Backoff,
        owner: Owner,
        dropped: Callable[[Topic, Loss], None] | None = None,
    ) -> None:
        self._state = State(options, on_trouble, backoff, owner, dropped or self.want)
        self._connect = connect
        self._session: Session | None = None
        self._work = trio.Event()

    @property
    def wanted(self) -> tuple[Topic, ...]:
        """What is to be subscribed to."""
        return tuple(self._state.wanted)

    def want(self, topic: Topic, loss: Loss | None = None) -> None:
        """Subscribe. With `loss`, the topic was lost before (elsewhere), and a `Gap` tells when it is back."""
        self._state.wanted[topic] = None
        if loss is not None:
            self._state.losses[topic] = loss
        if self._session is not None:
            self._session.subscribe(topic)
        self._work.set()

    def unwant(self, topic: Topic) -> bool:
        """Unsubscribe; its messages are dropped from now on. Returns whether `released` is still to come."""
        self._state.wanted.pop(topic, None)
        self._state.losses.pop(topic, None)
        if self._session is None:
            return False
        self._session.unsubscribe(topic)
        return True

    def is_lost(self, topic: Topic) -> bool:
        """Whether the topic was had and lost, and its `Gap` has not been told."""
        return topic in self._state.losses

    def has(self, topic: Topic) -> bool:
        """Whether the server has confirmed the topic, on the connection that there is."""
        return self._session is not None and self._session.has(topic)

    def give_up(self, topic: Topic) -> Loss | None:
        """Unsubscribe, for it is to be subscribed to elsewhere. Returns what has interrupted it, if anything has."""
        loss = self._state.losses.get(topic)
        self.unwant(topic)
        return loss

    def resume(self) -> None:
        """The owner is not full any more."""
        if self._session is not None:
            self._session.resume()

    async def run(self) -> None:
        """Until cancelled. Never raises (unless `on_trouble` or the owner does)."""
        state = self._state
        while True:
            await self._until_wanted()
            await state.backoff.wait()
            try:
                wire = await open_wire(state.options, self._connect)
            except RedisUnavailable as error:
                state.backoff.failed()
                state.on_trouble(error)
                state.owner.hindered(self.wanted, error)
                continue
            self._session = Session(state, wire)
            try:
                await self._session.run()
            finally:
                self._session = None

    async def _until_wanted(self) -> None:
        while not self._state.wanted:
            self._work = trio.Event()
            await self._work.wait()
