"""What holds for every test: the scheduler of trio is seeded, so that a run can be repeated.

The watchdog over each test is pytest-timeout's; its limit stands in pyproject.toml.
"""

from __future__ import annotations

import os
import signal
import sys
from tempfile import TemporaryDirectory

import pytest

from penstock.runtime.testing import seed_scheduler

_DEFAULT_SEED = 20_251_122

_LONG_FIRST = ("chaos", "compose", "integration", "", "browser", "simulation")
"""Folders of tests; the empty name is that of the files that are in none."""

_OF_PROCESSES = ("chaos", "compose", "integration", "browser")
_LIMIT_OF_PROCESSES = 300
"""Seconds for a test in one of these folders that has no limit of its own."""


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell has its background jobs ignore Ctrl-C, and whatever they start; here and there a test sends it.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--trio-seed",
        type=int,
        default=_DEFAULT_SEED,
        help="seed of trio's scheduler, set before each test (default: %(default)s)",
    )
    parser.addoption("--thorough", action="store_true", help="cut long scenarios at each of their points, not a third")


def pytest_configure(config: pytest.Config) -> None:
    """Where Python is told not to write bytecode, keep that of this run outside the tree.

    The tests start hundreds of processes, and each would compile the whole project again.
    """
    if sys.dont_write_bytecode and not hasattr(config, "workerinput"):
        kept = TemporaryDirectory(prefix="penstock-bytecode-", ignore_cleanup_errors=True)
        config.add_cleanup(kept.cleanup)
        os.environ["PYTHONPYCACHEPREFIX"] = kept.name
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_report_header(config: pytest.Config) -> str:
    return f"trio scheduler: --trio-seed={config.getoption('--trio-seed')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The files that take longest first, so that no worker is left alone with one of them at the end.

    Tests of real processes wait for them again and again, with bounds whose sum is more than the watchdog's limit.
    """
    items.sort(key=lambda item: _rank(_folder(item, config)))
    for item in items:
        if _folder(item, config) in _OF_PROCESSES and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(_LIMIT_OF_PROCESSES))


def _folder(item: pytest.Item, config: pytest.Config) -> str:
    parts = item.path.relative_to(config.rootpath).parts
    return parts[1] if len(parts) > 2 else ""


def _rank(folder: str) -> int:
    return _LONG_FIRST.index(folder) if folder in _LONG_FIRST else len(_LONG_FIRST)


@pytest.fixture(scope="session")
def every(request: pytest.FixtureRequest) -> int:
    """`cut_everywhere`'s argument, where a scenario is long and has hundreds of points."""
    return 1 if request.config.getoption("--thorough") else 3


@pytest.fixture(autouse=True)
def _seeded_scheduler(request: pytest.FixtureRequest) -> None:
    seed_scheduler(request.config.getoption("--trio-seed"))
