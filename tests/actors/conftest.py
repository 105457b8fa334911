"""Real servers for the actors' tests, started by the fixtures of the links' own tests, and a migrated database."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from penstock.actors import migrations
from penstock.runtime.postgres import Pool, PostgresOptions, migrate


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
