"""What the tests of the desk's routes and commands share: a real database behind a system in memory, with letters."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

from penstock.actors.dead_letter import DeadLetter
from penstock.actors.declaring import declare_groups
from penstock.actors.ledger import Ledger
from penstock.actors.letters import LetterDesk
from penstock.actors.store import PostgresStore
from penstock.runtime.postgres import Pool, PostgresOptions


class LetterStore:
    """A store, and what dies in it."""

    def __init__(self, pool: Pool) -> None:
        self.store = PostgresStore(pool)
        self.deaths = 0

    async def bury(self, why: str = "no funds", **facts: Any) -> int:
        self.deaths += 1
        given: dict[str, Any] = {
            "stream": "order-events",
            "entry_id": f"{self.deaths}-0",
            "consumer_group": "billing",
            "consumer": "billing-1",
            "reason": "max_deliveries",
            "fields": {"eventType": "ORDER", "data": '{"orderId":"o-1","password":"hunter2"}'},
            "deliveries": 5,
            "event_id": uuid4(),
            "event_type": "ORDER",
        }
        async with self.store.transaction() as transaction:
            await transaction.bury(DeadLetter.of(ValueError(why), **{**given, **facts}))
            row = await (await transaction.connection.execute("select max(id) from penstock_dead_letter")).fetchone()
        return int(row[0])

    async def bury_many(self, count: int) -> list[int]:
        return [await self.bury() for _ in range(count)]


@asynccontextmanager
async def desk_over(database: PostgresOptions, deployment: Any) -> AsyncIterator[Pool]:
    """The deployment has a desk and a ledger over `database`, and a group."""
    deployment.system.streams["order-events"].group("billing")
    async with Pool(database) as pool:
        await declare_groups(pool, deployment.system)
        deployment.letters = LetterDesk(pool, deployment.system)
        deployment.ledger = Ledger(pool, deployment.system, lambda: None, deployment.gates["redis"])  # type: ignore[arg-type, return-value]
        yield pool
