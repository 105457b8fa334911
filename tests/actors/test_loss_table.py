"""The table of losses, in memory and in PostgreSQL alike."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from penstock.actors.losses import Loss
from penstock.actors.store import Store

LOSS = Loss(group="payment", stream="orders", after_id="1-10", before_id="1-51", entries=40, counted_from=10)


async def _add(store: Store, **changes: Any) -> bool:
    async with store.transaction() as transaction:
        return await store.losses.add(transaction, evolve(LOSS, **changes))


async def _recent(store: Store, limit: int = 10) -> list[tuple[str, str, int | None]]:
    return [(loss.after_id, loss.before_id, loss.entries) for loss in await store.losses.recent(limit)]


async def test_a_loss_is_news_once(store: Store) -> None:
    assert await _add(store)
    assert not await _add(store)
    assert await _recent(store) == [("1-10", "1-51", 40)]


async def test_a_loss_that_has_grown_is_news_and_still_one(store: Store) -> None:
    assert await _add(store)
    assert await _add(store, before_id="1-71", entries=60)
    assert await _recent(store) == [("1-10", "1-71", 60)]


async def test_another_loss_at_the_same_place_is_another(store: Store) -> None:
    assert await _add(store)
    assert await _add(store, before_id="1-71", entries=20, counted_from=50)
    assert len(await _recent(store)) == 2


async def test_a_loss_of_unknown_size_is_kept_once(store: Store) -> None:
    assert await _add(store, entries=None, counted_from=-1)
    assert not await _add(store, entries=None, counted_from=-1)
    assert await _recent(store) == [("1-10", "1-51", None)]


async def test_the_newest_come_first_and_no_more_than_asked_for(store: Store) -> None:
    for number in range(3):
        await _add(store, after_id=f"{number}-0")
    assert len(await _recent(store, 2)) == 2
