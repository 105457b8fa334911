"""`Session`: the server's side of one connection, words in and bytes out.

fakeredis brings most commands. Replaced here are its transport, its blocking reads (served in order, no threads), the
order of checks before a command, and, in the classes below `Session`, what it does differently from a real server. What
it does not do right is refused, loudly: see `redis_commands.TRUSTED`.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import trio

from ._fakeredis import (
    QUEUED,
    SUPPORTED_COMMANDS,
    FakeSocket,
    NoResponse,
    Signature,
    SimpleError,
    convert_to_resp2,
    messages,
)
from .redis_clients import CLIENT_COMMANDS, ClientCommands
from .redis_commands import COMMANDS, CONTAINERS, TRUSTED, Command, UnsupportedCommand, name_of
from .redis_encoding import NULL_ARRAY, Members, encode
from .redis_engine import Blocked, Engine, wall_clock
from .redis_fixes import FIXED_COMMANDS, FixedCommands, correct
from .redis_pubsub import PUBSUB_COMMANDS
from .redis_streams import STREAM_COMMANDS, StreamCommands

__all__ = ["Gatekeeper", "Session"]

_OWN: Final[Mapping[str, Signature]] = PUBSUB_COMMANDS | CLIENT_COMMANDS | STREAM_COMMANDS | FIXED_COMMANDS
_WHILE_SUBSCRIBED: Final = frozenset(
    {"subscribe", "psubscribe", "ssubscribe", "unsubscribe", "punsubscribe", "sunsubscribe", "ping", "quit", "reset"}
)


class Gatekeeper(Protocol):
    """Decides over commands before and after they run. May raise to end the connection."""

    def admit(self, words: Sequence[bytes]) -> str | None:
        """A planned error line to answer with instead of running the command."""

    def redirect(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """The error line when the command's keys belong elsewhere, or to nobody."""

    def refusal(self, session: Session, command: Command, words: Sequence[bytes]) -> str | None:
        """The error line when the server is in a state in which it does not run the command."""

    def done(self, session: Session, words: Sequence[bytes]) -> None:
        """The command has run; its reply is not sent yet."""

    def cluster(self, session: Session, words: Sequence[bytes]) -> Any:
        """The answer to a command about the cluster. May raise SimpleError."""

    def facts(self) -> dict[str, Any]:
        """What INFO and HELLO say."""

    def role(self) -> list[Any]:
        """The answer to ROLE."""

    def pause(self, until: float, writes_only: bool) -> None:
        """CLIENT PAUSE, until `trio.current_time()` is this."""


class Session(ClientCommands, StreamCommands, FixedCommands, FakeSocket):
    """The server's side of one connection: words in by `execute`, bytes out by `send`.

    Args:
        engine: the server.
        gatekeeper: asked before every command, told after it.
        send: takes the bytes of replies.
        hang_up: ends the connection; what was sent before is delivered.

    Attributes:
        blocked: what it waits for, or None.
        unblocked: set when it waits no longer.
        read_only: whether the client has said READONLY (to a replica).
        asking: whether the client has said ASKING just before.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        gatekeeper: Gatekeeper,
        send: Callable[[bytes], None],
        hang_up: Callable[[], None],
    ) -> None:
        self._gatekeeper = gatekeeper
        self._send = send
        self._hang_up = hang_up
        self._held: list[bytes] | None = None  # replies of the command that runs now: a cut after it drops them
        self._pushes: list[bytes] = []  # messages to itself come after the reply
        self._words: Sequence[bytes] = ()
        self.unblocked = trio.Event()
        self.read_only = False
        self.asking = False
        self.engine: Engine = engine
        super().__init__(engine, 0, client_class=FakeSocket)
        self.logged_in = "default" not in engine.users

    __hash__ = object.__hash__

    @property
    def words(self) -> Sequence[bytes]:
        """The command that runs."""
        return self._words

    @property
    def user(self) -> str:
        return str(self._client_info["user"])

    @property
    def blocked(self) -> Blocked | None:
        return self.engine.data.blocked.get(self)

    @property
    def in_transaction(self) -> bool:
        """Whether commands are queued."""
        return self._transaction is not None

    @property
    def queued(self) -> list[list[bytes]]:
        """The commands of the transaction, with all their words."""
        return [[*signature.name.encode().split(), *words] for _, signature, words in self._transaction or ()]

    def execute(self, words: list[bytes]) -> None:
        """Run one command and send its reply, if it has one now; then serve those whom it has unblocked."""
        name = name_of(words)
        command = COMMANDS.get(name)
        self._words = words
        self._held = []
        try:
            planned = self._gatekeeper.admit(words)
            reply = self._answer(name, command, words) if planned is None else self._reject(name, planned)
            if not isinstance(reply, NoResponse):
                self.put_response(reply)
            if planned is None:
                self._gatekeeper.done(self, words)
            self._flush()
        finally:
            self._held = None
            self._pushes.clear()
            self.engine.data.serve_blocked()  # also when the connection was cut after the effect

    def put_response(self, msg: Any) -> None:
        """Send a reply, or a push."""
        data = encode(msg, self._client_info.protocol_version)
        if self._held is None:
            self._send(data)
        else:
            self._held.append(data)

    def push(self, message: list[Any]) -> None:
        super().push(message)
        if self._held and message[0] in (b"message", b"pmessage", b"smessage"):
            self._pushes.append(self._held.pop())

    def try_again(self) -> None:
        """Something has changed: answer the blocked command, if it can be."""
        blocked = self.blocked
        if blocked is None:
            return
        self._db.time = wall_clock()
        try:
            result = blocked.attempt(False)
        except SimpleError as error:
            # A stream that has gone to another node is not a lost group.
            elsewhere = self._gatekeeper.redirect(self, COMMANDS[name_of(blocked.words)], blocked.words)
            self.unblock(error if elsewhere is None else SimpleError(elsewhere))
            return
        if result is not None:
            self.unblock(blocked.shape(result))

    def time_out(self) -> None:
        """The blocked command's time is over."""
        if (blocked := self.blocked) is not None:
            self.unblock(blocked.shape(None))

    def follow(self) -> None:
        """Slots have gone elsewhere, or the cluster is down: tell the blocked client, if it waits for such a key."""
        if (blocked := self.blocked) is not None:
            elsewhere = self._gatekeeper.redirect(self, COMMANDS[name_of(blocked.words)], blocked.words)
            if elsewhere is not None and elsewhere.startswith(("MOVED ", "CLUSTERDOWN ")):
                self.unblock(SimpleError(elsewhere))

    def unblock(self, reply: Any) -> None:
        """Answer the blocked command."""
        del self.engine.data.blocked[self]
        self.put_response(reply)
        self.unblocked.set()

    def kill(self) -> None:
        """CLIENT KILL. A client that kills itself still gets the reply."""
        self._killed = True
        if self._held is None:
            self._hang_up()

    def hang_up_after_reply(self) -> None:
        """End the connection when the present command is answered."""
        self._killed = True

    def close(self) -> None:
        """The connection has ended."""
        self.engine.data.blocked.pop(self, None)
        self.engine.channels.forget(self)
        self._clear_watches()
        with contextlib.suppress(ValueError):
            self.engine.sockets.remove(self)

    def _flush(self) -> None:
        assert self._held is not None  # noqa: S101
        data = b"".join([*self._held, *self._pushes])
        if data:
            self._send(data)
        if self._killed:
            self._hang_up()

    def _answer(self, name: str, command: Command | None, words: list[bytes]) -> Any:
        self._tell_time()
        refusal = self._refusal(name, command, words)
        if refusal is not None:
            return self._reject(name, refusal)
        function, signature = self._name_to_func(name)
        arguments = words[2:] if " " in name else words[1:]
        if self._transaction is not None and name not in _NEVER_QUEUED:
            if name.endswith("subscribe"):
                raise UnsupportedCommand(f"the in-process Redis does not vouch for {name.upper()} in a transaction")
            try:
                signature.check_arity(arguments, self.version)
            except SimpleError as error:
                return self._reject(name, error.value)
            self._transaction.append((function, signature, arguments))
            return QUEUED
        reply = self._run_command(function, signature, arguments, False)
        if name != "asking" and self._transaction is None:
            self.asking = False
        return reply

    def _tell_time(self) -> None:
        now = wall_clock()
        for database in self.engine.data.databases.values():
            database.time = now

    def _reject(self, name: str, text: str) -> SimpleError:
        self.asking = False
        if self._transaction is not None:
            self._transaction_failed = True
        if name == "exec":
            self._forget_transaction()
            self._clear_watches()
            if text.startswith(_REDIRECTIONS):
                return SimpleError(text)
            return SimpleError(f"EXECABORT Transaction discarded because of: {text}")
        return SimpleError(text)

    def _refusal(self, name: str, command: Command | None, words: list[bytes]) -> str | None:
        """Why the command does not run; in the order in which a real server looks."""
        if command is None:
            return _unknown(name, words)
        if not command.takes(len(words)):
            return f"ERR wrong number of arguments for '{name.replace(' ', '|')}' command"
        if not self.logged_in and "a" not in command.flags:
            return "NOAUTH Authentication required."
        if self.in_transaction and name in _NOT_IN_TRANSACTIONS:
            return f"ERR Command '{name}' not allowed inside a transaction"
        keeper: Gatekeeper = self._gatekeeper
        refusal = keeper.redirect(self, command, words) or keeper.refusal(self, command, words)
        if refusal is not None:
            return refusal
        if self.protocol == 2 and any(self.subscriptions) and name not in _WHILE_SUBSCRIBED:
            allowed = "(P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET"
            spelled = name.replace(" ", "|")
            return f"ERR Can't execute '{spelled}': only {allowed} are allowed in this context"
        return None

    def _name_to_func(self, cmd_name: str) -> tuple[Callable[..., Any] | None, Signature]:
        """Look a command up, for a client or a script. What is not trusted ends the test, not just the command."""
        if cmd_name not in COMMANDS:
            raise SimpleError("ERR Unknown Redis command called from script")
        if cmd_name not in TRUSTED:
            raise UnsupportedCommand(f"the in-process Redis does not vouch for {cmd_name.upper()}: use a real server")
        signature = _OWN.get(cmd_name) or SUPPORTED_COMMANDS[cmd_name]
        return getattr(self, signature.func_name), signature

    def _run_command(self, func: Callable[..., Any] | None, sig: Signature, args: list[Any], from_script: bool) -> Any:
        assert func is not None  # noqa: S101
        items: list[Any] = []
        try:
            if from_script:
                self._check_call(COMMANDS[sig.name])
            else:
                self._script_has_written = False
            applied = sig.apply(args, self._db, self.version)
            if len(applied) == 1:
                result = applied[0]
            else:
                values, items = applied
                result = func(*values)
        except SimpleError as error:
            result = SimpleError(correct(error.value))
        for item in items:
            item.writeback(remove_empty_val=messages.FLAG_LEAVE_EMPTY_VAL not in sig.flags)
        watch = self.engine.data.watch
        if watch is not None:
            watch(sig.name, args, result)
        if result is None and sig.name in _ARRAYS:
            result = NULL_ARRAY
        if sig.name in _SETS and isinstance(result, list):
            result = Members(result)
        if from_script:
            result = _for_script(result)
        if from_script and self._resp_version == 2:
            result = convert_to_resp2(result, "valkey")
        return result

    def _lua_redis_call(self, lua_runtime: Any, expected_globals: set[Any], op: bytes, *args: Any) -> Any:
        """fakeredis does not know all containers: what it would take for one word is refused here."""
        name = name_of([op, *(arg if isinstance(arg, bytes) else str(arg).encode() for arg in args[:1])])
        if " " in name and name in COMMANDS and name not in SUPPORTED_COMMANDS:
            self._name_to_func(name)
        return super()._lua_redis_call(lua_runtime, expected_globals, op, *args)

    def _check_call(self, command: Command) -> None:
        if "s" in command.flags:
            raise SimpleError("ERR This Redis command is not allowed from script")
        if self._script_reads_only and command.writes:
            raise SimpleError("ERR Write commands are not allowed from read-only scripts.")
        refusal = self._gatekeeper.refusal(self, command, [command.name.encode(), b""])
        # What has begun to write is not stopped in the middle for want of memory.
        if refusal is not None and not (self._script_has_written and refusal.startswith("OOM ")):
            raise SimpleError(refusal)
        self._script_has_written = self._script_has_written or command.writes

    def _blocking(
        self, timeout: float | None, func: Callable[[bool], Any], shape: Callable[[Any], Any] | None = None
    ) -> Any:
        """Answer now, or park the session."""
        result = func(True)
        if result is not None or self._in_transaction or self._script_resp is not None:
            return result if shape is None else shape(result)
        shaped = shape or _as_it_is
        if name_of(self._words) in _ARRAYS:
            shaped = functools.partial(_as_array, shaped)
        deadline = trio.current_time() + timeout if timeout else math.inf
        self.unblocked = trio.Event()
        self.engine.data.blocked[self] = Blocked(func, shaped, self._words, deadline)
        return NoResponse()


_REDIRECTIONS: Final = ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ", "CROSSSLOT ", "EXECABORT ")
_SETS: Final = frozenset({"smembers", "sinter", "sunion", "sdiff", "spop"})
_ARRAYS: Final = frozenset({"blpop", "brpop", "lmpop", "blmpop", "zmpop", "bzmpop", "bzpopmin", "bzpopmax", "exec"})
_NOT_IN_TRANSACTIONS: Final = frozenset({"multi", "watch"})
_NEVER_QUEUED: Final = frozenset({"exec", "discard", "multi", "watch", "quit", "reset"})


def _as_it_is(reply: Any) -> Any:
    return reply


def _for_script(reply: Any) -> Any:
    """A reply as fakeredis' Lua knows it."""
    if reply is NULL_ARRAY:
        return None
    return [_for_script(each) for each in reply] if isinstance(reply, list) else reply


def _as_array(shape: Callable[[Any], Any], reply: Any) -> Any:
    shaped = shape(reply)
    return NULL_ARRAY if shaped is None else shaped


def _unknown(name: str, words: Sequence[bytes]) -> str:
    if words[0].decode("utf-8", "replace").lower() in CONTAINERS and len(words) > 1:
        container, sub = words[0].decode("utf-8", "replace"), words[1].decode("utf-8", "replace")
        return f"ERR unknown subcommand '{sub}'. Try {container.upper()} HELP."
    if name in CONTAINERS:
        return f"ERR wrong number of arguments for '{name}' command"
    spelled = words[0][:128].decode("utf-8", "replace")
    shown = ""
    for word in words[1:]:
        if len(shown) >= 128:
            break
        shown += f"'{word[: 128 - len(shown)].decode('utf-8', 'replace')}' "
    return f"ERR unknown command '{spelled}', with args beginning with: {shown}"
