"""A supervised program of one's own: signals, a log, and the exit code of a service.

python docs/examples/service.py, and then Ctrl-C
"""

from __future__ import annotations

import trio

from penstock.runtime import Child, ChildSpec, Supervisor, Tree, stop_on_signals
from penstock.runtime.telemetry import close_logging, configure_logging, log_lifecycle


async def worker(child: Child) -> None:
    child.started()
    try:
        await trio.sleep_forever()  # your work
    finally:
        child.note("leaving")  # your clean-up; shield it, and bound it, if it awaits


async def main() -> None:
    tree = Tree(Supervisor("service", [ChildSpec(id="worker", body=worker)]))
    for finding in tree.check():
        print(finding)  # noqa: T201 - an example shows what it does
    async with trio.open_nursery() as nursery:
        await nursery.start(log_lifecycle, tree)
        await nursery.start(stop_on_signals, tree)
        await tree.run()
        nursery.cancel_scope.cancel()  # the signals are nobody's any more


if __name__ == "__main__":
    configure_logging()
    try:
        trio.run(main)
    finally:
        close_logging()
