"""Random faults on the whole system: what was accepted over HTTP has one end and one effect, in order of its key.

    python tests/chaos/system_faults.py [--topology single|cluster|replicas-cluster] [--processes 3]
        [--events 100000] [--faults 40] [--seconds 300] [--seed N]

Clients send events to one to three Penstock processes (`system_shop.py`) while Redis, PostgreSQL and the processes
themselves are killed, frozen, filled, cut off and failed over. Then the faults stop, and once nothing is under way the
ledger must balance. Prints a report; ends with 1 when anything was violated, and then says which events, what is known
of them, and where the logs are. The seed draws the faults and the load; the moments at which they meet are the
machine's, so a run is not repeated exactly. Not collected by pytest: `test_system_faults.py` runs short ones.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import redis.exceptions
import trio
from attrs import define, field
from system_book import Facts, Violation, check
from system_end import End
from system_load import Load
from system_shop import BOOKING, LEDGER, SHIPPING, orders
from system_site import TOPOLOGIES, Database, Installation, RedisSide, end_in_order, instance_of, log_findings, member
from system_strikes import Strikes

BEFORE_FAILOVER = 3.0
"""Seconds before a fault that replaced a master, in which Redis may lose what it acknowledged: it replicates later."""

RECOVERY = 10.0
"""Seconds after a fault of the database or of a process within which a refusal is no surprise."""

FAR_BEHIND = 10_000
"""Entries that a group may be behind before the load is held back."""

CLIENTS = 6
_thread = trio.to_thread.run_sync


@define(eq=False)
class Run:
    """One run on servers that are up.

    Attributes:
        options: the command line.
        place: where the processes live, and their logs.
        members: the processes that are running, by name.
        retired: those that were killed for good.
        told: the report.
        violations: what must never happen.
    """

    options: argparse.Namespace
    place: Path
    redis: RedisSide
    database: Database
    load: Load
    members: dict[str, Installation] = field(factory=dict)
    retired: list[Installation] = field(factory=list)
    broken: set[tuple[str, str]] = field(factory=set)
    told: list[str] = field(factory=list)
    violations: list[Violation] = field(factory=list)
    faults: Counter[str] = field(factory=Counter)
    strikes: Strikes | None = None
    _made: int = 0

    async def run(self) -> None:
        """From the start of the processes to the report. SIGTERM and SIGINT end it early."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._end_on_signal, nursery.cancel_scope)
            for proxy in (*self.redis.proxies, self.database.proxy):
                await nursery.start(proxy.serve)
            try:
                await self._start()
                await self._strike()
                await self._end()
            finally:
                self.load.stopping.set()
                with trio.CancelScope(shield=True):
                    await _thread(self._close)
            nursery.cancel_scope.cancel(reason="the run is over")

    async def _end_on_signal(
        self, scope: trio.CancelScope, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async for number in signals:
                self._wrong("ENDED EARLY", signal.Signals(number).name)
                scope.cancel(reason="a signal")

    # Processes ------------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        # The first one alone: it makes the tables.
        await _thread(self._start_one)
        async with trio.open_nursery() as nursery:
            for _ in range(self.options.processes - 1):
                nursery.start_soon(_thread, self._start_one)

    def _start_one(self) -> None:
        self._made += 1
        name = f"p{self._made}"
        made = member(name, self.place, self.redis.url, self.database.url)
        self.members[name] = made
        made.start()
        self.load.ports[name] = made.port

    def _replace(self, name: str) -> None:
        """A process was killed for good, with its host: another one comes, with a name of its own."""
        self.load.ports.pop(name, None)
        self.retired.append(self.members.pop(name))
        self._start_one()

    def _close(self) -> None:
        for process in [*self.members.values(), *self.retired]:
            process.close()

    # Faults ---------------------------------------------------------------------------------------------------------

    async def _strike(self) -> None:
        self.strikes = Strikes(
            self.redis,
            self.database,
            self.members,
            self._replace,
            random.Random(f"{self.options.seed}/faults"),
            self._note_fault,
        )
        self.load.start(CLIENTS)
        async with trio.open_nursery() as pacing:
            pacing.start_soon(self._hold_back)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._break_entries)
                await self.strikes.run(self.options.faults, self.options.seconds)
                nursery.cancel_scope.cancel(reason="the faults are over")
            self._say("peace")
            with trio.move_on_after(2 * self.options.seconds + 60):
                while not self.load.is_full():
                    await trio.sleep(0.1)
            pacing.cancel_scope.cancel(reason="that was the load")
        if not await _thread(self.load.stop, 90.0):
            self._wrong("HANGS", "a client is not done 90 s after the faults")

    async def _hold_back(self) -> None:
        """Send no more than the machine can handle: what is read after the run proves nothing more."""
        end = End(self.redis, self.database)
        while True:
            await trio.sleep(1.0)
            self.load.held = await _thread(end.behind) > FAR_BEHIND

    def _note_fault(self, name: str) -> None:
        self.faults[name] += 1
        self._say(f"fault {sum(self.faults.values())}: {name}")

    def _say(self, text: str) -> None:
        print(f"{self.load.time:7.2f} s  accepted {self.load.accepted:6}  {text}", flush=True)

    async def _break_entries(self) -> None:
        """Some other program adds entries that are no events."""
        rng = random.Random(f"{self.options.seed}/broken")
        for number in range(10_000):
            await trio.sleep(rng.uniform(1.0, 4.0))
            await _thread(self._add_broken, rng.choice(orders.keys), number)

    def _add_broken(self, key: str, number: int) -> None:
        try:
            with self.redis.admin(self.redis.owner(key)) as admin:
                self.broken.add((key, str(admin.xadd(key, {"nonsense": str(number)}))))
        except (redis.exceptions.RedisError, LookupError):
            pass  # Redis is away: nobody promised anything

    # The end --------------------------------------------------------------------------------------------------------

    async def _end(self) -> None:
        assert self.strikes is not None
        end = End(self.redis, self.database)
        gone = [instance_of(each) for each in self.retired]
        took, rest = await _thread(
            partial(end.wait_quiet, self.options.quiet_within, gone, self._say), abandon_on_cancel=True
        )
        self._say(f"quiet after {took:.1f} s")
        if rest:
            self._wrong("NOT QUIET", f"after {took:.0f} s: {rest}")
        facts = await _thread(self._facts, end)
        self.violations += await _thread(check, facts)
        for text in [*self.strikes.wrong, *self.load.wrong]:
            self._wrong("WRONG", text)
        await _thread(self._stop_in_order)
        await _thread(self._read_logs)
        await _thread(self._report, facts, end, took)

    def _facts(self, end: End) -> Facts:
        assert self.strikes is not None
        return Facts(
            sent=self.load.sent,
            effects=end.effects(),
            letters=end.letters(),
            groups=(LEDGER, SHIPPING),
            ordered=(LEDGER,),
            chained=BOOKING,
            broken=frozenset(self.broken),
            may_lose=self._may_lose(self.strikes.failovers),
            kills=sum("penstock" in name and "kill -9" in name for name in self.faults.elements()),
        )

    def _may_lose(self, failovers: Sequence[tuple[float, float]]) -> frozenset[str]:
        """The events all of whose entries were taken by a Redis that was about to lose a master."""
        start = self.load.started
        windows = [(begun - start - BEFORE_FAILOVER, ended - start) for begun, ended in failovers]

        def is_safe(at: float, durable: str) -> bool:
            return durable != "redis" or not any(low <= at <= high for low, high in windows)

        return frozenset(
            event_id
            for event_id, sent in self.load.sent.items()
            if sent.accepted and not any(is_safe(at, durable) for _, at, durable in sent.accepted)
        )

    def _stop_in_order(self) -> None:
        for name, process in self.members.items():
            if (wrong := end_in_order(process)) is not None:
                self._wrong("WRONG", f"process {name} {wrong}")

    def _read_logs(self) -> None:
        told: Counter[str] = Counter()
        for process in [*self.members.values(), *self.retired]:
            wrong, own = log_findings(process)
            told += own
            for text in wrong[:20]:
                self._wrong("LOG", text)
        self.told.append("log: " + "; ".join(f"{text} x{times}" for text, times in told.most_common(12)))

    def _odd_refusals(self) -> str:
        """Requests that were refused while no fault of the database, or of the process, was near.

        No violation: a machine that is overloaded lets a healthy database miss its probes.
        """
        assert self.strikes is not None
        hit = [
            (begun - self.load.started, ended - self.load.started + RECOVERY)
            for begun, ended, name in self.strikes.struck
            if not name.startswith("redis")
        ]
        odd = [each for each in self.load.refused if not any(low <= each[0] <= high for low, high in hit)]
        return f"{len(odd)} of {len(self.load.refused)}" + (f", such as {odd[0]}" if odd else "")

    def _wrong(self, kind: str, text: str) -> None:
        self.violations.append(Violation(kind, text))

    def _report(self, facts: Facts, end: End, quiet: float) -> None:
        sent = [each for each in facts.sent.values() if each.accepted]
        took = sorted(self.load.took) or [0.0]
        effects = Counter(effect.group for effect in facts.effects)
        letters = Counter(f"{each.group}: {each.reason}" for each in facts.letters)
        rows: list[tuple[str, object]] = [
            ("events accepted", len(sent)),
            ("accepted into", _counts(self.load.durable)),
            ("published more than once", sum(len(each.accepted) > 1 for each in sent)),
            ("never accepted", len(facts.sent) - len(sent)),
            ("effects", _counts(effects)),
            ("dead letters", _counts(letters)),
            ("entries that are no events", len(self.broken)),
            ("mirrored letters", end.mirrored()),
            ("faults", f"{sum(self.faults.values())}: {_counts(self.faults)}"),
            ("processes replaced", len(self.retired)),
            ("answers", _counts(self.load.answers)),
            ("refused though the database was not hit", self._odd_refusals()),
            ("POST", f"p50 {_at(took, 0.5):.0f} ms, p99 {_at(took, 0.99):.0f} ms, longest {_at(took, 1.0):.0f} ms"),
            ("quiet after", f"{quiet:.1f} s"),
            ("failovers", len(self.strikes.failovers) if self.strikes is not None else 0),
            ("may be lost to them", len(facts.may_lose)),
        ]
        self.told[:0] = [f"{name:<40} {value}" for name, value in rows]
        if ids := [event_id for each in self.violations for event_id in each.ids]:
            self.told += end.stories(dict.fromkeys(ids), self.load.sent)


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counter.items())) or "none"


def _at(values: Sequence[float], share: float) -> float:
    return 1000 * values[min(len(values) - 1, int(share * len(values)))]


@contextmanager
def servers(topology: str) -> Iterator[tuple[RedisSide, Database]]:
    """The servers of a run; ended, and their data removed, whatever happens."""
    with TOPOLOGIES[topology]() as made:
        database = Database.make()
        try:
            yield made, database
        finally:
            database.remove()


def main() -> int:
    """Read the command line, run, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--topology", choices=TOPOLOGIES, default="single")
    parser.add_argument("--processes", type=int, choices=(1, 2, 3), default=2)
    parser.add_argument("--events", type=int, default=100_000, help="to be accepted")
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=300.0, help="over which the faults are spread")
    parser.add_argument("--seed", type=int, default=None, help="of faults and load; default: a new one")
    parser.add_argument(
        "--quiet-within", type=float, default=150.0, help="seconds after the last event within which all must be done"
    )
    parser.add_argument("--keep", action="store_true", help="keep the logs also when nothing is wrong")
    options = parser.parse_args()
    options.seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    command = (
        f"system_faults.py --topology {options.topology} --processes {options.processes} --events {options.events}"
        f" --faults {options.faults} --seconds {options.seconds:g} --seed {options.seed}"
    )
    print(command, flush=True)
    place = Path(tempfile.mkdtemp(prefix="system-faults-"))
    begun = time.monotonic()
    with servers(options.topology) as (redis_side, database):
        load = Load(options.seed, {}, rate=1.1 * options.events / options.seconds, limit=options.events)
        run = Run(options, place, redis_side, database, load)
        trio.run(run.run)
    print(*run.told, sep="\n")
    for each in run.violations:
        print(f"VIOLATION {each.kind}: {each.text} {' '.join(each.ids)}".rstrip())
    print(f"violations: {len(run.violations)}, {time.monotonic() - begun:.0f} s ({command})")
    if run.violations or options.keep:
        print(f"logs: {place}")
    else:
        shutil.rmtree(place, ignore_errors=True)
    return 1 if run.violations else 0


if __name__ == "__main__":
    # Tests find their helpers beside them; run as a program, so do we.
    sys.path.insert(0, os.fspath(Path(__file__).parent))
    sys.exit(main())
