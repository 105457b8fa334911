"""A master, its replicas and the sentinels that watch them, and what happens to them in a fault run."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis.exceptions
import trio
from attrs import define, field
from chaos_redis_faults import Faults

from penstock.runtime.testing.servers import LocalNode, free_port

__all__ = ["SERVICE", "SentinelFaults", "Watched"]

SERVICE = "mill"
_SENTINEL = (
    f"sentinel monitor {SERVICE} 127.0.0.1 {{}} 2",
    f"sentinel down-after-milliseconds {SERVICE} 700",
    f"sentinel failover-timeout {SERVICE} 3000",
)
_SETTLE_LIMIT = 60.0


@define(eq=False)
class Watched:
    """The processes. `start` makes them; `remove` ends them.

    Attributes:
        nodes: a master and its replicas at first; roles change.
        sentinels: three, two of which decide.
    """

    program: str
    directory: Path
    nodes: list[LocalNode] = field(factory=list)
    sentinels: list[LocalNode] = field(factory=list)

    def start(self, replicas: int = 1) -> None:
        """Blocks the thread until everybody knows everybody."""
        durable = ["appendonly yes", "appendfsync always", 'save ""', "repl-diskless-sync-delay 0"]
        master = self._start(self.nodes, durable)
        for _ in range(replicas):
            self._start(self.nodes, [*durable, f"replicaof 127.0.0.1 {master.port}"])
        for _ in range(3):
            self._start(self.sentinels, [line.format(master.port) for line in _SENTINEL], "--sentinel")
        self.wait_ok()

    def remove(self) -> None:
        """Kill all."""
        for node in [*self.sentinels, *self.nodes]:
            node.kill()

    def master(self) -> LocalNode | None:
        """The node that the first sentinel takes for the master, if that one says so, too."""
        with suppress(redis.exceptions.RedisError), self.sentinels[0].admin() as admin:
            port = int(admin.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1])
            node = next(each for each in self.nodes if each.port == port)
            if node.running and not node.frozen and _role(node)[0] == "master":
                return node
        return None

    def wait_ok(self) -> None:
        """Wait for one master, and for replicas of it that are in step, in the eyes of all."""
        deadline = time.monotonic() + _SETTLE_LIMIT
        while not self._is_ok():
            if time.monotonic() > deadline:
                raise AssertionError(f"no order within {_SETTLE_LIMIT:g} s: {[_role(node) for node in self.nodes]}")
            time.sleep(0.05)

    def _is_ok(self) -> bool:
        master = self.master()
        if master is None:
            return False
        for node in self.nodes:
            role = _role(node)
            if node is not master and (role[0] != "slave" or role[2] != master.port or role[3] != "connected"):
                return False
        return all(self._agrees(sentinel, master.port) for sentinel in self.sentinels)

    def _agrees(self, sentinel: LocalNode, port: int) -> bool:
        try:
            with sentinel.admin() as admin:
                state = admin.execute_command("SENTINEL MASTER", SERVICE)
        except redis.exceptions.RedisError:
            return False
        known = (int(state["port"]), int(state["num-slaves"]), int(state["num-other-sentinels"]), state["flags"])
        return known == (port, len(self.nodes) - 1, len(self.sentinels) - 1, "master")

    def _start(self, among: list[LocalNode], lines: list[str], *arguments: str) -> LocalNode:
        """With a file of its own: in it, sentinels write down who is whose replica, for the next start."""
        port = free_port()
        directory = self.directory / str(port)
        directory.mkdir()
        configuration = directory / "node.conf"
        configuration.write_text("\n".join(lines) + "\n")
        node = LocalNode(self.program, port, directory, [str(configuration), *arguments])
        among.append(node)
        node.start()
        return node


@define(eq=False)
class SentinelFaults(Faults):
    """Failovers of all kinds.

    Attributes:
        failovers: from the first one on, what was acknowledged may be lost.
    """

    failovers: int = 0

    async def run(self, watched: Watched) -> None:
        """Until cancelled."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "killed master, a replica takes over": partial(self._lose_master, watched, 4.0),
            "kill -9 and restart of a node": partial(self._lose_one, watched),
            "SIGSTOP of a node": partial(self._freeze_one, watched),
            "SENTINEL FAILOVER": partial(self._fail_over, watched),
            "SIGSTOP of a sentinel": partial(self._freeze_sentinel, watched),
        }
        await self.strike(watched.nodes, [], faults)

    async def _lose_master(self, watched: Watched, away: float) -> None:
        master = await trio.to_thread.run_sync(watched.master)
        if master is not None:
            await self._lose(watched, master, away)

    async def _lose_one(self, watched: Watched) -> None:
        await self._lose(watched, self.rng.choice(watched.nodes), self.rng.choice([0.0, 0.3, 2.0]))

    async def _lose(self, watched: Watched, node: LocalNode, away: float) -> None:
        self.failovers += 1
        await trio.to_thread.run_sync(node.kill)
        await trio.sleep(away)
        await trio.to_thread.run_sync(node.start)
        await trio.to_thread.run_sync(watched.wait_ok)

    async def _freeze_one(self, watched: Watched) -> None:
        self.failovers += 1
        await self.freeze(self.rng.choice(watched.nodes))
        await trio.to_thread.run_sync(watched.wait_ok)

    async def _freeze_sentinel(self, watched: Watched) -> None:
        await self.freeze(self.rng.choice(watched.sentinels))
        await trio.to_thread.run_sync(watched.wait_ok)

    async def _fail_over(self, watched: Watched) -> None:
        self.failovers += 1

        def order() -> None:
            with suppress(redis.exceptions.RedisError), watched.sentinels[0].admin() as admin:
                admin.execute_command("SENTINEL", "FAILOVER", SERVICE)

        await trio.to_thread.run_sync(order)
        await trio.sleep(1)
        await trio.to_thread.run_sync(watched.wait_ok)


def _role(node: LocalNode) -> Any:
    try:
        with node.admin() as admin:
            return admin.execute_command("ROLE")
    except redis.exceptions.RedisError as error:
        return [str(error)]
