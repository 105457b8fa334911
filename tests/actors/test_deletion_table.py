"""The table of deletions, and what it explains of losses, in memory and in PostgreSQL alike."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from attrs import evolve

from penstock.actors.deletion_table import Deletion, Explanation
from penstock.actors.losses import Loss
from penstock.actors.store import Store

DELETION = Deletion(
    stream="orders",
    entry_id="1-20",
    event_id=UUID(int=7),
    event_type="PLACED",
    unread_by=("payment",),
    pending_by=("stock",),
    deleted_by="ann@desk",
)
LOSS = Loss(group="payment", stream="orders", after_id="1-10", before_id="1-51", entries=40, counted_from=10)


async def _add(store: Store, **changes: Any) -> None:
    async with store.transaction() as transaction:
        await store.deletions.add(transaction, [evolve(DELETION, **changes)])


async def _explained(store: Store, **changes: Any) -> Explanation:
    async with store.transaction() as transaction:
        return await store.deletions.explain(transaction, evolve(LOSS, **changes))


async def test_a_loss_is_explained_by_what_was_deleted_unread_between_its_ends(store: Store) -> None:
    assert await _explained(store) == Explanation(0, None)
    await _add(store)
    await _add(store, entry_id="1-9")  # not as text: before 1-10
    await _add(store, entry_id="1-50", deleted_by="bob@desk")
    await _add(store, entry_id="1-51")
    await _add(store, entry_id="1-30", stream="others")
    assert await _explained(store) == Explanation(2, "ann@desk, bob@desk")
    assert await _explained(store, group="stock") == Explanation(0, None), "it had been given it"


async def test_what_is_written_twice_is_there_once_as_it_was_last(store: Store) -> None:
    await _add(store)
    await _add(store, unread_by=(), deleted_by="bob@desk")
    assert await _explained(store) == Explanation(0, None)


async def test_a_recorded_loss_says_who_deleted_it(store: Store) -> None:
    async with store.transaction() as transaction:
        await store.losses.add(transaction, LOSS)
    await _add(store)
    (loss,) = await store.losses.recent(10)
    assert (loss.entries, loss.deleted, loss.deleted_by) == (40, 1, "ann@desk")
