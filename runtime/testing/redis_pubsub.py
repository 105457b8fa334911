"""Pub/sub of the in-process Redis: who listens to what, and the commands."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ._fakeredis import NoResponse, SimpleError, compile_pattern, signature
from .redis_encoding import Push

__all__ = ["PUBSUB_COMMANDS", "Channels", "PubSubCommands"]


class Channels:
    """The subscriptions of one server.

    Attributes:
        plain, patterns, shard: name -> the sessions that listen, in the order in which they came.
    """

    def __init__(self) -> None:
        self.plain: dict[bytes, dict[PubSubCommands, None]] = {}
        self.patterns: dict[bytes, dict[PubSubCommands, None]] = {}
        self.shard: dict[bytes, dict[PubSubCommands, None]] = {}

    def publish(self, channel: bytes, message: bytes) -> int:
        """Send to the channel's listeners, then to those of patterns; returns how many messages went out."""
        count = 0
        for session in list(self.plain.get(channel, ())):
            session.push([b"message", channel, message])
            count += 1
        for pattern, sessions in list(self.patterns.items()):
            if compile_pattern(pattern).match(channel):
                for session in list(sessions):
                    session.push([b"pmessage", pattern, channel, message])
                    count += 1
        return count

    def publish_shard(self, channel: bytes, message: bytes) -> int:
        """Send to the listeners of a shard channel; patterns do not hear it."""
        listeners = list(self.shard.get(channel, ()))
        for session in listeners:
            session.push([b"smessage", channel, message])
        return len(listeners)

    def forget(self, session: PubSubCommands) -> None:
        """A connection has ended."""
        for table in (self.plain, self.patterns, self.shard):
            for name in [name for name, sessions in table.items() if session in sessions]:
                _remove(table, name, session)


def _remove(table: dict[bytes, dict[PubSubCommands, None]], name: bytes, session: PubSubCommands) -> None:
    table[name].pop(session, None)
    if not table[name]:
        del table[name]


class PubSubCommands:
    """The commands, for a session; it brings `_server.channels` and `put_response`."""

    _server: Any
    put_response: Any
    _transaction: Any

    def push(self, message: list[Any]) -> None:
        """Send a message that was not asked for."""
        self.put_response(Push(message))

    @property
    def subscriptions(self) -> tuple[int, int, int]:
        """Number of channels, patterns and shard channels that it listens to."""
        channels: Channels = self._server.channels
        plain, patterns, shard = (
            sum(self in sessions for sessions in table.values())
            for table in (channels.plain, channels.patterns, channels.shard)
        )
        return plain, patterns, shard

    def subscribe(self, *names: bytes) -> Any:
        return self._listen(b"subscribe", self._server.channels.plain, names)

    def psubscribe(self, *names: bytes) -> Any:
        return self._listen(b"psubscribe", self._server.channels.patterns, names)

    def ssubscribe(self, *names: bytes) -> Any:
        return self._listen(b"ssubscribe", self._server.channels.shard, names)

    def unsubscribe(self, *names: bytes) -> Any:
        return self._leave(b"unsubscribe", self._server.channels.plain, names)

    def punsubscribe(self, *names: bytes) -> Any:
        return self._leave(b"punsubscribe", self._server.channels.patterns, names)

    def sunsubscribe(self, *names: bytes) -> Any:
        return self._leave(b"sunsubscribe", self._server.channels.shard, names)

    def publish(self, channel: bytes, message: bytes) -> int:
        count: int = self._server.publish(channel, message)
        return count

    def spublish(self, channel: bytes, message: bytes) -> int:
        count: int = self._server.channels.publish_shard(channel, message)
        return count

    def pubsub_channels(self, *patterns: bytes) -> list[bytes]:
        return _matching(self._server.channels.plain, patterns)

    def pubsub_shardchannels(self, *patterns: bytes) -> list[bytes]:
        return _matching(self._server.channels.shard, patterns)

    def pubsub_numsub(self, *names: bytes) -> list[Any]:
        plain = self._server.channels.plain
        return [part for name in names for part in (name, len(plain.get(name, ())))]

    def pubsub_shardnumsub(self, *names: bytes) -> list[Any]:
        shard = self._server.channels.shard
        return [part for name in names for part in (name, len(shard.get(name, ())))]

    def pubsub_numpat(self) -> int:
        return len(self._server.channels.patterns)

    def _listen(self, kind: bytes, table: dict[bytes, Any], names: Iterable[bytes]) -> Any:
        for name in names:
            table.setdefault(name, {})[self] = None
            self.push([kind, name, self._count(kind)])
        return NoResponse()

    def _leave(self, kind: bytes, table: dict[bytes, Any], names: Iterable[bytes]) -> Any:
        named = list(names) or [name for name, sessions in table.items() if self in sessions]
        for name in named:
            if name in table:
                _remove(table, name, self)
            self.push([kind, name, self._count(kind)])
        if not named:
            self.push([kind, None, self._count(kind)])
        return NoResponse()

    def _count(self, kind: bytes) -> int:
        plain, patterns, shard = self.subscriptions
        return shard if kind in (b"ssubscribe", b"sunsubscribe") else plain + patterns


def _matching(table: dict[bytes, Any], patterns: tuple[bytes, ...]) -> list[bytes]:
    if len(patterns) > 1:
        raise SimpleError("ERR unknown subcommand or wrong number of arguments for 'CHANNELS'. Try PUBSUB HELP.")
    return [name for name in table if not patterns or compile_pattern(patterns[0]).match(name)]


PUBSUB_COMMANDS: Final = {
    name: signature(name, name.replace(" ", "_"))
    for name in (
        *("subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe"),
        *("publish", "spublish", "pubsub channels", "pubsub numsub", "pubsub numpat"),
        *("pubsub shardchannels", "pubsub shardnumsub"),
    )
}
"""How fakeredis is to call them."""
