"""Everything that Penstock takes from fakeredis, in one place: its socket is private, so its version is pinned."""

from __future__ import annotations

from typing import Any, Final

try:
    import fakeredis._core._server
    import fakeredis._helpers
    import fakeredis._socket._base
    import fakeredis.commands_mixins.connection_mixin
    import fakeredis.commands_mixins.server_mixin
    import fakeredis.model._client_info
    import fakeredis.model._stream
    from fakeredis import _msgs as messages
    from fakeredis._command_args_parsing import Float, Int, extract_args
    from fakeredis._commands import SUPPORTED_COMMANDS, Key, Signature
    from fakeredis._core import CommandItem, Database, FakeServer
    from fakeredis._helpers import OK, QUEUED, NoResponse, SimpleError, SimpleString, compile_pattern, current_time
    from fakeredis._socket import FakeSocket
    from fakeredis._socket._resp import convert_to_resp2
    from fakeredis.model._stream import PelEntry, StreamConsumerInfo, StreamEntryKey, XStream
except ModuleNotFoundError as error:
    raise ImportError("the in-process Redis needs fakeredis with Lua: pip install 'penstock[test]'") from error

__all__ = [
    "CLOCK_USERS",
    "OK",
    "QUEUED",
    "SUPPORTED_COMMANDS",
    "CommandItem",
    "Database",
    "FakeServer",
    "FakeSocket",
    "Float",
    "Int",
    "Key",
    "NoResponse",
    "PelEntry",
    "Signature",
    "SimpleError",
    "SimpleString",
    "StreamConsumerInfo",
    "StreamEntryKey",
    "XStream",
    "compile_pattern",
    "convert_to_resp2",
    "current_time",
    "extract_args",
    "messages",
    "signature",
]


def signature(name: str, function: str, *, keys: int = 0, more_keys: bool = False, words: bool = True) -> Signature:
    """How fakeredis calls a command: so many keys first (then any number of keys), or words as they come."""
    fixed: Any = (Key(),) * keys
    repeat: Any = (Key(),) if more_keys else (bytes,) if words else ()
    return Signature(name, function, fixed, repeat)


CLOCK_USERS: Final[tuple[Any, ...]] = (
    fakeredis._core._server,
    fakeredis._helpers,
    fakeredis._socket._base,
    fakeredis.commands_mixins.connection_mixin,
    fakeredis.commands_mixins.server_mixin,
    fakeredis.model._client_info,
    fakeredis.model._stream,
)
"""Modules of it that look at the clock, by their global `time`."""
