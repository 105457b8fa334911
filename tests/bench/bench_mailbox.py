"""Messages/s through a mailbox beside a bare trio memory channel of the same capacity, in one run.

    python tests/bench/bench_mailbox.py [--messages 50000] [--rounds 5] [--capacity 1 100]

One task tells and one reads. Rounds of the two alternate, so that a slow moment of the machine meets both; what counts
is the ratio of the medians. `ask` is there for scale: a request and its answer, one after the other. Not collected by
pytest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Awaitable, Callable

import trio
from attrs import frozen

from penstock.runtime.mailbox import Mailbox, Reply

Round = Callable[[int, int], Awaitable[float]]


@frozen
class Ping:
    """A request."""

    reply: Reply[int]


async def channel_round(messages: int, capacity: int) -> float:
    """Messages a second through a memory channel."""
    send, receive = trio.open_memory_channel[int](capacity)

    async def produce() -> None:
        for number in range(messages):
            await send.send(number)
        send.close()

    async with trio.open_nursery() as nursery:
        started = time.perf_counter()
        nursery.start_soon(produce)
        async for _ in receive:
            pass
    return messages / (time.perf_counter() - started)


async def mailbox_round(messages: int, capacity: int) -> float:
    """Messages a second through a mailbox."""
    box: Mailbox[int] = Mailbox("bench", capacity)
    taken = 0

    async def produce() -> None:
        for number in range(messages):
            await box.tell(number)

    async with trio.open_nursery() as nursery, box.receive() as inbox:
        started = time.perf_counter()
        nursery.start_soon(produce)
        async for _ in inbox:
            taken += 1
            if taken == messages:
                break
    return messages / (time.perf_counter() - started)


async def ask_round(messages: int, capacity: int) -> float:
    """Requests a second that are answered."""
    box: Mailbox[Ping] = Mailbox("bench", capacity)
    count = messages // 5

    async def answer() -> None:
        async with box.receive() as inbox:
            async for ping in inbox:
                ping.reply.set(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        started = time.perf_counter()
        for _ in range(count):
            await box.ask(Ping, 60.0)
        elapsed = time.perf_counter() - started
        nursery.cancel_scope.cancel()
    return count / elapsed


def measure(arguments: argparse.Namespace, capacity: int) -> list[float]:
    """Medians of channel, mailbox and ask."""
    kinds: tuple[Round, ...] = (channel_round, mailbox_round, ask_round)
    measured: list[list[float]] = [[] for _ in kinds]
    for _ in range(arguments.rounds):
        for results, kind in zip(measured, kinds, strict=True):
            results.append(trio.run(kind, arguments.messages, capacity))
    return [statistics.median(results) for results in measured]


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=50_000, help="messages in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--capacity", type=int, nargs="+", default=[1, 100])
    arguments = parser.parse_args()
    print(f"{'capacity':>8} {'channel':>12} {'mailbox':>12} {'ratio':>6} {'ask':>12}")
    for capacity in arguments.capacity:
        channel, mailbox, ask = measure(arguments, capacity)
        print(f"{capacity:>8} {channel:>10,.0f}/s {mailbox:>10,.0f}/s {mailbox / channel:>6.2f} {ask:>10,.0f}/s")


if __name__ == "__main__":
    main()
