"""Topics: what a broadcast channel says, live in browsers, over a WebSocket.

    async def metrics(running: RunningSystem) -> dict[str, Any]: ...

    topic(system, "/topic/dashboard/orders", channel="dashboard:orders", first=metrics)

A client is sent `first` when it comes, so that a page is never empty, and then each message of the channel. Where it
may have missed messages, it is sent `first` again, so that what it shows is right in the end. With `at_most_every` the
messages only say that there is something new, and it is always `first` that is sent.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import trio
from attrs import define, field
from quart import Blueprint, websocket

from ..actors.channels import Broadcast, Channel, Gap
from ..actors.system import System
from .problems import Problem, problem_of
from .replies import dump
from .routes import routes
from .running import RunningSystem

__all__ = ["First", "topic"]

First = Callable[[RunningSystem], Awaitable[Any]]

WAITING = 64
"""Messages that may wait for a client; more are dropped, and it is sent `first` again."""

WAITING_SIZE = 1_048_576
"""Characters of them."""

AT_LEAST_EVERY = 30.0
"""Seconds of silence after which a client is told anew: a page knows by it that it is not cut off, and a broadcast may
have been lost with the process that was about to send it."""

WITHIN = 10.0
"""Seconds that `first` may take."""


def topic(
    system: System, path: str, *, channel: str | Channel, first: First, at_most_every: float | None = None
) -> None:
    """Serve what is broadcast on a channel to WebSockets at `path`, in every process that runs `system`.

    Each message is one text frame with one JSON value: what `first` returned, or what was broadcast. Clients have
    nothing to say; one that says something is closed with 1008.

    Args:
        system: the system.
        path: of the URL, such as ``/topic/dashboard/orders``.
        channel: its name, or the declared `Channel`; one that is not declared yet is declared.
        first: what a client is to know first, as JSON: ``async (running) -> data``. It is called with each client, and
            for those who may have missed messages: after an outage of Redis, or because they read too slowly; and
            after 30 s in which there was nothing to say. Clients that come at once share one call. If it raises, or
            takes longer than 10 s, a new client is refused, and an old one closed: both come again.
        at_most_every: seconds. The messages are not sent, but say that `first` is to be called and sent again, after
            them, and not more often than this, however many they are. What several handlers count side by side can
            only be told so: none of them sees in its transaction what the others are about to commit.

    Raises:
        ValueError: the path is none, or (a `DeclarationError`) the channel's name.
    """
    if not path.startswith("/") or "<" in path:
        raise ValueError(f'a topic has a path such as "/topic/orders", not {path!r}')
    declared = channel if isinstance(channel, Channel) else system.channels.get(channel) or system.channel(channel)
    made = _Topic(path, first, at_most_every or 0.0)
    declared.on(made.tell if at_most_every is None else made.renew)
    declared.on_gap(made.miss)
    name = f"topic {path}".replace(".", "_")

    @routes(system)
    def served(running: RunningSystem) -> Blueprint:
        blueprint, latest = Blueprint(name, __name__), _Latest(made, running)

        @blueprint.websocket(path, endpoint="topic")
        async def serve() -> None:
            with made.client() as client:
                await _serve(client, latest)

        return blueprint


async def _serve(client: _Client, latest: _Latest) -> None:
    text = await latest.get()
    await websocket.accept()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_refuse_what_is_said)
        while True:
            await websocket.send(text)
            text = await client.next(AT_LEAST_EVERY) or await latest.get()


async def _refuse_what_is_said() -> None:
    await websocket.receive()
    detail = "A topic only tells: it sends JSON, takes no messages, and is no STOMP."
    raise Problem(400, "topic-only-tells", "A topic only tells", detail)


@define(eq=False)
class _Client:
    """What waits for one client.

    Attributes:
        lost: it may have missed messages: all is to be told anew.
    """

    lost: bool = False
    _texts: deque[str] = field(factory=deque)
    _size: int = 0
    _news: trio.Event = field(factory=trio.Event)

    def put(self, text: str) -> None:
        """A message; dropped with all that wait, if they are too many."""
        if self._texts and (len(self._texts) >= WAITING or self._size + len(text) > WAITING_SIZE):
            self.lose()
        if not self.lost:
            self._texts.append(text)
            self._size += len(text)
        self._news.set()

    def lose(self) -> None:
        """What waits is worth nothing, and what comes until `next` is called, neither."""
        self.lost = True
        self._texts.clear()
        self._size = 0
        self._news.set()

    async def next(self, within: float) -> str | None:
        """The next message; None: all is to be told anew, and what comes from now on after that."""
        with trio.move_on_after(within):
            await self._news.wait()
        if self.lost or not self._texts:
            self.lost = False
            self._news = trio.Event()
            return None
        text = self._texts.popleft()
        self._size -= len(text)
        if not self._texts:
            self._news = trio.Event()
        return text


class _Topic:
    """A declared topic, and its clients in this process."""

    def __init__(self, path: str, first: First, at_most_every: float) -> None:
        self.path = path
        self.first = first
        self.at_most_every = at_most_every
        self._clients: set[_Client] = set()

    @contextmanager
    def client(self) -> Iterator[_Client]:
        """Be one of the clients."""
        client = _Client()
        self._clients.add(client)
        try:
            yield client
        finally:
            self._clients.remove(client)

    async def tell(self, message: Broadcast) -> None:
        """Tell all clients; never waits for one."""
        text = dump(message.data)
        for client in self._clients:
            client.put(text)

    async def renew(self, _: Broadcast) -> None:
        """Have all clients told anew, for there is something new."""
        self._lose()

    async def miss(self, _: Gap) -> None:
        """Have all clients told anew, for they may have missed something."""
        self._lose()

    def _lose(self) -> None:
        for client in self._clients:
            client.lose()


class _Latest:
    """What clients are told first. Those who ask at once share an answer that is younger than all their questions."""

    def __init__(self, made: _Topic, running: RunningSystem) -> None:
        self._topic = made
        self._running = running
        self._lock = trio.Lock()
        self._begun = 0
        self._begun_at = -math.inf
        self._of = 0
        self._answer: str | Problem = ""

    async def get(self) -> str:
        """The text. Raises a `Problem`: what `first` raises, or a 503 when it takes too long."""
        wanted = self._begun + 1
        async with self._lock:
            if self._of < wanted:
                await trio.sleep_until(self._begun_at + self._topic.at_most_every)
                self._begun += 1
                self._begun_at = trio.current_time()
                self._answer = await self._ask_or_fail()
                self._of = self._begun
        if isinstance(self._answer, Problem):
            raise self._answer.with_traceback(None)
        return self._answer

    async def _ask_or_fail(self) -> str | Problem:
        try:
            return await self._ask()
        except Exception as error:  # noqa: BLE001 - problem_of logs what it does not know
            return problem_of(error)

    async def _ask(self) -> str:
        with trio.move_on_after(WITHIN):
            return dump(await self._topic.first(self._running))
        detail = f"What {self._topic.path} tells first did not come within {WITHIN:g} s."
        raise Problem(503, "topic-not-ready", "The topic is not ready", detail, headers={"Retry-After": "1"})
