from __future__ import annotations

import time

import pytest

from penstock.runtime.masking import MASK, is_secret_key, mask, mask_text, mask_url


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://root:s3cret@127.0.0.1:6379/0", "redis://root:***@127.0.0.1:6379/0"),
        ("redis://:s3cret@cache", "redis://:***@cache"),
        ("rediss://root:p@ss:wo@rd@cache", "rediss://root:***@cache"),
        ("redis+cluster://root:s3cret@h1:7001,h2:7002", "redis+cluster://root:***@h1:7001,h2:7002"),
        ("postgresql://u:a/b@db/penstock", "postgresql://u:***@db/penstock"),
        ("postgresql://u@db/x?password=s3cret&sslmode=require", "postgresql://u@db/x?password=***&sslmode=require"),
        ("http://host/x?next=redis://u:s3cret@h", "http://host/x?next=redis://u:***@h"),
        # What a driver takes for a password, whatever stands in it.
        ("postgresql://u:pa'ss@h/db", "postgresql://u:***@h/db"),
        ('postgresql://u:pa" \'ss"@h/db', "postgresql://u:***@h/db"),
        ("postgresql://u:pa ss@h/db", "postgresql://u:***@h/db"),
        ("redis:/u:pa 'ss@h", "redis:/u:***@h"),
        (
            "postgresql:///db?user=u&password=pa 'ss&sslmode=require",
            "postgresql:///db?user=u&password=***&sslmode=require",
        ),
        ("postgresql://u@h/db?sslpassword=s3cret", "postgresql://u@h/db?sslpassword=***"),
        # Nothing secret: nothing lost.
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("http://host:80/mail?to=a@b", "http://host:80/mail?to=a@b"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("not a url", "not a url"),
        ("", ""),
    ],
)
def test_only_the_secret_of_a_url_is_hidden(url: str, masked: str) -> None:
    assert mask_url(url) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("cannot reach redis://:pw@a, nor redis://:pw@b", "cannot reach redis://:***@a, nor redis://:***@b"),
        ("host=db password='it\\'s here' user=x", "host=db password=*** user=x"),
        ("host=db password=s3cret user=x", "host=db password=*** user=x"),
        ("host=db sslpassword=s3cret user=x", "host=db sslpassword=*** user=x"),
        ("cannot reach 'redis://:p'w@a', nor 'redis://h'", "cannot reach 'redis://:***@a', nor 'redis://h'"),
        ('url=postgresql://u:"pw"@h/db', "url=postgresql://u:***@h/db"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer ***"),
        ('{"user": "a", "password": "s\\"3", "n": 1}', '{"user": "a", "password": "***", "n": 1}'),
        ("{'accessToken': 'abc', 'x': 'y'}", "{'accessToken': '***', 'x': 'y'}"),
        ("GET /login?token=abc&page=2", "GET /login?token=***&page=2"),
        ("at 12:30, see http://host/docs", "at 12:30, see http://host/docs"),
        ("['http://host:80','a@b'] {'x':'http://h:x'}@b", "['http://host:80','a@b'] {'x':'http://h:x'}@b"),
        ('{"url":"http://host:x","mail":"a@b"}', '{"url":"http://host:x","mail":"a@b"}'),
    ],
)
def test_secrets_inside_running_text_are_hidden(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_masking_twice_changes_nothing_more() -> None:
    once = mask_text("redis://u:p@h?token=x {'password': 'y'} Bearer 0123456789")
    assert mask_text(once) == once


@pytest.mark.parametrize(
    "key",
    ["password", "PGPASSWORD", "accessToken", "X-Api-Key", "apikey", "Set-Cookie", "client_secret", "AUTHORIZATION"],
)
def test_secret_keys_are_known_in_every_spelling(key: str) -> None:
    assert is_secret_key(key)


@pytest.mark.parametrize("key", ["key", "monkey", "tokenizer", "author", "stream", "passage"])
def test_keys_that_only_look_alike_are_left_alone(key: str) -> None:
    assert not is_secret_key(key)


def test_a_value_is_copied_with_its_secrets_hidden() -> None:
    value = {"user": "a", "auth": {"password": "x", "tags": ["redis://:p@h", 1]}, "token": None, "secret": True}
    assert mask(value) == {
        "user": "a",
        "auth": {"password": MASK, "tags": ["redis://:***@h", 1]},
        "token": None,
        "secret": True,
    }
    assert value["auth"] == {"password": "x", "tags": ["redis://:p@h", 1]}


def test_a_cycle_ends() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert MASK in str(mask(loop))


@pytest.mark.parametrize("piece", ["a", "a://b:", "://", "a://'b", "'b", '"a":', "bearer ", "?a=", "a:@/"])
def test_text_made_to_be_slow_is_not(piece: str) -> None:
    text = (piece * 8192)[:8192] + "://"
    began = time.thread_time()
    mask_text(text)
    mask_url(text)
    mask_url("a://" + text)
    assert time.thread_time() - began < 1.0  # linear: about a millisecond; quadratic: many seconds


@pytest.mark.parametrize(("piece", "end"), [("a://", ""), ("a://b/", "@"), ("a://b:1/", "@")])
def test_a_text_of_a_million_urls_in_a_row_is_searched_once(piece: str, end: str) -> None:
    """Ends well within the time-out of every test; a search that copies the rest at each URL takes minutes."""
    text = piece * (4_000_000 // len(piece)) + end
    unchanged = mask_text(text) == text  # not in the assert, which would print it
    assert unchanged


def test_a_login_in_what_was_meant_to_be_a_url_is_hidden() -> None:
    assert mask_url("redis:/u:hunter2@h") == "redis:/u:***@h"
