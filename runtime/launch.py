"""The last steps between fork and exec of a server, run as a script of its own: see `processes`.

``python -I -S launch.py ORDER``: takes up the account, binds the process's life to its parent's, becomes the program.

Why a script, and not ``preexec_fn``: between fork and exec of a process with threads (trio has some) Python code may
deadlock on a lock that another thread held at the fork; and the order of these steps, each of which undoes an earlier
one when turned round, is easier to see and to test here. It costs some 15 ms a start.

It imports nothing of the distribution and nothing outside the standard library: by the time it needs anything, it may
no longer be able to read it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

# <linux/prctl.h> and <linux/capability.h>; these numbers are kernel ABI.
PR_SET_PDEATHSIG = 1
PR_SET_KEEPCAPS = 8
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
SECBIT_NO_SETUID_FIXUP = 1 << 2
CAP_DAC_READ_SEARCH = 2
CAP_SETPCAP = 8
CAPABILITY_VERSION_3 = 0x20080522

LINUX = sys.platform == "linux"


class Refusal(Exception):
    """The program cannot be started as ordered; the report goes to the parent."""

    def __init__(self, message: str, unreachable: str | None = None) -> None:
        super().__init__(message)
        self.report = {"message": message, "unreachable": unreachable}


def main() -> None:
    """Carry out the order in ``sys.argv[1]`` (JSON, made by `processes`); does not return when all goes well."""
    order = json.loads(sys.argv[1])
    report = order["report"]
    # Closed by a successful exec: the parent reads end-of-file then, and knows that the program itself runs.
    os.set_inheritable(report, False)
    try:
        become(order)
    except Refusal as refusal:
        os.write(report, json.dumps(refusal.report).encode())
        sys.exit(127)


def become(order: dict[str, Any]) -> None:
    """Turn this process into the program of `order`."""
    os.umask(0o077)
    account = order["account"]
    if account is not None:
        take_account(account, order["reach"])
    # After every change of credentials: the kernel forgets the parent-death signal at each of them (prctl(2)).
    if LINUX:
        die_with_parent(order["parent"], order["death_signal"])
    # Python ignores these two, and what is ignored stays ignored across exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    program, *_ = argv = order["argv"]
    try:
        os.execv(program, argv)  # noqa: S606 - there is no shell, which is what we want
    except OSError as error:
        as_whom = f" as user {account['name']!r}" if account else ""
        raise Refusal(f"cannot run {program}{as_whom}: {error.strerror}") from error


def take_account(account: dict[str, Any], reach: list[str]) -> None:
    """Become `account`, for good; keep the one capability to enter `reach` when, and only when, it takes that."""
    if LINUX:
        # Permitted capabilities survive the change of uid, effective ones do not: the checks below are the account's.
        prctl(PR_SET_KEEPCAPS, 1)
    try:
        os.setgroups([])
        os.setgid(account["gid"])
        os.setuid(account["uid"])
    except OSError as error:
        raise Refusal(f"cannot become user {account['name']!r}: {error.strerror}") from error
    barred = next((found for path in reach if (found := barred_at(path))), None)
    if LINUX:
        try:
            if barred:
                keep_read_search()
            else:
                set_capabilities()
        except OSError:
            if barred is None:
                raise
        else:
            prctl(PR_SET_NO_NEW_PRIVS, 1)
            return
    if barred is not None:
        raise Refusal(f"user {account['name']!r} cannot enter {barred}", unreachable=barred)


def barred_at(path: str) -> str | None:
    """The topmost directory on the way to the directory `path` that this process cannot enter; None when it can."""
    if os.access(path, os.R_OK | os.X_OK):
        return None
    way = [path]
    while (parent := os.path.dirname(way[-1])) != way[-1]:
        way.append(parent)
    return next((directory for directory in reversed(way) if not os.access(directory, os.X_OK)), path)


def keep_read_search() -> None:
    """Give up all capabilities but CAP_DAC_READ_SEARCH, and let it survive the exec (ambient; Linux 4.3).

    An ambient capability that equals the permitted ones does not make the exec "secure": ``$ORIGIN`` in the program's
    library path goes on to work. Raises OSError when it is not ours to keep (containers often drop it).
    """
    # access(2) leaves out the capabilities of a process that is not root, unless told otherwise; and PostgreSQL asks
    # access(2) whether its own program can be read. To say so takes CAP_SETPCAP, for this one call.
    set_capabilities(CAP_DAC_READ_SEARCH, CAP_SETPCAP)
    prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP)
    set_capabilities(CAP_DAC_READ_SEARCH)
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_READ_SEARCH)


def set_capabilities(*kept: int) -> None:
    """Give up all capabilities but `kept`, which become effective; raises OSError when one of them is not permitted."""
    import ctypes

    mask = sum(1 << capability for capability in kept)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    # Two blocks of 32 capabilities, each effective, permitted, inheritable; those that we keep are in the first.
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    if _libc().capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def die_with_parent(parent: int, death_signal: int) -> None:
    """Have the kernel send `death_signal` to this process when its parent ends in whatever way."""
    prctl(PR_SET_PDEATHSIG, death_signal)
    # It may have ended between the fork and the line above; nobody would ever send the signal then.
    if os.getppid() != parent:
        sys.exit(128 + death_signal)


def prctl(option: int, *arguments: int) -> None:
    """prctl(2); raises OSError."""
    import ctypes

    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    if _libc().prctl(option, *padded) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


if __name__ == "__main__":
    main()
