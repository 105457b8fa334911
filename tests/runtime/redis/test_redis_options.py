"""`RedisOptions`: URLs, addresses, refusals; no secret in any message."""

from __future__ import annotations

import inspect
import ssl
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.connection import URL_QUERY_ARGUMENT_PARSERS

from penstock.runtime.redis import InvalidRedisUrl, RedisOptions

TLS_1_2 = ssl.TLSVersion.TLSv1_2
NOT_FOR_URLS = frozenset(
    {
        *("self", "args", "kwargs", "connection_kwargs", "connection_class", "connection_pool", "ssl"),
        *("unix_socket_path", "parser_class", "encoder_class", "redis_connect_func", "credential_provider", "retry"),
        *("event_dispatcher", "queue_class", "himport_registry"),
        *("maint_notifications_config", "maint_notifications_pool_handler", "maintenance_state"),
        *("maintenance_notification_hash", "oss_cluster_maint_notifications_handler"),
        *("orig_host_address", "orig_socket_timeout", "orig_socket_connect_timeout"),
    }
)
"""Arguments of redis-py that are objects, no text, or its own bookkeeping."""


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
            "redis://h?socket_timeout=2.5&socket_connect_timeout=1&client_name=a-b&decode_responses=yes",
            RedisOptions(host="h", response_timeout=2.5, connect_timeout=1, client_name="a-b", decode_responses=True),
            "redis://h:6379/0",
        ),
        (
            "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=false&stall_after=2&max_pending=7",
            RedisOptions(
                host="h", tls=True, tls_ca_file="/ca.pem", tls_check_hostname=False, stall_after=2, max_pending=7
            ),
            "rediss://h:6379/0",
        ),
        (
            (
                "rediss://h?ssl_cert_reqs=none&ssl_ca_path=/cas&ssl_ca_data=PEM&ssl_certfile=/c.pem&ssl_keyfile=/k.pem"
                "&ssl_password=hush&ssl_min_version=772&ssl_ciphers=HIGH"
            ),
            RedisOptions(
                host="h",
                tls=True,
                tls_verify=False,
                tls_ca_path="/cas",
                tls_ca_data="PEM",
                tls_certificate_file="/c.pem",
                tls_key_file="/k.pem",
                tls_key_password="hush",
                tls_min_version=ssl.TLSVersion.TLSv1_3,
                tls_ciphers="HIGH",
            ),
            "rediss://h:6379/0",
        ),
        (
            "redis://h?username=u&password=p%2520&protocol=2&health_check_interval=30&socket_keepalive=false&retry_for=0",
            RedisOptions(
                host="h",
                username="u",
                password="p%20",
                protocol=2,
                health_check_interval=30,
                tcp_keepalive=False,
                retry_for=0,
            ),
            "redis://h:6379/0",
        ),
        ("redis://u:p@h?username=x&password=y", RedisOptions(host="h", username="u", password="p"), "redis://h:6379/0"),
        ("redis://h/1?db=2", RedisOptions(host="h", db=2), "redis://h:6379/2"),
        ("redis://h?encoding=UTF-8&encoding_errors=strict&legacy_responses=true", RedisOptions(host="h"), None),
        ("rediss://h?ssl_min_version=TLSv1.2", RedisOptions(host="h", tls=True, tls_min_version=TLS_1_2), None),
        ("rediss://h?tls_min_version=1.2", RedisOptions(host="h", tls=True, tls_min_version=TLS_1_2), None),
    ],
)
def test_urls_in_redis_pys_forms(url: str, expected: RedisOptions, address: str | None) -> None:
    options = RedisOptions.from_url(url)
    assert options == expected
    assert address is None or options.address == address


def test_every_option_that_redis_py_takes_in_a_url_is_taken_or_answered() -> None:
    """Each argument of redis-py's clients, pools and connections that a URL can carry: a value, or an advice."""
    makers: list[Any] = [
        redis.asyncio.Redis,
        redis.asyncio.Connection,
        redis.asyncio.SSLConnection,
        redis.asyncio.connection.AbstractConnection,
        redis.asyncio.ConnectionPool,
        redis.asyncio.BlockingConnectionPool,
    ]
    names = {name for maker in makers for name in inspect.signature(maker.__init__).parameters}
    names |= URL_QUERY_ARGUMENT_PARSERS.keys()
    for name in sorted(names - NOT_FOR_URLS):
        try:
            RedisOptions.from_url(f"rediss://h?{name}=1")
        except InvalidRedisUrl as error:
            assert "unknown option" not in str(error), name  # noqa: PT017


def test_what_a_url_may_hold_in_secret_is_never_shown() -> None:
    options = RedisOptions.from_url("rediss://h?password=hush&ssl_certfile=/c&ssl_keyfile=/k&ssl_password=hush")
    assert "hush" not in f"{options} {options!r} {options.address}"


def test_tls_as_asked_for() -> None:
    context = RedisOptions.from_url("rediss://h").make_tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    context = RedisOptions.from_url("rediss://h?ssl_check_hostname=no&ssl_min_version=1.3").make_tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, False)
    assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    context = RedisOptions.from_url(
        "rediss://h?ssl_cert_reqs=none&ssl_ciphers=ECDHE-RSA-AES256-GCM-SHA384"
    ).make_tls_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_NONE, False)
    assert [c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.2"] == ["ECDHE-RSA-AES256-GCM-SHA384"]


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://h", "must specify one of"),
        ("redis://:secret@h?db_index=1", "unknown option 'db_index'"),
        ("redis://:secret@h?host=other", "option 'host' has no meaning here: write it before the path"),
        ("redis://:secret@h?max_connections=9", "max_blocking bounds those that block"),
        ("redis://:secret@h?retry_on_timeout=1", "use retry_for"),
        ("redis://:secret@h?timeout=1", "bound a call with trio.fail_after"),
        ("redis://:secret@h?lib_name=x", "nothing is told to the server but client_name"),
        ("rediss://:secret@h?ssl_include_verify_flags=VERIFY_X509_STRICT", "give it as RedisOptions.tls_context"),
        ("rediss://:secret@h?tls_context=x", "give it to RedisOptions"),
        ("redis://:secret@h?encoding=latin-1", "option 'encoding' cannot be changed: text is UTF-8"),
        ("redis://:secret@h?legacy_responses=false", "redis-py's usual shapes"),
        ("redis://h?password=secret&password=secret", "option 'password' is given twice"),
        ("redis://h?response_timeout=1&socket_timeout=1", "option 'socket_timeout' is given twice"),
        ("redis://:secret@h?client_name=", "option 'client_name' is not of type str"),
        ("redis://:secret@h?client_name=a%20b", "'client_name' must be ASCII without blanks"),
        ("redis://:secret@h?client_name=a%0A", "'client_name' must be ASCII without blanks"),
        ("redis://:secret@h?protocol=4", "'protocol' must be in (2, 3)"),
        ("redis://:secret@h?protocol=two", "option 'protocol' is not one of 2, 3"),
        ("redis://:secret@h?retry_for=-1", "'retry_for' must be >= 0"),
        ("redis://:secret@h?ssl_ca_certs=/ca.pem", "'tls_ca_file' is for rediss://"),
        ("unix://:secret@/s?ssl_cert_reqs=none", "'tls_verify' is for rediss://"),
        ("rediss://h?ssl_keyfile=/k.pem&ssl_password=secret", "a key without 'tls_certificate_file'"),
        ("rediss://:secret@h?ssl_cert_reqs=perhaps", "is not one of required, optional, none"),
        ("rediss://:secret@h?ssl_min_version=1.1", "is not one of 1.2, 1.3"),
        ("redis://:secret@h/first", "the path must be the number"),
        ("redis://:secret@h:port", "malformed"),
        ("redis://:secret@h:99999", "malformed"),
        ("redis://:secret@[h", "malformed"),
        ("redis://:secret@h?db=x", "option 'db' is not of type int"),
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
        ("protocol", 3),
        ("retry_for", 3.0),
        ("health_check_interval", 0.0),
    ],
)
def test_defaults_are_the_documented_ones(name: str, documented: object) -> None:
    assert getattr(RedisOptions(), name) == documented
