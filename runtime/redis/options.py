"""`RedisOptions`: where Redis is, how to log in, and the limits of the link."""

from __future__ import annotations

import re
import ssl
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from attrs import field, fields, frozen, validators
from redis.credentials import CredentialProvider

from ._compat import parse_url  # not the module: attrs' __repr__ looks up a global `_compat` of its own
from .errors import InvalidRedisUrl
from .query import read_query

__all__ = ["RedisOptions"]

_CLIENT_NAME: Final = re.compile("[!-~]*")
_POSITIVE: Any = validators.gt(0)
_NOT_IN_URLS: Final = frozenset({"host", "port", "path", "tls", "tls_context", "credential_provider"})


def _hide(value: object) -> str:
    return "None" if value is None else "'***'"


def _check_client_name(_: Any, __: Any, name: str | None) -> None:
    if name is not None and not _CLIENT_NAME.fullmatch(name):
        raise ValueError("'client_name' must be ASCII without blanks and line breaks: the server takes no other")


@frozen(kw_only=True)
class RedisOptions:
    """One Redis or Valkey server (Redis >= 6.2, Valkey >= 8) and how the link treats it.

    Times are seconds. `repr` and `str` never show the password.

    Attributes:
        host, port: TCP address; ignored when `path` is given.
        path: unix socket.
        db: index of the database.
        username, password: ACL user; without a name the password is the default user's.
        credential_provider: asked for user and password at every connect, in place of the two (tokens that expire);
            redis-py's interface. Its `get_credentials_async` may wait on trio, within `connect_timeout`.
        client_name: shown by CLIENT LIST; ASCII without blanks.
        protocol: RESP3, or RESP2 for servers and proxies that do not know HELLO. Python sees the same values, but for
            the few that redis-py itself gives in two shapes: scores of ZDIFF, ZMPOP and ZRANDMEMBER, flags of COMMAND,
            XINFO STREAM FULL, FUNCTION STATS, MEMORY STATS, and what EVAL brings.
        tls: TLS on the connection (`rediss://`).
        tls_verify: whether the certificate must be signed by a trusted authority. Without, anybody may play the server.
        tls_ca_file, tls_ca_path, tls_ca_data: the authorities to trust, as a PEM file, a directory of hashed PEM files,
            or PEM text; none of the three means those of the system.
        tls_certificate_file, tls_key_file, tls_key_password: PEM files of the client's own certificate (mutual TLS);
            the key may be in the certificate's file, and encrypted.
        tls_check_hostname: whether the certificate must carry the host's name.
        tls_min_version: TLS 1.2 or 1.3; None leaves it to Python.
        tls_ciphers: OpenSSL's cipher list, for TLS 1.2.
        tls_context: an `ssl.SSLContext` that replaces all of the above but `tls`.
        decode_responses: replies as str (UTF-8) instead of bytes.
        connect_timeout: for connecting, TLS and the handshake together.
        response_timeout: no byte from the server for so long while commands are under way, and none of a long one taken
            by it: the connection is dead. Turns in which our own event loop is busy do not count, here and below.
        stall_after: no byte for so long while commands are under way: reported as trouble; the connection stays.
        health_check_interval: an idle shared connection is pinged after so long, so that one that has died without a
            word (a firewall forgot it) is known before a command needs it; 0: never. TCP's own keep-alive is slower.
        tcp_keepalive: whether the kernel looks after idle connections.
        block_margin: what a blocking command may take beyond its own BLOCK before the server counts as frozen. Longer
            than a pause of the server (fork, slow command) that nobody would call an outage.
        max_pending: commands queued or under way on the shared connection; beyond it callers wait, in order.
        max_queued_bytes: bytes queued and not sent; beyond it callers wait, in order. A command (or pipeline) that is
            beyond a limit by itself is sent when nothing else is queued.
        max_blocking: connections that blocking commands and optimistic transactions of the shared client may use at
            one time. A blocking command in the function of a transaction does not count: it would wait for itself.
        retry_for: a command that fails and may safely be sent again (it was never sent, a server refused it that is
            loading, or it only reads) is sent again for so long after the call; 0: never.
    """

    host: str = "127.0.0.1"
    port: int = field(default=6379, validator=[validators.ge(1), validators.le(65535)])
    path: str | None = None
    db: int = field(default=0, validator=validators.ge(0))
    username: str | None = None
    password: str | None = field(default=None, repr=_hide)
    credential_provider: CredentialProvider | None = field(default=None, repr=False)
    client_name: str | None = field(default=None, validator=_check_client_name)
    protocol: Literal[2, 3] = field(default=3, validator=validators.in_((2, 3)))
    tls: bool = False
    tls_verify: bool = True
    tls_ca_file: str | None = None
    tls_ca_path: str | None = None
    tls_ca_data: str | None = None
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    tls_key_password: str | None = field(default=None, repr=_hide)
    tls_check_hostname: bool = True
    tls_min_version: ssl.TLSVersion | None = None
    tls_ciphers: str | None = None
    tls_context: ssl.SSLContext | None = field(default=None, repr=False)
    decode_responses: bool = False
    connect_timeout: float = field(default=5.0, validator=_POSITIVE)
    response_timeout: float = field(default=5.0, validator=_POSITIVE)
    stall_after: float = field(default=0.75, validator=_POSITIVE)
    health_check_interval: float = field(default=0.0, validator=validators.ge(0))
    tcp_keepalive: bool = True
    block_margin: float = field(default=1.5, validator=_POSITIVE)
    max_pending: int = field(default=100_000, validator=_POSITIVE)
    max_queued_bytes: int = field(default=8 * 1024 * 1024, validator=_POSITIVE)
    max_blocking: int = field(default=64, validator=_POSITIVE)
    retry_for: float = field(default=3.0, validator=validators.ge(0))

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> RedisOptions:
        """Read `redis://`, `rediss://` or `unix://` in redis-py's forms; `overrides` are fields of this class.

        `redis://[[user]:[password]@]host[:port][/db][?option=value]`, `unix://[user:password@]/path[?db=n]`. Options
        are the fields of this class, and redis-py's (`docs/how-to/redis-link.md` lists them).

        Raises InvalidRedisUrl, which names the part at fault and shows no secret.
        """
        values = {**_read_url(url), **overrides}
        try:
            return cls(**values)
        except ValueError as error:
            # attrs' message carries the name at fault, and perhaps the value; what is secret has no validator.
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
        context = ssl.create_default_context(cafile=self.tls_ca_file, capath=self.tls_ca_path, cadata=self.tls_ca_data)
        context.check_hostname = self.tls_check_hostname and self.tls_verify
        context.verify_mode = ssl.CERT_REQUIRED if self.tls_verify else ssl.CERT_NONE
        if self.tls_min_version is not None:
            context.minimum_version = self.tls_min_version
        if self.tls_ciphers is not None:
            context.set_ciphers(self.tls_ciphers)
        if self.tls_certificate_file is not None:
            # Never None as the password: OpenSSL would ask for it on the terminal.
            password = self.tls_key_password or ""
            context.load_cert_chain(self.tls_certificate_file, self.tls_key_file, password)
        return context


_OF_SEVERAL: Final = ("redis+", "rediss+")


def _read_url(url: str) -> dict[str, Any]:
    """The fields that a URL gives: redis-py's reading of the place, ours of the query."""
    try:
        parts = urlsplit(url)
        place, tls = parse_url(parts._replace(query="").geturl())
    except ValueError as error:
        # Only redis-py's own texts are safe to repeat; urllib's may quote the netloc, which holds the password.
        known = str(error) if str(error).startswith("Redis URL must") else "Redis URL: malformed"
        elsewhere = "; open_client(read_url(url)) takes those of clusters and sentinels"
        raise InvalidRedisUrl(known + (elsewhere if url.startswith(_OF_SEVERAL) else "")) from None
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise InvalidRedisUrl("Redis URL: the path must be the number of a database")
    if parts.scheme == "unix" and "path" not in place:
        raise InvalidRedisUrl("Redis URL: unix:// needs the path of a socket")
    asked = read_query(parts.query, _TYPES)
    _check_query(asked, tls=tls)
    # redis-py's order: what stands before the path wins over the query, but for the database.
    return {"tls": tls, **asked, **place, **({"db": asked["db"]} if "db" in asked else {})}


def _check_query(asked: dict[str, Any], *, tls: bool) -> None:
    for_tls = next((name for name in asked if name.startswith("tls_")), None)
    if for_tls is not None and not tls:
        raise InvalidRedisUrl(f"Redis URL: {for_tls!r} is for rediss://")
    if "tls_key_file" in asked and "tls_certificate_file" not in asked:
        raise InvalidRedisUrl("Redis URL: a key without 'tls_certificate_file' (ssl_certfile)")


_TYPES: Final[dict[str, str]] = {
    each.name: str(each.type) for each in fields(RedisOptions) if each.name not in _NOT_IN_URLS
}
