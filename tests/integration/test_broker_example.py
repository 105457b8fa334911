"""docs/examples/broker.py as its reader runs it: on embedded servers, and on a cluster of three nodes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import redis
from installation import Installation, until

from penstock.runtime.testing.servers import LocalCluster, LocalNode

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ARGUMENTS = ("run", f"{EXAMPLES / 'broker.py'}:system")


@pytest.fixture
def site(place: Path) -> Iterator[Installation]:
    made = Installation(place, arguments=ARGUMENTS)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.make(masters=3) as made:
        yield made


def post(site: Installation, path: str, body: dict[str, Any]) -> Any:
    status, _, answer = site.request("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    assert status in (200, 202), answer
    return json.loads(answer)


def heard(site: Installation) -> list[tuple[str, str, str]]:
    """What it has heard and not lost: kind, channel, text."""
    news = site.get("/news")[1]["heard"]
    return sorted((each["kind"], each["channel"], each["data"].get("text", "")) for each in news if "data" in each)


def subscriptions(cluster: LocalCluster) -> tuple[int, int]:
    """On all nodes: to the channel, and to patterns."""
    by_name = by_pattern = 0
    for node in cluster.nodes:
        with cluster.admin(node) as admin:
            by_name += admin.pubsub_numsub("news:reports")[0][1]
            by_pattern += admin.pubsub_numpat()
    return by_name, by_pattern


def told_and_heard(site: Installation, cluster: LocalCluster, node: LocalNode) -> bool:
    """Tell something at the node; whether it was heard within two seconds, by name and by pattern, each once."""
    text = f"from {node.port}: {uuid4()}"
    with cluster.admin(node) as admin:
        admin.publish("news:reports", json.dumps({"text": text}))
    deadline = time.monotonic() + 2
    while [kind for kind, _, each in heard(site) if each == text] != ["message", "pmessage"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def add_flat(admin: redis.Redis, user: str, count: int) -> None:
    """As a program that has never heard of Penstock does."""
    for number in range(count):
        fields = {"userId": user, "eventType": f"click-{number}", "data": "x", "timestamp": f"17463276{number:05}"}
        admin.xadd("user-events", fields)  # type: ignore[arg-type]


def test_killed_within_its_jobs_it_loses_none_and_does_none_twice(site: Installation) -> None:
    with redis.Redis(unix_socket_path=str(site.directory / ".penstock" / "valkey" / "valkey.sock")) as admin:
        add_flat(admin, "ann", 25)
        until(lambda: site.get("/activity")[1].get("ann") == {"events": 25, "lastEvent": "click-24"}, 15, "counted")
        jobs = {post(site, "/reports", {"userId": "ann", "seconds": 1.5})["reportId"] for _ in range(4)}
        until(lambda: admin.keys("{reports}:taken:*"), 10, "jobs are in somebody's hands")
        site.kill()
    site.start()
    until(lambda: site.get("/reports")[1].keys() == jobs, 60, "all reports are written")
    assert {report["events"] for report in site.get("/reports")[1].values()} == {25}
    assert site.get("/api/v1/dead-letters")[1]["letters"] == []


def test_on_a_cluster_it_hears_what_is_published_at_any_node(cluster: LocalCluster, place: Path) -> None:
    with cluster.admin(cluster.master_of("user-events")) as admin:
        add_flat(admin, "bob", 25)  # before there is any group
    site = Installation(place, environment={"PENSTOCK_REDIS_URL": cluster.url}, arguments=ARGUMENTS)
    try:
        site.start()
        assert subscriptions(cluster) == (1, 1), "it is ready, and does not listen"
        for node in cluster.nodes:
            # The bus of a cluster drops what it cannot pass on while a link between two nodes is made again.
            told = partial(told_and_heard, site, cluster, node)
            until(told, 15, f"it has heard what was told at {node.port}")
        until(lambda: site.get("/activity")[1].get("bob") == {"events": 25, "lastEvent": "click-24"}, 15, "counted")
        job = post(site, "/reports", {"userId": "bob"})["reportId"]
        until(lambda: site.get("/reports")[1] == {job: {"userId": "bob", "events": 25}}, 15, "the report is written")
    finally:
        site.close()
