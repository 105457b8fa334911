"""Rows/s of Penstock's PostgreSQL link beside psycopg on asyncio, on one embedded PostgreSQL, in one run.

    python tests/bench/bench_postgres.py [--batches 40] [--rounds 5] [--url URL]

Batches of 500 rows, one transaction each, by `executemany`, by COPY and by one INSERT from `unnest`; reading by a
server cursor and by COPY; and the round trip `select 1`, alone and in eight tasks with a connection each. Rounds of
the two links alternate, and so does who begins, so that a slow moment of the machine meets both; what counts is the
ratio of the medians. Where others use the processors, too, the last column says more: the same ratio by the time of
this process's own work, without its waits for the server. Not collected by pytest.
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
from typing import Any, NamedTuple

import psycopg
import trio

from penstock.runtime.embedded.binaries import postgres_installation
from penstock.runtime.postgres import Connection, PostgresOptions

BATCH = 500
NOTE = "x" * 100
TASKS = 8

Work = Callable[[psycopg.AsyncConnection[Any], int], Awaitable[int]]


class Speed(NamedTuple):
    """Rows or statements in a second."""

    by_clock: float
    by_work: float


class Stopwatch:
    """Both clocks, from when it is made."""

    def __init__(self) -> None:
        self._clock, self._work = time.perf_counter(), time.process_time()

    def speed(self, done: int) -> Speed:
        return Speed(done / (time.perf_counter() - self._clock), done / (time.process_time() - self._work))


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


async def server_cursor(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    read = 0
    async with connection.transaction(), connection.cursor("bench") as cursor:
        cursor.itersize = BATCH
        await cursor.execute("select n, %s from generate_series(1, %s) n", [NOTE, batches * BATCH])
        async for _ in cursor:
            read += 1
    return read


async def copy_out(connection: psycopg.AsyncConnection[Any], batches: int) -> int:
    read = 0
    statement = f"copy (select n, '{NOTE}' from generate_series(1, {batches * BATCH}) n) to stdout"
    async with connection.cursor().copy(statement.encode()) as out:
        async for _ in out.rows():
            read += 1
    return read


async def penstock_round(url: str, work: Work, batches: int) -> Speed:
    """Rows (or statements) a second by Penstock on trio, watched for slowness as in a pool."""
    connection = await Connection.open(PostgresOptions.from_url(url), on_slow=lambda seconds: None)
    return await _timed(connection, work, batches)


async def asyncio_round(url: str, work: Work, batches: int) -> Speed:
    """The same with psycopg on asyncio."""
    return await _timed(await psycopg.AsyncConnection.connect(url, autocommit=True), work, batches)


async def _timed(connection: psycopg.AsyncConnection[Any], work: Work, batches: int) -> Speed:
    await connection.execute("truncate bench")
    watch = Stopwatch()
    speed = watch.speed(await work(connection, batches))
    await connection.close()
    return speed


async def penstock_tasks(url: str, batches: int) -> Speed:
    """Statements a second of eight tasks, each on its own connection."""
    options = PostgresOptions.from_url(url)
    connections = [await Connection.open(options, on_slow=lambda seconds: None) for _ in range(TASKS)]
    watch = Stopwatch()
    async with trio.open_nursery() as nursery:
        for connection in connections:
            nursery.start_soon(select, connection, batches)
    speed = watch.speed(TASKS * batches * 20)
    for connection in connections:
        await connection.close()
    return speed


async def asyncio_tasks(url: str, batches: int) -> Speed:
    """The same with psycopg on asyncio."""
    connections = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(TASKS)]
    watch = Stopwatch()
    await asyncio.gather(*(select(connection, batches) for connection in connections))
    speed = watch.speed(TASKS * batches * 20)
    for connection in connections:
        await connection.close()
    return speed


def measure(ours: Callable[[], Speed], theirs: Callable[[], Speed], rounds: int) -> tuple[Speed, Speed]:
    """Medians of (Penstock, asyncio)."""
    speeds: dict[Callable[[], Speed], list[Speed]] = {ours: [], theirs: []}
    for number in range(rounds):
        for side in (ours, theirs) if number % 2 == 0 else (theirs, ours):
            speeds[side].append(side())
    return _median(speeds[ours]), _median(speeds[theirs])


def _median(speeds: list[Speed]) -> Speed:
    return Speed(*(statistics.median(one) for one in zip(*speeds, strict=True)))


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


def show(name: str, ours: Speed, theirs: Speed) -> None:
    clock, work = ours.by_clock / theirs.by_clock, ours.by_work / theirs.by_work
    print(f"{name:>15} {ours.by_clock:>10,.0f}/s {theirs.by_clock:>10,.0f}/s {clock:>6.2f}x {work:>6.2f}x", flush=True)


def report(url: str, arguments: argparse.Namespace) -> None:
    """Print one line for each kind of work."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table bench (id int primary key, note text)")
    print(f"{'':>15} {'penstock':>12} {'asyncio':>12} {'ratio':>7} {'work':>7}")
    batches = arguments.batches
    for work in (executemany, copy, unnest, server_cursor, copy_out, select):
        ours, theirs = measure(
            lambda work=work: trio.run(penstock_round, url, work, batches),
            lambda work=work: asyncio.run(asyncio_round(url, work, batches)),
            arguments.rounds,
        )
        show(work.__name__, ours, theirs)
    ours, theirs = measure(
        lambda: trio.run(penstock_tasks, url, batches),
        lambda: asyncio.run(asyncio_tasks(url, batches)),
        arguments.rounds,
    )
    show(f"select, {TASKS} tasks", ours, theirs)
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
