"""Three chat servers in virtual time: who handles, who is told, and what becomes of an event whose server is killed."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import back_office
import pytest
import trio
from back_office import ChatServer, NoticeSent, RoomClosed, UserBanned
from trio.testing import MockClock

from penstock.actors.simulation.network import lose_transactions
from penstock.actors.testing import MemoryStore
from penstock.actors.virtual import VirtualDeployment, virtual
from penstock.http.testing import client_of
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.simulation import SimulatedProcess, Simulation


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    back_office.keep_actions(store)
    return store


class Site:
    """Three servers on one Redis and one database; each is a process of its own, and can be killed."""

    def __init__(self, simulation: Simulation, redis: InProcessRedis, store: MemoryStore) -> None:
        self.servers = [ChatServer(f"chat-{number}") for number in (1, 2, 3)]
        self.apps: dict[str, VirtualDeployment[Any]] = {}
        self.processes: dict[str, SimulatedProcess] = {}
        self.redis, self.store = redis, store
        self._simulation = simulation
        self._all_up = trio.Event()

    async def start(self) -> None:
        for server in self.servers:
            process = self._simulation.start(server.name, lambda server=server: self._run(server))
            # As PostgreSQL does when a connection ends.
            process.at_kill(lambda process=process: lose_transactions(self.store, process) and None)
            self.processes[server.name] = process
        await self._all_up.wait()

    async def _run(self, server: ChatServer) -> None:
        async with virtual(back_office.chat(server), redis=self.redis, store=self.store, instance=server.name) as app:
            self.apps[server.name] = app
            if len(self.apps) == len(self.servers):
                self._all_up.set()
            await trio.sleep_forever()

    async def held_by(self, name: str) -> int:
        """How many events a server was given and has not acknowledged."""
        consumers = await self.apps["chat-2"].deployment.client().xinfo_consumers("FUNSDK", "FUNSDK_GROUP")
        return sum(each["pending"] for each in consumers if each["name"].decode().endswith(f":{name}"))

    def actions(self) -> list[tuple[Any, ...]]:
        """Kind, subject and server of what was done."""
        return [effect.values[1:] for effect in self.store.effects if effect.statement.startswith("insert into back_")]


@asynccontextmanager
async def three_servers(store: MemoryStore) -> AsyncIterator[Site]:
    async with InProcessRedis() as redis, Simulation(0) as simulation:
        site = Site(simulation, redis, store)
        await site.start()
        yield site


async def test_one_handles_and_all_are_told(autojump_clock: MockClock, store: MemoryStore) -> None:
    async with three_servers(store) as site:
        site.servers[1].users = {"ann", "bob"}
        clients = [client_of(site.apps[server.name].deployment) for server in site.servers]
        for number in range(30):
            sent = await clients[number % 3].post("/back-office/notice", json={"text": f"notice {number}"})
            assert sent.status_code == 202
        assert (await clients[0].post("/back-office/ban", json={"userId": "ann"})).status_code == 202
        assert (await clients[2].post("/back-office/close-room", json={"room": "lobby"})).status_code == 202
        await trio.sleep(5)
        assert Counter(kind for kind, _, _ in site.actions()) == {"notice": 30, "ban": 1, "close-room": 1}
        assert {server for _, _, server in site.actions()} == {"chat-1", "chat-2", "chat-3"}
        for server in site.servers:
            assert sorted(server.notices.values()) == sorted(f"notice {number}" for number in range(30))
            assert (server.banned, server.closed) == ({"ann"}, {"lobby"})
        assert [server.kicked for server in site.servers] == [[], ["ann"], []]
        assert (await clients[1].get("/chat")).status_code == 200
        assert (await (await clients[1].get("/chat")).get_json())["users"] == ["bob"]
        assert (await clients[1].post("/chat/users/ann")).status_code == 403


async def test_killed_in_the_middle_of_an_event_it_is_handled_once_by_another(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with three_servers(store) as site:
        site.servers[0].slow = 5.0
        await site.apps["chat-2"].publish("FUNSDK", *(NoticeSent(f"notice {number}") for number in range(30)))
        await trio.sleep(2)
        site.processes["chat-1"].kill()
        held = await site.held_by("chat-1")
        assert held
        assert len(site.actions()) == 30 - held
        await trio.sleep(60 + 20)  # delivery.reclaim_idle, and how often it is looked for
        ids = [effect.values[0] for effect in store.effects if effect.statement.startswith("insert into back_")]
        assert len(ids) == len(set(ids)) == 30
        assert {server for _, _, server in site.actions()} == {"chat-2", "chat-3"}
        for server in site.servers[1:]:
            assert set(server.notices) == set(map(str, ids))


async def test_a_server_that_comes_later_or_was_cut_off_knows_what_the_others_know(
    autojump_clock: MockClock, store: MemoryStore
) -> None:
    async with InProcessRedis() as redis:
        early, late = ChatServer("chat-1"), ChatServer("chat-2", users={"ann"})
        async with virtual(back_office.chat(early), redis=redis, store=store, instance="chat-1") as app:
            await app.publish("FUNSDK", UserBanned("ann"), RoomClosed("lobby"))
            await app.settled()
            async with virtual(back_office.chat(late), redis=redis, store=store, instance="chat-2") as other:
                await trio.sleep(1)
                assert (late.banned, late.closed, late.kicked) == ({"ann"}, {"lobby"}, ["ann"])
                redis.refuse()
                await app.publish("FUNSDK", NoticeSent("while Redis is away"))
                await trio.sleep(60)
                redis.restore()
                for each in (app, other):
                    await each.serving()
                    await each.settled()
                await trio.sleep(1)
                assert list(late.notices.values()) == list(early.notices.values()) == ["while Redis is away"]
