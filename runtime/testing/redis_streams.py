"""Streams: what fakeredis does differently from a real server."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ._fakeredis import Signature, SimpleError, XStream, messages
from .redis_commands import UnsupportedCommand
from .redis_encoding import NULL_ARRAY

__all__ = ["STREAM_COMMANDS", "StreamCommands"]

_NOT_IN_VALKEY: Final = (b"idmp", b"iids", b"pids")


class StreamCommands:
    """The commands, for a session."""

    _db: Any
    _blocking: Any

    def xreadgroup(self, group_const: bytes, group_name: bytes, consumer_name: bytes, *args: bytes) -> Any:
        """fakeredis never blocks when COUNT is given, and answers an absent key with another command's error."""
        words = [word.upper() for word in args]
        split = words.index(b"STREAMS") if b"STREAMS" in words else len(words)
        block: float | None = None
        if b"BLOCK" in words[:split]:
            position = words.index(b"BLOCK")
            block = int(args[position + 1]) / 1000
            args = args[:position] + args[position + 2 :]
            split -= 2
        keys = args[split + 1 : split + 1 + (len(args) - split - 1) // 2]

        def attempt(_: bool) -> Any:
            self._check_groups(keys, group_name)
            # dropped: fakeredis' own `first_pass`, which gives up the entries that it has just delivered
            return super(StreamCommands, self).xreadgroup(group_const, group_name, consumer_name, *args) or None  # type: ignore[misc]

        def shape(reply: Any) -> Any:
            return NULL_ARRAY if reply is None else reply

        return shape(attempt(True)) if block is None else self._blocking(block, attempt, shape)

    def xread(self, *args: bytes) -> Any:
        reply = super().xread(*args)  # type: ignore[misc]
        return reply or NULL_ARRAY if isinstance(reply, (list, dict)) or reply is None else reply

    def xinfo_stream(self, key: Any, *args: bytes) -> dict[bytes, Any]:
        """fakeredis answers with a list where RESP3 has a map, and with fields that Valkey does not have."""
        if args:
            raise UnsupportedCommand("the in-process Redis does not vouch for XINFO STREAM FULL: use a real server")
        flat = iter(super().xinfo_stream(key))  # type: ignore[misc]
        return {name: value for name, value in zip(flat, flat, strict=True) if not name.startswith(_NOT_IN_VALKEY)}

    def xgroup_destroy(self, key: Any, group_name: bytes) -> int:
        """fakeredis wakes nobody."""
        gone: int = super().xgroup_destroy(key, group_name)  # type: ignore[misc]
        if gone:
            key.updated()
        return gone

    def xsetid(self, key: Any, entry_id: bytes, *options: bytes) -> Any:
        raise UnsupportedCommand("XSETID")

    def _check_groups(self, keys: Sequence[bytes], group: bytes) -> None:
        for key in keys:
            item = self._db.get(key)
            if item is not None and not isinstance(item.value, XStream):
                raise SimpleError(messages.WRONGTYPE_MSG)
            if item is None or not item.value.group_get(group):
                text = messages.XREADGROUP_KEY_OR_GROUP_NOT_FOUND_MSG
                raise SimpleError(text.format(key.decode(), group.decode()))


STREAM_COMMANDS: Final[dict[str, Signature]] = {}
"""How fakeredis is to call those that it does not have."""
