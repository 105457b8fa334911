"""A running system in memory, the application over it, and a real server with a plain socket client."""

from __future__ import annotations

import http.client
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio
from attrs import define

from penstock.http.app import HttpApp, create_app
from penstock.http.front_end import front_end
from penstock.http.settings import HttpSettings
from penstock.runtime.testing import servers


def _load(path: str, name: str) -> ModuleType:
    """A module of the tests, which are no package, so that it cannot be imported."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parents[1] / path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


FakeDeployment = _load("http/fake_deployment.py", "fake_deployment").FakeDeployment

_actors = _load("actors/conftest.py", "_fixtures_of_actors")
cluster, server, migrated, database = _actors.cluster, _actors.server, _actors.migrated, _actors.database


@pytest.fixture
async def deployment() -> AsyncIterator[Any]:
    async with FakeDeployment().running() as made:
        yield made


@pytest.fixture
def make_app(deployment: Any) -> Callable[..., HttpApp]:
    """The application over `deployment`, with settings of one's own."""
    return lambda **settings: create_app(deployment, HttpSettings(**settings))


@pytest.fixture
def client(make_app: Callable[..., HttpApp]) -> Any:
    """Quart's test client, with default settings."""
    return make_app().test_client()


@define
class Server:
    """A real front end on a loopback port."""

    deployment: Any
    port: int

    async def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, bytes]:
        """One request over a connection of its own."""
        return await trio.to_thread.run_sync(partial(self._request, method, path, body, headers or {}))

    def _request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(method, path, body, headers, encode_chunked=not isinstance(body, bytes))
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    async def raw(self, data: bytes) -> trio.SocketStream:
        """A connection over which `data` has been sent."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        await stream.send_all(data)
        return stream

    async def gone(self) -> None:
        """Block until the tree has ended; for at most 20 seconds."""
        with trio.fail_after(20), self.deployment.tree.subscribe() as events:
            while self.deployment.tree.snapshot().root.state != "ended":
                await events.next()

    async def captured(self, count: int) -> list[dict[str, Any]]:
        """The data of the access events, as soon as there are `count` of them."""
        with trio.fail_after(20):
            while len(self.deployment.captured) < count:
                await trio.sleep(0.005)
        return [envelope.data for envelope in self.deployment.captured]


@asynccontextmanager
async def _serving(prepare: Callable[[Any], None] = lambda _: None, **settings: Any) -> AsyncIterator[Server]:
    chosen = HttpSettings(**{"bind": "127.0.0.1:0", **settings})
    made = FakeDeployment(front_ends=lambda deployment: [front_end(deployment, chosen)])
    prepare(made)
    async with made.running():
        note = made.tree.snapshot().find("event-system/http").note
        yield Server(made, int(note.rpartition(":")[2]))


@pytest.fixture
def serving() -> Callable[..., Any]:
    """``async with serving(body_limit=…) as server``: the whole tree with a real front end as its last child.

    `prepare` is given the deployment before it runs.
    """
    return _serving


@pytest.fixture
def free_port() -> int:
    return servers.free_port()


async def json_of(response: Any) -> Any:
    return json.loads(await response.get_data())
