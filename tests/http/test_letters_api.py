"""Dead letters and the ledger over HTTP, with a real database behind the desk."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from penstock.actors.dead_letter import DEAD_LETTER_MIRROR
from penstock.actors.fate import Fate
from penstock.actors.ledger import SCAN
from penstock.actors.letter_terms import Reason
from penstock.actors.letters import MOST, RATE
from penstock.actors.store import InboxEntry
from penstock.http.headers import ACTOR
from penstock.http.ledger import EVENT_LIMIT
from penstock.http.letters import FASTEST, FIELDS_LIMIT, PAGE_LIMIT, SLOWEST
from penstock.http.redaction import redact_text
from penstock.runtime.postgres import Pool, PostgresOptions, PostgresUnavailable

sys.path.insert(0, str(Path(__file__).parent))  # tests are no package

from letter_store import LetterStore, desk_over

BASE = "/api/v1/dead-letters"


class Desk(LetterStore):
    """The application's client, and the store behind it."""

    def __init__(self, deployment: Any, client: Any, pool: Pool) -> None:
        super().__init__(pool)
        self.deployment = deployment
        self.client = client

    async def get(self, path: str = "", status: int = 200) -> Any:
        return await self._read(await self.client.get(BASE + path), status)

    async def post(self, path: str, body: Any = None, *, status: int = 200, actor: str | None = None) -> Any:
        headers = {} if actor is None else {"X-Penstock-Actor": actor}
        given = {} if body is None else {"json": body}
        return await self._read(await self.client.post(BASE + path, headers=headers, **given), status)

    async def _read(self, answer: Any, status: int) -> Any:
        body = json.loads(await answer.get_data())
        assert answer.status_code == status, body
        assert answer.content_type == ("application/json" if status < 300 else "application/problem+json")
        return body


@pytest.fixture
async def desk(deployment: Any, client: Any, database: PostgresOptions) -> AsyncIterator[Desk]:
    async with desk_over(database, deployment) as pool:
        yield Desk(deployment, client, pool)


async def test_letters_are_listed_in_pages(desk: Desk) -> None:
    ids = [await desk.bury() for _ in range(3)]
    page = await desk.get("?limit=2")
    assert [each["id"] for each in page["letters"]] == [ids[2], ids[1]]
    page = await desk.get(f"?limit=2&before={page['next']}")
    assert [each["id"] for each in page["letters"]] == [ids[0]]
    assert page["next"] is None


async def test_a_list_can_be_filtered(desk: Desk) -> None:
    event_id = uuid4()
    number = await desk.bury(event_id=event_id, event_key="a+b", dead_at=datetime(2026, 3, 1, tzinfo=UTC))
    await desk.bury(consumer_group="shipping")
    for query in (
        f"?eventId={event_id}",
        "?key=a%2Bb",
        "?group=billing&stream=order-events&reason=max_deliveries&type=ORDER&status=any",
        "?since=2026-03-01T00:00:00Z&until=2026-03-01T09:00:01%2B09:00",
        f"?id={number}",
    ):
        assert [each["id"] for each in (await desk.get(query))["letters"]] == [number], query


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("?grop=x", "grop"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=ten", "limit"),
        ("?before=-1", "before"),
        ("?status=gone", "status"),
        ("?reason=mood", "reason"),
        ("?eventId=7", "eventId"),
        ("?since=yesterday", "since"),
        ("?since=2026-03-01T00:00:00", "since"),
        ("?group=a&group=b", "group"),
        ("?group=%00", "group"),
    ],
)
async def test_a_mistake_in_a_query_is_named(desk: Desk, query: str, says: str) -> None:
    problem = await desk.get(query, 400)
    assert problem["type"] == "urn:penstock:problem:invalid-parameter"
    assert says in problem["detail"]


async def test_what_died_of_one_error_is_one_group(desk: Desk) -> None:
    for _ in range(3):
        await desk.bury()
    last = await desk.bury()
    (group,) = (await desk.get("/groups"))["groups"]
    assert (group["count"], group["example"], group["errorMessage"]) == (4, last, "no funds")
    assert (await desk.get("/groups?group=other"))["groups"] == []


async def test_a_letter_is_shown_whole_and_without_secrets(desk: Desk) -> None:
    number = await desk.bury("password=hunter2 was refused")
    shown = await desk.get(f"/{number}")
    assert shown["fields"] == {"eventType": "ORDER", "data": '{"orderId":"o-1","password":"***"}'}
    assert shown["fieldsExact"] is False
    assert "hunter2" not in json.dumps(shown)
    assert shown["traceback"].rstrip().endswith("was refused")
    assert (await desk.get(f"/{await desk.bury(fields={'n': '1'})}"))["fieldsExact"] is True


async def test_of_a_huge_letter_the_beginning_is_shown_and_no_more_is_searched(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[int] = []

    def counting(text: str) -> str:
        searched.append(len(text))
        return redact_text(text)

    monkeypatch.setattr("penstock.http.letters.redact_text", counting)
    head = "x" * (FIELDS_LIMIT - 20)
    fields = {
        "n": "1",
        "data": f"{head} redis://u:hunter2@h {'y' * 1_000_000}",
        "pin": "1",
        "more": "y" * 1_000_000,
        "empty": "",
    }
    shown = await desk.get(f"/{await desk.bury(fields=fields)}")
    assert sum(searched) < FIELDS_LIMIT + 10_000
    assert shown["fieldsExact"] is False
    assert shown["fields"]["n"] == "1"
    assert shown["fields"]["data"].startswith(f"{head} redis://u:***")
    assert len(shown["fields"]["data"]) == FIELDS_LIMIT - len("1") - len("1") + len("…")
    assert shown["fields"]["data"][-1] == shown["fields"]["more"] == "…"
    assert (shown["fields"]["pin"], shown["fields"]["empty"]) == ("***", "")


async def test_what_is_not_there_is_404(desk: Desk) -> None:
    for path in ("/7", "/99999999999999999999"):
        assert (await desk.get(path, 404))["type"] == "urn:penstock:problem:letter-not-found"
    assert (await desk.post("/7/note", {"note": "x"}, status=404))["type"].endswith("letter-not-found")
    assert (await desk.post("/7/replay", status=404))["type"].endswith("letter-not-found")
    assert (await desk.post("/7/discard", status=404))["type"].endswith("letter-not-found")
    assert (await desk.get(f"/orders/{uuid4()}", 404))["type"].endswith("order-not-found")
    assert (await desk.post(f"/orders/{uuid4()}/cancel", status=404))["type"].endswith("order-not-found")


async def test_a_note_is_kept_with_who_wrote_it(desk: Desk) -> None:
    number = await desk.bury()
    shown = await desk.post(f"/{number}/note", {"note": "asked the bank"}, actor="kim")
    assert shown["note"] == "asked the bank"
    assert [(each["action"], each["by"]) for each in shown["audit"]] == [("noted", "kim")]
    await desk.post(f"/{number}/note", status=400)
    await desk.post(f"/{number}/note", {"note": "x"}, status=400, actor="k" * 201)


async def test_one_is_discarded_once(desk: Desk) -> None:
    number = await desk.bury()
    shown = await desk.post(f"/{number}/discard", {"note": "test data"})
    assert (shown["status"], shown["settledBy"], shown["note"]) == ("discarded", "http", "test data")
    problem = await desk.post(f"/{number}/discard", status=409)
    assert problem["type"] == "urn:penstock:problem:letter-refused"
    assert "discarded already" in problem["detail"]


async def test_many_are_discarded_by_a_filter_after_a_dry_run(desk: Desk) -> None:
    for _ in range(3):
        await desk.bury()
    wanted = {"filter": {"group": "billing"}, "limit": 2}
    assert await desk.post("/discard", {**wanted, "dryRun": True}) == {"dryRun": True, "letters": 2, "matching": 3}
    assert await desk.post("/discard", wanted) == {"dryRun": False, "letters": 2}
    assert len((await desk.get())["letters"]) == 1
    assert "filter" in (await desk.post("/discard", {}, status=400))["detail"]


async def test_one_is_replayed_by_an_order_that_can_be_followed(desk: Desk) -> None:
    number = await desk.bury()
    order = await desk.post(f"/{number}/replay", {"note": "mended"}, status=202, actor="kim")
    assert (order["state"], order["total"], order["moved"], order["to"]) == ("running", 1, 0, "group")
    assert (order["orderedBy"], order["note"]) == ("kim", "mended")
    assert await desk.get(f"/orders/{order['id']}") == order
    assert (await desk.get("/orders"))["orders"] == [order]
    assert (await desk.get(f"/{number}"))["status"] == "replaying"
    assert "replaying already" in (await desk.post(f"/{number}/replay", status=409))["detail"]
    cancelled = await desk.post(f"/orders/{order['id']}/cancel", actor="lee")
    assert cancelled["state"] == "cancelled"
    assert (await desk.get(f"/{number}"))["status"] == "dead"


async def test_many_are_replayed_by_a_filter_after_a_dry_run(desk: Desk) -> None:
    for _ in range(3):
        await desk.bury()
    await desk.bury(reason="trimmed", fields=None)
    wanted = {"filter": {"stream": "order-events"}, "rate": 10, "limit": 2, "to": "stream"}
    preview = await desk.post("/replay", {**wanted, "dryRun": True})
    assert preview == {"dryRun": True, "letters": 2, "matching": 4, "trimmed": 1, "noEvents": 0, "undeclared": 0}
    order = await desk.post("/replay", wanted, status=202)
    assert (order["total"], order["rate"], order["to"]) == (2, 10.0, "stream")
    assert order["filter"] == {"stream": "order-events", "status": "dead"}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "filter"),
        ({"filter": []}, "filter"),
        ({"filter": {"grop": "x"}}, "grop"),
        ({"filter": {"id": None}}, "filter.id"),
        ({"filter": {}, "rate": 0}, "rate"),
        ({"filter": {}, "rate": "fast"}, "rate"),
        ({"filter": {}, "to": "everybody"}, "to"),
        ({"filter": {}, "limit": True}, "limit"),
        ({"filter": {}, "dryRun": "yes"}, "dryRun"),
        ({"filter": {}, "dry_run": True}, "dry_run"),
        ([], "object"),
    ],
)
async def test_a_mistake_in_an_order_is_named_and_nothing_is_ordered(desk: Desk, body: Any, says: str) -> None:
    number = await desk.bury()
    assert says in (await desk.post("/replay", body, status=400))["detail"]
    assert (await desk.get(f"/{number}"))["status"] == "dead"


async def test_an_order_comes_as_json(desk: Desk) -> None:
    answer = await desk.client.post(f"{BASE}/replay", data=b'{"filter": {}}', headers={"Content-Type": "text/plain"})
    assert answer.status_code == 415


async def test_while_the_database_is_away_it_says_so_at_once(desk: Desk) -> None:
    desk.deployment.gates["postgres"].shut("connection refused with password=hunter2")
    problem = await desk.get("", 503)
    assert problem["type"] == "urn:penstock:problem:database-away"
    assert "connection refused" in problem["detail"]
    assert "hunter2" not in problem["detail"]


async def test_a_database_that_goes_away_while_it_is_asked_is_503(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    async def lose(*args: Any, **more: Any) -> Any:
        raise PostgresUnavailable("the connection was lost", address="here")

    monkeypatch.setattr(desk.deployment.letters, "letters", lose)
    assert (await desk.get("", 503))["type"] == "urn:penstock:problem:database-away"


async def test_a_system_without_a_database_has_no_letters(client: Any) -> None:
    for path in (BASE, "/api/v1/ledger"):
        answer = await client.get(path)
        assert answer.status_code == 503
        assert "without a database" in json.loads(await answer.get_data())["detail"]


# The ledger ----------------------------------------------------------------------------------------------------------


async def test_the_ledger_answers_for_one_event_and_for_many(desk: Desk) -> None:
    desk.deployment.gates["redis"].shut("gone")
    done, dead, unknown = uuid4(), uuid4(), UUID(int=7)
    async with desk.store.transaction() as transaction:
        await transaction.first_time("billing", [InboxEntry(done, "order-events", "5-0")])
    await desk.bury(event_id=dead)
    answer = await desk.client.get(f"/api/v1/ledger/{done}")
    (fate,) = json.loads(await answer.get_data())["fates"]
    assert (fate["group"], fate["fate"], fate["entryId"]) == ("billing", "done", "5-0")
    asked = [str(each) for each in (done, dead, unknown, dead)]
    answer = await desk.client.post("/api/v1/ledger", json={"eventIds": asked})
    events = json.loads(await answer.get_data())["events"]
    assert [(each["eventId"], [fate["fate"] for fate in each["fates"]]) for each in events] == [
        (str(done), ["done"]),
        (str(dead), ["dead"]),
        (str(unknown), ["unknown"]),
    ]
    assert "Redis is away" in events[2]["fates"][0]["reason"]
    (line,) = json.loads(await (await desk.client.get("/api/v1/ledger")).get_data())["lines"]
    assert (line["done"], line["dead"], line["unread"]) == (1, 1, None)


@pytest.mark.parametrize("body", [{}, {"eventIds": []}, {"eventIds": [7]}, {"eventIds": ["x"]}, {"eventIds": "x"}])
async def test_what_is_no_list_of_ids_is_refused(desk: Desk, body: Any) -> None:
    answer = await desk.client.post("/api/v1/ledger", json=body)
    assert answer.status_code == 400


def test_the_documented_numbers_are_the_real_ones() -> None:
    docs = Path(__file__).parents[2] / "docs"
    api, desk, told = (
        (docs / name).read_text() for name in ("reference/http-api.md", "how-to/dead-letters.md", "how-to/ledger.md")
    )
    assert f"letters a second, {SLOWEST:g} to {FASTEST:,.0f}; default {RATE:g}" in api
    assert f"letters at the most, the oldest; default {MOST:,}" in api
    assert f"{RATE:g} letters a second (`--rate`), {MOST:,} at the most (`--limit`)" in desk
    assert f"(100, up to {PAGE_LIMIT:,})" in api
    assert f"up to {EVENT_LIMIT:,}" in api
    assert f"({SCAN:,})" in api
    assert f"up to {SCAN:,} entries (`--scan`)" in told
    assert f"about the\nlast {DEAD_LETTER_MIRROR:,}" in desk or f"about the last {DEAD_LETTER_MIRROR:,}" in desk
    reasons = re.findall(r"^\| `([a-z_]+)` \| ", desk, re.MULTILINE)
    assert sorted(reasons) == sorted(Reason)
    fates = re.findall(r"`([a-z]+)`", told.partition("| fate | |")[2].partition("`unknown`")[0])
    assert {"unknown", *fates} == set(Fate)
    assert ACTOR in api
