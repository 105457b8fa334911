"""The faults of a run: on Redis, on PostgreSQL, on both, and on Penstock itself."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import redis.exceptions
import trio
from attrs import define, field
from chaos_proxy import Proxy
from system_site import Database, Installation, RedisSide, end_in_order

from penstock.runtime.testing.servers import LocalNode

__all__ = ["Strikes"]

Strike = Callable[[], Awaitable[None]]
_thread = trio.to_thread.run_sync


@define(eq=False)
class Strikes:
    """One fault after the other, from a shuffled deck: each kind comes before any comes twice.

    Attributes:
        redis: what is hit.
        members: the Penstock processes, by name; `replace` puts a new one in the place of one that is killed for good.
        note: told of each fault.
        failovers: begin and end of each fault in which a master was replaced; what was acknowledged just before, or
            meanwhile, may be gone.
        struck: begin, end and name of each fault.
        wrong: what a fault found out.
    """

    redis: RedisSide
    database: Database
    members: dict[str, Installation]
    replace: Callable[[str], None]
    rng: random.Random
    note: Callable[[str], None]
    failovers: list[tuple[float, float]] = field(factory=list)
    struck: list[tuple[float, float, str]] = field(factory=list)
    wrong: list[str] = field(factory=list)

    async def run(self, count: int, seconds: float) -> None:
        """`count` faults, spread over `seconds`."""
        deck: list[str] = []
        begun = trio.current_time()
        for number in range(count):
            await trio.sleep_until(begun + seconds * (number + self.rng.uniform(0.2, 0.8)) / count)
            if not deck:
                deck = sorted(self._kinds())
                self.rng.shuffle(deck)
            await self._strike(deck.pop())

    async def _strike(self, name: str) -> None:
        self.note(name)
        begun = time.monotonic()
        with trio.CancelScope(shield=True):
            masters = await _thread(self._masters)
            await self._kinds()[name]()
            self.struck.append((begun, time.monotonic(), name))
            if await _thread(self._masters) != masters:
                self.failovers.append((begun, time.monotonic()))
        for place, member in self.members.items():
            if member.process is not None and (code := member.process.poll()) is not None:
                self.wrong.append(f"process {place} ended by itself with {code} after {name}")
                await _thread(member.start)

    def _kinds(self) -> dict[str, Strike]:
        kinds: dict[str, Strike] = {
            "redis: kill -9": self._kill_redis,
            "redis: kill -9, back at once": partial(self._kill_redis, 0.0),
            "redis: SIGSTOP": self._freeze_redis,
            "redis: full": partial(self._cripple, "maxmemory", "1"),
            "redis: too few replicas": partial(self._cripple, "min-replicas-to-write", "9"),
            "redis: CLIENT KILL": self._kill_clients,
            "redis: CLIENT KILL, a storm of it": partial(self._storm, self._kill_clients),
            "postgres: kill -9": partial(self._restart_postgres, signal.SIGKILL),
            "postgres: fast shutdown": partial(self._restart_postgres, signal.SIGINT),
            "postgres: SIGSTOP": self._freeze_postgres,
            "postgres: terminate all backends": self._terminate_backends,
            "postgres: terminate all backends, a storm of it": partial(self._storm, self._terminate_backends),
            "postgres: cut": partial(self._cut, [self.database.proxy]),
            "postgres: black hole": partial(self._black_hole, [self.database.proxy]),
            "both: kill -9": self._kill_both,
            "penstock: kill -9": self._kill_penstock,
            "penstock: SIGSTOP": self._freeze_penstock,
            "penstock: SIGTERM": self._terminate_penstock,
            "penstock and redis: kill -9": self._kill_penstock_and_redis,
        }
        if len(self.members) > 1:
            kinds["penstock: kill -9 for good"] = self._lose_penstock
        if self.redis.proxies:
            kinds["redis: cut"] = partial(self._cut, self.redis.proxies)
            kinds["redis: black hole"] = partial(self._black_hole, self.redis.proxies)
        if len(self.redis.nodes) == 1:
            kinds["redis: read-only"] = self._demote
        if len(self.redis.nodes) > 3:
            kinds["cluster: CLUSTER FAILOVER"] = self._fail_over
            kinds["cluster: a master is lost"] = self._lose_master
        return kinds

    # Redis ----------------------------------------------------------------------------------------------------------

    async def _kill_redis(self, down: float | None = None) -> None:
        node = self._node()
        await _thread(node.kill)
        await trio.sleep(self.rng.uniform(0.3, 4.0) if down is None else down)
        await _thread(node.start)
        await _thread(self.redis.wait_ok)

    async def _freeze_redis(self) -> None:
        node = self._node()
        node.freeze()
        await trio.sleep(self.rng.choice([0.3, 1.5, 4.0]))
        node.thaw()
        await _thread(self.redis.wait_ok)

    async def _cripple(self, name: str, value: str) -> None:
        node = self._node()
        usual = await _thread(self._order, node, "CONFIG", "GET", name)
        await _thread(self._order, node, "CONFIG", "SET", name, value)
        await trio.sleep(self.rng.uniform(0.5, 4.0))
        await _thread(self._order, node, "CONFIG", "SET", name, usual[name])

    async def _kill_clients(self) -> None:
        for node in self.redis.nodes:
            await _thread(self._order, node, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def _demote(self) -> None:
        """A replica of nobody: it keeps its data and refuses writes."""
        node = self._node()
        await _thread(self._order, node, "REPLICAOF", "127.0.0.1", "1")
        await trio.sleep(self.rng.uniform(0.5, 3.0))
        await _thread(self._order, node, "REPLICAOF", "NO", "ONE")

    async def _fail_over(self) -> None:
        replica = await _thread(self._some_replica)
        with suppress(AssertionError, redis.exceptions.RedisError):  # refused: that it is no replica any more, say
            await _thread(self.redis.made.fail_over, replica)  # type: ignore[attr-defined]
        await _thread(self.redis.wait_ok)

    async def _lose_master(self) -> None:
        replica = await _thread(self._some_replica)
        master = await _thread(self._master_of, replica)
        await _thread(master.kill)
        with trio.move_on_after(30):
            while await _thread(self._role, replica) != "master":
                await trio.sleep(0.1)
        await trio.sleep(1.0)
        await _thread(master.start)
        await _thread(self.redis.wait_ok)

    def _masters(self) -> set[int]:
        """The ports of the nodes that are masters, where they may change."""
        return {node.port for node in self.redis.nodes if len(self.redis.nodes) > 3 and self._role(node) == "master"}

    def _node(self) -> LocalNode:
        return self.rng.choice(list(self.redis.nodes))

    def _role(self, node: LocalNode) -> str:
        try:
            return str(self._order(node, "ROLE")[0])
        except redis.exceptions.RedisError:
            return ""

    def _some_replica(self) -> LocalNode:
        return self.rng.choice([node for node in self.redis.nodes if self._role(node) == "slave"])

    def _master_of(self, replica: LocalNode) -> LocalNode:
        port = self._order(replica, "ROLE")[2]
        return next(node for node in self.redis.nodes if node.port == port)

    def _order(self, node: LocalNode, *words: str) -> Any:
        with self.redis.admin(node) as admin:
            return admin.execute_command(*words)

    # PostgreSQL -----------------------------------------------------------------------------------------------------

    async def _restart_postgres(self, how: signal.Signals) -> None:
        await _thread(self.database.stop, how)
        await trio.sleep(self.rng.uniform(0.0, 4.0))
        await _thread(self.database.start)

    async def _freeze_postgres(self) -> None:
        self.database.server.send(signal.SIGSTOP)
        await trio.sleep(self.rng.choice([0.3, 2.0, 5.0]))
        self.database.server.send(signal.SIGCONT)

    async def _terminate_backends(self) -> None:
        await _thread(
            self.database.sql,
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()",
        )

    # Both, and the ways to them -------------------------------------------------------------------------------------

    async def _kill_both(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._restart_postgres, signal.SIGKILL)
            nursery.start_soon(self._kill_redis)

    async def _storm(self, strike: Strike) -> None:
        """Again and again, often before everybody has left whom the last one concerned."""
        for _ in range(self.rng.choice([8, 20])):
            await strike()
            await trio.sleep(self.rng.uniform(0.05, 0.4))

    async def _cut(self, proxies: Sequence[Proxy]) -> None:
        for proxy in proxies:
            proxy.cut(self.rng)
        await trio.lowlevel.checkpoint()

    async def _black_hole(self, proxies: Sequence[Proxy]) -> None:
        for proxy in proxies:
            proxy.hold()
        await trio.sleep(self.rng.choice([0.5, 2.0, 5.0]))
        for proxy in proxies:
            if self.rng.random() < 0.5:
                proxy.cut(self.rng)
            proxy.release()

    # Penstock -------------------------------------------------------------------------------------------------------

    async def _kill_penstock(self) -> None:
        member = self.members[self._member()]
        await _thread(member.kill)
        await trio.sleep(self.rng.uniform(0.0, 2.0))
        await _thread(member.start)

    async def _kill_penstock_and_redis(self) -> None:
        member = self.members[self._member()]
        await _thread(member.kill)
        await self._kill_redis()
        await _thread(member.start)

    async def _freeze_penstock(self) -> None:
        """Now and then for longer than a lease lasts: it is a zombie when it goes on."""
        process = self.members[self._member()].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        await trio.sleep(self.rng.choice([1.0, 4.0, 9.0]))
        process.send_signal(signal.SIGCONT)

    async def _terminate_penstock(self) -> None:
        name = self._member()
        member = self.members[name]
        if (wrong := await _thread(end_in_order, member)) is not None:
            self.wrong.append(f"process {name} {wrong}")
        await _thread(member.start)

    async def _lose_penstock(self) -> None:
        name = self._member()
        await _thread(self.members[name].kill)
        await _thread(self.replace, name)

    def _member(self) -> str:
        return self.rng.choice(sorted(self.members))
