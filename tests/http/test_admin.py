"""S1's endpoints, in the original's shapes, and its errors as problem details with the original's members."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

BASE = "/admin/api/v1/event/access"


async def _problem(answer: Any, status: int, error_type: str) -> dict[str, Any]:
    body = json.loads(await answer.get_data())
    assert answer.status_code == status, body
    assert answer.content_type == "application/problem+json"
    assert body["status"] == status
    assert body["errorType"] == error_type
    assert body["errorMessage"] == body["detail"]
    return dict(body)


async def test_categories_are_listed_with_times_in_the_configured_zone(client: Any) -> None:
    answer = await client.get(f"{BASE}/categories")
    assert answer.status_code == 200
    listed = json.loads(await answer.get_data())
    assert [each["categoryCode"] for each in listed] == ["API_ADMIN", "API_PUBLIC", "UNKNOWN"]
    assert listed[0] == {
        "id": 1,
        "categoryCode": "API_ADMIN",
        "name": "Api_Admin",
        "description": None,
        "isDeleted": False,
        "createdAt": "2026-03-01T09:00:00.123456+09:00",
        "updatedAt": "2026-03-01T09:00:00.123456+09:00",
    }


@pytest.mark.parametrize("value", ["2", "API_PUBLIC", "002"])
async def test_a_category_is_found_by_id_and_by_code(client: Any, value: str) -> None:
    answer = await client.get(f"{BASE}/category/{value}")
    assert json.loads(await answer.get_data())["categoryCode"] == "API_PUBLIC"


@pytest.mark.parametrize("value", ["99", "9" * 30, "9" * 5000, "NOPE", "api_public"])
async def test_an_unknown_category_is_404(client: Any, value: str) -> None:
    problem = await _problem(await client.get(f"{BASE}/category/{value}"), 404, "DATA_NOT_FOUND")
    assert problem["type"] == "urn:penstock:problem:category-not-found"


@pytest.mark.parametrize("value", ["-1", "1.5", "a-b", "%00", "A" * 51, "²"])
async def test_what_is_neither_an_id_nor_a_code_is_400(client: Any, value: str) -> None:
    await _problem(await client.get(f"{BASE}/category/{value}"), 400, "INVALID_PARAMETER")


async def test_only_the_members_that_are_given_change(client: Any, deployment: Any) -> None:
    answer = await client.put(f"{BASE}/category", json={"id": 2, "description": "for all", "name": None})
    assert answer.status_code == 200
    changed = json.loads(await answer.get_data())
    assert (changed["name"], changed["description"], changed["isDeleted"]) == ("Api_Public", "for all", False)
    await client.put(f"{BASE}/category", json={"id": 2, "isDeleted": True})
    assert (await client.get(f"{BASE}/category/2")).status_code == 404
    assert deployment.access.table[2].description == "for all"


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "id"),
        ({"id": None}, "id"),
        ({"id": "2"}, "id"),
        ({"id": True}, "id"),
        ({"id": 2.0}, "id"),
        ({"id": 2, "name": 7}, "name"),
        ({"id": 2, "name": ""}, "name"),
        ({"id": 2, "name": "x" * 101}, "name"),
        ({"id": 2, "name": "a\0"}, "name"),
        ({"id": 2, "isDeleted": "yes"}, "isDeleted"),
        ({"id": 2, "nam": "x"}, "nam"),
        ([], "object"),
    ],
)
async def test_bad_data_are_400_and_name_the_member(client: Any, body: Any, says: str) -> None:
    problem = await _problem(await client.put(f"{BASE}/category", json=body), 400, "INVALID_DATA")
    assert says in problem["detail"]


async def test_a_body_that_is_no_json_is_400_or_415(client: Any) -> None:
    headers = {"Content-Type": "application/json"}
    await _problem(await client.put(f"{BASE}/category", data=b"{", headers=headers), 400, "INVALID_DATA")
    await _problem(await client.put(f"{BASE}/category", data=b"{}"), 415, "INVALID_DATA")


async def test_a_change_of_no_category_is_404_and_to_another_s_name_409(client: Any) -> None:
    await _problem(await client.put(f"{BASE}/category", json={"id": 99}), 404, "DATA_NOT_FOUND")
    taken = {"id": 2, "name": "Unknown"}
    await _problem(await client.put(f"{BASE}/category", json=taken), 409, "DATA_ALREADY_EXISTS")


async def test_a_summary_is_of_the_day_in_the_configured_zone(client: Any, deployment: Any) -> None:
    deployment.access.add("GET", "/admin/x", 200, 0.25, datetime(2026, 2, 28, 15, 0, 0, tzinfo=UTC))
    deployment.access.add("GET", "/api/x", 404, 0.5, datetime(2026, 2, 28, 14, 59, 59, tzinfo=UTC))
    answer = await client.get(f"{BASE}/summary/2026-03-01")
    summary = json.loads(await answer.get_data())
    assert (summary["accessDate"], summary["totalAccessCount"]) == ("2026-03-01", 1)
    admin, public, unknown = summary["accessEventSummaries"]
    assert public == {"categoryCode": "API_PUBLIC", "accessEvents": []}
    assert unknown["accessEvents"] == []
    assert admin["accessEvents"] == [
        {
            "id": 1,
            "categoryCode": "API_ADMIN",
            "userId": "anonymous",
            "endpoint": "/admin/x",
            "httpMethod": "GET",
            "responseStatus": 200,
            "responseTime": 0.25,
            "ipAddress": "127.0.0.1",
            "userAgent": "test",
            "inputs": None,
            "outputs": None,
            "createdAt": "2026-03-01T00:00:00.000000+09:00",
        }
    ]


@pytest.mark.parametrize("day", ["2026-3-1", "20260301", "2026-02-30", "today", "2026-03-01T00", "\uff12026-03-01"])
async def test_a_day_that_is_none_is_400(client: Any, day: str) -> None:
    problem = await _problem(await client.get(f"{BASE}/summary/{day}"), 400, "INVALID_PARAMETER")
    assert "YYYY-MM-DD" in problem["detail"]


@pytest.mark.parametrize("path", ["categories", "category/1", "category/API_ADMIN", "summary/2026-03-01"])
@pytest.mark.parametrize("known", [True, False])
async def test_with_the_database_away_everything_is_503(client: Any, deployment: Any, path: str, known: bool) -> None:
    """Whether the gate is shut already, or the question itself finds out."""
    if known:
        deployment.gates["postgres"].shut("connection refused at postgresql://u:hunter2@h/db")
    else:
        deployment.access.away = True
    answer = await client.get(f"{BASE}/{path}")
    problem = await _problem(answer, 503, "UNKNOWN")
    assert problem["type"] == "urn:penstock:problem:database-away"
    assert "connection refused" in problem["detail"]
    assert "hunter2" not in problem["detail"]
    assert answer.headers["Retry-After"] == "1"


async def test_an_unknown_path_below_admin_has_the_original_s_members(client: Any) -> None:
    await _problem(await client.get(f"{BASE}/nope"), 404, "NO_RESOURCE")
    problem = await _problem(await client.delete(f"{BASE}/categories"), 405, "NO_RESOURCE")
    assert "DELETE" in problem["detail"]
