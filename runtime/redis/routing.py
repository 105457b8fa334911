"""Which connection a command may run on: the shared one, one of its own, or none.

The shared connection belongs to all tasks. A command that blocks would stop them all, and a command that changes the
connection would change it for them all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from .errors import CommandRefused

__all__ = ["UNUSUAL", "block_of", "check_dedicated", "check_shared", "command_name", "reads_from_now"]


def command_name(args: Sequence[Any]) -> str:
    """The command in capitals, with its sub-command when it came in one word ("XGROUP CREATE").

    Raises TypeError when there is none.
    """
    try:
        name = args[0]
    except IndexError:
        raise TypeError("execute_command() without a command: give its name, then each of its arguments") from None
    return (name if isinstance(name, str) else bytes(name).decode("ascii", "replace")).upper()


def block_of(name: str, args: Sequence[Any]) -> float | None:
    """How long the command may block in the server, seconds; None for a command that does not block.

    Raises CommandRefused for "for ever": a frozen server would never be noticed.
    """
    rule = _BLOCKING.get(name)
    block = None if rule is None else rule(args)
    if block is not None and block <= 0:
        raise CommandRefused(
            f"{name} without a limit: a frozen server would never be noticed. Give it a time-out and call it in a loop"
        )
    return block


def reads_from_now(name: str, args: Sequence[Any]) -> bool:
    """Whether this is an XREAD of what comes after it was sent (`$`): sent again, it would step over entries."""
    return name == "XREAD" and any(arg in ("$", b"$") for arg in args)


def check_shared(name: str, args: Sequence[Any]) -> None:
    """Raise CommandRefused for a command that must not run on the shared connection."""
    _check_words(name)
    if name in _GUARDED:
        advice = _CHANGES_CONNECTION.get(name) or _SAME_CONNECTION.get(name) or _of_container(name, args)
        if advice is not None:
            raise CommandRefused(f"{name} cannot run on the connection that all tasks share: {advice}")


def check_dedicated(name: str, args: Sequence[Any]) -> bool:
    """Raise CommandRefused for a command whose effect a reconnect would silently undo.

    Returns whether the command is about what this very connection did before, so that it must not open a new one.
    """
    _check_words(name)
    if name in _GUARDED:
        advice = _CHANGES_CONNECTION.get(name) or _of_container(name, args)
        if advice is not None:
            raise CommandRefused(f"{name} changes the connection, and a reconnect would undo it: {advice}")
    return name in _SAME_CONNECTION


def _check_words(name: str) -> None:
    """Two words at most, for a command and its sub-command: a whole line ("SELECT 3") would get past every rule here.

    And a blank one would be sent, and never be answered.
    """
    if " " not in name:
        return
    words = name.split()
    if name != " ".join(words) or not 0 < len(words) <= 2 or words[0] in _WHOLE_COMMANDS:
        what = f"a line that begins with {words[0]}" if words else "a blank"
        raise CommandRefused(f"{what} is no name of a command: give each word as an argument of its own")


_TRANSACTION = "use redis.pipeline(transaction=True); to read and decide first, redis.transaction() or a Lua script"
_PUBSUB = "use `async with redis.pubsub() as pubsub:`, a connection that only listens"
_CHANGES_CONNECTION: dict[str, str] = {
    "SELECT": "set RedisOptions.db",
    "AUTH": "set RedisOptions.username and password",
    "HELLO": "set RedisOptions.protocol, username, password and client_name",
    "RESET": "leave `async with Redis(...)` and open a new one",
    "QUIT": "leave `async with Redis(...)`",
    "MULTI": _TRANSACTION,
    "EXEC": _TRANSACTION,
    "DISCARD": _TRANSACTION,
    "WATCH": _TRANSACTION,
    "UNWATCH": _TRANSACTION,
    "SUBSCRIBE": _PUBSUB,
    "PSUBSCRIBE": _PUBSUB,
    "SSUBSCRIBE": _PUBSUB,
    "UNSUBSCRIBE": _PUBSUB,
    "PUNSUBSCRIBE": _PUBSUB,
    "SUNSUBSCRIBE": _PUBSUB,
    "MONITOR": "it turns the connection into a log; use redis-cli MONITOR",
    "SYNC": "it turns the connection into a replica's",
    "PSYNC": "it turns the connection into a replica's",
    "REPLCONF": "it belongs to a connection with a replica, and may have no reply",
    "ASKING": "it belongs to the next command only",
    "READONLY": "it belongs to a connection with a replica",
    "READWRITE": "it belongs to a connection with a replica",
}
_CHANGING_SUBCOMMANDS: dict[tuple[str, str], str] = {
    ("CLIENT", "REPLY"): "without replies no command could be answered",
    ("CLIENT", "TRACKING"): "invalidation messages need a connection that listens for them",
    ("CLIENT", "CACHING"): "it belongs to CLIENT TRACKING",
    ("CLIENT", "SETNAME"): "set RedisOptions.client_name",
    ("SCRIPT", "DEBUG"): "use redis-cli --ldb",
}
# They speak about the writes of the connection that they run on: on another one, WAIT would count replicas that never
# got the write.
_SAME_CONNECTION: dict[str, str] = {
    "WAIT": "it confirms the writes of its own connection; write and wait inside `async with redis.dedicated()`",
    "WAITAOF": "it confirms the writes of its own connection; write and wait inside `async with redis.dedicated()`",
}
_CONTAINERS = {container for container, _ in _CHANGING_SUBCOMMANDS}
_GUARDED = frozenset(
    {
        *_CHANGES_CONNECTION,
        *_SAME_CONNECTION,
        *_CONTAINERS,
        *(f"{container} {sub}" for container, sub in _CHANGING_SUBCOMMANDS),
    }
)


def _of_container(name: str, args: Sequence[Any]) -> str | None:
    """The advice for a forbidden sub-command, written as one word ("CLIENT REPLY") or as two."""
    container, _, sub = name.partition(" ")
    if not sub and len(args) > 1:
        sub = command_name(args[1:2]) if isinstance(args[1], (str, bytes)) else ""
    return _CHANGING_SUBCOMMANDS.get((container, sub))


def _last_in_seconds(args: Sequence[Any]) -> float:
    return float(args[-1])


def _first_in_seconds(args: Sequence[Any]) -> float:
    return float(args[1])


def _last_in_milliseconds(args: Sequence[Any]) -> float:
    return float(args[-1]) / 1000


def _migrate(args: Sequence[Any]) -> float:
    return float(args[5]) / 1000  # MIGRATE host port key db timeout


def _xread(args: Sequence[Any]) -> float | None:
    return _block_option(args[1:])


def _xreadgroup(args: Sequence[Any]) -> float | None:
    return _block_option(args[4:])  # after GROUP group consumer, either of which may be called "BLOCK"


def _block_option(options: Sequence[Any]) -> float | None:
    for position, word in enumerate(options):
        if not isinstance(word, (str, bytes)):
            continue
        text = command_name((word,))
        if text == "STREAMS":
            return None
        if text == "BLOCK":
            return float(options[position + 1]) / 1000
    return None


_BLOCKING: dict[str, Callable[[Sequence[Any]], float | None]] = {
    "BLPOP": _last_in_seconds,
    "BRPOP": _last_in_seconds,
    "BRPOPLPUSH": _last_in_seconds,
    "BLMOVE": _last_in_seconds,
    "BZPOPMIN": _last_in_seconds,
    "BZPOPMAX": _last_in_seconds,
    "BLMPOP": _first_in_seconds,
    "BZMPOP": _first_in_seconds,
    "XREAD": _xread,
    "XREADGROUP": _xreadgroup,
    "WAIT": _last_in_milliseconds,
    "WAITAOF": _last_in_milliseconds,
    "MIGRATE": _migrate,
}

_WHOLE_COMMANDS: Final = _CHANGES_CONNECTION.keys() | _SAME_CONNECTION.keys() | _BLOCKING.keys()
"""Those that have no sub-commands."""

UNUSUAL: Final = _GUARDED | _BLOCKING.keys()
"""Commands for which `check_shared`, `check_dedicated` or `block_of` may have something to say: no other need ask."""
