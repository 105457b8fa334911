"""Whom the servers run as when we are root (PostgreSQL refuses root, and Valkey has no need of it)."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ..processes import Account
from .errors import EmbeddedServerError

__all__ = ["choose_account", "existing_account", "hand_over"]

CANDIDATES = ("postgres", "nobody")
"""In this order: an account made for owning a database's files; else the one that every Unix has."""


def choose_account() -> Account:
    """The first of `CANDIDATES` that this machine knows.

    A named one it must be: PostgreSQL looks up the name of its user id.
    """
    for name in CANDIDATES:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        f"run as root, the embedded servers need an unprivileged user: {' or '.join(CANDIDATES)};"
        " add one, run penstock as a normal user, or set PENSTOCK_REDIS_URL and PENSTOCK_POSTGRES_URL"
    )


def existing_account(path: Path) -> Account | None:
    """The owner of `path`; None when that is root or has no name."""
    uid = path.lstat().st_uid
    if uid == 0:
        return None
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        return None
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def hand_over(path: Path, account: Account) -> None:
    """Give the directory `path`, and what is in it, to `account`; nothing happens when it has it already.

    Follows no symbolic link, and leaves files with other hard links alone: the names in it may be another user's work.
    """
    if path.lstat().st_uid == account.uid:
        return
    for _, directories, files, descriptor in os.fwalk(path, follow_symlinks=False):
        for name in (*directories, *files):
            found = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            if name in directories or found.st_nlink == 1:
                os.chown(name, account.uid, account.gid, dir_fd=descriptor, follow_symlinks=False)
    # Last, so that a run that was cut short is taken up again by the next.
    os.chown(path, account.uid, account.gid, follow_symlinks=False)
