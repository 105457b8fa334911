"""Sentinel: a client that asks for its master whenever it connects. `SentinelOptions`, `MasterFinder`, `open_master`.

Source: the specification "Guidelines for Redis clients with support for Redis Sentinel".
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode

import redis.exceptions
import trio
from attrs import define, evolve, field, fields, frozen, validators
from redis.sentinel import MasterNotFoundError

from ._compat import pack_command  # not the module: attrs' __repr__ looks up a global `_compat` of its own
from .client import Redis
from .cluster.topology import Address, read_address
from .errors import InvalidRedisUrl, RedisUnavailable
from .link import OnTrouble
from .options import RedisOptions
from .query import read_query
from .replies import Kind, classify, reply_text
from .wire import STREAM_ERRORS, Connect, Wire, connector, describe, open_wire

__all__ = ["MasterFinder", "SentinelOptions", "open_master"]

ConnectTo = Callable[[str, int], Awaitable[trio.abc.Stream]]
"""Opens the byte stream to a host and port."""

_SCHEMES: Final = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
_PORT: Final = 26379


def _addresses(sentinels: Any) -> tuple[Address, ...]:
    return tuple(Address(host, port) for host, port in sentinels)


def _check_sentinels(_: Any, __: Any, sentinels: tuple[Address, ...]) -> None:
    if not sentinels:
        raise ValueError("sentinels: name at least one")
    for host, port in sentinels:
        if not host or not 1 <= port <= 65535:
            raise ValueError(f"sentinels: {host}:{port} is no address")


def _hidden(value: str | None) -> str:
    return "None" if value is None else "'***'"


@frozen(kw_only=True)
class SentinelOptions:
    """A master and its replicas under the watch of sentinels.

    Attributes:
        sentinels: (host, port) of them, in the order in which they are asked. Names are resolved at every connect.
        service: the name under which they watch the master.
        node: login, TLS, database and limits of the master; its host, port, path and retry_for have no meaning. Half of
            its connect_timeout is for the sentinels, half for the master.
        retry_for: seconds within which a command that may safely be sent again is sent again; 0 means never. Longer
            than a failover takes: down-after-milliseconds and a few seconds more.
        sentinel_username, sentinel_password: login at the sentinels, which is not that of the master.
        sentinel_tls: TLS to the sentinels, with the TLS settings of `node`.
    """

    sentinels: tuple[Address, ...] = field(converter=_addresses, validator=_check_sentinels)
    service: str = field(validator=validators.min_len(1))
    node: RedisOptions = field(factory=RedisOptions)
    retry_for: float = field(default=15.0, validator=validators.ge(0))
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=_hidden)
    sentinel_tls: bool = False

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> SentinelOptions:
        """Read `redis+sentinel://[[user]:password@]host[:port][,host[:port]…]/SERVICE[/db][?option=value]`.

        `rediss+sentinel://` is the same with TLS to the master and to the sentinels. User and password are those of the
        master. Options in the URL, and `overrides`, are fields of this class and of `RedisOptions`.

        Raises InvalidRedisUrl, which names the part at fault and shows no secret.
        """
        scheme, _, rest = url.partition("://")
        scheme = scheme.lower()
        if scheme not in _SCHEMES:
            raise InvalidRedisUrl("Redis URL: with Sentinel it begins with redis+sentinel:// or rediss+sentinel://")
        place, _, query = rest.partition("?")
        login, at, place = place.rpartition("@")
        if "@" in login:
            raise InvalidRedisUrl("Redis URL: user and password stand once, before the first host; an @ in them is %40")
        hosts, _, path = place.partition("/")
        service, _, database = path.strip("/").partition("/")
        if not service:
            raise InvalidRedisUrl("Redis URL: the path must begin with the name of the service, as in /mymaster")
        found = parse_qsl(query, keep_blank_values=True)
        mine = read_query(urlencode([pair for pair in found if pair[0] in _IN_QUERY]), _IN_QUERY)
        others = urlencode([pair for pair in found if pair[0] not in _IN_QUERY])
        for_node = {name: overrides.pop(name) for name in list(overrides) if name not in _FIELDS}
        node = RedisOptions.from_url(f"{_SCHEMES[scheme]}://{login}{at}localhost/{database}?{others}", **for_node)
        values: dict[str, Any] = {
            "sentinels": [read_address(host, _PORT) for host in hosts.split(",")],
            "service": unquote(service),
            "node": node,
            "sentinel_tls": node.tls,
            **mine,
        }
        try:
            return cls(**{**values, **overrides})
        except ValueError as error:
            raise InvalidRedisUrl(f"Redis URL: {error.args[0]}") from None

    @property
    def address(self) -> str:
        """Where this is, for messages: no user, no password."""
        scheme = "rediss+sentinel" if self.node.tls else "redis+sentinel"
        return f"{scheme}://{','.join(map(str, self.sentinels))}/{self.service}/{self.node.db}"

    def for_master(self) -> RedisOptions:
        """The options of the client of the master, whoever that is."""
        template = {each.name: getattr(self.node, each.name) for each in fields(RedisOptions)}
        own: dict[str, Any] = {"path": None, "retry_for": self.retry_for, "service_address": self.address}
        return _MasterOptions(**{**template, **own})

    def for_sentinel(self, sentinel: Address) -> RedisOptions:
        """The options of one connection to a sentinel."""
        return evolve(
            self.node,
            host=sentinel.host,
            port=sentinel.port,
            path=None,
            db=0,
            username=self.sentinel_username,
            password=self.sentinel_password,
            tls=self.sentinel_tls,
            decode_responses=False,
            connect_timeout=self.node.connect_timeout / 2 / len(self.sentinels),
        )


@frozen(kw_only=True)
class _MasterOptions(RedisOptions):
    """`RedisOptions` of a server whose host is not known beforehand."""

    service_address: str

    @property
    def address(self) -> str:
        return self.service_address


def open_master(
    options: SentinelOptions,
    *,
    on_trouble: OnTrouble | None = None,
    connect: ConnectTo | None = None,
    rng: random.Random | None = None,
) -> Redis:
    """A `Redis` on the service's master: `async with open_master(SentinelOptions.from_url("…")) as redis:`.

    All its connections, those of `pubsub()` and `dedicated()` as well, are made to whoever is the master then. After a
    failover the old ones break (or answer READONLY), and the next ones lead to the new master.

    `connect` opens the byte stream to a sentinel or a master (tests, tunnels). The others are those of `Redis`.
    """
    finder = MasterFinder(options, connect)
    return Redis(options.for_master(), on_trouble=on_trouble, connect=finder, rng=rng)


@define
class _Note:
    """What one sentinel said, or what came of it."""

    sentinel: Address
    error: Exception
    text: str

    def __str__(self) -> str:
        return f"{self.sentinel}: {self.text}"


class MasterFinder:
    """A `Connect` to the present master of the service. See `open_master`.

    Asks the sentinels one by one, the one first that was right the last time, and takes a server only when it calls
    itself a master: a sentinel that was cut off may name one that is none any more. Then the next sentinel is asked.
    """

    def __init__(self, options: SentinelOptions, connect: ConnectTo | None = None) -> None:
        self._options = options
        context = options.node.make_tls_context() if options.node.tls or options.sentinel_tls else None
        self._node = evolve(options.node, path=None, tls_context=context)
        self._sentinels = {each: evolve(options.for_sentinel(each), tls_context=context) for each in options.sentinels}
        self._order = list(options.sentinels)
        self._connect = connect

    async def __call__(self) -> trio.abc.Stream:
        """Connect. Takes at most about `connect_timeout`, and may be cancelled.

        Raises redis.sentinel.MasterNotFoundError, which names the sentinels and what each said.
        """
        notes: list[_Note] = []
        refuted: set[Address] = set()
        for sentinel in list(self._order):
            try:
                master = await self._ask(sentinel)
            except (EOFError, redis.exceptions.RedisError, *STREAM_ERRORS) as error:
                notes.append(_Note(sentinel, error, _reason(error)))
                continue
            if master in refuted:
                continue
            self._prefer_others(sentinel)
            try:
                with trio.fail_after(self._node.connect_timeout / 2):
                    stream = await self._open(master)
            except (EOFError, trio.TooSlowError, redis.exceptions.RedisError, *STREAM_ERRORS) as error:
                refuted.add(master)
                notes.append(_Note(sentinel, error, f"names {master}, but there: {_reason(error)}"))
                continue
            self._prefer(sentinel)
            return stream
        raise self._not_found(notes)

    async def _ask(self, sentinel: Address) -> Address:
        """The master's address, as a sentinel sees it."""
        options = self._sentinels[sentinel]
        with trio.move_on_after(options.connect_timeout):
            wire = await open_wire(options, self._connector(options))
            try:
                await wire.send(pack_command((*_GET_MASTER, self._options.service)))
                reply = await wire.receive()
            finally:
                await wire.aclose()
            if isinstance(reply, Exception):
                raise reply
            if reply is None:
                raise MasterNotFoundError(f"knows no master of the name {self._options.service!r}")
            host, port = reply
            return Address(host.decode(), int(port))
        raise RedisUnavailable(options.address, f"no answer within {options.connect_timeout:.2g} s")

    async def _open(self, master: Address) -> trio.abc.Stream:
        """A stream to this server, if it is a master. The client greets it as it greets any other."""
        options = evolve(self._node, host=master.host, port=master.port)
        stream = await self._connector(options)()
        wire = Wire(stream, decode=False)
        try:
            role = await _ask_role(wire, options)
        except BaseException:
            await wire.aclose()
            raise
        if role != b"master":
            await wire.aclose()
            raise MasterNotFoundError(f"it calls itself {role.decode(errors='replace')}")
        return stream

    def _connector(self, options: RedisOptions) -> Connect:
        if self._connect is None:
            return connector(options)
        connect = self._connect
        return lambda: connect(options.host, options.port)

    def _prefer(self, sentinel: Address) -> None:
        self._order.remove(sentinel)
        self._order.insert(0, sentinel)

    def _prefer_others(self, sentinel: Address) -> None:
        """Before its answer is tried: a stale one may cost the whole attempt, and the next one must not begin there."""
        self._order.remove(sentinel)
        self._order.append(sentinel)

    def _not_found(self, notes: list[_Note]) -> MasterNotFoundError:
        text = f"no master for {self._options.service!r}: {'; '.join(map(str, notes))}"
        error = MasterNotFoundError(text)
        if all(classify(note.error).kind is Kind.CONFIG for note in notes):
            # Found by its first word: this is for a person to mend, and no outage.
            error.reply_text = f"{_reason(notes[0].error)} ({text})"  # type: ignore[attr-defined]
        error.__cause__ = notes[-1].error
        return error


_GET_MASTER: Final = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME")


async def _ask_role(wire: Wire, options: RedisOptions) -> bytes:
    """Log in and ask. Raises what the server answers instead."""
    commands: list[tuple[Any, ...]] = [("ROLE",)]
    if options.password is not None:
        commands.insert(0, ("AUTH", options.username or "default", options.password))
    await wire.send(b"".join(pack_command(each) for each in commands))
    replies = [await wire.receive() for _ in commands]
    if isinstance(replies[-1], redis.exceptions.NoPermissionError):  # ROLE is "dangerous"; HELLO everybody may say
        await wire.send(pack_command(("HELLO",)))
        greeting = await wire.receive()
        if isinstance(greeting, list):
            replies[-1] = [dict(zip(greeting[::2], greeting[1::2], strict=True))[b"role"].replace(b"replica", b"slave")]
    for reply in replies:
        if isinstance(reply, Exception):
            raise reply
    role: bytes = replies[-1][0]
    return role


def _reason(error: Exception) -> str:
    if isinstance(error, RedisUnavailable):
        cause = error.__cause__
        return reply_text(cause) if isinstance(cause, redis.exceptions.RedisError) else error.reason
    if isinstance(error, trio.TooSlowError):
        return "no answer in time"
    return describe(error)


_FIELDS: Final = frozenset(attribute.name for attribute in fields(SentinelOptions))
_IN_QUERY: Final = {
    "retry_for": "float",
    "sentinel_username": "str",
    "sentinel_password": "str",
    "sentinel_tls": "bool",
}
