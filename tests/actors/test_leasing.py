"""Who should have which partition: decided by each process for itself, and agreed upon within a few looks."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from penstock.actors.leasing import Plan, plan

A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)


def keys(count: int) -> list[str]:
    return [f"{{orders:{number}}}" for number in range(count)]


def owners(*who: UUID | None) -> dict[str, UUID | None]:
    return dict(zip(keys(len(who)), who, strict=True))


def test_who_is_alone_takes_everything() -> None:
    assert plan("g", A, owners(None, None, None), [A]) == Plan((), tuple(keys(3)), is_short=False)


def test_who_is_not_counted_yet_counts_itself() -> None:
    assert plan("g", B, owners(A, A), [A]).release == ()
    assert plan("g", B, owners(None, None), [A]).take == (keys(1)[0],)


def test_what_is_too_much_is_given_back_and_not_before() -> None:
    assert plan("g", A, owners(A, A, A, A), [A, B]).release == tuple(keys(4)[2:])
    assert plan("g", B, owners(A, A, A, A), [A, B]) == Plan((), (), is_short=True)
    assert plan("g", A, owners(A, A, None, None), [A, B]) == Plan((), (), is_short=False)


def test_what_is_left_over_stays_with_those_who_have_it() -> None:
    for me in (A, B):
        assert plan("g", me, owners(A, A, B), [A, B]) == Plan((), (), is_short=False)
        assert plan("g", me, owners(A, B, B), [A, B]) == Plan((), (), is_short=False)


def test_there_may_be_more_processes_than_partitions() -> None:
    assert plan("g", C, owners(A, B), [A, B, C]) == Plan((), (), is_short=False)


def test_what_a_process_that_is_gone_had_is_nobodys_until_its_lease_ends() -> None:
    assert plan("g", A, owners(A, B), [A]) == Plan((), (), is_short=True)
    assert plan("g", A, owners(A, None), [A]).take == (keys(2)[1],)


def test_who_gets_one_more_is_not_the_same_in_every_group() -> None:
    favoured = {group: bool(plan(group, A, owners(None), [A, B]).take) for group in map(str, range(20))}
    assert set(favoured.values()) == {True, False}
    for group, is_mine in favoured.items():
        assert bool(plan(group, B, owners(None), [A, B]).take) is not is_mine


@pytest.mark.parametrize("seed", range(30))
def test_processes_that_come_and_go_agree_and_then_nothing_moves(seed: int) -> None:
    """They look one after the other, in any order, each at what is there."""
    chance = random.Random(seed)
    everybody = [UUID(int=number) for number in range(1, 6)]
    table = dict.fromkeys(keys(chance.randint(1, 12)), chance.choice([None, everybody[0]]))
    members = chance.sample(everybody, chance.randint(1, 5))
    table = {key: owner if owner in members else None for key, owner in table.items()}
    moves: list[int] = []
    for _ in range(4):
        moved = 0
        for me in chance.sample(members, len(members)):
            decided = plan("g", me, dict(table), members)
            for key in decided.release:
                table[key], moved = None, moved + 1
            for key in decided.take:
                assert table[key] is None
                table[key], moved = me, moved + 1
        moves.append(moved)
    assert moves[-1] == 0
    held = [sum(owner == each for owner in table.values()) for each in members]
    assert sum(held) == len(table)
    assert max(held) - min(held) <= 1
