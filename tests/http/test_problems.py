"""Every error is a problem detail, and none says more than it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio

from penstock.http.boundary import LINGER, Boundary
from penstock.http.security import SECURITY_HEADERS


async def _body(answer: Any) -> dict[str, Any]:
    assert answer.content_type == "application/problem+json"
    return dict(json.loads(await answer.get_data()))


async def test_an_unknown_path_is_a_404_problem(client: Any) -> None:
    assert await _body(await client.get("/nope/<b>")) == {
        "type": "urn:penstock:problem:not-found",
        "title": "Not Found",
        "status": 404,
        "detail": "There is nothing at /nope/<b>.",
    }


async def test_a_wrong_method_is_a_405_problem_that_allows_the_right_ones(client: Any) -> None:
    answer = await client.delete("/healthz")
    assert (await _body(answer))["status"] == 405
    assert set(answer.headers["Allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}


async def test_options_say_what_is_allowed(client: Any) -> None:
    answer = await client.options("/api/v1/streams/x/events")
    assert answer.status_code == 200
    assert set(answer.headers["Allow"].split(", ")) == {"OPTIONS", "POST"}


async def test_an_internal_error_says_nothing_but_the_id_under_which_the_log_has_it(
    client: Any, deployment: Any, caplog: pytest.LogCaptureFixture
) -> None:
    deployment.access.broken = True
    body = await _body(await client.get("/admin/api/v1/event/access/categories"))
    assert body["status"] == 500
    assert "hunter2" not in json.dumps(body)
    assert "RuntimeError" not in json.dumps(body)
    (record,) = [each for each in caplog.records if each.levelname == "ERROR"]
    assert body["instance"] in str(record.msg)
    assert "RuntimeError" in str(record.msg)


async def test_errors_that_come_as_a_group_are_seen_through(client: Any, deployment: Any) -> None:
    deployment.access.away = True
    ask = deployment.access.categories

    async def in_a_nursery() -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)

    deployment.access.categories = in_a_nursery
    answer = await client.get("/admin/api/v1/event/access/categories")
    assert answer.status_code == 503
    assert (await _body(answer))["type"] == "urn:penstock:problem:database-away"


@pytest.mark.parametrize("path", ["/", "/healthz", "/nope", "/static/page.css"])
async def test_every_answer_has_the_security_headers(client: Any, path: str) -> None:
    headers = (await client.get(path)).headers
    for name, value in SECURITY_HEADERS:
        assert headers[name.decode()] == value.decode()
    assert "Access-Control-Allow-Origin" not in headers
    assert "Server" not in headers


async def test_nothing_is_stored_but_the_page_and_that_is_asked_for_again(client: Any) -> None:
    assert (await client.get("/api/v1/tree")).headers["Cache-Control"] == "no-store"
    page = await client.get("/")
    assert page.headers["Cache-Control"] == "no-cache"
    again = await client.get("/", headers={"If-None-Match": page.headers["ETag"]})
    assert again.status_code == 304
    assert await again.get_data() == b""


async def test_a_path_with_a_slash_too_many_is_answered_not_redirected(client: Any) -> None:
    """A redirect would be made of the Host header, which is the client's to choose."""
    answer = await client.get("/healthz/", headers={"Host": "evil.example"})
    assert answer.status_code == 200
    assert "Location" not in answer.headers


async def test_what_the_framework_stumbles_over_is_a_problem_too() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise IndexError("string index out of range")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    with trio.fail_after(LINGER / 2):
        await Boundary(app, app)({"type": "http", "path": ""}, receive, send)
    start, body = sent[0], b"".join(message.get("body", b"") for message in sent)
    assert start["status"] == 500
    assert json.loads(body)["type"] == "urn:penstock:problem:internal-error"
    assert "IndexError" not in body.decode()


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/index.html", "/static/"])
async def test_nothing_is_served_but_the_page_s_own_files(client: Any, path: str) -> None:
    assert (await client.get(path)).status_code == 404
