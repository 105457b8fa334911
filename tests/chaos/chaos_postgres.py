"""The same for the PostgreSQL link: many tasks on one pool, and a server that is killed, frozen and cut off."""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import shutil
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import trio
from attrs import define, field
from chaos_book import Book, Channel, Fate, Outcome, open_sockets, running_tasks
from chaos_proxy import Proxy

from penstock.runtime.postgres import (
    Gap,
    Notification,
    Notifications,
    Pool,
    PostgresOptions,
    PostgresUnavailable,
    listen,
)
from penstock.runtime.testing.servers import free_port

__all__ = ["run_postgres"]

# The server of the link's own tests. A conftest cannot be imported by its name.
_SPEC = importlib.util.spec_from_file_location(
    "postgres_servers", Path(__file__).parents[1] / "runtime" / "postgres" / "conftest.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
postgres_servers = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(postgres_servers)

PATIENCE = 4.0
"""What each task gives a statement; the link has no deadline of its own: it cannot know how long one takes."""

GRACE = 1.0
# Cancelling: the statement, the rollback and the pool's own clean-up have a grace each, and a cancel request has two.
LIMIT = PATIENCE + 6 * GRACE + 1.5
_TABLES = """
create table entry (token text primary key, batch text);
create table counter (name text primary key, value int not null);
"""


_Write = Callable[[Any, list[str], str], Awaitable[None]]
"""Write these tokens on this connection as this batch."""


@define(eq=False)
class _Ledger:
    """What is known of the tokens that were written."""

    sure: set[str] = field(factory=set)
    perhaps: set[str] = field(factory=set)
    cancelled: set[str] = field(factory=set)
    batches: dict[str, int] = field(factory=dict)
    counts: dict[str, list[int]] = field(factory=dict)  # name -> [sure, perhaps, last]


@define(eq=False)
class _Statements:
    """The tasks on one pool."""

    pool: Pool
    book: Book
    running: bool = True
    ledger: _Ledger = field(factory=_Ledger)
    channel: Channel = field(factory=lambda: Channel("notified", strict=True))
    _tokens: Any = field(factory=itertools.count)

    async def run(self) -> None:
        """Until `running` is false."""
        works = {
            self._echo: 5,
            self._insert: 4,
            self._transaction: 3,
            self._count: 3,
            self._copy: 2,
            self._executemany: 2,
            self._stream: 2,
            self._notify: 1,
        }
        async with trio.open_nursery() as nursery:
            await nursery.start(self._listen)
            for work, number in works.items():
                for each in range(number):
                    nursery.start_soon(self._repeat, work, f"{work.__name__[1:]}:{each}")

    async def _repeat(self, work: Callable[[str, random.Random], Awaitable[Outcome]], name: str) -> None:
        rng = self.book.rng(name)
        while self.running:
            outcome = await work(name, rng)
            await trio.sleep(rng.expovariate(100) if outcome.done else 0.02)
        since = trio.current_time()
        while not (await work(name, rng)).done:
            if trio.current_time() - since > 30:
                self.book.wrong(f"{name} does not get through 30 s after the last fault")
                return
            await trio.sleep(0.05)

    async def _call(self, work: str, rng: random.Random, command: Callable[[], Awaitable[Any]]) -> tuple[Outcome, bool]:
        """Whether it was cancelled early stands beside the outcome."""
        early = self.running and rng.random() < 0.125
        patience = rng.choice([0.0, rng.uniform(0, 0.003), rng.uniform(0, 0.3)]) if early else PATIENCE
        results: list[Any] = []

        async def bounded() -> Any:
            with trio.move_on_after(patience):
                results.append(await command())
            return results

        outcome = await self.book.call(work, LIMIT - PATIENCE + patience, bounded)
        if outcome.done and not results:
            return Outcome(Fate.UNKNOWN), True
        return (Outcome(Fate.DONE, results[0]) if outcome.done else outcome), False

    def _token(self, name: str, rng: random.Random) -> str:
        return f"{name}/{next(self._tokens)}/" + "x" * rng.choice([0, 10, 300, 5000])

    async def _echo(self, name: str, rng: random.Random) -> Outcome:
        token = self._token(name, rng)

        async def run() -> Any:
            async with self.pool.connection() as connection:
                return await (await connection.execute("select %s::text, %s::int", [token, len(token)])).fetchall()

        outcome, _ = await self._call("select", rng, run)
        if outcome.done and outcome.value != [(token, len(token))]:
            self.book.wrong(f"WRONG REPLY: select of {token[:60]} got {str(outcome.value)[:100]}")
        return outcome

    async def _insert(self, name: str, rng: random.Random) -> Outcome:
        token = self._token(name, rng)

        async def run() -> Any:
            async with self.pool.connection() as connection:
                await connection.execute("insert into entry values (%s, null)", [token])

        outcome, cancelled = await self._call("insert", rng, run)
        self._book_tokens(outcome, cancelled, [token])
        return outcome

    async def _transaction(self, name: str, rng: random.Random) -> Outcome:
        """Two statements: both or none."""
        return await self._batch("transaction", name, rng, 2, self._insert_both)

    async def _insert_both(self, connection: Any, tokens: list[str], batch: str) -> None:
        for token in tokens:
            await connection.execute("insert into entry values (%s, %s)", [token, batch])

    async def _executemany(self, name: str, rng: random.Random) -> Outcome:
        async def write(connection: Any, tokens: list[str], batch: str) -> None:
            async with connection.cursor() as cursor:
                await cursor.executemany("insert into entry values (%s, %s)", [(token, batch) for token in tokens])

        return await self._batch("executemany", name, rng, 20, write)

    async def _copy(self, name: str, rng: random.Random) -> Outcome:
        async def write(connection: Any, tokens: list[str], batch: str) -> None:
            async with connection.cursor() as cursor, cursor.copy("copy entry from stdin") as copy:
                for token in tokens:
                    await copy.write_row((token, batch))

        return await self._batch("COPY", name, rng, 30, write)

    async def _batch(
        self,
        work: str,
        name: str,
        rng: random.Random,
        size: int,
        write: Callable[[Any, list[str], str], Awaitable[None]],
    ) -> Outcome:
        tokens = [self._token(name, rng) for _ in range(size)]
        batch = tokens[0]

        async def run() -> None:
            async with self.pool.connection() as connection, connection.transaction():
                await write(connection, tokens, batch)

        outcome, cancelled = await self._call(work, rng, run)
        self.ledger.batches[batch] = size
        self._book_tokens(outcome, cancelled, tokens)
        return outcome

    def _book_tokens(self, outcome: Outcome, cancelled: bool, tokens: list[str]) -> None:
        known = self.ledger.sure if outcome.done else self.ledger.cancelled if cancelled else self.ledger.perhaps
        known.update(tokens)

    async def _count(self, name: str, rng: random.Random) -> Outcome:
        count = self.ledger.counts.setdefault(name, [0, 0, 0])

        async def run() -> Any:
            async with self.pool.connection() as connection:
                statement = (
                    "insert into counter values (%s, 1)"
                    " on conflict (name) do update set value = counter.value + 1 returning value"
                )
                row = await (await connection.execute(statement, [name])).fetchone()
                return row[0] if row else None

        outcome, _ = await self._call("upsert", rng, run)
        if not outcome.done:
            count[1] += 1
            return outcome
        count[0] += 1
        if not max(count[0], count[2] + 1) <= outcome.value <= count[0] + count[1]:
            self.book.wrong(
                f"WRONG REPLY or LOST: {name} is {outcome.value} after {count[0]} increments, {count[1]} unknown,"
                f" the last was {count[2]}"
            )
        count[2] = outcome.value
        return outcome

    async def _stream(self, name: str, rng: random.Random) -> Outcome:
        """A server cursor in the middle of which anything may happen."""
        start = rng.randrange(10**6)

        async def run() -> list[int]:
            found = []
            async with self.pool.connection() as connection, connection.transaction():
                async with connection.cursor(f"c{start}") as cursor:
                    cursor.itersize = 50
                    await cursor.execute("select generate_series(%s::int, %s::int)", [start, start + 300])
                    async for (number,) in cursor:
                        found.append(number)
            return found

        outcome, _ = await self._call("server cursor", rng, run)
        if outcome.done and outcome.value != list(range(start, start + 301)):
            self.book.wrong(f"WRONG REPLY: a server cursor from {start} gave {str(outcome.value)[:100]}")
        return outcome

    async def _notify(self, name: str, rng: random.Random) -> Outcome:
        number = len(self.channel.sent) + 1
        self.channel.sent[number] = Fate.UNKNOWN

        async def run() -> None:
            async with self.pool.connection() as connection:
                await connection.execute("select pg_notify(%s, %s)", [self.channel.name, str(number)])

        outcome, _ = await self._call("notify", rng, run)
        self.channel.sent[number] = outcome.fate
        return outcome

    async def _listen(self, task_status: trio.TaskStatus[None]) -> None:
        async with AsyncExitStack() as stack:
            notifications = await self._start_to_listen(stack)
            task_status.started()
            quiet = 0.0
            while self.running or quiet < 3.0:
                begin, item = trio.current_time(), None
                with trio.move_on_after(self.book.rng(str(begin)).choice([0.0, 0.01, 0.3])):
                    item = await anext(notifications)
                quiet = quiet + trio.current_time() - begin if item is None else 0.0
                if isinstance(item, Gap):
                    self.channel.log.append(None)
                elif isinstance(item, Notification):
                    self.channel.log.append(int(item.payload))

    async def _start_to_listen(self, stack: AsyncExitStack) -> Notifications:
        """Entering tells of an outage; from then on there is none to be seen."""
        while True:
            listening = listen(self.pool.options, self.channel.name, check_every=1.0, check_timeout=0.5)
            try:
                return await stack.enter_async_context(listening)
            except PostgresUnavailable:
                await trio.sleep(0.1)

    def settle(self, server: Any) -> None:
        """Hold the ledger to the tables."""
        with psycopg.connect(server.url, autocommit=True) as admin:
            rows = admin.execute("select token, batch from entry").fetchall()
            counts: dict[str, int] = dict(admin.execute("select name, value from counter").fetchall())
        there = {token for token, _ in rows}
        for token in self.ledger.sure - there:
            self.book.wrong(f"LOST: {token[:60]} was committed")
        sizes: dict[str, int] = {}
        for _, batch in rows:
            if batch is not None:
                sizes[batch] = sizes.get(batch, 0) + 1
        for batch, size in sizes.items():
            if size != self.ledger.batches[batch]:
                self.book.wrong(f"HALF A TRANSACTION: {size} of {self.ledger.batches[batch]} rows of {batch[:60]}")
        for name, (sure, perhaps, _) in self.ledger.counts.items():
            if not sure <= counts.get(name, 0) <= sure + perhaps:
                self.book.wrong(f"LOST or done twice: {name} is {counts.get(name)}, {sure} sure, {perhaps} unknown")
        for fault in self.channel.faults():
            self.book.wrong(f"notifications: {fault}")
        self.book.notes["notifications"] += len(self.channel.log)
        self.book.notes["gaps"] += self.channel.log.count(None)
        self.book.notes["rows committed"] += len(self.ledger.sure)
        self.book.notes["rows unknown"] += len(self.ledger.perhaps)
        self.book.notes["rows unknown that had happened"] += len(self.ledger.perhaps & there)
        self.book.notes["rows cancelled"] += len(self.ledger.cancelled)
        self.book.notes["rows cancelled that had happened"] += len(self.ledger.cancelled & there)


@define(eq=False)
class _Faults:
    """What happens to the server and to the connections."""

    book: Book
    rng: random.Random
    server: Any
    proxy: Proxy
    start: Callable[[], None]

    async def run(self) -> None:
        """Until cancelled; the fault under way is ended first."""
        faults: dict[str, Callable[[], Awaitable[None]]] = {
            "kill -9 of the server and restart": partial(self._restart, signal.SIGKILL),
            "immediate shutdown and restart": partial(self._restart, signal.SIGQUIT),
            "fast shutdown and restart": partial(self._restart, signal.SIGINT),
            "kill -9 of one backend": self._kill_backend,
            "SIGSTOP of the server": self._freeze,
            "SIGSTOP of one backend": self._freeze_backend,
            "pg_terminate_backend of all": partial(self._order, "pg_terminate_backend", False),
            "pg_terminate_backend of one": partial(self._order, "pg_terminate_backend", True),
            "pg_cancel_backend of one": partial(self._order, "pg_cancel_backend", True),
            "pg_cancel_backend of all": partial(self._order, "pg_cancel_backend", False),
            "cut within a message": self._cut,
            "cut of some connections": self._cut,
            "black hole": self._black_hole,
        }
        while True:
            await trio.sleep(self.rng.expovariate(1 / 0.8))
            name = self.rng.choice(list(faults))
            self.book.fault(name)
            with trio.CancelScope(shield=True):
                await faults[name]()

    async def _restart(self, how: signal.Signals) -> None:
        if how is signal.SIGKILL:
            self.server.send(signal.SIGKILL)  # the postmaster and all of its children
        await trio.to_thread.run_sync(partial(self.server.stop, how))
        await trio.sleep(self.rng.choice([0.0, 0.3, 1.5]))
        await trio.to_thread.run_sync(self.start)

    async def _kill_backend(self) -> None:
        """The server takes it for a crash and restarts all backends."""
        await trio.to_thread.run_sync(self._to_backend, signal.SIGKILL)

    async def _freeze(self) -> None:
        self.server.send(signal.SIGSTOP)
        await trio.sleep(self.rng.choice([0.1, 0.5, 3.0, 6.0]))
        self.server.send(signal.SIGCONT)

    async def _freeze_backend(self) -> None:
        pid = await trio.to_thread.run_sync(self._to_backend, signal.SIGSTOP)
        await trio.sleep(self.rng.choice([0.1, 1.0, 5.0]))
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _to_backend(self, number: signal.Signals) -> int | None:
        pids = self._query(
            "select pid from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        if not pids:
            return None
        pid = int(self.rng.choice(pids)[0])
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        return pid

    async def _order(self, function: str, one: bool) -> None:
        limit = " order by random() limit 1" if one else ""
        statement = (
            f"select {function}(pid) from (select pid from pg_stat_activity"
            f" where backend_type = 'client backend' and pid <> pg_backend_pid(){limit}) as chosen"
        )
        await trio.to_thread.run_sync(self._query, statement)

    def _query(self, statement: str) -> list[Any]:
        try:
            return list(self.server.execute(statement))
        except psycopg.Error:
            return []  # it was just killed

    async def _cut(self) -> None:
        self.proxy.cut(self.rng, self.rng.choice([0.3, 1.0]))
        await trio.lowlevel.checkpoint()

    async def _black_hole(self) -> None:
        self.proxy.hold()
        await trio.sleep(self.rng.choice([0.1, 1.0, 5.0]))
        if self.rng.random() < 0.5:
            self.proxy.cut(self.rng)
        self.proxy.release()


async def run_postgres(book: Book, seconds: float, program: str | None = None) -> None:
    """One server (always the embedded one) behind a proxy; what is committed survives kill -9."""
    server = postgres_servers.PostgresServer(postgres_servers._directory())
    port = free_port()
    settings = {"synchronous_commit": "on", "full_page_writes": "on", "listen_addresses": "127.0.0.1"}
    start = partial(server.start, **settings, port=str(port))
    postgres_servers._PORT = str(port)
    try:
        await trio.to_thread.run_sync(server.initialize)
        with (server.data / "pg_hba.conf").open("a") as access:
            access.write("host all postgres 127.0.0.1/32 trust\n")
        await trio.to_thread.run_sync(start)
        await trio.to_thread.run_sync(server.execute, _TABLES)
        async with trio.open_nursery() as nursery:
            proxy = Proxy(port)
            await nursery.start(proxy.serve)
            await _drive(book, seconds, server, proxy, start)
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(server.stop, signal.SIGQUIT))
        shutil.rmtree(server.directory)


async def _drive(book: Book, seconds: float, server: Any, proxy: Proxy, start: Callable[[], None]) -> None:
    options = PostgresOptions(
        host="127.0.0.1",
        port=str(proxy.port),
        user="postgres",
        database="postgres",
        connect_timeout=2.0,
        cancel_grace=GRACE,
        max_size=8,
    )
    sockets, tasks = open_sockets(), len(running_tasks())
    async with Pool(options, acquire_timeout=PATIENCE) as pool:
        statements = _Statements(pool, book)
        faults = _Faults(book, book.rng("faults"), server, proxy, start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(statements.run)
            with trio.move_on_after(seconds):
                await faults.run()
            book.mark("peace")
            await trio.sleep(1)
            statements.running = False
        await trio.to_thread.run_sync(statements.settle, server)
        seen = pool.statistics()
        if seen.in_use or seen.waiting:
            book.wrong(f"LEAK: at rest the pool counts {seen}")
        book.notes["connections opened"] += seen.opened
    with trio.move_on_after(10):
        while open_sockets() > sockets or len(running_tasks()) > tasks or await _backends(server):
            await trio.sleep(0.05)
    if (now := open_sockets()) > sockets:
        book.wrong(f"LEAK: {now - sockets} sockets are open after the pool was closed")
    if len(now_running := running_tasks()) > tasks:
        book.wrong(f"LEAK: {len(now_running) - tasks} tasks run after the pool was closed: {now_running}")
    if others := await _backends(server):
        book.wrong(f"LEAK: the server still has connections: {others}")


async def _backends(server: Any) -> list[Any]:
    """The link's connections that the server has."""
    statement = "select pid, state, query from pg_stat_activity where application_name = 'penstock'"
    return list(await trio.to_thread.run_sync(server.execute, statement))
