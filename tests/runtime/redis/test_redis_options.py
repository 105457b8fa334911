"""`RedisOptions`: URLs, addresses, refusals; no secret in any message."""

from __future__ import annotations

import pytest

from penstock.runtime.redis import InvalidRedisUrl, RedisOptions


@pytest.mark.parametrize(
    ("url", "expected", "address"),
    [
        ("redis://", RedisOptions(), "redis://127.0.0.1:6379/0"),
        ("redis://h:7000/2", RedisOptions(host="h", port=7000, db=2), "redis://h:7000/2"),
        ("redis://[::1]:7000", RedisOptions(host="::1", port=7000), "redis://[::1]:7000/0"),
        ("redis://h?db=3", RedisOptions(host="h", db=3), "redis://h:6379/3"),
        ("rediss://h", RedisOptions(host="h", tls=True), "rediss://h:6379/0"),
        ("unix:///run/r.sock", RedisOptions(path="/run/r.sock"), "unix:///run/r.sock"),
        ("unix:///run/r.sock?db=1", RedisOptions(path="/run/r.sock", db=1), "unix:///run/r.sock?db=1"),
        (
            "redis://us%40er:p%2Fw%3A@h",
            RedisOptions(host="h", username="us@er", password="p/w:"),
            "redis://h:6379/0",
        ),
        ("redis://:pw@h", RedisOptions(host="h", password="pw"), "redis://h:6379/0"),
        (
            "redis://h?socket_timeout=2.5&socket_connect_timeout=1&client_name=a%20b&decode_responses=yes",
            RedisOptions(host="h", response_timeout=2.5, connect_timeout=1, client_name="a b", decode_responses=True),
            "redis://h:6379/0",
        ),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&stall_after=2&max_pending=7",
            RedisOptions(
                host="h", tls=True, tls_ca_file="/ca.pem", tls_check_hostname=False, stall_after=2, max_pending=7
            ),
            "rediss://h:6379/0",
        ),
    ],
)
def test_urls_in_redis_pys_forms(url: str, expected: RedisOptions, address: str) -> None:
    options = RedisOptions.from_url(url)
    assert options == expected
    assert options.address == address


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h", "must specify one of"),
        ("redis://:secret@h?db_index=1", "unknown option 'db_index'"),
        ("redis://:secret@h?health_check_interval=3", "unknown option 'health_check_interval'"),
        ("redis://:secret@h?host=other", "unknown option 'host'"),
        ("redis://:secret@h/first", "the path must be the number"),
        ("redis://:secret@h:port", "malformed"),
        ("redis://:secret@h:99999", "malformed"),
        ("redis://:secret@[h", "malformed"),
        ("redis://:secret@h?db=x", "Invalid value for 'db'"),
        ("redis://:secret@h?db=-1", "'db' must be >= 0"),
        ("redis://:secret@h?stall_after=soon", "option 'stall_after' is not of type float"),
        ("redis://:secret@h?socket_timeout=0", "'response_timeout' must be > 0"),
        ("redis://:secret@h?decode_responses=maybe", "option 'decode_responses' is not of type bool"),
        ("unix://", "needs the path"),
    ],
)
def test_an_unusable_url_names_its_fault_and_no_secret(url: str, complaint: str) -> None:
    with pytest.raises(InvalidRedisUrl) as caught:
        RedisOptions.from_url(url)
    assert complaint in str(caught.value)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_overrides_win_over_the_url() -> None:
    options = RedisOptions.from_url("redis://h/2?stall_after=1", db=3, password="other")
    assert (options.db, options.stall_after, options.password) == (3, 1, "other")


def test_the_password_is_never_shown() -> None:
    options = RedisOptions.from_url("redis://user:secret@h")
    assert "secret" not in repr(options) + str(options) + f"{options}" + options.address
    assert "password='***'" in repr(options)


@pytest.mark.parametrize(
    ("name", "documented"),
    [
        ("connect_timeout", 5.0),
        ("response_timeout", 5.0),
        ("stall_after", 0.75),
        ("block_margin", 1.5),
        ("max_pending", 100_000),
        ("max_queued_bytes", 8 * 2**20),
        ("max_blocking", 64),
        ("decode_responses", False),
    ],
)
def test_defaults_are_the_documented_ones(name: str, documented: object) -> None:
    assert getattr(RedisOptions(), name) == documented
