"""What the entry program decides, as tables: nodes in every state in which it may find them, and what it then does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attrs import evolve
from cluster_plan import NotYet, Order, Refused, Row, View, decide

from penstock.runtime.redis.slots import SLOTS

THIRDS = (range(5461), range(5461, 10922), range(10922, SLOTS))


def row(
    number: int, flags: str = "master", *, slots: range = range(0), master: str = "-", connected: bool = True
) -> Row:
    address = f"10.0.0.{number}:700{number}@1700{number},redis-{number}"
    return Row(f"id-{number}", address, frozenset(flags.split(",")), master, connected, frozenset(slots))


def view(number: int, *, me: Row | None = None, others: tuple[Row, ...] = (), state: str = "ok", keys: int = 0) -> View:
    me = me or row(number)
    me = evolve(me, flags=me.flags | {"myself"})
    rows = {each.id: each for each in (me, *others)}
    return View(f"redis-{number}:700{number}", f"10.0.0.{number}", 7000 + number, me, rows, state, keys, True)


def cluster(*rows: Row, state: str = "ok", named: int | None = None) -> list[View]:
    """A cluster in which everybody knows everybody; the first `named` of them are looked at."""
    numbers = [int(each.id.removeprefix("id-")) for each in rows]
    return [
        view(number, me=me, others=tuple(each for each in rows if each is not me), state=state)
        for number, me in list(zip(numbers, rows, strict=True))[:named]
    ]


def in_order() -> list[View]:
    return cluster(*(row(number, slots=THIRDS[number - 1]) for number in (1, 2, 3)))


def with_replicas() -> list[View]:
    masters = [row(number, slots=THIRDS[number - 1]) for number in (1, 2, 3)]
    return cluster(*masters, *(row(number + 3, "slave", master=f"id-{number}") for number in (1, 2, 3)))


def commands(orders: list[Order]) -> list[tuple[str, ...]]:
    return [(order.name, *map(str, order.command[1:])) for order in orders]


def test_new_nodes_are_introduced_by_the_first() -> None:
    assert commands(decide([view(1), view(2), view(3)], 0)) == [
        ("redis-1:7001", "MEET", "10.0.0.2", "7002"),
        ("redis-1:7001", "MEET", "10.0.0.3", "7003"),
    ]


def test_when_the_first_knows_all_the_others_are_told_of_each_other() -> None:
    first = view(1, others=(row(2), row(3)))
    views = [first, view(2, others=(row(1),)), view(3, others=(row(1),))]
    assert commands(decide(views, 0)) == [("redis-2:7002", "MEET", "10.0.0.3", "7003")]


def test_all_slots_are_shared_out_evenly_without_a_rest() -> None:
    assert commands(decide(cluster(row(1), row(2), row(3), state="fail"), 0)) == [
        ("redis-1:7001", "ADDSLOTSRANGE", "0", "5460"),
        ("redis-2:7002", "ADDSLOTSRANGE", "5461", "10921"),
        ("redis-3:7003", "ADDSLOTSRANGE", "10922", "16383"),
    ]


def test_with_replicas_only_the_first_half_get_slots() -> None:
    orders = decide(cluster(*(row(number) for number in range(1, 7)), state="fail"), 1)
    assert [order.name for order in orders] == ["redis-1:7001", "redis-2:7002", "redis-3:7003"]


def test_only_slots_that_nobody_has_are_given_out_and_to_whom_they_were_meant_for() -> None:
    views = cluster(row(1, slots=range(100, 5461)), row(2, slots=range(5461, 10000)), row(3, slots=THIRDS[2]))
    assert commands(decide(views, 0)) == [
        ("redis-1:7001", "ADDSLOTSRANGE", "0", "99"),
        ("redis-2:7002", "ADDSLOTSRANGE", "10000", "10921"),
    ]


def test_slots_meant_for_a_node_that_is_a_replica_now_go_to_its_master() -> None:
    short = row(4, slots=range(5460))
    others = [row(2, slots=THIRDS[1]), row(3, slots=THIRDS[2])]
    replicas = [row(5, "slave", master="id-2"), row(6, "slave", master="id-3")]
    views = cluster(row(1, "slave", master="id-4"), *others, short, *replicas)
    assert commands(decide(views, 1)) == [("redis-4:7004", "ADDSLOTSRANGE", "5460", "5460")]


def test_nodes_without_slots_become_replicas_one_for_each_master_in_order() -> None:
    views = cluster(*(row(number, slots=THIRDS[number - 1]) for number in (1, 2, 3)), row(4), row(5), row(6))
    assert commands(decide(views, 1)) == [
        ("redis-4:7004", "REPLICATE", "id-1"),
        ("redis-5:7005", "REPLICATE", "id-2"),
        ("redis-6:7006", "REPLICATE", "id-3"),
    ]


def test_a_new_node_becomes_a_replica_of_the_master_that_has_none() -> None:
    masters = [row(number, slots=THIRDS[number - 1]) for number in (1, 2, 3)]
    replicas = [row(4, "slave", master="id-1"), row(6, "slave", master="id-3")]
    views = cluster(*masters, replicas[0], row(5), replicas[1])
    assert commands(decide(views, 1)) == [("redis-5:7005", "REPLICATE", "id-2")]


@pytest.mark.parametrize("make", [in_order, with_replicas])
def test_what_is_in_order_is_left_alone(make: Callable[[], list[View]]) -> None:
    views = make()
    assert decide(views, int(len(views) == 6)) == []


def test_roles_that_a_failover_changed_are_kept() -> None:
    changed = cluster(
        row(1, "slave", master="id-4"),
        row(2, slots=THIRDS[1]),
        row(3, slots=THIRDS[2]),
        row(4, slots=THIRDS[0]),
        row(5, "slave", master="id-2"),
        row(6, "slave", master="id-3"),
    )
    assert decide(changed, 1) == []
    assert decide(changed[:3], 0) == []  # those who know of three nodes only


@pytest.mark.parametrize("flags", ["master,fail", "master,fail?", "master,noaddr"])
def test_a_node_at_another_address_is_introduced_anew(flags: str) -> None:
    views = in_order()
    views[0] = evolve(views[0], rows={**views[0].rows, "id-2": row(2, flags, slots=THIRDS[1])})
    views[1] = evolve(views[1], ip="10.0.0.77", rows={**views[1].rows, "id-1": row(1, connected=False)})
    assert commands(decide(views, 0)) == [("redis-1:7001", "MEET", "10.0.0.77", "7002")]


# Waiting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"state": "fail"}, "cluster_state is fail on redis-2:7002"),
        ({"in_step": False}, "the replica redis-2:7002 is not in step"),
    ],
)
def test_it_waits_for_every_node_to_be_well(change: dict[str, object], said: str) -> None:
    views = in_order()
    views[1] = evolve(views[1], **change)
    with pytest.raises(NotYet, match=said):
        decide(views, 0)


def test_slots_of_a_node_that_is_away_are_not_given_to_another() -> None:
    """It may come back with the data."""
    gone = row(2, "master,fail", slots=THIRDS[1], connected=False)
    views = [
        view(1, me=row(1, slots=THIRDS[0]), others=(gone, row(3, slots=THIRDS[2]), row(9)), state="fail"),
        view(3, me=row(3, slots=THIRDS[2]), others=(gone, row(1, slots=THIRDS[0]), row(9)), state="fail"),
        view(9, me=row(9), others=(gone, row(1, slots=THIRDS[0]), row(3, slots=THIRDS[2])), state="fail"),
    ]
    with pytest.raises(NotYet, match=r"slots 5461-10921 belong to node id-2 \(10.0.0.2:.* is away"):
        decide(views, 0)


def test_it_waits_until_all_agree() -> None:
    views = in_order()
    moved = evolve(views[2].rows["id-1"], slots=frozenset(range(5460)))
    views[2] = evolve(views[2], rows={**views[2].rows, "id-1": moved})
    with pytest.raises(NotYet, match="do not agree"):
        decide(views, 0)


# Refusing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [range(0), range(3), range(SLOTS)])
def test_a_node_with_data_outside_of_a_cluster_is_refused(slots: range) -> None:
    """Started with data and without its nodes.conf, it takes the slots of its keys by itself."""
    with pytest.raises(Refused, match="redis-2:7002 is in no cluster, and holds 7 keys"):
        decide([view(1), view(2, me=row(2, slots=slots), keys=7), view(3)], 0)


def test_two_clusters_are_never_joined() -> None:
    with pytest.raises(Refused, match=r"different clusters \(redis-1:7001 \| redis-2:7002\)"):
        decide([view(1, others=(row(8),)), view(2, others=(row(9),)), view(3)], 0)


def test_a_node_that_is_a_cluster_by_itself_counts_as_one() -> None:
    with pytest.raises(Refused, match="different clusters"):
        decide([view(1, me=row(1, slots=range(SLOTS))), view(2, others=(row(9),)), view(3)], 0)


def test_new_nodes_are_not_let_into_a_cluster_that_is_mostly_elsewhere() -> None:
    foreign = cluster(row(2, slots=THIRDS[1]), row(8, slots=THIRDS[0]), row(9, slots=THIRDS[2]), named=1)
    with pytest.raises(Refused, match="redis-2:7002 belongs to a cluster most of whose slots"):
        decide([view(1), *foreign, view(3)], 0)


def test_a_new_node_is_let_into_the_cluster_that_is_meant() -> None:
    gone = row(8, "master,fail", connected=False)
    ours = cluster(row(1, slots=THIRDS[0]), row(3, slots=THIRDS[2]), gone, row(5, slots=THIRDS[1]), named=2)
    assert commands(decide([ours[0], view(2), ours[1]], 0)) == [("redis-1:7001", "MEET", "10.0.0.2", "7002")]


def test_one_node_under_two_names_is_refused() -> None:
    one = view(1)
    with pytest.raises(Refused, match="are the same node"):
        decide([one, evolve(one, name="also:7001"), view(3)], 0)


# Reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "slots", "usable"),
    [
        ("a 10.0.0.1:7001@17001,redis-1 myself,master - 0 0 1 connected 0-5460", 5461, True),
        ("a 10.0.0.1:7001@17001,redis-1 master - 0 0 1 connected 0-1 7 [93->-b] [77-<-c]", 3, True),
        ("a 10.0.0.1:7001@17001,redis-1 slave b 0 0 1 connected", 0, True),
        ("a :0@0 master,noaddr - 0 0 1 disconnected 5", 1, False),
        ("a 10.0.0.1:7001@17001,,tls-port=0,shard-id=x master,fail? - 0 0 1 connected", 0, False),
        ("a :7001@17001,redis-1 myself,master - 0 0 0 connected", 0, True),
    ],
)
def test_lines_of_cluster_nodes(line: str, slots: int, usable: bool) -> None:
    read = Row.parse(line)
    assert (len(read.slots), read.usable) == (slots, usable)
    assert read.master == ("b" if "slave" in line else "-")
