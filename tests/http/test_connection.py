"""A connection, and a client that takes slowly, or nothing, of what is sent to it."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from penstock.http.connection import Connection


class Slow:
    """A socket's stream whose client takes a piece in so many seconds."""

    def __init__(self, pause: float) -> None:
        self.socket = socket.socket()
        self.pause = pause
        self.taken = 0

    async def send_all(self, data: Any) -> None:
        await trio.sleep(self.pause)
        self.taken += len(data)


async def test_a_client_that_takes_nothing_is_cut_off(autojump_clock: MockClock) -> None:
    stream = Slow(float("inf"))
    connection = Connection(stream)  # type: ignore[arg-type]
    with pytest.raises(trio.BrokenResourceError, match="nothing for 60 s"):
        with trio.CancelScope(shield=True):
            await connection.send_all(bytes(1_000_000))
    assert trio.current_time() == pytest.approx(60)
    assert connection.ended.is_set()
    assert stream.socket.fileno() == -1


async def test_a_slow_client_gets_all_of_it(autojump_clock: MockClock) -> None:
    stream = Slow(50.0)
    connection = Connection(stream)  # type: ignore[arg-type]
    await connection.send_all(bytes(1_000_001))
    assert stream.taken == 1_000_001
    assert not connection.ended.is_set()
    stream.socket.close()


async def test_nothing_is_sent_at_once(autojump_clock: MockClock) -> None:
    stream = Slow(0.0)
    await Connection(stream).send_all(b"")  # type: ignore[arg-type]
    stream.socket.close()
