"""The same calls on redis.asyncio and on Penstock, against the same server: equal values, equal errors.

The calls are in `redis_calls`. redis.asyncio is the judge; each protocol is compared with its own use of that protocol.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
import trio
from redis.commands import AsyncCoreCommands

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.redis import Redis, RedisOptions
from penstock.runtime.testing.servers import LocalNode, free_port

if TYPE_CHECKING:
    import redis_calls as calls
else:
    spec = importlib.util.spec_from_file_location("redis_calls", Path(__file__).with_name("redis_calls.py"))
    calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(calls)


@pytest.fixture(scope="module", params=["valkey-server", "redis-server"])
def server_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The embedded Valkey, and Debian's Redis where there is one."""
    program = str(valkey_server()) if request.param == "valkey-server" else shutil.which(request.param)
    if program is None:
        pytest.skip("needs a redis-server on the path")
    arguments = ["--save", "", "--enable-debug-command", "yes"]
    node = LocalNode(program, free_port(), tmp_path_factory.mktemp("server"), arguments)
    node.start()
    yield node.url
    node.kill()


async def make(client: Any, step: calls.Step, before: list[Any]) -> Any:
    """One call: its value, or its error as class and text."""
    args = [before[-each.steps] if isinstance(each, calls.Before) else each for each in step.args]
    try:
        made = getattr(client, step.method)(*args, **step.kwargs)
        if step.then is not None:
            made = step.then(made)
        if inspect.isasyncgen(made):
            return [each async for each in made]
        return await made if inspect.isawaitable(made) else made
    except Exception as error:  # noqa: BLE001 - which one is what is compared
        return type(error), str(error)


async def make_all(client: Any, steps: list[calls.Step]) -> list[Any]:
    await client.flushall()
    await client.script_flush()
    results: list[Any] = []
    for step in steps:
        results.append(await make(client, step, results))
    return results


def skeleton(value: Any) -> Any:
    """The types of a value, and the keys of its dicts; of a list of equals, one."""
    if isinstance(value, dict):
        return {key: skeleton(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value), [skeleton(each) for each in value][:1]
    return type(value)


def is_misuse(result: Any) -> bool:
    """Whether the call is not one that redis-py understands: a mistake in the table."""
    return isinstance(result, tuple) and result[:1] in [(TypeError,), (AttributeError,), (KeyError,)]


def theirs(url: str, protocol: int, decode: bool, steps: list[calls.Step]) -> list[Any]:
    async def main() -> list[Any]:
        # None is redis-py's default: RESP3, and the shapes that RESP2 has had.
        wanted = None if protocol == 3 else 2
        async with redis.asyncio.Redis.from_url(
            url, protocol=wanted, decode_responses=decode, single_connection_client=True
        ) as client:
            return await make_all(client, steps)

    return asyncio.run(main())


def ours(url: str, protocol: int, decode: bool, steps: list[calls.Step]) -> list[Any]:
    async def main() -> list[Any]:
        async with Redis(RedisOptions.from_url(url, protocol=protocol, decode_responses=decode)) as client:
            return await make_all(client, steps)

    return trio.run(main)


@pytest.mark.filterwarnings("ignore")  # redis-py's own, about deprecated and experimental commands
@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("protocol", [3, 2], ids=["RESP3", "RESP2"])
@pytest.mark.parametrize("scenario", calls.SCENARIOS)
def test_penstock_answers_as_redis_asyncio_does(server_url: str, scenario: str, protocol: int, decode: bool) -> None:
    steps = calls.SCENARIOS[scenario]
    expected = theirs(server_url, protocol, decode, steps)
    found = ours(server_url, protocol, decode, steps)
    for step, theirs_, ours_ in zip(steps, expected, found, strict=True):
        where = f"{step.method}{step.args}{step.kwargs}"
        assert not is_misuse(theirs_), (where, theirs_)
        if step.volatile:
            assert (where, skeleton(ours_)) == (where, skeleton(theirs_))
        else:
            assert (where, ours_) == (where, theirs_)
            assert (where, skeleton(ours_)) == (where, skeleton(theirs_))  # 1 is not True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "text"])
@pytest.mark.parametrize("scenario", calls.SCENARIOS)
def test_both_protocols_give_the_same_values(server_url: str, scenario: str, decode: bool) -> None:
    steps = calls.SCENARIOS[scenario]
    resp2 = ours(server_url, 2, decode, steps)
    resp3 = ours(server_url, 3, decode, steps)
    for step, one, other in zip(steps, resp2, resp3, strict=True):
        if step.method not in calls.PROTOCOL_SHOWS:
            where = f"{step.method}{step.args}{step.kwargs}"
            assert (where, skeleton(one)) == (where, skeleton(other))
            assert step.volatile or (where, one) == (where, other)


def test_every_method_is_compared_or_left_out_for_a_reason() -> None:
    """So that those which come with an upgrade of redis-py are noticed."""
    methods = {name for name, _ in inspect.getmembers(AsyncCoreCommands, callable) if not name.startswith("_")}
    compared = {step.method for steps in calls.SCENARIOS.values() for step in steps}
    assert compared | calls.EXCLUDED.keys() == methods
    assert not compared & calls.EXCLUDED.keys()
    assert len(compared) >= 250
