"""A page of another site can change nothing here; programs and our own page can."""

from __future__ import annotations

import json
from typing import Any

import pytest

EVENTS = "/api/v1/streams/anything/events"
EVENT = {"eventType": "X", "data": {}}


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:3000"},
        {"Origin": "https://evil.example"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Origin": "null"},
    ],
)
@pytest.mark.parametrize("path", [EVENTS, "/api/v1/dead-letters/1/discard", "/admin/api/v1/event/access/category"])
async def test_another_site_is_refused(client: Any, deployment: Any, path: str, headers: dict[str, str]) -> None:
    method = client.put if path.startswith("/admin") else client.post
    answer = await method(path, json=EVENT, headers={"Host": "127.0.0.1:47170", **headers})
    assert answer.status_code == 403
    assert json.loads(await answer.get_data())["type"] == "urn:penstock:problem:cross-site"
    assert deployment.published == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "same-origin", "Origin": "https://behind.a.proxy"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://127.0.0.1:47170"},
    ],
)
async def test_programs_and_our_own_page_are_not(client: Any, deployment: Any, headers: dict[str, str]) -> None:
    answer = await client.post(EVENTS, json=EVENT, headers={"Host": "127.0.0.1:47170", **headers})
    assert answer.status_code == 202
    assert len(deployment.published) == 1


async def test_to_look_is_allowed_as_far_as_the_browser_lets(client: Any) -> None:
    answer = await client.get("/readyz", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 200
    assert "Access-Control-Allow-Origin" not in answer.headers
