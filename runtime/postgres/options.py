"""Where PostgreSQL is, and how Penstock talks to it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, urlsplit

import attrs
import psycopg
from attrs import field, frozen
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_SCHEMES = ("postgresql", "postgres")

# A peer that vanished without a word (power, network) is noticed after 30 s on TCP; unix sockets ignore these.
# What the URL says wins.
_KEEPALIVE = {
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


def _positive(_: object, attribute: attrs.Attribute[Any], value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"{attribute.name} must be greater than 0, not {value!r}")


def _not_negative(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if value < 0:
        raise ValueError(f"{attribute.name} must not be negative, not {value!r}")


def _without_secrets(parameters: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(parameters))


@frozen(kw_only=True)
class PostgresOptions:
    """How to reach one database, and the limits of the connections to it.

    Neither ``repr()`` nor `address` shows the password. Times are in seconds.

    Attributes:
        host: Name, address, or directory of the unix socket; several with commas; ``None`` leaves it to libpq.
        port: As in libpq, a number or a comma-separated list.
        user: The role to log in as.
        password: Its password, never shown.
        database: The database's name.
        parameters: Any other libpq parameter (``sslmode``, ``passfile``, …), never shown.
        application_name: What ``pg_stat_activity`` shows of us.
        connect_timeout: The limit of one attempt to connect, per address.
        statement_timeout: The server's own limit for each statement; ``None`` leaves the server's setting.
        cancel_grace: How long a cancelled task waits for the server to give up its statement before the
            connection is closed. 2 s: a healthy server answers a cancel request in milliseconds.
        min_size: Idle connections that a pool keeps however long they idle.
        max_size: The most connections that a pool has open.
        max_lifetime: A connection older than this is replaced, for the server's caches and for failover by DNS.
        max_idle: An idle connection above `min_size` is closed after this time.
    """

    host: str | None = None
    port: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    database: str | None = None
    parameters: Mapping[str, str] = field(factory=dict, converter=_without_secrets, repr=False, hash=False)
    application_name: str = "penstock"
    connect_timeout: float = field(default=5.0, validator=_positive)
    statement_timeout: float | None = field(default=None, validator=_positive)
    cancel_grace: float = field(default=2.0, validator=_positive)
    min_size: int = field(default=1, validator=_not_negative)
    max_size: int = field(default=10, validator=_positive)
    max_lifetime: float = field(default=3600.0, validator=_positive)
    max_idle: float = field(default=300.0, validator=_positive)

    def __attrs_post_init__(self) -> None:
        if self.min_size > self.max_size:
            raise ValueError(f"min_size ({self.min_size}) must not exceed max_size ({self.max_size})")
        for name in self.parameters:
            if not _is_parameter(name):
                raise ValueError(f"libpq knows no parameter {name!r}")

    @classmethod
    def from_url(cls, url: str, **overrides: Any) -> PostgresOptions:
        """Options from a ``postgresql://`` or ``postgres://`` URL; *overrides* are attributes and win.

        The URL is libpq's: ``postgresql://user:password@host:port/database?sslmode=require``, several hosts with
        commas, a unix socket as ``postgresql:///database?host=/run/postgresql``. Reserved characters in user and
        password are percent-encoded. ``connect_timeout`` and ``application_name`` in its query become attributes.

        Raises:
            ValueError: the URL is not one; the message names the fault and never the secret.
        """
        parameters = _parse(url)
        known: dict[str, Any] = {
            "host": parameters.pop("host", None),
            "port": parameters.pop("port", None),
            "user": parameters.pop("user", None),
            "password": parameters.pop("password", None),
            "database": parameters.pop("dbname", None),
        }
        if (name := parameters.pop("application_name", None)) is not None:
            known["application_name"] = name
        if (timeout := parameters.pop("connect_timeout", None)) is not None:
            known["connect_timeout"] = _seconds("connect_timeout", timeout)
        return cls(**{**known, "parameters": parameters, **overrides})

    @property
    def address(self) -> str:
        """The server, user and database as a URL without any secret, for messages and logs."""
        user = f"{quote(self.user)}@" if self.user else ""
        database = quote(self.database) if self.database else ""
        host = self.host or ""
        if host.startswith(("/", "@")):
            port = f"&port={self.port}" if self.port else ""
            return f"postgresql://{user}/{database}?host={quote(host, safe='/@,')}{port}"
        return f"postgresql://{user}{_host_list(host, self.port)}/{database}"

    def conninfo(self) -> dict[str, str | int | None]:
        """The parameters for libpq, **with the password**: only ever to be handed to a connect call."""
        given = {
            "host": self.host,
            "port": self.port,
            "user": self.user,
            "password": self.password,
            "dbname": self.database,
            "application_name": self.application_name,
            "client_encoding": "UTF8",
        }
        conninfo: dict[str, str | int | None] = {**_KEEPALIVE, **self.parameters}
        conninfo.update({name: value for name, value in given.items() if value is not None})
        if self.statement_timeout is not None:
            # Only when asked for: older pgbouncers refuse a connection that carries `options`.
            setting = f"-c statement_timeout={round(self.statement_timeout * 1000)}"
            conninfo["options"] = f"{conninfo.get('options', '')} {setting}".strip()
        return conninfo


def _parse(url: str) -> dict[str, str]:
    """libpq's own parsing of *url*. libpq's messages quote the URL, hence none of them is passed on."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _SCHEMES:
        shown = f"{scheme}://" if separator and scheme.isalnum() else "no scheme"
        raise ValueError(f"a PostgreSQL URL starts with postgresql:// or postgres://, this one has {shown}")
    try:
        parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except psycopg.Error:
        raise ValueError(f"bad PostgreSQL URL: {_fault(url)}") from None
    if "@" in parameters.get("host", "").lstrip("@"):
        # libpq splits at the first @, so the rest of such a password would be taken (and shown) for a host.
        raise ValueError("bad PostgreSQL URL: write @ in user or password as %40")
    for port in filter(None, parameters.get("port", "").split(",")):
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(
                "bad PostgreSQL URL: the port is not a number from 1 to 65535"
                " (in user or password, write : as %3A and / as %2F)"
            )
    return parameters


def _fault(url: str) -> str:
    """What is probably wrong with a URL that libpq refused, in words that hold nothing of its user info."""
    try:
        query = urlsplit(url).query
    except ValueError:
        return "the brackets around an IPv6 address do not match"
    if "@" in query and "@" not in urlsplit(url).netloc:
        query = ""  # what looks like it is the end of a password
    for item in filter(None, query.split("&")):
        name, separator, _ = item.partition("=")
        if not separator:
            return f"the parameter {name!r} after ? has no value"
        if not _is_parameter(name):
            return f"unknown parameter {name!r} after ?"
    return "reserved characters (: / ? # [ ] @ % and space) in user, password or values must be percent-encoded"


def _is_parameter(name: str) -> bool:
    try:
        make_conninfo("", **{name: "0"})
    except psycopg.Error:
        return False
    return True


def _seconds(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"bad PostgreSQL URL: {name} is not a number of seconds") from None


def _host_list(hosts: str, ports: str | None) -> str:
    """``h1:p1,h2:p2`` as in a URL; libpq lets one port serve all hosts."""
    names = hosts.split(",")
    numbers = (ports or "").split(",")
    if len(numbers) == 1:
        numbers *= len(names)
    shown = (f"[{name}]" if ":" in name else name for name in names)
    return ",".join(f"{name}:{number}" if number else name for name, number in zip(shown, numbers, strict=False))
