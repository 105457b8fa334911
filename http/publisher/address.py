"""Where the server is, and what its requests are sent with."""

from __future__ import annotations

import httpx

__all__ = ["address_of", "client_of"]


def address_of(url: str) -> tuple[str, str | None]:
    """The URL that requests begin with, and the path of the socket that they go to, if it is one."""
    if url.startswith("unix:") and len(url) > len("unix:"):
        return "http://localhost", url.removeprefix("unix:")
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{url!r} is no URL: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"the server's URL is http://…, https://… or unix:PATH, not {url!r}")
    return url.rstrip("/"), None


def client_of(socket: str | None, timeout: float) -> httpx.AsyncClient:
    """A client of our own; `socket` is the path of the one to go through, if there is one."""
    # As many connections as there are streams, at the most: each has one request under way.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
    transport = httpx.AsyncHTTPTransport(uds=socket, limits=limits) if socket is not None else None
    return httpx.AsyncClient(transport=transport, limits=limits, timeout=timeout)
