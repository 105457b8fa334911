"""Random commands give the same replies in-process and from Valkey, on the wire, in both protocols.

FUZZ_SEEDS=200 runs longer. A failure names the seed and shows the commands that led to it.
"""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import hiredis
import pytest
from redis_grammar import TEMPLATES, comparable, random_command
from trio.testing import MockClock

from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_commands import COMMANDS, TRUSTED, Command

if TYPE_CHECKING:
    from conftest import Dial

    from penstock.runtime.testing.servers import LocalNode

SEEDS = int(os.environ.get("FUZZ_SEEDS", "4"))
LENGTH = 60
_LETTERS = {
    "write": "w",
    "readonly": "r",
    "denyoom": "m",
    "loading": "l",
    "stale": "t",
    "no_auth": "a",
    "allow_busy": "b",
    "noscript": "s",
}


@pytest.mark.parametrize("family", TEMPLATES)
async def test_random_commands_have_equal_replies(
    family: str, protocol: int, real_node: Callable[[str], LocalNode], dial_inside: Dial, autojump_clock: MockClock
) -> None:
    """The real server is asked while the clock stands still: the thread waits for it."""
    node = real_node("valkey")
    for seed in range(SEEDS):
        rng, history = random.Random(f"{family}{seed}"), []
        judge = _Judge(node.port)
        async with InProcessRedis() as inside:
            raw = await dial_inside(inside)
            for words in (["FLUSHALL"], ["SCRIPT", "FLUSH"], ["HELLO", str(protocol)]):
                judge.ask(words)
                await raw.call(*words)
            for _ in range(LENGTH):
                words = random_command(rng, family)
                history.append(" ".join(words))
                real = comparable(words, judge.ask(words))
                ours = comparable(words, await raw.reply(*words))
                assert ours == real, f"seed {seed} of {family}, after: " + " | ".join(history[-12:])
            await raw.aclose()
        judge.close()


def test_the_table_of_commands_is_the_real_servers(real_node: Callable[[str], LocalNode]) -> None:
    judge = _Judge(real_node("valkey").port)
    found: dict[str, Command] = {}

    def note(row: list[Any]) -> None:
        if not row[9]:
            flags = {flag.decode() for flag in row[2]}
            letters = "".join(letter for name, letter in _LETTERS.items() if name in flags) or "-"
            name = row[0].decode().replace("|", " ")
            found[name] = Command(name, row[1], *row[3:6], letters)
        for sub in row[9]:
            note(sub)

    for row in judge.ask(["COMMAND"]):
        note(row)
    judge.close()
    assert found == COMMANDS
    assert found.keys() >= TRUSTED


class _Judge:
    """A blocking connection to the real server."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._reader = hiredis.Reader()

    def ask(self, words: list[str]) -> Any:
        self._socket.sendall(hiredis.pack_command(tuple(words)))
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply

    def close(self) -> None:
        self._socket.close()
