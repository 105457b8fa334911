"""`RedisOptions`: where Redis is, how to log in, and the limits of the link."""

from __future__ import annotations

import ssl
from typing import Any
from urllib.parse import parse_qs, urlsplit

from attrs import field, fields, frozen, validators

from ._compat import parse_url  # not the module: attrs' __repr__ looks up a global `_compat` of its own
from .errors import InvalidRedisUrl

__all__ = ["RedisOptions"]

_POSITIVE: Any = validators.gt(0)

# redis-py's names in URLs -> ours. Everything else in a URL must be the name of a field.
_REDIS_PY_NAMES = {
    "socket_timeout": "response_timeout",
    "socket_connect_timeout": "connect_timeout",
    "ssl_ca_certs": "tls_ca_file",
    "ssl_certfile": "tls_certificate_file",
    "ssl_keyfile": "tls_key_file",
    "ssl_check_hostname": "tls_check_hostname",
}
_NOT_IN_URLS = frozenset({"host", "port", "path", "tls", "tls_context"})
_TRUE, _FALSE = frozenset({"1", "true", "yes", "on"}), frozenset({"0", "false", "no", "off"})


@frozen(kw_only=True)
class RedisOptions:
    """One Redis or Valkey server (Redis >= 6.2, Valkey >= 8) and how the link treats it.

    Times are seconds. `repr` and `str` never show the password.

    Attributes:
        host, port: TCP address; ignored when `path` is given.
        path: unix socket.
        db: index of the database.
        username, password: ACL user; without a name the password is the default user's.
        client_name: shown by CLIENT LIST.
        tls: TLS on the connection (`rediss://`).
        tls_ca_file: PEM file of the authorities to trust; None means those of the system.
        tls_certificate_file, tls_key_file: PEM files of the client's own certificate.
        tls_check_hostname: whether the certificate must carry the host's name.
        tls_context: an `ssl.SSLContext` that replaces the other four.
        decode_responses: replies as str (UTF-8) instead of bytes.
        connect_timeout: for connecting, TLS and the handshake together.
        response_timeout: no byte from the server for so long while commands are under way: the connection is dead.
        stall_after: no byte for so long while commands are under way: reported as trouble; the connection stays.
        block_margin: what a blocking command may take beyond its own BLOCK before the server counts as frozen. Longer
            than a pause of the server (fork, slow command) that nobody would call an outage.
        max_pending: commands queued or under way on the shared connection; beyond it callers wait.
        max_queued_bytes: bytes queued and not sent; beyond it callers wait.
        max_blocking: connections that blocking commands of the shared client may use at one time.
        retry_for: a command that fails and may safely be sent again (it was never sent, a server refused it that is
            loading, or it only reads) is sent again for so long after the call; 0: never.
    """

    host: str = "127.0.0.1"
    port: int = field(default=6379, validator=[validators.ge(1), validators.le(65535)])
    path: str | None = None
    db: int = field(default=0, validator=validators.ge(0))
    username: str | None = None
    password: str | None = field(default=None, repr=lambda value: "None" if value is None else "'***'")
    client_name: str | None = None
    tls: bool = False
    tls_ca_file: str | None = None
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    tls_check_hostname: bool = True
    tls_context: ssl.SSLContext | None = field(default=None, repr=False)
    decode_responses: bool = False
    connect_timeout: float = field(default=5.0, validator=_POSITIVE)
    response_timeout: float = field(default=5.0, validator=_POSITIVE)
    stall_after: float = field(default=0.75, validator=_POSITIVE)
    block_margin: float = field(default=1.5, validator=_POSITIVE)
    max_pending: int = field(default=100_000, validator=_POSITIVE)
    max_queued_bytes: int = field(default=8 * 1024 * 1024, validator=_POSITIVE)
    max_blocking: int = field(default=64, validator=_POSITIVE)
    retry_for: float = field(default=3.0, validator=validators.ge(0))

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> RedisOptions:
        """Read `redis://`, `rediss://` or `unix://` in redis-py's forms; `overrides` are fields of this class.

        `redis://[[user]:[password]@]host[:port][/db][?option=value]`, `unix://[user:password@]/path[?db=n]`. Options
        are the fields of this class and redis-py's socket_timeout, socket_connect_timeout, ssl_ca_certs, ssl_certfile,
        ssl_keyfile and ssl_check_hostname.

        Raises InvalidRedisUrl, which names the part at fault and shows no secret.
        """
        given, tls = _read_url(url)
        values: dict[str, Any] = {"tls": tls, "path": given.pop("path", None)}
        values |= {name: given.pop(name) for name in ("host", "port") if name in given}
        for name, value in given.items():
            ours = _REDIS_PY_NAMES.get(name, name)
            values[ours] = _convert(name, ours, value)
        try:
            return cls(**{**values, **overrides})
        except ValueError as error:
            # attrs' message carries the name and the value at fault; only numbers have validators, so no secret.
            raise InvalidRedisUrl(f"Redis URL: {error.args[0]}") from None

    @property
    def address(self) -> str:
        """Where this is, for messages: no user, no password."""
        if self.path is not None:
            return f"unix://{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}"

    def make_tls_context(self) -> ssl.SSLContext:
        """The `ssl.SSLContext` of these options. Reads the PEM files. Raises OSError or ssl.SSLError."""
        if self.tls_context is not None:
            return self.tls_context
        context = ssl.create_default_context(cafile=self.tls_ca_file)
        context.check_hostname = self.tls_check_hostname
        if self.tls_certificate_file is not None:
            context.load_cert_chain(self.tls_certificate_file, self.tls_key_file)
        return context


def _read_url(url: str) -> tuple[dict[str, Any], bool]:
    """redis-py's reading of the URL, and an error where redis-py silently takes a default."""
    try:
        parts = urlsplit(url)
        found, tls = parse_url(url)
    except ValueError as error:
        # Only redis-py's own texts are safe to repeat; urllib's may quote the netloc, which holds the password.
        known = str(error) if str(error).startswith(("Redis URL must", "Invalid value for")) else "malformed"
        raise InvalidRedisUrl(f"Redis URL: {known}") from None
    for name in parse_qs(parts.query):
        if name in _NOT_IN_URLS:
            raise InvalidRedisUrl(f"Redis URL: unknown option {name!r}")
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise InvalidRedisUrl("Redis URL: the path must be the number of a database")
    if parts.scheme == "unix" and "path" not in found:
        raise InvalidRedisUrl("Redis URL: unix:// needs the path of a socket")
    return dict(found), tls


def _convert(given: str, name: str, value: Any) -> Any:
    """A URL's text as the type of the field. `given` is the name that the user wrote."""
    known = {attribute.name: attribute for attribute in fields(RedisOptions)}
    if name not in known:
        raise InvalidRedisUrl(f"Redis URL: unknown option {given!r}")
    if not isinstance(value, str):
        return value  # redis-py's parser has converted it
    kind = str(known[name].type).removesuffix(" | None")
    try:
        return _CONVERTERS[kind](value)
    except ValueError:
        raise InvalidRedisUrl(f"Redis URL: option {given!r} is not of type {kind}") from None


def _boolean(value: str) -> bool:
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    raise ValueError(value)


_CONVERTERS: dict[str, Any] = {"str": str, "int": int, "float": float, "bool": _boolean}
