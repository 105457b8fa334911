"""Everything private or loosely typed that Penstock takes from redis-py and hiredis, in one place.

redis-py gives the command set, the response callbacks, the error classes and the URL parser; hiredis gives the RESP
encoder and decoder. Names that redis-py does not promise to keep are imported here and nowhere else, so that an upgrade
breaks this module or nothing. `docs/decisions/0003-redis-transport.md` lists them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, cast

import hiredis

# The package first: `redis._parsers` alone runs into redis-py's own circular import.
import redis.asyncio.connection
from redis._parsers.base import BaseParser
from redis._parsers.encoders import Encoder
from redis._parsers.response_callbacks import get_response_callbacks
from redis.client import EMPTY_RESPONSE, NEVER_DECODE
from redis.commands import AsyncCoreCommands
from redis.commands.cluster import AsyncClusterManagementCommands
from redis.exceptions import DataError, InvalidResponse, ResponseError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "EMPTY_RESPONSE",
    "NEVER_DECODE",
    "NOT_ENOUGH_DATA",
    "AsyncClusterManagementCommands",
    "AsyncCoreCommands",
    "Encoder",
    "pack_command",
    "parse_url",
    "reply_error",
    "reply_reader",
    "response_callbacks",
    "unreadable",
]

NOT_ENOUGH_DATA: Final = object()
"""What `Reader.gets()` answers when the reply is not complete yet (False and None are replies)."""


def response_callbacks(protocol: Literal[2, 3]) -> dict[str, Callable[..., Any]]:
    """Command name in capitals -> function from the wire's reply to redis-py's Python value.

    The Python values are redis-py's "legacy" shapes, its own default, whatever the protocol on the wire is.
    """
    # None is its word for "RESP3 on the wire, and the shapes that RESP2 has had".
    callbacks = get_response_callbacks(None if protocol == 3 else 2, legacy_responses=True)
    return {name.upper(): callback for name, callback in callbacks.items()}


def reply_error(text: str) -> Exception:
    """The redis-py exception of an error reply, with the server's whole line kept in `reply_text`."""
    try:
        error = cast("Exception", BaseParser.parse_error(text))  # type: ignore[no-untyped-call]
    except ValueError:  # "MOVED" without a slot and a place: a script's own words, which no server would say
        error = ResponseError(text)
    error.reply_text = text  # type: ignore[attr-defined]  # redis-py drops the code word; classify() needs it
    return error


def reply_reader(*, decode: bool) -> hiredis.Reader:
    """A RESP decoder: bytes in by `feed`, replies out by `gets`, errors as redis-py exceptions."""
    return hiredis.Reader(
        protocolError=InvalidResponse,
        replyError=reply_error,
        encoding="utf-8" if decode else None,
        errors="strict",
        notEnoughData=NOT_ENOUGH_DATA,
    )


def unreadable(error: Exception) -> Exception:
    """What to raise when `gets` has failed: the decoder is of no use any more, and the connection with it."""
    return error if isinstance(error, InvalidResponse) else InvalidResponse(f"a reply that cannot be read: {error}")


def pack_command(args: tuple[Any, ...]) -> bytes:
    """The RESP bytes of one command. A first word with a space in it ("XGROUP CREATE") is sent as two words.

    Raises redis.exceptions.DataError for values Redis has no type for (None, bool, objects); the value itself is not
    in the message, for it may be a secret.
    """
    name = args[0]
    if " " in name if isinstance(name, str) else b" " in name:
        args = (*name.split(), *args[1:])
    try:
        packed: bytes = hiredis.pack_command(args)
    except TypeError:
        packed = hiredis.pack_command(tuple(_plain(arg, args[0]) for arg in args))
    return packed


def _plain(value: object, command: object) -> Any:
    """The value as hiredis takes it: it knows no bytearray, and no integer but int itself (an IntEnum, say)."""
    if isinstance(value, (bytes, str, float, memoryview)):
        return value
    if isinstance(value, bytearray):
        return bytes(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return int(value)
    raise DataError(f"{command!s}: an argument of type {type(value).__name__!r}; use bytes, str, int or float")


def parse_url(url: str) -> tuple[Mapping[str, Any], bool]:
    """redis-py's reading of a URL: its keyword arguments, and whether TLS is asked for.

    Raises ValueError for a URL that redis-py does not understand.
    """
    found: dict[str, Any] = dict(redis.asyncio.connection.parse_url(url))
    connection_class = found.pop("connection_class", None)
    return found, connection_class is redis.asyncio.connection.SSLConnection
