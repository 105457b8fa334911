"""A short fault run on each link, and the check of its checks. The long one: see `link_faults.py`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("link_faults.py")
_SECONDS = {"single": 6, "cluster": 8, "postgres": 5}
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for leaks in /proc")


def fault_run(topology: str, seconds: float, seed: int) -> tuple[int, str]:
    """One run in a process of its own: what it counts as leaked is then its own."""
    command = [sys.executable, str(PROGRAM), f"--seconds={seconds}", f"--seed={seed}", f"--topology={topology}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            report, _ = process.communicate(timeout=110)
        except BaseException:
            process.terminate()  # so that it takes its servers with it
            raise
        return process.returncode, report


@pytest.mark.parametrize("topology", _SECONDS)
def test_no_reply_goes_astray_and_nothing_hangs_or_leaks(topology: str) -> None:
    code, report = fault_run(topology, _SECONDS[topology], seed=20_251_122)
    assert code == 0, report
    assert "violations: 0" in report, report


def test_a_reply_that_goes_to_the_wrong_command_would_be_noticed() -> None:
    """The proxy swallows a reply, which no link can see: the run must."""
    code, report = fault_run("robbed", 4, seed=1)
    assert code == 1, report
    assert "WRONG REPLY" in report, report
