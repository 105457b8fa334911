"""`Connection`: the server's end of one connection to an in-process Redis."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from typing import TypeAlias

import hiredis
import trio
import trio.testing

from .redis_commands import COMMANDS, name_of
from .redis_engine import Engine
from .redis_faults import CutOff
from .redis_gate import Gate
from .redis_session import Session

__all__ = ["Connection"]

Stream: TypeAlias = "trio.StapledStream[trio.testing.MemorySendStream, trio.testing.MemoryReceiveStream]"


class Connection:
    """Bytes to commands, replies to bytes; one task each, and one that runs the commands in order.

    Args:
        engine, gate: the server.
        stream: the server's end of it.
        connections: all that there are; it adds itself, until it has ended.

    Attributes:
        session: what the commands run on.
        deaf: its replies get lost.
        blind: what the client sends gets lost.
    """

    def __init__(self, engine: Engine, gate: Gate, stream: Stream, connections: dict[Connection, None]) -> None:
        self._gate = gate
        self._connections = connections
        self._stream = stream
        self._reader = hiredis.Reader()
        self._inbox: deque[list[bytes]] = deque()
        self._arrived = trio.Event()
        self._ended = False  # the client sends nothing more
        self._leaving = False  # nothing more is run
        self._output = bytearray()
        self._more = trio.Event()
        self._sending = trio.Lock()
        self.deaf = False
        self.blind = False
        self.session = Session(engine, gatekeeper=gate, send=self._queue, hang_up=self._hang_up)
        connections[self] = None

    async def serve(self) -> None:
        """Run the client's commands until either side ends the connection."""
        try:
            greeting = self._gate.faults.greeting()
            if greeting is not None:
                self._queue(greeting)
            else:
                await self._converse()
            await self._flush()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has left, or the connection was cut
        finally:
            self._connections.pop(self, None)
            self.session.close()
            self.close()

    def close(self) -> None:
        """End both directions; the client sees the end of the stream. Does not block."""
        self._stream.send_stream.close()
        self._stream.receive_stream.close()

    async def _converse(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive)
            nursery.start_soon(self._send)
            with suppress(CutOff):
                await self._run()
            nursery.cancel_scope.cancel()

    async def _receive(self) -> None:
        try:
            async for data in self._stream.receive_stream:
                if not self.blind:
                    self._reader.feed(bytes(data))
                    self._take_commands()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._inbox.clear()  # it was cut: what has come is not run
        self._ended = True
        self.session.unblocked.set()
        self._arrived.set()

    def _take_commands(self) -> None:
        while (words := self._reader.gets()) is not False:
            if words:
                self._inbox.append(words)
        self._arrived.set()

    async def _run(self) -> None:
        while not self._leaving:
            if not self._inbox:
                if self._ended:
                    return
                self._arrived = trio.Event()
                await self._arrived.wait()
                continue
            words = self._inbox[0]
            await self._gate.clearance(COMMANDS.get(name_of(words)))
            if not self._inbox:
                continue
            self.session.execute(self._inbox.popleft())
            if self.session.blocked is not None:
                await self._until_unblocked()

    async def _until_unblocked(self) -> None:
        while (blocked := self.session.blocked) is not None and not self._ended:
            unblocked = self.session.unblocked
            with trio.move_on_at(blocked.deadline):
                await unblocked.wait()
                continue
            await self._gate.clearance(None)
            self.session.time_out()

    def _hang_up(self) -> None:
        self._leaving = True
        self._inbox.clear()
        self._ended = True
        self.session.unblocked.set()
        self._arrived.set()

    def _queue(self, data: bytes) -> None:
        if not self.deaf:
            self._output += data
            self._more.set()

    async def _send(self) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):  # `_receive` sees it too
            while True:
                await self._more.wait()
                self._more = trio.Event()
                await self._gate.clearance(None)
                await self._flush()

    async def _flush(self) -> None:
        async with self._sending:
            while self._output:
                trickle = self._gate.faults.trickle
                size = len(self._output) if trickle is None else trickle.rng.randint(1, trickle.most)
                await self._stream.send_all(bytes(self._output[:size]))
                del self._output[:size]  # after it: cancelled before, it is sent by the next flush
                if trickle is not None:
                    await trio.sleep(trickle.pause)
