"""The table of replays, in memory and in PostgreSQL alike."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from penstock.actors.replay_table import Replay, ReplayState
from penstock.actors.store import Store

ME, OTHER = uuid4(), uuid4()


async def _add(store: Store, **facts: Any) -> Replay:
    given = {"system": "shop", "stream": "orders", "from_id": "1-0", "to_id": "9-0", "consumer_group": "payment"}
    replay = Replay(**{**given, **facts})
    async with store.transaction() as transaction:
        await store.replays.add(transaction, replay)
    return replay


async def _claim(store: Store, worker: UUID, seconds: float = 30.0, system: str = "shop") -> Replay | None:
    async with store.transaction() as transaction:
        return await store.replays.claim(transaction, system, worker, seconds)


async def _get(store: Store, replay: Replay) -> Replay:
    async with store.transaction() as transaction:
        found = await store.replays.get(transaction, replay.id)
    assert found is not None
    return found


async def test_an_order_is_as_it_was_given(store: Store) -> None:
    given = await _add(store, rate=2.5, total=7, ordered_by="somebody", target_stream=None)
    found = await _get(store, given)
    assert found.ordered_at is not None
    assert (found.rate, found.total, found.ordered_by, found.consumer_group) == (2.5, 7, "somebody", "payment")
    assert (found.state, found.cursors, found.replayed) == (ReplayState.WAITING, {}, 0)


async def test_the_oldest_order_is_claimed_and_nobody_else_gets_it(store: Store) -> None:
    first, second = await _add(store), await _add(store)
    claimed = await _claim(store, ME)
    assert claimed is not None
    assert (claimed.id, claimed.state) == (first.id, ReplayState.RUNNING)
    other = await _claim(store, OTHER)
    assert other is not None
    assert other.id == second.id
    assert await _claim(store, uuid4()) is None


async def test_who_has_an_order_may_claim_it_again(store: Store) -> None:
    given = await _add(store)
    for _ in range(2):
        claimed = await _claim(store, ME)
        assert claimed is not None
        assert claimed.id == given.id


async def test_an_order_whose_worker_is_silent_is_taken_over(store: Store) -> None:
    given = await _add(store)
    await _claim(store, ME, seconds=-1.0)
    taken = await _claim(store, OTHER)
    assert taken is not None
    assert taken.id == given.id
    async with store.transaction() as transaction:
        assert not await store.replays.advance(transaction, taken, ME, {"orders": "1-0"}, 1)
        assert await store.replays.advance(transaction, taken, OTHER, {"orders": "1-0"}, 1)


async def test_a_released_order_is_anybodys(store: Store) -> None:
    given = await _add(store)
    await _claim(store, ME)
    async with store.transaction() as transaction:
        await store.replays.release(transaction, given.id, OTHER)
    assert await _claim(store, OTHER) is None
    async with store.transaction() as transaction:
        await store.replays.release(transaction, given.id, ME)
    assert await _claim(store, OTHER) is not None


async def test_progress_is_added_up(store: Store) -> None:
    given = await _add(store)
    await _claim(store, ME)
    for entry_id in ("3-0", "5-0"):
        async with store.transaction() as transaction:
            assert await store.replays.advance(transaction, given, ME, {"orders": entry_id}, 2)
    found = await _get(store, given)
    assert (found.cursors, found.replayed) == ({"orders": "5-0"}, 4)


async def test_a_settled_order_is_neither_claimed_nor_advanced_nor_settled_again(store: Store) -> None:
    given = await _add(store)
    await _claim(store, ME)
    async with store.transaction() as transaction:
        assert await store.replays.finish(transaction, given.id, ReplayState.CANCELLED, None)
        assert not await store.replays.finish(transaction, given.id, ReplayState.DONE, None)
        assert not await store.replays.advance(transaction, given, ME, {}, 1)
    assert await _claim(store, ME) is None
    found = await _get(store, given)
    assert found.state is ReplayState.CANCELLED
    assert found.finished_at is not None


async def test_another_systems_orders_are_not_ours(store: Store) -> None:
    await _add(store, system="other")
    assert await _claim(store, ME) is None
    async with store.transaction() as transaction:
        assert await store.replays.recent(transaction, "shop", 10) == []


async def test_the_newest_come_first_and_no_more_than_asked_for(store: Store) -> None:
    given = [await _add(store) for _ in range(3)]
    async with store.transaction() as transaction:
        found = await store.replays.recent(transaction, "shop", 2)
    # In memory they may be of the same moment.
    assert len(found) == 2
    assert {replay.id for replay in found} <= {replay.id for replay in given}


async def test_why_it_failed_is_kept(store: Store) -> None:
    given = await _add(store)
    async with store.transaction() as transaction:
        await store.replays.finish(transaction, given.id, ReplayState.FAILED, "WRONGTYPE \x00 no stream")
    found = await _get(store, given)
    assert found.error is not None
    assert found.error.startswith("WRONGTYPE")
