"""What the nodes of a cluster say, and which of them is believed."""

from __future__ import annotations

import pytest

from penstock.actors.cluster_view import NodeAccount, NodeView, owners_of, read_account, view_of

INFO = b"cluster_enabled:1\r\ncluster_state:ok\r\ncluster_slots_assigned:16384\r\ncluster_current_epoch:5\r\n"
NODES = b"""\
bbb 127.0.0.1:7002@17002 master - 0 1795903436199 2 connected 5461-10922
eee 127.0.0.1:7005@17005,redis-node-5 slave bbb 0 1795903436199 2 connected
aaa :7001@17001 myself,master - 0 0 1 connected 0-5459 5460 [5459->-bbb] [77-<-ccc]
ccc 127.0.0.1:7003@17003 master,fail - 1795903436199 1795903430000 3 disconnected 10923-16383
ddd 127.0.0.1:7004@17004 master,fail? - 1795903436199 1795903430000 0 connected
fff :0@0 master,noaddr - 1795903436199 1795903430000 0 disconnected
ggg 127.0.0.1:7007@17007 handshake - 1795903436199 0 0 disconnected
"""
SLOTS = [
    [0, 5460, [b"", 7001, b"aaa", {}]],
    [5461, 10922, [b"redis-node-2", 7002, b"bbb", {}], [b"?", 7005, b"eee", {}]],
    [10923, 16383, [None, 7003, b"ccc", []]],
]


def account() -> NodeAccount:
    return read_account("10.0.0.1", INFO, NODES, SLOTS)


def test_a_nodes_account_names_each_as_clients_reach_it() -> None:
    seen = account()
    assert (seen.state, seen.epoch, seen.me) == ("ok", 5, "aaa")
    assert {node.id: node.address for node in seen.nodes} == {
        "aaa": "10.0.0.1:7001",  # it does not know its own address, so it is the one that was asked
        "bbb": "redis-node-2:7002",
        "ccc": "10.0.0.1:7003",
        "ddd": "127.0.0.1:7004",
        "eee": "127.0.0.1:7005",
    }


def test_roles_slots_and_failures_are_read_and_slots_on_their_way_are_counted_once() -> None:
    nodes = {node.id: node for node in account().nodes}
    assert [(nodes[each].role, nodes[each].slots) for each in ["aaa", "bbb", "eee"]] == [
        ("master", 5461),
        ("master", 5462),
        ("replica", 0),
    ]
    assert nodes["eee"].master_id == "bbb"
    assert [(nodes[each].failed, nodes[each].suspected) for each in ["bbb", "ccc", "ddd"]] == [
        (False, False),
        (True, True),
        (False, True),
    ]


def test_ipv6_addresses_stand_in_brackets() -> None:
    line = b"aaa ::1:7001@17001 myself,master - 0 0 1 connected 0-16383\n"
    (node,) = read_account("::1", INFO, line, []).nodes
    assert node.address == "[::1]:7001"
    (node,) = read_account("::1", INFO, line, [[0, 16383, [b"", 7001, b"aaa", {}]]]).nodes
    assert node.address == "[::1]:7001"


def test_what_is_no_answer_of_a_cluster_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 words"):
        read_account("h", INFO, b"hello world\n", [])


def node(name: str, *, epoch: int, ranges: tuple[tuple[int, int], ...] = (), **more: object) -> NodeView:
    return NodeView(id=name, address=f"{name}:1", epoch=epoch, ranges=ranges, **more)  # type: ignore[arg-type]


ALL = ((0, 16383),)


def test_the_claim_with_the_highest_epoch_counts_whoever_answers_first() -> None:
    """A master that was away while its replica took over believes in itself, and in a cluster that is in order."""
    old = NodeAccount(state="ok", epoch=5, me="old", nodes=(node("old", epoch=2, ranges=ALL),))
    new = NodeAccount(
        state="fail", epoch=6, me="new", nodes=(node("new", epoch=6, ranges=ALL), node("old", epoch=2, role="replica"))
    )
    for accounts in ([old, new], [new, old]):
        owner = owners_of(["orders"], accounts)["orders"]
        assert owner is not None
        assert owner.id == "new"


def test_of_two_claims_with_one_epoch_that_of_the_owner_itself_counts() -> None:
    """While a slot changes hands, the others hear of it later."""
    late = NodeAccount(state="ok", epoch=1, me="x", nodes=(node("a", epoch=1, ranges=ALL), node("b", epoch=1)))
    target = NodeAccount(state="ok", epoch=1, me="b", nodes=(node("a", epoch=1), node("b", epoch=1, ranges=ALL)))
    for accounts in ([late, target], [target, late]):
        owner = owners_of(["orders"], accounts)["orders"]
        assert owner is not None
        assert owner.id == "b"


def test_a_slot_that_nobody_claims_has_no_owner() -> None:
    alone = NodeAccount(state="fail", epoch=1, me="a", nodes=(node("a", epoch=1, ranges=((0, 1),)),))
    assert owners_of(["orders"], [alone]) == {"orders": None}


def test_the_view_is_that_of_the_best_informed_and_shows_where_the_streams_are() -> None:
    seen = account()
    view = view_of([seen], owners_of(["EVENT_STREAM", "order-events"], [seen]), 7.0)
    assert [(each.id, each.streams) for each in view.nodes] == [
        ("aaa", ("order-events",)),
        ("bbb", ("EVENT_STREAM",)),
        ("eee", ()),  # behind its master
        ("ccc", ()),
        ("ddd", ()),
    ]
    assert (view.state, view.covered, view.observed_at) == ("ok", 16384, 7.0)
    owner = view.owner("EVENT_STREAM")
    assert owner is not None
    assert owner.address == "redis-node-2:7002"
    assert view.owner("elsewhere") is None


@pytest.mark.parametrize(
    ("flags", "heir", "expected"),
    [
        ("master,fail", "slave", True),
        ("master,fail?", "slave", False),
        ("master", "slave", False),
        ("master,fail", "slave,fail?", True),
        ("master,fail", "slave,fail", False),
        ("master,fail", None, False),
    ],
)
def test_a_master_is_given_up_by_who_sees_it_fail_and_somebody_to_take_over(
    flags: str, heir: str | None, expected: bool
) -> None:
    lines = [
        "aaa 127.0.0.1:7001@17001 myself,master - 0 0 1 connected 0-5460",
        f"bbb 127.0.0.1:7002@17002 {flags} - 0 0 2 connected 5461-16383",
        "ddd 127.0.0.1:7004@17004 slave aaa 0 0 1 connected",
    ]
    if heir is not None:
        lines.append(f"eee 127.0.0.1:7005@17005 {heir} bbb 0 0 2 connected")
    account = read_account("127.0.0.1", INFO, "\n".join(lines).encode(), [])
    assert account.gives_up("bbb") is expected
    assert not account.gives_up("aaa")
    assert not account.gives_up("zzz")
