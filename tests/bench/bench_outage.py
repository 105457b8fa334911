"""What an outage of Redis costs who posts over HTTP: all accepted, how late, and how soon it is in the stream.

    python tests/bench/bench_outage.py [--rate 200] [--away 60] [--how freeze|kill]

A whole installation (``penstock run``, embedded PostgreSQL) with a Redis of the bench's own, which is frozen or killed
for so long under a steady load: requests are posted at their times, whether or not those before have been answered, and
measured from the time at which they were due. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from math import inf
from pathlib import Path
from uuid import uuid4

import redis
import trio
from attrs import define, field

from penstock.runtime.embedded.binaries import valkey_server

sys.path.insert(0, str(Path(__file__).parent.parent / "integration"))
from installation import Installation, access_event, free_port

STREAM = "EVENT_STREAM"
CONNECTIONS = 40
BEFORE = 3.0
"""Seconds of load before Redis goes away."""


@define(eq=False)
class Server:
    """The Redis of the bench, with an append-only file, so that a kill loses nothing."""

    directory: Path
    port: int = field(factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        words = f"--port {self.port} --dir {self.directory} --appendonly yes --appendfsync always --save".split()
        program = str(valkey_server())
        self.process = subprocess.Popen([program, *words, ""], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)
        if number is signal.SIGKILL:
            self.process.wait(10)


@define(eq=False)
class Load:
    """Requests and their answers."""

    port: int
    waited: list[tuple[float, float]] = field(factory=list)  # when it was due, in seconds after the start; how late
    accepted: list[str] = field(factory=list)
    refused: int = 0
    outbox: int = 0
    started: float = 0.0

    async def run(self, rate: float, seconds: float) -> None:
        self.started, count = trio.current_time(), int(rate * seconds)
        send, receive = trio.open_memory_channel[float](count)
        async with trio.open_nursery() as nursery:
            for _ in range(CONNECTIONS):
                nursery.start_soon(self._post, receive)
            for number in range(count):
                due = self.started + number / rate
                await trio.sleep_until(due)
                send.send_nowait(due)
            send.close()

    async def _post(self, jobs: trio.MemoryReceiveChannel[float]) -> None:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            async for due in jobs:
                event_id = str(uuid4())
                body = json.dumps(access_event("bench", event_id)).encode()
                head = (
                    f"POST /api/v1/streams/{STREAM}/events HTTP/1.1\r\nHost: localhost\r\n"
                    f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
                )
                await stream.send_all(head.encode() + body)
                status, answer = await _answer(stream)
                self.waited.append((due - self.started, trio.current_time() - due))
                if status != 202:
                    self.refused += 1
                    continue
                self.accepted.append(event_id)
                self.outbox += answer["durable"] == "outbox"


async def _answer(stream: trio.SocketStream) -> tuple[int, dict[str, str]]:
    data = b""
    while b"\r\n\r\n" not in data:
        data += await stream.receive_some()
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.decode().lower().split("\r\n")
    length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
    while len(body) < length:
        body += await stream.receive_some()
    return int(lines[0].split()[1]), json.loads(body)


async def measure(site: Installation, server: Server, arguments: argparse.Namespace) -> None:
    """Load before, while and after Redis is away."""
    load = Load(site.port)
    back = 0.0
    before, after = BEFORE, 5.0

    async def fail() -> None:
        nonlocal back
        await trio.sleep(before)
        server.signal(signal.SIGSTOP if arguments.how == "freeze" else signal.SIGKILL)
        await trio.sleep(arguments.away)
        if arguments.how == "freeze":
            server.signal(signal.SIGCONT)
        else:
            server.start()
        back = time.monotonic()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fail)
        await load.run(arguments.rate, before + arguments.away + after)
    while site.sql("select count(*) from penstock_outbox")[0][0]:
        await trio.sleep(0.1)
    drained = time.monotonic() - back
    _tell(load, arguments.away, drained, server)


def _tell(load: Load, away: float, drained: float, server: Server) -> None:
    client = redis.Redis(port=server.port)
    ids = [_id_of(fields) for _, fields in client.xrange(STREAM)]
    accepted = set(load.accepted)
    added = [each for each in dict.fromkeys(ids) if each in accepted]
    print(f"posted {len(load.waited)}, accepted {len(accepted)}, refused {load.refused}, into the outbox {load.outbox}")
    print(f"in the stream {len(added)}, of them twice {len([each for each in ids if each in accepted]) - len(added)}")
    back = BEFORE + away
    for phase, begin, end in (("at all", 0, inf), ("before", 0, BEFORE), ("away", BEFORE, back), ("back", back, inf)):
        waited = sorted(late for due, late in load.waited if begin <= due < end)
        late = [f"p{share:g} {_quantile(waited, share) * 1000:.0f} ms" for share in (50, 99, 99.9, 100)]
        print(f"{phase}: answered within {', '.join(late)}")
    print(f"outbox empty {drained:.1f} s after the return")


def _id_of(fields: dict[bytes, bytes]) -> str:
    return next((value.decode() for name, value in fields.items() if name in (b"eventId", b"event_id")), "")


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share / 100))]


def _machine(seconds: float) -> str:
    """What this machine does to a millisecond of work while nothing else runs: no figure below can be better."""
    works: list[float] = []
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        started = time.perf_counter()
        sum(range(40_000))
        works.append(time.perf_counter() - started)
        time.sleep(0.005)
    works.sort()
    shares = ", ".join(f"p{share:g} {_quantile(works, share) * 1000:.1f} ms" for share in (50, 99, 100))
    return f"the machine, idle: a piece of work takes {shares}"


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=200.0, help="requests a second")
    parser.add_argument("--away", type=float, default=60.0, help="seconds without Redis")
    parser.add_argument("--how", choices=("freeze", "kill"), default="freeze")
    arguments = parser.parse_args()
    print(_machine(5.0))
    with tempfile.TemporaryDirectory(prefix="pb-") as place:
        Path(place).chmod(0o755)  # PostgreSQL runs as somebody else
        server = Server(Path(place))
        server.start()
        site = Installation(Path(place), environment={"PENSTOCK_REDIS_URL": server.url})
        try:
            site.start()
            trio.run(measure, site, server, arguments)
        finally:
            server.signal(signal.SIGCONT)
            site.close()
            server.signal(signal.SIGKILL)


if __name__ == "__main__":
    main()
