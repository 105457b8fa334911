"""A program for the tests to start, kill and start again: both embedded servers, in the data directory argv[1].

Prints one line of JSON when they are up, and a line for whatever they log; SIGTERM stops it in order. With "patient" as
argv[2] PostgreSQL has a minute for the first step of its stop, however busy the disk is.
"""

from __future__ import annotations

import json
import signal
import sys

import trio
from attrs import evolve

from penstock.runtime.embedded import DataDirectory, EmbeddedPostgres, EmbeddedServerError, EmbeddedValkey, postgres
from penstock.runtime.supervision import Supervisor, Tree


def say(line: str) -> None:
    print(line, flush=True)


async def main() -> None:
    with DataDirectory(sys.argv[1]) as directory:
        servers = {
            "redis-server": EmbeddedValkey(directory, log=say),
            "postgres-server": EmbeddedPostgres(directory, log=say),
        }
        tree = Tree(Supervisor("servers", [server.spec() for server in servers.values()]))
        async with trio.open_nursery() as nursery:
            await nursery.start(tree.run)
            nursery.start_soon(stop_on_sigterm, tree)
            await tree.ready()
            pids = {child.id: int(child.note.split()[1]) for child in tree.snapshot().root.children}
            say(json.dumps({"pids": pids, "urls": {name: server.url for name, server in servers.items()}}))


async def stop_on_sigterm(tree: Tree) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            tree.stop("SIGTERM")
            return


if __name__ == "__main__":
    if sys.argv[2:] == ["patient"]:
        first, second = postgres.STOP
        postgres.STOP = (evolve(first, wait=60.0), second)
    try:
        trio.run(main)
    except EmbeddedServerError as refusal:
        sys.exit(f"{type(refusal).__name__}: {refusal}")
