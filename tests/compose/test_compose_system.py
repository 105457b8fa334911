"""The whole of compose.yaml on this machine: its nodes, entry programs and settings, and Penstock on them under load.

The demonstration of the source (stop node 2, watch, start it), and a failover without an operator. What was accepted
is a row, once. COMPOSE_ROUNDS=20 in the environment stops and starts nodes that many times instead of once, and another
one than node 2, too; `pytest -s` shows how long everything took.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attrs import define
from composition import COMPOSE, PRODUCTION, service
from installation import PIPELINE, STREAM, Installation, Load, until
from local_nodes import NAMES, Nodes, local_nodes

from penstock.actors.reading_on import LOOK_BACK
from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.testing.servers import LocalNode

LONG = "COMPOSE_ROUNDS" in os.environ
ROUNDS = int(os.environ.get("COMPOSE_ROUNDS", "1"))

pytestmark = pytest.mark.timeout(120 + 90 * ROUNDS)


@define(eq=False)
class Site:
    """Penstock as compose.yaml has it, with the servers beside it.

    Attributes:
        nodes: all six; those of the profile `replicas` are started by the test that is about them.
        installation: Penstock, with the environment of its service, but with a PostgreSQL of its own.
    """

    nodes: Nodes
    installation: Installation

    @property
    def masters(self) -> list[LocalNode]:
        return [self.nodes.node(name) for name in NAMES[:3]]

    def readyz(self) -> tuple[int, dict[str, Any]]:
        status, ready = self.installation.get("/readyz")
        return status, dict(ready)

    def listeners(self) -> set[str]:
        return {self.installation.child(f"{PIPELINE}/listener-{number}")["state"] for number in (1, 2)}

    def is_serving(self) -> bool:
        """Whether the gate is open and the listeners run."""
        return self.readyz()[0] == 200 and self.listeners() == {"running"}

    def until_serving(self, load: Load) -> float:
        """Wait until the listeners run and events are accepted again; how long it took, in seconds."""
        seconds = until(self.is_serving, 45.0, "the listeners are back")
        count = len(load.accepted)
        return seconds + until(lambda: len(load.accepted) > count + 100, 45.0, "load goes on")

    def pending(self) -> int:
        with self.nodes.admin(self.nodes.master_of(STREAM)) as admin:
            groups: list[dict[str, Any]] = admin.xinfo_groups(STREAM)  # type: ignore[assignment]
        return sum(int(group["pending"]) + int(group["lag"] or 0) for group in groups)

    def check_balance(self, load: Load) -> None:
        """Every accepted event is one row and one effect: none is missing, none is there twice."""
        until(lambda: not load.missing() and self.pending() == 0, LOOK_BACK + 20.0, "all accepted events are rows")
        sql = self.installation.sql
        assert load.accepted
        assert load.missing() == set()
        assert sql("select count(*) - count(distinct event_id) from access_event") == [(0,)]
        handled = {str(event) for (event,) in sql("select event_id from penstock_inbox")}
        assert load.accepted <= handled
        assert sql("select count(*) from penstock_dead_letter") == [(0,)]
        assert load.broken == []
        print(f"{len(load.accepted)} events accepted, {load.refused} requests refused; none missing, none twice")

    def refusals(self) -> list[dict[str, Any]]:
        """What Penstock's user was refused, of all that run."""
        found: list[dict[str, Any]] = []
        for node in self.nodes.nodes:
            if node.running:
                with self.nodes.admin(node) as admin:
                    found += admin.acl_log()  # type: ignore[misc]
        return found

    def gate_causes(self) -> list[str]:
        facts = [json.loads(line) for line in self.installation.log.splitlines()]
        shut = [fact for fact in facts if fact.get("lifecycle") == "gate_shut" and fact["gate"] == "redis"]
        return [str(fact["cause"]) for fact in shut]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place: Path = tmp_path_factory.mktemp("penstock")
    place.chmod(0o755)
    with local_nodes(str(valkey_server()), names=NAMES, start=False) as nodes:
        for name in NAMES[:3]:
            nodes.node(name).start()
        code, said = nodes.run_entry()
        assert code == 0, said
        environment = dict(service("penstock", PRODUCTION)["environment"])
        environment["PENSTOCK_REDIS_URL"] = nodes.url
        environment["PENSTOCK_CONFIG"] = str(COMPOSE / "penstock.toml")
        del environment["PENSTOCK_POSTGRES_URL"]
        installation = Installation(place, environment=environment)
        try:
            installation.start()
            yield Site(nodes, installation)
        finally:
            installation.close()


def outage(site: Site, load: Load, node: LocalNode) -> None:
    """Stop a node for good, watch, start it, watch."""
    node.kill()
    noticed = until(lambda: site.readyz()[0] == 503 and site.listeners() == {"held"}, 30.0, "the listeners are held")
    status, ready = site.readyz()
    assert status == 503
    (gate,) = [each for each in ready["gates"] if each["name"] == "redis"]
    assert gate["cause"]
    assert site.installation.get("/healthz")[0] == 200  # nobody restarts the container for it
    node.start()
    print(f"held after {noticed:.1f} s ({gate['cause']}); back {site.until_serving(load):.1f} s after the start")


def test_node_2_is_stopped_and_comes_back(site: Site) -> None:
    """It has the stream; without a replica of it nothing is served until it is back."""
    node = site.nodes.node("redis-2")
    assert site.nodes.master_of(STREAM) is node
    before = {number: site.installation.child(f"{PIPELINE}/listener-{number}")["incarnation"] for number in (1, 2)}
    with Load(site.installation).running() as load:
        until(lambda: len(load.accepted) > 200, 30.0, "load")
        for _ in range(ROUNDS):
            outage(site, load, node)
    site.check_balance(load)
    for number, incarnation in before.items():
        child = site.installation.child(f"{PIPELINE}/listener-{number}")
        assert child["incarnation"] > incarnation
        assert child["restarts"] == 0
    assert any(str(node.port) in cause for cause in site.gate_causes())


@pytest.mark.skipif(not LONG, reason="takes long: set COMPOSE_ROUNDS")
def test_a_node_that_has_nothing_of_ours_stops_everything_as_well(site: Site) -> None:
    """`cluster-require-full-coverage`: one cause for all, and not one for each stream."""
    node = site.nodes.node("redis-3")
    with Load(site.installation).running() as load:
        until(lambda: len(load.accepted) > 200, 30.0, "load")
        for _ in range(ROUNDS):
            outage(site, load, node)
    site.check_balance(load)


def test_with_replicas_there_is_a_failover_without_an_operator(site: Site) -> None:
    """They are attached while events come in; then the owner of the stream dies, and nobody starts it."""
    with Load(site.installation).running() as load:
        until(lambda: len(load.accepted) > 200, 30.0, "load")
        for name in NAMES[3:]:
            site.nodes.node(name).start()
        code, said = site.nodes.run_entry("redis-replicas")
        assert code == 0, said
        for _ in range(ROUNDS):
            owner = site.nodes.master_of(STREAM)
            (replica,) = site.nodes.replicas_of(owner)
            owner.kill()
            until(lambda: site.readyz()[0] == 503, 30.0, "the gate is shut")
            print(f"served by the replica {site.until_serving(load):.1f} s after the gate shut")
            assert site.nodes.master_of(STREAM) is replica
            assert not owner.running
            # The old one comes back, as a replica; the entry programs find nothing to do.
            owner.start()
            for entry in ("redis-cluster", "redis-replicas"):
                code, said = site.nodes.run_entry(entry)
                assert code == 0, said
            assert site.nodes.replicas_of(replica) == [owner]
            assert site.nodes.master_of(STREAM) is replica
    site.check_balance(load)


def test_penstock_s_user_was_refused_nothing(site: Site) -> None:
    """By the tests above it has done whatever it does."""
    checked = site.installation.command("check")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert site.refusals() == []


def test_the_health_check_of_the_image(site: Site) -> None:
    text = (COMPOSE / "Dockerfile").read_text()
    (command,) = re.findall(r"HEALTHCHECK [^\n]*\\\n\s+CMD (\[.*\])", text)
    python, option, program = json.loads(command)
    assert (python, option) == ("python", "-c")

    def exit_code(port: int) -> int:
        there = program.replace(":47170/", f":{port}/")
        assert there != program
        return subprocess.run([sys.executable, "-c", there], capture_output=True, timeout=20, check=False).returncode

    assert exit_code(site.installation.port) == 0
    assert exit_code(1) != 0


def test_stopping_the_container_is_an_ordered_stop(site: Site) -> None:
    grace = float(service("penstock", PRODUCTION)["stop_grace_period"].removesuffix("s"))
    started = time.monotonic()
    assert site.installation.terminate(limit=grace) == 0
    assert time.monotonic() - started < grace
    assert '"event-system/http has stopped"' in site.installation.log
