"""The commands about single entries, as an operator runs them: on real servers, and on a Redis Cluster."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import redis
from installation import Installation, until

from penstock.runtime.testing.servers import LocalCluster

SYSTEM = f"{Path(__file__).parent / 'entry_shop.py'}:system"
JOBS, GROUP, CLERK = "jobs", "workers of/all", "clerks"
DESKS = [f"{{desk:{number}}}" for number in range(3)]


def _json(shop: Installation, *arguments: str) -> Any:
    done = shop.command(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _publish(shop: Installation, stream: str, numbers: range) -> list[str]:
    """Publish; the event ids."""
    events = [
        {"eventType": "JOB", "eventId": str(uuid4()), "key": str(number), "data": {"number": number}}
        for number in numbers
    ]
    path = f"/api/v1/streams/{quote(stream, safe='')}/events"
    status, _, answer = shop.request("POST", path, json.dumps(events).encode(), {"Content-Type": "application/json"})
    assert status == 202, answer
    return [event["eventId"] for event in events]


def _entries(shop: Installation, stream: str, group: str = GROUP) -> list[dict[str, Any]]:
    """As `penstock range` has them, without the start of a process."""
    path = f"/api/v1/streams/{quote(stream, safe='')}/entries?group={quote(group, safe='')}"
    return list(shop.look(path)["entries"])


def _states(shop: Installation, stream: str) -> list[str]:
    return [each["state"] for each in _entries(shop, stream)]


def test_entries_are_looked_at_claimed_and_deleted(place: Path) -> None:
    times = {"PENSTOCK_DELIVERY_RECLAIM_IDLE": "600", "PENSTOCK_HEALTH_INTERVAL_UP": "1"}
    shop = Installation(place, arguments=("run", SYSTEM), environment=times)
    try:
        shop.start()
        with redis.Redis(unix_socket_path=str(place / ".penstock" / "valkey" / "valkey.sock")) as client:
            _check_ranges(shop)
            _check_claims(shop, client)
            _check_deletions(shop, client)
            _check_outage(shop)
    finally:
        shop.close()


def _check_ranges(shop: Installation) -> None:
    _publish(shop, JOBS, range(3))
    until(lambda: _states(shop, JOBS) == ["ACK"] * 3, 30, "all are acknowledged")
    found = _entries(shop, JOBS)
    assert [each["data"]["number"] for each in found] == [0, 1, 2]
    shown = shop.command("range", JOBS, "--reverse", "--limit", "1", "--group", GROUP)
    header, row, _, more = shown.stdout.splitlines()
    assert header.split() == ["entry", "state", "consumer", "time", "type", "key", "data"]
    assert (row.split()[:2], row[-13:]) == ([found[2]["entryId"], "ACK"], '{"number": 2}')
    assert f"--to '({found[2]['entryId']}'" in more
    (facts,) = _json(shop, "info", JOBS)["partitions"]
    assert (facts["length"], facts["entriesAdded"], facts["first"]["entryId"]) == (3, 3, found[0]["entryId"])
    assert facts["memory"] > 0
    assert {group["name"] for group in facts["groups"]} == {GROUP, CLERK}


def _check_claims(shop: Installation, client: Any) -> None:
    """What a consumer of another process has, and leaves lying, is handled when it is claimed."""
    (entry_id,) = _held_by_another(shop, client, 3)
    held = [(each["entryId"], each["consumer"]) for each in _entries(shop, JOBS) if each["state"] == "DELIVERED"]
    assert held == [(entry_id, "theirs")]
    busy = shop.command("claim", JOBS, GROUP, entry_id)
    assert busy.returncode == 1
    assert "touched less than 10 min 00 s ago" in busy.stdout
    assert shop.sql("select count(*) from handled where number = 3 and kind = 'work'") == [(0,)]
    done = shop.command("claim", JOBS, GROUP, entry_id, "--force")
    assert (done.returncode, "claimed: this process handles it now" in done.stdout) == (0, True), done.stderr
    until(lambda: shop.sql("select count(*) from handled where number = 3 and kind = 'work'") == [(1,)], 20, "it is")
    until(lambda: set(_states(shop, JOBS)) == {"ACK"}, 20, "it is acknowledged")
    assert re.search(rf"^{JOBS} +{GROUP} +shared( +\d+){{6}}$", shop.command("groups").stdout, re.MULTILINE)


def _publish_one(shop: Installation, client: Any, number: int) -> tuple[str, str]:
    """Publish a job, and wait until it is an entry: it may go by the outbox. The ids of the entry and of the event."""
    expected = client.xlen(JOBS) + 1
    (event_id,) = _publish(shop, JOBS, range(number, number + 1))
    until(lambda: client.xlen(JOBS) == expected, 30, "it is in the stream")
    return client.xrevrange(JOBS, count=1)[0][0].decode(), event_id


def _held_by_another(shop: Installation, client: Any, number: int) -> list[str]:
    """A job that was given to a consumer of another process, which has not handled it."""
    entry_id, _ = _publish_one(shop, client, number)
    until(lambda: _states(shop, JOBS)[-1] == "ACK", 30, "it is acknowledged")
    # Our listeners are quicker than any other process, so what they did is undone.
    shop.sql("delete from handled where number = %s and kind = 'work' returning 1", number)
    shop.sql("delete from penstock_inbox where entry_id = %s and consumer_group = %s returning 1", entry_id, GROUP)
    client.xclaim(JOBS, GROUP, "theirs", 0, [entry_id], force=True)
    return [entry_id]


def _check_deletions(shop: Installation, client: Any) -> None:
    first = _entries(shop, JOBS)[0]["entryId"]
    asked = shop.command("delete", JOBS, first)
    assert (asked.returncode, "give --yes" in asked.stderr, client.xlen(JOBS)) == (2, True, 4)
    done = shop.command("delete", JOBS, first, "1-1", "--yes")
    assert (done.returncode, client.xlen(JOBS)) == (1, 3), done.stderr
    assert "1 of 2 are not there" in done.stderr
    _check_loss_on_purpose(shop, client)


def _check_loss_on_purpose(shop: Installation, client: Any) -> None:
    """What is deleted unread is a loss with a name; here of a group that is far behind, for its gate is shut."""
    (shop.directory / "closed").touch()
    until(lambda: not shop.gate("clerk")["open"], 20, "the clerks are away")
    entry_id, event_id = _publish_one(shop, client, 9)
    until(lambda: _states(shop, JOBS)[-1] == "ACK", 30, "the others have it")
    client.xgroup_create(JOBS, "theirs", id="0")  # of another program: it wants all of it, too
    refused = shop.command("delete", JOBS, entry_id, "--yes")
    assert (refused.returncode, client.xlen(JOBS)) == (1, 4)
    assert f"{entry_id}: {CLERK} was not given it yet, theirs was not given it yet" in refused.stderr
    client.xgroup_destroy(JOBS, "theirs")
    done = shop.command("delete", JOBS, entry_id, "--unread", "--yes")
    assert (done.returncode, CLERK in done.stdout) == (0, True), done.stderr
    (loss,) = shop.look("/api/v1/losses")["losses"]
    assert (loss["group"], loss["entries"], loss["deleted"]) == (CLERK, 1, 1)
    assert "@" in loss["deletedBy"]
    told = {each["group"]: each["reason"] for each in shop.look(f"/api/v1/ledger/{event_id}")["fates"]}
    assert told[GROUP] == "handled"
    assert told[CLERK] == f"deleted by {loss['deletedBy']} before the group was given it"
    (shop.directory / "closed").unlink()
    assert "events lost" not in shop.log
    assert "entry deleted" in shop.log


def _check_outage(shop: Installation) -> None:
    pid = int(shop.child("entry-shop/servers/redis-server")["note"].partition("pid ")[2].split()[0].rstrip(","))
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: not shop.gate("redis")["open"], 30, "the gate is shut")
        cause = shop.gate("redis")["cause"]
        done = shop.command("claim", JOBS, GROUP, "1-1")
        assert (done.returncode, "Redis is away since" in done.stderr, cause[:20] in done.stderr) == (1, True, True)
        for path in ("entries", "info"):
            status, found = shop.get(f"/api/v1/streams/{JOBS}/{path}")
            assert (status, cause[:20] in found["detail"]) == (503, True)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_in_a_cluster_partitions_are_one_stream(place: Path) -> None:
    with LocalCluster.make(masters=3, replicas=0) as cluster:
        shop = Installation(place, arguments=("run", SYSTEM), environment={"PENSTOCK_REDIS_URL": cluster.url})
        try:
            shop.start()
            _publish(shop, "desk", range(12))
            until(lambda: _states(shop, "desk") == ["ACK"] * 12, 30, "all are acknowledged")
            found = _entries(shop, "desk")
            assert sorted(each["data"]["number"] for each in found) == list(range(12))
            assert {each["partition"] for each in found} <= set(DESKS)
            assert re.findall("^stream +(.+)$", shop.command("info", "desk").stdout, re.MULTILINE) == DESKS
            key, entry_id = found[0]["partition"], found[0]["entryId"]
            (facts,) = shop.look(f"/api/v1/streams/{quote(key, safe='')}/info")["partitions"]
            of_key = [each["entryId"] for each in found if each["partition"] == key]
            assert (facts["length"], facts["first"]["entryId"]) == (len(of_key), of_key[0])
            with cluster.admin(cluster.master_of(key)) as admin:
                admin.xclaim(key, GROUP, "theirs", 0, [entry_id], force=True)
            claimed = shop.command("claim", "desk", GROUP, entry_id, "--force")
            assert (claimed.returncode, "claimed: " in claimed.stdout) == (0, True), claimed.stderr
            until(lambda: _states(shop, "desk") == ["ACK"] * 12, 30, "all are acknowledged again")
            assert shop.command("delete", key, entry_id, "--yes").returncode == 0
            assert [each["entryId"] for each in _entries(shop, key)] == of_key[1:]
        finally:
            shop.close()
