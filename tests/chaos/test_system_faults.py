"""Short fault runs on the whole system. The long ones: see `system_faults.py`, and `docs/how-to/prove-it.md`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("system_faults.py")
_RUNS = {"single": (2, 8), "cluster": (2, 6)}
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the servers are started the Linux way"),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("topology", _RUNS)
def test_what_was_accepted_has_one_end_and_one_effect_in_order(topology: str) -> None:
    processes, faults = _RUNS[topology]
    command = [sys.executable, str(PROGRAM), f"--topology={topology}", f"--processes={processes}"]
    command += ["--events=3000", f"--faults={faults}", f"--seconds={3 * faults}", "--seed=5"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            report, _ = process.communicate(timeout=280)
        except BaseException:
            process.terminate()  # so that it takes its servers and processes with it
            raise
    assert process.returncode == 0, report[-8000:]
    assert "violations: 0" in report, report[-8000:]
