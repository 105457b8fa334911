"""Events/s through all of Penstock but HTTP: publish, Valkey, listener, handler pool, PostgreSQL, acknowledgement.

    python tests/bench/bench_delivery.py [--events 20000] [--rounds 3] [--tasks 20] [--size 50] [--profile FILE]

Access events on embedded servers with their production settings (every write synced), published by some tasks in
requests of some events, and handled by S1's own handler at the same time. Told: events accepted a second, events
handled and acknowledged a second, and what share of that time this process computed. Not collected by pytest.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import statistics
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import trio
from attrs import frozen

from penstock.actors.access import ACCESS_GROUP, ACCESS_STREAM, AccessEvent, event_system
from penstock.actors.backends import Backends
from penstock.actors.deployment import Deployment
from penstock.actors.event import Envelope, event_type_of
from penstock.actors.producer import Published
from penstock.actors.settings import ActorSettings
from penstock.runtime.embedded import DataDirectory

ACCESS = event_type_of(AccessEvent)


@frozen
class Measured:
    """One round: events a second, and the share of the time that this process computed."""

    accepted: float
    handled: float
    busy: float


def envelopes(count: int) -> list[Envelope]:
    """Access events as the HTTP floor makes them."""
    made = (
        AccessEvent(
            endpoint=f"/api/orders/{number}",
            http_method="GET",
            response_status=200,
            response_time=0.012,
            ip_address="10.0.0.1",
            user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
            inputs='{"query": {"page": "2"}}',
            outputs='{"items": []}',
        )
        for number in range(count)
    )
    return [Envelope(event_type=ACCESS.name, data=ACCESS.unstructure(event)) for event in made]


async def measure(deployment: Deployment, arguments: argparse.Namespace) -> Measured:
    """Publish and handle so many events."""
    events = envelopes(arguments.events)
    pool = deployment.pools[f"{ACCESS_GROUP}@{ACCESS_STREAM}"]
    backlog = deployment.backlogs[f"{ACCESS_GROUP}@{ACCESS_STREAM}"]
    already = pool.counts.handled
    requests = iter([events[start : start + arguments.size] for start in range(0, len(events), arguments.size)])

    async def publish() -> None:
        for request in requests:
            results = await deployment.publish(ACCESS_STREAM, request)
            assert all(isinstance(result, Published) for result in results), results

    started, computed = time.perf_counter(), time.process_time()
    async with trio.open_nursery() as nursery:
        for _ in range(arguments.tasks):
            nursery.start_soon(publish)
    accepted = time.perf_counter() - started
    while pool.counts.handled - already < len(events) or not backlog.is_acknowledged:
        await trio.sleep(0.005)
    handled = time.perf_counter() - started
    assert pool.counts.dead == pool.counts.duplicates == 0
    return Measured(len(events) / accepted, len(events) / handled, (time.process_time() - computed) / handled)


async def rounds(arguments: argparse.Namespace, directory: DataDirectory) -> list[Measured]:
    """Start the system once, warm it up, and measure."""
    settings = ActorSettings()
    deployment = Deployment(event_system, settings, Backends.of(settings, directory), instance=directory.instance)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployment.run)
        await deployment.tree.ready()
        for name in deployment.gates:
            await deployment.gates[name].wait_open()
        await measure(deployment, argparse.Namespace(events=1000, tasks=5, size=50))
        with cProfile.Profile() if arguments.profile else nullcontext() as profile:
            found = [await measure(deployment, arguments) for _ in range(arguments.rounds)]
        if profile is not None:
            profile.dump_stats(arguments.profile)
        deployment.tree.stop("the bench is over")
    return found


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=20, help="tasks that publish at the same time")
    parser.add_argument("--size", type=int, default=50, help="events in one request")
    parser.add_argument("--profile", help="write cProfile's statistics to this file (and measure slower)")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="pb-") as place, DataDirectory(Path(place) / "data") as directory:
        Path(place).chmod(0o755)  # the servers run as somebody else
        found = trio.run(rounds, arguments, directory)
    print(f"accepted {statistics.median(each.accepted for each in found):>8,.0f} events/s")
    print(f"handled  {statistics.median(each.handled for each in found):>8,.0f} events/s")
    print(f"computed {statistics.median(each.busy for each in found):>8.0%} of the time")


if __name__ == "__main__":
    main()
