"""`ClusterOptions`: the nodes of a Redis Cluster to begin with, and how the link treats it."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from attrs import evolve, field, fields, frozen, validators

from ..errors import InvalidRedisUrl
from ..options import RedisOptions
from .topology import Address, read_address

__all__ = ["ClusterOptions"]

_SCHEMES: Final = {"redis+cluster": "redis", "rediss+cluster": "rediss"}
_PORT: Final = 6379


def _addresses(nodes: Any) -> tuple[Address, ...]:
    if isinstance(nodes, str):
        raise TypeError(f'nodes: give pairs, as in [("10.0.0.1", {_PORT})]; ClusterOptions.from_url reads text')
    return tuple(_address(node) for node in nodes)


def _address(node: Any) -> Address:
    match node:
        case (str(host), int(port)):
            return Address(host, port)
    raise TypeError(f'nodes: each is a pair of a host and a number, as in ("10.0.0.1", {_PORT})')


def _check_nodes(_: Any, __: Any, nodes: tuple[Address, ...]) -> None:
    if not nodes:
        raise ValueError("nodes: name at least one node of the cluster")
    for host, port in nodes:
        if not host or not 1 <= port <= 65535:
            raise ValueError(f"nodes: {host}:{port} is no address")


def _check_template(_: Any, __: Any, node: RedisOptions) -> None:
    if node.db:
        raise ValueError("node: a cluster has database 0 only")


@frozen(kw_only=True)
class ClusterOptions:
    """A Redis Cluster (Redis >= 6.2, Valkey >= 8).

    Attributes:
        nodes: (host, port) of some nodes, to begin with; the others are learnt from them. Names are resolved again at
            every connect.
        node: login, TLS and limits, the same for every node; its host, port, path and retry_for have no meaning.
        retry_for: seconds within which a command that may safely be sent again is sent again; 0 means never. Longer
            than a failover takes.
        max_redirects: MOVED and ASK that a command follows before the whole topology is read again.
        refresh_every: seconds between readings of the topology while nothing calls for one.
    """

    nodes: tuple[Address, ...] = field(converter=_addresses, validator=_check_nodes)
    node: RedisOptions = field(factory=RedisOptions, validator=_check_template)
    retry_for: float = field(default=15.0, validator=validators.ge(0))
    max_redirects: int = field(default=5, validator=validators.ge(1))
    refresh_every: float = field(default=60.0, validator=validators.gt(0))

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> ClusterOptions:
        """Read `redis+cluster://[[user]:password@]host[:port][,host[:port]…][?option=value]`, or `rediss+cluster://`.

        Options in the URL, and `overrides`, are fields of this class and of `RedisOptions` (for every node).

        Raises InvalidRedisUrl, which names the part at fault and shows no secret.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme not in _SCHEMES:
            raise InvalidRedisUrl("Redis URL: a cluster's begins with redis+cluster:// or rediss+cluster://")
        place, _, query = rest.partition("?")
        place, _, database = place.partition("/")
        if database.strip("/") not in ("", "0"):
            raise InvalidRedisUrl("Redis URL: a cluster has database 0 only")
        login, at, hosts = place.rpartition("@")
        if "@" in login:
            raise InvalidRedisUrl("Redis URL: user and password stand once, before the first node; an @ in them is %40")
        found = parse_qsl(query, keep_blank_values=True)
        mine = {name: _number(name, value) for name, value in found if name in _NUMBERS}
        others = urlencode([(name, value) for name, value in found if name not in _NUMBERS])
        for_nodes = {name: overrides.pop(name) for name in list(overrides) if name not in _FIELDS}
        template = RedisOptions.from_url(f"{_SCHEMES[scheme]}://{login}{at}localhost?{others}", **for_nodes)
        values: dict[str, Any] = {
            "nodes": [read_address(host, _PORT) for host in hosts.split(",")],
            "node": template,
            **mine,
        }
        try:
            return cls(**{**values, **overrides})
        except ValueError as error:
            raise InvalidRedisUrl(f"Redis URL: {error.args[0]}") from None

    @property
    def address(self) -> str:
        """Where this is, for messages: no user, no password."""
        return f"{'rediss' if self.tls else 'redis'}+cluster://" + ",".join(str(node) for node in self.nodes)

    @property
    def tls(self) -> bool:
        """`RedisOptions.tls` of every node."""
        return self.node.tls

    @property
    def username(self) -> str | None:
        """`RedisOptions.username` on every node."""
        return self.node.username

    @property
    def password(self) -> str | None:
        """`RedisOptions.password` on every node."""
        return self.node.password

    @property
    def client_name(self) -> str | None:
        """`RedisOptions.client_name` on every node."""
        return self.node.client_name

    @property
    def decode_responses(self) -> bool:
        """`RedisOptions.decode_responses` of every node."""
        return self.node.decode_responses

    @property
    def protocol(self) -> int:
        """`RedisOptions.protocol` of every node."""
        return self.node.protocol

    @property
    def connect_timeout(self) -> float:
        """`RedisOptions.connect_timeout` of every node."""
        return self.node.connect_timeout

    @property
    def response_timeout(self) -> float:
        """`RedisOptions.response_timeout` of every node."""
        return self.node.response_timeout

    @property
    def stall_after(self) -> float:
        """`RedisOptions.stall_after` of every node."""
        return self.node.stall_after

    @property
    def block_margin(self) -> float:
        """`RedisOptions.block_margin` of every node."""
        return self.node.block_margin

    @property
    def max_blocking(self) -> int:
        """`RedisOptions.max_blocking`, for the cluster as a whole."""
        return self.node.max_blocking

    def for_node(self, address: tuple[str, int]) -> RedisOptions:
        """The options of one node. Attempts there are made once: whoever knows the topology decides about retries."""
        host, port = address
        return evolve(self.node, host=host, port=port, path=None, retry_for=0.0)


_FIELDS: Final = frozenset(attribute.name for attribute in fields(ClusterOptions))
_NUMBERS: Final[dict[str, type[int] | type[float]]] = {
    "retry_for": float,
    "max_redirects": int,
    "refresh_every": float,
}


def _number(name: str, text: str) -> int | float:
    try:
        return _NUMBERS[name](text)
    except ValueError:
        raise InvalidRedisUrl(f"Redis URL: option {name!r} is not of type {_NUMBERS[name].__name__}") from None
