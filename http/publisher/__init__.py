"""A publisher for other programs, on asyncio or trio: ``from penstock.http.publisher import Publisher``.

Needs the extra ``publisher`` (httpx and anyio), and nothing of the server's side.
"""

from __future__ import annotations

from ..answers import Accepted
from .errors import (
    BufferFull,
    GaveUp,
    NotPublished,
    PublisherClosed,
    PublisherError,
    Rejected,
    Unsent,
    UnsentEvent,
    envelopes_of,
)
from .publisher import Publisher
from .statistics import PublisherStatistics

__all__ = [
    "Accepted",
    "BufferFull",
    "GaveUp",
    "NotPublished",
    "Publisher",
    "PublisherClosed",
    "PublisherError",
    "PublisherStatistics",
    "Rejected",
    "Unsent",
    "UnsentEvent",
    "envelopes_of",
]
