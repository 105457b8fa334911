"""The event system on a Redis Cluster of real servers that fail, fail over and move slots under load.

What was accepted is a row, once; the group is made once and never again; the listeners come back by themselves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.exceptions
from attrs import define
from installation import PIPELINE, STREAM, Installation, Load, until

from penstock.actors.reading_on import LOOK_BACK
from penstock.runtime.redis.slots import slot_of
from penstock.runtime.testing.servers import LocalCluster, LocalNode


@define(eq=False)
class Site:
    """An installation on a cluster.

    Attributes:
        cluster: three masters, each with a replica.
        installation: S1, with a PostgreSQL of its own.
    """

    cluster: LocalCluster
    installation: Installation

    @property
    def owner(self) -> LocalNode:
        """The master that has the stream."""
        return self.cluster.master_of(STREAM)

    def replica(self) -> LocalNode:
        """The owner's replica, once it is in step."""

        def in_step() -> bool:
            with self.cluster.admin(self.owner) as admin:
                return dict(admin.info("replication").get("slave0", {})).get("state") == "online"

        until(in_step, 15.0, "the replica is in step")
        (found,) = self.cluster.replicas_of(self.owner)
        return found

    def is_master(self, node: LocalNode) -> bool:
        try:
            with self.cluster.admin(node) as admin:
                return bool(admin.role()[0] == "master")  # type: ignore[no-untyped-call]
        except redis.exceptions.RedisError:
            return False  # it is busy, which is no answer

    def pending(self) -> int:
        """Entries that the group has not been given, or has not acknowledged."""
        with self.cluster.admin(self.owner) as admin:
            groups: list[dict[str, Any]] = admin.xinfo_groups(STREAM)  # type: ignore[assignment]
        return sum(int(group["pending"]) + int(group["lag"] or 0) for group in groups)

    def facts(self) -> list[dict[str, Any]]:
        """The log."""
        return [json.loads(line) for line in self.installation.log.splitlines()]

    def shut(self, since: int) -> list[str]:
        """Why the gate `redis` was shut, in the log after its first `since` lines."""
        return [
            fact["cause"]
            for fact in self.facts()[since:]
            if fact.get("lifecycle") == "gate_shut" and fact["gate"] == "redis"
        ]

    def states(self) -> set[str]:
        return {self.installation.child(f"{PIPELINE}/listener-{number}")["state"] for number in (1, 2)}

    def until_serving(self, load: Load, limit: float) -> float:
        """Wait until the listeners run and events are accepted and stored again; the seconds that it took."""
        started = time.monotonic()
        count = len(load.accepted)
        until(lambda: self.states() == {"running"}, limit, "the listeners are back")
        until(lambda: len(load.accepted) > count + 100, limit, "load goes on")
        return time.monotonic() - started

    def check_balance(self, load: Load) -> None:
        """Every accepted event is a row, once; nothing is pending, nobody was restarted, the group was made once."""
        until(lambda: not load.missing(), 20.0, "all accepted events are rows")
        # What was acknowledged to a master that was replaced is looked for again every LOOK_BACK seconds.
        until(lambda: self.pending() == 0, LOOK_BACK + 10.0, "nothing is pending")
        installation = self.installation
        assert installation.sql("select count(*) - count(distinct event_id) from access_event") == [(0,)]
        assert installation.sql("select count(*) from penstock_dead_letter") == [(0,)]
        restarts = [installation.child(f"{PIPELINE}/{name}")["restarts"] for name in CONSUMERS]
        assert restarts == [0, 0, 0]
        assert load.broken == []
        told = [fact["event"] for fact in self.facts()]
        assert told.count("group made") == 1
        assert "group is lost, making it again" not in told


CONSUMERS = ("handler-pool", "listener-1", "listener-2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.make(masters=3, replicas=1) as made:
        yield made


@pytest.fixture(scope="module")
def site(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place: Path = tmp_path_factory.mktemp("site")
    place.chmod(0o755)
    installation = Installation(place, environment={"PENSTOCK_REDIS_URL": cluster.url, "PENSTOCK_LOG_FORMAT": "json"})
    try:
        installation.start()
        yield Site(cluster, installation)
    finally:
        installation.close()


@pytest.fixture(autouse=True)
def _in_order(cluster: LocalCluster) -> None:
    """A master that was replaced, and has just come back, believes in itself until the others have told it."""
    cluster.wait_ok()


def under_load(site: Site, happen: Callable[[], None], *, within: float) -> list[str]:
    """Let something happen under load, wait until all goes on, check the balance; why the gate was shut meanwhile."""
    lines = len(site.facts())
    with Load(site.installation).running() as load:
        until(lambda: len(load.accepted) > 200, 20.0, "load")
        happen()
        site.until_serving(load, within)
    site.check_balance(load)
    return site.shut(lines)


def test_the_nodes_are_shown_and_checked(site: Site) -> None:
    where = f"127.0.0.1:{site.owner.port}"
    cluster = site.installation.get("/readyz")[1]["cluster"]
    assert (cluster["state"], cluster["slots"], len(cluster["nodes"])) == ("ok", 16384, 6)
    assert [node["address"] for node in cluster["nodes"] if node["streams"] == [STREAM]] == [where]
    with site.cluster.admin(site.owner) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        checked = site.installation.command("check", "--json")
        admin.config_set("maxmemory-policy", "noeviction")
    assert checked.returncode == 0, checked.stderr
    findings = {each["what"]: each for each in json.loads(checked.stdout)}
    assert findings["redis.url slots"]["detail"].startswith("3 masters own 16384 of 16384 slots")
    owner = findings[f"redis.url {where}"]
    assert f"master, 5461 slots, {STREAM}; " in owner["detail"]
    assert "allkeys-lru" in owner["detail"]
    assert "set maxmemory-policy noeviction" in owner["mend"]
    assert sum(each["detail"] == "replica" for each in findings.values()) == 3


def test_a_planned_failover_is_not_felt(site: Site) -> None:
    """`CLUSTER FAILOVER`: nobody is held, and the entries that were pending are where they were."""
    replica = site.replica()
    assert under_load(site, lambda: site.cluster.fail_over(replica), within=10.0) == []
    assert site.owner is replica


def test_a_slot_that_moves_under_load_is_not_felt(site: Site) -> None:
    source = site.owner
    target = next(site.cluster.master_of(slot) for slot in (0, 8000, 16000) if site.cluster.master_of(slot) != source)
    move = slot_of(STREAM)
    assert under_load(site, lambda: site.cluster.migrate_slot(move, target, pause=0.3), within=10.0) == []
    assert site.owner is target


def test_a_replica_takes_over_from_an_owner_that_was_killed(site: Site) -> None:
    owner, replica = site.owner, site.replica()
    causes = under_load(site, owner.kill, within=15.0)
    assert site.owner is replica
    owner.start()
    assert f"127.0.0.1:{owner.port}" in causes[0]


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_an_owner_that_was_frozen_finds_its_replica_in_its_place(site: Site, seconds: float) -> None:
    """When it goes on, it acknowledges what it was sent, and throws it away with the rest: nobody must believe it."""
    owner, replica = site.owner, site.replica()

    def freeze() -> None:
        owner.freeze()
        started = time.monotonic()
        until(lambda: site.is_master(replica), 15.0, "the replica has taken over")
        until(lambda: time.monotonic() - started >= seconds, 10.0, "that long")
        owner.thaw()

    try:
        assert under_load(site, freeze, within=10.0) != []
    finally:
        owner.thaw()


def test_without_a_replica_all_wait_until_the_owner_is_back(site: Site) -> None:
    """It is named, with its stream, for as long as it is away."""
    owner = site.owner
    for replica in site.cluster.replicas_of(owner):
        replica.kill()
    where = f"127.0.0.1:{owner.port}"
    ready: list[dict[str, Any]] = []

    def kill_and_start() -> None:
        owner.kill()
        until(lambda: site.states() == {"held"}, 5.0, "the listeners are held")
        until(lambda: named(), 10.0, "the node is named")
        owner.start()

    def named() -> bool:
        ready[:] = [site.installation.get("/readyz")[1]]
        cause = next((gate["cause"] for gate in ready[0]["gates"] if gate["name"] == "redis"), "")
        return f"node {where} (slots of {STREAM}) refuses connections" in cause and "cluster_state is fail" in cause

    assert under_load(site, kill_and_start, within=20.0) != []
    assert site.owner is owner
