"""The contract of `LeaseTable`, held against the one in memory and the one on PostgreSQL alike."""

from __future__ import annotations

from uuid import uuid4

import psycopg
import pytest
import trio

from penstock.actors.lease_table import Lease, LeaseLost, LeaseView
from penstock.actors.store import InboxEntry, PostgresStore, Store
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

GROUP, KEY = "payments", "{orders:0}"
ONE, OTHER = uuid4(), uuid4()


async def take(store: Store, owner: object = ONE, within: float = 60.0) -> Lease | None:
    async with store.transaction() as transaction:
        return await store.leases.take(transaction, GROUP, KEY, owner, within)  # type: ignore[arg-type]


async def hold(store: Store, lease: Lease) -> bool:
    try:
        async with store.transaction() as transaction:
            await store.leases.hold(transaction, lease)
    except LeaseLost:
        return False
    return True


async def view(store: Store) -> LeaseView:
    async with store.transaction() as transaction:
        (row,) = await store.leases.all(transaction)
    return row


async def test_a_partition_has_one_owner_at_a_time(store: Store) -> None:
    first = await take(store)
    assert first == Lease(GROUP, KEY, ONE, 1)
    assert await take(store, OTHER) is None
    assert await hold(store, first)
    assert not await hold(store, Lease(GROUP, KEY, OTHER, 1))
    assert not (await view(store)).is_free


async def test_each_owner_has_a_greater_epoch_and_the_one_before_can_commit_nothing(store: Store) -> None:
    first = await take(store, within=0.0)
    assert first is not None
    second = await take(store, OTHER)
    assert second == Lease(GROUP, KEY, OTHER, 2)
    assert not await hold(store, first)
    assert await hold(store, second)


@pytest.mark.parametrize(("above", "expected"), [(0, 2), (1, 2), (57, 58)])
async def test_an_epoch_may_be_asked_for_that_is_above_another(store: Store, above: int, expected: int) -> None:
    await take(store, within=0.0)
    async with store.transaction() as transaction:
        lease = await store.leases.take(transaction, GROUP, KEY, OTHER, 60.0, above=above)
    assert lease == Lease(GROUP, KEY, OTHER, expected)
    assert await hold(store, lease)


async def test_a_lease_that_has_ended_holds_nothing_until_it_is_renewed(store: Store) -> None:
    lease = await take(store, within=0.0)
    assert lease is not None
    assert (await view(store)).is_free
    assert not await hold(store, lease)
    async with store.transaction() as transaction:
        assert await store.leases.renew(transaction, [lease], 60.0) == [lease]
    assert await hold(store, lease)
    assert 50 < (await view(store)).expires_in <= 60


async def test_nobody_renews_or_releases_what_somebody_else_has(store: Store) -> None:
    first = await take(store, within=0.0)
    second = await take(store, OTHER)
    assert first is not None
    assert second is not None
    async with store.transaction() as transaction:
        assert await store.leases.renew(transaction, [first, second], 60.0) == [second]
        assert not await store.leases.release(transaction, first)
    assert await hold(store, second)


async def test_what_is_released_is_free_at_once_and_the_next_epoch_is_greater(store: Store) -> None:
    first = await take(store)
    assert first is not None
    async with store.transaction() as transaction:
        assert await store.leases.release(transaction, first)
    released = await view(store)
    assert (released.owner, released.epoch, released.is_free) == (None, 1, True)
    assert not await hold(store, first)
    second = await take(store, OTHER)
    assert second is not None
    assert second.epoch == 2


async def test_the_same_owner_takes_its_own_partition_anew(store: Store) -> None:
    first, second = await take(store), await take(store)
    assert first is not None
    assert second is not None
    assert (first.epoch, second.epoch) == (1, 2)
    assert not await hold(store, first)


async def test_nobody_takes_a_partition_while_a_transaction_that_holds_it_is_open(store: Store) -> None:
    """Not even when its lease has ended or was given back meanwhile; renewing does not wait for it."""
    lease = await take(store, within=60.0)
    assert lease is not None
    async with store.transaction() as handling:
        await store.leases.hold(handling, lease)
        async with store.transaction() as another_worker:
            await store.leases.hold(another_worker, lease)
        with trio.fail_after(30):
            async with store.transaction() as renewing:
                assert await store.leases.renew(renewing, [lease], 0.0) == [lease]
        assert await take(store, OTHER) is None
        async with store.transaction() as releasing:
            assert await store.leases.release(releasing, lease)
        assert await take(store, OTHER) is None
    taken = await take(store, OTHER)
    assert taken is not None


async def test_what_is_rolled_back_was_not_taken(store: Store) -> None:
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as transaction:
            await store.leases.take(transaction, GROUP, KEY, ONE, 60.0)
            raise ZeroDivisionError
    assert await take(store, OTHER) == Lease(GROUP, KEY, OTHER, 1)


async def test_a_transaction_of_a_frozen_process_holds_no_partition_for_ever(
    database: PostgresOptions,
) -> None:
    """The server ends it when it has heard nothing of it for longer than a handler may take."""
    async with Pool(database) as pool:
        frozen, others = PostgresStore(pool, abandon_after=1.0), PostgresStore(pool)
        lease = await take(others, within=60.0)
        assert lease is not None
        with pytest.raises((PostgresUnavailable, psycopg.errors.IdleInTransactionSessionTimeout)):
            async with frozen.transaction() as transaction:
                await frozen.leases.hold(transaction, lease)
                assert await hold(others, lease)
                async with others.transaction() as releasing:
                    assert await others.leases.release(releasing, lease)
                taken = None
                with trio.fail_after(30):
                    while taken is None:
                        taken = await take(others, OTHER)
                # It goes on, and tries to commit.
        assert transaction.is_lost, "and so no event is blamed for it"
        assert await hold(others, taken)


async def test_a_transaction_of_a_frozen_process_blocks_no_event_for_ever(database: PostgresOptions) -> None:
    async with Pool(database) as pool:
        frozen, others = PostgresStore(pool, abandon_after=1.0), PostgresStore(pool)
        entries = [InboxEntry(uuid4(), KEY, "1-0")]
        with pytest.raises((PostgresUnavailable, psycopg.errors.IdleInTransactionSessionTimeout)):
            async with frozen.transaction() as transaction:
                assert len(await transaction.first_time(GROUP, entries)) == 1
                with trio.fail_after(30):
                    async with others.transaction() as another:
                        assert len(await another.first_time(GROUP, entries)) == 1
