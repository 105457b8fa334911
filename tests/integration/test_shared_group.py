"""Three processes in one group on real servers: each event is handled once, whoever dies or freezes, and in order.

The times are short, so that CI need not wait; `docs/how-to/scale-out.md` has the defaults, and what was seen with them.
"""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
import redis
from attrs import define
from installation import Installation, until

SYSTEM = f"{Path(__file__).parent / 'shared_shop.py'}:system"
IDLE, TTL, BEAT = 5.0, 3.0, 1.0
TIMES = {
    "PENSTOCK_DELIVERY_HANDLER_TIMEOUT": "3",
    "PENSTOCK_DELIVERY_RECLAIM_IDLE": f"{IDLE:g}",
    "PENSTOCK_DELIVERY_RECLAIM_EVERY": "1",
    "PENSTOCK_DELIVERY_LEASE_TTL": f"{TTL:g}",
    "PENSTOCK_DELIVERY_HEARTBEAT_EVERY": f"{BEAT:g}",
}
PARTITIONS = [f"{{ledger:{number}}}" for number in range(6)]


@define(eq=False)
class Shop:
    """Three processes, and a look at their servers."""

    processes: list[Installation]
    socket: str
    dsn: str

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def publish(self, through: Installation, stream: str, events: list[dict[str, Any]]) -> None:
        body = json.dumps(events).encode()
        path = f"/api/v1/streams/{stream}/events"
        status, _, answer = through.request("POST", path, body, {"Content-Type": "application/json"})
        assert status == 202, answer

    def publish_jobs(self, through: Installation, first: int, last: int) -> None:
        for start in range(first, last, 10):
            numbers = range(start, min(start + 10, last))
            self.publish(through, "jobs", [{"eventType": "JOB", "data": {"number": number}} for number in numbers])

    def publish_entries(self, through: Installation, first: int, last: int, accounts: int = 12) -> None:
        for number in range(first, last):
            events = [
                {"eventType": "ENTRY", "data": {"account": f"a{account}", "number": number}}
                for account in range(accounts)
            ]
            self.publish(through, "ledger", events)

    def jobs(self) -> list[int]:
        return sorted(row[0] for row in self.sql("select number from handled where kind = 'job'"))

    def entries(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for key, number in self.sql("select key, number from handled where kind = 'entry' order by id"):
            found.setdefault(key, []).append(number)
        return found

    def owners(self) -> dict[str, int]:
        """How many partitions each living owner has, by its pid."""
        statement = """
            select pid, count(*) from penstock_lease join penstock_member on owner = process
            where expires_at > now() group by pid
        """
        return dict(self.sql(statement))

    def consumers(self, stream: str, group: str) -> dict[str, int]:
        with redis.Redis(unix_socket_path=self.socket, db=1) as client:
            return {each["name"].decode(): each["pending"] for each in client.xinfo_consumers(stream, group)}

    def pending(self) -> int:
        places = [("jobs", "workers"), *((key, "books") for key in PARTITIONS)]
        return sum(sum(self.consumers(*place).values()) for place in places)


@pytest.fixture
def shop(installation: Installation) -> Iterator[Shop]:
    home = installation.directory / ".penstock"
    dsn = f"host={home / 'postgres'} dbname=theirs user=penstock"
    with psycopg.connect(f"host={home / 'postgres'} dbname=penstock user=penstock", autocommit=True) as connection:
        connection.execute("create database theirs")
    socket = str(home / "valkey" / "valkey.sock")
    urls = {
        "PENSTOCK_REDIS_URL": f"unix://{socket}?db=1",
        "PENSTOCK_POSTGRES_URL": f"postgresql://penstock@/theirs?host={quote(str(home / 'postgres'))}",
    }
    with tempfile.TemporaryDirectory(prefix="penstock-it-") as directory:
        processes = []
        for name in "abc":
            (Path(directory) / name).mkdir()
            processes.append(
                Installation(Path(directory) / name, environment={**urls, **TIMES}, arguments=("run", SYSTEM))
            )
        try:
            with ThreadPoolExecutor(len(processes)) as at_once:
                list(at_once.map(Installation.start, processes))
            yield Shop(processes, socket, dsn)
        finally:
            for process in processes:
                if process.process is not None and process.process.poll() is None:
                    process.process.send_signal(signal.SIGCONT)
            for process in processes:
                process.close()


def test_each_event_is_handled_once_though_a_process_is_killed_in_the_middle(shop: Shop) -> None:
    one, doomed, other = shop.processes
    shop.publish_jobs(one, 0, 300)
    until(lambda: len(shop.jobs()) >= 50, 30.0, "some are handled")
    shop.publish_jobs(doomed, 300, 500)
    last = 500

    def all_have_handled_some() -> bool:
        nonlocal last
        found = len(shop.sql("select distinct pid from handled")) == 3
        if not found:
            shop.publish_jobs(doomed, last, last + 10)
            last += 10
        return found

    until(all_have_handled_some, 30.0, "all three have a part in it")
    shop.publish_jobs(doomed, last, last + 100)
    doomed.kill()
    total = last + 400
    shop.publish_jobs(other, last + 100, total)
    took = until(lambda: len(shop.jobs()) >= total, IDLE + 40.0, "what it held is handled elsewhere")
    until(lambda: shop.pending() == 0, 30.0, "nothing is pending")
    assert shop.jobs() == list(range(total))
    print(f"taken over after {took:.1f} s")
    # It is silent for twelve beats, and its consumer idle for as long as an entry may be.
    until(lambda: len(shop.consumers("jobs", "workers")) == 2, 12 * BEAT + 20.0, "no consumer is left behind")
    for process in (one, other):
        assert process.terminate() == 0
    # Who could not take itself out of the group at its end, Redis being slow, leaves nothing there at least.
    assert not any(shop.consumers("jobs", "workers").values())
    assert shop.sql("select count(*) from penstock_member where seen_at > now() - interval '2 s'") == [(0,)]


def test_order_by_key_is_kept_through_a_kill_and_a_freeze_longer_than_the_lease(shop: Shop) -> None:
    one, doomed, frozen = shop.processes
    until(lambda: sorted(shop.owners().values()) == [2, 2, 2], 30.0, "each has its share")
    shop.publish_entries(one, 0, 40)
    doomed.kill()
    shop.publish_entries(one, 40, 60)
    until(lambda: sorted(shop.owners().values()) == [3, 3], TTL + 20.0, "the other two have its partitions")
    assert frozen.process is not None
    shop.publish_entries(one, 60, 80)
    frozen.process.send_signal(signal.SIGSTOP)
    shop.publish_entries(one, 80, 100)
    until(lambda: list(shop.owners().values()) == [6], TTL + 30.0, "one has everything")
    shop.publish_entries(one, 100, 110)
    frozen.process.send_signal(signal.SIGCONT)
    shop.publish_entries(one, 110, 130)
    until(lambda: sorted(shop.owners().values()) == [3, 3], 30.0, "it is back, and gets its share")
    shop.publish_entries(one, 130, 140)
    until(lambda: sum(map(len, shop.entries().values())) >= 12 * 140, 60.0, "all are handled")
    until(lambda: shop.pending() == 0, 30.0, "nothing is pending")
    assert shop.entries() == {f"a{account}": list(range(140)) for account in range(12)}
    assert frozen.terminate() == 0
    took = until(lambda: list(shop.owners().values()) == [6], TTL + 10.0, "who stops hands its partitions over")
    print(f"handed over within {took:.1f} s")
    assert one.terminate() == 0
    assert shop.owners() == {}
