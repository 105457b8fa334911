"""Subscriptions in virtual time: outages and their gaps, silence, refusals, cancellation at every point."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import redis.exceptions
import trio
import trio.testing
from trio.testing import MockClock

from penstock.runtime.redis import (
    Gap,
    Message,
    NotSent,
    PubSub,
    Redis,
    RedisClosed,
    RedisOptions,
    RedisStalled,
    RedisUnavailable,
)
from penstock.runtime.testing import Cut, cut_everywhere
from penstock.runtime.testing.redis import InProcessRedis

OPTIONS = RedisOptions(decode_responses=True)


def message(channel: str, data: str) -> Message:
    return Message(kind="message", channel=channel, data=data)


@pytest.fixture
async def server() -> AsyncIterator[InProcessRedis]:
    async with InProcessRedis() as server:
        yield server


@pytest.fixture
def troubles() -> list[tuple[float, Exception]]:
    return []


@pytest.fixture
async def client(server: InProcessRedis, troubles: list[tuple[float, Exception]]) -> AsyncIterator[Redis]:
    def note(error: Exception) -> None:
        troubles.append((trio.current_time(), error))

    async with Redis(OPTIONS, connect=server.connect, on_trouble=note, rng=random.Random(1)) as client:
        yield client


@pytest.fixture
async def pubsub(client: Redis) -> AsyncIterator[PubSub]:
    async with client.pubsub() as pubsub:
        yield pubsub


async def heard(client: Redis, *channels: str) -> list[int]:
    """How many connections the server has subscribed to each."""
    return [count for _, count in await client.pubsub_numsub(*channels)]


async def test_what_is_published_after_subscribe_comes(
    autojump_clock: MockClock, client: Redis, pubsub: PubSub
) -> None:
    """All three kinds, in the order of the server; what is not subscribed to does not come."""
    await pubsub.subscribe("a", "b", "a")
    await pubsub.psubscribe("x[12]")
    await pubsub.ssubscribe("s")
    assert (pubsub.channels, pubsub.patterns, pubsub.shard_channels) == ({"a", "b"}, {"x[12]"}, {"s"})
    await client.publish("a", "1")
    await client.publish("x1", "2")
    await client.publish("x3", "no")
    await client.spublish("s", "3")
    await client.publish("b", "4")
    assert [await pubsub.get() for _ in range(4)] == [
        message("a", "1"),
        Message(kind="pmessage", channel="x1", pattern="x[12]", data="2"),
        Message(kind="smessage", channel="s", data="3"),
        message("b", "4"),
    ]
    assert await pubsub.get(0) is None


async def test_get_waits_as_long_as_it_is_told(autojump_clock: MockClock, client: Redis, pubsub: PubSub) -> None:
    await pubsub.subscribe("a")
    start = trio.current_time()
    assert await pubsub.get(2.5) is None
    assert trio.current_time() - start == pytest.approx(2.5)
    await client.publish("a", "1")
    await trio.sleep(1)
    assert await pubsub.get(0) == message("a", "1")


async def test_unsubscribe_ends_it_on_the_server(autojump_clock: MockClock, client: Redis, pubsub: PubSub) -> None:
    """By name, or all of a kind; the other kinds stay. What came before is still yielded."""
    await pubsub.subscribe("a", "b", "c")
    await pubsub.psubscribe("p*", "q*")
    await pubsub.ssubscribe("s")
    await client.publish("a", "before")
    await pubsub.unsubscribe("a", "never-there")
    assert await client.pubsub_channels() == ["b", "c"]
    await pubsub.unsubscribe()
    await pubsub.punsubscribe("p*")
    await pubsub.sunsubscribe()
    assert await heard(client, "a", "b", "c") == [0, 0, 0]
    assert await client.pubsub_numpat() == 1
    assert (pubsub.channels, pubsub.patterns, pubsub.shard_channels) == (frozenset(), {"q*"}, frozenset())
    await client.publish("b", "after")
    assert await pubsub.get() == message("a", "before")
    assert await pubsub.get(1) is None


async def test_subscribing_while_another_task_iterates(
    autojump_clock: MockClock, client: Redis, pubsub: PubSub
) -> None:
    found: list[Message | Gap] = []

    async def consume() -> None:
        async for item in pubsub:
            found.append(item)
            if len(found) == 3:
                return

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        for channel in "abc":
            await pubsub.subscribe(channel)
            await client.publish(channel, channel)
    assert found == [message(channel, channel) for channel in "abc"]


async def test_a_lost_connection_is_one_gap(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub,
    troubles: list[tuple[float, Exception]],
) -> None:  # fmt: skip
    """An hour away: many attempts, paced; then everything is subscribed to again, and one item tells of it."""
    await pubsub.subscribe("a", "b")
    await pubsub.psubscribe("p*")
    await client.publish("a", "before")
    await trio.testing.wait_all_tasks_blocked()
    gone = trio.current_time()
    server.refuse()
    await trio.sleep(3600)
    attempts = [when for when, _ in troubles]
    assert 3600 < len(attempts) < 7200  # 2 s at most, 1 s in the mean
    server.restore()
    assert await pubsub.get() == message("a", "before")
    gap = await pubsub.get()
    assert isinstance(gap, Gap)
    assert gap.reason == "the server closed the connection"
    assert gap.channels == ("a", "b", "p*")
    assert gap.lost_at <= gone
    assert gone + 3600 <= gap.back_at == trio.current_time()
    assert await heard(client, "a", "b") == [1, 1]
    await client.publish("b", "after")
    assert await pubsub.get() == message("b", "after")


async def test_the_gap_comes_before_what_came_after_it(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """The first channel is back, and has messages, before the second one is confirmed."""
    await pubsub.subscribe("a", "b")
    server.cut_after(2, "before", command="SUBSCRIBE")  # "a" comes back and is lost again
    server.cut()
    async with trio.open_nursery() as nursery:

        async def publish() -> None:
            for number in range(200):
                await client.publish("a", str(number))
                await trio.sleep(0.001)

        nursery.start_soon(publish)
        first = await pubsub.get()
        assert isinstance(first, Gap)
        assert first.channels == ("a", "b")
        numbers = [int(item.data) for _ in range(10) if isinstance(item := await pubsub.get(), Message)]
        nursery.cancel_scope.cancel()
    assert numbers == list(range(numbers[0], numbers[0] + 10))


async def test_nothing_is_missing_outside_of_a_gap(
    autojump_clock: MockClock, server: InProcessRedis, pubsub: PubSub
) -> None:
    """Random cuts of the subscriber's connection; the publisher, on a server of the same data, is left alone."""
    rng, published = random.Random(3), dict[int, float]()
    cuts = trio.CancelScope()
    await pubsub.subscribe("a")

    async def publish() -> None:
        for number in range(2000):
            published[number] = trio.current_time()
            server._engine.publish(b"a", b"%d" % number)
            await trio.sleep(rng.random() * 0.02)
        cuts.cancel()
        await trio.sleep(10)
        server._engine.publish(b"a", b"-1")

    async def cut() -> None:
        with cuts:
            while True:
                await trio.sleep(rng.random())
                server.cut()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(cut)
        gaps: list[Gap] = []
        seen: list[int] = []
        async for item in pubsub:
            if isinstance(item, Gap):
                gaps.append(item)
            elif item.data == "-1":
                break
            else:
                seen.append(int(item.data))
        nursery.cancel_scope.cancel()
    assert seen == sorted(set(seen))
    lost = published.keys() - set(seen)
    assert len(gaps) > 5
    assert lost
    for number in lost:
        assert any(gap.lost_at <= published[number] <= gap.back_at for gap in gaps), number


async def test_a_frozen_server_is_noticed_by_a_deadline(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub,
    troubles: list[tuple[float, Exception]],
) -> None:  # fmt: skip
    """Asked after 5 s of idleness, told 0.75 s later, broken 5 s after the question; then it is a gap."""
    await pubsub.subscribe("a")
    await trio.sleep(7)  # one sign of life at 5 s
    frozen = trio.current_time()
    server.hang()
    await trio.sleep(60)
    server.resume()
    assert [type(error) for _, error in troubles][:2] == [RedisStalled, RedisStalled]
    assert [when - frozen for when, _ in troubles][:2] == pytest.approx([3 + 0.75, 3 + 5])
    gap = await pubsub.get()
    assert isinstance(gap, Gap)
    assert gap.reason == "no byte for 5 s"
    assert gap.lost_at <= frozen
    assert (await heard(client, "a"))[0] >= 1


async def test_an_idle_subscriber_asks_for_a_sign_of_life(
    autojump_clock: MockClock, server: InProcessRedis, pubsub: PubSub, troubles: list[tuple[float, Exception]]
) -> None:
    await pubsub.subscribe("a")
    await trio.sleep(61)
    assert server.commands["PING"] == 12
    assert troubles == []
    assert await pubsub.get(0) is None


async def test_a_server_that_is_away_fails_subscribe_in_time(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """After `retry_for` (3 s): never sent, nothing is wished for. A server that comes back meanwhile is found."""
    server.refuse()
    start = trio.current_time()
    with pytest.raises(NotSent, match="not subscribed: cannot connect"):
        await pubsub.subscribe("a")
    assert 3 <= trio.current_time() - start < 5
    assert pubsub.channels == frozenset()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pubsub.subscribe, "b")
        await trio.sleep(1)
        server.restore()
    assert await heard(client, "a", "b") == [0, 1]
    assert await pubsub.get(60) is None  # what was never had is no gap


async def test_a_server_that_does_not_confirm_fails_subscribe_in_time(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    await pubsub.subscribe("a")
    server.delay(8, "SUBSCRIBE")
    start = trio.current_time()
    with pytest.raises(NotSent, match="not subscribed: no byte for 5 s"):
        await pubsub.subscribe("b")
    assert trio.current_time() - start == pytest.approx(5)
    assert pubsub.channels == {"a"}
    server.heal()
    await trio.sleep(60)
    assert await heard(client, "a", "b") == [1, 0]


async def test_what_passes_by_itself_is_waited_for(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """BUSY for the one channel: the other subscriptions go on undisturbed, and it is had in the end."""
    await pubsub.subscribe("a")
    server.fail_next("SUBSCRIBE", "BUSY Redis is busy running a script", times=3)
    await pubsub.subscribe("b")
    assert await heard(client, "a", "b") == [1, 1]
    server.fail_next("SUBSCRIBE", "BUSY Redis is busy running a script", times=1000)
    with pytest.raises(redis.exceptions.ResponseError, match="busy"):
        await pubsub.subscribe("c")
    assert pubsub.channels == {"a", "b"}
    assert await pubsub.get(0) is None


async def test_a_channel_that_is_late_in_coming_back_has_a_gap_of_its_own(
    autojump_clock: MockClock, server: InProcessRedis, pubsub: PubSub
) -> None:
    await pubsub.subscribe("a")
    await pubsub.subscribe("b")
    server.fail_next("SUBSCRIBE", "BUSY Redis is busy running a script", times=1)
    server.cut()
    gaps = [await pubsub.get(), await pubsub.get()]
    assert [gap.channels for gap in gaps if isinstance(gap, Gap)] == [("b",), ("a",)]


async def test_a_refused_channel_leaves_the_others_alone(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    await pubsub.subscribe("a")
    server.fail_next("SUBSCRIBE", "NOPERM this user has no permissions to access the 'secret' channel")
    with pytest.raises(redis.exceptions.NoPermissionError) as caught:
        await pubsub.subscribe("secret", "public")
    assert caught.value.__notes__ == ["channel secret"]
    assert pubsub.channels == {"a"}
    await trio.testing.wait_all_tasks_blocked()
    assert await heard(client, "a", "secret", "public") == [1, 0, 0]
    await client.publish("a", "1")
    assert await pubsub.get() == message("a", "1")


async def test_a_channel_that_we_are_not_let_back_into(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """Said in the stream, once; the rest comes back."""
    await pubsub.subscribe("a", "b")
    server.fail_next("SUBSCRIBE", "NOPERM this user has no permissions to access the 'a' channel")
    server.cut()
    with pytest.raises(redis.exceptions.NoPermissionError) as caught:
        await pubsub.get()
    assert caught.value.__notes__ == ["channel a is not subscribed to any more"]
    gap = await pubsub.get()
    assert isinstance(gap, Gap)
    assert gap.channels == ("b",)
    assert pubsub.channels == {"b"}
    assert await heard(client, "a", "b") == [0, 1]
    assert await pubsub.get(30) is None


async def test_a_wrong_password_is_told_at_once(autojump_clock: MockClock) -> None:
    async with InProcessRedis(users={"miller": "right"}) as server:
        options = RedisOptions(username="miller", password="wrong")
        async with Redis(options, connect=server.connect) as client, client.pubsub() as pubsub:
            start = trio.current_time()
            with pytest.raises(NotSent, match="WRONGPASS"):
                await pubsub.subscribe("a")
            assert trio.current_time() - start < 0.1


async def test_nothing_is_reconnected_for_nothing(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """Without a subscription there is no connection to keep, and no gap in what nobody listens to."""
    await trio.sleep(60)
    assert server.commands["HELLO"] == 0
    await pubsub.subscribe("a")
    await pubsub.unsubscribe()
    server.cut()
    await trio.sleep(60)
    assert server.commands["HELLO"] == 1
    await pubsub.subscribe("b")
    assert await pubsub.get(0) is None


async def test_text_that_is_no_utf8_concerns_its_message_only(
    autojump_clock: MockClock, client: Redis, pubsub: PubSub
) -> None:
    await pubsub.subscribe("a")
    await client.publish("a", b"\xff\xfe")
    await client.publish("a", "fine")
    with pytest.raises(UnicodeDecodeError):
        await pubsub.get()
    assert await pubsub.get() == message("a", "fine")


async def test_a_name_that_is_no_utf8_stays_bytes(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    await pubsub.subscribe(b"\xff", "a")
    assert pubsub.channels == {b"\xff", "a"}
    server.cut()
    gap = await pubsub.get()
    assert isinstance(gap, Gap)
    assert set(gap.channels) == {b"\xff", "a"}
    await client.publish("a", "1")
    assert await pubsub.get() == message("a", "1")
    await pubsub.unsubscribe()
    assert pubsub.channels == frozenset()


@pytest.mark.parametrize("protocol", [2, 3])
async def test_bytes_come_as_bytes(autojump_clock: MockClock, server: InProcessRedis, protocol: int) -> None:
    options = RedisOptions(protocol=protocol)  # type: ignore[arg-type]
    async with Redis(options, connect=server.connect) as client, client.pubsub() as pubsub:
        await pubsub.subscribe(b"\xff")
        await pubsub.psubscribe("p*")
        assert (pubsub.channels, pubsub.patterns) == ({b"\xff"}, {b"p*"})
        await client.publish(b"\xff", b"\xfe")
        await client.publish("px", "1")
        assert await pubsub.get() == Message(kind="message", channel=b"\xff", data=b"\xfe")
        assert await pubsub.get() == Message(kind="pmessage", pattern=b"p*", channel=b"px", data=b"1")
        server.cut()
        gap = await pubsub.get()
        assert isinstance(gap, Gap)
        assert gap.channels == (b"\xff", b"p*")
        await trio.sleep(30)  # PING has another answer in RESP2
        await pubsub.unsubscribe(b"\xff")
        await client.publish("px", "2")
        assert await pubsub.get() == Message(kind="pmessage", pattern=b"p*", channel=b"px", data=b"2")


async def test_leaving_ends_those_who_wait(autojump_clock: MockClock, server: InProcessRedis) -> None:
    raised: list[type[Exception]] = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(RedisUnavailable) as caught:
            await call()
        raised.append(caught.type)

    async with Redis(OPTIONS, connect=server.connect) as client:
        async with trio.open_nursery() as nursery:
            async with client.pubsub() as pubsub:
                await pubsub.subscribe("a")
                nursery.start_soon(wait, pubsub.get)
                server.hang()
                nursery.start_soon(wait, lambda: pubsub.subscribe("b"))
                nursery.start_soon(wait, lambda: pubsub.unsubscribe("a"))
                await trio.testing.wait_all_tasks_blocked()
        assert raised == [RedisClosed] * 3
        for call in (pubsub.get, lambda: pubsub.subscribe("c"), pubsub.unsubscribe):
            with pytest.raises(RedisClosed):
                await call()


async def test_leaving_the_client_ends_its_subscriptions(autojump_clock: MockClock, server: InProcessRedis) -> None:
    """Those of other tasks."""
    ended = trio.Event()

    async def listen(client: Redis, task_status: trio.TaskStatus[None]) -> None:
        async with client.pubsub() as pubsub:
            await pubsub.subscribe("a")
            task_status.started()
            with pytest.raises(RedisClosed):
                await pubsub.get()
        ended.set()

    async with trio.open_nursery() as nursery:
        async with Redis(OPTIONS, connect=server.connect) as client:
            await nursery.start(listen, client)
        with trio.fail_after(1):
            await ended.wait()


async def test_mistakes(autojump_clock: MockClock, client: Redis, pubsub: PubSub) -> None:
    with pytest.raises(redis.exceptions.DataError, match="at least one name"):
        await pubsub.subscribe()
    with pytest.raises(redis.exceptions.DataError, match="not 'int'"):
        await pubsub.subscribe("a", 7)  # type: ignore[arg-type]
    assert pubsub.channels == frozenset()
    with pytest.raises(RuntimeError, match="async with"):
        await client.pubsub().subscribe("a")
    with pytest.raises(RuntimeError, match="entered before"):
        await pubsub.__aenter__()


async def test_two_who_want_the_same_channel(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """One leaves before the confirmation: the other's subscription is not taken back with it."""
    server.hang()
    impatient = trio.CancelScope()

    async def other() -> None:
        with impatient:
            await pubsub.subscribe("a", "c")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pubsub.subscribe, "a", "b")
        nursery.start_soon(other)
        await trio.sleep(0.1)
        impatient.cancel()
        await trio.sleep(0.1)
        server.resume()
    assert pubsub.channels == {"a", "b"}
    await trio.testing.wait_all_tasks_blocked()
    assert await heard(client, "a", "b", "c") == [1, 1, 0]


async def test_the_last_of_opposite_wishes_holds(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, pubsub: PubSub
) -> None:
    """Overtaken calls return; wish and server agree."""
    server.hang()
    async with trio.open_nursery() as nursery:
        for call in (pubsub.subscribe, pubsub.unsubscribe, pubsub.subscribe, pubsub.unsubscribe, pubsub.subscribe):
            nursery.start_soon(call, "a")
            await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pubsub.subscribe, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(pubsub.unsubscribe, "b")
        await trio.testing.wait_all_tasks_blocked()
        server.resume()
    assert pubsub.channels == {"a"}
    assert await heard(client, "a", "b") == [1, 0]


async def _is_in_order(server: InProcessRedis, client: Redis, pubsub: PubSub) -> None:
    """What the client wishes is what the server has, and messages come; at most a gap stands before them."""
    await trio.sleep(10)
    names = sorted(str(name) for name in pubsub.channels)
    assert await client.pubsub_channels() == names
    assert await heard(client, *names) == [1] * len(names)
    for name in names:
        await client.publish(name, "probe")
        while (item := await pubsub.get(10)) != message(name, "probe"):
            assert item is not None, f"{name} is not heard"


def test_every_call_may_be_cancelled_anywhere() -> None:
    """Subscribe is taken back or holds, unsubscribe holds; nothing else changes, and there is no gap."""

    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            async with Redis(OPTIONS, connect=server.connect) as client, client.pubsub() as pubsub:
                await pubsub.subscribe("keep", "leave")
                with trio.CancelScope() as scope, cut.cancelling(scope, at=trio.lowlevel.current_task()):
                    await pubsub.subscribe("new", "other")
                    await pubsub.unsubscribe("leave")
                    await client.publish("keep", "hello")
                    assert await pubsub.get() == message("keep", "hello")
                assert "keep" in pubsub.channels
                assert ("new" in pubsub.channels) == ("other" in pubsub.channels)
                assert scope.cancelled_caught or pubsub.channels == {"keep", "new", "other"}
                await _is_in_order(server, client, pubsub)
                assert server.commands["HELLO"] == 2  # the connections are the first ones

    assert len(cut_everywhere(scenario)) >= 8


def test_the_connection_may_break_anywhere() -> None:
    """At every step of the subscriber's own tasks: afterwards all is subscribed to again."""

    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            async with Redis(OPTIONS, connect=server.connect) as client, client.pubsub() as pubsub:
                with cut.calling(server.cut, at="ubscriber"):
                    await pubsub.subscribe("a", "b")
                    await pubsub.subscribe("c")
                    await pubsub.unsubscribe("b")
                    await trio.sleep(6)  # a sign of life
                assert pubsub.channels == {"a", "c"}
                await _is_in_order(server, client, pubsub)

    assert len(cut_everywhere(scenario)) > 20


def test_a_get_that_is_cancelled_takes_nothing() -> None:
    async def scenario(cut: Cut) -> None:
        async with InProcessRedis() as server:
            async with Redis(OPTIONS, connect=server.connect) as client, client.pubsub() as pubsub:
                await pubsub.subscribe("a")
                found: list[Message | Gap] = []

                async def consume(scope: trio.CancelScope) -> None:
                    with scope:
                        async for item in pubsub:
                            found.append(item)

                async with trio.open_nursery() as nursery:
                    scope = trio.CancelScope()
                    with cut.cancelling(scope, at="consume"):
                        nursery.start_soon(consume, scope)
                        for number in range(3):
                            await client.publish("a", str(number))
                    nursery.start_soon(consume, trio.CancelScope())
                    with trio.fail_after(60):
                        while len(found) < 3:
                            await trio.sleep(0.1)
                    nursery.cancel_scope.cancel()
                assert found == [message("a", str(number)) for number in range(3)]

    assert len(cut_everywhere(scenario)) > 5


async def test_a_slow_consumer_holds_a_bounded_buffer(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis, troubles: list[tuple[float, Exception]]
) -> None:
    """Reading stops when it is full (and that is no silence of the server), and goes on when it is read."""
    async with client.pubsub(buffer_bytes=100_000) as pubsub:
        await pubsub.subscribe("a")
        for number in range(1000):
            await client.publish("a", f"{number:01000}")
        await trio.sleep(60)
        waiting = pubsub._inbox._bytes
        assert 100_000 <= waiting < 100_000 + 2 * 65_536  # one read beyond
        assert troubles == []
        items = [await pubsub.get(1) for _ in range(1000)]
        assert [int(item.data) for item in items if isinstance(item, Message)] == list(range(1000))


async def test_a_full_buffer_does_not_hold_up_a_subscription(
    autojump_clock: MockClock, server: InProcessRedis, client: Redis
) -> None:
    """The only task subscribes while it has not read what came before."""
    async with client.pubsub(buffer_bytes=10_000) as pubsub:
        await pubsub.subscribe("a")
        for number in range(1000):
            await client.publish("a", f"{number:01000}")
        start = trio.current_time()
        await pubsub.subscribe("b")
        assert trio.current_time() - start < 1
        assert await heard(client, "b") == [1]


async def test_a_consumer_with_a_full_buffer_lets_others_run(
    autojump_clock: MockClock, client: Redis, pubsub: PubSub
) -> None:
    """And it can be cancelled at every message, also when it never has to wait."""
    await pubsub.subscribe("a")
    for number in range(200):
        await client.publish("a", str(number))
    await trio.testing.wait_all_tasks_blocked()
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        for _ in range(160):
            await pubsub.get()
        nursery.cancel_scope.cancel()
    assert 5 <= turns <= 20
    with trio.CancelScope() as scope:
        scope.cancel()
        await pubsub.get()
    assert scope.cancelled_caught
    assert await pubsub.get(0) == message("a", "160")
