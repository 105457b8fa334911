"""A shell for the pure core that performs everything at once; shared by its tests."""

from __future__ import annotations

import random
from typing import Any

from penstock.runtime.supervision import AutoShutdown, Backoff, ChildSpec, Intensity, Plan, Strategy
from penstock.runtime.supervision.core import Core
from penstock.runtime.supervision.events import Report
from penstock.runtime.supervision.messages import (
    Action,
    Answer,
    Begin,
    CancelChild,
    CheckProgress,
    ChildEnded,
    ChildReady,
    DrainChild,
    Finish,
    Refuse,
    Settled,
    StartChild,
    Status,
    Stuck,
    Tick,
)
from penstock.runtime.supervision.outcome import Outcome

__all__ = ["PLAIN", "Play", "begun", "nobody", "spec"]

PLAIN = Backoff(minimum=1.0, maximum=10.0, jitter=0.0, reset_after=60.0)


async def nobody(child: object) -> None:
    raise AssertionError("the core runs nobody")


def spec(name: str, **options: Any) -> ChildSpec:
    return ChildSpec(id=name, body=nobody, **{"backoff": PLAIN, **options})


class Play:
    """Plays the shell: performs starts and stops at once, and writes down what the core ordered."""

    def __init__(
        self,
        specs: list[ChildSpec],
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: Intensity | None = None,
        shut: dict[str, str] | None = None,
        auto_shutdown: AutoShutdown = AutoShutdown.NEVER,
        stagger: float = 0.0,
        is_pool: bool = False,
    ) -> None:
        plan = Plan(specs, strategy, intensity or Intensity(100, 1000.0), auto_shutdown, stagger)
        self.core = Core(plan, random.Random(1).random, shut or {}, is_pool=is_pool)
        self.answers: dict[object, Any] = {}
        self.now = 0.0
        self.log: list[str] = []
        self.reports: list[Report] = []
        self.finished: Finish | None = None
        self.settled = False
        self.stuck = False
        self.deaf: set[str] = set()
        self.slow_starters: set[str] = set()

    def tell(self, event: Any) -> None:
        queue: list[Any] = [event]
        while queue:
            for action in self.core.handle(queue.pop(0), self.now):
                queue.extend(self._perform(action))

    def _perform(self, action: Action) -> list[Any]:
        match action:
            case StartChild(id=name, incarnation=incarnation):
                self.log.append(f"+{name}")
                return [] if name in self.slow_starters else [ChildReady(name, incarnation)]
            case DrainChild(id=name):
                self.log.append(f"~{name}")
            case CancelChild(id=name, incarnation=incarnation):
                self.log.append(f"-{name}")
                return [] if name in self.deaf else [ChildEnded(name, incarnation, Outcome())]
            case Finish():
                self.finished = action
            case Settled():
                self.settled = True
            case Stuck():
                self.stuck = True
            case Report():
                self.reports.append(action)
            case Answer(ticket=ticket, value=value, id=name):
                assert ticket not in self.answers, "a call is answered once"
                self.answers[ticket] = value if name is None else (name, self.core.children[name].incarnation)
            case Refuse(ticket=ticket, error=error):
                assert ticket not in self.answers, "a call is answered once"
                self.answers[ticket] = error
            case CheckProgress():
                self.log.append(f"?{action.id}")
        return []

    def end(self, name: str, error: BaseException | None = None, *, fatal: bool = False) -> None:
        child = self.core.children[name]
        self.tell(ChildEnded(name, child.incarnation, Outcome(error, fatal)))

    def crash(self, name: str) -> None:
        self.end(name, RuntimeError(f"{name} broke"))

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())

    def take(self) -> str:
        said, self.log = " ".join(self.log), []
        return said

    def status(self, name: str) -> Status:
        return self.core.children[name].status

    def kinds(self, name: str) -> list[str]:
        return [report.kind.value for report in self.reports if report.subject == name]


def begun(*names: str, **options: Any) -> Play:
    play = Play([spec(name) for name in names], **options)
    play.tell(Begin())
    assert play.take() == " ".join(f"+{name}" for name in names)
    assert play.settled
    return play
