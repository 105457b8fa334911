"""What is written down of a declaration at each start: whoever is frozen meanwhile keeps no other from starting."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

import psycopg
import pytest
import trio

from penstock.actors.declaring import declare_groups
from penstock.actors.store import PostgresStore
from penstock.actors.stream_table import misdeclared
from penstock.actors.system import System
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

ENDED = (PostgresUnavailable, psycopg.errors.IdleInTransactionSessionTimeout)


def shop() -> System:
    system = System("shop")
    system.stream("orders").group("payments")
    return system


class _FrozenConnection:
    """Its process is frozen behind its first insert, until `thawed`."""

    def __init__(self, connection: Any, frozen: trio.Event, thawed: trio.Event) -> None:
        self._connection, self._frozen, self._thawed = connection, frozen, thawed

    def transaction(self) -> AbstractAsyncContextManager[Any]:
        made: AbstractAsyncContextManager[Any] = self._connection.transaction()
        return made

    async def execute(self, statement: str, *values: Any) -> None:
        await self._connection.execute(statement, *values)
        if statement.lstrip().startswith("insert"):
            self._frozen.set()
            await self._thawed.wait()


class _FrozenPool:
    def __init__(self, pool: Pool) -> None:
        self._pool, self.frozen, self.thawed = pool, trio.Event(), trio.Event()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[_FrozenConnection]:
        async with self._pool.connection() as connection:
            yield _FrozenConnection(connection, self.frozen, self.thawed)


async def test_who_is_frozen_while_it_declares_its_groups_keeps_nobody_from_it_for_ever(
    database: PostgresOptions,
) -> None:
    async with Pool(database) as pool, trio.open_nursery() as nursery:
        frozen = _FrozenPool(pool)

        async def declare() -> None:
            with pytest.raises(ENDED):
                await declare_groups(cast("Pool", frozen), shop(), abandon_after=1.0)

        nursery.start_soon(declare)
        await frozen.frozen.wait()
        with trio.fail_after(20):
            await declare_groups(pool, shop())
        frozen.thawed.set()


async def test_who_is_frozen_while_it_enters_its_streams_keeps_nobody_from_it_for_ever(
    database: PostgresOptions,
) -> None:
    async with Pool(database) as pool:
        frozen, others = PostgresStore(pool, abandon_after=1.0), PostgresStore(pool)
        with pytest.raises(ENDED):
            async with frozen.transaction() as transaction:
                assert await frozen.streams.declare(transaction, "orders", 3) == 3
                with trio.fail_after(20):
                    assert await misdeclared(others, shop()) == ""
        async with others.transaction() as transaction:
            assert await others.streams.declare(transaction, "orders", 3) == 1
