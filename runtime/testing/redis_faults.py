"""Faults on order: cuts and errors at a counted command, slow commands, and states in which a server refuses.

A state answers as a real server does in it: the same commands are refused, with the same line, and the others run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Literal

import trio
from attrs import define, frozen

from ..redis.replies import REPLIES, Reply
from ..redis.slots import slot_of
from .redis_commands import Command, keys_of

if TYPE_CHECKING:
    from .redis_session import Session

__all__ = ["GREETINGS", "REFUSALS", "SPOKEN", "WAKE_UPS", "CutOff", "Faults", "Trickle", "row_named"]

_HANDSHAKES: Final = frozenset({"HELLO", "AUTH", "CLIENT SETNAME", "CLIENT SETINFO"})


class CutOff(Exception):
    """The connection ends here."""


@define
class _PlannedCut:
    """A cut to come: at the `remaining`-th of these commands."""

    remaining: int
    effect: Literal["before", "after"]
    command: str | None


@define
class _PlannedError:
    """An error to answer with, instead of running the command."""

    command: str
    text: str
    times: int


@frozen
class _Delay:
    seconds: float
    command: str | None


@frozen
class _State:
    """A state in which the server refuses some commands."""

    row: str
    until: float
    commands: frozenset[str] | None


@define
class Trickle:
    """How replies are cut into pieces and glued together: each piece is sent `pause` seconds after the one before."""

    rng: random.Random
    most: int
    pause: float


Refusal = Callable[["Session", Command, Sequence[bytes]], str | None]


def _when(test: Callable[[Command], bool], text: str) -> Refusal:
    return lambda session, command, words: text if test(command) else None


def _keyed(text: str) -> Refusal:
    return lambda session, command, words: text if keys_of(command, words) else None


def _redirect(word: str) -> Refusal:
    def refuse(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        keys = keys_of(command, words)
        return f"{word} {slot_of(keys[0])} 127.0.0.1:6380" if keys else None

    return refuse


def _several(text: str) -> Refusal:
    return lambda session, command, words: text if len(keys_of(command, words)) > 1 else None


def _named(names: Iterable[str], text: str) -> Refusal:
    chosen = frozenset(names)

    def refuse(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        return text if command.name in chosen else None

    return refuse


def _no_permission(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    if "a" in command.flags:
        return None
    return f"NOPERM User {session.user} has no permissions to run the '{command.name.replace(' ', '|')}' command"


def _credentials(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    if command.name == "auth" or (command.name == "hello" and b"AUTH" in [word.upper() for word in words]):
        return "WRONGPASS invalid username-password pair or user is disabled."
    if command.name == "hello":
        return (
            "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH "
            "<user> <pass> option can be used to authenticate the client and select the RESP protocol version at the "
            "same time"
        )
    return None if "a" in command.flags else "NOAUTH Authentication required."


def _no_group(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    keys = keys_of(command, words)
    key = keys[0].decode("utf-8", "replace") if keys else ""
    if command.name == "xreadgroup":
        group = words[2].decode("utf-8", "replace")
        return f"NOGROUP No such key '{key}' or consumer group '{group}' in XREADGROUP with GROUP option"
    if command.name in ("xclaim", "xautoclaim", "xpending"):
        return f"NOGROUP No such key '{key}' or consumer group '{words[2].decode('utf-8', 'replace')}'"
    if command.name in ("xgroup setid", "xgroup createconsumer", "xgroup delconsumer", "xinfo consumers"):
        return f"NOGROUP No such consumer group '{words[3].decode('utf-8', 'replace')}' for key name '{key}'"
    return None


def _id_too_small(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    if command.name != "xadd":
        return None
    return "ERR The ID specified in XADD is equal or smaller than the target stream top item"


def _unknown(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    shown = "".join(f"'{word.decode('utf-8', 'replace')}' " for word in words[1:])
    return f"ERR unknown command '{words[0].decode('utf-8', 'replace')}', with args beginning with: {shown}"


def _no_protocol(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    speaks_3 = command.name == "hello" and words[1:2] == [b"3"]
    return "NOPROTO unsupported protocol version" if speaks_3 else None


def _protocol_error(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    session.hang_up_after_reply()
    return "ERR Protocol error: invalid bulk length"


def _no_cluster(session: Session, command: Command, words: Sequence[bytes]) -> str | None:
    concerned = command.name.startswith("cluster ") or command.name == "asking"
    return "ERR This instance has cluster support disabled" if concerned else None


_XGROUP: Final = ("xgroup create", "xgroup setid", "xgroup createconsumer", "xgroup delconsumer", "xgroup destroy")
_KEY_MUST_EXIST: Final = (
    "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use the MKSTREAM option "
    "to create an empty stream automatically."
)
REFUSALS: Final[dict[str, Refusal]] = {
    "loading": _when(lambda command: "l" not in command.flags, "LOADING Valkey is loading the dataset in memory"),
    "slot-not-served": _keyed("CLUSTERDOWN Hash slot not served"),
    "cluster-read-only": lambda session, command, words: (
        "CLUSTERDOWN The cluster is down and only accepts read commands"
        if keys_of(command, words) and (command.writes or command.runs_scripts)
        else None
    ),
    "cluster-down": _keyed("CLUSTERDOWN The cluster is down"),
    "master-down": _when(
        lambda command: "t" not in command.flags,
        "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    ),
    "read-only": _when(lambda command: command.writes, "READONLY You can't write against a read only replica."),
    "moved": _redirect("MOVED"),
    "ask": _redirect("ASK"),
    "try-again": _several("TRYAGAIN Multiple keys request during rehashing of slot"),
    "cross-slot": lambda session, command, words: (
        "CROSSSLOT Keys in request don't hash to the same slot"
        if len({slot_of(key) for key in keys_of(command, words)}) > 1
        else None
    ),
    "no-group": _no_group,
    "no-key": _named(_XGROUP, _KEY_MUST_EXIST),
    "busy-group": _named(["xgroup create"], "BUSYGROUP Consumer Group name already exists"),
    "out-of-memory": _when(lambda command: command.grows, "OOM command not allowed when used memory > 'maxmemory'."),
    "disk-error": _when(
        lambda command: command.writes or command.name == "ping",
        "MISCONF Valkey is configured to save RDB snapshots, but it's currently unable to persist to disk. Commands "
        "that may modify the data set are disabled, because this instance is configured to report errors during writes "
        "if RDB snapshotting fails (stop-writes-on-bgsave-error option). Please check the Valkey logs for details "
        "about the RDB error.",
    ),
    "no-replicas": _when(lambda command: command.writes, "NOREPLICAS Not enough good replicas to write."),
    "credentials": _credentials,
    "no-permission": _no_permission,
    "busy-script": _when(
        lambda command: "b" not in command.flags,
        "BUSY Valkey is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    ),
    "no-script": _named(["evalsha", "evalsha_ro"], "NOSCRIPT No matching script. Please use EVAL."),
    "transaction-refused": _named(["exec"], "EXECABORT Transaction discarded because of previous errors."),
    "wrong-type": _keyed("WRONGTYPE Operation against a key holding the wrong kind of value"),
    "unknown-command": _unknown,
    "id-too-small": _id_too_small,
    "redirected": _keyed("REDIRECT 127.0.0.1:6380"),
    "no-database": _named(["select"], "ERR DB index is out of range"),
    "no-cluster": _no_cluster,
    "no-protocol": _no_protocol,
    "protocol-error": _protocol_error,
}
"""Row of the table of replies -> the line for a command that is refused in that state, None for one that runs."""

WAKE_UPS: Final[dict[str, str]] = {
    "group-destroyed": "NOGROUP the consumer group this client was blocked on no longer exists",
    "unblocked-key-gone": "UNBLOCKED the stream key no longer exists",
    "unblocked-failover": (
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)"
    ),
    "unblocked-by-client": "UNBLOCKED client unblocked via CLIENT UNBLOCK",
}
"""Row -> the line that a blocked command gets."""

GREETINGS: Final[dict[str, str]] = {
    "too-many-clients": "ERR max number of clients reached",
    "protected-mode": (
        "DENIED Running in protected mode because protected mode is enabled and no password is set for the default "
        "user. In this mode connections are only accepted from the loopback interface."
    ),
}
"""Row -> the line that a new connection gets before it is closed."""

SPOKEN: Final = frozenset({*REFUSALS, *WAKE_UPS, *GREETINGS})
"""Rows that a server can send."""


class Faults:
    """What was ordered from one server."""

    def __init__(self) -> None:
        self._cuts: list[_PlannedCut] = []
        self._errors: list[_PlannedError] = []
        self._delays: list[_Delay] = []
        self._states: list[_State] = []
        self.trickle: Trickle | None = None

    def clear(self) -> None:
        """Nothing was ordered."""
        self.__init__()  # type: ignore[misc]

    def cut_after(self, commands: int, effect: Literal["before", "after"], command: str | None) -> None:
        self._cuts.append(_PlannedCut(commands, effect, command and command.upper()))

    def fail_next(self, command: str, text: str, times: int) -> None:
        self._errors.append(_PlannedError(command.upper(), text, times))

    def delay(self, seconds: float, command: str | None) -> None:
        name = command and command.upper()
        self._delays = [each for each in self._delays if each.command != name]
        if seconds:
            self._delays.append(_Delay(seconds, name))

    def add_state(self, row: str, until: float, commands: Iterable[str] | None) -> None:
        chosen = None if commands is None else frozenset(name.upper() for name in commands)
        self._states.append(_State(row, until, chosen))

    def delay_of(self, name: str) -> float:
        """Seconds before a command of this name runs."""
        return sum(each.seconds for each in self._delays if each.command in (None, name.upper()))

    def greeting(self) -> bytes | None:
        """What a new connection is told before it is closed."""
        for row, text in GREETINGS.items():
            if self.has_state(row):
                return b"-%b\r\n" % text.encode()
        return None

    def before(self, name: str) -> str | None:
        """A command comes in. The planned error to answer with; raises CutOff."""
        name = name.upper()
        if name in _HANDSHAKES:
            return None
        for planned in self._errors:
            if planned.command in ("*", name):
                planned.times -= 1
                if planned.times <= 0:
                    self._errors.remove(planned)
                return planned.text
        for cut in self._cuts:
            if cut.command in (None, name):
                cut.remaining -= 1
                if cut.remaining == 0 and cut.effect == "before":
                    self._cuts.remove(cut)
                    raise CutOff
        return None

    def after(self) -> None:
        """A command has run. Raises CutOff."""
        for cut in self._cuts:
            if cut.remaining == 0:
                self._cuts.remove(cut)
                raise CutOff

    def refusal(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """The line of the first state that refuses the command."""
        for state in self._current():
            if state.row in REFUSALS and (state.commands is None or command.name.upper() in state.commands):
                text = REFUSALS[state.row](session, command, words)
                if text is not None:
                    return text
        return None

    def has_state(self, row: str) -> bool:
        """Whether the server is in this state."""
        return any(state.row == row for state in self._current())

    def _current(self) -> list[_State]:
        if self._states:
            now = trio.current_time()
            self._states = [state for state in self._states if state.until > now]
        return self._states


def row_named(reply: Reply | str) -> str:
    """The name of a row of the table; raises ValueError for what no server sends."""
    name = reply.name if isinstance(reply, Reply) else reply
    if name not in {row.name for row in REPLIES}:
        raise ValueError(f"{name!r} is no row of the table of replies; see penstock.runtime.redis.REPLIES")
    if name not in SPOKEN:
        how = {"silence": "use hang()", "disconnected": "use refuse() or cut()"}
        raise ValueError(f"no server sends {name!r}: {how.get(name, 'it comes from the client side')}")
    return name
