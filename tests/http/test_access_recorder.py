"""Every request becomes one access event, whatever became of it, and none is delayed or made to fail by that."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import pytest
import trio

from penstock.actors.access_event import AccessEvent
from penstock.actors.event import event_type_of
from penstock.http.access import CUT, AccessRecorder


def _event(deployment: Any) -> dict[str, Any]:
    (envelope,) = deployment.captured
    assert envelope.event_type == "ACCESS"
    event_type_of(AccessEvent).structure(envelope.data)  # what is captured is what the handler can read
    return dict(envelope.data)


async def test_an_event_says_who_asked_what_and_what_was_answered(client: Any, deployment: Any) -> None:
    await client.get("/admin/api/v1/event/access/categories", headers={"User-Agent": "curl/8"})
    event = _event(deployment)
    assert event["categoryCode"] == "API_ADMIN"
    assert event["userId"] == "anonymous"
    assert event["endpoint"] == "/admin/api/v1/event/access/categories"
    assert event["httpMethod"] == "GET"
    assert event["methodName"] == "get_categories"
    assert event["responseStatus"] == 200
    assert event["userAgent"] == "curl/8"
    assert event["createdAt"].endswith("+09:00")
    assert event["responseTime"] == round(event["responseTime"], 3)
    assert 0 <= event["responseTime"] < 5
    assert event["inputs"] is None
    assert json.loads(event["outputs"])[0]["categoryCode"] == "API_ADMIN"


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/nowhere", 404, ""),
        ("DELETE", "/healthz", 405, ""),
        ("HEAD", "/healthz", 200, "healthz"),
        ("OPTIONS", "/healthz", 200, "healthz"),
        ("PROPFIND", "/healthz", 405, ""),
        ("POST", "/api/v1/streams/anything/events", 415, "publish_events"),
        ("GET", "/admin/api/v1/event/access/summary/2026-13-01", 400, "get_access_summary"),
    ],
)
async def test_what_was_refused_is_recorded_too(
    client: Any, deployment: Any, method: str, path: str, status: int, name: str
) -> None:
    await client.open(path, method=method)
    event = _event(deployment)
    assert (event["httpMethod"], event["endpoint"], event["responseStatus"]) == (method, path, status)
    if status != 405:
        assert event["methodName"] == name


async def test_an_internal_error_is_recorded_as_500_without_what_it_said(client: Any, deployment: Any) -> None:
    deployment.access.broken = True
    await client.get("/admin/api/v1/event/access/categories")
    event = _event(deployment)
    assert event["responseStatus"] == 500
    assert "hunter2" not in json.dumps(event)


async def test_inputs_are_the_query_and_the_body_without_their_secrets(client: Any, deployment: Any) -> None:
    await client.post(
        "/api/v1/streams/anything/events?page=2&token=hunter2",
        json={"eventType": "X", "data": {"user": "a", "card": {"cardNumber": "hunter2"}, "Password": ["hunter2"]}},
        headers={"Authorization": "Bearer hunter2", "Cookie": "session=hunter2"},
    )
    event = _event(deployment)
    inputs = json.loads(event["inputs"])
    assert inputs["query"] == {"page": "2", "token": "***"}
    assert inputs["body"]["data"] == {"user": "a", "card": {"cardNumber": "***"}, "Password": "***"}
    assert "hunter2" not in json.dumps(event)


@pytest.mark.parametrize(
    ("content_type", "body", "kept"),
    [
        ("application/x-www-form-urlencoded", b"a=1&pass%77ord=hunter2", {"a": "1", "password": "***"}),
        ("application/x-ndjson", b'{"a":1}\n{"secret":"hunter2"}\n', '{"a":1}\n{"secret":"***"}\n'),
        ("application/json", b'{"a":1,"api_key":"hunter2', '{"a":1,"api_key":"***"'),
        ("text/plain", b"hello redis://u:hunter2@h", "hello redis://u:***@h"),
        ("text/plain", b"not \xff", "not �"),
        ("text/plain", b"nul\x00 and \xff", "[text/plain, 10 bytes, not shown]"),
        ("application/x-www-form-urlencoded", b"a=%22%00p%00w%00%22:%00%22%00hunter2%00%22", {"a": '"pw":"***"'}),
        ("application/octet-stream", b"hunter2\x00\x01", "[application/octet-stream, 9 bytes, not shown]"),
        ("multipart/form-data; boundary=x", b"--x hunter2", "[multipart/form-data, 11 bytes, not shown]"),
    ],
)
async def test_each_kind_of_body_is_shown_in_its_way(
    client: Any, deployment: Any, content_type: str, body: bytes, kept: object
) -> None:
    await client.post("/nowhere", data=body, headers={"Content-Type": content_type})
    event = _event(deployment)
    assert json.loads(event["inputs"])["body"] == kept


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
async def test_a_body_whose_keys_cannot_be_read_is_not_shown(
    client: Any, deployment: Any, media_type: str, encoding: str
) -> None:
    """As UTF-8, no key in it would be recognised; without its NULs, everybody could read the values."""
    body = '{"user":"\u2222","password":"\u2222hunter2"}'.encode(encoding)
    await client.post("/nowhere", data=body, headers={"Content-Type": media_type})
    shown = json.loads(_event(deployment)["inputs"])["body"]
    assert shown == f"[{media_type}, {len(body)} bytes, not shown]"


@pytest.mark.parametrize("padding", range(8150, 8200, 7))
async def test_a_secret_is_hidden_also_where_the_cut_goes_through_it(
    client: Any, deployment: Any, padding: int
) -> None:
    body = json.dumps({"a": "x" * padding, "password": "hunter2" * 500, "url": "redis://u:hunter2@h"})
    await client.post("/nowhere", data=body, headers={"Content-Type": "application/json"})
    inputs = _event(deployment)["inputs"]
    assert len(inputs.encode()) <= 8192
    assert inputs.endswith(CUT)
    assert "hunter" not in inputs


async def test_a_long_answer_is_cut(make_app: Any, deployment: Any) -> None:
    for _ in range(100):
        deployment.access.add("GET", "/x", 200, 0.1)
    day = deployment.access.rows[0].created_at.astimezone(deployment.settings.zone_info).date()
    client = make_app(capture_body_limit=300).test_client()
    answer = await client.get(f"/admin/api/v1/event/access/summary/{day}")
    assert len(await answer.get_data()) > 10_000
    outputs = _event(deployment)["outputs"]
    assert outputs.startswith('{"accessDate":')
    assert outputs.endswith(CUT)
    assert len(outputs.encode()) <= 300


@pytest.mark.parametrize("path", ["/", "/static/page.js"])
async def test_pages_and_event_streams_are_not_copied(client: Any, deployment: Any, path: str) -> None:
    await client.get(path)
    assert _event(deployment)["outputs"] is None


async def test_a_path_longer_than_the_column_is_cut(client: Any, deployment: Any) -> None:
    await client.get("/" + "a" * 5000)
    assert len(_event(deployment)["endpoint"]) == 2048


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_a_failing_capture_fails_no_request_and_is_logged_once(
    client: Any, deployment: Any, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    deployment.capture_error = RuntimeError("the buffer is broken")
    for _ in range(3):
        assert (await client.open("/healthz", method=method)).status_code in (200, 405)
    assert sum("could not be recorded" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("target", "endpoint"),
    [
        (b"http://u:hunter2@h/%00\xff" + b"a" * 3000, "/%00ÿ" + "a" * 2042 + "…"),
        (b"http://u:hunter2@[", "h"),
        (b"http://u:hunter2@h", "h"),
        (b"*", "*"),
        (b"", ""),
    ],
)
async def test_nothing_that_a_client_sends_makes_the_event_impossible(
    deployment: Any, target: bytes, endpoint: str
) -> None:
    """Straight into the middleware, with what a server might let through."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"Content-Type", b"\xff/json")]})
        await send({"type": "http.response.body", "body": b"\xff\x00" * 9000})

    scope = {
        "type": "http",
        "method": "M" * 100,
        "path": "/\x00\ud800",
        "raw_path": target,
        "query_string": b"\xff=%00&" * 3000,
        "headers": [(b"user-agent", b"\xff" * 9000), (b"content-type", b"application/json")],
        "client": None,
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"[" * 20_000}

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    await AccessRecorder(app, deployment, 8192)(scope, receive, send)
    event = _event(deployment)
    assert "hunter2" not in json.dumps(event)
    assert "\\u0000" not in json.dumps(event)
    assert event["endpoint"] == endpoint
    assert len(event["httpMethod"]) == 32
    assert event["ipAddress"] is None


async def test_a_client_that_leaves_is_recorded_without_a_status(serving: Any) -> None:
    async with serving() as server:
        started, stay = trio.Event(), trio.Event()

        async def hang(stream: str, envelopes: Any) -> Any:
            started.set()
            await stay.wait()

        server.deployment.publish = hang
        body = json.dumps({"eventType": "X", "data": {}}).encode()
        head = (
            "POST /api/v1/streams/anything/events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        stream = await server.raw(head.encode() + body)
        await started.wait()
        await stream.aclose()
        (event,) = await server.captured(1)
        assert event["responseStatus"] is None
        assert event["endpoint"] == "/api/v1/streams/anything/events"
        assert event["ipAddress"] == "127.0.0.1"


async def test_ids_are_new_for_each_request(client: Any, deployment: Any) -> None:
    await client.get("/healthz")
    await client.get("/healthz")
    first, second = deployment.captured
    assert len({first.event_id, second.event_id, uuid4()}) == 3
