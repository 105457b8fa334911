"""Requests that change something come from programs, or from our own page: not from whatever page somebody looks at.

There is no log-in, and a browser lets any page send requests to an address on loopback. What such a page may not read
it could still bring about: a dead letter discarded, say. A browser says where a request comes from, so this is refused.
A WebSocket is refused whatever it is for: there, a browser would let the page read, too.

That holds as long as a page of another site is of another origin: see `hosts`.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from quart import request, websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers

from .hosts import AllowedHosts
from .problems import Problem

__all__ = ["refuse_other_hosts", "refuse_other_sites", "refuse_sockets_of_other_sites"]

_SAFE = ("GET", "HEAD", "OPTIONS")


def refuse_other_hosts(asked: BaseRequestWebsocket, allowed: AllowedHosts) -> None:
    """Raise a 421 `Problem` if a request, or a WebSocket, names a host that we do not answer for (RFC 9110, 7.4)."""
    host = asked.headers.get("Host")
    server = asked.scope.get("server")
    if not allowed.accept(host, None if server is None else server[0]):
        named = "names no host" if host is None else f"is for the host {host[:100]!r}"
        detail = f"The request {named}. If this server is to answer, add that to the setting http.allowed_hosts."
        raise Problem(421, "misdirected-request", "Misdirected request", detail)


async def refuse_other_sites(*, always: bool = False) -> None:
    """Raise a 403 `Problem` if a page of another origin would change something; programs say nothing of origins.

    By the standard GET changes nothing; `always` is for a route where it does.
    """
    if (request.method in _SAFE and not always) or _is_from_here(request.headers):
        return
    detail = "A page of another origin must not change anything here; programs may, for they send no such headers."
    raise Problem(403, "cross-site", "From another site", detail)


async def refuse_sockets_of_other_sites() -> None:
    """Raise a 403 `Problem` if a page of another origin would open a WebSocket; programs say nothing of origins."""
    if not _is_from_here(websocket.headers):
        detail = "A page of another origin must not open a WebSocket here; programs may, for they send no such headers."
        raise Problem(403, "cross-site", "From another site", detail)


def _is_from_here(headers: Headers) -> bool:
    # Where a browser says it, it is its own word (Fetch Metadata), and right behind a proxy, too.
    site = headers.get("Sec-Fetch-Site")
    if site is not None:
        return site in ("same-origin", "none")
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == headers.get("Host")
