"""The hosts that we answer for: the names by which a request may call us.

A page of a site whose name is suddenly resolved to our address (DNS rebinding) is of the same origin as we are, and
would read everything. Its requests still name that site's host, and no other: so a request is refused whose host we
were never called.

Accepted in any case are the names of this machine's own loopback, the very address that the connection came to (a probe
of a container asks it by that), and a name that we were told to listen on: no other name server has a
say in these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

from attrs import frozen

__all__ = ["ANY", "AllowedHosts", "check_hosts"]

ANY: Final = "*"
"""In `http.allowed_hosts`: whatever host a request names."""

_LABELS: Final = re.compile(r"\.?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_HOST: Final = re.compile(r"(\[[0-9a-f:.]+\]|[^\[\]:/@]+)(:[0-9]*)?")


def check_hosts(instance: object, attribute: Any, value: Sequence[str] | None) -> None:
    """The validator of the setting."""
    for host in value or ():
        if host.startswith("*.") and _LABELS.fullmatch(host[1:].lower()):
            raise ValueError(f'must have "{host[1:]}" in the place of {host!r}: that is the domain, and all below it')
        if host != ANY and _address(host.strip("[]")) is None and not _LABELS.fullmatch(host.lower()):
            raise ValueError(f'must hold names of hosts without a port, ".example.com" or "*", not {host!r}')


@frozen
class AllowedHosts:
    """See the module.

    Attributes:
        names: host names in small letters and IP addresses; `ANY`; one that begins with a dot stands for a domain and
            all below it.
        sockets: whether a request that comes over a unix socket may name any host: no browser sends it.
    """

    names: frozenset[str]
    sockets: bool = False

    @classmethod
    def of(cls, allowed: Sequence[str] | None, binds: Sequence[str]) -> AllowedHosts:
        """As the settings say; where they do not, none but our own if all we listen on is loopback, else any.

        Args:
            allowed: the setting `http.allowed_hosts`.
            binds: the setting `http.bind`.
        """
        if allowed is not None:
            names = [*allowed, *filter(None, map(_bound_name, binds))]
            return cls(frozenset(map(_plain, names)))
        ours = all(map(_is_loopback_bind, binds))
        return cls(frozenset(() if ours else (ANY,)), sockets=True)

    def accept(self, host: str | None, server: str | None) -> bool:
        """Whether a request may name this host.

        Args:
            host: the text of its Host header, or ``:authority``; None: it names none.
            server: the address that its connection came to; None for a unix socket.
        """
        if ANY in self.names:
            return True
        if server is None and self.sockets:
            return True
        found = _HOST.fullmatch((host or "").strip().lower())
        if found is None:
            return False
        name = _plain(found[1])
        if name in self.names or _is_loopback(name) or (server is not None and name == _plain(server)):
            return True
        return any(known.startswith(".") and f".{name}".endswith(known) for known in self.names)


def _plain(host: str) -> str:
    """The one way of writing a host; names in small letters, without the root's dot."""
    name = host.strip("[]").lower()
    address = _address(name)
    return name.removesuffix(".") if address is None else str(address)


def _address(name: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return f".{name}".endswith(".localhost") if address is None else address.is_loopback


def _is_loopback_bind(bind: str) -> bool:
    """Of an inherited socket (``fd://``) nobody knows."""
    return bind.startswith("unix:") or (not bind.startswith("fd://") and _is_loopback(_plain(bind.rpartition(":")[0])))


def _bound_name(bind: str) -> str | None:
    """The name that stands in an address to listen on, if it is no number: whoever set it calls us by it."""
    host = bind.rpartition(":")[0]
    is_name = not bind.startswith(("unix:", "fd://")) and _address(host.strip("[]")) is None
    return host if is_name else None
