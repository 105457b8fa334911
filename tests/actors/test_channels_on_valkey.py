"""Broadcast channels on a real Valkey that dies, cuts off who is too slow, and forbids; with the real clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from redis.exceptions import NoPermissionError

from penstock.actors.backends import Backends
from penstock.actors.channels import Broadcast, Gap
from penstock.actors.deployment import Deployment
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.testing import MemoryStore
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.supervision import LifecycleKind

NEWS = "chat:news"
SETTINGS = ActorSettings(
    health=HealthSettings(interval_up=0.3, interval_down_min=0.05, interval_down_max=0.3, timeout=20)
)


async def until(true: Callable[[], Any]) -> None:
    """Wait until `true()`; the server is another process, so there is no event to wait for."""
    with trio.fail_after(30):
        while not true():
            await trio.sleep(0.01)


class Server:
    """One process of a chat server; its handler waits at `door`."""

    def __init__(self, redis: RedisOptions, name: str) -> None:
        self.heard: list[Any] = []
        self.gaps: list[Gap] = []
        self.door = trio.Event()
        self.door.set()
        backends = Backends(redis_options=redis, store=MemoryStore(), probe_postgres=trio.lowlevel.checkpoint)
        self.deployment = Deployment(self._system(), SETTINGS, backends, instance=name)

    def _system(self) -> System:
        system = System("chat")
        news = system.channel(NEWS)

        @news.on
        async def hear(message: Broadcast) -> None:
            await self.door.wait()
            self.heard.append(message.data)

        @news.on_gap
        async def read_again(gap: Gap) -> None:
            self.gaps.append(gap)

        return system

    def state(self) -> str:
        view = self.deployment.tree.snapshot().find("chat/actors/channels")
        assert view is not None
        return view.state

    def shut(self) -> int:
        """How often a gate was shut."""
        return sum(each.kind is LifecycleKind.GATE_SHUT for each in self.deployment.gates.journal.recent)


@asynccontextmanager
async def running(*servers: Server) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(server.deployment.run)
        for server in servers:
            await server.deployment.tree.ready()
            await until(lambda server=server: server.state() == "running")
        yield
        for server in servers:
            server.deployment.tree.stop("the test is over")


async def test_a_kill_a_slow_handler_and_a_forbidden_channel(make_valkey: Any) -> None:
    valkey = make_valkey()
    options = evolve(valkey.options, stall_after=10, response_timeout=20)  # a busy machine's silence shuts no gate here
    one, two = Server(options, "one"), Server(options, "two")
    async with running(one, two):
        assert await one.deployment.broadcast(NEWS, {"text": "점검"}) == 2
        await until(lambda: one.heard and two.heard)

        # The server is killed, and is back.
        valkey.kill()
        await until(lambda: one.state() == two.state() == "held")
        valkey.start()
        await until(lambda: len(one.gaps) == len(two.gaps) == 2)
        assert await two.deployment.broadcast(NEWS, "back") == 2
        await until(lambda: len(one.heard) == len(two.heard) == 2)

        # One is too slow for what comes, and is cut off by the server; the gate stays open, the other hears all.
        async with Redis(valkey.options) as admin:
            await admin.config_set("client-output-buffer-limit", "pubsub 262144 0 0")
            shut = one.shut()
            one.door = trio.Event()
            for _ in range(600):
                # Of longer texts Valkey 9 holds one copy for all clients, and counts it for none.
                await two.deployment.broadcast(NEWS, "x" * 8_000)
            await until(lambda: len(two.heard) == 602)
            one.door.set()
            await until(lambda: len(one.gaps) == 3)
            assert "client-output-buffer-limit" in one.gaps[-1].reason
            assert len(one.heard) < 602
            assert one.shut() == shut

            # A user who may not listen: nothing else is held up, and what is forbidden is told.
            await admin.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "resetchannels")
            three = Server(evolve(options, username="app", password="secret"), "three")
            async with running(three):
                view = three.deployment.tree.snapshot().find("chat/actors/channels")
                assert view is not None
                assert "NOPERM" in view.note
                (warning,) = [each for each in three.deployment.warnings() if each.name == "access"]
                assert warning.mend.startswith("ACL SETUSER … &")
                # To send is forbidden, too; that costs this message, and nothing else.
                shut = three.shut()
                for _ in range(3):
                    with pytest.raises(NoPermissionError):
                        await three.deployment.broadcast(NEWS, {})
                assert three.deployment.gates["redis"].is_open
                assert three.shut() == shut
