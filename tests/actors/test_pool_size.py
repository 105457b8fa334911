"""How many connections a system's pool has, where nobody has said."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.actors.backends import CONNECTIONS, MOST, SPARE, Backends
from penstock.actors.settings import ActorSettings
from penstock.actors.system import System
from penstock.runtime.settings import PostgresSettings, RedisSettings

NOWHERE: Any = None


def _size(system: System | None, pool_size: int | None = None) -> int:
    postgres = PostgresSettings(url="postgresql://nobody@127.0.0.1:1/none", pool_size=pool_size)
    settings = ActorSettings(redis=RedisSettings(url="redis://127.0.0.1:1"), postgres=postgres)
    pool = Backends.of(settings, NOWHERE, system).pool
    assert pool is not None
    return pool.options.max_size


def _with_workers(number: int) -> System:
    system = System("shop")
    system.stream("orders").group("pay", workers=number - 1)
    system.stream("payments").group("elsewhere", workers=30, enabled=False)
    system.queue("mails", workers=1)
    return system


@pytest.mark.parametrize(
    ("workers", "size"), [(2, CONNECTIONS), (CONNECTIONS, CONNECTIONS + SPARE), (20, 20 + SPARE), (70, MOST)]
)
def test_workers_that_wait_leave_connections_for_others(workers: int, size: int) -> None:
    assert _size(_with_workers(workers)) == size


def test_what_is_set_holds() -> None:
    assert _size(_with_workers(20), pool_size=3) == 3


def test_without_a_system_there_are_a_few() -> None:
    assert _size(None) == CONNECTIONS
