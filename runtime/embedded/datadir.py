"""The data directory (``./.penstock``): one penstock at a time, and a home for each of its servers.

It stays ours: what lies above it is never changed. Run by root, its own mode is 0711, so that the servers' account can
pass through; everybody else finds it closed (0700). Each server's home is 0700 and belongs to the account that the
server runs as.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
import stat
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from attrs import frozen

from ..processes import Account
from .accounts import choose_account, existing_account, hand_over
from .errors import DataDirectoryError, DataDirectoryInUse

__all__ = ["DataDirectory", "Home"]

SOCKET_PATH_LIMIT = 103
"""Bytes of a unix socket's path: 107 on Linux, 103 on macOS and the BSDs (``sun_path`` less its final NUL)."""

_PLAIN_PATH = re.compile(r"[\w./+@~-]+", re.ASCII)
"""Paths that need no quoting in a connection URL, a libpq host list or postgresql.conf."""


@frozen
class Home:
    """The place of one server.

    Attributes:
        path: its private directory, for data.
        sockets: where its socket goes; `path` itself, or a short private directory when that is too deep for a socket.
        account: who the server runs as; None means as we do.
    """

    path: Path
    sockets: Path
    account: Account | None


class DataDirectory:
    """An open data directory, locked against every other penstock until it is closed.

    Attributes:
        path: where it is, absolute, without symbolic links.
        instance: eight hexadecimal digits, made once and kept: the stable part of this installation's consumer names.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open it, making it first where there is none. Blocks for a few file operations.

        Raises:
            DataDirectoryInUse: another penstock runs in it.
            DataDirectoryError: it cannot be made, or not be written to.
        """
        self.path = Path(path).expanduser().resolve()
        self._lock: int | None = None
        try:
            self._make()
            self._lock = self._take_lock()
            self.instance = self._read_instance()
        except OSError as error:
            self.close()
            raise DataDirectoryError(
                f"cannot use the data directory {self.path}: {error.strerror} ({error.filename or 'lock'});"
                " choose another with PENSTOCK_DATA_DIR"
            ) from error

    def close(self) -> None:
        """Let others in. The process's end, of whatever kind, does the same."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> DataDirectory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def socket_directory(self, server: str, socket_name: str) -> Path:
        """Where the socket `socket_name` of `server` goes; touches nothing.

        The same data directory always has the same one, so that tools find it again.
        """
        beside_data = self.path / server
        if _fits(beside_data / socket_name):
            return beside_data
        key = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:12]
        for base in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - a directory of ours in it, 0700, checked
            short = Path(base).resolve() / f"penstock-{key}-{server}"
            if _fits(short / socket_name):
                return short
        raise DataDirectoryError(f"no place for a socket: {short} is too long or has unusual characters; set TMPDIR")

    def home(self, server: str, socket_name: str) -> Home:
        """Make the home of `server` ready for use and return it. Blocks for a few file operations.

        Run by root, the account is the owner of the home, else of the data directory (so `sudo` takes nothing away
        from a user), else an unprivileged user of this machine.

        Raises:
            DataDirectoryError: it cannot be made, or is another user's.
        """
        path = self.path / server
        sockets = self.socket_directory(server, socket_name)
        try:
            _make_private(path)
            account = self._account(path) if os.geteuid() == 0 else None
            if account is not None:
                hand_over(path, account)
            _refuse_other_owner(path, account)
            if sockets != path:
                _make_private(sockets)
                _refuse_other_owner(sockets, account)
                if account is not None:
                    hand_over(sockets, account)
        except OSError as error:
            raise DataDirectoryError(f"cannot prepare {error.filename or path}: {error.strerror}") from error
        return Home(path, sockets, account)

    def _account(self, home: Path) -> Account:
        return existing_account(home) or existing_account(self.path) or choose_account()

    def _make(self) -> None:
        if self.path.is_dir():
            return
        self.path.mkdir(parents=True, mode=0o700, exist_ok=True)
        self.path.chmod(0o711 if os.geteuid() == 0 else 0o700)
        # Nobody wants the data of a development server in a commit.
        (self.path / ".gitignore").write_text("*\n")

    def _take_lock(self) -> int:
        # Left in place at the end: removing a lock file lets two processes lock two files of the same name.
        descriptor = self._open("lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = re.match(rb"\d+", os.pread(descriptor, 32, 0))
            os.close(descriptor)
            raise DataDirectoryInUse(self.path, int(pid[0]) if pid else None) from None
        except OSError:
            os.close(descriptor)
            raise
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n{datetime.now(UTC).isoformat(timespec='seconds')}\n".encode(), 0)
        return descriptor

    def _read_instance(self) -> str:
        descriptor = self._open("instance", os.O_RDWR | os.O_CREAT)
        try:
            known = re.fullmatch(rb"([0-9a-f]{8})\n", os.pread(descriptor, 32, 0))
            if known:
                return known[1].decode()
            instance = secrets.token_hex(4)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{instance}\n".encode(), 0)
            os.fsync(descriptor)
            return instance
        finally:
            os.close(descriptor)

    def _open(self, name: str, flags: int) -> int:
        # No links: the directory may belong to a user, and root must not write where that user points to.
        path = self.path / name
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        if os.geteuid() == 0:
            owner = self.path.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        return descriptor


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_LIMIT and _PLAIN_PATH.fullmatch(str(path)) is not None


def _make_private(path: Path) -> None:
    """Make the directory `path`, closed to others, where there is nothing yet."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not stat.S_ISDIR(path.lstat().st_mode):
            raise DataDirectoryError(f"{path} is not a directory; remove it") from None


def _refuse_other_owner(path: Path, account: Account | None) -> None:
    """In a temporary directory somebody else may have made `path` first; so may another user in a shared one."""
    found = path.lstat()
    ours = {os.geteuid()} if account is None else {0, account.uid}
    if found.st_uid not in ours:
        raise DataDirectoryError(
            f"{path} belongs to another user (uid {found.st_uid}); remove it, run as that user,"
            " or choose another place with PENSTOCK_DATA_DIR"
        )
    if found.st_mode & 0o077:
        path.chmod(0o700)
