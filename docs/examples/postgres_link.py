"""The PostgreSQL link used alone: migrate, write from several tasks, give up in time.

POSTGRES_URL=postgresql://… python docs/examples/postgres_link.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import trio

from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable, classify, migrate

MIGRATION = "create table if not exists sack (id int primary key, note text not null)"


@contextmanager
def migrations() -> Iterator[Path]:
    """One migration in a directory; in an application they are files of a package."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "0001.sacks.sql").write_text(MIGRATION)
        yield Path(directory)


async def main() -> None:
    options = PostgresOptions.from_url(os.environ["POSTGRES_URL"], max_size=4)

    with migrations() as directory:
        print("migrated:", await migrate(options, directory, table_prefix="example"))

    def trouble(error: PostgresUnavailable) -> None:
        print("shut the gate:", error)

    async with Pool(options, on_trouble=trouble) as pool:
        async with trio.open_nursery() as nursery:
            for first in range(0, 1000, 100):
                nursery.start_soon(store, pool, range(first, first + 100))

        async with pool.connection() as connection:
            cursor = await connection.execute("select count(*) from sack")
            print("stored:", await cursor.fetchone())

            # A deadline cancels the statement on the server and leaves the connection usable.
            with trio.move_on_after(0.1) as deadline:
                await connection.execute("select pg_sleep(60)")
            print("gave up in time:", deadline.cancelled_caught, "and still connected:", not connection.closed)

            try:
                await connection.execute("insert into sack values (1, 'again')")
            except psycopg.Error as error:
                print("a second sack 1 is the fault of the", classify(error).value)

        print("connections opened:", pool.statistics().opened)


async def store(pool: Pool, numbers: range) -> None:
    """One batch, one transaction, one round trip; done twice it has one effect."""
    async with pool.connection() as connection, connection.transaction():
        await connection.execute(
            "insert into sack select * from unnest(%s::int[], %s::text[]) on conflict do nothing",
            [list(numbers), [f"sack {number}" for number in numbers]],
        )


if __name__ == "__main__":
    trio.run(main)
