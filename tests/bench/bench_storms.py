"""What a day of virtual time costs: a restart storm, a storm of a group, an outage of a gate, cuts at every point.

    python tests/bench/bench_storms.py [--rounds 3]

Told: seconds of real time, the best of some rounds, and how many restarts and events these were. Not collected by
pytest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import trio

from penstock.runtime.supervision import Backoff, ChildSpec, Gates, Intensity, Strategy, Supervisor, Tree
from penstock.runtime.testing import (
    DAY,
    Cut,
    Storm,
    cut_everywhere,
    naughty,
    outage,
    restart_storm,
    run_virtual,
    running,
    steady,
)

ENDLESS = Intensity(1_000_000, 60.0)
MINUTE = Backoff(maximum=60.0)


def storm(backoff: Backoff, count: int = 1, strategy: Strategy = Strategy.ONE_FOR_ONE) -> Storm:
    """So many children that crash a second after each start, for a day."""
    specs = [ChildSpec(id=str(number), body=naughty(1.0), backoff=backoff) for number in range(count)]
    tree = Tree(Supervisor("app", specs, strategy=strategy, intensity=ENDLESS), seed=0)
    return run_virtual(restart_storm, tree, DAY, seed=0)


def held_for_a_day() -> Storm:
    """A hundred children and their gate, which is shut for a day."""

    async def main() -> Storm:
        gates = Gates()
        gate = gates.add("redis")
        specs = [ChildSpec(id=str(number), body=steady(), requires=("redis",)) for number in range(100)]
        tree = Tree(Supervisor("app", specs), gates=gates, seed=0)

        async def later() -> None:
            await trio.sleep(10)
            await outage(gate, DAY)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(later)
            seen = await restart_storm(tree, DAY + 60)
            nursery.cancel_scope.cancel()
        return seen

    return run_virtual(main, seed=0)


def flapping_for_a_day() -> Storm:
    """Ten children whose gate is shut for a minute in every ten."""

    async def main() -> Storm:
        gates = Gates()
        gate = gates.add("redis")
        specs = [ChildSpec(id=str(number), body=steady(), requires=("redis",)) for number in range(10)]
        tree = Tree(Supervisor("app", specs), gates=gates, seed=0)

        async def flap() -> None:
            while True:
                await trio.sleep(540)
                await outage(gate, 60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flap)
            seen = await restart_storm(tree, DAY)
            nursery.cancel_scope.cancel()
        return seen

    return run_virtual(main, seed=0)


def cuts() -> int:
    """The gate of a child that takes a hundred steps is shut at each of them."""

    async def scenario(cut: Cut) -> None:
        gates = Gates()
        gate = gates.add("redis")

        async def body(child: object) -> None:
            child.started()  # type: ignore[attr-defined]
            for _ in range(100):
                await trio.sleep(1)
            await trio.sleep_forever()

        spec = ChildSpec(id="worker", body=body, requires=("redis",))
        async with running(Tree(Supervisor("app", [spec]), gates=gates, seed=0)):
            with cut.calling(lambda: gate.shut("cut"), at="app/worker"):
                await trio.sleep(200)

    return len(cut_everywhere(scenario))


def say(seen: Storm | int) -> str:
    if isinstance(seen, int):
        return f"{seen} runs"
    tallies = seen.children.values()
    holds, silence = sum(tally.holds for tally in tallies), max(tally.longest_silence for tally in tallies)
    restarts = sum(tally.restarts for tally in tallies)
    return f"{restarts} restarts, {holds} holds, {seen.events} events, longest silence {silence:.1f} s"


ROUNDS: dict[str, Callable[[], Storm | int]] = {
    "a day of storm, backoff up to 10 s (the default)": lambda: storm(Backoff()),
    "a day of storm, backoff up to 60 s": lambda: storm(MINUTE),
    "the same, a group of three, one for all": lambda: storm(MINUTE, 3, Strategy.ONE_FOR_ALL),
    "a day of outage, 100 children": held_for_a_day,
    "a day of flapping, 144 outages, 10 children": flapping_for_a_day,
    "a gate shut at every step of 100": cuts,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    for name, run in ROUNDS.items():
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            seen = run()
            taken.append(time.perf_counter() - began)
        print(f"{name:<50} {min(taken):6.2f} s   {say(seen)}")


if __name__ == "__main__":
    main()
