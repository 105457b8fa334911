"""compose.yaml's nodes as local processes, made into a cluster by its own entry program, and mended by it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
import redis.exceptions
from composition import COMPOSE, PRODUCTION, SECRETS, service
from installation import until
from local_nodes import NAMES, Nodes, ended, local_nodes

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.testing.servers import LocalNode, free_port

DEBIAN = Path("/usr/bin/redis-server")
PASSWORD = SECRETS["REDIS_PASSWORD"]


def programs() -> dict[str, str]:
    """Two servers, on either side of the 7.2 that compose.yaml names."""
    return {"valkey-9": str(valkey_server()), **({"redis-7.0": str(DEBIAN)} if DEBIAN.is_file() else {})}


@pytest.fixture(scope="module", params=["valkey-9", "redis-7.0"])
def program(request: pytest.FixtureRequest) -> str:
    if request.param not in programs():
        pytest.skip(f"{DEBIAN} is not installed")
    return programs()[request.param]


@pytest.fixture(scope="module")
def cluster(program: str) -> Iterator[Nodes]:
    """The three masters, made into a cluster; whoever breaks it mends it."""
    with local_nodes(program) as made:
        code, said = made.run_entry()
        assert code == 0, said
        yield made


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """The three masters, running, strangers to each other. Of one server only: these tests are of the entry program."""
    with local_nodes(str(valkey_server())) as made:
        yield made


def as_penstock(node: LocalNode) -> redis.Redis:
    return node.admin(username="penstock", password=SECRETS["REDIS_APP_PASSWORD"])


def test_the_entry_program_makes_the_cluster_and_then_leaves_it_alone(cluster: Nodes) -> None:
    cluster.wait_ok()
    assert [cluster.master_of(slot) for slot in (0, 5461, 16383)] == cluster.nodes
    with cluster.admin(cluster.nodes[0]) as admin:
        before = admin.execute_command("CLUSTER", "NODES")
        owners = admin.execute_command("CLUSTER", "SLOTS")
        # Clients are sent to the announced name.
        assert {place[0] for _, _, place, *_ in owners} == {"localhost"}
        assert in_order(*cluster.run_entry())
        after = admin.execute_command("CLUSTER", "NODES")
        assert ids(after) == ids(before) == {cluster.id_of(node) for node in cluster.nodes}
        for name, wanted in (("appendfsync", "always"), ("save", ""), ("maxmemory-policy", "noeviction")):
            assert admin.config_get(name) == {name: wanted}


def in_order(code: int, said: str) -> bool:
    """Whether it found nothing to do; for a node that was slow to answer it may have waited."""
    *before, last = said.splitlines()
    return code == 0 and last == "the cluster is in order" and all(line.startswith("waiting: ") for line in before)


def ids(lines: str) -> set[str]:
    return {line.split()[0] for line in lines.splitlines()}


def test_replicas_are_attached_one_to_each_master() -> None:
    """Of the older server where it is there; the newer one's are attached in the test of the whole system."""
    with local_nodes(list(programs().values())[-1], names=NAMES) as nodes:
        assert nodes.run_entry("redis-cluster")[0] == 0
        code, said = nodes.run_entry("redis-replicas")
        assert code == 0, said
        for master, replica in zip(NAMES[:3], NAMES[3:], strict=True):
            assert nodes.replicas_of(nodes.node(master)) == [nodes.node(replica)]
        assert in_order(*nodes.run_entry("redis-replicas"))
        # A master that is gone for good, and has been replaced, is no reason not to start what comes after.
        lost = nodes.node("redis-2")
        lost.kill()
        with nodes.admin(nodes.node("redis-5")) as admin:
            until(lambda: admin.role()[0] == "master", 30, "the replica has taken over")
        nodes.wait_ok()
        code, said = nodes.run_entry("redis-cluster", "--deadline", "3")
        assert code == 0, said
        assert f"localhost:{lost.port}" in said.splitlines()[0]
        assert said.splitlines()[-1] == "2 nodes serve all slots without those that are missing"


def wait_until_it_says(entry: subprocess.Popen[str], *words: str) -> None:
    """Read on until a line of it begins with the first and has the others; it ends by itself at its deadline."""
    assert entry.stdout is not None
    for line in entry.stdout:
        if line.startswith(words[0]) and all(word in line for word in words):
            return
    raise AssertionError(f"it has ended, and did not say {words}")


def test_two_at_once_wait_for_a_node_that_is_late_say_so_and_make_one_cluster(nodes: Nodes) -> None:
    late = nodes.node("redis-2")
    late.kill()
    entries = [nodes.start_entry() for _ in range(2)]
    for entry in entries:
        wait_until_it_says(entry, "waiting: ", f"localhost:{late.port}")
    late.start()
    for entry in entries:
        code, rest = ended(entry)
        assert code == 0, rest
    nodes.wait_ok()


def test_when_the_deadline_passes_it_says_what_it_waited_for(nodes: Nodes) -> None:
    nodes.node("redis-3").kill()
    code, said = nodes.run_entry("redis-cluster", "--deadline", "1")
    assert code == 1
    last = said.splitlines()[-1]
    assert last.startswith("not within 1 s: ")
    assert f"localhost:{nodes.node('redis-3').port}" in last


def test_a_killed_node_that_is_back_is_left_to_the_others(cluster: Nodes) -> None:
    killed = cluster.node("redis-2")
    identity = cluster.id_of(killed)
    with cluster.admin(killed) as admin:
        admin.execute_command("XADD", key_of(cluster, killed), "1-1", "a", "b")
    killed.kill()
    killed.start()
    assert cluster.run_entry()[0] == 0
    assert cluster.id_of(killed) == identity
    with cluster.admin(killed) as admin:
        assert admin.xlen(key_of(cluster, killed)) == 1


def key_of(cluster: Nodes, node: LocalNode) -> str:
    return next(key for key in map(str, range(1000)) if cluster.master_of(key) is node)


def test_nodes_that_all_come_back_at_other_addresses_find_each_other(cluster: Nodes) -> None:
    """Which is what a network of containers made anew does; here it is the ports."""
    identities = [cluster.id_of(node) for node in cluster.nodes]
    for node in cluster.nodes:
        node.kill()
    for node in cluster.nodes:
        node.port = free_port(bus=True)
        node.start()
    code, said = cluster.run_entry()
    assert code == 0, said
    assert " meets " in said
    cluster.wait_ok()
    assert [cluster.id_of(node) for node in cluster.nodes] == identities
    assert [cluster.master_of(slot) for slot in (0, 5461, 16383)] == cluster.nodes


def test_slots_of_a_node_that_lost_its_data_are_not_given_away_until_somebody_gives_them_up(nodes: Nodes) -> None:
    assert nodes.run_entry()[0] == 0
    lost = nodes.node("redis-2")
    identity = nodes.id_of(lost)
    lost.kill()
    shutil.rmtree(lost.directory / "appendonlydir")
    (lost.directory / "nodes.conf").unlink()
    lost.start()
    entry = nodes.start_entry()
    wait_until_it_says(entry, f"waiting: slots 5461-10921 belong to node {identity} (")
    with pytest.raises(LookupError):
        nodes.master_of(5461)
    for node in (nodes.node("redis-1"), nodes.node("redis-3")):
        with nodes.admin(node) as admin:
            admin.execute_command("CLUSTER", "FORGET", identity)
    code, said = ended(entry)
    assert code == 0, said
    nodes.wait_ok()
    assert nodes.master_of(5461) is lost


def test_two_runs_at_once_under_load_do_no_harm(cluster: Nodes) -> None:
    client = redis.RedisCluster.from_url(
        f"redis://:{PASSWORD}@localhost:{cluster.nodes[0].port}", decode_responses=True
    )
    with client:
        runs = [cluster.start_entry() for _ in range(2)]
        written = 0
        while any(run.poll() is None for run in runs):
            client.set(f"key-{written}", written)
            written += 1
        assert [ended(run)[0] for run in runs] == [0, 0]
        assert written > 0
        assert all(client.get(f"key-{number}") == str(number) for number in range(written))


# Refusals ----------------------------------------------------------------------------------------------------------


def test_it_refuses_a_node_that_holds_data_outside_of_a_cluster(nodes: Nodes) -> None:
    """Such as one that was put over the data of a single server."""
    full = nodes.node("redis-2")
    with nodes.admin(full) as admin:
        admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: admin.info("cluster")["cluster_enabled"] and is_ok(admin), 30, "a cluster of one")
        admin.set("somebody's", "data")
    full.kill()
    (full.directory / "nodes.conf").unlink()
    full.start()
    before = [nodes.id_of(node) for node in nodes.nodes]
    code, said = nodes.run_entry()
    assert code == 2, said
    assert said.splitlines()[-1].startswith(f"refused: localhost:{full.port} is in no cluster, and holds 1 keys")
    assert [nodes.id_of(node) for node in nodes.nodes] == before
    with nodes.admin(full) as admin:
        assert len(admin.execute_command("CLUSTER", "NODES").splitlines()) == 1


def is_ok(admin: redis.Redis) -> bool:
    return "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO"))


def test_it_refuses_to_join_two_clusters() -> None:
    with local_nodes(str(valkey_server()), names=NAMES) as nodes:
        with nodes.admin(nodes.node("redis-1")) as admin:
            admin.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes.node("redis-4").port)
        with nodes.admin(nodes.node("redis-2")) as admin:
            admin.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes.node("redis-5").port)

        def acquainted(name: str) -> bool:
            with nodes.admin(nodes.node(name)) as admin:
                lines = admin.execute_command("CLUSTER", "NODES").splitlines()
            return len(lines) == 2 and all("handshake" not in line for line in lines)

        for name in ("redis-1", "redis-4", "redis-2", "redis-5"):
            until(partial(acquainted, name), 30, f"{name} knows the other of its pair")
        code, said = nodes.run_entry()
        assert code == 2, said
        assert "the nodes belong to different clusters" in said
        with nodes.admin(nodes.node("redis-3")) as admin:
            assert len(admin.execute_command("CLUSTER", "NODES").splitlines()) == 1


def test_it_refuses_a_server_that_is_in_no_cluster_mode(nodes: Nodes) -> None:
    single = nodes.node("redis-3")
    single.kill()
    single.arguments = [*single.arguments, "--cluster-enabled", "no"]
    single.start()
    code, said = nodes.run_entry()
    assert (code, said.splitlines()[-1]) == (
        2,
        f"refused: localhost:{single.port} is not in cluster mode; start it with `cluster-enabled yes`",
    )


def test_a_wrong_password_is_told_at_once(nodes: Nodes) -> None:
    command = nodes.entry("redis-cluster", "--deadline", "30")
    environment = {**os.environ, "REDIS_PASSWORD": "wrong"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "is REDIS_PASSWORD the one that the node was started with?" in done.stderr
    assert "wrong" not in done.stderr.replace("WRONGPASS", "")


@pytest.mark.parametrize(
    "arguments", [[], ["localhost"], ["a:1", "b:2"], ["a:1", "a:1", "b:2"], ["--replicas", "1", "a:1", "b:2", "c:3"]]
)
def test_what_cannot_be_a_cluster_is_refused_before_anything_is_asked(arguments: list[str]) -> None:
    command = [sys.executable, str(COMPOSE / "redis" / "form_cluster.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert "Usage: " in done.stderr
    assert "Traceback" not in done.stderr


# A node ------------------------------------------------------------------------------------------------------------


def test_penstock_s_user_may_work_with_data_and_nothing_else(cluster: Nodes) -> None:
    node = cluster.nodes[0]
    key = key_of(cluster, node)
    with as_penstock(node) as client:
        assert client.execute_command("XADD", key, "*", "a", "b")
        assert client.info("cluster")["cluster_enabled"] == 1
        for allowed in (
            "CLUSTER INFO",
            "CLUSTER SLOTS",
            "CLUSTER SHARDS",
            "CLUSTER NODES",
            "SCRIPT LOAD",
            "XINFO STREAM",
        ):
            arguments = {"SCRIPT LOAD": ["return 1"], "XINFO STREAM": [key]}.get(allowed, [])
            client.execute_command(*allowed.split(), *arguments)
        for denied in (
            "FLUSHALL",
            "KEYS *",
            "CONFIG GET *",
            "SHUTDOWN",
            "CLUSTER MEET 127.0.0.1 1",
            "CLUSTER RESET HARD",
            "ACL LIST",
            "MONITOR",
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command(*denied.split())
    with node.admin() as client, pytest.raises(redis.exceptions.AuthenticationError):
        client.ping()


def test_no_password_is_left_where_others_can_read_it(cluster: Nodes) -> None:
    for node in cluster.nodes:
        assert node.process is not None
        process = Path(f"/proc/{node.process.pid}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes() + node.log.read_bytes()
        written = b"".join(
            path.read_bytes() for path in node.directory.rglob("*") if path.is_file() and path.name != "container"
        )
        for secret in (PASSWORD, SECRETS["REDIS_APP_PASSWORD"]):
            assert secret.encode() not in shown
            assert secret.encode() not in written


@pytest.mark.parametrize(
    ("password", "said"),
    [
        ("", "REDISCLI_AUTH is not set"),
        ('a"b', "letters, digits"),
        ("a b", "letters, digits"),
        ("a@b", "letters, digits"),
    ],
)
def test_a_node_does_not_start_with_a_password_that_would_need_escapes(password: str, said: str) -> None:
    command = ["sh", str(COMPOSE / "redis" / "start-node.sh")]
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password, "REDIS_APP_PASSWORD": "x"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert password == "" or password not in done.stderr


def test_the_health_check_tells_a_node_that_answers_from_one_that_does_not(nodes: Nodes) -> None:
    if shutil.which("redis-cli") is None:
        pytest.skip("redis-cli is not installed")
    declared = service("redis-1", PRODUCTION)
    node = nodes.node("redis-1")
    kind, *command = [str(node.port) if word == "7001" else word for word in declared["healthcheck"]["test"]]
    assert kind == "CMD"

    def healthy(environment: dict[str, str]) -> bool:
        run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, timeout=20, check=False)
        return run.returncode == 0

    assert healthy(declared["environment"])
    assert not healthy({**declared["environment"], "REDISCLI_AUTH": "wrong"})
    node.kill()
    assert not healthy(declared["environment"])
