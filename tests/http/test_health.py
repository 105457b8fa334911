"""What a running system says of itself, in good times and in bad ones."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
import trio

from penstock.actors.cluster_view import ClusterView, NodeView
from penstock.actors.losses import Loss
from penstock.actors.relay import OutboxView
from penstock.http.commands.tree import _note
from penstock.http.views import child_json
from penstock.runtime.mailbox import Mailbox
from penstock.runtime.supervision import ChildView, LifecycleKind


async def _json(answer: Any) -> Any:
    return json.loads(await answer.get_data())


async def _until(deployment: Any, kind: LifecycleKind, count: int = 1) -> None:
    with trio.fail_after(5):
        while sum(event.kind is kind for event in deployment.tree.journal.recent) < count:
            await trio.testing.wait_all_tasks_blocked()


async def test_alive_as_long_as_it_answers_also_in_an_outage(client: Any, deployment: Any) -> None:
    deployment.shut_redis()
    answer = await client.get("/healthz")
    assert (answer.status_code, await _json(answer)) == (200, {"status": "alive"})


async def test_ready_while_all_gates_are_open_with_the_lag(client: Any, deployment: Any) -> None:
    deployment.lag = 7
    answer = await client.get("/readyz")
    body = await _json(answer)
    assert answer.status_code == 200
    assert (body["status"], body["state"], body["gates"], body["held"]) == ("ready", "running", [], [])
    assert body["lag"] == [{"stream": "EVENT_STREAM", "group": "EVENT_GROUP", "lag": 7, "pending": 0}]


async def test_what_waits_in_the_outbox_and_what_was_lost_is_told_and_is_no_reason_not_to_be_ready(
    client: Any, deployment: Any
) -> None:
    deployment.waiting = [OutboxView(stream="order-events", waiting=12, oldest=3.25, blocked="NOPERM for user:pw@host")]
    deployment.lost = [Loss(group="g", stream="order-events", after_id="1-0", before_id="8-0", entries=7)]
    answer = await client.get("/readyz")
    body = await _json(answer)
    assert answer.status_code == 200
    (waiting,) = body["outbox"]
    assert (waiting["stream"], waiting["waiting"], waiting["oldest"]) == ("order-events", 12, 3.25)
    assert waiting["blocked"].startswith("NOPERM")
    assert body["losses"] == [{"stream": "order-events", "group": "g", "entries": 7}]


async def test_not_ready_names_the_gate_its_cause_since_when_and_who_is_held(client: Any, deployment: Any) -> None:
    before = datetime.now(UTC)
    deployment.gates["redis"].shut("connection refused at redis://root:hunter2@h")
    await _until(deployment, LifecycleKind.CHILD_HELD, 2)
    answer = await client.get("/readyz")
    body = await _json(answer)
    assert answer.status_code == 503
    assert answer.content_type == "application/problem+json"
    (gate,) = body["gates"]
    assert (gate["name"], gate["open"]) == ("redis", False)
    assert "connection refused" in gate["cause"]
    assert abs((datetime.fromisoformat(gate["since"]) - before).total_seconds()) < 5
    assert 0 <= gate["seconds"] < 5
    assert [child["path"].rpartition("/")[2] for child in body["held"]] == ["listener-1", "listener-2"]
    assert {child["heldBy"] for child in body["held"]} == {"redis"}
    assert "redis is away" in body["detail"]
    assert "hunter2" not in json.dumps(body)


async def test_the_nodes_of_a_cluster_are_shown_with_what_is_on_them(client: Any, deployment: Any) -> None:
    assert "cluster" not in await _json(await client.get("/readyz"))
    deployment.nodes = ClusterView(
        state="ok",
        observed_at=trio.current_time() - 2.0,
        nodes=(
            NodeView(id="a", address="redis-1:7001", ranges=((0, 8191),), streams=("EVENT_STREAM",)),
            NodeView(id="b", address="redis-2:7002", role="replica", master_id="a", failed=True),
            NodeView(id="c", address="redis-3:7003", ranges=((8192, 16383),)),
        ),
    )
    ready = await _json(await client.get("/readyz"))
    deployment.shut_redis()
    not_ready = await _json(await client.get("/readyz"))
    assert (ready["status"], not_ready["state"]) == ("ready", "running")
    for body in (ready, not_ready):
        cluster = body["cluster"]
        assert (cluster["state"], cluster["slots"]) == ("ok", 16384)
        age = datetime.fromisoformat(body["time"]) - datetime.fromisoformat(cluster["observedAt"])
        assert 1.9 < age.total_seconds() < 7
        assert cluster["nodes"] == [
            {
                "address": "redis-1:7001",
                "role": "master",
                "replicaOf": None,
                "failed": False,
                "slots": 8192,
                "streams": ["EVENT_STREAM"],
            },
            {
                "address": "redis-2:7002",
                "role": "replica",
                "replicaOf": "redis-1:7001",
                "failed": True,
                "slots": 0,
                "streams": [],
            },
            {
                "address": "redis-3:7003",
                "role": "master",
                "replicaOf": None,
                "failed": False,
                "slots": 8192,
                "streams": [],
            },
        ]


async def test_ready_again_when_the_gate_is_open_and_nobody_is_held_any_more(client: Any, deployment: Any) -> None:
    deployment.shut_redis()
    await _until(deployment, LifecycleKind.CHILD_HELD, 2)
    ready = sum(event.kind is LifecycleKind.CHILD_READY for event in deployment.tree.journal.recent)
    deployment.gates["redis"].open()
    await _until(deployment, LifecycleKind.CHILD_READY, ready + 2)
    assert (await client.get("/readyz")).status_code == 200


async def test_not_ready_before_everybody_who_was_held_works_again(client: Any, deployment: Any) -> None:
    up = deployment.starts["listener-2"] = trio.Event()
    deployment.gates["redis"].shut("restarting")
    await _until(deployment, LifecycleKind.CHILD_HELD, 2)
    deployment.gates["redis"].open()
    await trio.testing.wait_all_tasks_blocked()
    answer = await client.get("/readyz")
    body = await _json(answer)
    path = "event-system/actors/EVENT_GROUP@EVENT_STREAM/listener-2"
    assert (answer.status_code, body["state"], body["gates"], body["held"]) == (503, "running", [], [])
    assert (body["starting"], body["detail"]) == ([path], f"children not up yet: {path}")
    up.set()
    await trio.testing.wait_all_tasks_blocked()
    answer = await client.get("/readyz")
    assert (answer.status_code, (await _json(answer))["starting"]) == (200, [])


async def test_a_stopping_system_is_not_ready(client: Any, deployment: Any) -> None:
    deployment.tree.stop("enough")
    await _until(deployment, LifecycleKind.TREE_STOPPED)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert "the tree is" in (await _json(answer))["detail"]


async def test_the_tree_shows_every_child_with_its_state(client: Any, deployment: Any) -> None:
    body = await _json(await client.get("/api/v1/tree"))
    tree = body["tree"]
    assert (tree["path"], tree["kind"], tree["state"], tree["strategy"]) == (
        "event-system",
        "supervisor",
        "running",
        "rest_for_one",
    )
    server = tree["children"][0]["children"][0]
    assert server == {
        "id": "redis-server",
        "path": "event-system/servers/redis-server",
        "kind": "worker",
        "state": "running",
        "incarnation": 1,
        "restarts": 0,
        "heldBy": None,
        "cause": None,
        "nextStartIn": None,
        "note": "pid 4711",
        "lastError": None,
        "strategy": None,
        "restartsLeft": None,
        "mailboxes": [],
        "children": [],
    }
    assert [gate["name"] for gate in body["gates"]] == ["redis", "postgres", "schema"]


async def test_a_crash_is_shown_with_type_and_text_and_neither_traceback_nor_secret(
    client: Any, deployment: Any
) -> None:
    deployment.crashes["producer"].set()
    await _until(deployment, LifecycleKind.CHILD_BACKOFF)
    text = (await (await client.get("/api/v1/tree")).get_data()).decode()
    producer = next(child for child in json.loads(text)["tree"]["children"][2]["children"] if child["id"] == "producer")
    assert producer["state"] == "backoff"
    assert producer["nextStartIn"] > 0
    assert producer["lastError"]["type"] == "ConnectionError"
    assert "producer lost" in producer["lastError"]["message"]
    assert "hunter2" not in text
    assert "Traceback" not in text


async def test_the_streams_are_shown_as_the_health_monitor_saw_them(client: Any, deployment: Any) -> None:
    body = await _json(await client.get("/api/v1/streams"))
    events, orders = body["streams"]
    assert (events["key"], events["length"], events["lastId"]) == ("EVENT_STREAM", 1204, "1700000000000-3")
    assert events["groups"] == [{"name": "EVENT_GROUP", "lag": 0, "pending": 0, "consumers": 2}]
    assert datetime.fromisoformat(events["observedAt"]).tzinfo is not None
    assert orders["groups"] == []


@pytest.mark.parametrize("path", ["/api/v1/live", "/api/v1/tree/events", "/api/v1/streams/anything/tail"])
async def test_head_of_an_event_stream_ends(client: Any, path: str) -> None:
    """There is nobody who would read the events."""
    answer = await client.head(path)
    assert answer.status_code == 200
    assert answer.content_type == "text/event-stream; charset=utf-8"


async def test_no_more_clients_than_agreed(make_app: Any) -> None:
    client = make_app(live_clients=0, tail_clients=0).test_client()
    for path in ("/api/v1/live", "/api/v1/tree/events", "/api/v1/streams/anything/tail"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert (await _json(answer))["type"] == "urn:penstock:problem:too-many-clients"
        assert answer.headers["Retry-After"]


@pytest.mark.parametrize(("path", "status"), [("nope/tail", 404), ("anything/tail?after=x", 400)])
async def test_a_tail_of_nothing_is_refused(client: Any, path: str, status: int) -> None:
    assert (await client.get(f"/api/v1/streams/{path}")).status_code == status


@pytest.mark.parametrize("position", [str(2**64), "1-99999999999999999999"])
async def test_a_position_beyond_all_ids_is_refused(client: Any, position: str) -> None:
    """Redis would refuse it behind the 200, and the client come back with it every second."""
    for path in ("/api/v1/tree/events", "/api/v1/streams/anything/tail"):
        answer = await client.head(path, query_string={"after": position})
        assert answer.status_code == 400
        answer = await client.head(path, query_string={"after": f"{2**64 - 1}-{2**64 - 1}"})
        assert answer.status_code == 200


@pytest.mark.parametrize("position", ["x", "1-", "-1", "1-2-3", "٣", "1" * 21])
async def test_a_position_in_the_events_of_the_tree_that_is_none_is_refused(client: Any, position: str) -> None:
    answer = await client.get("/api/v1/tree/events", query_string={"after": position})
    assert answer.status_code == 400
    assert (await _json(answer))["type"] == "urn:penstock:problem:invalid-position"


async def test_the_mailboxes_of_a_child_are_shown_and_what_stands_in_them_is_said() -> None:
    box: Mailbox[int] = Mailbox("orders", 5)
    for number in range(6):
        box.offer(number)
    view = ChildView(id="a", path="app/a", kind="worker", state="running", note="busy", mailboxes=(box.statistics(),))
    shown = child_json(view)
    (mailbox,) = shown["mailboxes"]
    assert (mailbox["name"], mailbox["depth"], mailbox["capacity"], mailbox["dropped"]) == ("orders", 5, 5, 1)
    assert _note(shown) == "busy (queued: 5 of 5 in orders)"
