"""Three processes take from one queue, on a Redis Cluster: who is killed, frozen or stopped loses no job."""

from __future__ import annotations

import json
import signal
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import psycopg
import pytest
from attrs import define
from installation import Installation, NotYet, until

from penstock.runtime.testing.servers import LocalCluster

SYSTEM = f"{Path(__file__).parents[2] / 'docs' / 'examples' / 'thumbnails.py'}:system"
IDLE = 8.0  # longer than a drain
TIMES = {
    "PENSTOCK_DELIVERY_HANDLER_TIMEOUT": "3",
    "PENSTOCK_DELIVERY_RECLAIM_IDLE": f"{IDLE:g}",
    "PENSTOCK_DELIVERY_RECLAIM_EVERY": "1",
    "PENSTOCK_DELIVERY_HEARTBEAT_EVERY": "1",
}

pytestmark = pytest.mark.timeout(300)


@define(eq=False)
class Site:
    """The processes, and a look at what they have done."""

    processes: list[Installation]
    dsn: str

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(statement).fetchall()

    def upload(self, through: Installation, *images: str, seconds: float = 0.0) -> None:
        """One job for each image, in this order."""
        for image in images:
            data = {"image": image, "seconds": seconds}
            job = {"eventType": "RESIZE_IMAGE", "eventId": str(uuid4()), "data": data}
            until(partial(self._put, through, json.dumps(job).encode()), 30.0, f"{image} is accepted")

    def upload_by_the_page(self, through: Installation, image: str) -> None:
        """By the program's own route, which chooses the id: one job or, where it is sent again, more."""
        body = json.dumps({"image": image}).encode()
        until(partial(self._put, through, body, "/images"), 30.0, f"{image} is accepted")

    def _put(self, through: Installation, job: bytes, path: str = "/api/v1/queues/thumbnails/jobs") -> bool:
        """Raises NotYet for what is to be sent again, with the same id."""
        status, _, answer = through.request("POST", path, job, {"Content-Type": "application/json"})
        if status == 503:
            raise NotYet(answer)
        assert status == 202, answer
        return True

    def made(self) -> list[str]:
        return sorted(row[0] for row in self.sql("select image from thumbnail"))

    def queue(self, through: Installation) -> dict[str, Any]:
        [found] = through.look("/api/v1/queues")["queues"]
        return dict(found)

    def at_work(self, through: Installation) -> int:
        """How many of the processes have jobs."""
        return sum(each["taken"] > 0 for each in self.queue(through)["consumers"])

    def taken(self, through: Installation) -> int:
        return sum(each["taken"] for each in self.queue(through)["consumers"])


@pytest.fixture
def site() -> Iterator[Site]:
    with ExitStack() as stack:
        places = [Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-it-"))) for _ in "abc"]
        for place in places:
            place.chmod(0o755)
        cluster = stack.enter_context(LocalCluster.make(masters=3, replicas=0))
        # The first one has the database that is shared.
        home = places[0] / ".penstock" / "postgres"
        environment = {**TIMES, "PENSTOCK_REDIS_URL": cluster.url}
        theirs = {**environment, "PENSTOCK_POSTGRES_URL": f"postgresql://penstock@/penstock?host={quote(str(home))}"}
        processes = [
            Installation(place, environment=theirs if number else environment, arguments=("run", SYSTEM))
            for number, place in enumerate(places)
        ]
        try:
            processes[0].start()
            with ThreadPoolExecutor(2) as at_once:
                list(at_once.map(Installation.start, processes[1:]))
            yield Site(processes, f"host={home} dbname=penstock user=penstock")
        finally:
            for process in reversed(processes):
                if process.process is not None and process.process.poll() is None:
                    process.process.send_signal(signal.SIGCONT)
                process.close()


def test_each_job_is_done_once_though_who_had_it_is_killed_frozen_or_stopped(site: Site) -> None:
    one, doomed, frozen = site.processes
    assert doomed.process is not None
    assert frozen.process is not None
    images = [f"{number}.png" for number in range(60)]
    site.upload(one, *images[:3])
    until(lambda: len(site.made()) == 3, 30.0, "some are done")
    site.upload(one, *images[3:18], seconds=2.0)
    until(lambda: site.at_work(one) == 3, 30.0, "all are at work")
    doomed.kill()
    frozen.process.send_signal(signal.SIGSTOP)
    site.upload(one, *images[18:])
    until(lambda: len(site.queue(one)["consumers"]) == 1, IDLE + 40.0, "what both had is returned")
    # The one that froze goes on just when others wait for what its transactions hold.
    frozen.process.send_signal(signal.SIGCONT)
    until(lambda: len(site.made()) >= 60, 60.0, "all are done")
    until(lambda: site.taken(one) == 0, 30.0, "no list holds anything")
    assert site.made() == sorted(images)
    queue = site.queue(one)
    assert (queue["waiting"], queue["returned"], queue["oldest"]) == (0, 0, None)

    # A stop gives back at once what it cannot finish.
    site.upload(frozen, *(f"slow-{number}.png" for number in range(8)), seconds=6.0)
    until(lambda: site.at_work(one) == 2, 30.0, "both are at work")
    assert frozen.terminate() == 0

    def all_are_somewhere() -> bool:
        queue = site.queue(one)
        taken = [each["taken"] for each in queue["consumers"]]
        return len(taken) == 1 and queue["returned"] == 0 and queue["waiting"] + sum(taken) + len(site.made()) == 68

    until(all_are_somewhere, 30.0, "all are in the queue again, or with the other one, or done")
    told = one.command("queues").stdout
    assert told.splitlines()[0].split() == ["queue", "waiting", "returned", "taken", "next", "is"]
    until(lambda: len(site.made()) >= 68, 60.0, "the other one does it")
    assert len(set(site.made())) == len(site.made()) == 68

    told = one.command("ledger", "--summary", "--json").stdout
    [line] = json.loads(told)
    assert (line["group"], line["done"], line["unread"], line["inWork"]) == ("queue thumbnails", 68, 0, 0)

    # What cannot be done is a dead letter, and can be tried again in its queue.
    site.upload(one, "notes.txt")
    until(lambda: site.sql("select count(*) from penstock_dead_letter") == [(1,)], 30.0, "it is dead")
    [letter] = json.loads(one.command("dead-letters", "list", "--json").stdout)
    assert (letter["stream"], letter["group"]) == ("thumbnails", "queue thumbnails")
    refused = one.command("dead-letters", "replay", str(letter["id"]), "--to", "stream")
    assert refused.returncode != 0, "a job is in no stream"
    assert one.command("dead-letters", "replay", str(letter["id"])).returncode == 0
    until(
        lambda: (
            site.sql("select status, deliveries from penstock_dead_letter") == [("dead", 2)]
            or site.sql("select count(*) from penstock_dead_letter_audit where action = 'died'") == [(1,)]
        ),
        30.0,
        "it was tried again, and died again",
    )

    site.upload_by_the_page(one, "page.png")
    until(lambda: "page.png" in site.made(), 30.0, "it is done")
