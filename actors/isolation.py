"""Keeps what may kill its process from being at work beside what was at work when a process was killed.

A death names nobody: whatever was at work is a suspect. That it is handled in a transaction of its own says nothing of
it while others are at work beside it, for all of them are there when the process dies again. So one that was counted
before is attempted while no other suspect of the process is: then a death is its own, and whoever merely stood beside
it comes to an end before it counts again. What nothing is held against goes on as ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

__all__ = ["Isolation"]


class Isolation:
    """One of a process, shared by all its handler pools."""

    def __init__(self) -> None:
        self._beside = 0
        self._alone = False
        self._wanted = 0
        self._news = trio.Event()

    @property
    def is_open(self) -> bool:
        """Whether `beside` may be entered at once: nobody is alone, or waits to be."""
        return not self._alone and not self._wanted

    @asynccontextmanager
    async def beside(self) -> AsyncIterator[None]:
        """Be at work beside others, also those who come later; blocks while somebody is alone, or waits to be."""
        while not self.is_open:
            await self._news.wait()
        self._beside += 1
        try:
            yield
        finally:
            self._beside -= 1
            self._tell()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Be at work while no other suspect is; blocks until those at work have come to an end."""
        self._wanted += 1
        try:
            while self._alone or self._beside:
                await self._news.wait()
            self._alone = True
        finally:
            self._wanted -= 1
            self._tell()
        try:
            yield
        finally:
            self._alone = False
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()
