"""A cluster of scripted nodes, in virtual time: they say what real ones say only in bad moments."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import hiredis
import trio
import trio.testing
from attrs import define, field

from penstock.runtime.redis import ClusterOptions, RedisCluster
from penstock.runtime.redis.slots import SLOTS

HALF = SLOTS // 2
LOW, HIGH = "{lo}", "{high}"
"""Keys of the first and of the second half."""
Answer = Callable[["ScriptedNode", list[str]], "bytes | None"]


def resp(value: Any) -> bytes:
    if value is None:
        return b"_\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, list):
        return b"*%d\r\n" % len(value) + b"".join(resp(each) for each in value)
    data = str(value).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def error(text: str) -> bytes:
    return f"-{text}\r\n".encode()


@define(eq=False)
class ScriptedNode:
    """One node: answers GET with its name and SET with OK unless `answer` says something else.

    Attributes:
        slots: what it says to CLUSTER SLOTS.
        answer: asked first; None: the usual answer; b"": no answer at all.
        log: all commands but those of the handshake.
        up: whether it takes connections.
        frozen: it takes them, and says nothing.
        epoch: what it says to CLUSTER INFO.
        readings: how often it was asked for the slots.
        open: its connections.
    """

    name: str
    port: int
    slots: list[Any] = field(factory=list)
    answer: Answer | None = None
    log: list[list[str]] = field(factory=list)
    up: bool = True
    is_clustered: bool = True
    epoch: int = 1
    readings: int = 0
    frozen: bool = False
    delay: float = 0.0
    asking: bool = False
    connects: int = 0
    greeting: bytes | None = None
    open: set[trio.StapledStream[Any, Any]] = field(factory=set)

    def kill(self) -> None:
        self.up = False
        for stream in self.open:
            stream.send_stream.close()
            stream.receive_stream.close()

    async def serve(self, stream: trio.StapledStream[Any, Any]) -> None:
        reader = hiredis.Reader(notEnoughData=...)
        self.open.add(stream)
        try:
            while data := await stream.receive_some(65536):
                reader.feed(data)
                while (words := reader.gets()) is not ...:
                    if self.delay and words != [b"CLUSTER", b"INFO"]:  # it comes with CLUSTER SLOTS
                        await trio.sleep(self.delay)
                    reply = b"" if self.frozen else self.reply([word.decode() for word in words])
                    await stream.send_all(reply)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self.open.discard(stream)
            stream.send_stream.close()

    def reply(self, words: list[str]) -> bytes:
        if words[0] == "HELLO":
            return resp([]) if self.greeting is None else self.greeting
        if words == ["CLUSTER", "INFO"]:
            return resp(f"cluster_state:ok\r\ncluster_current_epoch:{self.epoch}\r\n")
        if words == ["CLUSTER", "SLOTS"]:
            self.readings += 1
            return resp(self.slots) if self.is_clustered else error("ERR This instance has cluster support disabled")
        self.log.append(words)
        found = None if self.answer is None else self.answer(self, words)
        return self.usual(words) if found is None else found

    def usual(self, words: list[str]) -> bytes:
        if words[0] == "GET":
            return resp(f"{self.name}:{words[1]}")
        if words[0] == "INCR":
            return resp(1)
        if words[0] in ("EXISTS", "DEL"):
            return resp(len(words) - 1)
        return b"+OK\r\n"

    def times(self, *words: str) -> int:
        return sum(each[: len(words)] == list(words) for each in self.log)


@define(eq=False)
class ScriptedCluster:
    """Nodes a, b and c; a and b own a half each, c is there to take over."""

    nursery: trio.Nursery
    nodes: dict[int, ScriptedNode] = field(factory=dict)
    connects: list[tuple[str, int]] = field(factory=list)

    @property
    def a(self) -> ScriptedNode:
        return self.nodes[7001]

    @property
    def b(self) -> ScriptedNode:
        return self.nodes[7002]

    @property
    def c(self) -> ScriptedNode:
        return self.nodes[7003]

    def own(self, low: ScriptedNode, high: ScriptedNode) -> None:
        """All nodes say that these two own the halves."""
        for node in self.nodes.values():
            node.slots = [[0, HALF - 1, ["", low.port, low.name]], [HALF, SLOTS - 1, ["", high.port, high.name]]]

    async def connect(self, host: str, port: int) -> trio.abc.Stream:
        self.connects.append((host, port))
        node = self.nodes.get(port)
        await trio.lowlevel.checkpoint()
        if node is None or not node.up:
            raise ConnectionRefusedError(111, "Connection refused")
        node.connects += 1
        mine, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(node.serve, theirs)
        return mine


@asynccontextmanager
async def a_cluster() -> AsyncIterator[ScriptedCluster]:
    async with trio.open_nursery() as nursery:
        cluster = ScriptedCluster(nursery, {port: ScriptedNode(name, port) for name, port in PORTS.items()})
        cluster.own(cluster.a, cluster.b)
        with trio.fail_after(600):
            yield cluster
        await trio.testing.wait_all_tasks_blocked()
        assert not [node for node in cluster.nodes.values() if node.open], "a connection was left open"
        nursery.cancel_scope.cancel()


PORTS = {"a": 7001, "b": 7002, "c": 7003}


def client(cluster: ScriptedCluster, *, seeds: Sequence[int] = (7001, 7002), **options: Any) -> RedisCluster:
    on_trouble, rng = options.pop("on_trouble", None), options.pop("rng", random.Random(1))
    return RedisCluster(
        ClusterOptions(nodes=[("seed", port) for port in seeds], **options),
        on_trouble=on_trouble,
        connect=cluster.connect,
        rng=rng,
    )


def on(command: str, *replies: bytes) -> Answer:
    """The first times that the command comes, these answers."""
    left = list(replies)

    def answer(_: ScriptedNode, words: list[str]) -> bytes | None:
        return left.pop(0) if words[0] == command and left else None

    return answer
