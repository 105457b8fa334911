"""The settings of the HTTP front end, the section ``[http]``: ``PENSTOCK_HTTP_<KEY>`` in the environment."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from attrs import field, frozen

from ..runtime.settings import above_zero, at_least, zero_or_more
from .hosts import check_hosts

__all__ = ["HttpSettings"]


def _binds(value: str | Iterable[str]) -> tuple[str, ...]:
    """One address may stand without brackets."""
    return (value,) if isinstance(value, str) else tuple(value)


def _hosts(value: str | Iterable[str] | None) -> tuple[str, ...] | None:
    return None if value is None else _binds(value)


def _check_binds(instance: object, attribute: Any, value: tuple[str, ...]) -> None:
    if not value:
        raise ValueError("must name at least one address")
    for bind in value:
        if not _is_bind(bind):
            raise ValueError('must be "host:port", "[ipv6]:port", "unix:PATH" or "fd://NUMBER"')


def _is_bind(bind: str) -> bool:
    if bind.startswith("unix:"):
        return len(bind) > len("unix:") and "\0" not in bind
    if bind.startswith("fd://"):
        return bind.removeprefix("fd://").isdecimal()
    host, separator, port = bind.rpartition(":")
    # Hypercorn would take port 8000 where none is given: nobody would find it there.
    return bool(host and separator) and port.isdecimal() and port.isascii() and int(port) <= 65_535


@frozen(kw_only=True)
class HttpSettings:
    """The HTTP front end.

    Attributes:
        bind: the addresses it listens on, each `host:port`, `[ipv6]:port`, `unix:PATH` or `fd://NUMBER`; loopback only
            unless you say otherwise, for there is no log-in.
        allowed_hosts: the hosts that a request may name, without a port; `".example.com"` stands for a domain and all
            below it, `"*"` for any. `localhost`, loopback addresses, names in `bind` and the very address that the
            connection came to are allowed in any case. Not set: no others, if all addresses of `bind` are loopback or
            unix sockets, and else any.
        body_limit: bytes that a request's body may have; more is answered with 413.
        body_timeout: seconds within which a request's body must have come; later is answered with 408.
        max_items: events that one request may carry; more is answered with 413.
        graceful_timeout: seconds that requests under way have to finish when the front end is stopped.
        live_clients: pages that may follow `/api/v1/live` at a time, and as many clients that may follow
            `/api/v1/tree/events`; one more of either is answered with 503.
        tail_clients: clients that may follow a stream at a time, each with a connection to Redis of its own.
        topic_clients: WebSockets that may be open at a time; one more is answered with 503.
        capture_body_limit: bytes of a request's or an answer's body that an access event keeps.
    """

    bind: tuple[str, ...] = field(default=("127.0.0.1:47170",), converter=_binds, validator=_check_binds)
    allowed_hosts: tuple[str, ...] | None = field(default=None, converter=_hosts, validator=check_hosts)
    body_limit: int = field(default=10_000_000, validator=at_least(1))
    body_timeout: float = field(default=30.0, validator=above_zero)
    max_items: int = field(default=10_000, validator=at_least(1))
    graceful_timeout: float = field(default=5.0, validator=zero_or_more)
    live_clients: int = field(default=100, validator=at_least(0))
    tail_clients: int = field(default=20, validator=at_least(0))
    topic_clients: int = field(default=100, validator=at_least(0))
    capture_body_limit: int = field(default=8192, validator=at_least(0))
