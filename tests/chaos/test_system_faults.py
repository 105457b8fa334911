"""Short fault runs on the whole system. The long ones: see `system_faults.py`, and `docs/how-to/prove-it.md`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("system_faults.py")
# Seeds whose decks begin with: a frozen process, a killed process, a full Redis, PostgreSQL behind a black hole, a
# storm of lost connections to PostgreSQL, cut connections to Redis, both servers killed; and with: a frozen process,
# a storm of lost connections to a node, a killed database, SIGTERM, a full node, a database that is shut down.
_SEEDS = {"single": 335832, "cluster": 322294}
_FAULTS = {"single": 7, "cluster": 6}
pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the servers are started the Linux way"),
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("topology", _SEEDS)
def test_what_was_accepted_has_one_end_and_one_effect_in_order(topology: str) -> None:
    faults = _FAULTS[topology]
    command = [sys.executable, str(PROGRAM), f"--topology={topology}", "--processes=2", "--events=1000"]
    command += [f"--faults={faults}", f"--seconds={3 * faults}", f"--seed={_SEEDS[topology]}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            report, _ = process.communicate(timeout=280)
        except BaseException:
            process.terminate()  # so that it takes its servers and processes with it
            raise
    assert process.returncode == 0, report[-8000:]
    assert "violations: 0" in report, report[-8000:]
