"""Outages of real servers under load: nothing that was accepted is lost, nothing is there twice."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from installation import PIPELINE, Installation, Load, until

from penstock.actors.reading_on import LOOK_BACK

FROZEN = 20.0


def family(pid: int) -> list[int]:
    """A process and its children: a PostgreSQL server is many."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def runs(pid: int) -> bool:
    """Whether the process is there, and not only waiting for somebody to take note of its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def states(installation: Installation) -> set[str]:
    return {installation.child(f"{PIPELINE}/listener-{number}")["state"] for number in (1, 2)}


def log_of(installation: Installation) -> list[dict[str, Any]]:
    return [json.loads(line) for line in installation.log.splitlines()]


def first_shut(facts: list[dict[str, Any]], gate: str) -> dict[str, Any]:
    return next(each for each in facts if each.get("lifecycle") == "gate_shut" and each["gate"] == gate)


def check_balance(installation: Installation, load: Load) -> None:
    """Every accepted event is a row, once; nothing is pending; no restart budget was used."""
    until(lambda: installation.pending() == 0 and not load.missing(), LOOK_BACK + 20.0, "all accepted events are rows")
    assert load.missing() == set()
    assert installation.sql("select count(*) - count(distinct event_id) from access_event") == [(0,)]
    assert installation.sql("select count(*) from penstock_dead_letter") == [(0,)]
    for name in ("listener-1", "listener-2", "handler-pool"):
        assert installation.child(f"{PIPELINE}/{name}")["restarts"] == 0
    assert load.broken == []


@pytest.mark.parametrize(("server", "gate"), [("redis-server", "redis"), ("postgres-server", "postgres")])
def test_kill_9_of_a_server_under_load(installation: Installation, server: str, gate: str) -> None:
    with Load(installation).running() as load:
        until(lambda: len(load.accepted) > 300, 60.0, "load")
        pid = installation.pid(server)
        before = installation.child(f"{PIPELINE}/listener-1")["incarnation"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: installation.child(f"{PIPELINE}/listener-1")["incarnation"] > before, 60.0, "respawned")
        until(lambda: installation.get("/readyz")[0] == 200, 60.0, "ready again")
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 200, 60.0, "load goes on")
    check_balance(installation, load)
    facts = log_of(installation)
    shut = first_shut(facts, gate)
    held = [each["child"] for each in facts if each.get("lifecycle") == "child_held" and _caused(each, shut)]
    assert f"{PIPELINE}/listener-1" in held
    assert installation.pid(server) != pid


@pytest.mark.parametrize(("server", "gate"), [("redis-server", "redis"), ("postgres-server", "postgres")])
def test_a_frozen_server_under_load(installation: Installation, server: str, gate: str) -> None:
    begun = time.monotonic()
    with Load(installation).running() as load:
        until(lambda: len(load.accepted) > 300, 60.0, "load")
        pids = family(installation.pid(server))
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            until(lambda: states(installation) == {"held"}, FROZEN, "the listeners are held")
            status, ready = installation.get("/readyz")
            assert status == 503
            (shut,) = [each for each in ready["gates"] if each["name"] == gate]
            assert shut["cause"]
            assert 0 <= shut["seconds"] <= time.monotonic() - begun
            while time.monotonic() - frozen < FROZEN:
                assert installation.get("/healthz")[0] == 200
                time.sleep(0.5)
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        until(lambda: states(installation) == {"running"}, 60.0, "the listeners are back")
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 200, 60.0, "load goes on")
    check_balance(installation, load)
    # It said nothing, and the connections to it were as good as before.
    assert re.search(r"no (byte for|answer within) [\d.]+ s", first_shut(log_of(installation), gate)["cause"])


def test_sigterm_under_load_ends_in_order_and_the_next_start_goes_on(installation: Installation) -> None:
    with Load(installation).running() as load:
        until(lambda: len(load.accepted) > 300, 60.0, "load")
        assert installation.terminate() == 0
    load.broken.clear()  # of course: nobody listened any more
    log = installation.log
    stops = [log.index(f'"{name} has stopped"') for name in STOP_ORDER]
    assert stops == sorted(stops)
    installation.start()
    check_balance(installation, load)


def _caused(effect: dict[str, Any], cause: dict[str, Any]) -> bool:
    return bool(effect.get("caused_by") == cause["sequence"])


STOP_ORDER = [
    "event-system/http",
    f"{PIPELINE}/listener-2",
    f"{PIPELINE}/listener-1",
    f"{PIPELINE}/handler-pool",
    "event-system/actors/producer",
    "event-system/actors/health-monitor",
    "event-system/links/postgres",
    "event-system/servers/postgres-server",
    "event-system/servers/redis-server",
]


def test_kill_9_of_penstock_under_load_leaves_no_process_and_loses_nothing(installation: Installation) -> None:
    with Load(installation).running() as load:
        until(lambda: len(load.accepted) > 300, 60.0, "load")
        servers = [installation.pid("redis-server"), installation.pid("postgres-server")]
        installation.kill()
    load.broken.clear()
    installation.start()
    check_balance(installation, load)
    assert not any(runs(pid) for pid in servers)


def test_a_second_penstock_in_the_same_directory_is_refused(installation: Installation) -> None:
    assert installation.process is not None
    second = installation.command("run")
    assert second.returncode == 2
    assert f"pid {installation.process.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1
    assert installation.get("/healthz")[0] == 200
