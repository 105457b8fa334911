"""What servers can do is asked of all of them, used where all have it, and never missed where one has not.

No server with IDMP was at hand: the in-process Redis stands for one, by its documentation.
"""

from __future__ import annotations

from typing import Any

import pytest
import trio
from attrs import frozen
from trio.testing import MockClock

from penstock.actors.capabilities import Capabilities, NodeVersion, abilities_of, ask_versions, version_of
from penstock.actors.event import event
from penstock.actors.producer import Published
from penstock.actors.settings import ActorSettings, HealthSettings
from penstock.actors.system import System
from penstock.actors.virtual import virtual
from penstock.runtime.redis import Redis
from penstock.runtime.testing.redis import InProcessRedis
from penstock.runtime.testing.redis_cluster import InProcessCluster

SETTINGS = ActorSettings(health=HealthSettings(observe_every=1.0))


@event("ORDER")
@frozen
class Order:
    number: int


def shop() -> System:
    system = System("app")
    system.stream("orders", events=[Order])
    return system


@pytest.mark.parametrize(
    ("info", "text"),
    [
        ({"redis_version": "8.6.0"}, "redis 8.6.0"),
        ({"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "9.1.2"}, "valkey 9.1.2"),
        ({"redis_version": "255.255.255"}, "redis 255.255.255"),
        ({"redis_version": "unstable"}, "redis 0"),
        ({}, "redis 0"),
    ],
)
def test_a_server_says_what_it_is(info: dict[str, Any], text: str) -> None:
    assert version_of("a:1", info).text == text


@pytest.mark.parametrize(
    ("versions", "there"),
    [
        ([("redis", (8, 6, 0))], True),
        ([("redis", (8, 10, 0)), ("redis", (9, 0, 0))], True),
        ([("redis", (8, 6, 0)), ("redis", (8, 4, 9))], False),
        ([("valkey", (9, 1, 2))], False),
        ([], False),
    ],
)
def test_what_one_master_lacks_nobody_uses(versions: list[tuple[str, tuple[int, ...]]], there: bool) -> None:
    nodes = [NodeVersion(f"host:{number}", server, version) for number, (server, version) in enumerate(versions)]
    (ability,) = abilities_of(nodes)
    assert (ability.name, ability.there) == ("idmp", there)
    assert bool(ability.why_not) is not there
    for node in nodes:
        if node.server != "redis" or node.version < (8, 6):
            assert node.address in ability.why_not


async def test_every_master_of_a_cluster_is_asked(autojump_clock: MockClock) -> None:
    async with InProcessCluster(replicas=1) as cluster, virtual(shop(), redis=cluster) as app:
        nodes = await ask_versions(app.deployment.client())
        assert {node.address for node in nodes} == {f"{node.host}:{node.port}" for node in cluster.masters()}
        assert {node.text for node in nodes} == {"valkey 9.1.2"}


async def test_a_real_server_is_understood(redis: Redis) -> None:
    (node,) = await ask_versions(redis)
    assert node.server == "valkey"
    assert node.version >= (8,)
    capabilities = Capabilities(lambda: redis)
    await capabilities.look()
    assert capabilities.nodes == (node,)
    assert not capabilities.idmp


async def test_an_event_that_was_sent_twice_is_once_in_the_stream(autojump_clock: MockClock) -> None:
    """Its first answer got lost: with IDMP the second XADD finds the entry of the first."""
    async with InProcessRedis(idempotent=True) as redis, virtual(shop(), redis=redis, settings=SETTINGS) as app:
        await trio.sleep(2)
        assert app.deployment.publishing.capabilities.idmp
        redis.cut_after(1, "after", command="XADD")
        (result,) = await app.publish("orders", Order(1))
        assert isinstance(result, Published)
        assert result.durable == "outbox"
        await app.settled()
        assert app.deployment.publishing.relay.relayed == 1
        assert await app.deployment.client().xlen("orders") == 1


async def test_without_it_the_event_is_there_twice(autojump_clock: MockClock) -> None:
    """What the inbox is for; and the test above would pass for nothing without this one."""
    async with virtual(shop(), settings=SETTINGS) as app:
        await trio.sleep(2)
        app.redis.cut_after(1, "after", command="XADD")
        await app.publish("orders", Order(1))
        await app.settled()
        assert await app.deployment.client().xlen("orders") == 2


async def test_an_older_server_that_takes_its_place_is_noticed(autojump_clock: MockClock) -> None:
    async with InProcessRedis() as redis, virtual(shop(), redis=redis, settings=SETTINGS) as app:
        await trio.sleep(2)
        app.deployment.publishing.capabilities.idmp = True  # it was so when we asked
        (result,) = await app.publish("orders", Order(1))
        assert isinstance(result, Published)
        await app.settled()
        assert not app.deployment.publishing.capabilities.idmp
        assert await app.deployment.client().xlen("orders") == 1
