"""The data directory: one penstock at a time, nothing open to others, nothing changed that is not ours."""

from __future__ import annotations

import os
import pwd
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.runtime.embedded import DataDirectory, DataDirectoryError, DataDirectoryInUse
from penstock.runtime.embedded.accounts import choose_account, existing_account, hand_over
from penstock.runtime.embedded.datadir import SOCKET_PATH_LIMIT
from penstock.runtime.processes import Account

HOLD = (
    "import sys, penstock.runtime.embedded as e; d = e.DataDirectory(sys.argv[1]); print('held', flush=True); input()"
)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_it_is_made_closed_to_others_and_kept_out_of_commits(place: Path) -> None:
    with DataDirectory(place / "a" / ".penstock") as directory:
        assert directory.path == place / "a" / ".penstock"
        # Root's servers run as somebody else, who has to pass through; nobody can list it.
        assert mode(directory.path) == (0o711 if os.geteuid() == 0 else 0o700)
        assert (directory.path / ".gitignore").read_text() == "*\n"
        assert {mode(directory.path / name) for name in ("lock", "instance")} == {0o600}


def test_a_second_one_is_refused_at_once_and_told_whom_to_stop(place: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(
        DataDirectoryInUse, match=rf"another penstock \(pid {holder.pid}\) runs in .*DATA_DIR"
    ) as refused:
        DataDirectory(place)
    assert refused.value.pid == holder.pid
    holder.kill()
    holder.communicate()
    # However the first one ended, nothing has to be cleaned up by hand.
    DataDirectory(place).close()


def test_the_same_process_cannot_open_it_twice_either(place: Path) -> None:
    with DataDirectory(place), pytest.raises(DataDirectoryInUse, match=f"pid {os.getpid()}"):
        DataDirectory(place)


def test_the_lock_is_not_inherited_by_what_we_start(place: Path) -> None:
    with DataDirectory(place):
        heir = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        DataDirectory(place).close()
    finally:
        heir.send_signal(signal.SIGKILL)
        heir.wait()


def test_the_instance_is_made_once_and_kept(place: Path) -> None:
    with DataDirectory(place / "one") as one:
        first = one.instance
    with DataDirectory(place / "one") as one, DataDirectory(place / "two") as two:
        assert one.instance == first
        assert two.instance != first


def test_a_half_written_instance_is_made_anew(place: Path) -> None:
    (place / "instance").write_text("12")
    with DataDirectory(place) as directory:
        made = directory.instance
    assert len(made) == 8
    assert (place / "instance").read_text() == f"{made}\n"


def test_a_link_in_place_of_the_lock_is_not_followed(place: Path) -> None:
    (place / "precious").write_text("data")
    (place / "lock").symlink_to(place / "precious")
    with pytest.raises(DataDirectoryError, match=r"lock.*PENSTOCK_DATA_DIR"):
        DataDirectory(place)
    assert (place / "precious").read_text() == "data"


def test_a_file_in_its_place_is_named(place: Path) -> None:
    (place / "file").write_text("")
    with pytest.raises(DataDirectoryError, match="file"):
        DataDirectory(place / "file")


def test_sockets_lie_beside_the_data_when_they_fit(place: Path) -> None:
    with DataDirectory(place) as directory:
        home = directory.home("valkey", "valkey.sock")
        assert home.sockets == home.path == place / "valkey"
        assert mode(home.path) == 0o700


@pytest.mark.parametrize("name", ["d" * 90, "with, comma", "naïve"])
def test_sockets_get_a_short_private_directory_when_they_do_not_fit(place: Path, name: str) -> None:
    with DataDirectory(place / name) as directory:
        home = directory.home("valkey", "valkey.sock")
        again = directory.home("valkey", "valkey.sock")
        try:
            assert home == again
            assert home.path == place / name / "valkey"
            assert home.sockets.parent != home.path
            assert len(os.fsencode(home.sockets / "valkey.sock")) <= SOCKET_PATH_LIMIT
            assert mode(home.sockets) == 0o700
            assert home.sockets != directory.home("other", "valkey.sock").sockets
        finally:
            for server in ("valkey", "other"):
                directory.socket_directory(server, "valkey.sock").rmdir()


@pytest.mark.usefixtures("as_root")
class TestAsRoot:
    def test_the_account_is_unprivileged_and_owns_only_the_homes(self, place: Path) -> None:
        with DataDirectory(place / ".penstock") as directory:
            home = directory.home("valkey", "valkey.sock")
        assert home.account is not None
        assert home.account == choose_account()
        assert home.account.uid != 0
        assert home.path.stat().st_uid == home.account.uid
        assert directory.path.stat().st_uid == place.stat().st_uid == 0
        assert mode(place) == 0o755

    def test_the_owner_of_an_existing_directory_is_the_account(self, place: Path) -> None:
        daemon = pwd.getpwnam("daemon")
        os.chown(place, daemon.pw_uid, daemon.pw_gid)
        with DataDirectory(place) as directory:
            home = directory.home("valkey", "valkey.sock")
        assert home.account == Account("daemon", daemon.pw_uid, daemon.pw_gid)
        # Started without sudo the next time, that user can open all of it.
        assert {path.stat().st_uid for path in (home.path, place / "lock", place / "instance")} == {daemon.pw_uid}

    def test_data_that_came_back_as_roots_is_handed_over(self, place: Path) -> None:
        (place / "valkey" / "appendonlydir").mkdir(parents=True)
        (place / "valkey" / "appendonlydir" / "data").write_text("restored")
        with DataDirectory(place) as directory:
            home = directory.home("valkey", "valkey.sock")
        assert home.account is not None
        owners = {path.lstat().st_uid for path in (home.path, *home.path.rglob("*"))}
        assert owners == {home.account.uid}

    def test_a_hand_over_stays_within_the_directory(self, place: Path) -> None:
        for name in ("outside", "linked"):
            (place / name).write_text("root's")
        (place / "home").mkdir()
        (place / "home" / "symbolic").symlink_to(place / "outside")
        (place / "home" / "hard").hardlink_to(place / "linked")
        hand_over(place / "home", choose_account())
        assert (place / "outside").stat().st_uid == (place / "linked").stat().st_uid == 0
        assert existing_account(place / "home") == choose_account()

    def test_a_socket_directory_that_somebody_else_made_first_is_refused(self, place: Path) -> None:
        with DataDirectory(place / ("d" * 90)) as directory:
            trap = directory.socket_directory("valkey", "valkey.sock")
            trap.mkdir()
            os.chown(trap, pwd.getpwnam("daemon").pw_uid, 0)
            try:
                with pytest.raises(DataDirectoryError, match=f"{trap} belongs to another user"):
                    directory.home("valkey", "valkey.sock")
            finally:
                trap.rmdir()
