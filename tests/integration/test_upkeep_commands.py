"""The commands about streams, replays and retention, as an operator runs them, on a real installation."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import Any

from installation import STREAM, Installation, access_event, until
from redis import Redis

GROUP = "EVENT_GROUP"


def _json(installation: Installation, *arguments: str) -> Any:
    done = installation.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _publish(installation: Installation, count: int) -> set[str]:
    events = [access_event(number) for number in range(count)]
    status, _ = installation.post(events)
    assert status == 202
    return {event["eventId"] for event in events}


def test_what_is_in_redis_is_shown(installation: Installation) -> None:
    _publish(installation, 20)
    until(lambda: installation.rows() == 20, 20, "all handled")
    (stream,) = _json(installation, "streams")["streams"]
    assert stream["stream"] == STREAM
    assert stream["length"] >= 20
    (group,) = _json(installation, "groups")["groups"]
    assert (group["name"], group["declared"], group["partitions"]) == (GROUP, True, 1)
    pending = _json(installation, "pending", STREAM, GROUP)
    assert {each["key"] for each in pending["consumers"]} == {STREAM}
    report = _json(installation, "retention", "run", "--dry-run")["report"]
    assert [each["stream"] for each in report["streams"]] == [STREAM]
    assert "penstock_inbox" in report["rows"]
    shown = _json(installation, "retention", "show")
    assert shown["runs"][0]["dryRun"] is True
    wrong = installation.command("pending", STREAM, "nobody")
    assert wrong.returncode == 1
    assert f"its groups are: {GROUP}" in wrong.stderr
    migrate = installation.command("migrate")
    assert migrate.returncode == 2
    assert "migrated at each start" in migrate.stderr


def test_while_redis_is_away_older_figures_say_so(installation: Installation) -> None:
    _publish(installation, 20)
    until(lambda: installation.rows() == 20, 20, "all handled")
    length = _json(installation, "streams")["streams"][0]["length"]
    pid = installation.pid("redis-server")
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: not installation.gate("redis")["open"], 30, "the gate is shut")
        shown = {name: installation.command(name) for name in ("streams", "groups")}
    finally:
        os.kill(pid, signal.SIGCONT)
    for done in shown.values():
        assert done.returncode == 0
        assert re.search(r"\nNot as it is now\. Redis is away since .+ This was seen at \d", done.stdout)
    # Each request to it is an event, too.
    found = re.search(rf"^{STREAM} +(\d+) ", shown["streams"].stdout, re.MULTILINE)
    assert found is not None
    assert int(found[1]) >= length
    until(lambda: installation.gate("redis")["open"], 30, "the gate is open")
    assert _json(installation, "streams")["stale"] is None


def test_a_replay_outlives_kill_9(installation: Installation) -> None:
    published = _publish(installation, 300)
    until(lambda: installation.rows() == 300, 20, "all handled")
    dry = _json(installation, "replay", STREAM, "--from", "0", "--dry-run")
    assert dry["total"] >= 300
    ordered = _json(installation, "replay", STREAM, "--from", "0", "--rate", "100", "--no-wait")

    def found() -> Any:
        return installation.get(f"/api/v1/replays/{ordered['id']}")[1]

    until(lambda: found()["replayed"] >= 100, 20, "a third replayed")
    installation.kill()
    installation.start()
    # Nobody is asked to give the order back by kill -9: it is taken over when its worker has been silent for 30 s.
    until(lambda: found()["state"] == "done", 90, "the replay is done")
    assert found()["replayed"] == ordered["total"]
    socket = installation.directory / ".penstock" / "valkey" / "valkey.sock"
    with Redis(unix_socket_path=str(socket)) as redis:
        until(lambda: redis.xlen(f"{STREAM}:reprocess") >= ordered["total"], 20, "all copied")
        copies = [fields for _, fields in redis.xrange(f"{STREAM}:reprocess")]
    originals = [fields[b"originalRecordId"] for fields in copies]
    assert len(set(originals)) == ordered["total"]
    assert published <= {fields[b"eventId"].decode() for fields in copies}
    assert {fields[b"reprocessed"] for fields in copies} == {b"true"}
    # A relay that dies after adding and before saying so adds again; nothing else may come twice.
    assert len(originals) - len(set(originals)) <= 200
