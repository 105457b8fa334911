"""S1 end to end: HTTP requests end up as rows, exactly once."""

from __future__ import annotations

import json
import re
from datetime import datetime
from uuid import uuid4
from zoneinfo import ZoneInfo

from installation import STREAM, Installation, access_event, until

CATEGORIES = "/admin/api/v1/event/access/categories"


def today() -> str:
    return datetime.now(ZoneInfo("Asia/Seoul")).date().isoformat()


def test_requests_become_rows_and_stand_in_the_summary(installation: Installation) -> None:
    status, categories = installation.get(CATEGORIES)
    assert status == 200
    assert {each["categoryCode"] for each in categories} == {
        "UNKNOWN",
        "API_PUBLIC",
        "API_ADMIN",
        "API_EXTERNAL",
        "API_INTERNAL",
        "HEALTH_SYSTEM",
        "SERVICE_QUEUE",
    }
    assert installation.request("HEAD", "/nowhere")[0] == 404
    assert installation.request("OPTIONS", CATEGORIES)[0] in (200, 204)
    assert installation.request("DELETE", CATEGORIES)[0] == 405

    def recorded() -> bool:
        rows = installation.sql("select http_method, endpoint, response_status, category_code from access_event")
        return {
            ("GET", CATEGORIES, 200, "API_ADMIN"),
            ("HEAD", "/nowhere", 404, "UNKNOWN"),
            ("DELETE", CATEGORIES, 405, "API_ADMIN"),
        } <= set(rows)

    until(recorded, 30.0, "the calls are rows")
    status, summary = installation.get(f"/admin/api/v1/event/access/summary/{today()}")
    assert status == 200
    assert summary["accessDate"] == today()
    assert summary["totalAccessCount"] >= 4
    admin = next(each for each in summary["accessEventSummaries"] if each["categoryCode"] == "API_ADMIN")
    assert any(each["endpoint"] == CATEGORIES for each in admin["accessEvents"])


def test_a_thousand_events_in_every_form_are_rows_exactly_once(installation: Installation) -> None:
    events = [access_event(number) for number in range(900)]
    again = [dict(event) for event in events[:100]]
    batch = events[100:500] + again[:50]
    lines = events[500:] + again[50:]
    durable = []
    for event in events[:100]:
        status, result = installation.post(event)
        assert (status, result["eventId"]) == (202, event["eventId"])
        durable.append(result["durable"])
        # Where this machine kept Redis from answering for 50 ms the outbox has it, and the id is not known yet.
        known = re.fullmatch(r"\d+-\d+", result["entryId"] or "")
        assert bool(known) == (durable[-1] == "redis")
    assert set(durable) <= {"redis", "outbox"}
    assert "redis" in durable
    status, results = installation.post(batch)
    assert status == 202
    assert [each["eventId"] for each in results] == [each["eventId"] for each in batch]
    status, results = installation.post(lines, ndjson=True)
    assert status == 202
    assert [each["eventId"] for each in results] == [each["eventId"] for each in lines]
    until(lambda: installation.rows() == 900 and installation.pending() == 0, 60.0, "900 rows, none pending")
    assert installation.rows() == 900
    assert installation.sql("select count(distinct event_id) from access_event where endpoint like '/load/%%'") == [
        (900,)
    ]


def test_a_malformed_line_among_a_hundred_is_one_error_in_its_place(installation: Installation) -> None:
    lines: list[object] = [access_event(number) for number in range(100)]
    lines[41] = '{"eventType": "ACCESS", '
    status, results = installation.post(lines, ndjson=True)
    assert status == 202
    assert [place for place, result in enumerate(results) if "error" in result] == [41]
    assert len(results) == 100
    until(lambda: installation.rows() == 99, 30.0, "99 rows")


def test_bad_requests_are_told_what_to_do(installation: Installation) -> None:
    status, problem = installation.get("/admin/api/v1/event/access/category/99999")
    assert (status, problem["errorType"]) == (404, "DATA_NOT_FOUND")
    body = json.dumps(access_event(1)).encode()
    kind = {"Content-Type": "application/json"}
    status, headers, answer = installation.request("POST", "/api/v1/streams/NO_STREAM/events", body, kind)
    assert status == 404
    assert headers["content-type"] == "application/problem+json"
    assert STREAM in json.loads(answer)["detail"]
    large = b'{"eventType": "ACCESS", "data": {"inputs": "' + b"x" * 10_100_000 + b'"}}'
    assert installation.request("POST", f"/api/v1/streams/{STREAM}/events", large, kind)[0] == 413
    assert installation.request("POST", f"/api/v1/streams/{STREAM}/events", b"{", kind)[0] == 400
    assert (
        installation.request("POST", f"/api/v1/streams/{STREAM}/events", body, {"Content-Type": "text/csv"})[0] == 415
    )
    status, problem = installation.post({"eventType": "NEVER_DECLARED", "data": {}})
    assert status == 422
    assert "ACCESS" in problem["detail"]
    status, problem = installation.post({"eventType": "ACCESS", "data": {"endpoint": 7, "httpMethod": "GET"}})
    assert status == 422
    assert "endpoint" in problem["detail"]


def test_secrets_in_requests_are_recorded_masked(installation: Installation) -> None:
    secret = uuid4().hex
    body = json.dumps({"user": "ann", "password": secret}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {secret}"}
    installation.request("POST", f"/secret?token={secret}&page=2", body, headers)

    def recorded() -> list[tuple[object, ...]]:
        return installation.sql("select inputs, outputs, endpoint from access_event where endpoint like '/secret%%'")

    until(recorded, 30.0, "the request is a row")
    (row,) = recorded()
    assert secret not in str(row)
    assert "ann" in str(row[0])
    assert secret not in installation.log


def test_an_entry_of_the_original_service_is_handled_and_an_undecodable_one_does_not_stay(
    installation: Installation,
) -> None:
    import redis  # noqa: F401 - the entry is written as another program would
    from redis import Redis

    with Redis(unix_socket_path=str(installation.directory / ".penstock" / "valkey" / "valkey.sock")) as client:
        client.xadd(
            STREAM,
            {
                "type": "ACCESS",
                "categoryCode": "API_PUBLIC",
                "userId": "anonymous",
                "endpoint": "/load/original",
                "httpMethod": "GET",
                "methodName": "listProducts",
                "responseStatus": "200",
                "responseTime": "0.150",
                "ipAddress": "10.0.0.1",
                "userAgent": "Java",
                "inputs": "",
                "outputs": "",
                "createdAt": "2026-01-02T03:04:05.678+09:00",
            },
        )
        client.xadd(STREAM, {"event_id": "preservedId"})
        client.xadd(STREAM, {"nonsense": b"\xff\x00"})
    until(lambda: installation.rows() == 1 and installation.pending() == 0, 30.0, "one row, none pending")
    assert installation.sql("select response_time from access_event where endpoint = '/load/original'") == [(0.15,)]
    # It has a second delivery first, for whose codec is newer.
    reasons = "select reason from penstock_dead_letter"
    until(lambda: installation.sql(reasons) == [("undecodable",)], 30.0, "the dead letter")
