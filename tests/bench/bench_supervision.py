"""What supervision costs: restarts a second, and starts and stops of trees of a thousand and ten thousand children.

    python tests/bench/bench_supervision.py [--rounds 5]

Beside each figure stands what bare trio takes for the same in the same run: the same bodies in a plain nursery, in no
order, watched by nobody. What counts is the ratio, and that ten times the children take about ten times as long. Not
collected by pytest.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable

import trio

from penstock.runtime.supervision import Backoff, Child, ChildSpec, Intensity, Pool, Restart, Strategy, Supervisor, Tree

RESTARTS = 5_000
NO_PAUSE = Backoff(minimum=0.0, maximum=0.0)
ENDLESS = Intensity(10**9, 1.0)


async def steady(child: Child) -> None:
    child.started()
    await trio.sleep_forever()


# Restarts ------------------------------------------------------------------------------------------------------------


def restarts(*, crash: bool) -> float:
    """Restarts a second of a child of a one_for_one supervisor that crashes, or returns, as soon as it is ready."""
    lives = 0

    async def body(child: Child) -> None:
        nonlocal lives
        lives += 1
        child.started()
        if lives > RESTARTS:
            tree.stop("enough")
            await trio.sleep_forever()
        if crash:
            raise RuntimeError("again")

    tree = Tree(Supervisor("bench", [ChildSpec(id="c", body=body, backoff=NO_PAUSE)], intensity=ENDLESS))
    return RESTARTS / timed(lambda: trio.run(tree.run))


def bare_restarts() -> float:
    """The same by hand: a loop that runs the body in a nursery, and swallows what comes out of it."""

    async def body() -> None:
        raise RuntimeError("again")

    async def loop() -> None:
        for _ in range(RESTARTS):
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(body)
            except* RuntimeError:
                pass

    return RESTARTS / timed(lambda: trio.run(loop))


# Many children -------------------------------------------------------------------------------------------------------


def start_and_stop(count: int, strategy: Strategy) -> tuple[float, float]:
    """Seconds to start so many children in order, and to stop them in reverse."""
    specs = [ChildSpec(id=f"c{number}", body=steady) for number in range(count)]
    return _start_and_stop(Tree(Supervisor("bench", specs, strategy=strategy)))


def nested_start_and_stop() -> tuple[float, float]:
    """The same for a tree of 1,000 workers under 100 supervisors, ten levels deep in tens."""
    groups = []
    for group in range(10):
        below: list[ChildSpec] = []
        for level in range(10):
            specs = [ChildSpec(id=f"c{number}", body=steady) for number in range(10)]
            below = [Supervisor(f"g{group}-{level}", [*specs, *below]).spec()]
        groups += below
    return _start_and_stop(Tree(Supervisor("bench", groups)))


def pool_start_and_stop(count: int) -> tuple[float, float]:
    """Seconds to start so many children of a pool by calls, one after the other, and to stop them all at once."""
    pool = Pool("bench", ChildSpec(id="c", body=steady, restart=Restart.TEMPORARY))
    tree = Tree(pool)

    async def start() -> None:
        await tree.ready()
        for _ in range(count):
            await pool.start_child()

    return _start_and_stop(tree, start)


def _start_and_stop(tree: Tree, start: Callable[[], object] | None = None) -> tuple[float, float]:
    times: list[float] = []

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            times.append(time.perf_counter())
            nursery.start_soon(tree.run)
            await (start or tree.ready)()  # type: ignore[misc]
            times.append(time.perf_counter())
            tree.stop("enough")
        times.append(time.perf_counter())

    trio.run(main)
    return times[1] - times[0], times[2] - times[1]


def bare_start_and_stop(count: int) -> tuple[float, float]:
    """The same in a plain nursery: `nursery.start` one after the other, cancelled all together."""
    times: list[float] = []

    async def body(task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            times.append(time.perf_counter())
            for _ in range(count):
                await nursery.start(body)
            times.append(time.perf_counter())
            nursery.cancel_scope.cancel()
        times.append(time.perf_counter())

    trio.run(main)
    return times[1] - times[0], times[2] - times[1]


# Report --------------------------------------------------------------------------------------------------------------


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def medians(rounds: int, *measures: Callable[[], object]) -> list[list[float]]:
    """The medians of each, taken in turns, so that a slow moment of the machine meets all."""
    taken: list[list[list[float]]] = [[] for _ in measures]
    for _ in range(rounds):
        for measure, values in zip(measures, taken, strict=True):
            gc.collect()
            gc.disable()  # its passes grow with all that is alive, also in a bare nursery: not what is asked here
            value = measure()
            gc.enable()
            values.append(list(value) if isinstance(value, tuple) else [value])  # type: ignore[list-item]
    return [[statistics.median(column) for column in zip(*values, strict=True)] for values in taken]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds

    (crashed,), (returned,), (bare,) = medians(
        rounds, lambda: restarts(crash=True), lambda: restarts(crash=False), bare_restarts
    )
    print(f"restarts/s   after a crash {crashed:8,.0f}   after a return {returned:8,.0f}   bare loop {bare:8,.0f}")
    print(f"             ratio to the bare loop {crashed / bare:.2f} and {returned / bare:.2f}\n")
    print(
        f"{'seconds to':24}{'start 1,000':>12}{'10,000':>10}{'growth':>8}{'stop 1,000':>14}{'10,000':>10}{'growth':>8}"
    )
    rows: dict[str, Callable[[int], tuple[float, float]]] = {
        "a plain nursery": bare_start_and_stop,
        **{each.value: lambda count, each=each: start_and_stop(count, each) for each in Strategy},  # type: ignore[misc]
        "a pool, by calls": pool_start_and_stop,
    }
    for name, measure in rows.items():
        small, large = medians(rounds, lambda m=measure: m(1_000), lambda m=measure: m(10_000))  # type: ignore[misc]
        cells = f"{small[0]:12.3f}{large[0]:10.3f}{large[0] / small[0]:8.1f}{small[1]:14.3f}{large[1]:10.3f}"
        print(f"{name:24}{cells}{large[1] / small[1]:8.1f}")
    ((start, stop),) = medians(rounds, nested_start_and_stop)
    print(f"\n1,000 workers under 100 supervisors, 10 levels deep: start {start:.3f} s, stop {stop:.3f} s")


if __name__ == "__main__":
    main()
