"""Publishing over HTTP, each promise and each refusal."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import pytest

from penstock.actors.producer import PublishFailed

ORDERS = "/api/v1/streams/order-events/events"
ANYTHING = "/api/v1/streams/anything/events"
ORDER = {"eventType": "ORDER_PLACED", "data": {"orderId": "o-1", "price": 9.5}}
NDJSON = {"Content-Type": "application/x-ndjson"}
JSON = {"Content-Type": "application/json"}


async def _json(answer: Any) -> Any:
    return json.loads(await answer.get_data())


async def _problem(answer: Any, status: int, name: str) -> dict[str, Any]:
    body = await _json(answer)
    assert answer.status_code == status, body
    assert answer.content_type == "application/problem+json"
    assert body["type"] == f"urn:penstock:problem:{name}"
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return dict(body)


# Accepted ------------------------------------------------------------------------------------------------------------


async def test_one_event_is_accepted_with_its_id_its_entry_and_where_it_is_safe(client: Any, deployment: Any) -> None:
    answer = await client.post(ORDERS, json=ORDER)
    body = await _json(answer)
    assert answer.status_code == 202
    ((stream, envelope),) = deployment.published
    assert body == {"eventId": str(envelope.event_id), "entryId": "1700000000000-1", "durable": "redis"}
    assert stream == "order-events"
    assert (envelope.event_type, envelope.data) == ("ORDER_PLACED", ORDER["data"])
    assert envelope.event_id.version == 7


async def test_the_client_s_own_id_key_time_and_trace_are_kept(client: Any, deployment: Any) -> None:
    event_id = str(uuid4())
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    item = {**ORDER, "eventId": event_id.upper(), "key": "customer-7", "timestamp": "2026-03-01T09:30:00+09:00"}
    answer = await client.post(ORDERS, json=item, headers={"traceparent": trace})
    assert (await _json(answer))["eventId"] == event_id
    ((_, envelope),) = deployment.published
    assert (envelope.event_id, envelope.key, envelope.traceparent) == (UUID(event_id), "customer-7", trace)
    assert envelope.timestamp.isoformat() == "2026-03-01T09:30:00+09:00"


async def test_a_broken_trace_is_ignored_not_refused(client: Any, deployment: Any) -> None:
    assert (await client.post(ORDERS, json=ORDER, headers={"traceparent": "00-zz"})).status_code == 202
    assert deployment.published[0][1].traceparent is None


async def test_events_of_one_request_may_be_of_different_traces(client: Any, deployment: Any) -> None:
    own = "00-11111111111111111111111111111111-2222222222222222-01"
    request = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    items = [{**ORDER, "traceparent": own}, ORDER, {**ORDER, "traceparent": "broken"}, {**ORDER, "traceparent": 7}]
    answer = await client.post(ORDERS, json=items, headers={"traceparent": request})
    *_, refused = await _json(answer)
    assert [envelope.traceparent for _, envelope in deployment.published] == [own, request, request]
    assert refused["error"]["errors"] == [{"field": "traceparent", "detail": "must be a string"}]


async def test_null_stands_for_a_member_that_is_left_out(client: Any) -> None:
    item = {**ORDER, "eventId": None, "key": None, "timestamp": None}
    assert (await client.post(ORDERS, json=item)).status_code == 202


async def test_a_stream_without_declared_types_takes_any(client: Any) -> None:
    assert (await client.post(ANYTHING, json={"eventType": "whatever", "data": {"주문": [1, None]}})).status_code == 202


async def test_an_array_has_its_results_in_an_array_in_order(client: Any, deployment: Any) -> None:
    ids = [str(uuid4()) for _ in range(5)]
    answer = await client.post(ORDERS, json=[{**ORDER, "eventId": each} for each in ids])
    assert answer.status_code == 202
    assert [result["eventId"] for result in await _json(answer)] == ids
    assert [str(envelope.event_id) for _, envelope in deployment.published] == ids


async def test_a_bad_line_of_a_hundred_gives_99_results_and_one_error_in_its_place(
    client: Any, deployment: Any
) -> None:
    lines = [json.dumps(ORDER) for _ in range(100)]
    lines[41] = '{"eventType": "ORDER_PLACED", "data": '
    answer = await client.post(ORDERS, data="\n".join(lines) + "\n", headers=NDJSON)
    assert answer.status_code == 202
    assert answer.content_type == "application/x-ndjson"
    results = [json.loads(line) for line in (await answer.get_data()).splitlines()]
    assert len(results) == 100
    assert len(deployment.published) == 99
    (wrong,) = [index for index, result in enumerate(results) if "error" in result]
    assert wrong == 41
    error = results[41]["error"]
    assert (error["status"], error["line"]) == (400, 42)
    assert error["type"] == "urn:penstock:problem:malformed-json"


async def test_lines_count_as_in_the_file_and_blank_ones_give_no_result(client: Any) -> None:
    answer = await client.post(ORDERS, data=f"\r\n{json.dumps(ORDER)}\r\n\n[]\n", headers=NDJSON)
    first, second = [json.loads(line) for line in (await answer.get_data()).splitlines()]
    assert first["durable"] == "redis"
    assert second["error"]["line"] == 4


async def test_a_line_separator_inside_a_string_divides_nothing(client: Any, deployment: Any) -> None:
    item = {"eventType": "X", "data": {"text": "a\u2028b\x85c"}}
    answer = await client.post(ANYTHING, data=json.dumps(item, ensure_ascii=False).encode(), headers=NDJSON)
    assert len((await answer.get_data()).splitlines()) == 1
    assert deployment.published[0][1].data == item["data"]


async def test_a_bad_item_of_an_array_is_named_by_its_index(client: Any, deployment: Any) -> None:
    event_id = str(uuid4())
    answer = await client.post(ORDERS, json=[ORDER, {"eventType": "NOPE", "data": {}, "eventId": event_id}, 7])
    good, unknown, number = await _json(answer)
    assert good["durable"] == "redis"
    assert (unknown["error"]["index"], unknown["error"]["status"]) == (1, 422)
    assert unknown["error"]["eventId"] == event_id
    assert "ORDER_CANCELLED, ORDER_PLACED" in unknown["error"]["detail"]
    assert number["error"]["index"] == 2
    assert len(deployment.published) == 1


# Refused -------------------------------------------------------------------------------------------------------------


async def test_an_unknown_stream_is_404_and_names_the_known_ones(client: Any) -> None:
    problem = await _problem(await client.post("/api/v1/streams/nope/events", json=ORDER), 404, "unknown-stream")
    assert problem["streams"] == ["EVENT_STREAM", "anything", "order-events"]
    assert "order-events" in problem["detail"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"{", "line 1, column 2"),
        (b"nope", "line 1, column 1"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "1e999 is too large"),
        (b'{"a": ' + b"9" * 5000 + b"}", "digits"),
        (b"\xff\xfe{}", "byte 1 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b"[" * 100_000, "nested deeper than 64"),
        (b'{"eventType":"X","data":' + b'{"a":' * 70 + b"1" + b"}" * 71, "nested deeper than 64"),
        (b'{"a": "\x01"}', "control character"),
    ],
)
async def test_malformed_json_is_400_and_says_where(client: Any, body: bytes, says: str) -> None:
    problem = await _problem(await client.post(ANYTHING, data=body, headers=JSON), 400, "malformed-json")
    assert says in problem["detail"]


@pytest.mark.parametrize(
    ("body", "headers"), [(b"", JSON), (b"", NDJSON), (b" \n", JSON), (b" \n", NDJSON), (b"[]", JSON)]
)
async def test_an_empty_body_is_400(client: Any, body: bytes, headers: dict[str, str]) -> None:
    await _problem(await client.post(ANYTHING, data=body, headers=headers), 400, "empty-body")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"eventType": None}, "eventType"),
        ({"eventType": ""}, "eventType"),
        ({"eventType": "x" * 201}, "eventType"),
        ({"eventType": 7}, "eventType"),
        ({"eventType": "a\0b"}, "eventType"),
        ({"data": None}, "data"),
        ({"data": [1]}, "data"),
        ({"data": {"a": {"b": ["\0"]}}}, "data"),
        ({"data": {"a\0": 1}}, "data"),
        ({"data": {"a": "\ud800"}}, "data"),
        ({"eventId": "7"}, "eventId"),
        ({"eventId": 7}, "eventId"),
        ({"eventId": "{7d444840-9dc0-11d1-b245-5ffdce74fad2}"}, "eventId"),
        ({"key": ""}, "key"),
        ({"key": "k" * 513}, "key"),
        ({"key": "a\0"}, "key"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": "2026-03-01T09:30:00"}, "timestamp"),
        ({"timestamp": 1}, "timestamp"),
        ({"evenType": "X"}, "evenType"),
    ],
)
async def test_invalid_data_is_422_and_names_the_member(
    client: Any, deployment: Any, change: dict[str, Any], field: str
) -> None:
    item = {"eventType": "X", "data": {}, **change}
    problem = await _problem(await client.post(ANYTHING, data=json.dumps(item), headers=JSON), 422, "invalid-event")
    assert [error["field"] for error in problem["errors"]] == [field]
    assert field in problem["detail"]
    assert deployment.published == []


async def test_an_answer_names_some_of_very_many_mistakes(client: Any) -> None:
    item = {"eventType": "X", "data": {}, **{f"{number}-{'x' * 200}": None for number in range(5_000)}}
    answer = await client.post(ANYTHING, data=json.dumps(item), headers=JSON)
    problem = await _problem(answer, 422, "invalid-event")
    assert len(problem["errors"]) == 21
    assert problem["errors"][0]["field"] == f"0-{'x' * 98}"
    assert problem["errors"][-1] == {"field": "", "detail": "and more of the kind"}
    assert len(await answer.get_data()) < 10_000


@pytest.mark.parametrize("body", [b"7", b'"a"', b"null", b"true"])
async def test_json_that_is_no_object_is_422(client: Any, body: bytes) -> None:
    problem = await _problem(await client.post(ANYTHING, data=body, headers=JSON), 422, "invalid-event")
    assert "an event is a JSON object" in problem["detail"]


async def test_all_mistakes_are_named_at_once(client: Any) -> None:
    item = {"eventType": "", "data": 1, "key": 2, "x": 3}
    problem = await _problem(await client.post(ANYTHING, json=item), 422, "invalid-event")
    assert [error["field"] for error in problem["errors"]] == ["eventType", "data", "key", "x"]


async def test_data_that_do_not_fit_the_declared_class_are_422_with_its_fields(client: Any) -> None:
    item = {"eventType": "ORDER_PLACED", "data": {"orderId": 7}}
    problem = await _problem(await client.post(ORDERS, json=item), 422, "invalid-event")
    assert {"field": "data.orderId", "detail": "expected str"} in problem["errors"]
    assert {"field": "data.price", "detail": "is missing"} in problem["errors"]
    assert "data.orderId: expected str" in problem["detail"]


@pytest.mark.parametrize(
    "timestamp", ["1969-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"]
)
async def test_a_time_that_cannot_be_stored_is_422_and_names_the_timestamp(client: Any, timestamp: str) -> None:
    item = {"eventType": "ORDER_PLACED", "data": {"orderId": "o-1", "price": 1.0}, "timestamp": timestamp}
    problem = await _problem(await client.post(ORDERS, json=item), 422, "invalid-event")
    assert problem["errors"][0]["field"] == "timestamp"


async def test_a_line_that_is_no_utf_8_is_one_error_in_its_place(client: Any) -> None:
    good = json.dumps({"eventType": "ORDER_PLACED", "data": {"orderId": "o-1", "price": 1.0}}).encode()
    body = b"\n".join([good, b'{"eventType": "\xff"}', good])
    answer = await client.post(ORDERS, data=body, headers={"Content-Type": "application/x-ndjson"})
    assert answer.status_code == 202
    results = [json.loads(line) for line in (await answer.get_data()).splitlines()]
    assert ["error" in result for result in results] == [False, True, False]


async def test_an_undeclared_type_is_422_and_names_the_declared_ones(client: Any) -> None:
    problem = await _problem(await client.post(ORDERS, json={"eventType": "NO", "data": {}}), 422, "invalid-event")
    assert "ORDER_CANCELLED, ORDER_PLACED" in problem["detail"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/json; charset=euc-kr"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
        {},
    ],
)
async def test_another_content_type_is_415_and_says_what_is_taken(client: Any, headers: dict[str, str]) -> None:
    answer = await client.post(ANYTHING, data=b'{"eventType":"X","data":{}}', headers=headers)
    await _problem(answer, 415, "unsupported-media-type")
    assert "application/json" in answer.headers["Accept-Post"]


async def test_too_many_events_are_413(make_app: Any) -> None:
    client = make_app(max_items=3).test_client()
    assert (await client.post(ORDERS, json=[ORDER] * 3)).status_code == 202
    problem = await _problem(await client.post(ORDERS, json=[ORDER] * 4), 413, "too-many-events")
    assert problem["limit"] == 3
    await _problem(await client.post(ORDERS, data="1\n" * 4, headers=NDJSON), 413, "too-many-events")


async def test_a_body_beyond_the_limit_is_413(make_app: Any) -> None:
    client = make_app(body_limit=1000).test_client()
    item = {"eventType": "X", "data": {"a": "x" * 1000}}
    problem = await _problem(await client.post(ANYTHING, json=item), 413, "request-entity-too-large")
    assert "http.body_limit" in problem["detail"]


# Conditions ----------------------------------------------------------------------------------------------------------


async def test_an_event_with_a_condition_is_accepted_while_it_holds(client: Any, deployment: Any) -> None:
    deployment.conditions.add("open")
    answer = await client.post(f"{ORDERS}?condition=open", json=ORDER)
    assert answer.status_code == 202
    assert (await answer.get_json())["durable"] == "redis"
    event_id = str(uuid4())
    answer = await client.post(f"{ORDERS}?condition=shut", json={**ORDER, "eventId": event_id})
    problem = await _problem(answer, 409, "condition-not-met")
    assert (problem["eventId"], problem["condition"]) == (event_id, "shut")
    assert len(deployment.published) == 1


@pytest.mark.parametrize(
    ("query", "body", "problem"),
    [("condition=open", [ORDER], "one-event-only"), ("condition=", ORDER, "invalid-condition")],
)
async def test_a_condition_is_for_one_event_and_has_a_name(
    client: Any, deployment: Any, query: str, body: Any, problem: str
) -> None:
    await _problem(await client.post(f"{ORDERS}?{query}", json=body), 400, problem)
    assert deployment.published == []


async def test_an_outage_with_a_condition_is_503(client: Any, deployment: Any) -> None:
    deployment.conditions.add("open")
    deployment.shut_redis()
    await _problem(await client.post(f"{ORDERS}?condition=open", json=ORDER), 503, "unavailable")


# Outages -------------------------------------------------------------------------------------------------------------


async def test_with_redis_away_one_event_is_503_and_says_what_is_away_since_when(client: Any, deployment: Any) -> None:
    deployment.shut_redis("connection refused at redis://root:hunter2@h:6379")
    event_id = str(uuid4())
    answer = await client.post(ORDERS, json={**ORDER, "eventId": event_id})
    problem = await _problem(answer, 503, "unavailable")
    assert answer.headers["Retry-After"] == "2"
    assert problem["eventId"] == event_id
    assert problem["outcomeUnknown"] is False
    (gate,) = problem["gates"]
    assert (gate["name"], gate["open"]) == ("redis", False)
    assert "connection refused" in gate["cause"]
    assert gate["since"] <= gate["since"][:4] + "-12-31T24"
    assert "redis" in problem["detail"]
    assert "hunter2" not in json.dumps(problem)


async def test_what_is_in_the_outbox_is_accepted_without_an_entry_id(client: Any, deployment: Any) -> None:
    deployment.spooling = True
    answer = await client.post(ORDERS, json=ORDER)
    assert answer.status_code == 202
    result = await answer.get_json()
    assert (result["entryId"], result["durable"]) == (None, "outbox")
    assert UUID(result["eventId"])


async def test_an_unknown_outcome_is_said(client: Any, deployment: Any) -> None:
    deployment.failure = lambda each: PublishFailed(each.event_id, "no answer within 5 s", outcome_unknown=True)
    problem = await _problem(await client.post(ORDERS, json=ORDER), 503, "unavailable")
    assert problem["outcomeUnknown"] is True
    assert UUID(problem["eventId"])
    assert "may have been published" in problem["detail"]


async def test_what_waiting_cannot_mend_is_502_without_retry_after(client: Any, deployment: Any) -> None:
    deployment.failure = lambda each: PublishFailed(each.event_id, "WRONGTYPE the key holds a list", permanent=True)
    answer = await client.post(ORDERS, json=ORDER)
    problem = await _problem(answer, 502, "refused-by-redis")
    assert "Retry-After" not in answer.headers
    assert "WRONGTYPE" in problem["detail"]


@pytest.mark.parametrize("headers", [JSON, NDJSON])
async def test_many_of_which_none_came_through_are_503_with_all_their_ids(
    client: Any, deployment: Any, headers: dict[str, str]
) -> None:
    deployment.shut_redis()
    items = [json.dumps(ORDER), "7", json.dumps({**ORDER, "eventId": str(uuid4())})]
    body = "\n".join(items) if headers is NDJSON else f"[{','.join(items)}]"
    answer = await client.post(ORDERS, data=body, headers=headers)
    problem = await _problem(answer, 503, "unavailable")
    assert int(answer.headers["Retry-After"]) >= 1
    first, bad, third = problem["eventIds"]
    assert bad is None
    assert third == json.loads(items[2])["eventId"]
    assert problem["results"][0]["error"]["eventId"] == first
    assert problem["results"][1]["error"]["status"] == 422


async def test_many_of_which_some_came_through_have_a_result_each(client: Any, deployment: Any) -> None:
    deployment.failure = lambda each: PublishFailed(each.event_id, "away") if each.key == "b" else None
    answer = await client.post(ORDERS, json=[{**ORDER, "key": key} for key in "abc"])
    assert answer.status_code == 202
    first, second, third = await _json(answer)
    assert (first["durable"], third["durable"]) == ("redis", "redis")
    assert second["error"]["status"] == 503
    assert second["error"]["index"] == 1
    assert UUID(second["error"]["eventId"])
