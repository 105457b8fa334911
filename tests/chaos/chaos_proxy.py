"""A TCP proxy that cuts in the middle of commands and replies, and that falls silent, on order."""

from __future__ import annotations

import random
import socket
import struct
from contextlib import suppress
from functools import partial

import trio
from attrs import define, field

__all__ = ["Proxy"]

_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


@define(eq=False)
class _Pair:
    """One connection that is carried, and the bytes that may still pass before it is cut (None: all)."""

    near: trio.SocketStream
    far: trio.SocketStream
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    left: dict[str, int] = field(factory=dict)
    robbed: bool = False


@define(eq=False)
class Proxy:
    """Listens on 127.0.0.1 and carries what comes to `target`. `serve` must be running.

    Attributes:
        target: the port behind it.
        port: its own; set once `serve` has started.
    """

    target: int
    port: int = 0
    _pairs: set[_Pair] = field(factory=set, init=False)
    _open: trio.Event = field(factory=trio.Event, init=False)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry connections until cancelled."""
        self._open.set()
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        await trio.serve_listeners(self._carry, listeners, task_status=task_status)  # type: ignore[arg-type]

    def cut(self, rng: random.Random, share: float = 1.0) -> int:
        """Cut a share of the connections: at once, or within the next bytes of one direction. Returns how many."""
        chosen = [pair for pair in self._pairs if rng.random() < share]
        for pair in chosen:
            way = rng.choice(["now", "up", "down"])
            if way == "now":
                pair.scope.cancel()
            else:
                pair.left[way] = rng.randrange(1, 200)
        return len(chosen)

    def rob(self) -> None:
        """Swallow one whole reply of each connection, so that all later ones go to the wrong commands.

        No link can see that. It shows that a run would notice a link which pairs replies wrongly by itself.
        """
        for pair in self._pairs:
            pair.robbed = True

    def hold(self) -> None:
        """Let nothing through from now on, and keep all connections: a black hole."""
        self._open = trio.Event()

    def release(self) -> None:
        """Let what was held through."""
        self._open.set()

    async def _carry(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self.target)
        except OSError:
            await _reset(near)
            return
        pair = _Pair(near, far)
        self._pairs.add(pair)
        try:
            with pair.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(partial(self._pump, pair, "up", near, far))
                    nursery.start_soon(partial(self._pump, pair, "down", far, near))
        finally:
            self._pairs.discard(pair)
            await _reset(near)
            await _reset(far)

    async def _pump(self, pair: _Pair, way: str, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        try:
            while data := await source.receive_some(_CHUNK):
                await self._open.wait()
                if pair.robbed and way == "down" and data[:1] in b":+_":
                    pair.robbed = False
                    data = data[data.index(b"\r\n") + 2 :]
                left = pair.left.get(way)
                await sink.send_all(data if left is None else data[:left])
                if left is not None and left <= len(data):
                    break
                if left is not None:
                    pair.left[way] = left - len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        pair.scope.cancel()


async def _reset(stream: trio.SocketStream) -> None:
    with suppress(OSError):  # closed already
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    with trio.CancelScope(shield=True):
        await trio.aclose_forcefully(stream)
