"""Redis as a broker in its forms, on one local Valkey through Penstock's link: throughput, latency, and what is lost.

    python tests/bench/bench_broker_forms.py [--messages 5000] [--rounds 5] [--workers 4] [--lost-of 3000]

A stream read by a group, a list taken from safely (BLMOVE) and in the plain way (BRPOP), and a channel, in one run, as
a Markdown table. Rounds of the forms alternate, so that a slow moment of the machine meets all; what counts is the
ratio of the medians. The server has the settings of the embedded one: each acknowledged write is on disk (a channel
writes nothing). What is lost is counted with consumers that are processes of their own: a third of the messages is sent
at once, and the consumer is ended when it has handled half of them; a third is sent while nobody is there; the rest is
sent to the next consumer. docs/how-to/queue-pubsub-or-stream.md has the table of one run. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import trio
from attrs import define, field, frozen
from broker_forms import FORMS, Form, Handle, Run

from penstock.runtime.embedded.binaries import valkey_server
from penstock.runtime.embedded.valkey import SETTINGS
from penstock.runtime.redis import Redis, RedisOptions

DONE = "bench-forms-done"
SENDERS = 16
LIMIT = 120.0
"""Seconds that nothing here takes."""


# Throughput and latency, in this process


@asynccontextmanager
async def consuming(form: Form, redis: Redis, workers: int, handle: Handle) -> AsyncIterator[trio.Nursery]:
    """Workers that end in order: to one that is cut off, the server might still give a message."""
    run = Run(handle)
    with trio.fail_after(LIMIT):
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(form.consume, redis, workers, run))
            yield nursery
            run.goes_on = False


async def throughput(form: Form, redis: Redis, arguments: argparse.Namespace) -> float:
    """Messages a second, sent by some tasks and handled by some workers at the same time."""
    await form.prepare(redis)
    left, all_handled = arguments.messages, trio.Event()

    async def handle(body: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            all_handled.set()

    numbers = iter(range(arguments.messages))

    async def send() -> None:
        for number in numbers:
            await form.send(redis, f"message-{number}")

    async with consuming(form, redis, arguments.workers, handle) as nursery:
        started = time.perf_counter()
        for _ in range(SENDERS):
            nursery.start_soon(send)
        await all_handled.wait()
        taken = time.perf_counter() - started
    return float(arguments.messages / taken)


async def latencies(form: Form, redis: Redis, arguments: argparse.Namespace) -> list[float]:
    """Microseconds from the sending to the handler, of messages that are sent one at a time; sorted."""
    await form.prepare(redis)
    found: list[float] = []
    sent, handled = 0.0, trio.Event()

    async def handle(body: str) -> None:
        found.append((time.perf_counter() - sent) * 1e6)
        handled.set()

    async with consuming(form, redis, 1, handle):
        for number in range(arguments.single):
            handled = trio.Event()
            sent = time.perf_counter()
            await form.send(redis, f"message-{number}")
            await handled.wait()
    return sorted(found)


# What is lost, with consumers in processes of their own


@frozen
class Loss:
    """What became of the messages of one consumer that ended."""

    lost: int
    twice: int


async def serve(form: Form, url: str, workers: int, work: float) -> None:
    """Be a consumer until SIGTERM, and say when one is ready; what was handled is counted in the hash `DONE`."""
    async with open_client(url) as redis:

        async def handle(body: str) -> None:
            await trio.sleep(work)
            await redis.hincrby(DONE, body, 1)

        run = Run(handle)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                await nursery.start(partial(form.consume, redis, workers, run))
                print("ready", flush=True)
                async for _ in signals:
                    break
                run.goes_on = False


@asynccontextmanager
async def consumer(form: Form, url: str, arguments: argparse.Namespace) -> AsyncIterator[trio.Process]:
    """A consumer that is ready; killed at the end if it still runs."""
    options = ["--url", url, "--workers", str(arguments.workers), "--work", str(arguments.work)]
    command = [sys.executable, __file__, "--consume", form.name, *options]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        said = await process.stdout.receive_some()
        assert said.startswith(b"ready"), f"the consumer says {said!r}"
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def send_all(form: Form, redis: Redis, name: str, count: int) -> None:
    """Send so many messages at once; all are acknowledged when it returns."""
    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(form.send, redis, f"{name}-{number}")


async def losses(form: Form, redis: Redis, url: str, arguments: argparse.Namespace, end: signal.Signals) -> Loss:
    """End a consumer amid its work; see the module."""
    await form.prepare(redis)
    third = arguments.lost_of // 3
    with trio.fail_after(LIMIT):
        async with consumer(form, url, arguments) as process:
            await send_all(form, redis, "first", third)
            while await redis.hlen(DONE) < third // 2:
                await trio.sleep(0.001)
            process.send_signal(end)
            await process.wait()
        await send_all(form, redis, "meanwhile", third)
        await trio.sleep(arguments.away)
        async with consumer(form, url, arguments) as process:
            await send_all(form, redis, "last", arguments.lost_of - 2 * third)
            while await form.left(redis, arguments.workers):
                await trio.sleep(0.01)
            process.terminate()
            await process.wait()
    handled = await redis.hgetall(DONE)
    return Loss(arguments.lost_of - len(handled), sum(int(count) > 1 for count in handled.values()))


# The table


@define
class Column:
    """What was measured of one form."""

    form: Form
    rates: list[float] = field(factory=list)
    singles: list[list[float]] = field(factory=list)
    killed: Loss = Loss(0, 0)
    stopped: Loss = Loss(0, 0)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    def percentile(self, share: float) -> float:
        """The median of all rounds' percentiles, microseconds."""
        return statistics.median(each[math.ceil(share * len(each)) - 1] for each in self.singles)


async def measure(url: str, arguments: argparse.Namespace) -> list[Column]:
    """All forms, their rounds alternating."""
    columns = [Column(form) for form in FORMS]
    async with open_client(url) as redis:
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr, flush=True)
            for column in columns:
                column.rates.append(await throughput(column.form, redis, arguments))
                column.singles.append(await latencies(column.form, redis, arguments))
        for column in columns:
            print(f"what is lost: {column.form.name}", file=sys.stderr, flush=True)
            column.killed = await losses(column.form, redis, url, arguments, signal.SIGKILL)
            column.stopped = await losses(column.form, redis, url, arguments, signal.SIGTERM)
    return columns


def report(columns: Sequence[Column], arguments: argparse.Namespace) -> None:
    """Print the table."""
    slowest = min(column.rate for column in columns)
    stopped = f"stopped in order, and back {arguments.away:g} s later: lost of {arguments.lost_of:,}"
    rows: dict[str, list[str]] = {
        "messages/s": [f"{column.rate:,.0f}" for column in columns],
        "the slowest = 1": [f"{column.rate / slowest:.1f}" for column in columns],
        "latency, median, µs": [f"{column.percentile(0.5):,.0f}" for column in columns],
        "latency, 99 %, µs": [f"{column.percentile(0.99):,.0f}" for column in columns],
        f"kill -9, and back {arguments.away:g} s later: lost of {arguments.lost_of:,}": [
            f"{column.killed.lost:,}" for column in columns
        ],
        "… handled twice": [f"{column.killed.twice:,}" for column in columns],
        stopped: [f"{column.stopped.lost:,}" for column in columns],
    }
    print("| | " + " | ".join(column.form.name for column in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for what, cells in rows.items():
        print(f"| {what} | " + " | ".join(cells) + " |")


def open_client(url: str) -> Redis:
    """The link, with text for text."""
    return Redis(RedisOptions.from_url(url, decode_responses=True))


@contextmanager
def server() -> Iterator[str]:
    """A throw-away Valkey with the settings of the embedded one; its URL."""
    with tempfile.TemporaryDirectory(prefix="pb-") as place:
        path = Path(place) / "s"
        settings = {**SETTINGS, "unixsocket": str(path), "dir": place}
        options = [word for name, value in settings.items() for word in (f"--{name}", value)]
        process = subprocess.Popen([valkey_server(), *options], stdout=subprocess.DEVNULL)
        try:
            while not path.exists():
                time.sleep(0.01)
            yield f"unix://{path}"
        finally:
            process.terminate()
            process.wait()


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--messages", type=int, default=5000, help="of a round of throughput")
    parser.add_argument("--single", type=int, default=300, help="messages of a round of latency")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4, help="that take messages at the same time")
    parser.add_argument("--lost-of", type=int, default=3000, help="messages sent around the end of a consumer")
    parser.add_argument("--away", type=float, default=1.0, help="seconds without a consumer")
    parser.add_argument("--work", type=float, default=0.002, help="seconds that a consumer that is ended has for each")
    parser.add_argument("--consume", help=argparse.SUPPRESS)
    parser.add_argument("--url", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.consume:
        [form] = [form for form in FORMS if form.name == arguments.consume]
        trio.run(serve, form, arguments.url, arguments.workers, arguments.work)
        return
    with server() as url:
        report(trio.run(measure, url, arguments), arguments)


if __name__ == "__main__":
    main()
