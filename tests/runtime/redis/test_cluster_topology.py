"""Tables: the topology of a cluster as its nodes tell it, and the options that say where to begin."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.runtime.redis import ClusterOptions, InvalidRedisUrl, RedisCluster, RedisOptions
from penstock.runtime.redis._compat import reply_error
from penstock.runtime.redis.cluster.steps import Nature, Step, step_after, target_of
from penstock.runtime.redis.cluster.topology import Address, Topology, parse_slots
from penstock.runtime.redis.errors import NotSent, OutcomeUnknown, RedisClosed, RedisStalled
from penstock.runtime.redis.slots import SLOTS

ASKED = Address("asked.example", 7000)
WRITE, READ, SCRIPT = Nature.of(1, "SET"), Nature.of(1, "GET"), Nature.of(1, "EVAL")
A, B, C = Address("10.0.0.1", 7001), Address("10.0.0.2", 7002), Address("10.0.0.3", 7003)


def node(host: Any, port: int, *metadata: Any) -> list[Any]:
    return [host, port, b"0123", list(metadata)]


def test_slots_have_masters_and_masters_have_replicas() -> None:
    topology = parse_slots(
        [
            [0, 99, node(b"10.0.0.1", 7001), node(b"10.0.0.3", 7003)],
            [100, 100, node(b"10.0.0.2", 7002)],
            [200, 299, node(b"10.0.0.1", 7001), node(b"10.0.0.3", 7003)],
        ],
        ASKED,
    )
    assert [topology.owner(slot) for slot in (0, 99, 100, 101, 299, 300)] == [A, A, B, None, A, None]
    assert topology.masters == (A, B)
    assert topology.replicas_of(A) == (C,)
    assert topology.replicas_of(B) == ()
    assert topology.nodes == (A, B, C)
    assert (topology.served, topology.slots_of(A), topology.slots_of(C)) == (201, 200, 0)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (node(b"10.0.0.1", 7001), A),
        (node("10.0.0.1", 7001), A),
        (node(b"node-1.example", 7001, b"ip", b"10.0.0.1"), Address("node-1.example", 7001)),
        (node(None, 7001), Address("asked.example", 7001)),
        (node(b"", 7001), Address("asked.example", 7001)),
        (node(b"?", 7001, b"ip", b"10.0.0.1"), A),
        (node("?", 7001, "hostname", "x", "ip", "10.0.0.1"), A),
        ([b"?", 7001, b"0123", {b"ip": b"10.0.0.1"}], A),
        (node(b"?", 7001), None),
        ([b"10.0.0.1", 7001], A),  # Redis before 4.0 has no ids, before 7.0 no metadata
    ],
)
def test_a_node_is_called_by_the_name_that_it_prefers(said: list[Any], meant: Address | None) -> None:
    assert parse_slots([[0, 0, said]], ASKED).owner(0) == meant


@pytest.mark.parametrize("reply", [[[0, 1]], [7], [[0, "x", node(b"h", 1)]], [[0, 1, None]]])
def test_what_is_no_reply_of_cluster_slots_is_said_to_be_none(reply: list[Any]) -> None:
    with pytest.raises(ValueError, match="CLUSTER SLOTS"):
        parse_slots(reply, ASKED)


def test_moved_changes_one_slot() -> None:
    topology = Topology([A] * SLOTS, {})
    assert topology.move(5, B)
    assert not topology.move(5, B)
    assert (topology.owner(4), topology.owner(5), topology.owner(6)) == (A, B, A)
    assert set(topology.masters) == {A, B}
    assert topology.move(5, A)
    assert topology.masters == (A,)
    assert topology.served == SLOTS


@pytest.mark.parametrize(
    ("reply", "step", "target"),
    [
        ("MOVED 1 10.0.0.2:7002", Step.MOVED, B),
        ("MOVED 1 :7002", Step.MOVED, Address("asked.example", 7002)),
        ("MOVED 1 ?:7002", Step.MOVED, None),
        ("MOVED 1 node-2.example:7002", Step.MOVED, Address("node-2.example", 7002)),
        ("MOVED 1 ::1:7002", Step.MOVED, Address("::1", 7002)),
        ("ASK 1 10.0.0.2:7002", Step.ASK, B),
        ("ASK 1 :7002", Step.ASK, Address("asked.example", 7002)),
    ],
)
def test_redirections_are_told_apart_and_lead_somewhere(reply: str, step: Step, target: Address | None) -> None:
    """redis-py's MovedError is an AskError: a careless order would ask instead of move."""
    error = reply_error(reply)
    assert step_after(error, WRITE) is step
    assert target_of(error, ASKED) == target


@pytest.mark.parametrize(
    ("error", "write", "read"),
    [
        (reply_error("TRYAGAIN Multiple keys request during rehashing of slot"), Step.PAUSE, Step.PAUSE),
        (reply_error("BUSY Redis is busy running a script"), Step.PAUSE, Step.PAUSE),
        (reply_error("CLUSTERDOWN The cluster is down"), Step.REFRESH, Step.REFRESH),
        (reply_error("CLUSTERDOWN Hash slot not served"), Step.REFRESH, Step.REFRESH),
        (reply_error("LOADING Redis is loading the dataset in memory"), Step.REFRESH, Step.REFRESH),
        (reply_error("MASTERDOWN Link with MASTER is down"), Step.REFRESH, Step.REFRESH),
        (reply_error("READONLY You can't write against a read only replica."), Step.REFRESH, Step.REFRESH),
        (reply_error("UNBLOCKED force unblock from blocking operation, instance state changed"), *[Step.REFRESH] * 2),
        (reply_error("UNBLOCKED the stream key no longer exists"), Step.VERIFY, Step.VERIFY),
        (reply_error("NOGROUP the consumer group this client was blocked on no longer exists"), *[Step.VERIFY] * 2),
        (reply_error("NOGROUP No such key 's' or consumer group 'g'"), Step.GIVE_UP, Step.GIVE_UP),
        (reply_error("WRONGTYPE Operation against a key"), Step.GIVE_UP, Step.GIVE_UP),
        (reply_error("NOAUTH Authentication required."), Step.GIVE_UP, Step.GIVE_UP),
        (reply_error("OOM command not allowed when used memory > 'maxmemory'."), Step.GIVE_UP, Step.GIVE_UP),
        (reply_error("CROSSSLOT Keys in request don't hash to the same slot"), Step.GIVE_UP, Step.GIVE_UP),
        (NotSent("redis://x:1/0", "refused"), Step.REFRESH, Step.REFRESH),
        (RedisClosed("redis://x:1/0", "closed"), Step.GIVE_UP, Step.GIVE_UP),
        (OutcomeUnknown("redis://x:1/0", "reset"), Step.GIVE_UP, Step.REFRESH),
        (RedisStalled("redis://x:1/0", "silence"), Step.GIVE_UP, Step.REFRESH),
    ],
)
def test_the_step_after_a_failure(error: Exception, write: Step, read: Step) -> None:
    """A write is repeated only if it has certainly not run; a read may run twice."""
    assert step_after(error, WRITE) is write
    assert step_after(error, READ) is read


@pytest.mark.parametrize(
    "words",
    [
        "MOVED 2 10.0.0.2:7002",  # of another slot
        "MOVED it",
        "ASK me",
        "TRYAGAIN later",
        "CLUSTERDOWN for today",
        "READONLY here",
    ],
)
def test_what_a_script_says_by_itself_is_its_result(words: str) -> None:
    """It may have written before: `return redis.error_reply("TRYAGAIN later")`."""
    assert step_after(reply_error(words), SCRIPT) is Step.GIVE_UP
    assert step_after(reply_error("TRYAGAIN Multiple keys request during rehashing of slot"), SCRIPT) is Step.PAUSE
    assert step_after(reply_error("MOVED 1 10.0.0.2:7002"), SCRIPT) is Step.MOVED


def test_the_nature_of_a_command() -> None:
    assert Nature.of(1, "EVAL") == Nature(1, reads=False, scripted=True)
    assert Nature.of(None, "XINFO STREAM") == Nature(None, reads=True, scripted=False)
    assert Nature.of(1, "XREAD", ("XREAD", "STREAMS", "s", "0")).reads
    assert not Nature.of(1, "XREAD", ("XREAD", "STREAMS", "s", "$")).reads


def test_a_login_that_was_turned_away_is_not_tried_for_long() -> None:
    error = NotSent("redis://x:1/0", "cannot connect")
    error.__cause__ = reply_error("WRONGPASS invalid username-password pair or user is disabled.")
    assert step_after(error, READ) is Step.GIVE_UP


# Options -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "nodes"),
    [
        ("redis+cluster://a:1", [("a", 1)]),
        ("redis+cluster://a,b:7001,c", [("a", 6379), ("b", 7001), ("c", 6379)]),
        ("redis+cluster://user:s%40crt@a:1,b:2/", [("a", 1), ("b", 2)]),
        ("redis+cluster://[::1]:1,[::2]", [("::1", 1), ("::2", 6379)]),
        ("rediss+cluster://a:1/0?retry_for=1", [("a", 1)]),
    ],
)
def test_a_url_names_nodes(url: str, nodes: list[tuple[str, int]]) -> None:
    assert ClusterOptions.from_url(url).nodes == tuple(nodes)


def test_a_url_has_options_of_the_cluster_and_of_its_nodes() -> None:
    options = ClusterOptions.from_url(
        "rediss+cluster://user:s%40crt@a:1,[::1]:2?retry_for=2.5&max_redirects=3&refresh_every=9"
        "&decode_responses=true&socket_timeout=7&client_name=me",
        block_margin=2.0,
        refresh_every=10.0,
    )
    assert (options.retry_for, options.max_redirects, options.refresh_every) == (2.5, 3, 10.0)
    assert (options.username, options.password, options.tls) == ("user", "s@crt", True)
    assert (options.decode_responses, options.response_timeout, options.client_name) == (True, 7.0, "me")
    assert options.block_margin == 2.0
    assert options.address == "rediss+cluster://a:1,[::1]:2"
    assert "s@crt" not in repr(options)
    one = options.for_node(Address("b", 3))
    assert (one.host, one.port, one.path, one.password, one.retry_for) == ("b", 3, None, "s@crt", 0.0)


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("redis://a", "redis\\+cluster://"),
        ("redis+cluster://", "host:port"),
        ("redis+cluster://a:b", "host:port"),
        ("redis+cluster://a,,b", "host:port"),
        ("redis+cluster://::1", "host:port"),
        ("redis+cluster://a:0", "no address"),
        ("redis+cluster://a:70000", "no address"),
        ("redis+cluster://a/3", "database 0"),
        ("redis+cluster://a?db=3", "database 0"),
        ("redis+cluster://a?nonsense=1", "nonsense"),
        ("redis+cluster://a?retry_for=long", "retry_for"),
        ("redis+cluster://a?retry_for=-1", "retry_for"),
        ("redis+cluster://a?max_redirects=0", "max_redirects"),
    ],
)
def test_a_url_at_fault_is_told_without_its_password(url: str, fault: str) -> None:
    url = url.replace("://", "://user:s3cret@")
    with pytest.raises(InvalidRedisUrl, match=fault) as caught:
        ClusterOptions.from_url(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("nodes", ["h:1", [("h", "1")], ["h:1"], [("h",)], ["redis://u:secret@h"], [7001]])
def test_nodes_are_pairs_of_a_host_and_a_number(nodes: Any) -> None:
    with pytest.raises(TypeError, match=r"nodes: .*as in .*6379\)") as caught:
        ClusterOptions(nodes=nodes)
    assert "secret" not in str(caught.value)


def test_options_of_one_server_are_none_of_a_cluster() -> None:
    with pytest.raises(TypeError, match="RedisCluster takes ClusterOptions, not RedisOptions") as caught:
        RedisCluster(RedisOptions(password="secret"))  # type: ignore[arg-type]
    assert "secret" not in str(caught.value)


def test_a_topology_shows_its_size() -> None:
    topology = parse_slots([[0, 99, node(b"10.0.0.1", 7001), node(b"10.0.0.3", 7003)]], ASKED)
    assert repr(topology) == "<Topology: 1 masters, 1 replicas, 100 of 16384 slots>"


def test_options_need_a_node_and_no_database() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ClusterOptions(nodes=())
    with pytest.raises(ValueError, match="database 0"):
        ClusterOptions(nodes=[("a", 1)], node=RedisOptions(db=1))
