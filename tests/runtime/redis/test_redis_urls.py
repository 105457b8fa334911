"""`read_url` and `open_client`: a URL says which kind of Redis it is, and which client goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from penstock.runtime.redis import (
    ClusterOptions,
    InvalidRedisUrl,
    Redis,
    RedisCluster,
    RedisOptions,
    open_client,
    read_url,
)
from penstock.runtime.redis.sentinel import SentinelOptions

if TYPE_CHECKING:
    from conftest import ValkeyServer


@pytest.mark.parametrize(
    ("url", "kind", "client"),
    [
        ("redis://h", RedisOptions, Redis),
        ("REDIS://h", RedisOptions, Redis),
        ("rediss://h", RedisOptions, Redis),
        ("unix:///s", RedisOptions, Redis),
        ("redis+cluster://h:1,i:2", ClusterOptions, RedisCluster),
        ("rediss+cluster://h", ClusterOptions, RedisCluster),
        ("redis+sentinel://h,i/mill", SentinelOptions, Redis),
        ("rediss+sentinel://h/mill/2", SentinelOptions, Redis),
    ],
)
def test_a_url_names_its_kind_of_redis(url: str, kind: type, client: type) -> None:
    """Its options can be overridden, those of the nodes as well; the client is ready to be entered."""
    options = read_url(url, retry_for=7, client_name="mill")
    assert type(options) is kind
    assert options.retry_for == 7
    assert (options if isinstance(options, RedisOptions) else options.node).client_name == "mill"
    assert type(open_client(options)) is client


@pytest.mark.parametrize("url", ["postgres://u:secret@h", "redis+gopher://u:secret@h", "u:secret@h", ""])
def test_any_other_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(InvalidRedisUrl, match=r"must begin with one of redis://.*redis\+sentinel://") as caught:
        read_url(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://u:secret@h,u:secret@i",
        "redis+sentinel://u:secret@h,u:secret@i/mill",
        "redis+cluster://u:@secret@h",
    ],
)
def test_a_login_at_each_host_is_refused_and_no_host_dropped(url: str) -> None:
    with pytest.raises(InvalidRedisUrl, match=r"stand once, before the first .* is %40") as caught:
        read_url(url)
    assert "secret" not in str(caught.value)


def test_a_url_that_was_not_read_is_no_options() -> None:
    for wrong in ("redis://u:secret@h", read_url("redis+cluster://u:secret@h")):
        with pytest.raises(TypeError, match=r"open_client\(read_url\(url\)\)") as caught:
            Redis(wrong)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)


async def test_the_client_of_a_url_works(valkey: ValkeyServer) -> None:
    async with open_client(read_url(f"{valkey.url}?decode_responses=yes")) as redis:
        assert await redis.echo("x") == "x"
