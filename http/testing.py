"""For tests: what a running system answers to HTTP, without a server and a socket.

async with virtual(system) as shop:
    answer = await client_of(shop.deployment).post("/order", json={…})
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .app import create_app
from .settings import HttpSettings

if TYPE_CHECKING:
    from quart.typing import TestClientProtocol

    from .running import RunningSystem

__all__ = ["client_of"]


def client_of(running: RunningSystem, settings: HttpSettings | None = None) -> TestClientProtocol:
    """Quart's test client over all routes of a running system, Penstock's and its own."""
    return create_app(running, settings or HttpSettings()).test_client()
