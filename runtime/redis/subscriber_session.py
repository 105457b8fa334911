"""`Session`: one subscriber's connection, from its greeting to its end.

Each change of what is wanted is one command for one topic, and the server answers each with one reply, in order: so
every refusal has an address. Unlike a shared connection's, what comes here mostly answers nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import redis.exceptions
import trio
from attrs import define, field

from ._compat import NOT_ENOUGH_DATA, pack_command  # not the module: attrs' __repr__ looks up a `_compat` of its own
from .backoff import Backoff
from .errors import RedisStalled, RedisUnavailable
from .link import OnTrouble
from .messages import SUBSCRIBE, UNSUBSCRIBE, Gap, Loss, Owner, Topic, TopicKind
from .options import RedisOptions
from .replies import Kind, classify
from .silence import Silence
from .wire import READ_SIZE, STREAM_ERRORS, Wire, describe

__all__ = ["Session", "State"]

_SETTLED_AFTER: Final = 1.0
"""Seconds a connection must live to count as a success; else a server that greets and hangs up makes a hot loop."""

_MOST_HELD: Final = 1024 * 1024
"""Bytes of messages kept back while lost subscriptions come back. Beyond it they go: the gap to be told covers them."""

_DEFERRAL: Final = 0.5
"""Seconds, with jitter, before a topic is asked for again that the server could not subscribe us to yet."""


@define(eq=False)
class State:
    """What outlives a connection, shared by a `Subscriber` and its sessions.

    Attributes:
        options: server, login and limits.
        on_trouble: told of each failed attempt, loss and silence, at once.
        backoff: paces the attempts.
        owner: is told what happens.
        dropped: called with a topic that the server has unsubscribed by itself; it is not wanted any more.
        wanted: the topics to be subscribed to, in order.
        losses: of wanted topics that were lost, as long as their gap has not been told.
    """

    options: RedisOptions
    on_trouble: OnTrouble
    backoff: Backoff
    owner: Owner
    dropped: Callable[[Topic, Loss], None]
    wanted: dict[Topic, None] = field(factory=dict)
    losses: dict[Topic, Loss] = field(factory=dict)


@define(eq=False)
class _Command:
    """A command on its way; `topic` is None for PING."""

    topic: Topic | None
    subscribes: bool
    sent_at: float


class Session:
    """One connection, from its greeting to its end. Made by the `Subscriber`; `run` ends when the connection does."""

    def __init__(self, state: State, wire: Wire) -> None:
        self._state = state
        self._options = state.options
        self._owner = state.owner
        self._wire = wire
        self._scope = trio.CancelScope()
        self._broken = False
        self._since = trio.current_time()
        # Commands: what is to be sent, what has no reply yet, and the one that decides each topic's state.
        self._outbox: list[bytes] = []
        self._pending: deque[_Command] = deque()
        self._changes = 0  # pending commands other than PING
        self._latest: dict[Topic, _Command] = {}
        self._more = trio.Event()
        # Subscriptions: confirmed ones, and those that were lost before and are on their way back.
        self._live: set[Topic] = set()
        self._returning: set[Topic] = set()
        self._back: dict[Topic, None] = {}
        self._held: list[tuple[Topic, bytes, bytes]] = []
        self._held_bytes = 0
        self._deferrals: trio.Nursery | None = None
        # Signs of life.
        self._silence = Silence()
        self._asked_at = self._since
        self._proven_at = self._since  # the server had answered everything asked until then
        self._paused = False
        self._lagged = False
        self._go_on = trio.Event()
        self._watchdog_wake = trio.Event()
        for topic in list(state.wanted):
            self.subscribe(topic)

    def subscribe(self, topic: Topic) -> None:
        if self._broken:
            return  # the next session begins with everything that is wanted
        if topic in self._state.losses:
            self._returning.add(topic)
        self._request(topic, subscribes=True)

    def unsubscribe(self, topic: Topic) -> None:
        self._live.discard(topic)
        if self._broken:
            self._owner.released(topic)
            return
        self._request(topic, subscribes=False)
        self._leaves(topic)

    def resume(self) -> None:
        self._go_on.set()

    def has(self, topic: Topic) -> bool:
        return topic in self._live and not self._broken

    async def run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._deferrals = nursery
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._watch)
                    await self._read()
        finally:
            self._release_all()
            await self._wire.aclose()

    # -- writing

    def _request(self, topic: Topic | None, *, subscribes: bool) -> None:
        now = trio.current_time()
        if not self._pending:
            self._silence.end()
        command = _Command(topic, subscribes, now)
        if topic is None:
            self._outbox.append(_PING)
        else:
            verb = (SUBSCRIBE if subscribes else UNSUBSCRIBE)[topic.kind]
            self._outbox.append(pack_command((verb, topic.name)))
            self._latest[topic] = command
            self._changes += 1
            self._go_on.set()  # a full owner must not keep the confirmation from the caller who waits for it
        self._pending.append(command)
        self._asked_at = now
        self._more.set()
        self._watchdog_wake.set()

    async def _write(self) -> None:
        try:
            while True:
                await self._more.wait()
                self._more = trio.Event()
                data, self._outbox = b"".join(self._outbox), []
                await self._wire.stream.send_all(data)
        except STREAM_ERRORS as error:
            self._break(error)

    # -- reading

    async def _read(self) -> None:
        stream, reader = self._wire.stream, self._wire.reader
        try:
            while True:
                self._take_all()
                await self._until_room()
                data = await stream.receive_some(READ_SIZE)
                if not data:
                    raise EOFError
                self._silence.end()
                reader.feed(data)  # type: ignore[arg-type]  # the stub forgets bytearray
        except (EOFError, redis.exceptions.InvalidResponse, *STREAM_ERRORS) as error:
            self._break(error)

    async def _until_room(self) -> None:
        """Stop reading while the owner is full: the server then keeps what comes, up to its own limit.

        But read on while a change of subscriptions is under way. What stands before its confirmation is bounded by the
        server's limit (client-output-buffer-limit) and the kernel's buffers.
        """
        while self._owner.is_full and not self._changes:
            self._paused = self._lagged = True
            self._go_on = trio.Event()
            await self._go_on.wait()
        if self._paused:
            self._paused = False
            self._silence.end()  # it was ours
            self._watchdog_wake.set()

    def _take_all(self) -> None:
        # Undecoded: a payload that is no UTF-8 concerns its reader, not the connection.
        while (reply := self._wire.reader.gets(False)) is not NOT_ENOUGH_DATA:
            self._take(reply)

    def _take(self, reply: Any) -> None:
        if isinstance(reply, Exception):
            self._answer(reply)
        elif isinstance(reply, list) and reply and reply[0] in _MESSAGES:
            word, *rest = reply
            name, channel, data = rest if len(rest) == 3 else (rest[0], *rest)
            self._message(Topic(_MESSAGES[word], name), channel, data)
        elif isinstance(reply, list) and reply and reply[0] in _CHANGES:
            kind, subscribes = _CHANGES[reply[0]]
            self._changed(Topic(kind, reply[1]), subscribes=subscribes)
        elif self._pending and self._pending[0].topic is None:
            self._answer(None)  # to PING: +PONG, or a list in RESP2; other pushes are of no interest

    def _message(self, topic: Topic, channel: bytes, data: bytes) -> None:
        if topic not in self._state.wanted:
            return
        if topic in self._state.losses:
            self._hold(topic, channel, data)  # its gap comes first
        else:
            self._owner.received(topic, channel, data)

    def _hold(self, topic: Topic, channel: bytes, data: bytes) -> None:
        self._held_bytes += len(channel) + len(data)
        if self._held_bytes > _MOST_HELD:
            self._held, self._held_bytes = [], 0
        self._held.append((topic, channel, data))

    def _changed(self, topic: Topic, *, subscribes: bool) -> None:
        head = self._pending[0] if self._pending else None
        if head is not None and head.topic == topic and head.subscribes == subscribes:
            self._answer(None)
        elif not subscribes:
            self._dropped(topic)

    def _answer(self, error: Exception | None) -> None:
        """The reply to the oldest command."""
        if not self._pending:
            raise redis.exceptions.InvalidResponse("a reply that no command asked for")
        command = self._pending.popleft()
        self._proven_at = max(self._proven_at, command.sent_at)
        topic = command.topic
        if topic is None:
            return
        self._changes -= 1
        if self._latest.get(topic) is not command:
            return  # another command has been sent meanwhile, and that one's answer counts
        del self._latest[topic]
        if not command.subscribes:
            self._owner.released(topic)
        elif error is None:
            self._confirmed(topic)
        elif classify(error).kind is Kind.WAIT:
            self._defer(topic, error)
        else:
            self._state.wanted.pop(topic, None)
            loss = self._state.losses.get(topic)
            self._leaves(topic)
            self._owner.refused(topic, error, loss)

    # -- what becomes of a topic

    def _confirmed(self, topic: Topic) -> None:
        self._live.add(topic)
        if topic in self._returning:
            self._back[topic] = None
        self._owner.confirmed(topic)
        self._returns(topic)

    def _dropped(self, topic: Topic) -> None:
        """Unsubscribed by the server: the slot of a shard channel has moved."""
        if topic not in self._live or topic in self._latest:
            return
        loss = self._state.losses.get(topic) or Loss("the server ended the subscription", self._proven_at)
        self._live.discard(topic)
        self._state.wanted.pop(topic, None)
        self._leaves(topic)
        self._owner.hindered([topic], RedisUnavailable(self._options.address, loss.reason))
        self._state.dropped(topic, loss)

    def _defer(self, topic: Topic, error: Exception) -> None:
        """Not yet (BUSY, CLUSTERDOWN …): ask again a little later, and do not keep the others waiting."""
        self._returns(topic)
        self._owner.hindered([topic], error)
        if self._deferrals is not None:
            self._deferrals.start_soon(self._ask_again, topic)

    async def _ask_again(self, topic: Topic) -> None:
        await trio.sleep(_DEFERRAL * (0.1 + self._state.backoff.random()))
        if topic in self._state.wanted and topic not in self._latest and topic not in self._live:
            self.subscribe(topic)

    def _leaves(self, topic: Topic) -> None:
        """It is not wanted any more, so nobody need be told that it was lost."""
        self._state.losses.pop(topic, None)
        self._back.pop(topic, None)
        self._returns(topic)

    def _returns(self, topic: Topic) -> None:
        self._returning.discard(topic)
        if self._returning:
            return
        self._tell_gaps()
        held, self._held, self._held_bytes = self._held, [], 0
        for held_topic, channel, data in held:
            if held_topic in self._state.wanted:
                self._owner.received(held_topic, channel, data)

    def _tell_gaps(self) -> None:
        """One for each loss, with all topics that it concerned here."""
        concerned: dict[Loss, list[Topic]] = {}
        for topic in self._back:
            concerned.setdefault(self._state.losses.pop(topic), []).append(topic)
        self._back = {}
        now = trio.current_time()
        for loss, topics in concerned.items():
            channels = tuple(topic.name for topic in topics)
            self._owner.interrupted(Gap(reason=loss.reason, lost_at=loss.lost_at, back_at=now, channels=channels))

    # -- signs of life, and the end

    async def _watch(self) -> None:
        limits, silence, reported = self._options, self._silence, None
        while True:
            self._watchdog_wake = trio.Event()
            if self._paused:
                await self._watchdog_wake.wait()
            elif not self._pending:
                with trio.move_on_at(self._asked_at + limits.response_timeout):
                    await self._watchdog_wake.wait()
                if not self._pending and not self._paused and not self._watchdog_wake.is_set():
                    self._request(None, subscribes=False)
            else:
                limit = limits.response_timeout if reported == silence.turn else limits.stall_after
                await trio.sleep_until(silence.next_look(limit))
                await trio.lowlevel.checkpoint()  # a reader that the same tick woke has run now
                if self._wire.has_news() and not self._paused:
                    silence.end()
                if not silence.exceeds(limit) or self._paused or not self._pending:
                    continue
                stall = RedisStalled(limits.address, f"no byte for {limit:g} s")
                if reported == silence.turn:
                    self._break(stall)
                    return
                reported = silence.turn
                self._state.on_trouble(stall)

    def _break(self, error: BaseException) -> None:
        """The connection is of no use any more. Note what is lost, and tell, in this tick."""
        if self._broken:
            return
        self._broken = True
        self._scope.cancel()
        trouble, state = self._trouble(error), self._state
        loss = Loss(trouble.reason, self._proven_at)
        for topic in self._live:
            if topic in state.wanted:
                state.losses.setdefault(topic, loss)
        if trio.current_time() - self._since < _SETTLED_AFTER:
            state.backoff.failed()
        else:
            state.backoff.succeeded()
        self._release_all()
        state.on_trouble(trouble)
        state.owner.hindered(list(state.wanted), trouble)

    def _trouble(self, error: BaseException) -> RedisUnavailable:
        if isinstance(error, RedisUnavailable):
            return error
        reason = describe(error)
        if self._lagged:
            reason += "; messages were read more slowly than they came (see client-output-buffer-limit pubsub)"
        trouble = RedisUnavailable(self._options.address, reason)
        trouble.__cause__ = error
        return trouble

    def _release_all(self) -> None:
        """Without a connection there is nothing left to unsubscribe from."""
        latest, self._latest = self._latest, {}
        for topic, command in latest.items():
            if not command.subscribes:
                self._owner.released(topic)


_PING: Final = pack_command(("PING",))
_MESSAGES: Final[dict[bytes, TopicKind]] = {b"message": "channel", b"pmessage": "pattern", b"smessage": "shard"}
_CHANGES: Final[dict[bytes, tuple[TopicKind, bool]]] = {
    **{verb.lower().encode(): (kind, True) for kind, verb in SUBSCRIBE.items()},
    **{verb.lower().encode(): (kind, False) for kind, verb in UNSUBSCRIBE.items()},
}
