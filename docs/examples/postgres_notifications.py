"""An outbox that is relayed as soon as something is in it: LISTEN wakes, the table tells, a gap is swept.

POSTGRES_URL=postgresql://… python docs/examples/postgres_notifications.py
"""

# ruff: noqa: T201 - an example shows what it does
from __future__ import annotations

import os

import trio

from penstock.runtime.postgres import Gap, Pool, PostgresOptions, listen

TAKE = "delete from outbox where id in (select id from outbox order by id limit 100) returning id, payload"


async def relay(pool: Pool, listener: PostgresOptions, task_status: trio.TaskStatus[None]) -> None:
    """Relay for ever. Listen first, then look: what comes in between is both heard and found, never neither."""
    async with listen(listener, "outbox", on_trouble=tell) as notifications:
        await sweep(pool)
        task_status.started()
        async for item in notifications:
            if isinstance(item, Gap):
                print("a gap: notifications may be missing, so the table is looked at")
            # One sweep does for all that is known by now.
            notifications.drain()
            await sweep(pool)


def tell(error: Exception) -> None:
    print("the listener lost its server")


async def sweep(pool: Pool) -> None:
    """Send what is in the outbox, in order."""
    async with pool.connection() as connection:
        while True:
            # Committed only after it was sent: a crash in between sends again.
            async with connection.transaction():
                rows = sorted(await (await connection.execute(TAKE)).fetchall())
                for _, payload in rows:
                    print("relayed:", payload)
            if not rows:
                return


async def put(pool: Pool, payload: str) -> None:
    """The row and its notification are committed together, or neither is."""
    async with pool.connection() as connection, connection.transaction():
        await connection.execute("insert into outbox (payload) values (%s)", [payload])
        await connection.execute("select pg_notify('outbox', '')")


async def until_empty(pool: Pool) -> None:
    async with pool.connection() as connection:
        waiting = "select from outbox limit 1"
        while (await connection.execute(waiting)).rowcount:  # noqa: ASYNC110 - only a table tells
            await trio.sleep(0.01)


async def main() -> None:
    options = PostgresOptions.from_url(os.environ["POSTGRES_URL"])
    listener = PostgresOptions.from_url(os.environ["POSTGRES_URL"], application_name="listener")
    async with Pool(options) as pool, trio.open_nursery() as nursery:
        async with pool.connection() as connection:
            await connection.execute(
                "create table if not exists outbox (id bigserial primary key, payload text not null)"
            )
        await put(pool, "from before the start")
        await nursery.start(relay, pool, listener)

        await put(pool, "heard")
        await until_empty(pool)

        # Somebody ends the session that listens; the relay notices, connects again and sweeps.
        async with pool.connection() as connection:
            await connection.execute("insert into outbox (payload) values ('never notified')")
            await connection.execute(
                "select pg_terminate_backend(pid, 5000) from pg_stat_activity where application_name = 'listener'"
            )
        await until_empty(pool)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
