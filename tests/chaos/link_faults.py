"""Random faults on the links alone: 30 minutes' worth of them, compressed into a run of minutes.

    python tests/chaos/link_faults.py [--seconds 180] [--seed N] [--topology single|cluster|replicas-cluster|…]

Many tasks issue commands whose replies can be checked, cancel some of them at random moments, and keep ledgers of what
was acknowledged; meanwhile servers are killed, frozen, paused and demoted, connections cut in the middle of a command,
slots moved and masters lost. Checked: no reply ever goes to the wrong command; no call lasts beyond its deadline;
what was acknowledged is there, what was never sent is not; and at the end no task, socket or connection is left.

Prints a report; ends with 1 when anything was violated. The seed draws the faults and the commands; the moments at
which they meet are the machine's, so a run is not repeated exactly. Not collected by pytest: `test_link_faults.py` runs
a short one.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import evolve
from chaos_book import Book, open_sockets, running_tasks
from chaos_postgres import run_postgres
from chaos_proxy import Proxy
from chaos_redis_faults import ClusterFaults, NodeFaults
from chaos_sentinel import SERVICE, SentinelFaults, Watched
from chaos_traffic import Limits, Traffic

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.redis import Redis, RedisOptions, SentinelOptions, open_client
from penstock.runtime.testing import seed_scheduler
from penstock.runtime.testing.servers import LocalCluster, LocalNode, free_port

DURABLE = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
# Short limits: a fault that lasts longer than all of them together then fits into a run.
OPTIONS = RedisOptions(connect_timeout=1.0, response_timeout=1.0, stall_after=0.4, block_margin=0.8, retry_for=1.5)
ATTEMPT = 2.0 + OPTIONS.connect_timeout + OPTIONS.response_timeout + OPTIONS.stall_after
"""The longest attempt: a full back-off, a connect that never answers, a reply that never comes."""

SLACK = 1.5
AT_REST = 5
"""Connections of a client to a node when nothing is under way: the shared one, and four spare ones."""

TASKS_AT_REST = 6
"""Tasks of a client for each node when nothing is under way: those of the shared connection, and their keepers."""

SINGLE = Limits(command=OPTIONS.retry_for + ATTEMPT + SLACK, blocking=OPTIONS.retry_for + ATTEMPT + SLACK)


async def run_single(book: Book, seconds: float, program: str | None, *, robber: bool = False) -> None:
    """One server behind a proxy; what is acknowledged is on its disk. With `robber`, the proxy swallows replies."""
    with tempfile.TemporaryDirectory(prefix="pf-") as directory:
        arguments = [*DURABLE, "--enable-debug-command", "yes", "--busy-reply-threshold", "50"]
        node = LocalNode(program or str(valkey_server()), free_port(), Path(directory), arguments)
        await trio.to_thread.run_sync(node.start)
        try:
            async with trio.open_nursery() as nursery:
                proxy = Proxy(node.port)
                await nursery.start(proxy.serve)
                if robber:
                    nursery.start_soon(_rob, proxy)
                options = evolve(_draw_options(book), port=proxy.port)
                faults = NodeFaults(book, book.rng("faults"), pace=1.5, longest=SINGLE.command + 2)
                traffic = partial(Traffic, book=book, limits=SINGLE, may_lose=lambda: False)
                strike = partial(faults.run, node, [proxy])
                await _drive(book, seconds, partial(Redis, options), traffic, strike, [node])
                nursery.cancel_scope.cancel()
        finally:
            node.kill()


def _draw_options(book: Book) -> RedisOptions:
    """Some seeds speak RESP2, some have so little room that callers wait for it."""
    rng = book.rng("options")
    return evolve(OPTIONS, max_pending=rng.choice([100_000, 20]), protocol=rng.choice([2, 3]))


async def _rob(proxy: Proxy) -> None:
    while True:
        await trio.sleep(1)
        proxy.rob()


async def run_cluster(book: Book, seconds: float, program: str | None, *, replicas: int) -> None:
    """Three masters, each node behind a proxy; with replicas, a failover may lose what was not replicated."""
    from penstock.runtime.redis import ClusterOptions, RedisCluster

    make = partial(LocalCluster.make, replicas=replicas, program=program, arguments=["--appendfsync", "always"])
    with await trio.to_thread.run_sync(make) as cluster:
        async with trio.open_nursery() as nursery:
            proxies = [Proxy(node.port) for node in cluster.nodes]
            for proxy in proxies:
                await nursery.start(proxy.serve)
            by_port = {proxy.target: proxy.port for proxy in proxies}

            async def connect(host: str, port: int) -> trio.SocketStream:
                return await trio.open_tcp_stream(host, by_port[port])

            seeds = tuple(("127.0.0.1", node.port) for node in cluster.nodes)
            options = ClusterOptions(nodes=seeds, node=_draw_options(book), retry_for=4.0)
            limit = options.retry_for + 2 * ATTEMPT + SLACK
            keys = [f"events:{number}" for number in range(3)]
            faults = ClusterFaults(book, book.rng("faults"), pace=2.0, longest=limit + 2, keys=keys)
            traffic = partial(
                Traffic,
                book=book,
                limits=Limits(command=limit, blocking=limit, recovery=40.0),
                may_lose=lambda: faults.failovers > 0,
                clustered=True,
            )
            strike = partial(faults.run, cluster, proxies)
            client = partial(RedisCluster, options, connect=connect)
            await _drive(book, seconds, client, traffic, strike, cluster.nodes)
            nursery.cancel_scope.cancel()


async def run_sentinels(book: Book, seconds: float, program: str | None) -> None:
    """A master, a replica and three sentinels; the client finds the master, and a failover may lose something."""
    with tempfile.TemporaryDirectory(prefix="pf-") as directory:
        watched = Watched(program or str(valkey_server()), Path(directory))
        try:
            await trio.to_thread.run_sync(watched.start)
            sentinels = ",".join(f"127.0.0.1:{node.port}" for node in watched.sentinels)
            limits = {name: getattr(OPTIONS, name) for name in ("connect_timeout", "response_timeout", "block_margin")}
            options = SentinelOptions.from_url(f"redis+sentinel://{sentinels}/{SERVICE}", retry_for=4.0, **limits)
            limit = 4.0 + 2 * ATTEMPT + SLACK
            faults = SentinelFaults(book, book.rng("faults"), pace=2.0, longest=limit + 2)
            traffic = partial(
                Traffic,
                book=book,
                limits=Limits(command=limit, blocking=limit, recovery=40.0),
                may_lose=lambda: faults.failovers > 0,
            )
            client = partial(open_client, options)
            await _drive(book, seconds, client, traffic, partial(faults.run, watched), watched.nodes)
        finally:
            watched.remove()


async def _drive(
    book: Book,
    seconds: float,
    make_client: Callable[[], Any],
    make_traffic: Callable[[Any], Traffic],
    strike: Callable[[], Awaitable[None]],
    nodes: list[LocalNode],
) -> None:
    """Traffic under faults, then traffic in peace, then the ledgers, then the leaks."""
    sockets, tasks = open_sockets(), len(running_tasks())
    async with make_client() as client:
        traffic = make_traffic(client)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(traffic.run, scale=2))
            with trio.move_on_after(seconds):
                await strike()
            book.mark("peace")
            await trio.sleep(1)
            traffic.stop()
        await traffic.settle()
        await _check_idle(book, client, nodes)
    await _check_gone(book, sockets, tasks)
    for node in nodes:
        if others := await trio.to_thread.run_sync(_clients, node):
            book.wrong(f"LEAK: the node on port {node.port} still has {len(others)} connections: {others}")


async def _check_idle(book: Book, client: Any, nodes: list[LocalNode]) -> None:
    """Nothing is under way: nothing may be counted as under way, and of connections only the spare ones are left."""
    statistics = client.statistics()
    for name in ("pending", "queued_bytes", "dedicated"):
        value = getattr(statistics, name, 0)
        if value:
            book.wrong(f"LEAK: at rest the client counts {name} = {value}")
    for node in nodes:
        with trio.move_on_after(10):
            while len(await trio.to_thread.run_sync(_clients, node)) > AT_REST:
                await trio.sleep(0.05)
        clients = await trio.to_thread.run_sync(_clients, node)
        if len(clients) > AT_REST:
            book.wrong(f"LEAK: at rest the node on port {node.port} has {len(clients)} connections: {clients}")
    own = Counter(name for name in running_tasks() if name.startswith("penstock.runtime."))
    if sum(own.values()) > TASKS_AT_REST * len(nodes):
        book.wrong(f"LEAK: at rest {sum(own.values())} tasks of the client run: {own}")


async def _check_gone(book: Book, sockets: int, tasks: int) -> None:
    """The client is closed. The proxies' halves of its connections end a moment later."""
    with trio.move_on_after(10):
        while open_sockets() > sockets or len(running_tasks()) > tasks:
            await trio.sleep(0.05)
    if (now := open_sockets()) > sockets:
        book.wrong(f"LEAK: {now - sockets} sockets are open after the client was closed")
    if len(now_running := running_tasks()) > tasks:
        book.wrong(f"LEAK: {len(now_running) - tasks} tasks run after the client was closed: {now_running}")


def _clients(node: LocalNode) -> list[Any]:
    """Connections that the node has, without our own, the sentinels', and those that servers keep for MIGRATE."""
    with node.admin() as admin:
        clients = [each for each in admin.client_list() if each["flags"] == "N"]
    normal = [each for each in clients if not each["name"].startswith("sentinel-")]
    return [each for each in normal if each["cmd"] not in ("client|list", "restore-asking", "restore")]


Topology = Callable[[Book, float, str | None], Awaitable[None]]
"""A run with so many seconds of faults, on a server program of its own or the embedded one."""

TOPOLOGIES: dict[str, Topology] = {
    "single": run_single,
    "cluster": partial(run_cluster, replicas=0),
    "replicas-cluster": partial(run_cluster, replicas=1),
    "sentinels": run_sentinels,
    "postgres": run_postgres,
    "robbed": partial(run_single, robber=True),
}
"""`robbed` is the check of the checks: it must end with violations."""


async def run(topology: str, seconds: float, seed: int, program: str | None = None) -> Book:
    """One run; the book tells of it. SIGTERM and SIGINT end it early, and take the servers with it."""
    book = Book(seed)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(book.measure_lag)
        await nursery.start(_end_on_signal, book, nursery.cancel_scope)
        await TOPOLOGIES[topology](book, seconds, program)
        nursery.cancel_scope.cancel()
    return book


async def _end_on_signal(
    book: Book, scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            book.wrong(f"ended by {signal.Signals(number).name}")
            scope.cancel()


def main() -> int:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=180.0, help="length of the faults")
    parser.add_argument("--seed", type=int, default=None, help="of the faults and commands; default: a new one")
    parser.add_argument("--topology", choices=TOPOLOGIES, default="single")
    parser.add_argument(
        "--server", metavar="PROGRAM", help="another redis-server or valkey-server than the embedded one"
    )
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(10**6)
    seed_scheduler(seed)
    print(f"{arguments.topology}: {arguments.seconds:g} s of faults, --seed {seed}", flush=True)
    book = trio.run(run, arguments.topology, arguments.seconds, seed, arguments.server)
    print(book.report())
    print(f"violations: {len(book.violations)} (--topology {arguments.topology} --seed {seed})")
    return 1 if book.violations else 0


if __name__ == "__main__":
    sys.exit(main())
