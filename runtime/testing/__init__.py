"""For tests of programs that use Penstock: virtual time, children with vices, storms, cuts and outages.

    @virtual_time(seeds=20)
    async def test_the_worker_comes_back() -> None:
        tree = Tree(Supervisor("app", [ChildSpec(id="worker", body=naughty(after=5.0))]), seed=0)
        storm = await restart_storm(tree, 24 * 3600)
        assert storm["app/worker"].longest_silence < 30

Needs nothing but trio; how to: docs/how-to/test-in-virtual-time.md. Beside it, imported by their own names: `.redis`,
a Redis inside the process, `.redis_cluster`, a cluster of them, and `.servers`, real ones as local processes.
"""

from .children import (
    Misbehaved,
    bad_starter,
    deaf,
    flaky,
    naughty,
    slow_leaver,
    slow_starter,
    stalled,
    steady,
    stuck,
)
from .cuts import Cut, CutPoint, cut_everywhere
from .diary import Diary
from .outages import outage, shut
from .scheduler import seed_scheduler
from .storm import ChildTally, Storm, restart_storm
from .trees import running
from .virtual import DAY, run_virtual, virtual_time
from .waiting import Overdue, place_of, tasks_waiting, within
from .wall import VirtualWall
from .watchdog import Watchdog

__all__ = [
    "DAY",
    "ChildTally",
    "Cut",
    "CutPoint",
    "Diary",
    "Misbehaved",
    "Overdue",
    "Storm",
    "VirtualWall",
    "Watchdog",
    "bad_starter",
    "cut_everywhere",
    "deaf",
    "flaky",
    "naughty",
    "outage",
    "place_of",
    "restart_storm",
    "run_virtual",
    "running",
    "seed_scheduler",
    "shut",
    "slow_leaver",
    "slow_starter",
    "stalled",
    "steady",
    "stuck",
    "tasks_waiting",
    "virtual_time",
    "within",
]
