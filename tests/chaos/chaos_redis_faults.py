"""The faults of a fault run on Redis: on one server, and on a cluster.

Hard faults hit a server, one at a time; soft ones hit connections, and fall into the hard ones.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis
import redis.exceptions
import trio
from attrs import define
from chaos_book import Book
from chaos_proxy import Proxy

from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode

__all__ = ["ClusterFaults", "Faults", "NodeFaults"]

Fault = Callable[[], Awaitable[None]]
_Soft = Callable[[LocalNode, Proxy | None], Awaitable[None]]


@define(eq=False)
class Faults:
    """What both have in common.

    Attributes:
        pace: mean seconds between two hard faults.
        longest: the longest silence, seconds.
    """

    book: Book
    rng: random.Random
    pace: float
    longest: float

    async def strike(self, nodes: Sequence[LocalNode], proxies: Sequence[Proxy], hard: dict[str, Fault]) -> None:
        """Faults until cancelled. The one under way is finished first, so that the servers are whole again.

        Without proxies, no connection is cut on its way.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._strike_soft, nodes, proxies)
            while True:
                await trio.sleep(self.rng.expovariate(1 / self.pace))
                name = self.rng.choice(list(hard))
                self.book.fault(name)
                with trio.CancelScope(shield=True):
                    await hard[name]()

    async def _strike_soft(self, nodes: Sequence[LocalNode], proxies: Sequence[Proxy]) -> None:
        soft: dict[str, _Soft] = {
            "CLIENT KILL of all": partial(self._order, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"),
            "CLIENT KILL of subscribers": partial(self._order, "CLIENT", "KILL", "TYPE", "pubsub"),
            "CLIENT KILL of one": self._kill_one,
            "CLIENT UNBLOCK": self._unblock_one,
            "CLIENT PAUSE": self._pause,
            "CLIENT PAUSE WRITE": self._pause_writes,
            "SCRIPT FLUSH": partial(self._order, "SCRIPT", "FLUSH"),
            "BGREWRITEAOF": partial(self._order, "BGREWRITEAOF"),
        }
        if proxies:
            soft |= {"cut within a command or a reply": self._cut, "black hole": self._black_hole}
        while True:
            await trio.sleep(self.rng.expovariate(2 / self.pace))
            name, number = self.rng.choice(list(soft)), self.rng.randrange(len(nodes))
            self.book.fault(name)
            await soft[name](nodes[number], proxies[number % len(proxies)] if proxies else None)

    async def _cut(self, node: LocalNode, proxy: Proxy | None) -> None:
        assert proxy is not None
        proxy.cut(self.rng, self.rng.choice([0.3, 1.0]))
        await trio.lowlevel.checkpoint()

    async def _black_hole(self, node: LocalNode, proxy: Proxy | None) -> None:
        assert proxy is not None
        proxy.hold()
        try:
            await trio.sleep(self._silence())
        finally:
            if self.rng.random() < 0.5:
                proxy.cut(self.rng)
            proxy.release()

    async def _order(self, *words: Any) -> None:
        *order, node, _ = words
        await _admin(node, *order)

    async def _pause(self, node: LocalNode, proxy: Proxy | None) -> None:
        await _admin(node, "CLIENT", "PAUSE", self.rng.randint(10, 1500), "ALL")

    async def _pause_writes(self, node: LocalNode, proxy: Proxy | None) -> None:
        await _admin(node, "CLIENT", "PAUSE", self.rng.randint(10, 1500), "WRITE")

    async def _kill_one(self, node: LocalNode, proxy: Proxy | None) -> None:
        if (client := await self._pick(node, "flags=N")) is not None:
            await _admin(node, "CLIENT", "KILL", "ID", client)

    async def _unblock_one(self, node: LocalNode, proxy: Proxy | None) -> None:
        if (client := await self._pick(node, "flags=b")) is not None:
            await _admin(node, "CLIENT", "UNBLOCK", client, self.rng.choice(["ERROR", "TIMEOUT"]))

    async def _pick(self, node: LocalNode, mark: str) -> str | None:
        listing = await _admin(node, "CLIENT", "LIST", "TYPE", "normal")
        lines = [line for line in str(listing or "").splitlines() if mark in line]
        return self.rng.choice(lines).split()[0].removeprefix("id=") if lines else None

    async def freeze(self, node: LocalNode) -> None:
        """SIGSTOP for a while."""
        node.freeze()
        await trio.sleep(self._silence())
        node.thaw()

    def _silence(self) -> float:
        """Seconds; now and then longer than anything may last that waits for it."""
        return self.longest if self.rng.random() < 0.1 else self.rng.choice([0.05, 0.3, 0.8, 2.5])


@define(eq=False)
class NodeFaults(Faults):
    """Faults on one server."""

    async def run(self, node: LocalNode, proxies: Sequence[Proxy]) -> None:
        """Until cancelled."""
        hard: dict[str, Fault] = {
            "kill -9 and restart": partial(self._kill, node),
            "kill -9 and restart at once": partial(self._kill, node, 0.0),
            "SIGSTOP": partial(self.freeze, node),
            "DEBUG SLEEP": partial(self._sleep, node),
            "demotion": partial(self._demote, node),
            "out of memory": partial(self._set_for_a_while, node, "maxmemory", "1", "0"),
            "too few replicas": partial(self._set_for_a_while, node, "min-replicas-to-write", "1", "0"),
            "busy script": partial(self._busy, node),
        }
        await self.strike([node], proxies, hard)

    async def _kill(self, node: LocalNode, down: float | None = None) -> None:
        await trio.to_thread.run_sync(node.kill)
        await trio.sleep(self.rng.choice([0.1, 0.5, 2.0]) if down is None else down)
        await trio.to_thread.run_sync(node.start)

    async def _sleep(self, node: LocalNode) -> None:
        await _admin(node, "DEBUG", "SLEEP", self.rng.choice(["0.2", "0.9", "2.5"]))

    async def _demote(self, node: LocalNode) -> None:
        """A master of nobody's: it keeps its data, closes the blocked readers and refuses writes."""
        await _admin(node, "REPLICAOF", "127.0.0.1", "1")
        await trio.sleep(self.rng.choice([0.05, 0.5, 1.5]))
        await _until_done(node, "REPLICAOF", "NO", "ONE")

    async def _set_for_a_while(self, node: LocalNode, name: str, value: str, normal: str) -> None:
        await _admin(node, "CONFIG", "SET", name, value)
        await trio.sleep(self.rng.choice([0.05, 0.5, 1.5]))
        await _until_done(node, "CONFIG", "SET", name, normal)

    async def _busy(self, node: LocalNode) -> None:
        """A script that runs until it is killed: after 50 ms everybody gets BUSY."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_admin, node, "EVAL", "while true do end", "0")
            await trio.sleep(self.rng.choice([0.2, 1.0, 2.5]))
            await _until_done(node, "SCRIPT", "KILL", also="NOTBUSY")


@define(eq=False)
class ClusterFaults(Faults):
    """Faults on a cluster.

    Attributes:
        keys: keys whose slots are moved about.
        failovers: how many have happened: from the first one on, what was acknowledged may be lost.
    """

    keys: Sequence[str] = ()
    failovers: int = 0

    async def run(self, cluster: LocalCluster, proxies: Sequence[Proxy]) -> None:
        """Until cancelled."""
        hard: dict[str, Fault] = {
            "kill -9 and restart of a node": partial(self._kill, cluster),
            "SIGSTOP of a node": partial(self._freeze_one, cluster),
            "slot migration": partial(self._migrate, cluster),
            "slot migration with a pause": partial(self._migrate, cluster, 0.2),
        }
        if len(cluster.nodes) > 3:
            hard |= {
                "CLUSTER FAILOVER": partial(self._fail_over, cluster, None),
                "CLUSTER FAILOVER TAKEOVER": partial(self._fail_over, cluster, "TAKEOVER"),
                "killed master, a replica takes over": partial(self._lose_master, cluster),
            }
        await self.strike(cluster.nodes, proxies, hard)

    async def _kill(self, cluster: LocalCluster) -> None:
        node = self.rng.choice(cluster.nodes)
        self._may_fail_over(cluster)
        await trio.to_thread.run_sync(node.kill)
        await trio.sleep(self.rng.choice([0.0, 0.3, 2.5]))
        await trio.to_thread.run_sync(node.start)
        await trio.to_thread.run_sync(cluster.wait_ok)

    async def _freeze_one(self, cluster: LocalCluster) -> None:
        self._may_fail_over(cluster)
        await self.freeze(self.rng.choice(cluster.nodes))
        await trio.to_thread.run_sync(cluster.wait_ok)

    async def _migrate(self, cluster: LocalCluster, pause: float = 0.0) -> None:
        slot = slot_of(self.rng.choice(self.keys))

        def move() -> None:
            source = cluster.master_of(slot)
            masters = {cluster.master_of(number).port for number in (0, 6000, 12000)} | {source.port}
            others = [node for node in cluster.nodes if node.port in masters - {source.port}]
            cluster.migrate_slot(slot, self.rng.choice(others), pause=pause)

        try:
            await trio.to_thread.run_sync(move)
        except redis.exceptions.RedisError as error:
            # A soft fault hit the migration itself: end it as redis-cli's `--cluster fix` does.
            self.book.notes[f"migration disturbed: {type(error).__name__}"] += 1
            await trio.to_thread.run_sync(partial(_finish_migration, cluster, slot))
        await trio.to_thread.run_sync(cluster.wait_ok)

    async def _fail_over(self, cluster: LocalCluster, how: str | None) -> None:
        replica = await self._some_replica(cluster)
        if replica is not None:
            if how is not None:
                self.failovers += 1
            with suppress(AssertionError, redis.exceptions.RedisError):  # refused: the master was just killed, say
                await trio.to_thread.run_sync(cluster.fail_over, replica, how)
        await trio.to_thread.run_sync(cluster.wait_ok)

    async def _lose_master(self, cluster: LocalCluster) -> None:
        replica = await self._some_replica(cluster)
        if replica is None:
            return
        master = await trio.to_thread.run_sync(_master_of_replica, cluster, replica)
        self.failovers += 1
        await trio.to_thread.run_sync(master.kill)
        with trio.move_on_after(15):
            while not await trio.to_thread.run_sync(_is_master, cluster, replica):
                await trio.sleep(0.05)
        await trio.to_thread.run_sync(master.start)
        await trio.to_thread.run_sync(cluster.wait_ok)

    async def _some_replica(self, cluster: LocalCluster) -> LocalNode | None:
        masters = [node for node in cluster.nodes if await trio.to_thread.run_sync(_is_master, cluster, node)]
        replicas = [node for node in cluster.nodes if node not in masters]
        return self.rng.choice(replicas) if replicas else None

    def _may_fail_over(self, cluster: LocalCluster) -> None:
        if len(cluster.nodes) > 3:
            self.failovers += 1


def _finish_migration(cluster: LocalCluster, slot: int) -> None:
    """Keys first, then the slot's owner: what an operator does after a migration that broke off."""
    owner = cluster.master_of(slot)
    owner_id = cluster.id_of(owner)
    for node in cluster.nodes:
        with cluster.admin(node) as admin:
            if node is owner or admin.execute_command("ROLE")[0] != "master":
                continue
            while keys := admin.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                admin.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", owner_id)
                admin.execute_command("MIGRATE", "127.0.0.1", owner.port, "", 0, 5000, "REPLACE", "KEYS", *keys)
    for node in cluster.nodes:
        with cluster.admin(node) as admin:
            if admin.execute_command("ROLE")[0] == "master":
                admin.execute_command("CLUSTER", "SETSLOT", slot, "NODE", owner_id)


def _is_master(cluster: LocalCluster, node: LocalNode) -> bool:
    try:
        with cluster.admin(node) as admin:
            return bool(admin.execute_command("ROLE")[0] == "master")
    except redis.exceptions.RedisError:
        return False


def _master_of_replica(cluster: LocalCluster, replica: LocalNode) -> LocalNode:
    with cluster.admin(replica) as admin:
        port = admin.execute_command("ROLE")[2]
    return next(node for node in cluster.nodes if node.port == port)


async def _admin(node: LocalNode, *order: Any) -> Any:
    """An order to a server that may be in any state: None when it does not take it."""

    def give() -> Any:
        with node.admin() as admin:
            return admin.execute_command(*order)

    try:
        return await trio.to_thread.run_sync(give, abandon_on_cancel=False)
    except redis.exceptions.RedisError:
        return None


async def _until_done(node: LocalNode, *order: str, also: str = "") -> None:
    """An order that must get through: a server must not stay crippled."""

    def give() -> str | None:
        try:
            with node.admin() as admin:
                admin.execute_command(*order)
        except redis.exceptions.RedisError as error:
            return None if also and also in str(error) else str(error)
        return None

    deadline = trio.current_time() + 30
    while (refusal := await trio.to_thread.run_sync(give)) is not None:
        if trio.current_time() > deadline:
            tail = node.log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"the server does not take {order}: {refusal}\n{tail}")
        await trio.sleep(0.05)
