"""Rows/s of Penstock's PostgreSQL link beside psycopg on asyncio, on one embedded PostgreSQL, in one run.

    python tests/bench/bench_postgres.py [--batches 40] [--rounds 5] [--url URL]

Batches of 500 rows, one transaction each, by `executemany`, by COPY and by one INSERT from `unnest`; and the round
trip `select 1`. Rounds of the two links alternate, so that a slow moment of the machine meets both; what counts is
the ratio of the medians. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import trio

from penstock.runtime.embedded.binaries import postgres_installation
from penstock.runtime.postgres import Connection, PostgresOptions

BATCH = 500
NOTE = "x" * 100

Work = Callable[[psycopg.AsyncConnection[Any], int], Awaitable[int]]


async def executemany(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    for start in range(0, batches * BATCH, BATCH):
        rows = [(number, NOTE) for number in range(start, start + BATCH)]
        async with connection.transaction():
            await connection.cursor().executemany("insert into bench values (%s, %s)", rows)
    return batches * BATCH


async def copy(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    for start in range(0, batches * BATCH, BATCH):
        async with connection.transaction(), connection.cursor().copy("copy bench from stdin") as into:
            for number in range(start, start + BATCH):
                await into.write_row((number, NOTE))
    return batches * BATCH


async def unnest(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    statement = "insert into bench select * from unnest(%s::int[], %s::text[]) on conflict do nothing"
    for start in range(0, batches * BATCH, BATCH):
        async with connection.transaction():
            await connection.execute(statement, [list(range(start, start + BATCH)), [NOTE] * BATCH])
    return batches * BATCH


async def select(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    for _ in range(batches * 20):
        await connection.execute("select 1")
    return batches * 20


async def penstock_round(url: str, work: Work, batches: int) -> float:
    """Rows (or statements) a second by Penstock on trio, watched for slowness as in a pool."""
    connection = await Connection.open(PostgresOptions.from_url(url), on_slow=lambda seconds: None)
    return await _timed(connection, work, batches)


async def asyncio_round(url: str, work: Work, batches: int) -> float:
    """The same with psycopg on asyncio."""
    return await _timed(await psycopg.AsyncConnection.connect(url, autocommit=True), work, batches)


async def _timed(connection: psycopg.AsyncConnection[Any], work: Work, batches: int) -> float:
    await connection.execute("truncate bench")
    started = time.perf_counter()
    done = await work(connection, batches)
    speed = done / (time.perf_counter() - started)
    await connection.close()
    return speed


def measure(url: str, work: Work, batches: int, rounds: int) -> tuple[float, float]:
    """Medians of (Penstock, asyncio)."""
    ours: list[float] = []
    theirs: list[float] = []
    for _ in range(rounds):
        ours.append(trio.run(penstock_round, url, work, batches))
        theirs.append(asyncio.run(asyncio_round(url, work, batches)))
    return statistics.median(ours), statistics.median(theirs)


@contextmanager
def embedded_postgres() -> Iterator[str]:
    """A throw-away PostgreSQL on a unix socket, which does not wait for the disk."""
    binaries = postgres_installation() / "bin"
    who: dict[str, Any] = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="pb-") as directory:
        if who:
            os.chown(directory, *_account(who))
        data = Path(directory) / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, **who)
        settings = ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "synchronous_commit=off"]
        with subprocess.Popen(
            [binaries / "postgres", "-D", data, "-k", directory, *settings], stderr=-3, **who
        ) as server:
            url = f"postgresql://postgres@/postgres?host={directory}"
            try:
                _wait_until_it_answers(url)
                yield url
            finally:
                server.terminate()


def _account(who: dict[str, Any]) -> tuple[int, int]:
    import grp
    import pwd

    return pwd.getpwnam(who["user"]).pw_uid, grp.getgrnam(who["group"]).gr_gid


def _wait_until_it_answers(url: str) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            psycopg.connect(url).close()
        except psycopg.OperationalError:
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("the embedded PostgreSQL did not start")


def report(url: str, arguments: argparse.Namespace) -> None:
    """Print one line for each kind of work."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table bench (id int primary key, note text)")
    print(f"{'':>12} {'penstock':>12} {'asyncio':>12} {'ratio':>7}")
    for work in (executemany, copy, unnest, select):
        ours, theirs = measure(url, work, arguments.batches, arguments.rounds)
        print(f"{work.__name__:>12} {ours:>10,.0f}/s {theirs:>10,.0f}/s {ours / theirs:>6.2f}x")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table bench")


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--batches", type=int, default=40, help=f"batches of {BATCH} rows in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--url", help="measure on this server (it gets, and loses, a table named `bench`)")
    arguments = parser.parse_args()
    if arguments.url:
        report(arguments.url, arguments)
        return
    with embedded_postgres() as url:
        report(url, arguments)


if __name__ == "__main__":
    main()
