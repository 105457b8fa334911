"""``penstock simulate``: many stories of a system under random faults, in virtual time. A broken one names its seed."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import click
from attrs import asdict, evolve, frozen

from ...actors.configuring import configured
from ...actors.system import DeclarationError, System
from ...runtime.cli import CommandError, Invocation, json_option, load_settings
from ...runtime.output import duration, echo_json, echo_table
from ..configuration import Settings
from .declared import declared_system, load_object, place_of

if TYPE_CHECKING:
    from ...actors.simulation import Outcome, Scenario
    from ...actors.simulation.report import Report

__all__ = ["simulate"]

SHOWN = 5
"""Failed seeds that are shown one by one."""


@click.command(short_help="Try a system's handlers under random faults, in virtual time.")
@click.argument("system", required=False, metavar="[MODULE:SYSTEM]")
@click.option("--seeds", default=100, show_default=True, type=click.IntRange(min=1), help="How many stories.")
@click.option("--first", default=0, show_default=True, type=click.IntRange(min=0), help="The first of the seeds.")
@click.option("--seed", type=click.IntRange(min=0), help="Only this one, and tell its whole story.")
@click.option("--jobs", default=1, show_default=True, type=click.IntRange(min=1), help="Processes that run them.")
@click.option("--processes", type=click.IntRange(1, 5), help="Simulated processes of the system. Default: 1 to 3.")
@json_option
def simulate(
    system: str | None, seeds: int, first: int, seed: int | None, jobs: int, processes: int | None, as_json: bool
) -> None:
    """Run a system under random faults, whole and in memory, and see whether its events keep their promises.

    MODULE:SYSTEM is what `penstock run` takes; without it, it is what the settings name or make. What they set of its
    streams holds. Its handlers are called as they are, on servers that are cut, frozen, full and lost, in processes
    that are killed at any await; what they write is remembered, and no SQL is run. Events and jobs are made up from the
    declared event classes, unless the module (of the system, or of a handler that the settings name) has
    simulation_events(chance). The same seed is the same story. Exit code 0 if every seed kept every promise, else 1.
    """
    settings = load_settings(Settings)
    teller = _Teller(place_of(system, settings), settings, processes)
    teller.check()
    chosen = range(first, first + seeds) if seed is None else range(seed, seed + 1)
    report = _run(teller, chosen, 1 if seed is not None else jobs, whole=seed is not None and not as_json)
    again = _again(system, processes)
    if as_json:
        echo_json(
            {**asdict(report), "failed": [{**asdict(each), "again": f"{again}{each.seed}"} for each in report.failed]}
        )
    else:
        _show(report, again)
    if report.failed:
        raise CommandError(f"{len(report.failed)} of {report.seeds} seeds broke a promise")


def _again(system: str | None, processes: int | None) -> str:
    """The command that tells a story again, without the seed."""
    invocation = click.get_current_context().find_object(Invocation) or Invocation()
    words = [
        *([] if invocation.config is None else ["--config", invocation.config]),
        *([] if system is None else [system]),
        *([] if processes is None else ["--processes", str(processes)]),
    ]
    return f"{shlex.join(['penstock', 'simulate', *words])} --seed "


@frozen
class _Teller:
    """Tells the story of a seed; loads the system where it runs, for that may be another process."""

    place: str | None
    settings: Settings
    processes: int | None

    def __call__(self, seed: int) -> Outcome:
        from ...actors.simulation import Outcome, tell_story

        try:
            return tell_story(self.scenario(), seed)
        except Exception as error:  # noqa: BLE001 - of a story that broke off, the seed must be known
            told = "".join(traceback.format_exception(error))
            return Outcome(
                seed=seed,
                violations=(f"the run broke off: {type(error).__name__}: {error}",),
                story=tuple(told.splitlines()),
                trace="",
                events=0,
                faults=0,
                steps=0,
                seconds=0.0,
                ends={},
            )

    def scenario(self) -> Scenario:
        """What is simulated: a `Scenario` as it is, or that of a `System` and of what its module brings for it."""
        from ...actors.simulation import Scenario
        from ...actors.simulation.users import scenario_of

        module, found = self._found()
        if isinstance(found, Scenario):
            chosen = evolve(found, settings=evolve(found.settings, streams=self.settings.streams))
            return chosen if self.processes is None else evolve(chosen, processes=self.processes)
        if not isinstance(found, System):
            held = "nothing" if found is None else f"a {type(found).__name__}"
            raise CommandError(f"{self.place} is {held}, not a penstock System", 2)
        modules = self._handlers() if module is None else [module]
        return scenario_of(
            found,
            streams=self.settings.streams,
            events=_hook(modules, "simulation_events"),
            begins=_hook(modules, "simulation_begins"),
            processes=self.processes,
        )

    def _found(self) -> tuple[ModuleType | None, object]:
        return (None, declared_system(None, self.settings)) if self.place is None else load_object(self.place)

    def _handlers(self) -> list[ModuleType]:
        """The modules of the functions that the settings name."""
        groups = [group for stream in self.settings.streams.values() for group in stream.groups.values()]
        return [load_object(place)[0] for group in groups for place in group.handlers.values()]

    def check(self) -> None:
        """Raise what is wrong with the system, or what is not installed, before the first story."""
        try:
            from ...actors.simulation.generated import CannotMake
        except ImportError as error:
            raise CommandError("the simulation needs the extra test: pip install 'penstock[test]'", 2) from error
        import random

        scenario = self.scenario()
        chance = random.Random(0)  # noqa: S311 - no secret
        try:
            declared = configured(scenario.system(chance), scenario.settings)
            declared.check()
        except DeclarationError as error:
            raise CommandError(str(error), 2) from error
        try:
            named = {each.stream for each in scenario.publications(chance, declared)}
        except CannotMake as error:
            raise CommandError(str(error), 2) from error
        if unknown := named - set(declared.streams) - set(declared.queues):
            raise CommandError(f"simulation_events names no declared stream or queue: {', '.join(sorted(unknown))}", 2)


def _hook(modules: Sequence[ModuleType], name: str) -> Callable[..., Any] | None:
    """The function of that name in the first of the modules that has it."""
    for module in modules:
        hook: Any = getattr(module, name, None)
        if hook is None:
            continue
        if not callable(hook):
            raise CommandError(f"{name} of {module.__name__} is no function", 2)
        return cast("Callable[..., Any]", hook)
    return None


def _run(teller: _Teller, seeds: range, jobs: int, *, whole: bool) -> Report:
    from ...actors.simulation.report import Report, run_seeds

    report = Report()
    with _progress(len(seeds)) as advance:
        for outcome in run_seeds(teller, seeds, jobs):
            report.add(outcome)
            if whole:
                click.echo("\n".join(outcome.story))
            if outcome.violations and len(seeds) > 1:
                click.echo(f"seed {outcome.seed}: {outcome.violations[0]}", err=True)
            advance(1)
    return report


@contextmanager
def _progress(length: int) -> Iterator[Callable[[int], None]]:
    """What to call with each number of seeds that are done; on a terminal it moves a bar."""
    if not sys.stderr.isatty() or length == 1:
        yield lambda _: None
        return
    with click.progressbar(length=length, label="simulating", file=sys.stderr) as bar:
        yield bar.update


def _show(report: Report, again: str) -> None:
    for outcome in report.failed[:SHOWN]:
        click.echo(f"seed {outcome.seed}")
        for violation in outcome.violations:
            click.echo(f"  BROKEN: {violation}")
        click.echo(f"  again: {again}{outcome.seed}")
    if len(report.failed) > SHOWN:
        click.echo(f"… and seeds {', '.join(str(each.seed) for each in report.failed[SHOWN:])}")
    rows: list[tuple[str, object]] = [
        ("seeds", report.seeds),
        ("broken", len(report.failed)),
        ("events accepted", report.events),
        ("faults", report.faults),
        ("steps of tasks", report.steps),
        ("simulated time", duration(report.seconds)),
        *[(f"ended {how}", number) for how, number in sorted(report.ends.items())],
    ]
    echo_table([(name, str(value)) for name, value in rows], ["what", "how many"])
