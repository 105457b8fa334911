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

        until(in_step, 30.0, "the replica is in step")
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
        """The logs of all its runs."""
        logs = [self.installation.directory / f"log-{number + 1}.txt" for number in range(self.installation.runs)]
        return [json.loads(line) for log in logs for line in log.read_text().splitlines()]

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
        until(lambda: not load.missing(), LOOK_BACK + 20.0, "all accepted events are rows")
        # What was acknowledged to a master that was replaced is looked for again every LOOK_BACK seconds.
        until(lambda: self.pending() == 0, LOOK_BACK + 20.0, "nothing is pending")
        installation = self.installation
        assert installation.sql("select count(*) - count(distinct event_id) from access_event") == [(0,)]
        assert installation.sql("select count(*) from penstock_dead_letter") == [(0,)]
        restarts = [installation.child(f"{PIPELINE}/{name}")["restarts"] for name in CONSUMERS]
        assert restarts == [0, 0, 0]
        assert load.broken == []
        told = [fact["event"] for fact in self.facts()]
        assert told.count("group made") == 1
        assert "group is lost, making it again" not in told


PATIENT = {"PENSTOCK_REDIS_STALL_AFTER": "4", "PENSTOCK_HEALTH_TIMEOUT": "10"}
"""With these it takes no busy machine for a server that fell silent."""

GIVEN_UP_AFTER = 1.0
"""Seconds; `cluster-node-timeout` while a failover is awaited."""

CONSUMERS = ("handler-pool", "listener-1", "listener-2")


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster.make(masters=3, replicas=1, node_timeout=15.0) as made:
        yield made


@pytest.fixture(scope="module")
def site(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests in which nothing happens that is to be noticed."""
    place: Path = tmp_path_factory.mktemp("site")
    place.chmod(0o755)
    environment = {"PENSTOCK_REDIS_URL": cluster.url, "PENSTOCK_LOG_FORMAT": "json", **PATIENT}
    installation = Installation(place, environment=environment)
    try:
        installation.start()
        yield Site(cluster, installation)
    finally:
        installation.close()


@pytest.fixture(scope="module")
def alert(site: Site) -> Site:
    """The same with Penstock's own times, from here on."""
    for name in PATIENT:
        del site.installation.environment[name]
    site.installation.terminate()
    site.installation.start()
    return site


@pytest.fixture(autouse=True)
def _in_order(cluster: LocalCluster) -> None:
    """A master that was replaced, and has just come back, believes in itself until the others have told it."""
    cluster.wait_ok()


def under_load(site: Site, happen: Callable[[], None], *, within: float) -> list[str]:
    """Let something happen under load, wait until all goes on, check the balance; why the gate was shut meanwhile."""
    lines = len(site.facts())
    with Load(site.installation).running() as load:
        until(lambda: len(load.accepted) > 200, 60.0, "load")
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
    assert under_load(site, lambda: site.cluster.fail_over(replica), within=30.0) == []
    assert site.owner is replica


def test_a_slot_that_moves_under_load_is_not_felt(site: Site) -> None:
    source = site.owner
    target = next(site.cluster.master_of(slot) for slot in (0, 8000, 16000) if site.cluster.master_of(slot) != source)
    move = slot_of(STREAM)
    assert under_load(site, lambda: site.cluster.migrate_slot(move, target, pause=0.3), within=30.0) == []
    assert site.owner is target


def test_a_replica_takes_over_from_an_owner_that_was_killed(alert: Site) -> None:
    site = alert
    owner, replica = site.owner, site.replica()

    def kill() -> None:
        owner.kill()
        until(lambda: site.is_master(replica), 30.0, "the replica has taken over")

    with site.cluster.giving_up_after(GIVEN_UP_AFTER):
        causes = under_load(site, kill, within=30.0)
    found = site.owner
    owner.start()
    assert found is replica
    assert any(f"127.0.0.1:{owner.port}" in cause for cause in causes)


@pytest.mark.parametrize("seconds", [0.0, 5.0])
def test_an_owner_that_was_frozen_finds_its_replica_in_its_place(alert: Site, seconds: float) -> None:
    """When it goes on, it acknowledges what it was sent, and throws it away with the rest: nobody must believe it."""
    site = alert
    owner, replica = site.owner, site.replica()

    def freeze() -> None:
        owner.freeze()
        started = time.monotonic()
        until(lambda: site.is_master(replica), 30.0, "the replica has taken over")
        until(lambda: time.monotonic() - started >= seconds, 30.0, "that long")
        owner.thaw()

    try:
        with site.cluster.giving_up_after(GIVEN_UP_AFTER):
            assert under_load(site, freeze, within=30.0) != []
    finally:
        owner.thaw()


def test_without_a_replica_all_wait_until_the_owner_is_back(alert: Site) -> None:
    """It is named, with its stream, for as long as it is away."""
    site = alert
    owner = site.owner
    for replica in site.cluster.replicas_of(owner):
        replica.kill()
    where = f"127.0.0.1:{owner.port}"
    ready: list[dict[str, Any]] = []

    def kill_and_start() -> None:
        owner.kill()
        until(lambda: site.states() == {"held"}, 30.0, "the listeners are held")
        until(lambda: named(), 30.0, "the node is named")
        owner.start()

    def named() -> bool:
        ready[:] = [site.installation.get("/readyz")[1]]
        cause = next((gate["cause"] for gate in ready[0]["gates"] if gate["name"] == "redis"), "")
        return f"node {where} (slots of {STREAM}) refuses connections" in cause and "cluster_state is fail" in cause

    with site.cluster.giving_up_after(GIVEN_UP_AFTER):
        assert under_load(site, kill_and_start, within=30.0) != []
    assert site.owner is owner
