"""A ledger of messages under random faults: each one is heard, or lies in a gap of its channel. In virtual time."""

from __future__ import annotations

import contextlib
import math
import random

import pytest
import redis.exceptions
import trio
from attrs import define, field
from trio.testing import MockClock

from penstock.runtime.redis import Gap, PubSub, Redis, RedisOptions
from penstock.runtime.testing.redis import InProcessRedis

CHANNELS = [f"c{number}" for number in range(6)]
MINUTES = 3


@define(eq=False)
class Ledger:
    """What was published when, what was heard, and from when to when each channel was subscribed to.

    A period begins when `subscribe` has returned, and ends with the last message that was heard before `unsubscribe`:
    who leaves during an outage is told of no gap.
    """

    published: dict[str, list[tuple[float, int]]] = field(factory=lambda: {channel: [] for channel in CHANNELS})
    heard: dict[str, list[int]] = field(factory=lambda: {channel: [] for channel in CHANNELS})
    periods: dict[str, list[tuple[float, float]]] = field(factory=lambda: {channel: [] for channel in CHANNELS})
    gaps: list[Gap] = field(factory=list)

    def last_heard(self, channel: str) -> float:
        """When the last message that was heard had been published."""
        return next(when for when, number in reversed(self.published[channel]) if number == self.heard[channel][-1])

    def missing(self) -> list[tuple[str, float]]:
        """Messages that were to be heard, and were not, and no gap tells of."""
        heard = {channel: set(numbers) for channel, numbers in self.heard.items()}
        return [
            (channel, when)
            for channel, messages in self.published.items()
            for when, number in messages
            if number not in heard[channel]
            and any(begin < when < end for begin, end in self.periods[channel])
            and not any(channel in gap.channels and gap.lost_at <= when <= gap.back_at for gap in self.gaps)
        ]


async def consume(pubsub: PubSub, ledger: Ledger) -> None:
    async for item in pubsub:
        if isinstance(item, Gap):
            ledger.gaps.append(item)
        else:
            ledger.heard[str(item.channel)].append(int(item.data))


async def publish(server: InProcessRedis, ledger: Ledger, rng: random.Random) -> None:
    for number in range(100_000):
        channel = rng.choice(CHANNELS)
        ledger.published[channel].append((trio.current_time(), number))
        server._engine.publish(channel.encode(), b"%d" % number)
        await trio.sleep(rng.random() * 0.05)


async def come_and_go(pubsub: PubSub, channel: str, ledger: Ledger, rng: random.Random) -> None:
    """Subscribe, stay a while, leave; some calls are cancelled in the middle."""
    while True:
        with trio.move_on_after(rng.choice([0.0, 0.001, 0.1, math.inf, math.inf])) as scope:
            try:
                await pubsub.subscribe(channel)
            except redis.exceptions.RedisError:
                continue
        if scope.cancelled_caught:
            assert channel not in pubsub.channels
            await trio.sleep(rng.random())
            continue
        begin = trio.current_time()
        await trio.sleep(rng.random() * 20)
        heard = len(ledger.heard[channel])
        while len(ledger.heard[channel]) == heard:
            await trio.sleep(0.1)
        ledger.periods[channel].append((begin, ledger.last_heard(channel)))
        with trio.move_on_after(rng.choice([0.0, 0.001, math.inf])):
            with contextlib.suppress(redis.exceptions.RedisError):
                await pubsub.unsubscribe(channel)
        assert channel not in pubsub.channels
        await trio.sleep(rng.random())


async def harm(server: InProcessRedis, rng: random.Random) -> None:
    while True:
        await trio.sleep(rng.random() * 8)
        match rng.randrange(6):
            case 0 | 1:
                server.cut()
            case 2:
                server.refuse()
                await trio.sleep(rng.random() * 6)
                server.restore()
            case 3:
                server.hang()
                await trio.sleep(rng.random() * 12)
                server.resume()
            case 4:
                server.fail_next("SUBSCRIBE", "BUSY Redis is busy running a script", times=rng.randint(1, 20))
            case 5:
                server.cut_after(rng.randint(1, 5), rng.choice(["before", "after"]), command="SUBSCRIBE")


@pytest.mark.parametrize("seed", range(3))
async def test_every_message_is_heard_or_lies_in_a_gap(autojump_clock: MockClock, seed: int) -> None:
    rng, ledger = random.Random(seed), Ledger()
    async with InProcessRedis() as server:
        options = RedisOptions(decode_responses=True, retry_for=1)
        async with Redis(options, connect=server.connect, rng=rng) as client, client.pubsub() as pubsub:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(consume, pubsub, ledger)
                async with trio.open_nursery() as faults:
                    faults.start_soon(publish, server, ledger, rng)
                    faults.start_soon(harm, server, rng)
                    for channel in CHANNELS:
                        faults.start_soon(come_and_go, pubsub, channel, ledger, rng)
                    await trio.sleep(60 * MINUTES)
                    faults.cancel_scope.cancel()
                server.heal()
                await trio.sleep(30)
                assert set(await client.pubsub_channels()) == pubsub.channels
                nursery.cancel_scope.cancel()
    assert len(ledger.gaps) > 10
    for channel in CHANNELS:
        assert len(ledger.periods[channel]) > 5
        assert len(ledger.heard[channel]) > 100
        assert ledger.heard[channel] == sorted(set(ledger.heard[channel]))
    assert ledger.missing() == []


def test_the_ledger_finds_what_is_missing() -> None:
    """The judge is judged: a message without a gap, one in the gap of another channel, one in its own."""
    ledger = Ledger()
    ledger.published["c0"] = [(1.0, 1), (2.0, 2), (3.0, 3), (9.0, 9)]
    ledger.heard["c0"] = [1]
    ledger.periods["c0"] = [(0.5, 5.0)]
    ledger.gaps = [
        Gap(reason="", lost_at=1.5, back_at=2.5, channels=("c1",)),
        Gap(reason="", lost_at=2.5, back_at=3.5, channels=("c0",)),
    ]
    assert ledger.missing() == [("c0", 2.0)]
