"""Real servers for the actors' tests, started by the fixtures of the links' own tests, and a migrated database."""

from __future__ import annotations

import importlib.util
import itertools
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from penstock.actors import migrations
from penstock.actors.store import PostgresStore, Store
from penstock.actors.testing import MemoryStore
from penstock.runtime.postgres import Pool, PostgresOptions, migrate
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis


def _conftest_of(link: str) -> ModuleType:
    """The conftest beside another folder's tests; pytest offers its fixtures to that folder only."""
    path = Path(__file__).parent.parent / "runtime" / link / "conftest.py"
    spec = importlib.util.spec_from_file_location(f"_fixtures_of_{link}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_postgres = _conftest_of("postgres")
_redis = _conftest_of("redis")

cluster = _postgres.cluster
server = _postgres.server
make_valkey = _redis.make_valkey
shared_valkey = _redis.shared_valkey
valkey = _redis.valkey
redis = _redis.redis
redis_7_0 = _redis.redis_7_0

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def migrated(server: Any) -> str:
    """The name of a database with our tables, to be copied."""
    server.execute("create database migrated")
    trio.run(migrate, server.options(database="migrated"), Path(migrations.__path__[0]))
    return "migrated"


@pytest.fixture
def database(server: Any, migrated: str) -> Iterator[PostgresOptions]:
    """A database of one's own, with our tables."""
    name = f"actors_{next(_numbers)}"
    server.execute(f"create database {name} template {migrated}")
    yield server.options(database=name)
    server.execute(f"drop database {name} with (force)")


@pytest.fixture
async def pool(database: PostgresOptions) -> AsyncIterator[Pool]:
    async with Pool(database) as pool:
        yield pool


@pytest.fixture(params=["memory", "postgres"])
def place(request: pytest.FixtureRequest) -> PostgresOptions | None:
    """Where a store is: in memory, or in a database."""
    options: PostgresOptions | None = request.getfixturevalue("database") if request.param == "postgres" else None
    return options


@pytest.fixture
async def store(place: PostgresOptions | None) -> AsyncIterator[Store]:
    """The real store and its twin, which must not differ."""
    if place is None:
        yield MemoryStore()
        return
    async with Pool(place) as pool:
        yield PostgresStore(pool)


@contextmanager
def _running(command: list[str], path: Path) -> Iterator[None]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 10.0
            while True:
                with socket.socket(socket.AF_UNIX) as probe:
                    if probe.connect_ex(str(path)) == 0:
                        break
                assert process.poll() is None, "redis-server did not start"
                assert time.monotonic() < deadline, "redis-server does not listen"
                time.sleep(0.01)  # another process: there is no event to wait for
            yield
        finally:
            process.kill()


@pytest.fixture(scope="module")
def old_redis(redis_7_0: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pr-") as directory:
        path = Path(directory) / "s"
        command = [redis_7_0, "--port", "0", "--unixsocket", str(path), "--dir", directory, "--save", ""]
        with _running(command, path):
            yield path


@pytest.fixture(params=["in-process", "valkey", "redis-7.0"])
def redis_kind(request: pytest.FixtureRequest) -> Any:
    if request.param == "valkey":
        return request.getfixturevalue("shared_valkey").options
    if request.param == "redis-7.0":
        return RedisOptions(path=str(request.getfixturevalue("old_redis")), retry_for=0)
    return None


@pytest.fixture
async def any_redis(redis_kind: RedisOptions | None) -> AsyncIterator[Redis]:
    if redis_kind is not None:
        async with Redis(redis_kind) as made:
            await made.flushall()
            yield made
        return
    async with InProcessRedis() as server, Redis(RedisOptions(), connect=server.connect) as made:
        yield made
