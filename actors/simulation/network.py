"""What a simulated process is connected by, and what becomes of it when that is cut."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from ...runtime.testing.simulation import SimulatedProcess, current_process
from ..testing import MemoryStore

__all__ = ["Line", "lose_transactions"]


class Line:
    """The connections of one process to Redis.

    Args:
        connect: opens one; of the server, or the cluster.

    Attributes:
        is_down: whether its network is cut; connections are refused then.
    """

    def __init__(self, connect: Callable[..., Awaitable[Any]]) -> None:
        self._connect = connect
        self._streams: list[Any] = []
        self.is_down = False

    async def connect(self, *address: Any) -> trio.abc.Stream:
        """Open a connection."""
        process = current_process()
        stream = await self._connect(*address)
        self._streams.append(stream)
        if self.is_down or (process is not None and process.killed):
            _close(stream)
            raise ConnectionRefusedError("the network is cut")
        made: trio.abc.Stream = stream
        return made

    def cut(self) -> None:
        """End all connections. The server still runs what has arrived."""
        streams, self._streams = self._streams, []
        for stream in streams:
            _close(stream)


def _close(stream: Any) -> None:
    stream.send_stream.close()
    stream.receive_stream.close()


def lose_transactions(store: MemoryStore, process: SimulatedProcess) -> int:
    """Roll back what a process has open, as the server does when a connection ends; how many there were."""
    works = [work for work in store.server.open if process.owns(work.task)]
    for work in works:
        work.lose()
    return len(works)
