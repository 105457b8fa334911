"""The headers that every answer has."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["SECURITY_HEADERS", "complete"]

SECURITY_HEADERS = (
    (
        # 'self' also lets a page open WebSockets to where it came from (CSP 3, 6.7.2.8).
        b"content-security-policy",
        b"default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


def complete(headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers with those of every answer; nothing is stored anywhere unless a route says so."""
    listed = list(headers)
    if all(name.lower() != b"cache-control" for name, _ in listed):
        listed.append((b"cache-control", b"no-store"))
    return [*listed, *SECURITY_HEADERS]
