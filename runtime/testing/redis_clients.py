"""Commands about connections and the server itself, as Valkey answers them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import trio

from ._fakeredis import OK, Int, SimpleError, SimpleString, signature
from .redis_commands import UnsupportedCommand
from .redis_encoding import Verbatim
from .redis_pubsub import PubSubCommands

__all__ = ["CLIENT_COMMANDS", "ClientCommands"]

_INFO: Final = """\
# Server
redis_version:7.2.4
server_name:valkey
valkey_version:9.1.2
server_mode:{mode}
# Clients
connected_clients:{clients}
blocked_clients:{blocked}
# Memory
maxmemory:0
maxmemory_policy:noeviction
# Persistence
loading:{loading}
# Replication
role:{role}
connected_slaves:{replicas}
# Cluster
cluster_enabled:{cluster}
"""
_OF_VALKEY: Final = "redis_version:7.2.4\nserver_name:valkey\nvalkey_version:9.1.2\n"
_OF_REDIS: Final = "redis_version:8.6.0\n"
_FIXED_CONFIG: Final = {
    "appendonly": "no",
    "cluster-enabled": "no",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "notify-keyspace-events": "",
    "stream-node-max-bytes": "4096",
    "stream-node-max-entries": "100",
}
_WRONG_PASSWORD: Final = "WRONGPASS invalid username-password pair or user is disabled."  # noqa: S105  # no password
_MUST_LOG_IN: Final = (
    "NOAUTH HELLO must be called with the client already authenticated, otherwise the HELLO <proto> AUTH <user> <pass> "
    "option can be used to authenticate the client and select the RESP protocol version at the same time"
)


class ClientCommands(PubSubCommands):
    """The commands, for a session."""

    engine: Any
    logged_in: bool
    _client_info: Any
    _db_num: int
    _transaction: Any
    kill: Any
    unblock: Any
    time_out: Any
    select: Any
    _clear_watches: Any
    _forget_transaction: Any
    _gatekeeper: Any

    @property
    def protocol(self) -> int:
        """2 or 3."""
        return int(self._client_info.protocol_version)

    def hello(self, *words: bytes) -> Any:
        protocol = self.protocol
        if words:
            protocol = _integer(words[0], "ERR Protocol version is not an integer or out of range")
            if protocol not in (2, 3):
                raise SimpleError("NOPROTO unsupported protocol version")
        login, name = _read_hello(words[1:])
        if login is not None:
            self._log_in(*login)
        if not self.logged_in:
            raise SimpleError(_MUST_LOG_IN)
        if name is not None:
            self._name(name)
        self._client_info["resp"] = protocol
        info = self._gatekeeper.facts()
        return {
            b"server": b"valkey",
            b"version": b"9.1.2",
            b"proto": protocol,
            b"id": self.client_id(),
            b"mode": info["mode"].encode(),
            b"role": info["role"].replace("slave", "replica").encode(),
            b"modules": [],
        }

    def auth(self, *words: bytes) -> Any:
        if len(words) > 2:
            raise SimpleError("ERR syntax error")
        if len(words) == 1 and "default" not in self.engine.users:
            raise SimpleError(
                "ERR AUTH <password> called without any password configured for the default user. "
                "Are you sure your configuration is correct?"
            )
        self._log_in(*(words if len(words) == 2 else (b"default", words[0])))
        return OK

    def ping(self, *words: bytes) -> Any:
        if len(words) > 1:
            raise SimpleError("ERR wrong number of arguments for 'ping' command")
        if self.protocol == 2 and any(self.subscriptions):
            return [b"pong", words[0] if words else b""]
        return words[0] if words else SimpleString(b"PONG")

    def quit(self) -> Any:
        self.kill()
        return OK

    def reset(self) -> Any:
        self._forget_transaction()
        self._clear_watches()
        self.engine.channels.forget(self)
        self._client_info["resp"] = 2
        self._client_info["name"] = ""
        self.logged_in = "default" not in self.engine.users
        self.select(0)
        return SimpleString(b"RESET")

    def info(self, *_: bytes) -> Verbatim:
        text = _INFO.format(
            clients=len(self.engine.sockets),
            blocked=len(self.engine.data.blocked),
            **self._gatekeeper.facts(),
        )
        if self.engine.idempotent:
            text = text.replace(_OF_VALKEY, _OF_REDIS)
        return Verbatim(text.replace("\n", "\r\n").encode())

    def config_get(self, *patterns: bytes) -> dict[bytes, bytes]:
        wanted = [pattern.decode().lower() for pattern in patterns]
        for name in wanted:
            if name not in _FIXED_CONFIG:
                raise UnsupportedCommand(f"the in-process Redis has no setting {name}: use a real server")
        return {name.encode(): _FIXED_CONFIG[name].encode() for name in sorted(wanted)}

    def role(self) -> list[Any]:
        answer: list[Any] = self._gatekeeper.role()
        return answer

    def wait(self, replicas: bytes, limit: bytes) -> Any:
        _integer(replicas)
        _integer(limit, "ERR timeout is not an integer or out of range")
        return 0

    def client_id(self) -> int:
        return int(self._client_info["id"])

    def client_getname(self) -> bytes | None:
        return self._client_info.get("name", "").encode() or None

    def client_setname(self, name: bytes) -> Any:
        self._name(name)
        return OK

    def client_setinfo(self, what: bytes, value: bytes) -> Any:
        name = what.decode("utf-8", "replace").lower()
        if name not in ("lib-name", "lib-ver"):
            raise SimpleError(f"ERR Unrecognized option '{what.decode('utf-8', 'replace')}'")
        if any(not 33 <= byte <= 126 for byte in value):
            raise SimpleError(f"ERR {name} cannot contain spaces, newlines or special characters.")
        self._client_info[name] = value.decode()
        return OK

    def client_info(self) -> Verbatim:
        return Verbatim(self._describe("client|info") + b"\n")

    def client_list(self, *words: bytes) -> Verbatim:
        sessions = self._chosen(words, "ERR syntax error")
        lines = [session._describe("client|list" if session is self else None) for session in sessions]
        return Verbatim(b"".join(line + b"\n" for line in lines))

    def client_kill(self, *words: bytes) -> Any:
        if len(words) == 1:
            raise SimpleError("ERR No such client")
        skip_me, rest = _skip_me(words)
        killed = [session for session in self._chosen(rest, "ERR syntax error") if session is not self or not skip_me]
        for session in killed:
            session.kill()
        return len(killed)

    def client_unblock(self, number: bytes, *how: bytes) -> int:
        client = _integer(number)
        reason = how[0].lower() if how else b"timeout"
        if reason not in (b"timeout", b"error") or len(how) > 1:
            raise SimpleError("ERR CLIENT UNBLOCK reason should be TIMEOUT or ERROR")
        for session in self.engine.sockets:
            if session.client_id() == client and session.blocked is not None:
                if reason == b"error":
                    session.unblock(SimpleError("UNBLOCKED client unblocked via CLIENT UNBLOCK"))
                else:
                    session.time_out()
                return 1
        return 0

    def client_pause(self, milliseconds: bytes, *mode: bytes) -> Any:
        limit = _integer(milliseconds, "ERR timeout is not an integer or out of range")
        if limit < 0:
            raise SimpleError("ERR timeout is negative")
        if mode and mode[0].upper() not in (b"WRITE", b"ALL"):
            raise SimpleError("ERR CLIENT PAUSE mode must be WRITE or ALL")
        self._gatekeeper.pause(trio.current_time() + limit / 1000, bool(mode) and mode[0].upper() == b"WRITE")
        return OK

    def client_unpause(self) -> Any:
        self._gatekeeper.pause(0.0, False)
        return OK

    def cluster(self, *words: bytes) -> Any:
        """CLUSTER …, READONLY, READWRITE and ASKING."""
        return self._gatekeeper.cluster(self, words)

    def _log_in(self, user: bytes, password: bytes) -> None:
        users: dict[str, str] = self.engine.users
        name = user.decode("utf-8", "replace")
        free = name == "default" and "default" not in users
        if not free and users.get(name) != password.decode("utf-8", "replace"):
            raise SimpleError(_WRONG_PASSWORD)
        self._client_info["user"] = name
        self.logged_in = True

    def _name(self, name: bytes) -> None:
        if any(not 33 <= byte <= 126 for byte in name):
            raise SimpleError("ERR Client names cannot contain spaces, newlines or special characters.")
        self._client_info["name"] = name.decode()

    def _chosen(self, words: Sequence[bytes], complaint: str) -> list[Any]:
        """The sessions that CLIENT LIST or KILL means."""
        tests: list[Callable[[Any], bool]] = []
        index = 0
        while index < len(words):
            option = words[index].upper()
            values = words[index + 1 :]
            if option not in (b"ID", b"TYPE", b"USER", b"ADDR") or not values:
                raise SimpleError(complaint)
            if option == b"ID":
                numbers: set[int] = set()
                while index + 1 < len(words) and words[index + 1].isdigit():
                    index += 1
                    numbers.add(int(words[index]))
                if not numbers:
                    raise SimpleError("ERR Invalid client ID" if len(words) > 1 else complaint)
                tests.append(lambda session, numbers=numbers: session.client_id() in numbers)  # type: ignore[misc]
                index += 1
                continue
            wanted = values[0].decode("utf-8", "replace")
            tests.append(lambda session, option=option, wanted=wanted: session._is(option, wanted))  # type: ignore[misc]
            index += 2
        return [session for session in self.engine.sockets if all(test(session) for test in tests)]

    def _is(self, option: bytes, wanted: str) -> bool:
        if option == b"TYPE":
            kind = "pubsub" if any(self.subscriptions) else "normal"
            if wanted.lower() not in ("normal", "pubsub", "master", "primary", "replica", "slave"):
                raise SimpleError(f"ERR Unknown client type '{wanted}'")
            return kind == wanted.lower()
        if option == b"USER":
            return bool(self._client_info["user"] == wanted)
        return self._address == wanted

    @property
    def _address(self) -> str:
        return f"127.0.0.1:{30_000 + self.client_id()}"

    def _describe(self, command: str | None) -> bytes:
        plain, patterns, shard = self.subscriptions
        flags = "".join(("P" if any(self.subscriptions) else "", "x" if self._transaction is not None else ""))
        flags += "b" if self in self.engine.data.blocked else ""
        waiting = self.engine.data.blocked.get(self)
        name = command or (waiting.words[0].decode().lower() if waiting is not None else "NULL")
        fields = {
            "id": self.client_id(),
            "addr": self._address,
            "laddr": "127.0.0.1:6379",
            "name": self._client_info.get("name", ""),
            "flags": flags or "N",
            "db": self._db_num,
            "sub": plain,
            "psub": patterns,
            "ssub": shard,
            "multi": -1 if self._transaction is None else len(self._transaction),
            "cmd": name,
            "user": self._client_info["user"],
            "resp": self.protocol,
            "lib-name": self._client_info.get("lib-name", ""),
            "lib-ver": self._client_info.get("lib-ver", ""),
        }
        return " ".join(f"{field}={value}" for field, value in fields.items()).encode()


def _read_hello(words: Sequence[bytes]) -> tuple[tuple[bytes, bytes] | None, bytes | None]:
    """Login and name."""
    login: tuple[bytes, bytes] | None = None
    name: bytes | None = None
    index = 0
    while index < len(words):
        option = words[index].upper()
        if option == b"AUTH" and index + 2 < len(words):
            login = words[index + 1], words[index + 2]
            index += 3
        elif option == b"SETNAME" and index + 1 < len(words):
            name = words[index + 1]
            index += 2
        else:
            raise SimpleError(f"ERR Syntax error in HELLO option '{words[index].decode('utf-8', 'replace')}'")
    return login, name


def _skip_me(words: Sequence[bytes]) -> tuple[bool, list[bytes]]:
    """The SKIPME of CLIENT KILL, and the other words."""
    rest = list(words)
    skip = True
    for index in range(len(words) - 1):
        if words[index].upper() == b"SKIPME":
            if words[index + 1].lower() not in (b"yes", b"no"):
                raise SimpleError("ERR syntax error")
            skip = words[index + 1].lower() == b"yes"
            del rest[index : index + 2]
            break
    return skip, rest


def _integer(word: bytes, complaint: str = "ERR value is not an integer or out of range") -> int:
    number: int = Int.decode(word, complaint)
    return number


_NAMES: Final = """
    hello auth ping quit reset info role wait
    client_id client_getname client_setname client_setinfo client_info client_list client_kill client_unblock
    client_pause client_unpause config_get
"""
_CLUSTER: Final = (
    *("cluster info", "cluster nodes", "cluster slots", "cluster shards", "cluster myid", "cluster keyslot"),
    *("cluster countkeysinslot", "cluster getkeysinslot", "asking", "readonly", "readwrite"),
)
CLIENT_COMMANDS: Final = {
    name.replace("_", " "): signature(name.replace("_", " "), name) for name in _NAMES.split()
} | {name: signature(name, "cluster") for name in _CLUSTER}
"""How fakeredis is to call them."""
