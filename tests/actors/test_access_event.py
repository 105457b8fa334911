from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from penstock.actors.access import ACCESS_STREAM, event_system
from penstock.actors.access_event import ACCESS_CODEC, AccessEvent, category_of
from penstock.actors.event import (
    Envelope,
    Fields,
    InvalidEvent,
    Origin,
    SkippedEntry,
    UndecodableEntry,
    event_type_of,
)

ACCESS = event_type_of(AccessEvent)
STREAM = event_system.streams[ACCESS_STREAM]
ORIGIN = Origin(ACCESS_STREAM, "1746327600123-4")

# An entry as the original service writes it; null travels as empty text.
ORIGINAL = {
    "type": "ACCESS",
    "categoryCode": "API_ADMIN",
    "userId": "anonymous",
    "endpoint": "/admin/api/v1/event/access/categories",
    "httpMethod": "GET",
    "methodName": "getCategories",
    "responseStatus": "200",
    "responseTime": "0.012",
    "ipAddress": "127.0.0.1",
    "userAgent": "curl/8.5.0",
    "inputs": "",
    "outputs": '{"statusCode":200}',
    "createdAt": "2025-05-04T12:00:00.123456789+09:00",
}


def _structure(**data: Any) -> AccessEvent:
    event: AccessEvent = ACCESS.structure(data)
    return event


def _decoded(fields: Fields) -> AccessEvent:
    event: AccessEvent = ACCESS.structure(STREAM.decode(fields, ORIGIN).data)
    return event


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/admin/api/v1/event/access/categories", "API_ADMIN"),
        ("/administrator", "API_ADMIN"),
        ("/external/x", "API_EXTERNAL"),
        ("/external-api/x", "API_EXTERNAL"),
        ("/internal", "API_INTERNAL"),
        ("/internal-api", "API_INTERNAL"),
        ("/healthz", "HEALTH_SYSTEM"),
        ("/queue/1", "SERVICE_QUEUE"),
        ("/api/v1/streams", "API_PUBLIC"),
        ("/", "UNKNOWN"),
        ("", "UNKNOWN"),
        ("/v1/api", "UNKNOWN"),
        ("/API", "UNKNOWN"),
    ],
)
def test_the_first_prefix_that_fits_names_the_category(path: str, code: str) -> None:
    assert category_of(path) == code


def test_an_endpoint_and_a_method_are_enough() -> None:
    before = datetime.now(UTC)
    event = _structure(endpoint="/admin/x", httpMethod="GET")
    assert (event.category_code, event.user_id, event.response_status) == ("API_ADMIN", "anonymous", None)
    assert before <= event.created_at <= datetime.now(UTC)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"httpMethod": "GET"}, "endpoint"),
        ({"endpoint": "/x"}, "httpMethod"),
        ({"endpoint": "/x", "httpMethod": "GET", "responseTime": float("nan")}, "responseTime"),
        ({"endpoint": "/x", "httpMethod": "GET", "responseStatus": 2**31}, "responseStatus"),
        ({"endpoint": "/x", "httpMethod": "GET", "createdAt": "0001-01-01T00:00:00+09:00"}, "createdAt"),
        ({"endpoint": "/x", "httpMethod": "GET", "createdAt": "9999-12-31T23:59:59-09:00"}, "createdAt"),
    ],
)
def test_what_could_not_be_stored_and_read_back_is_refused_by_name(data: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidEvent, match=named):
        _structure(**data)


def test_an_entry_has_the_original_fields_in_their_order_and_the_event_id() -> None:
    envelope = Envelope(event_type="ACCESS", data={"endpoint": "/x", "httpMethod": "HEAD", "responseTime": 1.23456})
    fields = STREAM.encode(envelope)
    assert list(fields) == [*ORIGINAL, "eventId"]
    assert "id" not in fields
    assert fields["responseTime"] == "1.235"
    assert fields["responseStatus"] == fields["inputs"] == ""
    assert fields["createdAt"] == envelope.timestamp.isoformat()


def test_an_entry_of_the_original_service_is_read() -> None:
    event = _decoded(ORIGINAL)
    assert event.endpoint == "/admin/api/v1/event/access/categories"
    assert (event.response_status, event.response_time, event.inputs) == (200, 0.012, None)
    assert event.created_at == datetime(2025, 5, 4, 12, 0, 0, 123456, timezone(timedelta(hours=9)))


def test_an_entry_without_an_event_id_has_the_same_one_at_every_delivery() -> None:
    first, second = (STREAM.decode(ORIGINAL, Origin(ACCESS_STREAM, "5-1")).event_id for _ in range(2))
    assert first == second
    assert first != STREAM.decode(ORIGINAL, Origin(ACCESS_STREAM, "5-2")).event_id
    assert first != STREAM.decode(ORIGINAL, Origin("OTHER", "5-1")).event_id


def test_the_namespace_of_these_ids_never_changes() -> None:
    assert str(Origin(ACCESS_STREAM, "5-1").event_id) == "9eaced0a-9a7c-534a-aa60-9d373259b1c2"


def test_the_type_is_read_without_case() -> None:
    assert STREAM.decode({**ORIGINAL, "type": "Access"}, ORIGIN).event_type == "ACCESS"


def test_the_original_services_placeholder_is_skipped() -> None:
    with pytest.raises(SkippedEntry):
        STREAM.decode({"event_id": "preservedId"}, ORIGIN)


def test_a_time_without_an_offset_is_utc() -> None:
    assert _decoded({**ORIGINAL, "createdAt": "2025-05-04T12:00:00"}).created_at == datetime(2025, 5, 4, 12, tzinfo=UTC)


def test_an_entry_without_a_time_has_the_time_at_which_redis_took_it() -> None:
    assert _decoded({**ORIGINAL, "createdAt": ""}).created_at == datetime(2025, 5, 4, 3, 0, 0, 123000, UTC)


@pytest.mark.parametrize(
    "broken",
    [{"responseStatus": "many"}, {"responseTime": "long"}, {"createdAt": "yesterday"}, {"eventId": "7"}],
)
def test_a_field_that_cannot_be_read_makes_the_entry_undecodable(broken: Fields) -> None:
    with pytest.raises(UndecodableEntry):
        STREAM.decode({**ORIGINAL, **broken}, ORIGIN)


def test_an_entry_of_another_flat_form_is_undecodable() -> None:
    with pytest.raises(UndecodableEntry, match="type"):
        STREAM.decode({"type": "ERROR", "text": "x"}, ORIGIN)


def test_key_and_trace_travel_along() -> None:
    envelope = Envelope(
        event_type="ACCESS", data={"endpoint": "/x", "httpMethod": "GET"}, key="user-1", traceparent="00-1-2-01"
    )
    back = STREAM.decode(STREAM.encode(envelope), ORIGIN)
    assert (back.key, back.traceparent, back.event_id) == ("user-1", "00-1-2-01", envelope.event_id)


TEXT = st.text(max_size=30)
SOME = st.text(min_size=1, max_size=30)

EVENTS = st.builds(
    AccessEvent,
    endpoint=TEXT,
    http_method=TEXT,
    category_code=SOME,
    user_id=SOME,
    method_name=TEXT,
    response_status=st.none() | st.integers(-(2**31), 2**31 - 1),
    response_time=st.none() | st.floats(0, 1e6),
    ip_address=st.none() | SOME,
    user_agent=st.none() | SOME,
    inputs=st.none() | SOME,
    outputs=st.none() | SOME,
    created_at=st.datetimes(datetime(1970, 1, 2), datetime(9998, 1, 1), timezones=st.just(UTC)),
)


@given(EVENTS)
def test_what_is_written_is_read_back_to_the_millisecond(event: AccessEvent) -> None:
    data = json.loads(json.dumps(ACCESS.unstructure(event)))
    envelope = Envelope(event_type="ACCESS", data=data, timestamp=event.created_at)
    fields = ACCESS_CODEC.encode(envelope)
    assert all(isinstance(text, str) for text in fields.values())
    expected = event.response_time if event.response_time is None else round(event.response_time, 3)
    back = ACCESS_CODEC.decode(fields, ORIGIN)
    assert back.event_id == envelope.event_id
    assert back.timestamp == event.created_at
    assert evolve(ACCESS.structure(back.data), response_time=expected) == evolve(event, response_time=expected)
    assert ACCESS.structure(back.data).response_time == pytest.approx(expected, abs=1e-3)
