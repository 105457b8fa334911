from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.http.redaction import is_secret, redact_pairs, redact_text


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ('{"password":"a\\"b","x":1}', '{"password":"***","x":1}'),
        ('{"a":{"secret":{"k":"}","z":[1,{}]},"ok":1}}', '{"a":{"secret":"***","ok":1}}'),
        ('{"password":123,"CardNumber": 4111, "ok": null}', '{"password":"***","CardNumber": "***", "ok": null}'),
        ('{"pass\\u0077ord": "x"}', '{"pass\\u0077ord": "***"}'),
        ('{"password"\n:\n"x"}', '{"password"\n:\n"***"}'),
        ('{"path":"C:\\\\","token":"x"}', '{"path":"C:\\\\","token":"***"}'),
        # Cut in the middle: hidden to the end.
        ('{"password":"abc', '{"password":"***"'),
        ('{"password":"abc\\', '{"password":"***"'),
        ('{"token":[1,{"a":"]"', '{"token":"***"'),
        # No JSON at all.
        ('it is 5" wide, "password": "x", "b"', 'it is 5" wide, "password": "***", "b"'),
        ("{'password': 'x'}", "{'password': '***'}"),
        ('{"a":1}\n{"apiKey":"x"}\nbroken "token":"q"', '{"a":1}\n{"apiKey":"***"}\nbroken "token":"***"'),
        ("redis://u:pw@h", "redis://u:***@h"),
        # UTF-16 that was read as UTF-8.
        ('"\0p\0a\0s\0s\0w\0o\0r\0d\0"\0:\0"\0x\0"\0', '"password":"***"'),
    ],
)
def test_the_values_of_secret_members_are_hidden(text: str, redacted: str) -> None:
    assert redact_text(text) == redacted


def test_json_inside_of_json_is_searched_too() -> None:
    inner = json.dumps({"password": 'x y"z', "n": [1]})
    for _ in range(3):
        outer = json.dumps({"inputs": inner, "b": 2})
        redacted = redact_text(outer)
        assert "x y" not in redacted
        assert json.loads(redacted)["b"] == 2
        inner = outer


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(values, st.sampled_from(["password", "Access-Token", "API_KEY", "x.secret"]), st.integers(0, 2), st.data())
def test_whatever_stands_beside_it_and_wherever_it_is_cut_a_secret_stays_hidden(
    beside: object, key: str, indent: int, data: st.DataObject
) -> None:
    secret = {"deep": ["5ecret-5ecret", {"more": "5ecret-5ecret"}]}
    text = json.dumps([beside, {"a": beside, key: secret, "z": beside}], indent=indent or None)
    cut = data.draw(st.integers(0, len(text)))
    assert "5ecret" not in redact_text(text)
    assert "5ecret" not in redact_text(text[:cut])


@given(values)
def test_what_is_no_secret_is_left_as_it_is(value: object) -> None:
    text = json.dumps({"orderId": value})
    if redact_text(text) != text:  # hypothesis may well draw a key such as "pin"
        assert "***" in redact_text(text)


@pytest.mark.parametrize("key", ["ACCESSTOKEN", "card-number", "user[password]", "X-Api-Key", "cvv", "Authorization"])
def test_secret_keys_are_known_in_every_joining(key: str) -> None:
    assert is_secret(key)


@pytest.mark.parametrize("key", ["key", "tokenizer", "monkey", "shipping", "passage", "pinned", "company"])
def test_keys_that_only_look_alike_are_left_alone(key: str) -> None:
    assert not is_secret(key)


def test_pairs_of_a_form_are_shown_decoded() -> None:
    form = 'a=1&a=2&b=&%70assword=x&next=redis%3A%2F%2Fu%3Ap%40h&{"token":"x"}'
    assert redact_pairs(form) == {
        "a": ["1", "2"],
        "b": "",
        "password": "***",
        "next": "redis://u:***@h",
        '{"token":"***"}': "",
    }


@pytest.mark.parametrize(
    "piece", ['"', '\\"', '"a":', "\\", '"token":{', '"token":"\\', '["', '"a" ', '\\\\"token\\\\":']
)
def test_text_made_to_be_slow_is_not(piece: str) -> None:
    text = (piece * 12288)[:12288]
    began = time.thread_time()
    redact_text(text)
    redact_pairs(text)
    assert time.thread_time() - began < 1.0  # some 30 ms at the worst; quadratic ones take many seconds
