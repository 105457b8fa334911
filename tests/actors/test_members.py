"""The contract of `MemberTable`, held against the one in memory and the one on PostgreSQL alike."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from penstock.actors.member_table import Member, MemberView
from penstock.actors.store import Store


def member(process: UUID, **facts: Any) -> Member:
    given = {"system": "shop", "instance": "a", "host": "h", "pid": 1, "version": "1", "groups": ("pay@orders",)}
    return Member(process=process, **{**given, **facts})


async def beat(store: Store, someone: Member) -> None:
    async with store.transaction() as transaction:
        await store.members.beat(transaction, someone)


async def everybody(store: Store) -> list[MemberView]:
    async with store.transaction() as transaction:
        return await store.members.all(transaction)


async def test_who_beats_is_known_with_what_it_said_last(store: Store) -> None:
    one, other = member(uuid4()), member(uuid4(), instance="b", groups=())
    await beat(store, one)
    await beat(store, other)
    await beat(store, member(one.process, groups=("a@b", "c@d")))
    first, second = await everybody(store)
    assert first.member == member(one.process, groups=("a@b", "c@d"))
    assert second.member == other
    assert 0 <= first.seen_ago <= first.started_ago


async def test_who_leaves_is_not_known_any_more(store: Store) -> None:
    one = member(uuid4())
    await beat(store, one)
    async with store.transaction() as transaction:
        await store.members.leave(transaction, one.process)
        await store.members.leave(transaction, uuid4())
    assert await everybody(store) == []


async def test_only_who_is_silent_is_forgotten(store: Store) -> None:
    await beat(store, member(uuid4()))
    async with store.transaction() as transaction:
        assert await store.members.forget(transaction, 3600.0) == 0
        assert await store.members.forget(transaction, -1.0) == 1
    assert await everybody(store) == []
